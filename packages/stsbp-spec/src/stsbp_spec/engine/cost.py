"""What a run costs: operations and memory accesses, counted exactly from its spikes, by layer, step and sample.

The machine of these counts computes nothing for a value of 0. With `x` the value of an input of weights at a step
(after its delay, without dropout), and `f` the number of weights that read this input, the counts of a step are:

    accumulations     sum of f over inputs with x = 1              one addition each
    multiplications   sum of f over all other inputs with x != 0   one multiplication and one addition each
    merges            values != 0 that enter a pooling or a sum of branches    one addition (or comparison) each
    normalisations    sums that batch normalisation normalises     `normalisation_operations` each
    updates           neurons                                      `PopulationCost.operations` each

`f` counts the weights within the borders of a convolution, with its stride, dilation and groups. Each accumulation and
each multiplication reads one weight. Each update reads and writes each state of its neuron once. Images (direct coding)
are the same at all steps, so their weights, poolings and normalisations are counted once, at step 0.
Values other than 0 and 1 are pixels, counts of events above 1, means or sums of pooling windows, and sums of branches.
Steps beyond the length of a sample are not counted, and spikes that would arrive then cost nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from stsbp_spec.engine.plan import rule_of
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import Expr, Recurrence, merged
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.lengths import inside
from stsbp_spec.networks.graph import BoundNode, Neurons, Projection
from stsbp_spec.networks.ops import Add, AvgPool2d, Conv2d, Dropout, Linear, MaxPool2d, OneToOne
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.ops.batchnorm import FORWARD
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.networks.ops.psp import SynapticFilter
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Int64

__all__ = [
    "COUNTS",
    "CostKey",
    "PopulationCost",
    "ProjectionCost",
    "arriving",
    "cost_of_run",
    "dense_multiplications",
    "fan_out",
    "node_values",
    "normalisation_operations",
    "operations_of",
    "population_costs",
    "projection_costs",
]

COUNTS = ("accumulations", "multiplications", "merges", "normalisations", "updates")
"""The names of what is counted."""

ELEMENTARY = {
    "add": "add",
    "sub": "add",
    "mul": "multiply",
    "div": "divide",
    "sqrt": "root",
    "exp": "exp",
    "lt": "compare",
    "ge": "compare",
    "spike": "compare",
}
"""Kinds of elementary operations, by the operations of expressions. The others (a choice, a sign, a snap) are free."""

_NUMPY = NumpyBackend()


class CostKey(NamedTuple):
    """What an array of counts belongs to: the layer (`Block.name`), one of `COUNTS`, and the node that causes it."""

    layer: str
    kind: str
    node: str


@dataclass(frozen=True)
class ProjectionCost:
    """The weights of a projection.

    Attributes:
        layer: name of its layer (`Block.name`).
        weights: number of weights that are stored.
        bits: bits of a weight.
    """

    layer: str
    weights: int
    bits: int


@dataclass(frozen=True)
class PopulationCost:
    """What one step of one neuron of a population costs, with the synaptic filters before it.

    Attributes:
        layer: name of its layer (`Block.name`).
        neurons: number of neurons.
        states: number of states of a neuron that a later step reads, with those of its synaptic filters.
        operations: elementary operations (`ELEMENTARY`), by kind.
    """

    layer: str
    neurons: int
    states: int
    operations: Mapping[str, int]


def cost_of_run(
    network: NetworkSpec,
    inputs: AnyArray,
    spikes: Mapping[str, AnyArray],
    lengths: Int64 | None = None,
    weights: Mapping[str, AnyArray] | None = None,
    delays: Mapping[str, AnyArray] = MappingProxyType({}),
) -> dict[CostKey, Int64]:
    """Count the operations of a run.

    Args:
        network: the network.
        inputs: uint8; images `[B, ...]` with direct coding, or frames `[T, B, ...]`, as for `backend.run`.
        spikes: spikes `[T, B, ...]` of each layer by its name, from `backend.run(...).layers`.
        lengths: number of steps of each sample, `[B]`; None: all steps count.
        weights: weights on their grids by projection. Weights of 0 are then not counted. None: all weights count.
        delays: learned delays by the names of their parameters (`Network.delays`), as for `backend.run`. It may have
            other parameters too.

    Returns:
        int64 `[T, B]` for each node that can cost something. Keys of a network are always the same.

    Raises:
        ShapeError: an array does not fit the network.
    """
    graph, layers = network.graph, _layers(network)
    missing = next((block.name for block in network.blocks if block.name not in spikes), None)
    if missing is not None:
        raise ShapeError(f"the spikes of layer {missing} are missing; give those of all layers of the run")
    steps, samples = spikes[network.blocks[-1].name].shape[:2]
    values = node_values(network, inputs, spikes, (steps, samples), delays)
    mask = np.ones((steps, samples), bool) if lengths is None else inside(np.asarray(lengths), steps)
    projections = {projection.name: projection for projection in graph.projections}
    costs: dict[CostKey, Int64] = {}
    for bound_node in graph.bound_nodes:
        node = bound_node.node
        read = [arriving(values[edge.source], edge.delay) for edge in node.inputs if edge.source in values]
        if isinstance(node.op, Neurons):
            counts = {"updates": mask * np.int64(math.prod(bound_node.output.shape))}
        elif node.name in projections:
            fans = fan_out(projections[node.name], None if weights is None else weights[node.name])
            counts = _counts_of_weights(bound_node, projections[node.name], read[0], fans, mask)
        else:
            counts = _counts_of_merge(bound_node, read, mask)
        costs |= {CostKey(layers[node.name], kind, node.name): x for kind, x in counts.items()}
    return costs


def _counts_of_weights(
    bound_node: BoundNode, projection: Projection, read: AnyArray, fans: Int64, mask: AnyArray
) -> dict[str, Int64]:
    """Counts `[T, B]` of the weights that read values, and of the normalisation of their sums, by name."""
    ones, others = _weighted(read, fans, mask)
    counts = {"accumulations": ones, "multiplications": others}
    if projection.synapse.norm is not None:
        normalised = mask.astype(np.int64) * math.prod(bound_node.output.shape)
        if bound_node.output.static:
            normalised[1:] = 0
        counts["normalisations"] = normalised
    return counts


def _counts_of_merge(bound_node: BoundNode, read: Sequence[AnyArray], mask: AnyArray) -> dict[str, Int64]:
    """Counts `[T, B]` of a pooling or a sum of branches, by name. Empty for other nodes."""
    places = _merging(bound_node)
    if places is None:
        return {}
    entering = np.zeros(mask.shape, np.int64)
    for values, counted in zip(read, places, strict=True):
        entering += np.add(*_weighted(values, counted, mask))
    return {"merges": entering}


def population_costs(network: NetworkSpec) -> dict[str, PopulationCost]:
    """What one step of a neuron costs, by the population's node."""
    bound_nodes, costs = {x.node.name: x for x in network.graph.bound_nodes}, {}
    for block in network.blocks:
        bound_node = bound_nodes[block.population]
        filters = tuple(values.filter(training=False) for values in bound_node.inputs)
        static = tuple(values.static for values in bound_node.inputs)
        operations, states = _neuron_operations(filters, block.neuron, static)
        costs[block.population] = PopulationCost(
            block.name, math.prod(bound_node.output.shape), states, dict(operations)
        )
    return costs


