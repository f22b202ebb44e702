"""The equations of a network as recurrences, which every backend prints and runs.

The synaptic filter of an edge and the neurons after it form one step. So do a filter alone, the two passes of a loss,
and the update of AdamW. The expressions are in ops/psp.py, neurons/, surrogates/, losses/ and optim/adamw.py.
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
from stsbp_spec.models.learned import learned_name
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
        unrounded: the same constants before they are rounded to float32, where the filter and the models provide them.
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
    unrounded: Mapping[str, float]
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
        recurrence = self.recurrent(summed)
        return _single(recurrence), tuple(recurrence.states)

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
        all_outputs = {**self.of_potentials.forward.outputs, **self.plain.forward.outputs}
        outputs = {name: all_outputs[name] for name in (*self.kept, "o")}
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


class _PartNames:
    """The constants, states or carried values of one part of a step. Their names are unique among all parts."""

    def __init__(self, kind: str, names: Iterable[str], used_names: set[str]) -> None:
        self.free: dict[str, str] = {}
        for name in names:
            self.free[name] = free_name(name, used_names)
            used_names.add(self.free[name])
        self.expressions = {name: variable(free) for name, free in self.free.items()}
        self.names = Names(kind, self.expressions)

    def renamed(self, expressions: Mapping[str, Expr], title: str) -> dict[str, Expr]:
        """Expressions by their unique names. Raises `SpecError` unless `expressions` has exactly the expected names."""
        if set(expressions) != set(self.free):
            raise SpecError(
                f"{title}: expected {', '.join(self.free) or 'none'}, got {', '.join(expressions) or 'none'}"
            )
        return {free: expressions[name] for name, free in self.free.items()}

    def values(self, numbers: Mapping[str, float | np.float32]) -> dict[str, float]:
        """Numbers by their unique names."""
        return {self.free[name]: float(value) for name, value in numbers.items()}


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
    static_filters = static if len(filters) > 1 and static else (False,) * len(filters)
    return _neuron_equations(filters, neuron, static_filters, of_potentials)


@cache
def _neuron_equations(
    filters: tuple[SynapticFilter, ...], neuron: NeuronModel, static: tuple[bool, ...], of_potentials: bool
) -> NeuronEquations:
    name = neuron.written()["neuron"]
    title, surrogate = f"the neuron {name}", neuron.surrogate
    if not filters:
        raise SpecError(f"{title} has no input")
    inputs = tuple("z" if j == 0 else f"z{j + 1}" for j in range(len(filters)))
    kinds = [*zip(filters, static, strict=True)]
    shared = [j if edge_filter.learned() else kinds.index(kinds[j]) for j, edge_filter in enumerate(filters)]
    errors = tuple(f"d{inputs[j]}" for j in shared)
    used_names = {*inputs, *errors, "u", "o", "g", "gu", "h", "current", "back"}
    edges = [
        _EdgeFilter(j, edge_filter, inputs, shared, used_names)
        for j, edge_filter in enumerate(filters)
        if shared[j] == j
    ]
    neuron_constants, slope_constants = neuron.constants(), surrogate.constants()
    constant_names = _PartNames(f"constant of {title}", neuron_constants, used_names)
    # Inputs, not constants, so that an update compiles nothing, and one kernel serves one number per layer and one per
    # channel. The price is one more number to read per neuron and step.
    learned = _PartNames(f"learned number of {title}", neuron.learned(), used_names)
    if twice := set(neuron_constants) & set(learned.free):
        raise SpecError(f"{title}: {', '.join(sorted(twice))} is both a constant and learned")
    for edge in edges:
        edge.name_learned(used_names)
    p = Names(f"constant of {title}", constant_names.expressions | learned.expressions)
    slope_names = _PartNames(f"constant of the surrogate {surrogate.name}", slope_constants, used_names)
    edge_constants = {k: value for edge in edges for k, value in edge.constants.values(edge.filter.constants()).items()}
    unrounded = edge_constants | constant_names.values(neuron_constants) | slope_names.values(slope_constants)
    constants = _rounded(unrounded)
    used_names_back = set(used_names)
    for edge in edges:
        edge.name_states(used_names)
    state_names = _PartNames(f"state of {title}", neuron.states, used_names)

    filtered = [edge.step() for edge in edges]
    current = variable("current")
    step = _floored(neuron.step(p, state_names.names, current))
    states = state_names.renamed(step.states, f"the states of {title}")
    if step.spike.op != "spike" or step.u.is_condition:
        raise SpecError(f"{title}: a step must return spike(u, threshold) as its spike and a number as its potential")

    def h(x: Expr) -> Expr:
        return named("h", surrogate.expression(slope_names.names, x))

    grad_inputs = ("gu", "g") if of_potentials else ("g",)
    known_names = {*constants, *learned.free.values(), *grad_inputs}
    carried_names = _PartNames(f"carried value of {title}", neuron.carried, used_names_back)
    adjoint = None if of_potentials else neuron.adjoint(p, carried_names.names, variable("u"), variable("g"), h)
    saved = {"u": step.u}
    if adjoint is None:
        carried_names = _PartNames(
            f"carried value of {title}", [f"d_{name}" for name in neuron.states], used_names_back
        )
        known_names |= {*carried_names.free.values()}
        adjoint, saved = _derived(
            step,
            state_names,
            carried_names,
            learned,
            current,
            known_names,
            used_names | used_names_back,
            h,
            of_potentials=of_potentials,
        )
        used_names_back |= {*saved}
    carried_values = carried_names.renamed(adjoint.carried, f"the carried values of {title}")
    neuron_terms = learned.renamed(adjoint.learned, f"the gradients of the learned numbers of {title}")

    edge_adjoints = [edge.adjoint(adjoint.current, used_names_back) for edge in edges]
    edge_terms = {
        k: x
        for edge, (edge_adjoint, _) in zip(edges, edge_adjoints, strict=True)
        for k, x in edge.terms(edge_adjoint).items()
    }
    free_names = [name for edge in edges for name in edge.learned.free.values()] + [*learned.free.values()]
    terms = _PartNames("gradient", [f"d_{free}" for free in free_names], used_names_back)
    total = filtered[0].current
    for filter_step in filtered[1:]:
        total = snap(total + filter_step.current)
    roots = substituted([*states.values(), *saved.values(), step.spike], {id(current): total})
    forward_values = dict(zip([*states, *saved, "o"], roots, strict=True))
    edge_states = {
        k: x for edge, filter_step in zip(edges, filtered, strict=True) for k, x in edge.renamed(filter_step).items()
    }
    forward = Recurrence(
        f"{name}_forward",
        (*(free for edge in edges for free in edge.constants.free.values()), *constant_names.free.values()),
        (*inputs, *free_names),
        edge_states | {name: forward_values[name] for name in states},
        {name: forward_values[name] for name in (*saved, "o")},
    )
    backward = Recurrence(
        f"{name}_backward{'_of_potentials' if of_potentials else ''}",
        tuple(constants),
        (*saved, *grad_inputs, *free_names),
        carried_values | {k: x for _, edge_carried in edge_adjoints for k, x in edge_carried.items()},
        {f"d{edge.input}": edge_adjoint.dz for edge, (edge_adjoint, _) in zip(edges, edge_adjoints, strict=True)}
        | {terms.free[f"d_{free}"]: x for free, x in (edge_terms | neuron_terms).items()},
        reverse=True,
    )
    learned_inputs = {k: free for edge in edges for k, free in edge.learned_names().items()} | learned.free
    names = {name: terms.free[f"d_{free}"] for name, free in learned_inputs.items()}
    of_learned = MappingProxyType(learned_inputs), MappingProxyType(names)
    return NeuronEquations(
        forward, backward, inputs, errors, tuple(saved), constants, unrounded, *of_learned, filters, neuron
    )


@cache
def resumable_equations(
    filters: tuple[SynapticFilter, ...], neuron: NeuronModel, static: tuple[bool, ...] = ()
) -> ResumableEquations:
    """`neuron_equations` of neurons that continue from given states."""
    return ResumableEquations(
        neuron_equations(filters, neuron, static), neuron_equations(filters, neuron, static, of_potentials=True)
    )


class _EdgeFilter:
    """A filter between projections and neurons. Its names are unique in the equations."""

    def __init__(
        self, index: int, filter: SynapticFilter, inputs: tuple[str, ...], shared: list[int], used_names: set[str]
    ) -> None:
        self.index, self.filter, self.input = index, filter, inputs[index]
        self.reads = [inputs[j] for j, first in enumerate(shared) if first == index]
        self.constants = _PartNames("constant of the filter", filter.constants(), used_names)

    def name_learned(self, used_names: set[str]) -> None:
        self.learned = _PartNames("learned number of the filter", self.filter.learned(), used_names)

    def learned_names(self) -> dict[str, str]:
        """Unique names by a population's names for learned parameters: `bias`, and `bias2` for the second
        projection."""
        return {learned_name(self.index, name): free for name, free in self.learned.free.items()}

    def name_states(self, used_names: set[str]) -> None:
        self.states = _PartNames("state of the filter", self.filter.states, used_names)

    def step(self) -> FilterStep:
        z = variable(self.reads[0])
        for name in self.reads[1:]:
            z = snap(z + variable(name))
        names = Names("constant of the filter", self.constants.expressions | self.learned.expressions)
        return self.filter.step(names, self.states.names, z)

    def renamed(self, step: FilterStep) -> dict[str, Expr]:
        return self.states.renamed(step.states, "the states of the filter")

    def adjoint(self, error: Expr, used_names: set[str]) -> tuple[FilterAdjoint, dict[str, Expr]]:
        return _filter_adjoint(self.filter, self.constants, self.learned, error, used_names)

    def terms(self, adjoint: FilterAdjoint) -> dict[str, Expr]:
        return self.learned.renamed(adjoint.learned, "the gradients of the learned numbers of the filter")


def _with_added(recurrence: Recurrence, name: str, added: str) -> Recurrence:
    """The recurrence with the sum of the input `name` and an additional input `added` in place of the input `name`."""
    roots = [*recurrence.states.values(), *recurrence.outputs.values()]
    total = snap(variable(name) + variable(added))
    replaced = iter(substituted(roots, {id(x): total for x in ordered(roots) if x.op == "variable" and x.name == name}))
    states, outputs = (
        {k: next(replaced) for k in expressions} for expressions in (recurrence.states, recurrence.outputs)
    )
    return recurrence.changed(inputs=(*recurrence.inputs, added), states=states, outputs=outputs)


@cache
def _recurrent(backward: Recurrence, summed: tuple[str, ...]) -> Recurrence:
    return _with_added(backward.summing(summed), "g", "back")


@cache
def _single(recurrence: Recurrence) -> Recurrence:
    return recurrence.single()


def _rounded(constants: Mapping[str, float]) -> dict[str, np.float32]:
    return {name: np.float32(value) for name, value in constants.items()}


def _floored(step: Step) -> Step:
    """`step` with its potential and its named values snapped where they are used, so that kept and used values
    agree."""
    states, spike = [*step.states.values()], step.spike
    u = step.u if step.u.name is not None else Expr(step.u.op, step.u.args, step.u.value, "u")
    roots = substituted([*states, spike, u], {id(step.u): u})
    floored: dict[int, Expr] = {}
    for x in ordered(roots):
        new = x.with_operands(tuple(floored[id(operand)] for operand in x.args))
        needs_no_snap = x.op in ("variable", "constant", "snap", "unsnapped") or x.is_condition or x.name is None
        floored[id(x)] = new if needs_no_snap else Expr("snap", (Expr(new.op, new.args, new.value),), name=x.name)
    *states, spike, u = (floored[id(x)] for x in roots)
    return Step(u, spike, dict(zip(step.states, states, strict=True)))


def _derived(
    step: Step,
    states: _PartNames,
    carried: _PartNames,
    learned: _PartNames,
    current: Expr,
    known_names: set[str],
    used_names: set[str],
    h: object,
    *,
    of_potentials: bool,
) -> tuple[Adjoint, dict[str, Expr]]:
    """The derived backward pass of a neuron's step, and the values of the step that it reads, `u` first.

    The names of these values are not in `used_names`, except `u` and `current`.
    """
    seeds = [(step.states[name], carried.expressions[f"d_{name}"]) for name in states.free]
    seeds.append((step.spike, variable("g")))
    if of_potentials:
        seeds.append((step.u, variable("gu")))
    state_variables = [states.expressions[name] for name in states.free]
    sources = [current, *state_variables, *learned.expressions.values()]
    gradients = [finished(x) for x in derive(seeds, sources, h)]  # type: ignore[arg-type]
    nodes = ordered([*step.states.values(), step.u, step.spike])
    inner = [x for x in nodes if x.op not in ("variable", "constant", "unsnapped") and not x.is_condition]
    names = [(str(x.name), x) for x in inner if x.name is not None and x is not step.u]
    names += [(f"{name}_before", x) for name, x in zip(states.free, state_variables, strict=True)]
    candidates: dict[str, Expr] = {}
    for name, x in names:
        candidates[free_name(name, used_names | candidates.keys())] = x
    candidates["current"] = current
    saved, replaced = kept_values(gradients, known_names, {"u": step.u}, candidates)
    grad_current, other_grads = replaced[0], iter(replaced[1:])
    adjoint = Adjoint(
        grad_current,
        {f"d_{name}": next(other_grads) for name in states.free},
        {name: next(other_grads) for name in learned.free},
    )
    return adjoint, {"u": step.u} | saved


def _filter_adjoint(
    filter: SynapticFilter, constants: _PartNames, learned: _PartNames, error: Expr, used_names: set[str]
) -> tuple[FilterAdjoint, dict[str, Expr]]:
    """The backward pass of a filter from the error of its current, and the values it carries, under unique names."""
    d = _PartNames("carried value of the filter", filter.carried, used_names)
    p = Names("constant of the filter", constants.expressions | learned.expressions)
    written = filter.adjoint(p, d.names, error)
    if written is not None:
        return written, d.renamed(written.carried, "the carried values of the filter")
    s = _PartNames("state of the filter", filter.states, set(used_names))
    d = _PartNames("carried value of the filter", [f"d_{name}" for name in filter.states], used_names)
    z = variable("z")
    step = filter.step(p, s.names, z)
    seeds = [(step.states[name], d.expressions[f"d_{name}"]) for name in filter.states]
    # First the error of the current, then the values that come from the following step.
    sources = [z, *s.expressions.values(), *learned.expressions.values()]
    grad_input, *other_grads = (finished(x) for x in derive([(step.current, error), *seeds], sources, _no_spike))
    grads = iter(other_grads)
    carried = {f"d_{name}": next(grads) for name in filter.states}
    adjoint = FilterAdjoint(carried, grad_input, {name: next(grads) for name in learned.free})
    return adjoint, d.renamed(adjoint.carried, "the filter")


def _no_spike(x: Expr) -> Expr:
    raise SpecError("a filter has no spikes of its own")


@cache
def filter_equations(filter: SynapticFilter) -> FilterEquations:
    """The recurrences of a filter alone, and its constants."""
    used_names = {"o", "a", "da", "do"}
    constants = filter.constants()
    p = _PartNames("constant of the filter", constants, used_names)
    s = _PartNames("state of the filter", filter.states, set(used_names))
    step = filter.step(p.names, s.names, variable("o"))
    states = s.renamed(step.states, "the states of the filter")
    forward = Recurrence("filter_forward", tuple(p.free.values()), ("o",), states, {"a": step.current})
    adjoint, carried = _filter_adjoint(
        filter, p, _PartNames("learned number of the filter", (), set()), variable("da"), used_names
    )
    parameters, outputs = tuple(p.free.values()), {"do": adjoint.dz}
    backward = Recurrence("filter_backward", parameters, ("da",), carried, outputs, reverse=True)
    return FilterEquations(forward, backward, _rounded(p.values(constants)))


@cache
def loss_equations(loss: Loss) -> LossEquations:
    """The recurrences of a loss's error. Its constants are `loss.constants(...)`."""
    parameters = loss.parameters
    p = Names(f"constant of the loss {loss.name}", {name: variable(name) for name in parameters})

    def states(which: tuple[str, ...]) -> Names:
        return Names(f"state of the loss {loss.name}", {name: variable(name) for name in which})

    forward_step = loss.ahead(p, states(loss.states), Names("value of a step", {k: variable(k) for k in AHEAD}))
    backward_step = loss.back(p, states(loss.back_states), step_names(loss, forward_step))
    forward = None if forward_step is None else _pass(loss, "forward", forward_step, AHEAD, "r")
    return LossEquations(forward, _pass(loss, "backward", backward_step, STEP, "do"))


