"""The equations of a network as recurrences, which every backend prints and runs.

The synaptic filter of an edge and the neurons after it form one step. So do a filter alone, the two passes of a loss,
and the update of AdamW. The expressions are in ops/psp.py, neurons/, surrogates.py, losses/ and optim/adamw.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

import numpy as np

from stsbp_spec.equations.adjoint import derive, free_variables, kept_values, substituted
from stsbp_spec.equations.expressions import (
    Expr,
    Names,
    Recurrence,
    finished,
    free_name,
    named,
    ordered,
    snap,
    unsnapped,
    variable,
    where,
)
from stsbp_spec.errors import SpecError
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses.base import AHEAD, STEP, Loss, LossStep, step_names
from stsbp_spec.models.neurons.base import Adjoint, NeuronModel, Step
from stsbp_spec.networks.ops.psp import PSP, FilterAdjoint, FilterStep, SynapticFilter
from stsbp_spec.typing import AnyArray, Float32, Int64, Shape

__all__ = [
    "COUNT",
    "COUNT_INSIDE",
    "Constants",
    "FilterEquations",
    "LossEquations",
    "NeuronEquations",
    "filter_equations",
    "inside_name",
    "learned_name",
    "loss_equations",
    "loss_padding",
    "neuron_equations",
    "padded_loss_equations",
    "resumable_equations",
]

Constants = Mapping[str, np.float32]
"""The values of a recurrence's parameters by name."""

COUNT = Recurrence("count", (), ("o",), {}, {"n": variable("o")})
"""Passes on spikes. The sum of its outputs over the steps is the number of spikes."""

COUNT_INSIDE = Recurrence(
    "count_inside", (), ("o", "inside"), {}, {"n": where(variable("inside") > 0, variable("o"), 0)}
)
"""The same, but only for steps within a sample's length."""


@dataclass(frozen=True)
class NeuronEquations:
    """Synaptic filters and the neurons after them, with both passes.

    Attributes:
        forward: from `z` to the potential `u`, other values that the backward pass reads, and the spikes `o`.
        backward: from `kept` and `g = dL/do` to `dz = dL/dz`, from the last step to the first.
        inputs: inputs of `forward`, one for each projection: `z`, `z2`, ...
        errors: the outputs of `backward` that are the errors of `inputs`: `dz`, `dz2`, ... Projections that share a
            filter share its error.
        kept: outputs of `forward` that `backward` reads, `u` first.
        constants: constants of both passes, float32.
        wide: the same constants before they are rounded to float32, where the filter and the models provide them.
        learned: inputs of both passes that are the same at every step, by the names that the model gives them.
        terms: outputs of `backward`. Their sums over the steps are an element's part of the gradients of `learned`.
        filters, neuron: the filters and the neuron model of these equations.
    """

    forward: Recurrence
    backward: Recurrence
    inputs: tuple[str, ...]
    errors: tuple[str, ...]
    kept: tuple[str, ...]
    constants: Constants
    wide: Mapping[str, float]
    learned: Mapping[str, str]
    terms: Mapping[str, str]
    filters: tuple[SynapticFilter, ...]
    neuron: NeuronModel

    @cached_property
    def summing(self) -> Recurrence:
        """`backward`, with the sums of `terms` over the steps as its last states instead of these outputs."""
        return self.backward.summing(self.terms.values()) if self.terms else self.backward

    @cached_property
    def forward_numbers(self) -> Float32:
        """The parameters of `forward`, in its order."""
        return self.forward.numbers(self.constants)

    @cached_property
    def backward_numbers(self) -> Float32:
        """The parameters of `backward`, in its order. They do not depend on which outputs are summed over the steps."""
        return self.backward.numbers(self.constants)

    @cached_property
    def forward_step(self) -> Recurrence:
        """One step of `forward` (`Recurrence.single`)."""
        return self.forward.single()

    def backward_step(self, summed: tuple[str, ...] = ()) -> tuple[Recurrence, tuple[str, ...]]:
        """One step of `backward`, and the names of its states.

        The error that reaches the step's own spikes through a recurrent connection, `back`, is added to `g`. The last
        states are the sums over the steps of the errors `summed` and of `terms`.
        """
        whole = self.recurrent(summed)
        return _single(whole), tuple(whole.states)

    def recurrent(self, summed: tuple[str, ...] = ()) -> Recurrence:
        """`backward_step` over time: `backward` with the additional input `back`, and its sums as its last states."""
        return _recurrent(self.backward, (*summed, *self.terms.values()))


