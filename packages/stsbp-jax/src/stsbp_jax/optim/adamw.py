"""optim/adamw.py of the spec in JAX: the norm and the clipping factor inside the jit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.grid import FINEST_ERROR_EXPONENT, FLOOR
from stsbp_spec.optim.adamw import norm_bits

from stsbp_jax.grid import exponent, largest_magnitude, power_of_two, wide

__all__ = ["clip_factor", "gradient_norm"]


def gradient_norm(gradients: Sequence[Array]) -> Array:
    """Global norm, a float64 scalar: squares of gradients on a grid add as integers. Not finite where one is not."""
    bits = norm_bits(sum(math.prod(g.shape) for g in gradients))
    largest = largest_magnitude(gradients)
    silent = largest < FLOOR
    q = jnp.minimum(np.int32(bits) - exponent(largest), np.int32(FINEST_ERROR_EXPONENT))
    with wide():
        total = jnp.zeros((), np.int64)
        for g in gradients:
            scaled = jnp.rint(g * power_of_two(q)).astype(np.int64)
            total = total + (scaled * scaled).sum()
        norm = jnp.sqrt(total.astype(np.float64)) * power_of_two(-q).astype(np.float64)
        norm = jnp.where(silent, 0.0, norm)
        return jnp.where(jnp.isfinite(largest), norm, largest.astype(np.float64))


def clip_factor(norm: Array, clip_norm: float | None) -> Array:
    """`min(1, clip_norm / norm)`, float32, rounded once; 1 without clipping."""
    one = np.float32(1)
    if clip_norm is None:
        return jnp.asarray(one)
    with wide():
        return jnp.where(norm <= clip_norm, one, (clip_norm / norm).astype(np.float32))
