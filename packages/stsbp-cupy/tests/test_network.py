"""Whole networks on the device `host` against the numpy reference: bits, training, checkpoints, errors."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_spec import LIF, AbstractBackend, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.errors import NumericError
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Precision

TAUS = (3.0, 5 / 3)


def events(rng: np.random.Generator, steps: int, batch: int, *, density: float = 0.08) -> AnyArray:
    return (rng.random((steps, batch, 2, 34, 34)) < density).astype(np.uint8)


def targets(rng: np.random.Generator, steps: int, batch: int) -> AnyArray:
    return (rng.random((steps, batch, 10)) < 0.3).astype(np.uint8)


def nmnist_network(tau: float, *, dropout: float = 0.0) -> NetworkSpec:
    neuron = LIF(tau_m=tau, tau_s=tau, threshold=0.6)
    return NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10, neuron=neuron, dropout=dropout)


def cifar_network(tau: float, *, dropout: float = 0.0) -> NetworkSpec:
    neuron = LIF(tau_m=tau, tau_s=tau, threshold=0.6)
    return NetworkSpec.parse(
        "16C3-P2-24C3s2-32", input_shape=(3, 32, 32), outputs=10, coding="direct", padding="same", neuron=neuron,
        dropout=dropout,
    )  # fmt: skip


def digest(state: dict[str, AnyArray]) -> str:
    """SHA-256 of an exported state."""
    return hashlib.sha256(b"".join(name.encode() + state[name].tobytes() for name in sorted(state))).hexdigest()


def assert_same_run(
    backend: AbstractBackend, reference: AbstractBackend, network: NetworkSpec, inputs: AnyArray, steps: int
) -> None:
    weights = initial_weights(network, 1)
    expected = reference.run(network, weights, inputs, steps)
    actual = backend.run(network, weights, inputs, steps)
    assert actual.grids == expected.grids
    for name, layer in expected.layers.items():
        assert layer.spikes.any(), f"{name} is silent, the comparison would be empty"
        assert np.array_equal(actual.layers[name].spikes, layer.spikes), name
        u, other = (
            layer.potentials.view(np.uint32),
            np.ascontiguousarray(actual.layers[name].potentials).view(np.uint32),
        )
        assert int(np.count_nonzero(u != other)) == 0, name


@pytest.mark.parametrize("tau", TAUS)
def test_run_nmnist_network(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, tau: float
) -> None:
    assert_same_run(backend, reference, nmnist_network(tau), events(rng, 25, 3), 25)


@pytest.mark.parametrize("tau", TAUS)
def test_run_cifar_network(backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, tau: float) -> None:
    images = rng.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    assert_same_run(backend, reference, cifar_network(tau), images, 5)


def train(
    backend: AbstractBackend, precision: Precision, steps: int, *, resume: dict[str, AnyArray] | None = None
) -> tuple[dict[str, AnyArray], list[Any]]:
    """Train the N-MNIST network with dropout, clipping and weight decay; the exported state and all results."""
    rng = np.random.default_rng(7)
    batches = [Batch(events(rng, 8, 4), targets(rng, 8, 4)) for _ in range(20)]
    network = nmnist_network(3.0, dropout=0.2)
    optimizer = AdamW(lr=5e-3, total_steps=20, warmup_steps=3, weight_decay=0.01, clip_norm=0.5)
    trainer = backend.trainer(network, VanRossum(), optimizer, precision=precision, seed=9)
    state = trainer.init(initial_weights(network, 3)) if resume is None else trainer.import_state(resume)
    results = []
    for batch in batches[state.step : state.step + steps]:
        state, result = trainer.step(state, batch)
        results.append(result)
    return trainer.export_state(state), results


def test_trainer_fast_repeats_itself_and_stays_near_the_reference(
    backend: CupyBackend, reference: NumpyBackend
) -> None:
    first, results = train(backend, "fast", 1)
    second, _ = train(backend, "fast", 1)
    assert digest(first) == digest(second)
    _, expected = train(reference, "fast", 1)
    assert results[0].loss == expected[0].loss
    assert results[0].gradient_norm == pytest.approx(expected[0].gradient_norm, rel=1e-6)


def test_trainer_lowers_the_loss(backend: CupyBackend) -> None:
    _, results = train(backend, "fast", 20)
    assert np.mean([r.loss for r in results[-3:]]) < np.mean([r.loss for r in results[:3]])


def test_trainer_with_a_gradient_that_is_not_finite_names_step_and_layer(backend: CupyBackend) -> None:
    network = cifar_network(3.0)
    trainer = backend.trainer(network, VanRossum(), AdamW())
    weights = initial_weights(network, 3)
    state = trainer.init(weights)
    batch = Batch(np.full((2, 3, 32, 32), 200, np.uint8), np.ones((4, 2, 10), np.uint8))
    state, _ = trainer.step(state, batch)
    state.weights["linear3"] = backend.asarray(np.full(weights["linear3"].shape, np.nan, np.float32))
    with pytest.raises(NumericError, match="layer linear3: a weight is not finite"):
        trainer.step(state, batch)
