"""Training state and steps on top of a backend's pairs; the loop above sees batches, floats and numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from stsbp_spec.equations import neuron_equations
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.grid import SMALLEST_NORMAL, WeightGrid, ZeroedErrors, unsigned_zeros
from stsbp_spec.losses import LOSSES
from stsbp_spec.losses.base import Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.optim.adamw import AdamW, clip_factor
from stsbp_spec.passes import FORWARD_PASSES, BlockTrace, LeanTrace, backward_pass, forward_pass
from stsbp_spec.random import check_seed
from stsbp_spec.typing import AnyArray, Float32, Memory, Native, Precision, Shape, UInt8
from stsbp_spec.values import integer, listed, shown

if TYPE_CHECKING:
    from stsbp_spec.backend import AbstractBackend, Batch, RunResult, ValueAndGrad

__all__ = [
    "Prediction",
    "StepResult",
    "TrainState",
    "Trainer",
    "check_batch",
    "check_weights",
    "run",
    "value_and_grad",
    "zeroed_errors",
]

MAX_STEPS = 2**24
"""Time steps of a run: spikes of a neuron are counted in float32, which holds every integer up to here."""

T = TypeVar("T", BlockTrace, LeanTrace)


@dataclass
class TrainState:
    """Master weights and optimiser state, native arrays by layer name; opaque to the loop."""

    step: int
    weights: dict[str, Native]
    m: dict[str, Native]
    v: dict[str, Native]


@dataclass(frozen=True)
class StepResult:
    """What one update reports.

    Attributes:
        loss: mean distance of the batch before the update.
        spikes: output spike trains, `[T, B, N]` uint8.
        rates: mean spikes per neuron and step of each layer.
        grids: weight grid of each layer.
        gradient_norm: global norm before clipping.
        learning_rate: of this update.
        zeroed: what the error grid took from each layer; empty in `fast` precision, which has none.
    """

    loss: float
    spikes: UInt8
    rates: dict[str, float]
    grids: dict[str, WeightGrid]
    gradient_norm: float
    learning_rate: float
    zeroed: dict[str, ZeroedErrors] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """Output spike trains `[T, B, N]` uint8 and mean spikes per neuron and step of each layer."""

    spikes: UInt8
    rates: dict[str, float]


class Trainer:
    """Forward, loss, backward, update; one object for a whole training run.

    Args:
        backend: computes the pairs.
        network, loss, optimizer: what is trained.
        precision: of the backward pass.
        seed: of dropout masks.
        memory: `low`: keep one bit a spike between the passes, and compute each layer twice; the numbers are the same.

    Raises:
        SpecError: `reproducible` precision with a surrogate that is not exact, a network, loss or optimiser that is
            none, a seed outside `[0, 2**32)`.
    """

    def __init__(
        self,
        backend: AbstractBackend,
        network: NetworkSpec,
        loss: Loss,
        optimizer: AdamW,
        precision: Precision = "fast",
        seed: int = 0,
        memory: Memory = "full",
    ) -> None:
        check_precision(network, precision)
        if not isinstance(memory, str) or memory not in FORWARD_PASSES:
            raise SpecError(f"memory is 'full' or 'low', got {shown(memory)}")
        check_loss(loss)
        if not isinstance(optimizer, AdamW):
            raise SpecError(f"an optimiser is an AdamW(), got {shown(optimizer)}")
        self.backend = backend
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.precision: Precision = precision
        self.seed = check_seed(seed)
        self.memory: Memory = memory
        self.forward = FORWARD_PASSES[memory]

    def init(self, weights: dict[str, Float32]) -> TrainState:
        """State before the first update."""
        check_weights(self.network, weights)
        native, m, v = (
            {name: self.backend.asarray(make(w)) for name, w in weights.items()}
            for make in (_without_subnormals, np.zeros_like, np.zeros_like)
        )
        return TrainState(0, native, m, v)

    @np.errstate(over="ignore", invalid="ignore")  # what overflows ends in an error that names the layer
    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
        """One update on a batch; the passed state must not be used again (its arrays may be updated in place)."""
        backend, network = self.backend, self.network
        steps = check_batch(network, batch)
        traces, grids = _forward(
            backend, network, state.weights, batch.inputs, steps, (self.seed, state.step), self.forward
        )
        error = backend.loss_error(self.loss, network.output_psp, traces[-1].spikes, backend.asarray(batch.targets))
        gradients = backward_pass(backend, traces, error, self.precision, training=True)
        norm = backend.gradient_norm(list(gradients.values()))
        if not math.isfinite(norm):
            raise _not_finite(backend, gradients, f"step {state.step}: ")
        scalars = self.optimizer.scalars(state.step, clip_factor(norm, self.optimizer.clip_norm))
        new = TrainState(state.step + 1, {}, {}, {})
        for name, g in gradients.items():
            new.weights[name], new.m[name], new.v[name] = backend.adamw(
                scalars, state.weights[name], g, state.m[name], state.v[name]
            )
        spikes = backend.numpy(traces[-1].spikes).astype(np.uint8)
        result = StepResult(
            loss=self.loss.mean(spikes, batch.targets, network.output_psp),
            spikes=spikes,
            rates=_rates(backend, traces),
            grids=grids,
            gradient_norm=norm,
            learning_rate=self.optimizer.rate(state.step),
            zeroed=_zeroed(backend, traces),
        )
        return new, result

    @np.errstate(over="ignore", invalid="ignore")
    def predict(self, state: TrainState, inputs: UInt8, steps: int) -> Prediction:
        """Output of the network without dropout; the state is not changed."""
        check_inputs(self.network, inputs, steps)
        steps = int(steps)
        traces, _ = _forward(self.backend, self.network, state.weights, inputs, steps, None, forward_pass)
        spikes = self.backend.numpy(traces[-1].spikes).astype(np.uint8)
        return Prediction(spikes, _rates(self.backend, traces))

    def export_state(self, state: TrainState) -> dict[str, AnyArray]:
        """The state as numpy arrays: `weight/NAME`, `adamw.m/NAME`, `adamw.v/NAME`, `step`. Any backend imports it."""
        exported: dict[str, AnyArray] = {"step": np.asarray(state.step, dtype=np.int64)}
        for prefix, arrays in (("weight", state.weights), ("adamw.m", state.m), ("adamw.v", state.v)):
            for name, x in arrays.items():
                exported[f"{prefix}/{name}"] = _without_subnormals(self.backend.numpy(x))
        return exported

    def import_state(self, exported: dict[str, AnyArray]) -> TrainState:
        """Inverse of `export_state`.

        Raises:
            ShapeError: names or shapes are not this network's, or the step is no whole number from 0 to 2^32 - 1.
            NumericError: a moment of the optimiser is none: NaN, or a square below zero.
        """
        if not isinstance(exported, Mapping):
            raise ShapeError(f"a state must be numpy arrays by name, got {type(exported).__name__}")
        step = np.asarray(exported.get("step"))
        if step.shape != () or step.dtype.kind not in "iu" or not 0 <= step < 2**32:
            raise ShapeError(f"the step of a state must be an integer from 0 to 2**32 - 1, got {shown(step.tolist())}")
        parts: list[dict[str, Native]] = []
        for prefix in ("weight", "adamw.m", "adamw.v"):
            named = {k.removeprefix(prefix + "/"): x for k, x in exported.items() if str(k).startswith(prefix + "/")}
            check_weights(self.network, named, what=prefix)
            for name, x in named.items():
                # Squares may have overflowed; weights are looked at when they meet their grid.
                if prefix != "weight" and (np.isnan(x).any() or (prefix == "adamw.v" and (x < 0).any())):
                    raise NumericError(f"{prefix} of {name} holds a value that no update leaves")
            parts.append({name: self.backend.asarray(_without_subnormals(x)) for name, x in named.items()})
        return TrainState(int(step), *parts)


def _without_subnormals(x: Float32) -> Float32:
    """A copy of `x` in which subnormal numbers, which some libraries flush, and zeros of either sign are +0."""
    return np.where(np.abs(x) < np.float32(SMALLEST_NORMAL), np.float32(0), x)


@np.errstate(over="ignore", invalid="ignore")
def value_and_grad(
    backend: AbstractBackend,
    network: NetworkSpec,
    loss: Loss,
    weights: dict[str, Float32],
    batch: Batch,
    precision: Precision,
    dropout: tuple[int, int] | None,
) -> ValueAndGrad:
    """See `AbstractBackend.value_and_grad`."""
    from stsbp_spec.backend import ValueAndGrad

    check_precision(network, precision)
    check_loss(loss)
    check_dropout(dropout)
    check_weights(network, weights)
    steps = check_batch(network, batch)
    native = {name: backend.asarray(w) for name, w in weights.items()}
    traces, _ = _forward(backend, network, native, batch.inputs, steps, dropout, forward_pass)
    error = backend.loss_error(loss, network.output_psp, traces[-1].spikes, backend.asarray(batch.targets))
    gradients = backward_pass(backend, traces, error, precision, training=dropout is not None)
    if not math.isfinite(backend.gradient_norm(list(gradients.values()))):
        raise _not_finite(backend, gradients, "")
    spikes = backend.numpy(traces[-1].spikes).astype(np.uint8)
    value = loss.mean(spikes, batch.targets, network.output_psp)
    named = {name: unsigned_zeros(backend.numpy(gradients[name])) for name in network.weight_shapes}
    return ValueAndGrad(value, spikes, named, _zeroed(backend, traces))


@np.errstate(over="ignore", invalid="ignore")
def run(
    backend: AbstractBackend, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int
) -> RunResult:
    """See `AbstractBackend.run`."""
    from stsbp_spec.backend import LayerRun, RunResult

    check_weights(network, weights)
    check_inputs(network, inputs, steps)
    steps = int(steps)
    native = {name: backend.asarray(w) for name, w in weights.items()}
    traces, grids = _forward(backend, network, native, inputs, steps, None, forward_pass)
    layers = {}
    for trace in traces:
        potentials = unsigned_zeros(backend.numpy(backend.neuron_potentials(trace.lif)))
        layers[trace.block.name] = LayerRun(backend.numpy(trace.spikes).astype(np.uint8), potentials)
    return RunResult(layers, grids)


def _forward(
    backend: AbstractBackend,
    network: NetworkSpec,
    weights: dict[str, Native],
    inputs: UInt8,
    steps: int,
    dropout: tuple[int, int] | None,
    forward: Callable[..., list[T]],
) -> tuple[list[T], dict[str, WeightGrid]]:
    wq, grids = {}, {}
    for block in network.blocks:
        wq[block.name], grids[block.name] = backend.weight_grid(block, weights[block.name])
    x = backend.encode(inputs, network.coding)
    return forward(backend, network, wq, x, steps, dropout), grids


def _rates(backend: AbstractBackend, traces: Sequence[BlockTrace | LeanTrace]) -> dict[str, float]:
    return {trace.block.name: backend.spike_rate(trace.spikes) for trace in traces}


def zeroed_errors(counts: Mapping[str, AnyArray]) -> dict[str, ZeroedErrors]:
    """What the error grid took from each layer, from the numbers of `AbstractBackend.error_grid`, `[..., 2]`."""
    totals = {name: np.reshape(numbers, (-1, 2)).sum(axis=0, dtype=np.int64) for name, numbers in counts.items()}
    return {name: ZeroedErrors(int(zeroed), int(nonzero)) for name, (zeroed, nonzero) in totals.items()}


def _zeroed(backend: AbstractBackend, traces: Sequence[BlockTrace | LeanTrace]) -> dict[str, ZeroedErrors]:
    return zeroed_errors({t.block.name: backend.numpy(t.zeroed) for t in traces if t.zeroed is not None})


def _not_finite(backend: AbstractBackend, gradients: dict[str, Native], where: str) -> NumericError:
    # The backward pass runs from the output down: the last layer with a bad gradient is where it began.
    bad = [name for name, g in gradients.items() if not np.isfinite(backend.numpy(g)).all()]
    message = f"{where}the gradient of layer {bad[0]} is not finite; lower the learning rate or clip gradients"
    return NumericError(message)


def check_precision(network: NetworkSpec, precision: Precision) -> None:
    """Raise `SpecError` for an unknown precision, or `reproducible` with a surrogate that is not exact."""
    check_network(network)
    if precision not in ("fast", "reproducible"):
        raise SpecError(f"precision is 'fast' or 'reproducible', got {shown(precision)}")
    if precision == "fast":
        return
    for block in network.blocks:
        if not block.neuron.surrogate.exact:
            raise SpecError(
                f"layer {block.name}: the surrogate {block.neuron.surrogate.name} uses exp, which differs between "
                "libraries; for reproducible precision take arctan, fast-sigmoid, triangle or rectangle"
            )
        equations = neuron_equations(block.filter(training=False), block.neuron)
        if not (equations.forward.exact and equations.backward.exact):
            raise SpecError(
                f"layer {block.name}: the neuron {block.neuron.name} uses exp, which differs between libraries; for "
                "reproducible precision write it with + - * / and comparisons"
            )


def check_network(network: object) -> None:
    """Raise `SpecError` unless `network` is a network."""
    if not isinstance(network, NetworkSpec):
        raise SpecError(f"a network is a NetworkSpec, for example of NetworkSpec.parse, got {shown(network)}")


def check_loss(loss: object) -> None:
    """Raise `SpecError` unless `loss` is a loss."""
    if not isinstance(loss, Loss):
        known = ", ".join(f"{type(known).__name__}()" for known in LOSSES.values())
        raise SpecError(f"a loss is one of {known}, got {shown(loss)}")


def check_dropout(dropout: object) -> None:
    """Raise `SpecError` unless `dropout` is None or `(seed, step)`, both integers in `[0, 2**32)`."""
    if dropout is None:
        return
    if not isinstance(dropout, (tuple, list)) or len(dropout) != 2:
        raise SpecError(f"dropout is None or (seed, step), got {shown(dropout)}")
    seed, step = dropout
    check_seed(seed)
    if (number := integer(step)) is None or not 0 <= number < 2**32:
        raise SpecError(f"the step of dropout must be an integer from 0 to 2**32 - 1, got {shown(step)}")


def _array(what: str, x: object) -> None:
    if not isinstance(x, np.ndarray):
        raise ShapeError(f"{what} must be a numpy array, got {type(x).__name__}")
    if isinstance(x, (np.ma.MaskedArray, np.matrix)):
        raise ShapeError(f"{what} must be a plain numpy array, got {type(x).__name__}; give numpy.asarray(...) of it")


def check_weights(network: NetworkSpec, weights: dict[str, AnyArray], what: str = "weights") -> None:
    """Raise `ShapeError` unless `weights` has the network's names, shapes and float32."""
    check_network(network)
    shapes = network.weight_shapes
    if not isinstance(weights, Mapping):
        raise ShapeError(f"{what} must be numpy arrays by layer name, got {type(weights).__name__}")
    if set(weights) != set(shapes):
        raise ShapeError(f"{what} must have the layers {listed(shapes)}, got {listed(map(str, weights)) or 'none'}")
    for name, shape in shapes.items():
        _array(f"{what} of {name}", weights[name])
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            raise ShapeError(
                f"{what} of {name} must be float32 {shape}, got {weights[name].dtype} {weights[name].shape}"
            )


