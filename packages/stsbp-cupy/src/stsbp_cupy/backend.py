"""The CuPy backend with the interface of stsbp_spec.engine.backend."""

from __future__ import annotations

import logging
import math
import re
import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

import numpy as np
from stsbp_spec.contract.arrays import ArrayArithmetic, NumpyNames
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.engine.backend import AbstractBackend, Device
from stsbp_spec.engine.replay import recording_requested
from stsbp_spec.engine.rules import Rule
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.networks.graph import Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.typing import AnyArray, Coding, Shape, UInt8

from stsbp_cupy.contract import grid
from stsbp_cupy.engine import cuda, host
from stsbp_cupy.engine.graphs import CupyGraphs
from stsbp_cupy.engine.runtime import Array, Runtime, joined, logical, memory, rounded
from stsbp_cupy.equations.recurrence import recur
from stsbp_cupy.models.optim import gradient_squares
from stsbp_cupy.ops import avgpool2d, batchnorm, conv2d, dropout, flatten, linear, maxpool2d, tensor_cores, upsample2d

__all__ = ["CupyBackend"]

_LOG = logging.getLogger(__name__)

Result = TypeVar("Result")


class CupyBackend(AbstractBackend[Array]):
    """CUDA kernels, on a GPU (`cuda`, `cuda:1`) or built for the CPU (`host`).

    Attributes:
        rt: the runtime that the launchers use.
        notes: notes for people from opening the device (the test result of tensor cores). They are also logged.
        graphs: recordings of training steps (graphs.py). None: each kernel is launched separately.
    """

    name: ClassVar[str] = "cupy"
    api: ClassVar[int] = 2
    rt: Runtime
    notes: tuple[str, ...] = ()
    graphs: CupyGraphs | None = None

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        problem = cuda.problem()
        texts = [] if problem else cuda.descriptions()
        gpus = [Device(f"cuda:{i}" if i else "cuda", text) for i, text in enumerate(texts)]
        compiler, host_problem = "a C++ compiler", None
        try:
            compiler = shlex.join(host.compiler())
        except BackendError as error:
            host_problem = str(error)
        text = f"the same kernels built by {compiler}, numpy {np.__version__}"
        return (
            *(gpus or [Device("cuda", "NVIDIA GPU", problem)]),
            Device("host", text, host_problem),
        )

    def open(self, device: str | None) -> str:
        name = device or "cuda"
        if name == "host":
            self.rt = host.HostRuntime()
            return name
        match = re.fullmatch(r"cuda(?::(\d+))?", name)
        if match is None:
            raise BackendError(f"backend 'cupy' has the devices cuda, cuda:N and host, got {device!r}")
        if problem := cuda.problem():
            raise BackendError(f"backend 'cupy' cannot use {name}: {problem}")
        index, count = int(match[1] or 0), len(cuda.descriptions())
        if index >= count:
            raise BackendError(f"backend 'cupy' cannot use {name}: CUDA numbers {count} GPU(s) from 0")
        self.rt = cuda.CudaRuntime(index)
        if recording_requested():
            self.graphs = CupyGraphs(self, self.rt)
        for dtype in (np.float32, np.float64):
            if wrong := tensor_cores.prove(self.rt, dtype):
                raise BackendError(
                    f"backend 'cupy' cannot use {name}: cuBLAS does not compute {np.dtype(dtype)} products in their "
                    f"precision ({wrong}); unset the environment variables NVIDIA_TF32_OVERRIDE, "
                    "CUBLAS_EMULATE_SINGLE_PRECISION and CUBLAS_EMULATE_DOUBLE_PRECISION"
                )
        wrong = tensor_cores.prove(self.rt)
        self.rt.tensor_cores = wrong is None
        if wrong is None:
            note = "forward pass on tensor cores, proved exact at start-up"
            _LOG.info("%s: %s", name, note)
        else:
            note = f"forward pass in float32: tensor cores are not exact here ({wrong})"
            _LOG.warning("%s: %s", name, note)
        self.notes = (note,)
        return name

    @cached_property
    def arithmetic(self) -> ArrayArithmetic[Array]:
        names = NumpyNames(self.rt.xp)
        names.concat = partial(joined, self.rt)
        return ArrayArithmetic(names, lambda x, dtype: x.view(dtype))

    def asarray(self, x: AnyArray) -> Array:
        native: Array = self.rt.xp.asarray(x)
        return native

    def numpy(self, x: Array) -> AnyArray:
        return self.rt.numpy(x.astype(np.float32) if x.dtype == np.float16 else x)

    def encode(self, inputs: UInt8, coding: Coding) -> Array:
        x = self.asarray(inputs)
        # Pixels in units of 1/256, so that weighted sums stay exact.
        return x if coding == "events" else x[None].astype(np.float32) * np.float32(2.0**-8)

    def unpack(self, frames: PackedFrames) -> Array:
        return logical(self.rt, self.arithmetic.unpacked(self.rt.xp.asarray(frames.bits), frames.steps))

    @cached_property
    def rules(self) -> Mapping[type[Op], Rule[Array]]:
        modules = (
            (Conv2d, conv2d),
            (Linear, linear),
            (AvgPool2d, avgpool2d),
            (MaxPool2d, maxpool2d),
            (Upsample2d, upsample2d),
            (Flatten, flatten),
        )
        return {op: Rule(partial(module.forward, self.rt), partial(module.backward, self.rt)) for op, module in modules}

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> Array:
        # A recorded step must read its masks from fixed memory, which the tape fills before each run.
        def drawn(seed_and_step: tuple[int, int]) -> Array:
            return dropout.keep_mask(self.rt, seed_and_step[0], layer, seed_and_step[1], shape, rate, first)

        if self.graphs is not None and self.graphs.tape is not None:
            return self.graphs.tape.filled(("dropout", layer, shape, rate, first), drawn)
        return drawn((seed, step))

    def dropout(self, mask: Array, s: Array) -> Array:
        return dropout.apply(self.rt, mask, s)

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, Array],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, Array]:
        tape = None if self.graphs is None else self.graphs.tape
        numbers = None if tape is None else tape.numbers(recurrence, constants, self.asarray)
        return recur(self.rt, recurrence, constants, inputs, steps, summed=summed, numbers=numbers)

    def zeros(self, shape: Shape) -> Array:
        return self._empty(shape, np.float32)

    def silence(self, shape: Shape) -> Array:
        return self._empty(shape, np.uint8)

    def _empty(self, shape: Shape, dtype: Any) -> Array:
        """Zeros of logical shape `shape`, channels-last in memory."""
        memory_shape = (*shape[:-3], *shape[-2:], shape[-3]) if len(shape) >= 4 else shape
        return logical(self.rt, self.rt.xp.zeros(memory_shape, dtype))

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        return logical(self.rt, joined(self.rt, [memory(self.rt, x) for x in arrays]))

    def moments(self, z: Array, exponent: Array) -> Array:
        return batchnorm.moments(self.rt, z, exponent)

    def error_moments(self, dy: Array, z: Array, exponent: Array) -> Array:
        return batchnorm.error_moments(self.rt, dy, z, exponent)

    def rounded(self, x: Array) -> Array:
        return rounded(self.rt, x)

    def weight_grids(
        self, projections: Sequence[Projection], weights: Sequence[Array]
    ) -> list[tuple[Array, WeightGrid]]:
        grids = grid.weight_grids(self.rt, projections, weights)
        return [
            (tensor_cores.forward_weights(self.rt, projection, wq, chosen_grid), chosen_grid)
            for projection, (wq, chosen_grid) in zip(projections, grids, strict=True)
        ]

    def largest_error(self, dz: Array) -> Array:
        return grid.largest_error(self.rt, dz)

    def error_grid(self, dz: Array, bits: int, largest: Array | None = None) -> tuple[Array, Array]:
        return grid.error_grid(self.rt, dz, bits, self.largest_error(dz) if largest is None else largest)

    def gradient_squares(self, gradients: Sequence[Array]) -> Array:
        return gradient_squares(self.rt, gradients)

    def compiled(self, function: Callable[..., Result], *fixed: Hashable) -> Callable[..., Result]:
        if self.graphs is None:
            return super().compiled(function, *fixed)
        graphs = self.graphs
        return lambda *arguments: graphs.call(function, fixed, arguments)

    def forget(self) -> None:
        if self.graphs is not None:
            self.graphs.forget()

    def read(self, arrays: Sequence[Array]) -> list[AnyArray]:
        """`numpy` of several arrays, with one transfer for all arrays of the same shape and type."""
        indices_by_type: dict[tuple[Any, ...], list[int]] = {}
        for index, x in enumerate(arrays):
            indices_by_type.setdefault((x.shape, x.dtype), []).append(index)
        host_arrays: dict[int, AnyArray] = {}
        for indices in indices_by_type.values():
            stacked = (
                self.rt.xp.stack([arrays[index] for index in indices]) if len(indices) > 1 else arrays[indices[0]][None]
            )
            host_arrays.update(zip(indices, self.numpy(stacked), strict=True))
        return [host_arrays[index] for index in range(len(arrays))]

    def pack_spikes(self, s: Array) -> Any:
        return self.rt.xp.packbits(s.astype(np.uint8, copy=False).ravel()), s.shape, s.dtype

    def unpack_spikes(self, packed: Any) -> Array:
        bits, shape, dtype = packed
        spikes: Array = self.rt.xp.unpackbits(bits)[: math.prod(shape)].reshape(shape)
        return spikes.astype(dtype, copy=False)

    def join(self, rendezvous: Rendezvous) -> Collective[Array]:
        from stsbp_cupy.distributed.collective import join

        return join(rendezvous, self.rt, self.device)
