"""The forward and the backward pass through a network, for all backends (the two pipelines of the pseudo-code).

Forward (lines 1-9): the steps of the plan in order: pooling and dropout of spikes, weights, filters and neurons.
Backward (lines 11-31): the adjoints of the same steps, from the last to the first. If several nodes read an output, its
error is the sum of their errors, added in the order of the nodes.

A batch may be split into slices for processes and micro-batches. A step that needs numbers of the whole batch gets all
slices of this process at once (rules.py). Examples of such numbers are the largest error of a layer, which determines
its grid, and the sums of a batch normalisation. The steps between two such steps are all computed for one slice before
the next slice, so that only one slice needs memory for what they do not keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from itertools import repeat
from types import MappingProxyType
from typing import Any, Generic

from stsbp_spec.distributed.collective import Alone, BatchSlice, Collective
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.plan import Chain, Plan, Segment, Stage, plan
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.engine.rules import BackwardResult, Deferred, ForwardResult, PassContext, Step
from stsbp_spec.networks.graph import Network
from stsbp_spec.typing import Array, Memory, Precision

__all__ = [
    "Trace",
    "backward_pass",
    "backward_passes",
    "backward_segment",
    "backward_sums",
    "forward_pass",
    "forward_passes",
    "forward_segment",
    "states_after",
]


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
        zeroed: counts of `Operations.error_grid` by layer, after a backward pass in `reproducible` precision.
        batch_gradients: `BackwardResult.batch_gradients` of all steps, after a backward pass.
        penalties: errors of the penalties on the rates of populations, `[1, B, ...]`, by the names of their nodes.
    """

    backend: Operations[Array]
    plan: Plan[Array]
    run: PassContext[Array]
    output: Array
    spikes: Mapping[str, Array]
    residuals: Callable[[Segment[Array]], dict[str, Any]]
    statistics: Mapping[str, Array]
    zeroed: dict[str, Array] = field(default_factory=dict)
    batch_gradients: dict[str, Array] = field(default_factory=dict)
    penalties: dict[str, Array] = field(default_factory=dict)

    def potentials(self) -> Array:
        """Membrane potentials `[T, B, N]` of the population at the network's end. Call it before a backward pass."""
        segment = self.plan.segments[-1]
        step = segment.steps[-1]
        return self.backend.neuron_potentials(step.population(self.residuals(segment)[step.name]))

    def states_after(self) -> dict[str, tuple[Array, ...]]:
        """The states for the steps that follow, if the run has `initial_states`."""
        states = (states_after(segment, self.residuals(segment)) for segment in self.plan.segments)
        return {name: arrays for segment_states in states for name, arrays in segment_states.items()}

    def populations(self) -> Iterator[tuple[str, NeuronResiduals[Array]]]:
        """The residuals of each population with the name of its node. Use it before a backward pass."""
        for segment in self.plan.segments:
            if (name := segment.population) is not None:
                yield name, segment.steps[-1].population(self.residuals(segment)[name])


def forward_pass(
    backend: Operations[Array],
    network: Network,
    wq: Mapping[str, Array],
    x: Array,
    steps: int,
    dropout: tuple[int, int] | None,
    memory: Memory = "full",
    initial_states: Mapping[str, tuple[Array, ...]] | None = None,
    *,
    keeps: bool = True,
) -> Trace[Array]:
    """Run the network on encoded inputs of a whole batch, `[1 or T, B, ...]`. Arguments: see `forward_passes`."""
    part = BatchSlice(0, x.shape[1], x.shape[1])
    (trace,) = forward_passes(
        backend, network, wq, [x], steps, dropout, [part], Alone(), memory, initial_states=initial_states, keeps=keeps
    )
    return trace


