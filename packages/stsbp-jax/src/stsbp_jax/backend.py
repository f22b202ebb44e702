"""The JAX backend: the spec's interface over pure functions, and a trainer whose step is one jitted function.

At this door arrays are laid out as the spec says; inside the jits images are channels-last. Nothing changes the
user's configuration of JAX: float64 exists only inside the functions that need it (`grid.wide`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec import grid as spec_grid
from stsbp_spec.backend import AbstractBackend, Batch, Device, LayerRun, RunResult, ValueAndGrad
from stsbp_spec.checks import check_batch, check_dropout, check_inputs, check_loss, check_precision, check_weights
from stsbp_spec.encoders.packed import Inputs, unpacked
from stsbp_spec.equations import Constants
from stsbp_spec.errors import BackendError, NumericError
from stsbp_spec.expr import Recurrence
from stsbp_spec.grid import WeightGrid, ZeroedErrors, unsigned_zeros
from stsbp_spec.losses import Loss
from stsbp_spec.memory import keep_freed_memory
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.optim.adamw import AdamW
from stsbp_spec.random import check_seed
from stsbp_spec.synapses import AvgPool2d, Conv2d, Linear
from stsbp_spec.trainer import Prediction, StepResult, Trainer, TrainState, zeroed_errors
from stsbp_spec.typing import AnyArray, Coding, Float32, Memory, Precision, Shape, UInt8

from stsbp_jax import train_step
from stsbp_jax.grid import GridChoice, describe_grid, error_grid, weight_grid
from stsbp_jax.optim.adamw import gradient_norm
from stsbp_jax.pairs import PAIRS
from stsbp_jax.random import keep_mask
from stsbp_jax.recurrence import recur
from stsbp_jax.train_step import Compiled, channels_first, channels_last

__all__ = ["JaxBackend", "JaxTrainer"]

_PLATFORMS = ("cpu", "gpu", "tpu")


def _jit(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` with arguments that are fixed when it is compiled (the spec's frozen parameters are hashable)."""
    return partial(jax.jit, static_argnames=static)


