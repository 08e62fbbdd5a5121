"""A rank that dies is named by the others, which then end: torchrun watches its own node only, and NCCL waits for minutes.

Each rank writes a growing number to the store where the processes met, from a thread, and reads the others'. The thread needs
Python's interpreter lock now and then: one call that keeps it for SILENCE_S would look like a death.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import torch.distributed as dist

from vrlvr.errors import UserError

INTERVAL_S = 1.0
SILENCE_S = 15.0  # of a rank that has said nothing
GRACE_S = 8.0  # after a rank has failed, for the others to end by themselves; and after the store is lost
AGREE_S = 2.0  # in which rank 0 finds the same bad input, if it is everyone's
LINGER_S = 4.0  # in which the rank that keeps the store waits to end, for the others to read what it found
_VERDICT = "verdict"


class Heartbeat:
    """This rank's sign of life, and its watch over the others, from now until `end`."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._ended = threading.Event()
        store.set(str(rank), "0")
        self._thread = threading.Thread(target=self._watch, daemon=True, name="heartbeat")
        self._thread.start()

    def end(self, error: BaseException | None) -> None:
        """To be called when this rank's work ends, with the exception that ended it, if one did.

        Where that came from a collective, it is another rank's fault: waits for the watch to find out which.
        """
        if error is not None and _is_of_a_collective(error):
            self._thread.join(SILENCE_S + GRACE_S)
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # whoever keeps the store has ended before us
            self._store.set(str(self._rank), "done" if error is None else _failure(error))

    def is_of_rank_0(self, error: BaseException) -> bool:
        """Whether rank 0 ends with the same, for which it is given a moment."""
        deadline = time.monotonic() + AGREE_S
        while self._rank and time.monotonic() < deadline:
            try:
                if self._store.get("0").decode() == _failure(error):
                    return True
            except RuntimeError:  # it has ended
                return True
            time.sleep(0.1)
        return self._rank == 0

    def _watch(self) -> None:
        suspects: dict[str, float] = {}  # since when
        beats = 0
        values: dict[int, tuple[str, float]] = {}
        while not self._ended.wait(INTERVAL_S):
            beats += 1
            try:
                self._store.set(str(self._rank), str(beats))
                found = dict(self._complaints(values))
            except RuntimeError as error:
                keeper = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
                found = {f"{keeper}, which kept the ranks' meeting point, is gone ({_line(error)})": GRACE_S}
            now = time.monotonic()
            suspects = {complaint: suspects.get(complaint, now) for complaint in found}
            for complaint, since in suspects.items():
                if now - since >= found[complaint]:
                    self._die(complaint)

    def _die(self, complaint: str) -> None:
        """Ends this process, and tells the others why: whoever ends first may take the store along."""
        print(f"vrlvr: {complaint}; rank {self._rank} ends", file=sys.stderr, flush=True)
        with contextlib.suppress(RuntimeError):  # the store is lost
            self._store.set(_VERDICT, complaint)
            if self._rank == 0:
                time.sleep(LINGER_S)
        os._exit(1)  # the main thread may be in a collective that never returns

    def _complaints(self, values: dict[int, tuple[str, float]]) -> Iterator[tuple[str, float]]:
        """What is wrong with other ranks, and for how long it is borne. values: the last of each, and since when."""
        now = time.monotonic()
        if self._store.check([_VERDICT]):
            yield self._store.get(_VERDICT).decode(), 0.0
        for rank in range(self._size):
            if rank == self._rank or not self._store.check([str(rank)]):
                continue
            value = self._store.get(str(rank)).decode()
            if value != values.get(rank, ("", 0.0))[0]:
                values[rank] = value, now
            if value.startswith("failed"):
                yield f"rank {rank} of {self._size} {_line(value)}", GRACE_S
            elif value != "done" and now - values[rank][1] >= SILENCE_S:
                yield f"rank {rank} of {self._size} has been silent for {SILENCE_S:.0f} s: it was killed, or hangs", 0.0


def _failure(error: BaseException) -> str:
    return f"failed: {type(error).__name__}: {error}"


def _is_of_a_collective(error: BaseException) -> bool:
    if isinstance(error, UserError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(os.path.join("torch", "distributed") in frame.filename for frame in frames)


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]
