"""Batch normalisation: sums that are exact in any order, what follows from them, and gradients against float64."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
from stsbp_conformance.oracles.literal import Literal
from stsbp_spec.contract.random import keep_mask
from stsbp_spec.engine.backend import Batch
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.engine.passes import forward_pass
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.errors import ExactnessError, NetworkError, NumericError, ShapeError, SpecError
from stsbp_spec.models.losses import Hamming, VanRossum
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim.adamw import AdamW
from stsbp_spec.models.surrogates import Arctan, derivative
from stsbp_spec.networks.graph import Edge, Input, Network, Neurons, Node
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.layers import SpikingLayer
from stsbp_spec.networks.ops import AvgPool2d, BatchNorm, Conv2d, Linear
from stsbp_spec.networks.ops import batchnorm as spec
from stsbp_spec.networks.ops.dropout import substream
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float64, Int64, Memory, Precision

NUMPY = NumpyBackend()
NETWORK = NetworkSpec.parse(
    "4C3p1bn-P2-D0.25-5C3bn{factor=0.5,momentum=0.3,eps=0.001}",
    input_shape=(2, 6, 7),
    outputs=3,
    neuron=LIF(3, 5 / 3, 0.5),
)
STEPS, SAMPLES = 5, 4


def _batch(seed: int, network: NetworkSpec = NETWORK) -> Batch:
    random = np.random.default_rng(seed)
    shape = (SAMPLES, *network.input_shape)
    frames = (random.random((STEPS, *shape)) < 0.3).astype(np.uint8)
    return Batch(frames, (random.random((STEPS, SAMPLES, network.outputs)) < 0.3).astype(np.uint8))


def _wild(channels: int, n: int, seed: int) -> tuple[Int64, AnyArray, AnyArray]:
    """Integers `[C, n]` up to 2^24, far from 0 in one channel and all alike in another, as `z` and its exponent."""
    random = np.random.default_rng(seed)
    k = np.clip(np.rint(random.normal(0, 2.0**21, (channels, n))), -(2**24), 2**24).astype(np.int64)
    k[0] = 2**24 - random.integers(0, 3, n)
    k[1] = -(2**24) + 7
    z = (k * 2.0**-14).astype(np.float32).T.reshape(1, n, channels)
    return k, z, np.array([14], np.int32)


def test_moments_are_those_of_integers_and_add_up_over_any_parts() -> None:
    k, z, exponent = _wild(6, 999, 0)
    undivided = spec.moments(z, exponent)
    for row, (total, high, low) in zip(k.tolist(), undivided.T.tolist(), strict=True):
        assert total == sum(row)
        assert (high << 24) + low == sum(x * x for x in row)
    order = np.random.default_rng(1).permutation(999)
    parts: Any = sum(spec.moments(z[:, part], exponent) for part in np.split(order, [1, 400, 700]))
    assert np.array_equal(parts[0], undivided[0])
    assert np.array_equal((parts[1] << 24) + parts[2], (undivided[1] << 24) + undivided[2])
    wide = spec.ChannelArithmetic()
    statistics = [spec.statistics(wide, sums, exponent, 999) for sums in (parts, undivided)]
    assert all(np.array_equal(x, y) for x, y in zip(*statistics, strict=True))


@pytest.mark.parametrize("exponent", [-90, -3, 0, 14, 127, 149])
def test_sums_of_any_unit_are_read(exponent: int) -> None:
    k = np.array([2**24, -(2**24) + 1, 3, 0], np.int64)
    z = np.ldexp(k.astype(np.float64), -exponent).astype(np.float32).reshape(1, 4, 1)
    if exponent > 126:
        k[2] = z[0, 2, 0] = 0  # a subnormal number
    moments = spec.moments(z, np.array([exponent], np.int32))
    assert moments[0, 0] == k.sum()


def test_mean_and_variance_against_fractions() -> None:
    """Within 4 roundings of float64 of the exact numbers, where all alike as where far from 0."""
    n = 1003
    k, z, exponent = _wild(6, n, 2)
    mean, variance = spec.statistics(spec.ChannelArithmetic(), spec.moments(z, exponent), exponent, n)
    for row, mean_of_row, spread in zip(k.tolist(), mean.tolist(), variance.tolist(), strict=True):
        exact = Fraction(sum(row), n)
        square = Fraction(sum(x * x for x in row), n) - exact * exact
        assert abs(Fraction(mean_of_row) * 2**14 - exact) <= abs(exact) * Fraction(2) ** -52
        assert abs(Fraction(spread) * 2**28 - square) <= square * Fraction(2) ** -50
    assert variance[1] == 0
    assert variance[0] > 0


def test_sums_of_errors_on_their_grid_do_not_hang_on_the_order() -> None:
    n = 4096
    _, z, exponent = _wild(5, n, 3)
    dy = np.random.default_rng(4).normal(0, 1e-3, z.shape).astype(np.float32)
    dy[0, ::7] *= np.float32(2.0**-18)
    bits = spec.norm_error_bits(n)
    assert bits == 53 - 12 - 12
    on_grid, _ = NUMPY.error_grid(dy, bits)
    undivided = spec.error_moments(on_grid, z, exponent)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(n)
        parts = [spec.error_moments(on_grid[:, part], z[:, part], exponent) for part in np.split(order, [5, 1000])]
        assert np.array_equal(sum(parts), undivided)
    # One bit finer, and order shows.
    finer, _ = NUMPY.error_grid(dy, bits + 12)
    sums = [
        spec.error_moments(finer[:, order], z[:, order], exponent) for order in (slice(None), slice(None, None, -1))
    ]
    assert (sums[0] != sums[1]).any()


@pytest.mark.parametrize("gain", [1.0, 1 / (1 - 0.3)])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_against_finite_differences(training: bool, gain: float) -> None:
    """Random cotangents; all of `z`, scale and shift along random directions, in float64 by the definition."""
    n, channels = 60, 3
    random = np.random.default_rng(7)
    k = np.rint(random.normal(300, 500, (1, n, channels)))
    z, exponent = (k * 2.0**-8).astype(np.float32), np.array([8], np.int32)
    scale, shift = random.normal(1, 0.3, (2, channels)).astype(np.float32)
    norm = BatchNorm(eps=0.01, factor=0.7)
    cotangents = random.normal(size=z.shape)
    mean, variance = random.normal(1, 0.1, channels).astype(np.float32), np.full(channels, 1.5, np.float32)

    def y(z: Any, scale: Any, shift: Any) -> Float64:
        if training:
            m, v = gain * z.mean((0, 1)), gain * gain * z.var((0, 1))
        else:
            m, v, z = mean.astype(float), variance.astype(float), z / gain
        computed: Float64 = scale * 0.7 * (gain * z - m) / np.sqrt(v + 0.01) + shift
        return computed

    wide = spec.ChannelArithmetic()
    if training:
        by = spec.of_batch(wide, spec.moments(z, exponent), exponent, scale, norm=norm, n=n, gain=gain)
    else:
        by = spec.of_running(wide, mean, variance, scale, norm=norm)
    numbers = {"mean": by.mean, "a": by.a, "shift": shift}
    computed = NUMPY.recur(
        spec.FORWARD, {}, {"z": z, **{k: v.reshape(1, 1, -1) + 0 * z for k, v in numbers.items()}}, 1
    )["y"]
    assert np.abs(computed - y(z.astype(float), scale, shift)).max() <= 2e-6
    dy = cotangents.astype(np.float32)
    of_all, slope, d_scale, d_shift = spec.backward_coefficients(
        wide, spec.error_moments(dy, z, exponent), exponent, by, n=n, training=training
    )
    numbers = {"mean": by.mean, "a": by.a, "of_all": of_all, "slope": slope}
    broadcast = {k: v.reshape(1, 1, -1) + 0 * z for k, v in numbers.items()}
    dz = NUMPY.recur(spec.BACKWARD, {}, {"z": z, "dy": dy, **broadcast}, 1)["dz"]

    def value(at: Any) -> float:
        return float((y(*at) * dy).sum())

    at = [x.astype(np.float64) for x in (z, scale, shift)]
    for _ in range(5):
        direction = [random.normal(size=x.shape) for x in at]
        h = 1e-5
        slopes = (
            value([x + h * d for x, d in zip(at, direction, strict=True)]),
            value([x - h * d for x, d in zip(at, direction, strict=True)]),
        )
        expected = (slopes[0] - slopes[1]) / (2 * h)
        got = sum(float((g * d).sum()) for g, d in zip((dz.astype(float), d_scale, d_shift), direction, strict=True))
        size = math.sqrt(sum(float((g**2).sum()) for g in (dz.astype(float), d_scale, d_shift)))
        assert abs(got - expected) <= 1e-5 * size


def _trained(
    micro_batch: int | None, memory: Memory = "full", precision: Precision = "reproducible"
) -> tuple[dict[str, AnyArray], Trainer[AnyArray]]:
    trainer = NUMPY.trainer(
        NETWORK, VanRossum(), AdamW(lr=0.01, weight_decay=0.1), precision=precision, seed=3, micro_batch=micro_batch,
        memory=memory,
    )  # fmt: skip
    state = trainer.init(initial_weights(NETWORK, 2))
    for step in range(3):
        state, _ = trainer.step(state, _batch(step))
    return trainer.export_state(state), trainer


@pytest.mark.parametrize(("micro_batch", "memory"), [(None, "low"), (1, "full"), (3, "full")])
def test_parts_of_a_batch_and_little_memory_give_the_same_state(micro_batch: int | None, memory: Memory) -> None:
    undivided, in_parts = _trained(None)[0], _trained(micro_batch, memory)[0]
    assert list(in_parts) == list(undivided)
    for name, x in undivided.items():
        assert in_parts[name].tobytes() == x.tobytes(), name


def test_running_statistics_follow_the_batches_once_a_step() -> None:
    """Against means and variances of `g z` of the first layer, whose weights are known, in float64."""
    trainer = NUMPY.trainer(NETWORK, VanRossum(), AdamW(lr=0.0), precision="fast", seed=3, micro_batch=2)
    state = trainer.init(initial_weights(NETWORK, 2))
    mean, variance = np.zeros(4), np.ones(4)
    for step in range(4):
        batch = _batch(step)
        wq, _ = NUMPY.weight_grid(NETWORK.blocks[0], state.weights["conv1"])
        z = NUMPY.rule(NETWORK.blocks[0].synapse).forward(NETWORK.blocks[0].synapse, batch.inputs, wq)[0].astype(float)
        mean += 0.1 * (z.mean((0, 1, 3, 4)) - mean)
        variance += 0.1 * (z.var((0, 1, 3, 4)) - variance)
        state, _ = trainer.step(state, batch)
        assert state.weights["conv1.mean"] == pytest.approx(mean, rel=1e-6, abs=1e-7)
        assert state.weights["conv1.variance"] == pytest.approx(variance, rel=1e-6)
    assert set(state.m) == set(NETWORK.parameters)
    assert not np.array_equal(state.weights["conv2.variance"], np.ones(5))


def test_evaluation_takes_running_statistics_and_changes_nothing() -> None:
    exported, trainer = _trained(None)
    state = trainer.import_state(exported)
    first = trainer.predict(state, _batch(9).inputs, STEPS)
    weights = {name.removeprefix("weight/"): x for name, x in exported.items() if name.startswith("weight/")}
    evaluated = NUMPY.run(NETWORK, weights, _batch(9).inputs, STEPS)
    assert (evaluated.layers["linear3"].spikes == first.spikes).all()
    moved = {**weights, "conv1.mean": weights["conv1.mean"] + np.float32(0.5)}
    other = NUMPY.run(NETWORK, moved, _batch(9).inputs, STEPS)
    assert (other.layers["conv1"].potentials != evaluated.layers["conv1"].potentials).any()
    assert trainer.export_state(state)["weight/conv1.mean"].tobytes() == exported["weight/conv1.mean"].tobytes()
    # One sample at a time: nothing of another sample is in it.
    one = trainer.predict(state, _batch(9).inputs[:, 1:2], STEPS)
    assert (one.spikes[:, 0] == first.spikes[:, 1]).all()


def test_scale_and_shift_are_not_decayed() -> None:
    trainer = NUMPY.trainer(NETWORK, VanRossum(), AdamW(lr=0.1, weight_decay=5.0), precision="fast")
    state = trainer.init(initial_weights(NETWORK, 2))
    silent = Batch(np.zeros_like(_batch(0).inputs), np.zeros_like(_batch(0).targets))
    state, result = trainer.step(state, silent)
    assert result.gradient_norm == 0
    assert (state.weights["conv1.scale"] == 1).all()
    assert np.abs(state.weights["conv1"]).max() < np.abs(initial_weights(NETWORK, 2)["conv1"]).max()


def test_names_and_notation() -> None:
    names = ["conv1", "conv1.scale", "conv1.shift", "conv2", "conv2.scale", "conv2.shift", "linear3"]
    assert list(NETWORK.parameters) == names
    assert list(NETWORK.statistics) == ["conv1.mean", "conv1.variance", "conv2.mean", "conv2.variance"]
    assert set(initial_weights(NETWORK, 0)) == {*names, *NETWORK.statistics}
    assert str(NETWORK) == "4C3p1bn-P2-D0.25-5C3bn{momentum=0.3,eps=0.001,factor=0.5}-3"
    parsed = NetworkSpec.parse(NETWORK.notation, input_shape=(2, 6, 7), outputs=3)
    assert parsed == NETWORK
    assert parsed.blocks[1].synapse.norm == BatchNorm(momentum=0.3, eps=0.001, factor=0.5)
    assert NetworkSpec.parse("20bn-5b", input_shape=(9,)).blocks[0].synapse == Linear(20, norm=BatchNorm())


def test_dropout_in_front_is_in_the_statistics_and_not_in_the_filter() -> None:
    block = NETWORK.blocks[1]
    assert block.input.gain == 1 / 0.75
    assert block.filter(training=True) == block.filter(training=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BatchNorm(momentum=0), "momentum of batch normalisation must be above 0 and at most 1, got 0"),
        (lambda: BatchNorm(eps=0.0), "eps of batch normalisation must be from 1e-12 to 1, got 0"),
        (lambda: BatchNorm(factor=-1), "factor of batch normalisation must be from"),
        (lambda: BatchNorm(eps=float("nan")), "eps of batch normalisation must be"),
        (lambda: Conv2d(4, 3, bias=True, norm=BatchNorm()), "subtracts the mean, which cancels a bias; leave the bias"),
        (lambda: Linear(4, norm=cast(Any, "bn")), "norm is BatchNorm\\(\\) or None, got 'bn'"),
        (lambda: NetworkSpec.parse("4C3bbn", input_shape=(1, 5, 5), outputs=2), "leave the bias out"),
        (lambda: NetworkSpec.parse("4C3bnbn", input_shape=(1, 5, 5), outputs=2), "norm is given twice"),
        (lambda: NetworkSpec.parse("4C3{eps=0.1}", input_shape=(1, 5, 5), outputs=2), "unknown parameter 'eps'"),
        (lambda: NetworkSpec.parse("4C3bn{eps=7}", input_shape=(1, 5, 5), outputs=2), "must be from 1e-12 to 1"),
        (
            lambda: spec.summands(2**20, (3, 32, 32)),
            "is not exact; it is exact for at most 2\\^29 sums. Use smaller batches",
        ),
    ],
)
def test_what_cannot_be_is_refused(build: Any, message: str) -> None:
    with pytest.raises((SpecError, NetworkError, ExactnessError), match=message):
        build()


@pytest.mark.parametrize("lengths", [None, np.array([5, 2])], ids=["without lengths", "with lengths"])
def test_more_sums_than_are_exact_are_refused(lengths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NetworkSpec.parse("4bn", input_shape=(3,), outputs=2)
    batch = Batch(np.ones((5, 2, 3), np.uint8), np.zeros((5, 2, 2), np.uint8), lengths)
    monkeypatch.setattr(spec, "MAX_SUMS", 10)
    NUMPY.value_and_grad(network, Hamming(), initial_weights(network, 0), batch, dropout=(0, 0))
    monkeypatch.setattr(spec, "MAX_SUMS", 9)
    with pytest.raises(ExactnessError, match="batch normalisation of 10 sums in a channel is not exact"):
        NUMPY.value_and_grad(network, Hamming(), initial_weights(network, 0), batch, dropout=(0, 0))


def test_statistics_that_cannot_be_are_refused() -> None:
    weights = initial_weights(NETWORK, 2)
    for name, value, message in (
        ("conv1.variance", -1.0, "conv1.variance must be from 0 to"),
        ("conv1.mean", math.nan, "conv1.mean must be from"),
        ("conv1.variance", 2.0**-120, "0 or at least 2\\^-100"),
    ):
        wrong = {**weights, name: np.full(4, value, np.float32)}
        with pytest.raises(NumericError, match=message):
            NUMPY.run(NETWORK, wrong, _batch(0).inputs, STEPS)
    with pytest.raises(ShapeError, match="must have the layers"):
        NUMPY.run(NETWORK, {k: w for k, w in weights.items() if k != "conv2.mean"}, _batch(0).inputs, STEPS)


@pytest.mark.parametrize(("gain", "got"), [(1e18, r"\de\+3\d"), (1e25, "inf")])
def test_step_refuses_running_statistics_that_no_network_could_use(gain: float, got: str) -> None:
    weights = {name: np.float32(gain if x.ndim > 1 else 1) * x for name, x in initial_weights(NETWORK, 2).items()}
    trainer = NUMPY.trainer(NETWORK, Hamming(), AdamW(lr=1e-3))
    state = trainer.init(weights)
    message = rf"^step 0: conv1\.variance must be from 0 to 1\.26765e\+30, .*, got .*{got}; lower the learning rate"
    with pytest.raises(NumericError, match=message):
        trainer.step(state, _batch(0))
    # The state is what it was.
    assert np.array_equal(trainer.export_state(state)["weight/conv1"], weights["conv1"])


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_padded_steps_are_in_no_statistic(micro_batch: int | None) -> None:
    """What the padding holds changes nothing; without padding the lengths change nothing."""

    def state(batch: Batch) -> dict[str, AnyArray]:
        trainer = NUMPY.trainer(NETWORK, VanRossum(), AdamW(lr=0.01), precision="reproducible", micro_batch=micro_batch)
        trained, _ = trainer.step(trainer.init(initial_weights(NETWORK, 2)), batch)
        return trainer.export_state(trained)

    lengths = np.array([5, 2, 4, 1])
    inside = np.arange(STEPS)[:, None] < lengths
    first, second = (_batch(0)._replace(lengths=lengths) for _ in range(2))
    second.inputs[~inside] ^= 1
    padded, other, plain = state(first), state(second), state(_batch(0))
    for name, x in padded.items():
        assert other[name].tobytes() == x.tobytes(), name
    assert padded["weight/conv1.mean"].tobytes() != plain["weight/conv1.mean"].tobytes()
    unpadded = state(_batch(0)._replace(lengths=np.full(SAMPLES, STEPS)))
    for name, x in plain.items():
        assert unpadded[name].tobytes() == x.tobytes(), name
    wq, _ = NUMPY.weight_grid(NETWORK.blocks[0], initial_weights(NETWORK, 2)["conv1"])
    conv = NETWORK.blocks[0].synapse
    z = NUMPY.rule(conv).forward(conv, first.inputs, wq)[0].astype(float)[inside]
    assert padded["weight/conv1.mean"] == pytest.approx(0.1 * z.mean((0, 2, 3)), rel=1e-6)
    assert padded["weight/conv1.variance"] == pytest.approx(0.9 + 0.1 * z.var((0, 2, 3)), rel=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_an_image_is_normalised_once_however_long_its_sample_is(micro_batch: int | None) -> None:
    network = NetworkSpec.parse(
        "4C3bn-5bn", input_shape=(2, 6, 7), outputs=3, coding="direct", neuron=LIF(3, 5 / 3, 0.5)
    )
    images = np.random.default_rng(5).integers(0, 256, (SAMPLES, 2, 6, 7), np.uint8)
    batch = Batch(images, _batch(0, network).targets, np.array([5, 2, 4, 1]))

    def state(batch: Batch) -> dict[str, AnyArray]:
        trainer = NUMPY.trainer(network, VanRossum(), AdamW(lr=0.01), precision="reproducible", micro_batch=micro_batch)
        trained, _ = trainer.step(trainer.init(initial_weights(network, 2, 3.0)), batch)
        return trainer.export_state(trained)

    padded, plain = state(batch), state(batch._replace(lengths=None))
    for name in ("mean", "variance"):
        assert padded[f"weight/conv1.{name}"].tobytes() == plain[f"weight/conv1.{name}"].tobytes()
        assert padded[f"weight/linear2.{name}"].tobytes() != plain[f"weight/linear2.{name}"].tobytes()
    wq, _ = NUMPY.weight_grid(network.blocks[0], initial_weights(network, 2, 3.0)["conv1"])
    conv = network.blocks[0].synapse
    z = NUMPY.rule(conv).forward(conv, NUMPY.encode(images, "direct"), wq)[0].astype(float)
    assert padded["weight/conv1.mean"] == pytest.approx(0.1 * z.mean((0, 1, 3, 4)), rel=1e-6)
    assert padded["weight/conv1.variance"] == pytest.approx(0.9 + 0.1 * z.var((0, 1, 3, 4)), rel=1e-6)
    other = batch._replace(targets=batch.targets.copy())
    other.targets[~(np.arange(STEPS)[:, None] < np.array([5, 2, 4, 1]))] ^= 1
    assert all(x.tobytes() == padded[name].tobytes() for name, x in state(other).items())


def test_the_factor_of_dropout_is_in_the_statistics_and_in_the_normalised_sums() -> None:
    """Against means and variances of `g z` in float64, and the gradient of the scale against the definition."""
    rate, gain = 0.25, 1 / 0.75
    # More samples than inputs: neither number may stand for the other.
    network = NetworkSpec.parse("D0.25-6bn{factor=0.5}", input_shape=(3,), outputs=3, neuron=LIF(3, 5 / 3, 0.5))
    trainer = NUMPY.trainer(network, VanRossum(), AdamW(), precision="reproducible", seed=3)
    batch, weights = _batch(1, network), initial_weights(network, 2, 3.0)
    state, _ = trainer.step(trainer.init(weights), batch)
    mask = keep_mask(3, substream(0, 0), 0, (SAMPLES, 3), rate)
    wq, _ = NUMPY.weight_grid(network.blocks[0], weights["linear1"])
    z = ((batch.inputs * mask) @ wq.T).astype(float)
    assert 0 < mask.mean() < 1
    mean, variance = gain * z.mean((0, 1)), gain**2 * z.var((0, 1))
    assert state.weights["linear1.mean"] == pytest.approx(0.1 * mean, rel=1e-6)
    assert state.weights["linear1.variance"] == pytest.approx(0.9 + 0.1 * variance, rel=1e-6)
    wide, _ = weights_on_grid(NUMPY, network.graph, weights)
    trace = forward_pass(NUMPY, network.graph, wide, batch.inputs, STEPS, (3, 0))
    by = trace.residuals(trace.plan.segments[0])["linear1"].coefficients
    assert by.a == pytest.approx(0.5 * gain / np.sqrt(variance + 1e-5), rel=1e-6)


_KINDS = {
    "events": NetworkSpec.parse(
        "3C3p1bn-P2-5bn{factor=0.4,eps=0.01}", input_shape=(2, 5, 6), outputs=3, neuron=LIF(3, 5 / 3, 0.4, Arctan())
    ),
    "sums": NetworkSpec.parse(
        "3C3p1bn-P3x2-5bn{eps=0.1}", input_shape=(2, 5, 6), outputs=3, neuron=LIF(3, 5 / 3, 0.4, Arctan())
    ),
    "direct": NetworkSpec.parse(
        "3C3s2bn-5bn", input_shape=(2, 5, 6), outputs=3, coding="direct", neuron=LIF(3, 5 / 3, 0.4, Arctan())
    ),
}


def _literal(
    kind: str, *, smooth: bool, training: bool
) -> tuple[Literal, dict[str, Float64], list[AnyArray], Batch, dict[str, AnyArray]]:
    """The literal form of a network with its weights on their grid, scale and shift drawn, and its inputs."""
    network = _KINDS[kind]
    random, batch = np.random.default_rng(5), _batch(1, network)
    weights = initial_weights(network, 3, gain=3.0)
    for name in weights:
        if name.rpartition(".")[2] in ("scale", "shift", "mean"):
            weights[name] += random.normal(0, 0.2, weights[name].shape).astype(np.float32)
    names = weights if not training else {k: w for k, w in weights.items() if k not in network.statistics}
    wq, _ = weights_on_grid(NUMPY, network.graph, weights)
    literal = Literal(network, smooth=smooth, training=training)
    if network.coding == "direct":
        batch = Batch(np.random.default_rng(2).integers(0, 256, (SAMPLES, 2, 5, 6)).astype(np.uint8), batch.targets)
    frames = [batch.inputs / 256] * STEPS if network.coding == "direct" else list(batch.inputs.astype(float))
    return literal, {name: wq[name].astype(float) for name in names}, frames, batch, weights


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", _KINDS)
def test_literal_gradient_against_finite_differences(kind: str, training: bool) -> None:
    """Spikes as the surrogate's primitive; along random directions of all weights, eight digits."""
    literal, weights, frames, _, _ = _literal(kind, smooth=True, training=training)
    run = literal.forward(weights, frames)
    random = np.random.default_rng(0)
    targets = [o + random.normal(size=o.shape) for o in [*run.o.values()][-1]]
    gradients = literal.backward(Hamming(), weights, run, targets)
    assert set(gradients) == set(_KINDS[kind].parameters)

    def value(step: float, direction: dict[str, Float64]) -> float:
        moved = {name: w + step * direction.get(name, 0) for name, w in weights.items()}
        return float(literal.loss(Hamming(), literal.forward(moved, frames), targets))

    size = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    weight_directions = [{name: random.normal(size=g.shape) for name, g in gradients.items()} for _ in range(3)]
    weight_directions += [{name: random.normal(size=g.shape)} for name, g in gradients.items()]
    for weight_direction in weight_directions:
        h = 1e-4
        slopes = [(value(e, weight_direction) - value(-e, weight_direction)) / (2 * e) for e in (h, h / 2)]
        expected = sum(float((gradients[name] * d).sum()) for name, d in weight_direction.items())
        length = math.sqrt(sum(float((d**2).sum()) for d in weight_direction.values()))
        assert abs((4 * slopes[1] - slopes[0]) / 3 - expected) <= 1e-8 * size * max(1.0, length)


