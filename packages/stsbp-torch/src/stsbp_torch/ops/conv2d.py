"""Implements ops/conv2d.py of the spec by torch's convolutions.

Forward pass: every algorithm that only adds products is exact on the weight grid. On the CPU, oneDNN's direct
convolution is such an algorithm. NNPACK, which torch uses without oneDNN, may choose Winograd or FFT, so it is off
during every call, like modes of reduced precision (TF32, bf16). On CUDA, cuDNN may choose Winograd or FFT. So for each
shape, cuDNN's choice is compared once with a matrix product. If the bits differ, the matrix product is used.

All operands have one memory layout, channels last, with canonical strides also on axes of length 1. With other strides
there, which torch takes for the same layout, oneDNN returns wrong sums.

Backward pass: in `fast` precision, torch chooses the order of sums. In `reproducible` precision, windows are unfolded
and multiplied in float64, where sums are exact.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.typing import Precision, Shape

from stsbp_torch.engine.layout import channels_last, frames, laid_out

__all__ = ["Conv2dSavedTensors", "backward", "exact_math", "forward", "input_error"]

_CHUNK_BYTES = 64 * 2**20
_cudnn_differs: dict[tuple[Conv2d, Shape, str], bool] = {}


class Conv2dSavedTensors(NamedTuple):
    """The input, `[T, B, C, H, W]`, float32, and the weights on their grid."""

    s: torch.Tensor
    wq: torch.Tensor


class _ThreadState(threading.local):
    """Whether this thread is inside `exact_math` already, as whole steps are. Operations then change no settings."""

    exact = False


_thread_state = _ThreadState()


class _Switches:
    """Torch's settings of precision, which all threads share. The first to enter sets them, the last restores them."""

    def __init__(self) -> None:
        backends: Any = torch.backends
        self._nnpack = backends.nnpack
        self._owners = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul, backends.cudnn.conv)
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [owner.fp32_precision for owner in self._owners]
                self._flags = self._nnpack.set_flags(False)
                for owner in self._owners:
                    owner.fp32_precision = "ieee"
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._nnpack.set_flags(*self._flags)
                for owner, precision in zip(self._owners, self._before, strict=True):
                    owner.fp32_precision = precision


_switches = _Switches()


@contextmanager
def exact_math() -> Iterator[None]:
    """Full float32 precision in matrix products and convolutions, whatever the user's process has set.

    `torch.autocast` is off as well.
    """
    if _thread_state.exact:
        yield
        return
    casting = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as switched_off:
        for context in casting:
            switched_off.enter_context(context)
        switched_off.enter_context(_switches)
        _thread_state.exact = True
        try:
            yield
        finally:
            _thread_state.exact = False


def forward(conv: Conv2d, s: torch.Tensor, wq: torch.Tensor) -> tuple[torch.Tensor, Conv2dSavedTensors]:
    """`z = W * s`, `[T, B, C', H', W']`."""
    s = laid_out(s.float())
    x, w = frames(s), channels_last(wq)
    with exact_math():
        if x.device.type != "cpu" and _cudnn_is_inexact(conv, x, w):
            z = _product(conv, x, w)
        else:
            z = _convolve(conv, x, w)
    z = z.permute(0, 2, 3, 1).contiguous()
    z = z.view(*s.shape[:2], *z.shape[1:]).permute(0, 1, 4, 2, 3)
    return z, Conv2dSavedTensors(s, w)


