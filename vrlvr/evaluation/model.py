"""`vrlvr eval model`: an open image-to-video model's answers to the test puzzles, generated and judged.

    OUT/run.json               what the videos depend on; a call that goes on with others is refused
    OUT/videos/maze-00017.mp4  one a puzzle, complete as soon as it is there (maze-00017_3.mp4 for seed 3 of several)
    OUT/results.json, results.md, outcomes.jsonl

Under torchrun each process generates a share of the puzzles on its own GPU, and the first one judges when all are done.
"""

import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vrlvr.atomic_write import write_text, writing
from vrlvr.dataset_files import read_size
from vrlvr.encoded import file_digest
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import Item, check_system, read_items, write_outcomes
from vrlvr.evaluation.generator import Generator, load
from vrlvr.evaluation.model_spec import Dtype, Offload, Spec, read_json, specify
from vrlvr.evaluation.pipelines import components
from vrlvr.evaluation.tables import markdown, print_table, published_rows
from vrlvr.evaluation.videos import judge_folder
from vrlvr.models.fingerprint import fingerprint
from vrlvr.video_io import write_mp4

_POLL_SECONDS = 1.0


def evaluate_model(
    model: str,
    system: str,
    data: Path,
    out: Path,
    tasks: str | None = None,
    num_puzzles: int | None = None,
    lora: Path | None = None,
    lora_2: Path | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    shift: float | None = None,
    seed: int = 0,
    num_seeds: int = 1,
    batch_size: int = 1,
    dtype: Dtype = "auto",
    device: str = "auto",
    offload: Offload = "none",
) -> None:
    """Generates a model's answers to test puzzles, or the rest of those that the same arguments began, and judges them.

    model: a Diffusers folder (what `vrlvr export` writes too), or a hub's id. system: its name in the tables. data: a folder
    made by `vrlvr data`. tasks: comma separated, all by default. num_puzzles: of each task, all by default. lora, lora_2: LoRA
    files, the second for the second expert of Wan2.2-I2V-A14B. Of height, width, num_frames, steps, guidance, negative_prompt
    and shift, what is not given comes from the model's card, and sizes from what of it fits the puzzles. num_seeds: videos a
    puzzle, with the seeds from `seed` on. batch_size: how many of these at once. dtype: auto is bfloat16 on a GPU, float32
    without. offload: components (model) or layers (sequential) wait in the CPU's memory until they are needed.
    Raises UserError with one line for what does not fit, and where memory or disk do not suffice.
    """
    check_system(system)
    for name, value, least in (("seed", seed, 0), ("num_seeds", num_seeds, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")
    items = read_items(data, tasks.split(",") if tasks else None, num_puzzles)
    spec = specify(
        model, lora, lora_2, height, width, num_frames, steps, guidance, negative_prompt, shift, dtype, device, offload
    )
    seeds = range(seed, seed + num_seeds)
    open_run(out, run_settings(model, spec, data, seeds))
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    videos = Videos(out / "videos", seeds)
    missing = [(item, [s for s in seeds if not videos.path(item, s).exists()]) for item in items[rank::size]]
    batches = [(item, s[i : i + batch_size]) for item, s in missing for i in range(0, len(s), batch_size)]
    if batches:
        began = time.monotonic()
        generate(load(spec), batches, videos, read_size(data)[0], show=rank == 0)
        print(f"process {rank + 1} of {size}: {time.monotonic() - began:.0f} s, {_peak_memory(spec.device)}")
    if rank == 0:
        wait_for([videos.path(item, s) for item in items for s in seeds])
        rows = write_outcomes(out, system, judge_folder(videos.folder, items))
        table = [*rows, *(row for row in published_rows() if row["task"] in {row["task"] for row in rows})]
        write_text(out / "results.md", markdown(table))
        print_table(table)


@dataclass(frozen=True)
class Videos:
    """Where the videos of a run lie."""

    folder: Path
    seeds: range

    def path(self, item: Item, seed: int) -> Path:
        """Named by the puzzle, and by the seed where a puzzle has several."""
        return self.folder / (f"{item.id}.mp4" if len(self.seeds) == 1 else f"{item.id}_{seed}.mp4")


def generate(
    generator: Generator,
    batches: Sequence[tuple[Item, Sequence[int]]],
    videos: Videos,
    num_frames: int,
    show: bool = True,
) -> None:
    """Writes the videos of every batch: a puzzle and some of its seeds, denoised together."""
    done = 0
    with writing(videos.folder):
        videos.folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with _quiet_pipelines(), Progress(*columns, disable=not show) as progress:
        bar = progress.add_task("videos generated", total=sum(len(seeds) for _, seeds in batches))
        for item, seeds in batches:
            samples = generator.samples(
                _first_frame(item),
                item.prompt,
                [noise_seed(item.id, seed) for seed in seeds],
                num_frames,
                partial(progress.advance, bar, len(seeds) / generator.settings.steps),
            )
            for seed, video_TYXC in zip(seeds, samples, strict=True):
                write_mp4(videos.path(item, seed), video_TYXC, generator.family.fps)
            done += len(seeds)
            progress.update(bar, completed=done)


def noise_seed(item: str, seed: int) -> int:
    """The seed of the noise of a puzzle's video: puzzles share none."""
    return int.from_bytes(sha256(f"{item} {seed}".encode()).digest()[:7], "big")


def run_settings(model: str, spec: Spec, data: Path, seeds: range) -> dict[str, Any]:
    """All that the videos depend on, as JSON holds it. Which puzzles there are, and how many at once, changes none of them."""
    return {
        "model": model,
        "weights": fingerprint(spec.folder, *components(spec.index)),
        "lora": None if spec.lora is None else _digest(spec.lora),
        "lora_2": None if spec.lora_2 is None else _digest(spec.lora_2),
        **asdict(spec.settings),
        "shift": spec.shift,
        "dtype": str(spec.dtypes["default"]).removeprefix("torch."),
        "data": _digest(data / "manifest.json"),
        "seed": seeds.start,
        "num_seeds": len(seeds),
    }


def open_run(out: Path, settings: dict[str, Any]) -> None:
    """Begins a run in `out`, or goes on with one. Raises UserError with the differences if it was begun with other settings."""
    path = out / "run.json"
    if not path.exists():
        if (out / "videos").exists():
            raise UserError(
                f"{out} has videos but no run.json, so nobody knows how they were made; choose another --out"
            )
        write_text(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        return
    begun = read_json(path, "choose another --out")
    named = [name for name in settings | begun if name != "model"]  # a folder may move; `weights` tells what is in it
    if differences := [name for name in named if begun.get(name) != settings.get(name)]:
        told = ", ".join(f"{name}={_short(begun.get(name))} (now {_short(settings.get(name))})" for name in differences)
        raise UserError(f"{out} was begun with {told}; use the same, or another --out")


def wait_for(paths: Sequence[Path]) -> None:
    """Waits until all files are there: other processes write theirs. If one of these fails, torchrun ends this one too."""
    if all(path.exists() for path in paths):
        return
    columns = (TextColumn("waiting for other processes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(paths))
        while (done := sum(path.exists() for path in paths)) < len(paths):
            progress.update(bar, completed=done)
            time.sleep(_POLL_SECONDS)


class _Rate(ProgressColumn):
    """Seconds a video."""

    def render(self, task: Task) -> Text:
        return Text(f"{1 / task.speed:.1f} s/video" if task.speed else "")


@contextmanager
def _quiet_pipelines() -> Iterator[None]:
    """Without diffusers' warning at every video that CLIP, whose pooled vector HunyuanVideo takes, reads 77 tokens only."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _first_frame(item: Item) -> Image.Image:
    try:
        with Image.open(item.first_frame, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{item.first_frame} cannot be read ({error}); make it anew with `vrlvr data`") from error


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of the GPU"
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a complete folder of `vrlvr data`") from error


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 24 else f"{shown[:20]}..."
