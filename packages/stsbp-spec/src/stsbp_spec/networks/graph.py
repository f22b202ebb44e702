"""A network as a graph: operations at its nodes, and the values on its edges.

A `Network` is checked when it is made, and all shapes are inferred then. spec.py makes a graph from a sequence of
layers. rules.py defines how a backend computes a node. passes.py walks through all nodes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from stsbp_spec.contract.grid import EXACT_LIMIT_BITS, ceil_log2, error_bits
from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.models.learned import Learned, learned_name
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.networks.ops.base import MAX_DELAY, Op, Passing, Values, Weighted
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import Coding, Float32, Shape
from stsbp_spec.validation import integer, listed, shown

__all__ = [
    "MAX_LAYERS",
    "BoundNode",
    "Edge",
    "Input",
    "Network",
    "Neurons",
    "Node",
    "Op",
    "Parameter",
    "Projection",
    "Values",
    "Weighted",
]


@dataclass(frozen=True)
class Input(Op):
    """The input of a network.

    Args:
        shape: `(C, H, W)` or `(N,)`.
        coding: `direct` (one uint8 image for all steps, value `x / 256`) or `events` (uint8 frames).
        psp: filter of the input; None: the input is not filtered.
        largest: the largest event count of a pixel in a frame.
    """

    makes_spikes: ClassVar[bool] = True

    shape: Shape
    coding: Coding = "events"
    psp: PSP | None = None
    largest: int = 1

    def infer(self, *inputs: Values) -> Values:
        """Images that are the same at all steps, or frames."""
        if inputs:
            raise SpecError(f"Input takes no input, got {len(inputs)}")
        if self.coding == "direct":
            return Values(self.shape, 8, 255 / 256, static=True, pending=self.psp)
        return Values(self.shape, 0, float(self.largest), pending=self.psp)


@dataclass(frozen=True)
class Neurons(Op):
    """A population of neurons. It turns weighted sums, each with its pending synaptic filter, into spikes.

    The currents of several projections are added in the order of the inputs.
    """

    makes_spikes: ClassVar[bool] = True

    model: NeuronModel

    def infer(self, *inputs: Values) -> Values:
        """Spikes. Their synaptic filter is applied later."""
        if not inputs:
            self.only_input(inputs)
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
        # A network whose constants are refused must not be made, and no run of it begun.
        for described in (self.model, self.model.surrogate):
            described.constants()
        return Values(inputs[0].shape, pending=self.model.psp)


MAX_LAYERS = 2**16
"""Largest number of layers or nodes of a network."""

MAX_VALUES = 2**40
"""Largest number of values of a node's output for one sample and step."""


@dataclass(frozen=True)
class Edge:
    """An input of a node: the output of `source`, delayed by `delay` steps. Before the first step it is zero.

    A population may read itself with a delay of 1, through weights that no other node reads. This is a recurrence.
    """

    source: str
    delay: int = 0


@dataclass(frozen=True)
class Node:
    """An operation with a name and its inputs, in order.

    Attributes:
        shares: name of the node whose weights it also uses. Each of the two has its own grid. None: it has own weights.
    """

    name: str
    op: Op
    inputs: tuple[Edge, ...] = ()
    shares: str | None = None


