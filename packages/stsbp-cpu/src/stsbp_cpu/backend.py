"""The backend `cpu`: numba kernels and numpy arrays, without a framework.

Its arrays are numpy arrays of logical shape `[T, B, C, H, W]`, which are channels last in memory (layout.py).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numba
import numpy as np
from stsbp_spec.contract import arrays, grid
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.distributed import host
from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.engine.backend import AbstractBackend, Device, NeuronResiduals
from stsbp_spec.engine.memory import keep_freed_memory
from stsbp_spec.engine.rules import Frozen, Fusion, Rule
from stsbp_spec.equations.assembly import Constants, NeuronEquations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.networks.graph import Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.reference import backend as reference
from stsbp_spec.typing import AnyArray, Coding, Float32, Int32, Int64, Shape, UInt8

from stsbp_cpu.contract import reductions
from stsbp_cpu.engine import block, fused, precompile, recurrent
from stsbp_cpu.engine.layout import NUMPY, empty_memory
from stsbp_cpu.engine.openmp import let_waiting_threads_sleep
from stsbp_cpu.engine.settings import settings_problem
from stsbp_cpu.equations import recurrence as over_time
from stsbp_cpu.models.optim.update import update
from stsbp_cpu.ops import batchnorm, conv2d, delay, dropout, linear, pooling

__all__ = ["CpuBackend"]


class _NumbaConvolution(block.DenseConvolution[AnyArray]):
    """Dense convolutions, computed by ops/conv2d.py."""

    layout = NUMPY

    def forward(self, conv: Conv2d, s: AnyArray, wq: AnyArray) -> AnyArray:
        return conv2d.forward(conv, s, wq)[0]

    def backward(
        self, conv: Conv2d, s: AnyArray, wq: AnyArray, dz: AnyArray, *, need_input: bool
    ) -> tuple[AnyArray | None, AnyArray]:
        grad_input, dw = conv2d.backward(conv, conv2d.Conv2dSaved(s, wq), dz, precision="fast", need_input=need_input)
        assert dw is not None
        return grad_input, dw

    def input_error(self, conv: Conv2d, wq: AnyArray, dz: AnyArray, shape: Shape) -> AnyArray:
        return conv2d.input_error(conv, wq, dz, shape)

    def saved_for_backward(self, s: AnyArray, wq: AnyArray) -> conv2d.Conv2dSaved:
        return conv2d.Conv2dSaved(s, wq)


class CpuBackend(AbstractBackend[AnyArray]):
    """The backend `cpu`. It computes with the kernels of stsbp_cpu and with numpy."""

    name: ClassVar[str] = "cpu"
    api: ClassVar[int] = 2
    arithmetic = arrays.NUMPY

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        problem = settings_problem()
        threads = f", {numba.get_num_threads()} threads" if problem is None else ""
        kernels = f"numba {numba.__version__} kernels, numpy {np.__version__}{threads}, {platform.machine()}"
        return (Device("cpu", kernels, problem),)

    @classmethod
    def compile_ahead(cls) -> tuple[int, int]:
        return precompile.fill()

    def open(self, device: str | None) -> str:
        if device not in (None, "cpu"):
            raise BackendError(f"backend 'cpu' has the device cpu only, got {device!r}; use --device cpu")
        keep_freed_memory()
        let_waiting_threads_sleep()
        precompile.prepare(dense=True)
        return "cpu"

    def asarray(self, x: AnyArray) -> AnyArray:
        return NUMPY.laid_out(x) if x.ndim == 5 else np.ascontiguousarray(x)

    def numpy(self, x: AnyArray) -> AnyArray:
        return x

    def encode(self, inputs: UInt8, coding: Coding) -> AnyArray:
        if coding == "events":
            return self.asarray(inputs)
        return self.asarray(inputs[None].astype(np.float32) * np.float32(2.0**-8))

    def unpack(self, frames: PackedFrames) -> AnyArray:
        return self.asarray(frames.unpacked())

    def pack_spikes(self, s: AnyArray) -> Any:
        return np.packbits(NUMPY.rows(NUMPY.laid_out(s)).reshape(-1)), s.shape

    def unpack_spikes(self, packed: Any) -> AnyArray:
        bits, shape = packed
        s = NUMPY.empty(shape, np.uint8)
        memory = NUMPY.view(s)
        memory[...] = np.unpackbits(bits, count=s.size).reshape(memory.shape)
        return s

    @cached_property
    def rules(self) -> Mapping[type[Op], Rule[AnyArray]]:
        return {
            Conv2d: Rule(conv2d.forward, conv2d.backward),
            Linear: Rule(linear.forward, linear.backward),
            AvgPool2d: Rule(
                lambda pool, s: (pooling.average(NUMPY, pool, s), s.shape),
                lambda pool, shape, d: pooling.average_backward(NUMPY, pool, shape, d),
            ),
            MaxPool2d: Rule(
                _largest, lambda pool, saved, d: pooling.largest_backward(NUMPY, pool, saved[0], saved[1], d)
            ),
            Upsample2d: reference.RULES[Upsample2d],
            Flatten: reference.RULES[Flatten],
        }

    @cached_property
    def dense(self) -> block.DenseConvolution[AnyArray]:
        """Convolutions of inputs that are not sparse."""
        return _NumbaConvolution()

    @cached_property
    def fusions(self) -> Sequence[Fusion[AnyArray]]:
        return block.fusion(self.dense), recurrent.fusion(NUMPY, linear.saved_for_backward)

    def frozen(self, weights: dict[str, AnyArray]) -> dict[str, AnyArray]:
        return Frozen(weights)

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> AnyArray:
        mask = dropout.mask(seed, layer, step, shape, rate, first)
        return mask.transpose(0, 3, 1, 2) if mask.ndim == 4 else mask

    def dropout(self, mask: AnyArray, s: AnyArray) -> AnyArray:
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
        if not over_time.pays(recurrence):
            return reference.recur(recurrence, constants, inputs, steps, summed=summed)
        kernel_inputs = {
            name: x if x.dtype == np.uint8 else x.astype(np.float32, copy=False) for name, x in inputs.items()
        }
        return over_time.recur_of(NUMPY, recurrence, constants, kernel_inputs, steps, summed)

    def population_forward(
        self, equations: NeuronEquations, zs: Sequence[AnyArray], steps: int, learned: Mapping[str, AnyArray]
    ) -> tuple[AnyArray, NeuronResiduals[AnyArray]]:
        return fused.population_forward(self, NUMPY, equations, zs, steps, learned)

    def population_backward(
        self, equations: NeuronEquations, residuals: NeuronResiduals[AnyArray], ds: AnyArray, static: Sequence[bool]
    ) -> tuple[tuple[AnyArray, ...], dict[str, AnyArray]]:
        return fused.population_backward(NUMPY, equations, residuals, ds, static)

    def zeros(self, shape: Shape) -> AnyArray:
        return _filled(shape, np.float32)

    def silence(self, shape: Shape) -> AnyArray:
        return _filled(shape, np.uint8)

    def broadcast(self, values: AnyArray, shape: Shape) -> AnyArray:
        return NUMPY.laid_out(super().broadcast(values, shape))

    def delay_forward(self, x: AnyArray, delays: Float32) -> AnyArray:
        return delay.forward(NUMPY, x, delays)

    def delay_backward(self, error: Float32, delays: Float32) -> Float32:
        return delay.backward(NUMPY, error, delays)

    def delay_gradient(self, x: AnyArray, delays: Float32, error: Float32) -> AnyArray:
        return delay.gradient(NUMPY, x, delays, error)

    def moments(self, z: AnyArray, exponent: AnyArray) -> AnyArray:
        return batchnorm.moments(_channels_last(z), int(exponent[0]))

    def error_moments(self, dy: AnyArray, z: AnyArray, exponent: AnyArray) -> AnyArray:
        return batchnorm.error_moments(_channels_last(dy), _channels_last(z), int(exponent[0]))

    def channelwise(
        self, recurrence: Recurrence, arrays: Mapping[str, AnyArray], numbers: Mapping[str, AnyArray]
    ) -> AnyArray:
        (first, *_) = arrays.values()
        out = NUMPY.empty(first.shape, np.float32)
        batchnorm.normalised(
            recurrence, {k: _channels_last(x) for k, x in arrays.items()}, numbers, _channels_last(out)
        )
        return out

    def weight_grid(self, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
        return reductions.weight_grid(projection, w)

    def weight_grids(
        self, projections: Sequence[Projection], weights: Sequence[Float32]
    ) -> list[tuple[Float32, WeightGrid]]:
        return [self.weight_grid(projection, w) for projection, w in zip(projections, weights, strict=True)]

    def largest_error(self, dz: Float32) -> Int32:
        return np.array([reductions.largest_bits(_flat(dz))], np.int32)

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        dz = NUMPY.laid_out(dz)
        largest_magnitude = grid.magnitude(int((self.largest_error(dz) if largest is None else largest)[0]))
        out = NUMPY.empty(dz.shape, np.float32)
        return out, reductions.round_errors(_flat(dz), bits, largest_magnitude, _flat(out))

    def gradient_squares(self, gradients: Sequence[Float32]) -> Int64:
        return reductions.gradient_squares([np.ascontiguousarray(g).reshape(-1) for g in gradients])

    def spike_count(self, s: UInt8) -> AnyArray:
        return np.asarray(reductions.count(_flat(s)))

    def updated(
        self, scalars: Scalars, domain: tuple[float, float] | None, w: Float32, g: Float32, *moments: Float32
    ) -> tuple[Float32, ...]:
        if domain is not None:
            return super().updated(scalars, domain, w, g, *moments)
        new = tuple(empty_memory(w.shape, np.float32) for _ in (w, *moments))
        arrays = [np.ascontiguousarray(x).reshape(-1) for x in (w, g, *moments)]
        update(scalars, arrays, [x.reshape(-1) for x in new])
        return new

    def join(self, rendezvous: Rendezvous) -> Collective[AnyArray]:
        return host.join(rendezvous)


def _largest(pool: MaxPool2d, s: AnyArray) -> tuple[AnyArray, tuple[AnyArray, Shape]]:
    first = NUMPY.empty((*s.shape[:2], *pool.output_shape(s.shape[2:])), np.int32)
    return pooling.largest(NUMPY, pool, s, first), (first, s.shape)


def _filled(shape: Shape, dtype: type[np.generic]) -> AnyArray:
    array = NUMPY.empty(shape, dtype)
    array.fill(0)
    return array


def _flat(x: AnyArray) -> AnyArray:
    return NUMPY.view(NUMPY.laid_out(x)).reshape(-1)


def _channels_last(x: AnyArray) -> AnyArray:
    """`[T, B, C, ...]` in memory order, as `[n, C]`."""
    return NUMPY.view(NUMPY.laid_out(x)).reshape(-1, x.shape[2])
