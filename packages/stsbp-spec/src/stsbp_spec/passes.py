"""The forward and the backward pass through a network, for all backends (the two pipelines of the pseudo-code).

Forward (lines 1-9): the steps of the plan in order: pooling and dropout of spikes, weights, filters and neurons.
Backward (lines 11-31): the adjoints of the same steps, from the last to the first. If several nodes read an output, its
error is the sum of their errors, added in the order of the nodes.

A batch may be split into parts for processes and micro-batches. The parts go through the network together, and exchange
what a step requests (rules.py). Examples are the largest error of a layer, which determines its grid, and the sums of
the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from stsbp_spec.collective import Alone, Collective, Part
from stsbp_spec.graph import Network
from stsbp_spec.pairs import Pairs
from stsbp_spec.plan import Plan, Segment, plan
from stsbp_spec.results import NeuronResiduals
from stsbp_spec.rules import Asked, Back, Deferred, Run, Step, Total
from stsbp_spec.typing import Array, Memory, Precision

__all__ = [
    "Trace",
    "after",
    "back_through",
    "backward_pass",
    "backward_passes",
    "backward_sums",
    "forward_pass",
    "forward_passes",
    "through",
    "together",
]


Found = TypeVar("Found")


@dataclass
class Trace(Generic[Array]):
    """What a forward pass leaves for the backward pass and for reports.

    Attributes:
        backend, plan, run: the backend, its plan, and the data of the run.
        output: output of the network, `[T, B, N]`.
        spikes: spikes of each population, by the name of its node.
        residuals: function that returns the residuals of the steps of a segment, by name. The backward pass removes
            the residuals that it has used.
        statistics: statistics of the whole batch with which sums were normalised (`Step.statistics`).
        zeroed: counts of `Pairs.error_grid` by layer, after a backward pass in `reproducible` precision.
        whole: `Back.whole` of all steps, after a backward pass.
    """

    backend: Pairs[Array]
    plan: Plan[Array]
    run: Run[Array]
    output: Array
    spikes: Mapping[str, Array]
    residuals: Callable[[Segment[Array]], dict[str, Any]]
    statistics: Mapping[str, Array]
    zeroed: dict[str, Array] = field(default_factory=dict)
    whole: dict[str, Array] = field(default_factory=dict)

    def potentials(self) -> Array:
        """Membrane potentials `[T, B, N]` of the population at the network's end. Call it before a backward pass."""
        segment = self.plan.segments[-1]
        step = segment.steps[-1]
        return self.backend.neuron_potentials(step.population(self.residuals(segment)[step.name]))

    def after(self) -> dict[str, tuple[Array, ...]]:
        """The states for the steps that follow, if the run has something `before`."""
        left = (after(segment, self.residuals(segment)) for segment in self.plan.segments)
        return {name: arrays for each in left for name, arrays in each.items()}

    def populations(self) -> Iterator[tuple[str, NeuronResiduals[Array]]]:
        """The residuals of each population with the name of its node. Use it before a backward pass."""
        for segment in self.plan.segments:
            if (name := segment.population) is not None:
                yield name, segment.steps[-1].population(self.residuals(segment)[name])


def forward_pass(
    backend: Pairs[Array],
    network: Network,
    wq: Mapping[str, Array],
    x: Array,
    steps: int,
    dropout: tuple[int, int] | None,
    memory: Memory = "full",
    before: Mapping[str, tuple[Array, ...]] | None = None,
    *,
    keeps: bool = True,
) -> Trace[Array]:
    """Run the network on encoded inputs of a whole batch, `[1 or T, B, ...]`. Arguments: see `forward_passes`."""
    part = Part(0, x.shape[1], x.shape[1])
    (trace,) = forward_passes(
        backend, network, wq, [x], steps, dropout, [part], Alone(), memory, before=before, keeps=keeps
    )
    return trace


def forward_passes(
    backend: Pairs[Array],
    network: Network,
    wq: Mapping[str, Array],
    inputs: Sequence[Array],
    steps: int,
    dropout: tuple[int, int] | None,
    parts: Sequence[Part],
    collective: Collective[Array],
    memory: Memory,
    inside: Sequence[Array | None] | None = None,
    before: Mapping[str, tuple[Array, ...]] | None = None,
    *,
    keeps: bool = True,
) -> list[Trace[Array]]:
    """Run the network on parts of a batch.

    Args:
        backend: the backend, which computes the steps.
        network: the network.
        wq: weights on their grid, by name.
        inputs: encoded inputs of each part, `[1 or T, B, ...]` (`Pairs.encode`).
        steps: `T`.
        dropout: `(seed, step)` of the masks; None: no dropout.
        parts: which samples of the batch each part has.
        collective: the processes that have the other samples.
        memory: `low`: keep only one bit per spike. The backward pass then runs each segment again.
        inside: for each part, which steps of its samples are not padding: `rules.Run`.
        before: what earlier steps left; only for one part, with memory `full`: `rules.Run`.
        keeps: whether a backward pass may follow. If not, the traces only have the residuals of the last segment.

    Raises:
        BackendError: the backend has no rule for an operation.
    """
    walk, way = plan(backend, network, fused=before is None), _lean_way if memory == "low" else _way
    each = inside or [None] * len(parts)
    runs = [
        Run(wq, steps, dropout, part, collective, own, before, keeps) for part, own in zip(parts, each, strict=True)
    ]
    return together(backend, runs[0], [way(backend, walk, run, x) for run, x in zip(runs, inputs, strict=True)])


