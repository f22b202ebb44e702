"""The device `host`: the system's C++ compiler builds the .cu files, and numpy takes the place of CuPy."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
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

from stsbp_cupy.engine.runtime import Array, Runtime
from stsbp_cupy.engine.source import KERNELS, CudaSource, KernelEntry, built

__all__ = ["HostRuntime", "compiler"]

# No fast-math and no contraction, because every operation must be rounded. No -march, because the library must run on
# every machine that shares the cache.
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared",
         "-fvisibility=hidden", "-Wno-unknown-pragmas")  # fmt: skip
MISSING = (
    "device host needs a C++ compiler, and neither c++, g++ nor clang++ was found; install one, for example: "
    "apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)"
)


def compiler() -> tuple[str, ...]:
    """Path of the C++ compiler, and its arguments: `$CXX`, else c++, g++ or clang++.

    Raises:
        BackendError: there is none.
    """
    chosen = os.environ.get("CXX", "").strip()
    try:
        words = shlex.split(chosen)
    except ValueError as error:
        raise BackendError(f"device host: the environment variable CXX is {chosen!r}: {error}; correct it") from None
    for name, *arguments in [words] if words else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(name):
            return path, *arguments
    if words:
        raise BackendError(
            f"device host: the environment variable CXX is {chosen!r}, but there is no program {words[0]!r}; set CXX "
            "to a C++ compiler, or unset it"
        )
    raise BackendError(MISSING)


def host_source(*sources: CudaSource) -> str:
    """One translation unit with the shim, every source in its own namespace, and one C entry point for each kernel."""
    lines = ['#include "host_shim.h"', '#include "contract.cuh"']
    for source in sources:
        # Helper functions of two sources may have the same name. On the GPU, each source is a module of its own.
        lines += [f"namespace {source.name}_source {{", f'#line 1 "{source.name}.cu"', source.text]
        lines += [f"STSBP_HOST_ENTRY({entry.name})" for entry in source.entries]
        lines.append("}")
    return "\n".join(lines) + "\n"


def build(*sources: CudaSource) -> Path:
    """The shared library of sources, which is built if necessary.

    Raises:
        BackendError: there is no compiler, it cannot be run, it fails, or the cache cannot be written.
    """
    chosen = compiler()
    source = host_source(*sources)

    def build_with(scratch: Path) -> None:
        result = _run([*chosen, *FLAGS, f"-I{KERNELS}", "-x", "c++", "-", "-o", str(scratch)], source)
        if result.returncode:
            raise BackendError(
                f"the C++ compiler {shlex.join(chosen)} cannot build the kernels, which need C++17; choose another "
                f"compiler with the environment variable CXX:\n{result.stderr.strip()[:2000]}"
            )

    name = sources[0].name if len(sources) == 1 else "kernels"
    # Machines of different kinds may share a home directory.
    target_machine = (_version(chosen), platform.system(), platform.machine())
    return built(f"{name}-host", (*target_machine, *FLAGS, source), ".so", build_with)


@cache
def _version(chosen: tuple[str, ...]) -> str:
    return f"{shlex.join(chosen)}\n{_run([*chosen, '--version']).stdout}"


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BackendError(
            f"device host: the C++ compiler {command[0]} cannot be run: {error.strerror}; choose another one with the "
            "environment variable CXX"
        ) from error


@cache
def _library(*sources: CudaSource) -> ctypes.CDLL:
    path = build(*sources)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"device host: the library {path}, which the C++ compiler {shlex.join(compiler())} built, cannot be "
            f"loaded: {error}; choose another compiler with the environment variable CXX"
        ) from error


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

    def compiled(self, *sources: CudaSource) -> Iterator[tuple[KernelEntry, Any]]:
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
