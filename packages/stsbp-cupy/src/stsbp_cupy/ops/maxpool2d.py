"""The ops/maxpool2d.py of the spec, with kernels/maxpool2d.cu."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from stsbp_spec.networks.ops.maxpool2d import MaxPool2d
from stsbp_spec.typing import Shape

from stsbp_cupy.engine.runtime import Array, Runtime, lanes_of, logical, memory

__all__ = ["MaxPoolSavedIndices", "backward", "forward"]


class MaxPoolSavedIndices(NamedTuple):
    """The index of each window's first maximum, int32, and the shape of the input, both in memory order."""

    first: Array
    shape: Shape


def forward(rt: Runtime, pool: MaxPool2d, s: Array) -> tuple[Array, MaxPoolSavedIndices]:
    """The maximum of each window, `[T, B, C, H // rows, W // columns]`, uint8 if the input is uint8."""
    s = memory(rt, s if s.dtype == np.uint8 else s.astype(np.float32))
    *lead, height, width, channels = s.shape
    rows, columns = pool.sizes
    out = rt.empty((*lead, height // rows, width // columns, channels), s.dtype)
    first = rt.empty(out.shape, np.int32)
    lanes = lanes_of(channels, s, out, first)
    name = "maxpool2d_u8" if s.dtype == np.uint8 else "maxpool2d_f32"
    rt.launch(name, out.size // lanes, s, out, first, out.size, channels, height, width, rows, columns, lanes)
    return logical(rt, out), MaxPoolSavedIndices(first, s.shape)


def backward(rt: Runtime, pool: MaxPool2d, residuals: MaxPoolSavedIndices, d: Array) -> Array:
    """The first maximum of a window gets the window's error. All other inputs get zero."""
    d, first = memory(rt, d), residuals.first
    ds = rt.empty(residuals.shape, np.float32)
    height, width, channels = residuals.shape[-3:]
    lanes = lanes_of(channels, d, ds, first)
    rt.launch(
        "maxpool2d_backward", ds.size // lanes, d, first, ds, ds.size, channels, height, width, *pool.sizes, lanes
    )
    return logical(rt, ds)
