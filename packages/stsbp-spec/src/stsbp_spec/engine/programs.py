"""The functions that run on the device. Each takes native arrays, and a backend may compile it whole
(`Operations.compiled`).

Between two of these functions, the host checks numbers and raises errors. Until then, no state has changed: trainer.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple

from stsbp_spec.distributed.collective import BatchSlice, Collective
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.passes import Trace, backward_passes, backward_sums, forward_pass, forward_passes
from stsbp_spec.equations.assembly import inside_name
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.models.rate_penalty import EXCESS, LayerPenalties
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Array, Memory, Precision

__all__ = [
    "Gradients",
    "gradients",
    "output",
    "parts_are_independent",
    "penalty_name",
    "resumed",
    "states",
    "update",
]


class Gradients(NamedTuple, Generic[Array]):
    """The result of `gradients`.

    Attributes:
        values: gradients of the whole batch, by the names of `network.parameters`.
        squares: `Operations.gradient_squares` of these gradients.
        spikes: output spikes `[T, B, N]` of each part in this process; for a readout, its potentials.
        counts: `Operations.spike_count` of each block, for each part.
        zeroed: counts of `Operations.error_grid` by layer, for each part. Empty without an error grid.
        statistics: statistics of the whole batch, by the names of `network.statistics`.
        penalties: sums of the squared excess rates of each penalised layer, float64 `[1]`, for each part.
    """

    values: dict[str, Array]
    squares: Array
    spikes: list[Array]
    counts: list[list[Array]]
    zeroed: list[dict[str, Array]]
    statistics: dict[str, Array]
    penalties: list[list[Array]]


def gradients(
    backend: Operations[Array],
    network: NetworkSpec,
    loss: Loss,
    penalties: LayerPenalties,
    precision: Precision,
    memory: Memory,
    collective: Collective[Array],
    parts: Sequence[BatchSlice],
    wq: dict[str, Array],
    inputs: Sequence[Array],
    targets: Sequence[Array],
    dropout: tuple[int, int] | None,
    padding: Sequence[Mapping[str, Array]] | None = None,
) -> Gradients[Array]:
    """Forward pass, error of the loss, backward pass: lines 1-31 of the pseudo-code.

    Args:
        backend, network, loss, penalties, precision, memory: fixed when the function is compiled.
        collective: the processes that have the other samples of the batch.
        parts: which samples are in this process. Several parts go one after the other through both passes.
        wq: weights on their grid, other learned parameters, running statistics: see `rules.PassContext`.
        inputs: encoded inputs of each part, of at least one sample. Samples beyond the part's count are not in the
            batch.
        targets: `[T, B, N]` of each part.
        dropout: `(seed, step)` of the masks; None: no dropout.
        padding: `equations.loss_padding` of each part, and `RatePenalty.constants_of_lengths` by the names of
            `penalty_name`; None: all samples have `T` steps.
    """
    part_padding: Sequence[Mapping[str, Array] | None] = [None] * len(parts) if padding is None else padding
    groups = (
        [slice(i, i + 1) for i in range(len(parts))] if parts_are_independent(network, precision) else [slice(None)]
    )
    outputs, counts, zeroed, sums = list[Array](), list[list[Array]](), list[dict[str, Array]](), dict[str, Array]()
    values, statistics, squares_of_rates = dict[str, Array](), dict[str, Array](), list[list[Array]]()
    for group in groups:
        traces, errors, inside = _forward(
            backend, network, loss, memory, collective, parts[group], wq, inputs[group], targets[group], dropout,
            part_padding[group],
        )  # fmt: skip
        outputs += [_output(network, trace) for trace in traces]
        counts += [_counts(backend, trace, inside_part) for trace, inside_part in zip(traces, inside, strict=True)]
        for part, trace, padded in zip(parts[group], traces, part_padding[group], strict=True):
            squares_of_rates.append(_penalise(backend, network, penalties, trace, part, padded))
        # The processes exchange their sums of all parts only here.
        if group is groups[-1]:
            values = backward_passes(traces, errors, precision, sums)
        else:
            for name, contribution in backward_sums(traces, errors, precision):
                sums[name] = backend.add(sums[name], contribution) if name in sums else contribution
        zeroed += [trace.zeroed for trace in traces]
        statistics = dict(traces[0].statistics)
        # Free their memory for the next parts.
        del traces, errors
    squares = backend.gradient_squares(list(values.values()))
    return Gradients(values, squares, outputs, counts, zeroed, statistics, squares_of_rates)


def parts_are_independent(network: NetworkSpec, precision: Precision) -> bool:
    """Whether parts of a batch depend on each other only in sums of gradients.

    If so, each part can go through both passes before the next part starts. Error grids prevent this, because they
    depend on the largest error of all samples. Normalised sums prevent it, because they depend on the sums of all
    samples.
    """
    return precision == "fast" and not network.graph.normalised


def _forward(
    backend: Operations[Array],
    network: NetworkSpec,
    loss: Loss,
    memory: Memory,
    collective: Collective[Array],
    parts: Sequence[BatchSlice],
    wq: dict[str, Array],
    inputs: Sequence[Array],
    targets: Sequence[Array],
    dropout: tuple[int, int] | None,
    padding: Sequence[Mapping[str, Array] | None],
) -> tuple[list[Trace[Array]], list[Array], list[Array | None]]:
    """The traces of the parts, the errors of their outputs, and which of their steps are not padding."""
    inside = [None if padded is None else padded[inside_name(loss)][..., 0] for padded in padding]
    steps, errors = len(targets[0]), list[Array]()
    traces = forward_passes(backend, network.graph, wq, inputs, steps, dropout, parts, collective, memory, inside)
    for part, trace, target, padded, inside_part in zip(parts, traces, targets, padding, inside, strict=True):
        if isinstance(loss, CrossEntropy):
            error = backend.readout_error(loss, trace.potentials(), target, part.batch, inside_part)
        else:
            outputs = _output(network, trace)
            error = backend.loss_error(loss, network.output_psp, outputs, target, part.batch, padded)
        errors.append(backend.mask_samples(error, part.count))
    return traces, errors, inside


def penalty_name(layer: str, constant: str) -> str:
    """The name of a constant of a layer's rate penalty in `padding`. No name of a loss has a colon."""
    return f"{layer}:{constant}"


