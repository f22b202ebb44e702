"""A separate process that reads a file of SHD or SSC.

hdf5_process.py runs this file as a script, with the HDF5 file as standard input. It writes a line of JSON and the bytes
of the labels; then, for some recordings at a time, a line of JSON and the bytes of their lists. It imports only h5py
and numpy. If it refuses a file, the first line contains the reason.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

TIMES, UNITS, LABELS, KEYS, SPEAKERS = "spikes/times", "spikes/units", "labels", "extra/keys", "extra/speaker"
COPIES = 4
"""How often an array that is read whole, or a list, is in memory."""
MAX_LISTS = 256
"""Largest number of recordings that are handed over at a time."""
_BYTES = 1 << 20
"""Size of the lists in bytes from which they are handed over."""
_LONGEST_TEXT = 400
"""Largest length of a message in characters."""


class SpokenFileRefused(Exception):
    """The reason why a file is not read, in words that follow the name of the file."""


class SpokenFileTooLarge(Exception):
    """Reading takes more memory than is allowed.

    Args:
        what: the name of a dataset and its number of entries.
        needed: memory that reading it takes, in bytes.
    """

    def __init__(self, array_name: str, needed: int) -> None:
        super().__init__(array_name, needed)
        self.what, self.needed = array_name, needed


def main(max_memory: int) -> None:
    """Read the file on standard input, and write its contents.

    Args:
        max_memory: memory that reading a dataset may take, in bytes.
    """
    import h5py
    import numpy as np

    output = sys.stdout.buffer
    try:
        with _named("it is not a readable HDF5 file"):
            file = h5py.File(sys.stdin.buffer, "r")
        with file:
            reader = _SpokenReader(h5py, np, file)
            header, labels = reader.header(max_memory)
            _write(output, header, [labels])
            for batch, lists in reader.recordings():
                _write(output, batch, lists)
    except SpokenFileRefused as error:
        _write(output, {"refused": str(error)[:_LONGEST_TEXT]}, [])
    except SpokenFileTooLarge as error:
        _write(output, {"what": error.what, "needed": error.needed}, [])


def _write(output: BinaryIO, header: dict[str, Any], arrays: list[Any]) -> None:
    output.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        output.write(array.tobytes())
    output.flush()


@contextlib.contextmanager
def _named(array_name: str) -> Iterator[None]:
    """Let errors of HDF5 say what could not be read. For damaged files, HDF5 raises almost any error."""
    try:
        yield
    except (SpokenFileRefused, SpokenFileTooLarge):
        raise
    except Exception as error:
        raise SpokenFileRefused(f"{array_name}: {str(error) or type(error).__name__}"[:_LONGEST_TEXT]) from error


class _SpokenReader:
    """The contents of a file as JSON values and arrays."""

    def __init__(self, h5py: Any, np: Any, file: Any) -> None:
        self.h5py, self.np, self.file = h5py, np, file

    def header(self, max_memory: int) -> tuple[dict[str, Any], Any]:
        """What the file declares, and its labels. All that is read whole is read here."""
        datasets = {name: self.dataset(name) for name in (TIMES, UNITS, LABELS, KEYS, SPEAKERS)}
        for name, dataset in datasets.items():
            with _named(f"{name} cannot be read"):
                # Each name of a class, and each list, becomes a Python object.
                entry_bytes = 64 if dataset.dtype.hasobject or name == KEYS else 1
                needed = COPIES * int(dataset.size) * max(int(dataset.dtype.itemsize), entry_bytes)
                if needed > max_memory:
                    raise SpokenFileTooLarge(f"{name} of {dataset.size:,} entries", needed)
        count = len(datasets[TIMES])
        if len(datasets[UNITS]) != count or len(datasets[LABELS]) != count or not count:
            counts = ", ".join(f"{name} {len(datasets[name])}" for name in (TIMES, UNITS, LABELS))
            raise SpokenFileRefused(f"these must have an entry for each recording, but they have: {counts}")
        element_types = {}
        for name in (TIMES, UNITS):
            element_type = self.h5py.check_vlen_dtype(datasets[name].dtype)
            if element_type is None or not self.is_number(self.np.dtype(element_type)):
                raise SpokenFileRefused(f"{name} must be lists of numbers, got {datasets[name].dtype}")
            if not self.np.dtype(element_type).isnative:
                # h5py hands over the bytes of such lists as they are, but calls them native.
                raise SpokenFileRefused(
                    f"{name} must be stored in the byte order of this processor, got lists of {element_type}"
                )
            element_types[name] = self.np.dtype(element_type).newbyteorder("<")
        self.datasets, self.element_types = datasets, element_types
        arrays = {}
        for name in (LABELS, KEYS, SPEAKERS):
            with _named(f"{name} cannot be read"):
                arrays[name] = self.np.asarray(datasets[name][()])
        labels = arrays[LABELS]
        if not self.is_number(labels.dtype):
            raise SpokenFileRefused(f"{LABELS} must be integers, got {labels.dtype}")
        labels = labels.astype(labels.dtype.newbyteorder("<"))
        types = {"labels": labels.dtype, "times": element_types[TIMES], "units": element_types[UNITS]}
        shown = {name: dtype.str.replace("|", "<") for name, dtype in types.items()}
        return {**shown, "count": count, "classes": len(datasets[KEYS])}, labels

    @staticmethod
    def is_number(dtype: Any) -> bool:
        """Whether it is a type of integers or floating-point numbers of at most 8 bytes."""
        return dtype.kind in "iuf" and dtype.itemsize <= 8

    def dataset(self, name: str) -> Any:
        """A dataset of one dimension that lies in this file."""
        member: Any = self.file
        for part in name.split("/"):
            with _named(f"{name} cannot be read"):
                link = member.get(part, getlink=True) if isinstance(member, self.h5py.Group) else None
                if link is None:
                    raise SpokenFileRefused(f"there is no dataset {name}")
                if not isinstance(link, self.h5py.HardLink):
                    raise SpokenFileRefused(f"{name} is a link; copy the data themselves into the file")
                member = member[part]
        with _named(f"{name} cannot be read"):
            if not isinstance(member, self.h5py.Dataset) or member.shape is None or len(member.shape) != 1:
                actual = f"of shape {list(member.shape or ())}" if isinstance(member, self.h5py.Dataset) else "a group"
                raise SpokenFileRefused(
                    f"{name} must be a list, one entry for each recording or class, but it is {actual}"
                )
            if member.external is not None or member.is_virtual:
                raise SpokenFileRefused(
                    f"{name} lies in another file, whose changes would not be noticed; copy the data into this file"
                )
        return member

    def recordings(self) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """All recordings in order, some at a time: how long their lists are, and the lists."""
        entries: list[dict[str, Any]] = []
        lists: list[Any] = []
        for k in range(len(self.datasets[TIMES])):
            try:
                recording_lists = [self.list_of(name, k) for name in (TIMES, UNITS)]
            except SpokenFileRefused as error:
                entries.append({"error": str(error)})
            else:
                lists += recording_lists
                entries.append(dict(zip(("times", "units"), map(len, recording_lists), strict=True)))
            if len(entries) == MAX_LISTS or sum(x.nbytes for x in lists) > _BYTES:
                yield {"lists": entries}, lists
                entries, lists = [], []
        if entries:
            yield {"lists": entries}, lists

    def list_of(self, name: str, k: int) -> Any:
        """The list of a recording."""
        with _named(f"{name}, recording {k} cannot be read"):
            return self.np.asarray(self.datasets[name][k]).reshape(-1).astype(self.element_types[name], copy=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
