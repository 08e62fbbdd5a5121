"""Several processes: collectives and shares, one line for bad input, and a death that the others name."""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ARGUMENTS
from torch import nn

from vrlvr import distributed
from vrlvr.distributed import World, joined_world, own_cores, pick_device
from vrlvr.errors import LocalError, UserError
from vrlvr.heartbeat import Heartbeat
from vrlvr.train import main
from vrlvr.update import puzzles_of

ENTRY = Path(__file__).parents[1] / "vrlvr" / "train.py"
LIMIT_S = 30  # within which the survivors must have ended


def torchrun(*arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen([*launcher, str(ENTRY), *arguments], stderr=subprocess.PIPE, text=True)


def test_the_command_with_torchrun(tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "--run_dir", str(tmp_path / "run"), "--stage", "data"]
    run = torchrun(*arguments)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said[-3000:]
    assert len((tmp_path / "run" / "puzzles" / "train.jsonl").read_text().splitlines()) == 3 * 24

    refused = torchrun(*arguments, "--init_from", str(tmp_path / "nowhere"), "--resume", "auto")
    _, said = refused.communicate(timeout=300)
    assert refused.returncode != 0
    lines = [line for line in said.splitlines() if line.startswith("vrlvr: ")]
    assert len(lines) == 1
    assert "nowhere lacks config.yaml" in lines[0]
    assert "[rank1]" not in said  # the other process ends in peace


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_torchrun_ends_with_a_killed_process_and_names_it(tmp_path: Path) -> None:
    run = torchrun(*ARGUMENTS, "--sft.max_steps", "1000000", "--run_dir", str(tmp_path / "run"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and '"sft"' in metrics.read_text()):
        assert run.poll() is None, run.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    victim = next(
        pid for pid in children(run.pid) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    os.kill(victim, 9)
    _, said = run.communicate(timeout=LIMIT_S)
    assert run.returncode != 0
    assert "rank      : 1" in said
    assert f"Signal 9 (SIGKILL) received by PID {victim}" in said


class Ranks:
    """Processes without a launcher that would watch them, as those of other nodes are."""

    def __init__(self, number: int, **argument: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.processes = [
            subprocess.Popen(
                [sys.executable, ranks.__file__, "beat", json.dumps(argument)],
                env=os.environ
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(number)
        ]

    def wait_until_ready(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def last_words(self, rank: int, limit_s: float) -> str:
        _, said = self.processes[rank].communicate(timeout=limit_s)
        assert self.processes[rank].returncode not in (0, -9)
        return said


def test_the_others_name_a_killed_rank_and_end() -> None:
    """In collectives, which gloo interrupts, and outside of them, where nobody would notice."""
    with Ranks(3, collectives=True) as meeting, Ranks(2, collectives=False) as apart:
        for group in (meeting, apart):
            group.wait_until_ready()
        for group in (meeting, apart):
            group.processes[1].kill()
        killed = time.monotonic()
        for group in (meeting, apart):
            size = len(group.processes)
            for rank in set(range(size)) - {1}:
                said = group.last_words(rank, max(0.1, killed + LIMIT_S - time.monotonic()))
                assert (
                    f"vrlvr: rank 1 of {size} has been silent for 15 s: it was killed, or hangs; rank {rank} ends"
                    in said
                )


def test_the_others_name_a_rank_that_failed_or_kept_the_store() -> None:
    quick: dict[str, Any] = {"collectives": True, "constants": {"SILENCE_S": 4.0, "GRACE_S": 2.0}}
    with Ranks(2, failing=1, **quick) as failing, Ranks(2, **quick) as headless:
        failing.wait_until_ready()
        headless.wait_until_ready()
        headless.processes[0].kill()
        assert "ZeroDivisionError: a bug" in failing.last_words(1, LIMIT_S)
        assert "vrlvr: rank 1 of 2 failed: ZeroDivisionError: a bug; rank 0 ends" in failing.last_words(0, LIMIT_S)
        assert "vrlvr: rank 0, which kept the ranks' meeting point, is gone" in headless.last_words(1, LIMIT_S)


@given(total=st.integers(0, 300), size=st.integers(1, 17))
def test_shares_are_whole_and_even(total: int, size: int) -> None:
    shares = [World(rank, size).share(total) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(puzzles=st.integers(1, 20), group=st.integers(2, 9), size=st.integers(1, 17))
def test_shares_of_samples_know_their_puzzles(puzzles: int, group: int, size: int) -> None:
    for rank in range(min(size, puzzles * group)):
        mine = World(rank, size).share(puzzles * group)
        assert [mine.start // group + p for p in puzzles_of(mine, group).tolist()] == [i // group for i in mine]


def test_one_process_needs_no_group() -> None:
    world, layer = World(), nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    assert world.on_main(lambda: "done") == "done"
    world.sync_gradients(layer.parameters())
    assert world.gather("x") == ["x"]
    assert world.sum(torch.tensor(3.0)).item() == 3.0
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [0.0]


def test_gradients_are_summed_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []

    def double(flat: torch.Tensor) -> None:
        summed.append(flat.numel())
        flat.mul_(2)

    monkeypatch.setattr(distributed.dist, "all_reduce", double)
    monkeypatch.setattr(distributed, "_BUCKET_NUMEL", 10)
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3, 4, 4, 30, 1)]
    parameters.append(nn.Parameter(torch.zeros(2), requires_grad=False))
    for p in parameters[1:5]:
        p.grad = torch.arange(p.numel(), dtype=torch.float32)
    World(0, 2).sync_gradients(parameters)
    assert summed == [7, 4, 30, 1]
    for p in parameters[1:5]:
        assert p.grad is not None
        assert p.grad.tolist() == [2.0 * i for i in range(p.numel())]
    assert [p.grad is None for p in parameters] == [False] * 5 + [True]


def test_a_chosen_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: SimpleNamespace(device=torch.device(device)))
    assert pick_device("auto") == torch.device("cuda", 1)
    assert pick_device("cuda:3") == torch.device("cuda", 3)
    assert pick_device("cpu") == torch.device("cpu")
    assert current == [torch.device("cuda", 1), torch.device("cuda", 3)]


def test_ranks_that_torchrun_starts_again_meet_in_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --max-restarts: addresses of dead processes, and what was said of them, would end the new ones."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port),
        "RANK": "0",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    stores: list[dist.Store] = []
    monkeypatch.setattr(
        distributed, "Heartbeat", lambda store, *_: stores.append(store) or SimpleNamespace(end=lambda _: 0)
    )
    monkeypatch.setattr(dist, "init_process_group", lambda *_, store, **__: stores.append(store))
    monkeypatch.setattr(distributed, "_meet", lambda *_: None)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda: None)
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with joined_world():
            for store in stores[-2:]:
                assert not store.check(["said"])
                store.set("said", "by the first")
    assert len(stores) == 4


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a node where nothing could be started: the others would pay an hour for waiting."""
    monkeypatch.setattr(distributed, "_JOINING", timedelta(seconds=1))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    store.set("rank 2 is here", "")
    with pytest.raises(UserError, match="rank 1, 3 of 4 did not come within 1 s"):
        distributed._meet(store, 0, 4)
    for rank in (1, 3):
        store.set(f"rank {rank} is here", "")
    distributed._meet(store, 0, 4)


def test_what_one_rank_alone_meets_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrlvr.heartbeat.AGREE_S", 0.3)
    monkeypatch.setattr("vrlvr.heartbeat.GRACE_S", 600)  # on a busy machine the watch would end pytest
    monkeypatch.setattr("vrlvr.heartbeat.SILENCE_S", 600)
    store = dist.HashStore()
    error = UserError("its GPU is full")
    first, second = Heartbeat(store, 0, 2), Heartbeat(store, 1, 2)
    second.end(error)
    assert not second.is_of_rank_0(error)
    assert first.is_of_rank_0(error)
    first.end(error)
    assert second.is_of_rank_0(error)
    assert not second.is_of_rank_0(UserError("its disk is full"))


@pytest.mark.parametrize(
    ("rank", "error", "told"), [("1", UserError, ""), ("1", LocalError, "x"), ("0", UserError, "x")]
)
def test_every_line_is_told_once(
    rank: str, error: type[UserError], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise error("x")

    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("vrlvr.train.joined_world", refuse)
    assert main(ARGUMENTS) == 2
    assert capsys.readouterr().err == (f"vrlvr: {told}\n" if told else "")


def test_cores_are_shared_by_the_processes_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    for processes, cores in (("1", 9), ("4", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert own_cores() == cores


def test_more_processes_than_gpus_are_refused_in_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with (
        pytest.raises(UserError, match=r"8 processes cannot share 4 GPUs; use torchrun --nproc_per_node=4"),
        joined_world(),
    ):
        pass
