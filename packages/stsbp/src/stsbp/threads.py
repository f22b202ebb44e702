"""How many threads numerical libraries take."""

from __future__ import annotations

import os

__all__ = ["MOST_THREADS", "cores", "thread_count"]

MOST_THREADS = 1024
"""As many as may be asked for."""


def thread_count(wanted: int = 0) -> int:
    """Threads that numerical libraries take: `wanted`, or where it is 0 `OMP_NUM_THREADS`, or the usable cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return wanted or (int(asked) if asked.isdecimal() and len(asked) < 10 else 0) or cores()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
