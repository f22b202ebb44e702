"""synapses/avgpool2d.py of the spec in JAX, channels-last: sums of windows times an exact power of two."""

from __future__ import annotations

from functools import reduce
from operator import add

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.synapses.avgpool2d import AvgPool2d, Pool2d
from stsbp_spec.typing import Shape

__all__ = ["avgpool2d", "backward", "forward", "of_windows", "views"]


def views(pool: Pool2d, s: Array) -> list[Array]:
    """Of each place in a window, row by row, the inputs of `[T, B, H, W, C]` that stand there."""
    rows, columns = pool.sizes
    h, w = s.shape[2] // rows * rows, s.shape[3] // columns * columns
    return [s[:, :, i:h:rows, j:w:columns] for i in range(rows) for j in range(columns)]


def of_windows(shape: Shape, spread: Array) -> Array:
    """All windows, `[T, B, h, w, C]`, with zeros for the rows and columns of `shape` that fill no window."""
    return jnp.pad(spread, [(0, n - m) for n, m in zip(shape, spread.shape, strict=True)])


def forward(pool: AvgPool2d, s: Array) -> Array:
    """Means or sums of windows, float32 `[T, B, H // rows, W // columns, C]`."""
    return reduce(add, (view.astype(np.float32) for view in views(pool, s))) * np.float32(2.0**-pool.exponent)


def backward(pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    """Each input, `[T, B, H, W, C]` = `shape`, receives its window's error, divided where the mean was taken."""
    rows, columns = pool.sizes
    each = d * np.float32(2.0**-pool.exponent)
    return of_windows(shape, jnp.repeat(jnp.repeat(each, rows, axis=2), columns, axis=3))


def avgpool2d(pool: AvgPool2d, s: Array) -> Array:
    """Average pooling of spikes `[T, B, H, W, C]`, float32; linear, so JAX differentiates it as it stands.

    Of windows that are no powers of two: sums, whose division, `1 / pool.divisor`, is part of the next filter's gain.
    """
    return forward(pool, s)
