"""Neurons of the spec, of any model, as a differentiable function."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.backend import NeuronResiduals
from stsbp_spec.errors import ShapeError
from stsbp_spec.neurons.base import NeuronModel
from stsbp_spec.synapses.psp import SynapticFilter

from stsbp_jax.checks import check_finite
from stsbp_jax.pairs import PAIRS

__all__ = ["lif"]


def lif(neuron: NeuronModel, filter: SynapticFilter, z: Array, steps: int) -> Array:
    """Spikes of a layer of neurons after their synaptic filter, Eq. (3a)-(5) for `LIF`; differentiable in `z`.

    Args:
        neuron: model and parameters, `LIF(...)` or another; its surrogate derivative serves the backward pass.
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
def _lif(neuron: NeuronModel, filter: SynapticFilter, steps: int, static: bool, z: Array) -> Array:
    return _lif_forward(neuron, filter, steps, static, z)[0]


def _lif_forward(
    neuron: NeuronModel, filter: SynapticFilter, steps: int, static: bool, z: Array
) -> tuple[Array, dict[str, Array]]:
    spikes, residuals = PAIRS.neuron_forward(neuron, filter, z, steps)
    finite = jnp.isfinite(PAIRS.neuron_potentials(residuals))
    return jnp.where(finite, spikes.astype(np.float32), np.float32(np.nan)), residuals.kept


def _lif_backward(
    neuron: NeuronModel, filter: SynapticFilter, steps: int, static: bool, kept: dict[str, Array], ds: Array
) -> tuple[Any]:
    # The way back reads what was kept, not the spikes.
    return (PAIRS.neuron_backward(neuron, filter, NeuronResiduals(kept, None, static), ds),)


_lif.defvjp(_lif_forward, _lif_backward)
