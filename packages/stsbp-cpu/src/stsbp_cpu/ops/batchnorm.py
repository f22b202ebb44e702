"""Implements ops/batchnorm.py of the spec, on rows `[n, C]` of sums in memory order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numba import prange
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.typing import Float32, Float64, Int64

from stsbp_cpu.engine.compiling import cached_njit, printed_njit
from stsbp_cpu.engine.threads import threads_for
from stsbp_cpu.equations.printers import loop, pointer

__all__ = ["error_moments", "moments", "normalised"]

_ELEMENTS, _MAX_ROWS = 65536, 16384
"""Approximate number of elements and maximum number of rows in a chunk.

The sum of this many squares below 2^48 fits in an int64.
"""
_MIN_ROW_SIZE = 64
"""Minimum number of elements in a row. Shorter rows are joined if possible."""
_LOW, _SQUARE = np.int64(2**12 - 1), np.int64(2**24 - 1)


def _chunks(rows: int, channels: int) -> tuple[int, int]:
    """Number of chunks, and number of rows in each chunk."""
    size = max(1, min(_MAX_ROWS, _ELEMENTS // channels))
    return -(-rows // size), size


def _scales(exponent: int) -> tuple[np.float32, np.float32]:
    """Two powers of two whose product is `2^exponent`. The product itself may be outside the range of float32."""
    return np.float32(2.0 ** (exponent // 2)), np.float32(2.0 ** (exponent - exponent // 2))


@cached_njit(parallel=True)
def _moments(z: Float32, first: np.float32, second: np.float32, size: int, partial_sums: Int64) -> None:
    for chunk in prange(len(partial_sums)):
        total, squares = partial_sums[chunk, 0], partial_sums[chunk, 1]
        for row in z[chunk * size : (chunk + 1) * size]:
            for c in range(len(row)):
                k = np.int64(np.int32(row[c] * first * second))
                total[c] += k
                squares[c] += k * k
        low = partial_sums[chunk, 2]
        for c in range(len(low)):
            low[c] = squares[c] & _SQUARE
            squares[c] >>= 24


def moments(z: Float32, exponent: int) -> Int64:
    """Implements `batchnorm.moments` for rows `[n, C]`; int64 `[3, C]`."""
    chunks, size = _chunks(*z.shape)
    partial_sums = np.zeros((chunks, 3, z.shape[1]), np.int64)
    with threads_for(z.size):
        _moments(z, *_scales(exponent), size, partial_sums)
    sums: Int64 = partial_sums.sum(axis=0)
    sums[1] += sums[2] >> 24
    sums[2] &= _SQUARE
    return sums


@cached_njit(parallel=True)
def _error_moments(
    dy: Float32, z: Float32, first: np.float32, second: np.float32, size: int, partial_sums: Float64
) -> None:
    for chunk in prange(len(partial_sums)):
        total, high, low = partial_sums[chunk, 0], partial_sums[chunk, 1], partial_sums[chunk, 2]
        for r in range(chunk * size, min(len(z), (chunk + 1) * size)):
            row, errors = z[r], dy[r]
            for c in range(len(row)):
                k, d = np.int32(row[c] * first * second), np.float64(errors[c])
                total[c] += d
                high[c] += d * np.float64(k >> 12)
                low[c] += d * np.float64(k & _LOW)


def error_moments(dy: Float32, z: Float32, exponent: int) -> Float64:
    """Implements `batchnorm.error_moments` for rows `[n, C]`; float64 `[3, C]`."""
    chunks, size = _chunks(*z.shape)
    partial_sums = np.zeros((chunks, 3, z.shape[1]))
    with threads_for(z.size):
        _error_moments(dy, z, *_scales(exponent), size, partial_sums)
    sums: Float64 = partial_sums.sum(axis=0)
    return sums


@cache
def _rows(recurrence: Recurrence, arrays: int) -> Callable[..., None]:
    """A function that applies an equation row by row.

    The first `arrays` inputs and the output are `[n, C]`, and the other inputs are `[C]`.
    """
    names = [f"x_{name}" for name in (*recurrence.inputs, *recurrence.outputs)]
    first = names[0]
    rows = [f"pointer({name}, {'r * n' if i < arrays or i == len(names) - 1 else 0})" for i, name in enumerate(names)]
    name = f"{recurrence.name}_of_rows"
    text = (
        f"def {name}(size, {', '.join(names)}):\n"
        f"    n = {first}.shape[1]\n"
        f"    for chunk in prange((len({first}) + size - 1) // size):\n"
        f"        for r in range(chunk * size, min(len({first}), (chunk + 1) * size)):\n"
        f"            loop({', '.join(rows)}, n)\n"
    )
    words = {"__name__": __name__, "pointer": pointer, "loop": loop(recurrence), "prange": prange}
    return printed_njit(text, name, words, parallel=True, error_model="numpy")


def normalised(
    recurrence: Recurrence, arrays: Mapping[str, Float32], numbers: Mapping[str, Float32], out: Float32
) -> None:
    """Apply an equation of the spec to `arrays` `[n, C]` and `numbers` `[C]`, by name, and fill `out` `[n, C]`."""
    columns = [arrays[name] for name in recurrence.inputs if name in arrays]
    channel_numbers = [numbers[name] for name in recurrence.inputs if name in numbers]
    # Short rows are joined, so that the loop over them becomes vector code.
    rows, channels = out.shape
    if channels < _MIN_ROW_SIZE and rows % (joined := -(-_MIN_ROW_SIZE // channels)) == 0:
        columns = [x.reshape(-1, joined * channels) for x in columns]
        out, channel_numbers = out.reshape(-1, joined * channels), [np.tile(x, joined) for x in channel_numbers]
    with threads_for(out.size):
        _rows(recurrence, len(columns))(_chunks(*out.shape)[1], *columns, *channel_numbers, out)