@dataclass(frozen=True)
class BoundNode:
    """A node within its network, with its inputs and its output.

    Attributes:
        node: the node.
        inputs: the values on its edges.
        output: the values of its output.
        layer: number of populations before it in the order of the nodes.
        position: number of nodes since the last of these populations.
    """

    node: Node
    inputs: tuple[Values, ...]
    output: Values
    layer: int
    position: int

    @cached_property
    def learns(self) -> tuple[tuple[str, str, Learned], ...]:
        """Learned parameters of a population's neurons and of the biases before them, or learned delays.

        Each has the node's name for it (`learned_name`), and its name in the network. That of delays begins with their
        own node, `delay1.steps`, and the others with the node that the neurons read: `conv1.decay`, `conv1.bias`.
        """
        op, edges = self.node.op, self.node.inputs
        if isinstance(op, Passing):
            return tuple((name, f"{self.node.name}.{name}", learned) for name, learned in op.learned().items())
        assert isinstance(op, Neurons)
        learned_parameters = [
            (learned_name(j, name), f"{edge.source}.{name}", learned)
            for j, (edge, values) in enumerate(zip(edges, self.inputs, strict=True))
            for name, learned in values.filter(training=False).learned().items()
        ]
        learned_parameters += [
            (name, f"{edges[0].source}.{name}", learned) for name, learned in op.model.learned().items()
        ]
        return tuple(learned_parameters)

    @cached_property
    def learned(self) -> Mapping[str, Learned]:
        """The parameters of `learns`, by the node's names."""
        return {name: learned for name, _, learned in self.learns}

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """Names in the network of the parameters of `learns`, by the node's names."""
        return {model_name: name for model_name, name, _ in self.learns}