@dataclass(frozen=True)
class ResumableEquations:
    """Equations of neurons that continue from given states, and whose potentials may have errors of their own.

    Attributes:
        plain: the usual equations.
        of_potentials: the same, with a derived backward pass that also reads `gu = dL/du`.
    """

    plain: NeuronEquations
    of_potentials: NeuronEquations

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Outputs of `step` that one of the backward passes reads."""
        return tuple(dict.fromkeys((*self.plain.kept, *self.of_potentials.kept)))

    @cached_property
    def step(self) -> Recurrence:
        """One step of the forward pass (`Recurrence.single`)."""
        found = {**self.of_potentials.forward.outputs, **self.plain.forward.outputs}
        outputs = {name: found[name] for name in (*self.kept, "o")}
        return self.plain.forward.changed(outputs=outputs).single()


@dataclass(frozen=True)
class FilterEquations:
    """A synaptic filter alone: from spikes `o` to potentials `a`, and from `da` to `do`."""

    forward: Recurrence
    backward: Recurrence
    constants: Constants


@dataclass(frozen=True)
class LossEquations:
    """The error of a loss, `do`, from output spikes `o` and their `target`, in up to two passes over time.

    Attributes:
        forward: from `o` and `target` to `r`. None if the backward pass does not read `r`.
        backward: computes `do`, from the last step to the first. Besides `r`, `o` and `target` it may read `count` and
            `target_count`. These are sums of `o` and `target` over the steps, the same at every step.
        inside: name of the input of the backward pass that is 0 at padded steps, for batches with lengths. Constants
            are then inputs too, because those of a sample depend on its length.
    """

    forward: Recurrence | None
    backward: Recurrence
    inside: str | None = None


class _Part:
    """The constants, states or carried values of one part of a step. Their names are unique among all parts."""

    def __init__(self, what: str, names: Iterable[str], taken: set[str]) -> None:
        self.free: dict[str, str] = {}
        for name in names:
            self.free[name] = free_name(name, taken)
            taken.add(self.free[name])
        self.expressions = {name: variable(free) for name, free in self.free.items()}
        self.names = Names(what, self.expressions)

    def renamed(self, given: Mapping[str, Expr], what: str) -> dict[str, Expr]:
        """Expressions by their unique names. Raises `SpecError` unless `given` has exactly the expected names."""
        if set(given) != set(self.free):
            raise SpecError(f"{what}: expected {', '.join(self.free) or 'none'}, got {', '.join(given) or 'none'}")
        return {free: given[name] for name, free in self.free.items()}

    def values(self, given: Mapping[str, float | np.float32]) -> dict[str, float]:
        """Numbers by their unique names."""
        return {self.free[name]: float(value) for name, value in given.items()}


def neuron_equations(
    filter: SynapticFilter | tuple[SynapticFilter, ...],
    neuron: NeuronModel,
    static: tuple[bool, ...] = (),
    of_potentials: bool = False,
) -> NeuronEquations:
    """The recurrences of a layer's neurons and the filters before them, and their constants.

    Args:
        filter: filter of the projection that the neurons read, or one filter for each of several projections. Their
            currents are added in this order. Equal filters without a bias become one filter, which reads the sum of
            their inputs.
        neuron: the model.
        static: for each of several projections, whether one input serves all steps. A static projection never shares a
            filter with one that changes.
        of_potentials: whether the backward pass also reads `gu = dL/du`. It is then always derived.
    """
    filters = filter if isinstance(filter, tuple) else (filter,)
    apart = static if len(filters) > 1 and static else (False,) * len(filters)
    return _neuron_equations(filters, neuron, apart, of_potentials)


@cache
def _neuron_equations(
    filters: tuple[SynapticFilter, ...], neuron: NeuronModel, static: tuple[bool, ...], of_potentials: bool
) -> NeuronEquations:
    name = neuron.written()["neuron"]
    what, surrogate = f"the neuron {name}", neuron.surrogate
    if not filters:
        raise SpecError(f"{what} has no input")
    inputs = tuple("z" if j == 0 else f"z{j + 1}" for j in range(len(filters)))
    kinds = [*zip(filters, static, strict=True)]
    shared = [j if each.learned() else kinds.index(kinds[j]) for j, each in enumerate(filters)]
    errors = tuple(f"d{inputs[j]}" for j in shared)
    taken = {*inputs, *errors, "u", "o", "g", "gu", "h", "current", "back"}
    edges = [_Edge(j, each, inputs, shared, taken) for j, each in enumerate(filters) if shared[j] == j]
    own, slope = neuron.constants(), surrogate.constants()
    own_p = _Part(f"constant of {what}", own, taken)
    # Inputs, not constants, so that an update compiles nothing, and one kernel serves one number per layer and one per
    # channel. The price is one more number to read per neuron and step.
    learned = _Part(f"learned number of {what}", neuron.learned(), taken)
    if twice := set(own) & set(learned.free):
        raise SpecError(f"{what}: {', '.join(sorted(twice))} is both a constant and learned")
    for edge in edges:
        edge.name_learned(taken)
    p = Names(f"constant of {what}", own_p.expressions | learned.expressions)
    slope_p = _Part(f"constant of the surrogate {surrogate.name}", slope, taken)
    of_edges = {k: value for edge in edges for k, value in edge.constants.values(edge.filter.constants()).items()}
    wide = of_edges | own_p.values(own) | slope_p.values(slope)
    constants = _rounded(wide)
    taken_back = set(taken)
    for edge in edges:
        edge.name_states(taken)
    own_s = _Part(f"state of {what}", neuron.states, taken)

    filtered = [edge.step() for edge in edges]
    current = variable("current")
    step = _floored(neuron.step(p, own_s.names, current))
    states = own_s.renamed(step.states, f"the states of {what}")
    if step.spike.op != "spike" or step.u.is_condition:
        raise SpecError(f"{what}: a step must return spike(u, threshold) as its spike and a number as its potential")

    def h(x: Expr) -> Expr:
        return named("h", surrogate.expression(slope_p.names, x))

    above = ("gu", "g") if of_potentials else ("g",)
    known = {*constants, *learned.free.values(), *above}
    own_d = _Part(f"carried value of {what}", neuron.carried, taken_back)
    back = None if of_potentials else neuron.adjoint(p, own_d.names, variable("u"), variable("g"), h)
    kept = {"u": step.u}
    if back is None:
        own_d = _Part(f"carried value of {what}", [f"d_{name}" for name in neuron.states], taken_back)
        known |= {*own_d.free.values()}
        back, kept = _derived(
            step, own_s, own_d, learned, current, known, taken | taken_back, h, of_potentials=of_potentials
        )
        taken_back |= {*kept}
    carried = own_d.renamed(back.carried, f"the carried values of {what}")
    own_terms = learned.renamed(back.learned, f"the gradients of the learned numbers of {what}")

    backs = [edge.back(back.current, taken_back) for edge in edges]
    edge_terms = {k: x for edge, (found, _) in zip(edges, backs, strict=True) for k, x in edge.terms(found).items()}
    free_names = [name for edge in edges for name in edge.learned.free.values()] + [*learned.free.values()]
    terms = _Part("gradient", [f"d_{free}" for free in free_names], taken_back)
    total = filtered[0].current
    for each in filtered[1:]:
        total = snap(total + each.current)
    roots = substituted([*states.values(), *kept.values(), step.spike], {id(current): total})
    made = dict(zip([*states, *kept, "o"], roots, strict=True))
    edge_states = {k: x for edge, each in zip(edges, filtered, strict=True) for k, x in edge.renamed(each).items()}
    forward = Recurrence(
        f"{name}_forward",
        (*(free for edge in edges for free in edge.constants.free.values()), *own_p.free.values()),
        (*inputs, *free_names),
        edge_states | {name: made[name] for name in states},
        {name: made[name] for name in (*kept, "o")},
    )
    backward = Recurrence(
        f"{name}_backward{'_of_potentials' if of_potentials else ''}",
        tuple(constants),
        (*kept, *above, *free_names),
        carried | {k: x for _, each in backs for k, x in each.items()},
        {f"d{edge.input}": found.dz for edge, (found, _) in zip(edges, backs, strict=True)}
        | {terms.free[f"d_{free}"]: x for free, x in (edge_terms | own_terms).items()},
        reverse=True,
    )
    every = {k: free for edge in edges for k, free in edge.learned_names().items()} | learned.free
    names = {name: terms.free[f"d_{free}"] for name, free in every.items()}
    of_learned = MappingProxyType(every), MappingProxyType(names)
    return NeuronEquations(
        forward, backward, inputs, errors, tuple(kept), constants, wide, *of_learned, filters, neuron
    )


@cache
def resumable_equations(
    filters: tuple[SynapticFilter, ...], neuron: NeuronModel, static: tuple[bool, ...] = ()
) -> ResumableEquations:
    """`neuron_equations` of neurons that continue from given states."""
    return ResumableEquations(
        neuron_equations(filters, neuron, static), neuron_equations(filters, neuron, static, of_potentials=True)
    )


class _Edge:
    """A filter between projections and neurons. Its names are unique in the equations."""

    def __init__(
        self, place: int, filter: SynapticFilter, inputs: tuple[str, ...], shared: list[int], taken: set[str]
    ) -> None:
        self.place, self.filter, self.input = place, filter, inputs[place]
        self.reads = [inputs[j] for j, first in enumerate(shared) if first == place]
        self.constants = _Part("constant of the filter", filter.constants(), taken)

    def name_learned(self, taken: set[str]) -> None:
        self.learned = _Part("learned number of the filter", self.filter.learned(), taken)

    def learned_names(self) -> dict[str, str]:
        """Unique names by a population's names for learned parameters: `bias`, and `bias2` for the second
        projection."""
        return {learned_name(self.place, name): free for name, free in self.learned.free.items()}

    def name_states(self, taken: set[str]) -> None:
        self.states = _Part("state of the filter", self.filter.states, taken)

    def step(self) -> FilterStep:
        z = variable(self.reads[0])
        for name in self.reads[1:]:
            z = snap(z + variable(name))
        names = Names("constant of the filter", self.constants.expressions | self.learned.expressions)
        return self.filter.step(names, self.states.names, z)

    def renamed(self, step: FilterStep) -> dict[str, Expr]:
        return self.states.renamed(step.states, "the states of the filter")

    def back(self, error: Expr, taken: set[str]) -> tuple[FilterAdjoint, dict[str, Expr]]:
        return _filter_back(self.filter, self.constants, self.learned, error, taken)

    def terms(self, back: FilterAdjoint) -> dict[str, Expr]:
        return self.learned.renamed(back.learned, "the gradients of the learned numbers of the filter")


def learned_name(place: int, name: str) -> str:
    """A population's name for a learned parameter of the filter of its projection number `place`."""
    return name if place == 0 else f"{name}{place + 1}"


