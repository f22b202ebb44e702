"""Fully connected weights of a layer, applied to spikes: `z_t = W o_t` (part of Eq. (4)). psp.py adds a bias.

Inputs `(C, H, W)` are flattened in this order. The forward pass is exact in any order, as for the convolution.
Backward: `dW = sum dz s^T` (Eq. (18)), `ds = W^T dz`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from stsbp_spec.contract.grid import MAX_WEIGHT_BITS
from stsbp_spec.networks.ops.base import Weighted, normalisation, weight_bits
from stsbp_spec.networks.ops.batchnorm import BatchNorm
from stsbp_spec.typing import Shape
from stsbp_spec.validation import integer_between, truth

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear(Weighted):
    """A fully connected layer.

    Args:
        units: number of output neurons `N`.
        weight_bits: bits of the weight grid, including the sign, 2 to 12.
        bias: whether a learned bias per neuron is added (psp.py).
        norm: batch normalisation of the sums (batchnorm.py); None: none.
    """

    units: int
    weight_bits: int = field(default=MAX_WEIGHT_BITS, kw_only=True)
    bias: bool = field(default=False, kw_only=True)
    norm: BatchNorm | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", integer_between("the units of a full connection", self.units, 1))
        object.__setattr__(self, "weight_bits", weight_bits(self.weight_bits))
        object.__setattr__(self, "bias", truth("bias", self.bias))
        object.__setattr__(self, "norm", normalisation(self.norm, bias=self.bias))

    def output_shape(self, shape: Shape) -> Shape:
        """`(N,)` for any input shape."""
        return (self.units,)

    def weight_shape(self, shape: Shape) -> Shape:
        """`(N, product of shape)`."""
        return (self.units, math.prod(shape))

    def summands(self, shape: Shape) -> tuple[int, int, int]:
        """Numbers of summands: of one output, of the gradient of one weight per frame, of the gradient of one input."""
        return math.prod(shape), 1, self.units