def forward_passes(
    backend: Operations[Array],
    network: Network,
    wq: Mapping[str, Array],
    inputs: Sequence[Array],
    steps: int,
    dropout: tuple[int, int] | None,
    parts: Sequence[BatchSlice],
    collective: Collective[Array],
    memory: Memory,
    inside: Sequence[Array | None] | None = None,
    initial_states: Mapping[str, tuple[Array, ...]] | None = None,
    *,
    keeps: bool = True,
) -> list[Trace[Array]]:
    """Run the network on parts of a batch.

    Args:
        backend: the backend, which computes the steps.
        network: the network.
        wq: weights on their grid, by name.
        inputs: encoded inputs of each part, `[1 or T, B, ...]` (`Operations.encode`).
        steps: `T`.
        dropout: `(seed, step)` of the masks; None: no dropout.
        parts: which samples of the batch each part has.
        collective: the processes that have the other samples.
        memory: `low`: keep only one bit per spike. The backward pass then runs each segment again.
        inside: for each part, which steps of its samples are not padding: `rules.PassContext`.
        initial_states: what earlier steps left; only for one part, with memory `full`: `rules.PassContext`.
        keeps: whether a backward pass may follow. If not, the traces only have the residuals of the last segment.

    Raises:
        BackendError: the backend has no rule for an operation.
    """
    walk = plan(backend, network, fused=initial_states is None)
    forward: type[_Forward[Array]] = _LeanForward if memory == "low" else _Forward
    slices = [
        forward(backend, walk, PassContext(wq, steps, dropout, part, collective, inside_part, initial_states, keeps), x)
        for part, inside_part, x in zip(parts, inside or [None] * len(parts), inputs, strict=True)
    ]
    _compute(slices, walk.stages)
    return [slice_.trace() for slice_ in slices]


class _Slice(ABC, Generic[Array]):
    """The pass of one slice of a batch through steps."""

    @staticmethod
    @abstractmethod
    def results(step: Step[Array], slices: Sequence[Any]) -> Iterator[Any]:
        """The results of a step for each of `slices`. Each is computed when it is taken."""

    @abstractmethod
    def store(self, step: Step[Array], result: Any) -> None:
        """Store the result of a step for this slice."""


def _compute(slices: Sequence[_Slice[Array]], stages: Sequence[Stage[Array]]) -> None:
    """Compute a pass for the slices of a batch. A step that needs numbers of the batch gets all slices, others get
    one."""
    # As a generator that yields its requests, every step would have that form, although most request nothing (so it was
    # until 1 December 2026). A thread per slice would need locks.
    for exchanges, (first, *other_steps) in stages:
        for group in [slices] if exchanges else [[slice_] for slice_ in slices]:
            results = group[0].results(first, group)
            for slice_ in group:
                # No name refers to a result, so that its memory is free as soon as the slice drops it.
                slice_.store(first, next(results))
                for step in other_steps:
                    slice_.store(step, next(slice_.results(step, [slice_])))


class _SegmentForward(_Slice[Array]):
    """The forward pass of a slice through a segment.

    Attributes:
        outputs: the outputs by name, and those of earlier segments.
        saved: what the steps saved, by name.
    """

    def __init__(self, backend: Operations[Array], run: PassContext[Array], outputs: Mapping[str, Array]) -> None:
        self.backend, self.run = backend, run
        self.outputs, self.saved = dict(outputs), dict[str, Any]()

    @staticmethod
    def results(step: Step[Array], slices: Sequence[_SegmentForward[Array]]) -> Iterator[ForwardResult[Array]]:
        return step.forward([slice_.run for slice_ in slices], (slice_.inputs(step) for slice_ in slices))

    def store(self, step: Step[Array], result: ForwardResult[Array]) -> None:
        self.outputs[step.name], self.saved[step.name] = result

    def inputs(self, step: Step[Array]) -> tuple[Array, ...]:
        """The inputs of a step, after their delays."""
        self.run.collective.beat(step.name)
        return tuple(self._delayed(step, *edge) for edge in zip(step.sources, step.delays, strict=True))

    def _delayed(self, step: Step[Array], source: str, delay: int) -> Array:
        x, states = self.outputs[source], self.run.initial_states
        if delay and states is not None:
            edge = step.delayed[source, delay]
            (earlier,) = states.get(edge) or (self.backend.concatenate([x[:1] * 0] * delay),)
            joined = self.backend.concatenate([earlier, x])
            x, self.saved[edge] = joined[: len(x)], joined[len(joined) - delay :]
        elif delay:
            x = self.backend.shift_time(x, delay)
        return x