def _with_added(recurrence: Recurrence, name: str, other: str) -> Recurrence:
    """The recurrence with the sum of the input `name` and an additional input `other` in place of the input `name`."""
    roots = [*recurrence.states.values(), *recurrence.outputs.values()]
    total = snap(variable(name) + variable(other))
    made = iter(substituted(roots, {id(x): total for x in ordered(roots) if x.op == "variable" and x.name == name}))
    states, outputs = ({k: next(made) for k in each} for each in (recurrence.states, recurrence.outputs))
    return recurrence.changed(inputs=(*recurrence.inputs, other), states=states, outputs=outputs)


@cache
def _recurrent(backward: Recurrence, summed: tuple[str, ...]) -> Recurrence:
    return _with_added(backward.summing(summed), "g", "back")


@cache
def _single(recurrence: Recurrence) -> Recurrence:
    return recurrence.single()


def _rounded(wide: Mapping[str, float]) -> dict[str, np.float32]:
    return {name: np.float32(value) for name, value in wide.items()}


def _floored(step: Step) -> Step:
    """`step` with its potential and its named values snapped where they are used, so that kept and used values
    agree."""
    states, spike = [*step.states.values()], step.spike
    u = step.u if step.u.name is not None else Expr(step.u.op, step.u.args, step.u.value, "u")
    roots = substituted([*states, spike, u], {id(step.u): u})
    made: dict[int, Expr] = {}
    for x in ordered(roots):
        new = x.of(tuple(made[id(operand)] for operand in x.args))
        plain = x.op in ("variable", "constant", "snap", "unsnapped") or x.is_condition or x.name is None
        made[id(x)] = new if plain else Expr("snap", (Expr(new.op, new.args, new.value),), name=x.name)
    *states, spike, u = (made[id(x)] for x in roots)
    return Step(u, spike, dict(zip(step.states, states, strict=True)))


