"""The whole backend: every pair of `AbstractBackend`, with numpy arrays as native arrays.

Arrays are float32 whatever they hold, spikes included. Sums of weights and spikes are one einsum each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from stsbp_spec import grid, optim, random
from stsbp_spec.backend import AbstractBackend, Device
from stsbp_spec.equations import Constants
from stsbp_spec.errors import BackendError
from stsbp_spec.expr import Recurrence
from stsbp_spec.grid import WeightGrid
from stsbp_spec.network import Block
from stsbp_spec.printers import LANGUAGES, compiled
from stsbp_spec.synapses import AvgPool2d, Conv2d, Linear
from stsbp_spec.typing import AnyArray, Coding, Float32, Precision, Shape, UInt8

__all__ = ["EinsumBackend"]


@dataclass
class Synapse:
    """What the forward pass of a synapse leaves: its input's windows, `[T, B, H', W', C, k, k]` or `[T, B, N]`."""

    windows: AnyArray
    wq: Float32
    input_shape: Shape


@cache
def _printed(recurrence: Recurrence) -> Callable[..., Any]:
    """One step as a function of parameters, inputs and states, with the words of the language from here."""
    words = {"number": np.float32, "snap": grid.snap, "where": np.where, "sqrt": np.sqrt, "exp": np.exp}
    return compiled(recurrence, LANGUAGES["numpy"], words)


class EinsumBackend(AbstractBackend):
    """Sums by `numpy.einsum`."""

    name: ClassVar[str] = "einsum"

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        return (Device("cpu", f"numpy.einsum, numpy {np.__version__}"),)

    def open(self, device: str | None) -> str:
        if device not in (None, "cpu"):
            raise BackendError(f"backend 'einsum' has the device cpu only, got {device!r}")
        return "cpu"

    def asarray(self, x: AnyArray) -> Float32:
        return x.astype(np.float32)

    def numpy(self, x: Float32) -> Float32:
        return x

    def encode(self, inputs: UInt8, coding: Coding) -> Float32:
        x = inputs.astype(np.float32)
        return x if coding == "events" else x[None] * np.float32(2.0**-8)

    def synapse_forward(self, synapse: Conv2d | Linear, s: Float32, wq: Float32) -> tuple[Float32, Synapse]:
        if type(synapse) is Linear:
            windows = s.reshape(*s.shape[:2], -1)
            return np.einsum("tbn,mn->tbm", windows, wq, optimize=True), Synapse(windows, wq, s.shape)
        if type(synapse) is not Conv2d:
            raise BackendError(f"backend 'einsum' does not know {type(synapse).__name__}")
        pad, k, stride = synapse.padding, synapse.kernel, synapse.stride
        padded = np.pad(s, ((0, 0), (0, 0), (0, 0), (pad, pad), (pad, pad)))
        every = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(3, 4))
        windows = every[:, :, :, ::stride, ::stride]
        return np.einsum("tbcyxij,dcij->tbdyx", windows, wq, optimize=True), Synapse(windows, wq, s.shape)

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Synapse, dz: Float32, *, precision: Precision, need_input: bool
    ) -> tuple[Float32 | None, Float32]:
        # The errors are on a grid in `reproducible` precision; float64 then adds them exactly, in any order.
        kind = np.dtype("float64" if precision == "reproducible" else "float32")
        windows: AnyArray = residuals.windows.astype(kind)
        wq: AnyArray = residuals.wq.astype(kind)
        d: AnyArray = dz.astype(kind)
        if not isinstance(synapse, Conv2d):
            dw = np.einsum("tbm,tbn->mn", d, windows, optimize=True)
            ds = np.einsum("tbm,mn->tbn", d, wq, optimize=True).reshape(residuals.input_shape) if need_input else None
        else:
            dw = np.einsum("tbdyx,tbcyxij->dcij", d, windows, optimize=True)
            ds = self._spread(synapse, residuals.input_shape, d, wq) if need_input else None
        return None if ds is None else ds.astype(np.float32), dw.astype(np.float32)

    def _spread(self, conv: Conv2d, shape: Shape, d: AnyArray, wq: AnyArray) -> AnyArray:
        """The adjoint of reading windows: each error times the kernel, added where its window was read."""
        pad, stride, (rows, columns) = conv.padding, conv.stride, d.shape[3:]
        padded = np.zeros((*shape[:3], shape[3] + 2 * pad, shape[4] + 2 * pad), d.dtype)
        for i in range(conv.kernel):
            for j in range(conv.kernel):
                down, across = (slice(a, a + (n - 1) * stride + 1, stride) for a, n in ((i, rows), (j, columns)))
                padded[:, :, :, down, across] += np.einsum("tbdyx,dc->tbcyx", d, wq[:, :, i, j], optimize=True)
        inside: AnyArray = padded[:, :, :, pad : pad + shape[3], pad : pad + shape[4]]
        return inside

    def avgpool2d_forward(self, pool: AvgPool2d, s: Float32) -> tuple[Float32, Shape]:
        k, (rows, columns) = pool.size, (n // pool.size for n in s.shape[3:])
        windows = s[..., : rows * k, : columns * k].reshape(*s.shape[:3], rows, k, columns, k)
        return np.einsum("tbcyixj->tbcyx", windows) * np.float32(2.0**-pool.exponent), s.shape

    def avgpool2d_backward(self, pool: AvgPool2d, residuals: Shape, d: Float32) -> Float32:
        ds = np.zeros(residuals, np.float32)
        each = (d * np.float32(2.0**-pool.exponent)).repeat(pool.size, axis=3).repeat(pool.size, axis=4)
        ds[..., : each.shape[3], : each.shape[4]] = each
        return ds

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float) -> Float32:
        return random.keep_mask(seed, layer, step, shape, rate).astype(np.float32)

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
        # Neurons, filters, losses and AdamW, whichever they are. numpy rounds once per operation, as the contract asks.
        step = _printed(recurrence)
        parameters = [constants[name] for name in recurrence.parameters]
        arrays = [inputs[name] for name in recurrence.inputs]
        shape = arrays[0].shape[1:]
        states = [np.zeros(shape, np.float32) for _ in recurrence.states]
        found = {name: np.zeros((1 if name in summed else steps, *shape), np.float32) for name in recurrence.outputs}
        for t in range(steps)[:: -1 if recurrence.reverse else 1]:
            states, outputs = step(*parameters, *(x[t if len(x) > 1 else 0] for x in arrays), *states)
            for (name, whole), output in zip(found.items(), outputs, strict=True):
                whole[0 if name in summed else t] = whole[0] + output if name in summed else output
        return found

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w,
            weight_bits=block.synapse.weight_bits,
            input_exponent=block.input.exponent,
            input_max=block.input.maximum,
            layer=block.name,
        )

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, AnyArray]:
        return grid.error_grid(dz, bits)

    def gradient_squares(self, gradients: Sequence[Float32]) -> AnyArray:
        return optim.gradient_squares(gradients)

    def spike_count(self, s: Float32) -> AnyArray:
        return np.asarray(np.count_nonzero(s))
