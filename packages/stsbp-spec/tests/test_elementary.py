"""`contract.elementary` against exact fractions that are rounded once, also where glibc's `pow` and `cos` are not."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from stsbp_spec.contract.elementary import cosine, power
from stsbp_spec.models.optim.adamw import AdamW


def _cosine(x: float) -> Fraction:
    """The Taylor series, to 2^-150."""
    square, total, term, k = Fraction(x) ** 2, Fraction(1), Fraction(1), 0
    while abs(term) > Fraction(1, 2**150):
        k += 2
        term *= -square / (k * (k - 1))
        total += term
    return total


# glibc 2.41 errs at these on x86-64 with FMA and on aarch64.
@pytest.mark.parametrize(("x", "n"), [(0.95, 482), (0.95, 554), (0.98, 688), (0.98, 880), (0.99, 503)])
def test_powers_where_a_c_library_errs(x: float, n: int) -> None:
    assert power(x, n).hex() == float(Fraction(x) ** n).hex()


@pytest.mark.parametrize("x", [0.5, 0.9, 0.999])
def test_powers_are_rounded_once(x: float) -> None:
    exact = Fraction(1)
    for n in range(1, 301):
        exact *= Fraction(x)
        assert power(x, n).hex() == float(exact).hex(), n


def test_powers_at_the_ends() -> None:
    assert [power(0.0, 3), power(1.0, 10**18), power(0.9, 10**18), power(0.3, 1)] == [0.0, 1.0, 0.0, 0.3]


# glibc 2.41 errs on x86-64 with FMA and on aarch64.
ERRING = (568 / 1000, 889 / 5000, 1072 / 5000, 1347 / 5000, 1898 / 5000, 2840 / 5000, 2964 / 5000, 3167 / 5000)


@pytest.mark.parametrize("part", [0, 1e-320, 1e-9, 0.25, 1 / 3, 0.5, 0.75, 1, *ERRING])
def test_cosines_are_rounded_once(part: float) -> None:
    x = math.pi * part
    for sign in (1, -1):
        assert cosine(sign * x).hex() == float(_cosine(x)).hex()


def test_learning_rate_has_the_rounded_cosine() -> None:
    optimizer = AdamW(lr=1.0, total_steps=902)
    for step in (0, 451, 591, 901):  # 591: glibc's cosine makes another rate
        assert optimizer.rate(step) == 0.5 * (1 + float(_cosine(math.pi * (step / 902))))
