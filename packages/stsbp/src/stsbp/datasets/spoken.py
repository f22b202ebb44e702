"""The HDF5 files of SHD and SSC, read in a separate process with checks of every value.

`spikes/times` (seconds) and `spikes/units` hold a list for each recording, `labels` its class, `extra/keys` the names
of the classes and `extra/speaker` the speakers. HDF5 may only declare an array that was never written, follow links and
read other files. Data that lie elsewhere would change unseen, so everything must be in the file itself. For a damaged
file, HDF5 may crash or never return, so a separate process reads it (spoken_child.py), also before tonic opens it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self, TypeAlias, TypeVar

import numpy as np
from pydantic import Field
from stsbp_spec.typing import AnyArray, Int64

from stsbp import budget, records
from stsbp.datasets import spoken_child
from stsbp.datasets.spoken_child import COPIES, KEYS, LABELS, TIMES, UNITS
from stsbp.errors import DataError
from stsbp.files import MEGABYTE, open_regular
from stsbp.hdf5_process import SECONDS, Hdf5Process

__all__ = ["Lists", "SpokenFile"]

_LARGEST = 2**62
_LONGEST_US = 2**40
"""Latest time of a spike in microseconds, as in `stsbp_spec.models.encoders.events`."""
_LONGEST_LINE = MEGABYTE
"""Largest size of a line that the other process writes, in bytes."""

_Type = Annotated[str, Field(pattern="^<[iuf][1248]$")]
_Count = Annotated[int, Field(ge=0, lt=2**40)]


class _Header(records.Record):
    labels: _Type
    times: _Type
    units: _Type
    count: Annotated[int, Field(ge=1, lt=2**40)]
    classes: _Count


class _SpikeListRecord(records.Record):
    error: str | None = None
    times: _Count = 0
    units: _Count = 0


class _SpikeListsRecord(records.Record):
    lists: Annotated[list[_SpikeListRecord], Field(min_length=1, max_length=spoken_child.MAX_LISTS)]


class _TooLargeRecord(records.Record):
    what: str
    needed: int


R = TypeVar("R", bound=records.Record)
Lists: TypeAlias = tuple[AnyArray, AnyArray]
"""The lists of times and units of a recording."""


class SpokenFile:
    """An open file, whose recordings are read in order. As a context manager, it is closed at the end.

    Args:
        path: the file.

    Attributes:
        labels: class of every recording, `[n]`.

    Raises:
        DataError: the file is none of SHD or SSC, has data in other files, declares more than the budget, or cannot be
            read in time. The message names the file and the dataset.
        OSError: it is not a regular file, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Read through the open file, because the path may become another file meanwhile.
        with open_regular(path, _LARGEST) as content:
            self._size = os.fstat(content.fileno()).st_size
            max_memory = budget.memory(self._size)
            self._process = Hdf5Process(
                content, spoken_child.__file__, str(max_memory), memory=max_memory, seconds=SECONDS
            )
        self._pending_lists: deque[Lists | DataError] = deque()
        try:
            self._header, (labels,) = self._answer(_Header, lambda header: [(header.labels, header.count)])
            self.labels = self._integers(labels, LABELS, "recording", 2**31)
        except BaseException:
            self._process.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def __len__(self) -> int:
        return len(self.labels)

    def _answer(self, record_type: type[R], arrays: Callable[[R], list[tuple[str, int]]]) -> tuple[R, list[AnyArray]]:
        """A record that the other process writes, and the arrays of these types and lengths that follow it."""
        try:
            with self._process.answer() as output:
                header_line = output.readline(_LONGEST_LINE)
                answer = records.parse(header_line) if header_line.endswith(b"\n") else None
                if isinstance(answer, dict) and isinstance(answer.get("refused"), str):
                    raise DataError(f"{self.path}: {answer['refused']}")
                if isinstance(answer, dict) and "needed" in answer:
                    too_large = records.read(_TooLargeRecord, answer)
                    budget.check_memory(too_large.needed, self._size, f"{self.path}: {too_large.what}")
                record, data = records.read(record_type, answer), []
                for dtype, count in arrays(record):
                    size = count * np.dtype(dtype).itemsize
                    budget.check_memory(COPIES * size, self._size, f"{self.path}: a list of {count:,} entries")
                    data.append(np.frombuffer(output.read(size), dtype, count))
        except ValueError as error:
            raise DataError(f"{self.path} cannot be read: {self._process.failure()}") from error
        return record, data

    def next_lists(self) -> Lists | DataError:
        """Times and units of the next recording as they are in the file, or the reason why they cannot be read.

        Raises:
            DataError: no further recording can be read.
        """
        if not self._pending_lists:
            types = self._header.times, self._header.units
            batch, lists = self._answer(
                _SpikeListsRecord,
                lambda batch: [
                    pair
                    for entry in batch.lists
                    if entry.error is None
                    for pair in zip(types, (entry.times, entry.units), strict=True)
                ],
            )
            pairs = zip(lists[::2], lists[1::2], strict=True)
            self._pending_lists.extend(
                next(pairs) if entry.error is None else DataError(f"{self.path}: {entry.error}")
                for entry in batch.lists
            )
        return self._pending_lists.popleft()

    def _integers(self, numbers: AnyArray, name: str, column: str, largest: int) -> Int64:
        """Numbers of any type as integers, each from 0 to `largest`."""
        if numbers.dtype.kind == "f":
            # float16 ends below `largest`.
            numbers = numbers.astype(np.float64)
        invalid = np.flatnonzero(~((numbers >= 0) & (numbers <= largest) & (numbers == np.floor(numbers))))
        if invalid.size:
            k = int(invalid[0])
            raise DataError(f"{self.path}: {name}, {column} {k}: {numbers[k]} is no whole number from 0 to {largest}")
        return numbers.astype(np.int64)

    def recording(self, index: int, lists: Lists | DataError, units: int) -> tuple[list[AnyArray], int]:
        """Columns x, y, p and t (microseconds) of a recording, and the number of its class.

        Args:
            index: its number.
            lists: its times and units, from `next_lists`.
            units: number of neurons.

        Raises:
            DataError: a value is none of a recording. The message names the file, the dataset, the recording and the
                spike.
        """
        if isinstance(lists, DataError):
            raise lists
        times, neurons = lists
        if times.shape != neurons.shape:
            raise DataError(
                f"{self.path}: recording {index} has {times.size} entries in {TIMES}, but {neurons.size} in {UNITS}"
            )
        x = self._integers(neurons, f"{UNITS}, recording {index}", "spike", units - 1)
        seconds = times.astype(np.float64)
        invalid = np.flatnonzero(~((seconds >= 0) & (seconds <= _LONGEST_US / 1e6)))
        if invalid.size:
            k = int(invalid[0])
            raise DataError(
                f"{self.path}: {TIMES}, recording {index}, spike {k}: {times[k]} is no time from 0 to "
                f"{_LONGEST_US / 1e6:,.0f} seconds"
            )
        if (label := int(self.labels[index])) >= self._header.classes:
            raise DataError(
                f"{self.path}: {LABELS}, recording {index}: {label} is none of the {self._header.classes} classes in "
                f"{KEYS}"
            )
        zeros = np.zeros_like(x)
        return [x, zeros, zeros, (seconds * 1e6).astype(np.int64)], label
