"""Readouts and the cross entropy of their potentials, from their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp_spec.distributed.collective import Alone, BatchSlice
from stsbp_spec.engine.results import Batch
from stsbp_spec.errors import NetworkError, ShapeError, SpecError
from stsbp_spec.models.decoders import spike_count
from stsbp_spec.models.encoders import encode_repeat
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses import OF_CLASSES, CrossEntropy, Hamming, Loss, parse_loss
from stsbp_spec.models.neurons import LIF, Readout, parse_neuron
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float64, Int64, Precision

NUMPY = NumpyBackend()
STEPS, BATCH, CLASSES = 8, 5, 4
LOSSES = pytest.mark.parametrize("loss", OF_CLASSES.values(), ids=list(OF_CLASSES))
NETWORK = NetworkSpec.parse(
    "6", input_shape=(9,), outputs=CLASSES, neuron=LIF(3.0, 5 / 3, 0.4), output_neuron=Readout(5.0)
)


def _batch(seed: int = 0, lengths: Int64 | None = None) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = (rng.random((STEPS, BATCH, 9)) < 0.4).astype(np.uint8)
    return Batch(inputs, encode_repeat(rng.integers(0, CLASSES, BATCH), CLASSES, STEPS), lengths)


def _value(loss: Loss, u: Float64, labels: Int64, lengths: Int64) -> float:
    """The definition, sample by sample."""
    total = 0.0
    for b, length in enumerate(lengths):
        potentials = u[:length, b]
        v = [math.fsum(x) / length if loss.name == "cross-entropy" else max(x) for x in potentials.T.tolist()]
        total += math.log(math.fsum(math.exp(x) for x in v)) - v[labels[b]]
    return total / len(lengths)


def test_a_readout_integrates_and_its_way_back_is_the_transposed_sum() -> None:
    rng = np.random.default_rng(1)
    z, g = (rng.normal(size=(STEPS, 2, 3)).astype(np.float32) for _ in range(2))
    tau_m, filter = 5.0, PSP(3.0).filter()
    spikes, residuals = NUMPY.neuron_forward(Readout(tau_m), filter, z * np.float32(30), STEPS)
    assert not spikes.any()
    i, m, u = np.zeros((2, 3)), np.zeros((2, 3)), np.empty(z.shape)
    for t in range(STEPS):
        i = (1 - 1 / 3) * i + 30 * z[t].astype(np.float64) / 3
        m = (1 - 1 / tau_m) * m + i
        u[t] = m
    np.testing.assert_allclose(NUMPY.neuron_potentials(residuals), u, rtol=1e-5, atol=1e-5)
    dz, _ = NUMPY.neuron_backward(Readout(tau_m), filter, residuals, g)
    # du_t/dz_s = c sum_(r = s..t) k_m^(t - r) k^(r - s)
    kernel = [sum((1 - 1 / tau_m) ** (n - r) * (1 - 1 / 3) ** r for r in range(n + 1)) / 3 for n in range(STEPS)]
    expected = [sum(kernel[t - s] * g[t].astype(np.float64) for t in range(s, STEPS)) for s in range(STEPS)]
    np.testing.assert_allclose(dz, expected, rtol=1e-5, atol=1e-6)


@LOSSES
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, STEPS), min_size=1, max_size=6).map(np.array))
def test_loss_and_error_are_those_of_the_definition(loss: CrossEntropy, seed: int, lengths: Int64) -> None:
    rng, batch = np.random.default_rng(seed), len(lengths)
    u = (2 * rng.normal(size=(STEPS, batch, CLASSES))).astype(np.float32)
    labels = rng.integers(0, CLASSES, batch)
    targets, psp = encode_repeat(labels, CLASSES, STEPS), PSP(3)
    wide = u.astype(np.float64)
    assert loss.mean(u, targets, psp, lengths) == pytest.approx(_value(loss, wide, labels, lengths), rel=1e-12)
    within = inside(lengths, STEPS).astype(np.uint8)
    error = NUMPY.readout_error(loss, u, targets, batch, within)
    assert error.dtype == np.float32
    assert not error[within == 0].any()
    for index in [tuple(rng.integers(0, n) for n in u.shape) for _ in range(12)]:
        moved = np.zeros(u.shape)
        moved[index] = 1e-5
        slope = (_value(loss, wide + moved, labels, lengths) - _value(loss, wide - moved, labels, lengths)) / 2e-5
        assert error[index] == pytest.approx(slope, rel=1e-5, abs=1e-7)
    # What is padded, and who else is in the batch, changes nothing.
    other = np.where(within[..., None] > 0, u, np.float32(99))
    assert NUMPY.readout_error(loss, other, targets, batch, within).tobytes() == error.tobytes()
    distances = loss.distances(other, targets, psp, lengths)
    for b, length in enumerate(lengths):
        alone = np.asfortranarray(u[:length, b : b + 1])
        assert loss.distance(alone, targets[:length, b : b + 1], psp)[0] == distances[b]
        computed = NUMPY.readout_error(loss, alone, targets[:length, b : b + 1], batch)
        assert computed.tobytes() == np.ascontiguousarray(error[:length, b : b + 1]).tobytes()
    assert loss.of_classes(u, lengths).argmin(axis=1).tolist() == [
        int((u[:n, b].sum(axis=0) if loss.name == "cross-entropy" else u[:n, b].max(axis=0)).argmax())
        for b, n in enumerate(lengths)
    ]


@LOSSES
def test_a_gradient_is_that_of_the_potentials(loss: CrossEntropy) -> None:
    """Of the readout's weights: the error of each potential times what the weights add to it."""
    lengths, weights = np.array([8, 3, 5, 8, 1]), initial_weights(NETWORK, 3, 3.0)
    batch = _batch(2, lengths)
    computed = NUMPY.value_and_grad(NETWORK, loss, weights, batch)
    layers = NUMPY.run(NETWORK, weights, batch.inputs, STEPS).layers
    assert computed.spikes.dtype == np.float32
    assert np.array_equal(computed.spikes, layers["linear2"].potentials)
    labels = batch.targets[0].argmax(axis=1)
    assert computed.loss == pytest.approx(_value(loss, computed.spikes.astype(np.float64), labels, lengths), rel=1e-12)
    error = NUMPY.readout_error(loss, computed.spikes, batch.targets, BATCH, inside(lengths, STEPS).astype(np.uint8))
    # What one unit of a weight adds to the potentials of its neuron: its input spikes, filtered and integrated.
    s, i, m = layers["linear1"].spikes, np.zeros((BATCH, 6)), np.zeros((BATCH, 6))
    gradient = np.zeros((CLASSES, 6))
    for t in range(STEPS):
        i = (1 - 3 / 5) * i + 3 / 5 * s[t]
        m = (1 - 1 / 5) * m + i
        gradient += error[t].astype(np.float64).T @ m
    np.testing.assert_allclose(computed.gradients["linear2"], gradient, rtol=1e-4, atol=1e-6)
    assert computed.gradients["linear1"].any()


