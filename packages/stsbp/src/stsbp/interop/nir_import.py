"""Import of a NIR graph as a network with weights. nir_nodes.py reads its nodes one by one.

A graph has no steps. In a graph, the synapse belongs to the receiving neurons; in stsbp, it belongs to the sending
ones. Everything that reads the spikes of certain neurons must therefore have the same `tau_syn`. An edge back to an
earlier node is a recurrence, delayed by one step. Factors of currents are multiplied into the weights before them, and
pass through pooling. If a graph needs something that stsbp does not support, an error names the node and the parameter.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import CEILING
from stsbp_spec.errors import SpecError
from stsbp_spec.models.neurons import Readout
from stsbp_spec.networks.graph import Edge, Neurons, Node
from stsbp_spec.networks.ops import PSP, Add, Flatten, LearnedDelay, Linear, OneToOne
from stsbp_spec.networks.ops.base import Weighted
from stsbp_spec.typing import Float32, Float64, Shape
from stsbp_spec.validation import MAX_SIZE

from stsbp.errors import DataError
from stsbp.interop.nir_gain import imported_synapse
from stsbp.interop.nir_nodes import (
    NEAR,
    NEURONS,
    POOLS,
    WEIGHTS,
    Choices,
    Factor,
    NeuronParameters,
    WeightParameters,
    diagonal,
    fail,
    is_one,
    read_delays,
    read_largest_delays,
    read_neurons,
    read_node,
    read_pool,
    read_scale,
    read_weights,
)
from stsbp.interop.nir_reader import GraphNode, NirGraph

__all__ = ["Imported", "import_graph", "likely_step"]

_OF_PARAMETERS = ("bias", "decay", "scale", "shift", "mean", "variance", "steps")
"""Last parts of the names of parameters that are not weights."""
_LONGEST_NAME = 80
_MOST_TERMS = 256
"""Largest number of terms of a sum. Each term consists of weights and their input."""
_MOST_WEIGHTS = 1 << 28
"""Largest number of weights of a network: 1 GB."""
_MOST_NUMBERS = 1 << 26
"""Largest size of an input that only the graph declares, and of a flattened input with individual factors."""
_MOST_FACTORS = 1 << 25
"""Largest number of factors, of all terms together, that products of factors may have: 256 MB. Factors of rows and of
columns, which are few, have a product for every value, and each sum of branches can double the number of terms."""
_FULL = ("Linear", "Affine")


@dataclass(frozen=True)
class Imported:
    """A network without its input.

    Attributes:
        nodes: nodes of the graph without the input, in any order.
        weights: all parameters by name.
        input_shape: shape of one input, `(C, H, W)` or `(N,)`.
        input_psp: synaptic filter of the input; None: the input is not filtered.
        notes: changes during the import: the name of a node, and the change.
    """

    nodes: tuple[Node, ...]
    weights: Mapping[str, Float32]
    input_shape: Shape
    input_psp: PSP | None
    notes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Term:
    """`output_factor (factor z + bias)`. `z` is the output of a node, `delay` steps late. Factors are one number or of
    its shape.

    Terms of spikes have no biases.
    """

    source: str
    delay: int = 0
    factor: Factor = 1.0
    bias: Factor = 0.0
    output_factor: Factor = 1.0

    def times(self, factor: Factor) -> _Term:
        """The term multiplied by a factor."""
        return replace(self, output_factor=self.output_factor * factor)

    def plus(self, bias: Factor) -> _Term:
        """The term with an additional bias."""
        return replace(
            self, factor=self.factor * self.output_factor, bias=self.bias * self.output_factor + bias, output_factor=1.0
        )

    @property
    def total_factor(self) -> Factor:
        """The total factor of `z`."""
        return self.factor * self.output_factor


@dataclass(frozen=True)
class _Signal:
    """The output of a node of the graph: a sum of terms, either of spikes or of weighted sums."""

    terms: tuple[_Term, ...]
    shape: Shape
    weighted: bool = False


@dataclass(frozen=True)
class _ImportedProjection:
    """Weights of the graph, and their input: an edge, and a factor with the shape of the input."""

    node: GraphNode
    parameters: WeightParameters
    edge: Edge
    columns: Factor
    shape: Shape


@dataclass(frozen=True)
class _ImportedPopulation:
    """Neurons of the graph, and the weighted sums that they read."""

    node: GraphNode
    parameters: NeuronParameters
    signal: _Signal


def import_graph(graph: NirGraph, shape: Shape | None, choices: Choices) -> Imported:
    """Read a graph for inputs of `shape`, `(C, H, W)` or `(N,)`; None: the shape that the graph declares.

    Raises:
        DataError: a node cannot be read, or is in an unsupported position. The message names it.
    """
    # Values that are not finite raise an error that names the node.
    with np.errstate(all="ignore"):
        return _Import(graph, shape, choices).run()


def likely_step(graph: NirGraph) -> float | None:
    """The `dt` with which all currents are added to potentials unchanged, `r = tau/dt`; None if there is none."""
    steps: set[float] = set()
    for node in graph.nodes.values():
        tau, r = node.values.get("tau_mem", node.values.get("tau")), node.values.get("r")
        if isinstance(tau, np.ndarray) and isinstance(r, np.ndarray) and tau.size and r.size and not is_one(r):
            with np.errstate(all="ignore"):
                steps.add(float(f"{np.float64(tau.flat[0]) / np.float64(r.flat[0]):.5g}"))
    step = steps.pop() if len(steps) == 1 else math.nan
    return step if math.isfinite(step) and step > 0 else None


class _Import:
    def __init__(self, graph: NirGraph, shape: Shape | None, choices: Choices) -> None:
        self.graph, self.data_shape, self.choices = graph, shape, choices
        self.inputs: dict[str, list[str]] = {name: [] for name in graph.nodes}
        self.readers: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, reader in graph.edges:
            self.inputs[reader].append(source)
            self.readers[source].append(reader)
        self.used_names = {"input": 1}
        """Names of nodes, with the last number that was appended to each."""
        self.names = {
            name: self.unused_name(_node_name(name)) for name, node in graph.nodes.items() if node.kind != "Input"
        }
        self.signals: dict[str, _Signal] = {}
        self.projections: dict[str, _ImportedProjection] = {}
        self.populations: dict[str, _ImportedPopulation] = {}
        self.origins = {"input": "input"}
        """For each node, one of the populations whose spikes it carries, through pooling and sums."""
        self.representatives = {"input": "input"}
        """Links to another population whose spikes are added, so that both need the same synapse."""
        self.divisors: dict[str, int] = {}
        """Pending divisors of the window sums that a node carries, applied after the weights; 1 for others."""
        self.largest_delays: dict[str, int] = {}
        """The largest numbers of steps of learned delays, as far as the file states them."""
        self.own_shapes: dict[str, Shape] = {}
        """For each node that carries spikes, their shape. Weights may read it flattened."""
        self.flattened: dict[str, str] = {}
        """For some of these nodes, the node that flattens it."""
        self.nodes: list[Node] = []
        self.weights: dict[str, Float32] = {}
        self.unfolded = 0
        """Number of weights so far, including arrays whose elements are all equal."""
        self.factors = 0
        """Number of factors so far in products of arrays."""
        self.notes: list[tuple[str, str]] = []

    def run(self) -> Imported:
        for node in self.graph.nodes.values():
            read_node(node, self.choices)
        self.largest_delays = read_largest_delays(self.graph)
        source, end = self.only_node("Input"), self.only_node("Output")
        if self.readers[end.name]:
            raise fail(end, "something reads it")
        self.walk(source)
        self.check_output(end)
        synapses = self.synapses()
        for name, population in self.populations.items():
            self.emit(name, population, synapses)
        shape = self.signals[source.name].shape if self.data_shape is None else self.data_shape
        return Imported(tuple(self.nodes), self.weights, shape, synapses["input"], tuple(self.notes))

    def only_node(self, kind: str) -> GraphNode:
        """The only node of a kind."""
        nodes = [node for node in self.graph.nodes.values() if node.kind == kind]
        if len(nodes) != 1:
            raise DataError(f"a graph must have one {kind} to be imported, but this one has {len(nodes)}")
        return nodes[0]

    def walk(self, start: GraphNode) -> None:
        """Walk from the input through all nodes: first to find the shapes of all neurons, then with known spikes."""
        if self.inputs[start.name]:
            raise fail(start, "it reads something")
        shapes = self.shapes(start)
        for name, node in self.graph.nodes.items():
            if node.kind == "Output":
                continue
            if name not in shapes:
                raise fail(node, "no path leads to it from the input")
            if not self.readers[name]:
                raise fail(node, "nothing reads it")
        neurons = [name for name in shapes if self.graph.nodes[name].kind in NEURONS]
        self.signals[start.name] = _Signal((_Term("input"),), shapes[start.name])
        self.own_shapes["input"] = shapes[start.name] if self.data_shape is None else self.data_shape
        for name in neurons:
            population = self.names[name]
            self.signals[name] = _Signal((_Term(population),), shapes[name])
            self.own_shapes[population] = shapes[name]
            self.origins[population] = self.representatives[population] = population
        pending_inputs = {name: len(sources) for name, sources in self.inputs.items()}
        ready = deque(reader for name in self.signals for reader in self.readers[name])
        while ready:
            name = ready.popleft()
            pending_inputs[name] -= 1
            if not pending_inputs[name] and name in shapes and name not in self.signals:
                self.signals[name] = self.signal(self.graph.nodes[name])
                ready.extend(self.readers[name])
        unread, path = next((name for name in shapes if name not in self.signals), None), set[str]()
        while unread is not None:
            if unread in path:
                raise fail(self.graph.nodes[unread], "it reads itself with no neurons in between")
            path.add(unread)
            unread = next(name for name in self.inputs[unread] if name not in self.signals)
        for name in neurons:
            node, signal = self.graph.nodes[name], self.summed_input(self.graph.nodes[name])
            if not signal.weighted:
                raise fail(node, "it reads spikes with no weights in between; put Linear or Affine before it")
            _check_shapes(node, signal.shape)
            self.populations[name] = _ImportedPopulation(node, read_neurons(node, self.choices), signal)

    def shapes(self, start: GraphNode) -> dict[str, Shape]:
        """The output shape of each node that the input leads to, except outputs."""
        shapes = {start.name: self.input_shape(start)}
        ready = deque([start.name])
        while ready:
            source = ready.popleft()
            for name in self.readers[source]:
                node = self.graph.nodes[name]
                if name not in shapes and node.kind != "Output":
                    shapes[name] = _shape_after(node, shapes[source])
                    ready.append(name)
        return shapes

    def input_shape(self, node: GraphNode) -> Shape:
        """The shape of the inputs. If it differs, the shape of the data counts."""
        shape_values = node.values.get("shape")
        if (
            not isinstance(shape_values, np.ndarray)
            or shape_values.ndim > 1
            or shape_values.dtype.kind not in "iu"
            or shape_values.size > 8
        ):
            raise fail(node, "shape is not a list of whole numbers")
        declared = tuple(int(size) for size in shape_values.reshape(-1))
        if any(not 1 <= size <= MAX_SIZE for size in declared):
            raise fail(node, f"shape is {list(declared)}, but its numbers must be from 1 to {MAX_SIZE:,}")
        data, sizes = self.data_shape, _squeezed(declared)
        if data is None:
            is_row = any(self.graph.nodes[name].kind == "Conv1d" for name in self.readers[node.name])
            shape_by_rank = {1: sizes, 2: (sizes[0], 1, sizes[-1]) if is_row else (1, *sizes), 3: sizes}
            shape = declared if len(declared) in (1, 3) else shape_by_rank.get(len(sizes))
            if shape is None:
                raise fail(
                    node, f"shape is {list(declared)}, which is neither the shape of a picture nor that of a row"
                )
            if math.prod(shape) > _MOST_NUMBERS:
                excess = f"{math.prod(shape):,} numbers, more than {_MOST_NUMBERS:,}"
                raise fail(node, f"shape is {list(declared)}, which is {excess}")
            return shape
        if sizes == _squeezed(data):
            return data
        flat = (math.prod(data),)
        if sizes == flat:
            return flat
        for shape in (data, flat):
            if declared[-len(shape) :] == shape:
                leading = list(declared[: -len(shape)])
                self.notes.append((node.name, f"shape is {list(declared)}: {leading} are treated as samples or steps"))
                return shape
        raise fail(node, f"shape is {list(declared)}, but the data have the shape {list(data)}")

    def summed_input(self, node: GraphNode) -> _Signal:
        """The sum of all inputs of a node."""
        signals = [self.signals[name] for name in self.inputs[node.name]]
        first = signals[0]
        for signal in signals:
            if signal.shape != first.shape:
                raise fail(node, f"its inputs have different shapes, {list(first.shape)} and {list(signal.shape)}")
            if signal.weighted != first.weighted:
                raise fail(node, "it reads both spikes and weighted sums")
        # The number of terms can double wherever two paths meet.
        if (number := sum(len(signal.terms) for signal in signals)) > _MOST_TERMS:
            raise fail(node, f"it reads a sum of {number:,} terms, more than {_MOST_TERMS:,}")
        return replace(first, terms=tuple(term for signal in signals for term in signal.terms))

    def signal(self, node: GraphNode) -> _Signal:
        """The output of a node for its inputs."""
        summed_input = self.summed_input(node)
        if node.kind == "Identity":
            return summed_input
        if node.kind in ("Scale", "Delay"):
            _check_shapes(node, summed_input.shape)
        if node.kind == "Scale":
            factor = _spread(node, "scale", read_scale(node), summed_input.shape)
            return replace(summed_input, terms=self.scaled(node, summed_input.terms, factor))
        if node.kind == "Delay":
            return self.delayed(node, summed_input)
        if summed_input.weighted and node.kind in WEIGHTS:
            return self.after_weights(node, summed_input)
        if summed_input.weighted and len(summed_input.shape) > 1:
            raise fail(node, "it reads weighted sums; put neurons before it")
        if node.kind == "Flatten":
            flat = (math.prod(summed_input.shape),)
            if summed_input.weighted:
                return summed_input
            factors = [_flattened(node, term.total_factor, summed_input.shape) for term in summed_input.terms]
            scaled = zip(summed_input.terms, factors, strict=True)
            terms = (replace(term, factor=factor, output_factor=1.0) for term, factor in scaled)
            return replace(summed_input, terms=tuple(terms), shape=flat)
        edge, factor = self.edge(node, summed_input)
        if node.kind in POOLS:
            return self.pooled(node, summed_input.shape, edge, factor)
        parameters = read_weights(node)
        shape = _row_shape(summed_input.shape, node) if node.kind == "Conv1d" else summed_input.shape
        if isinstance(parameters.op, Linear) and len(_squeezed(shape)) > 1:
            raise fail(node, f"its input has the shape {list(shape)}; put Flatten before it")
        self.projections[node.name] = _ImportedProjection(node, parameters, edge, factor, shape)
        output = _shape_after(node, shape)
        required_shape = parameters.op.weight_shape(shape)
        if required_shape != parameters.values.shape:
            has = f"weight has the shape {list(parameters.values.shape)}"
            raise fail(node, f"{has}, but an input of shape {list(shape)} needs {list(required_shape)}")
        if isinstance(declared_shape := node.values.get("input_shape"), np.ndarray):
            declared = declared_shape.reshape(-1)[:3].tolist()
            if declared != [*shape[-declared_shape.size :]] or not declared_shape.size:
                raise fail(node, f"input_shape is {declared}, but its input has the shape {list(shape)}")
        return _Signal((_Term(node.name, bias=_biases(node, parameters, output)),), output, weighted=True)

    def scaled(self, node: GraphNode, terms: Sequence[_Term], factor: Factor) -> tuple[_Term, ...]:
        """Terms multiplied by a factor."""
        sizes = [np.broadcast(term.output_factor, factor).size for term in terms]
        self.factors += sum(size for size in sizes if size > 1)
        if self.factors > _MOST_FACTORS:
            raise fail(node, f"its input has been scaled so often that more than {_MOST_FACTORS:,} factors are needed")
        return tuple(term.times(factor) for term in terms)

    def after_weights(self, node: GraphNode, summed_input: _Signal) -> _Signal:
        """Weights that multiply each channel of weighted sums by a number, and optionally add one."""
        parameters = read_weights(node)
        # A diagonal matrix becomes a factor of the weights, so that an exported network does not come back with more
        # layers.
        channel_factors = diagonal(parameters)
        if (
            channel_factors is None
            or len(channel_factors) != summed_input.shape[0]
            or (len(summed_input.shape) == 1) != (node.kind in _FULL)
        ):
            raise fail(node, "it reads weighted sums; put neurons before it")
        factor = _spread(node, "weight", channel_factors, summed_input.shape)
        first, *other_terms = self.scaled(node, summed_input.terms, factor)
        if parameters.bias is not None:
            first = first.plus(_biases(node, parameters, summed_input.shape))
        return replace(summed_input, terms=(first, *other_terms))

    def delayed(self, node: GraphNode, signal: _Signal) -> _Signal:
        """A signal that comes later: one delay for all on the edges that read it, or learned delays as a node."""
        steps, maximum = read_delays(node, self.choices), self.largest_delays.get(node.name)
        if maximum is None and steps.size == 1:
            if any(np.any(term.bias) for term in signal.terms):
                raise fail(node, "its input has a bias, which stsbp would not delay")
            terms = (replace(term, delay=term.delay + int(steps.flat[0])) for term in signal.terms)
            return replace(signal, terms=tuple(terms))
        if signal.weighted:
            raise fail(node, "it delays weighted sums by numbers of their own; stsbp only delays spikes in this way")
        size, shape = node.values["delay"], signal.shape
        assert isinstance(size, np.ndarray)
        if size.size not in (1, shape[0], math.prod(shape)):
            raise fail(node, f"delay has the shape {list(size.shape)}, but its input has the shape {list(shape)}")
        delays = np.broadcast_to(_per_channel(node, "delay", steps, shape, shared="delay"), shape[:1])
        largest = int(delays.max())
        if maximum is None:
            maximum = largest
            self.notes.append(
                (node.name, f"learned delays of at most {maximum} steps, its longest, since the file states no maximum")
            )
        elif largest > maximum:
            raise fail(node, f"a delay is {largest} steps, but at most {maximum} according to the metadata")
        edge, factor = self.edge(node, signal)
        name, source = self.names[node.name], edge.source
        if self.own_shapes[source] != shape:
            edge = replace(edge, source=self.flat(source))
        self.carries(name, edge.source, shape)
        self.nodes.append(Node(name, LearnedDelay(maximum), (edge,)))
        self.weights[f"{name}.steps"] = delays.astype(np.float32)
        return _Signal((_Term(name, 0, factor),), shape)

    def flat(self, source: str) -> str:
        """The node that flattens the spikes of a node."""
        if source not in self.flattened:
            name = self.flattened[source] = self.unused_name(f"{source}.flat")
            self.nodes.append(Node(name, Flatten(), (Edge(source),)))
            self.carries(name, source, (math.prod(self.own_shapes[source]),))
        return self.flattened[source]

    def carries(self, name: str, source: str, shape: Shape) -> None:
        """Record that a node passes on the spikes of another one, with a shape of its own."""
        self.origins[name], self.divisors[name] = self.origins[source], self.divisors.get(source, 1)
        self.own_shapes[name] = shape

    def edge(self, node: GraphNode, signal: _Signal) -> tuple[Edge, Factor]:
        """The edge from some spikes. Several spikes are added, and must all have the same factor."""
        first, *other_terms = signal.terms
        if not other_terms:
            return Edge(first.source, first.delay), first.total_factor
        if not all(np.array_equal(term.total_factor, first.total_factor) for term in other_terms):
            raise fail(node, "it adds spikes that are scaled by different factors")
        sources = [term.source for term in signal.terms]
        if len({self.own_shapes[source] for source in sources}) > 1:
            sources = [source if self.own_shapes[source] == signal.shape else self.flat(source) for source in sources]
        name = self.unused_name(f"{self.names[node.name]}.sum")
        edges = (Edge(source, term.delay) for source, term in zip(sources, signal.terms, strict=True))
        self.nodes.append(Node(name, Add(), tuple(edges)))
        self.carries(name, sources[0], self.own_shapes[sources[0]])
        for term in other_terms:
            self.representatives[self.representative(term.source)] = self.representative(first.source)
        return Edge(name), first.total_factor

    def pooled(self, node: GraphNode, shape: Shape, edge: Edge, factor: Factor) -> _Signal:
        """Average pooling over windows."""
        pool, times = read_pool(node)
        output = _shape_after(node, shape)
        channels = _per_channel(node, "what scales its input", factor, shape)
        name = self.names[node.name]
        self.nodes.append(Node(name, pool, (edge,)))
        self.carries(name, edge.source, output)
        self.divisors[name] = self.divisors.get(edge.source, 1) * pool.divisor
        spread = channels if isinstance(channels, float) else channels[:, None, None]
        return _Signal((_Term(name, 0, spread * times),), output)

    def check_output(self, node: GraphNode) -> None:
        """Raise `DataError` unless the output is neurons. If it reads weighted sums, they become a readout."""
        if not self.inputs[node.name]:
            raise fail(node, "it reads nothing")
        signal = self.summed_input(node)
        if not signal.weighted:
            (term, *other_terms) = signal.terms
            if other_terms or term.delay or not is_one(term.total_factor) or term.source not in self.population_names:
                raise fail(node, "it must read the unchanged spikes of one population")
            return
        name, model = self.names[node.name], Readout(1.0, surrogate=self.choices.surrogate)
        self.origins[name] = self.representatives[name] = name
        self.populations[node.name] = _ImportedPopulation(node, NeuronParameters(model, None, 1.0, 1.0, 1.0), signal)
        self.notes.append((node.name, "it reads weighted sums, so a readout without leak was added"))

    @property
    def population_names(self) -> set[str]:
        """Names of the nodes here that are neurons."""
        return {self.names[name] for name in self.populations}

    def representative(self, source: str) -> str:
        """The population that represents all whose spikes pass through the same synapse as those of a node."""
        name = self.origins[source]
        while (parent := self.representatives[name]) != name:
            self.representatives[name] = self.representatives[parent]
            name = parent
        return name

    def synapses(self) -> dict[str, PSP | None]:
        """The synaptic filters of the input and of the spikes of each population, by their names here."""
        reads: dict[str, _ImportedPopulation] = {}
        gains: dict[str, set[tuple[float, int]]] = {}
        changed: set[str] = set()
        for population in self.populations.values():
            own_tau_s = population.parameters.tau_s
            for term in population.signal.terms:
                source, times = self.projections[term.source].edge.source, self.times(population, term)
                origin, divisor = self.representative(source), self.divisors.get(source, 1)
                first_reader = reads.setdefault(origin, population)
                if abs(own_tau_s - (first_tau_s := first_reader.parameters.tau_s)) > NEAR * first_tau_s:
                    synapse_text = (
                        f"a synapse of {own_tau_s:g} steps, but {first_reader.node.name} through one of {first_tau_s:g}"
                    )
                    reason = "in stsbp the neurons that send the spikes determine the synapse"
                    raise fail(population.node, f"it reads the spikes of {origin} through {synapse_text}; {reason}")
                times = times / self.power_of_two(term)
                # All gains are equal if the smallest and the largest are.
                extremes = np.array([np.min(times), np.max(times)]) / own_tau_s / divisor
                gains.setdefault(origin, set()).update((float(gain), divisor) for gain in extremes.astype(np.float32))
                if own_tau_s > 1 and not is_one(times):
                    changed.add(origin)
        synapses: dict[str, PSP | None] = {}
        for name in ("input", *self.population_names):
            origin = self.representative(name)
            tau_s = reads[origin].parameters.tau_s if origin in reads else self.choices.tau_s
            synapses[name] = imported_synapse(tau_s, gains.get(origin, set()), scaled=origin in changed)
        is_alone = [
            name for name in self.representatives if self.representative(name) == self.representative("input")
        ] == ["input"]
        return synapses | ({"input": None} if is_alone and synapses["input"] == PSP(1.0) else {})

    def power_of_two(self, term: _Term) -> float:
        """The power of two in the factor before the weights of a term, which is exact in the weights; 1: none.

        Sums of windows have it, instead of means.
        """
        projection = self.projections[term.source]
        if not isinstance(projection.columns, float):
            return 1.0
        factor = projection.columns / self.divisors.get(projection.edge.source, 1)
        return factor if np.frexp(factor)[0] == 0.5 else 1.0

    def times(self, population: _ImportedPopulation, term: _Term, *, bias: bool = False) -> Factor:
        """The factor of weights, or of the bias after them, apart from the gain `1/tau_s` of a synapse."""
        node, shape, parameters = population.node, population.signal.shape, population.parameters
        gain = _spread(node, "r, tau or v_threshold", parameters.gain, shape)
        w_in = _spread(node, "w_in", parameters.w_in, shape)
        columns = self.projections[term.source].columns
        input_factor = term.factor * columns if isinstance(columns, float) else term.factor
        return term.output_factor * gain * w_in * (1.0 if bias else input_factor)

    def emit(self, name: str, population: _ImportedPopulation, synapses: Mapping[str, PSP | None]) -> None:
        """Add the nodes of a population and of the weights before it, and their parameters."""
        own_name, parameters = self.names[name], population.parameters
        forward: list[Edge] = []
        recurrent: list[Edge] = []
        for term in population.signal.terms:
            projection = self.projections[term.source]
            edge = replace(projection.edge, delay=projection.edge.delay + term.delay)
            is_recurrent = edge.source == own_name
            if is_recurrent and edge.delay:
                raise fail(population.node, f"it reads itself through {term.source} with an additional delay")
            psp = synapses[self.origins[edge.source]]
            gain = 1.0 if psp is None or psp.gain == "unit" else 1 / psp.tau_s
            if is_recurrent:
                recurrent.append(self.add_projection(projection, replace(edge, delay=1), term, population, gain))
            else:
                forward.append(self.add_projection(projection, edge, term, population, gain))
        if not forward:
            raise fail(population.node, "it reads nothing but itself")
        # Recurrent inputs come last.
        inputs = (*forward, *recurrent)
        model: Any = parameters.model
        psp = synapses[own_name]
        assert psp is not None
        model = replace(model, tau_s=psp.tau_s, psp_gain=psp.gain)
        if parameters.decay is not None:
            decay = _per_channel(population.node, "tau", parameters.decay, population.signal.shape)
            shape = population.signal.shape[:1]
            self.weights[f"{inputs[0].source}.decay"] = np.broadcast_to(decay, shape).astype(np.float32)
        self.nodes.append(Node(own_name, Neurons(model), inputs))

    def add_projection(
        self, projection: _ImportedProjection, edge: Edge, term: _Term, population: _ImportedPopulation, gain: float
    ) -> Edge:
        """Add a node with weights, and its parameters. The synapse that reads them has the gain `gain`."""
        node, parameters, shape = projection.node, projection.parameters, population.signal.shape
        divisor = population.parameters.tau_s * gain
        rows = _per_channel(node, "what scales it", _exact(self.times(population, term) / divisor), shape)
        op: Weighted = replace(parameters.op, bias=bool(np.any(term.bias)), weight_bits=self.choices.weight_bits)
        self.unfolded += projection.parameters.values.size
        if self.unfolded > _MOST_WEIGHTS:
            excess = f"{self.unfolded:,} with those of this node, more than {_MOST_WEIGHTS:,}"
            raise fail(projection.node, f"the network has too many weights, {excess}")
        values = _scaled(projection, rows)
        diagonal_weights = diagonal(parameters)
        if (
            diagonal_weights is not None
            and edge.source == self.names[population.node.name]
            and len(shape) == 1
            and not op.bias
        ):
            op = OneToOne(weight_bits=self.choices.weight_bits)
            values = np.diagonal(values)[:, None].copy()
        shared_name = self.names[node.name]
        is_repeated = shared_name in self.weights
        name = self.unused_name(shared_name) if is_repeated else shared_name
        shares = shared_name if is_repeated and np.array_equal(values, self.weights[shared_name]) else None
        if shares is None:
            self.weights[name] = values
        if op.bias:
            bias_values = term.bias * _exact(self.times(population, term, bias=True) / divisor)
            bias = np.broadcast_to(_per_channel(node, "bias", bias_values, shape), shape[:1]).astype(np.float32)
            if not (np.abs(bias) < CEILING).all():
                raise fail(node, "bias is too large, 2^100 or more")
            self.weights[f"{name}.bias"] = bias
        self.nodes.append(Node(name, op, (edge,), shares))
        columns = 1.0 if isinstance(projection.columns, float) else projection.columns
        for factor, location in ((rows, f"between it and {population.node.name}"), (columns, "before it")):
            if not is_one(factor):
                self.notes.append(
                    (node.name, f"its weights are multiplied by {_range(factor)}, because of nodes {location}")
                )
        if "bias" in node.values and not op.bias:
            self.notes.append((node.name, "its bias is zero everywhere and was left out"))
        return Edge(name)

    def unused_name(self, name: str) -> str:
        """A new name that is as similar to `name` as possible. It is then taken."""
        candidate = name
        while candidate in self.used_names:
            self.used_names[name] += 1
            candidate = f"{name}_{self.used_names[name]}"
        self.used_names[candidate] = 1
        return candidate


def _exact(factor: Factor) -> Factor:
    """The factor, but each element that is a power of two except for rounding is this power of two."""
    power = np.exp2(np.round(np.log2(np.abs(factor))))
    return np.where(np.abs(np.abs(factor) - power) <= NEAR * power, np.copysign(power, factor), factor)


def _node_name(name: str) -> str:
    """A name of letters, digits, _ and . that cannot be confused with a parameter's name, such as `conv1.bias`."""
    name_text = re.sub(r"[^A-Za-z0-9_.]", "_", name)[:_LONGEST_NAME] or "node"
    stem, dot, last = name_text.rpartition(".")
    return f"{stem}_{last}" if dot and last in _OF_PARAMETERS else name_text


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size > 1) or (1,)


