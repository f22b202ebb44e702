"""A network as C functions, tables and a state: their memory layout, and the order of calls in a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import EXACT_LIMIT_BITS
from stsbp_spec.networks.graph import Edge, Input, Neurons, Node, Weighted
from stsbp_spec.networks.ops import Dropout, Flatten
from stsbp_spec.networks.ops.delay import LearnedDelay

from stsbp.errors import ConfigError
from stsbp.interop.c_source.arrays import Array
from stsbp.interop.c_source.kernels import ConstantTable, delayed, ordered, passes, sums
from stsbp.interop.c_source.steps import BATCHNORM, SNAP, Fire, WeightedSums, elements, reduced
from stsbp.interop.c_source.texts import SIZES, UniqueNames, comment, function, number_type, table
from stsbp.interop.program import NetworkProgram, PopulationStep

__all__ = ["ComparedLayer", "Module", "StateField"]

_LARGEST = 2**29
"""Limit for the number of values in a table or a field of the state. An `int32_t` counts its bytes."""


@dataclass(frozen=True)
class StateField:
    """A field of the state: an array; with a count of 0, a single number."""

    name: str
    type: str
    count: int
    meaning: str

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return SIZES[self.type] * max(1, self.count)

    @property
    def text(self) -> str:
        """The declaration."""
        return f"{self.type} {self.name}{f'[{self.count}]' if self.count else ''}; /* {comment(self.meaning)} */"


@dataclass(frozen=True)
class ComparedLayer:
    """A population, for programs that compare layer by layer.

    Attributes:
        name: name of its block.
        array: memory layout of its spikes and potentials.
        spikes, potentials: fields of the state.
    """

    name: str
    array: Array
    spikes: StateField
    potentials: StateField


@dataclass(frozen=True)
class _Added:
    """Weights that are applied right before the population that reads them: a call without the position of the sums."""

    call: str
    sums: WeightedSums


@dataclass(frozen=True)
class _Ring:
    """The memory of delayed edges: values of the last steps, and the position that is overwritten next."""

    past: StateField
    position: StateField
    length: int

    @property
    def size(self) -> int:
        """Number of values per step."""
        return self.past.count // self.length


class Module:
    """The parts of a network's source.

    Attributes:
        traced: fields of the state that only exist with the macro `trace`.
        tables: constant tables.
        functions: functions of the nodes.
        begin: statements that run once per sample, for values that are the same at all steps.
        step: statements of a step.
        layers: populations in order. The last one is the output.
        flash: size of the tables in bytes.

    Args:
        program: the network.
        stem: beginning of all public names.
        trace: the macro with which the potentials of all populations are kept.

    Raises:
        ConfigError: a node cannot be written in C, or is too large. The message names it.
    """

    def __init__(self, program: NetworkProgram, stem: str, trace: str) -> None:
        self._program, self._graph, self._stem, self._trace = program, program.network.graph, stem, trace
        public = ("state", "reset", "begin", "step", "run", "check", "trace", "layer_sizes", "size")
        self._names = UniqueNames(f"{stem}_{suffix}" for suffix in public)
        self._fields, self.traced = list[StateField](), list[StateField]()
        self.tables, self.functions = list[str](), list[list[str]]()
        self.begin, self.step, self.layers = list[str](), list[str](), list[ComparedLayer]()
        self.flash, self._table_names = 0, dict[tuple[str, bytes], str]()
        self._arrays, self._pointers = dict[str, Array](), dict[str, str]()
        self._inlined, self._rings = dict[str, _Added](), dict[str, _Ring]()
        self._limits, self._scratch = dict[str, float](), 1
        self._add_layers()
        for node in program.nodes:
            self._add(node)
        self._fields.append(StateField("sums", "int32_t", self._scratch, "sums of weights"))
        for source, ring in self._rings.items():
            self._remember(source, ring)

    @property
    def state(self) -> list[StateField]:
        """Fields of the state, the largest types first, so that there is no padding between them."""
        return sorted(self._fields, key=lambda member: -SIZES[member.type])

    @property
    def ram(self) -> int:
        """Size of the state in bytes."""
        return -(-sum(member.bytes for member in self._fields) // 4) * 4

    @property
    def helpers(self) -> Iterator[list[str]]:
        """Functions that the functions of the nodes call."""
        text = "\n".join(row for rows in self.functions for row in rows)
        if "snap(" in text or "batchnorm(" in text:
            yield SNAP
        if "batchnorm(" in text:
            yield BATCHNORM
        if self._rings:
            earlier = "return (at >= delay) ? (at - delay) : ((at + length) - delay);"
            yield function("static int32_t past(int32_t at, int32_t delay, int32_t length)", [earlier])

    # Memory.
    def _member(self, node: str, suffix: str, type: str, count: int, text: str, *, traced: bool = False) -> StateField:
        self._check_size(node, count)
        member = StateField(self._names(node, suffix), type, count, text)
        (self.traced if traced else self._fields).append(member)
        return member

    def _check_size(self, node: str, count: int) -> None:
        if count >= _LARGEST:
            raise ConfigError(
                f"{node}: {count:,} numbers are too many for C source, which takes {_LARGEST - 1:,} at most"
            )

    def _table(self, node: str, suffix: str, values: np.ndarray[Any, Any]) -> ConstantTable:
        """A constant table. If there is one with the same numbers, it is reused."""
        self._check_size(node, values.size)
        c_type = number_type(values)
        key = (c_type, values.astype(np.float32 if c_type == "float" else np.int32, order="C").tobytes())
        if key not in self._table_names:
            self._table_names[key] = self._names(node, suffix)
            self.flash += SIZES[c_type] * values.size
            self.tables += [*table(self._table_names[key], values), ""]
        return ConstantTable(self._table_names[key], c_type)

    @cached_property
    def _aliases(self) -> dict[str, Edge]:
        """Nodes that only pass on their input in the same memory: dropout, flattening without reordering, and learned
        delays that are all 0."""
        aliases = dict[str, Edge]()
        for node in self._program.nodes:
            if isinstance(node.op, Dropout) or self._lies_flat(node) or self._delays_nothing(node):
                (edge,) = node.inputs
                source_edge = aliases.get(edge.source, Edge(edge.source))
                aliases[node.name] = Edge(source_edge.source, source_edge.delay + edge.delay)
        return aliases

    def _delays_nothing(self, node: Node) -> bool:
        return isinstance(node.op, LearnedDelay) and not self._program.delays[node.name].any()

    def _lies_flat(self, node: Node) -> bool:
        if not isinstance(node.op, Flatten):
            return False
        shape = self._graph.values[node.inputs[0].source].shape
        return len(shape) == 1 or shape[0] == 1 or shape[1] == shape[2] == 1

    def _memory_edge(self, edge: Edge) -> Edge:
        """The edge from the node in whose memory the values of an edge are."""
        source_edge = self._aliases.get(edge.source, Edge(edge.source))
        return Edge(source_edge.source, source_edge.delay + edge.delay)

    def _array(self, edge: Edge) -> Array:
        """The memory layout of the values on an edge."""
        return replace(self._arrays[self._memory_edge(edge).source], shape=self._graph.values[edge.source].shape)

    @cached_property
    def _delays(self) -> dict[str, int]:
        """The longest delay with which each node is read, apart from recurrences."""
        delays = dict[str, int]()
        for node in self._program.nodes:
            for edge in node.inputs if node.name not in self._program.recurrent else ():
                memory_edge = self._memory_edge(edge)
                if memory_edge.delay:
                    delays[memory_edge.source] = max(memory_edge.delay, delays.get(memory_edge.source, 0))
        return delays

    def _pointer(self, edge: Edge, reader: str) -> str:
        """A pointer to the values on an edge, in C."""
        memory_edge = self._memory_edge(edge)
        # Recurrent weights are applied before their population fires, so its spikes are still those of the previous
        # step.
        if not memory_edge.delay or reader in self._program.recurrent:
            return self._pointers[memory_edge.source]
        ring = self._rings[memory_edge.source]
        step = f"past(state->{ring.position.name}, {memory_edge.delay}, {ring.length})"
        return f"&state->{ring.past.name}[{step} * {ring.size}]"

    def _remember_output(self, name: str, pointer: str, type: str, size: int) -> None:
        """Record where a node's values are, and keep those of earlier steps if an edge reads them."""
        self._pointers[name] = pointer
        if length := self._delays.get(name):
            past = self._member(name, "past", type, length * size, f"{name} of the last {length} steps")
            position = self._member(name, "at", "int32_t", 0, "which of them is overwritten next")
            self._rings[name] = _Ring(past, position, length)

    def _remember(self, source: str, ring: _Ring) -> None:
        """Add statements at the end of a step that keep the values."""
        position, bytes = f"state->{ring.position.name}", f"(size_t){ring.size} * sizeof({ring.past.type})"
        self.step += [
            f"(void)memcpy(&state->{ring.past.name}[{position} * {ring.size}], {self._pointers[source]}, {bytes});",
            f"{position} = ({position} == {ring.length - 1}) ? 0 : ({position} + 1);",
        ]

    # Nodes.
    def _add_layers(self) -> None:
        """Add spikes and potentials of all populations first, because a recurrence reads spikes of a later
        population."""
        blocks = {block.population: block.name for block in self._program.network.blocks}
        last = self._program.nodes[-1].name
        for name, population in self._program.populations.items():
            array = self._arrays[name] = Array(population.bound_node.output.shape, 1, 0)
            spikes = self._member(name, "spikes", "uint8_t", array.size, f"{name}: whether each neuron spikes")
            description = f"{name}: membrane potentials"
            potentials = self._member(name, "u", "float", array.size, description, traced=name != last)
            self.layers.append(ComparedLayer(blocks[name], array, spikes, potentials))
            self._pointers[name] = f"state->{spikes.name}"

    def _add(self, node: Node) -> None:
        if isinstance(node.op, Input):
            values = self._graph.values[node.name]
            array = self._arrays[node.name] = Array.of(values, is_input=True)
            self._remember_output(node.name, "image" if values.static else "frame", array.type, array.size)
        elif isinstance(node.op, Neurons):
            self._add_population(node, self._program.populations[node.name])
        elif isinstance(node.op, Weighted):
            self._add_weights(node, node.op)
        elif isinstance(node.op, LearnedDelay) and node.name not in self._aliases:
            self._add_learned_delay(node)
        elif node.name not in self._aliases:
            self._add_passing(node)

    def _define(self, description: str, text: list[str]) -> None:
        self.functions.append([f"/* {comment(description)} */", *text])

    def _calls(self, node: Node) -> list[str]:
        """The list of statements from which a node is called."""
        return self.begin if self._graph.values[node.name].static else self.step

    def _add_passing(self, node: Node) -> None:
        array, name = Array.of(self._graph.values[node.name]), self._names(node.name, "pass")
        text = passes(node.op, name, [self._array(edge) for edge in node.inputs], array)
        if text is None:
            raise ConfigError(f"{node.name}: there is no C source for {type(node.op).__name__}")
        self._define(f"{node.name}: {type(node.op).__name__}", text)
        output = self._member(node.name, "out", array.type, array.size, f"what {node.name} makes")
        pointers = ", ".join(self._pointer(edge, node.name) for edge in node.inputs)
        self._calls(node).append(f"{name}({pointers}, state->{output.name});")
        self._arrays[node.name] = array
        self._remember_output(node.name, f"state->{output.name}", array.type, array.size)

    def _add_learned_delay(self, node: Node) -> None:
        """Add the function of learned delays, and the memory of the values that are on their way."""
        (edge,), delays = node.inputs, self._program.delays[node.name]
        source, output = self._array(edge), Array.of(self._graph.values[node.name])
        longest, waiting = int(delays.max()), int(delays.sum(dtype=np.int64)) * (output.size // output.shape[0])
        self._check_size(node.name, waiting)
        bits = output.largest == 1
        text = f"the last values of {node.name}, of each channel as many steps as its delay{', a bit each' * bits}"
        past_type, count = ("uint8_t", -(-waiting // 8)) if bits else (output.type, waiting)
        past = self._member(node.name, "past", past_type, count, text)
        at_type = next(name for name in ("uint8_t", "uint16_t") if longest <= 2 ** (8 * SIZES[name]))
        at = self._member(node.name, "at", at_type, len(delays), "which step of a channel is given next, and replaced")
        out = self._member(node.name, "out", output.type, output.size, f"what {node.name} gives")
        name, steps = self._names(node.name, "delay"), self._table(node.name, "steps", delays)
        self._define(
            f"{node.name}: learned delays, the longest {longest} steps",
            delayed(name, steps, source, output, past_type, at_type, bits=bits),
        )
        state = ", ".join(f"state->{member.name}" for member in (past, at, out))
        self.step.append(f"{name}({self._pointer(edge, node.name)}, {state});")
        self._arrays[node.name] = output
        self._remember_output(node.name, f"state->{out.name}", output.type, output.size)

    def _add_weights(self, node: Node, op: Weighted) -> None:
        """Add the function of the sums of weights. They go into the population that reads them, or are stored."""
        weights, (edge,) = self._program.weights[node.name], node.inputs
        source, values = self._array(edge), self._graph.values[node.name]
        integers = ordered(op, weights.integers, source)
        if integers is None:
            raise ConfigError(f"{node.name}: there is no C source for {type(op).__name__}")
        name = self._names(node.name, "sum")
        sum_function = sums(op, name, self._table(node.name, "weights", integers), source, values.shape)
        self._define(f"{node.name}: sums of weights, in units of 2^-{weights.sum_exponent}", sum_function)
        norm = [] if weights.norm is None else [(key, getattr(weights.norm, key)) for key in ("mean", "a", "shift")]
        tables = tuple(self._table(node.name, *named_values).name for named_values in norm)
        limit = inf if norm else 2.0 ** (EXACT_LIMIT_BITS - weights.sum_exponent)
        weighted_sums = WeightedSums("state->sums", weights.sum_exponent, tables, limit)
        added = _Added(f"{name}({self._pointer(edge, node.name)}, ", weighted_sums)
        readers = [
            named_values
            for node_of_program in self._program.nodes
            for named_values in node_of_program.inputs
            if named_values.source == node.name
        ]
        if values.static or len(readers) > 1 or readers[0].delay:
            self._store_sums(node, added)
        else:
            self._inlined[node.name] = added

    def _store_sums(self, node: Node, added: _Added) -> None:
        """Keep weighted sums in the state: for all steps of a sample, for later steps, or for several populations."""
        shape = self._graph.values[node.name].shape
        size = Array(shape, 1, 0).size
        self._scratch = max(self._scratch, size)
        stored_sums = self._member(node.name, "z", "float", size, f"sums of {node.name}")
        name = self._names(node.name, "keep")
        norm = bool(added.sums.norm)
        _, channel = elements(shape, norm, [])
        body, _ = elements(shape, norm, [f"out[n] = {added.sums.read('sum', channel)};"])
        text = function(f"static void {name}(const int32_t *sum, float *out)", body)
        self._define(f"{node.name}: its sums as they are kept", text)
        pointer, self._limits[node.name] = f"state->{stored_sums.name}", added.sums.limit
        self._calls(node).extend([f"{added.call}state->sums);", f"{name}(state->sums, {pointer});"])
        self._remember_output(node.name, pointer, "float", size)

    def _add_population(self, node: Node, population: PopulationStep) -> None:
        """Add the function of a population, after the sums that it reads."""
        size, sums_by_input, used = Array(population.bound_node.output.shape, 1, 0).size, dict[str, WeightedSums](), 0
        for key, edge in zip(population.sums, node.inputs, strict=True):
            if (added := self._inlined.get(edge.source)) is None:
                sums_by_input[key] = WeightedSums(self._pointer(edge, node.name), limit=self._limits[edge.source])
                continue
            pointer = f"&state->sums[{used}]"
            self.step.append(f"{added.call}{pointer});")
            sums_by_input[key] = replace(added.sums, pointer=pointer)
            used += size
        self._scratch = max(self._scratch, used)
        step = reduced(population, sums_by_input)
        if not step.exact:
            raise ConfigError(
                f"{node.name}: the neuron's step has exp, whose last bits differ between C libraries; write it without"
            )
        fields = {key: self._member(node.name, key, "float", size, f"{node.name}: state {key}") for key in step.states}
        fire = Fire(
            population,
            step,
            sums_by_input,
            {key: self._table(node.name, key, x).name for key, x in population.learned.items() if x.size > 1},
            {key: f"state->{member.name}" for key, member in fields.items()},
            self._pointers[node.name],
            f"state->{self.layers[list(self._program.populations).index(node.name)].potentials.name}",
            None if node.name == self._program.nodes[-1].name else self._trace,
        )
        name = self._names(node.name, "fire")
        self._define(f"{node.name}: a step of all neurons", fire.text(name, f"{self._stem}_state"))
        self.step.append(f"{name}(state);")
        self._remember_output(node.name, self._pointers[node.name], "uint8_t", size)
