"""Checkpoints: exact, free of pickle, and never lost to a full disk or a crash."""

import copy
import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vrlvr import tensor_files
from vrlvr.checkpoint import Checkpoints, TrainState, read_average, read_tensors, write_folder
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.engine import PlainEngine
from vrlvr.errors import UserError
from vrlvr.optim import adamw
from vrlvr.tensor_files import TensorFiles


@dataclass
class Progress:
    step: int = 0
    stop_at: int | None = None


class Net(nn.Sequential):
    """Stands for a policy."""


@dataclass
class Training:
    """A model in training, and what a checkpoint saves of it."""

    model: Net
    state: TrainState

    def train(self, steps: int) -> None:
        engine, ema, progress = self.state.engine, self.state.ema, self.state.progress
        for _ in range(steps):
            progress.step += 1
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(progress.step))
            with engine.accumulate():
                self.model(x).square().mean().backward()
            engine.step(1e-2)
            ema.update(self.model, progress.step)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        engine, ema = self.state.engine, self.state.ema
        return {
            "model": dict(engine.weights()),
            "optimizer": dict(engine.optimizer_state()),
            "ema": ema.model.state_dict(),
        }


def fresh(decay: float = 0.9, seed: int = 0) -> Training:
    torch.manual_seed(seed)
    model = Net(nn.Linear(3, 4), nn.Linear(4, 2))
    engine = PlainEngine(model, adamw(model, 0.0, 0.1), World(), max_grad_norm=1.0)
    return Training(model, TrainState(engine, Ema(model, decay), Progress()))  # type: ignore[arg-type]


def assert_same(a: Training, b: Training) -> None:
    assert a.state.progress == b.state.progress
    torch.testing.assert_close(a.tensors(), b.tensors(), rtol=0, atol=0)


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, World(), resume=True)


def test_a_resumed_state_trains_on_bit_for_bit(checkpoints: Checkpoints) -> None:
    training = fresh()
    training.train(3)
    checkpoints.save("sft", training.state, "sft-a")
    resumed = fresh(seed=1)
    assert checkpoints.restore("sft", resumed.state)
    assert_same(resumed, training)
    training.train(4)
    resumed.train(4)
    assert_same(resumed, training)


def test_a_state_without_optimizer_steps(checkpoints: Checkpoints) -> None:
    training = fresh()
    checkpoints.save("sft", training.state, "start")
    resumed = fresh(seed=1)
    assert checkpoints.restore("sft", resumed.state)
    assert_same(resumed, training)
    training.train(1)
    resumed.train(1)
    assert_same(resumed, training)


def test_nothing_is_restored_where_there_is_nothing_or_nobody_asks(tmp_path: Path) -> None:
    state = fresh().state
    assert not Checkpoints(tmp_path, World(), resume=True).restore("sft", state)
    Checkpoints(tmp_path, World(), resume=True).save("sft", state, "a")
    assert not Checkpoints(tmp_path, World(), resume=False).restore("sft", state)
    assert not Checkpoints(tmp_path, World(), resume=True).restore("grpo", state)


def test_without_moving_average_the_weights_are_the_policy(checkpoints: Checkpoints) -> None:
    training = fresh(decay=0.0)
    training.train(2)
    checkpoints.save("sft", training.state, "a")
    assert not list((checkpoints.folder / "a").glob("ema*"))
    torch.testing.assert_close(read_average(checkpoints.folder / "a"), training.model.state_dict(), rtol=0, atol=0)
    resumed = fresh(decay=0.0, seed=1)
    assert checkpoints.restore("sft", resumed.state)
    assert_same(resumed, training)


@pytest.mark.parametrize("max_shard_bytes", [1, 40, 100, 10**9])
def test_shards_hold_what_they_may(max_shard_bytes: int, tmp_path: Path) -> None:
    training = fresh()
    training.train(2)
    checkpoints = Checkpoints(tmp_path, World(), resume=True, max_shard_bytes=max_shard_bytes)
    checkpoints.save("sft", training.state, "a")
    files = list((tmp_path / "checkpoints" / "a").glob("model*.safetensors"))
    sizes = [[t.nbytes for t in TensorFiles(path.parent, path.stem).values()] for path in files]
    assert all(len(shard) == 1 or sum(shard) <= max_shard_bytes for shard in sizes)
    assert len(files) == {1: 4, 40: 3, 100: 2, 10**9: 1}[max_shard_bytes]
    resumed = fresh(seed=1)
    assert checkpoints.restore("sft", resumed.state)
    assert_same(resumed, training)
    torch.testing.assert_close(
        read_tensors(tmp_path / "checkpoints" / "a", "ema"), training.tensors()["ema"], rtol=0, atol=0
    )


