"""A full connection with few spikes, which select rows of the weights and of the weight gradient.

Sums on the weight grid are exact, so the forward pass has the same bits as any other matrix product.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, Shape, UInt8

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.layout import empty_memory, own_memory
from stsbp_cpu.engine.threads import get_num_threads
from stsbp_cpu.equations.vectors import LANES, NONE, ROOM, add_scaled, aligned_empty, sum_scaled
from stsbp_cpu.ops.sparse.spikes import density, list_nonzero

__all__ = ["forward", "gradient", "pays", "present", "rows_of", "turn", "weights_of"]

SPARSE_BELOW, FRAMES, UNITS = 0.2, 128, 64
"""Maximum share of non-zero inputs, and minimum numbers of frames and units.

Within these limits, the kernels of this module are faster than a matrix product, measured with 256 inputs and units.
"""

_SAMPLED, _BLOCK = 32, 256
"""Number of frames whose density is measured, and number of frames in a block.

The gradients of a block are summed before they are added to the gradients of the other blocks.
"""
_TURNED = 8
"""Number of units that are transposed together. One line of each unit stays in the cache, whatever their distance."""
_ZERO, _UNIT = np.float32(0), np.float32(1)


def present(s: UInt8) -> float:
    """Share of non-zero inputs in `[F, inputs]`, estimated from a sample of the frames."""
    return float(density(s[:, None, None], 1, max(1, len(s) // _SAMPLED)))


def pays(s: UInt8, units: int) -> bool:
    """Whether these kernels are faster than a matrix product for spikes `[F, inputs]`."""
    return len(s) >= FRAMES and units >= UNITS and present(s) < SPARSE_BELOW


def rows_of(w: Float32, shape: Shape) -> Float32:
    """The transposed weights, `[inputs, units padded to whole vectors]`, with the inputs in memory order.

    Args:
        w: weights, `[units, inputs]`.
        shape: shape of the input, `[T, B, N]` or `[T, B, C, H, W]`, where `inputs` is `C H W`.
    """
    units, inputs = w.shape
    rows = own_memory((inputs, -(-units // LANES) * LANES), np.float32)
    rows[:, units:] = 0
    turn(w, rows, math.prod(shape[3:]), False, _UNIT)
    return rows


def weights_of(rows: AnyArray, units: int, shape: Shape) -> AnyArray:
    """Inverse of `rows_of`."""
    w = empty_memory((units, len(rows)), rows.dtype.type)
    turn(w, rows, math.prod(shape[3:]), True, _UNIT)
    return w


def forward(s: UInt8, rows: Float32, z: Float32) -> None:
    """Fill `z`, `[F, units]`, with weighted sums of spikes or event counts `[F, inputs]`. `rows_of` makes `rows`."""
    _forward(s, rows, z, get_num_threads())


def gradient(s: UInt8, dz: AnyArray) -> AnyArray:
    """Gradient of the weights in the layout of `rows_of` and in the type of `dz`, `[F, units]`, float32 or float64."""
    units, inputs = dz.shape[1], s.shape[1]
    rows = own_memory((inputs, -(-units // LANES) * LANES), dz.dtype.type)
    (_gradient if dz.dtype == np.float32 else _exact_gradient)(s, dz, rows, get_num_threads())
    return rows


@cached_njit(parallel=True, error_model="numpy")
def turn(w: AnyArray, rows: AnyArray, area: int, inverse: bool, scale: np.float32) -> None:
    """Fill `rows`, `[inputs, at least units]`, with the transpose of `scale` times `w`, `[units, inputs]`.

    If `inverse` is true, fill `w` with the transpose of `rows` instead. The input has `area` pixels. If `rows` contains
    integers, the values are truncated.
    """
    units, inputs = w.shape
    channels = inputs // area
    for block in prange((inputs + LANES - 1) // LANES):
        for low in range(0, units, _TURNED):
            for i in range(block * LANES, min(inputs, (block + 1) * LANES)):
                row = rows[i % area * channels + i // area]
                for j in range(low, min(units, low + _TURNED)):
                    if inverse:
                        w[j, i] = row[j]
                    else:
                        row[j] = w[j, i] * scale


@cached_njit(parallel=True, error_model="numpy")
def _forward(s: UInt8, rows: Float32, z: Float32, threads: int) -> None:
    frames, inputs = s.shape
    units, padded_units = z.shape[1], rows.shape[1]
    flat = rows.reshape(-1)
    for thread in prange(threads):
        positions, values = np.empty(inputs + ROOM, np.int32), np.empty(inputs, np.float32)
        frame_sums = np.empty(padded_units, np.float32)
        for f in range(thread * frames // threads, (thread + 1) * frames // threads):
            count = list_nonzero(s[f], positions, values)
            frame_sums[:] = _ZERO
            sum_scaled(
                frame_sums, NONE, flat, positions, padded_units, NONE, values, NONE, count, padded_units // LANES
            )
            for j in range(units):
                z[f, j] = frame_sums[j]


@cached_njit(parallel=True, error_model="numpy")
def _gradient(s: UInt8, dz: Float32, rows: Float32, threads: int) -> None:
    """Fill `rows`. Each thread has its own inputs, so the order of a sum does not depend on the number of threads."""
    frames, units = dz.shape
    inputs, padded_units = rows.shape
    for thread in prange(threads):
        begin, end = thread * inputs // threads, (thread + 1) * inputs // threads
        positions, values = np.empty(end - begin + ROOM, np.int32), np.empty(end - begin, np.float32)
        error, total = aligned_empty(padded_units), rows[begin:end].reshape(-1)
        error[:] = _ZERO
        total[:] = _ZERO
        part = total if frames <= _BLOCK else np.zeros(len(total), np.float32)
        for low in range(0, frames, _BLOCK):
            for f in range(low, min(low + _BLOCK, frames)):
                count = list_nonzero(s[f, begin:end], positions, values)
                if count > 0:
                    for j in range(units):
                        error[j] = dz[f, j]
                for k in range(count):
                    add_scaled(part, positions[k] * padded_units, error, 0, values[k], padded_units // LANES)
            if frames > _BLOCK:
                for j in range(len(total)):
                    total[j] += part[j]
                    part[j] = _ZERO


@cached_njit(parallel=True, error_model="numpy")
def _exact_gradient(s: UInt8, dz: AnyArray, rows: AnyArray, threads: int) -> None:
    frames, units = dz.shape
    inputs = len(rows)
    for thread in prange(threads):
        begin, end = thread * inputs // threads, (thread + 1) * inputs // threads
        positions, values = np.empty(end - begin + ROOM, np.int32), np.empty(end - begin, np.float32)
        total = rows[begin:end]
        total[:] = 0.0
        for f in range(frames):
            count = list_nonzero(s[f, begin:end], positions, values)
            error = dz[f]
            for k in range(count):
                input_gradient, value = total[positions[k]], np.float64(values[k])
                for j in range(units):
                    input_gradient[j] += value * error[j]
