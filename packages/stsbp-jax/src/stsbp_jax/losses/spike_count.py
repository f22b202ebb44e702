"""losses/spike_count.py of the spec in JAX."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.losses.spike_count import SpikeCount
from stsbp_spec.synapses.psp import PSP

from stsbp_jax.grid import Rounding

__all__ = ["distance", "error"]


def _difference(s: Array, targets: Array) -> Array:
    return s.sum(0, dtype=np.float32) - targets.sum(0, dtype=np.float32)


def error(loss: SpikeCount, psp: PSP, s: Array, targets: Array) -> Array:
    """`dL/do = (count - target count) / (T^2 B)`, the same at every step, `[T, B, N]`."""
    steps, batch = s.shape[:2]
    difference = _difference(s, targets)
    once = Rounding(difference)(np.float32(1 / (steps * steps * batch)) * difference)
    return jnp.broadcast_to(once, s.shape)


def distance(loss: SpikeCount, psp: PSP, s: Array, targets: Array) -> Array:
    """Distance of each sample, float32 `[B]`."""
    return jnp.square(_difference(s, targets) / s.shape[0]).sum(-1) * 0.5
