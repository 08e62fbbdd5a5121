"""What a run says while it trains: metrics.jsonl, TensorBoard events and a progress display.

metrics.jsonl has one JSON object a line: {"phase", "step", "total", "seconds", <name>: <finite number or null>, ...}.
`seconds` is the run's training time: it goes on where the file ends when a run is resumed.

A phase that is logged again (resumed, or run anew) first drops its own lines and TensorBoard points from that step on,
so that no curve doubles.
"""

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from vrlvr.atomic_write import write_text, writing
from vrlvr.errors import UserError

PLAIN_INTERVAL_S = 5.0
SHOWN = ("loss", "reward", "success", "val_success")


class Number(Protocol):
    """An int, a float, a NumPy scalar or a tensor of one element."""

    def __float__(self) -> float: ...


class RunLog:
    """The log of one run. Every method does nothing where `enabled` is false (all ranks but the first).

    Writes run_dir/metrics.jsonl and run_dir/tensorboard/<phase>/. Use it as a context manager.
    """

    def __init__(self, run_dir: Path, enabled: bool = True) -> None:
        self._enabled = enabled
        self._path = Path(run_dir) / "metrics.jsonl"
        self._events_dir = Path(run_dir) / "tensorboard"
        self._events: dict[str, _Events] = {}
        if not enabled:
            return
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        earlier = read_metrics(self._path) if self._path.exists() else []
        self._started = time.perf_counter() - max((row["seconds"] for row in earlier), default=0.0)
        self._earlier_phases = {row["phase"] for row in earlier}
        with writing(self._path):
            self._lines = _open_after_whole_lines(self._path, earlier)
        self._display = _Bar() if sys.stdout.isatty() else _Plain()

    def log(self, phase: str, step: int, total: int, **scalars: Number | None) -> None:
        """Records one step of a phase of `total` steps. NaN and infinities are recorded as null.

        `success` and `val_success` are fractions in [0, 1]; they, `loss` and `reward` are shown as progress.
        Raises UserError if the disk refuses.
        """
        if not self._enabled:
            return
        values = {name: _finite(value) for name, value in scalars.items()}
        seconds = round(time.perf_counter() - self._started, 3)
        row = {"phase": phase, "step": step, "total": total, "seconds": seconds} | values
        with writing(self._path):
            if phase not in self._events:
                self._begin(phase, step)
            self._lines.write(json.dumps(row, allow_nan=False) + "\n")
            self._lines.flush()
            self._events[phase].add(step, values)
        self._display.update(phase, step, total, values)

    def say(self, text: str) -> None:
        """Prints a line without breaking the progress bar."""
        if self._enabled:
            self._display.say(text)

    def close(self) -> None:
        """Writes everything out and removes the progress bar."""
        if not self._enabled:
            return
        self._display.close()
        with writing(self._path):
            self._lines.close()
            for events in self._events.values():
                events.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, phase: str, step: int) -> None:
        """First record of a phase in this process: forget what an earlier one logged of it from `step` on."""
        if phase in self._earlier_phases:
            self._lines.close()
            kept = [row for row in read_metrics(self._path) if row["phase"] != phase or row["step"] < step]
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
            self._lines = self._path.open("a", encoding="utf-8")
        self._events[phase] = _Events(self._events_dir / phase, phase, step if phase in self._earlier_phases else None)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut off while being written is left out.

    Raises UserError if the file is missing or another line is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name the folder of a run") from error
    *lines, _cut = text.split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _ = row["phase"], row["step"], row["seconds"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number}, {line[:40]!r}, must be a JSON object with phase, step, seconds; remove it"
            ) from error
        rows.append(row)
    return rows


def _open_after_whole_lines(path: Path, rows: list[dict[str, Any]]) -> IO[str]:
    """The file, ready to append, a cut last line removed."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path.open("a", encoding="utf-8")


def _finite(value: Number | None) -> float | None:
    """The value as JSON can hold it: ints stay ints, NaN and infinities become None."""
    if value is None or type(value) is int:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class _Events:
    """TensorBoard scalars of one phase, written by tensorboard's own event writer.

    That module takes 0.3 s to import and is imported at the first record; torch.utils.tensorboard would take 2 s.
    """

    def __init__(self, folder: Path, phase: str, purge_from: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._phase = Event, Summary, phase
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        if purge_from is not None:  # TensorBoard then hides the points from that step on; hence one folder a phase
            session = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=purge_from, session_log=session))

    def add(self, step: int, values: dict[str, float | None]) -> None:
        scalars = [
            self._summary.Value(tag=f"{self._phase}/{name}", simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        if scalars:
            event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars))
            self._writer.add_event(event)

    def close(self) -> None:
        self._writer.close()


class _Pace:
    """Speed and remaining time of a phase, over what this process has seen of it."""

    def __init__(self, step: int) -> None:
        self._first_step, self._first_time = step, time.perf_counter()
        self.shown: dict[str, float] = {}

    def status(self, step: int, total: int, values: dict[str, float | None]) -> str:
        """For example `3.2 it/s  ETA 0:41  reward 0.312  success 41.0%`."""
        self.shown |= {name: value for name in SHOWN if (value := values.get(name)) is not None}
        parts = [f"{name} {_shown(name, value)}" for name, value in self.shown.items()]
        elapsed = time.perf_counter() - self._first_time
        if step > self._first_step and elapsed > 0:
            rate = (step - self._first_step) / elapsed
            parts = [f"{rate:.3g} it/s", f"ETA {_clock((total - step) / rate)}", *parts]
        return "  ".join(parts)


class _Plain:
    """Single lines, every few seconds and at a phase's end: for output that is piped, as torchrun's often is."""

    def __init__(self) -> None:
        self._phase, self._printed = "", -math.inf
        self._pace = _Pace(0)

    def update(self, phase: str, step: int, total: int, values: dict[str, float | None]) -> None:
        if phase != self._phase:
            self._phase, self._pace, self._printed = phase, _Pace(step), -math.inf
        status = self._pace.status(step, total, values)
        if step >= total or time.perf_counter() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.perf_counter()
            self.say(f"{phase} {step}/{total}  {status}".rstrip())

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """One bar a phase, redrawn in place."""

    def __init__(self) -> None:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # takes what the others leave
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[status]}"),
        ]
        self._progress = Progress(*columns, console=Console(), refresh_per_second=4, expand=True)
        self._tasks: dict[str, tuple[TaskID, _Pace]] = {}
        self._progress.start()

    def update(self, phase: str, step: int, total: int, values: dict[str, float | None]) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total, status=""), _Pace(step)
        task, pace = self._tasks[phase]
        self._progress.update(task, completed=step, total=total, status=pace.status(step, total, values))

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith("success") else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