class JaxBackend(AbstractBackend[Array]):
    """JAX on the device that JAX chooses, or `cpu`, `gpu`, `gpu:1`, `tpu`, ..."""

    name: ClassVar[str] = "jax"

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        found: list[Device] = []
        for platform in _PLATFORMS:
            try:
                present = jax.devices(platform)
            except RuntimeError as error:
                found.append(Device(platform, f"jax {jax.__version__}", problem=_why(platform, error)))
                continue
            for i, device in enumerate(present):
                name = platform if i == 0 else f"{platform}:{i}"
                found.append(Device(name, f"jax {jax.__version__} on {device.device_kind}"))
        return tuple(found)

    def open(self, device: str | None) -> str:
        if device is None or device.startswith("cpu"):
            # XLA's worker threads take the memory.
            keep_freed_memory(one_pool=True)
        try:
            self._device: Any = jax.devices()[0] if device is None else _find(device)
        except (RuntimeError, LookupError) as error:
            usable = ", ".join(d.name for d in self.devices() if d.problem is None) or "none"
            raise BackendError(
                f"backend 'jax' cannot use the device {device or 'of its choice'!r}: {error}; usable here: {usable}"
            ) from error
        self._compiled: dict[Any, Compiled] = {}
        if device is not None:
            return device
        platform: str = self._device.platform
        return platform

    def compiled(self, key: Any, function: Callable[..., Any], what: str) -> Compiled:
        """The compiled form of `function`, one for each `key`."""
        if key not in self._compiled:
            self._compiled[key] = Compiled(function, what)
        return self._compiled[key]

    def check_precision(self, precision: Precision) -> None:
        """Raise `BackendError` for `reproducible` where the device has no float64 of its own."""
        if precision == "reproducible" and self._device.platform == "tpu":
            raise BackendError(
                "backend 'jax': a TPU emulates float64 with fewer bits than reproducible precision needs; "
                "take --precision fast, or the device cpu or gpu"
            )

    def asarray(self, x: AnyArray) -> Array:
        result: Array = jax.device_put(x, self._device)
        return result

    def numpy(self, x: Array) -> AnyArray:
        return np.asarray(x)

    def encode(self, inputs: UInt8, coding: Coding) -> Array:
        result: Array = _encode(self.asarray(inputs), coding)
        return result

    def synapse_forward(self, synapse: Conv2d | Linear, s: Array, wq: Array) -> tuple[Array, Any]:
        return _synapse_forward(synapse, s, wq), (s, wq)

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Array, *, precision: Precision, need_input: bool
    ) -> tuple[Array | None, Array]:
        self.check_precision(precision)
        s, wq = residuals
        ds, dw = _synapse_backward(synapse, s, wq, dz, precision=precision, need_input=need_input)
        return ds, dw

    def avgpool2d_forward(self, pool: AvgPool2d, s: Array) -> tuple[Array, Shape]:
        return _avgpool2d_forward(pool, s), s.shape

    def avgpool2d_backward(self, pool: AvgPool2d, residuals: Shape, d: Array) -> Array:
        result: Array = _avgpool2d_backward(pool, residuals, d)
        return result

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float) -> Array:
        words = tuple(self.asarray(word) for word in _dropout_words(seed, step))
        result: Array = _dropout_mask(words, layer, tuple(shape), rate)
        return result

    def dropout(self, mask: Array, s: Array) -> Array:
        dropped: Array = PAIRS.dropout(mask, s)
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
        found: dict[str, Array] = _recur(recurrence, dict(constants), dict(inputs), steps, summed=summed)
        return found

    def weight_grid(self, block: Block, w: Array) -> tuple[Array, WeightGrid]:
        wq, choice = _weight_grid(block, w)
        return wq, _checked_grid(block, choice, w)

    def error_grid(self, dz: Array, bits: int) -> tuple[Array, Array]:
        result: tuple[Array, Array] = _error_grid(dz, bits)
        return result

    def gradient_norm(self, gradients: Sequence[Array]) -> float:
        return float(_gradient_norm(tuple(gradients)))

    def spike_count(self, s: Array) -> Array:
        return jnp.count_nonzero(s)

    def value_and_grad(
        self,
        network: NetworkSpec,
        loss: Loss,
        weights: dict[str, Float32],
        batch: Batch,
        *,
        precision: Precision = "fast",
        dropout: tuple[int, int] | None = None,
    ) -> ValueAndGrad:
        check_precision(network, precision)
        self.check_precision(precision)
        check_loss(loss, precision)
        check_dropout(dropout)
        check_weights(network, weights)
        check_batch(network, batch)
        training = dropout is not None

        def function(weights: Any, inputs: Array, targets: Array, words: Any) -> Any:
            result = train_step.forward(network, weights, inputs, targets.shape[0], words)
            gradients = train_step.backward(network, loss, result, targets, precision, training=training)
            return result.spikes.astype(np.uint8), result.grids, gradients

        run = self.compiled(("value_and_grad", network, loss, precision, training), function, "gradient")
        words = None if dropout is None else tuple(self.asarray(x) for x in _dropout_words(*dropout))
        native = {name: self.asarray(w) for name, w in weights.items()}
        spikes, grids, gradients = jax.device_get(
            run(native, self.asarray(batch.inputs), self.asarray(batch.targets), words)
        )
        _check_grids(network, grids, native)
        _check_finite(network, gradients.finite, float(gradients.norm), "")
        value = loss.mean(spikes, batch.targets, network.output_psp)
        named = {name: unsigned_zeros(gradients.values[name]) for name in network.weight_shapes}
        return ValueAndGrad(value, spikes, named, _zeroed(network, gradients.zeroed))

    def run(self, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int) -> RunResult:
        check_weights(network, weights)
        check_inputs(network, inputs, steps)

        def function(weights: Any, inputs: Array) -> Any:
            result = train_step.forward(network, weights, inputs, steps, None)
            layers = {
                t.block.name: (
                    channels_first(t.spikes.astype(np.uint8)),
                    channels_first(PAIRS.neuron_potentials(t.lif)),
                )
                for t in result.traces
            }
            return layers, result.grids

        native = {name: self.asarray(w) for name, w in weights.items()}
        compiled = self.compiled(("run", network, steps), function, "forward pass")
        layers, grids = jax.device_get(compiled(native, self.asarray(inputs)))
        described = _check_grids(network, grids, native)
        return RunResult({name: LayerRun(np.array(s), unsigned_zeros(u)) for name, (s, u) in layers.items()}, described)

    def trainer(
        self,
        network: NetworkSpec,
        loss: Loss,
        optimizer: AdamW,
        *,
        precision: Precision = "fast",
        seed: int = 0,
        memory: Memory = "full",
    ) -> Trainer[Array]:
        self.check_precision(precision)
        return JaxTrainer(self, network, loss, optimizer, precision, seed, memory)


