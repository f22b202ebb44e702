"""The JAX backend: the spec's operations on JAX arrays, and functions of these operations that are compiled as a whole.

On the CPU, the operations call stsbp_cpu's kernels (on_cpu.py). On other devices, and on the device `cpu:xla`, XLA
compiles them.

The arrays of the backend have channels last, `[T, B, H, W, C]`. `asarray`, `encode` and `numpy` convert them. The
backend does not change the user's configuration of JAX: float64 exists only inside the functions that need it
(`grid.enable_x64`). With several processes, JAX's handler for SIGTERM is off (collective.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_cpu.engine.openmp import let_waiting_threads_sleep
from stsbp_cpu.engine.precompile import fill, prepare
from stsbp_cpu.engine.settings import settings_problem
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.distributed.collective import Alone, Collective, Rendezvous
from stsbp_spec.engine.backend import AbstractBackend, Device
from stsbp_spec.engine.memory import keep_freed_memory
from stsbp_spec.engine.programs import gradients, output
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.engine.rules import Fusion, Rule
from stsbp_spec.equations.assembly import Constants, NeuronEquations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.models.optim import SCALARS
from stsbp_spec.models.optim.adamw import gradient_squares
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.networks.graph import Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.networks.ops import batchnorm as spec_batchnorm
from stsbp_spec.typing import AnyArray, Coding, Precision, Shape, UInt8

from stsbp_jax.contract.grid import (
    ARITHMETIC,
    GridChoice,
    describe_grid,
    enable_x64,
    grid_of_spec,
    in_float64,
    rounded,
    weight_grid,
)
from stsbp_jax.contract.random import keep_mask
from stsbp_jax.distributed.collective import JaxCollective, connect, join_processes
from stsbp_jax.distributed.replication import match_replication
from stsbp_jax.distributed.sharding import SpreadGradients, SpreadOutput, guarded
from stsbp_jax.engine import on_cpu
from stsbp_jax.engine.compiling import Compiled, OneByOne
from stsbp_jax.equations.recurrence import recur
from stsbp_jax.ops import avgpool2d, batchnorm, conv2d, dropout, flatten, linear, maxpool2d, upsample2d

__all__ = ["OPERATIONS", "JaxBackend"]

_PLATFORMS = ("cpu", "gpu", "tpu")
_ALL = ":all"
_XLA = "cpu:xla"

_SMALL = 2**16
"""Arrays of at most so many elements become channels last on the host, where no program is compiled for each shape."""

_Program: TypeAlias = Compiled | OneByOne | SpreadGradients | SpreadOutput

Result = TypeVar("Result")

# The scalars of an update change at every step, so a compiled update takes them as arguments.
for _kind in SCALARS:
    jax.tree_util.register_dataclass(_kind, [field.name for field in fields(_kind)], [])


def _jit(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` with static arguments. If the caller is traced itself, the function is inlined into the caller."""
    return partial(jax.jit, static_argnames=static, inline=True)