@dataclass(frozen=True)
class Projection:
    """Weights within their network.

    Attributes:
        name: key of the weights: `conv1`, `conv2`, `linear3`, ...
        index: position among the projections, from 0.
        synapse: geometry and bits of the weights.
        input: the values that the weights read.
        shares: name of another projection whose weights this one uses, if any.
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
        """The weighted sums of the input."""
        return self.synapse.infer(self.input)

    @property
    def fan_in(self) -> int:
        """Number of summands of one output."""
        return self.synapse.summands(self.input.shape)[0]

    @property
    def multiply_adds(self) -> int:
        """Number of multiply-adds of the weights for one dense frame."""
        return self.fan_in * math.prod(self.output_shape)

    @property
    def guaranteed_headroom(self) -> float:
        """Headroom in bits if all weights had the largest magnitude and the same sign. Real weights have more."""
        largest = 2 ** (self.synapse.weight_bits - 1) - 1
        return EXACT_LIMIT_BITS - math.log2(self.fan_in * largest * self.input.maximum) - self.input.exponent

    def error_bits(self, *, frames: int) -> int:
        """Bits of the error grid if the weights are applied to `frames` frames: `grid.error_bits`."""
        _, per_frame, data = self.synapse.summands(self.input.shape)
        return error_bits(
            input_bits=self.input.bits,
            weight_bits=self.synapse.weight_bits,
            weight_summands=frames * per_frame,
            data_summands=data,
        )

    @property
    def sample_error_bits(self) -> int:
        """Bits of `Operations.sample_grid`, for a recurrence that sends errors back through the weights."""
        return 53 - self.synapse.weight_bits - ceil_log2(self.synapse.summands(self.input.shape)[2])


@dataclass(frozen=True)
class Parameter:
    """Trained parameters of a network.

    Attributes:
        shape: their shape.
        learned: for a learned parameter of neurons or learned delays, its initial value and its domain. None: weights,
            which are drawn at random (initial_weights.py) and decay.
        is_delay: whether it is learned delays (ops/delay.py), which have a learning rate of their own and initial
            values that are drawn at random.
    """

    shape: Shape
    learned: Learned | None = None
    is_delay: bool = False


@dataclass(frozen=True)
class Network:
    """Nodes in order, each after the nodes it reads. The last node is the output.

    Args:
        nodes: the nodes, in any order. Nodes whose order is not determined keep the given order.

    Attributes:
        values: the output of each node, by name.
        recurrent: names of the weights of each recurrent population, by the population's name.

    Raises:
        NetworkError: the nodes do not form a network. `node` and `reason` of the error name the node and the reason.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Values] = field(init=False, repr=False, compare=False)
    recurrent: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        nodes, recurrent = _ordered(self.nodes)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "recurrent", recurrent)
        object.__setattr__(self, "values", self._inferred())
        for bound_node in self.bound_nodes:
            try:
                bound_node.node.op.check_position(bound_node.position)
            except SpecError as error:
                raise NetworkError.of(error, node=bound_node.node.name) from None
        unread = [
            node.name
            for node in self.nodes[:-1]
            if set(self.readers[node.name]) <= {*self.recurrent.get(node.name, ())}
        ]
        if unread:
            raise NetworkError("no node reads it, and it is not the output, which is the last node", node=unread[0])
        for node in self.nodes:
            if isinstance(node.op, Neurons) and not node.op.model.makes_spikes and self.readers[node.name]:
                raise NetworkError(
                    "a readout has no spikes that another node could read; it can only be the output", node=node.name
                )
        for projection in self.projections:
            if projection.shares is not None:
                self._check_shared(projection)
        self._check_names()
        inputs = [node.name for node in self.nodes if isinstance(node.op, Input)]
        if len(inputs) != 1:
            raise NetworkError(f"a network has one Input, got {listed(inputs) or 'none'}")

    def _inferred(self) -> dict[str, Values]:
        """The output of each node. Raises an error that names the first node whose inputs do not fit."""
        values: dict[str, Values] = {}
        loops = {name for names in self.recurrent.values() for name in names}
        weights = {node.name: node for node in self.nodes if node.name in loops}
        for node in self.nodes:
            if node.name in loops:
                continue
            loop = self.recurrent.get(node.name, ())
            try:
                output = node.op.infer(
                    *(self._read_values(values, edge) for edge in node.inputs if edge.source not in loop)
                )
                if math.prod(output.shape) > MAX_VALUES:
                    raise SpecError(f"its output has the shape {output.shape}, more than 2^40 values for each step")
                values[node.name] = output
            except SpecError as error:
                raise NetworkError.of(error, node=node.name) from None
            # The values that its recurrent weights read are known only now.
            for name in loop:
                try:
                    values[name] = weights[name].op.infer(output)
                    node.op.infer(*(values[edge.source] for edge in node.inputs if edge.source in values))
                except SpecError as error:
                    raise NetworkError.of(error, node=name) from None
        return values

    def _check_shared(self, projection: Projection) -> None:
        """Raise `NetworkError` unless the weights that a projection shares exist and have its shape."""
        owners = {candidate.name: candidate for candidate in self.projections if candidate.shares is None}
        owner = owners.get(str(projection.shares))
        if owner is None:
            names = listed(owners) or "none"
            message = f"no node {shown(projection.shares)} has weights that it could share; nodes with weights: {names}"
            raise NetworkError(message, node=projection.name)
        if owner.weight_shape != projection.weight_shape:
            message = f"the weights of {owner.name} have the shape {owner.weight_shape}, but it needs"
            raise NetworkError(f"{message} {projection.weight_shape}", node=projection.name)

    def _check_names(self) -> None:
        """Raise `NetworkError` unless every parameter has a name of its own."""
        owners: dict[str, Op] = {}
        for bound_node in self.bound_nodes:
            node = bound_node.node
            learned_names = [name for name, _, _ in bound_node.learns] if isinstance(node.op, Neurons) else []
            for name in _names(bound_node):
                source, _, parameter = name.rpartition(".")
                if name in self.values and name != node.name:
                    raise NetworkError(f"{node.name} has a parameter of this name; rename the node", node=name)
                if learned_names.count(parameter) > 1 or isinstance(owners.get(name), Weighted):
                    message = (
                        f"its neurons learn {parameter}, but the weights before them have a parameter of this name"
                    )
                    raise NetworkError(f"{message}; rename that of the neurons", node=node.name)
                if name in owners:
                    message = f"{source} is read more than once, but only one reader can learn {name}; let this one"
                    raise NetworkError(f"{message} read another node with the weights of {source}", node=node.name)
                owners[name] = node.op

    @staticmethod
    def _read_values(values: Mapping[str, Values], edge: Edge) -> Values:
        output = values[edge.source]
        if edge.delay and output.static:
            raise SpecError(f"{edge.source} is the same at every step, so it cannot be read with a delay")
        return output

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
    def bound_nodes(self) -> tuple[BoundNode, ...]:
        """The nodes within the network, in order."""
        bound_nodes, layer, position = [], 0, 0
        for node in self.nodes:
            inputs = tuple(self.values[edge.source] for edge in node.inputs)
            bound_nodes.append(BoundNode(node, inputs, self.values[node.name], layer, position))
            position += 1
            if isinstance(node.op, (Input, Neurons)):
                layer, position = layer + isinstance(node.op, Neurons), 0
        return tuple(bound_nodes)

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """All weights, in order."""
        projections: list[Projection] = []
        for bound_node in self.bound_nodes:
            if isinstance(bound_node.node.op, Weighted):
                node, (values,) = bound_node.node, bound_node.inputs
                projections.append(
                    Projection(node.name, len(projections), bound_node.node.op, values, shares=node.shares)
                )
        return tuple(projections)

    def projections_to(self, population: str) -> tuple[Projection, ...]:
        """All weights whose sums a population adds, including those of its recurrence."""
        (node,) = (node for node in self.nodes if node.name == population)
        names_read = {edge.source for edge in node.inputs}
        return tuple(projection for projection in self.projections if projection.name in names_read)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """All trained parameters by name, in the order of the nodes.

        Weights have the name of their node, `conv1`. Learned parameters of batch normalisation and of the neurons that
        read this node begin with the same name: `conv1.scale`, `conv1.decay`. Learned delays are called `delay1.steps`.
        """
        parameters: dict[str, Parameter] = {}
        for bound_node in self.bound_nodes:
            op = bound_node.node.op
            if isinstance(op, Weighted):
                if bound_node.node.shares is None:
                    parameters[bound_node.node.name] = Parameter(op.weight_shape(bound_node.inputs[0].shape))
                for name, learned in ({} if op.norm is None else op.norm.learned()).items():
                    parameters[f"{bound_node.node.name}.{name}"] = Parameter(
                        learned.shape(bound_node.output.shape), learned
                    )
            elif isinstance(op, (Neurons, Passing)):
                for _, name, learned in bound_node.learns:
                    parameters[name] = Parameter(
                        learned.shape(bound_node.output.shape), learned, is_delay=isinstance(op, Passing)
                    )
        return parameters

    @cached_property
    def delays(self) -> Mapping[str, int]:
        """The largest number of steps of all learned delays, by the names of their parameters."""
        return {
            name: int(learned.high)
            for bound_node in self.bound_nodes
            if isinstance(bound_node.node.op, Passing)
            for _, name, learned in bound_node.learns
        }

    @cached_property
    def normalised(self) -> tuple[Projection, ...]:
        """Projections whose sums are normalised."""
        return tuple(projection for projection in self.projections if projection.synapse.norm is not None)

    @cached_property
    def statistics(self) -> Mapping[str, Float32]:
        """Initial values of the running statistics, `[C]` by name: `conv1.mean`, `conv1.variance`.

        They are stored with the parameters. The optimiser does not change them; they follow the batches.
        """
        statistics: dict[str, Float32] = {}
        for projection in self.normalised:
            assert projection.synapse.norm is not None
            initial = projection.synapse.norm.initial(projection.output_shape[0])
            statistics |= {f"{projection.name}.{name}": x for name, x in initial.items()}
        return statistics