def _shape_after(node: GraphNode, shape: Shape) -> Shape:
    """The output shape of a node for an input of `shape`."""
    try:
        if node.kind in WEIGHTS:
            return read_weights(node).op.output_shape(shape)
        if node.kind in POOLS:
            return read_pool(node)[0].output_shape(shape)
    except SpecError as error:
        raise fail(node, str(error)) from None
    return (math.prod(shape),) if node.kind == "Flatten" else shape


def _row_shape(shape: Shape, node: GraphNode) -> Shape:
    """The shape of the input of a 1-d convolution, `(C, 1, L)`."""
    if len(shape) != 3 or shape[1] != 1:
        raise fail(node, f"its input has the shape {list(shape)}; the input of a 1-d convolution must be (C, 1, L)")
    return shape


def _flattened(node: GraphNode, factor: Factor, shape: Shape) -> Factor:
    if isinstance(factor, float):
        return factor
    if math.prod(shape) > _MOST_NUMBERS:
        raise fail(node, f"it flattens {math.prod(shape):,} numbers, which are scaled by different factors")
    return np.broadcast_to(factor, shape).reshape(-1)


def _biases(node: GraphNode, parameters: WeightParameters, shape: Shape) -> Factor:
    """The bias of some weights as an array with the shape of their output; 0 if there is none."""
    return 0.0 if parameters.bias is None else _spread(node, "bias", parameters.bias, shape)


