"""The memory layout of a network's values: integers of the smallest type that can hold them, channels-last.

The caller's inputs have the layout of `stsbp`, channels-first. A vector is treated as an image of one row and one
column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from stsbp_spec.networks.graph import Values
from stsbp_spec.typing import Shape

from stsbp.interop.c_source.texts import SIZES, loops, times

__all__ = ["Array", "axis_sizes"]


def axis_sizes(shape: Shape) -> tuple[int, int, int]:
    """Channels, rows and columns of a shape."""
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


@dataclass(frozen=True)
class Array:
    """Values of one step that are not weighted sums.

    Attributes:
        shape: `(C, H, W)` or `(N,)`.
        largest: the largest value in units of `2^-exponent`.
        exponent: exponent of their unit.
        is_input: whether it is the caller's input: channels-first, and with arbitrary bytes.
    """

    shape: Shape
    largest: int
    exponent: int
    is_input: bool = False

    @classmethod
    def of(cls, values: Values, *, is_input: bool = False) -> Array:
        """The array for the values on an edge."""
        return cls(values.shape, round(values.maximum * 2.0**values.exponent), values.exponent, is_input)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def type(self) -> str:
        """Type of a value in C."""
        return next(name for name in ("uint8_t", "uint16_t", "uint32_t") if self.largest < 2 ** (8 * SIZES[name]))

    @property
    def axes(self) -> list[tuple[str, int]]:
        """Names and sizes of the axes, in the order of memory."""
        if len(self.shape) == 1:
            return [("c", self.size)]
        channels, rows, columns = self.shape
        last = [("y", rows), ("x", columns)]
        return [("c", channels), *last] if self.is_input else [*last, ("c", channels)]

    @property
    def order(self) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
        """For each position in memory, the position of its value in channels-first order."""
        positions = np.arange(self.size).reshape(axis_sizes(self.shape))
        return (positions if self.is_input else positions.transpose(1, 2, 0)).reshape(-1)

    def index(self, **replacements: str) -> str:
        """The position in memory of channel `c`, row `y` and column `x`. `replacements` has
        other texts for some of them."""
        terms, stride = list[str](), 1
        for name, size in reversed(self.axes):
            terms.insert(0, times(replacements.get(name, name), stride))
            stride *= size
        return " + ".join(terms)

    def read(self, pointer: str, index: str) -> str:
        """A value as an `int32_t`. Values of the caller are limited to the allowed maximum."""
        text = f"{pointer}[{index}]"
        if self.is_input and self.largest == 1:
            return f"({text} != 0u) ? 1 : 0"
        if self.is_input and self.largest < 255:
            return f"({text} > {self.largest}u) ? {self.largest} : (int32_t){text}"
        return f"(int32_t){text}"

    def loop(self, *rows: str) -> list[str]:
        """Loops over all positions in memory. Each is set to the value that `rows` leave in `v`."""
        return loops(self.axes, [*rows, f"out[{self.index()}] = ({self.type})v;"])
