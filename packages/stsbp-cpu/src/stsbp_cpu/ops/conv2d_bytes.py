"""The input of a convolution of bytes: pooled, masked by dropout, and with each channel twice."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import UInt8

from stsbp_cpu.engine.compiling import cached_njit

__all__ = ["doubled"]


@cached_njit(parallel=True)
def doubled(s: UInt8, mask: UInt8, masked: int, size: int, out: UInt8) -> None:
    """Fill `out` `[T, B, H, W, 2 C]` with 16 times the sums over the windows of `s`, followed by the sums themselves.

    Args:
        s: inputs, `[T, B, size H, size W, C]`, possibly with more rows and columns. A window's sum is at most 15.
        mask: dropout mask, `[B, ...]`; ignored if `masked` is 0.
        masked: where dropout is applied. 0: nowhere; 1: before the sums; 2: after the sums.
        size: size of the windows.
        out: filled with the result.
    """
    steps, batch, height, width, _ = out.shape
    channels = s.shape[4]
    for frame in prange(steps * batch):
        t, b = frame // batch, frame % batch
        sample_mask = mask[b % len(mask)]
        sums = np.empty(width * channels, np.uint8)
        for y in range(height):
            sums[:] = 0
            for i in range(size):
                row = s[t, b, y * size + i].reshape(-1)
                mask_row = sample_mask[y * size + i].reshape(-1) if masked == 1 else row
                for x in range(width):
                    for j in range(size):
                        first = (x * size + j) * channels
                        for c in range(channels):
                            spikes = row[first + c]
                            sums[x * channels + c] += spikes * mask_row[first + c] if masked == 1 else spikes
            if masked == 2:
                mask_row = sample_mask[y].reshape(-1)
                for j in range(width * channels):
                    sums[j] *= mask_row[j]
            out_row = out[t, b, y].reshape(-1)
            for x in range(width):
                for c in range(channels):
                    total = sums[x * channels + c]
                    out_row[2 * x * channels + c] = total << 4
                    out_row[(2 * x + 1) * channels + c] = total
