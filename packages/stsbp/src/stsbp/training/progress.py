"""What a person sees of a run: a bar with rate and time left on a terminal, plain lines, not too many, in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

from stsbp.errors import printable

__all__ = ["PlainReporter", "Reporter", "TerminalReporter", "reporter", "time_text"]

_SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """Tells a person how it goes. Every method is cheap, and none raises when the reader went away."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Progress of reading data."""

    def begin(self, epochs: int, updates: int, done: int, batch_size: int) -> None:
        """Training begins, at update `done` of `updates`."""

    def step(self, epoch: int, done: int, means: Mapping[str, Any]) -> None:
        """An update is done; `means` are of this epoch so far."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def warn(self, text: str) -> None:
        """A warning that stays."""

    def close(self) -> None:
        """Give the terminal back."""


def _how_good(means: Mapping[str, Any], digits: int) -> str:
    return "  ".join(f"{name} {means[name]:.{digits}%}" for name in ("accuracy", "f1") if name in means)


def time_text(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Output:
    """Lines for a reader who may go away: `gone` is then true, and writing does nothing."""

    def __init__(self, file: IO[str] | None) -> None:
        self.file = file
        self.gone = file is None

    def line(self, text: str) -> None:
        if self.gone:
            return
        try:
            print(printable(text, lines=True), file=self.file, flush=True)
        except (OSError, ValueError):
            self.gone = True


class PlainReporter:
    """Lines for a log: at most one about progress every ten seconds; None for the file: for nobody."""

    def __init__(self, file: IO[str] | None) -> None:
        self._output = _Output(file)
        self._last = time.monotonic()
        self._epochs = self._updates = self._first = self._batch = 0
        self._begun = self._last

    def loading(self, what: str, done: int, total: int) -> None:
        if self._due():
            self._output.line(f"{what}: {done} of {total}")

    def begin(self, epochs: int, updates: int, done: int, batch_size: int) -> None:
        self._epochs, self._updates, self._first, self._batch = epochs, updates, done, batch_size
        self._begun = time.monotonic()

    def step(self, epoch: int, done: int, means: Mapping[str, Any]) -> None:
        if not self._due():
            return
        rate = (done - self._first) / max(1e-9, time.monotonic() - self._begun)
        left = time_text((self._updates - done) / rate) if rate > 0 else "?"
        self._output.line(
            f"epoch {epoch + 1}/{self._epochs}  update {done}/{self._updates}  loss {means['loss']:.4f}  "
            f"{_how_good(means, 2)}  {rate * self._batch:.0f} samples/s  {left} left"
        )

    def note(self, text: str) -> None:
        self._output.line(text)

    def warn(self, text: str) -> None:
        self._output.line(f"warning: {text}")

    def close(self) -> None:
        pass

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return False
        self._last = now
        return True


class TerminalReporter:
    """A bar at the bottom of the terminal, lines that stay above it."""

    def __init__(self, file: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(file=file, highlight=False)
        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}", markup=False),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            refresh_per_second=4,
            speed_estimate_period=60,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._epochs = self._batch = 0
        self._closed = False

    def _bar(self, what: str, total: int, done: int = 0) -> TaskID:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(what, total=total, completed=done, detail="")
        elif what != self._what:
            self._progress.reset(self._task, description=what, total=total, completed=done, detail="")
        self._what = what
        return self._task

    def loading(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._bar(printable(what), total), completed=done)

    def begin(self, epochs: int, updates: int, done: int, batch_size: int) -> None:
        self._epochs, self._batch = epochs, batch_size
        self._bar("training", updates, done)

    def step(self, epoch: int, done: int, means: Mapping[str, Any]) -> None:
        assert self._task is not None
        speed = self._progress.tasks[0].speed
        rate = f"  {speed * self._batch:.0f} samples/s" if speed else ""
        self._progress.update(
            self._task,
            completed=done,
            description=f"epoch {epoch + 1}/{self._epochs}",
            detail=f"loss {means['loss']:.4f}  {_how_good(means, 1)}{rate}",
        )

    def note(self, text: str) -> None:
        self._console.print(printable(text, lines=True), markup=False)

    def warn(self, text: str) -> None:
        self._console.print(printable(f"warning: {text}", lines=True), markup=False, style="yellow")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._progress.stop()


def reporter(file: IO[str] | None = None) -> Reporter:
    """The reporter that fits `file` (by default standard error)."""
    file = sys.stderr if file is None else file
    # None: standard error was closed before the process began.
    return TerminalReporter(file) if file is not None and file.isatty() else PlainReporter(file)
