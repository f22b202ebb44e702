"""The whole backend: every pair of `AbstractBackend`, with numpy arrays as native arrays.

Arrays are float32 whatever they hold, spikes included. Sums of weights and spikes are one einsum each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from stsbp_spec import grid, optim, random
from stsbp_spec.backend import AbstractBackend, Device
from stsbp_spec.errors import BackendError
from stsbp_spec.grid import WeightGrid, snap
from stsbp_spec.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.network import Block
from stsbp_spec.neurons import LIF
from stsbp_spec.optim import AdamWScalars
from stsbp_spec.synapses import PSP, AvgPool2d, Conv2d, Filter, Linear
from stsbp_spec.typing import AnyArray, Coding, Float32, Precision, Shape, UInt8

__all__ = ["EinsumBackend"]


@dataclass
class Synapse:
    """What the forward pass of a synapse leaves: its input's windows, `[T, B, H', W', C, k, k]` or `[T, B, N]`."""

    windows: AnyArray
    wq: Float32
    input_shape: Shape


@dataclass
class Neurons:
    """Membrane potentials and spikes `[T, B, ...]`, and whether one `z` served all steps."""

    u: Float32
    o: Float32
    static: bool


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

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[Float32, Neurons]:
        # The contract's order of stsbp_spec/neurons/lif.py; numpy rounds once per operation, as it asks.
        u, o = (np.empty((steps, *z.shape[1:]), np.float32) for _ in range(2))
        i, m = (np.zeros(z.shape[1:], np.float32) for _ in range(2))
        for t in range(steps):
            i = snap(filter.decay * i + filter.gain * z[t if len(z) > 1 else 0])
            u[t] = snap(m + i)
            o[t] = u[t] >= np.float32(neuron.threshold)
            m = np.where(o[t] > 0, np.float32(0), neuron.decay * u[t])
        return o, Neurons(u, o, static=len(z) == 1 and steps > 1)

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: Neurons, ds: Float32) -> Float32:
        u, o = residuals.u, residuals.o
        dz = np.zeros((1, *u.shape[1:]) if residuals.static else u.shape, np.float32)
        d, e = (np.zeros(u.shape[1:], np.float32) for _ in range(2))
        for t in reversed(range(len(u))):
            d1 = snap(neuron.decay * d)
            h = neuron.surrogate.derivative(u[t] - np.float32(neuron.threshold))
            d = snap(h * (ds[t] - snap(u[t] * d1))) + np.where(o[t] > 0, np.float32(0), d1)
            e = snap(filter.decay * e + d)
            dz[0 if residuals.static else t] += filter.gain * e
        return dz

    def neuron_potentials(self, residuals: Neurons) -> Float32:
        return residuals.u

    def psp_forward(self, psp: PSP, s: Float32) -> Float32:
        return self._filtered(psp.filter(), s)

    def psp_backward(self, psp: PSP, da: Float32) -> Float32:
        filter = psp.filter()
        e = self._filtered(Filter(filter.decay, np.float32(1)), da[::-1])
        return filter.gain * e[::-1]

    def _filtered(self, filter: Filter, x: Float32) -> Float32:
        a = np.zeros(x.shape, np.float32)
        for t in range(len(x)):
            a[t] = snap(filter.decay * (a[t - 1] if t else a[t]) + filter.gain * x[t])
        return a

    def loss_error(self, loss: Loss, psp: PSP, s: Float32, targets: Float32) -> Float32:
        steps, batch = s.shape[:2]
        if type(loss) is VanRossum:
            filter = psp.filter()
            r = self._filtered(filter, s - targets)
            e = self._filtered(Filter(filter.decay, np.float32(1)), r[::-1])[::-1]
            return psp.filter(1 / batch).gain * e
        if type(loss) is Hamming:
            return np.float32(1 / batch) * (s - targets)
        if type(loss) is SpikeCount:
            difference = s.sum(axis=0) - targets.sum(axis=0)
            return np.broadcast_to(np.float32(1 / (steps * steps * batch)) * difference, s.shape)
        raise BackendError(f"backend 'einsum' does not know the loss {type(loss).__name__}")

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w,
            weight_bits=block.layer.weight_bits,
            input_exponent=block.input_exponent,
            input_max=block.input_max,
            layer=block.name,
        )

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, AnyArray]:
        return grid.error_grid(dz, bits)

    def gradient_norm(self, gradients: Sequence[Float32]) -> float:
        return optim.gradient_norm(gradients)

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        c = scalars
        g = snap(g * c.clip)
        m = snap(c.beta1 * m + c.one_minus_beta1 * g)
        v = snap(c.beta2 * v + c.one_minus_beta2 * (g * g))
        return c.decay * w - c.rate * ((m * c.c1) / (np.sqrt(v * c.c2) + c.eps)), m, v

    def spike_rate(self, s: Float32) -> float:
        spikes: Any = np.count_nonzero(s)
        return int(spikes) / math.prod(s.shape)
