"""Implements losses/hamming.py of the spec in JAX."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.models.losses.hamming import Hamming
from stsbp_spec.networks.ops.psp import PSP

from stsbp_jax.backend import OPERATIONS

__all__ = ["distance"]


def distance(loss: Hamming, psp: PSP, s: Array, targets: Array, inside: Array | None = None) -> Array:
    """Distance of each sample, float32 `[B]`, over the steps where `inside`, `[T, B]`, is non-zero; None: all steps."""
    parts = jnp.abs(s.astype(np.float32) - targets.astype(np.float32))
    return (parts if inside is None else OPERATIONS.mask_steps(parts, inside)).sum((0, 2))
