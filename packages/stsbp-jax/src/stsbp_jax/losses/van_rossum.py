"""losses/van_rossum.py of the spec in JAX."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.losses.van_rossum import VanRossum
from stsbp_spec.synapses.psp import PSP

from stsbp_jax.grid import Rounding
from stsbp_jax.synapses import psp as filters

__all__ = ["distance", "error"]


def error(loss: VanRossum, psp: PSP, s: Array, targets: Array) -> Array:
    """Eq. (13), (17) of the output layer: `dL/do`, `[T, B, N]`."""
    difference = s.astype(np.float32) - targets.astype(np.float32)
    rounded = Rounding(difference)
    e = filters.adjoint(psp, filters.potentials(psp, difference, rounded), rounded)
    return rounded(psp.filter(1 / s.shape[1]).gain * e)


def distance(loss: VanRossum, psp: PSP, s: Array, targets: Array) -> Array:
    """Distance of each sample, float32 `[B]`."""
    return jnp.square(filters.forward(psp, s.astype(np.float32) - targets.astype(np.float32))).sum((0, 2)) * 0.5
