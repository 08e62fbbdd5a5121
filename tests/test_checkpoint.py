"""Checkpoints: exact, free of pickle, and never lost to a full disk or a crash."""

import copy
import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from vrlvr import checkpoint
from vrlvr.checkpoint import Checkpoints, TrainState, read_tensors
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.errors import UserError
from vrlvr.optim import adamw


@dataclass
class Progress:
    step: int = 0
    stop_at: int | None = None


def fresh_state() -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return TrainState(model, Ema(model, 0.9), adamw(model, 1e-2, 0.1), Progress())


def train(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        state.progress.step += 1
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(state.progress.step))
        state.optimizer.zero_grad()
        state.model(x).square().mean().backward()
        state.optimizer.step()
        state.ema.update(state.model, state.progress.step)


def assert_same(a: TrainState, b: TrainState) -> None:
    assert a.progress == b.progress
    for left, right in ((a.model, b.model), (a.ema.model, b.ema.model)):
        for name, value in left.state_dict().items():
            torch.testing.assert_close(value, right.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(a.optimizer.state_dict()["state"], b.optimizer.state_dict()["state"], rtol=0, atol=0)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, World(), resume=True)


def test_a_resumed_state_trains_on_bit_for_bit(checkpoints: Checkpoints) -> None:
    state = fresh_state()
    train(state, 3)
    checkpoints.save("sft", state, "sft-a")
    resumed = fresh_state()
    assert checkpoints.restore("sft", resumed)
    assert_same(resumed, state)
    train(state, 4)
    train(resumed, 4)
    assert_same(resumed, state)


def test_a_state_without_optimizer_steps(checkpoints: Checkpoints) -> None:
    state = fresh_state()
    checkpoints.save("sft", state, "start")
    resumed = fresh_state()
    assert checkpoints.restore("sft", resumed)
    assert_same(resumed, state)


def test_nothing_is_restored_where_there_is_nothing_or_nobody_asks(tmp_path: Path) -> None:
    state = fresh_state()
    assert not Checkpoints(tmp_path, World(), resume=True).restore("sft", state)
    Checkpoints(tmp_path, World(), resume=True).save("sft", state, "a")
    assert not Checkpoints(tmp_path, World(), resume=False).restore("sft", state)
    assert not Checkpoints(tmp_path, World(), resume=True).restore("grpo", state)


@pytest.mark.parametrize("where", ["save_file", "write_text"])
def test_a_full_disk_loses_nothing(where: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fresh_state()
    train(state, 2)
    checkpoints.save("sft", state, "first")
    saved = copy.deepcopy(state.progress), read_tensors(checkpoints.folder / "first", "model")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    train(state, 1)
    with monkeypatch.context() as patch:
        patch.setattr(*(checkpoint, "save_file") if where == "save_file" else (Path, "write_text"), refuse)
        for name in ("first", "second"):  # over the old checkpoint as well as beside it
            with pytest.raises(UserError, match=r"(?s)^[^\n]*No space left[^\n]*free some disk space[^\n]*$"):
                checkpoints.save("sft", state, name)
    assert [path.name for path in checkpoints.folder.iterdir() if path.is_dir()] == ["first"]
    resumed = fresh_state()
    assert checkpoints.restore("sft", resumed)
    assert resumed.progress == saved[0]
    torch.testing.assert_close(resumed.model.state_dict(), saved[1], rtol=0, atol=0)


def test_what_a_crash_left_half_written_is_cleared(checkpoints: Checkpoints) -> None:
    partial = checkpoints.folder / ".a.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    state = fresh_state()
    checkpoints.save("sft", state, "a")
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["a", "latest-sft"]
    assert sorted(path.name for path in (checkpoints.folder / "a").iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_file_is_named(name: str, damage: str, checkpoints: Checkpoints) -> None:
    state = fresh_state()
    train(state, 1)
    checkpoints.save("sft", state, "a")
    path = checkpoints.folder / "a" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match=rf"a/{name} is no readable checkpoint") as refusal:
        checkpoints.restore("sft", fresh_state())
    assert "\n" not in str(refusal.value)


def test_a_removed_checkpoint_is_named(checkpoints: Checkpoints) -> None:
    checkpoints.save("sft", fresh_state(), "a")
    shutil.rmtree(checkpoints.folder / "a")
    with pytest.raises(UserError, match=r"a/model\.safetensors is no readable checkpoint"):
        checkpoints.restore("sft", fresh_state())


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "gather", lambda self, value: [value])
    Checkpoints(tmp_path, World(rank=1, size=2), resume=True).save("sft", fresh_state(), "a")
    assert list(tmp_path.iterdir()) == []