class JaxTrainer(Trainer[Array]):
    """The spec's trainer with a step that is one jitted function; compiles once for each batch shape."""

    backend: JaxBackend

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling steps and predictions so far, not contained in later calls."""
        return sum(compiled.seconds for compiled in (self._step, self._predict))

    @property
    def _step(self) -> Compiled:
        clip_norm = self.optimizer.clip_norm
        fixed = (self.network, self.loss, self.precision, clip_norm, self.memory)
        return self.backend.compiled(("step", *fixed), partial(train_step.step, *fixed), "training step")

    @property
    def _predict(self) -> Compiled:
        network = self.network

        def function(weights: Any, inputs: Array, steps: Array) -> Any:
            result = train_step.forward(network, weights, inputs, steps.shape[0], None)
            return result.spikes.astype(np.uint8), result.counts, result.grids

        return self.backend.compiled(("predict", network), function, "prediction")

    def step(self, state: TrainState[Array], batch: Batch[Inputs]) -> tuple[TrainState[Array], StepResult]:
        """One update on a batch; the passed state stays as it is."""
        check_batch(self.network, batch)
        backend = self.backend
        inputs, targets = backend.asarray(unpacked(batch.inputs)), backend.asarray(batch.targets)
        words = tuple(backend.asarray(x) for x in _dropout_words(self.seed, state.step))
        constants = backend.asarray(train_step.scalars(self.optimizer, state.step))
        done: train_step.Step = self._step(state.weights, state.m, state.v, inputs, targets, words, constants)
        spikes, counts, grids, finite, norm, zeroed = jax.device_get(
            (done.spikes, done.counts, done.grids, done.finite, done.norm, done.zeroed)
        )
        described = _check_grids(self.network, grids, state.weights)
        _check_finite(self.network, finite, float(norm), f"step {state.step}: ")
        result = StepResult(
            spikes=np.array(spikes),
            rates=_rates(self.network, counts, len(spikes)),
            grids=described,
            gradient_norm=float(norm),
            learning_rate=self.optimizer.rate(state.step),
            measure=partial(self.loss.mean, spikes, batch.targets, self.network.output_psp),
            zeroed=_zeroed(self.network, zeroed),
        )
        return TrainState(state.step + 1, done.weights, done.m, done.v), result

    def predict(self, state: TrainState[Array], inputs: Inputs, steps: int) -> Prediction:
        """Output of the network without dropout; the state is not changed."""
        check_inputs(self.network, inputs, steps)
        # The number of steps is a shape to the compiler; an empty array carries it.
        length = np.empty((steps, 0), np.uint8)
        spikes, counts, grids = jax.device_get(
            self._predict(state.weights, self.backend.asarray(unpacked(inputs)), self.backend.asarray(length))
        )
        _check_grids(self.network, grids, state.weights)
        return Prediction(np.array(spikes), _rates(self.network, counts, steps))


def _find(name: str) -> Any:
    platform, _, index = name.partition(":")
    if platform not in _PLATFORMS:
        raise LookupError(f"device names are {', '.join(_PLATFORMS)}, or one with an index such as gpu:1")
    present = jax.devices(platform)
    if index and not (index.isdecimal() and int(index) < len(present)):
        raise LookupError(f"it has {len(present)} {platform} device(s), counted from 0")
    return present[int(index or 0)]


def _why(platform: str, error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return f"jax finds no {platform}: {lines[0] if lines else type(error).__name__}"


def _dropout_words(seed: int, step: int) -> tuple[AnyArray, AnyArray]:
    """Seed and step of the masks as uint32 scalars."""
    return np.asarray(check_seed(seed), np.uint32), np.asarray(int(step) & 0xFFFFFFFF, np.uint32)


def _rates(network: NetworkSpec, counts: dict[str, AnyArray], steps: int) -> dict[str, float]:
    return {
        b.name: float(counts[b.name].sum(dtype=np.int64)) / (steps * len(counts[b.name]) * math.prod(b.output_shape))
        for b in network.blocks
    }


def _zeroed(network: NetworkSpec, counts: dict[str, AnyArray]) -> dict[str, ZeroedErrors]:
    """In the order of the layers, which a jit's dictionary has lost."""
    return zeroed_errors({name: counts[name] for name in network.weight_shapes if name in counts})


