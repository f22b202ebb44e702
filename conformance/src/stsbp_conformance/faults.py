"""Tests of the suite itself: each backend here is wrong in one place, and the suite must fail on each of them.

Each fault is the numpy reference with one method replaced, or with an equation that is written, printed or run wrongly
(`_Miswritten`). `caught(fault)` runs the quick checks of all tiers on it.
`python -m stsbp_conformance.faults FILE.json` prints and writes a table of the faults and the tiers that detect them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from stsbp_spec import arrays, grid
from stsbp_spec.adjoint import substituted
from stsbp_spec.backend import Batch, RunResult, ValueAndGrad
from stsbp_spec.encoders.packed import Inputs, PackedFrames
from stsbp_spec.equations import Constants, NeuronEquations, neuron_equations
from stsbp_spec.errors import NumericError
from stsbp_spec.expr import Expr, Names, Recurrence, constant, ordered, snap, sqrt, variable, where
from stsbp_spec.graph import Op, Projection
from stsbp_spec.grid import CEILING, FLOOR, WeightGrid
from stsbp_spec.losses import LOSSES, Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.network import NetworkSpec
from stsbp_spec.neurons import LIF, NeuronModel
from stsbp_spec.optim.adamw import AdamWScalars, norm_exponent
from stsbp_spec.plan import Chain, Sum
from stsbp_spec.printers import LANGUAGES, Language, compiled
from stsbp_spec.reference.backend import NumpyBackend, of_windows, pool_windows, recur
from stsbp_spec.rules import BackwardResult, ForwardResult, Fusion, Rule, Run, Step
from stsbp_spec.stream import Stream
from stsbp_spec.surrogates import SURROGATES, Triangle
from stsbp_spec.synapses import PSP, AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d, batchnorm
from stsbp_spec.synapses.bias import Biased
from stsbp_spec.synapses.one_to_one import PRODUCT
from stsbp_spec.synapses.psp import Filter, FilterAdjoint, FilterStep, SecondOrderFilter, SynapticFilter
from stsbp_spec.trainer import StepResult, Trainer, TrainState
from stsbp_spec.typing import AnyArray, Coding, Float32, Int64, Precision, Shape, UInt8

from stsbp_conformance.check import Check, Mismatch, Unavailable
from stsbp_conformance.tiers import (
    bits,
    errors,
    expressions,
    gradients,
    neurons,
    pairs,
    parts,
    rational,
    reproducible,
    trainer,
)

__all__ = ["FAULTS", "Fault", "caught", "quick_checks"]

Rewrite = Callable[[Expr], Expr | None]
"""A function from an operation to its replacement; None: the operation is not changed."""

Ahead = Callable[..., tuple[AnyArray, Any]]
Back = Callable[..., Any]
"""One of the two functions of a rule."""


def _fma(a: Any, b: Any, c: Any) -> Any:
    return (np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32)


_NUMPY = LANGUAGES["numpy"]
_LANGUAGE = replace(_NUMPY, operations={**_NUMPY.operations, "fma": "fma({0}, {1}, {2})"})
_WORDS: Mapping[str, Any] = {
    "number": np.float32,
    "snap": arrays.snap,
    "where": np.where,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "fma": _fma,
}


def _node(op: str, *args: Expr) -> Expr:
    """An operation exactly as given. `Expr`'s own operators might write it differently."""
    return Expr(op, args)


def rewritten(recurrence: Recurrence, rewrite: Rewrite) -> Recurrence:
    """A recurrence with `rewrite` applied to every operation, operands first. No snaps are added."""
    made: dict[int, Expr] = {}
    for x in ordered(recurrence.roots):
        a = tuple(made[id(operand)] for operand in x.args)
        copy = x.of(a)
        changed = rewrite(copy)
        made[id(x)] = copy if changed is None else changed
    return _with_roots(recurrence, [made[id(x)] for x in recurrence.roots])


def _with_roots(recurrence: Recurrence, roots: Sequence[Expr], **changes: Any) -> Recurrence:
    states = dict(zip(recurrence.states, roots, strict=False))
    outputs = dict(zip(recurrence.outputs, roots[len(states) :], strict=True))
    return recurrence.changed(states=states, outputs=outputs, **changes)


def _reads(x: Expr, name: str) -> bool:
    return any(operand.name == name for operand in x.args)


def _way(recurrence: Recurrence) -> str:
    """`forward` or `backward` for the equations of neurons; for all others their name."""
    if recurrence in (batchnorm.FORWARD, batchnorm.BACKWARD):
        return recurrence.name
    return "forward" if "z" in recurrence.inputs else "backward" if "dz" in recurrence.outputs else recurrence.name


