"""synapses/avgpool2d.py of the spec in JAX, channels-last: sums of windows times an exact power of two."""

from __future__ import annotations

from functools import reduce
from operator import add

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.typing import Shape

__all__ = ["avgpool2d", "backward", "forward"]


def forward(pool: AvgPool2d, s: Array) -> Array:
    """Means of windows, float32 `[T, B, H // size, W // size, C]`."""
    k = pool.size
    h, w = s.shape[2] // k * k, s.shape[3] // k * k
    parts = [s[:, :, i:h:k, j:w:k].astype(np.float32) for i in range(k) for j in range(k)]
    return reduce(add, parts) * np.float32(2.0**-pool.exponent)


def backward(pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    """Each input, `[T, B, H, W, C]` = `shape`, receives its window's error divided by `size^2`, or zero outside."""
    k = pool.size
    spread = jnp.repeat(jnp.repeat(d * np.float32(2.0**-pool.exponent), k, axis=2), k, axis=3)
    rest = [(0, n - m) for n, m in zip(shape, spread.shape, strict=True)]
    return jnp.pad(spread, rest)


def avgpool2d(pool: AvgPool2d, s: Array) -> Array:
    """Average pooling of spikes `[T, B, H, W, C]`, float32; linear, so JAX differentiates it as it stands."""
    return forward(pool, s)