def _way(
    backend: Pairs[Array], walk: Plan[Array], run: Run[Array], x: Array
) -> Generator[Asked[Array], Array, Trace[Array]]:
    values, residuals = {walk.input: x}, dict[str, Any]()
    spikes: dict[str, Array] = {}
    statistics: dict[str, Array] = {}
    for segment in walk.segments:
        made, found = yield from through(backend, segment, run, values)
        if not run.keeps:
            residuals.clear()
        residuals.update(found)
        statistics.update(_statistics(segment, found))
        spikes.update({name: value for name, value in made.items() if name == segment.population})
        values = _passed_on(segment, values, made)
    return Trace(backend, walk, run, values[walk.output], spikes, lambda _: residuals, statistics)


def _lean_way(
    backend: Pairs[Array], walk: Plan[Array], run: Run[Array], x: Array
) -> Generator[Asked[Array], Array, Trace[Array]]:
    values = {walk.input: x}
    kept: dict[str, Callable[[], Array]] = {walk.input: lambda: x}
    fired: dict[str, Callable[[], Array]] = {}
    sent = dict[Segment[Array], list[Array]]()
    statistics: dict[str, Array] = {}
    for segment in walk.segments:
        made, found = yield from _noted(through(backend, segment, run, values), sent.setdefault(segment, []))
        statistics.update(_statistics(segment, found))
        del found
        for name, value in made.items():
            if name == segment.population:
                kept[name] = fired[name] = partial(backend.unpack_spikes, backend.pack_spikes(value))
            else:
                kept[name] = lambda value=value: value  # type: ignore[misc]
        values = _passed_on(segment, values, made)

    def again(segment: Segment[Array]) -> dict[str, Any]:
        sources = {name: kept[name]() for name in segment.sources}
        return _repeated(through(backend, segment, run, sources), sent[segment])[1]

    return Trace(backend, walk, run, values[walk.output], _Packed(fired), again, statistics)


def _noted(way: Generator[Asked[Array], Array, Found], sent: list[Array]) -> Generator[Asked[Array], Array, Found]:
    """Run `way`, and append everything that it is sent to `sent`."""
    answer: Any = None
    while True:
        try:
            asked = way.send(answer)
        except StopIteration as end:
            found: Found = end.value
            return found
        answer = yield asked
        sent.append(answer)


def _repeated(way: Generator[Asked[Array], Array, Found], sent: Sequence[Array]) -> Found:
    """Run `way` again with the same answers as before, and return its result."""
    answers: Any = (None, *sent)
    try:
        for answer in answers:
            way.send(answer)
    except StopIteration as end:
        found: Found = end.value
        return found
    raise RuntimeError("a step asks for more than when it was run before")


class _Packed(Mapping[str, Array]):
    """Spikes that are unpacked on access."""

    def __init__(self, unpack: Mapping[str, Callable[[], Array]]) -> None:
        self.unpack = unpack

    def __getitem__(self, name: str) -> Array:
        return self.unpack[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.unpack)

    def __len__(self) -> int:
        return len(self.unpack)


