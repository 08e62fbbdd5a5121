"""How often the small reward decoder's verdicts are the full decode's, on a small VAE of the real class trained here.

    python profiling/reward_decoder_agreement.py --work DIR [--out FILE.json]

Makes in DIR what it does not hold yet: a data set's manifest, a VAE (small_vae.py), its reward decoder (`vrlvr
distill-decoder`), and a policy by SFT and GRPO on the VAE's latents (small_policy.py). Then compares verdicts on held-out
puzzles' latents of four kinds: planner's videos, imperfect ones (vrlvr/imperfect.py), the SFT policy's samples, and noisy
rollouts of the policy after RL. Each kind once more with the cells that the small frames leave in doubt read off windows of the
full decode (vrlvr/reread.py), and what that costs at 480x832x81. Then it damages the decoder on purpose and counts the updates
until the audit drops it. Beside that stand FLOPs, of this VAE and of the real sizes, and the seconds of this machine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from decoder_measures import Pair, PublishedCost, audit_damaged, compare, cost, judge_both, settle
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from small_policy import Samples, draw_samples, make_config, train_policies
from small_vae import train_vae

from vrlvr import dataset, puzzles
from vrlvr.audit import AuditConfig
from vrlvr.config import DataConfig
from vrlvr.dataset import Recipe
from vrlvr.distill import TEST_SPLIT, distill_decoder, draw, read_recipe
from vrlvr.errors import UserError
from vrlvr.models.reward_decoder import RewardDecoder
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.puzzles import Puzzle
from vrlvr.source import Rendered

CPU = torch.device("cpu")
SEED = 0
_BATCH = 16  # videos that are encoded at once
_IMPERFECT_STREAM = 13
_DAMAGES = (0.0, 0.05, 0.1, 0.2, 0.4)
_DOUBTS = (30.0, AuditConfig.doubt)  # levels beyond which cells are read anew


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of what is made; what is there is used")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--vae_steps", type=int, default=5500)
    parser.add_argument("--vae_lr", type=float, default=4e-3)
    parser.add_argument("--decoder_steps", type=int, default=2800)
    parser.add_argument("--decoder_lr", type=float, default=4e-3)
    parser.add_argument("--decoder_width", type=int, default=192)
    parser.add_argument("--decoder_depth", type=int, default=6)
    parser.add_argument("--num_train", type=int, default=1500, help="solved puzzles a task for SFT")
    parser.add_argument("--sft_steps", type=int, default=2500)
    parser.add_argument("--updates", type=int, default=8, help="of GRPO, 96 samples each")
    parser.add_argument("--samples", type=int, default=1000, help="held-out puzzles of each of the four kinds")
    parser.add_argument("--audited_updates", type=int, default=30, help="of 96 samples each, two of which are audited")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        result = measure(arguments)
    except UserError as error:
        print(f"reward_decoder_agreement: {error}", file=sys.stderr)
        return 2
    if arguments.out:
        machine.write_json(arguments.out, result)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes what is missing, measures and prints; the JSON's content."""
    work: Path = arguments.work
    data = DataConfig(height=64, width=80, num_train=arguments.num_train)  # 4x5 cells of 16x16 pixels: a latent each
    recipe = make_data(work / "data", data)
    if not (work / "model" / "vae").exists():
        make_vae(work / "model" / "vae", recipe, arguments.vae_steps, arguments.vae_lr)
    if not (work / "decoder").exists():
        # 16 pixels a cell, as the real size's default gives 13 to those of 9x9 boards.
        sizes = {"side": 16, "width": arguments.decoder_width, "depth": arguments.decoder_depth}
        steps = {"steps": arguments.decoder_steps, "batch": 16, "fresh": 2, "pool": 4096, "lr": arguments.decoder_lr}
        distill_decoder(work / "model", work / "decoder", work / "data", **steps, **sizes, num_test=8, device="cpu")
    codec = WanVAECodec.from_pretrained(work / "model" / "vae", CPU)
    codec.vae.disable_slicing()  # videos this small are encoded faster together
    small = RewardDecoder.from_pretrained(work / "decoder", CPU)
    config = make_config(work / "policy", data, arguments.sft_steps, arguments.updates)
    sft, rl = train_policies(config, Rendered(config, codec, CPU))

    held_out = [
        puzzles.generate(task, recipe.difficulties[task], SEED, TEST_SPLIT, i)
        for i, task in enumerate(recipe.tasks[i % len(recipe.tasks)] for i in range(arguments.samples))
    ]
    kinds = {
        "planner's videos": planned(codec, recipe, held_out),
        "imperfect videos": imperfect(codec, recipe, arguments.samples),
        "SFT samples": draw_samples(config, sft, codec, held_out, noisy=False),
        "RL rollouts": draw_samples(config, rl, codec, held_out, noisy=True),
    }
    size = recipe.height, recipe.width
    published = PublishedCost()
    pairs = {kind: judge_both(small, codec, samples, size) for kind, samples in kinds.items()}
    print("by the small frames alone:")
    agreement = {"alone": compare_all(pairs, published)}
    for doubt in _DOUBTS:
        print(f"where cells further than {doubt:g} levels from their look are read anew:")
        settled = {kind: settle(pairs[kind], samples, codec, size, doubt) for kind, samples in kinds.items()}
        agreement[f"{doubt:g} levels"] = compare_all(settled, published)
    audits = [
        audit_damaged(small, codec, kinds["RL rollouts"], size, damage, arguments.audited_updates, rows=96)
        for damage in _DAMAGES
    ]
    for row in audits:
        fate = f"dropped after update {row['updates']}" if row["dropped"] else f"kept for {row['updates']} updates"
        print(
            f"weights off by {row['damage']:.0%}: {fate}, {row['disagreement']:.1%} of {row['audited']} audited differ"
        )
    costs = cost(small, codec, kinds["planner's videos"])
    for name, forwards in (("small", published.small), ("full", published.full)):
        costs[f"{name}_dit_forwards_480x832x81"] = forwards
    for name, value in costs.items():
        print(f"{name:>32} {value:10.4g}")
    options = {name: value for name, value in vars(arguments).items() if name not in ("work", "out")}
    return {"options": options, "agreement": agreement, "audits": audits, "cost": costs}


