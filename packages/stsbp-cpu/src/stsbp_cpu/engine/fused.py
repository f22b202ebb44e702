"""Applies the fused kernels for neurons, and for the filter before them, to a library's own arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.typing import Array, Float32, Shape

from stsbp_cpu.engine.layout import Layout, beside_u, learned_numbers, numbers
from stsbp_cpu.models import neurons, populations
from stsbp_cpu.models.neurons import NOTHING
from stsbp_cpu.models.populations import RecurrentWeights

__all__ = [
    "backward_all",
    "empty_saved_values",
    "forward_all",
    "kept_arrays",
    "population_backward",
    "population_forward",
    "spikes_alone",
]  # fmt: skip


def spikes_alone(
    backend: Operations[Array],
    layout: Layout[Array],
    equations: NeuronEquations,
    z: Array,
    steps: int,
    learned: Mapping[str, Array],
) -> Array:
    """The spikes of `population_forward` with one input if no backward pass follows."""
    neuron_parameters = backend.broadcast_all(equations, learned, tuple(z.shape[1:]))
    return _fire(layout, equations, z, NOTHING, empty_saved_values(equations), steps, neuron_parameters)


def kept_arrays(layout: Layout[Array], equations: NeuronEquations, shape: Shape) -> dict[str, Array]:
    """Uninitialised arrays of shape `shape`, `[T, B, ...]`, for what the backward pass reads, by name."""
    return dict(zip(equations.kept, layout.end_to_end(len(equations.kept), shape), strict=True))


def empty_saved_values(equations: NeuronEquations) -> Float32:
    """An empty array, `[K, 1, 0]`, in place of the values that are kept besides the potentials."""
    return np.empty((len(equations.kept) - 1, 1, 0), np.float32)


def population_forward(
    backend: Operations[Array],
    layout: Layout[Array],
    equations: NeuronEquations,
    zs: Sequence[Array],
    steps: int,
    learned: Mapping[str, Array],
) -> tuple[Array, NeuronResiduals[Array]]:
    """Implements `Operations.population_forward` for `backend`."""
    neuron_parameters = backend.broadcast_all(equations, learned, tuple(zs[0].shape[1:]))
    if len(zs) > 1:
        spikes, saved = forward_all(layout, equations, zs, steps, neuron_parameters)
        return spikes, NeuronResiduals(saved, spikes, static=False, learned=neuron_parameters)
    (z,) = zs
    saved = kept_arrays(layout, equations, (steps, *z.shape[1:]))
    spikes = _fire(
        layout, equations, z, layout.rows(saved["u"]), beside_u(layout, equations, saved), steps, neuron_parameters
    )
    return spikes, NeuronResiduals(saved, spikes, len(z) == 1 and steps > 1, neuron_parameters)


def population_backward(
    layout: Layout[Array],
    equations: NeuronEquations,
    residuals: NeuronResiduals[Array],
    ds: Array,
    static: Sequence[bool],
) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """Implements `Operations.population_backward`."""
    if len(static) > 1 or "gu" in residuals.kept:
        summed = sorted({error for error, is_static in zip(equations.errors, static, strict=True) if is_static})
        errors, terms = backward_all(layout, equations, residuals, ds, summed)
        return tuple(errors[name] for name in equations.errors), terms
    saved, (steps, *shape) = residuals.kept, ds.shape
    dz = layout.empty((1 if static[0] else steps, *shape), np.float32)
    terms = dict(zip(equations.terms, layout.end_to_end(len(equations.terms), (1, *shape)), strict=True))
    error, dz_rows = layout.rows(layout.laid_out(ds)), layout.rows(dz)
    learned_arrays = learned_numbers(layout, equations, residuals.learned), numbers(layout, equations.terms, terms)
    neurons.backward(
        equations, layout.rows(saved["u"]), beside_u(layout, equations, saved), error, dz_rows, *learned_arrays
    )
    return (dz,), terms


def _fire(
    layout: Layout[Array],
    equations: NeuronEquations,
    z: Array,
    u: Float32,
    saved_besides_u: Float32,
    steps: int,
    learned: Mapping[str, Array],
) -> Array:
    """Spikes `[T, ...]` from `z`, `[1 or T, ...]`. `learned` is `NeuronResiduals.learned`.

    Fills `u` and `saved_besides_u` in the same way as `neurons.forward`.
    """
    spikes = layout.empty((steps, *z.shape[1:]), np.uint8)
    of_learned = learned_numbers(layout, equations, learned)
    neurons.forward(equations, layout.rows(layout.laid_out(z)), u, layout.rows(spikes), saved_besides_u, of_learned)
    return spikes


def forward_all(
    layout: Layout[Array],
    equations: NeuronEquations,
    zs: Sequence[Array | None],
    steps: int,
    learned: Mapping[str, Array],
    loop: RecurrentWeights | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Compute all steps of neurons with several inputs. None in `zs` stands for the input of `loop`."""
    first = next(z for z in zs if z is not None)
    shape = (steps, *first.shape[1:])
    saved = kept_arrays(layout, equations, shape)
    spikes = layout.empty(shape, np.uint8)
    z_rows = [None if z is None else layout.rows(layout.laid_out(z)) for z in zs]
    u, fired = layout.rows(saved["u"]), layout.rows(spikes)
    populations.forward(
        equations,
        z_rows,
        u,
        fired,
        beside_u(layout, equations, saved),
        learned_numbers(layout, equations, learned),
        loop,
    )
    return spikes, saved


def backward_all(
    layout: Layout[Array],
    equations: NeuronEquations,
    residuals: NeuronResiduals[Array],
    ds: Array,
    static: Sequence[str],
    loop: RecurrentWeights | None = None,
    bits: int = 0,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Error signals of the inputs, by the names of `equations.errors`, and the terms of `population_backward`.

    The error signals named in `static` are summed over the steps. For `loop` and `bits`, see `populations.backward`.
    """
    saved, shape = residuals.kept, tuple(ds.shape)
    varying = [name for name in dict.fromkeys(equations.errors) if name not in static]
    summed = [*static, *equations.terms]
    step_errors = dict(zip(varying, layout.end_to_end(len(varying), shape), strict=True))
    sums = dict(zip(summed, layout.end_to_end(len(summed), (1, *shape[1:])), strict=True))
    populations.backward(
        equations, tuple(static), layout.rows(saved["u"]), beside_u(layout, equations, saved),
        layout.rows(layout.laid_out(ds)), layout.concatenate([*step_errors.values()]), numbers(layout, summed, sums),
        learned_numbers(layout, equations, residuals.learned), loop, bits,
    )  # fmt: skip
    return step_errors | {name: sums[name] for name in static}, {name: sums[name] for name in equations.terms}
