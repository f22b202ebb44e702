"""losses/spike_count.py of the spec in JAX."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.losses.spike_count import SpikeCount
from stsbp_spec.synapses.psp import PSP

__all__ = ["distance"]


def _difference(s: Array, targets: Array) -> Array:
    return s.sum(0, dtype=np.float32) - targets.sum(0, dtype=np.float32)


def distance(loss: SpikeCount, psp: PSP, s: Array, targets: Array) -> Array:
    """Distance of each sample, float32 `[B]`."""
    return jnp.square(_difference(s, targets) / s.shape[0]).sum(-1) * 0.5
