"""Networks as immutable sequences of layers. notation.py reads the notation of the papers, `12C5-P2-64C5-P2`.

A `NetworkSpec` is a sequence of layers. A layer can also consist of parallel branches of layers. Backends compute
`NetworkSpec.graph`. For reports, `NetworkSpec.blocks` groups the layers: the operations before the weights (pooling,
dropout), the weights, and the neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from stsbp_spec.contract.grid import MAX_WEIGHT_BITS
from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.networks import table
from stsbp_spec.networks.graph import MAX_LAYERS, Edge, Input, Network, Neurons, Node, Op, Parameter
from stsbp_spec.networks.layers import Block, Branches, Layer, SpikingLayer, layers_of_chain
from stsbp_spec.networks.nodes import check_name, is_nodes
from stsbp_spec.networks.notation import (
    described,
    layer_at,
    parse_layers,
    parse_nodes,
    recurrence,
    written,
    written_nodes,
)
from stsbp_spec.networks.ops import (
    PSP,
    Add,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LearnedDelay,
    Linear,
    MaxPool2d,
    Upsample2d,
)
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.table import LayerLine
from stsbp_spec.typing import Coding, Float32, Shape
from stsbp_spec.validation import MAX_SIZE, integer, shown

__all__ = ["MAX_LAYERS", "Block", "Branches", "Layer", "NetworkSpec", "SpikingLayer"]

_KINDS: Mapping[type[Passing], str] = {
    AvgPool2d: "pool",
    MaxPool2d: "maxpool",
    GlobalAvgPool: "globalpool",
    Upsample2d: "upsample",
    Flatten: "flatten",
    Dropout: "dropout",
    LearnedDelay: "delay",
}
"""Names of the nodes that belong to layers without weights."""


@dataclass(frozen=True)
class NetworkSpec:
    """A network of spiking neurons.

    Args:
        input_shape: `(C, H, W)` or `(N,)`.
        layers: layers from input to output. The last one is a `SpikingLayer` with `Linear` weights.
        coding: `direct` (one uint8 image for all steps, value `x / 256`) or `events` (uint8 frames).
        input_psp: filter of the input; None: the input is not filtered.
        input_max: the largest event count of a pixel; 1 for binary frames.
        nodes: nodes of a graph, as an alternative to `layers`. They follow the node `input`. The last node must be the
            neurons of a fully connected layer.

    Raises:
        NetworkError: a layer does not fit its input, or the last layer is not a spiking linear layer.
    """

    input_shape: Shape
    layers: tuple[Layer, ...] = ()
    coding: Coding = "events"
    input_psp: PSP | None = None
    input_max: int = 1
    nodes: tuple[Node, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", _input_shape(self.input_shape))
        object.__setattr__(self, "layers", _layers(self.layers))
        if self.coding not in ("direct", "events"):
            raise SpecError(f"coding is 'direct' or 'events', got {shown(self.coding)}")
        if not isinstance(self.input_psp, PSP | None):
            raise SpecError(f"input_psp is PSP(...) or None, got {shown(self.input_psp)}")
        largest = integer(self.input_max)
        if largest is None or not 1 <= largest <= 255:
            raise SpecError(f"input_max is an event count from 1 to 255, got {shown(self.input_max)}")
        object.__setattr__(self, "input_max", largest)
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if self.nodes:
            self._check_nodes()
        else:
            self._check_layers()

    def _check_nodes(self) -> None:
        """Raise `NetworkError` unless the nodes form a network of blocks whose output is a fully connected layer."""
        if self.layers:
            raise NetworkError("a network is given by layers or by nodes, not by both")
        if len(self.nodes) > MAX_LAYERS:
            raise NetworkError(f"a network has at most {MAX_LAYERS:,} nodes, got {len(self.nodes):,}")
        for number, node in enumerate(self.nodes, start=1):
            check_name(node.name, number)
        last = self.graph.nodes[-1]
        if not isinstance(last.op, Neurons) or len(self.graph.values[last.name].shape) != 1:
            message = "the last node is the output; it must be neurons after a full connection, one unit per output"
            raise NetworkError(message, node=last.name)
        self.blocks  # noqa: B018

    def _check_layers(self) -> None:
        """Raise `NetworkError` unless the layers form a valid network. The message points at the wrong layer."""
        tokens = [written(layer) for layer in self.layers]
        notation = "-".join(tokens) or "(empty)"
        if not self.layers:
            raise NetworkError("a network needs at least one layer", notation=notation)
        starts = list(accumulate((len(token) + 1 for token in tokens), initial=0))
        try:
            self.graph  # noqa: B018
        except NetworkError as error:
            wrong_layer = next((i for i, names in enumerate(self._built.names) if error.node in names), None)
            if wrong_layer is None:  # The input is wrong, not a layer.
                raise
            raise NetworkError.of(
                error, notation=notation, start=starts[wrong_layer], length=len(tokens[wrong_layer])
            ) from None
        last = self.layers[-1]
        if not (isinstance(last, SpikingLayer) and isinstance(last.synapse, Linear)):
            message = "the last layer must be a full connection, one unit per output (give outputs=...)"
            raise NetworkError(message, notation=notation, start=starts[-2], length=len(tokens[-1]))

    @classmethod
    def parse(
        cls,
        notation: str,
        *,
        input_shape: Shape,
        outputs: int | None = None,
        coding: Coding = "events",
        padding: str = "valid",
        neuron: NeuronModel | None = None,
        output_neuron: NeuronModel | None = None,
        weight_bits: int = MAX_WEIGHT_BITS,
        dropout: float = 0.0,
        input_psp: PSP | None = None,
        input_max: int = 1,
    ) -> NetworkSpec:
        """Read the notation of papers, for example `"12C5-P2-64C5-P2"`.

        Args:
            notation: the notation; docs/networks.md has its grammar.
            input_shape: `(C, H, W)` or `(N,)`.
            outputs: number of output neurons. A linear layer of this size is appended, unless the notation
                ends with it. A network that is written node by node (nodes.py) must contain it.
            coding: see the class.
            padding: padding of convolutions without the option `p`: `"valid"` (none) or `"same"` (`kernel // 2`, odd
                kernels).
            neuron: neuron model of layers that do not name one.
            output_neuron: neuron model of the layer that is appended; None: `neuron`. Not for networks written node
                by node.
            weight_bits: bits of the weight grid, for layers that do not set them.
            dropout: dropout rate after every hidden spiking layer without the option `d`. Not for networks written
                node by node.
            input_psp: see the class.
            input_max: see the class.

        Raises:
            NetworkError: the notation is malformed, or the network is impossible. The message points at the token.
        """
        if is_nodes(notation):
            if dropout != 0 or output_neuron is not None:
                option = "dropout" if dropout != 0 else "output_neuron"
                message = f"{option} is not used for a network written node by node; write it at its node"
                raise SpecError(message)
            nodes = parse_nodes(notation, padding=padding, neuron=neuron, weight_bits=weight_bits)
            spec = cls(input_shape, (), coding, input_psp, input_max, nodes=nodes)
            if outputs is not None and spec.outputs != outputs:
                message = f"the network has {spec.outputs} outputs, but the data need {outputs}"
                raise NetworkError(message, node=spec.graph.nodes[-1].name)
            return spec
        layers, spans = parse_layers(
            notation,
            outputs=outputs,
            padding=padding,
            neuron=neuron,
            output_neuron=output_neuron,
            weight_bits=weight_bits,
            dropout=dropout,
        )
        try:
            return cls(input_shape, tuple(layers), coding, input_psp, input_max)
        except NetworkError as error:
            # The network's own message points into the canonical notation. Point into the user's notation instead.
            start, length = spans[layer_at(layers, error.start)]
            raise NetworkError.of(error, notation=notation, start=start, length=length) from None

    @cached_property
    def _built(self) -> _Builder:
        builder = _Builder()
        for layer in self.layers:
            builder.add(layer)
        return builder

    @cached_property
    def graph(self) -> Network:
        """The network as a graph.

        The nodes are `input`, and for each layer for example `conv1` and `neurons1`. Other names are
        `conv1.recurrent`, `pool2.0`, `dropout2.1`, `add3.0` for the sum after branches, and `delay2` for learned
        delays.
        """
        source = Node("input", Input(self.input_shape, self.coding, self.input_psp, self.input_max))
        return Network((source, *(self.nodes or self._built.nodes)))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The spiking layers, for tables and reports; see `Block`."""
        return tuple(_blocks(self.graph))

    @property
    def outputs(self) -> int:
        """Number of output neurons."""
        return self.graph.values[self.graph.nodes[-1].name].shape[0]

    @property
    def has_readout(self) -> bool:
        """Whether the network ends with a readout, so that potentials are its output (neurons/readout.py)."""
        op = self.graph.nodes[-1].op
        return isinstance(op, Neurons) and not op.model.makes_spikes

    @property
    def output_psp(self) -> PSP:
        """Filter of the output spikes, which the van Rossum distance uses."""
        output = self.graph.nodes[-1].op
        assert isinstance(output, Neurons)
        return output.model.psp

    @property
    def weight_shapes(self) -> dict[str, Shape]:
        """Shapes of all weights by name."""
        return {
            projection.name: projection.weight_shape
            for projection in self.graph.projections
            if projection.shares is None
        }

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """All trained parameters by name, such as the weights `conv1` and the decay of neurons `conv1.decay`."""
        return self.graph.parameters

    @property
    def statistics(self) -> Mapping[str, Float32]:
        """Initial values of the running statistics by name, such as `conv1.mean` and `conv1.variance`."""
        return self.graph.statistics

    @property
    def notation(self) -> str:
        """Canonical notation with every parameter written out. `parse` makes an equal network from it.

        If a layer has a neuron model of your own, give the model to `parse` as `neuron`.
        """
        if self.nodes:
            return written_nodes(self.nodes)
        return "-".join(written(layer, full=True) for layer in self.layers)

    def __str__(self) -> str:
        layers = layers_of_chain(self.graph.nodes) if self.nodes else self.layers
        if layers is None:
            weights = ", ".join(written(SpikingLayer(block.synapse)) for block in self.blocks)
            return f"{len(self.graph.nodes)} nodes: {weights}"
        return "-".join(written(layer) for layer in layers)

    def __repr__(self) -> str:
        return table.described(self.graph, self._lines, self._texts)

    def table(self, headroom: dict[str, float] | None = None) -> str:
        """Table of the network as text. Each layer has its shapes, parameters, multiply-adds per step and headroom.

        Args:
            headroom: headroom in bits by layer name, measured on actual weights (`WeightGrid.headroom`). Without it,
                the table shows the guaranteed headroom, which holds for any weights of `weight_bits` bits.
        """
        return table.table(self.graph, self._lines, self._texts, headroom)

    @property
    def _lines(self) -> list[LayerLine]:
        return list(_layer_lines(self.layers, iter(self.blocks), self.input_shape))

    @property
    def _texts(self) -> dict[str, tuple[str, str]]:
        """Descriptions of the nodes, which a table shows if the network is written node by node."""
        return {} if self.layers else {node.name: described(node) for node in self.nodes}


