"""Tensor cores for the forward pass: half-precision operands and float32 sums. A test first proves that they are exact.

Weights on the grid are integers of at most 11 bits in units that are powers of two. So are inputs (spikes, pooled
spikes, images). Half precision can therefore represent both. Every partial sum stays below 2^24 units. Weights that are
stored as float16 arrays use tensor cores. The arithmetic within their sums is not documented. `prove` therefore
compares products close to the bound with integer results, once for each device, before tensor cores are used.
"""

from __future__ import annotations

import numpy as np
from stsbp_spec.graph import Projection
from stsbp_spec.grid import WeightGrid
from stsbp_spec.random import bits
from stsbp_spec.typing import Int64

from stsbp_cupy.runtime import Array, Runtime

__all__ = ["prove", "stored"]

_BITS = 11
"""Half precision represents every integer up to 2^11. `_LOWEST` and `_HIGHEST` give the range of units."""
_LOWEST, _HIGHEST = 24, -5
"""Units range from 2^-24, the smallest number of half precision, to 2^5. Its largest number is 2^11 - 1
units of 2^5."""

# Summands of one output, and rows and columns of the product. Small, large and odd sizes use different kernels.
_CASES = ((25, 12, 50), (300, 64, 200), (1600, 64, 333), (9216, 128, 128))


def stored(rt: Runtime, projection: Projection, wq: Array, grid: WeightGrid) -> Array:
    """Weights on their grid in the form that the forward pass reads.

    They are float16, for tensor cores, if these are exact on the device and half precision can represent weights and
    inputs. Otherwise the result is `wq`.
    """
    fit = projection.input.bits <= _BITS and _HIGHEST <= grid.exponent <= _LOWEST
    return wq.astype(np.float16) if rt.tensor_cores and fit else wq


def prove(rt: Runtime) -> str | None:
    """Compare half-precision products with integer results. None: all bits are equal. Otherwise: the difference.

    The weights are in the highest units, in ones, and in the lowest units, where they are subnormal numbers.
    """
    for number, (k, rows, columns) in enumerate(_CASES):
        a, b = _operands(number, k, rows, columns)
        for exponent, w in ((_HIGHEST, b), (0, b), (_LOWEST, b // 2)):
            unit = 2.0**-exponent
            left, right = (rt.xp.asarray(x.astype(np.float16)) for x in (a, np.ascontiguousarray(w.T) * unit))
            out = rt.empty((rows, columns), np.float32)
            rt.gemm(left, right.T, out)
            wrong = int(np.count_nonzero(rt.numpy(out) != (a @ w * unit).astype(np.float32)))
            if wrong:
                return (
                    f"{wrong} of {out.size} sums of {k} half-precision products differ from integers, "
                    f"weights in units of 2^{-exponent}"
                )
    return None


def _operands(number: int, k: int, rows: int, columns: int) -> tuple[Int64, Int64]:
    """Integers of at most 11 bits. Their partial sums, of either sign, come close to 2^24 and use their lowest bits."""
    words = bits(number, 0, rows * k + k * columns, substream=255).astype(np.int64)
    positives = (k + 1) // 2
    largest = min(2**_BITS - 1, (2**24 - 1) // ((2**_BITS - 1) * positives))
    a = largest - (words[: rows * k] % 2).reshape(rows, k)
    b = 2**_BITS - 1 - (words[rows * k :] % 8).reshape(k, columns)
    # All positive terms and then all negative ones, so that the running sum rises and falls; or alternating.
    order = np.arange(k)
    sign = np.where(order < positives, 1, -1) if number % 2 else np.where(order % 2, -1, 1)
    return a, b * sign[:, None]
