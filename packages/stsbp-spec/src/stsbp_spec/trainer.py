"""Training state and steps on top of a backend's pairs; the loop above sees batches, floats and numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from stsbp_spec.checks import (
    check_batch,
    check_dropout,
    check_inputs,
    check_loss,
    check_precision,
    check_weights,
)
from stsbp_spec.encoders.packed import Inputs, PackedFrames
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.grid import SMALLEST_NORMAL, WeightGrid, ZeroedErrors, unsigned_zeros
from stsbp_spec.losses.base import Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.optim.adamw import AdamW, clip_factor
from stsbp_spec.pairs import BlockTrace, Pairs
from stsbp_spec.passes import FORWARD_PASSES, LeanTrace, backward_pass, forward_pass
from stsbp_spec.random import check_seed
from stsbp_spec.results import Batch, LayerRun, Prediction, RunResult, StepResult, TrainState, ValueAndGrad
from stsbp_spec.typing import AnyArray, Array, Float32, Memory, Precision, UInt8
from stsbp_spec.values import shown

__all__ = [
    "Prediction",
    "StepResult",
    "TrainState",
    "Trainer",
    "run",
    "value_and_grad",
    "zeroed_errors",
]

T = TypeVar("T")


class Trainer(Generic[Array]):
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
        backend: Pairs[Array],
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
        check_loss(loss, precision)
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

    def init(self, weights: dict[str, Float32]) -> TrainState[Array]:
        """State before the first update."""
        check_weights(self.network, weights)
        native, m, v = (
            {name: self.backend.asarray(make(w)) for name, w in weights.items()}
            for make in (_without_subnormals, np.zeros_like, np.zeros_like)
        )
        return TrainState(0, native, m, v)

    @np.errstate(over="ignore", invalid="ignore")  # what overflows ends in an error that names the layer
    def step(self, state: TrainState[Array], batch: Batch[Inputs]) -> tuple[TrainState[Array], StepResult]:
        """One update on a batch; the passed state must not be used again (its arrays may be updated in place)."""
        backend, network = self.backend, self.network
        steps = check_batch(network, batch)
        dropout = (self.seed, state.step)

        # Forward, lines 1-9.
        traces, grids = _forward(backend, network, state.weights, batch.inputs, steps, dropout, self.forward)
        output = traces[-1].spikes

        # Loss and backward, lines 10-31.
        error = backend.loss_error(self.loss, network.output_psp, output, backend.asarray(batch.targets))
        gradients = backward_pass(backend, traces, error, self.precision, training=True)

        # Update.
        norm = backend.gradient_norm(list(gradients.values()))
        if not math.isfinite(norm):
            raise _not_finite(backend, gradients, f"step {state.step}: ")
        scalars = self.optimizer.scalars(state.step, clip_factor(norm, self.optimizer.clip_norm))
        new = TrainState(state.step + 1, {}, {}, {})
        for name, g in gradients.items():
            new.weights[name], new.m[name], new.v[name] = backend.adamw(
                scalars, state.weights[name], g, state.m[name], state.v[name]
            )

        spikes, rates, zeroed = _results(backend, traces, output)
        result = StepResult(
            spikes=spikes,
            rates=rates,
            grids=grids,
            gradient_norm=norm,
            learning_rate=self.optimizer.rate(state.step),
            measure=partial(self.loss.mean, spikes, batch.targets, network.output_psp),
            zeroed=zeroed,
        )
        return new, result

    @np.errstate(over="ignore", invalid="ignore")
    def predict(self, state: TrainState[Array], inputs: Inputs, steps: int) -> Prediction:
        """Output of the network without dropout; the state is not changed."""
        check_inputs(self.network, inputs, steps)
        steps = int(steps)
        traces, _ = _forward(self.backend, self.network, state.weights, inputs, steps, None, forward_pass)
        spikes, rates, _ = _results(self.backend, traces, traces[-1].spikes)
        return Prediction(spikes, rates)

    def export_state(self, state: TrainState[Array]) -> dict[str, AnyArray]:
        """The state as numpy arrays: `weight/NAME`, `adamw.m/NAME`, `adamw.v/NAME`, `step`. Any backend imports it."""
        exported: dict[str, AnyArray] = {"step": np.asarray(state.step, dtype=np.int64)}
        for prefix, arrays in (("weight", state.weights), ("adamw.m", state.m), ("adamw.v", state.v)):
            for name, x in arrays.items():
                exported[f"{prefix}/{name}"] = _without_subnormals(self.backend.numpy(x))
        return exported

    def import_state(self, exported: dict[str, AnyArray]) -> TrainState[Array]:
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
        parts: list[dict[str, Array]] = []
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
    backend: Pairs[Array],
    network: NetworkSpec,
    loss: Loss,
    weights: dict[str, Float32],
    batch: Batch,
    precision: Precision,
    dropout: tuple[int, int] | None,
) -> ValueAndGrad:
    """See `Pairs.value_and_grad`."""
    check_precision(network, precision)
    check_loss(loss, precision)
    check_dropout(dropout)
    check_weights(network, weights)
    steps = check_batch(network, batch)
    native = {name: backend.asarray(w) for name, w in weights.items()}
    traces, _ = _forward(backend, network, native, batch.inputs, steps, dropout, forward_pass)
    error = backend.loss_error(loss, network.output_psp, traces[-1].spikes, backend.asarray(batch.targets))
    gradients = backward_pass(backend, traces, error, precision, training=dropout is not None)
    if not math.isfinite(backend.gradient_norm(list(gradients.values()))):
        raise _not_finite(backend, gradients, "")
    zeroed = _zeroed(traces)
    spikes, *numbers = backend.read([traces[-1].spikes, *zeroed.values()])
    spikes = spikes.astype(np.uint8)
    value = loss.mean(spikes, batch.targets, network.output_psp)
    named = {name: unsigned_zeros(backend.numpy(gradients[name])) for name in network.weight_shapes}
    return ValueAndGrad(value, spikes, named, zeroed_errors(dict(zip(zeroed, numbers, strict=True))))


@np.errstate(over="ignore", invalid="ignore")
def run(
    backend: Pairs[Array], network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int
) -> RunResult:
    """See `Pairs.run`."""
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
    backend: Pairs[Array],
    network: NetworkSpec,
    weights: dict[str, Array],
    inputs: Inputs,
    steps: int,
    dropout: tuple[int, int] | None,
    forward: Callable[..., list[T]],
) -> tuple[list[T], dict[str, WeightGrid]]:
    names = [block.name for block in network.blocks]
    found = backend.weight_grids(network.blocks, [weights[name] for name in names])
    wq = {name: w for name, (w, _) in zip(names, found, strict=True)}
    x = backend.unpack(inputs) if isinstance(inputs, PackedFrames) else backend.encode(inputs, network.coding)
    traces = forward(backend, network, wq, x, steps, dropout)
    return traces, {name: grid for name, (_, grid) in zip(names, found, strict=True)}


def _results(
    backend: Pairs[Array], traces: Sequence[BlockTrace[Array] | LeanTrace[Array]], output: Array
) -> tuple[UInt8, dict[str, float], dict[str, ZeroedErrors]]:
    """Output spikes, spike rates of every layer, and what the error grid took from it, with one wait for the device."""
    names = [trace.block.name for trace in traces]
    zeroed = _zeroed(traces)
    counts = [backend.spike_count(trace.spikes) for trace in traces]
    spikes, *numbers = backend.read([output, *counts, *zeroed.values()])
    frames = math.prod(spikes.shape[:2])
    sizes = [frames * math.prod(trace.block.output_shape) for trace in traces]
    rates = {name: int(n) / size for name, n, size in zip(names, numbers, sizes, strict=False)}
    taken = zeroed_errors(dict(zip(zeroed, numbers[len(names) :], strict=True)))
    return spikes.astype(np.uint8), rates, taken


def _zeroed(traces: Sequence[BlockTrace[Array] | LeanTrace[Array]]) -> dict[str, Array]:
    """Numbers of `Pairs.error_grid` by layer, where there was an error grid."""
    return {trace.block.name: trace.zeroed for trace in traces if trace.zeroed is not None}


def zeroed_errors(counts: Mapping[str, AnyArray]) -> dict[str, ZeroedErrors]:
    """What the error grid took from each layer, from the numbers of `Pairs.error_grid`, `[..., 2]`."""
    totals = {name: np.reshape(numbers, (-1, 2)).sum(axis=0, dtype=np.int64) for name, numbers in counts.items()}
    return {name: ZeroedErrors(int(zeroed), int(nonzero)) for name, (zeroed, nonzero) in totals.items()}


def _not_finite(backend: Pairs[Array], gradients: dict[str, Array], where: str) -> NumericError:
    # The backward pass runs from the output down: the last layer with a bad gradient is where it began.
    bad = [name for name, g in gradients.items() if not np.isfinite(backend.numpy(g)).all()]
    message = f"{where}the gradient of layer {bad[0]} is not finite; lower the learning rate or clip gradients"
    return NumericError(message)
