"""The numpy backend: the float32 reference behind the interface of stsbp_spec.backend."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from stsbp_spec import grid, random
from stsbp_spec.backend import AbstractBackend, Device
from stsbp_spec.equations import Constants
from stsbp_spec.errors import BackendError
from stsbp_spec.expr import Recurrence
from stsbp_spec.grid import WeightGrid
from stsbp_spec.network import Block
from stsbp_spec.optim.adamw import gradient_squares
from stsbp_spec.reference.recurrence import recur
from stsbp_spec.reference.synapses import avgpool2d, conv2d, linear
from stsbp_spec.synapses import AvgPool2d, Conv2d, Linear
from stsbp_spec.tables import implementation
from stsbp_spec.typing import AnyArray, Coding, Float32, Int64, Precision, Shape, UInt8

__all__ = ["NumpyBackend"]

_SYNAPSES: dict[type, Any] = {Conv2d: conv2d, Linear: linear}


class NumpyBackend(AbstractBackend[AnyArray]):
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

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w,
            weight_bits=block.synapse.weight_bits,
            input_exponent=block.input.exponent,
            input_max=block.input.maximum,
            layer=block.name,
        )

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, Int64]:
        return grid.error_grid(dz, bits)

    def gradient_squares(self, gradients: Sequence[Float32]) -> Int64:
        return gradient_squares(gradients)

    def spike_count(self, s: UInt8) -> AnyArray:
        return np.asarray(np.count_nonzero(s))
