"""Data parallelism over torchrun's processes: the few collectives that training needs, no-ops in one process."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vrlvr.errors import LocalError, UserError
from vrlvr.heartbeat import Heartbeat

Result = TypeVar("Result")

_BUCKET_NUMEL = 100_000_000
_JOINING = timedelta(minutes=10)  # in which all ranks are to begin


@dataclass(frozen=True)
class World:
    """This process among `size` of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on rank 0, on every rank. If it raises UserError there, every rank does, and none waits."""
        outcome: Any = None
        if self.is_main:
            try:
                outcome = work()
            except UserError as error:
                outcome = error
        outcome = self.gather(outcome)[0]
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    def sync_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums float32 gradients over ranks, a bucket at a time. A parameter without one gets zeros, in one process too."""
        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p, dtype=torch.float32)
        if self.size == 1:
            return
        for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat)
            parts = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])

    def share(self, total: int) -> range:
        """The contiguous part of range(total) that belongs to this rank; parts differ by at most one."""
        return range(self.rank * total // self.size, (self.rank + 1) * total // self.size)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of at most _BUCKET_NUMEL elements together, or one alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET_NUMEL:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def own_cores() -> int:
    """This process's part of the machine's cores, or of those that it may use where the system tells; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _meet(store: dist.Store, rank: int, size: int) -> None:
    """Waits for all ranks. Raises UserError that names those that do not come: of another node, most often."""
    places = [f"rank {other} is here" for other in range(size)]
    store.set(places[rank], "")
    try:
        store.wait(places, _JOINING)
    except dist.DistError as error:
        missing = ", ".join(str(other) for other in range(size) if not store.check([places[other]]))
        raise UserError(
            f"rank {missing} of {size} did not come within {_JOINING.total_seconds():.0f} s; look at what its node said"
        ) from error


def pick_device(name: str) -> torch.device:
    """The device of that name, a GPU as the current one; `auto` is this process's GPU if there is one.

    Raises LocalError if it cannot be used.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise LocalError(f"device={name} cannot be used ({reason}); use auto, cpu or a GPU that is there") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else Triton, and streams, would be those of the first GPU
    return device


@contextmanager
def joined_world() -> Iterator[World]:
    """The world of torchrun's processes (nccl on GPUs, gloo on CPUs), or of one.

    If a process dies, the others end within 30 s and name it. Raises UserError, in all of them, if they outnumber the GPUs or
    some do not come, and LocalError in place of a UserError that rank 0 does not have.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < gpus < here:
        raise UserError(f"{here} processes cannot share {gpus} GPUs; use torchrun --nproc_per_node={gpus}")
    device = pick_device("auto")
    if size == 1:
        yield World(rank, size, device)
        return
    # An hour: while rank 0 writes a checkpoint the others wait in a collective; those that died are found by the heartbeat.
    timeout = timedelta(hours=1)
    # Where torchrun starts the ranks again (--max-restarts), the addresses and last words of the former ones still lie there.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, size = next(dist.rendezvous("env://", rank, size, timeout=_JOINING))
    store = dist.PrefixStore(attempt, store)
    _meet(store, rank, size)
    store.set_timeout(timeout)
    # No device_id, which binds and splits communicators: with it others saw DeepSpeed hang (its pull request 7266).
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # A connection of its own: the process group's may be waiting for something.
    own = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
    store = dist.PrefixStore(f"heartbeat/{attempt}", own)
    heartbeat = Heartbeat(store, rank, size)
    try:
        yield World(rank, size, device)
        dist.barrier()  # none takes the store away from others that still watch
    except BaseException as error:
        heartbeat.end(error)
        if isinstance(error, UserError) and not heartbeat.is_of_rank_0(error):
            raise LocalError(f"rank {rank} of {size}: {error}") from error
        raise
    heartbeat.end(None)
    dist.destroy_process_group()
