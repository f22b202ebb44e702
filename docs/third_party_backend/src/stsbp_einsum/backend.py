"""The whole backend: every abstract member of `AbstractBackend`, with numpy arrays as native arrays.

Spikes are float32, as weights and potentials are. Sums of weights and spikes are one einsum each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from stsbp_spec.contract import random
from stsbp_spec.contract.arrays import ArrayArithmetic, NumpyNames, snap
from stsbp_spec.distributed import host
from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.engine.backend import AbstractBackend, Device
from stsbp_spec.engine.rules import Rule
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import LANGUAGES, compiled
from stsbp_spec.errors import BackendError
from stsbp_spec.networks.graph import Op
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.networks.ops.avgpool2d import Pool2d
from stsbp_spec.typing import AnyArray, Coding, Float32, Precision, Shape, UInt8

__all__ = ["EinsumBackend"]


@dataclass
class Met:
    """What the weights met, `[T, B, g, C, H', W', i, j]` (windows) or `[T, B, N]`, and the input's shape."""

    windows: AnyArray
    wq: Float32
    input_shape: Shape


def _exact(precision: Precision, *arrays: AnyArray) -> list[AnyArray]:
    """The errors are on a grid in `reproducible` precision; float64 then adds them exactly, in any order."""
    return [x.astype("float64" if precision == "reproducible" else "float32") for x in arrays]


def _full(op: Linear, s: Float32, wq: Float32) -> tuple[Float32, Met]:
    windows = s.reshape(*s.shape[:2], -1)
    return np.einsum("tbn,mn->tbm", windows, wq, optimize=True), Met(windows, wq, s.shape)


def _full_back(
    op: Linear, met: Met, dz: Float32, *, precision: Precision, need_input: bool, need_weights: bool = True
) -> tuple[Float32 | None, AnyArray | None]:
    windows, wq, d = _exact(precision, met.windows, met.wq, dz)
    dw = np.einsum("tbm,tbn->mn", d, windows, optimize=True) if need_weights else None
    if not need_input:
        return None, dw
    return np.einsum("tbm,mn->tbn", d, wq, optimize=True).reshape(met.input_shape).astype(np.float32), dw


def _convolution(op: Conv2d, s: Float32, wq: Float32) -> tuple[Float32, Met]:
    (row_stride, column_stride), (row_dilation, column_dilation) = op.strides, op.dilations
    padded = np.pad(s, ((0, 0), (0, 0), (0, 0), *((pad, pad) for pad in op.paddings)))
    all_windows = np.lib.stride_tricks.sliding_window_view(padded, op.extents, axis=(3, 4))
    # Channels and weights in groups that do not see each other, g; one of them, as a rule.
    windows = _groups(op, all_windows[..., ::row_stride, ::column_stride, ::row_dilation, ::column_dilation], axis=2)
    z = np.einsum("tbgcyxij,gdcij->tbgdyx", windows, _groups(op, wq, axis=0), optimize=True)
    return z.reshape(*s.shape[:2], op.channels, *z.shape[4:]), Met(windows, wq, s.shape)


def _groups(op: Conv2d, x: AnyArray, *, axis: int) -> AnyArray:
    return x.reshape(*x.shape[:axis], op.groups, -1, *x.shape[axis + 1 :])


def _convolution_back(
    op: Conv2d, met: Met, dz: Float32, *, precision: Precision, need_input: bool, need_weights: bool = True
) -> tuple[Float32 | None, AnyArray | None]:
    windows, wq, d = _exact(precision, met.windows, _groups(op, met.wq, axis=0), _groups(op, dz, axis=2))
    dw = None
    if need_weights:
        dw = np.einsum("tbgdyx,tbgcyxij->gdcij", d, windows, optimize=True).reshape(met.wq.shape)
    if not need_input:
        return None, dw
    # The adjoint of reading windows: each error times the kernel, added where its window was read.
    (*lead, height, width), (pad_rows, pad_columns) = met.input_shape, op.paddings
    padded = np.zeros((*lead, height + 2 * pad_rows, width + 2 * pad_columns), d.dtype)
    for tap in np.ndindex(op.kernels):
        axes = zip(tap, op.dilations, op.strides, d.shape[-2:], strict=True)
        rows, columns = (
            slice(index * dilation, index * dilation + (size - 1) * stride + 1, stride)
            for index, dilation, stride, size in axes
        )
        contribution = np.einsum("tbgdyx,gdc->tbgcyx", d, wq[..., *tap], optimize=True)
        padded[:, :, :, rows, columns] += contribution.reshape(*lead, *contribution.shape[4:])
    return padded[..., pad_rows : pad_rows + height, pad_columns : pad_columns + width].astype(np.float32), dw


