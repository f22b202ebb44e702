"""The update rule: against AdamW in float64 and torch's own, its schedule, and a norm that no order changes."""

from __future__ import annotations

import math
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stsbp_spec.contract.grid import FINEST_ERROR_EXPONENT
from stsbp_spec.errors import SpecError
from stsbp_spec.models.optim.adamw import AdamW, AdamWScalars, clip_factor, gradient_norm, norm_bits
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32, Float64

NUMPY = NumpyBackend()
_STEPS = 25
_CASES = {
    "plain": AdamW(lr=0.01),
    "decay": AdamW(lr=0.02, weight_decay=0.1),
    "schedule": AdamW(lr=0.02, total_steps=20, warmup_steps=4, final_fraction=0.1, weight_decay=0.01),
    "betas": AdamW(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-4),
}


def _gradients() -> list[Float32]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(40, 7)) * np.exp(rng.normal(size=(40, 1)) * 3)).astype(np.float32) for _ in range(_STEPS)]


def _start() -> Float32:
    return np.random.default_rng(1).normal(size=(40, 7)).astype(np.float32)


def _spec(optimizer: AdamW) -> Float32:
    w = _start()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(_gradients()):
        w, m, v = NUMPY.updated(optimizer.scalars(step, np.float32(1)), None, w, g, m, v)
    return w


def _float64(o: AdamW) -> Float64:
    """Loshchilov and Hutter's algorithm 2 in float64."""
    w = _start().astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, gradient in enumerate(_gradients()):
        lr, n, g = o.rate(step), step + 1, gradient.astype(np.float64)
        m = o.beta1 * m + (1 - o.beta1) * g
        v = o.beta2 * v + (1 - o.beta2) * g**2
        w = w - lr * (m / (1 - o.beta1**n) / (np.sqrt(v / (1 - o.beta2**n)) + o.eps) + o.weight_decay * w)
    return w


@pytest.mark.parametrize("name", _CASES)
def test_update_against_float64(name: str) -> None:
    """Within one unit of 2^-24 of the largest weight for each update; the rounded decay errs alike every time."""
    expected = _float64(_CASES[name])
    assert np.abs(_spec(_CASES[name]) - expected).max() <= _STEPS * 2.0**-24 * np.abs(expected).max()
    assert np.abs(expected - _start()).max() > 0.1


@pytest.mark.parametrize("name", _CASES)
def test_update_against_torch(name: str) -> None:
    """The same bound for torch.optim.AdamW in float64, which the float64 form above meets to 13 digits."""
    torch = pytest.importorskip("torch")
    o = _CASES[name]
    w = torch.tensor(_start().astype(np.float64), requires_grad=True)
    reference: Any = torch.optim.AdamW([w], lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay)
    for step, g in enumerate(_gradients()):
        reference.param_groups[0]["lr"] = o.rate(step)
        w.grad = torch.tensor(g.astype(np.float64))
        reference.step()
    expected = w.detach().numpy()
    assert np.abs(_float64(o) - expected).max() <= 1e-13 * np.abs(expected).max()
    assert np.abs(_spec(o) - expected).max() <= _STEPS * 2.0**-24 * np.abs(expected).max()


def test_schedule() -> None:
    o = AdamW(lr=1.0, total_steps=14, warmup_steps=4, final_fraction=0.2)
    rates = [o.rate(step) for step in range(16)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.6)
    assert rates[14] == rates[15] == pytest.approx(0.2)
    assert (np.diff(rates[4:15]) < 0).all()
    assert {AdamW(lr=0.3).rate(step) for step in (0, 5, 10_000)} == {0.3}
    assert {AdamW(lr=0.3, total_steps=9, final_fraction=1).rate(step) for step in (0, 5, 9)} == {0.3}


@pytest.mark.parametrize("name", _CASES)
def test_scalars_are_float32(name: str) -> None:
    """A wider one would compute a wider update, with other bits."""
    scalars = _CASES[name].scalars(3, clip_factor(4.0, 1.0))
    assert {f.name: type(getattr(scalars, f.name)) for f in fields(scalars)} == {
        f.name: np.float32 for f in fields(AdamWScalars)
    }


def test_first_update_moves_by_the_learning_rate() -> None:
    """With bias correction the first step is lr * sign(g), whatever the gradient's size."""
    g = np.array([1e-5, -3, 1e5], np.float32)
    scalars, zeros = AdamW(lr=0.1, eps=1e-12).scalars(0, np.float32(1)), np.zeros((3, 3), np.float32)
    w, _, _ = NUMPY.updated(scalars, None, zeros[0], g, *zeros[1:])
    assert np.allclose(w, [-0.1, 0.1, -0.1], rtol=1e-6)


