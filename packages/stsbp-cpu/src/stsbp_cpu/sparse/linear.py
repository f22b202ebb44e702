"""A full connection that meets few spikes: these choose the rows of the weights, and of their gradient.

Sums on the weight grid are exact, so those of the forward pass have the bits of any matrix product.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, Shape, UInt8

from stsbp_cpu.compiling import cached_njit
from stsbp_cpu.layout import empty_memory, own_memory
from stsbp_cpu.sparse.spikes import density, list_present
from stsbp_cpu.threads import get_num_threads
from stsbp_cpu.vectors import LANES, NONE, ROOM, add_scaled, at_a_line, sum_scaled

__all__ = ["forward", "gradient", "pays", "present", "rows_of", "turn", "weights_of"]

SPARSE_BELOW, FRAMES, UNITS = 0.2, 128, 64
"""Share of non-zero inputs below which, and frames and units from which this is faster than a product of matrices, of
256 inputs and units."""

_SAMPLED, _BLOCK = 32, 256
"""Frames that are looked at for their density, and those whose gradient is added up before it meets that of others."""
_TURNED = 8
"""Units that are turned together: a line of each stays in the cache, whatever their distance."""
_ZERO, _UNIT = np.float32(0), np.float32(1)


def present(s: UInt8) -> float:
    """Share of non-zero inputs, `[F, inputs]`, from a sample of the frames."""
    return float(density(s[:, None, None], 1, max(1, len(s) // _SAMPLED)))


def pays(s: UInt8, units: int) -> bool:
    """Whether these kernels are faster for spikes `[F, inputs]`."""
    return len(s) >= FRAMES and units >= UNITS and present(s) < SPARSE_BELOW


def rows_of(w: Float32, shape: Shape) -> Float32:
    """Weights by input: `[inputs, units, and zeros up to whole vectors]`, inputs in the order of memory.

    Args:
        w: weights, `[units, inputs]`.
        shape: of the input, `[T, B, N]` or `[T, B, C, H, W]`, `inputs` being `C H W`.
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
    """Fill `z`, `[F, units]`, with the sums of spikes or event counts `[F, inputs]` and weights, as `rows_of` them."""
    _forward(s, rows, z, get_num_threads())


def gradient(s: UInt8, dz: AnyArray) -> AnyArray:
    """Gradient of the weights, as `rows_of` them, of the type of the errors `[F, units]`, float32 or float64."""
    units, inputs = dz.shape[1], s.shape[1]
    rows = own_memory((inputs, -(-units // LANES) * LANES), dz.dtype.type)
    (_gradient if dz.dtype == np.float32 else _exact_gradient)(s, dz, rows, get_num_threads())
    return rows


@cached_njit(parallel=True, error_model="numpy")
def turn(w: AnyArray, rows: AnyArray, area: int, back: bool, scale: np.float32) -> None:
    """Fill `rows`, `[inputs, units and more]`, from `scale` times `w`, `[units, inputs]`; `back`: `w` from `rows`.

    `area` pixels have an input of each channel. Integers are cut off.
    """
    units, inputs = w.shape
    channels = inputs // area
    for block in prange((inputs + LANES - 1) // LANES):
        for low in range(0, units, _TURNED):
            for i in range(block * LANES, min(inputs, (block + 1) * LANES)):
                row = rows[i % area * channels + i // area]
                for j in range(low, min(units, low + _TURNED)):
                    if back:
                        w[j, i] = row[j]
                    else:
                        row[j] = w[j, i] * scale


@cached_njit(parallel=True, error_model="numpy")
def _forward(s: UInt8, rows: Float32, z: Float32, threads: int) -> None:
    frames, inputs = s.shape
    units, wide = z.shape[1], rows.shape[1]
    flat = rows.reshape(-1)
    for thread in prange(threads):
        places, values = np.empty(inputs + ROOM, np.int32), np.empty(inputs, np.float32)
        own = np.empty(wide, np.float32)
        for f in range(thread * frames // threads, (thread + 1) * frames // threads):
            count = list_present(s[f], places, values)
            own[:] = _ZERO
            sum_scaled(own, NONE, flat, places, wide, NONE, values, NONE, count, wide // LANES)
            for j in range(units):
                z[f, j] = own[j]


@cached_njit(parallel=True, error_model="numpy")
def _gradient(s: UInt8, dz: Float32, rows: Float32, threads: int) -> None:
    """Fill `rows`: each thread has inputs of its own, so that the order of a sum does not hang on their number."""
    frames, units = dz.shape
    inputs, wide = rows.shape
    for thread in prange(threads):
        begin, end = thread * inputs // threads, (thread + 1) * inputs // threads
        places, values = np.empty(end - begin + ROOM, np.int32), np.empty(end - begin, np.float32)
        error, total = at_a_line(wide), rows[begin:end].reshape(-1)
        error[:] = _ZERO
        total[:] = _ZERO
        part = total if frames <= _BLOCK else np.zeros(len(total), np.float32)
        for low in range(0, frames, _BLOCK):
            for f in range(low, min(low + _BLOCK, frames)):
                count = list_present(s[f, begin:end], places, values)
                if count > 0:
                    for j in range(units):
                        error[j] = dz[f, j]
                for k in range(count):
                    add_scaled(part, places[k] * wide, error, 0, values[k], wide // LANES)
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
        places, values = np.empty(end - begin + ROOM, np.int32), np.empty(end - begin, np.float32)
        total = rows[begin:end]
        total[:] = 0.0
        for f in range(frames):
            count = list_present(s[f, begin:end], places, values)
            error = dz[f]
            for k in range(count):
                own, value = total[places[k]], np.float64(values[k])
                for j in range(units):
                    own[j] += value * error[j]
