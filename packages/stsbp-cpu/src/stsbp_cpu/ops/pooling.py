"""Applies the kernels for pooling to a library's own arrays."""

from __future__ import annotations

import numpy as np
from stsbp_spec.networks.ops.avgpool2d import AvgPool2d
from stsbp_spec.networks.ops.maxpool2d import MaxPool2d
from stsbp_spec.typing import Array, Shape

from stsbp_cpu.engine.layout import Layout
from stsbp_cpu.ops import avgpool2d, maxpool2d

__all__ = ["average", "average_backward", "largest", "largest_backward"]


def average(layout: Layout[Array], pool: AvgPool2d, s: Array) -> Array:
    """Averages or sums over the windows of `[T, B, C, H, W]`, float32."""
    s = layout.laid_out(s)
    output = layout.empty((*s.shape[:2], *pool.output_shape(tuple(s.shape[2:]))), np.float32)
    avgpool2d.forward(layout.frames(s), layout.frames(output), *pool.sizes, np.float32(2.0**-pool.exponent))
    return output


def average_backward(layout: Layout[Array], pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    """The error signal of the inputs, of shape `shape`, from the error signal `d` of the windows.

    Each input receives the error signal of its window, divided as in the forward pass. Inputs outside all windows
    receive zero.
    """
    ds, error = layout.empty(shape, np.float32), layout.laid_out(d)
    avgpool2d.backward(layout.frames(error), layout.frames(ds), *pool.sizes, np.float32(2.0**-pool.exponent))
    return ds


def largest(layout: Layout[Array], pool: MaxPool2d, s: Array, first: Array) -> Array:
    """The largest input of each window, in the type of `s`.

    `first`, int32, is filled with the index of this input in its window. If several inputs are the largest, the first
    one counts.
    """
    s = layout.laid_out(s)
    memory = layout.view(s)
    output = layout.empty(tuple(first.shape), memory.dtype.type)
    maxpool2d.forward(layout.frames(s), layout.frames(output), layout.frames(first), *pool.sizes)
    return output


def largest_backward(layout: Layout[Array], pool: MaxPool2d, first: Array, shape: Shape, d: Array) -> Array:
    """The first largest input of a window receives the window's error signal. All other inputs receive zero."""
    ds, error = layout.empty(shape, np.float32), layout.laid_out(d)
    maxpool2d.backward(layout.frames(error), layout.frames(first), layout.frames(ds), *pool.sizes)
    return ds