class _Miswritten(NumpyBackend):
    """Equations of the kind `way` (None: all), changed by `rewrite`, and printed in `language` with `words`."""

    way: ClassVar[str | None] = None
    language: ClassVar[Language] = _LANGUAGE
    words: ClassVar[Mapping[str, Any]] = _WORDS

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, AnyArray],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, AnyArray]:
        if self.way not in (None, _way(recurrence)):
            return super().recur(recurrence, constants, inputs, steps, summed=summed)
        step, found = _compiled(type(self), recurrence)
        constants, inputs = self.constants(constants), self.inputs(inputs)
        return recur(found, constants, inputs, steps, summed=summed, step=step)

    def rewrite(self, x: Expr) -> Expr | None:
        """The replacement of an operation."""
        return None

    def written(self, recurrence: Recurrence) -> Recurrence:
        """The recurrence that is actually run."""
        return rewritten(recurrence, self.rewrite)

    def constants(self, constants: Constants) -> Constants:
        """The constants that are actually used."""
        return constants

    def inputs(self, inputs: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
        """The inputs that are actually read."""
        return inputs


@cache
def _compiled(backend: type[_Miswritten], recurrence: Recurrence) -> tuple[Callable[..., Any], Recurrence]:
    found = backend().written(recurrence)
    return compiled(found, backend.language, backend.words), found


def _fused(x: Expr, factor: str | None = None) -> Expr | None:
    """A sum with a product, of `factor` if one is named, as one operation. For two products, the first is fused."""
    if x.op != "add":
        return None
    for product, other in (x.args, x.args[::-1]):
        if product.op == "mul" and (factor is None or _reads(product, factor)):
            return Expr("fma", (*product.args, other), name=x.name)
    return None


class FusedFilter(_Miswritten):
    """A fused multiply-add in the synaptic filter: k*i + c*z with k*i not rounded."""

    way = "forward"

    def rewrite(self, x: Expr) -> Expr | None:
        return _fused(x, "k")


class FusedMembrane(_Miswritten):
    """A fused multiply-add in the membrane: km*u + i rounded once."""

    way = "forward"

    def written(self, recurrence: Recurrence) -> Recurrence:
        return super().written(recurrence) if "km" in recurrence.parameters else recurrence

    def rewrite(self, x: Expr) -> Expr | None:
        if x.op == "mul" and _reads(x, "km"):
            return x.args[1]  # the product is used at the next step
        return _node("fma", variable("km"), *x.args) if x.op == "add" and _reads(x, "m") else None


class FusedAdjoint(_Miswritten):
    """A fused multiply-add in the adjoint of the synaptic filter."""

    way = "backward"

    def rewrite(self, x: Expr) -> Expr | None:
        return _fused(x, "k")


class StrictThreshold(_Miswritten):
    """A spike at u > V_th instead of u >= V_th."""

    way = "forward"

    def rewrite(self, x: Expr) -> Expr | None:
        return _node("lt", *x.args[::-1]) if x.op == "spike" else None


class DecayUlp(_Miswritten):
    """The membrane decay off by one unit in the last place."""

    way, changed = "forward", "km"

    def constants(self, constants: Constants) -> Constants:
        value = constants.get(self.changed, np.float32(0))
        following = np.nextafter(value, np.float32(2), dtype=np.float32) if value > 0 else value
        return {**constants, self.changed: following}


class SynapticDecayUlp(DecayUlp):
    """The synaptic decay off by one unit in the last place."""

    changed = "k"


class NoReset(_Miswritten):
    """The membrane is not reset after a spike."""

    way = "forward"

    def rewrite(self, x: Expr) -> Expr | None:
        return x.args[2] if x.op == "where" else None


class SoftReset(_Miswritten):
    """Reset by subtraction of the threshold instead of reset to zero."""

    way = "forward"

    def rewrite(self, x: Expr) -> Expr | None:
        if x.op != "where" or x.args[2].op != "mul":
            return None
        fired, (decay, u) = x.args[0], x.args[2].args
        return decay * (u - where(fired, fired.args[1], 0))


class NoPspGain(_Miswritten):
    """The gain c_s of the synaptic filter left out."""

    way = "forward"

    def constants(self, constants: Constants) -> Constants:
        return {**constants, "c": np.float32(1)}


class TimeShifted(_Miswritten):
    """The input of a layer arrives one step late."""

    way = "forward"

    def inputs(self, inputs: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
        z = inputs["z"]
        return {**inputs, "z": np.concatenate([np.zeros_like(z[:1]), z[:-1]]) if len(z) > 1 else z}


class NoFloorForward(_Miswritten):
    """No floor: states decay into subnormal numbers."""

    way = "forward"

    def rewrite(self, x: Expr) -> Expr | None:
        return x.args[0] if x.op == "snap" else None


class NoFloorBackward(NoFloorForward):
    """No floor in the backward pass."""

    way = "backward"


class ResetPathDropped(_Miswritten):
    """The path of the gradient through the reset, - k_m u_t d~_{t+1}, is left out."""

    way = "backward"

    def rewrite(self, x: Expr) -> Expr | None:
        return constant(0) if x.name == "pulled" else None


class ResetOneStepLate(_Miswritten):
    """The path through the reset uses the potential of the next step."""

    way = "backward"

    def written(self, recurrence: Recurrence) -> Recurrence:
        return super().written(recurrence.changed(inputs=(*recurrence.inputs, "late")))

    def rewrite(self, x: Expr) -> Expr | None:
        return _node("mul", variable("late"), x.args[1]) if x.op == "mul" and x.args[0].name == "u" else None

    def inputs(self, inputs: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
        return {**inputs, "late": np.concatenate([inputs["u"][1:], inputs["u"][-1:]])}


class LeakThroughSpikes(_Miswritten):
    """The factor (1 - o_t) left out of the membrane iteration factor."""

    way = "backward"

    def rewrite(self, x: Expr) -> Expr | None:
        return x.args[2] if x.op == "where" and x.args[0].op == "spike" else None


class MovingThresholdForgotten(_Miswritten):
    """The backward pass uses the threshold at rest instead of the neuron's actual threshold."""

    way = "backward"

    def rewrite(self, x: Expr) -> Expr | None:
        return variable("vth") if x.op == "variable" and x.name == "threshold" else None


class _OtherNeurons(NumpyBackend):
    """Neurons and filters that are run as others."""

    def other(self, equations: NeuronEquations) -> NeuronEquations:
        """The equations that are run in place of `equations`."""
        raise NotImplementedError

    def population_forward(self, equations: NeuronEquations, *rest: Any) -> Any:
        return super().population_forward(self.other(equations), *rest)

    def population_backward(self, equations: NeuronEquations, *rest: Any) -> Any:
        return super().population_backward(self.other(equations), *rest)


class NeuronTakenForAnother(_OtherNeurons):
    """Neurons of every model are run as LIF."""

    def other(self, equations: NeuronEquations) -> NeuronEquations:
        return _with_neuron(equations, _as_lif(equations.neuron))

    def population_forward(
        self, equations: NeuronEquations, zs: Sequence[AnyArray], steps: int, learned: Mapping[str, AnyArray]
    ) -> Any:
        return super().population_forward(equations, zs, steps, {} if len(zs) == 1 else learned)


def _with_neuron(equations: NeuronEquations, neuron: NeuronModel) -> NeuronEquations:
    """The equations of another model, if there is one projection."""
    return neuron_equations(equations.filters, neuron) if len(equations.filters) == 1 else equations


def _as_lif(neuron: NeuronModel) -> LIF:
    tau_m: float = getattr(neuron, "tau_m", 1e6)
    return LIF(tau_m, neuron.tau_s, neuron.threshold, neuron.surrogate)


class WiderSurrogate(NumpyBackend):
    """The surrogate wider by one part in a million."""

    def population_backward(self, equations: NeuronEquations, *rest: Any) -> Any:
        surrogate = equations.neuron.surrogate
        name = fields(surrogate)[0].name
        factor = 1 + 1e-6 if name == "width" else 1 - 1e-6
        changed: dict[str, Any] = {name: getattr(surrogate, name) * factor}
        neuron = neurons.with_surrogate(equations.neuron, replace(surrogate, **changed))
        return super().population_backward(_with_neuron(equations, neuron), *rest)


class ForwardInTime(_Miswritten):
    """The adjoint runs from the first step to the last."""

    way = "backward"

    def written(self, recurrence: Recurrence) -> Recurrence:
        return recurrence.changed(reverse=False)


def _unsummed(
    recur: Callable[..., dict[str, AnyArray]], recurrence: Recurrence, *args: Any, **options: Any
) -> dict[str, AnyArray]:
    """The outputs of an adjoint that should be summed over the steps, returned for every step."""
    summed = options.get("summed", ()) if recurrence.reverse else ()
    return {name: x for name, x in (recur(recurrence, *args) if summed else {}).items() if name in summed}


class StaticErrorOfLastStep(NumpyBackend):
    """A static input receives the error of one step instead of the sum over all."""

    def recur(self, recurrence: Recurrence, *args: Any, **options: Any) -> dict[str, AnyArray]:
        return super().recur(recurrence, *args, **options) | {
            name: x[:1] for name, x in _unsummed(super().recur, recurrence, *args, **options).items()
        }


class StaticErrorOtherOrder(NumpyBackend):
    """The errors of a static input are added from the first step to the last."""

    def recur(self, recurrence: Recurrence, *args: Any, **options: Any) -> dict[str, AnyArray]:
        return super().recur(recurrence, *args, **options) | {
            name: np.cumsum(x, axis=0)[-1:]
            for name, x in _unsummed(super().recur, recurrence, *args, **options).items()
        }


class LearnedSumOtherOrder(NumpyBackend):
    """Contributions to the gradient of a learned parameter are added from the first step to the last."""

    def recur(self, recurrence: Recurrence, *args: Any, **options: Any) -> dict[str, AnyArray]:
        return super().recur(recurrence, *args, **options) | {
            name: np.cumsum(x, axis=0)[-1:]
            for name, x in _unsummed(super().recur, recurrence, *args, **options).items()
            if name != "dz"
        }


class RecurrenceOfTheSameStep(NumpyBackend):
    """A recurrence reads the spikes of the same step."""

    def scan(self, step: Any, carried: Any, inputs: Any, steps: int, *, reverse: bool = False) -> Any:
        def at_once(before: tuple[AnyArray, ...], read: dict[str, AnyArray]) -> Any:
            (spikes, *_), _ = step(before, read)
            return step((spikes, *before[1:]), read)

        return super().scan(step if reverse else at_once, carried, inputs, steps, reverse=reverse)


class RecurrenceStepLate(NumpyBackend):
    """A recurrence reads the spikes of two steps earlier."""

    late: ClassVar[bool] = False
    """Whether the backward pass is wrong."""

    def scan(self, step: Any, carried: Any, inputs: Any, steps: int, *, reverse: bool = False) -> Any:
        if reverse != self.late:
            return super().scan(step, carried, inputs, steps, reverse=reverse)

        def later(before: tuple[AnyArray, ...], read: dict[str, AnyArray]) -> Any:
            waiting, first, *states = before
            (found, *after), made = step((first, *states), read)
            return (found, waiting, *after), made

        (_, *last), made = super().scan(later, (carried[0], *carried), inputs, steps, reverse=reverse)
        return tuple(last), made


class RecurrentErrorStepLate(RecurrenceStepLate):
    """The error of a recurrence arrives one step too early in time."""

    late = True


class RecurrentErrorDropped(NumpyBackend):
    """A recurrence sends no error back."""

    def scan(self, step: Any, carried: Any, inputs: Any, steps: int, *, reverse: bool = False) -> Any:
        def alone(before: tuple[AnyArray, ...], read: dict[str, AnyArray]) -> Any:
            return step((np.zeros_like(before[0]), *before[1:]), read)

        return super().scan(alone if reverse else step, carried, inputs, steps, reverse=reverse)


class RecurrentGradientOfTheSameStep(NumpyBackend):
    """The gradient of recurrent weights uses the spikes of the same step."""

    def shifted(self, x: AnyArray, steps: int) -> AnyArray:
        return x if steps == 1 else super().shifted(x, steps)


class SampleGridOfTheBatch(NumpyBackend):
    """The error of a recurrence is rounded on one grid for all samples."""

    def sample_grid(self, dz: AnyArray, bits: int) -> AnyArray:
        return self.error_grid(dz, bits)[0]


class NoSampleGrid(NumpyBackend):
    """The error of a recurrence is not rounded."""

    def sample_grid(self, dz: AnyArray, bits: int) -> AnyArray:
        return dz


class DelayStepLonger(NumpyBackend):
    """Delays of two or more steps are one step too long."""

    def shifted(self, x: AnyArray, steps: int) -> AnyArray:
        return super().shifted(x, steps + 1 if steps > 1 else steps - 1 if steps < -1 else steps)


class DelayWrapsAround(NumpyBackend):
    """Values that are delayed beyond the last step are read at the first steps."""

    def shifted(self, x: AnyArray, steps: int) -> AnyArray:
        return np.roll(x, steps, axis=0)


class DelayedErrorNotMovedBack(NumpyBackend):
    """The error of a delayed edge stays at the step in which it was read."""

    def shifted(self, x: AnyArray, steps: int) -> AnyArray:
        return x if steps < 0 else super().shifted(x, steps)


class _OtherSum(NumpyBackend):
    """Sums of branches, computed by `step`."""

    step: ClassVar[type[Sum[AnyArray]]]

    @property
    def fusions(self) -> Sequence[Fusion[AnyArray]]:
        return (self.fused,)

    def fused(self, chain: tuple[Step[AnyArray], ...]) -> Step[AnyArray] | None:
        first, *rest = chain
        if not isinstance(first, Sum):
            return None
        parts = (self.step(first.places, first.needed), *rest)
        return Chain(tuple(part.places[0] for part in parts), first.needed, parts)


class _FirstBranch(Sum[AnyArray]):
    def forward_slice(self, run: Run[AnyArray], *inputs: AnyArray) -> ForwardResult[AnyArray]:
        return super().forward_slice(run, *inputs[:-1])


class _FirstError(Sum[AnyArray]):
    def backward_slice(
        self, run: Run[AnyArray], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[AnyArray]:
        return BackwardResult((grad, *(None for _ in self.needed[1:])))


class LastBranchDropped(_OtherSum):
    """A sum leaves out its last branch."""

    step = _FirstBranch


class ErrorOfOneBranch(_OtherSum):
    """The error of a sum goes to its first branch alone."""

    step = _FirstError


class ProjectionsSwapped(NumpyBackend):
    """The filters of several projections are used in reverse order."""

    def population_forward(self, equations: NeuronEquations, zs: Sequence[AnyArray], *rest: Any) -> Any:
        return super().population_forward(equations, zs[::-1], *rest)


class CurrentsAddedFromTheLast(_Miswritten):
    """The currents of three projections are added from the last to the first."""

    way = "forward"

    def rewrite(self, x: Expr) -> Expr | None:
        first = x.args[0].args[0] if x.op == "add" and x.args[0].op == "snap" else None
        if first is None or first.op != "add" or any(term.op != "snap" for term in first.args):
            return None
        return first.args[0] + snap(first.args[1] + x.args[1])


class OneToOneOfTheNextNeuron(NumpyBackend):
    """With one weight per neuron, each neuron uses the weight of the next one."""

    def recur(self, recurrence: Recurrence, constants: Constants, inputs: Any, *args: Any, **options: Any) -> Any:
        if recurrence.name == PRODUCT.name:
            inputs = {**inputs, "w": np.roll(inputs["w"], 1, axis=-1)}
        return super().recur(recurrence, constants, inputs, *args, **options)


class _Late(Biased):
    """A filter that adds the bias to its current instead of its input."""

    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        found = self.filter.step(p, s, snap(p.gain * z) if self.gain != 1 else z)
        return FilterStep(found.states, snap(found.current + p.bias))

    def adjoint(self, p: Names, d: Names, current: Expr) -> FilterAdjoint | None:
        return None

    @property
    def carried(self) -> tuple[str, ...]:  # type: ignore[override]
        return ()


class _OtherBias(_OtherNeurons):
    def biased(self, filter: Biased) -> SynapticFilter:
        """The filter that is run in place of a filter with a bias."""
        raise NotImplementedError

    def other(self, equations: NeuronEquations) -> NeuronEquations:
        first, *others = equations.filters
        return (
            neuron_equations(self.biased(first), equations.neuron)
            if isinstance(first, Biased) and not others
            else equations
        )


class BiasAfterTheFilter(_OtherBias):
    """The bias is added to the current, after the filter."""

    def biased(self, filter: Biased) -> SynapticFilter:
        return _Late(filter.filter, filter.gain)


class BiasWithTheGain(_OtherBias):
    """The factor of dropout also multiplies the bias."""

    def biased(self, filter: Biased) -> SynapticFilter:
        inner = filter.filter
        assert isinstance(inner, Filter | SecondOrderFilter)
        return Biased(replace(inner, gain=np.float32(inner.gain * filter.gain)), np.float32(1))


class LearnedTermDropped(NumpyBackend):
    """The contribution of the last neuron of the last sample to the gradient of a learned parameter is lost."""

    def totals(self, x: Float32, count: int) -> AnyArray:
        rest = x.copy()
        rest[0, -1, -1] = 0
        return super().totals(rest, count)


class LearnedSumInFloat32(NumpyBackend):
    """The gradient of a learned parameter is added in float32."""

    def totals(self, x: Float32, count: int) -> AnyArray:
        each: Float32 = np.moveaxis(x, 2, 0).reshape(count, -1).cumsum(axis=1, dtype=np.float32)[:, -1]
        return each


class LearnedWithoutErrorGrid(NumpyBackend):
    """Contributions of neurons to the gradient of a learned parameter are not rounded to an error grid."""

    def learned_gradient(self, terms: Float32, count: int, precision: Precision) -> AnyArray:
        return super().learned_gradient(terms, count, "fast")


class LearnedOfOneChannel(NumpyBackend):
    """Every channel uses the learned parameter of the first one."""

    def spread(self, values: Float32, shape: Shape) -> AnyArray:
        return super().spread(values[:1], shape)


class LearnedLeavesItsDomain(NumpyBackend):
    """An update moves a learned parameter out of its domain."""

    def adamw_learned(self, scalars: AdamWScalars, domain: tuple[float, float], *arrays: Float32) -> Any:
        return super().adamw_learned(scalars, (-CEILING, CEILING), *arrays)


class LearnedDecays(NumpyBackend):
    """Learned parameters decay like weights."""

    def adamw_learned(self, scalars: AdamWScalars, domain: tuple[float, float], *arrays: Float32) -> Any:
        w, *rest = arrays
        return super().adamw_learned(scalars, domain, scalars.decay * w, *rest)


class PrinterFuses(_Miswritten):
    """Every sum with a product is a fused multiply-add."""

    def rewrite(self, x: Expr) -> Expr | None:
        return _fused(x)


class PrinterDropsASnap(_Miswritten):
    """A snap inside of an expression is not printed."""

    def written(self, recurrence: Recurrence) -> Recurrence:
        inner = [x for x in ordered(recurrence.roots) if x.op == "snap" and not any(x is r for r in recurrence.roots)]
        return _with_roots(recurrence, substituted(recurrence.roots, {id(x): x.args[0] for x in inner[:1]}))


class PrinterSwapsOperands(_Miswritten):
    """The operands of a subtraction are swapped."""

    def rewrite(self, x: Expr) -> Expr | None:
        return _node("sub", *x.args[::-1]) if x.op == "sub" else None


class PrinterSwapsBranches(_Miswritten):
    """The two values of a `where` are swapped."""

    def rewrite(self, x: Expr) -> Expr | None:
        return _node("where", x.args[0], *x.args[:0:-1]) if x.op == "where" else None


class PrinterReassociates(_Miswritten):
    """`a + (b + c)` loses its parentheses, and so do products."""

    def rewrite(self, x: Expr) -> Expr | None:
        if x.op in ("add", "mul") and x.args[1].op == x.op:
            b, c = x.args[1].args
            return Expr(x.op, (_node(x.op, x.args[0], b), c), name=x.name)
        return None


class PrinterConstantsInDouble(_Miswritten):
    """Constants of an equation are in double precision, and so are operations with them."""

    words: ClassVar = {**_WORDS, "number": np.float64}


class PrinterConstantsOfSixDigits(_Miswritten):
    """Constants are printed with six digits."""

    def constants(self, constants: Constants) -> Constants:
        return {name: np.float32(f"{value:.6g}") for name, value in constants.items()}


class PrinterLessOrEqual(_Miswritten):
    """`x < y` is printed as `x <= y`."""

    def rewrite(self, x: Expr) -> Expr | None:
        return _node("ge", *x.args[::-1]) if x.op == "lt" else None


class PrinterReciprocal(_Miswritten):
    """A quotient is printed as a product with the reciprocal."""

    def rewrite(self, x: Expr) -> Expr | None:
        return _node("mul", x.args[0], 1 / x.args[1]) if x.op == "div" else None


class PrinterSnapsTheFloor(_Miswritten):
    """A snap also sets the floor itself, 2^-100, to zero."""

    words: ClassVar = {**_WORDS, "snap": lambda x: np.where(np.abs(x) <= np.float32(FLOOR), np.float32(0), x)}


class PrinterTakesTheNewState(_Miswritten):
    """A later line uses the new value of a state instead of the old one."""

    def written(self, recurrence: Recurrence) -> Recurrence:
        roots = list(recurrence.roots)
        for place, name in enumerate(recurrence.states):
            later = roots[place + 1 :]
            old = {id(x): roots[place] for x in ordered(later) if x.op == "variable" and x.name == name}
            roots[place + 1 :] = substituted(later, old)
        return _with_roots(recurrence, roots)


class StatesAreKept(NumpyBackend):
    """The states of a run begin with the final states of the previous run."""

    def recur(
        self, recurrence: Recurrence, constants: Constants, inputs: Mapping[str, AnyArray], steps: int, **options: Any
    ) -> dict[str, AnyArray]:
        if options.get("summed"):
            return super().recur(recurrence, constants, inputs, steps, **options)
        twice = {name: x if len(x) == 1 else np.concatenate([x, x]) for name, x in inputs.items()}
        found = super().recur(recurrence, constants, twice, 2 * steps)
        return {name: x[:steps] if recurrence.reverse else x[steps:] for name, x in found.items()}


class StaticInputOfOneStep(_Miswritten):
    """An input that is the same at all steps is only used at the first step."""

    def recur(
        self, recurrence: Recurrence, constants: Constants, inputs: Mapping[str, AnyArray], steps: int, **options: Any
    ) -> dict[str, AnyArray]:
        static = {name: x for name, x in inputs.items() if len(x) == 1 and steps > 1}
        once = {name: np.concatenate([x, *[np.zeros_like(x)] * (steps - 1)]) for name, x in static.items()}
        return super().recur(recurrence, constants, {**inputs, **once}, steps, **options)


class _Misruled(NumpyBackend):
    """Rules of operations, changed by `ahead` and `back`."""

    @property
    def rules(self) -> Mapping[type[Op], Rule[AnyArray]]:
        return {
            op: Rule(partial(self.ahead, rule.forward), partial(self.back, rule.backward))
            for op, rule in super().rules.items()
        }

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        return forward(op, *inputs)

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        return backward(op, residuals, error, **options)


class PoolingSums(_Misruled):
    """Pooling adds up windows instead of taking their mean."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        output, residuals = forward(op, *inputs)
        return output * np.float32(op.area if isinstance(op, AvgPool2d) else 1), residuals


class PoolingAdjointScaled(_Misruled):
    """The adjoint of pooling does not divide by the window."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        found = backward(op, residuals, error, **options)
        return found * np.float32(op.area) if isinstance(op, AvgPool2d) else found


class WeightsOffTheGrid(NumpyBackend):
    """The forward pass uses the master weights."""

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        return w, super().weight_grid(projection, w)[1]


class HalvesAwayFromZero(NumpyBackend):
    """The weight grid rounds halves away from zero instead of to even."""

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        found = super().weight_grid(projection, w)[1]
        scaled = np.abs(w) * np.float32(2.0**found.exponent)
        return np.copysign(np.floor(scaled + np.float32(0.5)), w) * np.float32(2.0**-found.exponent), found


class FinerGrid(NumpyBackend):
    """The bound of the weight grid is not checked: no coarser grid is taken."""

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w, weight_bits=projection.synapse.weight_bits, input_exponent=0, input_max=1.0, layer=projection.name
        )


class StraightThroughBroken(NumpyBackend):
    """The gradient is cut where the weight grid changed a weight by more than a quarter unit."""

    def value_and_grad(self, *args: Any, **kwargs: Any) -> Any:
        result = super().value_and_grad(*args, **kwargs)
        network, weights = args[0], args[2]
        cut = {}
        for block in network.blocks:
            wq, found = self.weight_grid(block, weights[block.name])
            kept = np.abs(wq - weights[block.name]) < 2.0 ** (-found.exponent - 2)
            cut[block.name] = result.gradients[block.name] * kept
        return replace(result, gradients=cut)


class ErrorGridBit(NumpyBackend):
    """The error grid is coarser by one bit."""

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        return super().error_grid(dz, bits - 1, largest)


class ErrorGridMissing(NumpyBackend):
    """No error grid in reproducible precision."""

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        return dz, super().error_grid(dz, bits, largest)[1]


class ErrorGridCap(NumpyBackend):
    """The error grid of version 1 of the contract, with at most 24 bits."""

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        return super().error_grid(dz, min(24, bits), largest)


class ZerosCountAsZeroed(NumpyBackend):
    """Errors that were already zero before the grid are counted as zeroed by it."""

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        on_grid, _ = super().error_grid(dz, bits, largest)
        return on_grid, np.array([np.count_nonzero(on_grid == 0), np.count_nonzero(dz)], np.int64)


class SinglePrecisionSums(_Misruled):
    """Reproducible precision adds in float32."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        if options:
            options["precision"] = "fast"
        return backward(op, residuals, error, **options)


class HalfPrecisionGradients(_Misruled):
    """Fast precision rounds errors to the 11 bits of TF32."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        if options.get("precision") == "fast":
            mantissa, exponent = np.frexp(error)
            error = np.ldexp(np.rint(mantissa * np.float32(2048)) / np.float32(2048), exponent).astype(np.float32)
        return backward(op, residuals, error, **options)


class TransposedKernel(_Misruled):
    """A true convolution: the kernel's rows and columns run backwards."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        if isinstance(op, Conv2d):
            s, wq = inputs
            inputs = s, wq[..., ::-1, ::-1]
        return forward(op, *inputs)


class KernelSwapped(_Misruled):
    """The weight gradient of a convolution has rows and columns swapped."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        found = backward(op, residuals, error, **options)
        if isinstance(op, Conv2d):
            ds, dw = found
            return ds, np.ascontiguousarray(dw.swapaxes(2, 3))
        return found


class StrideIgnored(_Misruled):
    """The strided convolution reads the first rows and columns, as if the stride were 1."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        z, residuals = forward(op, *inputs)
        if isinstance(op, Conv2d) and op.stride != 1:
            dense, _ = forward(replace(op, stride=1), *inputs)
            z = np.ascontiguousarray(dense[..., : z.shape[-2], : z.shape[-1]])
        return z, residuals


class PaddingIgnored(_Misruled):
    """The input gradient of a padded convolution is shifted by the padding."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        found = backward(op, residuals, error, **options)
        if isinstance(op, Conv2d) and op.paddings[1] and found[0] is not None:
            ds, dw = found
            return np.roll(ds, op.paddings[1], axis=-1), dw
        return found


class DilationIgnored(_Misruled):
    """The dilated convolution reads neighbours, as if the dilation were 1."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        z, residuals = forward(op, *inputs)
        if isinstance(op, Conv2d) and op.dilation != 1:
            rows, columns = (min(pad, kernel - 1) for pad, kernel in zip(op.paddings, op.kernels, strict=True))
            dense, _ = forward(replace(op, dilation=1, padding=(rows, columns)), *inputs)
            z = np.resize(dense, z.shape)
        return z, residuals


class GroupsExchanged(_Misruled):
    """Each group of a convolution reads the channels of the group before it."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        if not isinstance(op, Conv2d) or op.groups == 1:
            return forward(op, *inputs)
        s, wq = inputs
        z, _ = forward(op, np.roll(s, wq.shape[1], axis=2), wq)
        return z, forward(op, s, wq)[1]


class GradientOfGroupsExchanged(_Misruled):
    """The weight gradients of the groups of a convolution are exchanged."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        found = backward(op, residuals, error, **options)
        if not isinstance(op, Conv2d) or op.groups == 1 or found[1] is None:
            return found
        ds, dw = found
        return ds, np.roll(dw, len(dw) // op.groups, axis=0)


class KernelReadByColumns(_Misruled):
    """The gradient of a kernel that is not square is laid out column by column."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        found = backward(op, residuals, error, **options)
        if not isinstance(op, Conv2d) or isinstance(op.kernel, int) or found[1] is None:
            return found
        ds, dw = found
        return ds, np.ascontiguousarray(dw.swapaxes(2, 3)).reshape(dw.shape)


class SumsDividedTwice(_Misruled):
    """A pooling that should give sums divides them, and the filter divides again."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        output, residuals = forward(op, *inputs)
        return output / np.float32(op.divisor if isinstance(op, AvgPool2d) else 1), residuals


class _MispooledBack(_Misruled):
    """The error of a max pooling goes to `receivers`. They see the windows `[..., area]` and each one's first
    maximum."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        if not isinstance(op, MaxPool2d):
            return backward(op, residuals, error, **options)
        (shape, _), windows = residuals
        each = np.where(self.receivers(windows), error[..., None], np.float32(0))
        return of_windows(each.reshape(*error.shape, *op.sizes), shape)

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        output, residuals = forward(op, *inputs)
        if not isinstance(op, MaxPool2d):
            return output, residuals
        windows = pool_windows(op, *inputs)
        return output, (residuals, windows.reshape(*windows.shape[:-2], op.area))

    def receivers(self, windows: AnyArray) -> AnyArray:
        """The inputs of each window that receive its error."""
        raise NotImplementedError


class ErrorToTheLastLargest(_MispooledBack):
    """The error of a max pooling goes to the last of the largest inputs."""

    def receivers(self, windows: AnyArray) -> AnyArray:
        count = windows.shape[-1]
        last: AnyArray = count - 1 - windows[..., ::-1].argmax(axis=-1)
        return np.equal(np.arange(count), last[..., None])


class ErrorToAllLargest(_MispooledBack):
    """The error of a max pooling goes to all of the largest inputs."""

    def receivers(self, windows: AnyArray) -> AnyArray:
        largest: AnyArray = windows == windows.max(axis=-1, keepdims=True)
        return largest


class SilentWindowsWithoutError(_MispooledBack):
    """The error of a max pooling is lost if no neuron in the window spiked."""

    def receivers(self, windows: AnyArray) -> AnyArray:
        first = np.equal(np.arange(windows.shape[-1]), windows.argmax(axis=-1)[..., None])
        spiked: AnyArray = windows.max(axis=-1, keepdims=True) > 0
        found: AnyArray = first & spiked
        return found


class UpsampledInTiles(_Misruled):
    """Upsampling repeats the image, not each of its rows and columns."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        output, residuals = forward(op, *inputs)
        return np.tile(inputs[0], op.factors) if isinstance(op, Upsample2d) else output, residuals


class BlocksAddedByColumns(_Misruled):
    """The errors of an upsampled block are added column by column."""

    def back(self, backward: Back, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
        if not isinstance(op, Upsample2d):
            return backward(op, residuals, error, **options)
        turned = Upsample2d(op.factors[::-1])
        return np.ascontiguousarray(backward(turned, residuals, error.swapaxes(-1, -2)).swapaxes(-1, -2))


class LayerFlattenedOtherwise(_Misruled):
    """Flattening takes (H, W, C) instead of (C, H, W)."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        output, residuals = forward(op, *inputs)
        if isinstance(op, Flatten) and inputs[0].ndim == 5:
            output = np.moveaxis(inputs[0], 2, -1).reshape(output.shape)
        return output, residuals


class FlattenedOtherwise(_Misruled):
    """A fully connected layer flattens (H, W, C) instead of (C, H, W)."""

    def ahead(self, forward: Ahead, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        z, residuals = forward(op, *inputs)
        if isinstance(op, Linear) and inputs[0].ndim == 5:
            s, wq = inputs
            z, _ = forward(op, s.transpose(0, 1, 3, 4, 2), wq)
        return z, residuals


class DropoutShifted(NumpyBackend):
    """The dropout mask is shifted by one element."""

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> UInt8:
        longer = super().dropout_mask(seed, layer, step, (math.prod(shape) + 1,), rate)
        return longer[1:].reshape(shape)


class DropoutOfThePart(NumpyBackend):
    """The dropout mask counts samples from the first one of a part, not of the batch."""

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> UInt8:
        return super().dropout_mask(seed, layer, step, shape, rate)


class ErrorGridOfThePart(NumpyBackend):
    """Each part of a batch uses its own error grid."""

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        return super().error_grid(dz, bits)


class LossOfThePart(NumpyBackend):
    """The loss is divided by the samples of a part, not of the batch."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        return super().loss_error(loss, psp_, s, targets)


class PartsRounded(NumpyBackend):
    """Gradients of parts are rounded to float32 before they are added."""

    def plus(self, a: AnyArray, b: AnyArray) -> AnyArray:
        return a.astype(np.float32) + b.astype(np.float32)


class FusedNormalisation(_Miswritten):
    """A fused multiply-add in batch normalisation: (z - mean) a + shift rounded once."""

    way = "batchnorm_forward"

    def rewrite(self, x: Expr) -> Expr | None:
        if x.op != "add":
            return None
        ((product,), shift) = x.args[0].args, x.args[1]
        return _node("fma", *product.args, shift)


class SquaresInFloat64(NumpyBackend):
    """Squares in batch normalisation are not split into pieces, so that their float64 sums round."""

    def moments(self, z: Float32, exponent: AnyArray) -> AnyArray:
        found = super().moments(z, exponent)
        k = np.ldexp(np.moveaxis(z, 2, 0).reshape(found.shape[1], -1).astype(np.float64), exponent[0])
        found[1], found[2] = np.divmod((k * k).sum(1), 2**24)
        return found


class StatisticsOfThePart(NumpyBackend):
    """Each part of a batch is normalised by its own statistics."""

    def plus(self, a: AnyArray, b: AnyArray) -> AnyArray:
        return a * 2 if a.dtype == np.int64 else super().plus(a, b)


class StatisticsOfSilence(NumpyBackend):
    """The statistics of batch normalisation include padded steps."""

    def within(self, x: AnyArray, inside: AnyArray) -> AnyArray:
        return x if x.dtype == np.float32 and x.ndim > 3 else super().within(x, inside)


class ErrorsWithoutPieces(NumpyBackend):
    """Products of errors and sums in batch normalisation are not split into pieces, so float64 rounds their sums."""

    def error_moments(self, dy: Float32, z: Float32, exponent: AnyArray) -> AnyArray:
        found = super().error_moments(dy, z, exponent)
        k, d = (np.moveaxis(x, 2, 0).reshape(found.shape[1], -1).astype(np.float64) for x in (z, dy))
        found[1], found[2] = (np.ldexp(k, exponent[0]) * d).sum(1) / 4096, 0
        return found


class _Changed(NumpyBackend):
    """Steps after the statistics of batch normalisation, with a changed `Wide` or changed numbers."""

    wide: ClassVar[type[batchnorm.Wide]] = batchnorm.Wide

    def of_channels(self, function: Callable[..., Any], *arrays: Any, **fixed: Any) -> Any:
        return function(self.wide(), *arrays, **self.changed(fixed))

    def changed(self, fixed: dict[str, Any]) -> dict[str, Any]:
        return fixed


class _Power(batchnorm.Wide):
    def root(self, a: Any) -> Any:
        return np.power(a, np.full_like(a, 0.5))


class RootAsPower(_Changed):
    """The square root of batch normalisation is a power with exponent 1/2, whose last bit sometimes differs."""

    wide = _Power


class GainNotInStatistics(_Changed):
    """The factor of dropout is left out of the statistics of batch normalisation."""

    def changed(self, fixed: dict[str, Any]) -> dict[str, Any]:
        return fixed | ({"gain": 1.0} if "gain" in fixed else {})


class StatisticsAsConstants(_Changed):
    """The backward pass treats the statistics of the batch as constants."""

    def changed(self, fixed: dict[str, Any]) -> dict[str, Any]:
        return fixed | ({"training": False} if "training" in fixed else {})


class DropoutSameEveryStep(NumpyBackend):
    """The dropout mask does not depend on the update."""

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> UInt8:
        return super().dropout_mask(seed, layer, 0, shape, rate, first)


class DropoutSameEveryLayer(NumpyBackend):
    """Two layers share the bits of their masks."""

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> UInt8:
        return super().dropout_mask(seed, 0, step, shape, rate, first)


class DropoutScaled(NumpyBackend):
    """Dropout multiplies spikes by 1/(1 - rate), and the filter does so again."""

    def dropout(self, mask: UInt8, s: AnyArray) -> AnyArray:
        return s * mask * 2


class BatchNotDivided(NumpyBackend):
    """The loss is a sum over the batch instead of a mean."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        return super().loss_error(loss, psp_, s, targets, *rest) * np.float32(s.shape[1])


class LooksAtPadding(NumpyBackend):
    """Outputs and targets at padded steps contribute to the error of the loss."""

    def loss_error(
        self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, batch: int | None = None, *rest: Any
    ) -> AnyArray:
        return super().loss_error(loss, psp_, s, targets, batch)


class RateOfAllSteps(NumpyBackend):
    """The spike count loss of a sample that ends early divides by the number of steps of the batch."""

    def loss_error(
        self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, batch: int | None = None, *rest: Any
    ) -> AnyArray:
        if rest and rest[0] is not None and isinstance(loss, SpikeCount):
            constants = loss.constants(psp_, len(s), batch or s.shape[1])
            rest = (rest[0] | {"scale": np.full_like(rest[0]["scale"], constants["scale"])},)
        return super().loss_error(loss, psp_, s, targets, batch, *rest)


class CountsPaddedSteps(NumpyBackend):
    """Spikes at padded steps count in the spike rates."""

    def within(self, x: AnyArray, inside: UInt8) -> AnyArray:
        return x


class StatesLost(NumpyBackend):
    """A network that runs step by step begins each step at rest."""

    def stream(self, *arguments: Any) -> Stream[AnyArray]:
        return _forgetting(super().stream(*arguments), lambda name: True)


class DelayedSpikesLost(NumpyBackend):
    """A network that runs step by step loses the spikes on its delayed edges."""

    def stream(self, *arguments: Any) -> Stream[AnyArray]:
        return _forgetting(super().stream(*arguments), lambda name: ">" in name)


def _forgetting(stream: Stream[AnyArray], forgotten: Callable[[str], bool]) -> Stream[AnyArray]:
    go_on = stream._go_on

    def run(x: AnyArray, before: Mapping[str, Any]) -> Any:
        return go_on(x, {name: kept for name, kept in before.items() if not forgotten(name)})

    stream._go_on = run  # type: ignore[assignment]
    return stream


class ReadoutOfTheLastStep(NumpyBackend):
    """The error of a readout's potentials only reaches their last step."""

    def readout_error(self, *arguments: Any) -> AnyArray:
        error = super().readout_error(*arguments)
        error[:-1] = 0
        return error


class HammingTwice(NumpyBackend):
    """The error of the Hamming distance has the factor 2 of the square."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        error = super().loss_error(loss, psp_, s, targets, *rest)
        return error * np.float32(2) if isinstance(loss, Hamming) else error


class VanRossumNotTwice(NumpyBackend):
    """The van Rossum error is filtered only once, without the adjoint filter."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        if not isinstance(loss, VanRossum):
            return super().loss_error(loss, psp_, s, targets, *rest)
        difference = s.astype(np.float32) - targets.astype(np.float32)
        return self.psp_forward(psp_, difference) * np.float32(1 / s.shape[1])


class SpikeCountByT(NumpyBackend):
    """The error of the spike count is divided by T only once."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        error = super().loss_error(loss, psp_, s, targets, *rest)
        return error * np.float32(len(s)) if isinstance(loss, SpikeCount) else error


class BytesWrapAround(NumpyBackend):
    """The spike count's difference is taken in bytes: output minus target wraps around."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        if isinstance(loss, SpikeCount):
            return super().loss_error(loss, psp_, s, targets, *rest)
        difference = (s - targets).astype(np.float32)
        zero = np.zeros_like(targets)
        return super().loss_error(loss, psp_, difference, zero, *rest)


class PspAdjointForward(NumpyBackend):
    """The adjoint of the PSP filter runs forward in time."""

    def psp_backward(self, psp_: PSP, da: Float32) -> AnyArray:
        return self.psp_forward(psp_, da)


class ImagesBy255(NumpyBackend):
    """Images are divided by 255 instead of 256."""

    def encode(self, inputs: UInt8, coding: Coding) -> AnyArray:
        return inputs if coding == "events" else inputs[None].astype(np.float32) / np.float32(255)


class FirstStepOnTop(NumpyBackend):
    """In frames that are stored as bits, the first of eight steps is read from the highest bit."""

    def unpack(self, frames: PackedFrames) -> AnyArray:
        swapped = np.packbits(np.unpackbits(frames.bits[..., None], axis=-1, bitorder="little"), axis=-1)[..., 0]
        return super().unpack(PackedFrames(swapped, frames.steps))


class NormOfSquares(NumpyBackend):
    """The gradient norm is a float32 sum of squares."""

    def gradient_squares(self, gradients: Sequence[Float32]) -> Int64:
        bits, _ = found = super().gradient_squares(gradients)
        exponent = norm_exponent(int(bits), sum(g.size for g in gradients))
        if exponent is not None:
            squares = math.fsum(float(np.square(g, dtype=np.float32).sum()) for g in gradients)
            found[1] = min(math.ldexp(squares, 2 * exponent), 2**62)
        return found


class EpsilonInsideRoot(_Miswritten):
    """AdamW adds epsilon under the square root."""

    way = "adamw"

    def rewrite(self, x: Expr) -> Expr | None:
        return sqrt(x.args[0].args[0] + x.args[1]) if x.op == "add" and x.args[0].op == "sqrt" else None


class NoBiasCorrection(NumpyBackend):
    """AdamW without bias correction."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        return super().adamw(replace(scalars, c1=np.float32(1), c2=np.float32(1)), w, g, m, v)


class DecayInTheGradient(NumpyBackend):
    """Weight decay is part of the gradient (Adam with L2) instead of decoupled."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        decay = np.float32((1 - float(scalars.decay)) / max(float(scalars.rate), 1e-30))
        return super().adamw(replace(scalars, decay=np.float32(1)), w, g + decay * w, m, v)


class FusedAdamW(_Miswritten):
    """A fused multiply-add in AdamW's first moment."""

    way = "adamw"

    def rewrite(self, x: Expr) -> Expr | None:
        return _fused(x, "beta1")


class NoClipping(NumpyBackend):
    """Gradients are not clipped."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        return super().adamw(replace(scalars, clip=np.float32(1)), w, g, m, v)


class LosesPackedSpikes(NumpyBackend):
    """The last step of spikes that are stored as bits is lost."""

    def unpack_spikes(self, packed: Any) -> AnyArray:
        s = super().unpack_spikes(packed)
        s[-1] = 0
        return s


class UpdatesInPlace(NumpyBackend):
    """The update writes into the arrays that the caller gave to `init`."""

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Aliasing(Trainer):
            def init(self, weights: dict[str, Float32]) -> TrainState:
                state = super().init(weights)
                return TrainState(0, dict(weights), state.m, state.v)

        return Aliasing(self, *args, **kwargs)

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        new, m, v = super().adamw(scalars, w, g, m, v)
        w[...] = new
        return w, m, v


class LossAddedInOrder(NumpyBackend):
    """The sum of the mean loss rounds at every sample."""

    def value_and_grad(self, *args: Any, **kwargs: Any) -> Any:
        result = super().value_and_grad(*args, **kwargs)
        return replace(result, loss=_added_in_order(args[1], args[0].output_psp, result.spikes, args[3]))

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Adding(Trainer):
            def step(self, state: TrainState, batch: Batch[Inputs]) -> tuple[TrainState, StepResult]:
                state, result = super().step(state, batch)
                measure = partial(_added_in_order, self.loss, self.network.output_psp, result.spikes, batch)
                return state, replace(result, measure=measure)

        return Adding(self, *args, **kwargs)


def _added_in_order(loss: Loss, psp: PSP, spikes: UInt8, batch: Batch[Inputs]) -> float:
    distances = loss.distance(spikes, batch.targets, psp)
    return float(np.cumsum(distances)[-1]) / len(distances)


class MomentsNotImported(NumpyBackend):
    """A resumed run begins with moments of zero."""

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Forgetful(Trainer):
            def import_state(self, exported: dict[str, AnyArray]) -> TrainState:
                state = super().import_state(exported)
                zero = {name: np.zeros_like(x) for name, x in state.m.items()}
                return TrainState(state.step, state.weights, zero, state.v)

        return Forgetful(self, *args, **kwargs)


class StepNotImported(NumpyBackend):
    """A resumed run counts its updates from zero."""

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Restarting(Trainer):
            def import_state(self, exported: dict[str, AnyArray]) -> TrainState:
                state = super().import_state(exported)
                return TrainState(0, state.weights, state.m, state.v)

        return Restarting(self, *args, **kwargs)


class RateOfOneStep(NumpyBackend):
    """The spike rate of a layer is that of its last step."""

    def spike_count(self, s: UInt8) -> AnyArray:
        return np.asarray(np.count_nonzero(s[-1]) * len(s))


class NanAccepted(NumpyBackend):
    """Weights that are not finite are treated as zero."""

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        return super().weight_grid(projection, np.nan_to_num(w, nan=0.0, posinf=0.0, neginf=0.0))


class HugeWeightsVanish(NumpyBackend):
    """Steps of the weight grid above 2^90 become zero, as after an overflow of an exponent shift."""

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        wq, found = super().weight_grid(projection, w)
        return (np.zeros_like(wq) if found.exponent < -90 else wq), found


class HugeWeightsAccepted(NumpyBackend):
    """Weights of 2^100 and above are clipped to the largest allowed weight."""

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        most = np.nextafter(np.float32(grid.CEILING), np.float32(0))
        return super().weight_grid(projection, np.where(np.isfinite(w), w.clip(-most, most), w))


class SignedZeros(NumpyBackend):
    """Zeros of a gradient keep the sign from a matrix product."""

    def value_and_grad(self, *args: Any, **kwargs: Any) -> ValueAndGrad:
        result = super().value_and_grad(*args, **kwargs)
        for g in result.gradients.values():
            g[g == 0] = np.float32(-0.0)
        return result


class MasksIgnored(NumpyBackend):
    """A mask over weights, inputs or targets is silently ignored."""

    def value_and_grad(
        self, network: NetworkSpec, loss: Loss, weights: dict[str, Float32], batch: Batch, **kwargs: Any
    ) -> ValueAndGrad:
        plain = {name: np.asarray(w) for name, w in weights.items()}
        return super().value_and_grad(network, loss, plain, Batch(*map(np.asarray, batch)), **kwargs)


class StepsFillTheMemory(NumpyBackend):
    """Memory is allocated for any requested number of steps."""

    def run(self, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int) -> RunResult:
        if isinstance(steps, int) and steps >= 2**31:
            raise MemoryError("cannot allocate an array")
        return super().run(network, weights, inputs, steps)


class UnknownLossWithoutAName(NumpyBackend):
    """A loss that the backend does not know ends in a KeyError."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        kinds: dict[type, Loss] = {type(known): known for known in LOSSES.values()}
        return super().loss_error(kinds[type(loss)], psp_, s, targets, *rest)


class LossTakenForItsParent(NumpyBackend):
    """A loss derived from the Hamming distance is computed as the Hamming distance."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8, *rest: Any) -> AnyArray:
        return super().loss_error(Hamming() if isinstance(loss, Hamming) else loss, psp_, s, targets)


class SurrogateTakenForItsParent(NumpyBackend):
    """A surrogate derived from the triangle is computed as the triangle."""

    def population_backward(self, equations: NeuronEquations, *rest: Any) -> Any:
        h = equations.neuron.surrogate
        neuron = neurons.with_surrogate(equations.neuron, Triangle(h.width) if isinstance(h, Triangle) else h)
        return super().population_backward(_with_neuron(equations, neuron), *rest)


class UnknownSurrogateWithoutAName(NumpyBackend):
    """A surrogate that the backend does not know ends in a TypeError."""

    def population_backward(self, equations: NeuronEquations, *rest: Any) -> Any:
        if type(equations.neuron.surrogate) not in SURROGATES.values():
            raise TypeError("unsupported type")
        return super().population_backward(equations, *rest)


class UnknownSynapseTakenForItsParent(NumpyBackend):
    """Weights of a kind derived from the convolution are computed as a convolution."""

    def rule(self, op: Op) -> Rule[AnyArray]:
        return self.rules[Conv2d] if isinstance(op, Conv2d) else super().rule(op)


class UnknownDeviceFallsBack(NumpyBackend):
    """An unknown device is replaced silently."""

    def open(self, device: str | None) -> str:
        return "cpu"


@dataclass(frozen=True)
class Fault:
    """A faulty backend with its description."""

    backend: type[NumpyBackend]

    @property
    def name(self) -> str:
        """The class's name."""
        return self.backend.__name__

    @property
    def description(self) -> str:
        """The class's docstring."""
        return (self.backend.__doc__ or "").strip()


FAULTS = tuple(
    Fault(cls)
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, NumpyBackend) and cls is not NumpyBackend and cls.__name__[0] != "_"
)


_TIERS = (rational, bits, gradients, reproducible, pairs, expressions, neurons, trainer, errors, parts)


def quick_checks() -> tuple[Check, ...]:
    """All quick checks of all tiers."""
    every = (module.CHECKS for module in _TIERS)
    return tuple(check for checks in every for check in checks if check.quick)


_FASTEST = (5, 7, 1, 2, 6, 8, 4, 3)
"""All tiers, the fastest first."""


def _fails(check: Check, backend: NumpyBackend) -> bool:
    """Whether a check fails on a backend. One that cannot run here does not."""
    try:
        with np.errstate(all="ignore"):
            check.run(backend)
    except Unavailable:
        return False
    except Exception as error:  # a mismatch, or an error instead of a result: either fails the suite
        if isinstance(backend, _Miswritten) and not isinstance(error, (Mismatch, NumericError)):
            raise  # wrong numbers are what these are to give
        return True
    return False


def caught(backend: NumpyBackend) -> dict[int, list[str]]:
    """Names of the quick checks that fail on a backend, by tier."""
    found: dict[int, list[str]] = {}
    for check in quick_checks():
        if _fails(check, backend):
            found.setdefault(check.tier, []).append(check.id)
    return found


def caught_by(backend: NumpyBackend, name: str) -> bool:
    """Whether the quick check of this name fails on a backend."""
    (check,) = (check for check in quick_checks() if check.id == name)
    return _fails(check, backend)


def main() -> None:
    """Print every fault, and how many checks of each tier detect it. If a file is named, write them as JSON."""
    totals: dict[int, int] = {}
    for check in quick_checks():
        totals[check.tier] = totals.get(check.tier, 0) + 1
    table = []
    for fault in FAULTS:
        failed = caught(fault.backend())
        tiers = {tier: len(ids) for tier, ids in failed.items()}
        first = next((failed[tier][0] for tier in _FASTEST if tier in failed), None)
        table.append({"fault": fault.name, "description": fault.description, "first": first, "caught": tiers})
        print(f"{fault.name:24} {', '.join(f'tier {t}: {n}' for t, n in tiers.items()) or 'NOT CAUGHT'}", flush=True)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"checks": totals, "faults": table}, indent=1) + "\n", encoding="utf-8")
    if not all(row["caught"] for row in table):
        raise SystemExit("a fault was not caught")


if __name__ == "__main__":
    main()