@contextmanager
def small_disk(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: the writer really gets an error from the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("where", ["save_file", "write_text", "fsync", "limit"])
def test_a_full_disk_loses_nothing(where: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    training = fresh()
    training.train(2)
    checkpoints.save("sft", training.state, "first")
    saved = copy.deepcopy((training.state.progress, training.tensors()))
    training.train(1)
    told = "File too large" if where == "limit" else "No space left"
    targets = {"save_file": (tensor_files, "save_file"), "write_text": (Path, "write_text"), "fsync": (os, "fsync")}
    with monkeypatch.context() as patch, small_disk(200 if where == "limit" else resource.RLIM_INFINITY):
        if where != "limit":
            patch.setattr(*targets[where], refuse)
        for name in ("first", "second"):  # over the old checkpoint as well as beside it
            with pytest.raises(UserError, match=rf"(?s)^[^\n]*{told}[^\n]*free some disk space[^\n]*$"):
                checkpoints.save("sft", training.state, name)
    assert [path.name for path in checkpoints.folder.iterdir() if path.is_dir()] == ["first"]
    resumed = fresh(seed=1)
    assert checkpoints.restore("sft", resumed.state)
    assert resumed.state.progress == saved[0]
    torch.testing.assert_close(resumed.tensors(), saved[1], rtol=0, atol=0)


def test_what_a_crash_left_half_written_is_cleared(checkpoints: Checkpoints) -> None:
    partial = checkpoints.folder / ".a.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    checkpoints.save("sft", fresh().state, "a")
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["a", "latest-sft"]
    assert sorted(path.name for path in (checkpoints.folder / "a").iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_the_pointer_moves_last(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    training = fresh()
    checkpoints.save("sft", training.state, "a")
    training.train(1)
    with monkeypatch.context() as patch:
        patch.setattr("vrlvr.checkpoint.write_text", refuse)
        with pytest.raises(OSError, match="No space"):
            checkpoints.save("sft", training.state, "b")
    assert (checkpoints.folder / "latest-sft").read_text() == "a\n"
    assert (checkpoints.folder / "b" / "state.json").exists()  # whole by then
    resumed = fresh(seed=1)
    assert checkpoints.restore("sft", resumed.state)
    assert resumed.state.progress.step == 0


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_file_is_named(name: str, damage: str, checkpoints: Checkpoints) -> None:
    training = fresh()
    training.train(1)
    checkpoints.save("sft", training.state, "a")
    path = checkpoints.folder / "a" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match=rf"a/{name} is no readable checkpoint") as refusal:
        checkpoints.restore("sft", fresh().state)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["model-00002-of-00004.safetensors", "ema-00001-of-00004.safetensors", "model.safetensors.index.json"]
)
def test_an_altered_file_is_named(name: str, tmp_path: Path) -> None:
    """One bit, which no reader of the format would notice."""
    checkpoints = Checkpoints(tmp_path, World(), resume=True, max_shard_bytes=1)
    checkpoints.save("sft", fresh().state, "a")
    path = checkpoints.folder / "a" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a/{name} is no readable checkpoint \(its content is not what was saved\)"):
        checkpoints.restore("sft", fresh().state)
    with pytest.raises(UserError, match=rf"a/{name} is no readable checkpoint"):
        read_tensors(checkpoints.folder / "a", name.partition("-")[0].partition(".")[0])
    other = "model" if name.startswith("ema") else "ema"
    assert read_tensors(checkpoints.folder / "a", other).keys() == fresh().model.state_dict().keys()


def test_a_set_that_was_not_saved_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "codec", {"codec": {"a": torch.ones(2)}}, {})
    assert read_tensors(tmp_path / "codec", "codec")["a"].tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match=r"codec/ema\.safetensors is no readable checkpoint \(it is not there\)"):
        read_tensors(tmp_path / "codec", "ema")


