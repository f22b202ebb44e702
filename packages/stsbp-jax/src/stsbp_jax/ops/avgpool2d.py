"""Implements ops/avgpool2d.py of the spec in JAX, channels last: sums over windows times an exact power of two."""

from __future__ import annotations

from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.networks.ops.avgpool2d import AvgPool2d
from stsbp_spec.networks.ops.base import Pool2d
from stsbp_spec.typing import Shape

from stsbp_jax.engine.checks import check_operation

__all__ = ["avgpool2d", "backward", "forward", "of_windows", "views"]


def views(pool: Pool2d, s: Array) -> list[Array]:
    """For each position in a window, row by row, the inputs of `[T, B, H, W, C]` at this position in all windows."""
    rows, columns = pool.sizes
    h, w = s.shape[2] // rows * rows, s.shape[3] // columns * columns
    return [s[:, :, i:h:rows, j:w:columns] for i in range(rows) for j in range(columns)]


def of_windows(shape: Shape, spread: Array) -> Array:
    """All windows, `[T, B, h, w, C]`, padded with zeros for the rows and columns of `shape` outside all windows."""
    return jnp.pad(spread, [(0, n - m) for n, m in zip(shape, spread.shape, strict=True)])


def forward(pool: AvgPool2d, s: Array) -> Array:
    """Averages or sums over windows, float32 `[T, B, H // rows, W // columns, C]`."""
    return reduce(add, (view.astype(np.float32) for view in views(pool, s))) * np.float32(2.0**-pool.exponent)


def backward(pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    """Each input of `shape`, `[T, B, H, W, C]`, receives its window's error signal, divided as in the forward pass."""
    rows, columns = pool.sizes
    shares = d * np.float32(2.0**-pool.exponent)
    return of_windows(shape, jnp.repeat(jnp.repeat(shares, rows, axis=2), columns, axis=3))


def avgpool2d(pool: AvgPool2d, s: Array) -> Array:
    """Average pooling of spikes `[T, B, H, W, C]`, float32. It is linear, so JAX differentiates it without our help.

    If the number of inputs in a window is not a power of two, the output is the sum. The factor `1 / pool.divisor` is
    then part of the next filter's gain.

    Raises:
        ShapeError: `s` is not an array of numbers with these axes.
        SpecError: the input has no rows and columns, or the window is larger.
    """
    check_operation(pool, s)
    pooled: Array = _forward(pool, s)
    return pooled


_forward = partial(jax.jit, static_argnums=0, inline=True)(forward)
