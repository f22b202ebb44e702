"""The ops/conv2d.py of the spec, with kernels/im2col.cu and matrix products. Chunks of frames limit the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.errors import BackendError
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.typing import Precision, Shape

from stsbp_cupy.engine.runtime import Array, Runtime, lanes_of, logical, memory
from stsbp_cupy.ops.weights import channels_first, channels_last_rows

__all__ = ["Conv2dSavedRows", "backward", "forward"]

_LARGEST_COUNT = 2**32 - 1
"""im2col.cu counts the values of frames and windows in 32 bits, whose divisions take a fraction of the time of 64."""
_LETTERS = {np.dtype(np.float16): "f16", np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}


class Conv2dSavedRows(NamedTuple):
    """Input frames `[T, B, H, W, C]`, and weights as rows `[C', fan-in]`; of groups `[groups, C' / groups, fan-in]`."""

    s: Array
    rows: Array


def _geometry(conv: Conv2d, frames: Array) -> tuple[int, ...]:
    """Parameters that the kernels of im2col.cu share."""
    height, width, channels = frames.shape[1:]
    _, rows, columns = conv.output_shape((channels, height, width))
    axes = (*conv.kernels, *conv.strides, *conv.paddings, *conv.dilations)
    return (channels, height, width, rows, columns, *axes, channels // conv.groups, len(frames))


def _chunks(rt: Runtime, conv: Conv2d, frames: Array, itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Slices of frames and of their windows, such that the unfolded windows fit in `chunk_bytes`.

    Raises:
        BackendError: a frame, or its unfolded windows, have more values than the kernels' 32-bit counts.
    """
    channels, height, width, rows, columns, *_ = _geometry(conv, frames)
    windows = rows * columns
    unfolded = windows * conv.area * channels
    counted = max(unfolded, height * width * channels)
    if counted > _LARGEST_COUNT:
        raise BackendError(
            f"convolution {conv}: a frame of {channels} x {height} x {width} has {unfolded} values in its windows, and "
            f"the kernels count to {_LARGEST_COUNT}; make the frame or the kernel smaller"
        )
    size = max(1, min(rt.chunk_bytes // (unfolded * itemsize), _LARGEST_COUNT // counted))
    for n in range(0, len(frames), size):
        end = min(n + size, len(frames))
        yield slice(n, end), slice(n * windows, end * windows)


def _unfold(rt: Runtime, conv: Conv2d, frames: Array, dtype: Any) -> Array:
    """`[n, H, W, C]` to windows `[n H' W', rows columns C]`; groups: `[groups, n H' W', rows columns C / groups]`."""
    group_channels = frames.shape[-1] // conv.groups
    windows = _empty_windows(rt, conv, frames, dtype)
    lanes = (
        4 if lanes_of(group_channels, frames, windows) == 4 else lanes_of(group_channels, frames, windows, max_lanes=2)
    )
    source = "u8" if frames.dtype == np.uint8 else "f32"
    window_words = windows.view(np.uint16) if windows.dtype == np.float16 else windows
    rt.launch(
        f"im2col_{source}_{_LETTERS[windows.dtype]}", windows.size // lanes,
        frames, window_words, windows.size, *_geometry(conv, frames), lanes,
    )  # fmt: skip
    return windows


def _empty_windows(rt: Runtime, conv: Conv2d, frames: Array, dtype: Any) -> Array:
    channels, _, _, rows, columns, *_ = _geometry(conv, frames)
    row = (len(frames) * rows * columns, conv.area * channels // conv.groups)
    return rt.empty(row if conv.groups == 1 else (conv.groups, *row), dtype)


def _split_groups(rt: Runtime, conv: Conv2d, rows: Array) -> Array:
    """`[n, C']` as `[groups, n, C' / groups]`. Unchanged if there is only one group."""
    if conv.groups == 1:
        return rows
    parts: Array = rt.xp.ascontiguousarray(rows.reshape(len(rows), conv.groups, -1).swapaxes(0, 1))
    return parts


def _fold(rt: Runtime, conv: Conv2d, windows: Array, ds: Array) -> None:
    """Adjoint of `_unfold`, into frames `ds` `[n, H, W, C]`."""
    letter = _LETTERS[windows.dtype]
    lanes = lanes_of(ds.shape[-1] // conv.groups, windows, ds, max_lanes=2 if letter == "f64" else 4)
    rt.launch(f"col2im_{letter}", ds.size // lanes, windows, ds, ds.size, *_geometry(conv, ds), lanes)


def forward(rt: Runtime, conv: Conv2d, s: Array, wq: Array) -> tuple[Array, Conv2dSavedRows]:
    """`z = W * s`, `[T, B, C', H', W']`. If `wq` is in half precision, tensor cores compute it."""
    s = memory(rt, s if s.dtype == np.uint8 else s.astype(np.float32, copy=False))
    steps, batch, height, width, channels = s.shape
    frames = s.reshape(-1, height, width, channels)
    rows = channels_last_rows(rt, wq, wq.shape[1:])
    if conv.groups > 1:
        rows = rows.reshape(conv.groups, -1, rows.shape[1])
    _, out_height, out_width = conv.output_shape((channels, height, width))
    z = rt.empty((len(frames) * out_height * out_width, conv.channels), np.float32)
    for chunk, part in _chunks(rt, conv, frames, rows.itemsize):
        windows = _unfold(rt, conv, frames[chunk], rows.dtype)
        if conv.groups == 1:
            rt.gemm(windows, rows.T, z[part])
        else:
            sums = rt.empty((*windows.shape[:2], rows.shape[1]), np.float32)
            rt.gemm(windows, rows.swapaxes(1, 2), sums)
            z[part] = sums.swapaxes(0, 1).reshape(-1, conv.channels)
    return logical(rt, z.reshape(steps, batch, out_height, out_width, conv.channels)), Conv2dSavedRows(s, rows)


def backward(
    rt: Runtime,
    conv: Conv2d,
    residuals: Conv2dSavedRows,
    dz: Array,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Array | None, Array | None]:
    """`(ds, dW)`. For `reproducible`, products are in float64, and every sum is exact."""
    dtype = np.dtype(np.float64 if precision == "reproducible" else np.float32)
    s, rows = residuals
    frames = s.reshape(-1, *s.shape[2:])
    errors = memory(rt, dz).reshape(-1, conv.channels)
    rows = rows.astype(dtype, copy=False)
    dw = rt.xp.zeros(rows.shape, dtype)
    ds = rt.empty(frames.shape, np.float32) if need_input else None
    for chunk, part in _chunks(rt, conv, frames, dtype.itemsize):
        error = _split_groups(rt, conv, errors[part].astype(dtype, copy=False))
        if need_weights:
            windows = _unfold(rt, conv, frames[chunk], dtype)
            rt.gemm(error.swapaxes(-1, -2), windows, dw, accumulate=True)
        else:
            windows = _empty_windows(rt, conv, frames[chunk], dtype)
        if ds is not None:
            rt.gemm(error, rows, windows)
            _fold(rt, conv, windows, ds[chunk])
    grad_input = None if ds is None else logical(rt, ds.reshape(s.shape))
    if not need_weights:
        return grad_input, None
    kernel: Shape = (s.shape[-1] // conv.groups, *conv.kernels)
    return grad_input, channels_first(rt, dw.reshape(conv.channels, -1), kernel, (conv.channels, *kernel))
