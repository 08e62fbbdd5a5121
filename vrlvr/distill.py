"""`vrlvr distill-decoder`: a small reward decoder learns from the full VAE what it shows of boards.

Examples are made without end, none is read from disk: puzzles are drawn, solved and rendered, many of the videos spoiled and
many of their latents mixed and perturbed (vrlvr.imperfect); the target is the VAE's full decode of those very latents,
averaged down to the small size, so that what the VAE makes of a bad latent is learnt too. The full decode is nearly all of the
cost: every example enters a pool and is trained on several times before newer ones replace it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from vrlvr.audit import AuditConfig, agree, disagreement
from vrlvr.dataset import Recipe, frames_per_move, full_size_difficulties
from vrlvr.distributed import pick_device
from vrlvr.errors import UserError
from vrlvr.imperfect import draw_video, mix, perturb
from vrlvr.models.fingerprint import fingerprint
from vrlvr.models.reward_decoder import RewardDecoder, RewardDecoderConfig
from vrlvr.models.wan_vae import WanVAECodec, levels
from vrlvr.muon import muon_with_adamw
from vrlvr.optim import cosine_decay
from vrlvr.puzzles import ROOMS, Puzzle, verify_many

TRAIN_SPLIT, TEST_SPLIT = "train", "test"
# The weight of the absolute error, which sharpens, against the squared one, without which small discs are left out for long.
ABSOLUTE = 0.1
# Of the training videos: in planners' few cells change, here all teach.
SCRAMBLED = 0.5
# Of the training latents: few cells of a video are neither one thing nor the other, and verdicts depend on just those.
MIXED = 0.5
_TRAIN_STREAM, _TEST_STREAM = 1, 2
_TEST_BATCH = 8


@dataclass(frozen=True)
class Training:
    """steps: batches of `batch` examples from a pool of the newest `pool`; before each, `fresh` new ones enter it."""

    steps: int = 4000
    batch: int = 4
    fresh: int = 1
    pool: int = 256
    lr: float = 4e-3
    weight_decay: float = 0.01
    seed: int = 0


def distill_decoder(
    model: Path,
    out: Path,
    data: Path | None = None,
    steps: int = Training.steps,
    batch: int = Training.batch,
    fresh: int = Training.fresh,
    pool: int = Training.pool,
    lr: float = Training.lr,
    seed: int = Training.seed,
    side: int = RewardDecoderConfig.side,
    width: int = RewardDecoderConfig.width,
    depth: int = RewardDecoderConfig.depth,
    num_test: int = 300,
    device: str = "auto",
) -> None:
    """Makes the folder `out`: config.json, with the agreement on held-out videos, and the weights.

    model: a Wan model's folder, whose VAE is used. data: a folder of `vrlvr data`, for boards and sizes of its videos; by
    default those of full-size data sets. batch, fresh, pool: see Training; an example of the pool takes 7 MB at full size.
    side: pixels that a latent position gives a side. num_test: held-out videos. device: auto is the GPU if there is one.
    Raises UserError with one line for input that does not fit.
    """
    where = pick_device(device)
    for name, value, least in (
        ("steps", steps, 1),
        ("batch", batch, 1),
        ("fresh", fresh, 1),
        ("pool", pool, 1),
        ("num_test", num_test, 1),
    ):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")
    vae = fingerprint(model, "vae")
    codec = WanVAECodec.from_pretrained(model / "vae", where, torch.bfloat16 if where.type == "cuda" else torch.float32)
    recipe = read_recipe(data)
    codec.latent_shape(recipe.num_frames, recipe.height, recipe.width)
    sizes = RewardDecoderConfig(
        latent_channels=codec.latent_channels,
        pixels_per_latent=codec.pixels_per_latent,
        side=side,
        width=width,
        depth=depth,
    )
    training = Training(steps=steps, batch=batch, fresh=fresh, pool=pool, lr=lr, seed=seed)
    columns = (TextColumn("loss {task.fields[loss]:.4f}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=steps, loss=float("nan"))
        decoder = distill(codec, recipe, sizes, training, lambda loss: progress.update(bar, advance=1, loss=loss))
    differ = compare(codec, decoder, recipe, num_test, seed)
    rate, (low, high) = disagreement(differ)
    decoder.save(
        out,
        {
            "vae": vae,
            "training": asdict(training),
            "videos": recipe.to_json(),
            "held_out": {"videos": num_test, "disagreement": rate, "disagreement_ci95": [low, high]},
        },
    )
    print(
        f"{out}: verdicts equal to the full decode's on {1 - rate:.2%} of {num_test} held-out videos "
        f"(95 % interval {1 - high:.2%} to {1 - low:.2%})"
    )


def read_recipe(data: Path | None) -> Recipe:
    """Boards and sizes of a data set's videos, or of full-size ones. Raises UserError if `data` is no data set."""
    if data is None:
        difficulties = full_size_difficulties()
        return Recipe(0, 0, 0, 480, 832, 81, frames_per_move(81), tuple(difficulties), difficulties)
    path = data / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        difficulties = {
            task: ROOMS[task].Difficulty(**{name: _tuples(value) for name, value in options.items()})
            for task, options in manifest["difficulties"].items()
        }
        return Recipe(**manifest | {"tasks": tuple(manifest["tasks"]), "difficulties": difficulties})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no manifest of a data set ({error!r}); make one with `vrlvr data`") from error


