"""The budget for what a file may become in memory and on disk. It is checked before anything is allocated or written.

A small file can ask for much: compression packs zeros a thousandfold, HDF5 only declares the size of an array that was
never written, and a few events on a large sensor become large frames. What reading needs in memory may therefore be at
most the budget, or `TIMES_MEMORY` times the size of the file (or of all files of the data set) if that is more. The
cache of decoded samples may be as large as the budget, or `TIMES_DISK` times the size of the files.

The environment variable `STSBP_FILE_BUDGET`, which `stsbp --file-budget` sets, changes the budget. All processes of a
command inherit it.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from stsbp.errors import ConfigError, DataError
from stsbp.files import GIGABYTE

__all__ = [
    "DEFAULT",
    "TIMES_DISK",
    "TIMES_MEMORY",
    "VARIABLE",
    "check_disk",
    "check_memory",
    "disk",
    "memory",
]

VARIABLE = "STSBP_FILE_BUDGET"
"""Environment variable with the budget in GiB."""
DEFAULT = 1.0
"""Budget in GiB, unless the variable is set."""
TIMES_MEMORY = 64
"""Memory that reading may take, relative to the size of the files. It matters for files above 16 MiB."""
TIMES_DISK = 1024
"""Size that the cache may have, relative to the size of the files. It matters for files above 1 MiB."""


def _budget() -> int:
    """The budget in bytes."""
    text = os.environ.get(VARIABLE) or str(DEFAULT)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 2**20:
        raise ConfigError(
            f"the environment variable {VARIABLE} must be a number of GiB above 0 and at most {2**20:,}, got "
            f"{text[:40]!r}; correct or unset it"
        )
    return int(number * GIGABYTE)


def memory(size: int) -> int:
    """Number of bytes that reading may need in memory, for files of `size` bytes together."""
    return max(_budget(), TIMES_MEMORY * size)


def disk(size: int) -> int:
    """Largest size in bytes of the cache of decoded samples, for files of `size` bytes together."""
    return max(_budget(), TIMES_DISK * size)


def check_memory(needed: int, size: int, label: object) -> None:
    """Check the memory that reading needs.

    Args:
        needed: number of bytes that will be allocated at most.
        size: size of the file, or of all files of the data set, in bytes.
        label: name of the file or of its part, for the message.

    Raises:
        DataError: it is more than the budget.
    """
    if needed > (max_bytes := memory(size)):
        raise DataError(f"{label}: reading it takes {_shown(needed)} of memory, {_too_much(max_bytes, size)}")


def check_disk(needed: int, size: int, label: object, folder: Path) -> None:
    """Check the size of a cache file before it is written.

    Args:
        needed: size of the cache file in bytes.
        size: size of all files of the data set in bytes.
        label: name of the data, for the message.
        folder: the folder of the cache.

    Raises:
        DataError: it is more than the budget, or the disk has less free space.
    """
    if needed > (max_bytes := disk(size)):
        raise DataError(f"{label}: its decoded samples take {_shown(needed)} on disk, {_too_much(max_bytes, size)}")
    existing_folder = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), None)
    try:
        free = needed if existing_folder is None else shutil.disk_usage(existing_folder).free
    except OSError:
        return
    if needed > free:
        raise DataError(
            f"{label}: its decoded samples take {_shown(needed)}, but the disk of {folder} has only {_shown(free)} "
            "left; choose another folder with the environment variable STSBP_CACHE"
        )


def _too_much(max_bytes: int, size: int) -> str:
    return (
        f"more than the {_shown(max_bytes)} allowed for {size:,} bytes of files. If you trust the data, give a larger "
        "budget in GiB: stsbp --file-budget GIB COMMAND"
    )


def _shown(size: int) -> str:
    """A number of bytes in words."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size >= 2**power:
            return f"{size / 2**power:.3g} {unit}" if size < 1000 * 2**power else f"{size // 2**power:,} {unit}"
    return f"{size:,} bytes"