def test_a_removed_checkpoint_is_named(checkpoints: Checkpoints) -> None:
    checkpoints.save("sft", fresh().state, "a")
    shutil.rmtree(checkpoints.folder / "a")
    with pytest.raises(UserError, match=r"a/state\.json is no readable checkpoint"):
        checkpoints.restore("sft", fresh().state)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints, training = Checkpoints(tmp_path, World(), resume=True, keep=2), fresh()
    checkpoints.save("sft", training.state, "sft-final")
    for step in (1, 2, 3):
        training.train(1)
        checkpoints.save("grpo", training.state, f"grpo-{step}")
    kept = {path.name for path in checkpoints.folder.iterdir() if path.is_dir()}
    assert kept == {"sft-final", "grpo-2", "grpo-3"}  # another stage's are not counted
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, World(), resume=True, keep=0)


def test_folders_of_others_neither_count_nor_go(tmp_path: Path) -> None:
    """What a user has put beside the checkpoints, or what is damaged, does not keep training from saving."""
    checkpoints, training = Checkpoints(tmp_path, World(), resume=True, keep=1), fresh()
    for name, manifest in (("empty", None), ("damaged", "{"), ("codec", '{"files": {}}')):
        (checkpoints.folder / name).mkdir(parents=True)
        if manifest:
            (checkpoints.folder / name / "state.json").write_text(manifest)
    for name in ("a", "b"):
        training.train(1)
        checkpoints.save("sft", training.state, name)
    assert {path.name for path in checkpoints.folder.iterdir() if path.is_dir()} == {"empty", "damaged", "codec", "b"}


def altered(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (altered("files", {}), "ema.safetensors is no readable checkpoint .state.json does not list it"),
        (altered("files", None), "state.json is no readable checkpoint"),
        (altered("files", {"model.safetensors": None}), "state.json is no readable checkpoint"),
        (altered("files", {"../a": {"bytes": 1, "sha256": ""}}), r"lists \.\./a, which is not of this folder"),
        (altered("progress", []), "state.json tells no stage and step"),
        (altered("progress", {"step": "1"}), "state.json tells no stage and step"),
        (altered("stage", "grpo"), "is a checkpoint of another stage than sft"),
    ],
)
def test_a_manifest_that_does_not_match_is_told(
    alter: Callable[[dict[str, Any]], None], told: str, checkpoints: Checkpoints
) -> None:
    checkpoints.save("sft", fresh().state, "a")
    path = checkpoints.folder / "a" / "state.json"
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        checkpoints.restore("sft", fresh().state)


@pytest.mark.parametrize("content", [b"", b"gone\n", b"../checkpoints/a", b"\xff", b"a\0"])
def test_a_pointer_to_nowhere_names_where_to_go(content: bytes, checkpoints: Checkpoints) -> None:
    training = fresh()
    for name in ("b", "a"):
        training.train(1)
        checkpoints.save("sft", training.state, name)
    checkpoints.save("grpo", training.state, "c")
    pointer = checkpoints.folder / "latest-sft"
    pointer.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        checkpoints.restore("sft", fresh().state)
    assert str(refusal.value).endswith(f"; or write another one's name into {pointer}: b, a")
    pointer.write_text("b")
    assert checkpoints.restore("sft", training.state)
    assert training.state.progress.step == 1


def test_the_manifest_tells_sizes_and_hashes(checkpoints: Checkpoints) -> None:
    checkpoints.save("sft", fresh().state, "a")
    content = json.loads((checkpoints.folder / "a" / "state.json").read_text())
    assert (content["stage"], content["progress"]) == ("sft", {"step": 0, "stop_at": None})
    for path in (checkpoints.folder / "a").glob("*.safetensors"):
        assert content["files"][path.name]["bytes"] == path.stat().st_size
        assert len(content["files"][path.name]["sha256"]) == 64


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "gather", lambda self, value: [value])
    state = fresh().state
    walked = []
    monkeypatch.setattr(state.engine, "weights", lambda: (walked.append(i) or ("w", torch.ones(1)) for i in range(3)))
    Checkpoints(tmp_path, World(rank=1, size=2), resume=True).save("sft", state, "a")
    assert list(tmp_path.iterdir()) == []
    assert walked == [0, 1, 2]  # it takes part in gathering


def test_a_writer_that_fails_walks_on_with_the_others(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fresh().state
    walked = []
    monkeypatch.setattr(
        state.engine, "weights", lambda: (walked.append(i) or (f"w{i}", torch.ones(1)) for i in range(3))
    )
    monkeypatch.setattr(tensor_files, "save_file", refuse)
    with pytest.raises(UserError, match="No space"):
        Checkpoints(checkpoints.folder, World(), resume=True, max_shard_bytes=1).save("sft", state, "a")
    assert walked == [0, 1, 2]
