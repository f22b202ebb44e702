"""The rules of exact arithmetic as code. They make every backend produce the same bits.

1. Weight grid: the forward pass uses `Wq = round(W 2^q) / 2^q` with at most `weight_bits` bits. Each layer has its own
   `q`.
2. Bound: every partial sum of `Wq s` is a multiple of one unit and stays below 2^24 units, so float32 adds it
   exactly in any order. If the bound fails, a coarser grid is used. If no grid satisfies it, `ExactnessError` is
   raised.
3. Elementwise steps have a fixed order of operations, and each operation rounds once (see neurons/lif.py).
4. Floor: states below 2^-100 snap to zero. Libraries that flush subnormal numbers then agree with those that do not.
   Ceiling: weights of 2^100 and above are refused, so that no sum can overflow, in any order.
5. Random numbers are counter-based (random.py).
6. Error grid (`reproducible` precision only): the error signal at a layer boundary is rounded to `b` bits below the
   power of two above its maximum. `b` is the largest number of bits with which float64 adds both backward products
   exactly. Errors of at most half a unit become zero. These are errors more than `b` bits below the maximum, and errors
   of at most 2^-103, which is half the finest unit. `ArrayArithmetic.error_grid` (arrays.py) rounds to it.

`CONTRACT_VERSION` counts the changes of these rules that change results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from stsbp_spec.errors import ExactnessError, NumericError
from stsbp_spec.typing import AnyArray, Float32

__all__ = [
    "CEILING",
    "CONTRACT_VERSION",
    "EXACT_LIMIT_BITS",
    "FINEST_ERROR_EXPONENT",
    "FLOOR",
    "MIN_WEIGHT_BITS",
    "SMALLEST_NORMAL",
    "WeightGrid",
    "ZeroedErrors",
    "ceil_log2",
    "check_largest",
    "error_bits",
    "error_exponent",
    "fit_weight_grid",
    "headroom_bits",
    "round_to_grid",
    "sum_bits",
    "unsigned_zeros",
    "weight_grid",
]

CONTRACT_VERSION = 2
"""Version of the rules for `reproducible` precision. 1: the error grid had at most 24 bits; 2: as many bits as fit."""

FLOOR = 2.0**-100
"""Magnitudes below this become zero."""

CEILING = 2.0**100
"""Weights of this magnitude and above are refused. Below it, the scale of every grid is a normal float32 number, and so
is the largest sum of 2^24 units."""

EXACT_LIMIT_BITS = 24
"""float32 holds every integer up to 2**24."""

FINEST_ERROR_EXPONENT = 126 - EXACT_LIMIT_BITS
"""The unit of an error grid is at least 2^-102. An input has at most 24 bits, so the product of this unit and the unit
of an input is a normal float32 number. Libraries that flush subnormal numbers therefore get the same gradients."""

SMALLEST_NORMAL = 2.0**-126
"""The smallest float32 that no library flushes."""

MIN_WEIGHT_BITS = 2
"""Bits of the coarsest grid: its weights are -1, 0 and 1 times one unit."""

MAX_WEIGHT_BITS = 12
"""One sign bit and 11 further bits. Such weights are exact in fp16, TF32 and float32."""

_F = TypeVar("_F", np.float32, np.float64)
_W = TypeVar("_W")


def magnitude(bits: int) -> float:
    """The float32 number with these bits; the sign bit is 0."""
    return float(np.uint32(bits).view(np.float32))


def ceil_log2(n: int) -> int:
    """The smallest `k` with `2**k >= n`, for `n >= 1`."""
    return (n - 1).bit_length()


@dataclass(frozen=True)
class WeightGrid:
    """The grid to which the weights of one layer were rounded.

    Attributes:
        exponent: `q`: weights are multiples of `2^-q`.
        bits: number of bits of the rounded weights, including the sign.
        headroom: bits between the largest possible partial sum and 2^24 units; at least 0.
    """

    exponent: int
    bits: int
    headroom: float


def unsigned_zeros(x: Float32) -> Float32:
    """A copy of `x` in which every zero is +0. The sign of a zero depends on the order of a sum, so it is removed."""
    return x + np.float32(0)


def round_to_grid(x: npt.NDArray[_F], exponent: int) -> npt.NDArray[_F]:
    """`round(x 2^q) / 2^q`, with ties to even. The scalings are exact."""
    scale, inverse_scale = x.dtype.type(2.0**exponent), x.dtype.type(2.0**-exponent)
    result: npt.NDArray[_F] = np.rint(x * scale) * inverse_scale
    return result


def _rounded(w: Float32, exponent: int) -> tuple[Float32, float]:
    """Weights on a grid, and the largest possible partial sum of one output for inputs in [0, 1].

    Inputs are never negative. A partial sum therefore lies between the sum of the negative weights and the sum of the
    positive weights. These two are sums of grid multiples in float64, so they are exact in any order.
    """
    wq = round_to_grid(w, exponent)
    rows = wq.reshape(len(wq), -1).astype(np.float64)
    return wq, float(max(np.maximum(rows, 0).sum(axis=1).max(), -np.minimum(rows, 0).sum(axis=1).min()))


def headroom_bits(bound: float, weight_exponent: int, input_exponent: int) -> float:
    """Bits between `bound` and 2^24 units of `2^-(weight_exponent + input_exponent)`; negative if it does not fit."""
    if bound == 0:
        return float(EXACT_LIMIT_BITS)
    # In float64, the logarithms of 2^24 and of 2^24 + 1 units differ.
    return EXACT_LIMIT_BITS - (math.log2(bound) + weight_exponent + input_exponent)


def weight_grid(
    w: Float32, *, weight_bits: int, input_exponent: int, input_max: float, layer: str
) -> tuple[Float32, WeightGrid]:
    """Round a layer's weights for the forward pass.

    Args:
        w: master weights, `[out, ...]` float32.
        weight_bits: largest number of bits, including the sign.
        input_exponent: inputs are multiples of `2^-input_exponent`.
        input_max: inputs lie in `[0, input_max]`.
        layer: name of the layer, for error messages.

    Returns:
        The rounded weights with the shape of `w`, and their grid.

    Raises:
        NumericError: a weight is not finite, or its magnitude is `CEILING` or more.
        ExactnessError: the bound fails even with weights of `MIN_WEIGHT_BITS` bits.
    """
    largest = float(np.max(np.abs(w))) if w.size else 0.0
    wq, grid = fit_weight_grid(
        largest,
        lambda q: _rounded(w, q),
        summands=w[0].size if w.size else 0,
        weight_bits=weight_bits,
        input_exponent=input_exponent,
        input_max=input_max,
        layer=layer,
    )
    return (np.zeros_like(w) if wq is None else wq), grid


def check_largest(largest: float, layer: str) -> None:
    """Raise `NumericError` unless the magnitude `largest` of a layer's largest weight is below `CEILING`."""
    if not math.isfinite(largest):
        raise NumericError(f"layer {layer}: a weight is not finite")
    if largest >= CEILING:
        raise NumericError(f"layer {layer}: a weight of magnitude {largest:.3g} is too large; it must be below 2^100")


