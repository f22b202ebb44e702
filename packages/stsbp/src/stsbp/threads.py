"""The number of threads that numerical libraries use."""

from __future__ import annotations

import os

__all__ = ["MOST_THREADS", "cores", "thread_count"]

MOST_THREADS = 1024
"""The largest number of threads that can be requested."""


def thread_count(wanted: int = 0) -> int:
    """Number of threads of numerical libraries: `wanted`. If that is 0, `OMP_NUM_THREADS`, or the usable cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return wanted or (int(asked) if asked.isdecimal() and len(asked) < 10 else 0) or cores()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
