"""Samples with different numbers of steps: each counts as it would alone, and what is padded changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp_spec.distributed.collective import Alone, BatchSlice
from stsbp_spec.engine.passes import backward_passes, forward_passes
from stsbp_spec.engine.results import Batch
from stsbp_spec.equations.assembly import loss_padding, padded_loss_equations
from stsbp_spec.equations.expressions import Expr, Names, snap, unsnapped
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.decoders import distances, spike_count
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.lengths import inside, without_padding
from stsbp_spec.models.losses import LOSSES, Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.models.losses.base import LossStep
from stsbp_spec.models.losses.stored import as_text, from_text
from stsbp_spec.models.metrics import match_spikes
from stsbp_spec.models.neurons import ALIF, LIF, PLIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.graph import Projection
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32, Float64, Int64, UInt8

NUMPY = NumpyBackend()
STEPS, BATCH = 9, 5


@dataclass(frozen=True)
class Everything(Loss):
    """Reads all that a loss may read, and has states that padded steps would spoil in either pass."""

    name: ClassVar[str] = "everything"
    parameters: ClassVar[tuple[str, ...]] = ("scale", "k")
    states: ClassVar[tuple[str, ...]] = ("r",)
    back_states: ClassVar[tuple[str, ...]] = ("inside", "n")

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {"scale": 1 / (steps * batch), "k": 1 - 1 / (psp.tau_s + steps)}

    def measure(self, p: Names, x: Names) -> Expr | None:
        d = x.r + x.count - x.target_count
        return p.scale * (d * d + 1)

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep:
        r = snap(p.k * s.r + (x.o - x.target) + 0.25)
        return LossStep({"r": r}, r)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        e = snap(p.k * s.inside + x.r)
        n = s.n + 1
        return LossStep({"inside": e, "n": n}, unsnapped(p.scale * (e * n + x.count - x.target_count)))


@dataclass(frozen=True)
class InNumpy(Everything):
    """Its distance is a function of whole trains: how many spikes there are after the first one."""

    name: ClassVar[str] = "in-numpy"

    def measure(self, p: Names, x: Names) -> Expr | None:
        return None

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        distances: Float64 = (spikes[1:] + targets[1:]).sum(axis=(0, -1)) / float(len(spikes))
        return distances


OWN: tuple[Loss, ...] = (*LOSSES.values(), Everything(), from_text(as_text(Everything())), InNumpy())
KINDS = pytest.mark.parametrize("loss", OWN, ids=lambda loss: f"{type(loss).__name__} {loss.name}")


def _trains(seed: int, batch: int = BATCH, neurons: int = 4) -> tuple[UInt8, UInt8]:
    rng = np.random.default_rng(seed)
    o, target = (rng.integers(0, 2, (STEPS, batch, neurons)).astype(np.uint8) for _ in range(2))
    return o, target


def _error(loss: Loss, o: UInt8, target: UInt8, lengths: Int64, psp: PSP) -> Float32:
    batch = o.shape[1]
    error: Float32 = NUMPY.loss_error(loss, psp, o, target, batch, loss_padding(loss, psp, lengths, batch, o.shape))
    return error


some_lengths = st.lists(st.integers(1, STEPS), min_size=1, max_size=7).map(np.array)


@KINDS
@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=some_lengths, tau=st.sampled_from([1.0, 3.0, 5 / 3]))
def test_a_sample_has_the_error_and_the_distance_that_it_has_alone(
    loss: Loss, seed: int, lengths: Int64, tau: float
) -> None:
    psp, batch = PSP(tau), len(lengths)
    o, target = _trains(seed, batch)
    error, distances = _error(loss, o, target, lengths, psp), loss.distances(o, target, psp, lengths)
    for b, length in enumerate(lengths):
        spikes, targets = o[:length, b : b + 1], target[:length, b : b + 1]
        alone = NUMPY.loss_error(loss, psp, spikes, targets, batch)
        assert alone.tobytes() == np.ascontiguousarray(error[:length, b : b + 1]).tobytes()
        assert not error[length:, b].any()
        assert distances[b] == loss.distance(spikes, targets, psp)[0]
    exact = loss.mean(o, target, psp, lengths)
    assert exact == pytest.approx(distances.mean(), rel=1e-14)


@KINDS
def test_samples_of_all_steps_have_the_bits_of_a_batch_without_lengths(loss: Loss) -> None:
    o, target = _trains(1)
    full, psp = np.full(BATCH, STEPS), PSP(3)
    assert _error(loss, o, target, full, psp).tobytes() == NUMPY.loss_error(loss, psp, o, target).tobytes()
    assert loss.distances(o, target, psp, full).tobytes() == loss.distance(o, target, psp).tobytes()
    assert loss.mean(o, target, psp, full) == loss.mean(o, target, psp)


@KINDS
def test_outputs_and_targets_at_padded_steps_do_not_matter(loss: Loss) -> None:
    (o, target), (other, other_target) = _trains(2), _trains(3)
    lengths, psp = np.array([9, 1, 4, 8, 4]), PSP(5 / 3)
    padded = ~inside(lengths, STEPS)
    other, other_target = (np.where(padded[..., None], x, y) for x, y in ((other, o), (other_target, target)))
    assert (other != o).any()
    assert (other_target != target).any()
    assert _error(loss, o, target, lengths, psp).tobytes() == _error(loss, other, other_target, lengths, psp).tobytes()
    assert np.array_equal(loss.distances(o, target, psp, lengths), loss.distances(other, other_target, psp, lengths))


@pytest.mark.parametrize("name", LOSSES)
def test_the_error_is_the_derivative_of_each_samples_own_sum(name: str) -> None:
    """Against central differences of the definitions, sums over a sample's own steps; exact but for rounding."""
    o, target = _trains(4)
    lengths, tau = np.array([9, 1, 4, 8, 5]), 3.0
    error = _error(LOSSES[name], o, target, lengths, PSP(tau))

    def value(x: Float64) -> float:
        total = 0.0
        for b, length in enumerate(lengths):
            d = x[:length, b] - target[:length, b]
            if name == "spike-count":
                d = d.sum(axis=0) / length
            elif name == "van-rossum":
                k, c = 1 - 1 / tau, 1 / tau
                d = np.array([sum(c * k ** (t - s) * d[s] for s in range(t + 1)) for t in range(length)])
            total += 0.5 * float((d * d).sum())
        return total / BATCH

    for index in np.ndindex(*o.shape):
        moved = np.zeros(o.shape)
        moved[index] = 0.5
        assert error[index] == pytest.approx(value(o + moved) - value(o - moved), rel=1e-5, abs=1e-7)


