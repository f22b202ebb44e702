"""How a backend computes the nodes of a network: rules of operations, and steps that use the rules.

A rule is a pair of functions of a backend's arrays. plan.py makes a step for each node from the rule of its operation.
If the backend has a fusion for several nodes, they become one step. passes.py walks through the steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from stsbp_spec.distributed.collective import Alone, BatchSlice, Collective
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.networks.graph import BoundNode, Neurons, Weighted
from stsbp_spec.networks.ops.base import Rule
from stsbp_spec.typing import Array, Precision

__all__ = [
    "BackwardResult",
    "Deferred",
    "ForwardResult",
    "Frozen",
    "Fusion",
    "PassContext",
    "Rule",
    "Step",
]

Conversion = TypeVar("Conversion")


class Frozen(dict[str, Array]):
    """`PassContext.weights` that no longer change, together with the backend's conversions of them for its kernels."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        super().__init__(weights)
        self._conversions: dict[Hashable, Any] = {}

    def converted(self, key: Hashable, convert: Callable[[], Conversion]) -> Conversion:
        """The result of the first call of `convert` with this key."""
        if key not in self._conversions:
            self._conversions[key] = convert()
        conversion: Conversion = self._conversions[key]
        return conversion


@dataclass(frozen=True)
class PassContext(Generic[Array]):
    """What all nodes of one pass over some samples share.

    Attributes:
        part: which samples of the batch are computed.
        collective: the processes that have the other samples.
        weights: weights on their grids, by the name of their node; other learned parameters, by the names of
            `graph.Network.parameters`; and running statistics. If the sums of `conv1` are normalised, `conv1.exponent`
            is an integer `[1]`, and the sums are multiples of `2^-exponent`. With `inside`, `conv1.frames`, an integer
            `[1]`, then counts the steps of all samples of the batch that are not padding.
        steps: `T`.
        dropout: `(seed, step)` of the masks; None: evaluation without dropout.
        inside: which steps are not padding, uint8 `[T, B]`; None: all.
        initial_states: what earlier steps left (`passes.states_after`). States that are missing in it start at rest.
            None: all states start at rest, and nothing is left for later steps.
        keeps: whether a backward pass may follow. If not, a step need not keep values that only the backward pass
            reads. The potentials of the population at the end are kept in any case.
        coefficients: numbers that steps computed from sums over the whole batch, by their names. If a step is computed
            again for the backward pass, it reads them here, so that no message is sent twice.
    """

    weights: Mapping[str, Array]
    steps: int
    dropout: tuple[int, int] | None
    part: BatchSlice
    collective: Collective[Array] = field(default_factory=Alone)
    inside: Array | None = None
    initial_states: Mapping[str, tuple[Array, ...]] | None = None
    keeps: bool = True
    coefficients: dict[str, Any] = field(default_factory=dict)

    @property
    def training(self) -> bool:
        """Whether gains for training apply."""
        return self.dropout is not None

    def converted(self, key: Hashable, convert: Callable[[], Conversion]) -> Conversion:
        """The result of `convert` for the weights. If the weights are frozen, the first result for this key is
        reused."""
        return self.weights.converted(key, convert) if isinstance(self.weights, Frozen) else convert()


class Deferred(ABC, Generic[Array]):
    """An error in a backend's own form, on an edge that only one step reads and whose source accepts this form."""

    @abstractmethod
    def array(self) -> Array:
        """The error as a native array."""


class ForwardResult(NamedTuple, Generic[Array]):
    """The results of the forward pass through a step for one slice of a batch.

    Attributes:
        output: `[1 or T, B, ...]`.
        saved: what the backward pass needs.
    """

    output: Array
    saved: Any