def projection_costs(network: NetworkSpec) -> dict[str, ProjectionCost]:
    """The weights of each projection, by its node. Shared weights are those of each projection that reads them."""
    layers = _layers(network)
    return {
        projection.name: ProjectionCost(
            layers[projection.name], math.prod(projection.weight_shape), projection.synapse.weight_bits
        )
        for projection in network.graph.projections
    }


def dense_multiplications(network: NetworkSpec) -> dict[str, tuple[int, bool]]:
    """Multiply-adds of each projection for one frame if every value is multiplied, zero or not, by its node.

    Zeros around the input of a convolution are no values. The second result says whether all steps read the same frame.
    """
    return {
        projection.name: (int(fan_out(projection).sum()), projection.input.static)
        for projection in network.graph.projections
    }


def fan_out(projection: Projection, weights: AnyArray | None = None) -> Int64:
    """Number of weights that read each value of the input of a projection, in the shape of the input.

    Args:
        projection: the projection.
        weights: its weights, of which those of 0 are not counted; None: all are counted.
    """
    if weights is not None and weights.shape != projection.weight_shape:
        raise ShapeError(
            f"the weights of {projection.name} have the shape {projection.weight_shape}, got {weights.shape}"
        )
    if weights is None:
        return _full_fan_out(projection)
    return _fan_out(projection, (weights != 0).astype(np.int64))


