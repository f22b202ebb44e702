"""SGD and Adam: against float64, exact fractions and torch's own optimisers, and what they share with AdamW."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from stsbp_spec.engine.backend import Batch
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.optim import OPTIMIZERS, SCALARS, SGD, Adam, AdamW, Optimizer
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32, Float64

NUMPY = NumpyBackend()
_STEPS = 25
_CASES: dict[str, Adam | SGD] = {
    "Adam": Adam(lr=0.01),
    "Adam, decay": Adam(lr=0.02, weight_decay=0.1),
    "Adam, schedule": Adam(lr=0.02, total_steps=20, warmup_steps=4, final_fraction=0.1, weight_decay=0.01),
    "Adam, betas": Adam(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-4),
    "SGD": SGD(lr=1e-3),
    "SGD, no momentum": SGD(lr=1e-3, momentum=0.0, weight_decay=0.1),
    "SGD, decay": SGD(lr=1e-3, weight_decay=0.3),
    "SGD, schedule": SGD(lr=1e-3, momentum=0.7, total_steps=20, warmup_steps=4, final_fraction=0.1, weight_decay=0.1),
}


def _gradients() -> list[Float32]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(40, 7)) * np.exp(rng.normal(size=(40, 1)))).astype(np.float32) for _ in range(_STEPS)]


def _start() -> Float32:
    return np.random.default_rng(1).normal(size=(40, 7)).astype(np.float32)


def _spec(optimizer: Optimizer) -> Float32:
    w = _start()
    moments = [np.zeros_like(w) for _ in optimizer.moments]
    for step, g in enumerate(_gradients()):
        w, *moments = NUMPY.updated(optimizer.scalars(step, np.float32(1)), None, w, g, *moments)
    return w


def _float64(o: Adam | SGD) -> Float64:
    """The algorithms of the literature in float64."""
    w = _start().astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, gradient in enumerate(_gradients()):
        lr, n, g = o.rate(step), step + 1, gradient + o.weight_decay * w
        if isinstance(o, SGD):
            m = o.momentum * m + g
            w = w - lr * m
        else:
            m = o.beta1 * m + (1 - o.beta1) * g
            v = o.beta2 * v + (1 - o.beta2) * g**2
            w = w - lr * (m / (1 - o.beta1**n) / (np.sqrt(v / (1 - o.beta2**n)) + o.eps))
    return w


def _torch(o: Adam | SGD) -> Float64:
    torch = pytest.importorskip("torch")
    w = torch.tensor(_start().astype(np.float64), requires_grad=True)
    if isinstance(o, SGD):
        reference: Any = torch.optim.SGD([w], lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
    else:
        betas = (o.beta1, o.beta2)
        reference = torch.optim.Adam([w], lr=o.lr, betas=betas, eps=o.eps, weight_decay=o.weight_decay)
    for step, g in enumerate(_gradients()):
        reference.param_groups[0]["lr"] = o.rate(step)
        w.grad = torch.tensor(g.astype(np.float64))
        reference.step()
    expected: Float64 = w.detach().numpy()
    return expected


@pytest.mark.parametrize("name", _CASES)
def test_update_against_float64_and_torch(name: str) -> None:
    """Within one unit of 2^-24 of the largest weight for each update, as AdamW; float64 meets torch to 13 digits."""
    optimizer = _CASES[name]
    expected = _torch(optimizer)
    assert np.abs(_float64(optimizer) - expected).max() <= 1e-13 * np.abs(expected).max()
    assert np.abs(_spec(optimizer) - expected).max() <= _STEPS * 2.0**-24 * np.abs(expected).max()
    assert np.abs(expected - _start()).max() > 0.02


def test_updates_of_sgd_are_those_of_fractions() -> None:
    """With numbers of few bits nothing rounds, so every operation and its order can be seen."""
    o = SGD(lr=2.0**-3, momentum=0.5, weight_decay=2.0**-2)
    w, m = Fraction(3), Fraction(0)
    found, momentum = np.array([3], np.float32), np.zeros(1, np.float32)
    for step, gradient in enumerate((1, -2, 5)):
        m = m / 2 + (Fraction(gradient) / 2 + w / 4)
        w = w - m / 8
        g = np.array([gradient], np.float32)
        found, momentum = NUMPY.updated(o.scalars(step, np.float32(0.5)), None, found, g, momentum)
        assert (Fraction(float(found[0])), Fraction(float(momentum[0]))) == (w, m)


def test_decay_of_adam_is_in_its_moments_and_that_of_adamw_is_not() -> None:
    w, zero = np.array([0.5, -2.0, 0.0], np.float32), np.zeros(3, np.float32)
    adam = NUMPY.updated(Adam(lr=0.1, weight_decay=0.5).scalars(0, np.float32(1)), None, w, zero, zero, zero)
    adamw = NUMPY.updated(AdamW(lr=0.1, weight_decay=0.5).scalars(0, np.float32(1)), None, w, zero, zero, zero)
    assert np.allclose(adam[0], [0.4, -1.9, 0])  # the first step is the learning rate, whatever the gradient
    assert np.allclose(adam[1], [0.025, -0.1, 0])
    assert np.allclose(adamw[0], w * np.float32(0.95))
    assert not adamw[1].any()


def test_clipping_comes_before_the_decay() -> None:
    one = np.ones(1, np.float32)
    w, m = NUMPY.updated(SGD(lr=1.0, weight_decay=0.25).scalars(0, np.float32(0.5)), None, one, one, one * 0)
    assert m == 0.5 + 0.25
    assert w == 0.25


@pytest.mark.parametrize("optimizer", [SGD(lr=0.3, weight_decay=0.5), Adam(lr=0.3, weight_decay=0.5)], ids=repr)
def test_learned_parameters_neither_decay_nor_leave_their_domain(optimizer: Adam | SGD) -> None:
    rng = np.random.default_rng(0)
    w, g, m = (rng.normal(size=40).astype(np.float32) for _ in range(3))
    w = np.clip(w, -0.5, 0.75)
    moments = [m, m * m][: len(optimizer.moments)]
    scalars = optimizer.scalars(2, np.float32(0.7))
    found = NUMPY.updated(scalars, (-0.5, 0.75), w, g, *moments)
    plain = NUMPY.updated(replace(scalars, weight_decay=np.float32(0)), None, w, g, *moments)
    assert found[0].tobytes() == np.clip(plain[0], np.float32(-0.5), np.float32(0.75)).tobytes()
    assert (np.abs(plain[0]) > 0.76).any()
    for got, expected in zip(found[1:], plain[1:], strict=True):
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("optimizer", [SGD(lr=0.5, weight_decay=0.5), Adam(weight_decay=0.5)], ids=repr)
def test_numbers_below_the_floor_become_zero(optimizer: Adam | SGD) -> None:
    """So that devices with and without subnormal numbers compute the same."""
    below, above = np.float32(2.0**-101), np.float32(2.0**-99)
    w = np.array([below, above, 0, below], np.float32)
    g = np.array([0, 0, below, above], np.float32)
    zeros = [np.zeros(4, np.float32) for _ in optimizer.moments]
    new, m, *_ = NUMPY.updated(optimizer.scalars(0, np.float32(1)), None, w, g, *zeros)
    for x in (new, m):
        assert ((x == 0) | (np.abs(x) >= 2.0**-100)).all()
    assert new[0] == new[2] == 0


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_scalars_are_float32_and_of_a_known_kind(kind: Any) -> None:
    """A wider one would compute a wider update, with other bits. JAX knows the kinds of `SCALARS`."""
    scalars = kind(lr=0.01, weight_decay=0.1).scalars(3, np.float32(0.25))
    assert type(scalars) in SCALARS
    assert {type(getattr(scalars, field.name)) for field in fields(scalars)} == {np.float32}
    for rule in (scalars.update, scalars.learned_update):
        assert {*rule.parameters} - {"low", "high"} <= {field.name for field in fields(scalars)}
        assert [f"new_{name}" for name in rule.inputs if name != "g"] == list(rule.outputs)


def test_names_of_moments_are_those_of_checkpoints() -> None:
    assert {name: kind().prefixes for name, kind in OPTIMIZERS.items()} == {
        "adamw": ("adamw.m", "adamw.v"),
        "adam": ("adam.m", "adam.v"),
        "sgd": ("sgd.momentum",),
    }


def test_defaults_are_alike() -> None:
    """A setting of the command line means the same for all of them."""
    first, *others = list[Any]([AdamW(), Adam(), SGD()])
    for other in others:
        for field in fields(other):
            assert getattr(other, field.name) == getattr(first, field.name, 0.9), field.name


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SGD, {"momentum": 1.0}, "SGD: momentum is outside its domain: 1.0; it must be 0, or from 2^-100 to less"),
        (SGD, {"momentum": -0.1}, "SGD: momentum is outside its domain"),
        (SGD, {"momentum": 2.0**-101}, "SGD: momentum is outside its domain"),
        (SGD, {"momentum": "0.9"}, "SGD: momentum must be a number, got '0.9'"),
        (SGD, {"weight_decay": -1.0}, "SGD: weight_decay is outside its domain: -1.0; it must be 0, or from 2^-100"),
        (SGD, {"weight_decay": 2.0**101}, "SGD: weight_decay is outside its domain"),
        (SGD, {"lr": -1.0}, "SGD: lr is outside its domain"),
        (SGD, {"lr": math.nan}, "SGD: lr is outside its domain"),
        (SGD, {"clip_norm": 0.0}, "SGD: clip_norm is outside its domain"),
        (SGD, {"total_steps": 0}, "SGD: total_steps is outside its domain"),
        (Adam, {"weight_decay": 2.0**-101}, "Adam: weight_decay is outside its domain"),
        (Adam, {"beta1": 1.0}, "Adam: beta1 is outside its domain"),
        (Adam, {"beta2": -0.1}, "Adam: beta2 is outside its domain"),
        (Adam, {"eps": 0.0}, "Adam: eps is outside its domain"),
        (Adam, {"warmup_steps": 2.5}, "Adam: warmup_steps must be an integer, got 2.5"),
    ],
)
def test_parameters_outside_their_domain_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        kind(**options)
    assert str(refused.value).startswith(message)


# Training.
_NETWORK = NetworkSpec.parse(
    "4C3p1bn-P2-9b{reset=subtract}", input_shape=(2, 6, 6), outputs=4, neuron=PLIF(5, 5 / 3, 0.4)
)


def _batch() -> Batch:
    rng = np.random.default_rng(5)
    inputs, targets = ((rng.random(shape) < 0.3).astype(np.uint8) for shape in ((8, 3, 2, 6, 6), (8, 3, 4)))
    return Batch(inputs, targets)


def _trainer(optimizer: Optimizer, **options: Any) -> Trainer[Any]:
    return NUMPY.trainer(_NETWORK, LOSSES["van-rossum"], optimizer, **{"precision": "reproducible", **options})


def _trained(optimizer: Optimizer, steps: int = 4, **options: Any) -> tuple[dict[str, Any], list[float]]:
    trainer, batch = _trainer(optimizer, **options), _batch()
    state, norms = trainer.init(initial_weights(_NETWORK, 1, 2.5)), []
    for _ in range(steps):
        state, result = trainer.step(state, batch)
        norms.append(result.gradient_norm)
    return trainer.export_state(state), norms


_OPTIMIZERS = [
    AdamW(lr=0.01, weight_decay=0.1, clip_norm=0.1),
    Adam(lr=0.01, weight_decay=0.1, clip_norm=0.1),
    SGD(lr=0.1, weight_decay=0.1, clip_norm=0.1),
]
_by_name = pytest.mark.parametrize("optimizer", _OPTIMIZERS, ids=lambda optimizer: str(optimizer.name))


@_by_name
def test_a_state_is_exported_and_imported_to_the_bit(optimizer: Optimizer) -> None:
    expected, _ = _trained(optimizer)
    trainer, batch = _trainer(optimizer), _batch()
    half, _ = _trained(optimizer, 2)
    state = trainer.import_state(half)
    for _ in range(2):
        state, _ = trainer.step(state, batch)
    found = trainer.export_state(state)
    assert set(found) == set(expected)
    assert {*(name.partition("/")[0] for name in found)} == {"step", "weight", *optimizer.prefixes}
    for name, x in expected.items():
        assert found[name].tobytes() == x.tobytes(), name
    assert all(expected[f"{prefix}/conv1"].any() for prefix in optimizer.prefixes)


@_by_name
def test_a_state_of_another_optimiser_is_refused(optimizer: Optimizer) -> None:
    exported, _ = _trained(optimizer, 1)
    for other in _OPTIMIZERS:
        if other is optimizer:
            continue
        mine, theirs = type(optimizer).__name__, type(other).__name__
        with pytest.raises(ShapeError, match=f"optimiser {mine}, but this trainer has {theirs}. Continue with {mine}"):
            _trainer(other).import_state(exported)


def test_moments_that_no_update_can_produce_are_refused() -> None:
    for optimizer, name, value, message in (
        (SGD(), "sgd.momentum/conv1", math.nan, "sgd.momentum of conv1 holds a value that no update can produce"),
        (Adam(), "adam.m/linear2", math.nan, "adam.m of linear2 holds a value that no update can produce"),
        (Adam(), "adam.v/linear2", -1.0, "adam.v of linear2 holds a value that no update can produce"),
        (Adam(), "adam.m/conv1", 1e9, "adam.m of conv1 holds a value that no update can produce with its adam.v"),
    ):
        exported, _ = _trained(optimizer, 1)
        exported[name].flat[0] = value
        with pytest.raises(NumericError, match=message):
            _trainer(optimizer).import_state(exported)
        del exported[name]
        with pytest.raises(ShapeError, match=name.partition("/")[0]):
            _trainer(optimizer).import_state(exported)


_FROZEN = ("conv1", "conv1.scale", "linear2.bias", "linear2.decay")


@_by_name
def test_frozen_parameters_and_their_moments_stay(optimizer: Optimizer) -> None:
    exported, norms = _trained(optimizer, frozen=_FROZEN)
    start = initial_weights(_NETWORK, 1, 2.5)
    for name in _NETWORK.parameters:
        is_frozen = name in _FROZEN
        assert np.array_equal(exported[f"weight/{name}"], start[name]) == is_frozen, name
        for prefix in optimizer.prefixes:
            assert exported[f"{prefix}/{name}"].any() != is_frozen, name
    assert not np.array_equal(exported["weight/conv1.mean"], start["conv1.mean"])
    _, all_norms = _trained(optimizer)
    assert 0 < norms[0] < all_norms[0]


@_by_name
def test_trained_parameters_move_as_if_frozen_gradients_were_zero(optimizer: Optimizer) -> None:
    """A zero gradient adds nothing to the norm. So the first update of the others is the same, with clipping too."""
    exported, (norm, *_) = _trained(optimizer, 1, frozen=_FROZEN)
    start, batch = initial_weights(_NETWORK, 1, 2.5), _batch()
    computed = NUMPY.value_and_grad(
        _NETWORK, LOSSES["van-rossum"], start, batch, precision="reproducible", dropout=(0, 0)
    )
    grads = {name: g for name, g in computed.gradients.items() if name not in _FROZEN}
    squares = math.fsum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values())
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert optimizer.clip_norm is not None
    assert norm > optimizer.clip_norm
    scalars = optimizer.scalars(0, np.float32(optimizer.clip_norm / norm))
    for name, g in grads.items():
        learned = _NETWORK.parameters[name].learned
        domain = None if learned is None else (learned.low, learned.high)
        zeros = [np.zeros_like(g) for _ in optimizer.moments]
        expected = NUMPY.updated(scalars, domain, start[name], g, *zeros)[0]
        assert exported[f"weight/{name}"].tobytes() == expected.tobytes(), name


def test_frozen_gradients_that_are_not_finite_do_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(AdamW(), frozen=("conv1",))
    whole = Trainer._of_trained

    def with_nan(self: Trainer[Any], grads: Any) -> Any:
        return whole(self, grads._replace(values={**grads.values, "conv1": grads.values["conv1"] * np.nan}))

    monkeypatch.setattr(Trainer, "_of_trained", with_nan)
    state, result = trainer.step(trainer.init(initial_weights(_NETWORK, 1, 2.5)), _batch())
    assert math.isfinite(result.gradient_norm)
    assert np.isfinite(state.weights["conv1"]).all()


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("conv2",), "the network has no parameter 'conv2' to freeze; its parameters are conv1, conv1.scale"),
        ((["conv1"],), "the network has no parameter \\['conv1'\\] to freeze"),
        ((3,), "the network has no parameter 3 to freeze"),
        ("conv1", "frozen parameters are a collection of names"),
        (None, "frozen parameters are a collection of names"),
        (tuple(_NETWORK.parameters), "all parameters of the network are frozen"),
    ],
)
def test_frozen_names_that_are_none_are_refused(frozen: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _trainer(AdamW(), frozen=frozen)