def _windows(op: Pool2d, s: Float32) -> Float32:
    (i, j), (height, width) = op.sizes, s.shape[3:]
    cropped = s[..., : height // i * i, : width // j * j]
    return cropped.reshape(*s.shape[:3], height // i, i, width // j, j)


def _from_windows(windows: Float32, shape: Shape) -> Float32:
    t, b, c, rows, i, columns, j = windows.shape
    ds = np.zeros(shape, np.float32)
    ds[..., : rows * i, : columns * j] = windows.reshape(t, b, c, rows * i, columns * j)
    return ds


def _pooling(op: AvgPool2d, s: Float32) -> tuple[Float32, Shape]:
    return np.einsum("tbcyixj->tbcyx", _windows(op, s)) * np.float32(2.0**-op.exponent), s.shape


def _pooling_back(op: AvgPool2d, shape: Shape, d: Float32) -> Float32:
    return _from_windows(np.einsum("tbcyx,ij->tbcyixj", d, np.full(op.sizes, 2.0**-op.exponent, np.float32)), shape)


def _max_pooling(op: MaxPool2d, s: Float32) -> tuple[Float32, tuple[AnyArray, Shape]]:
    windows = _windows(op, s).swapaxes(4, 5)  # rows and columns of a window come last
    flat = windows.reshape(*windows.shape[:5], op.area)
    return flat.max(-1), (flat.argmax(-1), s.shape)


def _max_pooling_back(op: MaxPool2d, saved: tuple[AnyArray, Shape], d: Float32) -> Float32:
    first, shape = saved
    chosen = np.equal(np.arange(op.area).reshape(op.sizes), first[..., None, None])
    return _from_windows(np.where(chosen, d[..., None, None], np.float32(0)).swapaxes(4, 5), shape)


def _upsampling(op: Upsample2d, s: Float32) -> tuple[Float32, None]:
    return np.kron(s, np.ones(op.factors, np.float32)), None


def _upsampling_back(op: Upsample2d, saved: None, d: Float32) -> Float32:
    rows, columns = op.factors
    # One addition after the other: an einsum promises no order.
    first, *others = (d[..., i::rows, j::columns] for i in range(rows) for j in range(columns))
    return sum(others, first)


@cache
def _printed(recurrence: Recurrence) -> Callable[..., Any]:
    """One step as a function of parameters, inputs and states, with the words of the language from here."""
    words = {"number": np.float32, "snap": snap, "where": np.where, "sqrt": np.sqrt, "exp": np.exp}
    return compiled(recurrence, LANGUAGES["numpy"], words)


class EinsumBackend(AbstractBackend):
    """Sums by `numpy.einsum`."""

    name: ClassVar[str] = "einsum"
    api: ClassVar[int] = 2
    arithmetic = ArrayArithmetic(NumpyNames(np), lambda x, dtype: x.view(dtype), spikes=np.float32)

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        return (Device("cpu", f"numpy.einsum, numpy {np.__version__}"),)

    def open(self, device: str | None) -> str:
        if device not in (None, "cpu"):
            raise BackendError(f"backend 'einsum' has the device cpu only, got {device!r}")
        return "cpu"

    def asarray(self, x: AnyArray) -> AnyArray:
        return x.astype(np.float32) if x.dtype == np.uint8 else x

    def numpy(self, x: Float32) -> Float32:
        return x

    def encode(self, inputs: UInt8, coding: Coding) -> Float32:
        x = inputs.astype(np.float32)
        return x if coding == "events" else x[None] * np.float32(2.0**-8)

    @property
    def rules(self) -> Mapping[type[Op], Rule[Float32]]:
        return {
            Linear: Rule(_full, _full_back),
            Conv2d: Rule(_convolution, _convolution_back),
            AvgPool2d: Rule(_pooling, _pooling_back),
            MaxPool2d: Rule(_max_pooling, _max_pooling_back),
            Upsample2d: Rule(_upsampling, _upsampling_back),
            Flatten: Rule(lambda op, s: (s.reshape(*s.shape[:2], -1), s.shape), lambda op, shape, d: d.reshape(shape)),
        }

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> Float32:
        return random.keep_mask(seed, layer, step, shape, rate, first).astype(np.float32)

    def dropout(self, mask: Float32, s: Float32) -> Float32:
        return s * mask

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, Float32],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, Float32]:
        # Neurons, filters, losses and optimisers, all of them. numpy rounds once per operation, as the contract asks.
        step = _printed(recurrence)
        parameters = [constants[name] for name in recurrence.parameters]
        arrays = [inputs[name] for name in recurrence.inputs]
        shape = arrays[0].shape[1:]
        states = [np.zeros(shape, np.float32) for _ in recurrence.states]
        traces = {name: np.zeros((1 if name in summed else steps, *shape), np.float32) for name in recurrence.outputs}
        for t in range(steps)[:: -1 if recurrence.reverse else 1]:
            states, outputs = step(*parameters, *(x[t if len(x) > 1 else 0] for x in arrays), *states)
            for (name, trace), output in zip(traces.items(), outputs, strict=True):
                trace[0 if name in summed else t] = trace[0] + output if name in summed else output
        return traces

    def join(self, rendezvous: Rendezvous) -> Collective[AnyArray]:
        return host.join(rendezvous)
