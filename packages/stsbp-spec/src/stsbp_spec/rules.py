"""How a backend computes the nodes of a network: a rule for each operation, and steps made of them.

A rule is a pair of functions of a backend's arrays. plan.py makes a step of each node by the rule of its operation, or
one of several nodes where the backend has a fusion for them; passes.py walks through the steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from stsbp_spec.collective import Alone, Collective, Part
from stsbp_spec.graph import Neurons, Place, Weighted
from stsbp_spec.results import NeuronResiduals
from stsbp_spec.typing import Array, Precision

__all__ = [
    "Ahead",
    "Asked",
    "Back",
    "Deferred",
    "Exchange",
    "Frozen",
    "Fusion",
    "Largest",
    "Rule",
    "Run",
    "Step",
    "Total",
]

Made = TypeVar("Made")


@dataclass(frozen=True)
class Rule(Generic[Array]):
    """How an operation is computed, as two functions.

    Attributes:
        forward: `forward(op, *inputs) -> output, residuals`, of `Weighted` operations `forward(op, s, w)` with the
            weights on their grid.
        backward: `backward(op, residuals, error) -> error of the input`, where there are several inputs a tuple of
            them; of `Weighted` operations `backward(op, residuals, dz, precision=..., need_input=...,
            need_weights=True) -> ds, dw`, each None, and not computed, unless it is needed. `reproducible`: `dz` is on
            its grid, sums in float64; `ds` is rounded once, `dw` stays float64, since other samples may be added to it
            (`Pairs.rounded`).
    """

    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[..., Any]


class Frozen(dict[str, Array]):
    """`Run.weights` that nobody changes any more, and what a backend has made of them for its kernels."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        super().__init__(weights)
        self._made: dict[Hashable, Any] = {}

    def made(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` made when it was first asked for by this key."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found


@dataclass(frozen=True)
class Run(Generic[Array]):
    """What all nodes of one pass over some samples share.

    Attributes:
        part: which samples of the batch.
        collective: who has the others.
        weights: on their grids, by the name of their node; what else was learned, by the names of
            `graph.Network.parameters`; running statistics, and for `conv1` whose sums are normalised `conv1.exponent`,
            an integer `[1]`: the sums are multiples of `2^-exponent`.
        steps: `T`.
        dropout: `(seed, step)` of the masks; None: evaluation, no dropout.
        inside: which steps are no padding, uint8 `[T, B]`; None: all. Steps of all samples of the batch that are none
            are then `weights["frames"]`, an integer `[1]`, where sums are normalised.
        before: what the steps before these left (`passes.after`); those that are missing begin at rest. None: all begin
            at rest, and leave nothing.
        keeps: whether a backward pass may follow. If not, a step need not keep what only that reads; the potentials of
            the population at the end are kept all the same.
    """

    weights: Mapping[str, Array]
    steps: int
    dropout: tuple[int, int] | None
    part: Part
    collective: Collective[Array] = field(default_factory=Alone)
    inside: Array | None = None
    before: Mapping[str, tuple[Array, ...]] | None = None
    keeps: bool = True

    @property
    def training(self) -> bool:
        """Whether the gains of training apply."""
        return self.dropout is not None

    def made(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` makes of the weights; of frozen ones, what it made when it was first asked for by this key."""
        return self.weights.made(key, make) if isinstance(self.weights, Frozen) else make()


class Deferred(ABC, Generic[Array]):
    """An error in a form of the backend's own, on an edge that one step alone reads and whose source takes it so."""

    @abstractmethod
    def array(self) -> Array:
        """The error as everybody takes it."""


class Back(NamedTuple, Generic[Array]):
    """What the way back through a step finds.

    Attributes:
        errors: of its inputs; None: not needed.
        gradients: of the weights in it and of what its neurons learn, by the names of `graph.Network.parameters`;
            what these samples give, not yet rounded where it is float64.
        zeroed: numbers of `Pairs.error_grid`, likewise, in `reproducible` precision.
        whole: gradients of the whole batch, made of sums over it, which are the same for everybody.
    """

    errors: tuple[Array | Deferred[Array] | None, ...]
    gradients: Mapping[str, Array]
    zeroed: Mapping[str, Array]
    whole: Mapping[str, Array] = MappingProxyType({})


class Largest(NamedTuple, Generic[Array]):
    """Asks for the elementwise maximum over the whole batch of integers, `Pairs.largest_error` of the samples here."""

    x: Array


class Total(NamedTuple, Generic[Array]):
    """Asks for the sum over the whole batch of exact sums of the samples here, float64 or int64."""

    x: Array


Asked: TypeAlias = Largest[Array] | Total[Array]

Ahead: TypeAlias = Generator[Asked[Array], Array, tuple[Array, Any]]
"""The way through a step for some samples of a batch: output `[1 or T, B, ...]`, and what the way back needs.
Where a step needs a number of the whole batch, it asks for it and is sent it. What it asks for, and how often, depends
only on the step."""

Exchange: TypeAlias = Generator[Asked[Array], Array, Back[Array]]
"""The way back, which asks in the same way, for example for the largest error, on which its grid hangs."""


@dataclass(frozen=True, eq=False)
class Step(ABC, Generic[Array]):
    """One step of a plan: a node, or a chain of nodes of which each is read by the next alone.

    Attributes:
        places: the nodes, in order; their output is that of the last one.
        needed: of which inputs the error is needed: those with weights at or before them.
        takes_deferred: whether the error of the output may come as `Deferred`.
    """

    takes_deferred: ClassVar[bool] = False

    places: tuple[Place, ...]
    needed: tuple[bool, ...]

    @property
    def name(self) -> str:
        """Of the output: the last node's."""
        return self.places[-1].node.name

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes that it reads."""
        return tuple(edge.source for edge in self.places[0].node.inputs)

    @property
    def delays(self) -> tuple[int, ...]:
        """How many steps before they are read, each of `sources`."""
        return tuple(edge.delay for edge in self.places[0].node.inputs)

    @cached_property
    def delayed(self) -> Mapping[tuple[str, int], str]:
        """How what a delayed edge still carries after a run is called (`Run.before`), by source and delay."""
        edges = zip(self.sources, self.delays, strict=True)
        return {(source, delay): f"{source}>{self.name}@{delay}" for source, delay in edges if delay}

    @property
    def fires(self) -> bool:
        """Whether it ends with a population."""
        return isinstance(self.places[-1].node.op, Neurons)

    @abstractmethod
    def forward(self, run: Run[Array], *inputs: Array) -> Ahead[Array]:
        """The way through it from inputs `[1 or T, B, ...]`."""

    @abstractmethod
    def backward(
        self, run: Run[Array], residuals: Any, error: Array | Deferred[Array], precision: Precision
    ) -> Exchange[Array]:
        """The way back from the error of the output."""

    @property
    def normalises(self) -> bool:
        """Whether it normalises sums of weights."""
        ops = (place.node.op for place in self.places)
        return any(isinstance(op, Weighted) and op.norm is not None for op in ops)

    def statistics(self, residuals: Any) -> Mapping[str, Array]:
        """By which it normalised, by the names of `graph.Network.statistics`, of a step that does."""
        raise TypeError(f"step {self.name} does not normalise")

    def population(self, residuals: Any) -> NeuronResiduals[Array]:
        """What the population left, of a step that ends with one."""
        raise TypeError(f"step {self.name} ends with no population")


Fusion: TypeAlias = Callable[[tuple[Step[Array], ...]], Step[Array] | None]
"""Makes one step of a chain of steps, in their order, or of the last ones of them; None: it knows no better."""
