"""Tensor cores for the forward pass: half-precision operands, float32 sums, exact by the contract, and proved first.

Weights on the grid are integers of at most 11 bits and inputs (spikes, pooled spikes, images) too, both exact in half
precision; every partial sum stays below 2^24 units. What a device's tensor cores do inside a sum is not documented, so
`prove` compares products that reach for the bound with integers, once for each device, before the path is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from stsbp_spec.graph import Projection
from stsbp_spec.grid import WeightGrid
from stsbp_spec.random import bits
from stsbp_spec.typing import Int64

from stsbp_cupy.runtime import Array, Runtime
from stsbp_cupy.synapses.weights import HalfUnits

__all__ = ["HALF_BITS", "for_layer", "prove"]

HALF_BITS = 11
"""Half precision holds every integer up to 2^11."""

# Summands of one output, and rows and columns of the product: small, large and odd sizes take different kernels.
_CASES = ((25, 12, 50), (300, 64, 200), (1600, 64, 333), (9216, 128, 128))


def for_layer(rt: Runtime, projection: Projection, wq: Array, grid: WeightGrid) -> Any:
    """The weights, marked for tensor cores where the device was proved exact and the inputs fit half precision."""
    if rt.tensor_cores and projection.input.bits <= HALF_BITS:
        return HalfUnits(wq, grid.exponent, projection.input.exponent)
    return wq


def prove(rt: Runtime) -> str | None:
    """Compare half-precision products with integers; None: all bits equal, else what differed."""
    for number, (k, rows, columns) in enumerate(_CASES):
        a, b = _operands(number, k, rows, columns)
        expected = (a @ b).astype(np.float32)
        left, right = (rt.xp.asarray(x.astype(np.float16)) for x in (a, np.ascontiguousarray(b.T)))
        out = rt.empty((rows, columns), np.float32)
        rt.gemm(left, right.T, out)
        wrong = int(np.count_nonzero(rt.numpy(out) != expected))
        if wrong:
            return f"{wrong} of {expected.size} sums of {k} half-precision products differ from integers"
    return None


def _operands(number: int, k: int, rows: int, columns: int) -> tuple[Int64, Int64]:
    """Integers of at most 11 bits whose partial sums, of either sign, reach for 2^24 and use their lowest bits."""
    words = bits(number, 0, rows * k + k * columns, substream=255).astype(np.int64)
    positives = (k + 1) // 2
    largest = min(2**HALF_BITS - 1, (2**24 - 1) // ((2**HALF_BITS - 1) * positives))
    a = largest - (words[: rows * k] % 2).reshape(rows, k)
    b = 2**HALF_BITS - 1 - (words[rows * k :] % 8).reshape(k, columns)
    # All positive terms and then all negative ones, so that the running sum climbs and returns; or in turn.
    order = np.arange(k)
    sign = np.where(order < positives, 1, -1) if number % 2 else np.where(order % 2, -1, 1)
    return a, b * sign[:, None]
