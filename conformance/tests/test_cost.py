"""The operations of a run (stsbp_spec.engine.cost) are those of loops over all weights, on every backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
from stsbp_conformance.random_networks import RandomCase, random_case
from stsbp_conformance.reference import NUMPY
from stsbp_spec import open_backend
from stsbp_spec.engine.backend import RunResult
from stsbp_spec.engine.cost import COUNTS, CostKey, cost_of_run, population_costs, projection_costs
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.networks.graph import Input, Neurons
from stsbp_spec.networks.ops import (
    Add,
    AvgPool2d,
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
)
from stsbp_spec.registry import installed_backends
from stsbp_spec.typing import AnyArray, Int64

CASES = range(60)


def _weights_at(op: Any, shape: tuple[int, ...], output: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    """For each weight and place where it is used: its index, and the flat index of the input that it reads."""
    if isinstance(op, OneToOne):
        yield from (((n, 0), n) for n in range(shape[0]))
    elif isinstance(op, Linear):
        yield from (((n, k), k) for n, k in product(range(op.units), range(int(np.prod(shape)))))
    else:
        assert isinstance(op, Conv2d)
        channels, height, width = shape
        per_group, outputs = channels // op.groups, op.channels // op.groups
        for c, y, x in np.ndindex(output):
            for e, i, j in product(range(per_group), *map(range, op.kernels)):
                row = y * op.strides[0] + i * op.dilations[0] - op.paddings[0]
                column = x * op.strides[1] + j * op.dilations[1] - op.paddings[1]
                if 0 <= row < height and 0 <= column < width:
                    yield (c, e, i, j), ((c // outputs * per_group + e) * height + row) * width + column


def _pooled(op: Any, frame: AnyArray) -> AnyArray:
    """One frame `[C, H, W]` after pooling, window by window."""
    rows, columns = frame.shape[1:] if isinstance(op, GlobalAvgPool) else op.sizes
    c, h, w = frame.shape[0], frame.shape[1] // rows, frame.shape[2] // columns
    pooled = np.zeros((c, h, w))
    for k, y, x in np.ndindex(c, h, w):
        window = frame[k, y * rows : (y + 1) * rows, x * columns : (x + 1) * columns]
        if isinstance(op, MaxPool2d):
            pooled[k, y, x] = window.max()
        else:
            power_of_two = rows * columns in (1, 2, 4, 8, 16, 32, 64, 128, 256)
            pooled[k, y, x] = window.sum() / (rows * columns if power_of_two else 1)
    return pooled


def _entering(op: Any, frame: AnyArray) -> int:
    """Number of values that a pooling of one frame adds or compares."""
    rows, columns = frame.shape[1:] if isinstance(op, GlobalAvgPool) else op.sizes
    if rows * columns == 1:
        return 0
    read = frame[:, : frame.shape[1] // rows * rows, : frame.shape[2] // columns * columns]
    return int(np.count_nonzero(read))


class Loops:
    """Counts of one sample, from loops over steps, nodes, places and weights."""

    def __init__(self, case: RandomCase, spikes: Mapping[str, AnyArray], sample: int) -> None:
        self.network, self.sample, self.weights = case.network, sample, case.weights()
        self.steps = case.steps if case.lengths is None else case.lengths[sample]
        self.total_steps = case.steps
        self.spikes = {block.population: spikes[block.name][:, sample] for block in case.network.blocks}
        inputs = unpacked(case.data().inputs)
        self.static = case.network.coding == "direct"
        self.inputs = inputs[sample] / 256 if self.static else inputs[:, sample]
        self.nodes = {bound_node.node.name: bound_node for bound_node in case.network.graph.bound_nodes}

    def frame(self, name: str, step: int) -> AnyArray:
        """The output of a node at a step."""
        bound_node = self.nodes[name]
        op = bound_node.node.op
        if step < 0:
            return np.zeros(bound_node.output.shape)
        if isinstance(op, Input):
            return self.inputs if self.static else self.inputs[step]
        if isinstance(op, Neurons):
            spikes: AnyArray = self.spikes[name][step]
            return spikes
        if isinstance(op, LearnedDelay):
            (edge,), delays = bound_node.node.inputs, self.weights[f"{name}.steps"]
            steps = [step - round(float(delay)) - edge.delay for delay in delays]
            return np.stack([self.frame(edge.source, max(t, -1))[channel] for channel, t in enumerate(steps)])
        read = [self.frame(edge.source, step - edge.delay) for edge in bound_node.node.inputs]
        if isinstance(op, Add):
            total: AnyArray = np.sum([np.asarray(x, float) for x in read], axis=0)
            return total
        if isinstance(op, Concat):
            joined: AnyArray = np.concatenate(read)
            return joined
        if isinstance(op, Flatten):
            return read[0].reshape(-1)
        if isinstance(op, Upsample2d):
            return read[0].repeat(op.factors[0], axis=1).repeat(op.factors[1], axis=2)
        return read[0] if isinstance(op, Dropout) else _pooled(op, read[0])

    def counts(self, weights: Mapping[str, AnyArray] | None) -> Counter[tuple[str, str, int]]:
        """Counts by the name of a count, node and step."""
        counts = Counter[tuple[str, str, int]]()
        for step, (name, bound_node) in product(range(self.steps), self.nodes.items()):
            op, edges = bound_node.node.op, bound_node.node.inputs
            if step and bound_node.output.static and not isinstance(op, Neurons):
                continue
            if isinstance(op, Neurons):
                counts["updates", name, step] += sum(1 for _ in np.ndindex(bound_node.output.shape))
            elif isinstance(op, Add):
                for edge in edges:
                    counts["merges", name, step] += int(np.count_nonzero(self.frame(edge.source, step - edge.delay)))
            elif isinstance(op, (AvgPool2d, MaxPool2d, GlobalAvgPool)):
                counts["merges", name, step] += _entering(op, self.frame(edges[0].source, step - edges[0].delay))
            elif isinstance(op, (Conv2d, Linear, OneToOne)):
                read = self.frame(edges[0].source, step - edges[0].delay).reshape(-1)
                for index, place in _weights_at(op, bound_node.inputs[0].shape, bound_node.output.shape):
                    if read[place] and (weights is None or weights[name][index] != 0):
                        counts["accumulations" if read[place] == 1 else "multiplications", name, step] += 1
                if op.norm is not None:
                    counts["normalisations", name, step] += int(np.prod(bound_node.output.shape))
        return counts


def grids(case: RandomCase) -> dict[str, AnyArray]:
    """Weights on their grids, by projection."""
    drawn = case.weights()
    return {
        projection.name: NUMPY.weight_grid(projection, drawn[projection.parameter])[0]
        for projection in case.network.graph.projections
    }


def spikes_of(result: RunResult) -> dict[str, AnyArray]:
    """The spikes of each layer."""
    return {name: layer.spikes for name, layer in result.layers.items()}


def counted(case: RandomCase, spikes: Mapping[str, AnyArray], weights: Any = None) -> dict[CostKey, Int64]:
    lengths = None if case.lengths is None else np.array(case.lengths)
    delays = case.weights()
    return cost_of_run(case.network, unpacked(case.data().inputs), spikes, lengths, weights, delays)


@pytest.mark.parametrize("number", CASES)
def test_costs_of_random_networks_are_those_of_loops_over_weights(number: int) -> None:
    case = random_case(41, number, lively=False)
    result = NUMPY.run(case.network, case.weights(), unpacked(case.data().inputs), case.steps)
    spikes = spikes_of(result)
    for weights in (None, grids(case)):
        costs = counted(case, spikes, weights)
        assert all(x.shape == (case.steps, case.batch) and x.dtype == np.int64 for x in costs.values())
        for sample in {0, case.batch - 1}:
            found = {
                (key.kind, key.node, step): int(x[step, sample])
                for key, x in costs.items()
                for step in range(case.steps)
                if x[step, sample]
            }
            assert found == {key: n for key, n in Loops(case, spikes, sample).counts(weights).items() if n}


def test_the_random_networks_have_every_count_and_every_operation() -> None:
    seen, zeros = Counter[str](), 0
    for number in CASES:
        case = random_case(41, number, lively=False)
        result = NUMPY.run(case.network, case.weights(), unpacked(case.data().inputs), case.steps)
        spikes = spikes_of(result)
        all_weights, without_zeros = counted(case, spikes), counted(case, spikes, grids(case))
        seen += Counter({key.kind: int(x.sum()) for key, x in all_weights.items()})
        zeros += sum(int(all_weights[key].sum() - without_zeros[key].sum()) for key in all_weights)
        for bound_node in case.network.graph.bound_nodes:
            op = bound_node.node.op
            seen[type(op).__name__] += 1
            seen["delay"] += any(edge.delay for edge in bound_node.node.inputs)
            seen["shares"] += bound_node.node.shares is not None
            if isinstance(op, Conv2d):
                seen += Counter({"groups": int(op.groups > 1), "dilation": int(op.dilation != 1)})
                seen += Counter({"stride": int(op.stride != 1), "padding": int(op.padding != 0)})
        seen["recurrent"] += len(case.network.graph.recurrent)
        seen["lengths"] += case.lengths is not None
        seen["direct"] += case.network.coding == "direct"
        seen["several events"] += case.network.input_max > 1
    names = (
        "LearnedDelay",
        "Add",
        "Concat",
        "AvgPool2d",
        "MaxPool2d",
        "GlobalAvgPool",
        "Upsample2d",
        "OneToOne",
        "Linear",
        "Conv2d",
    )
    others = ("delay", "shares", "groups", "dilation", "stride", "padding", "recurrent", "lengths", "direct")
    assert [name for name in (*COUNTS, *names, *others, "several events") if not seen[name]] == []
    assert zeros > 0


@pytest.mark.parametrize("name", [name for name in ("cpu", "torch", "jax") if name in installed_backends()])
def test_costs_are_the_same_on_every_backend(name: str) -> None:
    backend = open_backend(name, None if name == "cpu" else "cpu")
    # Costs follow from the spikes, whose bits the suite compares on many networks.
    for number in range(2):
        case = random_case(43, number)
        inputs, weights = unpacked(case.data().inputs), case.weights()
        of_backends = [
            counted(case, spikes_of(one.run(case.network, weights, inputs, case.steps))) for one in (NUMPY, backend)
        ]
        assert of_backends[0].keys() == of_backends[1].keys()
        assert all(np.array_equal(x, of_backends[1][key]) for key, x in of_backends[0].items())


@pytest.mark.parametrize("number", range(20))
def test_the_keys_of_a_network_name_its_layers_and_nodes(number: int) -> None:
    case = random_case(41, number, lively=False)
    result = NUMPY.run(case.network, case.weights(), unpacked(case.data().inputs), case.steps)
    costs = counted(case, spikes_of(result))
    names = {block.name for block in case.network.blocks}
    assert {key.layer for key in costs} == names
    populations, projections = population_costs(case.network), projection_costs(case.network)
    assert {key.node for key in costs if key.kind == "updates"} == set(populations)
    assert {key.node for key in costs if key.kind == "accumulations"} == set(projections)
    assert {(key.node, key.layer) for key in costs if key.kind == "updates"} == {
        (node, population.layer) for node, population in populations.items()
    }
