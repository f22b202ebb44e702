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

from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.grid import EXACT_LIMIT_BITS, error_bits
from stsbp_spec.learned import Learned
from stsbp_spec.neurons import NeuronModel
from stsbp_spec.synapses.base import Op, Values, Weighted
from stsbp_spec.synapses.dropout import MAX_BEFORE
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Coding, Float32, Shape
from stsbp_spec.values import listed, shown

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
    """A population of neurons: from weighted sums, through their pending synapse, to spikes."""

    model: NeuronModel

    def infer(self, *inputs: Values) -> Values:
        """Spikes, whose synapse is still to be applied."""
        values = self.one(inputs)
        if not values.weighted:
            raise SpecError("Neurons takes weighted sums, and its input are spikes; put Conv2d or Linear between")
        return Values(values.shape, pending=self.model.psp)


@dataclass(frozen=True)
class Edge:
    """What a node reads: the output of `source`, `delay` steps before."""

    source: str
    delay: int = 0


@dataclass(frozen=True)
class Node:
    """An operation with a name and what it reads, in order."""

    name: str
    op: Op
    inputs: tuple[Edge, ...] = ()


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
        """What the neurons of a population and the bias before them learn, by name."""
        op, (values,) = self.node.op, self.inputs
        assert isinstance(op, Neurons)
        return {**values.filter(training=False).learned(), **op.model.learned()}

    def learned_name(self, name: str) -> str:
        """What a number is called in a network: `conv1.decay`, `conv1.bias`, of the neurons that read `conv1`."""
        return f"{self.node.inputs[0].source}.{name}"


@dataclass(frozen=True)
class Projection:
    """Weights where they stand.

    Attributes:
        name: the key of its weights: `conv1`, `conv2`, `linear3`, ...
        index: position among the projections, from 0.
        synapse: the geometry and the bits of its weights.
        input: what meets them.
    """

    name: str
    index: int
    synapse: Weighted
    input: Values

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

    Raises:
        NetworkError: the nodes are no network; `node` and `reason` of the error say which one and why.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Values] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", _ordered(self.nodes))
        values: dict[str, Values] = {}
        for node in self.nodes:
            try:
                values[node.name] = node.op.infer(*(values[edge.source] for edge in node.inputs))
            except SpecError as error:
                raise NetworkError.of(error, node=node.name) from None
        object.__setattr__(self, "values", values)
        for place in self.places:
            if place.position >= MAX_BEFORE and not isinstance(place.node.op, (Weighted, Neurons)):
                message = f"at most {MAX_BEFORE} layers of pooling and dropout may stand before a spiking one"
                raise NetworkError(message, node=place.node.name)
        unread = [node.name for node in self.nodes[:-1] if not self.readers[node.name]]
        if unread:
            raise NetworkError("nothing reads it, and it is not the output, the last node", node=unread[0])
        inputs = [node.name for node in self.nodes if isinstance(node.op, Input)]
        if len(inputs) != 1:
            raise NetworkError(f"a network has one Input, got {listed(inputs) or 'none'}")

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
                found.append(Projection(place.node.name, len(found), place.node.op, *place.inputs))
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
                found[place.node.name] = Parameter(op.weight_shape(place.inputs[0].shape))
                for name, learned in ({} if op.norm is None else op.norm.learned()).items():
                    found[f"{place.node.name}.{name}"] = Parameter(learned.shape(place.output.shape), learned)
            elif isinstance(op, Neurons):
                for name, learned in place.learned.items():
                    found[place.learned_name(name)] = Parameter(learned.shape(place.output.shape), learned)
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


def _ordered(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Nodes, each after what it reads, or `NetworkError`; always the first given one that can come next."""
    place = {node.name: i for i, node in enumerate(nodes)}
    if len(place) != len(nodes):
        twice = next(node for i, node in enumerate(nodes) if place[node.name] != i)
        raise NetworkError("the name is given twice", node=twice.name)
    waiting, readers = [len(node.inputs) for node in nodes], [list[int]() for _ in nodes]
    for i, node in enumerate(nodes):
        for edge in node.inputs:
            if edge.source not in place:
                raise NetworkError(f"there is no node {shown(edge.source)} that it could read", node=node.name)
            if edge.delay != 0:
                message = f"it reads {edge.source} with a delay of {shown(edge.delay)}; only 0 is known"
                raise NetworkError(message, node=node.name)
            readers[place[edge.source]].append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    found: list[Node] = []
    while ready:
        i = heapq.heappop(ready)
        found.append(nodes[i])
        for reader in readers[i]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(found) < len(nodes):
        loop = _loop({nodes[i].name: nodes[i] for i, count in enumerate(waiting) if count})
        raise NetworkError(f"it reads itself through {listed(loop)}; loops are not known", node=loop[-1])
    return tuple(found)


def _loop(waiting: Mapping[str, Node]) -> list[str]:
    """Names of nodes of which each reads the next, and the last one the first; every one of `waiting` waits for one."""
    name, path = next(iter(waiting)), dict[str, None]()
    while name not in path:
        path[name] = None
        name = next(edge.source for edge in waiting[name].inputs if edge.source in waiting)
    names = list(path)
    return names[names.index(name) :]
