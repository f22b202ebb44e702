"""One weight per neuron: `z_n = w_n s_n`. It connects recurrent neurons that read only their own spikes.

It is exact, because each sum has one term. Backward: `dw_n = sum dz_n s_n`, `ds_n = w_n dz_n`, a product that is
rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stsbp_spec.contract.grid import MAX_WEIGHT_BITS
from stsbp_spec.equations.expressions import Recurrence, unsnapped, variable
from stsbp_spec.errors import SpecError
from stsbp_spec.networks.ops.base import Values, Weighted, weight_bits
from stsbp_spec.typing import Shape

__all__ = ["PRODUCT", "OneToOne"]

PRODUCT = Recurrence("product", (), ("x", "w"), {}, {"y": unsnapped(variable("x") * variable("w"))})
"""Elementwise product of spikes and weights, or of errors and weights."""


@dataclass(frozen=True)
class OneToOne(Weighted):
    """A connection from each input to the neuron with the same index.

    Args:
        weight_bits: bits of the weight grid, including the sign, 2 to 12.
    """

    weight_bits: int = field(default=MAX_WEIGHT_BITS, kw_only=True)
    bias: bool = field(default=False, kw_only=True, init=False)
    norm: None = field(default=None, kw_only=True, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_bits", weight_bits(self.weight_bits))

    def infer(self, *inputs: Values) -> Values:
        """Weighted spikes."""
        values = self.spikes(inputs)
        if (values.exponent, values.maximum) != (0, 1.0):
            raise SpecError("OneToOne takes spikes (0 or 1), but its input is sums or means of spikes")
        return super().infer(values)

    def output_shape(self, shape: Shape) -> Shape:
        """`(N,)`, the shape of the input."""
        if len(shape) != 1:
            raise SpecError(f"a one-to-one connection needs an input (N,), got {shape}; take a depthwise convolution")
        return shape

    def weight_shape(self, shape: Shape) -> Shape:
        """`(N, 1)`."""
        return (*self.output_shape(shape), 1)

    def summands(self, shape: Shape) -> tuple[int, int, int]:
        """Numbers of summands: of one output, of the gradient of one weight per frame, of the gradient of one input."""
        return 1, 1, 1
