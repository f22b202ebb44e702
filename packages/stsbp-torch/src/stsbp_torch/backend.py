"""The torch backend. It implements the interface of stsbp_spec.engine.backend.

Its devices are `cpu` (fused numba kernels), `cpu:eager` (plain tensor expressions, for debugging), `cuda` and `cuda:N`
(fused Triton kernels). On `cpu`, only filters and losses are plain tensor expressions, because they are small.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from stsbp_cpu.contract import reductions
from stsbp_cpu.engine import block, fused, precompile, recurrent
from stsbp_cpu.engine.forks import refuse_in_forks
from stsbp_cpu.engine.openmp import let_waiting_threads_sleep
from stsbp_cpu.engine.settings import settings_problem
from stsbp_cpu.models.optim.update import update
from stsbp_cpu.ops import delay
from stsbp_spec.contract import grid
from stsbp_spec.contract.arrays import NUMPY, ArrayArithmetic
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.engine.backend import AbstractBackend, Device, NeuronResiduals
from stsbp_spec.engine.memory import keep_freed_memory
from stsbp_spec.engine.replay import recording_requested
from stsbp_spec.engine.rules import Frozen, Fusion, Rule
from stsbp_spec.equations.assembly import Constants, NeuronEquations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError, printable
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.networks.graph import Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.typing import AnyArray, Coding, Shape, UInt8

from stsbp_torch.contract.arrays import arithmetic
from stsbp_torch.engine.graphs import TorchGraphs
from stsbp_torch.engine.layout import TENSORS, empty, laid_out, logical, rows
from stsbp_torch.equations.recurrence import recur, recur_often, to_device, to_device_once
from stsbp_torch.ops import avgpool2d, batchnorm, conv2d, dropout, flatten, linear, maxpool2d, upsample2d
from stsbp_torch.ops.dense import DENSE

__all__ = ["TorchBackend"]

Result = TypeVar("Result")


class TorchBackend(AbstractBackend[torch.Tensor]):
    """The backend `torch`: PyTorch on the CPU and on CUDA."""

    name: ClassVar[str] = "torch"
    api: ClassVar[int] = 2

    torch_device: torch.device
    fused: bool
    graphs: TorchGraphs | None = None
    """Recordings of training steps on CUDA (graphs.py); None: each kernel is launched separately."""

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        cpu = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
        problem = _cpu_problem()
        cpu_devices = [
            Device("cpu", f"fused numba kernels, {cpu}", problem),
            Device("cpu:eager", "plain tensor expressions", problem),
        ]
        problem = _cuda_problem()
        if problem is not None:
            return (*cpu_devices, Device("cuda", "fused Triton kernels", problem))
        count = torch.cuda.device_count()
        return (*cpu_devices, *(Device(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(count)))

    @classmethod
    def compile_ahead(cls) -> tuple[int, int]:
        return precompile.fill()

    def open(self, device: str | None) -> str:
        name = device or "cpu"
        if name in ("cpu", "cpu:eager"):
            problem = _cpu_problem()
            if problem is not None:
                raise BackendError(f"backend 'torch' cannot use {name!r}: {problem}")
            self.torch_device, self.fused = torch.device("cpu"), name == "cpu"
            keep_freed_memory()
            if self.fused:
                let_waiting_threads_sleep()
                precompile.prepare(dense=False)
            return name
        kind, _, index = name.partition(":")
        if kind != "cuda" or (index and not index.isdigit()):
            raise BackendError(f"backend 'torch' has the devices cpu, cpu:eager, cuda and cuda:N, got {name!r}")
        problem = _cuda_problem()
        if problem is not None:
            raise BackendError(f"backend 'torch' cannot use {name!r}: {problem}; use --device cpu")
        if int(index or 0) >= torch.cuda.device_count():
            raise BackendError(f"there are {torch.cuda.device_count()} CUDA devices, got {name!r}")
        self.torch_device, self.fused = torch.device("cuda", int(index or 0)), True
        if recording_requested():
            self.graphs = TorchGraphs(self, self.torch_device)
        return f"cuda:{int(index or 0)}"

    @property
    def _on_cpu(self) -> bool:
        """Whether the fused kernels for the CPU are used."""
        return self.fused and self.torch_device.type == "cpu"

    @cached_property
    def arithmetic(self) -> ArrayArithmetic[torch.Tensor]:
        return arithmetic(self.torch_device)

    def asarray(self, x: AnyArray) -> torch.Tensor:
        last = x.ndim == 5 and bool(np.moveaxis(x, 2, -1).flags.c_contiguous)
        array = np.moveaxis(x, 2, -1) if last else np.ascontiguousarray(x)
        # Torch refuses negative strides, also of axes of length 1.
        if not array.flags.writeable or min(array.strides, default=0) < 0:
            array = array.copy()
        tensor = torch.from_numpy(array).to(self.torch_device)
        return logical(tensor) if last else laid_out(tensor)

    def numpy(self, x: torch.Tensor) -> AnyArray:
        array: AnyArray = x.detach().cpu().numpy()
        return array

    def encode(self, inputs: UInt8, coding: Coding) -> torch.Tensor:
        if coding == "events":
            return self.asarray(inputs)
        return self.asarray(inputs[None]).float() * 2.0**-8

    def unpack(self, frames: PackedFrames) -> torch.Tensor:
        if self.torch_device.type == "cpu":
            return self.asarray(frames.unpacked())
        return laid_out(super().unpack(frames))

    def pack_spikes(self, s: torch.Tensor) -> Any:
        return self._pack(rows(s).reshape(-1)), tuple(s.shape)

    def unpack_spikes(self, packed: Any) -> torch.Tensor:
        packed_bits, shape = packed
        s = empty(shape, torch.uint8, packed_bits.device)
        rows(s).reshape(-1).copy_(self._unpack(packed_bits, s.numel()))
        return s

    # On the CPU, numpy is faster than shifts.
    def _pack(self, s: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.packbits(s.numpy())) if s.device.type == "cpu" else self.arithmetic.pack(s)

    def _unpack(self, packed: torch.Tensor, count: int) -> torch.Tensor:
        if packed.device.type == "cpu":
            return torch.from_numpy(np.unpackbits(packed.numpy(), count=count))
        return self.arithmetic.unpack(packed, count)

    @cached_property
    def rules(self) -> Mapping[type[Op], Rule[torch.Tensor]]:
        fused = self._on_cpu
        return {
            Conv2d: Rule(conv2d.forward, conv2d.backward),
            Linear: Rule(partial(linear.forward, fused=fused), linear.backward),
            AvgPool2d: Rule(partial(avgpool2d.forward, fused=fused), partial(avgpool2d.backward, fused=fused)),
            MaxPool2d: Rule(partial(maxpool2d.forward, fused=fused), partial(maxpool2d.backward, fused=fused)),
            Upsample2d: Rule(upsample2d.forward, upsample2d.backward),
            Flatten: Rule(flatten.forward, flatten.backward),
        }

    @property
    def fusions(self) -> Sequence[Fusion[torch.Tensor]]:
        if not self._on_cpu:
            return ()
        return self._fusions

    @cached_property
    def _fusions(self) -> Sequence[Fusion[torch.Tensor]]:
        return block.fusion(DENSE), recurrent.fusion(TENSORS, partial(linear.saved_for_backward, fused=True))

    def frozen(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return Frozen(weights) if self._on_cpu else weights

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> torch.Tensor:
        def drawn(seed_and_step: tuple[int, int]) -> torch.Tensor:
            return dropout.mask(seed_and_step[0], layer, seed_and_step[1], shape, rate, first, self.torch_device)

        if self.graphs is not None and self.graphs.tape is not None:
            return self.graphs.tape.filled(("dropout", layer, shape, rate, first), drawn)
        return drawn((seed, step))

    def dropout(self, mask: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return dropout.apply(mask, s)

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, torch.Tensor],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, torch.Tensor]:
        if self.torch_device.type == "cpu":
            run = recur_often if self.fused else recur
            return run(recurrence, constants, inputs, steps, summed=summed)
        from stsbp_torch.equations import fused_cuda

        parameters = self._parameters(recurrence, constants)
        return fused_cuda.recur(recurrence, parameters, inputs, steps, summed=summed)

    def _parameters(self, recurrence: Recurrence, constants: Constants) -> torch.Tensor:
        """The constants on the device. In a recording, each run can fill in new constants of an update."""
        tape = None if self.graphs is None else self.graphs.tape
        if tape is None:
            return to_device_once(recurrence.numbers(constants), self.torch_device)
        changing = tape.numbers(recurrence, constants, partial(to_device, device=self.torch_device))
        if changing is not None:
            return changing
        parameters = to_device_once(recurrence.numbers(constants), self.torch_device)
        tape.keep(parameters)
        return parameters

    def population_forward(
        self,
        equations: NeuronEquations,
        zs: Sequence[torch.Tensor],
        steps: int,
        learned: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, NeuronResiduals[torch.Tensor]]:
        if not self._on_cpu:
            return super().population_forward(equations, zs, steps, learned)
        return fused.population_forward(self, TENSORS, equations, zs, steps, learned)

    def population_backward(
        self, equations: NeuronEquations, residuals: NeuronResiduals, ds: torch.Tensor, static: Sequence[bool]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        if not self._on_cpu:
            return super().population_backward(equations, residuals, ds, static)
        return fused.population_backward(TENSORS, equations, residuals, ds, static)

    def zeros(self, shape: Shape) -> torch.Tensor:
        return empty(shape, torch.float32, self.torch_device).zero_()

    def silence(self, shape: Shape) -> torch.Tensor:
        return empty(shape, torch.uint8, self.torch_device).zero_()

    def concatenate(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        target = empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype, self.torch_device)
        return torch.cat(list(arrays), out=target)

    def broadcast(self, values: torch.Tensor, shape: Shape) -> torch.Tensor:
        return laid_out(super().broadcast(values, shape))

    def delay_forward(self, x: torch.Tensor, delays: torch.Tensor) -> torch.Tensor:
        if not self._on_cpu:
            return laid_out(super().delay_forward(x, delays))
        return delay.forward(TENSORS, x, delays.detach().numpy())

    def delay_backward(self, error: torch.Tensor, delays: torch.Tensor) -> torch.Tensor:
        if not self._on_cpu:
            return laid_out(super().delay_backward(error, delays))
        return delay.backward(TENSORS, error, delays.detach().numpy())

    def delay_gradient(self, x: torch.Tensor, delays: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        if not self._on_cpu:
            return super().delay_gradient(x, delays, error)
        return torch.from_numpy(delay.gradient(TENSORS, x, delays.detach().numpy(), error))

    def moments(self, z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
        return batchnorm.moments(z, exponent) if self._on_cpu else super().moments(z, exponent)

    def error_moments(self, dy: torch.Tensor, z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
        return batchnorm.error_moments(dy, z, exponent) if self._on_cpu else super().error_moments(dy, z, exponent)

    def channelwise(
        self, recurrence: Recurrence, arrays: Mapping[str, torch.Tensor], numbers: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        if not self._on_cpu:
            return super().channelwise(recurrence, arrays, numbers)
        return batchnorm.normalised(recurrence, arrays, numbers)

    def of_channels(self, function: Callable[..., Any], *arrays: Any, **fixed: Any) -> Any:
        return function(batchnorm.TorchFloat64(self.arithmetic), *arrays, **fixed)

    def weight_grid(self, projection: Projection, w: torch.Tensor) -> tuple[torch.Tensor, WeightGrid]:
        if not self._on_cpu:
            return super().weight_grid(projection, w)
        wq, chosen_grid = reductions.weight_grid(projection, w.detach().numpy())
        return torch.from_numpy(wq), chosen_grid

    def weight_grids(
        self, projections: Sequence[Projection], weights: Sequence[torch.Tensor]
    ) -> list[tuple[torch.Tensor, WeightGrid]]:
        if self._on_cpu:
            return [self.weight_grid(projection, w) for projection, w in zip(projections, weights, strict=True)]
        # A tensor expression in a fork would wait for ever. Every run and every gradient begin here.
        if self.torch_device.type == "cpu" and torch.get_num_threads() > 1:
            refuse_in_forks()
        return super().weight_grids(projections, weights)

    def largest_error(self, dz: torch.Tensor) -> torch.Tensor:
        if not self._on_cpu:
            return super().largest_error(dz)
        return torch.tensor(
            [reductions.largest_bits(rows(laid_out(dz)).reshape(-1).numpy())], dtype=torch.int32, device="cpu"
        )

    def error_grid(
        self, dz: torch.Tensor, bits: int, largest: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._on_cpu:
            return super().error_grid(dz, bits, largest)
        dz = laid_out(dz)
        out = torch.empty_like(dz)
        largest_magnitude = grid.magnitude(int(self.largest_error(dz) if largest is None else largest))
        counts = reductions.round_errors(
            rows(dz).reshape(-1).numpy(), bits, largest_magnitude, rows(out).reshape(-1).numpy()
        )
        return out, torch.from_numpy(counts)

    def gradient_squares(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        if not self._on_cpu:
            return super().gradient_squares(gradients)
        return torch.from_numpy(reductions.gradient_squares([g.reshape(-1).numpy() for g in gradients]))

    def read(self, arrays: Sequence[torch.Tensor]) -> list[AnyArray]:
        """Copy arrays to the host. All copies are started before the first one is waited for."""
        if self.torch_device.type == "cpu":
            return super().read(arrays)
        host_copies = [x.detach().to("cpu", non_blocking=True) for x in arrays]
        torch.cuda.synchronize(self.torch_device)
        return [x.numpy() for x in host_copies]

    def readout_error(
        self, loss: CrossEntropy, u: torch.Tensor, targets: torch.Tensor, batch: int, inside: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.torch_device.type != "cpu":
            return super().readout_error(loss, u, targets, batch, inside)
        # Exponential functions differ between libraries. On the CPU, all backends use that of the reference.
        arrays = (u.double().numpy(), targets.numpy(), batch, None if inside is None else inside.numpy())
        return torch.from_numpy(NUMPY.float32(loss.error(*arrays, NUMPY)))

    def updated(
        self,
        scalars: Scalars,
        domain: tuple[float, float] | None,
        w: torch.Tensor,
        g: torch.Tensor,
        *moments: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        if domain is not None or not self._on_cpu:
            return super().updated(scalars, domain, w, g, *moments)
        new = tuple(torch.empty_like(w) for _ in (w, *moments))
        arrays = [x.reshape(-1).numpy() for x in (w, g.contiguous(), *moments)]
        update(scalars, arrays, [x.reshape(-1).numpy() for x in new])
        return new

    def compiled(self, function: Callable[..., Result], *fixed: Hashable) -> Callable[..., Result]:
        def run(*arguments: Any) -> Result:
            with conv2d.exact_math():
                if self.graphs is not None:
                    return self.graphs.call(function, fixed, arguments)
                return function(self, *fixed, *arguments)

        return run

    def forget(self) -> None:
        if self.graphs is not None:
            self.graphs.forget()

    def mask_steps(self, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return laid_out(super().mask_steps(x, inside))

    def spike_count(self, s: torch.Tensor) -> torch.Tensor:
        if s.device.type == "cpu":
            return torch.tensor(reductions.count(rows(s).reshape(-1).numpy()), dtype=torch.int64, device="cpu")
        return super().spike_count(s)

    def join(self, rendezvous: Rendezvous) -> Collective[torch.Tensor]:
        from stsbp_torch.distributed.collective import TorchCollective

        return TorchCollective(rendezvous, self.torch_device)


def _cpu_problem() -> str | None:
    """Why the CPU cannot be used, or None."""
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        mode = os.environ.get(name, "")
        if mode and mode.lower() != "strict":
            return (
                f"the environment variable {name}={printable(mode)} allows oneDNN to round the inputs of convolutions, "
                "so their sums would not be exact; unset it, or set it to STRICT, before Python starts"
            )
    return settings_problem()


def _cuda_problem() -> str | None:
    """Why CUDA cannot be used, or None."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA support"
    if not torch.cuda.is_available():
        return "no CUDA device or driver was found"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed (python -m pip install triton)"
    return None