def _penalise(
    backend: Operations[Array],
    network: NetworkSpec,
    penalties: LayerPenalties,
    trace: Trace[Array],
    part: BatchSlice,
    padded: Mapping[str, Array] | None,
) -> list[Array]:
    """Give a trace the errors of rate penalties. Returns the sums of the squared excess rates, in the same order."""
    populations, errors, totals = {block.name: block.population for block in network.blocks}, dict[str, Array](), []
    for layer, penalty in penalties:
        name, of_lengths = populations[layer], None
        if padded is not None:
            of_lengths = {key: padded[penalty_name(layer, key)] for key in EXCESS.parameters}
        error, units = backend.rate_penalty(penalty, trace.spikes[name], part.batch, trace.run.inside, of_lengths)
        errors[name] = backend.mask_samples(error, part.count)
        totals.append(backend.channel_totals(backend.mask_samples(units, part.count), 1))
    trace.penalties = errors
    return totals


def update(
    backend: Operations[Array],
    network: NetworkSpec,
    scalars: Scalars,
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    m: Mapping[str, Array],
    v: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """New weights, learned parameters and moments: the end of the pseudo-code.

    `v` is empty for an optimiser with only one moment. Parameters without a gradient are not in the result.
    """
    new: tuple[dict[str, Array], ...] = ({}, {}, {})
    for name, g in gradients.items():
        learned = network.parameters[name].learned
        domain = None if learned is None else (learned.low, learned.high)
        moments = [x[name] for x in (m, v) if x]
        updated = backend.updated(scalars, domain, weights[name], g, *moments)
        for part, x in zip(new, updated, strict=False):
            part[name] = x
    return new[0], new[1], new[2]


def output(
    backend: Operations[Array],
    network: NetworkSpec,
    steps: int,
    wq: dict[str, Array],
    x: Array,
    inside: Array | None = None,
) -> tuple[Array, list[Array]]:
    """Output spikes `[T, B, N]` without dropout, and `Operations.spike_count` of each block.

    For a network that ends with a readout, potentials take the place of spikes. `inside`, uint8 `[T, B]`, is 0 at
    padded steps, whose spikes do not count. None: no step is padded.
    """
    trace = forward_pass(backend, network.graph, wq, x, steps, None, keeps=False)
    return _output(network, trace), _counts(backend, trace, inside)


def states(
    backend: Operations[Array], network: NetworkSpec, steps: int, wq: dict[str, Array], x: Array
) -> list[tuple[Array, Array]]:
    """Spikes and membrane potentials of each block without dropout."""
    return _states(forward_pass(backend, network.graph, wq, x, steps, None))


def resumed(
    backend: Operations[Array],
    network: NetworkSpec,
    steps: int,
    wq: dict[str, Array],
    x: Array,
    initial_states: Mapping[str, tuple[Array, ...]],
) -> tuple[list[tuple[Array, Array]], dict[str, tuple[Array, ...]]]:
    """`states` for steps that follow earlier ones. `initial_states` is what those left (empty: start at rest).

    Also returns what these steps leave.
    """
    trace = forward_pass(backend, network.graph, wq, x, steps, None, initial_states=initial_states)
    return _states(trace), trace.states_after()


def _states(trace: Trace[Array]) -> list[tuple[Array, Array]]:
    return [(trace.spikes[name], trace.backend.neuron_potentials(residuals)) for name, residuals in trace.populations()]


def _output(network: NetworkSpec, trace: Trace[Array]) -> Array:
    return trace.potentials() if network.has_readout else trace.output


def _counts(backend: Operations[Array], trace: Trace[Array], inside: Array | None) -> list[Array]:
    spikes = trace.spikes.values()
    return [backend.spike_count(s if inside is None else backend.mask_steps(s, inside)) for s in spikes]
