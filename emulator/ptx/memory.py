"""Memory of a launch: allocations with exact bounds, at addresses of their own, and what was done at them.

Pointer arguments are numpy arrays. Each gets an address range far from all others, with the low bits of its real
address, so that a pointer that leaves its array meets nothing, and alignment is as on the real machine.
"""

from __future__ import annotations

import numpy as np
from stsbp_spec.typing import AnyArray

__all__ = ["RANGE", "SHARED", "VARIABLES", "WARP", "Allocation", "Memory", "poison"]

WARP = 32
SHARED, VARIABLES, RANGE = 1 << 40, 1 << 41, 1 << 44
"""Generic addresses of shared memory and of a module's variables, and the distance between two arguments."""
_POISON = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}


class Allocation:
    """Bytes that a kernel may touch.

    Args:
        name: for messages.
        data: the bytes, uint8.
        start: address of the first byte.
        real: its address in this process, by which overlapping arrays are known; 0: none.
        fresh: whether the bytes are poisoned (`poison`), so that a load of the poison is a load of nothing.
        constant: whether a store is out of bounds.
        shadow: whether to keep which bytes were written, where every write is seen.
    """

    def __init__(
        self,
        name: str,
        data: AnyArray,
        start: int,
        real: int,
        *,
        fresh: bool = False,
        constant: bool = False,
        shadow: bool = False,
    ) -> None:
        self.name, self.data, self.start, self.real = name, data, start, real
        # Which bytes were written, where every write is seen; else uninitialised bytes are known by their poison.
        self.written = np.zeros(data.size, bool) if shadow else None
        self.size = data.size
        self.fresh = fresh
        self.constant = constant
        self._views: dict[int, AnyArray] = {}

    def view(self, size: int) -> AnyArray:
        """The bytes as unsigned integers of `size` bytes; a rest is left out."""
        if size not in self._views:
            self._views[size] = self.data[: self.size - self.size % size].view(f"u{size}")
        return self._views[size]

    def gather(self, offset: AnyArray, size: int) -> AnyArray:
        if size == 1:
            single: AnyArray = self.data[offset]
            return single
        if not np.any(offset % size):
            aligned: AnyArray = self.view(size)[offset // size]
            return aligned
        columns: AnyArray = np.ascontiguousarray(self.data[offset[:, None] + np.arange(size)])
        return columns.view(f"u{size}").reshape(-1)

    def mark(self, offset: AnyArray, size: int) -> None:
        if self.written is not None:
            for i in range(size):
                self.written[offset + i] = True

    def unwritten(self, offset: AnyArray, size: int, values: AnyArray) -> AnyArray | None:
        """Which of the values that were loaded are of bytes that nobody wrote; None: none can be."""
        if self.written is not None:
            all_written: AnyArray = np.logical_and.reduce([self.written[offset + i] for i in range(size)])
            missing: AnyArray = ~all_written
            return missing
        return _poisoned(values, size) if self.fresh else None

    def scatter(self, offset: AnyArray, values: AnyArray, size: int) -> None:
        self.mark(offset, size)
        if size == 1:
            self.data[offset] = values
        elif not np.any(offset % size):
            self.view(size)[offset // size] = values
        else:
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)
            self.data[offset[:, None] + np.arange(size)] = raw


class Memory:
    """Allocations sorted by address."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self._starts = np.zeros(0, np.uint64)

    def add(self, allocation: Allocation) -> Allocation:
        self.allocations.append(allocation)
        self.allocations.sort(key=lambda a: a.start)
        self._starts = np.array([a.start for a in self.allocations], np.uint64)
        return allocation

    def remove(self, start: int) -> None:
        self.allocations = [a for a in self.allocations if a.start != start]
        self._starts = np.array([a.start for a in self.allocations], np.uint64)

    def argument(self, name: str, array: AnyArray, *, fresh: bool = False) -> Allocation:
        """The memory of a pointer argument: exactly the array's elements."""
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous")
        real = array.ctypes.data
        data = array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, np.uint8)
        start = (len(self.allocations) + 1) * RANGE + (real & 0xFFFF) + 0x10000
        return self.add(Allocation(name, data, start, real, fresh=fresh))

    def find(self, address: np.ndarray) -> list[tuple[Allocation | None, AnyArray | None]]:
        """The allocations at or below addresses, each with which of the addresses those are (None: all)."""
        low, high = address.min(), address.max()
        first, last = (int(np.searchsorted(self._starts, x, "right")) - 1 for x in (low, high))
        if first == last:
            return [(self.allocations[first] if first >= 0 else None, None)]
        places = np.searchsorted(self._starts, address, "right") - 1
        return [(self.allocations[p] if p >= 0 else None, np.flatnonzero(places == p)) for p in np.unique(places)]


def poison(array: AnyArray) -> None:
    """Fill an uninitialised array with a pattern that a load of it is recognised by."""
    array.reshape(-1).view(np.uint8)[...] = 0xFF


def _poisoned(values: AnyArray, size: int) -> AnyArray:
    same: AnyArray = values == np.array(_POISON[size], values.dtype)
    return same
