"""Training state and training steps, built on the pairs of a backend. Callers see only batches, floats and numpy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from types import MappingProxyType
from typing import Generic, NamedTuple, get_args, overload

import numpy as np

from stsbp_spec.contract.grid import SMALLEST_NORMAL, WeightGrid, ZeroedErrors, unsigned_zeros
from stsbp_spec.contract.random import check_seed, check_step
from stsbp_spec.distributed.collective import Alone, BatchSlice, Collective
from stsbp_spec.engine.checks import (
    batch_as_bytes,
    check_batch,
    check_dropout,
    check_frozen,
    check_inputs,
    check_lengths,
    check_loss,
    check_output,
    check_part,
    check_precision,
    check_rate_penalty,
    check_statistic,
    check_weights,
    inputs_as_bytes,
)
from stsbp_spec.engine.memory import recompute_pays, samples_at_once
from stsbp_spec.engine.operations import Operations, weights_on_grid
from stsbp_spec.engine.programs import (
    Gradients,
    gradients,
    output,
    parts_are_independent,
    penalty_name,
    states,
    update,
)
from stsbp_spec.engine.results import Batch, LayerRun, Prediction, RunResult, StepResult, TrainState, ValueAndGrad
from stsbp_spec.equations.assembly import loss_padding
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.encoders.packed import Inputs, PackedFrames, cut
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.optim import OPTIMIZERS
from stsbp_spec.models.optim.adamw import clip_factor, norm_of
from stsbp_spec.models.optim.base import Optimizer
from stsbp_spec.models.rate_penalty import LayerPenalties, RatePenalty
from stsbp_spec.networks.ops.batchnorm import running
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Array, Float32, Int64, Memory, Precision, UInt8
from stsbp_spec.validation import array_of, integer, shown

__all__ = [
    "Prediction",
    "Predictor",
    "StepResult",
    "TrainState",
    "Trainer",
    "run",
    "value_and_grad",
    "zeroed_numbers",
]


class Trainer(Generic[Array]):
    """Runs the forward pass, the loss, the backward pass and the update. One object serves a whole training run.

    Args:
        backend: the backend that computes.
        network, loss, optimizer: the network to train, its loss and its optimiser.
        precision: precision of the backward pass.
        seed: seed of the dropout masks.
        memory: `low` computes a batch in parts, as with `micro_batch`, also in `predict`. `memory.samples_at_once`
            gives the size of the parts.
        micro_batch: number of samples that are computed at a time. None: all samples, or the number that `memory`
            determines. In `fast` precision without batch normalisation, each part goes through the forward and backward
            pass before the next part starts. Only the memory of one part is then needed. If `memory` is `low` and a
            single part needs much memory (`memory.recompute_pays`), each of its layers is computed twice. In all other
            cases, both passes go layer by layer over all parts. They store one bit per spike in between, and compute
            each layer twice. In `reproducible` precision, the parts do not change any result. In `fast` precision, the
            last bits of gradients depend on the parts.
        collective: processes that train together, each on its part of every batch. None: `Operations.alone`, which
            is only this process.
        frozen: names of parameters that updates do not change, of `network.parameters`. The gradient norm does not
            contain their gradients. Running statistics of batch normalisation still follow the data.
        rate_penalty: penalties on the firing rates of layers, by the names of `network.blocks`. Their gradients are
            added to that of the loss.

    Raises:
        SpecError: `reproducible` precision with a surrogate that is not exact; a network, loss or optimiser of the
            wrong type; a seed outside `[0, 2**32)`; a micro-batch without samples; frozen parameters that the
            network does not have, or that are all it has; or a penalty on a layer that the network does not have, or
            that does not spike.
    """

    def __init__(
        self,
        backend: Operations[Array],
        network: NetworkSpec,
        loss: Loss,
        optimizer: Optimizer,
        precision: Precision = "fast",
        seed: int = 0,
        memory: Memory = "full",
        micro_batch: int | None = None,
        collective: Collective[Array] | None = None,
        frozen: Collection[str] = (),
        rate_penalty: Mapping[str, RatePenalty] = MappingProxyType({}),
    ) -> None:
        check_precision(network, precision)
        backend.check_precision(precision)
        if not isinstance(memory, str) or memory not in get_args(Memory):
            raise SpecError(f"memory is 'full' or 'low', got {shown(memory)}")
        check_loss(loss, precision)
        check_output(network, loss)
        if not isinstance(optimizer, Optimizer):
            raise SpecError(
                f"an optimiser is one of {', '.join(f'{kind.__name__}()' for kind in OPTIMIZERS.values())}; got "
                f"{shown(optimizer)}"
            )
        if micro_batch is not None and ((number := integer(micro_batch)) is None or number < 1):
            raise SpecError(f"a micro-batch has at least 1 sample, got {shown(micro_batch)}")
        self.backend = backend
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.precision: Precision = precision
        self.seed = check_seed(seed)
        self.memory: Memory = memory
        self.micro_batch = micro_batch
        self.collective: Collective[Array] = collective or backend.alone()
        self.frozen = check_frozen(network, frozen)
        self.rate_penalty: LayerPenalties = check_rate_penalty(network, rate_penalty)

    def init(self, weights: dict[str, Float32]) -> TrainState[Array]:
        """State before the first update."""
        check_weights(self.network, weights)
        native = {name: self.backend.asarray(_without_subnormals(w)) for name, w in weights.items()}
        moments = [
            {name: self.backend.asarray(np.zeros_like(weights[name])) for name in self.network.parameters}
            for _ in self.optimizer.moments
        ]
        return TrainState(0, native, *_first_and_second(moments))

    @np.errstate(over="ignore", invalid="ignore")  # an overflow later raises an error that names the layer
    def step(self, state: TrainState[Array], batch: Batch[Inputs]) -> tuple[TrainState[Array], StepResult]:
        """Do one update on a batch. Do not use the passed state afterwards, because its arrays may be updated in place.

        The host waits for the device twice: for the weight grids, and for all other numbers before the update.

        Args:
            state: state before the update. It must be the same in every process.
            batch: inputs of this process's part of the batch (`Collective.parts`), and targets of the whole batch. If
                the part is empty, the inputs are those of one silent sample. The result is that of the whole batch.

        Raises:
            SpecError: `state.step` is not an integer in `[0, 2**32)`.
            NumericError: a gradient or a weight is not finite, a weight is too large, or a running statistic of batch
                normalisation leaves its domain.
        """
        backend, network = self.backend, self.network
        state, batch = _state(state), batch_as_bytes(network, batch)
        check_batch(network, self.loss, batch, self._part)
        steps, samples, _ = batch.targets.shape
        longest = self.collective.parts(samples)[0].count
        group_size = self._group_size(steps, longest)
        parts = self.collective.pieces(samples, group_size)
        dropout = (self.seed, check_step(state.step))
        memory_between = self._memory_between(len(parts), min(longest, group_size or longest), steps)
        fixed = (network, self.loss, self.rate_penalty, self.precision, memory_between, self.collective)
        grads, grids = _gradients(backend, *fixed, parts, state.weights, batch, dropout)
        grads = self._of_trained(grads)
        results = _read_results(
            backend, network, self.rate_penalty, self.collective, parts, grads, batch.lengths, f"step {state.step}: "
        )
        spikes, norm = results.spikes, results.norm
        # The step is divided here because weights cannot change before the norm is known. One program would have to
        # hold all gradients until then, too, and takes as long: 106 to 109 ms with one, two or three (N-MNIST, jax
        # 0.10.2).
        running = _running(backend, network, state.weights, results.statistics, f"step {state.step}: ")
        updated = self._updated(state, clip_factor(norm, self.optimizer.clip_norm), grads.values)
        result = StepResult(
            spikes=spikes,
            rates=results.rates,
            grids=grids,
            gradient_norm=norm,
            learning_rate=self.optimizer.rate(state.step),
            # Copies, because the loss is computed later, when the caller may have changed its arrays.
            measure=partial(self.loss.mean, spikes, batch.targets.copy(), network.output_psp, copy(batch.lengths)),
            zeroed=results.zeroed,
            penalties=results.penalties,
        )
        return TrainState(state.step + 1, updated.weights | running, updated.m, updated.v), result

    def _of_trained(self, grads: Gradients[Array]) -> Gradients[Array]:
        """The gradients of the parameters that are not frozen, and their norm."""
        if not self.frozen:
            return grads
        values = {name: g for name, g in grads.values.items() if name not in self.frozen}
        return grads._replace(values=values, squares=self.backend.gradient_squares(list(values.values())))

    def _updated(self, state: TrainState[Array], clip: np.float32, grads: dict[str, Array]) -> TrainState[Array]:
        """`state` after the update. Frozen parameters and their moments are the same arrays as before."""
        delays = {name: g for name, g in grads.items() if self.network.parameters[name].is_delay}
        others = {name: g for name, g in grads.items() if name not in delays}
        if others:
            state = self._updated_with(self.optimizer, state, clip, others)
        return self._updated_with(self.optimizer.for_delays(), state, clip, delays) if delays else state

    def _updated_with(
        self, optimizer: Optimizer, state: TrainState[Array], clip: np.float32, grads: dict[str, Array]
    ) -> TrainState[Array]:
        """`state` after the update of the parameters that have a gradient."""
        update_on_device = self.backend.compiled(update, self.network)
        scalars = optimizer.scalars(state.step, clip)
        if len(grads) == len(self.network.parameters):
            return TrainState(state.step, *update_on_device(scalars, state.weights, grads, state.m, state.v))
        old_arrays = (state.weights, state.m, state.v)
        # Only arrays that change, because the update may work in place.
        weights, m, v = ({name: x for name, x in arrays.items() if name in grads} for arrays in old_arrays)
        new_arrays = update_on_device(scalars, weights, grads, m, v)
        return TrainState(state.step, *(old | new for old, new in zip(old_arrays, new_arrays, strict=True)))

    def _group_size(self, steps: int, samples: int) -> int | None:
        """Number of a process's samples that are computed at a time; None: all."""
        if self.micro_batch is None and self.memory == "low":
            return samples_at_once(self.network, steps, samples)
        return self.micro_batch

    def _memory_between(self, parts: int, largest_part: int, steps: int) -> Memory:
        """`low` if only one bit per spike is kept between the forward and the backward pass.

        `largest_part` is the number of samples of the largest part of any process, because all must run the same
        program.
        """
        if parts_are_independent(self.network, self.precision):
            return "low" if self.memory == "low" and recompute_pays(self.network, steps, largest_part) else "full"
        return "low" if parts > 1 else self.memory

    def _part(self, batch: int) -> BatchSlice:
        """This process's part of a batch of `batch` samples. Raises `ShapeError` if there are none."""
        if (number := integer(batch)) is None or number < 1:
            raise ShapeError(f"a batch has at least 1 sample, got {shown(batch)}")
        return self.collective.parts(batch)[self.collective.rank]

    def predict(
        self,
        state: TrainState[Array],
        inputs: Inputs,
        steps: int,
        batch: int | None = None,
        lengths: Int64 | None = None,
    ) -> Prediction:
        """Compute the output of the network without dropout. The state is not changed.

        For several batches, make one `predictor`. It rounds the weights to their grid only once.

        Args:
            state: the state. It must be the same in every process.
            inputs, steps, batch, lengths: see `Predictor.__call__`.
        """
        return self.predictor(state)(inputs, steps, batch, lengths)

    def predictor(self, state: TrainState[Array]) -> Predictor[Array]:
        """Make a predictor with the current weights of `state`.

        Raises:
            NumericError: a weight is not finite. The message names the layer.
        """
        return Predictor(self, _state(state).weights)

    def export_state(self, state: TrainState[Array]) -> dict[str, AnyArray]:
        """The state as numpy arrays: `weight/NAME`, `step`, and the moments of the optimiser, which are `adamw.m/NAME`
        and `adamw.v/NAME`, `adam.m/NAME` and `adam.v/NAME`, or `sgd.momentum/NAME`. Any backend can import this."""
        exported: dict[str, AnyArray] = {"step": np.asarray(_state(state).step, dtype=np.int64)}
        moments = zip(self.optimizer.prefixes, (state.m, state.v), strict=False)
        for prefix, arrays in (("weight", state.weights), *moments):
            for name, x in arrays.items():
                exported[f"{prefix}/{name}"] = _without_subnormals(self.backend.numpy(x))
        return exported

    def import_state(self, exported: dict[str, AnyArray]) -> TrainState[Array]:
        """Make a state from the result of `export_state`.

        Raises:
            ShapeError: names or shapes do not fit this network, the step is not an integer from 0 to 2^32 - 1, or the
                state is that of another optimiser.
            NumericError: a moment of the optimiser is invalid: a NaN, a negative second moment, or a first moment
                larger than `AdamW.largest_moment`.
        """
        if not isinstance(exported, Mapping):
            raise ShapeError(f"a state must be numpy arrays by name, got {type(exported).__name__}")
        step = _step(exported.get("step"))
        self._check_optimizer_of(exported)
        parts: list[dict[str, Array]] = []
        for prefix in ("weight", *self.optimizer.prefixes):
            named = {k.removeprefix(prefix + "/"): x for k, x in exported.items() if str(k).startswith(prefix + "/")}
            check_weights(self.network, named, label=prefix, moments=prefix != "weight")
            parts.append({name: self.backend.asarray(_without_subnormals(x)) for name, x in named.items()})
        # Weights are checked when they are rounded to their grid.
        for name in self.network.parameters:
            self.optimizer.check_moments(name, [exported[f"{prefix}/{name}"] for prefix in self.optimizer.prefixes])
        return TrainState(step, parts[0], *_first_and_second(parts[1:]))

    def _check_optimizer_of(self, exported: Mapping[str, object]) -> None:
        """Raise `ShapeError` if a state is that of another optimiser."""
        kinds = {str(key).partition("/")[0].partition(".")[0] for key in exported}
        foreign = next(
            (kind for name, kind in OPTIMIZERS.items() if name in kinds and name != self.optimizer.name), None
        )
        if foreign is not None:
            own_name = type(self.optimizer).__name__
            raise ShapeError(
                f"the state is that of the optimiser {foreign.__name__}, but this trainer has {own_name}. "
                f"Continue with {foreign.__name__}, or give only the weights to `init`"
            )


