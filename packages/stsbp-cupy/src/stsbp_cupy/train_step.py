"""One training step on one screen: encode, forward, loss, backward, update.

The same step as stsbp_spec.trainer.Trainer takes, arranged so that the device is waited for three times a step: for the
weight grids, for the gradient norm, and for the results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from stsbp_spec.errors import NumericError
from stsbp_spec.grid import ZeroedErrors
from stsbp_spec.optim.adamw import clip_factor
from stsbp_spec.passes import BlockTrace, LeanTrace, backward_pass
from stsbp_spec.trainer import StepResult, Trainer, TrainState, check_batch, zeroed_errors

if TYPE_CHECKING:
    from stsbp_spec.backend import Batch

    from stsbp_cupy.backend import CupyBackend

__all__ = ["CupyTrainer"]


class CupyTrainer(Trainer):
    """The trainer of the CuPy backend; everything but `step` is the spec's."""

    backend: CupyBackend

    @np.errstate(over="ignore", invalid="ignore")  # what overflows ends in an error that names the layer
    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
        backend, network = self.backend, self.network
        steps = check_batch(network, batch)
        xp = backend.rt.xp

        # Encode and forward, lines 1-9.
        names = list(network.weight_shapes)
        found = backend.weight_grids(network.blocks, [state.weights[name] for name in names])
        wq = {name: w for name, (w, _) in zip(names, found, strict=True)}
        x = backend.encode(batch.inputs, network.coding)
        traces = self.forward(backend, network, wq, x, steps, (self.seed, state.step))
        output = traces[-1].spikes

        # Loss and backward, lines 10-31.
        targets = backend.asarray(batch.targets)
        error = backend.loss_error(self.loss, network.output_psp, output, targets)
        gradients = backward_pass(backend, traces, error, self.precision, training=True)

        # Update.
        norm = backend.gradient_norm(list(gradients.values()))
        if not math.isfinite(norm):
            raise self._not_finite(state.step, gradients)
        scalars = self.optimizer.scalars(state.step, clip_factor(norm, self.optimizer.clip_norm))
        new = TrainState(state.step + 1, {}, {}, {})
        for name in names:
            new.weights[name], new.m[name], new.v[name] = backend.adamw(
                scalars, state.weights[name], gradients[name], state.m[name], state.v[name]
            )

        counts = backend.numpy(xp.stack([xp.count_nonzero(trace.spikes) for trace in traces]))
        spikes = backend.numpy(output)
        frames = spikes.shape[1]
        result = StepResult(
            loss=self.loss.mean(spikes, batch.targets, network.output_psp),
            spikes=spikes,
            rates={
                t.block.name: int(n) / (steps * frames * math.prod(t.block.output_shape))
                for t, n in zip(traces, counts, strict=True)
            },
            grids={name: grid for name, (_, grid) in zip(names, found, strict=True)},
            gradient_norm=norm,
            learning_rate=self.optimizer.rate(state.step),
            zeroed=self._zeroed(traces),
        )
        return new, result

    def _zeroed(self, traces: Sequence[BlockTrace | LeanTrace]) -> dict[str, ZeroedErrors]:
        found = {trace.block.name: trace.zeroed for trace in traces if trace.zeroed is not None}
        if not found:
            return {}
        numbers = self.backend.numpy(self.backend.rt.xp.stack([*found.values()]))
        return zeroed_errors(dict(zip(found, numbers, strict=True)))

    def _not_finite(self, step: int, gradients: dict[str, Any]) -> NumericError:
        # The backward pass runs from the output down: the last layer with a bad gradient is where it began.
        bad = [name for name, g in gradients.items() if not np.isfinite(self.backend.numpy(g)).all()]
        return NumericError(
            f"step {step}: the gradient of layer {bad[0]} is not finite; lower the learning rate or clip gradients"
        )
