"""Handling of Ctrl-C. One interrupt unwinds the program and leaves no work half done. Several at once count as one.

A terminal, a shell and a batch system may each pass the signal on, so that it arrives twice within milliseconds. Python
runs handlers only between its own instructions, and a compiler (LLVM, XLA) may not return for minutes. Therefore, a
thread watches the signals too (`Watchdog`). This module imports nothing heavy, because it must be loaded before all
other modules.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["EXIT_CODE", "GRACE", "INTERRUPTED", "PATIENCE", "WATCH", "Interrupts", "Watchdog", "handled_by", "install"]

EXIT_CODE = 130
"""Exit code: 128 plus the number of SIGINT."""
INTERRUPTED = "Interrupted."
"""The message."""
PATIENCE = 1.0
"""Time in seconds in which further signals count as part of the first one."""
GRACE = 5.0
"""Time in seconds in which the program must react to a signal that ends it. After that, it is ended."""


def _above_standard_streams(descriptor: int) -> int:
    """Move a descriptor away from the number of a standard stream, which it has if that stream is closed (`<&-`)."""
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


class Watchdog:
    """A thread that ends the process if it does not react to a signal.

    Attributes:
        needed: number of signals, each `PATIENCE` after the one before, that end the program.
    """

    def __init__(self) -> None:
        self.needed: float = 1
        self._owner = 0
        self._signal_times: list[float] = []
        self._until: float | None = None

    def start(self) -> None:
        """Begin to watch, once in each process. Called in its main thread."""
        if self._owner == os.getpid() or not hasattr(os, "register_at_fork"):
            return
        reader, writer = map(_above_standard_streams, os.pipe())
        for end in (reader, writer):
            os.set_blocking(end, False)
        former_descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        if former_descriptor != -1:
            # Another library of the process needs the signals.
            signal.set_wakeup_fd(former_descriptor)
            os.close(reader)
            os.close(writer)
            return
        if not self._owner:
            # A forked process shares the pipe, but its signals are its own.
            os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1) and None)
        self._owner, self._signal_times, self._until = os.getpid(), [], None
        threading.Thread(target=self._run, args=(reader,), name="stsbp-signals", daemon=True).start()

    def stop(self) -> None:
        """Never end the process, because it ends already."""
        self.needed, self._until = float("inf"), None

    def _run(self, reader: int) -> None:
        number = signal.SIGINT
        while True:
            until = self._until
            timeout = None if until is None else max(0.0, until - time.monotonic())
            if select.select([reader], [], [], timeout)[0]:
                for signal_byte in os.read(reader, 64):
                    number = self._count_signal(signal_byte) or number
            elif self._until is not None:
                _end(128 + number)

    def _count_signal(self, number: int) -> signal.Signals | None:
        now = time.monotonic()
        if number not in _numbers() or (self._signal_times and now - self._signal_times[-1] < PATIENCE):
            return None
        self._signal_times.append(now)
        if len(self._signal_times) >= self.needed and self._until is None:
            self._until = now + GRACE
        return signal.Signals(number)


WATCH = Watchdog()
"""The watch of this process."""


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _end(code: int) -> None:
    """End the process at once. Every file is either complete or unchanged."""
    try:
        os.write(2, f"{INTERRUPTED}\n".encode())
    finally:
        os._exit(code)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """Let signals call `handler`: `numbers`, or Ctrl-C, SIGTERM and SIGHUP, if the system has them. Restores the
    previous handlers at the end. Only the main thread of Python can handle signals. In others, this does nothing.

    A signal that the parent process ignores stays ignored: SIGHUP under nohup, Ctrl-C in the background of a script.
    The handler may finish its work after the first signal. After the second one, the process must end (`WATCH`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # The handler of a program that embeds Python is None, and could not be restored.
    kept_handlers = (signal.SIG_IGN, None)
    handled_numbers = [number for number in numbers or _numbers() if signal.getsignal(number) not in kept_handlers]
    needed, WATCH.needed = WATCH.needed, 2
    former_handlers = {number: signal.signal(number, handler) for number in handled_numbers}
    try:
        yield
    finally:
        WATCH.needed = needed
        for number, former_handler in former_handlers.items():
            signal.signal(number, former_handler)


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
        WATCH.stop()
        if code == EXIT_CODE and signal.getsignal(signal.SIGINT) is self:
            # Python restores handlers while it shuts down, but an ignored signal stays ignored.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end(self) -> None:
        """End the process at once."""
        _end(EXIT_CODE)

    def unraisable(self, problem: Any) -> None:
        """A `sys.unraisablehook`, for an interrupt in places where Python cannot raise it, such as a destructor."""
        if issubclass(problem.exc_type, KeyboardInterrupt):
            self.end()
        sys.__unraisablehook__(problem)


def install() -> Interrupts:
    """Handle SIGINT, unless it is ignored by the parent process. Repeated calls return the existing handler."""
    current_handler = signal.getsignal(signal.SIGINT)
    if isinstance(current_handler, Interrupts):
        return current_handler
    interrupts = Interrupts()
    try:
        if current_handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupts)
            sys.unraisablehook = interrupts.unraisable
        WATCH.needed = 1
        WATCH.start()
    except KeyboardInterrupt:
        # Callers can only catch interrupts once they have the handler.
        interrupts.end()
    return interrupts
