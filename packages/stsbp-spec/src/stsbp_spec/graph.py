"""A network as a graph: operations at its nodes, and what each edge carries.

A `Network` is checked and inferred once, when it is made. network.py makes one of a chain of layers; rules.py says how
a backend computes a node, passes.py walks through all of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from stsbp_spec.equations import learned_name
from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.grid import EXACT_LIMIT_BITS, ceil_log2, error_bits
from stsbp_spec.learned import Learned
from stsbp_spec.neurons import NeuronModel, Readout
from stsbp_spec.synapses.base import Op, Values, Weighted
from stsbp_spec.synapses.dropout import MAX_BEFORE
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Coding, Float32, Shape
from stsbp_spec.values import integer, listed, shown

__all__ = [
    "Edge",
    "Input",
    "Network",
    "Neurons",
    "Node",
    "Op",
    "Parameter",
    "Place",
    "Projection",
    "Values",
    "Weighted",
]


@dataclass(frozen=True)
class Input(Op):
    """What a network reads.

    Args:
        shape: `(C, H, W)` or `(N,)`.
        coding: `direct` (one uint8 image for all steps, value `x / 256`) or `events` (uint8 frames).
        psp: filter of the input; None: it enters unfiltered.
        largest: the largest event count of a frame's pixel.
    """

    shape: Shape
    coding: Coding = "events"
    psp: PSP | None = None
    largest: int = 1

    def infer(self, *inputs: Values) -> Values:
        """Images, the same at all steps, or frames."""
        if inputs:
            raise SpecError(f"Input takes no input, got {len(inputs)}")
        if self.coding == "direct":
            return Values(self.shape, 8, 255 / 256, static=True, pending=self.psp)
        return Values(self.shape, 0, float(self.largest), pending=self.psp)


@dataclass(frozen=True)
class Neurons(Op):
    """A population of neurons: from weighted sums, each through its pending synapse, to spikes.

    Of several projections the currents are added in the order of the inputs.
    """

    model: NeuronModel

    def infer(self, *inputs: Values) -> Values:
        """Spikes, whose synapse is still to be applied."""
        if not inputs:
            self.one(inputs)
        for values in inputs:
            if not values.weighted:
                raise SpecError(
                    "Neurons takes weighted sums, but its input is spikes; put Conv2d or Linear between them"
                )
            if values.shape != inputs[0].shape:
                raise SpecError(
                    "all projections to one population must have the same shape, but these have "
                    f"{inputs[0].shape} and {values.shape}"
                )
        return Values(inputs[0].shape, pending=self.model.psp)


MAX_DELAY = 2**16
"""Steps of a delay."""


@dataclass(frozen=True)
class Edge:
    """What a node reads: the output of `source`, `delay` steps before; zeros before there was any.

    A population may read itself with a delay of 1 through weights that are read by nobody else: recurrence.
    """

    source: str
    delay: int = 0


@dataclass(frozen=True)
class Node:
    """An operation with a name and what it reads, in order.

    Attributes:
        shares: name of the node whose weights it uses too, each of the two on a grid of its own; None: it has its own.
    """

    name: str
    op: Op
    inputs: tuple[Edge, ...] = ()
    shares: str | None = None


@dataclass(frozen=True)
class Place:
    """A node where it stands: what it reads and makes.

    Attributes:
        node: the node.
        inputs: what its edges carry.
        output: what it makes of them.
        layer: how many populations stand before it in the order of the nodes ...
        position: ... and how many nodes since the last of them.
    """

    node: Node
    inputs: tuple[Values, ...]
    output: Values
    layer: int
    position: int

    @cached_property
    def learned(self) -> Mapping[str, Learned]:
        """What the neurons of a population and the biases before them learn, by name (`equations.learned_name`)."""
        op = self.node.op
        assert isinstance(op, Neurons)
        found = {
            learned_name(j, name): learned
            for j, values in enumerate(self.inputs)
            for name, learned in values.filter(training=False).learned().items()
        }
        return {**found, **op.model.learned()}

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """What each of them is called in a network: `conv1.decay`, `conv1.bias`, of the neurons that read `conv1`."""
        op, sources = self.node.op, [edge.source for edge in self.node.inputs]
        assert isinstance(op, Neurons)
        found = {
            learned_name(j, name): f"{source}.{name}"
            for j, (source, values) in enumerate(zip(sources, self.inputs, strict=True))
            for name in values.filter(training=False).learned()
        }
        return {**found, **{name: f"{sources[0]}.{name}" for name in op.model.learned()}}


@dataclass(frozen=True)
class Projection:
    """Weights where they stand.

    Attributes:
        name: the key of its weights: `conv1`, `conv2`, `linear3`, ...
        index: position among the projections, from 0.
        synapse: the geometry and the bits of its weights.
        input: what meets them.
        shares: name of the weights that it uses, where they are those of another projection.
    """

    name: str
    index: int
    synapse: Weighted
    input: Values
    shares: str | None = field(default=None, kw_only=True)

    @property
    def parameter(self) -> str:
        """Name of the weights among the network's parameters."""
        return self.name if self.shares is None else self.shares

    @property
    def weight_shape(self) -> Shape:
        """Shape of the weights, output axis first."""
        return self.synapse.weight_shape(self.input.shape)

    @property
    def output_shape(self) -> Shape:
        """Shape of the sums."""
        return self.synapse.output_shape(self.input.shape)

    @cached_property
    def sums(self) -> Values:
        """What the weights make of their input."""
        return self.synapse.infer(self.input)

    @property
    def fan_in(self) -> int:
        """Summands of one output."""
        return self.synapse.summands(self.input.shape)[0]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the weights on one dense frame."""
        return self.fan_in * math.prod(self.output_shape)

    @property
    def guaranteed_headroom(self) -> float:
        """Headroom in bits if every weight had the largest magnitude and one sign; real weights have more."""
        largest = 2 ** (self.synapse.weight_bits - 1) - 1
        return EXACT_LIMIT_BITS - math.log2(self.fan_in * largest * self.input.maximum) - self.input.exponent

    def error_bits(self, *, frames: int) -> int:
        """Bits of the error grid where the weights meet `frames` frames: `grid.error_bits`."""
        _, per_frame, data = self.synapse.summands(self.input.shape)
        return error_bits(
            input_bits=self.input.bits,
            weight_bits=self.synapse.weight_bits,
            weight_summands=frames * per_frame,
            data_summands=data,
        )

    @property
    def sample_error_bits(self) -> int:
        """Bits of `grid.sample_grid` where a recurrence sends errors back through the weights."""
        return 53 - self.synapse.weight_bits - ceil_log2(self.synapse.summands(self.input.shape)[2])


@dataclass(frozen=True)
class Parameter:
    """Numbers of a network that training moves.

    Attributes:
        shape: of them.
        learned: what neurons learn, its value before the first update and its domain; None: weights, which are drawn
            (init.py) and decay.
    """

    shape: Shape
    learned: Learned | None = None


@dataclass(frozen=True)
class Network:
    """Nodes in order, each after what it reads; the last one is the output.

    Args:
        nodes: in any order; those that could stand in several places keep the order in which they are given.

    Attributes:
        values: what each node makes, by its name.
        recurrent: names of the weights through which each population that does so reads itself, by its own.

    Raises:
        NetworkError: the nodes are no network; `node` and `reason` of the error say which one and why.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Values] = field(init=False, repr=False, compare=False)
    recurrent: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        nodes, recurrent = _ordered(self.nodes)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "recurrent", recurrent)
        object.__setattr__(self, "values", self._inferred())
        for place in self.places:
            if place.position >= MAX_BEFORE and not isinstance(place.node.op, (Weighted, Neurons)):
                message = f"at most {MAX_BEFORE} layers of pooling and dropout may stand before a spiking one"
                raise NetworkError(message, node=place.node.name)
        unread = [
            node.name
            for node in self.nodes[:-1]
            if set(self.readers[node.name]) <= {*self.recurrent.get(node.name, ())}
        ]
        if unread:
            raise NetworkError("no node reads it, and it is not the output, which is the last node", node=unread[0])
        for node in self.nodes:
            if isinstance(node.op, Neurons) and isinstance(node.op.model, Readout) and self.readers[node.name]:
                raise NetworkError(
                    "a readout has no spikes that another node could read; it can only be the output", node=node.name
                )
        for projection in self.projections:
            if projection.shares is not None:
                self._check_shared(projection)
        inputs = [node.name for node in self.nodes if isinstance(node.op, Input)]
        if len(inputs) != 1:
            raise NetworkError(f"a network has one Input, got {listed(inputs) or 'none'}")

    def _inferred(self) -> dict[str, Values]:
        """What each node makes, or an error that names the first one whose inputs do not fit."""
        values: dict[str, Values] = {}
        loops = {name for names in self.recurrent.values() for name in names}
        weights = {node.name: node for node in self.nodes if node.name in loops}
        for node in self.nodes:
            if node.name in loops:
                continue
            loop = self.recurrent.get(node.name, ())
            try:
                made = node.op.infer(*(self._read(values, edge) for edge in node.inputs if edge.source not in loop))
                values[node.name] = made
            except SpecError as error:
                raise NetworkError.of(error, node=node.name) from None
            # What its recurrence reads is known after it only.
            for name in loop:
                try:
                    values[name] = weights[name].op.infer(made)
                    node.op.infer(*(values[edge.source] for edge in node.inputs if edge.source in values))
                except SpecError as error:
                    raise NetworkError.of(error, node=name) from None
        return values

    def _check_shared(self, projection: Projection) -> None:
        """Raise `NetworkError` unless the weights that a projection uses are there, and of its shape."""
        owners = {each.name: each for each in self.projections if each.shares is None}
        owner = owners.get(str(projection.shares))
        if owner is None:
            known = listed(owners) or "none"
            message = f"no node {shown(projection.shares)} has weights that it could share; nodes with weights: {known}"
            raise NetworkError(message, node=projection.name)
        if owner.weight_shape != projection.weight_shape:
            message = f"the weights of {owner.name} have the shape {owner.weight_shape}, but it needs"
            raise NetworkError(f"{message} {projection.weight_shape}", node=projection.name)

    @staticmethod
    def _read(values: Mapping[str, Values], edge: Edge) -> Values:
        found = values[edge.source]
        if edge.delay and found.static:
            raise SpecError(f"{edge.source} is the same at every step, so it cannot be read with a delay")
        return found

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.nodes)

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the nodes that read each node, in the order of the nodes."""
        readers: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for edge in node.inputs:
                readers[edge.source].append(node.name)
        return {name: tuple(names) for name, names in readers.items()}

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The nodes where they stand, in order."""
        places, layer, position = [], 0, 0
        for node in self.nodes:
            inputs = tuple(self.values[edge.source] for edge in node.inputs)
            places.append(Place(node, inputs, self.values[node.name], layer, position))
            position += 1
            if isinstance(node.op, (Input, Neurons)):
                layer, position = layer + isinstance(node.op, Neurons), 0
        return tuple(places)

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """All weights, in order."""
        found: list[Projection] = []
        for place in self.places:
            if isinstance(place.node.op, Weighted):
                node, (values,) = place.node, place.inputs
                found.append(Projection(node.name, len(found), place.node.op, values, shares=node.shares))
        return tuple(found)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """What training moves, by name, in the order of the nodes.

        Weights have the name of their node, `conv1`, and what batch normalisation learns has it before its own,
        `conv1.scale`; so has what the neurons learn that read it, `conv1.decay`.
        """
        found: dict[str, Parameter] = {}
        for place in self.places:
            op = place.node.op
            if isinstance(op, Weighted):
                if place.node.shares is None:
                    found[place.node.name] = Parameter(op.weight_shape(place.inputs[0].shape))
                for name, learned in ({} if op.norm is None else op.norm.learned()).items():
                    found[f"{place.node.name}.{name}"] = Parameter(learned.shape(place.output.shape), learned)
            elif isinstance(op, Neurons):
                for name, learned in place.learned.items():
                    found[place.parameters[name]] = Parameter(learned.shape(place.output.shape), learned)
        return found

    @cached_property
    def normalised(self) -> tuple[Projection, ...]:
        """Projections whose sums are normalised."""
        return tuple(projection for projection in self.projections if projection.synapse.norm is not None)

    @cached_property
    def statistics(self) -> Mapping[str, Float32]:
        """Running statistics before the first update, `[C]` by name: `conv1.mean`, `conv1.variance`.

        They are kept with the parameters, but training does not move them: they follow the batches.
        """
        found: dict[str, Float32] = {}
        for projection in self.normalised:
            assert projection.synapse.norm is not None
            made = projection.synapse.norm.initial(projection.output_shape[0])
            found |= {f"{projection.name}.{name}": x for name, x in made.items()}
        return found