@lru_cache(maxsize=256)
def _full_fan_out(projection: Projection) -> Int64:
    fans = _fan_out(projection, np.ones(projection.weight_shape, np.int64))
    fans.setflags(write=False)
    return fans


def _fan_out(projection: Projection, present: Int64) -> Int64:
    """`fan_out` of the weights that are 1 in `present`."""
    op, shape = projection.synapse, projection.input.shape
    if isinstance(op, Conv2d):
        return _conv_fan_out(op, present, shape, projection.output_shape)
    if isinstance(op, Linear):
        readers: Int64 = present.sum(axis=0).reshape(shape)
        return readers
    if isinstance(op, OneToOne):
        return present.reshape(shape)
    raise SpecError(f"the weights of {projection.name} are a {type(op).__name__}, whose cost is not defined")


def _conv_fan_out(op: Conv2d, present: Int64, shape: Sequence[int], output: Sequence[int]) -> Int64:
    channels, height, width = shape
    fans = np.zeros((channels, height, width), np.int64)
    # A tap of the kernel reads each output position at one input position.
    by_input = present.reshape(op.groups, -1, *present.shape[1:]).sum(axis=1).reshape(channels, *op.kernels)
    for row, column in np.ndindex(op.kernels):
        rows, columns = (
            np.arange(size) * stride + index * dilation - padding
            for index, size, stride, dilation, padding in zip(
                (row, column), output[1:], op.strides, op.dilations, op.paddings, strict=True
            )
        )
        rows, columns = rows[(rows >= 0) & (rows < height)], columns[(columns >= 0) & (columns < width)]
        fans[:, rows[:, None], columns] += by_input[:, row, column][:, None, None]
    return fans


def _weighted(values: AnyArray, counts: Int64, mask: AnyArray) -> tuple[Int64, Int64]:
    """Sums of `counts` over the values that are 1, and over those that are neither 0 nor 1, int64 `[T, B]`.

    Values `[1, B, ...]` are those of all steps, and are counted at step 0.
    """
    per_place = counts.reshape(-1)
    sums = np.zeros((2, *mask.shape), np.int64)
    for step, frame in enumerate(values):
        rows = frame.reshape(len(frame), -1)
        is_one, is_present = rows == 1, rows != 0
        sums[0, step] = is_one @ per_place
        # Most frames have only zeros and ones.
        if np.count_nonzero(is_present) != np.count_nonzero(is_one):
            sums[1, step] = (is_present & ~is_one) @ per_place
    sums *= mask
    return sums[0], sums[1]


def arriving(values: AnyArray, delay: int) -> AnyArray:
    """Values `[T, ...]` that arrive `delay` steps later. Those after the last step never do."""
    if delay == 0:
        return values
    delayed = np.zeros_like(values)
    delayed[delay:] = values[: max(0, len(values) - delay)]
    return delayed