def check_inputs(network: NetworkSpec, inputs: UInt8, steps: int) -> int:
    """Raise `ShapeError` unless `inputs` fits the network and `steps`; returns the batch size."""
    lead = 1 if network.coding == "direct" else 2
    letters = "[B, ...]" if lead == 1 else "[T, B, ...]"
    if (number := integer(steps)) is None or not 1 <= number <= MAX_STEPS:
        raise ShapeError(f"steps must be an integer from 1 to 2^24, got {shown(steps)}")
    _array("inputs", inputs)
    if inputs.dtype != np.uint8:
        raise ShapeError(f"inputs must be uint8, got {inputs.dtype}")
    if inputs.ndim != lead + len(network.input_shape) or inputs.shape[lead:] != network.input_shape:
        raise ShapeError(
            f"inputs with {network.coding} coding must be {letters}, ... = {network.input_shape}, got {inputs.shape}"
        )
    if inputs.shape[lead - 1] == 0:
        raise ShapeError("the batch is empty")
    if lead == 2 and inputs.shape[0] != steps:
        raise ShapeError(f"inputs have {inputs.shape[0]} steps, expected {steps}")
    if lead == 2 and int(inputs.max(initial=0)) > network.input_max:
        raise ShapeError(
            f"an input frame holds the count {int(inputs.max())}, the network allows {network.input_max} (input_max)"
        )
    return int(inputs.shape[lead - 1])


def check_batch(network: NetworkSpec, batch: Batch) -> int:
    """Raise `ShapeError` unless inputs and targets fit the network and each other; returns `T`."""
    from stsbp_spec.backend import Batch

    if not isinstance(batch, Batch):
        raise ShapeError(f"a batch is a Batch of inputs and targets, got {type(batch).__name__}")
    targets = batch.targets
    _array("targets", targets)
    if targets.dtype != np.uint8 or targets.ndim != 3 or targets.shape[0] < 1:
        raise ShapeError(f"targets must be uint8 [T, B, N] with T >= 1, got {targets.dtype} {targets.shape}")
    expected: Shape = (targets.shape[0], check_inputs(network, batch.inputs, targets.shape[0]), network.outputs)
    if targets.shape != expected:
        raise ShapeError(f"targets must be [T, B, N] = {expected}, got {targets.shape}")
    if int(targets.max()) > 1:
        raise ShapeError("targets are spike trains of 0 and 1")
    return int(targets.shape[0])
