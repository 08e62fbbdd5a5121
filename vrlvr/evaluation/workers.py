"""Many slow calls side by side, with a progress bar, ended by the first error or a Ctrl-C."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vrlvr.evaluation.patience import Patience, Stopped

Task = TypeVar("Task")


def work_through(
    tasks: Sequence[Task], work: Callable[[Task], None], parallel: int, patience: Patience, title: str
) -> None:
    """work(task) for every task, `parallel` at a time in threads.

    The first exception, KeyboardInterrupt included, is raised again after `patience` was stopped and the calls under way
    have ended: what they were answered is then known, and paid for only once.
    """

    def begin(task: Task) -> None:
        if patience.is_stopped():
            raise Stopped
        try:
            work(task)
        except BaseException:
            patience.stop()  # here, lest another call is begun before the main thread knows
            raise

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(parallel) as pool:
        bar = progress.add_task(title, total=len(tasks))
        try:
            futures = [pool.submit(begin, task) for task in tasks]
            for future in as_completed(futures):
                if not isinstance(error := future.exception(), Stopped | None):
                    raise error
                progress.advance(bar)
        except BaseException:
            patience.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