def forward_segment(
    backend: Operations[Array], segment: Segment[Array], run: PassContext[Array], values: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Run a segment for a single slice. Returns the outputs that are kept, and what its steps saved, by name."""
    slice_ = _SegmentForward(backend, run, values)
    _compute([slice_], [Stage(False, [*segment.steps])])
    return {name: slice_.outputs[name] for name in segment.outputs}, slice_.saved


class _Forward(_SegmentForward[Array]):
    """The forward pass of a slice through a network, with the residuals of all segments."""

    def __init__(self, backend: Operations[Array], walk: Plan[Array], run: PassContext[Array], x: Array) -> None:
        super().__init__(backend, run, {walk.input: x})
        self.walk, self.segments, self.statistics = walk, [*reversed(walk.segments)], dict[str, Array]()
        self.spikes, self.residuals = dict[str, Any](), dict[str, Any]()

    def store(self, step: Step[Array], result: ForwardResult[Array]) -> None:
        super().store(step, result)
        del result
        if step.name == self.segments[-1].steps[-1].name:
            self._leave(self.segments.pop())

    def _leave(self, segment: Segment[Array]) -> None:
        """After the last step of a segment, drop what no later step reads."""
        for step in segment.steps:
            if step.normalises:
                if isinstance(step, Chain):
                    self.saved[step.name] = [self.saved.pop(part.name) for part in step.parts]
                self.statistics |= step.statistics(self.saved[step.name])
        self.keep(segment)
        released = {bound_node.node.name for bound_node in segment.bound_nodes}.difference(segment.outputs).union(
            segment.released
        )
        self.outputs = {name: x for name, x in self.outputs.items() if name not in released}

    def keep(self, segment: Segment[Array]) -> None:
        """Keep what the backward pass and reports read of a segment."""
        if not self.run.keeps:
            self.residuals.clear()
        self.residuals |= self.saved
        self.saved = {}
        if (name := segment.population) is not None:
            self.spikes[name] = self.outputs[name]

    def trace(self) -> Trace[Array]:
        """What the pass leaves."""
        output, residuals = self.outputs[self.walk.output], self.residuals
        return Trace(self.backend, self.walk, self.run, output, self.spikes, lambda _: residuals, self.statistics)


class _LeanForward(_Forward[Array]):
    """The same, with one bit per spike. The backward pass runs each segment again."""

    def __init__(self, backend: Operations[Array], walk: Plan[Array], run: PassContext[Array], x: Array) -> None:
        super().__init__(backend, walk, run, x)
        self.recalled: dict[str, Callable[[], Array]] = {walk.input: lambda: x}

    def keep(self, segment: Segment[Array]) -> None:
        self.saved = {}
        for name in segment.outputs:
            x = self.outputs[name]
            if name == segment.population:
                unpack = partial(self.backend.unpack_spikes, self.backend.pack_spikes(x))
                self.recalled[name] = self.spikes[name] = unpack
            else:
                self.recalled[name] = lambda x=x: x  # type: ignore[misc]

    def trace(self) -> Trace[Array]:
        backend, run, recalled = self.backend, self.run, self.recalled

        def recompute(segment: Segment[Array]) -> dict[str, Any]:
            return forward_segment(backend, segment, run, {name: recalled[name]() for name in segment.sources})[1]

        output = self.outputs[self.walk.output]
        return Trace(backend, self.walk, run, output, _UnpackedOnAccess(self.spikes), recompute, self.statistics)


class _UnpackedOnAccess(Mapping[str, Array]):
    """Spikes that are unpacked on access."""

    def __init__(self, unpack: Mapping[str, Callable[[], Array]]) -> None:
        self.unpack = unpack

    def __getitem__(self, name: str) -> Array:
        return self.unpack[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.unpack)

    def __len__(self) -> int:
        return len(self.unpack)


def states_after(segment: Segment[Array], residuals: Mapping[str, Any]) -> dict[str, tuple[Array, ...]]:
    """What a segment leaves for the steps that follow, if the run has `initial_states`.

    By name: the last spikes and the states of its population, and the values that a delayed edge or a learned delay
    still holds.
    """
    states: dict[str, tuple[Array, ...]] = {}
    for step in segment.steps:
        states |= {edge: (residuals[edge],) for edge in step.delayed.values()}
        if step.leaves_state:
            states[step.name] = residuals[step.name].after
    return states


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
    earlier_sums: Mapping[str, Array] = MappingProxyType({}),
) -> dict[str, Array]:
    """`backward_pass` for the parts of a batch that left `traces`. The other processes have the other parts.

    The gradients are those of the whole batch, and the same in every process. `earlier_sums`: `backward_sums` of
    earlier parts in this process, whose backward pass is already done.
    """
    backend, walk, collective = traces[0].backend, traces[0].plan, traces[0].run.collective
    started_totals = dict[str, Callable[[], Array]]()
    for name, contribution in backward_sums(traces, errors, precision):
        started_totals[name] = collective.start_total(
            backend.add(earlier_sums[name], contribution) if name in earlier_sums else contribution
        )
    sums = {name: wait() for name, wait in started_totals.items()} | traces[0].batch_gradients
    gradients = {name: backend.rounded(x) for name, x in sums.items()}
    for owner, names in walk.uses.items():
        gradients[owner] = reduce(backend.add, [gradients.pop(name) for name in names])
    return gradients


def backward_sums(
    traces: Sequence[Trace[Array]], errors: Sequence[Array], precision: Precision
) -> Iterator[tuple[str, Array]]:
    """Contributions of these parts of a batch to each gradient, by name. Yields each one when it is known,
    unrounded."""
    walk = traces[0].plan
    pending: list[dict[str, list[Array | Deferred[Array]]]] = [{walk.output: [error]} for error in errors]
    del errors
    for segment in reversed(walk.segments):
        gradients = backward_segment(traces, segment, pending, precision)
        for name in [*gradients]:
            yield name, gradients.pop(name)
    for trace in traces:
        trace.zeroed = dict(reversed(trace.zeroed.items()))


def backward_segment(
    traces: Sequence[Trace[Array]],
    segment: Segment[Array],
    pending: Sequence[dict[str, list[Array | Deferred[Array]]]],
    precision: Precision,
) -> dict[str, Array]:
    """The backward pass of a segment, for the slices that left `traces`.

    It removes the errors of the segment's outputs from each slice's `pending`, and adds those of its sources.

    Returns the gradients by name, added over the slices.
    """
    gradients = dict[str, Array]()
    slices = [
        _SegmentBackward(trace, segment, grads, precision, gradients)
        for trace, grads in zip(traces, pending, strict=True)
    ]
    _compute(slices, segment.backward_stages[precision])
    return gradients


class _SegmentBackward(_Slice[Array]):
    """The backward pass of a slice through a segment. `gradients` is common to all slices."""

    def __init__(
        self,
        trace: Trace[Array],
        segment: Segment[Array],
        pending: dict[str, list[Array | Deferred[Array]]],
        precision: Precision,
        gradients: dict[str, Array],
    ) -> None:
        self.trace, self.segment, self.pending = trace, segment, pending
        self.precision, self.gradients = precision, gradients

    @cached_property
    def saved(self) -> dict[str, Any]:
        """What the steps saved, by name. It loses what was read."""
        saved = self.trace.residuals(self.segment)
        for step in self.segment.steps:
            if isinstance(step, Chain) and step.exchanges(self.precision):
                saved.update(zip((part.name for part in step.parts), step.by_parts(saved.pop(step.name)), strict=True))
        return saved

    @staticmethod
    def results(step: Step[Array], slices: Sequence[_SegmentBackward[Array]]) -> Iterator[BackwardResult[Array] | None]:
        if step.name not in slices[0].pending:
            return repeat(None)
        saved = (slice_.saved.pop(step.name) for slice_ in slices)
        grads = (slice_.grad(step) for slice_ in slices)
        return step.backward([slice_.trace.run for slice_ in slices], saved, grads, slices[0].precision)

    def store(self, step: Step[Array], result: BackwardResult[Array] | None) -> None:
        if result is None:
            self.saved.pop(step.name, None)
            return
        backend, gradients = self.trace.backend, self.gradients
        for name, gradient in result.gradients.items():
            gradients[name] = backend.add(gradients[name], gradient) if name in gradients else gradient
        self.trace.zeroed.update(result.zeroed)
        self.trace.batch_gradients.update(result.batch_gradients)
        edges = zip(step.sources, step.delays, result.grad_inputs, step.needed, strict=True)
        for source, delay, grad, needed in reversed([*edges]):
            if needed and grad is not None:
                grad = backend.shift_time(_array(grad), -delay) if delay else grad
                self.pending.setdefault(source, []).append(grad)

    def grad(self, step: Step[Array]) -> Array | Deferred[Array]:
        """The gradient of the output of a step, from all steps that read it and from the penalty on its rates."""
        trace = self.trace
        trace.run.collective.beat(step.name)
        error = _total(step, self.pending.pop(step.name))
        if step.name not in trace.penalties:
            return error
        return trace.backend.with_rate_penalty(_array(error), trace.penalties[step.name], trace.run.inside)


def _total(step: Step[Array], errors: list[Array | Deferred[Array]]) -> Array | Deferred[Array]:
    """The error of a step's output: the sum of its readers' errors, which came from the last reader to the first."""
    if len(errors) == 1 and step.takes_deferred:
        return errors[0]
    # Each addition rounds, so from three readers on, another order can give other bits.
    arrays = [_array(error) for error in reversed(errors)]
    total: Array = arrays[0]
    for error in arrays[1:]:
        total = total + error
    return total


def _array(error: Array | Deferred[Array]) -> Array:
    array: Array = error.array() if isinstance(error, Deferred) else error
    return array
