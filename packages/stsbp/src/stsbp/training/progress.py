"""What a user sees of a run: a progress bar with the remaining time on a terminal, or a limited number of lines in a
log.

Updates and evaluations both count as work. Time for compiling kernels is reported separately, and does not count in the
rate. Lines fit the terminal, or 80 columns. The least important parts are left out first.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from stsbp.errors import printable
from stsbp.processes.group import Group
from stsbp.training.metrics import Workload
from stsbp.training.quality import QUALITIES

if TYPE_CHECKING:
    from rich.progress import Task, TaskID
    from rich.text import Text

__all__ = [
    "Course",
    "Pace",
    "PlainReporter",
    "Reporter",
    "TerminalReporter",
    "choose_reporter",
    "fitted",
    "group_reporter",
    "time_text",
]

WIDTH = 80
"""Width of a line in a log."""
_BAR = 10
_SECONDS_BETWEEN_LINES = 10.0
_RECENT = 50
_EVALUATION = 1 / 3
"""Work to evaluate a sample relative to training on it, until both are measured. There is no backward pass."""
_ENOUGH = 3
"""After this many further batches it is certain that a first batch was hardly slower. It is then not reported."""
_LEAST_COMPILING = 3.0
"""Time in seconds by which a first batch must be slower to be reported. Loading compiled kernels takes less."""


class Pace:
    """Time per sample: the median of recent batches, without the first batch of each size, which may compile."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._first: dict[int, float] = {}
        self._untold: list[int] = []

    def add(self, samples: int, seconds: float) -> None:
        """A batch of `samples` took `seconds`."""
        if samples in self._first:
            self._recent.append(seconds / samples)
        else:
            self._first[samples] = seconds
            self._untold.append(samples)

    @property
    def seconds(self) -> float | None:
        """Time per sample in seconds; None before the second batch of a size."""
        return median(self._recent) if self._recent else None

    def compiled(self) -> float:
        """Time in seconds by which first batches were slower than later ones. Reported once; 0: nothing to report."""
        if self.seconds is None:
            return 0.0
        extra = sum(max(0.0, self._first[samples] - samples * self.seconds) for samples in self._untold)
        is_reported = extra >= _LEAST_COMPILING
        if is_reported or len(self._recent) >= _ENOUGH:
            self._untold.clear()
        return extra if is_reported else 0.0


class Course:
    """The progress of a run, its speed, and the remaining time.

    Args:
        updates, batch: number of updates of the whole run, and number of samples per update.
        evaluations: number of samples that the whole run evaluates, over all epochs.
        done, evaluated: what was done before this process began.
    """

    def __init__(
        self, updates: int, batch: int, evaluations: int = 0, *, updates_done: int = 0, evaluated: int = 0
    ) -> None:
        self._updates, self._batch, self._evaluations = updates, batch, evaluations
        self._done, self._evaluated = updates_done, evaluated
        self._training, self._testing = Pace(), Pace()
        self._begun = time.monotonic()
        self.workload: Workload | None = None
        """How the work is shared by processes, if there are several."""

    def update(self, samples: int, seconds: float) -> None:
        """An update is done."""
        self._done += 1
        self._training.add(samples, seconds)

    def evaluate(self, samples: int, seconds: float) -> None:
        """A batch is evaluated."""
        self._evaluated += samples
        self._testing.add(samples, seconds)

    @property
    def share(self) -> float:
        """Finished share of the work, 0 to 1. Evaluations count."""
        work = self._updates * self._batch + _EVALUATION * self._evaluations
        done = self._done * self._batch + _EVALUATION * self._evaluated
        return min(1.0, done / max(1, work))

    @property
    def rate(self) -> float | None:
        """Samples per second in training; None before it is known."""
        return 1 / max(1e-9, seconds) if (seconds := self._training.seconds) is not None else None

    @property
    def remaining(self) -> float | None:
        """Remaining time in seconds, including evaluations; None before the rate is known."""
        training, testing = self._training.seconds, self._testing.seconds
        if training is None:
            return None
        testing = _EVALUATION * training if testing is None else testing
        updates, samples = self._updates - self._done, max(0, self._evaluations - self._evaluated)
        return updates * self._batch * training + samples * testing

    @property
    def exchange(self) -> str:
        """Share of the time in exchanges between processes, and the slowest process; empty for one process."""
        if self.workload is None or "exchange_share" not in self.workload.figures():
            return ""
        return f"exchange {self.workload.share:.0%}  slowest rank {self.workload.slowest}"

    @property
    def elapsed(self) -> float:
        """Time in seconds since this process began to train."""
        return time.monotonic() - self._begun

    def compiled(self) -> float:
        """Time in seconds spent on compiling. Reported once; 0: nothing to report."""
        return self._training.compiled() + self._testing.compiled()