def make_data(folder: Path, data: DataConfig) -> Recipe:
    """A data set of one video a task: what counts is its manifest, which `vrlvr distill-decoder` reads."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    difficulties = {task: getattr(data, task) for task in data.tasks}
    dataset.build(
        folder, num_train=1, num_test=0, seed=SEED, height=data.height, width=data.width, num_frames=data.num_frames,
        difficulties=difficulties, workers=1,
    )  # fmt: skip
    return read_recipe(folder)


def make_vae(folder: Path, recipe: Recipe, steps: int, lr: float) -> None:
    """Trains the VAE and writes it as a Wan model's folder holds it."""
    columns = (TextColumn("VAE, off by {task.fields[off]:.1f} levels"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=steps, off=float("nan"))
        vae = train_vae(recipe, steps, 2, lr, SEED, lambda off: progress.update(bar, advance=1, off=off))
    vae.save_pretrained(folder)


def planned(codec: WanVAECodec, recipe: Recipe, batch: Sequence[Puzzle]) -> Samples:
    """The planner's videos, encoded."""
    size = recipe.height, recipe.width, recipe.num_frames, recipe.frames_per_move
    parts = []
    for start in range(0, len(batch), _BATCH):
        some = batch[start : start + _BATCH]
        videos = np.stack([puzzles.render(puzzle, *size) for puzzle in some])
        parts.append(Samples(some, codec.encode_first(videos[:, 0]), codec.encode(videos)))
    return Samples.joined(parts)


def imperfect(codec: WanVAECodec, recipe: Recipe, number: int) -> Samples:
    """Held-out videos and latents spoiled as the decoder's training spoils its own, but neither scrambled nor mixed."""
    parts = []
    for start in range(0, number, _BATCH):
        rng = np.random.default_rng(np.random.SeedSequence([SEED, _IMPERFECT_STREAM, start]))
        numbers = range(start, min(number, start + _BATCH))
        parts.append(Samples(*draw(codec, recipe, TEST_SPLIT, numbers, rng)))
    return Samples.joined(parts)


def compare_all(pairs: dict[str, list[Pair]], published: PublishedCost) -> dict[str, dict[str, Any]]:
    """Prints and returns what each kind's pairs agree on; the share of samples of which cells were read anew, the mean number
    of cells of their boxes, and what decoding costs at full size, in forwards of the transformer."""
    rows = {}
    for kind, some in (pairs | {"SFT and RL": pairs["SFT samples"] + pairs["RL rollouts"]}).items():
        cells = [pair.box.rows * pair.box.columns for pair in some if pair.box]
        rows[kind] = compare(some) | {
            "reread": len(cells) / len(some),
            "cells": sum(cells) / max(1, len(cells)),
            "dit_forwards_480x832x81": published.settled(some),
            "dit_forwards_480x832x81_by_share_of_board": published.settled(some, as_shares=True),
        }
    print_agreement(rows)
    return rows


def print_agreement(rows: dict[str, dict[str, Any]]) -> None:
    head = f"{'':>17} {'samples':>8} {'solved':>7} {'verdict equal':>25} {'solved':>8} {'rule':>8} {'reward off':>10}"
    print(f"{head} {'reread':>7} {'forwards':>8} {'by share':>8}")
    for kind, row in rows.items():
        low, high = row["verdict_equal_ci95"]
        print(
            f"{kind:>17} {row['samples']:>8} {row['solved_by_full_decode']:>7.1%} {row['verdict_equal']:>8.2%} "
            f"[{low:>6.2%}, {high:>7.2%}] {row['solved_equal']:>7.2%} {row['rule_equal']:>8.2%} "
            f"{row['reward_difference']:>10.5f} {row['reread']:>7.1%} {row['dit_forwards_480x832x81']:>8.3f} "
            f"{row['dit_forwards_480x832x81_by_share_of_board']:>8.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
