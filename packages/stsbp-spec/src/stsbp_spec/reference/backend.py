"""The numpy backend: the float32 reference with the interface of stsbp_spec.engine.backend, in one file.

Convolutions are matrix products with unfolded windows. They are computed in chunks of frames, which limits the memory.
Pooling adds up windows and multiplies by a power of two. Equations run one step after the other, as printed for numpy.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import numpy as np

from stsbp_spec.contract import grid, random
from stsbp_spec.contract.arrays import NUMPY
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.distributed import host
from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.engine.backend import AbstractBackend, Device
from stsbp_spec.engine.rules import Rule
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import numpy_function
from stsbp_spec.errors import BackendError
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.networks.graph import Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.networks.ops.base import Pool2d
from stsbp_spec.typing import AnyArray, Coding, Float32, Precision, Shape, UInt8

__all__ = [
    "RULES",
    "NumpyBackend",
    "Residuals",
    "by_group",
    "chunks",
    "conv_backward",
    "conv_forward",
    "fold",
    "linear_backward",
    "linear_forward",
    "of_groups",
    "of_windows",
    "pool_backward",
    "pool_forward",
    "pool_windows",
    "recur",
    "unfold",
    "weight_rows",
]

_CHUNK_BYTES = 64 * 2**20


class Residuals(NamedTuple):
    """Input `[T, B, ...]` and the weights on their grid."""

    s: AnyArray
    wq: Float32


def unfold(conv: Conv2d, frames: AnyArray) -> AnyArray:
    """`[n, C, H, W]` to windows `[n, H', W', C * rows * columns]`."""
    padded = np.pad(frames, ((0, 0), (0, 0), *((pad, pad) for pad in conv.paddings)))
    (row_stride, column_stride), (row_dilation, column_dilation) = conv.strides, conv.dilations
    view = np.lib.stride_tricks.sliding_window_view(padded, conv.extents, axis=(2, 3))
    view = view[:, :, ::row_stride, ::column_stride, ::row_dilation, ::column_dilation].transpose(0, 2, 3, 1, 4, 5)
    return view.reshape(*view.shape[:3], -1)


def fold(conv: Conv2d, windows: AnyArray, shape: Shape) -> AnyArray:
    """Adjoint of `unfold`. It adds windows, `[n H' W', C * rows * columns]`, into frames of `shape` `[n, C, H, W]`."""
    n, c, h, w = shape
    _, *sizes = conv.output_shape(shape[1:])
    windows = windows.reshape(n, *sizes, c, *conv.kernels)
    top, left = conv.paddings
    padded = np.zeros((n, c, h + 2 * top, w + 2 * left), windows.dtype)
    axes = list(zip(sizes, conv.strides, conv.dilations, strict=True))
    for tap in np.ndindex(conv.kernels):
        rows, columns = (
            slice(index * dilation, index * dilation + (size - 1) * stride + 1, stride)
            for index, (size, stride, dilation) in zip(tap, axes, strict=True)
        )
        padded[:, :, rows, columns] += windows[..., *tap].transpose(0, 3, 1, 2)
    return padded[:, :, top : top + h, left : left + w]


def by_group(conv: Conv2d, rows: AnyArray) -> AnyArray:
    """Rows `[n, C * k]` of channels as `[groups, n, C / groups * k]`. Unchanged if there is only one group."""
    return rows if conv.groups == 1 else rows.reshape(len(rows), conv.groups, -1).swapaxes(0, 1)


def of_groups(conv: Conv2d, rows: AnyArray) -> AnyArray:
    """Inverse of `by_group`."""
    return rows if conv.groups == 1 else rows.swapaxes(0, 1).reshape(rows.shape[1], -1)


def weight_rows(conv: Conv2d, w: AnyArray) -> AnyArray:
    """Weights `[C', C / groups, rows, columns]` as `[C', fan-in]`; with groups as `[groups, C' / groups, fan-in]`."""
    rows = w.reshape(len(w), -1)
    return rows if conv.groups == 1 else rows.reshape(conv.groups, -1, rows.shape[1])


def chunks(conv: Conv2d, frames: AnyArray, bytes_per_value: int) -> Iterator[slice]:
    """Slices of frames `[n, C, H, W]` whose unfolded windows take about 64 MB."""
    _, rows, columns = conv.output_shape(frames.shape[1:])
    per_frame = rows * columns * frames.shape[1] * conv.area * bytes_per_value
    size = max(1, _CHUNK_BYTES // per_frame)
    return (slice(n, n + size) for n in range(0, len(frames), size))


def conv_forward(conv: Conv2d, s: AnyArray, wq: Float32) -> tuple[Float32, Residuals]:
    """`z = W * s`, `[T, B, C', H', W']`."""
    frames = s.reshape(-1, *s.shape[2:])
    rows = weight_rows(conv, wq).swapaxes(-1, -2)
    z = np.empty((len(frames), *conv.output_shape(s.shape[2:])), np.float32)
    for chunk in chunks(conv, frames, 4):
        windows = unfold(conv, frames[chunk]).astype(np.float32)
        # BLAS may add in any order and fuse operations: sums of multiples of one unit below 2^24 units are exact
        # (grid.py).
        flat = by_group(conv, windows.reshape(-1, windows.shape[-1])) @ rows
        z[chunk] = of_groups(conv, flat).reshape(*windows.shape[:3], -1).transpose(0, 3, 1, 2)
    return z.reshape(*s.shape[:2], *z.shape[1:]), Residuals(s, wq)


def conv_backward(
    conv: Conv2d,
    residuals: Residuals,
    dz: Float32,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Float32 | None, AnyArray | None]:
    """`(ds, dW)`. For `reproducible`, products are in float64, and every sum is exact."""
    dtype: type[np.float32] | type[np.float64] = np.float64 if precision == "reproducible" else np.float32
    s, wq = residuals
    frames = s.reshape(-1, *s.shape[2:])
    errors = dz.reshape(-1, *dz.shape[2:]).transpose(0, 2, 3, 1)
    rows = weight_rows(conv, wq).astype(dtype)
    dw = np.zeros(rows.shape, dtype)
    ds = np.empty(frames.shape, np.float32) if need_input else None
    for chunk in chunks(conv, frames, np.dtype(dtype).itemsize):
        error = errors[chunk].astype(dtype)
        flat: AnyArray = by_group(conv, error.reshape(-1, error.shape[-1]))
        if need_weights:
            unfolded: AnyArray = unfold(conv, frames[chunk]).astype(dtype)
            dw += flat.swapaxes(-1, -2) @ by_group(conv, unfolded.reshape(-1, unfolded.shape[-1]))
        if ds is not None:
            ds[chunk] = fold(conv, of_groups(conv, flat @ rows), (len(error), *s.shape[2:]))
    grad_input = None if ds is None else ds.reshape(s.shape)
    return grad_input, dw.reshape(wq.shape) if need_weights else None


def linear_forward(linear: Linear, s: AnyArray, wq: Float32) -> tuple[Float32, Residuals]:
    """`z = W s`, `[T, B, N]`."""
    flat = s.reshape(s.shape[0] * s.shape[1], -1).astype(np.float32)
    return (flat @ wq.T).reshape(*s.shape[:2], linear.units), Residuals(s, wq)


def linear_backward(
    linear: Linear,
    residuals: Residuals,
    dz: Float32,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Float32 | None, AnyArray | None]:
    """`(ds, dW)`. For `reproducible`, products are in float64, and every sum is exact."""
    dtype = np.float64 if precision == "reproducible" else np.float32
    s, wq = residuals
    error = dz.reshape(-1, linear.units).astype(dtype)
    dw = error.T @ s.reshape(len(error), -1).astype(dtype) if need_weights else None
    ds = (error @ wq.astype(dtype)).astype(np.float32).reshape(s.shape) if need_input else None
    return ds, dw


def pool_windows(pool: Pool2d, s: AnyArray) -> AnyArray:
    """Windows `[..., H // rows, W // columns, rows, columns]` of `[..., H, W]`."""
    (*lead, h, w), (rows, columns) = s.shape, pool.sizes
    cropped = s[..., : h // rows * rows, : w // columns * columns]
    return cropped.reshape(*lead, h // rows, rows, w // columns, columns).swapaxes(-3, -2)


def of_windows(windows: AnyArray, shape: Shape) -> AnyArray:
    """Adjoint of `pool_windows`, of `shape` `[..., H, W]`. Inputs that were in no window are zero."""
    *lead, height, width, rows, columns = windows.shape
    covered = windows.swapaxes(-3, -2).reshape(*lead, height * rows, width * columns)
    out = np.zeros(shape, windows.dtype)
    out[..., : covered.shape[-2], : covered.shape[-1]] = covered
    return out


def pool_forward(pool: AvgPool2d, s: AnyArray) -> tuple[Float32, Shape]:
    """Means or sums of windows, `[T, B, C, H // rows, W // columns]`. The residual is the shape of the input."""
    sums: Float32 = pool_windows(pool, s).sum(axis=(-2, -1), dtype=np.float32)
    return sums * np.float32(2.0**-pool.exponent), s.shape


def pool_backward(pool: AvgPool2d, shape: Shape, d: Float32) -> Float32:
    """Each input gets the error of its window, divided if the mean was taken. Dropped rows and columns get zero."""
    rows, columns = pool.sizes
    ds = np.zeros(shape, d.dtype)
    spread = np.repeat(np.repeat(d * np.float32(2.0**-pool.exponent), rows, axis=-2), columns, axis=-1)
    ds[..., : spread.shape[-2], : spread.shape[-1]] = spread
    return ds


def max_forward(pool: MaxPool2d, s: AnyArray) -> tuple[AnyArray, tuple[Shape, AnyArray]]:
    """The maximum of each window. Residuals: the shape of the input, and the index of each window's first maximum."""
    windows = pool_windows(pool, s)
    windows = windows.reshape(*windows.shape[:-2], pool.area)
    first = windows.argmax(axis=-1)[..., None]
    return np.take_along_axis(windows, first, axis=-1)[..., 0], (s.shape, first)