@cache
def padded_loss_equations(loss: Loss) -> LossEquations:
    """`loss_equations` for samples with lengths. At padded steps, the error and all states of `backward` are zero."""
    plain = loss_equations(loss)
    used_names = {*loss.parameters, *loss.states, *loss.back_states, *STEP}
    name = "inside"
    while name in used_names:
        name += "_"

    def mask_padding(x: Expr) -> Expr:
        # The selected values were snapped before, and the selection does not change that.
        return unsnapped(where(variable(name) > 0, x, 0))

    plain_backward, forward = plain.backward, plain.forward
    backward = Recurrence(
        f"{plain_backward.name}_padded",
        (),
        (*plain_backward.inputs, *plain_backward.parameters, name),
        {state: mask_padding(x) for state, x in plain_backward.states.items()},
        {output: mask_padding(x) for output, x in plain_backward.outputs.items()},
        reverse=True,
    )
    if forward is not None:
        forward = forward.changed(
            name=f"{forward.name}_padded", parameters=(), inputs=(*forward.inputs, *forward.parameters)
        )
    return LossEquations(forward, backward, name)


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
    constants = loss.constants_of(psp, lengths, batch, neurons)
    arrays: dict[str, AnyArray] = {
        name: np.broadcast_to(x.astype(np.float32)[None, :, None], (1, samples, neurons)).copy()
        for name, x in constants.items()
    }
    is_inside = inside(lengths, steps)[..., None]
    return arrays | {inside_name(loss): np.broadcast_to(is_inside, shape).astype(np.uint8)}


def inside_name(loss: Loss) -> str:
    """The name that `loss_padding` gives to the array that marks the steps which are not padding."""
    return "inside" if loss.reads_classes else str(padded_loss_equations(loss).inside)


def _pass(loss: Loss, direction: str, step: LossStep, inputs: tuple[str, ...], output: str) -> Recurrence:
    names_read = free_variables([*step.states.values(), step.value])
    parameters, inputs = (tuple(n for n in names if n in names_read) for names in (loss.parameters, inputs))
    if not inputs:
        raise SpecError(f"the loss {loss.name}: a step of its {direction} pass reads neither outputs nor targets")
    return Recurrence(
        f"{loss.name}_{direction}",
        parameters,
        inputs,
        step.states,
        {output: step.value},
        reverse=direction == "backward",
    )
