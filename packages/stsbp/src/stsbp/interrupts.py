"""Handling of Ctrl-C. One interrupt unwinds the program and leaves no work half done. Several at once count as one.

A terminal, a shell and a batch system may each pass the signal on, so that it arrives twice within milliseconds. This
module imports nothing heavy, because it must be loaded before all other modules.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["EXIT_CODE", "INTERRUPTED", "PATIENCE", "Interrupts", "handled_by", "install"]

EXIT_CODE = 130
"""Exit code: 128 plus the number of SIGINT."""
INTERRUPTED = "Interrupted."
"""The message."""
PATIENCE = 1.0
"""Time in seconds in which further signals count as part of the first one."""


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP, if the system has them, call `handler`. Restores the previous handlers at the
    end.

    A signal that the parent process ignores stays ignored: SIGHUP under nohup, Ctrl-C in the background of a script.
    """
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


class Interrupts:
    """The handler of SIGINT outside of training. It raises `KeyboardInterrupt` once. Later signals end the process."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.over = False
        """Whether the command is done and Python is shutting down, so that no exception can be caught any more."""

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self.over:
            os._exit(EXIT_CODE)
        if self.first is None:
            self.first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self.first > PATIENCE:
            self.end()

    def close(self, code: object) -> None:
        """Called when the command is done, with an exit code. After an interrupt, further signals do not change it."""
        self.over = True
        if code == EXIT_CODE and signal.getsignal(signal.SIGINT) is self:
            # Python restores handlers while it shuts down, but an ignored signal stays ignored.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end(self) -> None:
        """End the process at once. Every file is either complete or unchanged."""
        try:
            os.write(2, f"{INTERRUPTED}\n".encode())
        finally:
            os._exit(EXIT_CODE)

    def unraisable(self, problem: Any) -> None:
        """A `sys.unraisablehook`, for an interrupt in places where Python cannot raise it, such as a destructor."""
        if issubclass(problem.exc_type, KeyboardInterrupt):
            self.end()
        sys.__unraisablehook__(problem)


def install() -> Interrupts:
    """Handle SIGINT, unless it is ignored by the parent process. Repeated calls return the existing handler."""
    found = signal.getsignal(signal.SIGINT)
    if isinstance(found, Interrupts):
        return found
    interrupts = Interrupts()
    if found is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupts)
        sys.unraisablehook = interrupts.unraisable
    return interrupts
