"""Weights as the matrix products read them, and what tensor cores need to know about a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stsbp_spec.typing import Shape

from stsbp_cupy.runtime import Array, Runtime

__all__ = ["HalfUnits", "array_of", "channels_last_rows"]


@dataclass(frozen=True)
class HalfUnits:
    """Weights on their grid whose products with the layer's inputs fit tensor cores.

    Both operands are integers of at most 11 bits, exact in half precision: weights in units of `2^-weight_exponent`,
    inputs in units of `2^-input_exponent`. Their sums stay below 2^24 units, exact in float32.

    Attributes:
        array: the weights, float32.
        weight_exponent, input_exponent: of the two units.
    """

    array: Array
    weight_exponent: int
    input_exponent: int

    @property
    def shape(self) -> Shape:
        """Shape of the weights."""
        shape: Shape = self.array.shape
        return shape

    @property
    def dtype(self) -> Any:
        """float32."""
        return self.array.dtype

    @property
    def alpha(self) -> float:
        """What one unit times one unit is worth."""
        return 2.0 ** -(self.weight_exponent + self.input_exponent)

    def units(self, rows: Array) -> Array:
        """The matrix `rows` of these weights as half-precision integers."""
        return (rows * np.float32(2.0**self.weight_exponent)).astype(np.float16)


def array_of(wq: Array | HalfUnits) -> Array:
    """The float32 array of weights."""
    return wq.array if isinstance(wq, HalfUnits) else wq


def channels_last_rows(rt: Runtime, wq: Array, shape: Shape) -> Array:
    """Weights `[out, C H W]` or `[out, C, H, W]` as rows `[out, H W C]`, the order of activations in memory.

    Args:
        rt: where the weights are.
        wq: the weights.
        shape: `(C, H, W)` of one row.
    """
    rows: Array = rt.xp.ascontiguousarray(rt.xp.moveaxis(wq.reshape(len(wq), *shape), 1, -1))
    return rows.reshape(len(wq), -1)


def channels_first(rt: Runtime, rows: Array, shape: Shape, out_shape: Shape) -> Array:
    """Inverse of `channels_last_rows`: rows `[out, H W C]` as `out_shape`, contiguous."""
    c, h, w = shape
    first: Array = rt.xp.ascontiguousarray(rt.xp.moveaxis(rows.reshape(len(rows), h, w, c), -1, 1))
    return first.reshape(out_shape)
