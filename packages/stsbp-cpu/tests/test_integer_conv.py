"""Spikes that choose the weights that are added: the bits of the reference, for any number of samples and threads."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import pytest
from stsbp_cpu.backend import CpuBackend
from stsbp_cpu.engine import block
from stsbp_cpu.ops.sparse import integer_conv, kernels
from stsbp_spec.engine.plan import plan
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend

STEPS = 4
NETWORKS = {
    "padded": ("8C3-64C3-P2-32C3-40", (2, 9, 8), "same"),
    "windows of 5, pooled": ("12C5-P2-160C5-P2", (2, 26, 18), "valid"),
    "connected": ("24-70", (11,), "valid"),
    "flattened": ("8C3-F-40", (2, 9, 8), "valid"),
    "pooled and flattened": ("8C3-P2-F-40", (2, 9, 8), "valid"),
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("there is one thread")
    count = numba.get_num_threads()
    numba.set_num_threads(request.param)
    yield request.param
    numba.set_num_threads(count)


@pytest.mark.parametrize("near", [kernels._IN_CACHE, 200], ids=["", "bands of few rows"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("name", NETWORKS)
def test_predictor(name: str, batch: int, near: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_IN_CACHE", near)
    monkeypatch.setattr(block, "FORWARD_BELOW", dict.fromkeys(block.FORWARD_BELOW, 9.0))
    notation, shape, padding = NETWORKS[name]
    network = NetworkSpec.parse(notation, input_shape=shape, outputs=3, padding=padding)
    weights = initial_weights(network, 0, gain=6.0)
    trainer, reference = CpuBackend().trainer(network, VanRossum(), AdamW()), NumpyBackend()
    predict = trainer.predictor(trainer.init(weights))
    for density in (0.0, 0.3, 0.9):
        inputs = (np.random.default_rng(batch).random((STEPS, batch, *shape)) < density).astype(np.uint8)
        expected = reference.run(network, weights, inputs, STEPS).layers
        rates = {key: float(layer.spikes.mean()) for key, layer in expected.items()}
        assert ([*rates.values()][-2] > 0) is (density > 0)
        prediction = predict(inputs, STEPS)
        assert np.array_equal(prediction.spikes, [*expected.values()][-1].spikes)
        assert prediction.rates == pytest.approx(rates)


@pytest.mark.parametrize("notation", ["8C3-10", "8C3-F-10", "8C3-P2-10", "8C3-P2-F-10"])
def test_spikes_choose_the_weights_of_a_full_connection(notation: str) -> None:
    network = NetworkSpec.parse(notation, input_shape=(2, 8, 8), outputs=10)
    assert isinstance(plan(CpuBackend(), network.graph).steps[1], block.ConnectedBlock)


def test_predictor_has_the_weights_of_when_it_was_made() -> None:
    network = NetworkSpec.parse("8C3-32C3-P2-24", input_shape=(2, 9, 8), outputs=3)
    weights = initial_weights(network, 0, gain=6.0)
    trainer = CpuBackend().trainer(network, VanRossum(), AdamW())
    state = trainer.init(weights)
    inputs = (np.random.default_rng(0).random((STEPS, 2, 2, 9, 8)) < 0.4).astype(np.uint8)
    predict = trainer.predictor(state)
    spikes = predict(inputs, STEPS).spikes
    assert spikes.any()
    for w in state.weights.values():
        w[...] = -w
    assert np.array_equal(predict(inputs, STEPS).spikes, spikes)
    changed = trainer.predict(state, inputs, STEPS).spikes
    expected = NumpyBackend().run(network, {name: -w for name, w in weights.items()}, inputs, STEPS).layers
    assert np.array_equal(changed, expected["linear4"].spikes)
    assert not np.array_equal(changed, spikes)


def test_chosen_weights_are_integers_of_twelve_bits() -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(-2047, 2048, (40, 3, 5, 2)).astype(np.float32)
    integers[0, 0, 0, 0] = 2047
    weights = integer_conv.integer_weights(integers * np.float32(2.0**-9), (5, 2))
    rows = weights.w.reshape(-1, 64)
    assert weights.unit == 2.0**-9
    assert np.array_equal(rows[:-1, :40].reshape(5, 2, 3, 40), integers.transpose(2, 3, 1, 0))
    assert not rows[-1].any()
    assert not rows[:, 40:].any()


@pytest.mark.parametrize("spare", range(11))
def test_chosen_weights_of_a_coarse_grid_are_in_its_units(spare: int) -> None:
    """In units of 12 bits, sums of many such weights would not fit in 32 bits."""
    integers = np.random.default_rng(1).integers(-(2047 >> spare), (2047 >> spare) + 1, (33, 40)).astype(np.float32)
    integers[0, 0] = 2047 >> spare
    weights = integer_conv.integer_weights(integers * np.float32(0.25), (2, 5))
    assert weights.unit == 0.25
    assert np.abs(weights.w).max() == 2047 >> spare
    assert np.array_equal(
        weights.w.reshape(-1, 64)[:-1, :33], integers.reshape(33, 4, 10).transpose(2, 1, 0).reshape(40, 33)
    )


def test_chosen_weights_that_are_all_zero() -> None:
    assert not integer_conv.integer_weights(np.zeros((3, 4), np.float32), (1, 1)).w.any()


def test_sixteen_of_the_largest_weights_add_up() -> None:
    network = NetworkSpec.parse("32C3-2", input_shape=(4, 6, 6), outputs=2)
    weights = {name: np.full_like(w, 0.5) for name, w in initial_weights(network, 0).items()}
    inputs = np.ones((STEPS, 1, 4, 6, 6), np.uint8)
    backends = (CpuBackend(), NumpyBackend())
    layers, expected = (backend.run(network, weights, inputs, STEPS).layers for backend in backends)
    assert all(layers[name].potentials.tobytes() == layer.potentials.tobytes() for name, layer in expected.items())