def _checked_grid(block: Block, choice: GridChoice, w: Array) -> WeightGrid:
    """The grid, or the error with which the spec refuses these weights."""
    found = describe_grid(block, choice)
    if found is not None:
        return found
    _, found = spec_grid.weight_grid(
        np.asarray(w),
        weight_bits=block.synapse.weight_bits,
        input_exponent=block.input.exponent,
        input_max=block.input.maximum,
        layer=block.name,
    )
    return found


def _check_grids(
    network: NetworkSpec, grids: dict[str, GridChoice], weights: dict[str, Array]
) -> dict[str, WeightGrid]:
    return {b.name: _checked_grid(b, grids[b.name], weights[b.name]) for b in network.blocks}


def _check_finite(network: NetworkSpec, finite: dict[str, AnyArray], norm: float, where: str) -> None:
    if math.isfinite(norm):
        return
    # The backward pass runs from the output down: the last layer with a bad gradient is where it began.
    bad = next(block.name for block in reversed(network.blocks) if not finite[block.name])
    raise NumericError(f"{where}the gradient of layer {bad} is not finite; lower the learning rate or clip gradients")


@_jit("coding")
def _encode(inputs: Array, coding: Coding) -> Array:
    return channels_first(train_step.encode(inputs, coding))


@_jit("synapse")
def _synapse_forward(synapse: Conv2d | Linear, s: Array, wq: Array) -> Array:
    return channels_first(PAIRS.synapse_forward(synapse, channels_last(s), wq)[0])


@_jit("synapse", "precision", "need_input")
def _synapse_backward(
    synapse: Conv2d | Linear, s: Array, wq: Array, dz: Array, *, precision: Precision, need_input: bool
) -> tuple[Array | None, Array]:
    residuals = (channels_last(s), wq)
    ds, dw = PAIRS.synapse_backward(synapse, residuals, channels_last(dz), precision=precision, need_input=need_input)
    return None if ds is None else channels_first(ds), dw


@_jit("pool")
def _avgpool2d_forward(pool: AvgPool2d, s: Array) -> Array:
    return channels_first(PAIRS.avgpool2d_forward(pool, channels_last(s))[0])


@_jit("pool", "shape")
def _avgpool2d_backward(pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    t, b, c, h, w = shape
    return channels_first(PAIRS.avgpool2d_backward(pool, (t, b, h, w, c), channels_last(d)))


@_jit("layer", "shape", "rate")
def _dropout_mask(words: tuple[Array, Array], layer: int, shape: Shape, rate: float) -> Array:
    return keep_mask(words[0], layer, words[1], shape, rate)


_recur = _jit("recurrence", "steps", "summed")(recur)
_weight_grid = _jit("block")(weight_grid)
_error_grid = _jit("bits")(error_grid)
_gradient_norm = jax.jit(gradient_norm)