class BackwardResult(NamedTuple, Generic[Array]):
    """The results of the backward pass through a step for one slice of a batch.

    Attributes:
        grad_inputs: gradients of its inputs; None: not needed.
        gradients: contributions of these samples to the gradients of its weights and of learned parameters of its
            neurons, by the names of `graph.Network.parameters`. They are not yet rounded if they are float64.
        zeroed: counts of `Operations.error_grid` by the same names, in `reproducible` precision.
        batch_gradients: gradients of the whole batch that are computed from sums over it. They are the same in all
            processes.
    """

    grad_inputs: tuple[Array | Deferred[Array] | None, ...]
    gradients: Mapping[str, Array] = MappingProxyType({})
    zeroed: Mapping[str, Array] = MappingProxyType({})
    batch_gradients: Mapping[str, Array] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Step(ABC, Generic[Array]):
    """One step of a plan: a node, or a chain of nodes in which each node is read only by the next one.

    A step computes the slices of a batch that are in this process. Most steps compute each slice alone, and define
    `forward_slice` and `backward_slice`. A step that needs numbers of the whole batch gets all slices. It defines
    `forward` or `backward`, and states so in `normalises` or `exchanges`. It calls `plan.all_reduce_max` or
    `plan.all_reduce_sum` once for all slices, so that all processes send the same messages.

    Attributes:
        bound_nodes: the nodes, in order. Their output is the output of the last one.
        needed: for each input, whether its error is needed. It is if there are weights at the input or before it.
        takes_deferred: whether the error of the output may be a `Deferred`.
    """

    takes_deferred: ClassVar[bool] = False

    bound_nodes: tuple[BoundNode, ...]
    needed: tuple[bool, ...]

    @property
    def name(self) -> str:
        """Name of the output: that of the last node."""
        return self.bound_nodes[-1].node.name

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes that the step reads."""
        return tuple(edge.source for edge in self.bound_nodes[0].node.inputs)

    @property
    def delays(self) -> tuple[int, ...]:
        """The delay of each of `sources`, in steps."""
        return tuple(edge.delay for edge in self.bound_nodes[0].node.inputs)

    @cached_property
    def delayed(self) -> Mapping[tuple[str, int], str]:
        """Names of the values that delayed edges still hold after a run (`PassContext.initial_states`), by source and
        delay."""
        edges = zip(self.sources, self.delays, strict=True)
        return {(source, delay): f"{source}>{self.name}@{delay}" for source, delay in edges if delay}

    @property
    def fires(self) -> bool:
        """Whether the step ends with a population."""
        return isinstance(self.bound_nodes[-1].node.op, Neurons)

    def forward(
        self, runs: Sequence[PassContext[Array]], inputs: Iterator[tuple[Array, ...]]
    ) -> Iterator[ForwardResult[Array]]:
        """The forward pass, slice by slice.

        Each slice is computed when its result is taken. So the memory of one slice is free before the next one starts.

        Args:
            runs: what the nodes share, for each slice.
            inputs: inputs `[1 or T, B, ...]` of each slice.
        """
        for run in runs:
            yield self.forward_slice(run, *next(inputs))

    def backward(
        self,
        runs: Sequence[PassContext[Array]],
        saved: Iterator[Any],
        grads: Iterator[Array | Deferred[Array]],
        precision: Precision,
    ) -> Iterator[BackwardResult[Array]]:
        """The backward pass, slice by slice: see `forward`.

        Args:
            runs: what the nodes share, for each slice.
            saved: `ForwardResult.saved` of each slice.
            grads: gradients of the output, for each slice.
            precision: precision of the gradients.
        """
        for run in runs:
            # Keep no reference to what was saved and to gradients, so that a step can free them.
            yield self.backward_slice(run, next(saved), next(grads), precision)

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        """The forward pass of one slice."""
        raise NotImplementedError

    def backward_slice(
        self, run: PassContext[Array], saved: Any, grad: Array | Deferred[Array], precision: Precision
    ) -> BackwardResult[Array]:
        """The backward pass of one slice."""
        raise NotImplementedError

    def exchanges(self, precision: Precision) -> bool:
        """Whether the backward pass needs numbers of the whole batch."""
        return False

    @cached_property
    def normalises(self) -> bool:
        """Whether the step normalises weighted sums. Its forward pass then gets all slices of the batch, because it
        needs their numbers in training."""
        ops = (bound_node.node.op for bound_node in self.bound_nodes)
        return any(isinstance(op, Weighted) and op.norm is not None for op in ops)

    @property
    def leaves_state(self) -> bool:
        """Whether `after` of what it saves is its state for the steps that follow (`PassContext.initial_states`)."""
        return self.fires

    def statistics(self, saved: Any) -> Mapping[str, Array]:
        """The statistics with which a normalising step normalised, by the names of `graph.Network.statistics`."""
        raise TypeError(f"step {self.name} does not normalise")

    def population(self, saved: Any) -> NeuronResiduals[Array]:
        """What the population saved, for a step that ends with one."""
        raise TypeError(f"step {self.name} ends with no population")


Fusion: TypeAlias = Callable[[tuple[Step[Array], ...]], Step[Array] | None]
"""Combines a chain of steps, in their order, or the last few of them, into one step. None: no fusion applies."""
