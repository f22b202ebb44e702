"""The rate penalty: its definition, what it adds to gradients, what is refused, and what the trainer reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from stsbp_spec.engine.backend import Batch
from stsbp_spec.errors import SpecError
from stsbp_spec.models.losses import OF_POTENTIALS, Hamming, VanRossum
from stsbp_spec.models.neurons import LIF, PLIF, Readout
from stsbp_spec.models.optim import SGD
from stsbp_spec.models.rate_penalty import UNIT, RatePenalty
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float64, Int64, UInt8

NUMPY = NumpyBackend()
NETWORK = NetworkSpec.parse("5C3p1-P2-[4C3p1|4C1]+-9R", input_shape=(2, 6, 6), outputs=3, neuron=LIF(3, 5 / 3, 0.4))
STEPS, BATCH = 7, 4
LENGTHS = np.array([7, 3, 1, 5])


def _spikes(*shape: int, seed: int = 1, density: float = 0.4) -> UInt8:
    return (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)


def _batch(lengths: Any = None) -> Batch:
    inputs = _spikes(STEPS, BATCH, *NETWORK.input_shape)
    return Batch(inputs, _spikes(STEPS, BATCH, NETWORK.outputs, seed=2), lengths)


WEIGHTS = initial_weights(NETWORK, 3, 3.0)


def test_error_is_the_stated_expression() -> None:
    s, penalty = _spikes(STEPS, BATCH, 2, 3, 4), RatePenalty(1 / 3, 10.0)
    error, units = NUMPY.rate_penalty(penalty, s, 6)
    n = s.sum(0, dtype=np.float32)
    limit, scale = np.float32(STEPS / 3), np.float32(2 * 10 / (24 * 6 * STEPS * STEPS))
    expected = np.where(n > limit, scale * (n - limit), np.float32(0))
    assert 0.2 < np.mean(expected > 0) < 0.8
    assert np.array_equal(error, expected[None])
    squares = [max(Fraction(0), Fraction(int(k), STEPS) - Fraction(1, 3)) ** 2 for k in n.reshape(-1)]
    # The rounding to a multiple of UNIT, and some roundings to float32 of numbers below 1.
    assert np.abs(units.reshape(-1) * UNIT - np.array(squares, float)).max() < UNIT


@pytest.mark.parametrize("target", [0.0, 0.15])
def test_gradient_against_differences_of_the_penalty(target: float) -> None:
    """The derivative with respect to the number of spikes of one neuron."""
    s, penalty, step = _spikes(STEPS, BATCH, 5), RatePenalty(target, 3.0), 2.0**-20
    error, _ = NUMPY.rate_penalty(penalty, s, BATCH)
    counts = s.sum(0, dtype=np.float64)
    for place in np.ndindex(counts.shape):
        more, fewer = counts.copy(), counts.copy()
        more[place] += step
        fewer[place] -= step
        slope = (penalty.of_counts(more, STEPS) - penalty.of_counts(fewer, STEPS)) / (2 * step)
        if counts[place] != target * STEPS:
            assert error[(0, *place)] == pytest.approx(slope, rel=1e-6)


def _gradients(batch: Batch, penalties: dict[str, RatePenalty], **options: Any) -> Any:
    return NUMPY.value_and_grad(NETWORK, VanRossum(), WEIGHTS, batch, rate_penalty=penalties, **options)


@pytest.mark.parametrize("lengths", [None, np.array([7, 6, 5, 7])], ids=["all steps", "lengths"])
def test_a_target_that_is_not_exceeded_changes_no_bit(lengths: Any) -> None:
    # Few neurons fire at every step.
    network = NetworkSpec.parse(NETWORK.notation.replace("threshold=0.4", "threshold=1.5"), input_shape=(2, 6, 6))
    weights = initial_weights(network, 3, 2.0)

    def gradients(penalties: dict[str, RatePenalty]) -> Any:
        return NUMPY.value_and_grad(
            network, VanRossum(), weights, _batch(lengths), precision="reproducible", rate_penalty=penalties
        )

    plain = gradients({})
    steps = np.full(BATCH, STEPS) if lengths is None else lengths
    layers = NUMPY.run(network, weights, _batch().inputs, STEPS).layers
    largest = {name: _rates(layer.spikes, steps).max() for name, layer in layers.items()}
    never = {name: RatePenalty(rate + 0.01, 1e6) for name, rate in largest.items() if 0 < rate < 1}
    assert len(never) == 5
    got = gradients(never)
    assert got.penalties == dict.fromkeys(never, 0.0)
    for name, gradient in plain.gradients.items():
        assert gradient.tobytes() == got.gradients[name].tobytes()


def _rates(s: UInt8, steps: Int64) -> Float64:
    """Spikes per step of each neuron in each sample of `steps` `[B]` steps, `[B, N]`."""
    inside = np.arange(STEPS)[:, None, None] < steps[:, None]
    rates: Float64 = (s.reshape(STEPS, BATCH, -1) * inside).sum(0) / steps[:, None]
    return rates


def test_penalties_reach_the_layers_before_but_not_those_after() -> None:
    plain, layer = _gradients(_batch(), {}), NETWORK.blocks[1].name
    got = _gradients(_batch(), {layer: RatePenalty(0.0, 100.0)})
    assert got.penalties.keys() == {layer}
    assert got.loss == plain.loss
    changed = {name for name, g in plain.gradients.items() if not np.array_equal(g, got.gradients[name])}
    assert changed == {NETWORK.blocks[0].name, layer}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
def test_reported_penalties(lengths: Any) -> None:
    penalties = {block.name: RatePenalty(0.1, 7.0) for block in NETWORK.blocks}
    got = _gradients(_batch(lengths), penalties)
    steps = np.full(BATCH, STEPS) if lengths is None else lengths
    layers = NUMPY.run(NETWORK, WEIGHTS, _batch().inputs, STEPS).layers
    assert list(got.penalties) == [block.name for block in NETWORK.blocks]
    for block in NETWORK.blocks:
        s = layers[block.name].spikes
        expected = penalties[block.name].of_counts(_rates(s, steps) * steps[:, None], steps)
        assert expected > 0
        assert got.penalties[block.name] == pytest.approx(expected, abs=7.0 * UNIT)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
def test_a_sample_alone_has_its_part(lengths: Any) -> None:
    """The gradient of a batch is the mean of the gradients of its samples."""
    penalties, batch = {block.name: RatePenalty(0.1, 7.0) for block in NETWORK.blocks}, _batch(lengths)
    whole = _gradients(batch, penalties)
    singles = []
    for i in range(BATCH):
        steps = STEPS if lengths is None else int(lengths[i])
        inputs, targets, _ = batch
        singles.append(_gradients(Batch(inputs[:steps, i : i + 1], targets[:steps, i : i + 1]), penalties))
    for name, gradient in whole.gradients.items():
        mean = np.mean([single.gradients[name] for single in singles], axis=0, dtype=np.float64)
        assert np.abs(gradient - mean).max() <= 1e-5 * np.abs(mean).max()
    for name, value in whole.penalties.items():
        assert value == pytest.approx(np.mean([single.penalties[name] for single in singles]), abs=7.0 * UNIT)


@pytest.mark.parametrize("options", [{"memory": "low"}, {"micro_batch": 1}, {"micro_batch": 3}])
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_updates_in_parts(options: dict[str, Any], precision: Any) -> None:
    penalties = {block.name: RatePenalty(0.1, 7.0) for block in NETWORK.blocks}

    def trained(**options: Any) -> Any:
        trainer = NUMPY.trainer(
            NETWORK, Hamming(), SGD(lr=0.05), precision=precision, rate_penalty=penalties, **options
        )
        state = trainer.init({name: w.copy() for name, w in WEIGHTS.items()})
        results = []
        for _ in range(3):
            state, result = trainer.step(state, _batch(LENGTHS))
            results.append(result.penalties)
        return trainer.export_state(state), results

    (whole, penalties_of_whole), (parts, penalties_of_parts) = trained(), trained(**options)
    assert penalties_of_whole[0] == penalties_of_parts[0] != penalties_of_whole[1]
    for name, x in whole.items():
        if precision == "reproducible":
            assert x.tobytes() == parts[name].tobytes(), name
        else:
            assert np.abs(x - parts[name]).max() <= 1e-4 * max(1, np.abs(x).max()), name


def test_fewer_spikes_after_updates() -> None:
    def rates(**options: Any) -> dict[str, float]:
        trainer = NUMPY.trainer(NETWORK, Hamming(), SGD(lr=0.02), **options)
        state = trainer.init({name: w.copy() for name, w in WEIGHTS.items()})
        for _ in range(30):
            state, _ = trainer.step(state, _batch())
        return trainer.predict(state, _batch().inputs, STEPS).rates

    layer = NETWORK.blocks[0].name
    assert rates(rate_penalty={layer: RatePenalty(0.0, 300.0)})[layer] < 0.5 * rates()[layer]


def test_learned_parameters_get_the_gradient_of_the_penalty() -> None:
    network = NetworkSpec.parse("6b", input_shape=(9,), outputs=3, neuron=PLIF(3, 5 / 3, 0.4))
    weights, inputs = initial_weights(network, 1, 3.0), _spikes(STEPS, BATCH, 9)
    batch = Batch(inputs, _spikes(STEPS, BATCH, 3, seed=2))
    plain = NUMPY.value_and_grad(network, Hamming(), weights, batch).gradients
    got = NUMPY.value_and_grad(
        network, Hamming(), weights, batch, rate_penalty={"linear1": RatePenalty(0.0, 9.0)}
    ).gradients
    assert {name for name in plain if not np.array_equal(plain[name], got[name])} == {
        "linear1",
        "linear1.bias",
        "linear1.decay",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RatePenalty(1.0, 1.0), "target must be a rate in spikes per step, from 0 to less than 1, got 1.0"),
        (lambda: RatePenalty(-0.1, 1.0), "target must be a rate"),
        (lambda: RatePenalty(math.nan, 1.0), "target must be a rate"),
        (lambda: RatePenalty(0.1, 0.0), r"weight must be from 2\^-100 to 2\^100, got 0.0"),
        (lambda: RatePenalty(0.1, math.inf), "weight must be"),
        (lambda: RatePenalty("0.1", 1.0), "RatePenalty: target must be a number"),  # type: ignore[arg-type]
    ],
)
def test_numbers_outside_their_domain(make: Callable[[], RatePenalty], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


@pytest.mark.parametrize(
    ("penalties", "message"),
    [
        ({"conv9": RatePenalty(0.1, 1)}, "no layer 'conv9' for a rate penalty; its layers are conv1, conv2, conv3"),
        ({"conv1": 0.1}, r"rate penalty of layer conv1 is RatePenalty\(target, weight\), got 0.1"),
        ([("conv1", RatePenalty(0.1, 1))], "rate penalties are a dict by layer"),
    ],
)
def test_wrong_penalties(penalties: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        NUMPY.trainer(NETWORK, Hamming(), SGD(lr=0.1), rate_penalty=penalties)
    with pytest.raises(SpecError, match=message):
        _gradients(_batch(), penalties)


def test_a_readout_has_no_rates() -> None:
    network = NetworkSpec.parse("6", input_shape=(9,), outputs=3, output_neuron=Readout(5))
    with pytest.raises(SpecError, match="layer linear2 is a readout, which does not spike; leave out its rate penalty"):
        NUMPY.trainer(
            network,
            OF_POTENTIALS["cross-entropy"],
            SGD(lr=0.1),
            rate_penalty={"linear2": RatePenalty(0.1, 1)},
        )