@pytest.mark.parametrize(
    "options", [{"micro_batch": 2}, {"memory": "low"}, {"micro_batch": 1, "memory": "low"}], ids=str
)
def test_parts_of_a_batch_have_its_potentials_and_its_loss(options: dict[str, Any]) -> None:
    lengths, weights = np.array([8, 3, 5, 8, 1]), initial_weights(NETWORK, 3, 3.0)
    undivided, in_parts = (NUMPY.trainer(NETWORK, CrossEntropy(), AdamW(), **settings) for settings in ({}, options))
    states = [trainer.init(weights) for trainer in (undivided, in_parts)]
    (_, one), (_, parts) = (
        trainer.step(state, _batch(2, lengths)) for trainer, state in zip((undivided, in_parts), states, strict=True)
    )
    assert parts.spikes.tobytes() == one.spikes.tobytes()
    assert parts.loss == one.loss
    assert parts.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    assert one.rates["linear2"] == 0
    predicted = in_parts.predict(states[1], _batch(2).inputs, STEPS)
    assert predicted.spikes.tobytes() == undivided.predict(states[0], _batch(2).inputs, STEPS).spikes.tobytes()


def test_potentials_of_several_processes_come_together() -> None:
    class Two(Alone[AnyArray]):
        """Two processes that have the same samples."""

        size = 2

        def gather(self, x: AnyArray) -> list[AnyArray]:
            return [x, x]

        def parts(self, batch: int) -> tuple[BatchSlice, ...]:
            return BatchSlice(0, batch // 2, batch), BatchSlice(batch // 2, batch // 2, batch)

    weights, inputs = initial_weights(NETWORK, 3, 3.0), _batch(2).inputs
    alone = NUMPY.trainer(NETWORK, CrossEntropy(), AdamW())
    trainer = NUMPY.trainer(NETWORK, CrossEntropy(), AdamW(), collective=Two())
    part = alone.predict(alone.init(weights), inputs, STEPS).spikes
    gathered = trainer.predict(trainer.init(weights), inputs, STEPS, batch=2 * BATCH).spikes
    assert gathered.dtype == np.float32
    assert np.array_equal(gathered, np.concatenate([part, part], axis=1))


def test_training_brings_the_loss_down() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % CLASSES
    rates = np.where(np.arange(9)[None] // 2 == labels[:, None], 0.6, 0.1)
    inputs = (rng.random((STEPS, 40, 9)) < rates).astype(np.uint8)
    trainer = NUMPY.trainer(NETWORK, CrossEntropy(), AdamW(lr=0.02))
    state, losses = trainer.init(initial_weights(NETWORK, 3, 3.0)), []
    for _ in range(60):
        state, result = trainer.step(state, Batch(inputs, encode_repeat(labels, CLASSES, STEPS)))
        losses.append(result.loss)
    assert losses[-1] < 0.3 * losses[0]
    assert (spike_count(result.spikes) == labels).mean() > 0.9


def test_what_does_not_go_together_is_refused() -> None:
    weights = initial_weights(NETWORK, 3)
    spiking = NetworkSpec.parse("6", input_shape=(9,), outputs=CLASSES)
    cases: tuple[tuple[NetworkSpec, Loss, Precision, str], ...] = (
        (NETWORK, CrossEntropy(), "reproducible", "cross-entropy uses exp.*take the loss van-rossum, hamming or"),
        (NETWORK, Hamming(), "fast", "ends with a readout, which has no spikes.*take the loss cross-entropy"),
        (spiking, CrossEntropy(), "fast", r"reads the potentials of a readout.*let it end with 4\{neuron=readout\}"),
    )
    for network, loss, precision, message in cases:
        with pytest.raises(SpecError, match=message):
            NUMPY.trainer(network, loss, AdamW(), precision=precision)
        with pytest.raises(SpecError, match=message):
            NUMPY.value_and_grad(network, loss, weights, _batch(), precision=precision)
    for notation in ("6{neuron=readout}-5", "5-4R{neuron=readout}"):
        with pytest.raises(
            NetworkError, match="a readout has no spikes that another node could read; it can only be the output"
        ):
            NetworkSpec.parse(notation, input_shape=(9,), outputs=CLASSES)
    with pytest.raises(SpecError, match="unknown neuron 'readout'"):
        parse_neuron("readout", {})
    batch = _batch()
    batch.targets[:, 3] = 0
    with pytest.raises(ShapeError, match="the targets of sample 3 do not show its class"):
        NUMPY.value_and_grad(NETWORK, CrossEntropy(), weights, batch)
    trainer = NUMPY.trainer(NETWORK, CrossEntropy(), AdamW())
    with pytest.raises(ShapeError, match="the targets of sample 3 do not show its class"):
        trainer.step(trainer.init(weights), batch)


def test_a_readout_is_written_and_read() -> None:
    assert NETWORK.has_readout
    parsed = NetworkSpec.parse(NETWORK.notation, input_shape=(9,), outputs=CLASSES)
    assert parsed == NETWORK
    network = NetworkSpec.parse("6-4{neuron=readout,tau_m=20}", input_shape=(9,), outputs=4)
    assert network.blocks[-1].neuron == Readout(20.0)
    assert {name: parse_loss(name) for name in OF_CLASSES} == OF_CLASSES
    with pytest.raises(SpecError, match="couples all neurons of a sample"):
        CrossEntropy().back(None, None, None)  # type: ignore[arg-type]