def _first_and_second(moments: Sequence[dict[str, Array]]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The moments `m` and `v` of a state. An optimiser with one moment has an empty `v`."""
    m, v = (*moments, dict[str, Array]())[:2]
    return m, v


def _step(exported: object) -> int:
    """The step of an exported state. Raises `ShapeError` if it is not an integer from 0 to 2^32 - 1."""
    with contextlib.suppress(ShapeError):
        step = array_of(exported)
        if step.shape == () and step.dtype.kind in "iu" and 0 <= step < 2**32:
            return int(step)
    raise ShapeError(f"the step of a state must be an integer from 0 to 2**32 - 1, got {shown(exported)}")


class Predictor(Generic[Array]):
    """A network with a fixed copy of the weights of a state. Later changes of the state do not affect it.

    The predictor owns the weights on their grid, and the backend's conversions of them for its kernels.

    Args:
        trainer: trainer whose network, backend, memory setting and processes are used.
        weights: weights of a state.

    Raises:
        NumericError: a weight is not finite. The message names the layer.
    """

    @np.errstate(over="ignore", invalid="ignore")
    def __init__(self, trainer: Trainer[Array], weights: Mapping[str, Array]) -> None:
        self._trainer = trainer
        backend = trainer.backend
        wq, _ = weights_on_grid(backend, trainer.network.graph, weights)
        # Weights on their grid are new arrays. An update may change the other arrays in place, so copy them.
        copies = {
            name: backend.asarray(backend.numpy(x).copy()) if x is weights.get(name) else x for name, x in wq.items()
        }
        self._weights = backend.frozen(copies)

    @np.errstate(over="ignore", invalid="ignore")
    def __call__(
        self, inputs: Inputs, steps: int, batch: int | None = None, lengths: Int64 | None = None
    ) -> Prediction:
        """Compute the output of the network without dropout.

        Args:
            inputs: inputs of this process's part of a batch, as for `Trainer.step`.
            steps: number of steps `T`.
            batch: number of samples of the whole batch. Every process returns the output of all of them. None:
                `inputs` are the whole batch.
            lengths: lengths of all samples of the whole batch, as in `Batch`. Only the rates depend on them.

        Raises:
            ShapeError: the inputs do not fit the network.
        """
        trainer = self._trainer
        backend, network = trainer.backend, trainer.network
        inputs = inputs_as_bytes(network, inputs)
        samples = check_inputs(network, inputs, steps)
        collective: Collective[Array] = Alone() if batch is None else trainer.collective
        part = BatchSlice(0, samples, samples) if batch is None else trainer._part(batch)
        check_part(samples, part)
        check_lengths(lengths, part.batch, steps)
        part_outputs: list[AnyArray] = []
        counts = np.zeros(len(network.blocks), np.int64)
        for part_slice, x in _inputs_of_parts(
            network, inputs, part.cut(trainer._group_size(steps, samples) or samples)
        ):
            encoded = _encoded(backend, network, x)
            padding = () if lengths is None else (backend.asarray(_inside_of_part(lengths, part_slice, steps)),)
            device_output, numbers = backend.compiled(output, network, int(steps))(self._weights, encoded, *padding)
            spikes, *part_counts = backend.read([device_output, *numbers])
            part_outputs.append(_as_output(network, spikes[:, : part_slice.count]))
            counts += _totals(part_counts) * (part_slice.count > 0)
        spike_trains, totals = _from_all(collective, part.batch, np.concatenate(part_outputs, axis=1), counts)
        return Prediction(spike_trains, _rates(network, totals, spike_trains, lengths))


def _state(state: TrainState[Array]) -> TrainState[Array]:
    if not isinstance(state, TrainState):
        raise SpecError(f"a state is a TrainState, as trainer.init returns it, got {shown(state)}")
    return state


def _without_subnormals(x: Float32) -> Float32:
    """A copy of `x` with +0 in place of zeros of either sign and of subnormal numbers, which some libraries flush."""
    return np.where(np.abs(x) < np.float32(SMALLEST_NORMAL), np.float32(0), x)


@np.errstate(over="ignore", invalid="ignore")
def value_and_grad(
    backend: Operations[Array],
    network: NetworkSpec,
    loss: Loss,
    weights: dict[str, Float32],
    batch: Batch,
    precision: Precision,
    dropout: tuple[int, int] | None,
    rate_penalty: Mapping[str, RatePenalty],
) -> ValueAndGrad:
    """See `AbstractBackend.value_and_grad`."""
    check_precision(network, precision)
    backend.check_precision(precision)
    check_loss(loss, precision)
    check_output(network, loss)
    check_dropout(dropout)
    layer_penalties = check_rate_penalty(network, rate_penalty)
    check_weights(network, weights)
    batch = batch_as_bytes(network, batch)
    check_batch(network, loss, batch)
    native = {name: backend.asarray(w) for name, w in weights.items()}
    samples, alone = batch.targets.shape[1], Alone[Array]()
    parts = (BatchSlice(0, samples, samples),)
    memory: Memory = "full"
    fixed = (network, loss, layer_penalties, precision, memory, alone)
    grads, _ = _gradients(backend, *fixed, parts, native, batch, dropout)
    results = _read_results(backend, network, layer_penalties, alone, parts, grads, batch.lengths, "")
    value = loss.mean(results.spikes, batch.targets, network.output_psp, batch.lengths)
    grads_by_name = {name: unsigned_zeros(backend.numpy(grads.values[name])) for name in network.parameters}
    return ValueAndGrad(value, results.spikes, grads_by_name, results.zeroed, results.penalties)


@np.errstate(over="ignore", invalid="ignore")
def run(
    backend: Operations[Array], network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int
) -> RunResult:
    """See `AbstractBackend.run`."""
    check_weights(network, weights)
    inputs = inputs_as_bytes(network, inputs)
    check_inputs(network, inputs, steps)
    wq, grids = weights_on_grid(backend, network.graph, {name: backend.asarray(w) for name, w in weights.items()})
    block_states = backend.compiled(states, network, int(steps))(wq, _encoded(backend, network, inputs))
    layers = {
        block.name: LayerRun(backend.numpy(spikes).astype(np.uint8), unsigned_zeros(backend.numpy(potentials)))
        for block, (spikes, potentials) in zip(network.blocks, block_states, strict=True)
    }
    return RunResult(layers, grids)


def _running(
    backend: Operations[Array],
    network: NetworkSpec,
    weights: Mapping[str, Array],
    batch: Mapping[str, Float32],
    prefix: str,
) -> dict[str, Array]:
    """Running statistics after a batch, by name.

    Raises:
        NumericError: one is outside of its domain, so no network could use it.
    """
    statistics = dict[str, Array]()
    for projection in network.graph.normalised:
        norm = projection.synapse.norm
        assert norm is not None
        for name in (f"{projection.name}.{statistic}" for statistic in norm.initial(1)):
            updated = running(norm, backend.numpy(weights[name]), batch[name])
            try:
                check_statistic(name, updated)
            except NumericError as error:
                raise NumericError(f"{prefix}{error}; lower the learning rate or clip gradients") from error
            statistics[name] = backend.asarray(updated)
    return statistics


def _encoded(backend: Operations[Array], network: NetworkSpec, inputs: Inputs) -> Array:
    return backend.unpack(inputs) if isinstance(inputs, PackedFrames) else backend.encode(inputs, network.coding)


def _inputs_of_parts(
    network: NetworkSpec, inputs: Inputs, parts: Sequence[BatchSlice]
) -> Iterator[tuple[BatchSlice, Inputs]]:
    """Each part with its inputs, taken from the inputs of all parts. An empty part gets a sample of another part."""
    if len(parts) == 1:
        yield parts[0], inputs
        return
    axis, samples = int(network.coding == "events"), sum(part.count for part in parts)
    for part in parts:
        start = min(part.first - parts[0].first, max(1, samples) - 1)
        yield part, cut(inputs, slice(start, start + max(1, part.count)), axis)


def _gradients(
    backend: Operations[Array],
    network: NetworkSpec,
    loss: Loss,
    penalties: LayerPenalties,
    precision: Precision,
    memory: Memory,
    collective: Collective[Array],
    parts: tuple[BatchSlice, ...],
    weights: Mapping[str, Array],
    batch: Batch[Inputs],
    dropout: tuple[int, int] | None,
) -> tuple[Gradients[Array], dict[str, WeightGrid]]:
    wq, grids = weights_on_grid(backend, network.graph, weights)
    if batch.lengths is not None:
        frames = np.array([batch.lengths.sum()], np.int32)
        wq |= {f"{projection.name}.frames": backend.asarray(frames) for projection in network.graph.normalised}
    inputs: Sequence[Array] = _Encoded(backend, network, [x for _, x in _inputs_of_parts(network, batch.inputs, parts)])
    if len(parts) == 1 or not parts_are_independent(network, precision):
        inputs = list(inputs)
    targets, padding = list[Array](), list[dict[str, Array]]()
    for part in parts:
        target = batch.targets[:, part.first : part.end] if part.count else np.zeros_like(batch.targets[:, :1])
        targets.append(backend.asarray(target))
        if batch.lengths is not None:
            part_lengths = _of_part(batch.lengths, part, len(target))
            arrays = loss_padding(loss, network.output_psp, part_lengths, part.batch, target.shape)
            arrays |= _penalty_padding(network, penalties, part_lengths, part.batch)
            padding.append({name: backend.asarray(array) for name, array in arrays.items()})
    fixed = (network, loss, penalties, precision, memory, collective, parts)
    padded = () if batch.lengths is None else (padding,)
    return backend.compiled(gradients, *fixed)(wq, inputs, targets, dropout, *padded), grids


def _penalty_padding(
    network: NetworkSpec, penalties: LayerPenalties, lengths: Int64, batch: int
) -> dict[str, AnyArray]:
    shapes = {block.name: block.output_shape for block in network.blocks}
    return {
        penalty_name(layer, name): x
        for layer, penalty in penalties
        for name, x in penalty.constants_of_lengths(shapes[layer], lengths, batch).items()
    }


class _Encoded(Sequence[Array]):
    """Inputs of the parts of a batch. Each part is encoded on access."""

    def __init__(self, backend: Operations[Array], network: NetworkSpec, inputs: Sequence[Inputs]) -> None:
        self._backend, self._network, self._inputs = backend, network, inputs

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [_encoded(self._backend, self._network, x) for x in self._inputs[index]]
        return _encoded(self._backend, self._network, self._inputs[index])

    def __len__(self) -> int:
        return len(self._inputs)


def _of_part(lengths: Int64, part: BatchSlice, steps: int) -> Int64:
    """Lengths of the samples of a part of a batch. The silent sample of an empty part has all steps."""
    return lengths[part.first : part.end] if part.count else np.array([steps])


def _inside_of_part(lengths: Int64, part: BatchSlice, steps: int) -> UInt8:
    """Which steps of the samples of a part are not padding, `[T, B]`."""
    return inside(_of_part(lengths, part, steps), steps).astype(np.uint8)


class _Results(NamedTuple):
    """What the host reads of the gradients of a batch.

    Attributes:
        spikes: output spikes or potentials of the batch, `[T, B, N]`.
        norm: gradient norm.
        rates: spike rates by layer.
        zeroed: counts of the error grids by layer.
        statistics: statistics of batch normalisation by name.
        penalties: rate penalties by layer.
    """

    spikes: AnyArray
    norm: float
    rates: dict[str, float]
    zeroed: dict[str, ZeroedErrors]
    statistics: dict[str, Float32]
    penalties: dict[str, float]


def _read_results(
    backend: Operations[Array],
    network: NetworkSpec,
    penalties: LayerPenalties,
    collective: Collective[Array],
    parts: Sequence[BatchSlice],
    grads: Gradients[Array],
    lengths: Int64 | None,
    prefix: str,
) -> _Results:
    """Read the results of a batch with one wait for the device.

    Raises:
        NumericError: a gradient is not finite.
    """
    names = list(grads.zeroed[0])
    numbers = list[Array]()
    for counts, zeroed, squared_rates in zip(grads.counts, grads.zeroed, grads.penalties, strict=True):
        numbers += [*counts, *(zeroed[name] for name in names), *squared_rates]
    squares, *host_arrays = backend.read([grads.squares, *grads.spikes, *numbers, *grads.statistics.values()])
    host_arrays, last = (
        host_arrays[: len(host_arrays) - len(grads.statistics)],
        host_arrays[len(host_arrays) - len(grads.statistics) :],
    )
    statistics = dict(zip(grads.statistics, last, strict=True))
    norm = norm_of(squares, sum(math.prod(g.shape) for g in grads.values.values()))
    if not math.isfinite(norm):
        # The backward pass starts at the output, so the bad gradients began in the last layer that has one.
        last_first = [name for name in reversed(list(network.parameters)) if name in grads.values]
        layer = next(name for name in last_first if not np.isfinite(backend.numpy(grads.values[name])).all())
        raise NumericError(
            f"{prefix}the gradient of layer {layer} is not finite; lower the learning rate or clip gradients"
        )
    part_outputs, part_numbers, layers = host_arrays[: len(parts)], iter(host_arrays[len(parts) :]), len(network.blocks)
    outputs = [_as_output(network, spikes[:, : part.count]) for spikes, part in zip(part_outputs, parts, strict=True)]
    spike_counts, zeroed_counts = np.zeros(layers, np.int64), np.zeros((len(names), 2), np.int64)
    penalty_units = np.zeros(len(penalties), np.int64)
    for part in parts:
        spike_counts += _totals([next(part_numbers) for _ in range(layers)]) * (part.count > 0)
        for row in zeroed_counts:
            row += zeroed_numbers(next(part_numbers))
        penalty_units += _totals([next(part_numbers) for _ in penalties])
    counted = np.concatenate([spike_counts, zeroed_counts.reshape(-1), penalty_units])
    batch_outputs, totals = _from_all(collective, parts[0].batch, np.concatenate(outputs, axis=1), counted)
    of_zeroed, of_penalties = np.split(totals[layers:], [zeroed_counts.size])
    lost = {name: ZeroedErrors(*map(int, pair)) for name, pair in zip(names, of_zeroed.reshape(-1, 2), strict=True)}
    # A compiled function may have sorted the names. Restore the order of the network.
    layer_names = [projection.name for projection in network.graph.projections]
    ordered = {name: lost[name] for name in layer_names if name in lost}
    neurons = {block.name: math.prod(block.output_shape) for block in network.blocks}
    values = {
        layer: penalty.value(int(units), neurons[layer], parts[0].batch)
        for (layer, penalty), units in zip(penalties, of_penalties, strict=True)
    }
    rates = _rates(network, totals[:layers], batch_outputs, lengths)
    return _Results(batch_outputs, norm, rates, ordered, statistics, values)


def _as_output(network: NetworkSpec, x: AnyArray) -> AnyArray:
    """Output spikes, uint8, or the potentials of a readout, float32: `[T, B, N]`, in the form that is reported."""
    return unsigned_zeros(x) if network.has_readout else x.astype(np.uint8)


def _from_all(collective: Collective[Array], batch: int, spikes: AnyArray, numbers: Int64) -> tuple[AnyArray, Int64]:
    """Outputs `[T, B, N]` of the whole batch, and the sums of `numbers`, collected from all processes."""
    if collective.size == 1:
        return spikes, numbers
    bits = spikes.dtype == np.uint8
    payload = np.packbits(spikes) if bits else np.ascontiguousarray(spikes).reshape(-1).view(np.uint8)
    messages = collective.gather(np.append(numbers.view(np.uint8), payload))
    steps, _, outputs = spikes.shape
    batch_outputs, totals = np.empty((steps, batch, outputs), spikes.dtype), np.zeros_like(numbers)
    for part, message in zip(collective.parts(batch), messages, strict=True):
        totals += message[: numbers.nbytes].view(np.int64)
        shape, body = (steps, part.count, outputs), message[numbers.nbytes :]
        values = np.unpackbits(body, count=math.prod(shape)) if bits else body.copy().view(spikes.dtype)
        batch_outputs[:, part.first : part.end] = values.reshape(shape)
    return batch_outputs, totals


def zeroed_numbers(x: AnyArray) -> Int64:
    """Counts of the error grid, `[2]`: the sum of the numbers of `Operations.error_grid`, `[..., 2]`."""
    numbers: Int64 = np.reshape(x, (-1, 2)).sum(axis=0, dtype=np.int64)
    return numbers


def _totals(counts: Sequence[AnyArray]) -> Int64:
    """Sum of each array that `Operations.spike_count` returned."""
    return np.array([np.sum(count, dtype=np.int64) for count in counts], np.int64)


def _rates(network: NetworkSpec, counts: Int64, spikes: AnyArray, lengths: Int64 | None) -> dict[str, float]:
    """Spikes per neuron and step of each layer. Padded steps of the output do not count."""
    frames = math.prod(spikes.shape[:2]) if lengths is None else int(lengths.sum())
    return {
        block.name: int(count) / (frames * math.prod(block.output_shape))
        for block, count in zip(network.blocks, counts, strict=True)
    }
