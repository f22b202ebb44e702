"""The numpy backend: the float32 reference behind the interface of stsbp_spec.backend."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from stsbp_spec import grid, random
from stsbp_spec.backend import AbstractBackend, Device
from stsbp_spec.equations import Constants
from stsbp_spec.errors import BackendError
from stsbp_spec.expr import Recurrence
from stsbp_spec.graph import Op, Projection
from stsbp_spec.grid import WeightGrid
from stsbp_spec.optim.adamw import gradient_squares
from stsbp_spec.reference.recurrence import recur
from stsbp_spec.reference.synapses import avgpool2d, conv2d, linear
from stsbp_spec.rules import Rule
from stsbp_spec.synapses import AvgPool2d, Conv2d, Linear
from stsbp_spec.typing import AnyArray, Coding, Float32, Int64, Shape, UInt8

__all__ = ["NumpyBackend"]

_RULES: Mapping[type[Op], Rule[AnyArray]] = {
    op: Rule(each.forward, each.backward)
    for op, each in (
        (Conv2d, conv2d),
        (Linear, linear),
        (AvgPool2d, avgpool2d),
    )
}


class NumpyBackend(AbstractBackend[AnyArray]):
    """The reference as a backend: slow, and the measure of all others."""

    name: ClassVar[str] = "numpy"
    api: ClassVar[int] = 1

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

    @property
    def rules(self) -> Mapping[type[Op], Rule[AnyArray]]:
        return _RULES

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

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w,
            weight_bits=projection.synapse.weight_bits,
            input_exponent=projection.input.exponent,
            input_max=projection.input.maximum,
            layer=projection.name,
        )

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, Int64]:
        return grid.error_grid(dz, bits)

    def gradient_squares(self, gradients: Sequence[Float32]) -> Int64:
        return gradient_squares(gradients)

    def spike_count(self, s: UInt8) -> AnyArray:
        return np.asarray(np.count_nonzero(s))
