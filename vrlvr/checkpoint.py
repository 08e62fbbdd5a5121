"""Checkpoints: a folder of tensors and one JSON file, complete or absent; nothing in them is ever executed.

All randomness of training is a function of (seed, step, ...), so weights, optimizer, moving average and progress are the
whole state: there is no generator state to restore. Tensors are named by parameter and whole, whatever engine made them,
so a run may go on with another engine and another number of processes.
"""

import dataclasses
import shutil
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from vrlvr.atomic_write import replacing_folder, write_text
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.engine import Engine
from vrlvr.errors import UserError
from vrlvr.policy import Policy
from vrlvr.tensor_files import MAX_SHARD_BYTES, TensorFiles, read_manifest, verify, write_manifest, write_tensors

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
        averages = state.ema.model.state_dict() if state.ema.decay > 0 else {}

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
        if self.keep is None:
            return
        found = {}
        for folder in self.folder.iterdir():
            if folder.is_dir() and not folder.name.startswith(".") and folder.name != newest:
                content = read_manifest(folder)
                if content["stage"] == stage:
                    found[folder] = content["progress"]["step"]
        for folder in sorted(found, key=found.__getitem__)[: max(0, len(found) - self.keep + 1)]:
            shutil.rmtree(folder)

    def restore(self, stage: str, state: TrainState) -> bool:
        """Loads the stage's newest checkpoint into state if this run resumes and there is one.

        Raises UserError that names the file if one is missing or not as it was saved.
        """
        if not self.resume or not self._pointer(stage).exists():
            return False
        folder = self.folder / self._pointer(stage).read_text(encoding="utf-8").strip()
        self.world.on_main(lambda: verify(folder))
        state.engine.load(TensorFiles(folder, "model"), TensorFiles(folder, "optimizer"))
        if state.ema.decay > 0:
            state.ema.model.load_state_dict(TensorFiles(folder, "ema"))
        for key, value in read_manifest(folder)["progress"].items():
            setattr(state.progress, key, value)
        return True

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


def _walk_through(iterables: Iterable[Iterable[Any]]) -> None:
    for iterable in iterables:
        deque(iterable, maxlen=0)
