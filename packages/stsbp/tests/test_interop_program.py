"""`stsbp.interop.program`: what exporters read of a trained network."""

from __future__ import annotations

import numpy as np
import pytest
from small_networks import SMALL, case
from stsbp.interop.program import program
from stsbp_spec.contract.grid import EXACT_LIMIT_BITS


@pytest.mark.parametrize("name", SMALL)
def test_the_small_networks_fire_and_do_not_saturate(name: str) -> None:
    network_case = case(name)
    rates = [layer.spikes.mean() for layer in network_case.run.layers.values()]
    if network_case.network.has_readout:
        rates.pop()
    assert all(0.02 < rate < 0.95 for rate in rates), rates


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_the_integers_that_they_say(name: str) -> None:
    network_case = case(name)
    exported = program(network_case.network, network_case.weights)
    assert list(exported.weights) == [projection.name for projection in network_case.network.graph.projections]
    for weights in exported.weights.values():
        integers = weights.integers
        assert np.abs(integers).max() < 2 ** (weights.projection.synapse.weight_bits - 1)
        assert np.array_equal(integers.astype(np.float32) * np.float32(2.0**-weights.exponent), weights.values)
        rows = np.abs(integers.reshape(len(integers), -1).astype(np.int64)).sum(axis=1)
        units = rows.max() * weights.projection.input.maximum * 2**weights.projection.input.exponent
        assert units < 2 ** (EXACT_LIMIT_BITS + 1)


def test_populations_say_where_each_input_comes_from() -> None:
    network_case = case("nodes")
    both = program(network_case.network, network_case.weights).populations["both"]
    assert len(both.sums) == len(both.bound_node.node.inputs) == 2
    assert set(both.step.inputs) == {*both.sums, *both.learned}
    assert set(both.step.parameters) == set(both.constants)
    assert set(both.step.outputs) == {"u", "o"}
