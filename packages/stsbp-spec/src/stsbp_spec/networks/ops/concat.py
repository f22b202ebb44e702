"""Concatenation of spike trains of several branches along their channels, as in U-Net, DenseNet and Inception.

Inputs `(C_1, H, W)`, `(C_2, H, W)`, ... become `(C_1 + C_2 + ..., H, W)`, in the order of the inputs. Inputs `(N_1,)`,
`(N_2,)`, ... become `(N_1 + N_2 + ...,)`. Backward: each input receives the error of its own channels. Neither
direction computes with the values, so both are exact.

The inputs may have different units. All values are multiples of the finest one, in which the weights above count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stsbp_spec.contract.arrays import ArrayArithmetic
from stsbp_spec.networks.ops.base import Merge
from stsbp_spec.typing import Array, Shape

__all__ = ["Concat"]


@dataclass(frozen=True)
class Concat(Merge):
    """The channels of two or more inputs, one input after the other."""

    key: ClassVar[str] = "concat"
    symbol: ClassVar[str] = "concat"
    outcome: ClassVar[str] = "concatenated values"
    common_property: ClassVar[str] = "rows and columns"

    def fits(self, first: Shape, second: Shape) -> bool:
        """Whether both are images with the same rows and columns, or both are vectors."""
        return len(first) == len(second) and first[1:] == second[1:]

    def output_shape(self, *shapes: Shape) -> Shape:
        """`(C_1 + C_2 + ..., H, W)` or `(N_1 + N_2 + ...,)`."""
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def largest(self, *maxima: float) -> float:
        """The largest value of any input."""
        return max(maxima)

    def forward(self, arithmetic: ArrayArithmetic[Array], *inputs: Array) -> tuple[Array, tuple[int, ...]]:
        """The concatenation, and the number of channels of each input."""
        counts = tuple(int(x.shape[arithmetic.channel_axis]) for x in inputs)
        return arithmetic.channels_joined(inputs), counts

    def backward(
        self, arithmetic: ArrayArithmetic[Array], residuals: tuple[int, ...], error: Array
    ) -> tuple[Array, ...]:
        """The error of the channels of each input."""
        return arithmetic.channels_split(error, residuals)
