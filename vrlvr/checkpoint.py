"""Checkpoints: a folder of safetensors and one JSON file, complete or absent; nothing in them is ever executed.

All randomness of training is a function of (seed, step, ...), so weights, optimizer, moving average and progress are the
whole state: there is no generator state to restore.
"""

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vrlvr.atomic_write import write_text
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.errors import UserError


@dataclass
class TrainState:
    """What a training stage saves. progress: a dataclass of JSON values."""

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    progress: Any


class Checkpoints:
    """The checkpoints of a run: run_dir/checkpoints/<name>/, and one pointer a stage to its newest."""

    def __init__(self, run_dir: Path, world: World, resume: bool):
        self.folder, self.world, self.resume = run_dir / "checkpoints", world, resume

    def save(self, stage: str, state: TrainState, name: str) -> None:
        """Rank 0 writes the state as `name` and points the stage to it. Raises UserError if the disk refuses."""
        self.world.on_main(lambda: self._write(stage, state, name))

    def _write(self, stage: str, state: TrainState, name: str) -> None:
        tensors = {"model": state.model.state_dict(), "ema": state.ema.model.state_dict()}
        tensors["optimizer"] = _optimizer_tensors(state.optimizer)
        write_folder(self.folder / name, tensors, {"stage": stage, "progress": dataclasses.asdict(state.progress)})
        write_text(self._pointer(stage), name + "\n")

    def restore(self, stage: str, state: TrainState) -> bool:
        """Loads the stage's newest checkpoint into state if this run resumes and there is one."""
        if not self.resume or not self._pointer(stage).exists():
            return False
        folder = self.folder / self._pointer(stage).read_text(encoding="utf-8").strip()
        state.model.load_state_dict(read_tensors(folder, "model"))
        state.ema.model.load_state_dict(read_tensors(folder, "ema"))
        _load_optimizer(state.optimizer, read_tensors(folder, "optimizer"))
        for key, value in _read_progress(folder).items():
            setattr(state.progress, key, value)
        return True

    def _pointer(self, stage: str) -> Path:
        return self.folder / f"latest-{stage}"


def write_folder(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Writes folder/{name}.safetensors and folder/state.json: to a temporary folder, synced, then renamed.

    Raises UserError if the disk refuses; what was there before stays.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, values in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"checkpoint {folder} could not be written ({error}); free some disk space, then go on with --resume auto"
        ) from error


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """One of a checkpoint's tensor files. Raises UserError if it is missing or damaged."""
    path = folder / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no readable checkpoint ({error}); use a run whose stage is complete") from error


def _read_progress(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))["progress"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'} is no readable checkpoint ({error!r}); resume another run") from error


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