def backward(
    conv: Conv2d,
    residuals: Conv2dSavedTensors,
    dz: torch.Tensor,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """`(ds, dW)` from `dz` `[T, B, C', H', W']`."""
    s, w = residuals
    x, error = frames(s), frames(laid_out(dz))
    if precision == "reproducible":
        dx, dw = _backward_float64(conv, x, w, error, need_input, need_weights)
    else:
        dx, dw = _adjoint(conv, error, x, w, need_input, need_weights)
    ds = _from_frames(dx, s.shape) if dx is not None and need_input else None
    return ds, dw.contiguous() if dw is not None and need_weights else None


# Errors and weights as sums of two bf16 numbers (AMX, same machine and day as conv2d_bytes.py) took 18 ms in place of
# 29 ms for conv2 of CIFAR-10, but 34 ms in place of 29 ms for that of N-MNIST, whose 12 channels do not fill a tile.
def input_error(conv: Conv2d, wq: torch.Tensor, dz: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Only `ds`, of shape `shape`, in `fast` precision."""
    t, b, c, h, width = shape
    x = torch.empty((t * b, h, width, c), dtype=torch.float32, device=dz.device).permute(0, 3, 1, 2)
    return _from_frames(_adjoint(conv, frames(laid_out(dz)), x, wq, True, False)[0], shape)


def _convolve(conv: Conv2d, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The forward convolution by torch, `[n, C', H', W']`."""
    x, w = channels_last(x), channels_last(w)
    if x.shape[1] == 1 and conv.output_shape(tuple(x.shape[1:]))[2] == 1:
        # Of one channel and one output column, oneDNN (torch 2.13) computes wrong sums in channels last, if the stride
        # is above 1. The memory of one channel is the same in the other layout, so this is no copy.
        x, w = (_channels_first(operand) for operand in (x, w))
    return torch.nn.functional.conv2d(x, w, None, conv.strides, conv.paddings, conv.dilations, conv.groups)


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    """A channels-last `[n, 1, H, W]` with the strides of channels first."""
    n, c, h, w = x.shape
    return x.as_strided((n, c, h, w), (h * w, h * w, w, 1))


def _adjoint(
    conv: Conv2d, error: torch.Tensor, x: torch.Tensor, w: torch.Tensor, need_input: bool, need_weights: bool
) -> Any:
    mask = [need_input, need_weights, False]
    geometry = (conv.strides, conv.paddings, conv.dilations, False, [0, 0], conv.groups, mask)
    operands = (channels_last(operand) for operand in (error, x, w))
    with exact_math():
        return torch.ops.aten.convolution_backward(*operands, None, *geometry)[:2]


def _from_frames(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    memory = x.permute(0, 2, 3, 1).contiguous()
    return memory.view(*shape[:2], *memory.shape[1:]).permute(0, 1, 4, 2, 3)


def _windows(conv: Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Unfold `[n, C, H, W]` (channels last) to `[n H' W', rows columns C]`, or by group."""
    (top_padding, left_padding), (row_stride, column_stride), dilations = conv.paddings, conv.strides, conv.dilations
    memory = torch.nn.functional.pad(
        x.permute(0, 2, 3, 1), (0, 0, left_padding, left_padding, top_padding, top_padding)
    )
    view = memory.unfold(1, conv.extents[0], row_stride).unfold(2, conv.extents[1], column_stride)
    view = view[..., :: dilations[0], :: dilations[1]].permute(0, 1, 2, 4, 5, 3)
    n, height, width, *_, channels = view.shape
    return _split_groups(conv, view.reshape(n * height * width, conv.area, channels))


def _split_groups(conv: Conv2d, x: torch.Tensor) -> torch.Tensor:
    """`[n, k, C]` as rows `[n, k C]`, or as `[groups, n, k C / groups]` for several groups."""
    n, k, _ = x.shape
    if conv.groups == 1:
        return x.reshape(n, -1)
    return x.view(n, k, conv.groups, -1).permute(2, 0, 1, 3).reshape(conv.groups, n, -1)


def _merge_groups(conv: Conv2d, rows: torch.Tensor, k: int) -> torch.Tensor:
    """Inverse of `_split_groups`."""
    n = rows.shape[-2]
    if conv.groups == 1:
        return rows.view(n, k, -1)
    return rows.view(conv.groups, n, k, -1).permute(1, 2, 0, 3).reshape(n, k, -1)


def _weight_rows(conv: Conv2d, w: torch.Tensor) -> torch.Tensor:
    """Weights as `[C', fan-in]`, or `[groups, C' / groups, fan-in]` for several groups, in the order of windows."""
    rows = w.permute(0, 2, 3, 1).reshape(len(w), -1)
    return rows if conv.groups == 1 else rows.view(conv.groups, -1, rows.shape[1])


def _chunk(conv: Conv2d, x: torch.Tensor, bytes_per_value: int) -> int:
    _, rows, columns = conv.output_shape(tuple(x.shape[1:]))
    return max(1, _CHUNK_BYTES // (rows * columns * x.shape[1] * conv.area * bytes_per_value))


def _product(conv: Conv2d, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The forward convolution as a matrix product, `[n, C', H', W']` (channels last)."""
    channels, height, width = conv.output_shape(tuple(x.shape[1:]))
    rows = _weight_rows(conv, w).mT.contiguous()
    parts = [_merge_groups(conv, _windows(conv, part) @ rows, 1) for part in torch.split(x, _chunk(conv, x, 4))]
    return torch.cat(parts).view(len(x), height, width, channels).permute(0, 3, 1, 2)


def _cudnn_is_inexact(conv: Conv2d, x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether cuDNN's choice for this shape differs from the matrix product on dense inputs and large weights."""
    key = (conv, tuple(x.shape), torch.cuda.get_device_name(x.device))
    if key not in _cudnn_differs:
        generator = torch.Generator(device=x.device).manual_seed(1)
        spikes = torch.randint(0, 2, x.shape, generator=generator, device=x.device, dtype=torch.float32)
        large_weights = torch.randint(-2047, 2048, w.shape, generator=generator, device=x.device).to(torch.float32)
        _cudnn_differs[key] = not torch.equal(
            _convolve(conv, spikes, large_weights), _product(conv, spikes, large_weights)
        )
    return _cudnn_differs[key]


def _backward_float64(
    conv: Conv2d, x: torch.Tensor, w: torch.Tensor, error: torch.Tensor, need_input: bool, need_weights: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Both products in float64 and in chunks of frames. They are exact because `error` is on its grid."""
    rows = _weight_rows(conv, w).double()
    (top_padding, left_padding), (row_stride, column_stride), dilations = conv.paddings, conv.strides, conv.dilations
    n, c, h, width_in = x.shape
    dw = torch.zeros_like(rows)
    dx = torch.empty((n, h, width_in, c), dtype=torch.float32, device=x.device) if need_input else None
    size = _chunk(conv, x, 8)
    for start in range(0, n, size):
        part, e = x[start : start + size], error[start : start + size].permute(0, 2, 3, 1)
        frames_, height, width, channels = e.shape
        flat = _split_groups(conv, e.reshape(-1, 1, channels)).double()
        if need_weights:
            dw += flat.mT @ _windows(conv, part).double()
        if dx is not None:
            windows = _merge_groups(conv, flat @ rows, conv.area).view(frames_, height, width, *conv.kernels, c)
            sizes = (frames_, h + 2 * top_padding, width_in + 2 * left_padding, c)
            padded = torch.zeros(sizes, dtype=torch.float64, device=x.device)
            for i in range(conv.kernels[0]):
                for j in range(conv.kernels[1]):
                    first_row, first_column = i * dilations[0], j * dilations[1]
                    rows_of = slice(first_row, first_row + (height - 1) * row_stride + 1, row_stride)
                    columns_of = slice(first_column, first_column + (width - 1) * column_stride + 1, column_stride)
                    padded[:, rows_of, columns_of] += windows[:, :, :, i, j]
            dx[start : start + size] = padded[:, top_padding : top_padding + h, left_padding : left_padding + width_in]
    gradient = dw.view(len(w), *conv.kernels, -1).permute(0, 3, 1, 2)
    return (None if dx is None else dx.permute(0, 3, 1, 2)), gradient
