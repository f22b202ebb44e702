"""How a call from Python shows its progress: as the command line does, in the cell of a notebook, or to a function."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stsbp_spec.validation import shown

from stsbp.api.calls import with_keywords
from stsbp.errors import ConfigError, printable
from stsbp.training.loop import StopRequest
from stsbp.training.progress import PlainReporter, Reporter, choose_reporter, fitted, time_text

__all__ = ["Progress", "ProgressArgument", "Stopping", "reporter_for", "warn_caller"]

_SECONDS_BETWEEN = 0.25
_WIDTH = 100


@dataclass(frozen=True)
class Progress:
    """How far a call is. The argument `progress` of `stsbp.train` may be a function that receives this.

    Attributes:
        activity: what is being done, for example `training`, `evaluating test` or `reading digits`.
        share: finished share of the training and its evaluations, 0 to 1. Before the training begins: of the activity.
        epoch, epochs: number of the epoch, from 1, and number of all epochs; None before the training begins.
        remaining: time in seconds that the training still takes; None: not yet known.
        figures: means over the epoch so far, for example `loss` and `accuracy`.
    """

    activity: str
    share: float
    epoch: int | None = None
    epochs: int | None = None
    remaining: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


ProgressArgument: TypeAlias = bool | Callable[[Progress], object]


class Stopping:
    """Lets a function that receives the progress stop the training by raising an error.

    Attributes:
        request: the request to stop of the training that is running; None: nothing can be saved yet.
        error: the error of the function.
    """

    def __init__(self) -> None:
        self.request: StopRequest | None = None
        self.error: BaseException | None = None

    def call(self, function: Callable[[Progress], object], progress: Progress) -> None:
        """Call the function. If it fails during the training, the state is saved before its error is raised."""
        if self.error is not None:
            return
        try:
            function(progress)
        except BaseException as error:
            if self.request is None:
                raise
            self.error, self.request.signal_number = error, signal.SIGINT


def _level_of_caller() -> int:
    """The `stacklevel` of a warning that leads to the program which called stsbp, not into stsbp."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "stsbp":
        level, frame = level + 1, frame.f_back
    return level


def warn_caller(text: str) -> None:
    """Warn through the module `warnings` at the line of the program that called stsbp."""
    warnings.warn(printable(with_keywords(text), lines=True), stacklevel=_level_of_caller())


class _WithKeywords:
    """Shows what another reporter shows, with keywords of Python in place of options in its messages."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.loading, self.begin, self.step, self.close = (
            reporter.loading,
            reporter.begin,
            reporter.step,
            reporter.close,
        )

    def note(self, text: str, *optional: str) -> None:
        self._reporter.note(*map(with_keywords, (text, *optional)))

    def warn(self, text: str) -> None:
        self._reporter.warn(with_keywords(text))


class _Quiet(PlainReporter):
    """Shows nothing, but warns through the module `warnings`."""

    def __init__(self) -> None:
        super().__init__(None)

    def warn(self, text: str) -> None:
        warn_caller(text)


class _Calling(_Quiet):
    """Calls a function."""

    def __init__(self, function: Callable[[Progress], object], stopping: Stopping) -> None:
        super().__init__()
        self._function, self._stopping = function, stopping

    def loading(self, activity: str, finished: int, total: int) -> None:
        self._stopping.call(self._function, Progress(activity, finished / max(1, total)))

    def step(self, epoch: int, means: Mapping[str, Any], activity: str = "") -> None:
        course = self._course
        progress = Progress(
            activity or "training", course.share, epoch + 1, self._epochs, course.remaining, dict(means)
        )
        self._stopping.call(self._function, progress)


class _Notebook(PlainReporter):
    """A line in the cell of a notebook that changes, below permanent lines."""

    def __init__(self, display: Callable[..., Any]) -> None:
        super().__init__(sys.stdout)
        self._display, self._shown_at = display, 0.0
        self._handle: Any = None

    def _draw(self, text: str, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._shown_at < _SECONDS_BETWEEN:
            return
        self._shown_at = now
        bundle = {"text/plain": printable(text)}
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def loading(self, activity: str, finished: int, total: int) -> None:
        self._draw(f"{activity}  {finished}/{total}")

    def step(self, epoch: int, means: Mapping[str, Any], activity: str = "") -> None:
        course = self._course
        bar = "#" * int(20 * course.share)
        parts = {
            "bar": f"[{bar:<20}] {course.share:.0%}",
            "epoch": f"epoch {epoch + 1}/{self._epochs} {activity}".rstrip(),
            "loss": f"loss {means['loss']:.4f}" if "loss" in means else "",
            "left": "" if course.remaining is None else f"left {time_text(course.remaining)}",
        }
        self._draw(fitted(parts, ("loss",), _WIDTH))

    def close(self) -> None:
        if self._handle is not None:
            self._draw(f"done in {time_text(self._course.elapsed)}", last=True)
            self._handle = None


def _notebook_display() -> Callable[..., Any] | None:
    """The function that displays objects in the cells of a notebook; None: this is none."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    function: Callable[..., Any] = display
    return function


def reporter_for(progress: ProgressArgument, stopping: Stopping | None = None) -> Reporter:
    """What shows the progress of a call: as the command line does, nothing (False), or a function.

    Raises:
        ConfigError: `progress` is none of these.
    """
    if callable(progress):
        return _Calling(progress, stopping or Stopping())
    if not isinstance(progress, bool):
        raise ConfigError(f"progress is True, False or a function that receives a Progress, got {shown(progress)}")
    if not progress:
        return _Quiet()
    display = _notebook_display()
    return _WithKeywords(choose_reporter() if display is None else _Notebook(display))