class _Builder:
    """Makes the nodes of layers, one layer after the other."""

    def __init__(self) -> None:
        self.source = "input"
        self.nodes: list[Node] = []
        self.names: list[list[str]] = []
        """Names of the nodes of each layer of the network."""
        self.number = 1
        """Number of the next spiking layer."""
        self.since = 0
        """Number of operations since the last spiking layer."""

    def add(self, layer: Layer) -> None:
        """Add a layer of the network."""
        self.names.append([])
        self.append_layer(layer)

    def node(self, name: str, op: Op, *inputs: Edge) -> None:
        self.nodes.append(Node(name, op, inputs or (Edge(self.source),)))
        self.names[-1].append(name)
        self.source = name

    def append_layer(self, layer: Layer) -> None:
        if isinstance(layer, SpikingLayer):
            kind = "conv" if isinstance(layer.synapse, Conv2d) else "linear"
            weights, population = f"{kind}{self.number}", f"neurons{self.number}"
            self.node(weights, layer.synapse, Edge(self.source, layer.delay))
            if layer.recurrent is None:
                self.node(population, Neurons(layer.neuron))
            else:
                loop = f"{weights}.recurrent"
                self.node(loop, layer.recurrent, Edge(population, 1))
                self.node(population, Neurons(layer.neuron), Edge(weights), Edge(loop))
            self.number, self.since = self.number + 1, 0
        elif isinstance(layer, Branches):
            start, branch_outputs = self.source, list[str]()
            for branch in layer.branches:
                self.source = start
                for sublayer in branch:
                    self.append_layer(sublayer)
                branch_outputs.append(self.source)
            self.node(f"add{self.number}.{self.since}", Add(), *map(Edge, branch_outputs))
            self.since += 1
        else:
            kind = next(name for cls, name in _KINDS.items() if isinstance(layer, cls))
            name = f"{kind}{self.number}"
            # A layer seldom has two kinds of learned delays, and `delay1.steps` is shorter than `delay1.0.steps`.
            if not isinstance(layer, LearnedDelay) or any(node.name == name for node in self.nodes):
                name = f"{name}.{self.since}"
            self.node(name, layer)
            self.since += 1


