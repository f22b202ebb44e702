"""synapses/conv2d.py by unfolding windows and matrix products; in chunks of frames, which bounds memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.typing import AnyArray, Float32, Precision, Shape

__all__ = ["Residuals", "backward", "chunks", "fold", "forward", "unfold"]

_CHUNK_BYTES = 64 * 2**20


class Residuals(NamedTuple):
    """Input `[T, B, C, H, W]` and the weights on their grid."""

    s: AnyArray
    wq: Float32


def unfold(conv: Conv2d, frames: AnyArray) -> AnyArray:
    """`[n, C, H, W]` to windows `[n, H', W', C * kernel * kernel]`."""
    pad = conv.padding
    padded = np.pad(frames, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (conv.kernel, conv.kernel), axis=(2, 3))
    view = view[:, :, :: conv.stride, :: conv.stride].transpose(0, 2, 3, 1, 4, 5)
    return view.reshape(*view.shape[:3], -1)


def fold(conv: Conv2d, windows: AnyArray, shape: Shape) -> AnyArray:
    """Adjoint of `unfold`: sums windows, `[n H' W', C * kernel * kernel]`, into frames of `shape` `[n, C, H, W]`."""
    n, c, h, w = shape
    k, pad, stride = conv.kernel, conv.padding, conv.stride
    _, height, width = conv.output_shape(shape[1:])
    windows = windows.reshape(n, height, width, c, k, k)
    padded = np.zeros((n, c, h + 2 * pad, w + 2 * pad), windows.dtype)
    for i in range(k):
        for j in range(k):
            down = slice(i, i + (height - 1) * stride + 1, stride)
            across = slice(j, j + (width - 1) * stride + 1, stride)
            padded[:, :, down, across] += windows[:, :, :, :, i, j].transpose(0, 3, 1, 2)
    return padded[:, :, pad : pad + h, pad : pad + w]


def chunks(conv: Conv2d, frames: AnyArray, bytes_per_value: int) -> Iterator[slice]:
    """Runs of frames `[n, C, H, W]` whose unfolded windows take some 64 MB."""
    _, rows, columns = conv.output_shape(frames.shape[1:])
    per_frame = rows * columns * frames.shape[1] * conv.kernel**2 * bytes_per_value
    size = max(1, _CHUNK_BYTES // per_frame)
    return (slice(n, n + size) for n in range(0, len(frames), size))


def forward(conv: Conv2d, s: AnyArray, wq: Float32) -> tuple[Float32, Residuals]:
    """`z = W * s`, `[T, B, C', H', W']`."""
    frames = s.reshape(-1, *s.shape[2:])
    rows = wq.reshape(len(wq), -1).T
    z = np.empty((len(frames), *conv.output_shape(s.shape[2:])), np.float32)
    for chunk in chunks(conv, frames, 4):
        z[chunk] = (unfold(conv, frames[chunk]).astype(np.float32) @ rows).transpose(0, 3, 1, 2)
    return z.reshape(*s.shape[:2], *z.shape[1:]), Residuals(s, wq)


def backward(
    conv: Conv2d, residuals: Residuals, dz: Float32, *, precision: Precision, need_input: bool
) -> tuple[Float32 | None, Float32]:
    """`(ds, dW)`; products in float64 for `reproducible`, where every sum is exact."""
    dtype: type[np.float32] | type[np.float64] = np.float64 if precision == "reproducible" else np.float32
    s, wq = residuals
    frames = s.reshape(-1, *s.shape[2:])
    errors = dz.reshape(-1, *dz.shape[2:]).transpose(0, 2, 3, 1)
    rows = wq.reshape(len(wq), -1).astype(dtype)
    dw = np.zeros(rows.shape, dtype)
    ds = np.empty(frames.shape, np.float32) if need_input else None
    for chunk in chunks(conv, frames, np.dtype(dtype).itemsize):
        error = errors[chunk].astype(dtype)
        flat: AnyArray = error.reshape(-1, error.shape[-1])
        unfolded: AnyArray = unfold(conv, frames[chunk]).reshape(len(flat), -1).astype(dtype)
        dw += flat.T @ unfolded
        if ds is not None:
            ds[chunk] = fold(conv, flat @ rows, (len(error), *s.shape[2:]))
    back = None if ds is None else ds.reshape(s.shape)
    return back, dw.astype(np.float32).reshape(wq.shape)
