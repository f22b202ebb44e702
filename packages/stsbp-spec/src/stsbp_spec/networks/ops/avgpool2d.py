"""Average pooling of spikes over non-overlapping windows. It is linear, so it may come before the PSP filter.

If the rows and columns of the window are powers of two, the result is the mean of each window. The mean is exact in
binary, because pooled spikes are multiples of one over the window size. For other windows, the result is the sum of
each window. The division is then a factor after the weights, in the gain of the PSP filter (`Values.filter`), like the
factor of dropout. Unlike the latter, it also applies in evaluation. Rows and columns that fill no window are dropped.

Backward: each input of a window receives the error of the window. If the forward pass takes the mean, the error is
divided by the size of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stsbp_spec.errors import SpecError
from stsbp_spec.networks.ops.base import Passing, Pool2d, Values
from stsbp_spec.typing import Int64, Shape

__all__ = ["AvgPool2d", "GlobalAvgPool", "Pool2d"]


@dataclass(frozen=True)
class AvgPool2d(Pool2d):
    """Average pooling with stride equal to the window.

    Args:
        size: rows and columns of the window, an integer or a pair.
    """

    def infer(self, *inputs: Values) -> Values:
        """The means, in finer units; or the sums, which a later step divides."""
        values = self.spikes(inputs)
        return replace(
            values,
            shape=self.output_shape(values.shape),
            exponent=values.exponent + self.exponent,
            maximum=values.maximum * self.divisor,
            divisor=values.divisor * self.divisor,
        )

    def reached(self, counts: Int64, shapes: Sequence[Shape]) -> tuple[Int64, ...]:
        """Each place of a window reaches what the window reaches."""
        rows, columns = self.sizes
        window_counts = counts.repeat(rows, axis=1).repeat(columns, axis=2)
        # Rows and columns that fill no window reach no output.
        input_counts = np.zeros(shapes[0], np.int64)
        input_counts[:, : window_counts.shape[1], : window_counts.shape[2]] = window_counts
        return (input_counts,)

    @property
    def divisor(self) -> int:
        """The number by which a later step must divide the sums of windows; 1 if the output is already means."""
        return self.area if self.area & (self.area - 1) else 1

    @property
    def exponent(self) -> int:
        """Fraction bits that pooling adds, with `area = 2^exponent`; 0 for sums."""
        return self.area.bit_length() - 1 if self.divisor == 1 else 0


@dataclass(frozen=True)
class GlobalAvgPool(Passing):
    """Average pooling over all rows and columns, to `(C, 1, 1)`."""

    def at(self, shape: Shape) -> AvgPool2d:
        """The pooling for an input of `shape` `(C, H, W)`."""
        if len(shape) != 3:
            raise SpecError(f"pooling needs an input (C, H, W), got {shape}")
        return AvgPool2d((shape[1], shape[2]))

    def infer(self, *inputs: Values) -> Values:
        """Like `AvgPool2d.infer`."""
        return self.at(self.spikes(inputs).shape).infer(*inputs)

    def output_shape(self, shape: Shape) -> Shape:
        """`(C, 1, 1)`. Raises `SpecError` if the input has no rows and columns."""
        return self.at(shape).output_shape(shape)
