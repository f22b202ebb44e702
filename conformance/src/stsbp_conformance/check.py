"""What a check is, and how values are compared.

A check is a function of an opened backend that returns a `Verdict` or raises `Mismatch`. Comparisons are of values bit
for bit, except that zeros of either sign are equal: `snap` removes the sign of a zero before it can matter, and a
matrix product's first product may carry one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from stsbp_spec.backend import AbstractBackend
from stsbp_spec.typing import AnyArray

__all__ = ["Check", "Compared", "Mismatch", "Unavailable", "Verdict"]


class Mismatch(AssertionError):
    """The backend's result is not what the spec says."""


class Unavailable(Exception):
    """A check cannot run here, for example because a data set is missing; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """How a check was passed.

    Attributes:
        kind: `equal`: every value the same; `bound`: every value within the bound; `raised`: the right error came.
        values: how many values were compared (or errors provoked).
        margin: of `bound`, the largest distance as a fraction of the bound.
        note: one line more, or "".
    """

    kind: Literal["equal", "bound", "raised"]
    values: int
    margin: float | None = None
    note: str = ""

    def __str__(self) -> str:
        return f"bound {self.margin:.2f}" if self.margin is not None else self.kind


@dataclass(frozen=True)
class Check:
    """One case of a tier.

    Attributes:
        tier: 1 to 7.
        id: unique within the tier.
        run: the check itself.
        quick: small enough for the self-test with injected faults.
        by_reference: the expectation is what the numpy backend computes.
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
        self.note = ""

    def equal(self, what: str, got: AnyArray, expected: AnyArray) -> None:
        """Every value is the same.

        Raises:
            Mismatch: names shape, dtype, or the first differing value.
        """
        self._same_kind(what, got, expected)
        different = got != expected
        self.values += expected.size
        if different.any():
            at = tuple(int(i) for i in np.argwhere(different)[0])
            raise Mismatch(
                f"{what}: {int(different.sum())} of {expected.size} values differ, the first at {list(at)}: "
                f"expected {_exact(expected[at])}, got {_exact(got[at])}"
            )

    def within(self, what: str, got: AnyArray, expected: AnyArray, bound: float) -> None:
        """No value is further than `bound` from float64 `expected`; keeps the largest margin."""
        if got.shape != expected.shape:
            raise Mismatch(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
        distance = float(np.max(np.abs(got.astype(np.float64) - expected))) if expected.size else 0.0
        self.values += expected.size
        if not distance <= bound:
            raise Mismatch(f"{what}: the largest distance {distance:.3g} exceeds the bound {bound:.3g}")
        if bound > 0:
            self.margin = max(self.margin or 0.0, distance / bound)

    def same(self, what: str, got: Any, expected: Any) -> None:
        """Two Python values are equal."""
        self.values += 1
        if got != expected:
            raise Mismatch(f"{what}: expected {expected!r}, got {got!r}")

    def true(self, what: str, condition: bool) -> None:
        """A condition holds; `what` says which."""
        self.values += 1
        if not condition:
            raise Mismatch(what)

    def verdict(self) -> Verdict:
        """What was found."""
        if self.values == 0:
            raise Mismatch("the check compared nothing")
        return Verdict("bound" if self.margin is not None else "equal", self.values, self.margin, self.note)

    def _same_kind(self, what: str, got: AnyArray, expected: AnyArray) -> None:
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise Mismatch(
                f"{what}: expected {expected.dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}"
            )


def _exact(value: Any) -> str:
    return f"{value!s} ({float(value).hex()})" if isinstance(value, np.floating) else str(value)
