"""Threads of numba's kernels."""

from __future__ import annotations

from numba import get_num_threads, set_num_threads

__all__ = ["get_num_threads", "set_num_threads", "threads_for"]

_WORTH = 32768


class threads_for:
    """As many threads as so many elements are worth: to wake one takes longer than thousands of additions."""

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