def _names(bound_node: BoundNode) -> list[str]:
    """Names of a node's arrays in `rules.PassContext.weights`."""
    name, op = bound_node.node.name, bound_node.node.op
    if isinstance(op, (Neurons, Passing)):
        return [parameter for _, parameter, _ in bound_node.learns]
    if not isinstance(op, Weighted):
        return []
    norm_names = () if op.norm is None else (*op.norm.learned(), *op.norm.initial(1), "exponent", "frames")
    return [name, *(f"{name}.{norm_name}" for norm_name in norm_names)]


def _ordered(nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], dict[str, tuple[str, ...]]]:
    """Sort the nodes so that each comes after the nodes it reads. Also returns `Network.recurrent`.

    The next node is always the first given node that can come next. Recurrent weights come right before their
    population. Raises `NetworkError`.
    """
    positions = {node.name: i for i, node in enumerate(nodes)}
    if len(positions) != len(nodes):
        twice = next(node for i, node in enumerate(nodes) if positions[node.name] != i)
        raise NetworkError("the name is given twice", node=twice.name)
    for node in nodes:
        if node.shares is not None and not isinstance(node.op, Weighted):
            raise NetworkError("only weights can be shared", node=node.name)
        for edge in node.inputs:
            if edge.source not in positions:
                raise NetworkError(f"there is no node {shown(edge.source)} that it could read", node=node.name)
            delay = integer(edge.delay)
            if delay is None or not 0 <= delay <= MAX_DELAY:
                message = f"it reads {edge.source} with a delay of {shown(edge.delay)}; a delay is 0 to {MAX_DELAY}"
                raise NetworkError(f"{message} steps", node=node.name)
    recurrent = _recurrent(nodes, positions)
    loops = {name: population for population, names in recurrent.items() for name in names}
    remaining, readers = [0] * len(nodes), [list[int]() for _ in nodes]
    for i, node in enumerate(nodes):
        for edge in node.inputs if node.name not in loops else ():
            if edge.source not in loops:
                remaining[i] += 1
                readers[positions[edge.source]].append(i)
    ready = [i for i, count in enumerate(remaining) if count == 0 and nodes[i].name not in loops]
    ordered: list[Node] = []
    while ready:
        i = heapq.heappop(ready)
        ordered += [nodes[positions[name]] for name in recurrent.get(nodes[i].name, ())]
        ordered.append(nodes[i])
        for reader in readers[i]:
            remaining[reader] -= 1
            if remaining[reader] == 0:
                heapq.heappush(ready, reader)
    if len(ordered) < len(nodes):
        loop = _loop({nodes[i].name: nodes[i] for i, count in enumerate(remaining) if count})
        rule = "only a population may read itself, with a delay of 1 and through weights of its own"
        raise NetworkError(f"it reads itself through {listed(loop)}; {rule}", node=loop[-1])
    return tuple(ordered), recurrent


