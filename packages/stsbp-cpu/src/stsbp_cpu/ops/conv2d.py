"""Implements ops/conv2d.py of the spec for inputs that are not sparse.

Most convolutions use dense.py. Convolutions with groups or dilated columns are matrix products of unfolded windows
instead, in chunks of frames and with numpy's BLAS. In the forward pass, sums on the weight grid are exact in any order.
In the backward pass, sums are float64 in `reproducible` precision, where each sum is exact. Frames are channels last,
`[n, H, W, C]`, and windows are rows, `[n H' W', rows columns C]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import prange
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.typing import AnyArray, Float32, Precision, Shape

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.layout import NUMPY
from stsbp_cpu.ops import dense

__all__ = ["Conv2dSaved", "backward", "forward", "input_error", "is_plain"]

_CHUNK_BYTES = 4 * 2**20
"""Bytes of unfolded windows in a chunk. They stay in a second-level cache or close to it."""


class Conv2dSaved(NamedTuple):
    """The input, `[T, B, C, H, W]`, and the weights on their grid."""

    s: AnyArray
    wq: Float32


def forward(conv: Conv2d, s: AnyArray, wq: Float32) -> tuple[Float32, Conv2dSaved]:
    """`z = W * s`, `[T, B, C', H', W']`."""
    s = NUMPY.laid_out(s)
    z = NUMPY.empty((*s.shape[:2], *conv.output_shape(s.shape[2:])), np.float32)
    frames, sums = NUMPY.frames(s), NUMPY.frames(z)
    if is_plain(conv):
        dense.convolve(frames, wq.transpose(2, 3, 1, 0).reshape(conv.kernels[0], -1, len(wq)), sums, *_geometry(conv))
        return z, Conv2dSaved(s, wq)
    weight_rows = _weight_rows(conv, wq).swapaxes(-1, -2)
    for chunk in _chunks(conv, frames, 4):
        windows, out = _split_groups(conv, _windows(conv, frames[chunk], np.float32)), sums[chunk]
        out[...] = _merge_groups(conv, windows @ weight_rows, 1).reshape(out.shape)
    return z, Conv2dSaved(s, wq)


def backward(
    conv: Conv2d,
    residuals: Conv2dSaved,
    dz: Float32,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Float32 | None, AnyArray | None]:
    """`(ds, dW)` from `dz` `[T, B, C', H', W']`."""
    s, wq = residuals
    frames, errors = NUMPY.frames(NUMPY.laid_out(s)), NUMPY.frames(NUMPY.laid_out(dz))
    dtype = np.float64 if precision == "reproducible" else np.float32
    if is_plain(conv):
        ds = _input_error(conv, wq, dz, s.shape, dtype) if need_input else None
        if not need_weights:
            return ds, None
        gradient = dense.gradient(frames, errors.astype(dtype, copy=False), *_geometry(conv)).reshape(
            *conv.kernels, -1, len(wq)
        )
        return ds, np.ascontiguousarray(gradient.transpose(3, 2, 0, 1))
    weight_rows = _weight_rows(conv, wq).astype(dtype)
    total = np.zeros(weight_rows.shape, dtype)
    ds = NUMPY.empty(s.shape, np.float32) if need_input else None
    for chunk in _chunks(conv, frames, np.dtype(dtype).itemsize):
        error = errors[chunk].astype(dtype, copy=False)
        flat = _split_groups(conv, error.reshape(-1, 1, error.shape[-1]))
        if need_weights:
            total += flat.swapaxes(-1, -2) @ _split_groups(conv, _windows(conv, frames[chunk], dtype))
        if ds is not None:
            _fold(conv, _merge_groups(conv, flat @ weight_rows, conv.area), error.shape, NUMPY.frames(ds)[chunk])
    if not need_weights:
        return ds, None
    return ds, np.ascontiguousarray(total.reshape(len(wq), *conv.kernels, -1).transpose(0, 3, 1, 2))


def input_error(conv: Conv2d, wq: Float32, dz: Float32, shape: Shape) -> Float32:
    """Only `ds`, of shape `shape`, in `fast` precision."""
    if not is_plain(conv):
        nothing = np.broadcast_to(np.float32(0), shape)
        ds, _ = backward(conv, Conv2dSaved(nothing, wq), dz, precision="fast", need_input=True, need_weights=False)
        assert ds is not None
        return ds
    return _input_error(conv, wq, dz, shape, np.float32)


def _input_error(conv: Conv2d, wq: Float32, dz: Float32, shape: Shape, dtype: type[np.floating]) -> Float32:
    """`input_error` of a convolution that `is_plain`, with sums in `dtype`."""
    ds, errors = NUMPY.empty(shape, np.float32), NUMPY.frames(NUMPY.laid_out(dz)).astype(dtype, copy=False)
    weight_rows = wq.transpose(2, 0, 3, 1).reshape(conv.kernels[0], len(wq), -1).astype(dtype, copy=False)
    dense.input_error(errors, weight_rows, NUMPY.frames(ds), *_geometry(conv))
    return ds


def is_plain(conv: Conv2d) -> bool:
    """Whether a row of the window is contiguous in memory."""
    return conv.groups == 1 and conv.dilations[1] == 1


def _geometry(conv: Conv2d) -> tuple[Shape, Shape, Shape, int]:
    return conv.kernels, conv.paddings, conv.strides, conv.dilations[0]


def _chunks(conv: Conv2d, frames: AnyArray, bytes_per_value: int) -> Iterator[slice]:
    """Slices of the frames, such that the unfolded windows of each slice take a few megabytes."""
    n, height, width, channels = frames.shape
    _, rows, columns = conv.output_shape((channels, height, width))
    size = max(1, _CHUNK_BYTES // (rows * columns * channels * conv.area * bytes_per_value))
    return (slice(low, low + size) for low in range(0, n, size))


def _weight_rows(conv: Conv2d, w: Float32) -> Float32:
    """Weights as `[C', fan-in]`, or `[groups, C' / groups, fan-in]` for several groups, in the order of windows."""
    rows = np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(len(w), -1)
    return rows if conv.groups == 1 else rows.reshape(conv.groups, -1, rows.shape[1])


def _split_groups(conv: Conv2d, x: AnyArray) -> AnyArray:
    """`[n, k, C]` as rows `[n, k C]`, or as `[groups, n, k C / groups]` for several groups."""
    n, k, _ = x.shape
    if conv.groups == 1:
        return x.reshape(n, -1)
    return x.reshape(n, k, conv.groups, -1).transpose(2, 0, 1, 3).reshape(conv.groups, n, -1)


def _merge_groups(conv: Conv2d, rows: AnyArray, k: int) -> AnyArray:
    """Inverse of `_split_groups`."""
    n = rows.shape[-2]
    if conv.groups == 1:
        return rows.reshape(n, k, -1)
    return rows.reshape(conv.groups, n, k, -1).transpose(1, 2, 0, 3).reshape(n, k, -1)


def _windows(conv: Conv2d, frames: AnyArray, dtype: type[np.floating]) -> AnyArray:
    """Unfold frames `[n, H, W, C]` to windows `[n H' W', rows columns, C]`."""
    n, height, width, channels = frames.shape
    _, out_height, out_width = conv.output_shape((channels, height, width))
    out = np.empty((n, out_height, out_width, *conv.kernels, channels), dtype)
    _unfold(frames, out, *conv.paddings, *conv.strides, *conv.dilations)
    return out.reshape(-1, conv.area, channels)


def _fold(conv: Conv2d, windows: AnyArray, sizes: Shape, out: Float32) -> None:
    """Fill `out` `[n, H, W, C]` with sums of windows `[n H' W', rows columns, C]`; `sizes` are `(n, H', W', .)`."""
    _add_windows(windows.reshape(*sizes[:3], *conv.kernels, -1), out, *conv.paddings, *conv.strides, *conv.dilations)


@cached_njit(parallel=True)
def _unfold(
    s: AnyArray,
    out: AnyArray,
    top_padding: int,
    left_padding: int,
    row_stride: int,
    column_stride: int,
    row_dilation: int,
    column_dilation: int,
) -> None:
    """Fill `out` `[n, H', W', rows, columns, C]` with the windows of `s` `[n, H, W, C]`, zeros beyond its edges."""
    frames, height, width, rows, columns, channels = out.shape
    for f in prange(frames):
        for y in range(height):
            for x in range(width):
                for i in range(rows):
                    row = y * row_stride - top_padding + i * row_dilation
                    for j in range(columns):
                        column = x * column_stride - left_padding + j * column_dilation
                        target = out[f, y, x, i, j]
                        if 0 <= row < s.shape[1] and 0 <= column < s.shape[2]:
                            pixel = s[f, row, column]
                            for c in range(channels):
                                target[c] = pixel[c]
                        else:
                            for c in range(channels):
                                target[c] = 0


@cached_njit(parallel=True)
def _add_windows(
    windows: AnyArray, out: Float32, top_padding: int, left_padding: int, row_stride: int, column_stride: int,
    row_dilation: int, column_dilation: int,
) -> None:  # fmt: skip
    """Adjoint of `_unfold`. Sums have the type of `windows`, `[n, H', W', rows, columns, C]`, and are rounded once."""
    frames, height, width, rows, columns, channels = windows.shape
    for f in prange(frames):
        total = np.zeros(out.shape[1:], windows.dtype)
        for y in range(height):
            for x in range(width):
                for i in range(rows):
                    row = y * row_stride - top_padding + i * row_dilation
                    for j in range(columns):
                        column = x * column_stride - left_padding + j * column_dilation
                        if 0 <= row < out.shape[1] and 0 <= column < out.shape[2]:
                            target, pixel = total[row, column], windows[f, y, x, i, j]
                            for c in range(channels):
                                target[c] += pixel[c]
        out[f] = total