def _derived(
    step: Step,
    states: _Part,
    carried: _Part,
    learned: _Part,
    current: Expr,
    known: set[str],
    taken: set[str],
    h: object,
    *,
    of_potentials: bool,
) -> tuple[Adjoint, dict[str, Expr]]:
    """The derived backward pass of a neuron's step, and the values of the step that it reads, `u` first.

    The names of these values are not in `taken`, except `u` and `current`.
    """
    seeds = [(step.states[name], carried.expressions[f"d_{name}"]) for name in states.free]
    seeds.append((step.spike, variable("g")))
    if of_potentials:
        seeds.append((step.u, variable("gu")))
    before = [states.expressions[name] for name in states.free]
    wanted = [current, *before, *learned.expressions.values()]
    found = [finished(x) for x in derive(seeds, wanted, h)]  # type: ignore[arg-type]
    every = ordered([*step.states.values(), step.u, step.spike])
    inner = [x for x in every if x.op not in ("variable", "constant", "unsnapped") and not x.is_condition]
    names = [(str(x.name), x) for x in inner if x.name is not None and x is not step.u]
    names += [(f"{name}_before", x) for name, x in zip(states.free, before, strict=True)]
    candidates: dict[str, Expr] = {}
    for name, x in names:
        candidates[free_name(name, taken | candidates.keys())] = x
    candidates["current"] = current
    kept, replaced = kept_values(found, known, {"u": step.u}, candidates)
    at, ends = replaced[0], iter(replaced[1:])
    back = Adjoint(at, {f"d_{name}": next(ends) for name in states.free}, {name: next(ends) for name in learned.free})
    return back, {"u": step.u} | kept


