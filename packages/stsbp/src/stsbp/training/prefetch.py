"""Load batches in a thread of their own, so that loading never holds up the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

K = TypeVar("K")
V = TypeVar("V")


def prefetched(load: Callable[[K], V], keys: Iterable[K], depth: int = 2) -> Generator[tuple[K, V]]:
    """Yield `key, load(key)` in the order of `keys`, up to `depth` loads ahead; an error of `load` is raised here.

    Close the generator to stop early; the loads not yet begun are dropped.
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