@pytest.mark.parametrize("kind", _KINDS)
def test_literal_gradient_against_torch_autograd(kind: str) -> None:
    """torch's own batch norm, before the filter, in float64, differentiated by torch."""
    torch: Any = pytest.importorskip("torch")
    network, (literal, weights, frames, _, _) = _KINDS[kind], _literal(kind, smooth=False, training=True)

    class Spike(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            context.h = torch.from_numpy(derivative(Arctan(), x.detach().numpy()))
            return (x >= 0).to(x.dtype)

        @staticmethod
        def backward(context: Any, error: Any) -> Any:
            return error * context.h

    w = {name: torch.tensor(x, requires_grad=True) for name, x in weights.items()}
    s = torch.from_numpy(np.stack(frames))
    for block in network.blocks:
        flat = s.flatten(0, 1)
        for layer in block.before:
            assert isinstance(layer, AvgPool2d)
            flat = torch.nn.functional.avg_pool2d(flat, layer.sizes) * layer.divisor
        synapse, neuron = block.synapse, block.neuron
        if isinstance(synapse, Conv2d):
            (stride, _), (padding, _) = synapse.strides, synapse.paddings
            z = torch.nn.functional.conv2d(flat, w[block.name], stride=stride, padding=padding)
        else:
            z = flat.flatten(1) @ w[block.name].T
        if synapse.norm is not None:
            scale, shift = w[f"{block.name}.scale"] * synapse.norm.factor, w[f"{block.name}.shift"]
            z = torch.nn.functional.batch_norm(z, None, None, scale, shift, training=True, eps=synapse.norm.eps)
        z = z.unflatten(0, s.shape[:2])
        assert isinstance(neuron, LIF)
        tau = 1.0 if block.psp is None else block.psp.tau_s
        i, u, o, fired = 0.0, 0.0, 0.0, []
        for step in z:
            i = (1 - 1 / tau) * i + step / tau
            u = (1 - 1 / neuron.tau_m) * u * (1 - o) + i
            o = Spike.apply(u - neuron.threshold)
            fired.append(o)
        s = torch.stack(fired)
    run = literal.forward(weights, frames)
    assert np.array_equal(s.detach().numpy(), np.stack([*run.o.values()][-1]))
    cotangent = np.random.default_rng(1).normal(size=s.shape)
    (s * torch.from_numpy(cotangent)).sum().backward()
    targets = list(s.detach().numpy() - SAMPLES * cotangent)
    for name, gradient in literal.backward(Hamming(), weights, run, targets).items():
        assert np.abs(gradient).max() > 0
        assert np.abs(w[name].grad.numpy() - gradient).max() <= 1e-12 * np.abs(gradient).max(), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("kind", _KINDS)
def test_float32_against_the_literal_form(kind: str, precision: Precision, training: bool) -> None:
    literal, weights, frames, batch, master_weights = _literal(kind, smooth=False, training=training)
    run = literal.forward(weights, frames)
    dropout = (0, 0) if training else None  # nothing is dropped
    computed = NUMPY.value_and_grad(
        _KINDS[kind], Hamming(), master_weights, batch, precision=precision, dropout=dropout
    )
    assert np.array_equal(computed.spikes, np.stack([*run.o.values()][-1]))
    gradients = literal.backward(Hamming(), weights, run, list(batch.targets.astype(float)))
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 0
        assert np.abs(computed.gradients[name] - gradient).max() <= 1e-5 * np.abs(gradient).max(), name


def test_recurrent_weights_are_refused() -> None:
    with pytest.raises(SpecError, match="a recurrence has no batch normalisation; give it to the layer's own weights"):
        SpikingLayer(Linear(4), recurrent=Linear(4, norm=BatchNorm()))
    nodes = (
        Node("input", Input((3,))),
        Node("in", Linear(4), (Edge("input"),)),
        Node("own", Linear(4, norm=BatchNorm()), (Edge("out", 1),)),
        Node("out", Neurons(LIF()), (Edge("in"), Edge("own"))),
    )
    with pytest.raises(NetworkError, match="a recurrence cannot have batch normalisation"):
        Network(nodes)


def test_residual_blocks_are_normalised_in_parts_as_whole() -> None:
    """Two normalised projections into one population, and a sum of branches that are normalised."""
    network = NetworkSpec.parse(
        "3C3p1bn-[3C3p1bn-3C3p1bn]+-P2-D0.2-[4C3bn|4C3bn]+-5Rbn-3", input_shape=(2, 6, 6), neuron=LIF(3, 5 / 3, 0.4)
    )

    def state(micro_batch: int | None) -> dict[str, AnyArray]:
        trainer = NUMPY.trainer(network, VanRossum(), AdamW(lr=0.01), precision="reproducible", micro_batch=micro_batch)
        trained = trainer.init(initial_weights(network, 1))
        for step in range(2):
            trained, _ = trainer.step(trained, _batch(step, network))
        return trainer.export_state(trained)

    undivided, parts = state(None), state(1)
    assert {name for name in undivided if name.endswith(".variance")} == {
        f"weight/{name}.variance" for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "linear6")
    }
    for name, x in undivided.items():
        assert parts[name].tobytes() == x.tobytes(), name
