"""Passes that no backward pass follows: the spikes are the same, and potentials are written nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_cpu.backend import CpuBackend
from stsbp_cpu.engine import block
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.engine.passes import forward_pass
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import ALIF, LIF
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import UInt8

STEPS = 6
NEURONS = {"lif": LIF(), "alif": ALIF()}
"""The second keeps something besides its potentials."""


def _network(neuron: NeuronModel) -> NetworkSpec:
    return NetworkSpec.parse("32C3-P2-D0.2-8C3-24", input_shape=(2, 9, 8), outputs=3, neuron=neuron)


def _inputs(batch: int, density: float) -> UInt8:
    return (np.random.default_rng(1).random((STEPS, batch, 2, 9, 8)) < density).astype(np.uint8)


@pytest.mark.parametrize("forward", [0.0, 9.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NEURONS)
def test_a_prediction_has_the_spikes_and_rates_of_a_run(
    name: str, batch: int, forward: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "FORWARD_BELOW", dict.fromkeys(block.FORWARD_BELOW, forward))
    network, inputs = _network(NEURONS[name]), _inputs(batch, 0.4)
    trainer = CpuBackend().trainer(network, VanRossum(), AdamW())
    weights = initial_weights(network, 0, gain=6.0)
    prediction = trainer.predict(trainer.init(weights), inputs, STEPS)
    expected = NumpyBackend().run(network, weights, inputs, STEPS).layers
    rates = {key: float(layer.spikes.mean()) for key, layer in expected.items()}
    assert min(rates.values()) > 0
    assert prediction.rates == pytest.approx(rates)
    assert np.array_equal(prediction.spikes, expected["linear4"].spikes)


@pytest.mark.parametrize("name", NEURONS)
def test_nothing_is_kept_of_blocks_before_the_last(name: str) -> None:
    backend, network = CpuBackend(), _network(NEURONS[name])
    weights = {key: backend.asarray(w) for key, w in initial_weights(network, 0, gain=6.0).items()}
    wq, _ = weights_on_grid(backend, network.graph, weights)
    x = backend.asarray(_inputs(3, 0.1))
    full, lean = (forward_pass(backend, network.graph, wq, x, STEPS, None, keeps=keeps) for keeps in (True, False))
    assert np.array_equal(full.potentials(), lean.potentials())
    all_residuals, last = (trace.residuals(full.plan.segments[-1]) for trace in (full, lean))
    assert len(all_residuals) == 4
    assert [*last] == [full.plan.segments[-1].steps[-1].name]
