"""Neurons of any model of the spec as a differentiable function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.engine.backend import NeuronResiduals
from stsbp_spec.engine.checks import check_precision_name
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.networks.ops.psp import SynapticFilter
from stsbp_spec.typing import Precision

from stsbp_jax.backend import OPERATIONS
from stsbp_jax.distributed.replication import match_replication
from stsbp_jax.engine.checks import as_array, check_finite, in_domain
from stsbp_jax.engine.compiling import pair

__all__ = ["lif"]


def lif(
    neuron: NeuronModel,
    filter: SynapticFilter,
    z: Array,
    steps: int,
    learned: Mapping[str, Array] | None = None,
    *,
    precision: Precision = "fast",
) -> Array:
    """Spikes of a layer of neurons with the synaptic filter before them, Eq. (3a)-(5) for `LIF`.

    The function is differentiable in `z` and in `learned`.

    Args:
        neuron: neuron model with its parameters, for example `LIF(...)`. Its surrogate derivative is used in the
            backward pass.
        filter: synaptic filter, `PSP(tau_s).filter()` or `IDENTITY`.
        z: weighted spikes of the layer below, float32 `[T, B, ...]`, or `[1, B, ...]` for the same input at every step.
            Channels are the last axis.
        steps: number of steps, `T`.
        learned: learned parameters of the filter (`bias`) and of the model by name, each `[1]` or one per channel;
            None: the initial values.
        precision: precision of the gradients of `learned`.

    Returns:
        Spikes, float32 `[T, B, ...]`. Inside a jit, no error can be raised. Spikes are then NaN where the potential is
        not finite or a learned parameter is outside its domain.

    Raises:
        SpecError: the precision is unknown.
        ShapeError: `steps` does not fit `z`, or `learned` does not contain the parameters of the model.
        NumericError: a value of `z` is not finite, or a learned parameter is outside its domain.
    """
    check_precision_name(precision)
    if z.ndim < 1 or steps < 1 or z.shape[0] not in (1, steps):
        raise ShapeError(f"z must be [T, B, ...] or [1, B, ...] with T = steps = {steps}, got {z.shape}")
    check_finite("the input of lif", z)
    domains = {**filter.learned(), **neuron.learned()}
    expected = {name: parameter.values((z.shape[-1],)) for name, parameter in domains.items()}
    values = {name: as_array(x) for name, x in (expected if learned is None else learned).items()}
    shapes, expected_shapes = (
        {name: (x.shape, x.dtype.name) for name, x in arrays.items()} for arrays in (values, expected)
    )
    if shapes != expected_shapes:
        raise ShapeError(f"the learned parameters of {neuron.name} are {expected_shapes}, got {shapes}")
    values = {
        name: in_domain(f"{name} of {neuron.name}", x, domains[name].low, domains[name].high)
        for name, x in values.items()
    }
    spikes: Array = _lif(
        neuron, filter, steps, z.shape[0] == 1 and steps > 1, precision, *match_replication((z, values))
    )
    return spikes


def _forward(
    neuron: NeuronModel,
    filter: SynapticFilter,
    steps: int,
    static: bool,
    precision: Precision,
    z: Array,
    learned: dict[str, Array],
) -> tuple[Array, Any]:
    spikes, residuals = OPERATIONS.neuron_forward(neuron, filter, z, steps, learned)
    finite = jnp.isfinite(OPERATIONS.neuron_potentials(residuals))
    fired = jnp.where(finite, spikes.astype(np.float32), np.float32(np.nan))
    return fired, (residuals.kept, dict(residuals.learned), learned)


def _backward(
    neuron: NeuronModel, filter: SynapticFilter, steps: int, static: bool, precision: Precision, saved: Any, ds: Array
) -> tuple[Array, dict[str, Array]]:
    # The backward pass reads the kept values, not the spikes, so any array can take the place of the spikes.
    values, neuron_parameters, learned = saved
    dz, terms = OPERATIONS.neuron_backward(neuron, filter, NeuronResiduals(values, ds, static, neuron_parameters), ds)
    return dz, {name: OPERATIONS.learned_gradient(x, len(learned[name]), precision) for name, x in terms.items()}


_lif = pair(5, _forward, _backward)
