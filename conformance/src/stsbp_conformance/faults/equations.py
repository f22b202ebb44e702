"""Faults in the equations of neurons and their filters, and in how equations are printed and run.

`stsbp_conformance.printers` puts some of the faults of printing into the printers of other backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.adjoint import substituted
from stsbp_spec.equations.assembly import Constants, NeuronEquations
from stsbp_spec.equations.expressions import Expr, Recurrence, constant, ordered, variable, where
from stsbp_spec.models.neurons import LIF
from stsbp_spec.typing import AnyArray

from stsbp_conformance.faults import changes
from stsbp_conformance.faults.changes import Change, Fault, Rewrite, equation, fused, method, neuron, node, reads
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers.neurons import with_surrogate

__all__ = ["NEURONS", "PRINTED"]

Inputs = Mapping[str, AnyArray]


def _fused_membrane(recurrence: Recurrence) -> Recurrence:
    rewrites: dict[str, Rewrite] = {
        "mul": lambda x: x.args[1] if reads(x, "km") else None,  # the product is used at the next step
        "add": lambda x: node("fma", variable("km"), *x.args) if reads(x, "m") else None,
    }
    return changes.rewritten(recurrence, rewrites) if "km" in recurrence.parameters else recurrence


def _one_ulp_more(constants: Constants, name: str) -> Constants:
    value = constants.get(name, np.float32(0))
    return {**constants, name: np.nextafter(value, np.float32(2)) if value > 0 else value}


def _reset_by_subtraction(x: Expr) -> Expr | None:
    if x.args[2].op != "mul":
        return None
    fired, (decay, u) = x.args[0], x.args[2].args
    return decay * (u - where(fired, fired.args[1], 0))


def _lif(equations: NeuronEquations) -> NeuronEquations:
    model = equations.neuron
    lif = LIF(getattr(model, "tau_m", 1e6), model.tau_s, model.threshold, model.surrogate)
    return changes.with_neuron(equations, lif)


def _wider(equations: NeuronEquations) -> NeuronEquations:
    surrogate = equations.neuron.surrogate
    name = fields(surrogate)[0].name
    wider: dict[str, Any] = {name: getattr(surrogate, name) * (1 + 1e-6 if name == "width" else 1 - 1e-6)}
    return changes.with_neuron(equations, with_surrogate(equations.neuron, replace(surrogate, **wider)))


def _summed(total: Callable[[AnyArray], AnyArray], *correctly: str) -> Change:
    """A `recur` that computes the sums of an adjoint, except those of `correctly`, as `total` of all steps."""

    def changed(correct: Change, recurrence: Recurrence, *args: Any, **options: Any) -> Any:
        names = set(options.get("summed", ()) if recurrence.reverse else ()) - set(correctly)
        outputs = correct(recurrence, *args) if names else {}
        return correct(recurrence, *args, **options) | {name: total(outputs[name]) for name in names}

    return changed


def _without_an_inner_snap(recurrence: Recurrence) -> Recurrence:
    inner = [x for x in ordered(recurrence.roots) if x.op == "snap" and not any(x is r for r in recurrence.roots)]
    return changes.with_roots(recurrence, substituted(recurrence.roots, {id(x): x.args[0] for x in inner[:1]}))


def _without_parentheses(x: Expr) -> Expr | None:
    if x.args[1].op != x.op:
        return None
    b, c = x.args[1].args
    return Expr(x.op, (node(x.op, x.args[0], b), c), name=x.name)


def _with_new_states(recurrence: Recurrence) -> Recurrence:
    roots = list(recurrence.roots)
    for place, name in enumerate(recurrence.states):
        later = roots[place + 1 :]
        old = {id(x): roots[place] for x in ordered(later) if x.op == "variable" and x.name == name}
        roots[place + 1 :] = substituted(later, old)
    return changes.with_roots(recurrence, roots)


def _run_twice(
    correct: Change, recurrence: Recurrence, constants: Any, inputs: Inputs, steps: int, **options: Any
) -> Any:
    if options.get("summed"):
        return correct(recurrence, constants, inputs, steps, **options)
    twice = {name: x if len(x) == 1 else np.concatenate([x, x]) for name, x in inputs.items()}
    outputs = correct(recurrence, constants, twice, 2 * steps)
    return {name: x[:steps] if recurrence.reverse else x[steps:] for name, x in outputs.items()}


def _used_once(
    correct: Change, recurrence: Recurrence, constants: Any, inputs: Inputs, steps: int, **options: Any
) -> Any:
    static = {name: x for name, x in inputs.items() if len(x) == 1 and steps > 1}
    once = {name: np.concatenate([x, *[np.zeros_like(x)] * (steps - 1)]) for name, x in static.items()}
    return correct(recurrence, constants, {**inputs, **once}, steps, **options)


# fmt: off
NEURONS = (
    Fault("FusedFilter", "A fused multiply-add in the synaptic filter: k*i + c*z with k*i not rounded.",
          equation("forward", add=lambda x: fused(x, "k"))),
    Fault("FusedMembrane", "A fused multiply-add in the membrane: km*u + i rounded once.",
          equation("forward", transform=_fused_membrane)),
    Fault("FusedAdjoint", "A fused multiply-add in the adjoint of the synaptic filter.",
          equation("backward", add=lambda x: fused(x, "k"))),
    Fault("StrictThreshold", "A spike at u > V_th instead of u >= V_th.",
          equation("forward", spike=lambda x: node("lt", *x.args[::-1]))),
    Fault("DecayUlp", "The membrane decay off by one unit in the last place.",
          equation("forward", constants=lambda constants: _one_ulp_more(constants, "km"))),
    Fault("SynapticDecayUlp", "The synaptic decay off by one unit in the last place.",
          equation("forward", constants=lambda constants: _one_ulp_more(constants, "k"))),
    Fault("NoReset", "The membrane is not reset after a spike.",
          equation("forward", where=lambda x: x.args[2])),
    Fault("SoftReset", "Reset by subtraction of the threshold instead of reset to zero.",
          equation("forward", where=_reset_by_subtraction)),
    Fault("NoPspGain", "The gain c_s of the synaptic filter left out.",
          equation("forward", constants=lambda constants: {**constants, "c": np.float32(1)})),
    Fault("TimeShifted", "The input of a layer arrives one step late.",
          equation("forward", inputs=lambda x: {**x, "z": NUMPY.shift_time(x["z"], 1) if len(x["z"]) > 1 else x["z"]})),
    Fault("NoFloorForward", "No floor: states decay into subnormal numbers.",
          equation("forward", snap=lambda x: x.args[0])),
    Fault("NoFloorBackward", "No floor in the backward pass.",
          equation("backward", snap=lambda x: x.args[0])),
    Fault("ResetPathDropped", "The path of the gradient through the reset, - k_m u_t d~_{t+1}, is left out.",
          equation("backward", snap=lambda x: constant(0) if x.name == "pulled" else None)),
    Fault("ResetOneStepLate", "The path through the reset uses the potential of the next step.",
          equation("backward", transform=lambda recurrence: recurrence.changed(inputs=(*recurrence.inputs, "late")),
                   inputs=lambda x: {**x, "late": np.concatenate([x["u"][1:], x["u"][-1:]])},
                   mul=lambda x: node("mul", variable("late"), x.args[1]) if x.args[0].name == "u" else None)),
    Fault("LeakThroughSpikes", "The factor (1 - o_t) left out of the membrane iteration factor.",
          equation("backward", where=lambda x: x.args[2] if x.args[0].op == "spike" else None)),
    Fault("MovingThresholdForgotten",
          "The backward pass uses the threshold at rest instead of the neuron's actual threshold.",
          equation("backward", variable=lambda x: variable("vth") if x.name == "threshold" else None)),
    Fault("NeuronTakenForAnother", "Neurons of every model are run as LIF.",
          method(population_forward=lambda correct, equations, zs, steps, learned: correct(
                     _lif(equations), zs, steps, {} if len(zs) == 1 else learned),
                 population_backward=lambda correct, equations, *args: correct(_lif(equations), *args))),
    Fault("WiderSurrogate", "The surrogate wider by one part in a million.",
          neuron(_wider, "backward")),
    Fault("ForwardInTime", "The adjoint runs from the first step to the last.",
          equation("backward", transform=lambda recurrence: recurrence.changed(reverse=False))),
    Fault("StaticErrorOfLastStep", "A static input receives the error of one step instead of the sum over all.",
          method(recur=_summed(lambda x: x[:1]))),
    Fault("StaticErrorOtherOrder", "The errors of a static input are added from the first step to the last.",
          method(recur=_summed(lambda x: np.cumsum(x, axis=0)[-1:]))),
    Fault("LearnedSumOtherOrder",
          "Contributions to the gradient of a learned parameter are added from the first step to the last.",
          method(recur=_summed(lambda x: np.cumsum(x, axis=0)[-1:], "dz"))),
)

PRINTED = (
    Fault("PrinterFuses", "Every sum with a product is a fused multiply-add.",
          equation(add=fused)),
    Fault("PrinterDropsASnap", "A snap inside of an expression is not printed.",
          equation(transform=_without_an_inner_snap)),
    Fault("PrinterSwapsOperands", "The operands of a subtraction are swapped.",
          equation(sub=lambda x: node("sub", *x.args[::-1]))),
    Fault("PrinterSwapsBranches", "The two values of a `where` are swapped.",
          equation(where=lambda x: node("where", x.args[0], *x.args[:0:-1]))),
    Fault("PrinterReassociates", "`a + (b + c)` loses its parentheses, and so do products.",
          equation(add=_without_parentheses, mul=_without_parentheses)),
    Fault("PrinterConstantsInDouble",
          "Constants of an equation are in double precision, and so are operations with them.",
          equation(words={"number": np.float64})),
    Fault("PrinterConstantsOfSixDigits", "Constants are printed with six digits.",
          equation(constants=lambda constants: {name: np.float32(f"{x:.6g}") for name, x in constants.items()})),
    Fault("PrinterLessOrEqual", "`x < y` is printed as `x <= y`.",
          equation(lt=lambda x: node("ge", *x.args[::-1]))),
    Fault("PrinterReciprocal", "A quotient is printed as a product with the reciprocal.",
          equation(div=lambda x: node("mul", x.args[0], 1 / x.args[1]))),
    Fault("PrinterSnapsTheFloor", "A snap also sets the floor itself, 2^-100, to zero.",
          equation(words={"snap": lambda x: np.where(np.abs(x) <= np.float32(FLOOR), np.float32(0), x)})),
    Fault("PrinterTakesTheNewState", "A later line uses the new value of a state instead of the old one.",
          equation(transform=_with_new_states)),
    Fault("StatesAreKept", "The states of a run begin with the final states of the previous run.",
          method(recur=_run_twice)),
    Fault("StaticInputOfOneStep", "An input that is the same at all steps is only used at the first step.",
          method(recur=_used_once)),
)