def _spread(node: GraphNode, parameter: str, values: Factor, shape: Shape) -> Factor:
    """One number, or an array that broadcasts to `shape`, with one number for each element of a signal."""
    array = np.asarray(values, np.float64)
    if (array == array.flat[0]).all():
        return float(array.flat[0])
    fitted = _fitted_shape(array.shape, shape)
    if fitted is None:
        raise _other_shape(node, parameter, array.shape, shape)
    return array.reshape(fitted)


def _fitted_shape(own: Shape, shape: Shape) -> Shape | None:
    """The shape in which an array of shape `own`, with several numbers, broadcasts to `shape`; None: it does not.

    One number for each channel is as good as one for each neuron.
    """
    if math.prod(own) == math.prod(shape):
        return shape
    squeezed = own[next(i for i, size in enumerate(own) if size > 1) :]
    if squeezed == shape[:1]:
        squeezed = (*squeezed, *(1,) * (len(shape) - 1))
    try:
        broadcast = np.broadcast_shapes(squeezed, shape)
    except ValueError:
        return None
    return squeezed if broadcast == shape else None


def _check_shapes(node: GraphNode, shape: Shape) -> None:
    """Raise `DataError` if a parameter of a node does not fit a signal of `shape`, even if all its numbers are equal.

    One number, in any number of axes, fits everywhere: other libraries write it for a whole population.
    """
    for parameter, values in node.values.items():
        if isinstance(values, np.ndarray) and values.size > 1 and _fitted_shape(values.shape, shape) is None:
            raise _other_shape(node, parameter, values.shape, shape)


