"""Implements ops/maxpool2d.py of the spec, on arrays in memory order, `[T B, H, W, C]`."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, Int32

from stsbp_cpu.engine.compiling import cached_njit

__all__ = ["backward", "forward"]

_ZERO = np.float32(0)


@cached_njit(parallel=True)
def forward(s: AnyArray, out: AnyArray, first: Int32, rows: int, columns: int) -> None:
    """Fill `out` and `first` `[n, H // rows, W // columns, C]` with the largest input of each window and its index."""
    frames, height, width, channels = out.shape
    for f in prange(frames):
        for y in range(height):
            for x in range(width):
                largest, number = out[f, y, x], first[f, y, x]
                for c in range(channels):
                    largest[c] = s[f, y * rows, x * columns, c]
                    number[c] = 0
                for index in range(1, rows * columns):
                    inputs = s[f, y * rows + index // columns, x * columns + index % columns]
                    for c in range(channels):
                        if inputs[c] > largest[c]:
                            largest[c] = inputs[c]
                            number[c] = index


@cached_njit(parallel=True)
def backward(d: Float32, first: Int32, out: Float32, rows: int, columns: int) -> None:
    """Fill `out` `[n, H, W, C]`: input number `first` of each window receives the error signal `d`, all others zero."""
    frames, height, width, channels = out.shape
    window_rows, window_columns = d.shape[1], d.shape[2]
    for f in prange(frames):
        for y in range(height):
            window_row = y // rows
            for x in range(width):
                row, window_column = out[f, y, x], x // columns
                if window_row < window_rows and window_column < window_columns:
                    error, number = d[f, window_row, window_column], first[f, window_row, window_column]
                    index = (y - window_row * rows) * columns + x - window_column * columns
                    for c in range(channels):
                        row[c] = error[c] if number[c] == index else _ZERO
                else:
                    for c in range(channels):
                        row[c] = _ZERO
