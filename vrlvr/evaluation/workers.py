"""Many slow calls side by side, with a progress bar, ended by the first error or a Ctrl-C."""

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vrlvr.evaluation.patience import Patience, Stopped

Task = TypeVar("Task")
_REASONS = 10  # why calls are tried again, each told once


def work_through(
    tasks: Sequence[Task], work: Callable[[Task], None], parallel: int, patience: Patience, title: str
) -> None:
    """work(task) for every task, `parallel` at a time in threads.

    The first exception, KeyboardInterrupt included, ends all: nothing new is begun, and it is raised again once the calls under
    way have ended, as what they bring is paid for. A second Ctrl-C does not wait for them.
    """
    todo: SimpleQueue[Task] = SimpleQueue()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for task in tasks:
        todo.put(task)

    def serve() -> None:
        while not patience.is_stopped():
            try:
                work(todo.get_nowait())
                ended.put(None)
            except Empty:
                return
            except BaseException as error:
                patience.stop()
                ended.put(error)

    # Daemons, unlike an executor's threads, do not keep a process that is told to end.
    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(parallel, len(tasks)))]
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=len(tasks))
        told: set[str] = set()

        def tell(reason: str) -> None:
            if reason not in told and len(told) < _REASONS:
                told.add(reason)
                progress.console.print(f"waiting, for {reason}", markup=False, highlight=False)

        patience.tell = tell
        try:
            for thread in threads:
                thread.start()
            for _ in tasks:
                if not isinstance(error := ended.get(), Stopped | None):
                    raise error
                progress.advance(bar)
        except BaseException:
            patience.stop()
            under_way = sum(thread.is_alive() for thread in threads)
            if under_way:
                progress.console.print(f"ending, after {under_way} calls under way (Ctrl-C again: without them)")
            for thread in threads:
                if thread.ident is not None:  # else it was not started
                    thread.join()
            raise
