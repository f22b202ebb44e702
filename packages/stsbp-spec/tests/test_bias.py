"""The bias of a projection: where it enters, what meets it, and how it is trained."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_spec.engine.results import Batch
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import IDENTITY, PSP
from stsbp_spec.networks.ops.psp import Biased
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32

NUMPY = NumpyBackend()
STEPS = 12


def _potentials(psp: PSP | None, bias: float, z: float = 0.0, gain: float = 1.0) -> Float32:
    """Of a neuron that never fires and forgets at once: its current."""
    filter = Biased(IDENTITY if psp is None else psp.filter(), np.float32(gain))
    neuron = LIF(tau_m=1, tau_s=1, threshold=1e6)
    inputs = np.full((1, 1, 1), z, np.float32)
    _, residuals = NUMPY.neuron_forward(neuron, filter, inputs, STEPS, {"bias": np.array([bias], np.float32)})
    potentials: Float32 = NUMPY.neuron_potentials(residuals).ravel()
    return potentials


@pytest.mark.parametrize("psp", [None, PSP(1), PSP(3), PSP(4, 2)], ids=str)
def test_a_bias_passes_the_filter_with_the_spikes(psp: PSP | None) -> None:
    assert np.allclose(_potentials(psp, 0.5), _potentials(psp, 0.0, z=0.5), rtol=1e-6)
    assert _potentials(psp, 0.5)[-1] == pytest.approx(0.5, rel=0.2), "the filter's sum is 1"


def test_the_gain_of_dropout_meets_the_spikes_alone() -> None:
    assert np.allclose(_potentials(PSP(1), 0.25, z=1.0, gain=2.0), 2.25)
    assert np.allclose(_potentials(PSP(1), 0.25, z=0.0, gain=2.0), 0.25)


def test_a_network_without_a_bias_computes_what_it_did() -> None:
    network = NetworkSpec.parse("4C3-3", input_shape=(1, 6, 6))
    filters = {block.filter(training=training) for block in network.blocks for training in (False, True)}
    assert not any(isinstance(filter, Biased) for filter in filters)
    equations = neuron_equations(PSP(3).filter(), LIF())
    assert not equations.learned
    assert equations.forward.inputs == ("z",)


def test_a_bias_begins_at_zero_is_learned_and_does_not_decay() -> None:
    network = NetworkSpec.parse("6b-4b", input_shape=(5,), neuron=LIF(3, 3, 0.3))
    weights = initial_weights(network, 1, 2.0)
    assert not weights["linear1.bias"].any()
    random = np.random.default_rng(0)
    batch = Batch(
        (random.random((STEPS, 3, 5)) < 0.4).astype(np.uint8), (random.random((STEPS, 3, 4)) < 0.4).astype(np.uint8)
    )
    trainer = NUMPY.trainer(network, VanRossum(), AdamW(lr=0.1, weight_decay=0.5), precision="reproducible")
    state, _ = trainer.step(trainer.init(weights), batch)
    first = trainer.export_state(state)["weight/linear1.bias"]
    assert np.count_nonzero(first) >= 3
    # Nothing is learned from an output that is its target, and only weights decay.
    spikes = trainer.predict(state, batch.inputs, STEPS).spikes
    still = NUMPY.trainer(network, VanRossum(), AdamW(lr=0.1, weight_decay=0.5, beta1=0, beta2=0), precision="fast")
    state.m["linear1.bias"][:] = 0
    updated, _ = still.step(state, Batch(batch.inputs, spikes))
    assert np.array_equal(updated.weights["linear1.bias"], first)
    assert not np.array_equal(updated.weights["linear1"], state.weights["linear1"])


def test_a_bias_makes_a_silent_input_fire() -> None:
    network = NetworkSpec.parse("3b-2", input_shape=(4,), neuron=LIF(2, 1, 0.5))
    weights = initial_weights(network, 1)
    weights["linear1.bias"][:] = [1.0, 0.2, -1.0]
    layers = NUMPY.run(network, weights, np.zeros((STEPS, 1, 4), np.uint8), STEPS).layers
    assert layers["linear1"].spikes[:, 0].sum(axis=0).tolist() == [STEPS, 0, 0]
