"""The number of threads that numerical libraries use."""

from __future__ import annotations

import os

__all__ = ["MOST_THREADS", "cores", "thread_count"]

MOST_THREADS = 1024
"""The largest number of threads that can be requested."""


def thread_count(requested: int = 0) -> int:
    """Number of threads of numerical libraries: `requested`. If that is 0, `OMP_NUM_THREADS`, or the usable cores."""
    variable = os.environ.get("OMP_NUM_THREADS", "")
    return requested or (int(variable) if variable.isdecimal() and len(variable) < 10 else 0) or cores()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
