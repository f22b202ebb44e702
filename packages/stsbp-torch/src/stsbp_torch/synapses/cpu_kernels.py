"""CPU kernels (numba) of pooling and dropout, over arrays in memory order `[T B, H, W, C]`."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, UInt8

from stsbp_torch.compiling import cached_njit

__all__ = ["double_bytes", "keep_mask", "pool", "unpool"]

_ZERO = np.float32(0)


@cached_njit(parallel=True)
def pool(s: AnyArray, out: Float32, size: int) -> None:
    """Fill `out` `[n, H // size, W // size, C]` with the means of the windows of `s` `[n, H, W, C]`."""
    frames, height, width, channels = out.shape
    scale = np.float32(1 / (size * size))
    for f in prange(frames):
        for y in range(height):
            for x in range(width):
                row = out[f, y, x]
                for c in range(channels):
                    row[c] = _ZERO
                for i in range(size):
                    for j in range(size):
                        spikes = s[f, y * size + i, x * size + j]
                        for c in range(channels):
                            row[c] += np.float32(spikes[c])
                for c in range(channels):
                    row[c] *= scale


@cached_njit(parallel=True)
def double_bytes(s: UInt8, mask: UInt8, masked: int, size: int, out: UInt8) -> None:
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


@cached_njit(parallel=True)
def unpool(d: Float32, out: Float32, size: int) -> None:
    """Fill `out` `[n, H, W, C]` with the errors `d` `[n, H // size, W // size, C]` divided by `size^2`, else zero."""
    frames, height, width, channels = out.shape
    scale = np.float32(1 / (size * size))
    rows, columns = d.shape[1], d.shape[2]
    for f in prange(frames):
        for y in range(height):
            for x in range(width):
                row = out[f, y, x]
                if y // size < rows and x // size < columns:
                    error = d[f, y // size, x // size]
                    for c in range(channels):
                        row[c] = error[c] * scale
                else:
                    for c in range(channels):
                        row[c] = _ZERO


@cached_njit()
def _rotate(x: np.uint32, r: int) -> np.uint32:
    return np.uint32((x << np.uint32(r)) | (x >> np.uint32(32 - r)))


@cached_njit(parallel=True)
def keep_mask(k0: int, k1: int, step: int, threshold: int, channels: int, out: UInt8) -> None:
    """`random.keep_mask` (Threefry-2x32-20) into `out` `[B, area, C]`, elements counted in the order `[B, C, area]`."""
    batch, area, _ = out.shape
    a0, a1 = np.uint32(k0), np.uint32(k1)
    a2 = np.uint32(a0 ^ a1 ^ np.uint32(0x1BD11BDA))
    limit = np.uint64(threshold)
    for row in prange(batch * channels):
        b, c = row // channels, row % channels
        base = row * area
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
