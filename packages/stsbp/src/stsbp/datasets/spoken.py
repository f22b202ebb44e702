"""The HDF5 files of SHD and SSC: checked before the library tonic opens them, and read with checks of every value.

`spikes/times` (seconds) and `spikes/units` hold a list for each recording, `labels` its class, `extra/keys` the names
of the classes and `extra/speaker` the speakers. HDF5 may only declare an array that was never written, follow links and
read other files. Data that lie elsewhere would change unseen, so everything must be in the file itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.typing import AnyArray, Int64

from stsbp import budget
from stsbp.errors import DataError
from stsbp.files import MEGABYTE, open_regular

__all__ = ["SpokenFile"]

_TIMES, _UNITS, _LABELS, _KEYS, _SPEAKERS = "spikes/times", "spikes/units", "labels", "extra/keys", "extra/speaker"
_LARGEST = 2**62
_LONGEST_US = 2**40
"""Latest time of a spike in microseconds, as in `stsbp_spec.encoders.events`."""
_COPIES = 4
"""How often an array that is read whole, or a list, is in memory."""
_SLACK = 64 * MEGABYTE
"""Additional memory that reading a list may take, for the memory that HDF5 and the system manage in blocks."""


class SpokenFile:
    """An open file. As a context manager, it is closed at the end.

    Attributes:
        labels: class of every recording, `[n]`.

    Raises:
        DataError: the file is none of SHD or SSC, has data in other files, or declares more than the budget. The
            message names the file and the dataset.
        OSError: it is not a regular file, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self._content = open_regular(path, _LARGEST)
        try:
            try:
                # Read through the open file, because the path may become another file meanwhile.
                self._file = h5py.File(self._content, "r")
            except Exception as error:
                raise DataError(f"{path} is not a readable HDF5 file: {error}") from error
            try:
                self._size = os.fstat(self._content.fileno()).st_size
                self._check(self._size)
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._content.close()
            raise

    def __enter__(self) -> SpokenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._content.close()

    def __len__(self) -> int:
        return len(self.labels)

    def _dataset(self, name: str) -> Any:
        """A dataset of one dimension that lies in this file."""
        import h5py

        found: Any = self._file
        for part in name.split("/"):
            try:
                link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
                if link is not None and not isinstance(link, h5py.HardLink):
                    raise DataError(f"{self.path}: {name} is a link; copy the data themselves into the file")
                found = None if link is None else found[part]
            except (OSError, KeyError, RuntimeError, ValueError) as error:
                raise DataError(f"{self.path}: {name} cannot be read: {error}") from error
            if found is None:
                raise DataError(f"{self.path}: there is no dataset {name}")
        if not isinstance(found, h5py.Dataset) or found.shape is None or len(found.shape) != 1:
            kind = f"of shape {list(found.shape or ())}" if isinstance(found, h5py.Dataset) else "a group"
            raise DataError(
                f"{self.path}: {name} must be a list, one entry for each recording or class, but it is {kind}"
            )
        if found.external is not None or found.is_virtual:
            raise DataError(
                f"{self.path}: {name} lies in another file, whose changes would not be noticed; copy the data into "
                "this file"
            )
        return found

    def _check(self, size: int) -> None:
        """Check what the file declares, before anything is read."""
        import h5py

        sets = {name: self._dataset(name) for name in (_TIMES, _UNITS, _LABELS, _KEYS, _SPEAKERS)}
        for name, found in sets.items():
            # Each name of a class, and each list, becomes a Python object.
            least = 64 if found.dtype.hasobject or name == _KEYS else 1
            needed = _COPIES * int(found.size) * max(int(found.dtype.itemsize), least)
            budget.check_memory(needed, size, f"{self.path}: {name} of {found.size:,} entries")
        count = len(sets[_TIMES])
        if len(sets[_UNITS]) != count or len(sets[_LABELS]) != count or not count:
            counts = ", ".join(f"{name} {len(sets[name])}" for name in (_TIMES, _UNITS, _LABELS))
            raise DataError(f"{self.path}: these must have an entry for each recording, but they have: {counts}")
        for name in (_TIMES, _UNITS):
            kind = h5py.check_vlen_dtype(sets[name].dtype)
            if kind is None or np.dtype(kind).kind not in "iuf":
                raise DataError(f"{self.path}: {name} must be lists of numbers, got {sets[name].dtype}")
        self._times, self._units = sets[_TIMES], sets[_UNITS]
        labels = self._read(sets[_LABELS], _LABELS)
        if labels.dtype.kind not in "iuf":
            raise DataError(f"{self.path}: {_LABELS} must be integers, got {labels.dtype}")
        self.labels, self._classes = self._whole(labels, _LABELS, "recording", 2**31), len(sets[_KEYS])

    def _read(self, dataset: Any, name: str, index: Any = ()) -> AnyArray:
        at = "" if index == () else f", recording {index}"
        try:
            # HDF5 allocates the length of a list that the file states before it compares it with the list.
            with contextlib.nullcontext() if index == () else budget.limited(_COPIES * self._size + _SLACK):
                found: AnyArray = np.asarray(dataset[index])
        except Exception as error:
            # For damaged files, HDF5 raises almost any error.
            raise DataError(f"{self.path}: {name}{at} cannot be read: {error}") from error
        return found

    def _whole(self, numbers: AnyArray, name: str, what: str, most: int) -> Int64:
        """Numbers of any type as integers, each from 0 to `most`."""
        bad = np.flatnonzero(~((numbers >= 0) & (numbers <= most) & (numbers == np.floor(numbers))))
        if bad.size:
            k = int(bad[0])
            raise DataError(f"{self.path}: {name}, {what} {k}: {numbers[k]} is no whole number from 0 to {most}")
        return numbers.astype(np.int64)

    def recording(self, index: int, units: int) -> tuple[list[AnyArray], int]:
        """Columns x, y, p and t (microseconds) of a recording of this many `units`, and the number of its class.

        Raises:
            DataError: a value is none of a recording. The message names the file, the dataset, the recording and the
                spike.
        """
        # An h5py dataset numbers its entries with Python's integers.
        times, neurons = (self._read(x, name, index) for x, name in ((self._times, _TIMES), (self._units, _UNITS)))
        if times.ndim != 1 or times.shape != neurons.shape:
            raise DataError(
                f"{self.path}: recording {index} has {times.size} entries in {_TIMES}, but {neurons.size} in {_UNITS}"
            )
        x = self._whole(neurons, f"{_UNITS}, recording {index}", "spike", units - 1)
        seconds = times.astype(np.float64)
        bad = np.flatnonzero(~((seconds >= 0) & (seconds <= _LONGEST_US / 1e6)))
        if bad.size:
            k = int(bad[0])
            raise DataError(
                f"{self.path}: {_TIMES}, recording {index}, spike {k}: {times[k]} is no time from 0 to "
                f"{_LONGEST_US / 1e6:,.0f} seconds"
            )
        if (label := int(self.labels[index])) >= self._classes:
            raise DataError(
                f"{self.path}: {_LABELS}, recording {index}: {label} is none of the {self._classes} classes in {_KEYS}"
            )
        zeros = np.zeros_like(x)
        return [x, zeros, zeros, (seconds * 1e6).astype(np.int64)], label
