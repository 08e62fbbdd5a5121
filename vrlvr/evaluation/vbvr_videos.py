"""The videos that VBVR's evaluator is to score: a model's, the baselines', and those that others made.

A file under its final name is complete; what is there is kept.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vrlvr.atomic_write import writing
from vrlvr.encoded import file_digest
from vrlvr.errors import UserError
from vrlvr.evaluation.generator import Generator, load
from vrlvr.evaluation.model import noise_seed
from vrlvr.evaluation.model_spec import Spec
from vrlvr.evaluation.vbvr_bench import BASELINES, Sample, even_size, read_image, read_prompt, resample, same_aspect
from vrlvr.evaluation.vbvr_scores import Absent
from vrlvr.models.fingerprint import fingerprint
from vrlvr.outside.hostile_video import shared_decoder
from vrlvr.video_io import write_mp4

NUM_FRAMES, FPS = 81, 16  # of the baselines; a model makes the number of its own that is nearest


def settings_of(model: str, spec: Spec, seed: int) -> dict[str, Any]:
    """All that the model's videos depend on, as JSON holds it."""
    components = [name for name, value in spec.index.items() if isinstance(value, list) and value[0]]
    return {
        "model": model,
        "weights": fingerprint(spec.folder, *components),
        "lora": None if spec.lora is None else file_digest(spec.lora),
        "lora_2": None if spec.lora_2 is None else file_digest(spec.lora_2),
        **asdict(spec.settings),
        "shift": spec.shift,
        "dtype": str(spec.dtypes["default"]).removeprefix("torch."),
        "seed": seed,
    }


def generate(spec: Spec, samples: Sequence[Sample], folder: Path, seed: int, show: bool = True) -> None:
    """Writes the model's videos that are not there yet, each of the size of its first frame, whatever the model made."""
    missing = [sample for sample in samples if not (folder / sample.name).exists()]
    if not missing:
        return
    generator = load(spec)
    for sample in _with_progress("generating", missing, show):
        write_video(generator, sample, folder / sample.name, seed)


def write_video(generator: Generator, sample: Sample, path: Path, seed: int) -> None:
    """One video. The model works at the size that it was made for with the aspect of the first frame (`Family.size_for`)."""
    first = read_image(sample.folder / "first_frame.png")
    video_TYXC = generator(first, read_prompt(sample), noise_seed(sample.name, seed), NUM_FRAMES)
    _make_folder(path.parent)
    write_mp4(path, resample(video_TYXC, even_size(first)), generator.family.fps)


def make_baseline(name: str, samples: Sequence[Sample], folder: Path) -> None:
    """Writes the videos of a baseline that are not there yet."""
    missing = [sample for sample in samples if not (folder / sample.name).exists()]
    for sample in _with_progress(name, missing) if missing else ():
        stills, holds = BASELINES[name](sample, NUM_FRAMES)
        _make_folder((folder / sample.name).parent)
        write_mp4(folder / sample.name, np.ascontiguousarray(stills), FPS, holds=holds)


@dataclass(frozen=True)
class Handed:
    """absent: by name, the videos that are not there or cannot be decoded. stretched: those of another aspect."""

    absent: dict[str, Absent]
    stretched: list[str]


def hand_over(folder: Path, samples: Sequence[Sample], handed: Path, foreign: bool) -> Handed:
    """Links the videos of these samples, and no others, into a new folder for the evaluator.

    foreign: videos that others made are decoded first, under limits, and only handed over if they can be.
    """
    absent: dict[str, Absent] = {}
    stretched = []
    with writing(handed):
        shutil.rmtree(handed, ignore_errors=True)
        for sample in _with_progress("checking videos", samples) if foreign else samples:
            path = folder / sample.name
            if not path.is_file():
                absent[sample.name] = "missing"
                continue
            if foreign:
                size = _size_of(path)
                if size is None:
                    absent[sample.name] = "undecodable"
                    continue
                if not same_aspect(size, read_image(sample.folder / "first_frame.png").size[::-1]):
                    stretched.append(sample.name)
            (handed / sample.name).parent.mkdir(parents=True, exist_ok=True)
            (handed / sample.name).symlink_to(path.resolve())
    return Handed(absent, stretched)


def _with_progress(what: str, samples: Sequence[Sample], show: bool = True) -> Iterable[Sample]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not show) as progress:
        yield from progress.track(samples, description=what)


def _size_of(path: Path) -> tuple[int, int] | None:
    """Height and width of a video that can be decoded."""
    try:
        return shared_decoder().read(path).source
    except UserError:
        return None


def _make_folder(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
