"""Average pooling of spikes over non-overlapping windows; a linear map, so it may stand before the PSP filter.

Forward: the mean of each `size x size` window; rows and columns that fill no window are dropped. Backward: each input
of a window receives the window's error divided by `size^2`. Both are exact because `size` is a power of two: pooled
spikes are multiples of `size^-2`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stsbp_spec.errors import ExactnessError, SpecError
from stsbp_spec.synapses.base import Op, Values
from stsbp_spec.typing import Shape
from stsbp_spec.values import whole

__all__ = ["AvgPool2d"]


@dataclass(frozen=True)
class AvgPool2d(Op):
    """Average pooling with stride equal to the window.

    Args:
        size: rows and columns of the window, a power of two.
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", whole("a pooling window", self.size, 1))
        if self.size & (self.size - 1):
            raise ExactnessError(
                f"means over {self.size}x{self.size} windows are not exact in binary; take a power of two (P2, P4)"
            )

    def infer(self, *inputs: Values) -> Values:
        """Means, in finer units."""
        values = self.spikes(inputs)
        return replace(values, shape=self.output_shape(values.shape), exponent=values.exponent + self.exponent)

    def output_shape(self, shape: Shape) -> Shape:
        """`(C, H // size, W // size)`; raises `SpecError` where the window does not fit."""
        if len(shape) != 3:
            raise SpecError(f"pooling needs an input (C, H, W), got {shape}")
        c, h, w = shape
        if min(h, w) < self.size:
            raise SpecError(f"the window, {self.size}x{self.size}, is larger than its input, {h}x{w}")
        return (c, h // self.size, w // self.size)

    @property
    def exponent(self) -> int:
        """Fraction bits that pooling adds: `size^2 = 2^exponent`."""
        return 2 * (self.size.bit_length() - 1)