def _tuples(value: object) -> object:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def distill(
    codec: WanVAECodec,
    recipe: Recipe,
    sizes: RewardDecoderConfig,
    training: Training,
    report: Callable[[float], None],
) -> RewardDecoder:
    """A decoder trained on the codec's device. report: called after every step with the mean absolute error of [-1, 1].

    Raises UserError if the recipe's boards do not fit its videos.
    """
    device = codec.vae.device
    torch.manual_seed(training.seed)
    decoder = RewardDecoder(sizes).to(device)
    optimizer_step = muon_with_adamw(decoder, training.weight_decay)
    pool: list[tuple[Tensor, Tensor]] = []
    for step in range(training.steps):
        rng = np.random.default_rng(np.random.SeedSequence([training.seed, _TRAIN_STREAM, step]))
        numbers = range(step * training.fresh, (step + 1) * training.fresh)
        _, first, latents = draw(codec, recipe, TRAIN_SPLIT, numbers, rng, SCRAMBLED, MIXED)
        targets = decode_small(codec, sizes, first, latents)
        pool = [*pool, *zip(torch.cat((first, latents), dim=2).cpu(), targets, strict=True)][-training.pool :]
        drawn = [pool[i] for i in rng.integers(len(pool), size=training.batch)]
        latents_BCFHW, target_BTYXC = (torch.stack(parts).to(device) for parts in zip(*drawn, strict=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            pixels = decoder(latents_BCFHW)
        error = pixels.float() - (target_BTYXC.movedim(-1, 1) / 127.5 - 1)
        loss = error.square().mean() + ABSOLUTE * error.abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer_step(training.lr * cosine_decay(step + 1, training.steps, 1.0))
        report(error.detach().abs().mean().item())
    return decoder.eval().requires_grad_(False)


def draw(
    codec: WanVAECodec,
    recipe: Recipe,
    split: str,
    numbers: Sequence[int],
    rng: np.random.Generator,
    scrambled: float = 0.0,
    mixed: float = 0.0,
) -> tuple[list[Puzzle], Tensor, Tensor]:
    """Puzzles of a split by their numbers, latents of their first frames, and of videos as an imperfect model makes them.

    scrambled: the share of videos that are random labels instead, see `vrlvr.imperfect.scramble`. mixed: the share of latents
    that are mixed with those of such a video of the same board, see `vrlvr.imperfect.mix`.
    """
    try:
        drawn = [draw_video(recipe, split, number, rng, scrambled) for number in numbers]
        chosen = [i for i in range(len(numbers)) if mixed and rng.random() < mixed]
        others = [draw_video(recipe, split, numbers[i], rng, scrambled=1.0)[1] for i in chosen]
    except ValueError as error:
        raise UserError(str(error)) from error
    videos = np.stack([video for _, video in drawn])
    latents = codec.encode(videos)
    if chosen:
        for i, other in zip(chosen, codec.encode(np.stack(others)), strict=True):
            latents[i] = mix(latents[i], other, rng)
    return [puzzle for puzzle, _ in drawn], codec.encode_first(videos[:, 0]), perturb(latents, rng)


def decode_small(
    codec: WanVAECodec, sizes: RewardDecoderConfig, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor
) -> Tensor:
    """What the reward decoder shall make of latents: their full decode, averaged down; uint8 video_BTYXC on the CPU."""
    shrink = sizes.pixels_per_latent // sizes.side
    videos = []
    for batch in codec.batches(first_latents_BC1HW, latents_BCFHW):
        small = [functional.avg_pool3d(pixels.float(), (1, shrink, shrink)) for pixels in codec.pixels(*batch)]
        videos.append(levels(torch.cat(small, dim=2)).cpu())
    return torch.cat(videos)


def compare(codec: WanVAECodec, decoder: RewardDecoder, recipe: Recipe, num_videos: int, seed: int) -> list[bool]:
    """For held-out videos, spoiled and perturbed as in training, whether the two decoders' verdicts differ."""
    differ: list[bool] = []
    size = recipe.height, recipe.width
    for start in range(0, num_videos, _TEST_BATCH):
        rng = np.random.default_rng(np.random.SeedSequence([seed, _TEST_STREAM, start]))
        numbers = range(start, min(num_videos, start + _TEST_BATCH))
        puzzles, first, latents = draw(codec, recipe, TEST_SPLIT, numbers, rng)
        small, full = (verify_many(puzzles, source.decode(first, latents), size) for source in (decoder, codec))
        differ += [not agree(a, b, AuditConfig.tolerance) for a, b in zip(small, full, strict=True)]
    return differ