def _recurrent(nodes: tuple[Node, ...], positions: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Compute `Network.recurrent`."""
    recurrent: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if isinstance(node.op, Neurons):
            loop_names = [
                edge.source
                for edge in node.inputs
                if edge.delay == 0
                and isinstance((weights := nodes[positions[edge.source]]).op, Weighted)
                and weights.inputs == (Edge(node.name, 1),)
            ]
            if loop_names:
                recurrent[node.name] = tuple(loop_names)
    for population, names in recurrent.items():
        for name in names:
            op = nodes[positions[name]].op
            if isinstance(op, Weighted) and op.norm is not None:
                raise NetworkError("a recurrence cannot have batch normalisation", node=name)
        for node in nodes:
            for edge in node.inputs:
                if edge.source in names and node.name != population:
                    message = f"{edge.source} is the recurrence of {population}; no other node may read it"
                    raise NetworkError(message, node=node.name)
        if len(names) == len(nodes[positions[population]].inputs):
            raise NetworkError("it reads nothing but itself", node=population)
    return recurrent


def _loop(blocked: Mapping[str, Node]) -> list[str]:
    """Names of nodes that form a cycle: each reads the next, and the last reads the first. All of `blocked`
    wait for such a cycle."""
    name, path = next(iter(blocked)), dict[str, None]()
    while name not in path:
        path[name] = None
        name = next(edge.source for edge in blocked[name].inputs if edge.source in blocked)
    names = list(path)
    return names[names.index(name) :]
