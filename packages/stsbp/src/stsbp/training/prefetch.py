"""Loads batches in a separate thread, so that loading does not delay training steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

K = TypeVar("K")
V = TypeVar("V")


def prefetched(load: Callable[[K], V], keys: Iterable[K], depth: int = 2) -> Generator[tuple[K, V]]:
    """Yield `key, load(key)` in the order of `keys`, with up to `depth` loads in advance. Errors of `load` are raised
    here.

    Close the generator to stop early. Loads that have not begun are then dropped.
    """
    pending: deque[tuple[K, Future[V]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="stsbp-load") as pool:
        try:
            for key in keys:
                pending.append((key, pool.submit(load, key)))
                if len(pending) > depth:
                    ready, future = pending.popleft()
                    yield ready, future.result()
            while pending:
                ready, future = pending.popleft()
                yield ready, future.result()
        finally:
            for _, future in pending:
                future.cancel()
