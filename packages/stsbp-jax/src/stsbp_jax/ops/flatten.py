"""Implements ops/flatten.py of the spec in JAX. As in the spec, channels come first in the flat axis."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from stsbp_spec.typing import Shape

from stsbp_jax.engine.checks import check_spikes

__all__ = ["backward", "flatten"]


def flatten(s: Array) -> Array:
    """Spikes `[T, B, H, W, C]` as `[T, B, C H W]`; spikes `[T, B, N]` unchanged.

    Raises:
        ShapeError: `s` is not an array of numbers with these axes.
    """
    check_spikes(s)
    flat: Array = _forward(s)
    return flat


@partial(jax.jit, inline=True)
def _forward(s: Array) -> Array:
    return (jnp.moveaxis(s, -1, 2) if s.ndim == 5 else s).reshape(*s.shape[:2], -1)


def backward(shape: Shape, d: Array) -> Array:
    """The error signal in the shape `shape`, `[T, B, H, W, C]` or `[T, B, N]`."""
    if len(shape) != 5:
        return d
    t, b, h, w, c = shape
    return jnp.moveaxis(d.reshape(t, b, c, h, w), 2, -1)
