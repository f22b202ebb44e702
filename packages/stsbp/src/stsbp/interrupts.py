"""What Ctrl-C does: one unwinds the program and leaves nothing half done; several at once count as one.

A terminal, a shell and a batch system may each pass the signal on, so that it comes twice within milliseconds. This
module imports nothing heavy: it is there before anything else is.
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
"""128 and the number of SIGINT."""
INTERRUPTED = "Interrupted."
"""What is said."""
PATIENCE = 1.0
"""Seconds within which further signals count as the first one."""


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP, where the system has them, call `handler`; afterwards those of before."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


class Interrupts:
    """The handler of SIGINT outside of training: raises `KeyboardInterrupt` once; later signals end the process."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.over = False
        """Whether the command is done and Python only closes: nothing catches an exception any more."""

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self.over:
            os._exit(EXIT_CODE)
        if self.first is None:
            self.first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self.first > PATIENCE:
            self.end()

    def close(self, code: object) -> None:
        """The command is done, with an exit code; after an interrupt further signals no longer change it."""
        self.over = True
        if code == EXIT_CODE and signal.getsignal(signal.SIGINT) is self:
            # Python gives handlers back while it closes; to ignore a signal stays.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end(self) -> None:
        """End the process at once; every file is either whole or as it was."""
        try:
            os.write(2, f"{INTERRUPTED}\n".encode())
        finally:
            os._exit(EXIT_CODE)

    def unraisable(self, problem: Any) -> None:
        """For `sys.unraisablehook`: an interrupt where Python cannot raise it, for example in a destructor."""
        if issubclass(problem.exc_type, KeyboardInterrupt):
            self.end()
        sys.__unraisablehook__(problem)


def install() -> Interrupts:
    """Handle SIGINT, unless whoever started the process had it ignored; again: gives the handler that is there."""
    found = signal.getsignal(signal.SIGINT)
    if isinstance(found, Interrupts):
        return found
    interrupts = Interrupts()
    if found is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupts)
        sys.unraisablehook = interrupts.unraisable
    return interrupts
