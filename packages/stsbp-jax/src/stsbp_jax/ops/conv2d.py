"""Implements ops/conv2d.py of the spec in JAX: matrix products of unfolded windows, in chunks of frames.

Matrix products only add products. So on no device do we have to exclude a Winograd, FFT or down-converting algorithm.
On the CPU, where a chunk stays in the cache, matrix products are faster than XLA's convolutions.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.engine.checks import check_precision_name
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.typing import Precision, Shape

from stsbp_jax.contract.grid import enable_x64, rounded
from stsbp_jax.distributed.replication import match_replication
from stsbp_jax.engine.checks import check_operation
from stsbp_jax.engine.compiling import pair

__all__ = ["backward", "conv2d", "forward"]

_CHUNK_BYTES = 4 * 2**20


def _unfold(conv: Conv2d, frames: Array) -> Array:
    """Unfold frames `[n, H, W, C]` to windows `[n, H', W', rows * columns * C]`."""
    (top_padding, left_padding), (row_stride, column_stride) = conv.paddings, conv.strides
    n, h, w, c = frames.shape
    _, rows, columns = conv.output_shape((c, h, w))
    padded = jnp.pad(frames, ((0, 0), (top_padding, top_padding), (left_padding, left_padding), (0, 0)))
    extents = (n, row_stride * (rows - 1) + 1, column_stride * (columns - 1) + 1, c)
    windows = [
        lax.slice(padded, (0, i, j, 0), (n, i + extents[1], j + extents[2], c), (1, row_stride, column_stride, 1))
        for i, j in _kernel_offsets(conv)
    ]
    return jnp.concatenate(windows, axis=-1)


def _kernel_offsets(conv: Conv2d) -> list[tuple[int, int]]:
    """Row and column offset on the input of each weight of the kernel, row by row."""
    (rows, columns), (row_dilation, column_dilation) = conv.kernels, conv.dilations
    return [(i * row_dilation, j * column_dilation) for i in range(rows) for j in range(columns)]


def _fold(conv: Conv2d, windows: Array, shape: Shape) -> Array:
    """Adjoint of `_unfold`: sums windows `[n, H', W', rows * columns * C]` to `[n, *shape]`; `shape` is (H, W, C)."""
    (top_padding, left_padding), (row_stride, column_stride) = conv.paddings, conv.strides
    n, rows, columns, _ = windows.shape
    h, w, c = shape
    total = jnp.zeros((n, h + 2 * top_padding, w + 2 * left_padding, c), windows.dtype)
    zero = np.zeros((), windows.dtype)
    for number, (i, j) in enumerate(_kernel_offsets(conv)):
        window = windows[..., number * c : (number + 1) * c]
        end_padding = (
            h + 2 * top_padding - i - row_stride * (rows - 1) - 1,
            w + 2 * left_padding - j - column_stride * (columns - 1) - 1,
        )
        config = ((0, 0, 0), (i, end_padding[0], row_stride - 1), (j, end_padding[1], column_stride - 1), (0, 0, 0))
        total = total + lax.pad(window, zero, config)
    return total[:, top_padding : top_padding + h, left_padding : left_padding + w]


def _rows(conv: Conv2d, w: Array) -> Array:
    """Weights `[C', C / groups, ...]` as `[fan-in, C']` in the order of windows; several groups: `[groups, ...]`."""
    rows = w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0])
    return rows if conv.groups == 1 else rows.reshape(len(rows), conv.groups, -1).transpose(1, 0, 2)


def _split_groups(conv: Conv2d, x: Array, k: int) -> Array:
    """`[..., k * C]` as rows, or as `[groups, n, k * C / groups]` for several groups."""
    if conv.groups == 1:
        return x.reshape(-1, x.shape[-1])
    parts = x.reshape(-1, k, conv.groups, x.shape[-1] // (k * conv.groups)).transpose(2, 0, 1, 3)
    return parts.reshape(*parts.shape[:2], -1)


def _merge_groups(conv: Conv2d, rows: Array, k: int) -> Array:
    """Inverse of `_split_groups`, `[n, k * C]`."""
    if conv.groups == 1:
        return rows
    parts = rows.reshape(*rows.shape[:2], k, -1).transpose(1, 2, 0, 3)
    return parts.reshape(parts.shape[0], -1)


def _chunks(frames: int, frame_bytes: int) -> int:
    """Number of equal chunks of about `_CHUNK_BYTES`; 1 if the frames cannot be divided into such chunks."""
    for chunks in range(max(1, frames * frame_bytes // _CHUNK_BYTES), frames + 1):
        if frames % chunks == 0:
            return chunks if frames // chunks * frame_bytes > _CHUNK_BYTES // 16 else 1
    return 1


def forward(conv: Conv2d, s: Array, wq: Array) -> Array:
    """`z = W * s`, float32 `[T, B, H', W', C']` from spikes `[T, B, H, W, C]` of any number type."""
    rows = _rows(conv, wq)

    def chunk(frames: Array) -> Array:
        windows = _unfold(conv, frames.astype(np.float32))
        if conv.groups == 1:
            return jnp.matmul(windows, rows, precision=lax.Precision.HIGHEST)
        flat = jnp.matmul(_split_groups(conv, windows, conv.area), rows, precision=lax.Precision.HIGHEST)
        return _merge_groups(conv, flat, 1)

    steps, batch, h, w, c = s.shape
    _, height, width = conv.output_shape((c, h, w))
    n = _chunks(steps * batch, 4 * height * width * conv.area * c)
    z: Array = lax.map(chunk, s.reshape(n, -1, h, w, c))
    return z.reshape(steps, batch, height, width, conv.channels)


def backward(
    conv: Conv2d,
    s: Array,
    wq: Array,
    dz: Array,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Array | None, Array | None]:
    """`(ds, dW)`. In `reproducible` precision, products are float64, every sum is exact, and `dW` stays float64."""
    if precision == "reproducible":
        with enable_x64():
            return _backward(conv, s, wq, dz, np.float64, need_input, need_weights)
    return _backward(conv, s, wq, dz, np.float32, need_input, need_weights)


def _backward(
    conv: Conv2d,
    s: Array,
    wq: Array,
    dz: Array,
    dtype: type[np.float32] | type[np.float64],
    need_input: bool,
    need_weights: bool,
) -> tuple[Array | None, Array | None]:
    steps, batch, h, w, c = s.shape
    height, width, channels = dz.shape[2:]
    rows = _rows(conv, wq).astype(dtype)

    def chunk(dw: Array, chunk_arrays: tuple[Array, Array]) -> tuple[Array, Array | None]:
        frames, error = chunk_arrays
        flat = _split_groups(conv, error, 1).astype(dtype)
        if need_weights:
            windows = _split_groups(conv, _unfold(conv, frames.astype(dtype)), conv.area)
            dw = dw + jnp.matmul(flat.mT, windows, precision=lax.Precision.HIGHEST)
        if not need_input:
            return dw, None
        grad_windows = _merge_groups(conv, jnp.matmul(flat, rows.mT, precision=lax.Precision.HIGHEST), conv.area)
        return dw, _fold(conv, grad_windows.reshape(-1, height, width, conv.area * c), (h, w, c)).astype(np.float32)

    n = _chunks(steps * batch, np.dtype(dtype).itemsize * height * width * conv.area * c)
    chunks = (s.reshape(n, -1, h, w, c), dz.reshape(n, -1, height, width, channels))
    dw, ds = lax.scan(chunk, match_replication(jnp.zeros(rows.mT.shape, dtype), chunks, rows), chunks)
    shaped = dw.reshape(channels, *conv.kernels, -1).transpose(0, 3, 1, 2)
    return None if ds is None else ds.reshape(s.shape), shaped if need_weights else None


def conv2d(conv: Conv2d, s: Array, w: Array, precision: Precision = "fast") -> Array:
    """Convolution of spikes, `z = W * s`; differentiable in `s` and `w`.

    Args:
        conv: kernel, stride, padding, dilation and groups.
        s: spikes, channels last, `[T, B, H, W, C]`, float32.
        w: weights `[C', C / groups, rows, columns]`, float32. If they are on their grid (`snap_weights`), sums are
            exact.
        precision: precision of the backward pass.

    Returns:
        float32 `[T, B, H', W', C']`.

    Raises:
        ShapeError: `s` or `w` is not an array of numbers with these axes.
        SpecError: the kernel is larger than the input, or the precision is unknown.
    """
    check_precision_name(precision)
    check_operation(conv, s, w)
    z: Array = _conv2d(conv, precision, *match_replication((s, w)))
    return z


def _vjp_forward(conv: Conv2d, precision: Precision, s: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return forward(conv, s, w), (s, w)


def _vjp_backward(
    conv: Conv2d, precision: Precision, residuals: tuple[Array, Array], dz: Array
) -> tuple[Array | None, Array]:
    ds, dw = backward(conv, *residuals, dz, precision=precision, need_input=True)
    assert dw is not None
    return ds, rounded(dw)


_conv2d = pair(2, _vjp_forward, _vjp_backward)
