"""The main job: puzzles, SFT, SDE-GRPO, evaluation.

torchrun vrlvr/train.py [--config configs/X.yaml] [--stage data|sft|grpo|eval|all] [--section.field VALUE ...]
"""

import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vrlvr import options
from vrlvr.atomic_write import write_text
from vrlvr.batches import generate_all, read_split, videos_of
from vrlvr.build import build_policy, load_policy, open_encoded, open_source, save_codec
from vrlvr.checkpoint import Checkpoints
from vrlvr.config import Config, check
from vrlvr.distributed import World, joined_world
from vrlvr.ema import frozen_copy
from vrlvr.errors import LocalError, UserError
from vrlvr.evaluation.report import write_report, write_results_md
from vrlvr.evaluation.run import evaluate_systems
from vrlvr.evaluation.tables import print_table, read_gains, read_results
from vrlvr.footprint import told_if_memory_is_full
from vrlvr.grpo import train_grpo
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.run_dir import check_shared, facts, open_run
from vrlvr.run_log import RunLog
from vrlvr.sft import train_sft

_CODEC_SAMPLE = 300  # videos a task whose moments whiten the tiny codec


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages that the command line asks for. Returns the exit code: 2 after bad input, told in one line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = options.parse(arguments)
        check(config, int(os.environ.get("WORLD_SIZE", "1")))
        with joined_world() as world:
            train(config, world, arguments)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, LocalError):  # once a node
            print(f"vrlvr: {error}", file=sys.stderr)
        return 2
    return 0


def train(config: Config, world: World, arguments: list[str]) -> None:
    """All stages in their order, each from what the one before left in run_dir."""
    begin, run_dir = time.perf_counter(), Path(config.run_dir)
    said = world.on_main(lambda: open_run(config))
    check_shared(run_dir, world)
    with RunLog(run_dir, enabled=world.is_main) as log:
        if said:
            log.say(said)
        for stage in STAGES:
            if config.stage in (stage, "all"):
                if config.model.path is not None and stage != "data":
                    log.say(f"{stage}: reading {config.model.path}")
                with told_if_memory_is_full(stage):
                    STAGES[stage](config, world, log, run_dir)
                gc.collect()  # PyTorch's first step leaves cycles that hold the stage's model and optimizer
        if config.stage in ("eval", "all") and world.is_main:
            run_facts = facts(config, ["vrlvr", "train", *arguments], world.size) | {
                "seconds": round(time.perf_counter() - begin, 1)
            }
            write_text(run_dir / "run.json", json.dumps(run_facts, indent=1))
    if config.stage in ("eval", "all") and world.is_main:
        write_results_md(run_dir)
        print_table(read_results(run_dir / "results.json"))
        for gain in read_gains(run_dir / "gains.json"):
            low, high = gain["gain_ci95"]
            print(
                f"{gain['before']} -> {gain['after']} on {gain['task']}: {gain['gain']:+.1f} points ({low:+.1f} to {high:+.1f})"
            )
        print(f"{time.perf_counter() - begin:.0f} s in all; open {write_report(run_dir)}")


def make_data(config: Config, world: World, log: RunLog, run_dir: Path) -> None:
    """Draws the puzzles of SFT, validation and test, and fits the codec to the first. RL draws its own as it goes.

    Raises UserError if no puzzle of the configured difficulty is found, or one does not fit the video; and for a pretrained
    model unless all of them are encoded by it, undamaged, before it is trained for days.
    """
    if (
        config.resume == "auto"
        and (run_dir / ("codec" if config.model.path is None else "puzzles/train.jsonl")).exists()
    ):
        return
    encoded = open_encoded(config) if config.model.path else None
    if encoded is not None:
        world.on_main(encoded.verify)
    sizes = {"test": config.data.num_test, "val": config.data.num_val, "train": config.data.num_train}
    for i, (split, number) in enumerate(sizes.items(), start=1):
        split_puzzles = generate_all(config, world, split, number)
        if encoded is not None:
            encoded.stems_of([puzzle for batch in split_puzzles.values() for puzzle in batch])
        if world.is_main:
            lines = [json.dumps(p.to_json(), sort_keys=True) for batch in split_puzzles.values() for p in batch]
            write_text(run_dir / "puzzles" / f"{split}.jsonl", "\n".join(lines) + "\n")
        log.log("data", i, len(sizes), num_puzzles=number * len(split_puzzles))
    if config.model.path is None:
        sample = [p for batch in split_puzzles.values() for p in batch[:_CODEC_SAMPLE]]
        save_codec(TinyCodec.fit(videos_of(sample, config.data)), run_dir, world)


def run_sft(config: Config, world: World, log: RunLog, run_dir: Path) -> None:
    """Trains on the planner's videos, from scratch or from model.path."""
    source = open_source(config, run_dir, world.device)
    checkpoints = Checkpoints(run_dir, world, config.resume == "auto", config.checkpoints_to_keep)
    policy = build_policy(config, source, world.device)
    train_sft(config, world, log, checkpoints, policy, source, read_split(run_dir, "train"), read_split(run_dir, "val"))


def run_grpo(config: Config, world: World, log: RunLog, run_dir: Path) -> None:
    """Trains the SFT policy, or model.path itself, by reinforcement."""
    source = open_source(config, run_dir, world.device)
    checkpoints = Checkpoints(run_dir, world, config.resume == "auto", config.checkpoints_to_keep)
    if config.grpo.start == "model":
        policy = build_policy(config, source, world.device)
    else:
        policy = load_policy(config, source, world.device, run_dir, "sft-final")
    held = config.grpo.kl_weight > 0 or config.grpo.anchor_weight > 0
    reference = frozen_copy(policy) if held else policy  # where nothing is held near it, it costs no memory
    train_grpo(config, world, log, checkpoints, policy, reference, source, read_split(run_dir, "val"))


def run_eval(config: Config, world: World, log: RunLog, run_dir: Path) -> None:
    """Tests every system that the run has: the untrained policy, SFT, RL."""
    source = open_source(config, run_dir, world.device)
    systems = {"base": partial(build_policy, config, source, world.device)}
    for name, checkpoint in (("sft", "sft-final"), ("rl", "grpo-final")):
        if (run_dir / "checkpoints" / checkpoint).exists():
            systems[name] = partial(load_policy, config, source, world.device, run_dir, checkpoint)
    evaluate_systems(config, world, log, run_dir, systems, source, read_split(run_dir, "test"))


STAGES = {"data": make_data, "sft": run_sft, "grpo": run_grpo, "eval": run_eval}

if __name__ == "__main__":
    sys.exit(main())