def node_values(
    network: NetworkSpec,
    inputs: AnyArray,
    spikes: Mapping[str, AnyArray],
    steps_and_samples: tuple[int, int],
    delays: Mapping[str, AnyArray] = MappingProxyType({}),
) -> dict[str, AnyArray]:
    """The values of the nodes that have no weights, by name, without dropout.

    Args:
        network, inputs, spikes, delays: as for `cost_of_run`.
        steps_and_samples: T and B.

    Returns:
        `[T, B, ...]`, or `[1, B, ...]` if the values are the same at all steps.

    Raises:
        ShapeError: an array does not fit the network.
    """
    values: dict[str, AnyArray] = {}
    populations = {block.population: spikes[block.name] for block in network.blocks}
    for number, bound_node in enumerate(network.graph.bound_nodes):
        node, op, shape = bound_node.node, bound_node.node.op, bound_node.output.shape
        if number == 0:
            values[node.name] = inputs[None] / np.float32(256) if bound_node.output.static else inputs
        elif node.name in populations:
            values[node.name] = populations[node.name]
        elif isinstance(op, Dropout):
            values[node.name] = arriving(values[node.inputs[0].source], node.inputs[0].delay)
        elif isinstance(op, LearnedDelay):
            (name,) = bound_node.parameters.values()
            if name not in delays:
                raise ShapeError(f"the learned delays {name} are missing; give those of the run")
            (edge,) = node.inputs
            values[node.name] = _NUMPY.delay_forward(arriving(values[edge.source], edge.delay), delays[name])
        elif not bound_node.output.weighted:
            read = [arriving(values[edge.source], edge.delay) for edge in node.inputs]
            op = op.at(bound_node.inputs[0].shape) if isinstance(op, Passing) else op
            values[node.name] = rule_of(_NUMPY, op).forward(op, *read)[0]
        else:
            continue
        expected = (1 if bound_node.output.static else steps_and_samples[0], steps_and_samples[1], *shape)
        if values[node.name].shape != expected:
            raise ShapeError(f"the values of {node.name} must be {expected}, got {values[node.name].shape}")
    return values


def _merging(bound_node: BoundNode) -> list[Int64] | None:
    """For each input of a pooling or a sum, which of its values are added or compared. None: for other nodes."""
    op = bound_node.node.op
    shapes = [values.shape for values in bound_node.inputs]
    if isinstance(op, Add):
        return [np.ones(shape, np.int64) for shape in shapes]
    pooling = op.at(shapes[0]) if isinstance(op, Passing) else op
    if not isinstance(pooling, (AvgPool2d, MaxPool2d)) or pooling.area == 1:
        return None
    counted = np.zeros(shapes[0], np.int64)
    _, rows, columns = bound_node.output.shape
    # Rows and columns that fill no window are not read.
    counted[:, : rows * pooling.sizes[0], : columns * pooling.sizes[1]] = 1
    return [counted]


def _layers(network: NetworkSpec) -> dict[str, str]:
    """The layer of each node: that of its population, or the first one that reads a node without weights."""
    graph, layers = network.graph, {}
    nodes = {node.name: node for node in graph.nodes}
    for block in network.blocks:
        waiting = [block.population]
        while waiting:
            name = waiting.pop()
            # A population that is read belongs to its own layer, which came before.
            if name in layers or (isinstance(nodes[name].op, Neurons) and name != block.population):
                continue
            layers[name] = block.name
            waiting += [edge.source for edge in nodes[name].inputs]
    return layers


# Elementary operations of an equation.
@cache
def _neuron_operations(
    filters: tuple[SynapticFilter, ...], neuron: object, static: tuple[bool, ...]
) -> tuple[Counter[str], int]:
    equations = neuron_equations(filters, neuron, static)  # type: ignore[arg-type]
    forward, constants = equations.forward, equations.constants
    output = "o" if equations.neuron.makes_spikes else "u"
    return operations_of(forward, {name: float(constants[name]) for name in forward.parameters}, (output,))


@cache
def normalisation_operations() -> Mapping[str, int]:
    """Elementary operations that normalise one sum."""
    return dict(operations_of(FORWARD, {}, tuple(FORWARD.outputs))[0])


