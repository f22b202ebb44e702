"""Segments of a network as differentiable functions, from which `apply` is built.

A segment is a population with the operations before it (stsbp_spec.engine.plan). The steps of the backend compute it,
so its bits and gradients are the same as in every backend. The residuals of the steps pass through JAX's
transformations as arrays. Parts of the residuals that are not arrays are stored beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.passes import Trace, backward_segment, forward_segment, states_after
from stsbp_spec.engine.plan import Delays, Plan, Population, Segment, plan
from stsbp_spec.engine.rules import Deferred, PassContext
from stsbp_spec.networks.graph import Network, Neurons, Projection
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.ops.batchnorm import STATISTICS, updated_statistic
from stsbp_spec.typing import Precision, Shape

from stsbp_jax.backend import OPERATIONS
from stsbp_jax.distributed.replication import match_replication
from stsbp_jax.engine.checks import in_domain, running_statistic
from stsbp_jax.engine.compiling import pair

__all__ = ["JaxSegment", "JaxSegmentOutput", "JaxSegmentSettings", "State", "compute", "fork", "network_segments"]


State: TypeAlias = dict[str, tuple[Array, ...]]
"""The state after the steps of a call, by name, channels last. For each population, it contains the spikes of the last
step and the states of filters and neurons, `[1, B, ...]`. For each delayed edge, it contains the spikes that have not
arrived yet, `[delay, B, ...]`."""


class JaxSegmentSettings(NamedTuple):
    """How a segment is computed.

    Attributes:
        steps: `T`.
        training: whether dropout and the gains of training apply.
        precision: precision of the backward pass.
        full: whether the segment takes and returns a state, and returns potentials.
    """

    steps: int
    training: bool
    precision: Precision
    full: bool


class JaxSegmentOutput(NamedTuple):
    """The results of a segment.

    Attributes:
        outputs: outputs of the nodes that other segments read, float32 by name: a copy for each edge that reads it, in
            order. JAX adds the errors of several readers of one array in another order than the spec.
        potentials: potentials of the segment's population, by its name, if `full`.
        statistics: running statistics after the batch, by name, in training. No gradient flows through them.
        state: the state of `passes.states_after`, if `full`. No gradient flows through it.
    """

    outputs: dict[str, tuple[Array, ...]]
    potentials: dict[str, Array]
    statistics: dict[str, Array]
    state: State


@dataclass(frozen=True)
class JaxSegment:
    """A segment of a network."""

    network: Network
    index: int

    def walk(self, *, fused: bool = True) -> Plan[Array]:
        """The steps through the whole network."""
        return plan(OPERATIONS, self.network, of_input=True, fused=fused)

    @property
    def segment(self) -> Segment[Array]:
        """The segment with its steps."""
        return self.walk().segments[self.index]

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """Projections in the segment, including those of a recurrence."""
        return self.segment.projections(self.network)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the outputs of other segments that each edge into the segment reads, in order."""
        segment = self.segment
        return tuple(source for step in segment.steps for source in step.sources if source in segment.sources)

    @cached_property
    def copies(self) -> dict[str, int]:
        """How many edges of later segments read each output. The output of the network has one reader more."""
        walk = self.walk()
        later_reads = [
            name for i in range(self.index + 1, len(walk.segments)) for name in JaxSegment(self.network, i).reads
        ]
        return {name: [*later_reads, walk.output].count(name) for name in self.segment.outputs}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the weights, learned parameters and statistics in the segment. Weights have a name per use."""
        names: list[str] = []
        for projection in self.projections:
            names.append(projection.name)
            norm = projection.synapse.norm
            if norm is not None:
                names += [f"{projection.name}.{suffix}" for suffix in (*norm.learned(), *norm.initial(1))]
        for bound_node in self.segment.bound_nodes:
            if isinstance(bound_node.node.op, (Neurons, Passing)):
                names += bound_node.parameters.values()
        return tuple(dict.fromkeys(names))

    @cached_property
    def states(self) -> dict[str, tuple[int, int, Shape]]:
        """The state that the segment returns: number of arrays by name, and their shape, `(steps, shape of a sample)`,
        channels last."""
        shapes: dict[str, tuple[int, int, Shape]] = {}
        for step in self.walk(fused=False).segments[self.index].steps:
            for (source, delay), edge in step.delayed.items():
                shapes[edge] = 1, delay, self._shape(source)
            if isinstance(step, Population):
                shapes[step.name] = 1 + len(step.resumable[False].plain.forward.states), 1, self._shape(step.name)
            elif isinstance(step, Delays):
                shapes[step.name] = 1, step.op.kept_steps, self._shape(step.name)
        return shapes

    def _shape(self, name: str) -> Shape:
        c, *spatial = self.network.values[name].shape
        return *spatial, c


def network_segments(network: Network) -> list[JaxSegment]:
    """The segments of a network, in order."""
    return [JaxSegment(network, index) for index in range(len(plan(OPERATIONS, network, of_input=True).segments))]


@jax.tree_util.register_pytree_node_class
class _SavedTree:
    """Residuals of steps: arrays, and everything that is not an array."""

    def __init__(self, arrays: list[Array], static_leaves: tuple[Any, ...], tree: Any) -> None:
        self.arrays, self.static_leaves, self.tree = arrays, static_leaves, tree

    @classmethod
    def split(cls, saved: Any) -> _SavedTree:
        leaves, tree = jax.tree.flatten(saved)
        static_leaves = tuple(None if isinstance(x, (Array, np.ndarray)) else (x,) for x in leaves)
        return cls([x for x, leaf in zip(leaves, static_leaves, strict=True) if leaf is None], static_leaves, tree)

    def merged(self) -> Any:
        arrays = iter(self.arrays)
        return jax.tree.unflatten(self.tree, [next(arrays) if leaf is None else leaf[0] for leaf in self.static_leaves])

    def tree_flatten(self) -> tuple[Any, Any]:
        return self.arrays, (self.static_leaves, self.tree)

    @classmethod
    def tree_unflatten(cls, structure: Any, arrays: Any) -> _SavedTree:
        return cls(list(arrays), *structure)


def compute(
    jax_segment: JaxSegment,
    settings: JaxSegmentSettings,
    inputs: tuple[Array, ...],
    weights: Mapping[str, Array],
    masks: tuple[Array, Array],
    state: State,
) -> JaxSegmentOutput:
    """Compute a segment. The results are differentiable in inputs and weights.

    Args:
        jax_segment: the segment.
        settings: how the segment is computed.
        inputs: inputs in the order of `jax_segment.reads`, `[1 or T, B, ...]`, channels last.
        weights: master weights, learned parameters and running statistics by the names of `jax_segment.parameters`.
        masks: `(seed, step)` of the dropout masks, uint32.
        state: state after the previous steps. If the state of a node is missing, the node starts at rest.
    """
    segment_state = {name: state[name] for name in jax_segment.states if name in state} if settings.full else {}
    output: JaxSegmentOutput = _segment(
        jax_segment, settings, *match_replication((inputs, dict(weights), masks, segment_state))
    )
    return output


def _forward(
    jax_segment: JaxSegment,
    settings: JaxSegmentSettings,
    inputs: tuple[Array, ...],
    weights: dict[str, Array],
    masks: tuple[Array, Array],
    state: State,
) -> tuple[JaxSegmentOutput, Any]:
    segment, batch = jax_segment.walk(fused=not settings.full).segments[jax_segment.index], inputs[0].shape[1]
    on_grid = _on_grid(jax_segment, weights, training=settings.training)
    run = _pass_context(settings, on_grid, masks, batch, state)
    values = dict(zip(jax_segment.reads, inputs, strict=True))
    node_outputs, residuals = forward_segment(OPERATIONS, segment, run, values)
    potentials: dict[str, Array] = {}
    if (name := segment.population) is not None:
        # Inside a jit, no error can be raised. So if a potential is not finite, the spike becomes NaN.
        u = OPERATIONS.neuron_potentials(segment.steps[-1].population(residuals[name]))
        node_outputs[name] = jnp.where(jnp.isfinite(u), node_outputs[name].astype(np.float32), np.float32(np.nan))
        potentials = {name: u} if settings.full else {}
    outputs = {name: (x.astype(np.float32),) * jax_segment.copies[name] for name, x in node_outputs.items()}
    next_state = states_after(segment, residuals) if settings.full else {}
    statistics = _updated_statistics(jax_segment, segment, residuals, weights) if settings.training else {}
    saved = _SavedTree.split((residuals, on_grid)), masks
    return JaxSegmentOutput(outputs, potentials, statistics, next_state), saved


def _updated_statistics(
    jax_segment: JaxSegment, segment: Segment[Array], residuals: Mapping[str, Any], weights: Mapping[str, Array]
) -> dict[str, Array]:
    """The running statistics after a batch."""
    norms = {projection.name: projection.synapse.norm for projection in jax_segment.projections}
    statistics: dict[str, Array] = {}
    for step in segment.steps:
        if step.normalises:
            for name, x in step.statistics(residuals[step.name]).items():
                statistics[name] = OPERATIONS.of_channels(
                    updated_statistic, weights[name], x, norm=norms[name.rpartition(".")[0]]
                )
    return statistics


def _pass_context(
    settings: JaxSegmentSettings, on_grid: Mapping[str, Array], masks: tuple[Array, Array], batch: int, state: State
) -> PassContext[Array]:
    # The backend also takes traced numbers for masks.
    dropout: Any = masks if settings.training else None
    initial_state = state if settings.full else None
    return PassContext(on_grid, settings.steps, dropout, BatchSlice(0, batch, batch), initial_states=initial_state)


def _on_grid(jax_segment: JaxSegment, weights: Mapping[str, Array], *, training: bool) -> dict[str, Array]:
    """Weights on their grids, learned parameters and running statistics. Values outside their domain become NaN."""
    on_grid = dict(weights)
    for projection in jax_segment.projections:
        on_grid[projection.name], choice = OPERATIONS.choose_grid(projection, weights[projection.name])
        if projection.synapse.norm is not None:
            unit = choice.exponent + np.int32(projection.input.exponent)
            on_grid[f"{projection.name}.exponent"] = unit.reshape(1)
            # In training, batches are normalised by their own statistics.
            for name in () if training else (f"{projection.name}.{statistic}" for statistic in STATISTICS):
                on_grid[name] = running_statistic(name, weights[name])
    for name, parameter in jax_segment.network.parameters.items():
        if name in weights and (domain := parameter.learned) is not None:
            on_grid[name] = in_domain(name, weights[name], domain.low, domain.high)
    return on_grid


def _backward(
    jax_segment: JaxSegment, settings: JaxSegmentSettings, saved: Any, cotangents: JaxSegmentOutput
) -> tuple[Any, ...]:
    tree, masks = saved
    residuals, on_grid = tree.merged()
    walk = jax_segment.walk(fused=not settings.full)
    segment = walk.segments[jax_segment.index]
    pending: dict[str, list[Any]] = {}
    for name, errors in cotangents.outputs.items():
        if reached := [x for x in reversed(errors) if x is not None]:
            pending[name] = reached
    for name, x in cotangents.potentials.items():
        if x is not None:
            residuals[name] = residuals[name]._replace(error=x)
            pending.setdefault(name, [jnp.zeros_like(x)])
    if not pending:
        return (None,) * len(jax_segment.reads), dict.fromkeys(jax_segment.parameters), (None, None), None
    any_error = next(iter(pending.values()))[0]
    run = _pass_context(settings, on_grid, masks, any_error.shape[1], {})
    trace = Trace(OPERATIONS, walk, run, any_error, {}, lambda _: residuals, {})
    gradients = backward_segment([trace], segment, [pending], settings.precision)
    rounded = {name: OPERATIONS.rounded(x) for name, x in {**gradients, **trace.batch_gradients}.items()}
    return (
        _input_gradients(jax_segment.reads, pending),
        {name: rounded.get(name) for name in jax_segment.parameters},
        (None, None),
        None,
    )


_segment = pair(2, _forward, _backward, symbolic_zeros=True)


def _input_gradients(reads: tuple[str, ...], pending: Mapping[str, list[Any]]) -> tuple[Array | None, ...]:
    """The error signal of each edge. `pending` has those of each source, beginning with the last one.

    An edge without an error has none in `pending`, so the errors are given to the first edges. This keeps their order.
    """
    remaining = {name: list(errors) for name, errors in pending.items()}
    received = (errors.pop() if (errors := remaining.get(name)) else None for name in reads)
    return tuple(error.array() if isinstance(error, Deferred) else error for error in received)


def fork(count: int, x: Array) -> tuple[Array, ...]:
    """Copies of `x` for `count` readers. Their error signals are added in the order of the readers, as in the spec."""
    copies: tuple[Array, ...] = _fork(count, x) if count > 1 else (x,)
    return copies


_fork = pair(1, lambda count, x: ((x,) * count, None), lambda count, _, errors: (sum(errors[1:], errors[0]),))
