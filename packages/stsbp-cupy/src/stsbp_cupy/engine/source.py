"""Kernels as text: the .cu files and text printed at run time, with their entry points and parameter types.

A launcher passes arrays and Python numbers. `KernelEntry.arguments` compares the arrays with the parameter types that
the text declares, and converts the numbers. Both devices use it in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.engine.kernel_cache import digest, kernel_file, kernel_folder

__all__ = ["KERNELS", "CudaSource", "KernelEntry", "built", "fingerprint", "source_files"]

KERNELS = Path(__file__).parents[1] / "kernels"
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
class KernelParameter:
    """One parameter of a kernel."""

    name: str
    dtype: np.dtype[Any]
    pointer: bool


@dataclass(frozen=True)
class KernelEntry:
    """One kernel: its name and its parameters."""

    name: str
    parameters: tuple[KernelParameter, ...]

    def arguments(self, values: tuple[Any, ...]) -> list[Any]:
        """`values` in the types of the parameters: contiguous arrays unchanged, numbers as numpy scalars.

        Raises:
            TypeError: a count, dtype or layout does not fit the kernel, which is a bug of the launcher.
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


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ text that is compiled as one module, and its name, which is that of the file without suffix."""

    name: str
    text: str

    @cached_property
    def entries(self) -> tuple[KernelEntry, ...]:
        """The kernels of this source."""
        declarations = _ENTRY.findall(self.text)
        return tuple(
            KernelEntry(name, tuple(map(_parameter, parameters.split(",")))) for name, parameters in declarations
        )


@cache
def source_files() -> tuple[CudaSource, ...]:
    """The .cu files, sorted by name."""
    return tuple(CudaSource(path.stem, path.read_text()) for path in sorted(KERNELS.glob("*.cu")))


def _parameter(text: str) -> KernelParameter:
    words = text.replace("__restrict__", " ").replace("const ", " ").split()
    pointer = "*" in text
    return KernelParameter(words[-1].strip("*"), np.dtype(_NUMBERS[" ".join(words[:-1]).rstrip("* ")]), pointer)


def fingerprint() -> str:
    """A hash of all kernel files. They include each other, and printed kernels include them."""
    files = [path for path in sorted(KERNELS.iterdir()) if path.suffix in (".cu", ".cuh", ".h")]
    return digest(*(part for path in files for part in (path.name, path.read_bytes())))


def built(name: str, parts: Sequence[str], suffix: str, build: Callable[[Path], object]) -> Path:
    """A file made from `parts` (text, compiler, flags) and the kernel files. A file that was built earlier is reused.

    Args:
        name: name for people.
        parts: everything that distinguishes the file from others of the same name.
        suffix: suffix of the file.
        build: function that builds the file at the path it is given.

    Raises:
        BackendError: the file cannot be written.
    """
    return kernel_folder("cupy", fingerprint()).built(kernel_file(name, *parts, suffix=suffix), build)