def _filter_back(
    filter: SynapticFilter, constants: _Part, learned: _Part, error: Expr, taken: set[str]
) -> tuple[FilterAdjoint, dict[str, Expr]]:
    """The backward pass of a filter from the error of its current, and the values it carries, under unique names."""
    d = _Part("carried value of the filter", filter.carried, taken)
    p = Names("constant of the filter", constants.expressions | learned.expressions)
    written = filter.adjoint(p, d.names, error)
    if written is not None:
        return written, d.renamed(written.carried, "the carried values of the filter")
    s = _Part("state of the filter", filter.states, set(taken))
    d = _Part("carried value of the filter", [f"d_{name}" for name in filter.states], taken)
    z = variable("z")
    step = filter.step(p, s.names, z)
    seeds = [(step.states[name], d.expressions[f"d_{name}"]) for name in filter.states]
    # First the error of the current, then the values that come from the following step.
    wanted = [z, *s.expressions.values(), *learned.expressions.values()]
    at, *rest = (finished(x) for x in derive([(step.current, error), *seeds], wanted, _no_spike))
    ends = iter(rest)
    carried = {f"d_{name}": next(ends) for name in filter.states}
    back = FilterAdjoint(carried, at, {name: next(ends) for name in learned.free})
    return back, d.renamed(back.carried, "the filter")


def _no_spike(x: Expr) -> Expr:
    raise SpecError("a filter has no spikes of its own")


