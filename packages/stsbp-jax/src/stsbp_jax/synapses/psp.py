"""synapses/psp.py of the spec in JAX: one `lax.scan` over the time steps each way."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.synapses.psp import PSP

from stsbp_jax.grid import Rounding, snap

__all__ = ["adjoint", "backward", "forward", "potentials", "psp"]


def potentials(psp: PSP, x: Array, rounded: Rounding) -> Array:
    """`a_t = snap(k a_{t-1} + c x_t)`, `[T, ...]` float32."""
    filter = psp.filter()

    def step(a: Array, x_t: Array) -> tuple[Array, Array]:
        a = snap(rounded(filter.decay * a) + rounded(filter.gain * x_t))
        return a, a

    return lax.scan(step, jnp.zeros(x.shape[1:], np.float32), x)[1]


def adjoint(psp: PSP, da: Array, rounded: Rounding) -> Array:
    """`e_t = snap(k e_{t+1} + da_t)`, `[T, ...]` float32."""
    filter = psp.filter()

    def step(e: Array, da_t: Array) -> tuple[Array, Array]:
        e = snap(rounded(filter.decay * e) + da_t)
        return e, e

    return lax.scan(step, jnp.zeros(da.shape[1:], np.float32), da, reverse=True)[1]


def forward(psp: PSP, s: Array) -> Array:
    """Eq. (3a): potentials `[T, ...]` of spike trains of any number type."""
    x = s.astype(np.float32)
    return potentials(psp, x, Rounding(x))


def backward(psp: PSP, da: Array) -> Array:
    """Adjoint: `dL/do` from `dL/da`."""
    rounded = Rounding(da)
    return rounded(psp.filter().gain * adjoint(psp, da, rounded))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def psp(psp: PSP, s: Array) -> Array:
    """Postsynaptic potentials, Eq. (3a), float32 `[T, ...]`; differentiable in `s`, float32 spike trains `[T, ...]`."""
    return forward(psp, s)


psp.defvjp(lambda psp, s: (forward(psp, s), None), lambda psp, _, da: (backward(psp, da),))