def max_backward(pool: MaxPool2d, residuals: tuple[Shape, AnyArray], d: Float32) -> Float32:
    """The first maximum of a window gets the window's error."""
    shape, first = residuals
    window_errors = np.where(np.arange(pool.area) == first, d[..., None], np.float32(0))
    return of_windows(window_errors.reshape(*d.shape, *pool.sizes), shape)


def upsample_forward(up: Upsample2d, s: AnyArray) -> tuple[AnyArray, None]:
    """Each input, repeated along rows and columns."""
    rows, columns = up.factors
    return s.repeat(rows, axis=-2).repeat(columns, axis=-1), None


def upsample_backward(up: Upsample2d, residuals: None, d: Float32) -> Float32:
    """The sum of the errors of each block, row by row."""
    rows, columns = up.factors
    blocks = (d[..., i::rows, j::columns] for i in range(rows) for j in range(columns))
    total: Float32 = reduce(np.add, blocks)
    return total


def flat_forward(flatten: Flatten, s: AnyArray) -> tuple[AnyArray, Shape]:
    """`[T, B, N]`. The residual is the shape of the input."""
    return s.reshape(*s.shape[:2], -1), s.shape


def flat_backward(flatten: Flatten, shape: Shape, d: Float32) -> Float32:
    """The same numbers in the shape of the input."""
    return d.reshape(shape)