class Reporter(Protocol):
    """Shows the progress to a user. Every method is fast, and none raises an error if the output was closed."""

    def loading(self, activity: str, finished: int, total: int) -> None:
        """Progress of reading data."""

    def begin(self, epochs: int, course: Course) -> None:
        """Training begins or continues."""

    def step(self, epoch: int, means: Mapping[str, Any], activity: str = "") -> None:
        """There was progress. `means` are those of this epoch so far. `activity` is a current task other than an
        update."""

    def note(self, text: str, *optional: str) -> None:
        """A permanent line. As many of the texts `optional` are added as fit into it."""

    def warn(self, text: str) -> None:
        """A permanent warning."""

    def close(self) -> None:
        """Restore the terminal."""


def time_text(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds_part = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_part:02}" if hours else f"{minutes}:{seconds_part:02}"


def fitted(parts: Mapping[str, str], droppable: Sequence[str], width: int) -> str:
    """The non-empty parts in one line. Droppable parts are left out until it fits."""
    shown_parts = {name: part for name, part in parts.items() if part}
    for name in droppable:
        if len("  ".join(shown_parts.values())) <= width:
            break
        shown_parts.pop(name, None)
    return "  ".join(shown_parts.values())


def _standing(epoch: str, course: Course, means: Mapping[str, Any], droppable: Sequence[str], width: int) -> str:
    """The progress of a run in one line."""
    rate, remaining_time = course.rate, course.remaining
    parts = {
        "share": f"{int(100 * course.share)}%",
        "epoch": epoch,
        "loss": f"loss {means['loss']:.4f}" if "loss" in means else "",
        "figure": "  ".join(f"{q.name} {q.text(means[key])}" for key, q in QUALITIES.items() if key in means),
        "rate": "" if rate is None else f"{rate:.0f} samples/s",
        "elapsed": f"elapsed {time_text(course.elapsed)}",
        "left": "" if remaining_time is None else f"left {time_text(remaining_time)}",
        "exchange": course.exchange,
    }
    return fitted(parts, droppable, width)


def _note_line(text: str, optional: Sequence[str], width: int) -> str:
    parts = {str(number): part for number, part in enumerate((text, *optional))}
    return fitted(parts, list(parts)[:0:-1], width)


