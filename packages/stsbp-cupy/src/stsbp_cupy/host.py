"""The device `host`: the system's C++ compiler builds the .cu files, and numpy takes the place of CuPy."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from sys import byteorder
from typing import Any, ClassVar

import numpy as np
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray

from stsbp_cupy.runtime import Array, Runtime
from stsbp_cupy.source import KERNELS, Entry, Source, built

__all__ = ["HostRuntime", "compiler"]

# No fast-math and no contraction, because every operation must be rounded. No -march, because the library must run on
# every machine that shares the cache.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared",
         "-fvisibility=hidden", "-Wno-unknown-pragmas")  # fmt: skip
MISSING = (
    "device host needs a C++ compiler, and neither $CXX nor c++, g++ or clang++ was found; install one, for example: "
    "apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)"
)


def compiler() -> str | None:
    """Path of the C++ compiler: `$CXX`, else c++, g++ or clang++. None if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def host_source(*sources: Source) -> str:
    """One translation unit with the shim, every source in its own namespace, and one C entry point for each kernel."""
    lines = ['#include "host_shim.h"', '#include "contract.cuh"']
    for source in sources:
        # Helper functions of two sources may have the same name. On the GPU, each source is a module of its own.
        lines += [f"namespace {source.name}_source {{", f'#line 1 "{source.name}.cu"', source.text]
        lines += [f"STSBP_HOST_ENTRY({entry.name})" for entry in source.entries]
        lines.append("}")
    return "\n".join(lines) + "\n"


def build(*sources: Source) -> Path:
    """The shared library of sources, which is built if necessary.

    Raises:
        BackendError: there is no compiler, it fails, or the cache cannot be written.
    """
    path = compiler()
    if path is None:
        raise BackendError(MISSING)
    source = host_source(*sources)

    def build_with(scratch: Path) -> None:
        command = [path, *FLAGS, f"-I{KERNELS}", "-x", "c++", "-", "-o", str(scratch)]
        result = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BackendError(
                f"the C++ compiler {path} cannot build the kernels, which need C++17; choose another compiler with "
                f"the environment variable CXX:\n{result.stderr.strip()[:2000]}"
            )

    name = sources[0].name if len(sources) == 1 else "kernels"
    # Machines of different kinds may share a home directory.
    made_for = (_version(path), platform.system(), platform.machine())
    return built(f"{name}-host", (*made_for, *FLAGS, source), ".so", build_with)


@cache
def _version(path: str) -> str:
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return f"{path}\n{result.stdout}"


@cache
def _library(*sources: Source) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(*sources)))


class HostRuntime(Runtime):
    """The CPU. Launches are loops, and matrix products are those of numpy.

    Raises:
        BackendError: the kernels cannot be built.
    """

    xp: Any = np
    warp_size: ClassVar[int] = 1
    reduction_threads: ClassVar[int] = 1
    element_threads: ClassVar[int] = 1
    chunk_bytes: ClassVar[int] = 32 * 2**20

    def compiled(self, *sources: Source) -> Iterator[tuple[Entry, Any]]:
        library = _library(*sources)
        for entry in (entry for source in sources for entry in source.entries):
            yield entry, getattr(library, f"host_{entry.name}")

    def start(self, function: Any, threads: int, arguments: list[Any]) -> None:
        # As in cuLaunchKernel, numbers are passed by address, and arrays by the address of their pointer.
        values = (x.ctypes.data.to_bytes(8, byteorder) if isinstance(x, np.ndarray) else x.tobytes() for x in arguments)
        slots = ctypes.create_string_buffer(b"".join(value.ljust(8) for value in values))
        first, count = ctypes.addressof(slots), len(arguments)
        pointers = (ctypes.c_void_p * count)(*range(first, first + 8 * count, 8))
        function(ctypes.c_uint(threads), ctypes.c_uint(1), pointers)

    def gemm(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> None:
        if a.dtype == np.float16:
            a, b = a.astype(np.float32), b.astype(np.float32)
        if accumulate:
            np.add(out, np.matmul(a, b), out=out)
        else:
            np.matmul(a, b, out=out)

    def numpy(self, x: Array) -> AnyArray:
        result: AnyArray = x
        return result
