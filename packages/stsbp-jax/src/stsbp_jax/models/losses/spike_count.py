"""Implements losses/spike_count.py of the spec in JAX."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.models.losses.spike_count import SpikeCount
from stsbp_spec.networks.ops.psp import PSP

from stsbp_jax.backend import OPERATIONS

__all__ = ["distance"]


def distance(loss: SpikeCount, psp: PSP, s: Array, targets: Array, inside: Array | None = None) -> Array:
    """Distance of each sample, float32 `[B]`, over the steps where `inside`, `[T, B]`, is non-zero; None: all steps."""
    steps: Array | int = s.shape[0]
    if inside is not None:
        s, targets = OPERATIONS.mask_steps(s, inside), OPERATIONS.mask_steps(targets, inside)
        steps = inside.sum(0, dtype=np.float32)[:, None]
    difference = s.sum(0, dtype=np.float32) - targets.sum(0, dtype=np.float32)
    return jnp.square(difference / steps).sum(-1) * 0.5