class JaxBackend(AbstractBackend[Array]):
    """The backend `jax`.

    Without a device, JAX chooses one. The devices are `cpu`, `gpu`, `gpu:1`, `tpu` and so on. `gpu:all` uses all GPUs
    of the process. `cpu:xla` is the CPU without stsbp_cpu's kernels, for comparisons: XLA compiles the same program as
    for other devices.
    """

    name: ClassVar[str] = "jax"
    api: ClassVar[int] = 2
    arithmetic = ARITHMETIC

    _alone: Collective[Array]
    _collective: Collective[Array]
    _forgotten: float = 0.0
    _on_cpu: bool

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        listed: list[Device] = []
        for platform in _PLATFORMS:
            try:
                present = jax.local_devices(backend=platform)
            except RuntimeError as error:
                listed.append(Device(platform, f"jax {jax.__version__}", problem=_failure_text(platform, error)))
                continue
            kernels = ", stsbp_cpu's kernels" if platform == "cpu" else ""
            for i, device in enumerate(present):
                name = platform if i == 0 else f"{platform}:{i}"
                problem = settings_problem() if platform == "cpu" else None
                listed.append(Device(name, f"jax {jax.__version__} on {device.device_kind}{kernels}", problem))
            if platform == "cpu":
                listed.append(Device(_XLA, f"jax {jax.__version__}, XLA's own code"))
            if len(present) > 1:
                listed.append(Device(platform + _ALL, f"jax {jax.__version__} on these {len(present)} together"))
        return tuple(listed)

    @classmethod
    def compile_ahead(cls) -> tuple[int, int]:
        return fill()

    def open(self, device: str | None) -> str:
        if device is None or device.startswith("cpu"):
            # XLA's worker threads allocate the memory.
            keep_freed_memory(one_pool=True)
        try:
            jax_device = "cpu" if device == _XLA else device
            self._devices: list[Any] = jax.local_devices()[:1] if jax_device is None else _find(jax_device)
        except (RuntimeError, LookupError) as error:
            usable = ", ".join(d.name for d in self.devices() if d.problem is None) or "none"
            raise BackendError(
                f"backend 'jax' cannot use the device {device or 'of its choice'!r}: {error}; usable here: {usable}"
            ) from error
        self._device = self._devices[0]
        self._on_cpu = self._device.platform == "cpu" and device != _XLA
        if self._on_cpu:
            let_waiting_threads_sleep()
            prepare(dense=True)
        self._alone = Alone() if len(self._devices) == 1 else JaxCollective([self._devices], 0)
        self._collective = self._alone
        self._compiled: dict[Hashable, _Program] = {}
        if device is not None:
            return device
        platform: str = self._device.platform
        return platform

    @classmethod
    def connect(cls, rendezvous: Rendezvous, device: str | None) -> None:
        connect(rendezvous, all_devices=device is not None and device.endswith(_ALL))

    def join(self, rendezvous: Rendezvous) -> Collective[Array]:
        self._collective = self._alone if rendezvous.size == 1 else join_processes(rendezvous, self._devices)
        return self._collective

    def alone(self) -> Collective[Array]:
        return self._alone

    def compiled(self, function: Callable[..., Result], *fixed: Hashable) -> Callable[..., Result]:
        key = (function, fixed)
        if key not in self._compiled:
            self._compiled[key] = self._program(function, *fixed)
        program: Any = self._compiled[key]
        return cast(Callable[..., Result], program)

    def _program(self, function: Callable[..., Any], *fixed: Hashable) -> _Program:
        """The program for `function`, either on one device or on several devices, each with a share of the samples."""
        if function is gradients:
            *_, collective, parts = fixed
            if isinstance(parts, tuple) and len(parts) > 1 and len(self._devices) == 1:
                return OneByOne(partial(function, self, *fixed))
            if isinstance(collective, JaxCollective):
                return SpreadGradients(self, collective.spread, *fixed)
        if function is output and isinstance(self._alone, JaxCollective):
            return SpreadOutput(self, self._alone.spread, *fixed)
        return Compiled(partial(function, self, *fixed), function.__name__.replace("_", " "))

    @property
    def compile_seconds(self) -> float:
        return self._forgotten + sum(compiled.seconds for compiled in self._compiled.values())

    def forget(self) -> None:
        self._forgotten = self.compile_seconds
        self._compiled.clear()
        jax.clear_caches()  # type: ignore[no-untyped-call]

    def check_precision(self, precision: Precision) -> None:
        if precision == "reproducible" and self._device.platform == "tpu":
            raise BackendError(
                "backend 'jax': a TPU emulates float64 with fewer bits than reproducible precision needs; "
                "use --precision fast, or the device cpu or gpu"
            )

    def asarray(self, x: AnyArray) -> Array:
        if x.ndim != 5:
            return self._to_device(x)
        last = np.moveaxis(x, 2, -1)
        if last.flags.c_contiguous or x.size <= _SMALL:
            return self._to_device(np.ascontiguousarray(last))
        result: Array = _channels_last(self._to_device(x))
        return result

    def _to_device(self, x: AnyArray) -> Array:
        """`x` on the device, with the same layout."""
        result: Array = jax.device_put(x, self._device)
        return result

    def numpy(self, x: Array) -> AnyArray:
        with guarded(self._collective):
            memory = np.asarray(x)
        return np.moveaxis(memory, -1, 2) if memory.ndim == 5 else memory

    def read(self, arrays: Sequence[Array]) -> list[AnyArray]:
        """Copy arrays to the host. All copies are started before the first one is waited for."""
        with guarded(self._collective):
            return [self.numpy(x) for x in jax.device_get(list(arrays))]

    def encode(self, inputs: UInt8, coding: Coding) -> Array:
        x = self.asarray(inputs)
        image: Array = x if coding == "events" else _image(x)
        return image

    def unpack(self, frames: PackedFrames) -> Array:
        steps: Array = _unpack(self._to_device(frames.bits), frames.steps)
        return steps

    @property
    def rules(self) -> Mapping[type[Op], Rule[Array]]:
        return {**_RULES, **on_cpu.RULES} if self._on_cpu else _RULES

    @property
    def fusions(self) -> Sequence[Fusion[Array]]:
        return (on_cpu.fuse,) if self._on_cpu else ()

    def dropout_mask(
        self,
        seed: int | Array,
        layer: int,
        step: int | Array,
        shape: Shape,
        rate: float,
        first: int | Array = 0,
    ) -> Array:
        if self._on_cpu:
            host_words = (x if isinstance(x, Array) else np.uint32(int(x) & 0xFFFFFFFF) for x in (seed, step, first))
            return on_cpu.dropout_mask(tuple(host_words), layer, tuple(shape), rate)
        # Inside a compiled function, these are traced words already.
        words = (x if isinstance(x, Array) else np.uint32(int(x) & 0xFFFFFFFF) for x in (seed, step))
        if isinstance(first, int) and first == 0:
            result: Array = _dropout_mask(*words, layer, tuple(shape), rate)
        else:
            word = first if isinstance(first, Array) else np.uint32(first)
            result = _dropout_mask(*words, layer, tuple(shape), rate, word)
        return result

    def dropout(self, mask: Array, s: Array) -> Array:
        dropped: Array = _dropout(mask, s)
        return dropped

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, Array],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, Array]:
        if self._on_cpu:
            return on_cpu.recur(recurrence, constants, inputs, steps, summed)
        outputs: dict[str, Array] = _recur(recurrence, dict(constants), dict(inputs), steps, summed=summed)
        return outputs

    def population_forward(
        self, equations: NeuronEquations, zs: Sequence[Array], steps: int, learned: Mapping[str, Array]
    ) -> tuple[Array, NeuronResiduals[Array]]:
        if self._on_cpu and on_cpu.fits(zs[0]):
            return on_cpu.population_forward(equations, zs, steps, learned)
        return super().population_forward(equations, zs, steps, learned)

    def population_backward(
        self, equations: NeuronEquations, residuals: NeuronResiduals[Array], ds: Array, static: Sequence[bool]
    ) -> tuple[tuple[Array, ...], dict[str, Array]]:
        if self._on_cpu and on_cpu.fits(ds):
            return on_cpu.population_backward(equations, residuals, ds, static)
        return super().population_backward(equations, residuals, ds, static)

    def updated(
        self, scalars: Scalars, domain: tuple[float, float] | None, w: Array, g: Array, *moments: Array
    ) -> tuple[Array, ...]:
        if domain is None and self._on_cpu:
            return on_cpu.updated(scalars, w, g, *moments)
        return super().updated(scalars, domain, w, g, *moments)

    def channelwise(self, recurrence: Recurrence, arrays: Mapping[str, Array], numbers: Mapping[str, Array]) -> Array:
        if self._on_cpu:
            return on_cpu.channelwise(recurrence, arrays, numbers)
        return super().channelwise(recurrence, arrays, numbers)

    def scan(
        self,
        step: Callable[[tuple[Array, ...], dict[str, Array]], tuple[tuple[Array, ...], dict[str, Array]]],
        carried: tuple[Array, ...],
        inputs: Mapping[str, Array],
        steps: int,
        *,
        reverse: bool = False,
    ) -> tuple[tuple[Array, ...], dict[str, Array]]:
        constant_inputs = {name: x for name, x in inputs.items() if len(x) == 1}
        varying_inputs = {name: x for name, x in inputs.items() if name not in constant_inputs}

        def scan_step(
            states: tuple[Array, ...], step_inputs: dict[str, Array]
        ) -> tuple[tuple[Array, ...], dict[str, Array]]:
            new_states, outputs = step(
                states, {**constant_inputs, **{name: x[None] for name, x in step_inputs.items()}}
            )
            return new_states, {name: x[0] for name, x in outputs.items()}

        results: tuple[tuple[Array, ...], dict[str, Array]] = jax.lax.scan(
            scan_step, match_replication(carried, inputs), varying_inputs, length=steps, reverse=reverse
        )
        return results

    def sample_grid(self, dz: Array, bits: int) -> Array:
        if self._on_cpu:
            return on_cpu.sample_grid(dz, bits)
        result: Array = _sample_grid(dz, bits)
        return result

    def channel_totals(self, x: Array, count: int) -> Array:
        return _totals(x, count)

    def delay_forward(self, x: Array, delays: Array) -> Array:
        return on_cpu.delay_forward(x, delays) if self._on_cpu else _delay_forward(x, delays)

    def delay_backward(self, error: Array, delays: Array) -> Array:
        return on_cpu.delay_backward(error, delays) if self._on_cpu else _delay_backward(error, delays)

    def delay_gradient(self, x: Array, delays: Array, error: Array) -> Array:
        return on_cpu.delay_gradient(x, delays, error) if self._on_cpu else _delay_gradient(x, delays, error)

    def moments(self, z: Array, exponent: Array) -> Array:
        if self._on_cpu:
            return on_cpu.moments(z, exponent)
        sums: Array = _jitted_moments(z, exponent)
        return sums

    def error_moments(self, dy: Array, z: Array, exponent: Array) -> Array:
        if self._on_cpu:
            return on_cpu.error_moments(dy, z, exponent)
        sums: Array = _jitted_error_moments(dy, z, exponent)
        return sums

    def of_channels(self, function: Callable[..., Any], *arrays: Any, **fixed: Any) -> Any:
        if self._on_cpu:
            return on_cpu.of_channels(function, *arrays, **fixed)
        with enable_x64():
            return _of_channels(function, tuple(sorted(fixed.items())), *arrays)

    def rounded(self, x: Array) -> Array:
        return x if x.dtype == np.float32 else rounded(x)

    def add(self, a: Array, b: Array) -> Array:
        with enable_x64():
            return a + b

    def readout_error(
        self, loss: CrossEntropy, u: Array, targets: Array, batch: int, inside: Array | None = None
    ) -> Array:
        error: Array = loss.error(u, targets, batch, inside, ARITHMETIC)
        return error

    def choose_grid(self, projection: Projection, w: Array) -> tuple[Array, GridChoice]:
        """Weights on their grid, and the grid as a program can compute it: `grid.weight_grid`."""
        return on_cpu.weight_grid(projection, w) if self._on_cpu else weight_grid(projection, w)

    def weight_grids(
        self, projections: Sequence[Projection], weights: Sequence[Array]
    ) -> list[tuple[Array, WeightGrid]]:
        if self._on_cpu and not isinstance(self._collective, JaxCollective):
            return [on_cpu.weight_grid_of_values(*arguments) for arguments in zip(projections, weights, strict=True)]
        grids = self.compiled(weight_grids, tuple(projections))(tuple(weights))
        choices = jax.device_get([choice for _, choice in grids])
        return [
            (wq, _checked_grid(projection, choice, w))
            for projection, w, (wq, _), choice in zip(projections, weights, grids, choices, strict=True)
        ]

    def largest_error(self, dz: Array) -> Array:
        if self._on_cpu:
            return on_cpu.largest_error(dz)
        result: Array = _largest_error(dz)
        return result

    def error_grid(self, dz: Array, bits: int, largest: Array | None = None) -> tuple[Array, Array]:
        if self._on_cpu:
            return on_cpu.error_grid(dz, bits, largest)
        result: tuple[Array, Array] = _error_grid(dz, bits, largest)
        return result

    def gradient_squares(self, gradients: Sequence[Array]) -> Array:
        if self._on_cpu:
            return on_cpu.gradient_squares(gradients)
        result: Array = _gradient_squares(tuple(gradients))
        return result

    def spike_count(self, s: Array) -> Array:
        if self._on_cpu:
            return on_cpu.spike_count(s)
        result: Array = _spike_count(s)
        return result

    def pack_spikes(self, s: Array) -> Any:
        # Because of the barrier, the compiler cannot see that a block runs on the same spikes again.
        barrier: Any = jax.lax.optimization_barrier
        return barrier(jnp.packbits(s.astype(np.uint8), axis=None)), s.shape, s.dtype

    def unpack_spikes(self, packed: Any) -> Array:
        bits, shape, dtype = packed
        return jnp.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(dtype)


