"""losses/hamming.py of the spec in JAX."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.losses.hamming import Hamming
from stsbp_spec.synapses.psp import PSP

__all__ = ["distance"]


def distance(loss: Hamming, psp: PSP, s: Array, targets: Array) -> Array:
    """Distance of each sample, float32 `[B]`."""
    return jnp.abs(s.astype(np.float32) - targets.astype(np.float32)).sum((0, 2))