def through(
    backend: Pairs[Array], segment: Segment[Array], run: Run[Array], values: Mapping[str, Array]
) -> Generator[Asked[Array], Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Run a segment. Returns the outputs that are kept, and the residuals of its steps, by name."""
    made, residuals = dict(values), dict[str, Any]()
    for step in segment.steps:
        run.collective.beat(step.name)
        inputs = list[Array]()
        for source, delay in zip(step.sources, step.delays, strict=True):
            x = made[source]
            if delay and run.before is not None:
                edge = step.delayed[source, delay]
                (earlier,) = run.before.get(edge) or (backend.joined([x[:1] * 0] * delay),)
                whole = backend.joined([earlier, x])
                x, residuals[edge] = whole[: len(x)], whole[len(whole) - delay :]
            elif delay:
                x = backend.shifted(x, delay)
            inputs.append(x)
        way = step.forward(run, *inputs)
        made[step.name], residuals[step.name] = yield from way
    return {name: made[name] for name in segment.left}, residuals


def after(segment: Segment[Array], residuals: Mapping[str, Any]) -> dict[str, tuple[Array, ...]]:
    """What a segment leaves for the steps that follow, if the run has something `before`.

    By name: the last spikes and the states of its population, and the values that a delayed edge still holds.
    """
    found: dict[str, tuple[Array, ...]] = {}
    for step in segment.steps:
        found |= {edge: (residuals[edge],) for edge in step.delayed.values()}
        if step.fires:
            found[step.name] = residuals[step.name].after
    return found


def _statistics(segment: Segment[Array], residuals: Mapping[str, Any]) -> dict[str, Array]:
    steps = (step for step in segment.steps if step.normalises)
    return {name: x for step in steps for name, x in step.statistics(residuals[step.name]).items()}


def _passed_on(segment: Segment[Array], values: Mapping[str, Array], made: Mapping[str, Array]) -> dict[str, Array]:
    """The values that later segments read."""
    return {name: value for name, value in (*values.items(), *made.items()) if name not in segment.done}


def backward_pass(trace: Trace[Array], ds: Array, precision: Precision) -> dict[str, Array]:
    """Gradients of all weights, by name, from `dL/do` of the output, `[T, B, N]`.

    The gradient passes the weight grid unchanged (straight-through estimator). Afterwards, only the spikes and the
    counts of the error grid remain in the trace. The memory of everything else is free for the steps below.
    """
    return backward_passes([trace], [ds], precision)


def backward_passes(
    traces: Sequence[Trace[Array]],
    errors: Sequence[Array],
    precision: Precision,
    before: Mapping[str, Array] = MappingProxyType({}),
) -> dict[str, Array]:
    """`backward_pass` for the parts of a batch that left `traces`. The other processes have the other parts.

    The gradients are those of the whole batch, and the same in every process. `before`: `backward_sums` of earlier
    parts in this process, whose backward pass is already done.
    """
    backend, walk, collective = traces[0].backend, traces[0].plan, traces[0].run.collective
    under_way = dict[str, Callable[[], Array]]()
    for name, own in backward_sums(traces, errors, precision):
        under_way[name] = collective.start_total(backend.plus(before[name], own) if name in before else own)
    of_all = {name: wait() for name, wait in under_way.items()} | traces[0].whole
    gradients = {name: backend.rounded(x) for name, x in of_all.items()}
    for owner, names in walk.uses.items():
        gradients[owner] = reduce(backend.plus, [gradients.pop(name) for name in names])
    return gradients


def backward_sums(
    traces: Sequence[Trace[Array]], errors: Sequence[Array], precision: Precision
) -> Iterator[tuple[str, Array]]:
    """Contributions of these parts of a batch to each gradient, by name. Yields each one when it is known,
    unrounded."""
    backend, walk = traces[0].backend, traces[0].plan
    waiting: list[dict[str, list[Array | Deferred[Array]]]] = [{walk.output: [error]} for error in errors]
    del errors
    for segment in reversed(walk.segments):
        ways = [back_through(trace, segment, each, precision) for trace, each in zip(traces, waiting, strict=True)]
        found = together(backend, traces[0].run, ways)
        for name in list(found[0]):
            yield name, reduce(backend.plus, [each.pop(name) for each in found])
    for trace in traces:
        trace.zeroed = dict(reversed(trace.zeroed.items()))


def back_through(
    trace: Trace[Array],
    segment: Segment[Array],
    waiting: dict[str, list[Array | Deferred[Array]]],
    precision: Precision,
) -> Generator[Asked[Array], Array, dict[str, Array]]:
    """The backward pass of a segment. It removes the errors of its outputs from `waiting`, and adds those of its
    sources.

    Returns the gradients by name.
    """
    gradients, residuals = dict[str, Array](), trace.residuals(segment)
    for step in reversed(segment.steps):
        trace.run.collective.beat(step.name)
        if errors := waiting.pop(step.name, []):
            # Keep no reference to the residuals and errors, so that their memory is free while waiting for others.
            way = step.backward(trace.run, residuals.pop(step.name), _total(step, errors), precision)
            errors.clear()
            back: Back[Array] = yield from way
            gradients.update(back.gradients)
            trace.zeroed.update(back.zeroed)
            trace.whole.update(back.whole)
            edges = zip(step.sources, step.delays, back.errors, step.needed, strict=True)
            for source, delay, error, needed in reversed([*edges]):
                if needed and error is not None:
                    if delay:
                        error = trace.backend.shifted(_array(error), -delay)
                    waiting.setdefault(source, []).append(error)
            del back
        residuals.pop(step.name, None)
    return gradients


def together(
    backend: Pairs[Array], run: Run[Array], ways: Sequence[Generator[Asked[Array], Array, Found]]
) -> list[Found]:
    """Run generators for several parts of a batch in step. Each continues when its request is answered for the
    batch."""
    found: list[Found] = []
    answer: Any = None
    while not found:
        asked = list[Asked[Array]]()
        for way in ways:
            try:
                asked.append(way.send(answer))
            except StopIteration as end:
                found.append(end.value)
        if asked:
            own = [each.x for each in asked]
            if isinstance(asked[0], Total):
                answer = run.collective.start_total(reduce(backend.plus, own))()
            else:
                answer = run.collective.largest(backend.most(own))
    return found


def _total(step: Step[Array], errors: list[Array | Deferred[Array]]) -> Array | Deferred[Array]:
    """The error of a step's output: the sum of its readers' errors, which came from the last reader to the first."""
    if len(errors) == 1 and step.takes_deferred:
        return errors[0]
    arrays = [_array(error) for error in reversed(errors)]
    total: Array = arrays[0]
    for error in arrays[1:]:
        total = total + error
    return total


def _array(error: Array | Deferred[Array]) -> Array:
    found: Array = error.array() if isinstance(error, Deferred) else error
    return found
