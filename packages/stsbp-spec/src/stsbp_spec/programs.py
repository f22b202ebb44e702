"""What runs on the device: functions of native arrays, each of which a backend may compile whole (`Pairs.compiled`).

Between two of them the host looks at numbers, refuses what it must, and has changed nothing until then: `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, NamedTuple

from stsbp_spec.losses.base import Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.optim.adamw import AdamWScalars
from stsbp_spec.pairs import Pairs
from stsbp_spec.passes import FORWARD_PASSES, Trace, backward_pass, forward_pass
from stsbp_spec.typing import Array, Memory, Precision

__all__ = ["Gradients", "gradients", "output", "states", "update"]


class Gradients(NamedTuple, Generic[Array]):
    """What `gradients` finds.

    Attributes:
        values: gradients by the names of `network.parameters`.
        squares: numbers of `Pairs.gradient_squares`.
        spikes: of the output, `[T, B, N]`.
        counts: numbers of `Pairs.spike_count` of each block.
        zeroed: numbers of `Pairs.error_grid` by layer, where there was an error grid.
    """

    values: dict[str, Array]
    squares: Array
    spikes: Array
    counts: list[Array]
    zeroed: dict[str, Array]


def gradients(
    backend: Pairs[Array],
    network: NetworkSpec,
    loss: Loss,
    precision: Precision,
    memory: Memory,
    wq: dict[str, Array],
    x: Array,
    targets: Array,
    dropout: tuple[int, int] | None,
) -> Gradients[Array]:
    """Forward pass, error of the loss, backward pass: lines 1-31 of the pseudo-code.

    Args:
        backend, network, loss, precision, memory: fixed.
        wq: weights on their grid, and what neurons learned, by name.
        x: encoded inputs.
        targets: `[T, B, N]`.
        dropout: `(seed, step)` of the masks; None: no dropout.
    """
    trace = FORWARD_PASSES[memory](backend, network.graph, wq, x, len(targets), dropout)
    error = backend.loss_error(loss, network.output_psp, trace.output, targets)
    values = backward_pass(trace, error, precision)
    squares = backend.gradient_squares(list(values.values()))
    return Gradients(values, squares, trace.output, _counts(backend, trace), trace.zeroed)


def update(
    backend: Pairs[Array],
    network: NetworkSpec,
    scalars: AdamWScalars,
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    m: Mapping[str, Array],
    v: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """New weights, learned numbers and moments: the end of the pseudo-code."""
    new: tuple[dict[str, Array], ...] = ({}, {}, {})
    for name, g in gradients.items():
        arrays, learned = (weights[name], g, m[name], v[name]), network.parameters[name].learned
        if learned is None:
            found = backend.adamw(scalars, *arrays)
        else:
            found = backend.adamw_learned(scalars, (learned.low, learned.high), *arrays)
        for part, x in zip(new, found, strict=True):
            part[name] = x
    return new[0], new[1], new[2]


def output(
    backend: Pairs[Array], network: NetworkSpec, steps: int, wq: dict[str, Array], x: Array
) -> tuple[Array, list[Array]]:
    """Output spikes `[T, B, N]` without dropout, and the numbers of `Pairs.spike_count` of each block."""
    trace = forward_pass(backend, network.graph, wq, x, steps, None)
    return trace.output, _counts(backend, trace)


def states(
    backend: Pairs[Array], network: NetworkSpec, steps: int, wq: dict[str, Array], x: Array
) -> list[tuple[Array, Array]]:
    """Spikes and membrane potentials of each block without dropout."""
    trace = forward_pass(backend, network.graph, wq, x, steps, None)
    return [(trace.spikes[name], backend.neuron_potentials(left)) for name, left in trace.populations()]


def _counts(backend: Pairs[Array], trace: Trace[Array]) -> list[Array]:
    return [backend.spike_count(spikes) for spikes in trace.spikes.values()]
