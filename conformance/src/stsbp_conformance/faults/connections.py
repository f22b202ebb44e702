"""Faults in what neurons read: recurrences, delays, merged branches, several projections, biases; and in learned
parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import CEILING
from stsbp_spec.equations.assembly import NeuronEquations, neuron_equations
from stsbp_spec.equations.expressions import Expr, Names, snap
from stsbp_spec.networks.ops import Add, Concat, Filter
from stsbp_spec.networks.ops.one_to_one import PRODUCT
from stsbp_spec.networks.ops.psp import Biased, FilterAdjoint, FilterStep, SecondOrderFilter, SynapticFilter
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32

from stsbp_conformance.faults.changes import Change, Fault, equation, method, neuron, rule
from stsbp_conformance.reference import NUMPY

__all__ = ["FAULTS"]

Carried = tuple[AnyArray, ...]


def _scan(other: Change, *, reverse: bool = False) -> type[NumpyBackend]:
    """Another `scan` in one direction of time."""

    def changed(correct: Change, *args: Any, **options: Any) -> Any:
        if options.get("reverse", False) != reverse:
            return correct(*args, **options)
        return other(correct, *args, **options)

    return method(scan=changed)


def _of_the_same_step(correct: Change, step: Change, *args: Any, **options: Any) -> Any:
    def at_once(carried: Carried, inputs: Any) -> Any:
        (spikes, *_), _ = step(carried, inputs)
        return step((spikes, *carried[1:]), inputs)

    return correct(at_once, *args, **options)


def _step_late(correct: Change, step: Change, carried: Carried, *args: Any, **options: Any) -> Any:
    """What a recurrence carries first, spikes or their error, reaches the neurons a step later."""

    def later(carried_in: Carried, inputs: Any) -> Any:
        waiting, first, *states = carried_in
        (newest, *next_states), outputs = step((first, *states), inputs)
        return (newest, waiting, *next_states), outputs

    (_, *last), outputs = correct(later, (carried[0], *carried), *args, **options)
    return tuple(last), outputs


def _added_from_the_last(x: Expr) -> Expr | None:
    first = x.args[0].args[0] if x.args[0].op == "snap" else None
    if first is None or first.op != "add" or any(term.op != "snap" for term in first.args):
        return None
    return first.args[0] + snap(first.args[1] + x.args[1])


class _BiasedCurrent(Biased):
    """A filter that adds the bias to its current instead of its input."""

    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        filtered = self.filter.step(p, s, snap(p.gain * z) if self.gain != 1 else z)
        return FilterStep(filtered.states, snap(filtered.current + p.bias))

    def adjoint(self, p: Names, d: Names, current: Expr) -> FilterAdjoint | None:
        return None

    @property
    def carried(self) -> tuple[str, ...]:  # type: ignore[override]
        return ()


def _gain_in_the_filter(biased: Biased) -> SynapticFilter:
    inner = biased.filter
    assert isinstance(inner, Filter | SecondOrderFilter)
    return Biased(replace(inner, gain=np.float32(inner.gain * biased.gain)), np.float32(1))


def _bias(other: Callable[[Biased], SynapticFilter]) -> type[NumpyBackend]:
    """The only filter of a population is another one if it has a bias."""

    def changed(equations: NeuronEquations) -> NeuronEquations:
        first, *others = equations.filters
        if others or not isinstance(first, Biased):
            return equations
        return neuron_equations(other(first), equations.neuron)

    return neuron(changed, "forward", "backward")


def _without_the_last(correct: Change, x: Float32, count: int) -> Any:
    zeroed = x.copy()
    zeroed[0, -1, -1] = 0
    return correct(zeroed, count)


# fmt: off
FAULTS = (
    Fault("RecurrenceOfTheSameStep", "A recurrence reads the spikes of the same step.", _scan(_of_the_same_step)),
    Fault("RecurrenceStepLate", "A recurrence reads the spikes of two steps earlier.", _scan(_step_late)),
    Fault("RecurrentErrorStepLate", "The error of a recurrence arrives one step too early in time.",
          _scan(_step_late, reverse=True)),
    Fault("RecurrentErrorDropped", "A recurrence sends no error back.",
          _scan(lambda correct, step, *args, **options: correct(
              lambda carried, inputs: step((np.zeros_like(carried[0]), *carried[1:]), inputs), *args, **options),
                reverse=True)),
    Fault("RecurrentGradientOfTheSameStep", "The gradient of recurrent weights uses the spikes of the same step.",
          method(shift_time=lambda correct, x, steps: x if steps == 1 else correct(x, steps))),
    Fault("SampleGridOfTheBatch", "The error of a recurrence is rounded on one grid for all samples.",
          method(sample_grid=lambda correct, dz, bits: NUMPY.error_grid(dz, bits)[0])),
    Fault("NoSampleGrid", "The error of a recurrence is not rounded.",
          method(sample_grid=lambda correct, dz, bits: dz)),
    Fault("DelayStepLonger", "Delays of two or more steps are one step too long.",
          method(shift_time=lambda correct, x, steps: correct(x, steps + (steps > 1) - (steps < -1)))),
    Fault("DelayWrapsAround", "Values that are delayed beyond the last step are read at the first steps.",
          method(shift_time=lambda correct, x, steps: np.roll(x, steps, axis=0))),
    Fault("DelayedErrorNotMovedBack", "The error of a delayed edge stays at the step in which it was read.",
          method(shift_time=lambda correct, x, steps: x if steps < 0 else correct(x, steps))),
    Fault("LastBranchDropped", "A sum leaves out its last branch.",
          rule(Add, forward=lambda correct, op, *xs: (correct(op, *xs[:-1])[0], correct(op, *xs)[1]))),
    Fault("ErrorOfOneBranch", "The error of a sum goes to its first branch alone.",
          rule(Add, backward=lambda correct, op, count, error: (error, *[None] * (count - 1)))),
    Fault("BranchesConcatenatedFromTheLast", "A concatenation begins with the channels of its last branch.",
          rule(Concat, forward=lambda correct, op, *xs: (correct(op, *xs[::-1])[0], correct(op, *xs)[1]))),
    Fault("ErrorsOfOtherChannels",
          "The branches of a concatenation get the errors of channels in the order from the last branch to the first.",
          rule(Concat, backward=lambda correct, op, counts, error: correct(op, counts[::-1], error)[::-1])),
    Fault("ConcatenatedInTheTypeOfTheFirst",
          "A concatenation of spikes and means keeps bytes, so that the means become zero.",
          rule(Concat, forward=lambda correct, op, *xs: (
              correct(op, *xs)[0].astype(xs[0].dtype), correct(op, *xs)[1]))),
    Fault("ProjectionsSwapped", "The filters of several projections are used in reverse order.",
          method(population_forward=lambda correct, equations, zs, *args: correct(equations, zs[::-1], *args))),
    Fault("CurrentsAddedFromTheLast", "The currents of three projections are added from the last to the first.",
          equation("forward", add=_added_from_the_last)),
    Fault("OneToOneOfTheNextNeuron", "With one weight per neuron, each neuron uses the weight of the next one.",
          equation(PRODUCT.name, inputs=lambda inputs: {
              name: np.roll(x, 1, axis=-1) if name == "w" else x for name, x in inputs.items()})),
    Fault("BiasAfterTheFilter", "The bias is added to the current, after the filter.",
          _bias(lambda biased: _BiasedCurrent(biased.filter, biased.gain))),
    Fault("BiasWithTheGain", "The factor of dropout also multiplies the bias.", _bias(_gain_in_the_filter)),
    Fault("LearnedTermDropped",
          "The contribution of the last neuron of the last sample to the gradient of a learned parameter is lost.",
          method(channel_totals=_without_the_last)),
    Fault("LearnedSumInFloat32", "The gradient of a learned parameter is added in float32.",
          method(channel_totals=lambda correct, x, count: (
              np.moveaxis(x, 2, 0).reshape(count, -1).cumsum(axis=1, dtype=np.float32)[:, -1]))),
    Fault("LearnedWithoutErrorGrid",
          "Contributions of neurons to the gradient of a learned parameter are not rounded to an error grid.",
          method(learned_gradient=lambda correct, terms, count, precision: correct(terms, count, "fast"))),
    Fault("LearnedOfOneChannel", "Every channel uses the learned parameter of the first one.",
          method(broadcast=lambda correct, values, shape: correct(values[:1], shape))),
    Fault("LearnedLeavesItsDomain", "An update moves a learned parameter out of its domain.",
          method(updated=lambda correct, scalars, domain, *args: correct(
              scalars, domain and (-CEILING, CEILING), *args))),
    Fault("LearnedDecays", "Learned parameters decay like weights.",
          method(updated=lambda correct, scalars, domain, w, *args: correct(
              scalars, domain, w if domain is None else scalars.decay * w, *args))),
)
