"""The steps in which a backend computes a network, made once per backend and network from rules and fusions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from operator import methodcaller
from typing import Any, Generic, NamedTuple, get_args

from stsbp_spec.contract.grid import sum_bits
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.results import NeuronResiduals, Resumed
from stsbp_spec.engine.rules import BackwardResult, Deferred, ForwardResult, PassContext, Rule, Step
from stsbp_spec.equations.assembly import NeuronEquations, ResumableEquations, neuron_equations, resumable_equations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.networks.graph import BoundNode, Edge, Input, Network, Neurons, Op, Projection, Weighted
from stsbp_spec.networks.ops import batchnorm
from stsbp_spec.networks.ops.base import Derived, Passing
from stsbp_spec.networks.ops.batchnorm import BatchNorm, Coefficients
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.networks.ops.dropout import Dropout, substream
from stsbp_spec.networks.ops.one_to_one import PRODUCT, OneToOne
from stsbp_spec.networks.ops.psp import SynapticFilter
from stsbp_spec.typing import Array, Precision, Shape

__all__ = ["Chain", "Plan", "Segment", "Stage", "all_reduce_max", "all_reduce_sum", "plan", "rule_of"]


def all_reduce_max(backend: Operations[Array], runs: Sequence[PassContext[Array]], values: Iterable[Array]) -> Array:
    """Elementwise maximum of integers over the slices here and in all processes, such as `Operations.largest_error`."""
    return runs[0].collective.largest(backend.maximum([*values]))


def whole_batch_errors(
    backend: Operations[Array], runs: Sequence[PassContext[Array]], grads: Iterator[Array]
) -> tuple[Iterator[Array], int, Array]:
    """The errors of all slices here, the number of frames in the whole batch, and its largest magnitude.

    The iterator gives up each error when it is used, so that its memory is free.
    """
    errors = [*grads]
    frames = errors[0].shape[0] * runs[0].part.batch
    largest = all_reduce_max(backend, runs, map(backend.largest_error, errors))
    return (errors.pop(0) for _ in runs), frames, largest


def all_reduce_sum(backend: Operations[Array], runs: Sequence[PassContext[Array]], values: Iterable[Array]) -> Array:
    """The sum of exact sums, float64 or int64, over the slices here and in all processes."""
    return runs[0].collective.start_total(reduce(backend.add, values))()


@dataclass(frozen=True, eq=False)
class ByRule(Step[Array]):
    """A node that is computed by the rule of its operation."""

    op: Op
    rule: Rule[Array]

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        return ForwardResult(*self.rule.forward(self.op, *inputs))

    def backward_slice(
        self, run: PassContext[Array], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[Array]:
        grads = self.rule.backward(self.op, saved, grad)
        return BackwardResult(grads if len(self.needed) > 1 else (grads,))


@dataclass(frozen=True, eq=False)
class Weights(Step[Array]):
    """Weights that are computed by the rule of their geometry. `reproducible` precision puts errors on the grid."""

    backend: Operations[Array]
    rule: Rule[Array]
    projection: Projection

    def exchanges(self, precision: Precision) -> bool:
        return precision == "reproducible"

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        return ForwardResult(*self.rule.forward(self.projection.synapse, *inputs, run.weights[self.name]))

    def backward(
        self, runs: Sequence[PassContext[Array]], saved: Iterator[Any], grads: Iterator[Any], precision: Precision
    ) -> Iterator[BackwardResult[Array]]:
        grid: tuple[int, Array] | None = None
        if precision == "reproducible":
            grads, frames, largest = whole_batch_errors(self.backend, runs, grads)
            grid = self.projection.error_bits(frames=frames), largest
        for run in runs:
            yield self._backward(run, next(saved), next(grads), precision, grid)

    def _backward(
        self, run: PassContext[Array], saved: Any, grad: Array, precision: Precision, grid: tuple[int, Array] | None
    ) -> BackwardResult[Array]:
        zeroed = dict[str, Array]()
        if grid is not None:
            grad, zeroed[self.name] = self.backend.error_grid(grad, *grid)
        (need_input,) = self.needed
        ds, dw = self.rule.backward(self.projection.synapse, saved, grad, precision=precision, need_input=need_input)
        return BackwardResult((ds,), {self.name: dw}, zeroed)


class _NormalisedSaved(NamedTuple, Generic[Array]):
    """What normalised sums save: what their weights save, the sums, and the coefficients of the normalisation."""

    weights: Any
    z: Array
    coefficients: Coefficients[Array]


@dataclass(frozen=True, eq=False)
class Normalised(Step[Array]):
    """Weights and the batch normalisation of their sums: ops/batchnorm.py."""

    backend: Operations[Array]
    weights: Weights[Array]
    norm: BatchNorm

    def exchanges(self, precision: Precision) -> bool:
        return True

    def forward(
        self, runs: Sequence[PassContext[Array]], inputs: Iterator[tuple[Array, ...]]
    ) -> Iterator[ForwardResult[Array]]:
        sums, run = self.weights.forward(runs, inputs), runs[0]
        coefficients: Coefficients[Array] | None = run.coefficients.get(self.name)
        if not run.training:
            statistics = (self._parameter(run, name) for name in ("mean", "variance", "scale"))
            coefficients = self.backend.of_channels(batchnorm.of_running, *statistics, norm=self.norm)
        elif coefficients is None:
            results = list[ForwardResult[Array]]()
            coefficients = self._of_batch(runs, sums, results)
            for run in runs:
                run.coefficients[self.name] = coefficients
            sums = (results.pop(0) for _ in runs)
        for run in runs:
            yield self._normalised(run, coefficients, *next(sums))

    def _of_batch(
        self,
        runs: Sequence[PassContext[Array]],
        sums: Iterator[ForwardResult[Array]],
        results: list[ForwardResult[Array]],
    ) -> Coefficients[Array]:
        """The coefficients from the weighted sums of all slices, which are appended to `results`."""
        backend, run, exponent = self.backend, runs[0], self._parameter(runs[0], "exponent")
        moments = list[Array]()
        for of_slice in runs:
            results.append(next(sums))
            moments.append(backend.moments(self._mask_padding(of_slice, results[-1].output), exponent))
        frames, n = self._frames(run, results[0].output)
        total = all_reduce_sum(backend, runs, moments)
        gain = self.bound_nodes[0].inputs[0].gain
        coefficients: Coefficients[Array] = backend.of_channels(
            batchnorm.of_batch, total, exponent, self._parameter(run, "scale"), *frames, norm=self.norm, n=n, gain=gain
        )
        return coefficients

    def _normalised(
        self, run: PassContext[Array], coefficients: Coefficients[Array], z: Array, saved: Any
    ) -> ForwardResult[Array]:
        numbers = {"mean": coefficients.mean, "a": coefficients.a, "shift": self._parameter(run, "shift")}
        y = self.backend.channelwise(batchnorm.FORWARD, {"z": z}, numbers)
        return ForwardResult(y, _NormalisedSaved(saved, z, coefficients))

    def backward(
        self, runs: Sequence[PassContext[Array]], saved: Iterator[Any], grads: Iterator[Any], precision: Precision
    ) -> Iterator[BackwardResult[Array]]:
        backend, run, exponent = self.backend, runs[0], self._parameter(runs[0], "exponent")
        errors = [*grads]
        of_weights, zs, (coefficients, *_) = map(list, zip(*saved, strict=True))
        frames, n = self._frames(run, zs[0])
        if precision == "reproducible":
            bits = batchnorm.norm_error_bits(self._summands(run, zs[0]))
            largest = all_reduce_max(backend, runs, map(backend.largest_error, errors))
            for i in range(len(errors)):
                errors[i], _ = backend.error_grid(errors[i], bits, largest)
        moments = (backend.error_moments(error, z, exponent) for error, z in zip(errors, zs, strict=True))
        of_all, slope, grad_scale, grad_shift = backend.of_channels(
            batchnorm.backward_coefficients, all_reduce_sum(backend, runs, moments), exponent, coefficients, *frames,
            n=n, training=run.training,
        )  # fmt: skip
        numbers = {"mean": coefficients.mean, "a": coefficients.a, "of_all": of_all, "slope": slope}
        dzs = (self._dz(run, zs.pop(0), errors.pop(0), numbers) for run in runs)
        results = self.weights.backward(runs, (of_weights.pop(0) for _ in runs), dzs, precision)
        batch_gradients = {f"{self.name}.scale": grad_scale, f"{self.name}.shift": grad_shift}
        for _ in runs:
            yield next(results)._replace(batch_gradients=batch_gradients)

    def _dz(self, run: PassContext[Array], z: Array, error: Array, numbers: Mapping[str, Array]) -> Array:
        return self._mask_padding(run, self.backend.channelwise(batchnorm.BACKWARD, {"z": z, "dy": error}, numbers))

    def statistics(self, saved: Any) -> Mapping[str, Array]:
        mean, variance = saved.coefficients.batch
        return {f"{self.name}.mean": mean, f"{self.name}.variance": variance}

    def _parameter(self, run: PassContext[Array], name: str) -> Array:
        return run.weights[f"{self.name}.{name}"]

    def _summands(self, run: PassContext[Array], z: Array) -> int:
        """Number of weighted sums of a channel in the whole batch, including padding."""
        return batchnorm.summands(len(z) * run.part.batch, self.bound_nodes[0].output.shape)

    def _frames(self, run: PassContext[Array], z: Array) -> tuple[tuple[Array, ...], int]:
        """Number of sums that are normalised together. With lengths: the frames, and the number of sums per frame."""
        n = self._summands(run, z)
        if run.inside is None or self.bound_nodes[0].output.static:
            return (), n
        return (self._parameter(run, "frames"),), batchnorm.summands(1, self.bound_nodes[0].output.shape)

    def _mask_padding(self, run: PassContext[Array], x: Array) -> Array:
        """`x` `[T, B, ...]` with zeros at padded steps, and for samples that do not belong to the batch."""
        x = self.backend.mask_samples(x, run.part.count)
        if run.inside is None or self.bound_nodes[0].output.static:
            return x
        return self.backend.mask_steps(x, run.inside)


def _one_to_one(backend: Operations[Array]) -> Rule[Array]:
    """One weight per neuron, as equations that every backend runs: ops/one_to_one.py."""

    def times(x: Array, w: Array) -> Array:
        weights = backend.broadcast(w.reshape(-1), x.shape[1:])
        return backend.recur(PRODUCT, {}, {"x": x, "w": weights}, len(x))["y"]

    def forward(op: OneToOne, s: Array, wq: Array) -> tuple[Array, tuple[Array, Array]]:
        return times(s, wq), (s, wq)

    def backward(
        op: OneToOne,
        residuals: tuple[Array, Array],
        dz: Array,
        *,
        precision: Precision,
        need_input: bool,
        need_weights: bool = True,
    ) -> tuple[Array | None, Array | None]:
        s, wq = residuals
        ds = times(dz, wq) if need_input else None
        if not need_weights:
            return ds, None
        # Spikes are 0 or 1, so the products are exact.
        terms = backend.recur(PRODUCT, {}, {"x": s, "w": dz}, len(dz))["y"]
        dw = backend.channel_totals(terms.reshape(1, -1, wq.shape[0]), wq.shape[0])
        return ds, dw.reshape(wq.shape)

    return Rule(forward, backward)


def _derived(backend: Operations[Array]) -> Rule[Array]:
    """The rule of `Derived` operations."""

    def forward(op: Derived, *inputs: Array) -> tuple[Array, Any]:
        return op.forward(backend.arithmetic, *inputs)

    def backward(op: Derived, residuals: Any, error: Array) -> Any:
        return op.backward(backend.arithmetic, residuals, error)

    return Rule(forward, backward)


@dataclass(frozen=True, eq=False)
class Drops(Step[Array]):
    """Dropout with the backend's masks: ops/dropout.py."""

    backend: Operations[Array]
    op: Dropout

    def mask(self, run: PassContext[Array], batch: int) -> Array | None:
        """The mask of kept spikes, `[B, ...]`; None: all are kept."""
        if run.dropout is None or self.op.rate == 0:
            return None
        (seed, step), bound_node = run.dropout, self.bound_nodes[0]
        stream = substream(bound_node.layer, bound_node.position)
        # One mask for all steps: a kept neuron keeps the timing of its spikes, and fewer random numbers are drawn.
        shape = (batch, *bound_node.output.shape)
        return self.backend.dropout_mask(seed, stream, step, shape, self.op.rate, first=run.part.first)

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        (s,) = inputs
        mask = self.mask(run, s.shape[1])
        return ForwardResult(s if mask is None else self.backend.dropout(mask, s), mask)

    def backward_slice(
        self, run: PassContext[Array], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[Array]:
        return BackwardResult((grad if saved is None else self.backend.dropout(saved, grad),))


class DelaySaved(NamedTuple, Generic[Array]):
    """What learned delays save.

    Attributes:
        x: the input `[T, B, ...]`; after an initial state, the values of the state before it.
        after: if the run has initial states, the last values of the input, for the steps that follow.
    """

    x: Array
    after: tuple[Array, ...] = ()


@dataclass(frozen=True, eq=False)
class Delays(Step[Array]):
    """Learned delays: ops/delay.py. `reproducible` precision sums errors on a grid of their own."""

    backend: Operations[Array]
    op: LearnedDelay

    @property
    def parameter(self) -> str:
        """Name of the delays among the network's parameters."""
        (name,) = self.bound_nodes[0].parameters.values()
        return name

    @property
    def leaves_state(self) -> bool:
        return True

    def exchanges(self, precision: Precision) -> bool:
        return precision == "reproducible"

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        backend, (x,), delays = self.backend, inputs, run.weights[self.parameter]
        if run.initial_states is None:
            return ForwardResult(backend.delay_forward(x, delays), DelaySaved(x))
        kept = self.op.kept_steps
        (earlier,) = run.initial_states.get(self.name) or (backend.concatenate([x[:1] * 0] * kept),)
        joined = backend.concatenate([earlier, x])
        return ForwardResult(backend.delay_forward(joined, delays)[kept:], DelaySaved(joined, (joined[len(x) :],)))

    def backward(
        self, runs: Sequence[PassContext[Array]], saved: Iterator[Any], grads: Iterator[Any], precision: Precision
    ) -> Iterator[BackwardResult[Array]]:
        grid: tuple[int, Array] | None = None
        if precision == "reproducible":
            grads, frames, largest = whole_batch_errors(self.backend, runs, grads)
            grid = self.op.error_bits(self.bound_nodes[0].output, frames=frames), largest
        for run in runs:
            yield self._backward(run, next(saved), next(grads), grid)

    def _backward(
        self, run: PassContext[Array], saved: DelaySaved[Array], grad: Array, grid: tuple[int, Array] | None
    ) -> BackwardResult[Array]:
        backend, delays, (need_input,) = self.backend, run.weights[self.parameter], self.needed
        on_grid = grad if grid is None else backend.error_grid(grad, *grid)[0]
        # Errors do not flow into the steps before an initial state, as with fixed delays.
        ds = backend.delay_backward(grad, delays) if need_input else None
        return BackwardResult((ds,), {self.parameter: backend.delay_gradient(saved.x, delays, on_grid)})


@dataclass(frozen=True, eq=False)
class Population(Step[Array]):
    """Neurons, including the pending synapses of their inputs."""

    backend: Operations[Array]
    op: Neurons
    loops: tuple[Weights[Array], ...] = ()

    @cached_property
    def filters(self) -> tuple[SynapticFilter, SynapticFilter]:
        """The filters of evaluation and of training, if there is one input."""
        (values,) = self.bound_nodes[0].inputs
        return values.filter(training=False), values.filter(training=True)

    @cached_property
    def equations(self) -> tuple[NeuronEquations, NeuronEquations]:
        """The equations of evaluation and of training."""
        evaluation, training = (neuron_equations(filters, self.op.model, self._static) for filters in self._filters)
        return evaluation, training

    @cached_property
    def resumable(self) -> tuple[ResumableEquations, ResumableEquations]:
        """The same equations for runs that start from given states and return the final states."""
        evaluation, training = (resumable_equations(filters, self.op.model, self._static) for filters in self._filters)
        return evaluation, training

    @property
    def _filters(self) -> Iterator[tuple[SynapticFilter, ...]]:
        """The filters of all inputs, of evaluation and of training."""
        inputs = self.bound_nodes[0].inputs
        return (tuple(values.filter(training=training) for values in inputs) for training in (False, True))

    @property
    def _static(self) -> tuple[bool, ...]:
        return tuple(values.static for values in self.bound_nodes[0].inputs)

    def learned(self, run: PassContext[Array]) -> dict[str, Array]:
        """The learned parameters of the neurons, by the model's names."""
        (bound_node,) = self.bound_nodes
        return {name: run.weights[parameter] for name, parameter in bound_node.parameters.items()}

    def gradients(
        self, runs: Sequence[PassContext[Array]], terms: Sequence[Mapping[str, Array]], precision: Precision
    ) -> list[dict[str, Array]]:
        """Gradients of the neurons' learned parameters for each slice, by the network's names, from
        `Operations.population_backward`'s terms."""
        (bound_node,), gradients = self.bound_nodes, [dict[str, Array]() for _ in runs]
        for name in terms[0]:
            (count,), xs = (
                bound_node.learned[name].shape(bound_node.output.shape),
                [of_slice[name] for of_slice in terms],
            )
            # A kernel adds the steps of a neuron in one register, from the last to the first. The grid comes after
            # that, because it depends on the largest number: to round single steps, all of them would have to be
            # stored.
            if precision == "reproducible":
                largest = all_reduce_max(self.backend, runs, map(self.backend.largest_error, xs))
                bits = sum_bits(runs[0].part.batch * math.prod(bound_node.output.shape) // count)
                xs = [self.backend.error_grid(x, bits, largest)[0] for x in xs]
            for of_slice, x in zip(gradients, xs, strict=True):
                of_slice[bound_node.parameters[name]] = self.backend.channel_totals(x, count)
        return gradients

    def _stepwise(
        self, run: PassContext[Array], step_equations: Recurrence, start: tuple[Array, ...], inputs: Sequence[Array]
    ) -> tuple[tuple[Array, ...], NeuronResiduals[Array]]:
        """Compute one time step after the other with `step_equations` (`Recurrence.single`), from `start`
        (`Resumed.after`)."""
        backend, equations = self.backend, self.equations[run.training]
        learned = backend.broadcast_all(equations, self.learned(run), inputs[0].shape[1:])
        outer_indices, loop_indices = self._input_indices
        states = tuple(equations.forward.states)
        names = [*step_equations.outputs]
        outputs, state_names = names[: len(names) - len(states)], names[len(names) - len(states) :]

        def step(
            carried: tuple[Array, ...], step_inputs: dict[str, Array]
        ) -> tuple[tuple[Array, ...], dict[str, Array]]:
            spikes, *state_values = carried
            loop_sums = {
                equations.inputs[j]: loop.rule.forward(loop.projection.synapse, spikes, run.weights[loop.name])[0]
                for j, loop in zip(loop_indices, self.loops, strict=True)
            }
            values = {**step_inputs, **loop_sums, **learned, **dict(zip(states, state_values, strict=True))}
            step_outputs = backend.recur(step_equations, equations.constants, values, 1)
            return (step_outputs["o"], *(step_outputs[name] for name in state_names)), {
                name: step_outputs[name] for name in outputs
            }

        outer_sums = {equations.inputs[j]: z for j, z in zip(outer_indices, inputs, strict=True)}
        final_state, saved = backend.scan(step, start, outer_sums, run.steps)
        spikes = saved.pop("o")
        static = len(inputs) == 1 and len(inputs[0]) == 1 and run.steps > 1
        return final_state, NeuronResiduals(saved, spikes, static and not loop_indices, learned)

    def _resting_state(self, run: PassContext[Array], shape: Shape) -> tuple[Array, ...]:
        """The state of rest: no spikes, and all states zero. Their shape `shape` is `[1, B, ...]`."""
        states = self.equations[run.training].forward.states
        return self.backend.silence(shape), *(self.backend.zeros(shape) for _ in states)

    @cached_property
    def _input_indices(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which inputs of the equations come from other nodes, and which come from the recurrent weights."""
        names, loop_names = (
            [edge.source for edge in self.bound_nodes[0].node.inputs],
            [loop.name for loop in self.loops],
        )
        return tuple(j for j, name in enumerate(names) if name not in loop_names), tuple(map(names.index, loop_names))

    def _resumed(self, run: PassContext[Array], inputs: Sequence[Array]) -> tuple[Array, Resumed[Array]]:
        assert run.initial_states is not None
        start = run.initial_states.get(self.name) or self._resting_state(run, (1, *inputs[0].shape[1:]))
        final_state, residuals = self._stepwise(run, self.resumable[run.training].step, start, inputs)
        return residuals.spikes, Resumed(residuals, start[0], final_state)

    def _backward_inputs(
        self, run: PassContext[Array], residuals: Any
    ) -> tuple[NeuronEquations, NeuronResiduals[Array], Array | None]:
        """The equations of the backward pass, the residuals it reads, and the spikes before the first step, if any."""
        if not isinstance(residuals, Resumed):
            return self.equations[run.training], residuals, None
        resumable, (neurons, first, _, error) = self.resumable[run.training], residuals
        equations = resumable.plain if error is None else resumable.of_potentials
        saved = {name: neurons.kept[name] for name in equations.kept}
        return equations, neurons._replace(kept=saved if error is None else {**saved, "gu": error}), first

    def exchanges(self, precision: Precision) -> bool:
        return precision == "reproducible" and bool(self.bound_nodes[0].parameters)

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        if run.initial_states is not None:
            return ForwardResult(*self._resumed(run, inputs))
        equations, learned = self.equations[run.training], self.learned(run)
        return ForwardResult(*self.backend.population_forward(equations, inputs, run.steps, learned))

    def backward(
        self, runs: Sequence[PassContext[Array]], saved: Iterator[Any], grads: Iterator[Any], precision: Precision
    ) -> Iterator[BackwardResult[Array]]:
        results = [self._propagated(run, next(saved), next(grads)) for run in runs]
        for gradients in self.gradients(runs, [terms for _, terms in results], precision):
            yield BackwardResult(results.pop(0)[0], gradients)

    def _propagated(
        self, run: PassContext[Array], saved: Any, grad: Array
    ) -> tuple[tuple[Array, ...], Mapping[str, Array]]:
        """The gradients of the inputs, and the terms of those of learned parameters."""
        equations, residuals, _ = self._backward_inputs(run, saved)
        static = [values.static and run.steps > 1 for values in self.bound_nodes[0].inputs]
        return self.backend.population_backward(equations, residuals, grad, static)

    def population(self, saved: Any) -> NeuronResiduals[Array]:
        residuals: NeuronResiduals[Array] = saved.neurons if isinstance(saved, Resumed) else saved
        return residuals


@dataclass(frozen=True, eq=False)
class Recurrent(Population[Array]):
    """Neurons that read their own spikes of the previous step through weights. They compute one time step at a time.

    Forward pass: `z'_t = V o_{t-1}` in addition to the other inputs. Backward pass, from the last step to the first:
    `do_t` is the error from the layer above plus `V^T dz'_{t+1}`. In `reproducible` precision, `Operations.sample_grid`
    rounds `dz'` first, so that these sums are exact. The gradient of `V` is computed from all steps at once, as for any
    other weights.

    `loops` are the recurrent weights, in the order of the inputs.
    """

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(edge.source for edge in self._edges)

    @property
    def delays(self) -> tuple[int, ...]:
        return tuple(edge.delay for edge in self._edges)

    @property
    def _edges(self) -> tuple[Edge, ...]:
        loop_names = {loop.name for loop in self.loops}
        return tuple(edge for edge in self.bound_nodes[0].node.inputs if edge.source not in loop_names)

    def exchanges(self, precision: Precision) -> bool:
        return precision == "reproducible"

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        return ForwardResult(*(self.fire(run, inputs) if run.initial_states is None else self._resumed(run, inputs)))

    def backward(
        self, runs: Sequence[PassContext[Array]], saved: Iterator[Any], grads: Iterator[Any], precision: Precision
    ) -> Iterator[BackwardResult[Array]]:
        outer_indices, loop_indices = self._input_indices
        names = self.equations[runs[0].training].errors
        slices = [self._propagated_back(run, next(saved), next(grads), precision) for run in runs]
        gradients = self.gradients(runs, [terms for _, terms, _ in slices], precision)
        zeroed = [dict[str, Array]() for _ in runs]
        # The gradient of `V` is a sum over samples, so it needs the grid of the batch, which is known only after the
        # loop.
        for j, loop in zip(loop_indices, self.loops, strict=True):
            residuals = (
                self.saved_for_backward(loop, o, run.weights[loop.name])
                for run, (_, _, o) in zip(runs, slices, strict=True)
            )
            errors = (of_inputs[names[j]] for of_inputs, _, _ in slices)
            for i, result in enumerate(loop.backward(runs, residuals, errors, precision)):
                gradients[i].update(result.gradients)
                zeroed[i].update(result.zeroed)
        for i in range(len(runs)):
            of_inputs, _, _ = slices.pop(0)
            yield BackwardResult(tuple(of_inputs[names[j]] for j in outer_indices), gradients[i], zeroed[i])

    def _propagated_back(
        self, run: PassContext[Array], saved: Any, grad: Array, precision: Precision
    ) -> tuple[Mapping[str, Array], Mapping[str, Array], Array]:
        """The results of `propagate`, and the spikes one step before each step."""
        outer_indices, _ = self._input_indices
        equations, residuals, first = self._backward_inputs(run, saved)
        values = self.bound_nodes[0].inputs
        static = {equations.errors[j] for j in outer_indices if values[j].static and run.steps > 1}
        errors, terms = self.propagate(run, residuals, grad, tuple(sorted(static)), precision)
        spikes = residuals.spikes
        earlier = (
            self.backend.shift_time(spikes, 1) if first is None else self.backend.concatenate([first, spikes[:-1]])
        )
        return errors, terms, earlier

    def fire(self, run: PassContext[Array], inputs: Sequence[Array]) -> tuple[Array, NeuronResiduals[Array]]:
        """The forward pass of all steps: returns the spikes, and what the backward pass reads."""
        start = self._resting_state(run, (1, *inputs[0].shape[1:]))
        _, residuals = self._stepwise(run, self.equations[run.training].forward_step, start, inputs)
        return residuals.spikes, residuals

    def propagate(
        self,
        run: PassContext[Array],
        residuals: NeuronResiduals[Array],
        error: Array,
        static: tuple[str, ...],
        precision: Precision,
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """The backward pass of all steps: errors by the names of `equations.errors`, and those of learned parameters.

        The errors of `static` inputs are sums over the steps.
        """
        backend, equations, (_, loop_indices) = (
            self.backend,
            self.backward_equations(run, residuals),
            self._input_indices,
        )
        shape = error.shape[1:]
        step_equations, states = equations.backward_step(static)
        varying = [name for name in dict.fromkeys(equations.errors) if name not in static]
        silent = backend.silence((1, *shape))
        saved = [self.saved_for_backward(loop, silent, run.weights[loop.name]) for loop in self.loops]

        def step(
            carried: tuple[Array, ...], step_inputs: dict[str, Array]
        ) -> tuple[tuple[Array, ...], dict[str, Array]]:
            loop_grads, *state_grads = carried
            values = {
                **step_inputs,
                **residuals.learned,
                "back": loop_grads,
                **dict(zip(states, state_grads, strict=True)),
            }
            step_outputs = backend.recur(step_equations, equations.constants, values, 1)
            grads = list[Array]()
            for j, loop, loop_saved in zip(loop_indices, self.loops, saved, strict=True):
                dz, projection = step_outputs[equations.errors[j]], loop.projection
                if precision == "reproducible":
                    # With weights of 12 bits and 256 neurons, an error keeps 33 bits; float32 has 24, so large ones do
                    # not round.
                    dz = backend.sample_grid(dz, projection.sample_error_bits)
                ds, _ = loop.rule.backward(
                    projection.synapse, loop_saved, dz, precision=precision, need_input=True, need_weights=False
                )
                grads.append(ds)
            new_loop_grads = reduce(backend.add, grads)
            new_states = (
                step_outputs[name] for name in [*step_equations.outputs][len(step_equations.outputs) - len(states) :]
            )
            return (new_loop_grads, *new_states), {name: step_outputs[name] for name in varying}

        start = (backend.zeros((1, *shape)),) * (1 + len(states))
        final_state, errors = backend.scan(step, start, {**residuals.kept, "g": error}, len(error), reverse=True)
        summed = (*static, *equations.terms)
        sums = dict(zip(summed, final_state[len(final_state) - len(summed) :], strict=True))
        return errors | {name: sums[name] for name in static}, {name: sums[name] for name in equations.terms}

    def backward_equations(self, run: PassContext[Array], residuals: NeuronResiduals[Array]) -> NeuronEquations:
        """The equations that `propagate` uses. They differ if there are errors of potentials."""
        return self.resumable[run.training].of_potentials if "gu" in residuals.kept else self.equations[run.training]

    def saved_for_backward(self, loop: Weights[Array], spikes: Array, w: Array) -> Any:
        """The residuals of the recurrent weights for `spikes`."""
        return loop.rule.forward(loop.projection.synapse, spikes, w)[1]


@dataclass(frozen=True, eq=False)
class Chain(Step[Array]):
    """Consecutive steps that are treated as one. Fusions are built on this class.

    In a pass in which one of them needs numbers of the whole batch, they are computed one by one instead.
    """

    parts: tuple[Step[Array], ...]

    def exchanges(self, precision: Precision) -> bool:
        return any(part.exchanges(precision) for part in self.parts)

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        saved: list[Any] = []
        for part in self.parts:
            output, residuals = next(part.forward([run], iter([inputs])))
            inputs = (output,)
            saved.append(residuals)
        return ForwardResult(inputs[0], saved)

    def backward_slice(
        self, run: PassContext[Array], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[Array]:
        # A part with sums over the batch (`zeroed`, `batch_gradients`) exchanges numbers, so the chain is computed by
        # parts.
        gradients = dict[str, Array]()
        # The lists lose what a part takes, so that it is free before the next part.
        grads: list[Any] = [self.received(saved, grad)]
        del grad
        for part in reversed(self.parts):
            result = next(part.backward([run], (saved.pop() for _ in [run]), (grads.pop() for _ in [run]), precision))
            grads = [*result.grad_inputs]
            gradients.update(result.gradients)
            del result
            if not any(part.needed):
                return BackwardResult((None,) * len(self.needed), gradients)
        return BackwardResult(tuple(grads), gradients)

    def received(self, saved: Any, grad: Any) -> Any:
        """The gradient of the output as the last part takes it."""
        return grad.array() if isinstance(grad, Deferred) else grad

    def by_parts(self, saved: Any) -> Sequence[Any]:
        """What the parts would have saved, from what the chain saved; or `saved`, if the parts were computed one by
        one."""
        parts: Sequence[Any] = saved
        return parts

    def statistics(self, saved: Any) -> Mapping[str, Array]:
        normalised = [(part, part_saved) for part, part_saved in zip(self.parts, saved, strict=True) if part.normalises]
        return {name: x for part, part_saved in normalised for name, x in part.statistics(part_saved).items()}

    def population(self, saved: Any) -> NeuronResiduals[Array]:
        return self.parts[-1].population(saved[-1])


class Stage(NamedTuple, Generic[Array]):
    """Steps of a pass that are all computed for one slice of a batch before the next slice.

    Attributes:
        exchanges: whether the first step needs numbers of the whole batch. It then gets all slices.
        steps: the steps in the order of the pass.
    """

    exchanges: bool
    steps: list[Step[Array]]


def _stages(
    steps: Sequence[Step[Array]], exchanges: Callable[[Step[Array]], bool], *, reverse: bool = False
) -> list[Stage[Array]]:
    # A chain cannot compute several slices at once, but its parts can.
    parts = [
        part for step in steps for part in (step.parts if isinstance(step, Chain) and exchanges(step) else (step,))
    ]
    stages: list[Stage[Array]] = []
    for step in reversed(parts) if reverse else parts:
        if exchanges(step) or not stages:
            stages.append(Stage(exchanges(step), []))
        stages[-1].steps.append(step)
    return stages


@dataclass(frozen=True)
class Segment(Generic[Array]):
    """The steps after one population up to the next. They can be run again from their sources.

    Attributes:
        steps: the steps, in order.
        sources: names of the outputs of other segments that they read.
        released: names of those sources that no later segment reads.
        outputs: names of the outputs that are kept: the population, what other segments read, the network's output.
    """

    steps: tuple[Step[Array], ...]
    sources: tuple[str, ...]
    released: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def bound_nodes(self) -> tuple[BoundNode, ...]:
        """The nodes of its steps, in order."""
        return tuple(bound_node for step in self.steps for bound_node in step.bound_nodes)

    @cached_property
    def backward_stages(self) -> Mapping[Precision, list[Stage[Array]]]:
        """The backward pass through the segment in each precision."""
        exchanges = {precision: methodcaller("exchanges", precision) for precision in get_args(Precision)}
        return {precision: _stages(self.steps, asks, reverse=True) for precision, asks in exchanges.items()}

    def projections(self, network: Network) -> tuple[Projection, ...]:
        """The weights of `network` in this segment, including recurrent weights."""
        names = {bound_node.node.name for bound_node in self.bound_nodes}
        names |= {loop for name in names for loop in network.recurrent.get(name, ())}
        return tuple(projection for projection in network.projections if projection.name in names)

    @property
    def population(self) -> str | None:
        """Name of its population; None: the segment ends with the network's output, which is not a population."""
        return self.steps[-1].name if self.steps[-1].fires else None


@dataclass(frozen=True, eq=False)
class Plan(Generic[Array]):
    """The steps through a network.

    Attributes:
        segments: the steps, in order.
        input, output: names of the first and the last node.
        uses: names of the nodes that use the same weights, in order, by the name of the node that owns the weights.
    """

    segments: tuple[Segment[Array], ...]
    input: str
    output: str
    uses: Mapping[str, tuple[str, ...]]

    @cached_property
    def stages(self) -> list[Stage[Array]]:
        """The forward pass."""
        return _stages(self.steps, lambda step: step.normalises)

    @property
    def steps(self) -> tuple[Step[Array], ...]:
        """All steps, in order."""
        return tuple(step for segment in self.segments for step in segment.steps)


def plan(backend: Operations[Array], network: Network, *, of_input: bool = False, fused: bool = True) -> Plan[Array]:
    """Make the plan of a backend for a network. The plan of each pair of both is made only once.

    Args:
        backend, network: the backend, and the graph of the network.
        of_input: whether the backward pass also computes the error of the input.
        fused: whether the backend may compute several nodes together. It may not if states are passed in and out.

    Raises:
        BackendError: the backend has no rule for an operation. The message names both.
    """
    return _plan(backend, network, of_input, fused)


@lru_cache(maxsize=64)
def _plan(backend: Operations[Any], network: Network, of_input: bool, fused: bool) -> Plan[Any]:
    trained, singles = dict[str, bool](), dict[str, Step[Any]]()
    projections = {projection.name: projection for projection in network.projections}
    loops = {name for names in network.recurrent.values() for name in names}
    loop_weights = dict[str, Weights[Any]]()
    for bound_node in network.bound_nodes:
        node = bound_node.node
        if node.name in loops:
            loop_weights[node.name] = Weights(
                (bound_node,), (False,), backend, rule_of(backend, node.op), projections[node.name]
            )
            continue
        needed = tuple(trained[edge.source] for edge in node.inputs if edge.source not in loops)
        trained[node.name] = (
            isinstance(node.op, (Weighted, LearnedDelay)) or any(needed) or (of_input and isinstance(node.op, Input))
        )
        if node.name in network.recurrent:
            assert isinstance(node.op, Neurons)
            weights = tuple(loop_weights[name] for name in network.recurrent[node.name])
            singles[node.name] = Recurrent((bound_node,), needed, backend, node.op, weights)
        elif not isinstance(node.op, Input):
            singles[node.name] = _single(backend, bound_node, needed, projections.get(node.name))
    steps: list[Step[Any]] = []
    covered: set[str] = set()
    fusions = backend.fusions if fused else ()
    position = {bound_node.node.name: number for number, bound_node in enumerate(network.bound_nodes)}
    for name, single in reversed(singles.items()):
        if name not in covered:
            chain = _chain(network, position, singles, name)
            fused_steps = (step for fusion in fusions if (step := fusion(chain)) is not None)
            steps.append(next(fused_steps, single))
            covered.update(bound_node.node.name for bound_node in steps[-1].bound_nodes)
    source = next(node.name for node in network.nodes if isinstance(node.op, Input))
    return Plan(_segments(steps[::-1]), source, network.nodes[-1].name, _uses(network))


def _uses(network: Network) -> dict[str, tuple[str, ...]]:
    shared = {projection.shares for projection in network.projections} - {None}
    return {
        str(owner): tuple(projection.name for projection in network.projections if projection.parameter == owner)
        for owner in shared
    }


def _single(
    backend: Operations[Any], bound_node: BoundNode, needed: tuple[bool, ...], projection: Projection | None
) -> Step[Any]:
    op = bound_node.node.op
    if isinstance(op, Neurons):
        return Population((bound_node,), needed, backend, op)
    if type(op) is Dropout:
        return Drops((bound_node,), needed, backend, op)
    if isinstance(op, LearnedDelay):
        return Delays((bound_node,), needed, backend, op)
    if isinstance(op, Passing):
        (values,) = bound_node.inputs
        op = op.at(values.shape)
    rule = rule_of(backend, op)
    if projection is not None:
        weights = Weights((bound_node,), needed, backend, rule, projection)
        norm = projection.synapse.norm
        return weights if norm is None else Normalised((bound_node,), needed, backend, weights, norm)
    return ByRule((bound_node,), needed, op, rule)


def rule_of(backend: Operations[Any], op: Op) -> Rule[Any]:
    """The rule of an operation: the backend's own, or one that every backend can compute.

    Raises:
        BackendError: there is no rule.
    """
    if type(op) not in backend.rules:
        if type(op) is OneToOne:
            return _one_to_one(backend)
        if isinstance(op, Derived):
            return _derived(backend)
    return backend.rule(op)


def _chain(
    network: Network, position: Mapping[str, int], singles: Mapping[str, Step[Any]], name: str
) -> tuple[Step[Any], ...]:
    """The longest chain up to a node, with no population before it, in which only the next step reads each step."""
    chain = [singles[name]]
    while len(sources := chain[0].sources) == 1:
        source_step = singles.get(sources[0])
        delayed = any(chain[0].delays)
        if source_step is None or delayed or source_step.fires or network.readers[source_step.name] != (chain[0].name,):
            break
        chain.insert(0, source_step)
    # A step that computes the chain stands where its last node stood. The readers of a source must keep the order of
    # the nodes, because their errors are added in this order. So the chain must not pass another reader of its source.
    first, last = position[chain[0].name], position[name]
    if any(first < position[reader] < last for source in chain[0].sources for reader in network.readers[source]):
        chain = chain[1:]
    return tuple(chain)


def _segments(steps: Sequence[Step[Any]]) -> tuple[Segment[Any], ...]:
    parts: list[list[Step[Any]]] = [[]]
    for step in steps:
        parts[-1].append(step)
        if step.fires and step is not steps[-1]:
            parts.append([])
    last_read = {source: i for i, part in enumerate(parts) for step in part for source in step.sources}
    last_read[steps[-1].name] = len(parts)
    segments = []
    for i, part in enumerate(parts):
        names = {step.name for step in part}
        sources = dict.fromkeys(source for step in part for source in step.sources if source not in names)
        released = tuple(source for source in sources if last_read[source] == i)
        outputs = tuple(step.name for step in part if step.fires or last_read[step.name] > i)
        segments.append(Segment(tuple(part), tuple(sources), released, outputs))
    return tuple(segments)