def _ordered(nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], dict[str, tuple[str, ...]]]:
    """Nodes, each after what it reads, and `Network.recurrent`, or `NetworkError`.

    Always the first given node that can come next; weights of a recurrence stand right before their population.
    """
    place = {node.name: i for i, node in enumerate(nodes)}
    if len(place) != len(nodes):
        twice = next(node for i, node in enumerate(nodes) if place[node.name] != i)
        raise NetworkError("the name is given twice", node=twice.name)
    for node in nodes:
        if node.shares is not None and not isinstance(node.op, Weighted):
            raise NetworkError("only weights can be shared", node=node.name)
        for edge in node.inputs:
            if edge.source not in place:
                raise NetworkError(f"there is no node {shown(edge.source)} that it could read", node=node.name)
            delay = integer(edge.delay)
            if delay is None or not 0 <= delay <= MAX_DELAY:
                message = f"it reads {edge.source} with a delay of {shown(edge.delay)}; a delay is 0 to {MAX_DELAY}"
                raise NetworkError(f"{message} steps", node=node.name)
    recurrent = _recurrent(nodes, place)
    loops = {name: population for population, names in recurrent.items() for name in names}
    waiting, readers = [0] * len(nodes), [list[int]() for _ in nodes]
    for i, node in enumerate(nodes):
        for edge in node.inputs if node.name not in loops else ():
            if edge.source not in loops:
                waiting[i] += 1
                readers[place[edge.source]].append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0 and nodes[i].name not in loops]
    found: list[Node] = []
    while ready:
        i = heapq.heappop(ready)
        found += [nodes[place[name]] for name in recurrent.get(nodes[i].name, ())]
        found.append(nodes[i])
        for reader in readers[i]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(found) < len(nodes):
        loop = _loop({nodes[i].name: nodes[i] for i, count in enumerate(waiting) if count})
        known = "only a population may read itself, with a delay of 1 and through weights of its own"
        raise NetworkError(f"it reads itself through {listed(loop)}; {known}", node=loop[-1])
    return tuple(found), recurrent


