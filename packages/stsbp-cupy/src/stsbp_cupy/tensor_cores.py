"""Tensor cores for the forward pass: half-precision operands, float32 sums, exact by the contract, and proved first.

Weights on the grid are integers of at most 11 bits and inputs (spikes, pooled spikes, images) too, in units that are
powers of two, so half precision holds both; every partial sum stays below 2^24 units. Weights on their grid that are
arrays of float16 are multiplied so. What a device's tensor cores do inside a sum is not documented, so `prove` compares
products that reach for the bound with integers, once for each device, before the path is taken.
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
"""Half precision holds every integer up to 2^11 ..."""
_LOWEST, _HIGHEST = 24, -5
"""... in units of 2^-24, its smallest number, to 2^5, of which 2^11 - 1 are its largest."""

# Summands of one output, and rows and columns of the product: small, large and odd sizes take different kernels.
_CASES = ((25, 12, 50), (300, 64, 200), (1600, 64, 333), (9216, 128, 128))


def stored(rt: Runtime, projection: Projection, wq: Array, grid: WeightGrid) -> Array:
    """Weights on their grid as the forward pass reads them.

    float16, for tensor cores, where the device was proved exact and half precision holds weights and inputs; else `wq`.
    """
    fit = projection.input.bits <= _BITS and _HIGHEST <= grid.exponent <= _LOWEST
    return wq.astype(np.float16) if rt.tensor_cores and fit else wq


def prove(rt: Runtime) -> str | None:
    """Compare half-precision products with integers; None: all bits equal, else what differed.

    Weights in the highest units, in ones, and in the lowest and so small that they are subnormal numbers.
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
    """Integers of at most 11 bits whose partial sums, of either sign, reach for 2^24 and use their lowest bits."""
    words = bits(number, 0, rows * k + k * columns, substream=255).astype(np.int64)
    positives = (k + 1) // 2
    largest = min(2**_BITS - 1, (2**24 - 1) // ((2**_BITS - 1) * positives))
    a = largest - (words[: rows * k] % 2).reshape(rows, k)
    b = 2**_BITS - 1 - (words[rows * k :] % 8).reshape(k, columns)
    # All positive terms and then all negative ones, so that the running sum climbs and returns; or in turn.
    order = np.arange(k)
    sign = np.where(order < positives, 1, -1) if number % 2 else np.where(order % 2, -1, 1)
    return a, b * sign[:, None]
