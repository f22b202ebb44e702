"""Random networks with their data, for any backend: every operation, neuron model and option, and degenerate sizes.

`random_case(seed, number)` draws a case; the two numbers give the same case everywhere. Half of the networks are
sequences of layers, and half are written node by node. Both are written as text and read again. Sizes of 1 are
frequent (one channel, one row or column, one step, one sample), because libraries choose other algorithms for them.
`features` names what a case contains. compare_networks.py compares backends on these cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from stsbp_spec.errors import SpecError, StsbpError
from stsbp_spec.models.losses import LOSSES, OF_POTENTIALS, CrossEntropy, Loss
from stsbp_spec.models.neurons import ALIF, IF, LIF, PLIF, NeuronModel, Readout
from stsbp_spec.models.rate_penalty import LayerPenalties, RatePenalty
from stsbp_spec.models.surrogates import SURROGATES, Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.networks.graph import Edge, Neurons, Node
from stsbp_spec.networks.layers import Branches, Layer, SpikingLayer
from stsbp_spec.networks.ops import (
    PSP,
    Add,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LearnedDelay,
    Linear,
    MaxPool2d,
    OneToOne,
    Upsample2d,
    axes,
)
from stsbp_spec.networks.ops.base import Passing, Weighted
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Memory, Shape

from stsbp_conformance.cases import NetworkCase
from stsbp_conformance.reference import NUMPY

__all__ = ["FEATURES", "RandomCase", "features", "random_case", "smaller"]

T = TypeVar("T")

_TRIES = 8
"""Most draws of one layer or node until one fits the network."""
_GAINS = (3.0, 2.0, 5.0, 8.0)
"""Gains of the initial weights from which one is taken."""
_PENALTIES = 41
"""A third number of the random numbers of rate penalties, beside the seed and the number of the case."""
_DELAYS = 43
"""The same for learned delays."""
_LARGEST = 3000
"""Most neurons of a network, so that numpy computes a case within a second."""


@dataclass(frozen=True)
class RandomCase(NetworkCase):
    """A random network, its data, and how it is computed.

    Attributes:
        loss_name: name of the loss.
        dropout: seed and step of the dropout masks of a single gradient.
        updates: number of training updates.
        micro_batch: samples that are computed at a time in the training run in parts; None: `memory` decides.
        memory: memory setting of the training run in parts.
        threads: number of threads of libraries that have threads.
        sample: number of the sample that is also computed alone.
    """

    loss_name: str = "van-rossum"
    dropout: tuple[int, int] = (3, 5)
    updates: int = 3
    micro_batch: int | None = 1
    memory: Memory = "full"
    threads: int = 1
    sample: int = 0

    @property
    def loss(self) -> Loss:
        """The loss."""
        return {**LOSSES, **OF_POTENTIALS}[self.loss_name]

    @property
    def exact(self) -> bool:
        """Whether `reproducible` precision can compute the network with its loss."""
        models = (node.op.model for node in self.network.graph.nodes if isinstance(node.op, Neurons))
        return not isinstance(self.loss, CrossEntropy) and all(model.surrogate.exact for model in models)

    def targets(self) -> AnyArray:
        """Random target spike trains `[T, B, N]`; for `mse`, random real numbers; for the cross entropy, one neuron
        spikes at every step."""
        drawn = super().targets()
        if not isinstance(self.loss, CrossEntropy):
            return drawn
        classes = np.random.default_rng(self.seed).integers(0, self.network.outputs, self.batch)
        return np.broadcast_to(np.eye(self.network.outputs, dtype=np.uint8)[classes], drawn.shape).copy()

    def __str__(self) -> str:
        """The case with everything that is needed to write it down elsewhere."""
        network, lengths = self.network, "" if self.lengths is None else f", lengths {list(self.lengths)}"
        psp = "" if network.input_psp is None else f", {network.input_psp}"
        largest = "" if network.input_max == 1 else f", counts up to {network.input_max}"
        penalties = "".join(f", {layer} above {x.target:g} costs {x.weight:g}" for layer, x in self.rate_penalty)
        parts = f"micro-batches of {self.micro_batch}, memory {self.memory}, threads {self.threads}"
        return (
            f"network {self.id}: {network.coding} {network.input_shape}{psp}{largest}, T = {self.steps}, "
            f"B = {self.batch}{lengths}, {self.loss_name}{penalties}, {parts}\n{network.notation}"
        )


class _Draw:
    """Random choices."""

    def __init__(self, *seeds: int) -> None:
        self.rng = np.random.default_rng(seeds)

    def one_of(self, *choices: T) -> T:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def per_axis(self, *choices: int, square: float = 0.5) -> axes.PerAxis:
        rows = self.one_of(*choices)
        return rows if self.chance(square) else (rows, self.one_of(*choices))

    def along_one_axis(self, *choices: int) -> tuple[int, int]:
        """A number above 1 for rows or for columns, and 1 for the others."""
        number = self.one_of(*choices)
        return self.one_of((number, 1), (1, number))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [items[i] for i in self.rng.permutation(len(items))]


def _psp(draw: _Draw) -> dict[str, Any]:
    """The parameters of a synapse."""
    tau_s = draw.one_of(1.0, 5 / 3, 3.0, 4.0)
    tau_rise = draw.one_of(1.0, 1.25) if tau_s > 1.25 and draw.chance(0.25) else 0.0
    return {"tau_s": tau_s, "tau_rise": tau_rise, "psp_gain": draw.one_of("normalised", "normalised", "unit")}


def _surrogate(draw: _Draw) -> Surrogate:
    width = draw.one_of(0.7, 2.0, 3.0, 5.0)
    # Later surrogates stand after these, whose number and order the networks of a seed follow from.
    exact: list[Callable[[float], Surrogate]] = [Arctan, FastSigmoid, Triangle, Rectangle]
    # These use exp, so their networks have no reproducible gradients.
    inexact: list[Callable[[float], Surrogate]] = [Logistic]
    for kind in SURROGATES.values():
        if kind not in (*exact, *inexact):
            (exact if kind().exact else inexact).append(kind)
    return draw.one_of(*(inexact if draw.chance(0.06) else exact))(width)


def _neuron(draw: _Draw, psp: dict[str, Any]) -> NeuronModel:
    arguments = {"threshold": draw.one_of(0.2, 0.3, 0.3, 0.7), "surrogate": _surrogate(draw), **psp}
    arguments["reset"] = draw.one_of("zero", "subtract")
    tau_m = draw.one_of(1.0, 5 / 3, 2.0, 3.0, 8.0)
    kind = draw.one_of("lif", "lif", "if", "alif", "plif")
    if kind == "if":
        return IF(**arguments)
    if kind == "alif":
        return ALIF(tau_m=tau_m, tau_a=draw.one_of(2.0, 5.0), beta=draw.one_of(0.5, 1.8), **arguments)
    if kind == "plif":
        return PLIF(tau_m=tau_m, per=draw.one_of("layer", "channel"), **arguments)
    return LIF(tau_m=tau_m, **arguments)


def _options(draw: _Draw) -> dict[str, Any]:
    """Bits, bias and normalisation of weights."""
    options: dict[str, Any] = {"weight_bits": draw.one_of(12, 12, 12, 8, 5, 2)}
    kind = draw.rng.random()
    if kind < 0.2:
        options["norm"] = BatchNorm(
            momentum=draw.one_of(0.1, 0.5, 1.0), eps=draw.one_of(1e-5, 1e-3), factor=draw.one_of(1.0, 0.4)
        )
    elif kind < 0.45:
        options["bias"] = True
    return options


def _conv(draw: _Draw, shape: Shape) -> Conv2d:
    channels = draw.one_of(1, 2, 3, 4, 6, 8)
    if draw.chance(0.3):
        return _at_a_corner(draw, shape, channels)
    groups, common = 1, [n for n in (2, 3, 4) if shape[0] % n == 0]
    if common and draw.chance(0.3):
        groups = draw.one_of(*common)
        channels = groups * draw.one_of(1, 2)
    return Conv2d(
        channels,
        draw.per_axis(1, 2, 3, 3),
        stride=draw.one_of(1, 1, draw.along_one_axis(2, 3), draw.per_axis(1, 2, 3)),
        padding=draw.per_axis(0, 1, 2) if draw.chance(0.4) else 0,
        dilation=draw.per_axis(1, 2) if draw.chance(0.2) else 1,
        groups=groups,
        **_options(draw),
    )


def _at_a_corner(draw: _Draw, shape: Shape, channels: int) -> Conv2d:
    """A kernel with one row or column, or a stride that leaves one row or column: often special cases of libraries."""
    if draw.chance(0.5):
        return Conv2d(channels, draw.along_one_axis(2, 3), **_options(draw))
    rows, columns = (min(n, 3) for n in shape[1:])
    if draw.chance(0.5):
        return Conv2d(channels, (draw.one_of(1, 2, rows), columns), stride=(1, draw.one_of(2, 3)), **_options(draw))
    return Conv2d(channels, (rows, draw.one_of(1, 2, columns)), stride=(draw.one_of(2, 3), 1), **_options(draw))


def _keeping(draw: _Draw, shape: Shape, channels: int) -> Conv2d | Linear:
    """Weights whose output has the rows and columns of their input; `channels` are those of the output."""
    if len(shape) == 1:
        return Linear(channels, **_options(draw))
    kernel = draw.per_axis(1, 3)
    rows, columns = axes.rows_and_columns(kernel)
    return Conv2d(channels, kernel, padding=(rows // 2, columns // 2), **_options(draw))


def _weights(draw: _Draw, shape: Shape) -> Conv2d | Linear:
    if len(shape) == 3 and draw.chance(0.85):
        return _conv(draw, shape)
    return Linear(draw.one_of(1, 2, 5, 9, 16), **_options(draw))


def _recurrence(draw: _Draw, shape: Shape) -> Conv2d | Linear | OneToOne:
    """Weights from a population of `shape` to itself."""
    bits = draw.one_of(12, 12, 5)
    if len(shape) == 3:
        kernel = draw.per_axis(1, 3)
        rows, columns = axes.rows_and_columns(kernel)
        return Conv2d(shape[0], kernel, padding=(rows // 2, columns // 2), weight_bits=bits)
    return OneToOne(weight_bits=bits) if draw.chance(0.5) else Linear(shape[0], weight_bits=bits)


def _passing(draw: _Draw, shape: Shape) -> Passing:
    """A layer without weights."""
    if len(shape) == 1 or draw.chance(0.25):
        return Dropout(draw.one_of(0.1, 0.25, 0.5))
    size = draw.per_axis(1, 2, 2, 3)
    return draw.one_of(AvgPool2d(size), AvgPool2d(size), MaxPool2d(size), Upsample2d(size), GlobalAvgPool(), Flatten())


@dataclass(frozen=True)
class _Style:
    """What all layers of a network have in common.

    Attributes:
        neurons: neuron models. Most have the same synapse, so that their spikes can be added.
        output: model of the output neurons.
        outputs: number of output neurons.
        static: whether the input is an image, which cannot be delayed.
    """

    neurons: tuple[NeuronModel, ...]
    output: NeuronModel
    outputs: int
    static: bool


def _style(draw: _Draw, *, static: bool) -> _Style:
    psp = _psp(draw)
    neurons = tuple(_neuron(draw, psp if draw.chance(0.8) else _psp(draw)) for _ in range(draw.one_of(1, 2)))
    if draw.chance(0.15):
        # Potentials are multiples of small powers of two, and often equal the threshold.
        neurons = (LIF(2.0, 1.0, 0.5, _surrogate(draw), draw.one_of("zero", "subtract")),)
    output = Readout(tau_m=draw.one_of(1.0, 3.0, 8.0)) if draw.chance(0.1) else draw.one_of(*neurons)
    return _Style(neurons, output, draw.one_of(1, 2, 3, 5), static)


# Sequences of layers.
def _layer(draw: _Draw, style: _Style, shape: Shape, *, first: bool) -> Layer:
    # Convolutions have the most special cases, so many networks begin with one.
    kind = 1.0 if first and draw.chance(0.6) else draw.rng.random()
    if kind < 0.3:
        return _passing(draw, shape)
    if kind < 0.42:
        return _branches(draw, style, shape, 0)
    weights = _weights(draw, shape)
    return _spiking(draw, style, weights, weights.output_shape(shape))


def _spiking(draw: _Draw, style: _Style, weights: Conv2d | Linear, output: Shape) -> SpikingLayer:
    recurrent = _recurrence(draw, output) if draw.chance(0.2) else None
    delay = draw.one_of(1, 2, 5) if draw.chance(0.1) else 0
    return SpikingLayer(weights, draw.one_of(*style.neurons), recurrent=recurrent, delay=delay)


def _branches(draw: _Draw, style: _Style, shape: Shape, depth: int) -> Branches:
    passed_on = draw.chance(0.6)
    channels = shape[0] if passed_on else draw.one_of(1, 2, 4)
    branches: list[tuple[Layer, ...]] = []
    for _ in range(draw.one_of(1, 1, 2) + (not passed_on)):
        branch: list[Layer] = []
        inner = shape
        for _ in range(draw.one_of(1, 1, 2)):
            weights = _keeping(draw, inner, channels)
            inner = weights.output_shape(inner)
            branch.append(_spiking(draw, style, weights, inner))
        if passed_on and depth < 1 and draw.chance(0.2):
            branch.insert(0, _branches(draw, style, shape, depth + 1))
        branches.append(tuple(branch))
    return Branches((*branches, ()) if passed_on else tuple(branches))


def _fitting(make: Callable[[], T]) -> Iterator[T]:
    """Several draws, without those that are impossible in themselves."""
    for _ in range(_TRIES):
        try:
            drawn = make()
        except SpecError:
            continue
        yield drawn


def _of_layers(draw: _Draw, style: _Style, start: NetworkSpec, count: int) -> NetworkSpec:
    """`start`, which only has an output layer, with further layers before it."""
    network = start
    for number in range(count):
        shape = network.graph.projections_to(network.graph.nodes[-1].name)[0].input.shape

        def make(shape: Shape = shape, first: bool = number == 0) -> Layer:
            return _layer(draw, style, shape, first=first)

        for layer in _fitting(make):
            try:
                larger = replace(network, layers=(*network.layers[:-1], layer, network.layers[-1]))
            except SpecError:
                continue
            if _size(larger) <= _LARGEST:
                network = larger
                break
    return network


def _size(network: NetworkSpec) -> int:
    return sum(math.prod(block.output_shape) for block in network.blocks)


# Networks node by node.
class _Nodes:
    """Nodes so far, and the shapes of the spikes that further nodes can read."""

    def __init__(self, draw: _Draw, style: _Style, shape: Shape) -> None:
        self.draw, self.style = draw, style
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {"input": shape}
        self.still = {"input"} if style.static else set[str]()
        self.weights: dict[str, tuple[Conv2d | Linear | OneToOne, Shape]] = {}

    def copy(self) -> _Nodes:
        other = _Nodes(self.draw, self.style, self.shapes["input"])
        other.nodes, other.shapes = [*self.nodes], {**self.shapes}
        other.still, other.weights = {*self.still}, {**self.weights}
        return other

    def name(self, kind: str) -> str:
        return f"{kind}{len(self.nodes) + 1}"

    def edge(self, source: str) -> Edge:
        delayed = source not in self.still and self.draw.chance(0.1)
        return Edge(source, self.draw.one_of(1, 2, 5) if delayed else 0)

    def add_node(self) -> None:
        """Draw a layer without weights, a sum, a concatenation, or a population with its weights."""
        kind = self.draw.rng.random() if self.nodes or self.draw.chance(0.4) else 1.0
        source = self.draw.one_of(*self.shapes)
        if kind < 0.25:
            layer, name = _passing(self.draw, self.shapes[source]), self.name("layer")
            self.shapes[name] = layer.output_shape(self.shapes[source])
            self.still |= {name} if source in self.still else set()
            self.nodes.append(Node(name, layer, (self.edge(source),)))
            return
        alike = [other for other, shape in self.shapes.items() if shape == self.shapes[source]]
        if kind < 0.4 and len(alike) > 1:
            name, terms = self.name("sum"), self.draw.shuffled(alike)[:3]
            self.nodes.append(Node(name, Add(), tuple(map(self.edge, terms))))
            self.shapes[name] = self.shapes[source]
            self.still |= {name} if terms[0] in self.still else set()
            return
        if kind < 0.5:
            # The same spikes may be there twice, with another delay or with the same one.
            candidates = [other for other, shape in self.shapes.items() if Concat().fits(shape, self.shapes[source])]
            name, terms = self.name("both"), [self.draw.one_of(*candidates) for _ in range(self.draw.one_of(2, 3))]
            self.nodes.append(Node(name, Concat(), tuple(map(self.edge, terms))))
            self.shapes[name] = Concat().output_shape(*(self.shapes[term] for term in terms))
            self.still |= {name} if terms[0] in self.still else set()
            return
        first = _weights(self.draw, self.shapes[source])
        self.population([self.project(first, source)], first.output_shape(self.shapes[source]))

    def project(self, weights: Weighted, source: str) -> Edge:
        """Weights that read `source`; with luck those of an earlier node."""
        shape, name = self.shapes[source], self.name("weights")
        owners = [
            owner
            for owner, (op, read) in self.weights.items()
            if type(op) is type(weights) and op.weight_shape(read) == weights.weight_shape(shape)
        ]
        shares = self.draw.one_of(*owners) if owners and self.draw.chance(0.5) else None
        self.nodes.append(Node(name, weights, (self.edge(source),), shares))
        if shares is None:
            assert isinstance(weights, (Conv2d, Linear, OneToOne))
            self.weights[name] = weights, shape
        return Edge(name)

    def population(self, edges: list[Edge], shape: Shape) -> None:
        """Neurons that read these weights, with luck also others and their own spikes."""
        draw = self.draw
        while draw.chance(0.3):
            source = draw.one_of(*self.shapes)
            read = self.shapes[source]
            if shape == read and len(shape) == 1 and draw.chance(0.5):
                weights: Weighted = OneToOne(weight_bits=draw.one_of(12, 5))
            elif shape[1:] == read[1:]:
                weights = _keeping(draw, read, shape[0])
            elif len(shape) == 1:
                weights = Linear(shape[0], **_options(draw))
            else:
                continue
            # The first projection of a population cannot be one-to-one.
            edges.append(self.project(weights, source))
        first, others = edges[0], edges[1:]
        name, loops = self.name("neurons"), list[Node]()
        if draw.chance(0.25):
            for number in range(draw.one_of(1, 1, 2)):
                loops.append(Node(f"{name}.loop{number}", _recurrence(draw, shape), (Edge(name, 1),)))
        edges = [first, *draw.shuffled([*others, *(Edge(loop.name) for loop in loops)])]
        self.nodes += [*loops, Node(name, Neurons(draw.one_of(*self.style.neurons)), tuple(edges))]
        self.shapes[name] = shape
        if draw.chance(0.1):  # another population that reads the same sums
            twin = self.name("neurons")
            self.nodes.append(Node(twin, Neurons(draw.one_of(*self.style.neurons)), (first,)))
            self.shapes[twin] = shape

    def finished(self) -> tuple[Node, ...]:
        """The nodes with an output that reads everything that no other node reads."""
        read = {edge.source for node in self.nodes for edge in node.inputs}
        ends = [name for name in self.shapes if name not in read] or [[*self.shapes][-1]]
        weights = [Node(f"output.{end}", Linear(self.style.outputs), (Edge(end),)) for end in ends]
        edges = tuple(Edge(node.name) for node in weights)
        return (*self.nodes, *weights, Node("output", Neurons(self.style.output), edges))


def _of_nodes(draw: _Draw, style: _Style, start: NetworkSpec, count: int) -> NetworkSpec:
    """A network node by node with the input of `start`."""
    nodes = _Nodes(draw, style, start.input_shape)
    network = replace(start, layers=(), nodes=nodes.finished())
    for _ in range(count + 1):
        for _ in range(_TRIES):
            larger = nodes.copy()
            try:
                larger.add_node()
                candidate = replace(network, nodes=larger.finished())
            except SpecError:
                continue
            if _size(candidate) <= _LARGEST:
                network, nodes = candidate, larger
                break
    if draw.chance(0.3):
        *others, last = network.nodes
        network = replace(network, nodes=(*draw.shuffled(others), last))
    return network


# Learned delays.
def _with_learned_delays(seed: int, number: int, network: NetworkSpec) -> NetworkSpec:
    """The network with learned delays before some of its nodes or layers, in a third of the cases."""
    # From other random numbers than the rest, so that the other networks are those from before there were such delays.
    draw = _Draw(seed, number, _DELAYS)
    if not draw.chance(1 / 3):
        return network
    share = draw.one_of(0.4, 0.7, 1.0)
    add = _delays_before_nodes if network.nodes else _delays_before_layers
    return add(draw, share, network)


def _maximum(draw: _Draw) -> int:
    # No run has more than 8 steps.
    return draw.one_of(1, 2, 3, 3, 5, 12)


def _delays_before_layers(draw: _Draw, share: float, network: NetworkSpec) -> NetworkSpec:
    def late(layers: Sequence[Layer]) -> tuple[Layer, ...]:
        changed: list[Layer] = []
        for layer in layers:
            if draw.chance(share):
                changed.append(LearnedDelay(_maximum(draw)))
            changed.append(Branches(tuple(map(late, layer.branches))) if isinstance(layer, Branches) else layer)
        return tuple(changed)

    # An image is the same at every step, so it cannot be late, nor can what layers without neurons make of it.
    kinds = [isinstance(layer, (SpikingLayer, Branches)) for layer in network.layers]
    still = kinds.index(True) + 1 if network.coding == "direct" else 0
    return replace(network, layers=(*network.layers[:still], *late(network.layers[still:])))


def _delays_before_nodes(draw: _Draw, share: float, network: NetworkSpec) -> NetworkSpec:
    graph, nodes = network.graph, list[Node]()
    loops = {name for names in graph.recurrent.values() for name in names}
    weights = {projection.name for projection in graph.projections}
    for node in network.nodes:
        edges = list[Edge]()
        for place, edge in enumerate(node.inputs):
            values = graph.values[edge.source]
            if edge.source in weights or node.name in loops or values.static or not draw.chance(share):
                edges.append(edge)
                continue
            name = f"{node.name}.late{place}"
            # The fixed delay is before or after the learned one.
            first, second = (edge.delay, 0) if draw.chance(0.5) else (0, edge.delay)
            nodes.append(Node(name, LearnedDelay(_maximum(draw)), (Edge(edge.source, first),)))
            edges.append(Edge(name, second))
        nodes.append(replace(node, inputs=tuple(edges)))
    return replace(network, nodes=tuple(nodes))


def random_case(seed: int, number: int, *, lively: bool = True, learned_delays: bool = True) -> RandomCase:
    """The case `number` of `seed`.

    `lively`: of several weights and inputs, take those with the most gradients that are not zero. Silent networks would
    compare equal whatever a backend does.

    `learned_delays`: many of the networks have learned delays.
    """
    draw = _Draw(seed, number)
    images = draw.chance(0.8)
    sides = draw.shuffled([draw.one_of(1, 2, 3, 3), draw.one_of(1, 2, 3, 4, 5, 8)])
    shape: Shape = (draw.one_of(1, 1, 1, 2, 3, 4), *sides) if images else (draw.one_of(1, 2, 5, 9, 24),)
    direct = draw.chance(0.3)
    style = _style(draw, static=direct)
    start = NetworkSpec(
        shape,
        (SpikingLayer(Linear(style.outputs, bias=draw.chance(0.2)), style.output),),
        "direct" if direct else "events",
        _input_filter(draw) if not direct and draw.chance(0.2) else None,
        1 if direct or draw.chance(0.8) else draw.one_of(2, 7, 255),
    )
    make = _of_nodes if draw.chance(0.5) else _of_layers
    network = make(draw, style, start, draw.one_of(1, 2, 3, 4))
    if learned_delays:
        network = _with_learned_delays(seed, number, network)
    read = NetworkSpec.parse(
        network.notation,
        input_shape=network.input_shape,
        coding=network.coding,
        input_psp=network.input_psp,
        input_max=network.input_max,
    )
    if read != network:
        raise AssertionError(f"a network differs after it was written and read:\n{network.notation}")
    steps, batch = (1, 1) if draw.chance(0.12) else (draw.one_of(1, 2, 4, 5, 8), draw.one_of(1, 1, 2, 3, 5, 12))
    # Images that are normalised are rare. With padded samples, they once were in no test.
    padded = draw.chance(0.6 if direct and read.statistics else 0.3)
    case = RandomCase(
        f"{seed}:{number}",
        read,
        steps,
        batch,
        density=draw.one_of(0.2, 0.5, 0.8),
        lengths=tuple(int(n) for n in draw.rng.integers(1, steps + 1, batch)) if padded else None,
        loss_name=draw.one_of(*(OF_POTENTIALS if read.has_readout else LOSSES)),
        dropout=(int(draw.rng.integers(2**32)), draw.one_of(0, 5)),
        micro_batch=draw.one_of(None, 1, 1, 2, 3),
        memory=draw.one_of("full", "low"),
        threads=draw.one_of(1, 2),
        sample=int(draw.rng.integers(batch)),
    )
    seeds = draw.rng.integers(1, 2**31, 4).tolist()
    candidates = [replace(case, seed=n, gain=gain) for n, gain in zip(seeds, _GAINS, strict=True)]
    chosen = max(candidates, key=_liveliness) if lively else candidates[0]
    return replace(chosen, rate_penalty=_rate_penalty(seed, number, read))


def _rate_penalty(seed: int, number: int, network: NetworkSpec) -> LayerPenalties:
    """Penalties of some layers, in a third of the cases."""
    # From other random numbers than the rest, so that the networks are those from before there were penalties.
    draw = _Draw(seed, number, _PENALTIES)
    layers = [block for block in network.blocks if block.neuron.makes_spikes]
    if not draw.chance(1 / 3):
        return ()
    targets, share = (0.0, 0.05, 0.125, 1 / 3), draw.one_of(0.5, 1.0)
    return tuple(
        (layer.name, RatePenalty(draw.one_of(*targets), draw.one_of(0.1, 1.0, 30.0) * math.prod(layer.output_shape)))
        for layer in layers
        if draw.chance(share)
    )


def _liveliness(case: RandomCase) -> int:
    """Number of gradients that are not zero everywhere."""
    try:
        with np.errstate(all="ignore"):
            result = NUMPY.value_and_grad(case.network, case.loss, case.weights(), case.data(), dropout=case.dropout)
    except StsbpError:
        return -1
    return sum(bool(gradient.any()) for gradient in result.gradients.values())


def _input_filter(draw: _Draw) -> PSP:
    psp = _psp(draw)
    return PSP(psp["tau_s"], psp["tau_rise"], psp["psp_gain"])


def smaller(case: RandomCase) -> Iterator[RandomCase]:
    """The case with fewer layers, steps or samples."""
    if case.rate_penalty:
        yield replace(case, rate_penalty=())
    layers = case.network.layers
    for i in range(len(layers) - 1):
        try:
            network = replace(case.network, layers=(*layers[:i], *layers[i + 1 :]))
        except SpecError:
            continue
        spiking = {block.name for block in network.blocks if block.neuron.makes_spikes}
        penalties = tuple((layer, x) for layer, x in case.rate_penalty if layer in spiking)
        yield replace(case, network=network, rate_penalty=penalties)
    if case.lengths is not None:
        yield replace(case, lengths=None)
    for steps, batch in ((1, case.batch), (case.steps - 1, case.batch), (case.steps, 1), (case.steps, case.batch - 1)):
        if 1 <= steps <= case.steps and 1 <= batch <= case.batch and (steps, batch) != (case.steps, case.batch):
            lengths = None if case.lengths is None else tuple(min(n, steps) for n in case.lengths[:batch])
            yield replace(case, steps=steps, batch=batch, lengths=lengths, sample=min(case.sample, batch - 1))
    if case.updates > 0:
        yield replace(case, updates=case.updates - 1)


# What a case contains.
def _of_weights(op: Weighted, shape: Shape) -> Iterator[str]:
    yield {Conv2d: "convolution", Linear: "full connection", OneToOne: "one-to-one"}[type(op)]
    if op.bias:
        yield "bias"
    if op.norm is not None:
        yield "batch normalisation"
    if op.weight_bits < 12:
        yield "few bits"
    if isinstance(op, Conv2d):
        for feature, present in (
            ("rectangular kernel", op.kernels[0] != op.kernels[1]),
            ("stride", op.stride != 1),
            ("unequal strides", op.strides[0] != op.strides[1]),
            ("padding", op.padding != 0),
            ("dilation", op.dilation != 1),
            ("groups", op.groups > 1),
            ("convolution of one channel", shape[0] == 1),
        ):
            if present:
                yield feature


def _of_neurons(model: NeuronModel) -> Iterator[str]:
    yield f"neuron {model.name}"
    yield f"surrogate {model.surrogate.name}"
    yield f"gain {model.psp_gain}"
    yield "second order" if model.tau_rise else "first order"
    if reset := getattr(model, "reset", None):
        yield f"reset {reset}"
    if per := getattr(model, "per", None):
        yield f"learned per {per}"


_LAYERS: dict[type[Any], str] = {
    AvgPool2d: "average pooling",
    MaxPool2d: "max pooling",
    GlobalAvgPool: "global pooling",
    Upsample2d: "upsampling",
    Flatten: "flattening",
    LearnedDelay: "learned delays",
    Dropout: "dropout",
    Add: "sum",
    Concat: "concatenation",
}


def _feature_flags(case: RandomCase) -> Iterator[tuple[str, bool]]:
    network = case.network
    graph, shape = network.graph, network.input_shape
    yield from (
        ("node by node", bool(network.nodes)),
        ("notation", bool(network.layers)),
        (f"{network.coding} coding", True),
        ("direct coding, batch normalisation, padded samples", _all_three(case)),
        ("input filter", network.input_psp is not None),
        ("event counts", network.input_max > 1),
        ("one channel", len(shape) == 3 and shape[0] == 1),
        ("one row", len(shape) == 3 and shape[1] == 1),
        ("one column", len(shape) == 3 and shape[2] == 1),
        ("one step", case.steps == 1),
        ("one sample", case.batch == 1),
        ("one step and one sample", case.steps == case.batch == 1),
        ("lengths", case.lengths is not None),
        ("rate penalty", bool(case.rate_penalty)),
        ("learned delays longer than the run", any(n > case.steps for n in graph.delays.values())),
        ("learned delays, recurrence", bool(graph.delays and graph.recurrent)),
        ("learned delays, lengths", bool(graph.delays) and case.lengths is not None),
        (f"loss {case.loss_name}", True),
        ("parts", case.micro_batch is not None and case.micro_batch < case.batch),
        (f"memory {case.memory}", True),
        (f"threads {case.threads}", True),
        ("reproducible precision" if case.exact else "only fast precision", True),
    )
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Weighted):
            recurrent = any(node.name in names for names in graph.recurrent.values())
            yield from ((feature, True) for feature in _of_weights(op, graph.values[node.inputs[0].source].shape))
            yield "shared weights", node.shares is not None
            yield f"recurrence, {'convolution' if isinstance(op, Conv2d) else type(op).__name__}", recurrent
            yield "delay", not recurrent and any(edge.delay for edge in node.inputs)
            yield "several populations read the same sums", len(set(graph.readers[node.name])) > 1
        elif isinstance(op, Neurons):
            yield from ((feature, True) for feature in _of_neurons(op.model))
            yield "several projections", len(node.inputs) - len(graph.recurrent.get(node.name, ())) > 1
        elif type(op) in _LAYERS:
            yield _LAYERS[type(op)], True


def _all_three(case: RandomCase) -> bool:
    static = any(projection.input.static for projection in case.network.graph.normalised)
    return static and case.lengths is not None and min(case.lengths) < case.steps


def features(case: RandomCase) -> frozenset[str]:
    """What a case contains; see `FEATURES`."""
    return frozenset(feature for feature, present in _feature_flags(case) if present)


FEATURES = frozenset(
    {
        *("node by node", "notation", "events coding", "direct coding", "input filter", "event counts"),
        *("one channel", "one row", "one column", "one step", "one sample", "one step and one sample", "lengths"),
        "rate penalty",
        *("learned delays longer than the run", "learned delays, recurrence", "learned delays, lengths"),
        *("direct coding, batch normalisation, padded samples", "parts", "memory full", "memory low"),
        *("threads 1", "threads 2", "reproducible precision", "only fast precision"),
        *("convolution", "full connection", "one-to-one", "bias", "batch normalisation", "few bits"),
        *("rectangular kernel", "stride", "unequal strides", "padding", "dilation", "groups"),
        *("convolution of one channel", "shared weights", "delay", "several populations read the same sums"),
        *("recurrence, convolution", "recurrence, Linear", "recurrence, OneToOne", "several projections"),
        *("neuron lif", "neuron if", "neuron alif", "neuron plif", "neuron readout"),
        *("reset zero", "reset subtract", "learned per layer", "learned per channel"),
        *("first order", "second order", "gain normalised", "gain unit"),
        *(f"surrogate {name}" for name in SURROGATES),
        *(f"loss {name}" for name in (*LOSSES, *OF_POTENTIALS)),
        *_LAYERS.values(),
    }
)
"""All features that cases are drawn from."""
