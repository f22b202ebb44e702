"""synapses/conv2d.py of the spec in JAX: unfolded windows and matrix products, chunk of frames by chunk of frames.

Matrix products only add products, so there is no Winograd, FFT or down-converting algorithm to keep out, on any
device; and on the CPU, where a chunk stays in the cache, they are faster than XLA's convolutions.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.typing import Precision, Shape

from stsbp_jax.grid import rounded, wide

__all__ = ["backward", "conv2d", "forward"]

_CHUNK_BYTES = 4 * 2**20


def _unfold(conv: Conv2d, frames: Array) -> Array:
    """`[n, H, W, C]` to windows `[n, H', W', kernel * kernel * C]`."""
    k, pad, stride = conv.kernel, conv.padding, conv.stride
    padded = jnp.pad(frames, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    n, h, w, c = padded.shape
    rows, columns = (h - k) // stride + 1, (w - k) // stride + 1
    ends = (n, stride * (rows - 1) + 1, stride * (columns - 1) + 1, c)
    windows = [
        lax.slice(padded, (0, i, j, 0), (n, i + ends[1], j + ends[2], c), (1, stride, stride, 1))
        for i in range(k)
        for j in range(k)
    ]
    return jnp.concatenate(windows, axis=-1)


def _fold(conv: Conv2d, windows: Array, shape: Shape) -> Array:
    """Adjoint of `_unfold`: sums windows `[n, H', W', kernel * kernel * C]` into `[n, *shape]`, `shape` (H, W, C)."""
    k, pad, stride = conv.kernel, conv.padding, conv.stride
    n, rows, columns, _ = windows.shape
    h, w, c = shape
    total = jnp.zeros((n, h + 2 * pad, w + 2 * pad, c), windows.dtype)
    zero = np.zeros((), windows.dtype)
    for place in range(k * k):
        i, j = divmod(place, k)
        window = windows[..., place * c : (place + 1) * c]
        spread = ((i, h + 2 * pad - i - stride * (rows - 1) - 1), (j, w + 2 * pad - j - stride * (columns - 1) - 1))
        config = ((0, 0, 0), *((low, high, stride - 1) for low, high in spread), (0, 0, 0))
        total = total + lax.pad(window, zero, config)
    return total[:, pad : pad + h, pad : pad + w]


def _rows(w: Array) -> Array:
    """Weights `[C', C, k, k]` as `[k * k * C, C']`, the order of the windows."""
    return w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0])


def _chunks(frames: int, frame_bytes: int) -> int:
    """Number of equal chunks: the fewest that keep one near `_CHUNK_BYTES`, or all frames at once if none divides."""
    for chunks in range(max(1, frames * frame_bytes // _CHUNK_BYTES), frames + 1):
        if frames % chunks == 0:
            return chunks if frames // chunks * frame_bytes > _CHUNK_BYTES // 16 else 1
    return 1


def forward(conv: Conv2d, s: Array, wq: Array) -> Array:
    """`z = W * s`, float32 `[T, B, H', W', C']` from spikes `[T, B, H, W, C]` of any number type."""
    rows = _rows(wq)

    def chunk(frames: Array) -> Array:
        windows = _unfold(conv, frames.astype(np.float32))
        return jnp.matmul(windows, rows, precision=lax.Precision.HIGHEST)

    steps, batch, h, w, c = s.shape
    _, height, width = conv.output_shape((c, h, w))
    n = _chunks(steps * batch, 4 * height * width * rows.shape[0])
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
    """`(ds, dW)`; for `reproducible` products in float64, where every sum is exact, and `dW` stays so."""
    if precision == "reproducible":
        with wide():
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
    rows = _rows(wq).astype(dtype)

    def chunk(dw: Array, at: tuple[Array, Array]) -> tuple[Array, Array | None]:
        frames, error = at
        flat = error.reshape(-1, channels).astype(dtype)
        if need_weights:
            windows = _unfold(conv, frames.astype(dtype)).reshape(flat.shape[0], -1)
            dw = dw + jnp.matmul(flat.T, windows, precision=lax.Precision.HIGHEST)
        if not need_input:
            return dw, None
        back = jnp.matmul(flat, rows.T, precision=lax.Precision.HIGHEST).reshape(-1, height, width, rows.shape[0])
        return dw, _fold(conv, back, (h, w, c)).astype(np.float32)

    n = _chunks(steps * batch, np.dtype(dtype).itemsize * height * width * rows.shape[0])
    at = (s.reshape(n, -1, h, w, c), dz.reshape(n, -1, height, width, channels))
    dw, ds = lax.scan(chunk, jnp.zeros((channels, rows.shape[0]), dtype), at)
    shaped = dw.reshape(channels, conv.kernel, conv.kernel, c).transpose(0, 3, 1, 2)
    return None if ds is None else ds.reshape(s.shape), shaped if need_weights else None


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def conv2d(conv: Conv2d, s: Array, w: Array, precision: Precision = "fast") -> Array:
    """Convolution of spikes, `z = W * s`; differentiable in `s` and `w`.

    Args:
        conv: kernel, stride, padding.
        s: spikes, channels-last `[T, B, H, W, C]`, float32.
        w: weights `[C', C, k, k]`, float32; on their grid (`snap_weights`) for sums that are exact.
        precision: of the backward pass.

    Returns:
        float32 `[T, B, H', W', C']`.
    """
    return forward(conv, s, w)


def _conv2d_forward(conv: Conv2d, s: Array, w: Array, precision: Precision) -> tuple[Array, tuple[Array, Array]]:
    return forward(conv, s, w), (s, w)


def _conv2d_backward(
    conv: Conv2d, precision: Precision, residuals: tuple[Array, Array], dz: Array
) -> tuple[Array | None, Array]:
    ds, dw = backward(conv, *residuals, dz, precision=precision, need_input=True)
    assert dw is not None
    return ds, rounded(dw)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)
