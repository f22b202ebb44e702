"""Implements ops/maxpool2d.py of the spec in JAX, channels last."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.networks.ops.maxpool2d import MaxPool2d
from stsbp_spec.typing import Shape

from stsbp_jax.engine.checks import check_operation
from stsbp_jax.engine.compiling import pair
from stsbp_jax.ops.avgpool2d import of_windows, views

__all__ = ["backward", "forward", "maxpool2d"]


def forward(pool: MaxPool2d, s: Array) -> tuple[Array, Array]:
    """The largest input of each window, in the type of `s`, and the index of the first largest input, int32."""
    largest, *others = views(pool, s)
    first = jnp.zeros(largest.shape, np.int32)
    for number, view in enumerate(others, start=1):
        larger = view > largest
        largest, first = jnp.where(larger, view, largest), jnp.where(larger, np.int32(number), first)
    return largest, first


def backward(pool: MaxPool2d, shape: Shape, first: Array, d: Array) -> Array:
    """The first largest input of each window receives the window's error signal, all other inputs of `shape` zero."""
    rows, columns = pool.sizes
    t, b, h, w, c = d.shape
    numbers = np.arange(pool.area, dtype=np.int32).reshape(rows, 1, columns, 1)
    input_errors = jnp.where(first[:, :, :, None, :, None] == numbers, d[:, :, :, None, :, None], np.float32(0))
    return of_windows(shape, input_errors.reshape(t, b, h * rows, w * columns, c))


def maxpool2d(pool: MaxPool2d, s: Array) -> Array:
    """Max pooling of spikes `[T, B, H, W, C]`.

    The error signal of a window goes to the first largest input of the window, counted row by row.

    Raises:
        ShapeError: `s` is not an array of numbers with these axes.
        SpecError: the input has no rows and columns, or the window is larger.
    """
    check_operation(pool, s)
    largest: Array = _maxpool2d(pool, s)
    return largest


def _vjp_forward(pool: MaxPool2d, s: Array) -> tuple[Array, tuple[Array, Array]]:
    largest, first = forward(pool, s)
    return largest, (first, s)


def _vjp_backward(pool: MaxPool2d, residuals: tuple[Array, Array], d: Array) -> tuple[Array]:
    first, s = residuals
    return (backward(pool, s.shape, first, d),)


_maxpool2d = pair(1, _vjp_forward, _vjp_backward)
