"""Sums of batch normalisation (spec: ops/batchnorm.py), with kernels/batchnorm.cu."""

from __future__ import annotations

import numpy as np
from stsbp_spec.networks.ops.batchnorm import SQUARE_BITS

from stsbp_cupy.engine.runtime import Array, Runtime, memory

__all__ = ["error_moments", "moments"]


def moments(rt: Runtime, z: Array, exponent: Array) -> Array:
    """`batchnorm.moments`, int64 `[3, C]`, without a transfer from the device."""
    rows = _rows(rt, z)
    partial_sums = rt.xp.zeros((3, rows.shape[1]), np.uint64)
    rt.launch("norm_moments", min(rt.reduction_threads, rows.size), rows, exponent, partial_sums, *rows.shape)
    sums: Array = partial_sums.view(np.int64)
    sums[1] += sums[2] >> SQUARE_BITS
    sums[2] &= 2**SQUARE_BITS - 1
    return sums


def error_moments(rt: Runtime, dy: Array, z: Array, exponent: Array) -> Array:
    """`batchnorm.error_moments`, float64 `[3, C]`, without a transfer from the device."""
    rows = _rows(rt, z)
    sums: Array = rt.xp.zeros((3, rows.shape[1]), np.float64)
    threads = min(rt.reduction_threads, rows.size)
    rt.launch("norm_error_moments", threads, _rows(rt, dy), rows, exponent, sums, *rows.shape)
    return sums


def _rows(rt: Runtime, x: Array) -> Array:
    """`[T, B, C, ...]` as rows `[n, C]`, in the order of memory."""
    channels = x.shape[2]
    return memory(rt, x).reshape(-1, channels)
