"""Implements ops/dropout.py of the spec: masks with the same bits as those of `random.keep_mask`."""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from stsbp_spec.contract.random import Stream, check_seed
from stsbp_spec.typing import Shape, UInt8

from stsbp_cpu.engine.compiling import cached_njit

__all__ = ["mask"]


def mask(seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> UInt8:
    """Mask of zeros and ones for a logical shape `[B, C, H, W]` or `[B, N]`. The mask is `[B, H, W, C]` or `[B, N]`.

    `first` is the index in the batch of the mask's first sample.
    """
    batch, channels, space = shape[0], shape[1], shape[2:]
    out = np.empty((batch, math.prod(space), channels), np.uint8)
    key = (Stream.DROPOUT + 256 * layer) & 0xFFFFFFFF
    _keep_mask(check_seed(seed), key, step & 0xFFFFFFFF, round(rate * 2**32), channels, first * channels, out)
    return out.reshape(batch, *space, channels)


@cached_njit()
def _rotate(x: np.uint32, r: int) -> np.uint32:
    return np.uint32((x << np.uint32(r)) | (x >> np.uint32(32 - r)))


@cached_njit(parallel=True)
def _keep_mask(k0: int, k1: int, step: int, threshold: int, channels: int, rows_before: int, out: UInt8) -> None:
    """Write `random.keep_mask` (Threefry-2x32-20) to `out` `[B, area, C]`.

    The elements are counted in the order `[B, C, area]`. `rows_before` is the number of rows `[area]` of the samples
    before the first one.
    """
    batch, area, _ = out.shape
    a0, a1 = np.uint32(k0), np.uint32(k1)
    a2 = np.uint32(a0 ^ a1 ^ np.uint32(0x1BD11BDA))
    limit = np.uint64(threshold)
    for row in prange(batch * channels):
        b, c = row // channels, row % channels
        base = (rows_before + row) * area
        for j in range(area):
            index = base + j
            x0 = np.uint32(np.uint32(index >> 1) + a0)
            x1 = np.uint32(np.uint32(step) + a1)
            for group in range(5):
                for r in range(4):
                    x0 = np.uint32(x0 + x1)
                    if group % 2 == 0:
                        x1 = np.uint32(_rotate(x1, (13, 15, 26, 6)[r]) ^ x0)
                    else:
                        x1 = np.uint32(_rotate(x1, (17, 29, 16, 24)[r]) ^ x0)
                if group % 3 == 0:
                    x0 = np.uint32(x0 + a1)
                    x1 = np.uint32(x1 + a2 + np.uint32(group + 1))
                elif group % 3 == 1:
                    x0 = np.uint32(x0 + a2)
                    x1 = np.uint32(x1 + a0 + np.uint32(group + 1))
                else:
                    x0 = np.uint32(x0 + a0)
                    x1 = np.uint32(x1 + a1 + np.uint32(group + 1))
            word = x1 if index & 1 else x0
            out[b, j, c] = np.uint64(word) >= limit