def fit_weight_grid(
    largest: float,
    rounded: Callable[[int], tuple[_W, float]],
    *,
    summands: int,
    weight_bits: int,
    input_exponent: int,
    input_max: float,
    layer: str,
) -> tuple[_W | None, WeightGrid]:
    """Find the finest grid whose sums are exact. This is `weight_grid` for weights that are not in a numpy array.

    Args:
        largest: magnitude of the largest weight. NaN or infinity if a weight is not finite.
        rounded: function of `q`. It returns the weights rounded to multiples of `2^-q`, and the largest partial sum of
            one output for inputs in [0, 1]. See `weight_grid`.
        summands: number of inputs of one output.
        weight_bits, input_exponent, input_max, layer: see `weight_grid`.

    Returns:
        The rounded weights and their grid. The weights are None if all of them are zero.

    Raises:
        NumericError, ExactnessError: see `weight_grid`.
    """
    check_largest(largest, layer)
    if largest < FLOOR:
        return None, WeightGrid(exponent=0, bits=MIN_WEIGHT_BITS, headroom=float(EXACT_LIMIT_BITS))
    limit = 2 ** (weight_bits - 1) - 1
    q = weight_bits - 1 - math.frexp(largest)[1]
    # Rounded up, the largest weight can need one more bit.
    if round(largest * 2.0**q) > limit:
        q -= 1
    for coarser in range(weight_bits - MIN_WEIGHT_BITS + 1):
        wq, bound = rounded(q - coarser)
        headroom = headroom_bits(bound * input_max, q - coarser, input_exponent)
        if headroom >= 0:
            return wq, WeightGrid(exponent=q - coarser, bits=weight_bits - coarser, headroom=headroom)
    raise ExactnessError(
        f"layer {layer}: sums of {summands} inputs leave the range that float32 adds exactly, even with "
        f"{MIN_WEIGHT_BITS}-bit weights; make the layer's input smaller"
    )


def error_bits(*, input_bits: int, weight_bits: int, weight_summands: int, data_summands: int) -> int:
    """Largest possible number of bits `b` of the error grid of one layer.

    Both backward products must add exactly in float64 (53 bits). The weight gradient sums `weight_summands` products of
    an error and an input of `input_bits` bits. The input gradient sums `data_summands` products of an error and a
    weight of `weight_bits` bits. A float32 error has 24 bits of its own. With `b > 24`, the grid does not change the
    largest errors, and smaller errors keep as many bits as the 53 bits allow.

    Raises:
        ExactnessError: `b` would be less than 8.
    """
    b = min(53 - input_bits - ceil_log2(weight_summands), 53 - weight_bits - ceil_log2(data_summands))
    if b < 8:
        raise ExactnessError(f"the error grid would keep only {b} bits and needs 8; use smaller batches or fewer steps")
    return b


def sum_bits(n: int) -> int:
    """Bits of an error grid on which float64 adds `n` errors exactly, in any order."""
    return 53 - ceil_log2(max(1, n))


def error_exponent(largest: float, bits: int) -> int | None:
    """Exponent `q` of the error grid for errors of magnitude at most `largest`. None if all errors are zero.

    A maximum is exact in any order, so `q` is the same on every backend.
    """
    if largest < FLOOR:
        return None
    return min(bits - math.frexp(largest)[1], FINEST_ERROR_EXPONENT)


class ZeroedErrors(NamedTuple):
    """Number of errors of a layer that the error grid set to zero.

    Attributes:
        zeroed: number of errors that were non-zero before the grid and are zero after it.
        nonzero: number of errors that were non-zero before the grid. Subnormal numbers count as zero, because some
            libraries flush them.
    """

    zeroed: int
    nonzero: int

    @property
    def share(self) -> float:
        """`zeroed / nonzero`; 0 if all errors were zero."""
        return self.zeroed / max(1, self.nonzero)


def is_on_grid(x: AnyArray, exponent: int) -> bool:
    """Whether every element of `x` is a multiple of `2^-exponent`."""
    scaled = x.astype(np.float64) * 2.0**exponent
    return bool(np.all(scaled == np.rint(scaled)))