def _recurrent(nodes: tuple[Node, ...], place: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """`Network.recurrent`."""
    found: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if isinstance(node.op, Neurons):
            own = [
                edge.source
                for edge in node.inputs
                if edge.delay == 0
                and isinstance((weights := nodes[place[edge.source]]).op, Weighted)
                and weights.inputs == (Edge(node.name, 1),)
            ]
            if own:
                found[node.name] = tuple(own)
    for population, names in found.items():
        for name in names:
            op = nodes[place[name]].op
            if isinstance(op, Weighted) and op.norm is not None:
                raise NetworkError("a recurrence cannot have batch normalisation", node=name)
        for node in nodes:
            for edge in node.inputs:
                if edge.source in names and node.name != population:
                    message = f"{edge.source} is the recurrence of {population}; no other node may read it"
                    raise NetworkError(message, node=node.name)
        if len(names) == len(nodes[place[population]].inputs):
            raise NetworkError("it reads nothing but itself", node=population)
    return found


def _loop(waiting: Mapping[str, Node]) -> list[str]:
    """Names of nodes of which each reads the next, and the last one the first; every one of `waiting` waits for one."""
    name, path = next(iter(waiting)), dict[str, None]()
    while name not in path:
        path[name] = None
        name = next(edge.source for edge in waiting[name].inputs if edge.source in waiting)
    names = list(path)
    return names[names.index(name) :]
