"""The walk through a network, forward and backward, once for every backend (the pseudo-code's two pipelines).

Forward (lines 1-9): the steps of the plan in order: pool and drop spikes, meet the weights, filter and fire.
Backward (lines 11-31): the same steps from the last to the first; each one's adjoint in turn. What several nodes read
has the sum of their errors, added in the order of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

from stsbp_spec.graph import Network
from stsbp_spec.pairs import Pairs
from stsbp_spec.plan import Plan, Segment, plan
from stsbp_spec.results import NeuronResiduals
from stsbp_spec.rules import Deferred, Run, Step
from stsbp_spec.typing import Array, Memory, Precision

__all__ = ["FORWARD_PASSES", "Trace", "backward_pass", "forward_pass", "lean_forward_pass"]


@dataclass
class Trace(Generic[Array]):
    """What a forward pass leaves for the backward pass and for reports.

    Attributes:
        plan, run: what was walked, and with what.
        output: of the network, `[T, B, N]`.
        spikes: of each population, by the name of its node.
        residuals: of the steps of a segment, by name; they are taken out as the backward pass uses them.
        zeroed: numbers of `Pairs.error_grid` by layer, after a backward pass in `reproducible` precision.
    """

    plan: Plan[Array]
    run: Run[Array]
    output: Array
    spikes: Mapping[str, Array]
    residuals: Callable[[Segment[Array]], dict[str, Any]]
    zeroed: dict[str, Array] = field(default_factory=dict)

    def populations(self) -> Iterator[tuple[str, NeuronResiduals[Array]]]:
        """What each population left, with the name of its node, before a backward pass."""
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
) -> Trace[Array]:
    """Run the network on encoded inputs.

    Args:
        backend: computes the steps.
        network: the network.
        wq: weights on their grid, by name.
        x: encoded inputs, `[1 or T, B, ...]` (`Pairs.encode`).
        steps: `T`.
        dropout: `(seed, step)` of the masks; None: no dropout.

    Raises:
        BackendError: the backend has no rule for an operation.
    """
    walk, run = plan(backend, network), Run(wq, steps, dropout)
    values, residuals = {walk.input: x}, dict[str, Any]()
    spikes: dict[str, Array] = {}
    for segment in walk.segments:
        made, found = _through(segment, run, values)
        residuals.update(found)
        spikes.update({name: value for name, value in made.items() if name == segment.population})
        values = _passed_on(segment, values, made)
    return Trace(walk, run, values[walk.output], spikes, lambda _: residuals)


def lean_forward_pass(
    backend: Pairs[Array],
    network: Network,
    wq: Mapping[str, Array],
    x: Array,
    steps: int,
    dropout: tuple[int, int] | None,
) -> Trace[Array]:
    """`forward_pass` that keeps one bit a spike; the backward pass runs each segment again when it comes to it."""
    walk, run = plan(backend, network), Run(wq, steps, dropout)
    values = {walk.input: x}
    kept: dict[str, Callable[[], Array]] = {walk.input: lambda: x}
    fired: dict[str, Callable[[], Array]] = {}
    for segment in walk.segments:
        made, _ = _through(segment, run, values)
        for name, value in made.items():
            if name == segment.population:
                kept[name] = fired[name] = partial(backend.unpack_spikes, backend.pack_spikes(value))
            else:
                kept[name] = lambda value=value: value  # type: ignore[misc]
        values = _passed_on(segment, values, made)

    def again(segment: Segment[Array]) -> dict[str, Any]:
        return _through(segment, run, {name: kept[name]() for name in segment.sources})[1]

    return Trace(walk, run, values[walk.output], _Packed(fired), again)


FORWARD_PASSES: Mapping[Memory, Callable[..., Trace[Any]]] = {"full": forward_pass, "low": lean_forward_pass}
"""The forward pass of each way to use memory."""


class _Packed(Mapping[str, Array]):
    """Spikes that are unpacked when they are asked for."""

    def __init__(self, unpack: Mapping[str, Callable[[], Array]]) -> None:
        self.unpack = unpack

    def __getitem__(self, name: str) -> Array:
        return self.unpack[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.unpack)

    def __len__(self) -> int:
        return len(self.unpack)


def _through(
    segment: Segment[Array], run: Run[Array], values: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """What is left of a segment, and the residuals of its steps, by name."""
    made, residuals = dict(values), dict[str, Any]()
    for step in segment.steps:
        made[step.name], residuals[step.name] = step.forward(run, *(made[source] for source in step.sources))
    return {name: made[name] for name in segment.left}, residuals


def _passed_on(segment: Segment[Array], values: Mapping[str, Array], made: Mapping[str, Array]) -> dict[str, Array]:
    """What later segments read."""
    return {name: value for name, value in (*values.items(), *made.items()) if name not in segment.done}


def backward_pass(trace: Trace[Array], ds: Array, precision: Precision) -> dict[str, Array]:
    """Gradients of all weights, by name, from `dL/do` of the output, `[T, B, N]`.

    The gradient passes the weight grid unchanged (straight through). Of a trace only the spikes and what the error grid
    zeroed are left afterwards, so that the steps below have its memory.
    """
    gradients, zeroed = dict[str, Array](), dict[str, Array]()
    waiting: dict[str, list[Array | Deferred[Array]]] = {trace.plan.output: [ds]}
    for segment in reversed(trace.plan.segments):
        residuals = trace.residuals(segment)
        for step in reversed(segment.steps):
            kept, errors = residuals.pop(step.name), waiting.pop(step.name, [])
            if errors:
                back = step.backward(trace.run, kept, _total(step, errors), precision)
                gradients.update(back.gradients)
                zeroed.update(back.zeroed)
                for source, error, needed in zip(step.sources, back.errors, step.needed, strict=True):
                    if needed and error is not None:
                        waiting.setdefault(source, []).append(error)
            del kept, errors  # before the next segment is run again
        del residuals
    trace.zeroed = dict(reversed(zeroed.items()))
    return gradients


def _total(step: Step[Array], errors: list[Array | Deferred[Array]]) -> Array | Deferred[Array]:
    """The error of a step's output from those of its readers, which came from the last to the first."""
    if len(errors) == 1 and step.takes_deferred:
        return errors[0]
    arrays = [error.array() if isinstance(error, Deferred) else error for error in reversed(errors)]
    total: Array = arrays[0]
    for error in arrays[1:]:
        total = total + error
    return total
