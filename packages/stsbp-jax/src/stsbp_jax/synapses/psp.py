"""The synaptic filter (synapses/psp.py of the spec) as a differentiable function."""

from __future__ import annotations

from functools import partial

import jax
from jax import Array
from stsbp_spec.synapses.psp import PSP

from stsbp_jax.backend import PAIRS

__all__ = ["psp"]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def psp(psp: PSP, s: Array) -> Array:
    """Postsynaptic potentials of the spike trains `s`, Eq. (3a). Both are float32 `[T, ...]`. Differentiable in `s`."""
    potentials: Array = PAIRS.psp_forward(psp, s)
    return potentials


psp.defvjp(lambda psp, s: (PAIRS.psp_forward(psp, s), None), lambda psp, _, da: (PAIRS.psp_backward(psp, da),))
