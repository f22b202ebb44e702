"""Conversion of a trained network to NIR: nodes with their parameters, and edges. nir_file.py writes them to a file.

Consider an importer that computes `i = i (1 - dt/tau_syn) + x`, `v = v (1 - dt/tau_mem) + i` in float32, and spikes if
`v >= v_threshold`. It gets the network's own spikes and potentials, bit by bit (nir_readings.py; spikingjelly does).
For this, every operation that rounds is a separate node. Weights `W` are followed by these nodes, as fully connected
layers or 1x1 convolutions that are zero off the diagonal:

    -mean   a   shift       batch normalisation, (z - mean) a + shift
    b                       a bias
    c                       the gain of the synapse, if it is not 1; it includes the division of pooled sums

A sum of one product and zeros rounds only once. Factors that are powers of two are included in the preceding node,
because they do not round. With `fold`, all of these are included in `W` and its bias, which are rounded once. There are
then fewer nodes, but bits may differ.

nir 1.0.8 takes the number of input channels of a convolution from its weights, and the columns of its kernel from the
rows. Groups are therefore written as one convolution with zeros between them, and kernels are padded with zeros to
squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import EXACT_LIMIT_BITS
from stsbp_spec.models.neurons import ALIF, IF, LIF, PLIF, Readout
from stsbp_spec.networks.graph import BoundNode, Edge, Input, Neurons, Op
from stsbp_spec.networks.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    MaxPool2d,
    OneToOne,
    Upsample2d,
)
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.networks.ops.psp import Biased, Filter
from stsbp_spec.typing import AnyArray, Float32, Float64, Shape

from stsbp.errors import ConfigError
from stsbp.interop.nir_gain import exported_gain
from stsbp.interop.program import GridWeights, NetworkProgram, PopulationStep

__all__ = ["NO_LEAK", "ExportedGraph", "ExportedNode", "Form", "graph_of"]

NO_LEAK = 2.0**60
"""Time constant in steps for neurons without leak. It is finite, as NIR requires, and `1 - 1/tau` is 1 in float64."""


@dataclass(frozen=True)
class Form:
    """The options of an export.

    Attributes:
        dt: length of a step in seconds.
        fold: whether gains, biases and normalisation are included in the weights.
        threshold_below: whether thresholds are replaced by the next lower float32 number, for importers that spike if
            `v > v_threshold`.
        pooling: `mean` or `sum`: the result for windows whose size is a power of two.
    """

    # The default of most importers; snntorch takes no other.
    dt: float = 1e-4
    fold: bool = False
    threshold_below: bool = False
    pooling: str = "mean"


@dataclass(frozen=True)
class ExportedNode:
    """A node: the name of its class in NIR, and its parameters."""

    kind: str
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class ExportedGraph:
    """Nodes by name, edges, and messages about them.

    Attributes:
        nodes, edges: nodes and edges of the graph.
        typed: whether nir accepts all shapes.
        rounded: operations that round differently from the network, one line each; empty: none.
        notes: further information that readers of the graph need.
        largest_delays: the largest number of steps that learned delays can have, by node.
    """

    nodes: Mapping[str, ExportedNode]
    edges: tuple[tuple[str, str], ...]
    typed: bool
    rounded: tuple[str, ...]
    notes: tuple[str, ...]
    largest_delays: Mapping[str, int]


def graph_of(program: NetworkProgram, form: Form) -> ExportedGraph:
    """A network as a NIR graph.

    Raises:
        ConfigError: NIR cannot express a part of it. The message names the part and its parameter.
    """
    return _NirExporter(program, form).graph()


@dataclass(frozen=True)
class _ChannelAffine:
    """`x multiply + add` for each channel, float32 `[C]`. None: no multiplication, or no addition."""

    name: str
    multiply: Float32 | None = None
    add: Float32 | None = None


class _NirExporter:
    """Writes the nodes of NIR, for one node of the network after the other."""

    def __init__(self, program: NetworkProgram, form: Form) -> None:
        self.program, self.form = program, form
        self.bound_nodes = {bound_node.node.name: bound_node for bound_node in program.network.graph.bound_nodes}
        self.learned = {
            parameter: values
            for population in program.populations.values()
            for parameter, values in zip(
                population.bound_node.parameters.values(), population.learned.values(), strict=True
            )
        }
        self.names = _names(self.bound_nodes)
        self.used_names = {*_RESERVED, *self.names.values()}
        self.nodes: dict[str, ExportedNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.output_nodes: dict[str, tuple[str, ...]] = {}
        """The NIR nodes whose sum is the output of a node of the network."""
        self.exponents: dict[str, int] = {}
        """Exponents: the output is this sum times 2 to the power of the exponent."""
        self.typed = True
        self.rounded: list[str] = []
        self.notes: list[str] = []
        self.largest_delays: dict[str, int] = {}

    def graph(self) -> ExportedGraph:
        for name, bound_node in self.bound_nodes.items():
            op = bound_node.node.op
            if name in self.program.recurrent:
                continue
            if isinstance(op, Input):
                self.input(bound_node)
            elif name in self.program.populations:
                self.population(self.program.populations[name])
            elif name in self.program.weights:
                self.weights(bound_node)
            else:
                self.passing(bound_node)
        self.add(
            "output",
            ExportedNode("Output", {"output_type": np.array(bound_node.output.shape)}),
            self.output_nodes[name],
        )
        notes = tuple(dict.fromkeys(self.notes))
        edges, rounded = tuple(self.edges), tuple(self.rounded)
        return ExportedGraph(self.nodes, edges, self.typed, rounded, notes, self.largest_delays)

    def add(self, name: str, node: ExportedNode, sources: Sequence[str]) -> str:
        """Add a node and its edges. Returns its name."""
        if len(set(sources)) < len(sources):
            twice = next(name_of_source for name_of_source in sources if sources.count(name_of_source) > 1)
            raise ConfigError(
                f"{name} cannot be written: it reads {twice} twice, but NIR allows only one edge between two nodes"
            )
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def add_beside(self, name: str, node: ExportedNode, sources: Sequence[str]) -> str:
        """Add a node that the network does not have, under a new name."""
        while name in self.nodes or name in self.used_names:
            name += "_"
        return self.add(name, node, sources)

    def input(self, bound_node: BoundNode) -> None:
        op = bound_node.node.op
        assert isinstance(op, Input)
        name = self.add("input", ExportedNode("Input", {"input_type": np.array(op.shape)}), ())
        self.output_nodes[bound_node.node.name], self.exponents[bound_node.node.name] = (name,), 0
        if op.coding == "direct":
            self.notes.append("input: the bytes of an image / 256, the same ones at every step")
        else:
            counts = "spikes, 0 or 1" if op.largest == 1 else f"numbers of events, at most {op.largest}"
            self.notes.append(f"input: {counts}, a frame a step")

    def edge_sources(self, bound_node: BoundNode, edge: Edge) -> tuple[str, ...]:
        """The NIR nodes whose sum an edge carries, with the delay of the edge."""
        source_nodes = self.output_nodes[edge.source]
        if not edge.delay or bound_node.node.name in self.program.recurrent:
            return source_nodes
        delay_node = self.delay(np.array(edge.delay), self.bound_nodes[edge.source].output.shape)
        return tuple(self.add_beside(f"{end}_delay{edge.delay}", delay_node, (end,)) for end in source_nodes)

    def delay(self, steps: AnyArray, shape: Shape) -> ExportedNode:
        """The node that delays values of `shape` by whole numbers of steps: one for all, or one for each channel."""
        self.notes.append("no importer that stsbp nir-check knows reads Delay")
        by_channel = steps.reshape(-1, *[1] * (len(shape) - 1))
        return ExportedNode("Delay", {"delay": np.broadcast_to(by_channel, shape) * self.form.dt})

    def passing(self, bound_node: BoundNode) -> None:
        """Add pooling, flattening, learned delays, dropout and sums of branches."""
        name, op, edges = bound_node.node.name, bound_node.node.op, bound_node.node.inputs
        if type(op) in _REFUSED:
            raise ConfigError(f"{name} cannot be written: {_REFUSED[type(op)]}")
        sources = tuple(end for edge in edges for end in self.edge_sources(bound_node, edge))
        exponents = {self.exponents[edge.source] for edge in edges}
        if len(exponents) > 1:
            raise ConfigError(f"{name} adds sums of windows of several sizes, with --pool sum; take --pool mean")
        exponent, shape = exponents.pop(), bound_node.inputs[0].shape
        if isinstance(op, GlobalAvgPool):
            op = op.at(shape)
        if isinstance(op, AvgPool2d):
            sums = op.divisor != 1 or self.form.pooling == "sum"
            numbers = {"kernel_size": np.array(op.sizes), "stride": np.array(op.sizes), "padding": np.array((0, 0))}
            sources = (
                self.add(self.names[name], ExportedNode("SumPool2d" if sums else "AvgPool2d", numbers), sources),
            )
            exponent += op.exponent if sums else 0
        elif isinstance(op, Flatten):
            sources = self.flat(self.names[name], shape, sources)
        elif isinstance(op, LearnedDelay):
            self.largest_delays[self.names[name]] = op.maximum
            sources = (self.add(self.names[name], self.delay(self.program.delays[name], shape), sources),)
        elif not isinstance(op, (Add, Dropout)):
            raise ConfigError(f"{name} cannot be written: NIR has no such node")
        self.output_nodes[name], self.exponents[name] = sources, exponent

    def flat(self, name: str, shape: Shape, sources: tuple[str, ...]) -> tuple[str, ...]:
        """The inputs of a node that reads them as one axis."""
        if len(shape) == 1:
            return sources
        numbers = {"input_type": {"input": np.array(shape)}, "start_dim": 0, "end_dim": -1}
        return (self.add_beside(name, ExportedNode("Flatten", numbers), sources),)

    def weights(self, bound_node: BoundNode) -> None:
        """Add a projection: its weights, and the normalisation or bias of their sums."""
        name, (edge,) = bound_node.node.name, bound_node.node.inputs
        nir_name, shape, op = self.names[name], bound_node.output.shape, bound_node.node.op
        sources = self.edge_sources(bound_node, edge)
        first, *stages = self.stages(bound_node, self.program.weights[name], self.exponents[edge.source])
        if isinstance(op, Conv2d):
            node = self.convolution(name, op, bound_node.inputs[0].shape, first)
        else:
            sources = self.flat(f"{nir_name}_flatten", bound_node.inputs[0].shape, sources)
            node = ExportedNode("Affine", {"weight": first.multiply, "bias": _numbers(first.add, shape[0], 0)})
        end = self.add(nir_name, node, sources)
        for stage in stages:
            end = self.add_beside(f"{nir_name}_{stage.name}", _diagonal(stage, shape), (end,))
        self.output_nodes[name] = (end,)

    def stages(self, bound_node: BoundNode, weights: GridWeights, exponent: int) -> list[_ChannelAffine]:
        """The weights, and the operations on each channel of their sums, with as few stages as rounding allows."""
        channels = bound_node.output.shape[0]
        values = np.diag(weights.values[:, 0]) if isinstance(bound_node.node.op, OneToOne) else weights.values
        stages = [_ChannelAffine("weights", np.ldexp(values, -exponent))]
        if weights.norm is not None:
            stages += [
                _ChannelAffine("mean", add=-weights.norm.mean),
                _ChannelAffine("scale", weights.norm.a),
                _ChannelAffine("shift", add=weights.norm.shift),
            ]
        filter = bound_node.output.filter(training=False)
        if isinstance(filter, Biased):
            stages += [
                _ChannelAffine("division", np.full(channels, filter.gain)),
                _ChannelAffine("bias", add=self.learned[f"{bound_node.node.name}.bias"]),
            ]
        gain = exported_gain(bound_node, filter)
        if self.form.fold or _is_power_of_two(gain):
            stages.append(_ChannelAffine("gain", np.full(channels, gain)))
        merged = reduce(_merged, stages[1:], stages[:1])
        return self.folded(bound_node.node.name, merged) if self.form.fold else merged

    def folded(self, name: str, stages: list[_ChannelAffine]) -> list[_ChannelAffine]:
        """All stages as weights and a bias, each rounded once."""
        if len(stages) == 1:
            return stages
        first = stages[0]
        assert first.multiply is not None
        channels = len(first.multiply)
        # Folding changed 3 spikes of 9.2 million outputs of a run on digits (docs/deploy.md).
        factor, added = np.ones(channels), _numbers(first.add, channels, 0).astype(np.float64)
        for stage in stages[1:]:
            multiply = _numbers(stage.multiply, channels, 1).astype(np.float64)
            factor, added = factor * multiply, added * multiply + _numbers(stage.add, channels, 0)
        exact = first.multiply.astype(np.float64) * _on_first_axis(factor, first.multiply)
        values = exact.astype(np.float32)
        rounding_error = np.abs(values - exact).max(initial=0)
        self.rounded.append(
            f"{name}: {', '.join(stage.name for stage in stages[1:])} folded into weights and bias; sums round, and "
            f"weights are rounded by up to {rounding_error:.2g}, the largest of them is "
            f"{np.abs(exact).max(initial=0):.3g}"
        )
        return [_ChannelAffine("weights", values, added.astype(np.float32))]

    def convolution(self, name: str, op: Conv2d, shape: Shape, stage: _ChannelAffine) -> ExportedNode:
        """A convolution without groups. The kernel is square if rows and columns are both odd or both even."""
        assert stage.multiply is not None
        values, paddings = _without_groups(stage.multiply, op.groups), op.paddings
        if (op.kernels[0] - op.kernels[1]) % 2 == 0:
            values, paddings = _square(values, op)
        else:
            self.typed = False
            self.notes.append(
                f"{name}: nir 1.0.8 treats every kernel as square, but this one is "
                f"{op.kernels[0]}x{op.kernels[1]}; call nir.read with type_check=False"
            )
        numbers = {
            "input_shape": shape[1:],
            "weight": values,
            "stride": op.strides,
            "padding": paddings,
            "dilation": op.dilations,
            "groups": 1,
            "bias": _numbers(stage.add, len(values), 0),
        }
        return ExportedNode("Conv2d", numbers)

    def population(self, population: PopulationStep) -> None:
        """Add neurons, and the gain of their inputs if it is not included in the weights."""
        bound_node = population.bound_node
        name, edges = bound_node.node.name, bound_node.node.inputs
        nir_name, shape = self.names[name], bound_node.output.shape
        self.output_nodes[name], self.exponents[name] = (nir_name,), 0
        for edge in edges:
            if edge.source in self.program.recurrent:
                self.weights(self.bound_nodes[edge.source])
        currents = self.currents(bound_node)
        decays = {filter.decay for filter, _ in currents}
        if len(decays) > 1:
            raise ConfigError(
                f"{name} cannot be written: it reads {_listed(edges)} through synapses of different "
                "tau_s, but a neuron of NIR has only one; use one tau_s for all, also for the input "
                "filter (input_tau_s), or tau_s=1"
            )
        is_split = len(currents) > 1
        # A synapse without memory has the same effect on a sum and on its parts.
        if is_split and any(decays):
            self.rounds(f"{name}: the currents of {_listed(edges)} are added before the synapse, not after it")
        sources: list[str] = []
        for number, (filter, source_nodes) in enumerate(currents, start=1):
            if len(source_nodes) > 2 and not self.adds_exactly(bound_node):
                self.rounds(f"{name}: its inputs may be added in any order")
            if not (self.form.fold or _is_power_of_two(filter.gain)):
                gain = _diagonal(_ChannelAffine("gain", np.full(shape[0], filter.gain)), shape)
                source_nodes = (self.add_beside(f"{nir_name}_gain{number if is_split else ''}", gain, source_nodes),)
            sources += source_nodes
        if is_split and len(sources) > 2:
            self.rounds(f"{name}: its currents may be added in any order")
        self.add(nir_name, self.neurons(population, decays.pop()), sources)

    def rounds(self, operation: str) -> None:
        """Record that something is rounded differently from the network. Without `fold`, it is refused."""
        # Otherwise nobody could tell this rounding from a fault of the importer.
        if not self.form.fold:
            raise ConfigError(
                f"{operation}; this rounds differently, so spikes can differ. To write it anyway, give --fold"
            )
        self.rounded.append(operation)

    def currents(self, bound_node: BoundNode) -> list[tuple[Filter, tuple[str, ...]]]:
        """The filters of a population, and for each the NIR nodes whose sum it filters, in the order of
        assembly.py."""
        currents: dict[object, tuple[Filter, tuple[str, ...]]] = {}
        for number, (edge, values) in enumerate(zip(bound_node.node.inputs, bound_node.inputs, strict=True)):
            filter = values.filter(training=False)
            if edge.delay and filter.learned() and edge.source not in self.program.recurrent:
                raise ConfigError(
                    f"{bound_node.node.name} cannot be written: it reads {edge.source} with a delay and a bias, "
                    "and NIR would delay the bias too"
                )
            key: object = number if filter.learned() else (filter, values.static)
            unbiased = filter.filter if isinstance(filter, Biased) else filter
            assert isinstance(unbiased, Filter)
            currents[key] = unbiased, (*currents.get(key, (unbiased, ()))[1], *self.edge_sources(bound_node, edge))
        return [*currents.values()]

    def adds_exactly(self, bound_node: BoundNode) -> bool:
        """Whether the sums that a population reads are integers in one unit, which add exactly in any order."""
        projections = [self.program.weights[edge.source] for edge in bound_node.node.inputs]
        if any(weights.norm is not None or weights.projection.sums.biased for weights in projections):
            return False
        exponent = max(weights.sum_exponent for weights in projections)
        sums = [
            np.abs(weights.values.astype(np.float64)).reshape(len(weights.values), -1).sum(1) for weights in projections
        ]
        largest = sum(rows * weights.projection.input.maximum for rows, weights in zip(sums, projections, strict=True))
        return bool(np.ldexp(largest, exponent).max(initial=0) < 2.0**EXACT_LIMIT_BITS)

    def neurons(self, population: PopulationStep, decay: np.float32) -> ExportedNode:
        """A population of neurons whose synapses all have the decay `decay`."""
        bound_node, form = population.bound_node, self.form
        op, name, shape = bound_node.node.op, bound_node.node.name, bound_node.output.shape
        assert isinstance(op, Neurons)
        model = op.model
        if type(model) not in (LIF, IF, PLIF, Readout):
            unsupported = "a threshold that adapts" if isinstance(model, ALIF) else "these equations"
            raise ConfigError(f"{name} cannot be written: NIR has no neuron with {unsupported}, neuron={model.name}")
        if getattr(model, "reset", "zero") != "zero":
            raise ConfigError(
                f"{name} cannot be written: after a spike, NIR's neurons set the potential to v_reset, "
                "but this one subtracts the threshold (reset=subtract)"
            )
        threshold = np.float32(model.threshold)
        threshold = np.nextafter(threshold, np.float32(0)) if form.threshold_below else threshold
        spiking = {"v_threshold": np.full(shape, np.float64(threshold)), "v_reset": np.zeros(shape)}
        if isinstance(model, IF) and decay == 0:
            return ExportedNode("IF", {"r": np.full(shape, 1 / form.dt), **spiking})
        leaks = self.leaks(population)
        tau_mem = np.broadcast_to(_seconds(leaks, form.dt, f"{name}, tau_m"), shape).copy()
        tau_syn = np.full(shape, _seconds(np.array([decay]), form.dt, f"{name}, tau_s"))
        numbers = {
            "tau_mem": tau_mem,
            "tau_syn": tau_syn,
            "r": tau_mem / form.dt,
            "w_in": tau_syn / form.dt,
            "v_leak": np.zeros(shape),
        }
        if isinstance(model, Readout):
            self.notes.append("no importer that stsbp nir-check knows reads CubaLI")
            return ExportedNode("CubaLI", numbers)
        if np.unique(leaks).size > 1:
            self.notes.append(f"{name}: its neurons differ in tau_mem, which spikingjelly refuses")
        return ExportedNode("CubaLIF", {**numbers, **spiking})

    def leaks(self, population: PopulationStep) -> Float32:
        """The decay of the potentials of a population per step, with the shape of its neurons or `[1, ...]`."""
        bound_node = population.bound_node
        assert isinstance(bound_node.node.op, Neurons)
        model = bound_node.node.op.model
        if isinstance(model, PLIF):
            values = self.learned[bound_node.parameters["decay"]]
            return values.reshape(-1, *[1] * (len(bound_node.output.shape) - 1))
        return np.array([np.float32(1 - 1 / model.tau_m) if isinstance(model, (LIF, Readout)) else 1], np.float32)


_RESERVED = ("input", "output")
"""The names that spyx uses for the two ends of a graph."""

_REFUSED: Mapping[type[Op], str] = {
    MaxPool2d: "NIR has no maximum of a window; pool by means",
    Upsample2d: "NIR has no upsampling",
    Concat: "NIR has no concatenation; let the neurons above read each branch through weights of its own",
}
"""Operations that no node of NIR computes, with the reason and advice."""


def _names(names: Iterable[str]) -> dict[str, str]:
    """Names of the network's nodes for NIR. They have no dots, which nirtorch replaces by underscores, and are
    unique."""
    nir_names: dict[str, str] = {}
    used_names = {*_RESERVED}
    for name in names:
        nir_name = name.replace(".", "_")
        while nir_name in used_names:
            nir_name += "_"
        used_names.add(nir_name)
        nir_names[name] = nir_name
    return nir_names


def _listed(edges: Iterable[Edge]) -> str:
    return " and ".join(edge.source for edge in edges)


def _numbers(stage_values: Float32 | None, channels: int, value: float) -> Float32:
    """The values of a stage for each channel."""
    return np.full(channels, value, np.float32) if stage_values is None else stage_values


def _on_first_axis(channels: AnyArray, values: AnyArray) -> AnyArray:
    """Numbers of channels in a shape that multiplies `values`, whose first axis is the channels."""
    return channels.reshape(-1, *[1] * (values.ndim - 1))


def _is_power_of_two(x: AnyArray | np.float32) -> bool:
    return bool((np.abs(np.frexp(x)[0]) == 0.5).all())


def _merged(stages: list[_ChannelAffine], stage: _ChannelAffine) -> list[_ChannelAffine]:
    """Stages and a further one. It is merged into the last of them if this causes no rounding."""
    if stage.multiply is None:
        return [*stages, stage] if stage.add is not None and stage.add.any() else stages
    last = stages[-1]
    if stage.add is None and _is_power_of_two(stage.multiply):
        multiply = _numbers(last.multiply, len(stage.multiply), 1)
        scaled = multiply * _on_first_axis(stage.multiply, multiply)
        added = None if last.add is None else last.add * stage.multiply
        if _is_normal(scaled, multiply) and (added is None or last.add is None or _is_normal(added, last.add)):
            return [*stages[:-1], replace(last, multiply=scaled, add=added)]
    return [*stages, stage]


def _is_normal(scaled: Float32, values: Float32) -> bool:
    """Whether no number became zero, or so small that it loses bits or that some libraries treat it as zero."""
    return np.array_equal(np.abs(scaled) >= np.finfo(np.float32).tiny, values != 0)


def _diagonal(stage: _ChannelAffine, shape: Shape) -> ExportedNode:
    """A stage as weights: a fully connected layer, or a convolution with a kernel of one pixel."""
    channels = shape[0]
    # Not nir.Scale, which spikingjelly, snntorch, norse and spyx do not read. The price is `N x N` products per step,
    # or `C x C` per pixel.
    weight = np.diag(_numbers(stage.multiply, channels, 1))
    numbers: dict[str, Any] = {"weight": weight, "bias": _numbers(stage.add, channels, 0)}
    numbers["metadata"] = {"stsbp": stage.name}
    if len(shape) == 1:
        return ExportedNode("Affine", numbers)
    ones = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0), "groups": 1}
    return ExportedNode("Conv2d", {**numbers, **ones, "input_shape": shape[1:], "weight": weight[..., None, None]})


def _without_groups(values: Float32, groups: int) -> Float32:
    """A convolution with groups as one convolution with zeros between the groups."""
    outputs, inputs, *kernel = values.shape
    dense = np.zeros((groups, outputs // groups, groups, inputs, *kernel), np.float32)
    group = np.arange(groups)
    dense[group, :, group] = values.reshape(groups, outputs // groups, inputs, *kernel)
    return dense.reshape(outputs, groups * inputs, *kernel)


def _square(values: Float32, op: Conv2d) -> tuple[Float32, tuple[int, int]]:
    """A kernel padded with zeros to a square, and the corresponding padding."""
    margins = [(max(op.kernels) - size) // 2 for size in op.kernels]
    paddings = [pad + extra * step for pad, extra, step in zip(op.paddings, margins, op.dilations, strict=True)]
    return np.pad(values, [(0, 0), (0, 0), *((extra, extra) for extra in margins)]), (paddings[0], paddings[1])


def _seconds(decays: Float32, dt: float, parameter: str) -> Float64:
    """Time constants in seconds for which `1 - dt / tau`, computed in float64 and rounded once, equals `decays`.

    Raises:
        ConfigError: there are no such time constants.
    """
    with np.errstate(divide="ignore"):
        steps = np.minimum(1 / (1 - decays.astype(np.float64)), NO_LEAK)
    seconds = steps * dt
    differs = (1 - dt / seconds).astype(np.float32) != decays
    if differs.any():
        raise ConfigError(
            f"{parameter} cannot be written: no time constant in float64 has the decay "
            f"{decays[differs].flat[0]:.9g}, which is too near 0"
        )
    return seconds
