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
    s: AnyArray, w: Float32, out: Float32, kernels: Shape, edges: Shape, strides: Shape, row_dilation: int
) -> None:
    """Fill `out` `[n, H', W', C']` with the convolution of `s` `[n, H, W, C]`.

    Args:
        s: inputs, float32 or bytes.
        w: weights `[rows, columns C, C']`.
        out: filled with the result.
        kernels: number of rows and of columns of the window, which the shape of `w` implies here.
        edges: number of rows and of columns of zeros on each side.
        strides: strides of rows and columns.
        row_dilation: dilation of the rows.
    """
    _convolve(s, _pad_to_vectors(w), out, *edges, *strides, row_dilation)


def gradient(s: AnyArray, dz: AnyArray, kernels: Shape, edges: Shape, strides: Shape, row_dilation: int) -> AnyArray:
    """Gradient of the weights, `[rows, columns C, C']`, in the type of `dz` `[n, H', W', C']`; see `convolve`."""
    rows, columns = kernels
    row_size, channels = columns * s.shape[3], dz.shape[3]
    sums = np.zeros((get_num_threads(), rows, row_size, _padded_length(channels, dz.dtype)), dz.dtype)
    _gradient(s, dz, sums, *edges, *strides, row_dilation)
    total: AnyArray = sums.sum(0)[..., :channels]
    return total


def input_error(
    dz: AnyArray, w: AnyArray, ds: Float32, kernels: Shape, edges: Shape, strides: Shape, row_dilation: int
) -> None:
    """Fill `ds` `[n, H, W, C]`, float32, with the adjoint of the convolution.

    Args:
        dz: error signal of the outputs, `[n, H', W', C']`. Sums have the type of `dz`.
        w: weights `[rows, C', columns C]`, in the same type.
        ds: filled with the error signal of the inputs.
        kernels, edges, strides, row_dilation: see `convolve`.
    """
    _input_error(dz, _pad_to_vectors(w), ds, kernels[1], *edges, *strides, row_dilation)


def product(a: AnyArray, b: AnyArray) -> AnyArray:
    """The product `a b` of matrices `[n, k]` and `[k, m]` of the same type."""
    columns = b.shape[1]
    padded = _pad_to_vectors(b[None])[0]
    out = empty_memory((len(a), columns), a.dtype.type)
    _product(np.ascontiguousarray(a), padded, out)
    return out


def product_of_rows(a: AnyArray, b: AnyArray) -> AnyArray:
    """The product `a^T b`, `[k, m]`, of matrices `[n, k]` and `[n, m]` of the same type."""
    columns, padded = b.shape[1], _pad_to_vectors(b[None])[0]
    sums = np.zeros((a.shape[1], padded.shape[1]), a.dtype)
    _product_of_rows(np.ascontiguousarray(a), padded, sums)
    return sums[:, :columns]


