"""Tensor cores for the forward pass: half-precision operands and float32 sums. A proof first shows their exactness.

Weights on the grid are integers of at most 11 bits in units that are powers of two. So are inputs (spikes, pooled
spikes, images). Half precision can therefore represent both. Every partial sum stays below 2^24 units. Weights that are
stored as float16 arrays use tensor cores. The arithmetic within their sums is not documented. `prove` therefore
compares products close to the bound with integer results, once for each device, before tensor cores are used.

Environment variables of NVIDIA, such as `NVIDIA_TF32_OVERRIDE`, can make cuBLAS round the operands of float32 products,
or emulate float64, whatever precision a call asks for. `prove` therefore also tests float32 and float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.contract.random import bits
from stsbp_spec.networks.graph import Projection
from stsbp_spec.typing import Float64

from stsbp_cupy.engine.runtime import Array, Runtime

__all__ = ["forward_weights", "prove"]

_BITS = 11
"""Half precision represents every integer up to 2^11. `_LOWEST` and `_HIGHEST` give the range of units."""
_LOWEST, _HIGHEST = 24, -5
"""Units range from 2^-24, the smallest number of half precision, to 2^5. Its largest number is 2^11 - 1
units of 2^5."""


class Proof(NamedTuple):
    """Largest integers of the operands, and the largest partial sum."""

    left: int
    right: int
    limit: int


# TF32 has 11 bits, so the left operand of float32 has at least 12 with any of the numbers of summands below.
_PROOFS = {
    np.dtype(np.float16): Proof(2**_BITS - 1, 2**_BITS - 1, 2**24 - 1),
    np.dtype(np.float32): Proof(2**24 - 1, 1, 2**24 - 1),
    np.dtype(np.float64): Proof(2**51 - 1, 2**12 - 1, 2**53 - 1),
}

# Summands of one output, and rows and columns of the product. Small, large and odd sizes use different kernels.
_CASES = ((25, 12, 50), (300, 64, 200), (576, 128, 128), (1600, 64, 133), (9216, 16, 48))


def forward_weights(rt: Runtime, projection: Projection, wq: Array, grid: WeightGrid) -> Array:
    """Weights on their grid in the form that the forward pass reads.

    They are float16, for tensor cores, if these are exact on the device and half precision can represent weights and
    inputs. Otherwise the result is `wq`.
    """
    fit = projection.input.bits <= _BITS and _HIGHEST <= grid.exponent <= _LOWEST
    return wq.astype(np.float16) if rt.tensor_cores and fit else wq


def prove(rt: Runtime, dtype: Any = np.float16) -> str | None:
    """Compare products with integer results. None: all bits are equal. Otherwise: the difference.

    In half precision, the weights are in the highest units, in ones, and in the lowest units, where they are subnormal
    numbers. Operands of float32 and float64 have more bits than any shorter format to which cuBLAS may round them.
    """
    dtype = np.dtype(dtype)
    result = np.dtype(np.float32) if dtype == np.float16 else dtype
    exponents = (_HIGHEST, 0, _LOWEST) if dtype == np.float16 else (0,)
    for number, (k, rows, columns) in enumerate(_CASES):
        a, b = _operands(number, k, rows, columns, _PROOFS[dtype])
        left = rt.xp.asarray(a.astype(dtype))
        for exponent in exponents:
            w, unit = (np.floor(b / 2) if exponent == _LOWEST else b), 2.0**-exponent
            right = rt.xp.asarray((w * unit).astype(dtype))
            out = rt.empty((rows, columns), result)
            rt.gemm(left, right.T, out)
            # The sums are integers below 2^53, which float64 adds exactly.
            expected = (a @ w.T * unit).astype(result)
            wrong = int(np.count_nonzero(rt.numpy(out) != expected))
            if wrong:
                name = "half-precision" if dtype == np.float16 else dtype.name
                units = f", weights in units of 2^{-exponent}" if dtype == np.float16 else ""
                return f"{wrong} of {out.size} sums of {k} {name} products differ from integers{units}"
    return None


def _operands(number: int, k: int, rows: int, columns: int, proof: Proof) -> tuple[Float64, Float64]:
    """Integers `[rows, k]` and `[columns, k]`. Their partial sums, of either sign, come close to the limit and use its
    lowest bits.
    """
    positives = (k + 1) // 2
    largest = min(proof.left, proof.limit // (proof.right * positives))
    # One random bit for each value of `a`, and three for each of `b`.
    size = rows * k + 3 * k * columns
    drawn = np.unpackbits(bits(number, 0, -(-size // 32), substream=255).view(np.uint8), count=size)
    a = largest - drawn[: rows * k].reshape(rows, k).astype(np.float64)
    low = drawn[rows * k :].reshape(3, columns, k)
    # All positive terms and then all negative ones, so that the running sum rises and falls; or alternating.
    order = np.arange(k)
    sign = np.where(order < positives, 1.0, -1.0) if number % 2 else np.where(order % 2, -1.0, 1.0)
    b: Float64 = (float(proof.right) - (low[0] + 2 * low[1] + 4 * low[2]) % min(8, proof.right)) * sign
    return a, b
