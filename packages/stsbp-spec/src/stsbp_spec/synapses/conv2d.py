"""Convolution of spikes with the layer's weights: `z_t = W * o_t` (part of Eq. (4)); bias.py adds a bias to it.

Forward: `z[n, c, y, x] = sum_{d, i, j} W[c, d, i, j] s[n, d, y stride + i - padding, x stride + j - padding]`.
On the weight grid this sum is exact, so backends may take any order or algorithm that only adds such products.
Backward: `dW = sum_n dz s^T` (Eq. (18)) and `ds = W^T dz` (the spatial part of Eq. (11)).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stsbp_spec.errors import SpecError
from stsbp_spec.grid import MAX_WEIGHT_BITS
from stsbp_spec.synapses.base import Weighted, weight_bits
from stsbp_spec.typing import Shape
from stsbp_spec.values import truth, whole

__all__ = ["Conv2d"]


@dataclass(frozen=True)
class Conv2d(Weighted):
    """A 2-d convolution, square kernel.

    Args:
        channels: output channels `C'`.
        kernel: rows and columns of the kernel.
        stride: step of the kernel.
        padding: zero rows and columns around the input.
        weight_bits: bits of the weight grid, sign included, 2 to 12.
        bias: whether a learned number a channel is added (bias.py).
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    weight_bits: int = field(default=MAX_WEIGHT_BITS, kw_only=True)
    bias: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name, least in (("channels", 1), ("kernel", 1), ("stride", 1), ("padding", 0)):
            object.__setattr__(self, name, whole(f"a convolution's {name}", getattr(self, name), least))
        object.__setattr__(self, "weight_bits", weight_bits(self.weight_bits))
        object.__setattr__(self, "bias", truth("bias", self.bias))
        if self.padding >= self.kernel:
            raise SpecError(f"padding {self.padding} must be smaller than the kernel, {self.kernel}")

    def output_shape(self, shape: Shape) -> Shape:
        """`(C', H', W')` for an input of `shape` `(C, H, W)`; raises `SpecError` where the kernel does not fit."""
        if len(shape) != 3:
            raise SpecError(f"a convolution needs an input (C, H, W), got {shape}")
        _, h, w = shape
        rows, columns = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (h, w))
        if min(h, w) + 2 * self.padding < self.kernel:
            padded = f" (padded by {self.padding})" if self.padding else ""
            raise SpecError(f"the kernel, {self.kernel}x{self.kernel}, is larger than its input, {h}x{w}{padded}")
        return (self.channels, rows, columns)

    def weight_shape(self, shape: Shape) -> Shape:
        """`(C', C, kernel, kernel)`."""
        return (self.channels, shape[0], self.kernel, self.kernel)

    def summands(self, shape: Shape) -> tuple[int, int, int]:
        """Numbers of summands: of one output, of one weight's gradient per frame, of one input's gradient."""
        _, rows, columns = self.output_shape(shape)
        area = self.kernel * self.kernel
        return shape[0] * area, rows * columns, self.channels * area
