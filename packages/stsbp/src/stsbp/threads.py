"""The number of threads that numerical libraries use."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["MOST_THREADS", "THREADS", "cores", "limit_threads", "limited_threads", "thread_count"]

MOST_THREADS = 1024
"""The largest number of threads that can be requested."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Variables with the number of threads, which numerical libraries read."""


def thread_count(requested: int = 0) -> int:
    """Number of threads of numerical libraries: `requested`. If that is 0, `OMP_NUM_THREADS`, or the usable cores."""
    variable = os.environ.get("OMP_NUM_THREADS", "")
    return requested or (int(variable) if variable.isdecimal() and len(variable) < 10 else 0) or cores()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(count: int) -> None:
    """Limit numerical libraries to `count` threads until the process ends, also those that are loaded later; 0: no
    limit. It must be called before the backend is opened."""
    if count == 0:
        return
    _limit(count)
    # numba, once loaded, refuses changes to its variable.
    variables = THREADS[:-1] if "numba" in sys.modules else THREADS
    os.environ.update(dict.fromkeys(variables, str(count)))


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Limit the libraries that are loaded to `count` threads, and restore their numbers at the end; 0: no limit."""
    if count == 0:
        yield
        return
    restore = _limit(count)
    try:
        yield
    finally:
        restore()


def _limit(count: int) -> Callable[[], None]:
    """Limit the libraries that are loaded. Returns what restores their numbers."""
    import threadpoolctl  # type: ignore[import-untyped]

    # Libraries that are loaded do not read the environment again.
    limits = threadpoolctl.threadpool_limits(count)
    numba: Any = sys.modules.get("numba")
    if numba is None:
        return lambda: limits.restore_original_limits()
    former = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))

    def restore() -> None:
        numba.set_num_threads(former)
        limits.restore_original_limits()

    return restore
