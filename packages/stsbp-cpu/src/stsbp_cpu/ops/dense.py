"""Dense convolutions and matrix products in float32 and float64.

Windows are not unfolded. Columns of zeros are added at the sides of a frame, so that each row of a window is contiguous
in memory. The sums of many output pixels and channels stay in registers (`vectors.products`). On the weight grid, these
sums are exact. Otherwise, the order of summation does not depend on the number of threads. The only exception is the
gradient of a convolution, because its frames are divided among the threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, Shape

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.layout import empty_memory
from stsbp_cpu.engine.threads import get_num_threads
from stsbp_cpu.equations.vectors import NONE, ONE, lanes_of, products

__all__ = ["convolve", "gradient", "input_error", "product", "product_of_rows"]

_ROWS, _DEPTH = 48, 256
"""Block size of a matrix product. The block's result stays in the first-level cache, the other factor in a near one."""
_BAND = 8192
"""Number of sums in a band of rows of a frame. The sums of a band stay in the first-level cache."""


# Not numpy's BLAS, which is as fast, but whose threads keep the processor busy while they wait. On two cores, kernels
# that ran after a call of BLAS took two to three times as long.
def convolve(
    s: AnyArray, w: Float32, out: Float32, kernels: Shape, edges: Shape, strides: Shape, rows_apart: int
) -> None:
    """Fill `out` `[n, H', W', C']` with the convolution of `s` `[n, H, W, C]`.

    Args:
        s: inputs, float32 or bytes.
        w: weights `[rows, columns C, C']`.
        out: filled with the result.
        kernels: number of rows and of columns of the window.
        edges: number of rows and of columns of zeros on each side.
        strides: strides of rows and columns.
        rows_apart: dilation of the rows.
    """
    _convolve(s, _in_vectors(w), out, kernels[1], *edges, *strides, rows_apart)


def gradient(s: AnyArray, dz: AnyArray, kernels: Shape, edges: Shape, strides: Shape, rows_apart: int) -> AnyArray:
    """Gradient of the weights, `[rows, columns C, C']`, in the type of `dz` `[n, H', W', C']`; see `convolve`."""
    rows, columns = kernels
    size, channels = columns * s.shape[3], dz.shape[3]
    sums = np.zeros((get_num_threads(), rows, size, _in_whole(channels, dz.dtype)), dz.dtype)
    _gradient(s, dz, sums, *edges, *strides, rows_apart)
    total: AnyArray = sums.sum(0)[..., :channels]
    return total


def input_error(
    dz: AnyArray, w: AnyArray, ds: Float32, kernels: Shape, edges: Shape, strides: Shape, rows_apart: int
) -> None:
    """Fill `ds` `[n, H, W, C]`, float32, with the adjoint of the convolution.

    Args:
        dz: error signal of the outputs, `[n, H', W', C']`. Sums have the type of `dz`.
        w: weights `[rows, C', columns C]`, in the same type.
        ds: filled with the error signal of the inputs.
        kernels, edges, strides, rows_apart: see `convolve`.
    """
    _input_error(dz, _in_vectors(w), ds, kernels[1], *edges, *strides, rows_apart)


def product(a: AnyArray, b: AnyArray) -> AnyArray:
    """The product `a b` of matrices `[n, k]` and `[k, m]` of the same type."""
    columns = b.shape[1]
    wide = _in_vectors(b[None])[0]
    out = empty_memory((len(a), columns), a.dtype.type)
    _product(np.ascontiguousarray(a), wide, out)
    return out


def product_of_rows(a: AnyArray, b: AnyArray) -> AnyArray:
    """The product `a^T b`, `[k, m]`, of matrices `[n, k]` and `[n, m]` of the same type."""
    columns, wide = b.shape[1], _in_vectors(b[None])[0]
    sums = np.zeros((a.shape[1], wide.shape[1]), a.dtype)
    _product_of_rows(np.ascontiguousarray(a), wide, sums)
    return sums[:, :columns]