class _ClosableFile:
    """A text file that may be closed, such as a terminal. Writing then does nothing."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def write_line(self, text: str) -> None:
        self.write(printable(text, lines=True) + "\n")
        self.flush()

    def _try(self, method: str, *arguments: str) -> None:
        if self._file is None:
            return
        try:
            getattr(self._file, method)(*arguments)
        except (OSError, ValueError):
            self._file = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class PlainReporter:
    """Lines for a log, with at most one line on progress every ten seconds. If the file is None, nothing is printed."""

    def __init__(self, file: IO[str] | None) -> None:
        self._output = _ClosableFile(file)
        self._last = time.monotonic()
        self._epochs = 0
        self._course = Course(0, 0)

    def loading(self, activity: str, finished: int, total: int) -> None:
        if self._due():
            self._output.write_line(f"{activity}: {finished} of {total}")

    def begin(self, epochs: int, course: Course) -> None:
        self._epochs, self._course = epochs, course

    def step(self, epoch: int, means: Mapping[str, Any], activity: str = "") -> None:
        if self._due():
            position = f"epoch {epoch + 1}/{self._epochs} {activity}".rstrip()
            self._output.write_line(
                _standing(position, self._course, means, ("elapsed", "share", "exchange", "rate", "loss"), WIDTH)
            )

    def note(self, text: str, *optional: str) -> None:
        self._output.write_line(_note_line(text, optional, WIDTH))

    def warn(self, text: str) -> None:
        self._output.write_line(f"warning: {text}")

    def close(self) -> None:
        pass

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return False
        self._last = now
        return True


class TerminalReporter:
    """A progress bar at the bottom of the terminal, with permanent lines above it."""

    def __init__(self, file: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn
        from rich.table import Column
        from rich.text import Text

        owner = self

        class LineColumn(ProgressColumn):
            """Drawn again at every refresh, so that times continue during a long update."""

            def render(self, task: Task) -> Text:
                return Text(owner.bar_text(), overflow="ellipsis")

        # Another thread also draws, so the file itself must not fail.
        self._console = Console(file=cast(IO[str], _ClosableFile(file)), highlight=False)
        self._progress = Progress(
            BarColumn(bar_width=_BAR),
            LineColumn(table_column=Column(no_wrap=True)),
            console=self._console,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self._text = ""
        self._epochs = 0
        self._course: Course | None = None
        self._means: Mapping[str, Any] = {}
        self._closed = False

    def bar_text(self) -> str:
        """The text beside the bar."""
        if self._course is None:
            return self._text
        width = self._console.width - _BAR - 1
        return _standing(self._text, self._course, self._means, ("exchange", "rate", "elapsed", "loss", "share"), width)

    def _draw(self, text: str, share: float) -> None:
        self._text = text
        if self._task is None:
            self._task = self._progress.add_task("", total=1.0)
            self._progress.start()
        self._progress.update(self._task, completed=share)

    def loading(self, activity: str, finished: int, total: int) -> None:
        self._course = None
        self._draw(f"{printable(activity)}  {finished}/{total}", finished / max(1, total))

    def begin(self, epochs: int, course: Course) -> None:
        self._epochs, self._course = epochs, course
        self._draw("first update", course.share)

    def step(self, epoch: int, means: Mapping[str, Any], activity: str = "") -> None:
        assert self._course is not None
        self._means = means
        self._draw(f"epoch {epoch + 1}/{self._epochs} {activity}".rstrip(), self._course.share)

    def note(self, text: str, *optional: str) -> None:
        self._console.print(printable(_note_line(text, optional, self._console.width), lines=True), markup=False)

    def warn(self, text: str) -> None:
        self._console.print(printable(f"warning: {text}", lines=True), markup=False, style="yellow")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._progress.stop()


class _Beating:
    """A reporter that also tells the monitor of this process about the progress of reading."""

    def __init__(self, reporter: Reporter, beat: Callable[[str], None]) -> None:
        self._beat = beat
        self._reporter = reporter
        self.begin, self.step, self.note = reporter.begin, reporter.step, reporter.note
        self.warn, self.close = reporter.warn, reporter.close

    def loading(self, activity: str, finished: int, total: int) -> None:
        self._beat(f"{activity}, {finished} of {total}")
        self._reporter.loading(activity, finished, total)


def choose_reporter(file: IO[str] | None = None) -> Reporter:
    """The reporter that fits `file` (by default standard error)."""
    file = sys.stderr if file is None else file
    # It is None if standard error was closed before the process began.
    return TerminalReporter(file) if file is not None and file.isatty() and _moves() else PlainReporter(file)


def _moves() -> bool:
    """Whether the terminal can redraw a line. Notebook cells cannot (Jupyter sets a variable with its parent)."""
    return os.environ.get("TERM") != "dumb" and "JPY_PARENT_PID" not in os.environ


def group_reporter(group: Group) -> Reporter:
    """The reporter of a group: on rank 0, it shows the progress of all processes; on other ranks, nothing."""
    reporter = choose_reporter() if group.leads else PlainReporter(None)
    return reporter if group.size == 1 else _Beating(reporter, group.beat)
