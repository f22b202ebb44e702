"""The ops/avgpool2d.py of the spec, with kernels/avgpool2d.cu."""

from __future__ import annotations

import numpy as np
from stsbp_spec.networks.ops.avgpool2d import AvgPool2d
from stsbp_spec.typing import Shape

from stsbp_cupy.engine.runtime import Array, Runtime, lanes_of, logical, memory

__all__ = ["backward", "forward"]


def forward(rt: Runtime, pool: AvgPool2d, s: Array) -> tuple[Array, Shape]:
    """Means or sums of windows, `[T, B, C, H // rows, W // columns]`. The residual is the input's shape in memory."""
    s = memory(rt, s if s.dtype == np.uint8 else s.astype(np.float32))
    *lead, height, width, channels = s.shape
    rows, columns = pool.sizes
    out = rt.empty((*lead, height // rows, width // columns, channels), np.float32)
    lanes = lanes_of(channels, s, out)
    name = "avgpool2d_u8" if s.dtype == np.uint8 else "avgpool2d_f32"
    scale = 2.0**-pool.exponent
    rt.launch(name, out.size // lanes, s, out, out.size, channels, height, width, rows, columns, scale, lanes)
    return logical(rt, out), s.shape


def backward(rt: Runtime, pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    """Each input gets the error of its window, divided if the mean was taken. Dropped rows and columns get zero."""
    d = memory(rt, d)
    ds = rt.empty(shape, np.float32)
    height, width, channels = shape[-3:]
    lanes = lanes_of(channels, d, ds)
    rt.launch(
        "avgpool2d_backward", ds.size // lanes,
        d, ds, ds.size, channels, height, width, *pool.sizes, 2.0**-pool.exponent, lanes,
    )  # fmt: skip
    return logical(rt, ds)
