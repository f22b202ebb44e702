"""Losses of real targets: the mean squared error of potentials, losses of one's own, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.engine.results import Batch
from stsbp_spec.equations.assembly import loss_equations, loss_padding
from stsbp_spec.equations.expressions import Expr, Names, snap, unsnapped, where
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses import OF_REAL_TARGETS, CrossEntropy, Hamming, Loss, MeanSquaredError, parse_loss
from stsbp_spec.models.losses.base import LossStep, step_values
from stsbp_spec.models.losses.stored import as_text, from_text
from stsbp_spec.models.neurons import LIF, Readout
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32, Float64, Int64

NUMPY = NumpyBackend()
STEPS, OUTPUTS = 8, 4
NETWORK = NetworkSpec.parse(
    "6", input_shape=(9,), outputs=OUTPUTS, neuron=LIF(3.0, 5 / 3, 0.4), output_neuron=Readout(5.0)
)
SPIKING = NetworkSpec.parse("6", input_shape=(9,), outputs=OUTPUTS, neuron=LIF(3.0, 5 / 3, 0.4))
TEXT_OF_BEFORE = (
    '{"format":1,"name":"differing","parameters":{},"constants":{"nodes":[["integer","1"],["batch"],["div",0,1]],'
    '"roots":{"scale":2}},"ahead":false,"states":[],"back_states":[],"nodes":[["variable","o"],["variable","target"],'
    '["sub",null,0,1],["abs",null,2],["variable","p.scale"],["sub",null,0,1],["mul",null,4,5]],'
    '"roots":{"distance":3,"error":6}}'
)
"""A loss that version 0.1.0 stored before there were losses of real targets."""
some_lengths = st.lists(st.integers(1, STEPS), min_size=1, max_size=6).map(np.array)


@dataclass(frozen=True)
class Huber(Loss):
    """Quadratic near the target, linear far from it; a constant for each of the outputs, another for their number."""

    name: ClassVar[str] = "huber"
    parameters: ClassVar[tuple[str, ...]] = ("scale", "width")
    of_potentials: ClassVar[bool] = True
    real_targets: ClassVar[bool] = True
    width: float = 0.5

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return self.layer_constants(psp, steps, batch, 1)

    def layer_constants(self, psp: PSP, steps: int, batch: int, neurons: int) -> Mapping[str, float]:
        return {"scale": 1 / (steps * batch * neurons), "width": self.width + 0 * neurons}

    def measure(self, p: Names, x: Names) -> Expr:
        e = abs(x.o - x.target)
        return p.scale * where(e < p.width, 0.5 * e * e, p.width * (e - 0.5 * p.width))

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        e = snap(x.o - x.target)
        return LossStep({}, unsnapped(p.scale * where(abs(e) < p.width, e, where(e < 0, 0 - p.width, p.width))))


@dataclass(frozen=True)
class Late(Loss):
    """Potentials without real targets, and a state: the latest potentials count most."""

    name: ClassVar[str] = "late"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)
    back_states: ClassVar[tuple[str, ...]] = ("weight",)
    of_potentials: ClassVar[bool] = True

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {"scale": 1 / batch}

    def measure(self, p: Names, x: Names) -> Expr:
        return abs(x.o - x.target)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        weight = 0.5 * s.weight + 1
        return LossStep({"weight": weight}, p.scale * (snap(x.o - x.target) / weight))


def _drawn(seed: int, batch: int = 5, outputs: int = OUTPUTS) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(seed)
    u, targets = (rng.normal(size=(STEPS, batch, outputs)).astype(np.float32) for _ in range(2))
    return u, targets


def _batch(seed: int = 0, lengths: Int64 | None = None, batch: int = 5) -> Batch:
    inputs = (np.random.default_rng(seed).random((STEPS, batch, 9)) < 0.4).astype(np.uint8)
    return Batch(inputs, _drawn(seed, batch)[1], lengths)


def _error(loss: Loss, u: Float32, targets: Float32, lengths: Int64) -> Float32:
    padding = loss_padding(loss, PSP(3), lengths, len(lengths), u.shape)
    error: Float32 = NUMPY.loss_error(loss, PSP(3), u, targets, len(lengths), padding)
    return error


def _mean_squares(u: Float64, targets: Float64, lengths: Int64) -> float:
    """The definition, sample by sample."""
    squares = [np.square(u[:n, b] - targets[:n, b]).mean() for b, n in enumerate(lengths)]
    return float(np.mean(squares))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=some_lengths, outputs=st.integers(1, 7))
def test_mse_is_the_mean_of_squares_and_its_error_is_the_derivative(seed: int, lengths: Int64, outputs: int) -> None:
    loss, psp = MeanSquaredError(), PSP(3)
    u, targets = _drawn(seed, len(lengths), outputs)
    wide, wide_targets = u.astype(np.float64), targets.astype(np.float64)
    assert loss.mean(u, targets, psp, lengths) == pytest.approx(_mean_squares(wide, wide_targets, lengths), rel=1e-13)
    full = np.full(len(lengths), STEPS)
    assert loss.mean(u, targets, psp) == pytest.approx(np.square(wide - wide_targets).mean(), rel=1e-13)
    error = _error(loss, u, targets, lengths)
    rng = np.random.default_rng(seed)
    for index in [tuple(rng.integers(0, n) for n in u.shape) for _ in range(8)]:
        moved = np.zeros(u.shape)
        moved[index] = 0.5
        # Of a quadratic function, so central differences are exact but for rounding.
        up, down = (_mean_squares(wide + sign * moved, wide_targets, lengths) for sign in (1, -1))
        assert error[index] == pytest.approx(up - down, rel=1e-5, abs=1e-7)
    assert _error(loss, u, targets, full).tobytes() == NUMPY.loss_error(loss, psp, u, targets).tobytes()
    cotangents = rng.normal(size=u.shape)
    up, down = (_mean_squares(wide + sign * cotangents, wide_targets, lengths) for sign in (0.5, -0.5))
    assert float((error * cotangents).sum()) == pytest.approx(up - down, rel=1e-4, abs=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=some_lengths)
@pytest.mark.parametrize("loss", [MeanSquaredError(), Huber(), Late()], ids=lambda loss: str(loss.name))
def test_a_sample_has_the_error_and_the_loss_that_it_has_alone(loss: Loss, seed: int, lengths: Int64) -> None:
    psp, batch = PSP(3), len(lengths)
    u, targets = _drawn(seed, batch)
    error, distances = _error(loss, u, targets, lengths), loss.distances(u, targets, psp, lengths)
    padded = ~inside(lengths, STEPS)[..., None]
    other = np.where(padded, np.float32(3e38), u), np.where(padded, np.float32(-1e38), targets)
    assert _error(loss, *other, lengths).tobytes() == error.tobytes()
    assert np.array_equal(loss.distances(*other, psp, lengths), distances)
    for b, length in enumerate(lengths):
        sample = u[:length, b : b + 1], targets[:length, b : b + 1]
        alone = NUMPY.loss_error(loss, psp, *sample, batch)
        assert alone.tobytes() == np.ascontiguousarray(error[:length, b : b + 1]).tobytes()
        assert not error[length:, b].any()
        assert distances[b] == loss.distance(*sample, psp)[0]
    exact = sum((Fraction(d) for d in distances.tolist()), Fraction(0))
    assert loss.mean(u, targets, psp, lengths) == float(exact) / batch


def test_mse_is_that_of_torch() -> None:
    torch: Any = pytest.importorskip("torch")
    u, targets = _drawn(3)
    lengths = np.array([8, 3, 1, 8, 5])
    wide, loss = torch.tensor(u, dtype=torch.float64, requires_grad=True), torch.nn.functional.mse_loss
    real = torch.tensor(targets, dtype=torch.float64)
    value = sum(loss(wide[:n, b], real[:n, b]) for b, n in enumerate(lengths)) / len(lengths)
    value.backward()
    assert MeanSquaredError().mean(u, targets, PSP(3), lengths) == pytest.approx(float(value.detach()), rel=1e-14)
    np.testing.assert_allclose(_error(MeanSquaredError(), u, targets, lengths), wide.grad.numpy(), rtol=3e-7, atol=1e-9)
    assert MeanSquaredError().mean(u, targets, PSP(3)) == pytest.approx(float(loss(wide, real).detach()), rel=1e-14)


def test_differences_below_the_floor_are_zero_and_nothing_else_is() -> None:
    tiny, floor = 1e-42, float(FLOOR)
    u = np.array([0, 0, floor, floor, 2 * floor, 0, 1.5, 0], np.float32).reshape(1, 1, -1)
    targets = np.array([tiny, -floor / 2, floor, tiny, floor, -floor, 1.5, 1e30], np.float32).reshape(1, 1, -1)
    error = NUMPY.loss_error(MeanSquaredError(), PSP(3), u, targets)
    scale = np.float32(2 / 8)
    expected = np.array([0, 0, 0, floor, floor, floor, 0, -1e30], np.float32) * scale
    assert np.array_equal(error.reshape(-1), expected)


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"micro_batch": 2}], ids=str)
def test_training_fits_curves(precision: Any, options: dict[str, Any]) -> None:
    times = np.arange(STEPS, dtype=np.float32)[:, None, None]
    phases = np.arange(OUTPUTS, dtype=np.float32)
    targets = np.broadcast_to(0.5 * np.sin(times / 2 + phases), (STEPS, 5, OUTPUTS)).astype(np.float32)
    batch = _batch(1, np.array([8, 3, 5, 8, 6]))._replace(targets=targets)
    trainer = NUMPY.trainer(NETWORK, MeanSquaredError(), AdamW(lr=0.02), precision=precision, **options)
    state, losses = trainer.init(initial_weights(NETWORK, 3, 2.0)), []
    for _ in range(80):
        state, result = trainer.step(state, batch)
        losses.append(result.loss)
    assert losses[-1] < 0.2 * losses[0]
    assert result.loss == MeanSquaredError().mean(result.spikes, targets, NETWORK.output_psp, batch.lengths)
    assert result.spikes.dtype == np.float32


def test_a_gradient_does_not_depend_on_padding() -> None:
    lengths, weights = np.array([8, 3, 5, 8, 1]), initial_weights(NETWORK, 3, 3.0)
    inputs, targets, _ = _batch(2, lengths)
    padded = ~inside(lengths, STEPS)[..., None]
    results = [
        NUMPY.value_and_grad(NETWORK, MeanSquaredError(), weights, Batch(x, y, lengths), precision="reproducible")
        for x, y in ((inputs, targets), (np.where(padded, 1 - inputs, inputs), np.where(padded, 1e30, targets)))
        for y in (y.astype(np.float32),)
    ]
    assert results[0].loss == results[1].loss
    for name, gradient in results[0].gradients.items():
        assert gradient.any()
        assert results[1].gradients[name].tobytes() == gradient.tobytes()


@pytest.mark.parametrize("loss", [Huber(0.7), Late(), MeanSquaredError()], ids=lambda loss: str(loss.name))
def test_a_stored_loss_computes_the_same(loss: Loss) -> None:
    text = as_text(loss)
    stored = from_text(text)
    assert (stored.name, stored.of_potentials, stored.real_targets) == (loss.name, True, loss.real_targets)
    assert loss_equations(stored) == loss_equations(loss)
    assert as_text(stored) == text
    for psp, steps, batch, neurons in (
        (PSP(3.0), 10, 7, 3),
        (PSP(7.3, 1.1), 100_000, 999_999_999, 1),
        (PSP(), 1, 1, 1),
    ):
        constants = stored.layer_constants(psp, steps, batch, neurons)
        assert constants == loss.layer_constants(psp, steps, batch, neurons)
        assert stored.constants(psp, steps, batch) == loss.constants(psp, steps, batch)
    u, targets = _drawn(4)
    lengths = np.array([8, 3, 5, 8, 1])
    assert _error(stored, u, targets, lengths).tobytes() == _error(loss, u, targets, lengths).tobytes()
    assert stored.mean(u, targets, PSP(3), lengths) == loss.mean(u, targets, PSP(3), lengths)
    if loss.real_targets:
        batch_of_all = _batch(5)
        weights = initial_weights(NETWORK, 3, 3.0)
        results = [
            NUMPY.value_and_grad(NETWORK, one, weights, batch_of_all, precision="reproducible")
            for one in (loss, stored)
        ]
        assert results[0].loss == results[1].loss
        for name, gradient in results[0].gradients.items():
            assert gradient.any()
            assert results[1].gradients[name].tobytes() == gradient.tobytes()


def test_texts_of_spike_losses_are_those_of_before() -> None:
    """They have no word about potentials, and are read as losses of spikes."""

    @dataclass(frozen=True)
    class Differing(Loss):
        name: ClassVar[str] = "differing"
        parameters: ClassVar[tuple[str, ...]] = ("scale",)

        def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
            return {"scale": 1 / batch}

        def measure(self, p: Names, x: Names) -> Expr:
            return abs(x.o - x.target)

        def back(self, p: Names, s: Names, x: Names) -> LossStep:
            return LossStep({}, p.scale * (x.o - x.target))

    assert as_text(Differing()) == TEXT_OF_BEFORE
    data, stored = json.loads(TEXT_OF_BEFORE), from_text(TEXT_OF_BEFORE)
    assert not stored.of_potentials
    assert not stored.real_targets
    assert loss_equations(stored) == loss_equations(Differing())
    assert stored.layer_constants(PSP(3), 7, 4, 9) == {"scale": 0.25}
    assert set(step_values(stored, ahead=False)) == {"o", "target", "count", "target_count"}
    data["outputs"] = "voltages"
    with pytest.raises(SpecError):
        from_text(json.dumps(data))
    data["outputs"] = "potentials and real targets"
    changed = from_text(json.dumps(data))
    assert changed.real_targets


def test_constants_that_are_no_arithmetic_of_the_outputs_are_not_stored() -> None:
    @dataclass(frozen=True)
    class Rooted(Huber):
        def layer_constants(self, psp: PSP, steps: int, batch: int, neurons: int) -> Mapping[str, float]:
            return {"scale": neurons**-0.5, "width": 1.0}

    @dataclass(frozen=True)
    class Branching(Huber):
        def layer_constants(self, psp: PSP, steps: int, batch: int, neurons: int) -> Mapping[str, float]:
            return {"scale": 1 / batch if type(neurons) is int and neurons == 10 else 2 / batch, "width": 1.0}

    with pytest.raises(SpecError, match=r"psp\.tau_s, psp\.tau_rise, steps, batch and neurons"):
        as_text(Rooted())
    with pytest.raises(SpecError, match="cannot be stored"):
        as_text(Branching())


def test_real_targets_need_potentials() -> None:
    @dataclass(frozen=True)
    class Real(Hamming):
        name: ClassVar[str] = "real"
        real_targets: ClassVar[bool] = True

    with pytest.raises(
        SpecError, match="the loss real has real_targets, so it must read potentials: set of_potentials"
    ):
        Real()


def test_a_loss_of_potentials_has_no_counts() -> None:
    @dataclass(frozen=True)
    class Counting(Huber):
        def back(self, p: Names, s: Names, x: Names) -> LossStep:
            return LossStep({}, p.scale * x.count)

    with pytest.raises(SpecError, match="count"):
        loss_equations(Counting())


def _updated(network: NetworkSpec, loss: Loss, batch: Batch) -> None:
    trainer = NUMPY.trainer(network, loss, AdamW())
    trainer.step(trainer.init(initial_weights(network, 3)), batch)


def test_what_does_not_fit_is_refused() -> None:
    weights, (inputs, targets, _) = initial_weights(NETWORK, 3), _batch()
    trains = (targets > 0).astype(np.uint8)
    not_finite = targets.copy()
    not_finite[2, 1, 3] = np.nan
    infinite = targets.copy()
    infinite[7, 4, 0] = np.inf
    cases: tuple[tuple[NetworkSpec, Loss, Any, type[Exception], str], ...] = (
        (NETWORK, MeanSquaredError(), trains, ShapeError, "must be float32.*real numbers for the loss mse, got uint8"),
        (NETWORK, MeanSquaredError(), targets.astype(np.float64), ShapeError, "must be float32.*got float64"),
        (NETWORK, MeanSquaredError(), targets.astype(np.float16), ShapeError, "must be float32.*got float16"),
        (NETWORK, MeanSquaredError(), targets[..., :3], ShapeError, r"must be \[T, B, N\] = \(8, 5, 4\)"),
        (NETWORK, MeanSquaredError(), not_finite, NumericError, "got nan at step 2 of sample 1, output 3"),
        (NETWORK, MeanSquaredError(), infinite, NumericError, "got inf at step 7 of sample 4, output 0"),
        (NETWORK, CrossEntropy(), targets, ShapeError, r"must be uint8 \[T, B, N\].*got float32"),
        (SPIKING, Hamming(), targets, ShapeError, r"must be uint8 \[T, B, N\].*got float32"),
        (SPIKING, MeanSquaredError(), targets, SpecError, r"the loss mse reads the potentials of a readout"),
        (NETWORK, Hamming(), trains, SpecError, "take the loss cross-entropy or cross-entropy-max or mse"),
    )
    for network, loss, wrong, kind, message in cases:
        with pytest.raises(kind, match=message):
            NUMPY.value_and_grad(network, loss, weights, Batch(inputs, wrong))
        with pytest.raises(kind, match=message):
            _updated(network, loss, Batch(inputs, wrong))
    # Not even where it is padding.
    with pytest.raises(NumericError, match="got inf at step 7 of sample 4"):
        NUMPY.value_and_grad(NETWORK, MeanSquaredError(), weights, Batch(inputs, infinite, np.full(5, 3)))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    u, targets = _drawn(6)
    u[3, 1, 2] = np.nan
    with pytest.raises(NumericError, match="the loss mse measures a distance that is not finite, first at step 3"):
        MeanSquaredError().mean(u, targets, PSP(3))


def test_the_names_of_losses_of_real_targets() -> None:
    assert list(OF_REAL_TARGETS) == ["mse"]
    assert parse_loss("mse") == MeanSquaredError()
    with pytest.raises(SpecError, match=r"did you mean.*mse"):
        parse_loss("msee")
