"""Neurons of the spec, of any model, as a differentiable function."""

from __future__ import annotations

from collections.abc import Mapping
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
from stsbp_spec.typing import Precision

from stsbp_jax.backend import PAIRS
from stsbp_jax.checks import check_finite, in_domain
from stsbp_jax.varying import alike

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
    """Spikes of a layer of neurons after their synaptic filter, Eq. (3a)-(5) for `LIF`.

    Differentiable in `z` and in `learned`.

    Args:
        neuron: model and parameters, `LIF(...)` or another; its surrogate derivative serves the backward pass.
        filter: synaptic filter, `PSP(tau_s).filter()` or `IDENTITY`.
        z: weighted spikes of the layer below, float32 `[T, B, ...]`, or `[1, B, ...]` for one input at every step;
            channels are the last axis.
        steps: `T`.
        learned: learned numbers of the filter (`bias`) and of the model by name, each `[1]` or one a channel; None: as
            they are before any update.
        precision: of the gradients of `learned`.

    Returns:
        Spikes, float32 `[T, B, ...]`; NaN where the potential is not finite, or a learned number outside of its
        domain: inside a jit nothing can be raised.

    Raises:
        ShapeError: `steps` is not that of `z`, or `learned` are not the model's numbers.
        NumericError: a value of `z` is not finite, or a learned number outside of its domain.
    """
    if z.ndim < 1 or steps < 1 or z.shape[0] not in (1, steps):
        raise ShapeError(f"z must be [T, B, ...] or [1, B, ...] with T = steps = {steps}, got {z.shape}")
    check_finite("lif", z)
    ends = {**filter.learned(), **neuron.learned()}
    expected = {name: each.values((z.shape[-1],)) for name, each in ends.items()}
    given = {name: jnp.asarray(x) for name, x in (expected if learned is None else learned).items()}
    shapes, wanted = ({name: (x.shape, x.dtype.name) for name, x in each.items()} for each in (given, expected))
    if shapes != wanted:
        raise ShapeError(f"the learned numbers of {neuron.name} are {wanted}, got {shapes}")
    given = {
        name: in_domain(f"{name} of {neuron.name}", x, ends[name].low, ends[name].high) for name, x in given.items()
    }
    return _lif(neuron, filter, steps, z.shape[0] == 1 and steps > 1, precision, *alike((z, given)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def _lif(
    neuron: NeuronModel,
    filter: SynapticFilter,
    steps: int,
    static: bool,
    precision: Precision,
    z: Array,
    learned: dict[str, Array],
) -> Array:
    return _lif_forward(neuron, filter, steps, static, precision, z, learned)[0]


def _lif_forward(
    neuron: NeuronModel,
    filter: SynapticFilter,
    steps: int,
    static: bool,
    precision: Precision,
    z: Array,
    learned: dict[str, Array],
) -> tuple[Array, Any]:
    spikes, residuals = PAIRS.neuron_forward(neuron, filter, z, steps, learned)
    finite = jnp.isfinite(PAIRS.neuron_potentials(residuals))
    fired = jnp.where(finite, spikes.astype(np.float32), np.float32(np.nan))
    return fired, (residuals.kept, dict(residuals.learned), learned)


def _lif_backward(
    neuron: NeuronModel, filter: SynapticFilter, steps: int, static: bool, precision: Precision, kept: Any, ds: Array
) -> tuple[Array, dict[str, Array]]:
    # The way back reads what was kept, not the spikes: any array stands for them.
    values, each, learned = kept
    dz, terms = PAIRS.neuron_backward(neuron, filter, NeuronResiduals(values, ds, static, each), ds)
    return dz, {name: PAIRS.learned_gradient(x, len(learned[name]), precision) for name, x in terms.items()}


_lif.defvjp(_lif_forward, _lif_backward)
