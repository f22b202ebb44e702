"""neurons/lif.py of the spec in JAX: one `lax.scan` over the time steps each way.

The scans run on flat neurons, `[T, B * N]`, which vectorises. Spikes are not kept: they are `u >= V_th`.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.errors import ShapeError
from stsbp_spec.neurons.lif import LIF
from stsbp_spec.synapses.psp import Filter

from stsbp_jax.checks import check_finite
from stsbp_jax.grid import ZERO, Rounding, snap
from stsbp_jax.surrogates import derivative

__all__ = ["backward", "forward", "lif", "spikes"]


def spikes(neuron: LIF, u: Array) -> Array:
    """Eq. (5): spikes, float32, from membrane potentials of any shape."""
    return (u >= np.float32(neuron.threshold)).astype(np.float32)


def forward(neuron: LIF, filter: Filter, z: Array, steps: int) -> Array:
    """Eq. (3a), (4): membrane potentials `[T, B, ...]` from `z` `[1 or T, B, ...]`."""
    flat = z.reshape(z.shape[0], -1)
    rounded = Rounding(flat)
    km, vth = neuron.decay, np.float32(neuron.threshold)
    static = flat.shape[0] == 1

    def step(state: tuple[Array, Array], z_t: Array | None) -> tuple[tuple[Array, Array], Array]:
        i, u = state
        m = jnp.where(u >= vth, ZERO, rounded(km * u))
        i = snap(rounded(filter.decay * i) + rounded(filter.gain * (flat[0] if z_t is None else z_t)))
        u = snap(m + i)
        return (i, u), u

    rest = jnp.zeros(flat.shape[1:], np.float32)
    _, u = lax.scan(step, (rest, rest), None if static else flat, length=steps)
    return u.reshape(steps, *z.shape[1:])


def backward(neuron: LIF, filter: Filter, u: Array, ds: Array, *, static: bool) -> Array:
    """Eq. (10)-(17): `dL/dz` from `g = dL/do`; `[1, B, ...]` where the input was static, else `[T, B, ...]`."""
    flat = u.reshape(u.shape[0], -1)
    rounded = Rounding(flat)
    km, vth = neuron.decay, np.float32(neuron.threshold)

    def step(
        state: tuple[Array, Array, Array | None], at_t: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array | None], Array | None]:
        d, e, total = state
        u_t, g = at_t
        h = derivative(neuron.surrogate, u_t - vth, rounded)
        d1 = snap(rounded(km * d))
        p = snap(rounded(u_t * d1))
        r = snap(rounded(h * (g - p)))
        d = r + jnp.where(u_t >= vth, ZERO, d1)
        e = snap(rounded(filter.decay * e) + d)
        dz = rounded(filter.gain * e)
        return ((d, e, dz + total), None) if total is not None else ((d, e, None), dz)

    rest = jnp.zeros(flat.shape[1:], np.float32)
    at = (flat, ds.reshape(flat.shape))
    state: tuple[Array, Array, Array | None] = (rest, rest, rest if static else None)
    (_, _, total), dz = lax.scan(step, state, at, reverse=True)
    result = cast(Array, total if static else dz)
    return result.reshape(1 if static else u.shape[0], *u.shape[1:])


def lif(neuron: LIF, filter: Filter, z: Array, steps: int) -> Array:
    """Spikes of a layer of LIF neurons after their synaptic filter, Eq. (3a)-(5); differentiable in `z`.

    Args:
        neuron: the neurons' parameters; the surrogate derivative among them serves the backward pass.
        filter: synaptic filter, `PSP(tau_s).filter()` or `IDENTITY`.
        z: weighted spikes of the layer below, float32 `[T, B, ...]`, or `[1, B, ...]` for one input at every step.
        steps: `T`.

    Returns:
        Spikes, float32 `[T, B, ...]`; NaN where the potential is not finite: inside a jit nothing can be raised.

    Raises:
        ShapeError: `steps` is not that of `z`.
        NumericError: a value of `z` is not finite.
    """
    if z.ndim < 1 or steps < 1 or z.shape[0] not in (1, steps):
        raise ShapeError(f"z must be [T, B, ...] or [1, B, ...] with T = steps = {steps}, got {z.shape}")
    check_finite("lif", z)
    return _lif(neuron, filter, steps, z.shape[0] == 1 and steps > 1, z)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _lif(neuron: LIF, filter: Filter, steps: int, static: bool, z: Array) -> Array:
    return _lif_forward(neuron, filter, steps, static, z)[0]


def _lif_forward(neuron: LIF, filter: Filter, steps: int, static: bool, z: Array) -> tuple[Array, Array]:
    u = forward(neuron, filter, z, steps)
    return jnp.where(jnp.isfinite(u), spikes(neuron, u), np.float32(np.nan)), u


def _lif_backward(neuron: LIF, filter: Filter, steps: int, static: bool, u: Array, ds: Array) -> tuple[Array]:
    return (backward(neuron, filter, u, ds, static=static),)


_lif.defvjp(_lif_forward, _lif_backward)
