"""The numpy backend: the float32 reference behind the interface of stsbp_spec.backend."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from stsbp_spec import grid, random
from stsbp_spec.backend import AbstractBackend, Device
from stsbp_spec.errors import BackendError
from stsbp_spec.grid import WeightGrid
from stsbp_spec.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.network import Block
from stsbp_spec.neurons.lif import LIF
from stsbp_spec.optim.adamw import AdamWScalars, gradient_norm
from stsbp_spec.reference.losses import hamming, spike_count, van_rossum
from stsbp_spec.reference.neurons import lif
from stsbp_spec.reference.optim import adamw
from stsbp_spec.reference.synapses import avgpool2d, conv2d, linear, psp
from stsbp_spec.synapses import PSP, AvgPool2d, Conv2d, Filter, Linear
from stsbp_spec.tables import implementation
from stsbp_spec.typing import AnyArray, Coding, Float32, Int64, Precision, Shape, UInt8

__all__ = ["NumpyBackend"]

_SYNAPSES: dict[type, Any] = {Conv2d: conv2d, Linear: linear}
_LOSSES: dict[type, Any] = {VanRossum: van_rossum, Hamming: hamming, SpikeCount: spike_count}


class NumpyBackend(AbstractBackend):
    """The reference as a backend: slow, and the measure of all others."""

    name: ClassVar[str] = "numpy"

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
        return inputs if coding == "events" else inputs[None].astype(np.float32) * np.float32(2.0**-8)

    def synapse_forward(self, synapse: Conv2d | Linear, s: AnyArray, wq: Float32) -> tuple[Float32, Any]:
        z, residuals = implementation(self.name, _SYNAPSES, synapse, "synapse").forward(synapse, s, wq)
        return z, residuals

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Float32, *, precision: Precision, need_input: bool
    ) -> tuple[Float32 | None, Float32]:
        ds, dw = implementation(self.name, _SYNAPSES, synapse, "synapse").backward(
            synapse, residuals, dz, precision=precision, need_input=need_input
        )
        return ds, dw

    def avgpool2d_forward(self, pool: AvgPool2d, s: AnyArray) -> tuple[Float32, Any]:
        return avgpool2d.forward(pool, s)

    def avgpool2d_backward(self, pool: AvgPool2d, residuals: Any, d: Float32) -> Float32:
        return avgpool2d.backward(pool, residuals, d)

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float) -> UInt8:
        return random.keep_mask(seed, layer, step, shape, rate)

    def dropout(self, mask: UInt8, s: AnyArray) -> AnyArray:
        return s * mask

    def lif_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        return lif.forward(neuron, filter, z, steps)

    def lif_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        return lif.backward(neuron, filter, residuals, ds)

    def lif_potentials(self, residuals: lif.Residuals) -> Float32:
        return residuals.u

    def psp_forward(self, psp_: PSP, s: AnyArray) -> Float32:
        return psp.forward(psp_, s)

    def psp_backward(self, psp_: PSP, da: Float32) -> Float32:
        return psp.backward(psp_, da)

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        error: Float32 = implementation(self.name, _LOSSES, loss, "loss").error(loss, psp_, s, targets)
        return error

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w,
            weight_bits=block.layer.weight_bits,
            input_exponent=block.input_exponent,
            input_max=block.input_max,
            layer=block.name,
        )

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, Int64]:
        return grid.error_grid(dz, bits)

    def gradient_norm(self, gradients: Sequence[Float32]) -> float:
        return gradient_norm(gradients)

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        return adamw.update(scalars, w, g, m, v)

    def spike_rate(self, s: UInt8) -> float:
        return float(np.count_nonzero(s)) / s.size
