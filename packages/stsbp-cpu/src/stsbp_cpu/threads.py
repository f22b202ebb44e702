"""Threads of numba's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from numba import get_num_threads, set_num_threads

__all__ = ["get_num_threads", "threads_for"]

_WORTH = 32768


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """As many threads as so many elements are worth: to wake one takes longer than thousands of additions."""
    threads = get_num_threads()
    set_num_threads(max(1, min(threads, elements // _WORTH)))
    try:
        yield
    finally:
        set_num_threads(threads)