def _padded_length(channels: int, dtype: np.dtype[Any]) -> int:
    """The number of channels, rounded up to whole vectors."""
    lanes = lanes_of(dtype.itemsize)
    return -(-channels // lanes) * lanes


def _pad_to_vectors(w: AnyArray) -> AnyArray:
    """A copy of `w` whose last axis is padded with zeros to whole vectors."""
    channels = w.shape[2]
    padded = np.zeros((*w.shape[:2], _padded_length(channels, w.dtype)), w.dtype)
    padded[..., :channels] = w
    return padded


@cached_njit(parallel=True, error_model="numpy")
def _product(a: AnyArray, b: AnyArray, out: AnyArray) -> None:
    n, columns = out.shape
    depth, padded_columns = b.shape
    lanes = 64 // a.itemsize
    flat_b, flat_a = b.reshape(-1), a.reshape(-1)
    for block in prange((n + _ROWS - 1) // _ROWS):
        low = block * _ROWS
        rows = min(_ROWS, n - low)
        block_sums = np.zeros((rows, padded_columns), a.dtype)
        for k in range(0, depth, _DEPTH):
            products(
                block_sums.reshape(-1), NONE, padded_columns, flat_a, low * depth + k, NONE, ONE, depth, flat_b,
                k * padded_columns, NONE, padded_columns, ONE, min(_DEPTH, depth - k), rows, padded_columns // lanes,
            )  # fmt: skip
        for i in range(rows):
            for c in range(columns):
                out[low + i, c] = block_sums[i, c]


@cached_njit(parallel=True, error_model="numpy")
def _product_of_rows(a: AnyArray, b: AnyArray, sums: AnyArray) -> None:
    n, count = a.shape
    padded_columns = b.shape[1]
    lanes = 64 // a.itemsize
    flat_b, flat_a, flat_sums = b.reshape(-1), a.reshape(-1), sums.reshape(-1)
    for block in prange((count + _ROWS - 1) // _ROWS):
        low = block * _ROWS
        rows = min(_ROWS, count - low)
        for k in range(0, n, _DEPTH):
            products(
                flat_sums, low * padded_columns, padded_columns, flat_a, k * count + low, NONE, count, ONE, flat_b,
                k * padded_columns, NONE, padded_columns, ONE, min(_DEPTH, n - k), rows, padded_columns // lanes,
            )  # fmt: skip


@cached_njit(parallel=True, error_model="numpy")
def _convolve(
    s: AnyArray,
    w: Float32,
    out: Float32,
    top_padding: int,
    left_padding: int,
    row_stride: int,
    column_stride: int,
    row_dilation: int,
) -> None:
    frames, height, width, channels = out.shape
    rows, window_row, padded_channels = w.shape
    lanes = 64 // w.itemsize
    in_channels, flat_w = s.shape[3], w.reshape(-1)
    frame_row = (s.shape[2] + 2 * left_padding) * in_channels
    for f in prange(frames):
        source = _pad_sides(s[f], left_padding, w).reshape(-1)
        frame_sums = np.zeros((height, width, padded_channels), w.dtype)
        target = frame_sums.reshape(-1)
        for i in range(rows):
            for y in range(height):
                row = y * row_stride - top_padding + i * row_dilation
                if 0 <= row < s.shape[1]:
                    products(
                        target, y * width * padded_channels, padded_channels, source, row * frame_row, NONE, ONE,
                        column_stride * in_channels, flat_w, i * window_row * padded_channels, NONE, padded_channels,
                        ONE, window_row, width, padded_channels // lanes,
                    )  # fmt: skip
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    out[f, y, x, c] = frame_sums[y, x, c]


@cached_njit(parallel=True, error_model="numpy")
def _gradient(
    s: AnyArray,
    dz: AnyArray,
    sums: AnyArray,
    top_padding: int,
    left_padding: int,
    row_stride: int,
    column_stride: int,
    row_dilation: int,
) -> None:
    """Add to `sums` `[threads, rows, columns C, C' in whole vectors]`."""
    frames, height, width, channels = dz.shape
    threads, rows, window_row, padded_channels = sums.shape
    lanes = 64 // sums.itemsize
    in_channels = s.shape[3]
    frame_row = (s.shape[2] + 2 * left_padding) * in_channels
    for thread in prange(threads):
        error, total = np.zeros((height, width, padded_channels), dz.dtype), sums[thread].reshape(-1)
        for f in range(thread * frames // threads, (thread + 1) * frames // threads):
            source = _pad_sides(s[f], left_padding, dz).reshape(-1)
            for y in range(height):
                for x in range(width):
                    for c in range(channels):
                        error[y, x, c] = dz[f, y, x, c]
            for i in range(rows):
                # Output rows for which row `i` of the window is inside the frame.
                first = max(0, (top_padding - i * row_dilation + row_stride - 1) // row_stride)
                last = min(height, (s.shape[1] + top_padding - i * row_dilation + row_stride - 1) // row_stride)
                row = first * row_stride - top_padding + i * row_dilation
                products(
                    total, i * window_row * padded_channels, padded_channels, source, row * frame_row,
                    row_stride * frame_row, column_stride * in_channels, ONE, error.reshape(-1),
                    first * width * padded_channels, width * padded_channels, padded_channels, max(0, last - first),
                    width, window_row, padded_channels // lanes,
                )  # fmt: skip


@cached_njit(parallel=True, error_model="numpy")
def _input_error(
    dz: AnyArray,
    w: AnyArray,
    ds: Float32,
    columns: int,
    top_padding: int,
    left_padding: int,
    row_stride: int,
    column_stride: int,
    row_dilation: int,
) -> None:
    frames, height, width, channels = dz.shape
    rows, _, padded_channels = w.shape
    lanes = 64 // w.itemsize
    in_channels, flat_w = ds.shape[3], w.reshape(-1)
    window_row = columns * in_channels
    band = max(1, min(height, _BAND // (width * padded_channels)))
    for f in prange(frames):
        source, band_sums = dz[f].reshape(-1), np.empty((band * width, padded_channels), dz.dtype)
        total = np.zeros((ds.shape[1], (ds.shape[2] + 2 * left_padding) * in_channels), dz.dtype)
        for low in range(0, height, band):
            count = min(band, height - low)
            for i in range(rows):
                band_sums[:] = 0
                products(
                    band_sums.reshape(-1), NONE, padded_channels, source, low * width * channels, NONE, ONE, channels,
                    flat_w, i * channels * padded_channels, NONE, padded_channels, ONE, channels, count * width,
                    padded_channels // lanes,
                )  # fmt: skip
                for y in range(count):
                    row = (low + y) * row_stride - top_padding + i * row_dilation
                    if 0 <= row < ds.shape[1]:
                        total_row = total[row]
                        for x in range(width):
                            target, pixel_sums = total_row[x * column_stride * in_channels :], band_sums[y * width + x]
                            for q in range(window_row):
                                target[q] += pixel_sums[q]
        for y in range(ds.shape[1]):
            ds[f, y].reshape(-1)[:] = total[y, left_padding * in_channels : (left_padding + ds.shape[2]) * in_channels]


@cached_njit()
def _pad_sides(s: AnyArray, padding: int, same_type: AnyArray) -> AnyArray:
    """A frame `[H, W, C]` in the type of `same_type`, with columns of zeros on both sides."""
    height, width, channels = s.shape
    x = np.zeros((height, width + 2 * padding, channels), same_type.dtype)
    for y in range(height):
        for column in range(width):
            for c in range(channels):
                x[y, column + padding, c] = s[y, column, c]
    return x