def test_clipping() -> None:
    assert clip_factor(5.0, None) == 1
    assert clip_factor(0.5, 1.0) == 1
    assert clip_factor(4.0, 1.0) == np.float32(0.25)
    assert clip_factor(0.0, 1.0) == 1
    assert all(type(clip_factor(norm, 1.0)) is np.float32 for norm in (0.5, 4.0))  # a wider one would widen a gradient


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(-80, 80),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
)
def test_norm_is_that_of_float64_and_of_any_order(seed: int, scale: float, sizes: list[int]) -> None:
    """Within n half units of the grid, which is relative to the largest element; equal after any permutation."""
    rng = np.random.default_rng(seed)
    gradients = [(rng.standard_t(2, n) * 2.0**scale).astype(np.float32) for n in sizes]
    norm = gradient_norm(gradients)
    flat = np.concatenate(gradients).astype(np.float64)
    exact = math.sqrt(float((flat**2).sum()))
    unit = 2.0 ** (math.frexp(float(np.abs(flat).max()))[1] - norm_bits(flat.size))
    unit = max(unit, 2.0**-FINEST_ERROR_EXPONENT)
    assert abs(norm - exact) <= math.sqrt(flat.size) * unit / 2 + 1e-14 * exact
    mixed = rng.permutation(flat).astype(np.float32)
    assert gradient_norm([mixed[: sizes[0]], mixed[sizes[0] :]]) == norm


def test_norm_is_exact_for_integers() -> None:
    g = np.array([3, 4, 12], np.float32)
    assert gradient_norm([g]) == 13.0
    assert Fraction(gradient_norm([g * np.float32(2.0**-30)])) == Fraction(13, 2**30)


def test_norm_of_a_million_elements_does_not_overflow() -> None:
    assert gradient_norm([np.ones(2**20, np.float32)]) == 2.0**10
    assert all(n * 2 ** (2 * norm_bits(n)) <= 2**62 for n in (1, 2, 1000, 2**20, 2**34))


def test_norm_of_nothing_and_of_what_is_not_finite() -> None:
    assert gradient_norm([]) == 0
    assert gradient_norm([np.zeros(3, np.float32)]) == 0
    assert math.isnan(gradient_norm([np.array([1, np.nan], np.float32), np.ones(2, np.float32)]))
    assert math.isinf(gradient_norm([np.array([1, -np.inf], np.float32)]))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0), (0.9, 0.9), (0.5, 0.99999), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 2.0**-49, 1.0, 1e12], ids=str)
def test_largest_moment_is_above_all_that_updates_leave_and_not_far(betas: tuple[float, float], scale: float) -> None:
    optimizer, count = AdamW(beta1=betas[0], beta2=betas[1]), 40
    # With gradients that shrink by beta1 / beta2 an update into the past, the inequality is an equality.
    growth = betas[0] / max(betas[1], 1e-3) or 1.0
    m = v = np.zeros(2, np.float32)
    nearest = 0.0
    for n in range(count):
        g = np.float32(scale) * np.array([growth ** (count - 1 - n), 1], np.float32)
        m = np.float32(betas[0]) * m + np.float32(1 - betas[0]) * g
        v = np.float32(betas[1]) * v + np.float32(1 - betas[1]) * g * g
        m, v = (np.where(np.abs(x) < np.float32(2.0**-100), np.float32(0), x) for x in (m, v))
        bound = optimizer.largest_moment(v)
        assert (m <= bound).all()
        nearest = max(nearest, float((m / bound).max()))
    assert nearest > 0.5 or scale < 1


def test_largest_moment_of_other_betas_has_no_bound() -> None:
    for optimizer in (AdamW(beta1=0.9, beta2=0.5), AdamW(beta2=1 - 1e-9)):
        assert np.isinf(optimizer.largest_moment(np.ones(3, np.float32))).all()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": math.inf},
        {"lr": 1e-320},
        {"lr": 3.5e38},
        {"lr": math.nan},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": 0.0},
        {"eps": 2.0**-101},
        {"eps": 2.0**101},
        {"weight_decay": -1.0},
        {"warmup_steps": -1},
        {"final_fraction": 1.5},
        {"total_steps": 0},
        {"clip_norm": 0.0},
        {"clip_norm": 1e-320},
    ],
    ids=lambda options: next(iter(options)),
)
def test_parameters_outside_their_domain_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"AdamW: {next(iter(options))} is outside its domain"):
        AdamW(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 2.5}, "total_steps must be an integer, got 2.5"),
        ({"warmup_steps": None}, "warmup_steps must be an integer, got None"),
        ({"clip_norm": "much"}, "AdamW: clip_norm must be a number, got 'much'"),
        ({"lr": None}, "AdamW: lr must be a number, got None"),
    ],
)
def test_parameters_of_another_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        AdamW(**options)


def test_squares_of_the_norm_add_up_in_an_int64() -> None:
    """`n` squares of numbers up to `2^norm_bits` stay at or below 2^62, and one bit more would not."""
    assert norm_bits(1) == norm_bits(2**14) == 24
    for exponent in range(15, 40):
        assert exponent + 2 * norm_bits(2**exponent) in (61, 62)