def recur(
    recurrence: Recurrence,
    constants: Constants,
    inputs: Mapping[str, AnyArray],
    steps: int,
    *,
    summed: tuple[str, ...] = (),
    step: Callable[..., Any] | None = None,
) -> dict[str, AnyArray]:
    """`AbstractBackend.recur`. `step` computes one step; None: the code printed for numpy does."""
    step = step or numpy_function(recurrence)
    parameters = [constants[name] for name in recurrence.parameters]
    arrays = [inputs[name] for name in recurrence.inputs]
    shape = arrays[0].shape[1:]
    states = [np.zeros(shape, np.float32) for _ in recurrence.states]
    arrays_by_name: dict[str, AnyArray] = {
        name: np.zeros((1 if name in summed else steps, *shape), np.uint8 if x.is_condition else np.float32)
        for name, x in recurrence.outputs.items()
    }
    for t in reversed(range(steps)) if recurrence.reverse else range(steps):
        values = (x[t % len(x)].astype(np.float32, copy=False) for x in arrays)
        # Far from the threshold, 1/inf correctly gives 0. 0/0 gives a NaN, which later checks of the results find.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            states, outputs = step(*parameters, *values, *states)
        for (name, sequence), output in zip(arrays_by_name.items(), outputs, strict=True):
            if name in summed:
                # In the order of the loop, because these sums round.
                sequence[0] += output
            else:
                sequence[t] = output
    return arrays_by_name


