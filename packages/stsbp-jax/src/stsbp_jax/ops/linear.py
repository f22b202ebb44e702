"""Implements ops/linear.py of the spec in JAX, as matrix products.

The spec flattens `(C, H, W)`. Images are channels last here, so the columns of the weights are permuted instead.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.engine.checks import check_precision_name
from stsbp_spec.networks.ops.linear import Linear
from stsbp_spec.typing import Precision, Shape

from stsbp_jax.contract.grid import enable_x64, rounded
from stsbp_jax.distributed.replication import match_replication
from stsbp_jax.engine.checks import check_operation
from stsbp_jax.engine.compiling import pair

__all__ = ["backward", "forward", "linear"]


def _columns_last(w: Array, shape: Shape) -> Array:
    """Reorder the columns of `w` `[N, C * H * W]` for an input of shape `(H, W, C)` or `(N,)`."""
    if len(shape) == 1:
        return w
    h, width, c = shape
    return w.reshape(-1, c, h, width).transpose(0, 2, 3, 1).reshape(w.shape)


def _columns_first(w: Array, shape: Shape) -> Array:
    """Inverse of `_columns_last`."""
    if len(shape) == 1:
        return w
    h, width, c = shape
    return w.reshape(-1, h, width, c).transpose(0, 3, 1, 2).reshape(w.shape)


def forward(linear: Linear, s: Array, wq: Array) -> Array:
    """`z = W s`, float32 `[T, B, N]` from spikes `[T, B, H, W, C]` or `[T, B, N]` of any number type."""
    columns = _columns_last(wq, s.shape[2:]).T
    flat = s.reshape(*s.shape[:2], -1).astype(np.float32)
    return jnp.matmul(flat, columns, precision=lax.Precision.HIGHEST)


def backward(
    linear: Linear,
    s: Array,
    wq: Array,
    dz: Array,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Array | None, Array | None]:
    """`(ds, dW)`. In `reproducible` precision, products are float64, every sum is exact, and `dW` stays float64."""
    if precision == "reproducible":
        with enable_x64():
            return _backward(linear, s, wq, dz, np.float64, need_input, need_weights)
    return _backward(linear, s, wq, dz, np.float32, need_input, need_weights)


def _backward(
    linear: Linear,
    s: Array,
    wq: Array,
    dz: Array,
    dtype: type[np.float32] | type[np.float64],
    need_input: bool,
    need_weights: bool,
) -> tuple[Array | None, Array | None]:
    error = dz.reshape(-1, linear.units).astype(dtype)
    ds, dw = None, None
    if need_weights:
        flat = s.reshape(error.shape[0], -1).astype(dtype)
        dw = _columns_first(jnp.matmul(error.T, flat, precision=lax.Precision.HIGHEST), s.shape[2:])
    if need_input:
        columns = _columns_last(wq, s.shape[2:]).astype(dtype)
        ds = jnp.matmul(error, columns, precision=lax.Precision.HIGHEST).astype(np.float32).reshape(s.shape)
    return ds, dw


def linear(linear: Linear, s: Array, w: Array, precision: Precision = "fast") -> Array:
    """Full connection of spikes, `z = W s`; differentiable in `s` and `w`.

    Args:
        linear: the connection, with its number of units.
        s: spikes, `[T, B, N]`, or `[T, B, H, W, C]` (channels last), float32.
        w: weights `[units, N]`, or `[units, C * H * W]` in the spec's order; see `conv2d`.
        precision: precision of the backward pass.

    Returns:
        float32 `[T, B, units]`.

    Raises:
        ShapeError: `s` or `w` is not an array of numbers with these axes.
        SpecError: the precision is unknown.
    """
    check_precision_name(precision)
    check_operation(linear, s, w)
    z: Array = _linear(linear, precision, *match_replication((s, w)))
    return z


def _vjp_forward(linear: Linear, precision: Precision, s: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return forward(linear, s, w), (s, w)


def _vjp_backward(
    linear: Linear, precision: Precision, residuals: tuple[Array, Array], dz: Array
) -> tuple[Array | None, Array]:
    ds, dw = backward(linear, *residuals, dz, precision=precision, need_input=True)
    assert dw is not None
    return ds, rounded(dw)


_linear = pair(2, _vjp_forward, _vjp_backward)
