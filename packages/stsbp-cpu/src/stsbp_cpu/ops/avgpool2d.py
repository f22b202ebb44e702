"""Implements ops/avgpool2d.py of the spec, on arrays in memory order, `[T B, H, W, C]`."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32

from stsbp_cpu.engine.compiling import cached_njit

__all__ = ["backward", "forward"]

_ZERO = np.float32(0)


@cached_njit(parallel=True)
def forward(s: AnyArray, out: Float32, rows: int, columns: int, scale: np.float32) -> None:
    """Fill `out` `[n, H // rows, W // columns, C]` with `scale` times the sums of the windows of `s` `[n, H, W, C]`."""
    frames, height, width, channels = out.shape
    for f in prange(frames):
        for y in range(height):
            for x in range(width):
                row = out[f, y, x]
                for c in range(channels):
                    row[c] = _ZERO
                for i in range(rows):
                    for j in range(columns):
                        spikes = s[f, y * rows + i, x * columns + j]
                        for c in range(channels):
                            row[c] += np.float32(spikes[c])
                for c in range(channels):
                    row[c] *= scale


@cached_njit(parallel=True)
def backward(d: Float32, out: Float32, rows: int, columns: int, scale: np.float32) -> None:
    """Fill `out` `[n, H, W, C]` with `scale` times the error signals `d` `[n, H // rows, W // columns, C]`.

    Inputs outside all windows receive zero.
    """
    frames, height, width, channels = out.shape
    window_rows, window_columns = d.shape[1], d.shape[2]
    for f in prange(frames):
        for y in range(height):
            window_row = y // rows
            for x in range(width):
                row, window_column = out[f, y, x], x // columns
                if window_row < window_rows and window_column < window_columns:
                    error = d[f, window_row, window_column]
                    for c in range(channels):
                        row[c] = error[c] * scale
                else:
                    for c in range(channels):
                        row[c] = _ZERO
