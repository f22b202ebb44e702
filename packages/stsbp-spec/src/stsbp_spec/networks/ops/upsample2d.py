"""Upsampling of spikes by repetition (nearest neighbour). Each input becomes a block of `factor` rows and columns.

Backward: each input receives the sum of its block's errors, row by row. Each addition is rounded to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stsbp_spec.errors import SpecError
from stsbp_spec.networks.ops.axes import PerAxis, per_axis, rows_and_columns
from stsbp_spec.networks.ops.base import Passing, Values
from stsbp_spec.typing import Int64, Shape

__all__ = ["Upsample2d"]


@dataclass(frozen=True)
class Upsample2d(Passing):
    """Repetition of rows and columns.

    Args:
        factor: number of repetitions of each row and column, an integer or a pair.
    """

    factor: PerAxis

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", per_axis("a factor of upsampling", self.factor, 1))

    @property
    def factors(self) -> tuple[int, int]:
        """Number of repetitions of each row and of each column."""
        return rows_and_columns(self.factor)

    def infer(self, *inputs: Values) -> Values:
        """The values of the input, repeated."""
        values = self.spikes(inputs)
        return replace(values, shape=self.output_shape(values.shape))

    def output_shape(self, shape: Shape) -> Shape:
        """`(C, H rows, W columns)`. Raises `SpecError` if the input has no rows and columns."""
        if len(shape) != 3:
            raise SpecError(f"upsampling needs an input (C, H, W), got {shape}")
        (c, h, w), (rows, columns) = shape, self.factors
        return (c, h * rows, w * columns)

    def reached(self, counts: Int64, shapes: Sequence[Shape]) -> tuple[Int64, ...]:
        """An input reaches what its block reaches."""
        ((c, h, w),), (rows, columns) = shapes, self.factors
        input_counts: Int64 = counts.reshape(c, h, rows, w, columns).sum(axis=(2, 4))
        return (input_counts,)
