"""What runs on the device: functions of native arrays, each of which a backend may compile whole (`Pairs.compiled`).

Between two of them the host looks at numbers, refuses what it must, and has changed nothing until then: `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple

from stsbp_spec.collective import Collective, Part
from stsbp_spec.equations import inside_name
from stsbp_spec.losses.base import Loss
from stsbp_spec.losses.cross_entropy import CrossEntropy
from stsbp_spec.network import NetworkSpec
from stsbp_spec.optim.adamw import AdamWScalars
from stsbp_spec.pairs import Pairs
from stsbp_spec.passes import Trace, backward_passes, backward_sums, forward_pass, forward_passes
from stsbp_spec.typing import Array, Memory, Precision

__all__ = ["Gradients", "apart", "gradients", "output", "resumed", "states", "update"]


class Gradients(NamedTuple, Generic[Array]):
    """What `gradients` finds.

    Attributes:
        values: gradients by the names of `network.parameters`, of the whole batch ...
        squares: ... and numbers of `Pairs.gradient_squares`.
        spikes: of the output, `[T, B, N]` of each part here; of a readout its potentials.
        counts: numbers of `Pairs.spike_count` of each block, of each part.
        zeroed: numbers of `Pairs.error_grid` by layer, where there was an error grid, of each part.
        statistics: of the whole batch, by the names of `network.statistics`.
    """

    values: dict[str, Array]
    squares: Array
    spikes: list[Array]
    counts: list[list[Array]]
    zeroed: list[dict[str, Array]]
    statistics: dict[str, Array]


def gradients(
    backend: Pairs[Array],
    network: NetworkSpec,
    loss: Loss,
    precision: Precision,
    memory: Memory,
    collective: Collective[Array],
    parts: Sequence[Part],
    wq: dict[str, Array],
    inputs: Sequence[Array],
    targets: Sequence[Array],
    dropout: tuple[int, int] | None,
    padding: Sequence[Mapping[str, Array]] | None = None,
) -> Gradients[Array]:
    """Forward pass, error of the loss, backward pass: lines 1-31 of the pseudo-code.

    Args:
        backend, network, loss, precision, memory: fixed.
        collective: who has the other samples of the batch.
        parts: which samples are here; several are gone through one after the other, both ways.
        wq: weights on their grid, what else was learned, running statistics: see `rules.Run`.
        inputs: encoded inputs of each part, of at least one sample; those beyond its count are not of the batch.
        targets: `[T, B, N]` of each part.
        dropout: `(seed, step)` of the masks; None: no dropout.
        padding: `equations.loss_padding` of each part; None: all samples have `T` steps.
    """
    each: Sequence[Mapping[str, Array] | None] = [None] * len(parts) if padding is None else padding
    groups = [slice(i, i + 1) for i in range(len(parts))] if apart(network, precision) else [slice(None)]
    made, counts, zeroed, sums = list[Array](), list[list[Array]](), list[dict[str, Array]](), dict[str, Array]()
    values, statistics = dict[str, Array](), dict[str, Array]()
    for group in groups:
        traces, errors, inside = _ahead(
            backend, network, loss, memory, collective, parts[group], wq, inputs[group], targets[group], dropout,
            each[group],
        )  # fmt: skip
        made += [_output(network, trace) for trace in traces]
        counts += [_counts(backend, trace, own) for trace, own in zip(traces, inside, strict=True)]
        if group is groups[-1]:
            values = backward_passes(traces, errors, precision, sums)
        else:
            for name, own in backward_sums(traces, errors, precision):
                sums[name] = backend.plus(sums[name], own) if name in sums else own
        zeroed += [trace.zeroed for trace in traces]
        statistics = dict(traces[0].statistics)
        # The next parts have their memory.
        del traces, errors
    squares = backend.gradient_squares(list(values.values()))
    return Gradients(values, squares, made, counts, zeroed, statistics)


def apart(network: NetworkSpec, precision: Precision) -> bool:
    """Whether parts of a batch meet in sums of gradients alone, so that each may go both ways before the next.

    An error grid depends on the largest error of all samples, and a normalised sum on the sums of all.
    """
    return precision == "fast" and not network.graph.normalised


def _ahead(
    backend: Pairs[Array],
    network: NetworkSpec,
    loss: Loss,
    memory: Memory,
    collective: Collective[Array],
    parts: Sequence[Part],
    wq: dict[str, Array],
    inputs: Sequence[Array],
    targets: Sequence[Array],
    dropout: tuple[int, int] | None,
    padding: Sequence[Mapping[str, Array] | None],
) -> tuple[list[Trace[Array]], list[Array], list[Array | None]]:
    """What parts leave, the errors of their outputs, and which of their steps are no padding."""
    inside = [None if own is None else own[inside_name(loss)][..., 0] for own in padding]
    steps, errors = len(targets[0]), list[Array]()
    traces = forward_passes(backend, network.graph, wq, inputs, steps, dropout, parts, collective, memory, inside)
    for part, trace, target, padded, own in zip(parts, traces, targets, padding, inside, strict=True):
        if isinstance(loss, CrossEntropy):
            error = backend.readout_error(loss, trace.potentials(), target, part.batch, own)
        else:
            error = backend.loss_error(loss, network.output_psp, trace.output, target, part.batch, padded)
        errors.append(backend.silenced(error, part.count))
    return traces, errors, inside


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
    backend: Pairs[Array],
    network: NetworkSpec,
    steps: int,
    wq: dict[str, Array],
    x: Array,
    inside: Array | None = None,
) -> tuple[Array, list[Array]]:
    """Output spikes `[T, B, N]` without dropout, and the numbers of `Pairs.spike_count` of each block.

    Of a network that ends with a readout its potentials in place of spikes.
    `inside`, uint8 `[T, B]`: 0 at padded steps, where no spikes are counted; None: there are none.
    """
    trace = forward_pass(backend, network.graph, wq, x, steps, None, keeps=False)
    return _output(network, trace), _counts(backend, trace, inside)


def states(
    backend: Pairs[Array], network: NetworkSpec, steps: int, wq: dict[str, Array], x: Array
) -> list[tuple[Array, Array]]:
    """Spikes and membrane potentials of each block without dropout."""
    return _states(forward_pass(backend, network.graph, wq, x, steps, None))


def resumed(
    backend: Pairs[Array],
    network: NetworkSpec,
    steps: int,
    wq: dict[str, Array],
    x: Array,
    before: Mapping[str, tuple[Array, ...]],
) -> tuple[list[tuple[Array, Array]], dict[str, tuple[Array, ...]]]:
    """`states` of steps after others, which left `before` (none: from rest), and what these leave."""
    trace = forward_pass(backend, network.graph, wq, x, steps, None, before=before)
    return _states(trace), trace.after()


def _states(trace: Trace[Array]) -> list[tuple[Array, Array]]:
    return [(trace.spikes[name], trace.backend.neuron_potentials(left)) for name, left in trace.populations()]


def _output(network: NetworkSpec, trace: Trace[Array]) -> Array:
    return trace.potentials() if network.has_readout else trace.output


def _counts(backend: Pairs[Array], trace: Trace[Array], inside: Array | None) -> list[Array]:
    found = trace.spikes.values()
    return [backend.spike_count(s if inside is None else backend.within(s, inside)) for s in found]
