"""Sources of a stream of events: a pipe, a file of lines, a recording. A signal can end the waiting for events."""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

import numpy as np

from stsbp.cli.event_lines import Event, EventLines
from stsbp.datasets.nmnist import MAX_BYTES, read_recording
from stsbp.errors import DataError
from stsbp.files import read_regular
from stsbp.interrupts import PATIENCE

__all__ = ["EventSource", "Pipe", "RecordingSource", "Sink", "Stop"]

_CHUNK_BYTES = 4096
"""Number of bytes to read at once."""
Result = TypeVar("Result")


class Stop:
    """The handler of signals. After the first signal, current work is finished. A later second signal interrupts it.

    Attributes:
        number: number of the first signal; 0: there was none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._read_at, self._waits = -PATIENCE, False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._read_at < PATIENCE:
            return
        self._read_at = now
        repeated, self.number = self.number != 0, self.number or number
        if self._waits or repeated:
            raise KeyboardInterrupt

    def unless(self, wait: Callable[[], Result]) -> Result | None:
        """The result of `wait`, or None if a signal arrives. Giving up `wait` must not lose any data."""
        try:
            self._waits = True
            return None if self.number else wait()
        except KeyboardInterrupt:
            return None
        finally:
            self._waits = False


class Sink(Protocol):
    """The receiver of events."""

    @property
    def finished(self) -> bool:
        """Whether it accepts no more events."""

    @property
    def deadline(self) -> float | None:
        """The time of `time.perf_counter` at which `tick` must be called; None: never."""

    def accept(self, event: Event, read_at: float) -> None:
        """Accept an event that was read at the time `read_at`."""

    def tick(self, now: float) -> None:
        """Called with the current time."""

    def waited(self, since: float, until: float) -> None:
        """Report that there was nothing to do between these times."""


class EventSource(Protocol):
    """Gives events until there are no more, or the sink is done."""

    @property
    def location(self) -> str:
        """The location of the last event, for messages."""

    def feed(self, sink: Sink) -> None:
        """Pass the events to `sink`. Raises `DataError` if an event cannot be read."""


class RecordingSource:
    """A recording in the format of N-MNIST.

    Args:
        path: path of the file.

    Raises:
        DataError: the file cannot be read, or is not a recording.
    """

    def __init__(self, path: str) -> None:
        try:
            content = read_regular(Path(path), MAX_BYTES)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        x, y, p, t = read_recording(content, Path(path))
        self.times, self._path = t, path
        self._events: list[Event] = [tuple(event) for event in np.stack([t, x, y, p], axis=1).tolist()]

    @property
    def location(self) -> str:
        return self._path

    def feed(self, sink: Sink) -> None:
        started_at = time.perf_counter()
        sink.waited(started_at, started_at)
        for event in self._events:
            if sink.finished:
                return
            sink.accept(event, time.perf_counter())


class Pipe:
    """Lines from a file, a pipe or, with `-`, standard input, read as they arrive."""

    def __init__(self, path: str, event_lines: EventLines, stop: Stop) -> None:
        self._path, self._event_lines, self._stop = path, event_lines, stop

    @property
    def location(self) -> str:
        return self._event_lines.location

    def feed(self, sink: Sink) -> None:
        with self._opened() as descriptor:
            while (data := self._read_chunk(descriptor, sink)) is not None:
                read_at = time.perf_counter()
                for event in self._event_lines.events(data):
                    sink.accept(event, read_at)
                    if sink.finished:
                        return
                if sink.deadline is not None:
                    sink.tick(read_at)
        if not sink.finished:
            for event in self._event_lines.end():
                sink.accept(event, time.perf_counter())

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Descriptor of the file; None if a signal arrived before the file could be opened."""
        if self._path == "-":
            yield 0
            return
        try:
            # A named pipe can only be opened when another process writes to it.
            descriptor = self._stop.unless(lambda: os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self._path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _read_chunk(self, descriptor: int | None, sink: Sink) -> bytes | None:
        """The next data. Empty if the deadline of the sink comes first. None at the end of the file, or of the sink."""
        if descriptor is None or sink.finished:
            return None
        begin, deadline = time.perf_counter(), sink.deadline
        timeout = None if deadline is None else max(0.0, deadline - begin)
        ready = self._stop.unless(lambda: _ready(descriptor, timeout))
        sink.waited(begin, time.perf_counter())
        if not ready:
            return None if ready is None else b""
        try:
            return os.read(descriptor, _CHUNK_BYTES) or None
        except OSError as error:
            if self._path == "-" and error.errno == errno.EBADF:
                raise DataError("standard input is closed; pipe events into the command, or name a file") from error
            raise DataError(f"cannot read {self._event_lines.name}: {error.strerror or error}") from error


def _ready(descriptor: int, timeout: float | None) -> bool:
    """Wait until data can be read, or the file has ended. Returns whether this is the case."""
    if sys.platform == "win32":
        # This system cannot wait for a pipe. Reading itself then waits.
        return True
    return bool(select.select([descriptor], [], [], timeout)[0])
