"""Whole networks on the device `host` against the numpy reference: bits, training, checkpoints, errors."""

from __future__ import annotations

import hashlib
import itertools
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.train_step import CupyTrainer
from stsbp_spec import LIF, LOSSES, AbstractBackend, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.errors import NumericError, SpecError
from stsbp_spec.losses import Loss
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.surrogates import Logistic
from stsbp_spec.typing import AnyArray, Precision

TAUS = (2.0, 3.0, 5.0, 5 / 3)


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


def nmnist_recordings(count: int) -> list[bytes]:
    """The first recordings of the data set, unpacked or in its archive, from STSBP_DATA or beside the repository."""
    named = os.environ.get("STSBP_DATA")
    root = Path(named) if named else Path(__file__).parents[3].parent / "shared" / "data"
    archive = root / "nmnist-1k.tar.xz"
    if files := sorted((root / "NMNIST" / "Train").glob("*/*.bin")):
        return [path.read_bytes() for path in files[:count]]
    if not archive.is_file():
        pytest.skip(f"no N-MNIST samples in {root}; STSBP_DATA must name a folder with NMNIST/Train or {archive.name}")
    with tarfile.open(archive) as tar:
        members = (tar.extractfile(member) for member in tar if member.name.endswith(".bin"))
        return [member.read() for member in itertools.islice(members, count) if member is not None]


@pytest.mark.data
def test_run_nmnist_network_on_real_samples(backend: CupyBackend, reference: NumpyBackend) -> None:
    recordings = nmnist_recordings(4)
    frames = np.zeros((25, len(recordings), 2, 34, 34), np.uint8)
    for sample, recording in enumerate(recordings):
        # Orchard et al. 2015: x, y, then the polarity bit and 23 bits of microseconds.
        event = np.frombuffer(recording, np.uint8).reshape(-1, 5).astype(np.int64)
        time = (event[:, 2] & 127) << 16 | event[:, 3] << 8 | event[:, 4]
        step = time * 25 // (time.max() + 1)
        frames[step, sample, event[:, 2] >> 7, event[:, 1], event[:, 0]] = 1
    assert_same_run(backend, reference, nmnist_network(5 / 3), frames, 25)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("tau", TAUS)
def test_reproducible_gradients(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, tau: float, loss: Loss
) -> None:
    for network, inputs, steps in (
        (nmnist_network(tau, dropout=0.2), events(rng, 10, 3), 10),
        (cifar_network(tau, dropout=0.2), rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8), 5),
    ):
        batch, weights = Batch(inputs, targets(rng, steps, 3)), initial_weights(network, 2)
        options: dict[str, Any] = {"precision": "reproducible", "dropout": (11, 4)}
        expected = reference.value_and_grad(network, loss, weights, batch, **options)
        actual = backend.value_and_grad(network, loss, weights, batch, **options)
        assert actual.loss == expected.loss
        assert np.array_equal(actual.spikes, expected.spikes)
        for name, gradient in expected.gradients.items():
            assert gradient.any(), name
            assert actual.gradients[name].tobytes() == gradient.tobytes(), name


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


def test_trainer_takes_20_reproducible_steps_to_the_same_bits(backend: CupyBackend, reference: NumpyBackend) -> None:
    expected, expected_results = train(reference, "reproducible", 20)
    actual, results = train(backend, "reproducible", 20)
    assert digest(actual) == digest(expected)
    assert int(actual["step"]) == 20
    for a, b in zip(results, expected_results, strict=True):
        assert (a.loss, a.rates, a.grids, a.gradient_norm, a.learning_rate) == (
            b.loss, b.rates, b.grids, b.gradient_norm, b.learning_rate,
        )  # fmt: skip
        assert a.spikes.tobytes() == b.spikes.tobytes()
    start = initial_weights(nmnist_network(3.0), 3)
    assert all((actual[f"weight/{name}"] != w).any() for name, w in start.items())


def test_trainer_resumes_what_another_backend_began(backend: CupyBackend, reference: NumpyBackend) -> None:
    whole, _ = train(backend, "reproducible", 6)
    for first, second in ((backend, reference), (reference, backend), (backend, backend)):
        half, _ = train(first, "reproducible", 3)
        rest, _ = train(second, "reproducible", 3, resume=half)
        assert digest(rest) == digest(whole)


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


def test_trainer_predicts_without_dropout(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator
) -> None:
    network, inputs = nmnist_network(3.0, dropout=0.5), events(rng, 8, 3)
    predictions = []
    for b in (backend, reference):
        trainer = b.trainer(network, VanRossum(), AdamW())
        predictions.append(trainer.predict(trainer.init(initial_weights(network, 3)), inputs, 8))
    assert predictions[0].rates == predictions[1].rates
    assert predictions[0].spikes.tobytes() == predictions[1].spikes.tobytes()
    assert predictions[0].spikes.any()


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


def test_trainer_refuses_an_inexact_surrogate_in_reproducible_precision(backend: CupyBackend) -> None:
    network = NetworkSpec.parse("8", input_shape=(4,), outputs=2, neuron=LIF(surrogate=Logistic()))
    with pytest.raises(SpecError, match="logistic uses exp"):
        backend.trainer(network, VanRossum(), AdamW(), precision="reproducible")


def test_trainer_is_this_packages_own(backend: CupyBackend) -> None:
    assert isinstance(backend.trainer(cifar_network(2.0), VanRossum(), AdamW()), CupyTrainer)
