"""Surrogates: each derivative is the derivative of its primitive, in every precision, and names read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
from stsbp_spec.errors import SpecError
from stsbp_spec.models.surrogates import (
    SURROGATES,
    Arctan,
    FastSigmoid,
    Logistic,
    Rectangle,
    Surrogate,
    Triangle,
    derivative,
    parse_surrogate,
)

_ALL = [
    *(cls() for cls in SURROGATES.values()),
    Rectangle(0.3),
    Triangle(0.4),
    FastSigmoid(10),
    Arctan(0.7),
    Logistic(0.1),
]
_IDS = [str(surrogate) for surrogate in _ALL]


def _number(surrogate: Surrogate) -> float:
    """The one parameter of a surrogate."""
    (field,) = fields(surrogate)
    return float(getattr(surrogate, field.name))


@pytest.mark.parametrize("surrogate", _ALL, ids=_IDS)
def test_derivative_is_that_of_the_primitive(surrogate: Surrogate) -> None:
    """Central differences in float64, step 1e-5, away from the kinks: nine digits of the largest slope."""
    x = np.linspace(-2.03, 2.07, 401)
    step = 1e-5
    kinks = {Rectangle: (_number(surrogate) / 2,), Triangle: (_number(surrogate), 0.0)}.get(type(surrogate), (0.0,))
    smooth = np.all([np.abs(np.abs(x) - kink) > 1e-3 for kink in kinks], axis=0)
    slope = (surrogate.primitive(x + step) - surrogate.primitive(x - step)) / (2 * step)
    difference = np.abs(slope - derivative(surrogate, x))[smooth]
    assert difference.max() <= 5e-7 * derivative(surrogate, np.zeros(1))[0]


@pytest.mark.parametrize("surrogate", _ALL, ids=_IDS)
def test_primitive_is_one_half_at_the_threshold_and_rises(surrogate: Surrogate) -> None:
    x = np.linspace(-3, 3, 301)
    spike = surrogate.primitive(x)
    assert surrogate.primitive(np.zeros(1))[0] == 0.5
    assert (np.diff(spike) >= 0).all()
    assert np.allclose(spike + spike[::-1], 1, atol=1e-15)


@pytest.mark.parametrize("surrogate", _ALL, ids=_IDS)
def test_derivative_in_float32_rounds_a_few_times(surrogate: Surrogate) -> None:
    """Even, finite for any input, float32 in float32 out, and within 8 units of 2^-24 of float64 where it is large."""
    x = np.linspace(-4, 4, 1001).astype(np.float32)
    h = derivative(surrogate, x)
    assert h.dtype == np.float32
    assert np.array_equal(h, derivative(surrogate, -x))
    edges = np.abs(np.abs(x) - _number(surrogate) / 2) > 1e-6 if isinstance(surrogate, Rectangle) else x == x
    exact = derivative(surrogate, x.astype(np.float64))
    assert np.abs(h - exact)[edges].max() <= 8 * 2.0**-24 * exact.max()
    with np.errstate(over="ignore"):
        assert np.isfinite(derivative(surrogate, np.array([3e38, -3e38], np.float32))).all()


@pytest.mark.parametrize("surrogate", [Rectangle(0.5), Triangle(2), FastSigmoid(3)], ids=str)
def test_derivative_in_fractions_is_exact(surrogate: Surrogate) -> None:
    x = [Fraction(n, 7) for n in range(-20, 21)]
    got = derivative(surrogate, np.array(x, dtype=object))
    p = Fraction(_number(surrogate))
    formulas: dict[type, Callable[[Fraction], Fraction]] = {
        Rectangle: lambda v: 1 / p if abs(v) < p / 2 else Fraction(0),
        Triangle: lambda v: max(Fraction(0), 1 - abs(v) / p),
        FastSigmoid: lambda v: 1 / (1 + p * abs(v)) ** 2,
    }
    assert [formulas[type(surrogate)](v) for v in x] == list(got)


def test_only_the_logistic_one_is_not_exact() -> None:
    assert [name for name, cls in SURROGATES.items() if not cls().exact] == ["logistic"]


@pytest.mark.parametrize("surrogate", _ALL, ids=_IDS)
def test_text_reads_back(surrogate: Surrogate) -> None:
    assert parse_surrogate(str(surrogate)) == surrogate
    assert parse_surrogate(str(surrogate).split(":")[0]) == SURROGATES[str(surrogate).split(":")[0]]()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sigmoid", r"unknown surrogate 'sigmoid' \(did you mean fast-sigmoid\?\); known: rectangle"),
        ("triangle:beta=2", "surrogate 'triangle' has no parameter 'beta'; it has: width"),
        ("triangle:width=wide", "width must be a number, got 'wide'"),
        ("triangle:width=1_0", "width must be a number, got '1_0'"),
        ("triangle:width=1:width=2", "surrogate 'triangle': 'width' is given twice; leave one of them out"),
        ("triangle:width=0", "width must be a finite number above 0"),
        ("arctan:alpha=nan", "alpha must be a finite number above 0"),
        ("fast-sigmoid:beta=-1", "beta must be a finite number above 0"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_surrogate(text)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.filterwarnings("error")
def test_far_from_the_threshold_the_derivative_is_zero_without_a_warning(name: str) -> None:
    x = np.array([-3e38, -1e30, 1e30, 3e38], np.float32)
    assert not derivative(SURROGATES[name](), x).any()
