"""synapses/avgpool2d.py of the spec, over arrays in memory order `[T B, H, W, C]`."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32

from stsbp_cpu.compiling import cached_njit

__all__ = ["backward", "forward"]

_ZERO = np.float32(0)


@cached_njit(parallel=True)
def forward(s: AnyArray, out: Float32, size: int) -> None:
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
def backward(d: Float32, out: Float32, size: int) -> None:
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
