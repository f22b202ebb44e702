"""Convolution of spikes with the weights of the layer: `z_t = W * o_t` (part of Eq. (4)). psp.py adds a bias.

Forward, for row y and column x, each axis with its own stride `s`, padding `p` and dilation `d`:
`z[n, c, y, x] = sum_{e, i, j} W[c, e, i, j] o[n, g(c) + e, y s + i d - p, x s + j d - p]`.
`groups` divide the channels of input and output into equal parts. A part of the output reads only the same part of the
input: `e` runs over the `C / groups` channels of the part of `c`, which begins at `g(c)`. If there are as many groups
as input channels, the convolution is depthwise.
With weights on their grid, this sum is exact. Backends may use any order or algorithm that only adds such products.
Backward: `dW = sum_n dz o^T` (Eq. (18)) and `do = W^T dz` (the spatial part of Eq. (11)).

A 1-d convolution is one of a kernel `(1, k)` on inputs `(C, 1, L)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stsbp_spec.contract.grid import MAX_WEIGHT_BITS
from stsbp_spec.errors import SpecError
from stsbp_spec.networks.ops.axes import PerAxis, per_axis, rows_and_columns, written
from stsbp_spec.networks.ops.base import Weighted, normalisation, weight_bits
from stsbp_spec.networks.ops.batchnorm import BatchNorm
from stsbp_spec.typing import Shape
from stsbp_spec.validation import integer_between, truth

__all__ = ["Conv2d"]


@dataclass(frozen=True)
class Conv2d(Weighted):
    """A 2-d convolution. Numbers for both axes are an integer, or a pair (rows, columns).

    Args:
        channels: output channels `C'`.
        kernel: rows and columns of the kernel.
        stride: step of the kernel.
        padding: zero rows and columns around the input.
        dilation: distance on the input between neighbouring kernel elements.
        groups: number of parts of the channels that are connected only within themselves.
        weight_bits: bits of the weight grid, including the sign, 2 to 12.
        bias: whether a learned bias per channel is added (psp.py).
        norm: batch normalisation of the sums (batchnorm.py); None: none.
    """

    channels: int
    kernel: PerAxis
    stride: PerAxis = 1
    padding: PerAxis = 0
    dilation: PerAxis = field(default=1, kw_only=True)
    groups: int = field(default=1, kw_only=True)
    weight_bits: int = field(default=MAX_WEIGHT_BITS, kw_only=True)
    bias: bool = field(default=False, kw_only=True)
    norm: BatchNorm | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("channels", "groups"):
            object.__setattr__(self, name, integer_between(f"a convolution's {name}", getattr(self, name), 1))
        for name, lower in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            object.__setattr__(self, name, per_axis(f"a convolution's {name}", getattr(self, name), lower))
        object.__setattr__(self, "weight_bits", weight_bits(self.weight_bits))
        object.__setattr__(self, "bias", truth("bias", self.bias))
        object.__setattr__(self, "norm", normalisation(self.norm, bias=self.bias))
        if any(pad >= extent for pad, extent in zip(self.paddings, self.extents, strict=True)):
            kernel = f"the kernel, {written(self.kernel)}{self._dilated}"
            raise SpecError(f"padding {written(self.padding)} must be smaller than {kernel}")
        if self.channels % self.groups:
            raise SpecError(f"{self.channels} channels cannot be divided into {self.groups} groups")

    @property
    def kernels(self) -> tuple[int, int]:
        """Rows and columns of the kernel."""
        return rows_and_columns(self.kernel)

    @property
    def strides(self) -> tuple[int, int]:
        """Step of the kernel along rows and columns."""
        return rows_and_columns(self.stride)

    @property
    def paddings(self) -> tuple[int, int]:
        """Zero rows above and below, and zero columns on each side."""
        return rows_and_columns(self.padding)

    @property
    def dilations(self) -> tuple[int, int]:
        """Distance on the input between neighbouring kernel elements, along rows and along columns."""
        return rows_and_columns(self.dilation)

    @property
    def extents(self) -> tuple[int, int]:
        """Number of rows and columns of the input that the kernel covers."""
        (rows, columns), (row_dilation, column_dilation) = self.kernels, self.dilations
        return row_dilation * (rows - 1) + 1, column_dilation * (columns - 1) + 1

    @property
    def area(self) -> int:
        """Number of weights of one kernel."""
        rows, columns = self.kernels
        return rows * columns

    @property
    def square(self) -> bool:
        """Whether rows and columns are treated in the same way, without dilation and groups."""
        equal_axes = all(isinstance(number, int) for number in (self.kernel, self.stride, self.padding))
        return equal_axes and self.dilation == 1 and self.groups == 1

    @property
    def _dilated(self) -> str:
        return f" with dilation {written(self.dilation)}" if self.dilation != 1 else ""

    def output_shape(self, shape: Shape) -> Shape:
        """`(C', H', W')` for an input of `shape` `(C, H, W)`. Raises `SpecError` if the kernel does not fit."""
        if len(shape) != 3:
            raise SpecError(f"a convolution needs an input (C, H, W), got {shape}")
        c, h, w = shape
        if c % self.groups:
            raise SpecError(f"the input's {c} channels cannot be divided into {self.groups} groups")
        sizes = zip((h, w), self.extents, self.paddings, self.strides, strict=True)
        rows, columns = ((n + 2 * pad - extent) // stride + 1 for n, extent, pad, stride in sizes)
        if min(rows, columns) < 1:
            padded = f" (padded by {written(self.padding)})" if self.padding else ""
            kernel = f"the kernel, {self.kernels[0]}x{self.kernels[1]}{self._dilated},"
            raise SpecError(f"{kernel} is larger than its input, {h}x{w}{padded}")
        return (self.channels, rows, columns)

    def weight_shape(self, shape: Shape) -> Shape:
        """`(C', C / groups, rows, columns)` of the kernel."""
        return (self.channels, shape[0] // self.groups, *self.kernels)

    def summands(self, shape: Shape) -> tuple[int, int, int]:
        """Numbers of summands: of one output, of the gradient of one weight per frame, of the gradient of one input."""
        _, rows, columns = self.output_shape(shape)
        return shape[0] // self.groups * self.area, rows * columns, self.channels // self.groups * self.area