@cache
def filter_equations(filter: SynapticFilter) -> FilterEquations:
    """The recurrences of a filter alone, and its constants."""
    taken = {"o", "a", "da", "do"}
    given = filter.constants()
    p = _Part("constant of the filter", given, taken)
    s = _Part("state of the filter", filter.states, set(taken))
    step = filter.step(p.names, s.names, variable("o"))
    states = s.renamed(step.states, "the states of the filter")
    forward = Recurrence("filter_forward", tuple(p.free.values()), ("o",), states, {"a": step.current})
    back, carried = _filter_back(filter, p, _Part("learned number of the filter", (), set()), variable("da"), taken)
    parameters, outputs = tuple(p.free.values()), {"do": back.dz}
    backward = Recurrence("filter_backward", parameters, ("da",), carried, outputs, reverse=True)
    return FilterEquations(forward, backward, _rounded(p.values(given)))


@cache
def loss_equations(loss: Loss) -> LossEquations:
    """The recurrences of a loss's error. Its constants are `loss.constants(...)`."""
    parameters = loss.parameters
    p = Names(f"constant of the loss {loss.name}", {name: variable(name) for name in parameters})

    def states(which: tuple[str, ...]) -> Names:
        return Names(f"state of the loss {loss.name}", {name: variable(name) for name in which})

    ahead = loss.ahead(p, states(loss.states), Names("value of a step", {k: variable(k) for k in AHEAD}))
    back = loss.back(p, states(loss.back_states), step_names(ahead))
    forward = None if ahead is None else _pass(loss, "forward", ahead, AHEAD, "r")
    return LossEquations(forward, _pass(loss, "backward", back, STEP, "do"))


@cache
def padded_loss_equations(loss: Loss) -> LossEquations:
    """`loss_equations` for samples with lengths. At padded steps, the error and all states of `backward` are zero."""
    plain = loss_equations(loss)
    taken = {*loss.parameters, *loss.states, *loss.back_states, *STEP}
    name = "inside"
    while name in taken:
        name += "_"

    def kept(x: Expr) -> Expr:
        # The selected values were snapped before, and the selection does not change that.
        return unsnapped(where(variable(name) > 0, x, 0))

    back, ahead = plain.backward, plain.forward
    backward = Recurrence(
        f"{back.name}_padded",
        (),
        (*back.inputs, *back.parameters, name),
        {state: kept(x) for state, x in back.states.items()},
        {output: kept(x) for output, x in back.outputs.items()},
        reverse=True,
    )
    if ahead is not None:
        ahead = ahead.changed(name=f"{ahead.name}_padded", parameters=(), inputs=(*ahead.inputs, *ahead.parameters))
    return LossEquations(ahead, backward, name)


def loss_padding(loss: Loss, psp: PSP, lengths: Int64, batch: int, shape: Shape) -> dict[str, AnyArray]:
    """Inputs of `padded_loss_equations` other than outputs and targets of `shape` `[T, B, N]`, by name.

    Args:
        loss, psp: the loss, and the filter of the output.
        lengths: lengths of the samples, `[B]`.
        batch: number of samples of the whole batch.
        shape: shape of the outputs.

    Returns:
        The constants of each sample, float32 `[1, B, N]`; and which steps are within its length, uint8 `[T, B, N]`.
    """
    steps, samples, neurons = shape
    constants = loss.constants_of(psp, lengths, batch)
    found: dict[str, AnyArray] = {
        name: np.broadcast_to(x.astype(np.float32)[None, :, None], (1, samples, neurons)).copy()
        for name, x in constants.items()
    }
    within = inside(lengths, steps)[..., None]
    return found | {inside_name(loss): np.broadcast_to(within, shape).astype(np.uint8)}


def inside_name(loss: Loss) -> str:
    """The name that `loss_padding` gives to the array that marks the steps which are not padding."""
    return "inside" if loss.of_potentials else str(padded_loss_equations(loss).inside)


def _pass(loss: Loss, way: str, step: LossStep, inputs: tuple[str, ...], output: str) -> Recurrence:
    read = free_variables([*step.states.values(), step.value])
    parameters, inputs = (tuple(n for n in each if n in read) for each in (loss.parameters, inputs))
    if not inputs:
        raise SpecError(f"the loss {loss.name}: a step of its {way} pass reads neither outputs nor targets")
    return Recurrence(
        f"{loss.name}_{way}", parameters, inputs, step.states, {output: step.value}, reverse=way == "backward"
    )
