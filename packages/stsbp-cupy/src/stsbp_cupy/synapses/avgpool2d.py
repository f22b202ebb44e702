"""synapses/avgpool2d.py by kernels/avgpool2d.cu."""

from __future__ import annotations

import numpy as np
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.typing import Shape

from stsbp_cupy.runtime import Array, Runtime, lanes_of, logical, memory

__all__ = ["backward", "forward"]


def forward(rt: Runtime, pool: AvgPool2d, s: Array) -> tuple[Array, Shape]:
    """Means of windows, `[T, B, C, H // size, W // size]`; the residual is the input's shape in memory order."""
    s = memory(rt, s if s.dtype == np.uint8 else s.astype(np.float32))
    *lead, height, width, channels = s.shape
    out = rt.empty((*lead, height // pool.size, width // pool.size, channels), np.float32)
    lanes = lanes_of(channels, s, out)
    name = "avgpool2d_u8" if s.dtype == np.uint8 else "avgpool2d_f32"
    scale = 2.0**-pool.exponent
    rt.launch(name, out.size // lanes, s, out, out.size, channels, height, width, pool.size, scale, lanes)
    return logical(rt, out), s.shape


def backward(rt: Runtime, pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    """Each input receives its window's error divided by `size^2`; dropped rows and columns receive zero."""
    d = memory(rt, d)
    ds = rt.empty(shape, np.float32)
    height, width, channels = shape[-3:]
    lanes = lanes_of(channels, d, ds)
    scale = 2.0**-pool.exponent
    rt.launch("avgpool2d_backward", ds.size // lanes, d, ds, ds.size, channels, height, width, pool.size, scale, lanes)
    return logical(rt, ds)