def operations_of(
    recurrence: Recurrence, constants: Mapping[str, float], outputs: Sequence[str]
) -> tuple[Counter[str], int]:
    """Elementary operations of one step of an equation, and the number of its states that a later step reads.

    Products with a constant 0 or 1, sums with 0, and what neither the outputs nor a later step needs are not counted.

    Args:
        recurrence: the equation.
        constants: values of its parameters.
        outputs: the outputs that are needed.
    """
    # States start at 0. Those that are 0 after a step if they were 0 before it stay 0.
    silent = set(recurrence.states)
    while True:
        simplified = _Simplified(recurrence, {**constants, **dict.fromkeys(silent, 0.0)})
        still_silent = {name for name in silent if simplified.value(recurrence.states[name]) == 0}
        if still_silent == silent:
            break
        silent = still_silent
    roots, states = [recurrence.outputs[name] for name in outputs], set[str]()
    while True:
        needed = simplified.needed(roots)
        read = {str(x.name) for x, _ in needed if x.op == "variable" and x.name in recurrence.states} - silent
        if read <= states:
            break
        states |= read
        roots += [recurrence.states[name] for name in read]
    return Counter(ELEMENTARY[x.op] for x, is_free in needed if x.op in ELEMENTARY and not is_free), len(states)


class _Simplification(NamedTuple):
    """What is left of an operation: its value if it is known, the operands that it needs, and whether it is free."""

    value: float | None
    operands: tuple[int, ...] = ()
    is_free: bool = True


class _Simplified:
    """The operations of an equation, without those whose result is known or that of another one."""

    def __init__(self, recurrence: Recurrence, constants: Mapping[str, float]) -> None:
        self._nodes, self._index_of = merged(recurrence.roots)
        self._left: list[_Simplification] = []
        for x, operands in self._nodes:
            values = [self._left[i].value for i in operands]
            self._left.append(_simplified(x, operands, values, constants))

    def value(self, x: Expr) -> float | None:
        """The value of a node if it is known."""
        return self._left[self._index_of[id(x)]].value

    def needed(self, roots: Sequence[Expr]) -> list[tuple[Expr, bool]]:
        """The nodes that the roots need, and whether each is free."""
        waiting, visited = [self._index_of[id(x)] for x in roots], set[int]()
        while waiting:
            index = waiting.pop()
            if index not in visited:
                visited.add(index)
                waiting += self._left[index].operands
        return [(self._nodes[index][0], self._left[index].is_free) for index in sorted(visited)]


def _simplified(
    x: Expr, operands: tuple[int, ...], values: Sequence[float | None], constants: Mapping[str, float]
) -> _Simplification:
    if x.op == "variable":
        return _Simplification(constants.get(str(x.name)))
    if x.op == "constant":
        return _Simplification(x.value)
    if x.op == "where":
        condition, *branches = values
        if condition is not None:
            chosen = 1 if condition else 2
            return _Simplification(values[chosen], (operands[chosen],))
        is_same = branches[0] is not None and branches[0] == branches[1]
        return _Simplification(branches[0] if is_same else None, () if is_same else operands)
    if len(operands) == 1:
        (value,) = values
        if value is not None:
            return _Simplification(_of_one(x.op, value))
        return _Simplification(None, operands, x.op not in ELEMENTARY)
    left, right = values
    if left is not None and right is not None:
        return _Simplification(_of_two(x.op, left, right))
    if (x.op == "mul" and 0 in (left, right)) or (x.op == "div" and left == 0):
        return _Simplification(0.0)
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}.get(x.op)
    if neutral is not None and right == neutral:
        return _Simplification(None, operands[:1])
    # 0 - x only changes a sign.
    if x.op in ("add", "sub", "mul") and left == neutral:
        return _Simplification(None, operands[1:])
    return _Simplification(None, operands, is_free=False)


def _of_one(op: str, value: float) -> float:
    if op in ("sqrt", "exp"):
        return float({"sqrt": math.sqrt, "exp": math.exp}[op](value))
    return -value if op == "neg" else abs(value) if op == "abs" else value


def _of_two(op: str, left: float, right: float) -> float:
    if op == "div":
        return left / right if right else math.nan
    results = {"add": left + right, "sub": left - right, "mul": left * right, "lt": float(left < right)}
    return results.get(op, float(left >= right))
