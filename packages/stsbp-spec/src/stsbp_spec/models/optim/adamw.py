"""AdamW (Loshchilov and Hutter 2019) with warm-up, cosine schedule and gradient clipping, as one update rule.

Order of operations (`UPDATE`), in float32. The scalars of `AdamW.scalars(step)` are rounded once from float64:

    g = snap(g*clip)
    m = snap(beta1*m + (1-beta1)*g)
    v = snap(beta2*v + (1-beta2)*(g*g))
    w = decay*w - rate*((m*c1) / (sqrt(v*c2) + eps))

Learned parameters of neurons (`LEARNED_UPDATE`) do not decay, and are clipped to their domain:

    w = w - rate*((m*c1) / (sqrt(v*c2) + eps))
    w = snap(low if w < low, high if w > high, else w)

`c1 = 1/(1-beta1^n)`, `c2 = 1/(1-beta2^n)` with `n = step + 1`, `decay = 1 - lr weight_decay`, `rate = lr`. The square
root and the division are the correctly rounded operations of IEEE 754. Powers and the cosine of the schedule are also
rounded once (`stsbp_spec.contract.elementary`), because those of a C library differ between processors.

The norm for clipping must not depend on the order of its sum. Gradients are therefore rounded to `b` bits below the
power of two above their maximum, and their squares are added as integers (`gradient_norm`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from stsbp_spec.contract.arrays import NUMPY, ArrayArithmetic
from stsbp_spec.contract.elementary import power
from stsbp_spec.contract.grid import CEILING, FLOOR, ceil_log2, error_exponent, magnitude
from stsbp_spec.equations.expressions import Expr, Names, Recurrence, named, snap, sqrt, unsnapped, variable, where
from stsbp_spec.errors import NumericError
from stsbp_spec.models.optim.base import Optimizer, Scalars
from stsbp_spec.typing import AnyArray, Array, Float32

__all__ = [
    "LEARNED_UPDATE",
    "UPDATE",
    "AdamW",
    "AdamWScalars",
    "Adaptive",
    "adaptive_change",
    "clip_factor",
    "clipped_to_domain",
    "gradient_norm",
    "gradient_squares",
    "norm_bits",
    "norm_exponent",
    "norm_of",
]


@dataclass(frozen=True)
class AdamWScalars(Scalars):
    """The float32 constants of one update."""

    clip: np.float32
    beta1: np.float32
    one_minus_beta1: np.float32
    beta2: np.float32
    one_minus_beta2: np.float32
    c1: np.float32
    c2: np.float32
    eps: np.float32
    decay: np.float32
    rate: np.float32

    @property
    def update(self) -> Recurrence:
        return UPDATE

    @property
    def learned_update(self) -> Recurrence:
        return LEARNED_UPDATE


def adaptive_change(c: Names, g: Expr, m: Expr, v: Expr) -> tuple[Expr, Expr, Expr]:
    """The new moments, and what is subtracted from the parameter, for the gradient `g` after clipping."""
    m = named("new_m", snap(c.beta1 * m + c.one_minus_beta1 * g))
    v = named("new_v", snap(c.beta2 * v + c.one_minus_beta2 * (g * g)))
    return m, v, c.rate * ((m * c.c1) / (sqrt(v * c.c2) + c.eps))


def clipped_to_domain(c: Names, x: Expr) -> Expr:
    """A learned parameter after its update, clipped to its domain."""
    # Decay pulls towards zero, and nothing speaks for time constants or thresholds near zero.
    updated = named("moved", x)
    return snap(where(updated < c.low, c.low, where(updated > c.high, c.high, updated)))


def _update(*, learned: bool) -> Recurrence:
    names = tuple(field.name for field in fields(AdamWScalars) if not (learned and field.name == "decay"))
    names = (*names, "low", "high") if learned else names
    c = Names("scalar of AdamW", {name: variable(name) for name in names})
    w, g, m, v = (variable(name) for name in ("w", "g", "m", "v"))
    m, v, change = adaptive_change(c, named("clipped", snap(g * c.clip)), m, v)
    # Not snapped: weights below the floor become zero when they are rounded to their grid.
    new_w = clipped_to_domain(c, w - change) if learned else unsnapped(c.decay * w - change)
    outputs = {"new_w": new_w, "new_m": m, "new_v": v}
    return Recurrence("adamw_learned" if learned else "adamw", names, ("w", "g", "m", "v"), {}, outputs)


UPDATE = _update(learned=False)
"""One update of a weight: from `w`, its gradient `g` and the moments `m`, `v` to `new_w`, `new_m`, `new_v`."""

LEARNED_UPDATE = _update(learned=True)
"""The same for learned parameters of neurons: no decay, and the result is clipped to `low` and `high`."""


class Adaptive(Optimizer):
    """An optimiser that divides by the root of the second moments: AdamW and Adam."""

    moments: ClassVar[tuple[str, ...]] = ("m", "v")

    beta1: float
    beta2: float
    eps: float

    def _domain(self) -> dict[str, bool]:
        return {
            **super()._domain(),
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "eps": FLOOR <= self.eps <= CEILING,
        }

    def largest_moment(self, v: Float32) -> AnyArray:
        """Bound of the magnitude of the first moments beside second moments `v`, in any shape, float64.

        Both moments are sums over the same gradients `g_k`, with weights `(1-beta1) beta1^k` for `g_k` and
        `(1-beta2) beta2^k` for `g_k^2`. By the inequality of Cauchy and Schwarz, `m^2 <= v (1-beta1)^2 / ((1-beta2)
        (1 - beta1^2/beta2))`. Snapping takes at most 2^-100 from `v` in each update. A factor of 2 covers all rounding.
        The bound is infinite if `beta1^2` is not below `beta2`, or if `beta2` is so close to 1 that rounding adds up.
        """
        b1, b2 = self.beta1, self.beta2
        if b1 * b1 > b2 * (1 - 1e-6) or 1 - b2 < 1e-6:
            return np.full(v.shape, np.inf)
        ratio = (1 - b1) ** 2 / ((1 - b2) * (1 - (b1 * b1 / b2 if b1 else 0)))
        return np.sqrt(2 * ratio * (v.astype(np.float64) + FLOOR / (1 - b2)))

    def check_moments(self, name: str, moments: Sequence[Float32]) -> None:
        super().check_moments(name, moments)
        m, v = moments
        of_m, of_v = self.prefixes
        # Second moments may have overflowed.
        if (v < 0).any():
            raise NumericError(f"{of_v} of {name} holds a value that no update can produce")
        if (np.abs(m) > self.largest_moment(v)).any():
            raise NumericError(f"{of_m} of {name} holds a value that no update can produce with its {of_v}")

    def moment_scalars(self, step: int) -> dict[str, np.float32]:
        """The constants of update `step` with which the moments are computed and corrected."""
        n = step + 1
        return {
            "beta1": np.float32(self.beta1),
            "one_minus_beta1": np.float32(1 - self.beta1),
            "beta2": np.float32(self.beta2),
            "one_minus_beta2": np.float32(1 - self.beta2),
            "c1": np.float32(1 / (1 - power(self.beta1, n))),
            "c2": np.float32(1 / (1 - power(self.beta2, n))),
            "eps": np.float32(self.eps),
        }


@dataclass(frozen=True)
class AdamW(Adaptive):
    """Hyperparameters of the update of AdamW, whose weight decay is decoupled from the gradient.

    Args:
        lr: peak learning rate: 0, or from 2^-100 to the largest float32.
        total_steps: length of the cosine schedule in updates. None keeps `lr` constant after the warm-up.
        warmup_steps: number of updates over which the learning rate rises linearly from 0.
        final_fraction: learning rate at the end of the schedule, as a fraction of `lr`.
        beta1, beta2, eps, weight_decay: as in the literature. `eps` is from 2^-100 to 2^100.
        clip_norm: largest global gradient norm, at least 2^-100; None: no clipping.
        delay_lr: peak learning rate of learned delays; None: 100 times `lr`.
    """

    name: ClassVar[str] = "adamw"

    lr: float = 2e-3
    total_steps: int | None = None
    warmup_steps: int = 0
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    delay_lr: float | None = None

    def scalars(self, step: int, clip: np.float32) -> AdamWScalars:
        """The constants of update `step`, including the clipping factor."""
        rate = self.rate(step)
        return AdamWScalars(
            clip=clip,
            decay=np.float32(1 - rate * self.weight_decay),
            rate=np.float32(rate),
            **self.moment_scalars(step),
        )


def norm_bits(n: int) -> int:
    """Number of bits per gradient with which `n` squares fit in an int64 sum."""
    return min(24, (62 - ceil_log2(max(1, n))) // 2)


def gradient_norm(gradients: Iterable[Float32]) -> float:
    """Global norm of the gradients. It is the same number on every backend, because squares are added as integers.

    Elements below `2^-norm_bits` of the largest element count as zero. The norm is not finite if a gradient is not.
    """
    arrays = list(gradients)
    return norm_of(gradient_squares(arrays), sum(g.size for g in arrays))


def gradient_squares(gradients: Sequence[Array], arithmetic: ArrayArithmetic[Any] = NUMPY) -> Array:
    """The two integers from which the global norm is computed, int64 `[2]`.

    The first holds the bits of the largest magnitude as a float32. The second is the sum of the squares of the
    gradients in units of `2^-norm_exponent`. The second is meaningless if `norm_exponent` is None.

    Args:
        gradients: float32 arrays of any shapes.
        arithmetic: that of the arrays.
    """
    xp, arrays = arithmetic.xp, [g for g in gradients if math.prod(g.shape)]
    if not arrays:
        squares: Array = xp.zeros((2,), dtype=xp.int64)
        return squares
    largest = reduce(xp.maximum, map(arithmetic.largest_error, arrays))
    scale, _ = arithmetic.scales(largest, norm_bits(sum(math.prod(g.shape) for g in arrays)))
    scale = scale[0]  # without axes, numpy multiplies faster
    with np.errstate(invalid="ignore"):  # numpy warns of gradients that are not finite: they have no integers
        units = [arithmetic.int64(xp.round(g * scale)) for g in arrays]
    total: Any = sum(xp.sum(x * x) for x in units)
    squares = xp.concat([arithmetic.int64(largest), total.reshape((1,))])
    return squares


def norm_exponent(bits: int, count: int) -> int | None:
    """Exponent of the grid of `count` gradients. `bits` are the float32 bits of their largest magnitude.

    None if all gradients are zero, or if one of them is not finite.
    """
    largest = magnitude(bits)
    return error_exponent(largest, norm_bits(count)) if math.isfinite(largest) else None


def norm_of(squares: AnyArray, count: int) -> float:
    """The global norm of `count` gradients from their `gradient_squares`. It is not finite if a gradient is not."""
    bits, total = (int(x) for x in squares)
    exponent = norm_exponent(bits, count)
    if exponent is None:
        return 0.0 if math.isfinite(magnitude(bits)) else magnitude(bits)
    return math.sqrt(total) * 2.0**-exponent


def clip_factor(norm: float, clip_norm: float | None) -> np.float32:
    """`min(1, clip_norm / norm)`, rounded once; 1 without clipping."""
    if clip_norm is None or norm <= clip_norm:
        return np.float32(1)
    return np.float32(clip_norm / norm)
