"""Powers and cosines of float64 numbers, rounded once: the same bits on every machine.

`pow` and `cos` of C libraries do not have this property. Their last bit differs between libraries, and between
processors with and without fused multiply-add. This module computes with integers and with decimal numbers of 40
digits, which are the same everywhere.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

__all__ = ["cosine", "power"]

_DECIMAL = Context(prec=40, rounding=ROUND_HALF_EVEN, traps=[])
_BITS = 192


def power(x: float, n: int) -> float:
    """`x^n`, for `0 <= x <= 1` and `n >= 1`."""
    return float(_DECIMAL.copy().power(Decimal(x), n))


def cosine(x: float) -> float:
    """`cos x` for `|x| <= pi`, from its Taylor series in units of `2^-192`."""
    top, bottom = x.as_integer_ratio()
    square = (top * top << _BITS) // (bottom * bottom)
    total = term = 1 << _BITS
    k = 0
    while term:
        k += 2
        term = term * square // (k * (k - 1)) >> _BITS
        total += term if k % 4 == 0 else -term
    # Python rounds the quotient of two integers once.
    return total / (1 << _BITS)
