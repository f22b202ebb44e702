"""Implements ops/upsample2d.py of the spec in JAX, channels last."""

from __future__ import annotations

from functools import reduce
from operator import add

import jax.numpy as jnp
from jax import Array
from stsbp_spec.networks.ops.upsample2d import Upsample2d

from stsbp_jax.engine.checks import check_operation
from stsbp_jax.engine.compiling import pair

__all__ = ["backward", "forward", "upsample2d"]


def forward(up: Upsample2d, s: Array) -> Array:
    """The upsampled input, `[T, B, H rows, W columns, C]`, in the type of `s`."""
    rows, columns = up.factors
    return jnp.repeat(jnp.repeat(s, rows, axis=2), columns, axis=3)


def backward(up: Upsample2d, d: Array) -> Array:
    """The sum of the error signals in each block, row by row."""
    rows, columns = up.factors
    return reduce(add, (d[:, :, i::rows, j::columns] for i in range(rows) for j in range(columns)))


def upsample2d(up: Upsample2d, s: Array) -> Array:
    """Upsampling that repeats rows and columns of spikes `[T, B, H, W, C]`. The adjoint adds in the spec's order.

    Raises:
        ShapeError: `s` is not an array of numbers with these axes.
        SpecError: the input has no rows and columns.
    """
    check_operation(up, s)
    repeated: Array = _upsample2d(up, s)
    return repeated


_upsample2d = pair(1, lambda up, s: (forward(up, s), None), lambda up, _, d: (backward(up, d),))
