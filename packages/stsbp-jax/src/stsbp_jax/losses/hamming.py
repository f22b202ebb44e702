"""losses/hamming.py of the spec in JAX."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.losses.hamming import Hamming
from stsbp_spec.synapses.psp import PSP

from stsbp_jax.grid import Rounding

__all__ = ["distance", "error"]


def error(loss: Hamming, psp: PSP, s: Array, targets: Array) -> Array:
    """`dL/do = (o - target) / B`, `[T, B, N]`."""
    difference = s.astype(np.float32) - targets.astype(np.float32)
    return Rounding(difference)(np.float32(1 / s.shape[1]) * difference)


def distance(loss: Hamming, psp: PSP, s: Array, targets: Array) -> Array:
    """Distance of each sample, float32 `[B]`."""
    return jnp.abs(s.astype(np.float32) - targets.astype(np.float32)).sum((0, 2))
