"""synapses/avgpool2d.py: sums of windows times an exact power of two."""

from __future__ import annotations

import numpy as np

from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.typing import AnyArray, Float32, Shape

__all__ = ["backward", "forward"]


def forward(pool: AvgPool2d, s: AnyArray) -> tuple[Float32, Shape]:
    """Means of windows, `[T, B, C, H // size, W // size]`; the residual is the input's shape."""
    k = pool.size
    *lead, h, w = s.shape
    windows = s[..., : h // k * k, : w // k * k].reshape(*lead, h // k, k, w // k, k)
    return windows.sum(axis=(-3, -1), dtype=np.float32) * np.float32(2.0**-pool.exponent), s.shape


def backward(pool: AvgPool2d, shape: Shape, d: Float32) -> Float32:
    """Each input receives its window's error divided by `size^2`; dropped rows and columns receive zero."""
    k = pool.size
    ds = np.zeros(shape, np.float32)
    spread = np.repeat(np.repeat(d * np.float32(2.0**-pool.exponent), k, axis=-2), k, axis=-1)
    ds[..., : spread.shape[-2], : spread.shape[-1]] = spread
    return ds