def _case(notation: str, shape: tuple[int, ...], **options: Any) -> NetworkSpec:
    return NetworkSpec.parse(notation, input_shape=shape, outputs=3, **options)


NETWORKS = {
    "dense, learned, dropout": _case("6d0.3-5d0.4", (9,), neuron=PLIF(3.0, 5 / 3, 0.4)),
    "pictures, adaptive": _case("3C3b-P2-6", (2, 6, 6), neuron=ALIF(5.0, 5 / 3, 0.3)),
    "recurrent": _case("6R-5{recurrent=one-to-one}", (9,), neuron=LIF(4.0, 5 / 3, 0.4)),
    "direct": _case("2C3-6", (1, 5, 5), coding="direct", neuron=LIF(3.0, 5 / 3, 0.5)),
}


def _inputs(network: NetworkSpec, seed: int, batch: int) -> UInt8:
    rng = np.random.default_rng(seed)
    if network.coding == "direct":
        return rng.integers(0, 256, (batch, *network.input_shape), dtype=np.uint8)
    return (rng.random((STEPS, batch, *network.input_shape)) < 0.3).astype(np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=some_lengths, loss=st.sampled_from(OWN[:4]))
def test_a_padded_batch_has_the_gradients_of_its_samples_without_padding(
    name: str, seed: int, lengths: Int64, loss: Loss
) -> None:
    """To the bit: each sample goes through the network alone, as long as it is, both ways."""
    network, batch, dropout = NETWORKS[name], len(lengths), (7, 1)
    weights = initial_weights(network, seed % 100, 2.0)
    inputs, (_, targets) = _inputs(network, seed, batch), _trains(seed, batch, 3)
    padded = NUMPY.value_and_grad(
        network, loss, weights, Batch(inputs, targets, lengths), precision="reproducible", dropout=dropout
    )
    wq = dict(weights)
    for projection in network.graph.projections:
        wq[projection.name] = NUMPY.weight_grid(projection, weights[projection.name])[0]
    traces, errors = [], []
    for b, length in enumerate(lengths):
        unpadded_input = inputs[b : b + 1] if network.coding == "direct" else inputs[:length, b : b + 1]
        x = NUMPY.encode(unpadded_input, network.coding)
        part = BatchSlice(b, 1, batch)
        (trace,) = forward_passes(NUMPY, network.graph, wq, [x], int(length), dropout, [part], Alone(), "full")
        errors.append(NUMPY.loss_error(loss, network.output_psp, trace.output, targets[:length, b : b + 1], batch))
        traces.append(trace)
        assert np.array_equal(trace.output, padded.spikes[:length, b : b + 1])
    bits = Projection.error_bits
    with pytest.MonkeyPatch.context() as patch:
        # Bits of the grid count the steps of the batch, padded ones as well; a static input has one frame.
        def of_the_batch(self: Projection, *, frames: int) -> int:
            return bits(self, frames=batch * (1 if self.input.static else STEPS))

        patch.setattr(Projection, "error_bits", of_the_batch)
        expected = backward_passes(traces, errors, "reproducible")
    for parameter in network.parameters:
        assert padded.gradients[parameter].tobytes() == (expected[parameter] + 0).tobytes(), parameter


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_at_padded_steps_and_more_padding_do_not_matter(name: str) -> None:
    network = NETWORKS[name]
    weights = initial_weights(network, 3, 2.0)
    inputs, (_, targets) = _inputs(network, 5, BATCH), _trains(5, BATCH, 3)
    # Sums over 5 x 7 and 5 x 9 steps have grids of as many bits.
    lengths = np.array([7, 2, 7, 5, 1])
    expected = NUMPY.value_and_grad(
        network, VanRossum(), weights, Batch(inputs, targets, lengths), precision="reproducible"
    )
    cut = inputs if network.coding == "direct" else inputs[:7]
    shorter = NUMPY.value_and_grad(
        network, VanRossum(), weights, Batch(cut, targets[:7], lengths), precision="reproducible"
    )
    other = inputs.copy()
    if network.coding == "events":
        other[~inside(lengths, STEPS)] = 1
    noisy = NUMPY.value_and_grad(
        network, VanRossum(), weights, Batch(other, targets, lengths), precision="reproducible"
    )
    assert shorter.loss == expected.loss == noisy.loss
    for parameter in network.parameters:
        assert shorter.gradients[parameter].tobytes() == expected.gradients[parameter].tobytes()
        assert noisy.gradients[parameter].tobytes() == expected.gradients[parameter].tobytes()


