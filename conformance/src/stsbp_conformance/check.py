"""The definition of a check, and the comparison of values.

A check is a function of an opened backend. It returns a `Verdict` or raises `Mismatch`. Results of a backend's public
methods are compared byte for byte (`same_bytes`). Results of pairs are compared with `equal`, which treats zeros of
either sign as equal. The first product of a matrix product may have such a zero, and `snap` removes it before it has
any effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.typing import AnyArray

from stsbp_conformance.oracles.roundoff import Near

__all__ = ["SPREADS", "Check", "Compared", "Mismatch", "Unavailable", "Verdict", "largest_ratio"]

SPREADS = 8.0
"""For random data, no float32 value may be further away than this number of spreads.

A spread adds the squares of all roundings at their largest possible sizes. If they are independent with mean zero,
Hoeffding's inequality gives the probability of a distance beyond 8 spreads: below 2 exp(-8^2 / 2) = 2.6e-14 per value.
"""


class Mismatch(AssertionError):
    """The backend's result differs from that of the spec."""


class Unavailable(Exception):
    """A check cannot run here, for example because a data set is missing. The message gives the reason."""


@dataclass(frozen=True)
class Verdict:
    """The result of a passed check.

    Attributes:
        kind: `equal`: all values are the same; `bound`: all values are within the bound; `raised`: the right error was
            raised.
        values: number of values that were compared (or of errors that were provoked).
        margin: for `bound`, the largest distance as a fraction of its bound.
        spreads: for `bound`, the largest distance as a multiple of its spread (`stsbp_conformance.oracles.roundoff`).
        note: an additional line of text, or "".
    """

    kind: Literal["equal", "bound", "raised"]
    values: int
    margin: float | None = None
    spreads: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Check:
    """One case of a tier.

    Attributes:
        tier: 1 to 8.
        id: unique within the tier.
        run: the check itself.
        quick: whether `--conformance-quick` includes it. The quick checks run for each change. Together they must
            detect every injected fault.
        by_reference: whether the numpy backend computes the expected result.
    """

    tier: int
    id: str
    run: Callable[[AbstractBackend], Verdict]
    quick: bool = True
    by_reference: bool = True


class Compared:
    """Collects the comparisons of one check."""

    def __init__(self) -> None:
        self.values = 0
        self.margin: float | None = None
        self.spreads: float | None = None
        self.note = ""

    def equal(self, label: str, got: AnyArray, expected: AnyArray) -> None:
        """Check that all values are the same. Zeros of either sign are equal.

        Raises:
            Mismatch: names shape, dtype, or the first differing value.
        """
        self._same_kind(label, got, expected)
        self._no_difference(label, got, expected, got != expected)

    def same_bytes(self, label: str, got: AnyArray, expected: AnyArray) -> None:
        """Check that all values are the same, including the signs of zeros.

        Raises:
            Mismatch: see `equal`.
        """
        self._same_kind(label, got, expected)
        different = got != expected
        if expected.dtype.kind == "f":
            different |= np.signbit(got) != np.signbit(expected)
        self._no_difference(label, got, expected, different)

    def unsigned(self, label: str, got: AnyArray) -> None:
        """Check that no zero of `got` is negative."""
        negative = int(np.count_nonzero((got == 0) & np.signbit(got)))
        self.true(f"{label}: {negative} of {got.size} values are -0, where a zero must be +0", negative == 0)

    def _no_difference(self, label: str, got: AnyArray, expected: AnyArray, different: AnyArray) -> None:
        self.values += expected.size
        if different.any():
            at = tuple(int(i) for i in np.argwhere(different)[0])
            raise Mismatch(
                f"{label}: {int(different.sum())} of {expected.size} values differ, the first at {list(at)}: "
                f"expected {_exact(expected[at])}, got {_exact(got[at])}"
            )

    def within(self, label: str, got: AnyArray, near: Near, *, random: bool) -> None:
        """Check that no value exceeds its bound around float64 and, for `random` data, `SPREADS` spreads.

        Raises:
            Mismatch: names the shape, or the value that exceeds its bound most.
        """
        if got.shape != near.value.shape:
            raise Mismatch(f"{label}: expected shape {list(near.value.shape)}, got {list(got.shape)}")
        distance = np.abs(got.astype(np.float64) - near.value)
        self.values += distance.size
        margin, at = largest_ratio(distance, near.bound)
        if not margin <= 1:
            raise Mismatch(
                f"{label}: the distance {distance[at]:.3g} at {list(at)} exceeds its bound {near.bound[at]:.3g}"
            )
        spreads, at = largest_ratio(distance, near.spread)
        if random and not spreads <= SPREADS:
            raise Mismatch(
                f"{label}: the distance {distance[at]:.3g} at {list(at)} is {spreads:.3g} spreads of independent "
                f"roundings, above {SPREADS:g}"
            )
        self.margin = max(self.margin or 0.0, margin)
        self.spreads = max(self.spreads or 0.0, spreads)

    def same(self, label: str, got: Any, expected: Any) -> None:
        """Check that two Python values are equal."""
        self.values += 1
        if got != expected:
            raise Mismatch(f"{label}: expected {expected!r}, got {got!r}")

    def true(self, label: str, condition: bool) -> None:
        """Check that a condition holds. `label` describes it."""
        self.values += 1
        if not condition:
            raise Mismatch(label)

    def verdict(self) -> Verdict:
        """The result of all comparisons."""
        if self.values == 0:
            raise Mismatch("the check compared nothing")
        kind: Literal["equal", "bound"] = "equal" if self.margin is None else "bound"
        return Verdict(kind, self.values, self.margin, self.spreads, self.note)

    def _same_kind(self, label: str, got: AnyArray, expected: AnyArray) -> None:
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise Mismatch(
                f"{label}: expected {expected.dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}"
            )


def largest_ratio(distance: AnyArray, to: AnyArray) -> tuple[float, tuple[int, ...]]:
    """The largest ratio and its position. 0 to 0 counts as 0, and a NaN distance as the largest of all."""
    if not distance.size:
        return 0.0, ()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(distance == 0, 0.0, distance / to)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    return float(ratio[at]), tuple(int(i) for i in at)


def _exact(value: Any) -> str:
    return f"{value!s} ({float(value).hex()})" if isinstance(value, np.floating) else str(value)