class _JaxOperations(JaxBackend):
    """Only the operations, on arrays on any device."""

    def open(self, device: str | None) -> str:
        self._compiled, self._alone, self._collective = {}, Alone(), Alone()
        return "any"

    @cached_property
    def _on_cpu(self) -> bool:  # type: ignore[override]
        """Whether JAX computes on the CPU. This is checked when the first function is traced, not at import."""
        return jax.default_backend() == "cpu" and os.environ.get("STSBP_JAX_KERNELS", "1") != "0"

    # Code that uses float64 is not a separate jitted function here. `vmap` of a caller would map it without float64.
    @property
    def rules(self) -> Mapping[type[Op], Rule[Array]]:
        return {**_TRACED_RULES, **on_cpu.RULES} if self._on_cpu else _TRACED_RULES

    def scan(
        self,
        step: Callable[[tuple[Array, ...], dict[str, Array]], tuple[tuple[Array, ...], dict[str, Array]]],
        carried: tuple[Array, ...],
        inputs: Mapping[str, Array],
        steps: int,
        *,
        reverse: bool = False,
    ) -> tuple[tuple[Array, ...], dict[str, Array]]:
        with enable_x64():
            return super().scan(step, carried, inputs, steps, reverse=reverse)

    def moments(self, z: Array, exponent: Array) -> Array:
        return on_cpu.moments(z, exponent) if self._on_cpu else _moments(z, exponent)

    def error_moments(self, dy: Array, z: Array, exponent: Array) -> Array:
        return on_cpu.error_moments(dy, z, exponent) if self._on_cpu else _error_moments(dy, z, exponent)

    def of_channels(self, function: Callable[..., Any], *arrays: Any, **fixed: Any) -> Any:
        if self._on_cpu:
            return on_cpu.of_channels(function, *arrays, **fixed)
        with enable_x64():
            return _channels(function, tuple(fixed.items()), *arrays)