RULES: Mapping[type[Op], Rule[AnyArray]] = {
    Conv2d: Rule(conv_forward, conv_backward),
    Linear: Rule(linear_forward, linear_backward),
    AvgPool2d: Rule(pool_forward, pool_backward),
    MaxPool2d: Rule(max_forward, max_backward),
    Upsample2d: Rule(upsample_forward, upsample_backward),
    Flatten: Rule(flat_forward, flat_backward),
}


class NumpyBackend(AbstractBackend[AnyArray]):
    """The reference as a backend. It is slow, and all other backends are compared with it."""

    name: ClassVar[str] = "numpy"
    api: ClassVar[int] = 2
    arithmetic = NUMPY

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        return (Device("cpu", f"numpy {np.__version__} on {platform.machine()}"),)

    def open(self, device: str | None) -> str:
        if device not in (None, "cpu"):
            raise BackendError(f"backend 'numpy' has the device cpu only, got {device!r}; use --device cpu")
        return "cpu"

    def asarray(self, x: AnyArray) -> AnyArray:
        return x

    def numpy(self, x: AnyArray) -> AnyArray:
        return x

    def encode(self, inputs: UInt8, coding: Coding) -> AnyArray:
        # Divided by 256 and not by 255, so that inputs are multiples of a power of two.
        return inputs if coding == "events" else inputs[None].astype(np.float32) * np.float32(2.0**-8)

    @property
    def rules(self) -> Mapping[type[Op], Rule[AnyArray]]:
        return RULES

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> UInt8:
        return random.keep_mask(seed, layer, step, shape, rate, first)

    def dropout(self, mask: UInt8, s: AnyArray) -> AnyArray:
        return s * mask

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, AnyArray],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, AnyArray]:
        return recur(recurrence, constants, inputs, steps, summed=summed)

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w,
            weight_bits=projection.synapse.weight_bits,
            input_exponent=projection.input.exponent,
            input_max=projection.input.maximum,
            layer=projection.name,
        )

    def weight_grids(
        self, projections: Sequence[Projection], weights: Sequence[Float32]
    ) -> list[tuple[Float32, WeightGrid]]:
        return [self.weight_grid(projection, w) for projection, w in zip(projections, weights, strict=True)]

    # The host unpacks and packs bits faster than the shifts of a device.
    def unpack(self, frames: PackedFrames) -> UInt8:
        return frames.unpacked()

    def pack_spikes(self, s: AnyArray) -> Any:
        return np.packbits(s.astype(np.uint8, copy=False)), s.shape, s.dtype

    def unpack_spikes(self, packed: Any) -> AnyArray:
        bits, shape, dtype = packed
        return np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(dtype, copy=False)

    def join(self, rendezvous: Rendezvous) -> Collective[AnyArray]:
        return host.join(rendezvous)
