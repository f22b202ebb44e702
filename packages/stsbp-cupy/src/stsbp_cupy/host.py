"""The device `host`: the .cu files built by the system's C++ compiler, numpy in CuPy's place."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray, Native

from stsbp_cupy.runtime import Runtime
from stsbp_cupy.source import KERNELS, built, entries, fingerprint, source_files

__all__ = ["HostRuntime", "compiler"]

# No fast-math and no contraction: the contract rounds after each operation. No -march: the library must run on every
# machine that shares the cache.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared",
         "-fvisibility=hidden", "-Wno-unknown-pragmas")  # fmt: skip
MISSING = (
    "device host needs a C++ compiler, and neither $CXX nor c++, g++ or clang++ was found; install one, for example: "
    "apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)"
)


def compiler() -> str | None:
    """Path of the C++ compiler: `$CXX`, else c++, g++ or clang++; None without one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def host_source() -> str:
    """One translation unit: the shim, every .cu file in its own namespace, one C entry point for each kernel."""
    lines = ['#include "host_shim.h"', '#include "contract.cuh"']
    for path in source_files():
        # Helpers of two files may share a name; on the GPU each file is a module of its own.
        lines += [f"namespace {path.stem}_file {{", f'#include "{path.name}"']
        lines += [f"STSBP_HOST_ENTRY({entry.name})" for entry in entries().values() if entry.file == path.name]
        lines.append("}")
    return "\n".join(lines) + "\n"


def build() -> Path:
    """The shared library of the kernels, built if this source was not built before.

    Raises:
        BackendError: there is no compiler, it fails, or the cache cannot be written.
    """
    path = compiler()
    if path is None:
        raise BackendError(MISSING)
    source = host_source()

    def build_with(scratch: Path) -> None:
        command = [path, *FLAGS, f"-I{KERNELS}", "-x", "c++", "-", "-o", str(scratch)]
        result = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BackendError(
                f"the C++ compiler {path} cannot build the kernels, which need C++17; choose another compiler with "
                f"the environment variable CXX:\n{result.stderr.strip()[:2000]}"
            )

    # A home may be shared by machines of several kinds.
    made_for = (_version(path), platform.system(), platform.machine())
    return built(f"host-{fingerprint(*made_for, *FLAGS, source)}.so", build_with)


def _version(path: str) -> str:
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return f"{path}\n{result.stdout}"


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build()))


class HostRuntime(Runtime):
    """The CPU; launches are loops, matrix products are numpy's.

    Raises:
        BackendError: the kernels cannot be built.
    """

    xp: Any = np
    warp_size: ClassVar[int] = 1
    reduction_threads: ClassVar[int] = 1
    chunk_bytes: ClassVar[int] = 32 * 2**20

    def __init__(self) -> None:
        self._library = _library()
        self._entries = entries()

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        values = self._entries[name].arguments(arguments)
        # Scalars pass by address, arrays as the address of their pointer: the protocol of cuLaunchKernel.
        holders = [np.array(v.ctypes.data, np.uintp) if isinstance(v, np.ndarray) else np.array(v) for v in values]
        pointers = (ctypes.c_void_p * len(holders))(*(h.ctypes.data for h in holders))
        getattr(self._library, f"host_{name}")(ctypes.c_uint(threads), ctypes.c_uint(1), pointers)

    def gemm(self, a: Native, b: Native, out: Native, *, accumulate: bool = False, alpha: float = 1.0) -> None:
        if a.dtype == np.float16:
            a, b = a.astype(np.float32), b.astype(np.float32)
        if accumulate or alpha != 1.0:
            product = np.matmul(a, b) * out.dtype.type(alpha)
            np.add(out, product, out=out) if accumulate else np.copyto(out, product)
        else:
            np.matmul(a, b, out=out)

    def numpy(self, x: Native) -> AnyArray:
        result: AnyArray = x
        return result
