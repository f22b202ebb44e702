"""Implements, in JAX, the sums for the gradient norm of optim/adamw.py of the spec."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.grid import FINEST_ERROR_EXPONENT
from stsbp_spec.optim.adamw import norm_bits

from stsbp_jax.grid import exponent, largest_magnitude, power_of_two, wide

__all__ = ["gradient_squares"]


def gradient_squares(gradients: Sequence[Array]) -> Array:
    """Implements `optim.gradient_squares`; int64 `[2]`."""
    bits = norm_bits(sum(math.prod(g.shape) for g in gradients))
    largest = largest_magnitude(gradients)
    q = jnp.minimum(np.int32(bits) - exponent(largest), np.int32(FINEST_ERROR_EXPONENT))
    with wide():
        total = jnp.zeros((), np.int64)
        for g in gradients:
            scaled = jnp.rint(g * power_of_two(q)).astype(np.int64)
            total = total + (scaled * scaled).sum()
        return jnp.stack([lax.bitcast_convert_type(largest, np.int32).astype(np.int64), total])