OPERATIONS = _JaxOperations()
"""The operations for functions of ordinary JAX code. They open no device and change no settings of the process."""


def _find(name: str) -> list[Any]:
    platform = name.partition(":")[0]
    if platform not in _PLATFORMS:
        raise LookupError(f"device names are {', '.join(_PLATFORMS)}, or one with an index such as gpu:1, or gpu:all")
    present: list[Any] = jax.local_devices(backend=platform)
    if name == platform + _ALL:
        return present
    devices_by_name = {platform if i == 0 else f"{platform}:{i}": device for i, device in enumerate(present)}
    if name not in devices_by_name:
        raise LookupError(f"the {platform} devices of this process are {', '.join(devices_by_name)}")
    return [devices_by_name[name]]


def _failure_text(platform: str, error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return f"jax finds no {platform}: {lines[0] if lines else type(error).__name__}"


def weight_grids(
    backend: JaxBackend, projections: tuple[Projection, ...], weights: tuple[Array, ...]
) -> list[tuple[Array, GridChoice]]:
    """Weights on their grids, and the grids as `GridChoice`, which is what a device can compute."""
    return [backend.choose_grid(projection, w) for projection, w in zip(projections, weights, strict=True)]


def _checked_grid(projection: Projection, choice: GridChoice, w: Array) -> WeightGrid:
    """The grid. If the spec refuses these weights, its error is raised."""
    return describe_grid(projection, choice) or grid_of_spec(projection, w)


@_jit()
def _channels_last(x: Array) -> Array:
    return jnp.moveaxis(x, 2, -1)


@_jit()
def _image(x: Array) -> Array:
    """Images `x / 256`, channels-last, with one step."""
    return jnp.moveaxis(x[None].astype(np.float32) * np.float32(2.0**-8), 2, -1)


@_jit()
def _dropout(mask: Array, s: Array) -> Array:
    return dropout.forward(jnp.moveaxis(mask, 1, -1), s)


@_jit("layer", "shape", "rate")
def _dropout_mask(seed: Array, step: Array, layer: int, shape: Shape, rate: float, first: Array | None = None) -> Array:
    return keep_mask(seed, layer, step, shape, rate, 0 if first is None else first)


def _channels(function: Callable[..., Any], fixed: tuple[tuple[str, Any], ...], *arrays: Any) -> Any:
    # From the last argument, whose values the compiler cannot know.
    traced_array = jax.tree.leaves(arrays)[-1]
    return function(batchnorm.JaxFloat64(traced_array), *arrays, **dict(fixed))


@_jit()
def _spike_count(s: Array) -> Array:
    """Number of spikes of each sample, int32 `[B]`. The sum over time comes first because it vectorises."""
    return s.astype(np.int32).sum(0, dtype=np.int32).reshape(s.shape[1], -1).sum(1)


def _of_weights(module: Any) -> Rule[Array]:
    """The rule of an operation with weights. It is traced if the caller is traced."""

    def backward(
        op: Op, saved: Any, dz: Array, precision: Precision, need_input: bool, need_weights: bool = True
    ) -> tuple[Array | None, Array | None]:
        gradients: tuple[Array | None, Array | None] = module.backward(
            op, *saved, dz, precision=precision, need_input=need_input, need_weights=need_weights
        )
        return gradients

    return Rule(lambda op, s, wq: (module.forward(op, s, wq), (s, wq)), backward)


def _compiled(rule: Rule[Array]) -> Rule[Array]:
    forward = _jit("op")(lambda op, s, wq: rule.forward(op, s, wq)[0])
    backward = _jit("op", "precision", "need_input", "need_weights")(rule.backward)
    return Rule(lambda op, s, wq: (forward(op, s, wq), (s, wq)), backward)


def _max_pooling(
    pool: MaxPool2d, s: Array, forward: Callable[..., tuple[Array, Array]] = maxpool2d.forward
) -> tuple[Array, tuple[Shape, Array]]:
    largest, first = forward(pool, s)
    return largest, (s.shape, first)


_TRACED_RULES: Mapping[type[Op], Rule[Array]] = {
    Conv2d: _of_weights(conv2d),
    Linear: _of_weights(linear),
    AvgPool2d: Rule(lambda pool, s: (avgpool2d.forward(pool, s), s.shape), avgpool2d.backward),
    MaxPool2d: Rule(_max_pooling, lambda pool, saved, d: maxpool2d.backward(pool, saved[0], saved[1], d)),
    Upsample2d: Rule(lambda up, s: (upsample2d.forward(up, s), None), lambda up, _, d: upsample2d.backward(up, d)),
    Flatten: Rule(lambda _, s: (flatten.flatten(s), s.shape), lambda _, shape, d: flatten.backward(shape, d)),
}
_pool, _unpool = _jit("pool")(avgpool2d.forward), _jit("pool", "shape")(avgpool2d.backward)
_max, _unmax = _jit("pool")(maxpool2d.forward), _jit("pool", "shape")(maxpool2d.backward)
_upsample, _upsample_backward = _jit("up")(upsample2d.forward), _jit("up")(upsample2d.backward)
_flat, _unflat = _jit()(flatten.flatten), _jit("shape")(flatten.backward)
_RULES: Mapping[type[Op], Rule[Array]] = {
    Conv2d: _compiled(_TRACED_RULES[Conv2d]),
    Linear: _compiled(_TRACED_RULES[Linear]),
    AvgPool2d: Rule(lambda pool, s: (_pool(pool, s), s.shape), _unpool),
    MaxPool2d: Rule(partial(_max_pooling, forward=_max), lambda pool, saved, d: _unmax(pool, *saved, d)),
    Upsample2d: Rule(lambda up, s: (_upsample(up, s), None), lambda up, _, d: _upsample_backward(up, d)),
    Flatten: Rule(lambda _, s: (_flat(s), s.shape), lambda _, shape, d: _unflat(shape, d)),
}
_delay_forward = _jit()(lambda x, delays: ARITHMETIC.delayed(x, ARITHMETIC.whole_delays(delays)))
_delay_backward = _jit()(lambda error, delays: ARITHMETIC.delayed(error, -ARITHMETIC.whole_delays(delays)))
_delay_gradient = in_float64(
    lambda x, delays, error: ARITHMETIC.channel_totals(ARITHMETIC.delay_terms(x, delays, error), len(delays))
)
_totals = in_float64(ARITHMETIC.channel_totals)
_moments = in_float64(partial(spec_batchnorm.moments, arithmetic=ARITHMETIC))
_error_moments = in_float64(partial(spec_batchnorm.error_moments, arithmetic=ARITHMETIC))
_of_channels = partial(jax.jit, static_argnums=(0, 1), inline=True)(_channels)
_recur = _jit("recurrence", "steps", "summed")(recur)
_unpack = _jit("steps")(ARITHMETIC.unpacked)
_largest_error, _error_grid = _jit()(ARITHMETIC.largest_error), _jit("bits")(in_float64(ARITHMETIC.error_grid))
_sample_grid = _jit("bits")(ARITHMETIC.sample_grid)
_gradient_squares = _jit()(in_float64(partial(gradient_squares, arithmetic=ARITHMETIC)))
_jitted_moments, _jitted_error_moments = _jit()(_moments), _jit()(_error_moments)
