"""Checkpoints: a folder of tensors and one JSON file, complete or absent; nothing in them is ever executed.

All randomness of training is a function of (seed, step, ...), so weights, optimizer, moving average and progress are the
whole state: there is no generator state to restore. Tensors are named by parameter and whole, whatever engine made them,
so a run may go on with another engine and another number of processes.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from vrlvr.atomic_write import remove_folder, replacing_folder, write_text
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.engine import Engine
from vrlvr.errors import UserError
from vrlvr.policy import Policy
from vrlvr.tensor_files import (
    MANIFEST,
    MAX_SHARD_BYTES,
    TensorFiles,
    read_manifest,
    verify,
    write_manifest,
    write_tensors,
)

NamedTensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


@dataclass
class TrainState:
    """What a training stage saves. progress: a dataclass of JSON values."""

    engine: Engine
    ema: Ema[Policy]
    progress: Any


class Checkpoints:
    """The checkpoints of a run: run_dir/checkpoints/<name>/, and one pointer a stage to its newest.

    keep: how many of each stage's checkpoints stay, the newest; None: all.
    """

    def __init__(
        self,
        run_dir: Path,
        world: World,
        resume: bool,
        keep: int | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        if keep is not None and keep < 1:
            raise UserError(
                f"keep={keep} would leave nothing to resume from; use at least 1, or leave it out to keep all"
            )
        self.folder, self.world, self.resume = run_dir / "checkpoints", world, resume
        self.keep, self.max_shard_bytes = keep, max_shard_bytes

    def save(self, stage: str, state: TrainState, name: str) -> None:
        """Rank 0 writes the state as `name`, points the stage to it, and removes what is not kept; all ranks call it.

        Raises UserError if the disk refuses: what was saved before is still there, and pointed to.
        """
        tensors = {"model": state.engine.weights(), "optimizer": state.engine.optimizer_state()}
        averages = state.ema.state_dict() if state.ema.decay > 0 else {}

        def write() -> None:
            try:
                content = {"stage": stage, "progress": dataclasses.asdict(state.progress)}
                sets = tensors | ({"ema": averages} if averages else {})
                write_folder(self.folder / name, sets, content, self.max_shard_bytes)
            finally:
                _walk_through(tensors.values())  # the other ranks do, and tensors are gathered on the way
            write_text(self._pointer(stage), name + "\n")
            self._remove_old(stage, name)

        if not self.world.is_main:
            _walk_through(tensors.values())
        self.world.on_main(write)

    def _remove_old(self, stage: str, newest: str) -> None:
        """Only what is a whole checkpoint of the stage counts, and goes: other folders are the user's."""
        if self.keep is None:
            return
        steps = self._steps(stage)
        steps.pop(newest, None)
        for name in sorted(steps, key=steps.__getitem__)[: max(0, len(steps) - self.keep + 1)]:
            remove_folder(self.folder / name)

    def _steps(self, stage: str) -> dict[str, int]:
        """The checkpoints of a stage that are there, by name, with their steps. Damaged ones are left out."""
        steps = {}
        for path in self.folder.glob(f"[!.]*/{MANIFEST}"):
            with contextlib.suppress(UserError):
                of, progress = _read_state(path.parent)
                if of == stage:
                    steps[path.parent.name] = progress["step"]
        return steps

    def restore(self, stage: str, state: TrainState) -> str | None:
        """Loads the stage's newest checkpoint into state if this run resumes and there is one; its name, or None.

        Raises UserError that names the file if one is missing or not as it was saved, and the checkpoints to go back to.
        """
        if not self.resume or not self._pointer(stage).exists():
            return None
        folder = self.world.on_main(lambda: self._newest(stage))
        state.engine.load(TensorFiles(folder, "model"), TensorFiles(folder, "optimizer"))
        if state.ema.decay > 0:
            state.ema.load_state_dict(TensorFiles(folder, "ema"))
        for key, value in _read_state(folder)[1].items():
            setattr(state.progress, key, value)
        return folder.name

    def _newest(self, stage: str) -> Path:
        """The checkpoint that the stage's pointer names, compared with its manifest."""
        pointer = self._pointer(stage)
        name = pointer.read_bytes().decode(errors="replace").strip()
        try:
            if not name or Path(name).name != name:
                raise UserError(f"{pointer} holds {name!r}, which names no checkpoint")
            verify(self.folder / name)
            if _read_state(self.folder / name)[0] != stage:
                raise UserError(f"{self.folder / name} is a checkpoint of another stage than {stage}")
        except UserError as error:
            steps = self._steps(stage)
            others = ", ".join(n for n in sorted(steps, key=steps.__getitem__) if n != name)
            raise UserError(
                f"{error}; or write another one's name into {pointer}: {others}" if others else str(error)
            ) from error
        return self.folder / name

    def _pointer(self, stage: str) -> Path:
        return self.folder / f"latest-{stage}"


def write_folder(
    folder: Path,
    tensors: Mapping[str, NamedTensors],
    content: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes sets of tensors and state.json: to a temporary folder, synced, then renamed.

    Raises UserError if the disk refuses; what was there before stays.
    """
    try:
        with replacing_folder(folder) as partial:
            for name, values in tensors.items():
                items = values.items() if isinstance(values, Mapping) else values
                write_tensors(partial, name, items, max_shard_bytes)
            write_manifest(partial, content)
    except SafetensorError as error:
        raise UserError(
            f"{folder} cannot be written ({error}); free some disk space, then go on with --resume auto"
        ) from error


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """One of a folder's sets of tensors. Raises UserError that names the file if one is missing or not as it was saved."""
    verify(folder, [name])
    return dict(TensorFiles(folder, name))


def read_average(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's policy to use: its moving average, or its weights if it has none. Raises as `read_tensors`."""
    averaged = any(file.startswith(("ema.", "ema-")) for file in read_manifest(folder)["files"])
    return read_tensors(folder, "ema" if averaged else "model")


def _read_state(folder: Path) -> tuple[str, dict[str, Any]]:
    """A checkpoint's stage and progress. Raises UserError if its manifest is damaged."""
    content = read_manifest(folder)
    stage, progress = content.get("stage"), content.get("progress")
    if not (isinstance(stage, str) and isinstance(progress, dict) and isinstance(progress.get("step"), int)):
        raise UserError(f"{folder / MANIFEST} tells no stage and step; use a checkpoint that training wrote")
    return stage, progress


def _walk_through(iterables: Iterable[Iterable[Any]]) -> None:
    for iterable in iterables:
        deque(iterable, maxlen=0)
