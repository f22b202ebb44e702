"""The kernels as text: their files, their entry points and the types of their parameters.

A launcher passes arrays and Python numbers; `Entry.arguments` checks the arrays against the parameter types that the
.cu file declares and converts the numbers, the same for both devices.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from stsbp_spec.errors import BackendError

__all__ = ["KERNELS", "Entry", "cache_folder", "cached", "entries", "fingerprint", "source_files"]

KERNELS = Path(__file__).parent / "kernels"
"""The folder of the .cu files."""

_ENTRY = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')
_NUMBERS: dict[str, type[np.generic]] = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "unsigned char": np.uint8,
    "unsigned short": np.uint16,
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel."""

    name: str
    dtype: np.dtype[Any]
    pointer: bool


@dataclass(frozen=True)
class Entry:
    """One kernel: its name, the file it stands in, its parameters."""

    name: str
    file: str
    parameters: tuple[Parameter, ...]

    def arguments(self, values: tuple[Any, ...]) -> list[Any]:
        """`values` in the parameters' types: contiguous arrays as they are, numbers as numpy scalars.

        Raises:
            TypeError: a count, dtype or layout does not fit the kernel; a bug of the launcher.
        """
        if len(values) != len(self.parameters):
            raise TypeError(f"kernel {self.name} takes {len(self.parameters)} arguments, got {len(values)}")
        result = []
        for parameter, value in zip(self.parameters, values, strict=True):
            if not parameter.pointer:
                value = parameter.dtype.type(value)
            elif value.dtype != parameter.dtype or not value.flags.c_contiguous:
                raise TypeError(
                    f"kernel {self.name}: {parameter.name} must be a contiguous array of {parameter.dtype}, "
                    f"got {value.dtype} with strides {value.strides}"
                )
            result.append(value)
        return result


def source_files() -> tuple[Path, ...]:
    """The .cu files, sorted by name."""
    return tuple(sorted(KERNELS.glob("*.cu")))


@cache
def entries() -> dict[str, Entry]:
    """Every kernel by its name."""
    found: dict[str, Entry] = {}
    for path in source_files():
        for name, parameters in _ENTRY.findall(path.read_text()):
            found[name] = Entry(name, path.name, tuple(_parameter(text) for text in parameters.split(",")))
    return found


def _parameter(text: str) -> Parameter:
    words = text.replace("__restrict__", " ").replace("const ", " ").split()
    pointer = "*" in text
    return Parameter(words[-1].strip("*"), np.dtype(_NUMBERS[" ".join(words[:-1]).rstrip("* ")]), pointer)


def fingerprint(*parts: str) -> str:
    """A hash of every kernel file and of `parts` (compiler, flags), the key of a build."""
    digest = hashlib.sha256()
    for path in sorted(KERNELS.iterdir()):
        if path.suffix in (".cu", ".cuh", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()[:32]


def cache_folder() -> Path:
    """Where built kernels are kept: `$STSBP_CACHE`, else `$XDG_CACHE_HOME/stsbp`, else `~/.cache/stsbp`."""
    if own := os.environ.get("STSBP_CACHE"):
        return Path(own) / "kernels"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "stsbp" / "kernels"


@contextmanager
def cached(name: str) -> Iterator[tuple[Path, Path | None]]:
    """`(path, scratch)` of a build: `scratch` is None where `path` is whole, else a file to write, then moved there.

    The move is atomic, and a checksum beside the file tells whether a crash or a full disk damaged it: a library that
    is cut short ends the process that loads it.

    Raises:
        BackendError: the cache folder cannot be written.
    """
    path = cache_folder() / name
    if _is_whole(path):
        yield path, None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix, delete=False) as file:
            scratch = Path(file.name)
    except OSError as error:
        raise _unwritable(error) from error
    try:
        yield path, scratch
        scratch.chmod(0o644)
        checksum = _checksum(scratch)
        scratch.replace(path)
        scratch.write_text(checksum)
        scratch.chmod(0o644)
        scratch.replace(_checksum_path(path))
    except OSError as error:
        raise _unwritable(error) from error
    finally:
        scratch.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _is_whole(path: Path) -> bool:
    try:
        return _checksum_path(path).read_text() == _checksum(path)
    except OSError:
        return False


def _unwritable(error: OSError) -> BackendError:
    return BackendError(
        f"compiled kernels cannot be kept: {error}; choose another folder with the environment variable STSBP_CACHE"
    )