def _blocks(graph: Network) -> Iterator[Block]:
    """A block for each population, with its first projection and, if there is one, its recurrent projection."""
    nodes = {node.name: node for node in graph.nodes}
    projections = {projection.name: projection for projection in graph.projections}
    names = set[str]()
    for index, node in enumerate(node for node in graph.nodes if isinstance(node.op, Neurons)):
        assert isinstance(node.op, Neurons)
        loops = graph.recurrent.get(node.name, ())
        first = next(projections[edge.source] for edge in node.inputs if edge.source not in loops)
        synapse = first.synapse
        if not isinstance(synapse, (Conv2d, Linear)):
            message = "the first projection to neurons must be a convolution or a full connection"
            raise NetworkError(message, node=node.name)
        # If several populations read the same sums, the sums give their name to the first population.
        name, shares = (node.name, first.parameter) if first.name in names else (first.name, first.shares)
        names.add(name)
        preceding = list[Passing]()
        source = nodes[nodes[first.name].inputs[0].source]
        while isinstance(source.op, Passing) and len(graph.readers[source.name]) == 1 and not source.inputs[0].delay:
            preceding.insert(0, source.op)
            source = nodes[source.inputs[0].source]
        yield Block(
            name,
            index,
            synapse,
            first.input,
            tuple(preceding),
            node.op.model,
            node.name,
            graph.values[source.name].shape,
            projections[loops[0]] if loops else None,
            shares=shares,
        )


