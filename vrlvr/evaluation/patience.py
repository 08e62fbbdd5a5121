"""Waiting for services that are busy: repeated attempts with exponential backoff and jitter, which a Ctrl-C ends."""

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from vrlvr.evaluation.http_api import ApiError

MAX_RETRY_AFTER_S = 300.0  # however long a service asks to be left alone

Result = TypeVar("Result")


class Stopped(Exception):
    """The run is ending: whoever waits is to leave what he does as it is."""


class Patience:
    """How often and how long to try again. One is shared by all threads of a run, so that `stop` ends every wait."""

    def __init__(
        self,
        attempts: int = 7,
        first_s: float = 2.0,
        cap_s: float = 60.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._attempts, self._first_s, self._cap_s, self._draw = attempts, first_s, cap_s, draw
        self._stopped = threading.Event()
        self.tell: Callable[[str], object] = lambda reason: None  # who is to hear why there is a wait

    def stop(self) -> None:
        """Ends all waits, present and to come, by Stopped."""
        self._stopped.set()

    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def wait(self, seconds: float) -> None:
        """Raises Stopped as soon as the run is ending."""
        if self._stopped.wait(seconds):
            raise Stopped

    def delay(self, attempt: int, retry_after_s: float | None) -> float:
        """Seconds to wait after failure number `attempt` (from 0): what the service asked for, and a random share of
        first * 2^attempt up to the cap, so that threads refused at once don't come back at once ("full jitter", Brooker,
        AWS Architecture Blog, 2015).
        """
        backoff = self._draw() * min(self._cap_s, self._first_s * 2**attempt)
        return min(retry_after_s or 0.0, MAX_RETRY_AFTER_S) + backoff

    def retry(self, call: Callable[[], Result], after: tuple[type[ApiError], ...]) -> Result:
        """The result of the first attempt that does not raise one of `after`; the last attempt's error otherwise."""
        for attempt in range(self._attempts - 1):
            try:
                return call()
            except after as error:
                self.tell(str(error))
                self.wait(self.delay(attempt, error.retry_after_s))
        return call()
