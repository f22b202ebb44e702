"""What a run costs, counted by hand on a dense, a convolutional and a recurrent network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from stsbp_spec import ALIF, IF, LIF, NetworkSpec, SpikingLayer
from stsbp_spec.engine.cost import (
    CostKey,
    cost_of_run,
    dense_multiplications,
    fan_out,
    normalisation_operations,
    operations_of,
    population_costs,
    projection_costs,
)
from stsbp_spec.equations.expressions import Recurrence, exp, sqrt, variable, where
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.neurons import PLIF, NeuronModel, Readout
from stsbp_spec.networks.graph import Edge, Neurons, Node, Projection, Values
from stsbp_spec.networks.ops import Add, Conv2d, Linear, MaxPool2d, OneToOne
from stsbp_spec.typing import AnyArray, Int64

LIF_COST = {"add": 1, "multiply": 1, "compare": 1}
"""An update of a LIF neuron without a synaptic filter."""


def totals(costs: Mapping[CostKey, Int64]) -> dict[tuple[str, str], list[int]]:
    """Sums over the steps of each sample, without those that are 0 everywhere."""
    return {(key.kind, key.node): x.sum(axis=0).tolist() for key, x in costs.items() if x.any()}


def trains(steps: int, samples: int, neurons: int, *places: tuple[int, int, int]) -> AnyArray:
    """Spike trains `[T, B, N]` with spikes at these steps, samples and neurons."""
    spikes = np.zeros((steps, samples, neurons), np.uint8)
    for place in places:
        spikes[place] = 1
    return spikes


def test_a_dense_network() -> None:
    network = NetworkSpec.parse("3", input_shape=(4,), outputs=2)
    inputs = trains(3, 2, 4, (0, 0, 0), (0, 0, 3), (2, 0, 1), (1, 1, 2))
    hidden = trains(3, 2, 3, (0, 0, 0), (1, 0, 2))
    spikes = {"linear1": hidden, "linear2": trains(3, 2, 2)}
    updates = {("updates", "neurons1"): [9, 9], ("updates", "neurons2"): [6, 6]}
    # Each of 3 and 1 input spikes reaches 3 weights, each of 2 hidden spikes reaches 2.
    expected = {("accumulations", "linear1"): [9, 3], ("accumulations", "linear2"): [4, 0], **updates}
    costs = cost_of_run(network, inputs, spikes)
    assert totals(costs) == expected
    assert costs[CostKey("linear1", "accumulations", "linear1")].tolist() == [[6, 0], [0, 3], [3, 0]]
    assert dense_multiplications(network) == {"linear1": (12, False), "linear2": (6, False)}
    # Without the weight from input 0 to hidden neuron 1, a spike costs one addition less.
    weights = {"linear1": np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, -1.0]]), "linear2": np.ones((2, 3))}
    assert totals(cost_of_run(network, inputs, spikes, None, weights))["accumulations", "linear1"] == [8, 3]


def test_padded_steps_cost_nothing() -> None:
    network = NetworkSpec.parse("3", input_shape=(4,), outputs=2)
    inputs = trains(3, 2, 4, (0, 0, 0), (0, 0, 3), (2, 0, 1), (1, 1, 2))
    spikes = {"linear1": trains(3, 2, 3, (0, 0, 0), (1, 0, 2)), "linear2": trains(3, 2, 2)}
    assert totals(cost_of_run(network, inputs, spikes, np.array([1, 2]))) == {
        ("accumulations", "linear1"): [6, 3],
        ("accumulations", "linear2"): [2, 0],
        ("updates", "neurons1"): [3, 6],
        ("updates", "neurons2"): [2, 4],
    }


def test_a_convolutional_network_with_pooling() -> None:
    # 3x3 kernels with padding 1 on 4x4: a corner is in 4 windows, an edge in 6, the middle in 9. 2 output channels.
    network = NetworkSpec.parse("2C3p1-P2", input_shape=(1, 4, 4), outputs=5)
    inputs = np.zeros((1, 1, 1, 4, 4), np.uint8)
    inputs[0, 0, 0, 0, 0] = inputs[0, 0, 0, 0, 1] = inputs[0, 0, 0, 1, 1] = 1
    hidden = np.zeros((1, 1, 2, 4, 4), np.uint8)
    # A full window has the mean 1, which is added. A window with one spike has the mean 1/4, which is multiplied.
    hidden[0, 0, 0, :2, :2] = 1
    hidden[0, 0, 1, 3, 3] = 1
    assert totals(cost_of_run(network, inputs, {"conv1": hidden, "linear2": trains(1, 1, 5)})) == {
        ("accumulations", "conv1"): [(4 + 6 + 9) * 2],
        ("merges", "pool2.0"): [5],
        ("accumulations", "linear2"): [5],
        ("multiplications", "linear2"): [5],
        ("updates", "neurons1"): [32],
        ("updates", "neurons2"): [5],
    }


def test_a_recurrent_network_with_delays() -> None:
    layers = (SpikingLayer(Linear(3), LIF(), recurrent=Linear(3)), SpikingLayer(Linear(4), LIF(), delay=2))
    network = NetworkSpec((2,), layers)
    inputs = trains(4, 1, 2, (0, 0, 0), (3, 0, 1))
    first = trains(4, 1, 3, (0, 0, 0), (2, 0, 1), (3, 0, 2))
    assert totals(cost_of_run(network, inputs, {"linear1": first, "linear2": trains(4, 1, 4)})) == {
        ("accumulations", "linear1"): [6],
        # The spike of the last step arrives at no step.
        ("accumulations", "linear1.recurrent"): [2 * 3],
        # A delay of 2 steps: only the spike of step 0 arrives.
        ("accumulations", "linear2"): [4],
        ("updates", "neurons1"): [12],
        ("updates", "neurons2"): [16],
    }


@pytest.mark.parametrize(
    "conv",
    [
        Conv2d(2, 3),
        Conv2d(2, 3, padding=2),
        Conv2d(2, (2, 3), stride=(2, 1), padding=(1, 0)),
        Conv2d(4, (3, 2), dilation=(2, 3), groups=2),
        Conv2d(4, 2, stride=3, padding=1, dilation=2),
        Conv2d(6, (3, 1), stride=(1, 4), padding=(2, 0), dilation=(2, 1), groups=2),
    ],
)
def test_the_fan_out_of_a_convolution_is_a_count_of_its_windows(conv: Conv2d) -> None:
    projection = Projection("conv", 0, conv, Values((4, 9, 8)))
    _, height, width = projection.output_shape
    present = np.random.default_rng(0).integers(0, 2, projection.weight_shape)
    for weights in (None, present):
        expected = np.zeros((4, 9, 8), np.int64)
        for c, e, i, j in np.ndindex(projection.weight_shape):
            channel = c // (conv.channels // conv.groups) * (4 // conv.groups) + e
            for y, x in np.ndindex(height, width):
                row = y * conv.strides[0] + i * conv.dilations[0] - conv.paddings[0]
                column = x * conv.strides[1] + j * conv.dilations[1] - conv.paddings[1]
                if 0 <= row < 9 and 0 <= column < 8 and (weights is None or weights[c, e, i, j]):
                    expected[channel, row, column] += 1
        assert np.array_equal(fan_out(projection, weights), expected)


def test_spikes_that_reach_a_pooling_or_a_sum_later_are_merged_then() -> None:
    pool = Node("pool", MaxPool2d((1, 2)), (Edge("input", 1),))
    total = Node("sum", Add(), (Edge("pool"), Edge("pool", 1)))
    weights = Node("weights", Linear(1), (Edge("sum"),))
    network = NetworkSpec((1, 1, 2), nodes=(pool, total, weights, Node("out", Neurons(LIF()), (Edge("weights"),))))
    inputs = np.zeros((4, 1, 1, 1, 2), np.uint8)
    inputs[1], inputs[3] = 1, 1
    costs = cost_of_run(network, inputs, {"weights": trains(4, 1, 1)})
    # Both pixels of step 1 arrive at step 2, and those of step 3 never do.
    assert costs[CostKey("weights", "merges", "pool")].tolist() == [[0], [0], [2], [0]]
    # The pooled spike is added at step 2, and once more a step later.
    assert costs[CostKey("weights", "merges", "sum")].tolist() == [[0], [0], [1], [1]]
    assert costs[CostKey("weights", "accumulations", "weights")].tolist() == [[0], [0], [1], [1]]


def test_images_are_multiplied_once_and_events_above_one_are_multiplied() -> None:
    images = np.array([[0, 255, 3]], np.uint8)
    direct = NetworkSpec.parse("2", input_shape=(3,), outputs=1, coding="direct")
    spikes = {"linear1": trains(4, 1, 2, (3, 0, 1)), "linear2": trains(4, 1, 1)}
    costs = cost_of_run(direct, images, spikes)
    assert costs[CostKey("linear1", "multiplications", "linear1")].tolist() == [[4], [0], [0], [0]]
    assert dense_multiplications(direct) == {"linear1": (6, True), "linear2": (2, False)}
    counted = NetworkSpec.parse("2", input_shape=(3,), outputs=1, input_max=5)
    costs = cost_of_run(
        counted, np.array([[[0, 1, 5]]], np.uint8), {"linear1": trains(1, 1, 2), "linear2": trains(1, 1, 1)}
    )
    assert totals(costs)["accumulations", "linear1"] == totals(costs)["multiplications", "linear1"] == [2]


def test_sums_of_branches_and_shared_weights() -> None:
    network = NetworkSpec.parse(
        """
        [[node]]
        name = "first"
        weights = "2"
        from = "input"
        [[node]]
        name = "a"
        neurons = ""
        from = "first"
        [[node]]
        name = "again"
        weights = "2"
        weights_of = "first"
        from = "a"
        [[node]]
        name = "b"
        neurons = ""
        from = "again"
        [[node]]
        name = "sum"
        add = true
        from = ["a", "b"]
        [[node]]
        name = "last"
        weights = "3"
        from = "sum"
        [[node]]
        name = "out"
        neurons = ""
        from = "last"
        """,
        input_shape=(2,),
    )
    spikes = {
        "first": trains(1, 1, 2, (0, 0, 0), (0, 0, 1)),
        "again": trains(1, 1, 2, (0, 0, 1)),
        "last": trains(1, 1, 3),
    }
    assert totals(cost_of_run(network, trains(1, 1, 2, (0, 0, 0)), spikes)) == {
        ("accumulations", "first"): [2],
        ("accumulations", "again"): [4],
        ("merges", "sum"): [3],
        # The sums are 1 and 2.
        ("accumulations", "last"): [3],
        ("multiplications", "last"): [3],
        ("updates", "a"): [2],
        ("updates", "b"): [2],
        ("updates", "out"): [3],
    }
    assert projection_costs(network)["again"].weights == 4


def test_normalisation_costs_each_sum_and_an_image_only_once() -> None:
    for coding, expected in (("events", [6]), ("direct", [2])):
        network = NetworkSpec.parse("2bn", input_shape=(3,), outputs=1, coding=coding)  # type: ignore[arg-type]
        inputs = np.zeros((1, 3) if coding == "direct" else (3, 1, 3), np.uint8)
        costs = cost_of_run(network, inputs, {"linear1": trains(3, 1, 2), "linear2": trains(3, 1, 1)})
        assert totals(costs)["normalisations", "linear1"] == expected
    assert normalisation_operations() == {"add": 2, "multiply": 1}


@pytest.mark.parametrize(
    ("neuron", "first", "second"),
    [
        # The first layer reads unfiltered events, the second one the filtered spikes of the first: i = k i + c z.
        (LIF(), (1, {"add": 1, "multiply": 1, "compare": 1}), (2, {"add": 2, "multiply": 3, "compare": 1})),
        (IF(), (1, {"add": 1, "compare": 1}), (2, {"add": 2, "multiply": 2, "compare": 1})),
        (LIF(tau_m=1), (0, {"compare": 1}), (1, {"add": 1, "multiply": 2, "compare": 1})),
        (LIF(tau_s=1), (1, {"add": 1, "multiply": 1, "compare": 1}), (1, {"add": 1, "multiply": 1, "compare": 1})),
        (LIF(reset="subtract"), (1, {**LIF_COST, "add": 2}), (2, {**LIF_COST, "add": 3, "multiply": 3})),
        (ALIF(), (2, {"add": 3, "multiply": 3, "compare": 1}), (3, {"add": 4, "multiply": 5, "compare": 1})),
        (PLIF(), (1, {"add": 1, "multiply": 1, "compare": 1}), (2, {"add": 2, "multiply": 3, "compare": 1})),
        # Two exponentials: a = k a + c z, b = r b + c z, i = a - b; c z is computed once.
        (LIF(tau_rise=2), (1, {"add": 1, "multiply": 1, "compare": 1}), (3, {"add": 4, "multiply": 4, "compare": 1})),
    ],
)  # fmt: skip
def test_states_and_operations_of_neurons(neuron: NeuronModel, first: object, second: object) -> None:
    network = NetworkSpec.parse("4", input_shape=(3,), outputs=2, neuron=neuron)
    costs = population_costs(network)
    assert [(x.states, x.operations) for x in costs.values()] == [first, second]
    assert [(x.layer, x.neurons) for x in costs.values()] == [("linear1", 4), ("linear2", 2)]


def test_weights_are_stored_with_their_own_bits() -> None:
    layers = (SpikingLayer(Linear(3, weight_bits=5), LIF(), recurrent=OneToOne(weight_bits=7)), SpikingLayer(Linear(2)))
    costs = projection_costs(NetworkSpec((4,), layers))
    assert {name: (x.layer, x.weights, x.bits) for name, x in costs.items()} == {
        "linear1": ("linear1", 12, 5),
        "linear1.recurrent": ("linear1", 3, 7),
        "linear2": ("linear2", 6, 12),
    }


def test_a_readout_compares_nothing_and_a_bias_is_one_addition() -> None:
    network = NetworkSpec.parse("4b", input_shape=(3,), outputs=2, output_neuron=Readout())
    hidden, readout = population_costs(network).values()
    assert (hidden.states, hidden.operations) == (1, {"add": 2, "multiply": 1, "compare": 1})
    assert (readout.states, readout.operations) == (2, {"add": 2, "multiply": 3})


def test_operations_whose_result_is_known_are_free() -> None:
    x, p, s, unread = map(variable, ("x", "p", "s", "unread"))
    step = Recurrence("r", ("p",), ("x",), {"s": s + x, "unread": unread * x}, {"y": exp(sqrt(s)) / p, "w": x * x})
    assert operations_of(step, {"p": 2.0}, ("y",)) == ({"add": 1, "exp": 1, "root": 1, "divide": 1}, 1)
    assert operations_of(step, {"p": 1.0}, ("y",)) == ({"add": 1, "exp": 1, "root": 1}, 1)
    assert operations_of(step, {"p": 2.0}, ("w",)) == ({"multiply": 1}, 0)
    # A state that stays 0 is none, also where it is one of two choices.
    silent = Recurrence("r", ("p",), ("x",), {"s": s + p * x}, {"y": where(x < 1, s, x)})
    assert operations_of(silent, {"p": 0.0}, ("y",)) == ({"compare": 1}, 0)
    assert operations_of(silent, {"p": 1.0}, ("y",)) == ({"compare": 1, "add": 1}, 1)


def test_what_does_not_fit_the_network_is_refused() -> None:
    network = NetworkSpec.parse("3", input_shape=(4,), outputs=2)
    spikes = {"linear1": trains(3, 2, 3), "linear2": trains(3, 2, 2)}
    with pytest.raises(ShapeError, match="layer linear1 are missing"):
        cost_of_run(network, trains(3, 2, 4), {"linear2": spikes["linear2"]})
    with pytest.raises(ShapeError, match=r"values of neurons1 must be \(3, 2, 3\), got \(3, 2, 4\)"):
        cost_of_run(network, trains(3, 2, 4), {**spikes, "linear1": trains(3, 2, 4)})
    with pytest.raises(ShapeError, match=r"weights of linear1 have the shape \(3, 4\), got \(4, 3\)"):
        fan_out(network.graph.projections[0], np.ones((4, 3)))


def test_learned_delays_decide_when_values_arrive_and_cost_nothing() -> None:
    network = NetworkSpec.parse("T3-1", input_shape=(2,), outputs=1)
    inputs, spikes = trains(4, 1, 2, (0, 0, 0), (2, 0, 1)), {"linear1": trains(4, 1, 1), "linear2": trains(4, 1, 1)}
    delays = {"delay1.steps": np.array([1.5, 0.5], np.float32)}
    costs = cost_of_run(network, inputs, spikes, delays=delays)
    (arrivals,) = (x for key, x in costs.items() if key.kind == "accumulations" and key.node == "linear1")
    assert arrivals[:, 0].tolist() == [0, 0, 2, 0]
    delays["delay1.steps"][1] = 2.0  # beyond the last step
    costs = cost_of_run(network, inputs, spikes, delays=delays)
    assert totals(costs)["accumulations", "linear1"] == [1]
    with pytest.raises(ShapeError, match=r"the learned delays delay1\.steps are missing"):
        cost_of_run(network, inputs, spikes)