def test_what_a_step_reports_leaves_padded_steps_out() -> None:
    network = NETWORKS["dense, learned, dropout"]
    inputs, (_, targets) = _inputs(network, 8, BATCH), _trains(8, BATCH, 3)
    lengths = np.array([9, 1, 4, 8, 4])
    weights, loss = initial_weights(network, 3, 3.0), SpikeCount()
    trainer = NUMPY.trainer(network, loss, AdamW(lr=0.0), precision="reproducible")
    state = trainer.init(weights)
    _, result = trainer.step(state, Batch(inputs, targets, lengths))
    assert result.loss == loss.mean(result.spikes, targets, network.output_psp, lengths)
    assert result.loss != loss.mean(result.spikes, targets, network.output_psp)
    frames = PackedFrames.of(inputs)
    predicted = trainer.predict(state, frames, STEPS, lengths=lengths)
    layers = NUMPY.run(network, weights, inputs, STEPS).layers
    which = inside(lengths, STEPS)
    assert which.sum() == lengths.sum() == 26
    for name, rate in predicted.rates.items():
        assert rate == pytest.approx(layers[name].spikes[which].mean(), rel=1e-14)
    # Without dropout what an update reports of the same weights is the same.
    still = NETWORKS["pictures, adaptive"]
    trainer = NUMPY.trainer(still, loss, AdamW(lr=0.0))
    state, inputs = trainer.init(initial_weights(still, 3, 3.0)), _inputs(still, 8, BATCH)
    expected = trainer.predict(state, inputs, STEPS, lengths=lengths).rates
    assert trainer.step(state, Batch(inputs, targets, lengths))[1].rates == expected
    assert expected != trainer.predict(state, inputs, STEPS).rates


