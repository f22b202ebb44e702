"""What enters a convolution of bytes: inputs pooled, masked by dropout and doubled."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import UInt8

from stsbp_cpu.compiling import cached_njit

__all__ = ["doubled"]


@cached_njit(parallel=True)
def doubled(s: UInt8, mask: UInt8, masked: int, size: int, out: UInt8) -> None:
    """Fill `out` `[T, B, H, W, 2 C]` with 16 times the sums of the windows of `s`, and the sums, at most 15.

    Args:
        s: `[T, B, size H, size W, C]`, perhaps rows and columns more.
        mask: of dropout, `[B, ...]`; any where `masked` is 0.
        masked: 0: no dropout; 1: before the sums; 2: after them.
        size: of the windows.
        out: what is filled.
    """
    steps, batch, height, width, _ = out.shape
    channels = s.shape[4]
    for frame in prange(steps * batch):
        t, b = frame // batch, frame % batch
        kept = mask[b % len(mask)]
        sums = np.empty(width * channels, np.uint8)
        for y in range(height):
            sums[:] = 0
            for i in range(size):
                row = s[t, b, y * size + i].reshape(-1)
                keep = kept[y * size + i].reshape(-1) if masked == 1 else row
                for x in range(width):
                    for j in range(size):
                        first = (x * size + j) * channels
                        for c in range(channels):
                            spikes = row[first + c]
                            sums[x * channels + c] += spikes * keep[first + c] if masked == 1 else spikes
            if masked == 2:
                keep = kept[y].reshape(-1)
                for j in range(width * channels):
                    sums[j] *= keep[j]
            to = out[t, b, y].reshape(-1)
            for x in range(width):
                for c in range(channels):
                    total = sums[x * channels + c]
                    to[2 * x * channels + c] = total << 4
                    to[(2 * x + 1) * channels + c] = total
