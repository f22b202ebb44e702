"""Sum of spike trains of several branches: `s = s_1 + s_2 + ...`, integers, the ADD of SEW-ResNet (Fang et al. 2021).

The sum is exact in any order, because the inputs are multiples of one unit. Backward: each input receives the error of
the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import ClassVar

from stsbp_spec.contract.arrays import ArrayArithmetic
from stsbp_spec.errors import ExactnessError
from stsbp_spec.networks.ops.base import Merge, Values
from stsbp_spec.typing import Array, Shape

__all__ = ["Add"]

_MOST = 255


@dataclass(frozen=True)
class Add(Merge):
    """The sum of two or more inputs of the same shape."""

    key: ClassVar[str] = "add"
    symbol: ClassVar[str] = "+"
    outcome: ClassVar[str] = "sums"

    def infer(self, *inputs: Values) -> Values:
        """The sums, in the finest unit of the inputs."""
        sums = super().infer(*inputs)
        if sums.exponent == 0 and sums.maximum > _MOST:
            raise ExactnessError(
                f"sums of spikes are stored in bytes, at most {_MOST}, but these reach {sums.maximum:g}"
            )
        return sums

    def output_shape(self, *shapes: Shape) -> Shape:
        """The shape of each input."""
        return shapes[0]

    def largest(self, *maxima: float) -> float:
        """The sum of the largest values."""
        return sum(maxima)

    def forward(self, arithmetic: ArrayArithmetic[Array], *inputs: Array) -> tuple[Array, int]:
        """The sums, added from the first input to the last; and the number of inputs."""
        return reduce(add, inputs), len(inputs)

    def backward(self, arithmetic: ArrayArithmetic[Array], residuals: int, error: Array) -> tuple[Array, ...]:
        """The error of the sums, once for each input."""
        return (error,) * residuals
