"""The device of a measurement: description of the machine, waiting for the device, copies on it, and its memory.

The type of a backend's arrays shows their library, so nothing here imports a framework that is not in use.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.memory import release_freed_memory
from stsbp_spec.typing import Float32

from stsbp.threads import cores, thread_count

__all__ = [
    "copier",
    "describe",
    "peak_memory",
    "queued",
    "reset_peak_memory",
    "synchronise",
    "threaded_copy",
    "threads_used",
]

_PACKAGES = (
    "stsbp",
    "stsbp-spec",
    "numpy",
    "torch",
    "numba",
    "triton",
    "jax",
    "jaxlib",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


def processor() -> str:
    """Model and usable cores, for example `AMD EPYC, 2 cores`."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        info_lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = (
            next(info_line for info_line in info_lines if info_line.startswith("model name")).split(":", 1)[1].strip()
        )
    return f"{name}, {cores()} cores"


def describe(backend: AbstractBackend, settings: dict[str, Any]) -> dict[str, Any]:
    """Information without which a result is worthless: backend, device, machine, versions, date, settings."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    descriptions = {device.name: device.description for device in type(backend).devices()}
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "backend": backend.name,
        "device": backend.device,
        "device_description": descriptions.get(backend.device, ""),
        "processor": processor(),
        "system": platform.platform(),
        "load_average": load,
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
    }


def synchronise(*arrays: Any) -> None:
    """Wait until the computation of `arrays` is done. For numpy arrays and CPU tensors, it already is."""
    for array in arrays:
        if hasattr(array, "block_until_ready"):  # JAX
            array.block_until_ready()
        elif getattr(array, "is_cuda", False):
            sys.modules["torch"].cuda.synchronize(array.device)
        elif type(array).__module__.partition(".")[0] == "cupy":
            array.device.synchronize()


def queued(backend: AbstractBackend) -> int:
    """Number of calls between waits for a device, so that the waiting is not timed; 1 on the CPU."""
    return 10 if backend.device.partition(":")[0] in ("cuda", "gpu", "tpu") else 1


def copier(backend: AbstractBackend, count: int) -> tuple[Callable[[], None], int]:
    """`queued` copies of `count` float32 numbers on the backend's device, and the number of bytes that one copy moves.

    On the CPU, it is numpy's copy with as many threads as cores, whatever the backend. All backends then have the same
    lower bound.
    """
    native = backend.asarray(np.zeros(count, np.float32))
    bytes_moved, repeats = 8 * count, queued(backend)
    if getattr(native, "is_cuda", False):
        target = native.clone()

        def copy_torch() -> None:
            for _ in range(repeats):
                target.copy_(native)
            synchronise(target)

        return copy_torch, bytes_moved
    if type(native).__module__.partition(".")[0] == "cupy":
        twin = native.copy()

        def copy_cupy() -> None:
            for _ in range(repeats):
                twin[...] = native
            synchronise(twin)

        return copy_cupy, bytes_moved
    if hasattr(native, "block_until_ready") and backend.device.partition(":")[0] != "cpu":
        jax = sys.modules["jax"]
        double = jax.jit(lambda x: -x)
        return lambda: synchronise(*(double(native) for _ in range(repeats))), bytes_moved
    return threaded_copy(np.ones(count, np.float32), np.zeros(count, np.float32)), bytes_moved


def threads_used() -> int:
    """Number of threads of numerical libraries: `OMP_NUM_THREADS`, which `--threads` sets, or the usable cores."""
    return min(cores(), thread_count())


def threaded_copy(source: Float32, target: Float32) -> Callable[[], None]:
    """A copy from `source` to `target`, `[n]`, in `threads_used` threads."""
    count, threads = len(source), threads_used()
    boundaries = np.linspace(0, count, threads + 1).astype(int)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="stsbp-copy")

    def part(number: int) -> None:
        chunk = slice(boundaries[number], boundaries[number + 1])
        np.copyto(target[chunk], source[chunk])

    def copy() -> None:
        list(pool.map(part, range(threads)))

    return copy


def _status(key: str) -> int | None:
    with suppress(OSError, StopIteration, ValueError):
        status_lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(
            next(status_line for status_line in status_lines if status_line.startswith(key + ":")).split()[1]
        )
    return None


def reset_peak_memory(array: Any) -> int | None:
    """Start to measure the memory of the device of `array`. Returns the memory in use, or None if it is unknown."""
    if getattr(array, "is_cuda", False):
        torch: Any = sys.modules["torch"]
        torch.cuda.reset_peak_memory_stats(array.device)
        return int(torch.cuda.memory_allocated(array.device))
    if type(array).__module__.partition(".")[0] == "cupy":
        return int(sys.modules["cupy"].get_default_memory_pool().used_bytes())
    release_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return None


def peak_memory(array: Any) -> int | None:
    """Peak memory since `reset_peak_memory`, in bytes. On the CPU, it is that of the process."""
    if getattr(array, "is_cuda", False):
        return int(sys.modules["torch"].cuda.max_memory_allocated(array.device))
    if type(array).__module__.partition(".")[0] == "cupy":
        # The pool never shrinks by itself, so its size is the peak memory.
        return int(sys.modules["cupy"].get_default_memory_pool().total_bytes())
    return _status("VmHWM")