def _layer_lines(
    layers: Sequence[Layer], blocks: Iterator[Block], shape: Shape, indent: str = ""
) -> Iterator[LayerLine]:
    """A line for each layer, with the lines of branches between brackets."""
    for layer in layers:
        if isinstance(layer, Branches):
            merged_shape = shape
            for number, branch in enumerate(layer.branches):
                bracket = indent + ("|" if number else "[")
                yield LayerLine(bracket, bracket, shape, shape)
                for line in _layer_lines(branch, blocks, shape, f"{indent}  "):
                    yield line
                    if number == 0:
                        merged_shape = line.output_shape
            yield LayerLine(f"{indent}]+", f"{indent}]+", merged_shape, merged_shape)
            shape = merged_shape
            continue
        input_shape, shape = shape, layer.output_shape(shape)
        line = LayerLine(indent + written(layer), indent + written(layer, full=True), input_shape, shape)
        if isinstance(layer, SpikingLayer):
            line = line._replace(block=next(blocks), loop=indent + recurrence(layer))
        elif isinstance(layer, LearnedDelay):
            line = line._replace(delays=shape[0])
        yield line


def _input_shape(shape: object) -> Shape:
    """`shape` as a tuple of ints, or `SpecError`."""
    sizes = tuple(integer(n) for n in shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else ()
    if len(sizes) not in (1, 3) or not all(n is not None and 1 <= n <= MAX_SIZE for n in sizes):
        limit = f"integers from 1 to {MAX_SIZE}"
        raise SpecError(f"an input shape is (C, H, W) or (N,), {limit}, got {shown(shape)}")
    return tuple(n for n in sizes if n is not None)


def _layers(layers: object) -> tuple[Layer, ...]:
    """`layers` as a tuple. Raises an error that names the first element that is not a layer."""
    if not isinstance(layers, Iterable) or isinstance(layers, str):
        raise SpecError(f"the layers of a network are a sequence (NetworkSpec.parse reads text), got {shown(layers)}")
    sequence = tuple(layers)
    if len(sequence) > MAX_LAYERS:
        raise NetworkError(f"a network has at most {MAX_LAYERS:,} layers, got {len(sequence):,}")
    for i, layer in enumerate(sequence):
        if isinstance(layer, (Conv2d, Linear)):
            instead = f"SpikingLayer({type(layer).__name__}(...))"
            raise NetworkError(f"layers[{i}] is {shown(layer)}, weights without neurons; write {instead}")
        if isinstance(layer, Branches):
            for branch in layer.branches:
                _layers(branch)
        elif not isinstance(layer, (SpikingLayer, *_KINDS)):
            passing_layers = ", ".join(f"{cls.__name__}(...)" for cls in _KINDS)
            kinds = f"SpikingLayer(Conv2d(...)), SpikingLayer(Linear(...)), {passing_layers} or Branches(...)"
            raise NetworkError(f"layers[{i}] is {shown(layer)}; a layer is {kinds}")
    return sequence