def _other_shape(node: GraphNode, parameter: str, own: Shape, shape: Shape) -> DataError:
    return fail(node, f"{parameter} has the shape {list(own)}, but the neurons have the shape {list(shape)}")


def _per_channel(node: GraphNode, parameter: str, values: Factor, shape: Shape, *, shared: str = "weights") -> Factor:
    """One number, or one per channel, `[C]`. In a row of neurons, each neuron is a channel."""
    array = _spread(node, parameter, values, shape)
    if isinstance(array, float):
        return array
    rows = array.reshape(len(array) if array.ndim == len(shape) else 1, -1)
    if not (rows == rows[:, :1]).all():
        raise fail(node, f"{parameter} differs within a channel, but the neurons of a channel share their {shared}")
    return np.broadcast_to(rows[:, 0], shape[:1])


def _scaled(projection: _ImportedProjection, rows: Factor) -> Float32:
    """Weights multiplied by the factors of their rows and columns."""
    node, parameters, columns = projection.node, projection.parameters, projection.columns
    scaled = parameters.values
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if not isinstance(columns, float):
            scaled = scaled * _of_columns(projection)
        if not is_one(rows):
            scaled = scaled * np.reshape(rows, (-1, *(1,) * (scaled.ndim - 1)))
        weights: Float32 = np.ascontiguousarray(scaled, np.float32)
    if not (np.abs(weights) < CEILING).all():
        raise fail(node, "weight is too large, 2^100 or more")
    return weights


def _of_columns(projection: _ImportedProjection) -> Float64:
    """The factors of the inputs in the order of the weights, `[out, in, ...]`."""
    op, shape, columns = projection.parameters.op, projection.shape, projection.columns
    if isinstance(op, Linear):
        return np.broadcast_to(columns, shape).reshape(1, -1)
    channels = np.broadcast_to(_per_channel(projection.node, "what scales its input", columns, shape), shape[:1])
    parts = channels.reshape(op.groups, -1)
    return np.repeat(parts, op.channels // op.groups, axis=0)[:, :, None, None]


def _range(factor: Factor) -> str:
    low, high = float(np.min(factor)), float(np.max(factor))
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