def test_decoders_and_matches_leave_padded_steps_out() -> None:
    o, target = _trains(9)
    lengths = np.array([9, 1, 4, 8, 4])
    sequences = np.stack([target[:, b] for b in range(3)])
    for loss in OWN:
        of_batch = distances(o, sequences, loss, PSP(3), lengths)
        for b, length in enumerate(lengths):
            alone = distances(o[:length, b : b + 1], sequences[:, :length], loss, PSP(3))
            assert np.array_equal(of_batch[b], alone[0])
    counted = spike_count(o, lengths)
    matches = match_spikes(o, target, 1, lengths)
    for b, length in enumerate(lengths):
        spikes, targets = o[:length, b : b + 1], target[:length, b : b + 1]
        assert counted[b] == spike_count(spikes)[0]
        assert [x[b] for x in matches] == [x[0] for x in match_spikes(spikes, targets, 1)]
    assert np.array_equal(without_padding(o, None), o)
    assert without_padding(o, lengths).sum() == o[inside(lengths, STEPS)].sum()


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([9, 9, 9, 9, 9], "lengths must be a numpy array, got list"),
        (np.full(5, 9.0), r"lengths must be integers \[B\] = \[5\].*got float64 of shape \[5\]"),
        (np.full(4, 9), r"lengths must be integers \[B\] = \[5\].*got int64 of shape \[4\]"),
        (np.array([9, 9, 0, 9, 9]), "lengths must be from 1 to 9, the number of steps; sample 2 has 0"),
        (np.array([9, 9, 9, 10, 9], np.uint8), "lengths must be from 1 to 9, the number of steps; sample 3 has 10"),
    ],
    ids=["list", "floats", "too few", "none", "more than there are"],
)
def test_other_lengths_are_refused(lengths: Any, message: str) -> None:
    network = NETWORKS["dense, learned, dropout"]
    inputs, (_, targets) = _inputs(network, 8, BATCH), _trains(8, BATCH, 3)
    weights = initial_weights(network, 3)
    trainer = NUMPY.trainer(network, Hamming(), AdamW())
    batch, state = Batch(inputs, targets, lengths), trainer.init(weights)
    with pytest.raises(ShapeError, match=message):
        trainer.step(state, batch)
    with pytest.raises(ShapeError, match=message):
        NUMPY.value_and_grad(network, Hamming(), weights, batch)
    with pytest.raises(ShapeError, match=message):
        trainer.predict(state, inputs, STEPS, lengths=lengths)


def test_the_mask_of_a_loss_has_a_name_that_the_loss_has_not() -> None:
    equations = padded_loss_equations(Everything())
    assert equations.inside == "inside_"
    assert equations.backward.inputs[-1] == "inside_"
    assert not equations.backward.parameters
    assert set(equations.backward.inputs) >= {"scale", "k", "r", "count", "target_count"}
    assert padded_loss_equations(VanRossum()).inside == "inside"


def test_lengths_of_any_integer_type_and_any_memory_count_the_same() -> None:
    network = NETWORKS["dense, learned, dropout"]
    inputs, (_, targets) = _inputs(network, 8, BATCH), _trains(8, BATCH, 3)
    weights, lengths = initial_weights(network, 3), np.array([9, 1, 4, 8, 4])
    gradients: list[AnyArray] = []
    for dtype in (np.int64, np.uint8, np.int32):
        result = NUMPY.value_and_grad(
            network, SpikeCount(), weights, Batch(inputs, targets, lengths.astype(dtype)), precision="reproducible"
        )
        gradients.append(np.concatenate([x.ravel() for x in result.gradients.values()]))
    assert all(x.tobytes() == gradients[0].tobytes() for x in gradients)