def _in_whole(channels: int, dtype: np.dtype[Any]) -> int:
    """The number of channels, rounded up to whole vectors."""
    lanes = lanes_of(dtype.itemsize)
    return -(-channels // lanes) * lanes


def _in_vectors(w: AnyArray) -> AnyArray:
    """A copy of `w` whose last axis is padded with zeros to whole vectors."""
    channels = w.shape[2]
    padded = np.zeros((*w.shape[:2], _in_whole(channels, w.dtype)), w.dtype)
    padded[..., :channels] = w
    return padded


@cached_njit(parallel=True, error_model="numpy")
def _product(a: AnyArray, b: AnyArray, out: AnyArray) -> None:
    n, columns = out.shape
    depth, wide = b.shape
    lanes = 64 // a.itemsize
    flat, source = b.reshape(-1), a.reshape(-1)
    for block in prange((n + _ROWS - 1) // _ROWS):
        low = block * _ROWS
        rows = min(_ROWS, n - low)
        block_sums = np.zeros((rows, wide), a.dtype)
        for k in range(0, depth, _DEPTH):
            products(
                block_sums.reshape(-1), NONE, wide, source, low * depth + k, NONE, ONE, depth, flat, k * wide, NONE,
                wide, ONE, min(_DEPTH, depth - k), rows, wide // lanes,
            )  # fmt: skip
        for i in range(rows):
            for c in range(columns):
                out[low + i, c] = block_sums[i, c]


@cached_njit(parallel=True, error_model="numpy")
def _product_of_rows(a: AnyArray, b: AnyArray, sums: AnyArray) -> None:
    n, count = a.shape
    wide = b.shape[1]
    lanes = 64 // a.itemsize
    flat, source, target = b.reshape(-1), a.reshape(-1), sums.reshape(-1)
    for block in prange((count + _ROWS - 1) // _ROWS):
        low = block * _ROWS
        rows = min(_ROWS, count - low)
        for k in range(0, n, _DEPTH):
            products(
                target, low * wide, wide, source, k * count + low, NONE, count, ONE, flat, k * wide, NONE, wide, ONE,
                min(_DEPTH, n - k), rows, wide // lanes,
            )  # fmt: skip


@cached_njit(parallel=True, error_model="numpy")
def _convolve(
    s: AnyArray,
    w: Float32,
    out: Float32,
    columns: int,
    top_padding: int,
    left_padding: int,
    down: int,
    across: int,
    apart: int,
) -> None:
    frames, height, width, channels = out.shape
    rows, run, wide = w.shape
    lanes = 64 // w.itemsize
    size, flat = s.shape[3], w.reshape(-1)
    line = (s.shape[2] + 2 * left_padding) * size
    for f in prange(frames):
        source, frame_sums = _with_sides(s[f], left_padding, w).reshape(-1), np.zeros((height, width, wide), w.dtype)
        target = frame_sums.reshape(-1)
        for i in range(rows):
            for y in range(height):
                row = y * down - top_padding + i * apart
                if 0 <= row < s.shape[1]:
                    products(
                        target, y * width * wide, wide, source, row * line, NONE, ONE, across * size, flat,
                        i * run * wide, NONE, wide, ONE, run, width, wide // lanes,
                    )  # fmt: skip
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    out[f, y, x, c] = frame_sums[y, x, c]


@cached_njit(parallel=True, error_model="numpy")
def _gradient(
    s: AnyArray, dz: AnyArray, sums: AnyArray, top_padding: int, left_padding: int, down: int, across: int, apart: int
) -> None:
    """Add to `sums` `[threads, rows, columns C, C' in whole vectors]`."""
    frames, height, width, channels = dz.shape
    threads, rows, run, wide = sums.shape
    lanes = 64 // sums.itemsize
    size = s.shape[3]
    line = (s.shape[2] + 2 * left_padding) * size
    for thread in prange(threads):
        error, total = np.zeros((height, width, wide), dz.dtype), sums[thread].reshape(-1)
        for f in range(thread * frames // threads, (thread + 1) * frames // threads):
            source = _with_sides(s[f], left_padding, dz).reshape(-1)
            for y in range(height):
                for x in range(width):
                    for c in range(channels):
                        error[y, x, c] = dz[f, y, x, c]
            for i in range(rows):
                # Output rows for which row `i` of the window is inside the frame.
                first = max(0, (top_padding - i * apart + down - 1) // down)
                last = min(height, (s.shape[1] + top_padding - i * apart + down - 1) // down)
                row = first * down - top_padding + i * apart
                products(
                    total, i * run * wide, wide, source, row * line, down * line, across * size, ONE, error.reshape(-1),
                    first * width * wide, width * wide, wide, max(0, last - first), width, run, wide // lanes,
                )  # fmt: skip


@cached_njit(parallel=True, error_model="numpy")
def _input_error(
    dz: AnyArray,
    w: AnyArray,
    ds: Float32,
    columns: int,
    top_padding: int,
    left_padding: int,
    down: int,
    across: int,
    apart: int,
) -> None:
    frames, height, width, channels = dz.shape
    rows, _, wide = w.shape
    lanes = 64 // w.itemsize
    size, flat = ds.shape[3], w.reshape(-1)
    run = columns * size
    band = max(1, min(height, _BAND // (width * wide)))
    for f in prange(frames):
        source, band_sums = dz[f].reshape(-1), np.empty((band * width, wide), dz.dtype)
        total = np.zeros((ds.shape[1], (ds.shape[2] + 2 * left_padding) * size), dz.dtype)
        for low in range(0, height, band):
            count = min(band, height - low)
            for i in range(rows):
                band_sums[:] = 0
                products(
                    band_sums.reshape(-1), NONE, wide, source, low * width * channels, NONE, ONE, channels, flat,
                    i * channels * wide, NONE, wide, ONE, channels, count * width, wide // lanes,
                )  # fmt: skip
                for y in range(count):
                    row = (low + y) * down - top_padding + i * apart
                    if 0 <= row < ds.shape[1]:
                        line = total[row]
                        for x in range(width):
                            to, part = line[x * across * size :], band_sums[y * width + x]
                            for q in range(run):
                                to[q] += part[q]
        for y in range(ds.shape[1]):
            ds[f, y].reshape(-1)[:] = total[y, left_padding * size : (left_padding + ds.shape[2]) * size]


@cached_njit()
def _with_sides(s: AnyArray, side: int, like: AnyArray) -> AnyArray:
    """A frame `[H, W, C]` in the type of `like`, with columns of zeros on both sides."""
    height, width, channels = s.shape
    x = np.zeros((height, width + 2 * side, channels), like.dtype)
    for y in range(height):
        for place in range(width):
            for c in range(channels):
                x[y, place + side, c] = s[y, place, c]
    return x
