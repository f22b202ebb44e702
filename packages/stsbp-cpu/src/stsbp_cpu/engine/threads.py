"""Threads of numba's kernels."""

from __future__ import annotations

from numba import get_num_threads, set_num_threads

__all__ = ["get_num_threads", "set_num_threads", "threads_for"]

_WORTH = 32768


class threads_for:
    """A context with only as many threads as are useful for this number of elements.

    Waking a thread takes longer than thousands of additions.
    """

    __slots__ = ("_before", "_worth")

    def __init__(self, elements: int) -> None:
        self._worth = max(1, elements // _WORTH)

    def __enter__(self) -> None:
        self._before = get_num_threads()
        if self._worth < self._before:
            set_num_threads(self._worth)

    def __exit__(self, *_: object) -> None:
        if self._worth < self._before:
            set_num_threads(self._before)
