"""Implements ops/dropout.py of the spec in JAX, channels last."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from stsbp_spec.typing import Shape

from stsbp_jax.contract.random import keep_mask

__all__ = ["forward", "mask"]


def mask(seed: Array, layer: int, step: Array, shape: Shape, rate: float) -> Array:
    """The spec's mask for spikes of shape `[B, C, H, W]` or `[B, N]`, uint8, as `[B, H, W, C]` or `[B, N]`."""
    keep = keep_mask(seed, layer, step, shape, rate)
    return jnp.moveaxis(keep, 1, -1)


def forward(keep: Array, s: Array) -> Array:
    """`s * mask` for spikes or error signals `[T, B, ...]`. This operation is its own adjoint."""
    return s * keep[None].astype(s.dtype)  # the user may have forbidden JAX to promote ranks
