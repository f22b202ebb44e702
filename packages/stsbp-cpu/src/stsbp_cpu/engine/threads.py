"""Threads of numba's kernels."""

from __future__ import annotations

from numba import get_num_threads, set_num_threads

__all__ = ["get_num_threads", "set_num_threads", "threads_for"]

_WORTH = 32768


class threads_for:
    """A context with only as many threads as are useful for this number of elements.

    Waking a thread takes longer than thousands of additions.
    """

    __slots__ = ("_previous", "_useful")

    def __init__(self, elements: int) -> None:
        self._useful = max(1, elements // _WORTH)

    def __enter__(self) -> None:
        self._previous = get_num_threads()
        if self._useful < self._previous:
            set_num_threads(self._useful)

    def __exit__(self, *_: object) -> None:
        if self._useful < self._previous:
            set_num_threads(self._previous)
