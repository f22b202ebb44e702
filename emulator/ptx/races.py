"""Accesses of a launch, and those of two threads to one byte that nothing orders, one of which writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from stsbp_spec.typing import AnyArray

from emulator.ptx.parse import Instruction

__all__ = ["Conflict", "Log"]

_KINDS = {"load": 0, "store": 1, "atomic": 2}


class _Access(NamedTuple):
    """One instruction of some threads. `epoch` is the number of barriers that the block of each had passed."""

    kind: int
    instruction: Instruction
    address: AnyArray
    size: int
    thread: AnyArray
    block_size: int
    epoch: AnyArray
    read_only: bool

    def cells(self, unit: int) -> AnyArray:
        """Numbers of the cells of `unit` bytes that are accessed."""
        first, count = self.address // unit, self.size // unit
        return (first[:, None] + np.arange(count)).ravel() if count > 1 else first


@dataclass(frozen=True)
class Conflict:
    """Instructions in conflict, and the number of cells that they share."""

    kind: str
    location: str
    text: str
    detail: str
    count: int


class Log:
    """Every access to global and shared memory, up to a number of accesses; `full`: there were more."""

    def __init__(self, most: int) -> None:
        self._rest, self.full = most, False
        self._accesses: list[_Access] = []

    def add(
        self,
        kind: str,
        instruction: Instruction,
        base: int | AnyArray,
        offset: AnyArray,
        size: int,
        thread: AnyArray,
        block_size: int,
        epoch: AnyArray,
        read_only: bool,
    ) -> None:
        """Note an access of `size` bytes by each of some threads; `read_only`: through the cache for constant data."""
        self._rest -= len(offset)
        if self._rest < 0:
            self.full = True
            return
        address = np.asarray(offset + base)
        self._accesses.append(_Access(_KINDS[kind], instruction, address, size, thread, block_size, epoch, read_only))

    def conflicts(self) -> Iterator[Conflict]:
        """Conflicts of each kind."""
        writes = [x for x in self._accesses if x.kind]
        if not writes:
            return
        unit = self._unit(min(int(x.address.min()) for x in writes))
        touched = np.unique(np.concatenate([x.cells(unit) for x in writes]))
        columns: list[tuple[AnyArray, ...]] = []
        for number, x in enumerate(self._accesses):
            cells = x.cells(unit)
            place = np.minimum(np.searchsorted(touched, cells), len(touched) - 1)
            shared = touched[place] == cells
            count, times = int(shared.sum()), x.size // unit
            if count:
                numbers = (x.kind, number, x.read_only)
                values = (np.repeat(y, times)[shared] for y in (x.thread, x.thread // x.block_size, x.epoch))
                columns.append((cells[shared], *values, *(np.full(count, y) for y in numbers)))
        cell, thread, block, epoch, kind, number_of, read_only = map(np.concatenate, zip(*columns, strict=True))
        order = np.lexsort((epoch, block, cell))
        cell, thread, block, epoch, kind, number_of, read_only = (
            x[order] for x in (cell, thread, block, epoch, kind, number_of, read_only)
        )

        def conflict(label: str, starts: AnyArray, bad: AnyArray, detail: str = "") -> Conflict:
            ends = np.r_[starts[1:], len(cell)]
            part = slice(int(starts[bad][0]), int(ends[bad][0]))
            names = sorted({(x.location, x.text) for x in (self._accesses[w].instruction for w in number_of[part])})
            detail = detail or f"threads {sorted(set(thread[part].tolist()))[:4]}"
            return Conflict(label, names[0][0], " / ".join(text for _, text in names)[:300], detail, int(bad.sum()))

        # In one block between two barriers, and, of one cell, anywhere between blocks.
        new_cell = np.r_[True, cell[1:] != cell[:-1]]
        new_epoch = new_cell | np.r_[True, (block[1:] != block[:-1]) | (epoch[1:] != epoch[:-1])]
        for label, new, who in (("race", new_epoch, thread), ("race between blocks", new_cell, block)):
            starts = np.flatnonzero(new)
            several = np.maximum.reduceat(who, starts) != np.minimum.reduceat(who, starts)
            loads, stores, atomics = (np.logical_or.reduceat(kind == code, starts) for code in _KINDS.values())
            bad = several & (stores | (atomics & loads))
            if bad.any():
                yield conflict(label, starts, bad)
        # Loads through the read-only cache of what the launch writes are undefined, also by one thread.
        starts = np.flatnonzero(new_cell)
        stale = np.logical_or.reduceat(read_only, starts)
        if stale.any():
            yield conflict("read-only cache", starts, stale, "written in the launch that loads it with ld.global.nc")

    def _unit(self, low: int) -> int:
        """The largest cell that every access is made of."""
        for unit in (8, 4, 2):
            if all(
                x.size % unit == 0 and not ((x.address - low) % unit).any() for x in self._accesses if len(x.address)
            ):
                return unit
        return 1
