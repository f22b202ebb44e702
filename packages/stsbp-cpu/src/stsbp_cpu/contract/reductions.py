"""Reductions of whole arrays (numba, CPU). They are exact in any order and so the same on any number of threads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import prange
from stsbp_spec.contract.grid import SMALLEST_NORMAL, WeightGrid, error_exponent, fit_weight_grid, magnitude
from stsbp_spec.models.optim.adamw import norm_exponent
from stsbp_spec.networks.graph import Projection
from stsbp_spec.typing import Float32, Int32, Int64, UInt8

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.threads import threads_for

__all__ = [
    "count",
    "counts",
    "gradient_squares",
    "largest",
    "largest_bits",
    "round_errors",
    "round_rows",
    "weight_grid",
    "weight_grid_and_bound",
]

_CHUNK = 65536
_BYTE, _EIGHT = np.uint64(255), np.uint64(8)
_MAGNITUDE = np.int32(0x7FFFFFFF)


@cached_njit(parallel=True)
def _count(spikes: UInt8) -> int:
    aligned = spikes.size // 8 * 8
    words = spikes[:aligned].view(np.uint64)
    total = 0
    for chunk in prange((words.size + _CHUNK - 1) // _CHUNK):
        part = words[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        for low in range(0, part.size, 255):
            # Eight sums in the bytes of one word, each of at most 255 zeros and ones.
            sums = np.uint64(0)
            for word in part[low : low + 255]:
                sums += word
            for _ in range(8):
                total += int(sums & _BYTE)
                sums >>= _EIGHT
    for j in range(aligned, spikes.size):
        total += spikes[j]
    return total


def count(spikes: UInt8) -> int:
    """Number of spikes in an array `[M]` of zeros and ones."""
    with threads_for(spikes.size // 8):
        return int(_count(spikes))


@cached_njit(parallel=True)
def _counts(spikes: UInt8, sums: Int32) -> None:
    for b in prange(len(sums)):
        total = np.int32(0)
        for t in range(len(spikes)):
            row = spikes[t, b]
            for j in range(len(row)):
                total += row[j]
        sums[b] = total


def counts(spikes: UInt8) -> Int32:
    """Number of spikes of each sample, int32 `[B]`, in an array `[T, B, M]` of zeros and ones."""
    sums = np.empty(spikes.shape[1], np.int32)
    with threads_for(spikes.size // 8):
        _counts(spikes, sums)
    return sums


@cached_njit(parallel=True)
def _largest_bits(bits: Int32) -> int:
    chunks = (bits.size + _CHUNK - 1) // _CHUNK
    maxima = np.zeros(chunks, np.int32)
    for chunk in prange(chunks):
        part = bits[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        chunk_largest = np.int32(0)
        for j in range(part.size):
            chunk_largest = max(chunk_largest, part[j] & _MAGNITUDE)
        maxima[chunk] = chunk_largest
    largest = np.int32(0)
    for chunk_largest in maxima:
        largest = max(largest, chunk_largest)
    return int(largest)


def largest_bits(x: Float32) -> int:
    """Bits of the largest magnitude in `[M]`. The bits of a NaN are larger than the bits of any number."""
    with threads_for(x.size):
        return int(_largest_bits(x.view(np.int32)))


def largest(x: Float32) -> float:
    """Largest magnitude in `[M]`; NaN if the array contains a NaN."""
    return magnitude(largest_bits(x))


@cached_njit(parallel=True)
def _squares(x: Float32, scale: np.float32) -> int:
    total = 0
    for chunk in prange((x.size + _CHUNK - 1) // _CHUNK):
        part = x[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        n = 0
        for j in range(part.size):
            rounded = int(np.rint(part[j] * scale))
            n += rounded * rounded
        total += n
    return total


def gradient_squares(gradients: Sequence[Float32]) -> Int64:
    """Implements `optim.gradient_squares` for gradients `[M]`."""
    bits = max(map(largest_bits, gradients), default=0)
    exponent = norm_exponent(bits, sum(g.size for g in gradients))
    if exponent is None:
        return np.array([bits, 0], np.int64)
    total = 0
    for g in gradients:
        with threads_for(g.size):
            total += int(_squares(g, np.float32(2.0**exponent)))
    return np.array([bits, total], np.int64)


@cached_njit(parallel=True)
def _round_rows(
    w: Float32, scale: np.float32, unit: np.float32, wq: Float32, positive_sums: Int64, negative_sums: Int64
) -> None:
    for row in prange(len(w)):
        positive, negative = 0, 0
        for j in range(w.shape[1]):
            rounded = np.rint(w[row, j] * scale)
            wq[row, j] = rounded * unit
            units = int(rounded)
            positive += units if units > 0 else 0
            negative += units if units < 0 else 0
        positive_sums[row], negative_sums[row] = positive, negative


def round_rows(w: Float32, exponent: int) -> tuple[Float32, float]:
    """Round weights `[out, n]` to multiples of `2^-exponent`.

    Returns the rounded weights and the largest partial sum of a row for inputs in [0, 1].
    """
    wq = np.empty_like(w)
    positive_sums, negative_sums = np.empty(len(w), np.int64), np.empty(len(w), np.int64)
    with threads_for(w.size):
        _round_rows(w, np.float32(2.0**exponent), np.float32(2.0**-exponent), wq, positive_sums, negative_sums)
    return wq, math.ldexp(float(max(positive_sums.max(), -negative_sums.min())), -exponent)


def weight_grid(projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
    """Implements `Operations.weight_grid` for weights `[out, ...]`."""
    return weight_grid_and_bound(projection, w)[:2]


def weight_grid_and_bound(projection: Projection, w: Float32) -> tuple[Float32, WeightGrid, float]:
    """The results of `weight_grid`, and the largest partial sum for inputs in [0, 1]."""
    rows = np.ascontiguousarray(w).reshape(len(w), -1)

    def rounded(exponent: int) -> tuple[tuple[Float32, float], float]:
        wq, bound = round_rows(rows, exponent)
        return (wq, bound), bound

    fitted, grid = fit_weight_grid(
        largest(rows.reshape(-1)),
        rounded,
        summands=rows.shape[1],
        weight_bits=projection.synapse.weight_bits,
        input_exponent=projection.input.exponent,
        input_max=projection.input.maximum,
        layer=projection.name,
    )
    wq, bound = (np.zeros_like(rows), 0.0) if fitted is None else fitted
    return wq.reshape(w.shape), grid, bound


@cached_njit(parallel=True)
def _round_errors(x: Float32, scale: np.float32, unit: np.float32, tiny: np.float32, out: Float32, n: Int64) -> None:
    for chunk in prange(len(n)):
        low, high = chunk * _CHUNK, min(x.size, (chunk + 1) * _CHUNK)
        zeroed, nonzero = np.int32(0), np.int32(0)
        for j in range(low, high):
            value = np.rint(x[j] * scale) * unit
            is_nonzero = abs(x[j]) >= tiny
            nonzero += np.int32(is_nonzero)
            zeroed += np.int32(is_nonzero & (value == 0))
            out[j] = value
        n[chunk, 0], n[chunk, 1] = zeroed, nonzero


def round_errors(dz: Float32, bits: int, largest_magnitude: float, out: Float32) -> Int64:
    """Implements `Operations.error_grid` for error signals `[M]` with the largest magnitude `largest_magnitude`. Fills
    `out`.

    Returns the numbers of zeroed and of non-zero elements in each chunk, `[..., 2]`.
    """
    q = error_exponent(largest_magnitude, bits)
    scale, unit = (0.0, 0.0) if q is None else (2.0**q, 2.0**-q)
    zeroed_and_nonzero = np.empty((-(-dz.size // _CHUNK), 2), np.int64)
    with threads_for(dz.size):
        _round_errors(dz, np.float32(scale), np.float32(unit), np.float32(SMALLEST_NORMAL), out, zeroed_and_nonzero)
    return zeroed_and_nonzero
