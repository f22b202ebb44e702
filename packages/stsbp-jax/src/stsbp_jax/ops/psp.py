"""The synaptic filter (ops/psp.py of the spec) as a differentiable function."""

from __future__ import annotations

from jax import Array
from stsbp_spec.networks.ops.psp import PSP

from stsbp_jax.backend import OPERATIONS
from stsbp_jax.engine.compiling import pair

__all__ = ["psp"]


def psp(psp: PSP, s: Array) -> Array:
    """Postsynaptic potentials of the spike trains `s`, Eq. (3a). Both are float32 `[T, ...]`. Differentiable in `s`."""
    potentials: Array = _psp(psp, s)
    return potentials


_psp = pair(
    1, lambda psp, s: (OPERATIONS.psp_forward(psp, s), None), lambda psp, _, da: (OPERATIONS.psp_backward(psp, da),)
)
