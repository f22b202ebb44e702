"""A full connection that meets few spikes: these choose the rows of the weights, and of their gradient.

Sums on the weight grid are exact, so those of the forward pass have the bits of any matrix product.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, UInt8

from stsbp_cpu.compiling import cached_njit
from stsbp_cpu.sparse.spikes import density, list_present
from stsbp_cpu.threads import get_num_threads
from stsbp_cpu.vectors import LANES, NONE, add_scaled, sum_scaled

__all__ = ["forward", "gradient", "pays", "present"]

SPARSE_BELOW, FRAMES, UNITS = 0.2, 1024, 64
"""Share of non-zero inputs below which, and frames and units from which this is faster than a product of matrices, of
256 inputs and units."""

_SAMPLED, _BLOCK = 32, 256
"""Frames that are looked at for their density, and those whose gradient is added up before it meets that of others."""
_ZERO = np.float32(0)


def present(s: UInt8) -> float:
    """Share of non-zero inputs, `[F, inputs]`, from a sample of the frames."""
    return float(density(s[:, None, None], 1, max(1, len(s) // _SAMPLED)))


def pays(s: UInt8, units: int) -> bool:
    """Whether these kernels are faster for spikes `[F, inputs]`."""
    return len(s) >= FRAMES and units >= UNITS and present(s) < SPARSE_BELOW


def forward(s: UInt8, w: Float32, z: Float32) -> None:
    """Fill `z`, `[F, units]`, with the sums of spikes or event counts `[F, inputs]` and weights `[units, inputs]`."""
    units, inputs = w.shape
    rows = np.zeros((inputs, -(-units // LANES) * LANES), np.float32)
    rows[:, :units] = w.T
    _forward(s, rows, z, get_num_threads())


def gradient(s: UInt8, dz: AnyArray) -> AnyArray:
    """Gradient of the weights `[units, inputs]`, of the type of the errors `[F, units]`, float32 or float64."""
    units, inputs = dz.shape[1], s.shape[1]
    sums = np.empty((get_num_threads(), inputs, -(-units // LANES) * LANES), dz.dtype)
    (_gradient if dz.dtype == np.float32 else _exact_gradient)(s, dz, sums)
    total = sums[0] if len(sums) == 1 else sums.sum(0)
    return np.ascontiguousarray(total[:, :units].T)


@cached_njit(parallel=True, error_model="numpy")
def _forward(s: UInt8, rows: Float32, z: Float32, threads: int) -> None:
    frames, inputs = s.shape
    units, wide = z.shape[1], rows.shape[1]
    flat = rows.reshape(-1)
    for thread in prange(threads):
        places, values = np.empty(inputs + 1, np.int32), np.empty(inputs + 1, np.float32)
        own = np.empty(wide, np.float32)
        for f in range(thread * frames // threads, (thread + 1) * frames // threads):
            count = list_present(s[f], places, values)
            own[:] = _ZERO
            sum_scaled(own, NONE, flat, places, wide, NONE, values, NONE, count, wide // LANES)
            for j in range(units):
                z[f, j] = own[j]


@cached_njit(parallel=True, error_model="numpy")
def _gradient(s: UInt8, dz: Float32, sums: Float32) -> None:
    threads, inputs, wide = sums.shape
    frames, units = dz.shape
    for thread in prange(threads):
        places, values = np.empty(inputs + 1, np.int32), np.empty(inputs + 1, np.float32)
        error, part = np.zeros(wide, np.float32), np.zeros(inputs * wide, np.float32)
        total = sums[thread].reshape(-1)
        total[:] = _ZERO
        first, last = thread * frames // threads, (thread + 1) * frames // threads
        for low in range(first, last, _BLOCK):
            high = min(low + _BLOCK, last)
            for f in range(low, high):
                count = list_present(s[f], places, values)
                for j in range(units):
                    error[j] = dz[f, j]
                for k in range(count):
                    add_scaled(part, places[k] * wide, error, 0, values[k], wide // LANES)
            for j in range(len(total)):
                total[j] += part[j]
                part[j] = _ZERO


@cached_njit(parallel=True, error_model="numpy")
def _exact_gradient(s: UInt8, dz: AnyArray, sums: AnyArray) -> None:
    threads, inputs, _ = sums.shape
    frames, units = dz.shape
    for thread in prange(threads):
        places, values = np.empty(inputs + 1, np.int32), np.empty(inputs + 1, np.float32)
        total = sums[thread]
        total[:] = 0.0
        for f in range(thread * frames // threads, (thread + 1) * frames // threads):
            count = list_present(s[f], places, values)
            error = dz[f]
            for k in range(count):
                own, value = total[places[k]], np.float64(values[k])
                for j in range(units):
                    own[j] += value * error[j]
