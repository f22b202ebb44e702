"""The operations of a backend on arrays of its own library: rules of the nodes, and what all equations need.

The layout of arrays in this interface is time-major, `[T, B, C, H, W]` or `[T, B, N]`. Internally, a backend may lay
out memory differently. The file that defines an equation also states what a pair computes and in which order it rounds:
ops/, neurons/, losses/, optim/, grid.py. plan.py and passes.py walk through a network with these operations,
trainer.py trains with them, and backend.py adds the functions that users call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from stsbp_spec.contract.arrays import ArrayArithmetic
from stsbp_spec.contract.grid import WeightGrid, fit_weight_grid, magnitude, sum_bits
from stsbp_spec.distributed.collective import Alone, Collective, Rendezvous
from stsbp_spec.engine.dispatch import implementation
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.equations.assembly import (
    COUNT,
    COUNT_INSIDE,
    Constants,
    NeuronEquations,
    filter_equations,
    loss_equations,
    neuron_equations,
    padded_loss_equations,
)
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.models.optim.adamw import gradient_squares, norm_of
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.models.rate_penalty import ADDED, EXCESS, EXCESS_OF_LENGTHS, RatePenalty
from stsbp_spec.networks.graph import Network, Projection
from stsbp_spec.networks.ops.base import Op, Rule
from stsbp_spec.networks.ops.batchnorm import ChannelArithmetic, error_moments, moments
from stsbp_spec.networks.ops.psp import PSP, SynapticFilter
from stsbp_spec.typing import AnyArray, Array, Coding, Precision, Shape, UInt8

__all__ = ["Operations", "first_grids", "fit_first_grid", "weights_on_grid"]

Result = TypeVar("Result")


_NONE: Mapping[str, Any] = MappingProxyType({})


class Operations(ABC, Generic[Array]):
    """Base class of everything that computes the spec, operation by operation."""

    name: ClassVar[str]
    api: ClassVar[int]
    """Version of this interface for which the backend is written (`registry.API`). Every backend sets it itself."""

    # Arrays.
    @abstractmethod
    def asarray(self, x: AnyArray) -> Array:
        """A native array of the same dtype and the same (logical) shape."""

    @abstractmethod
    def numpy(self, x: Array) -> AnyArray:
        """A numpy array in the layout of the spec. It may share memory with `x`."""

    @property
    @abstractmethod
    def arithmetic(self) -> ArrayArithmetic[Array]:
        """The backend's library, for the derived operations: arrays.py. A class attribute is enough."""

    @abstractmethod
    def encode(self, inputs: UInt8, coding: Coding) -> Array:
        """Inputs `[B, ...]` (direct) or `[T, B, ...]` (events) as `[1 or T, B, ...]`, in the form the weights read."""

    # Operations.
    @property
    @abstractmethod
    def rules(self) -> Mapping[type[Op], Rule[Array]]:
        """The rule of each operation, such as `Conv2d`, `Linear` and `AvgPool2d` (ops/, rules.py)."""

    def rule(self, op: Op) -> Rule[Array]:
        """The rule of an operation.

        Raises:
            BackendError: there is no such rule. The message names the operation and the backend.
        """
        return implementation(self.name, self.rules, op, "operation")

    @property
    def fusions(self) -> Sequence[Callable[[tuple[Any, ...]], Any]]:
        """Fusions (`rules.Fusion`) of nodes that are faster when computed together, in the order of their trials."""
        return ()

    @abstractmethod
    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> Array:
        """`random.keep_mask` as a native array of `shape` `[B, ...]`. `first` is the number of its first sample."""

    @abstractmethod
    def dropout(self, mask: Array, s: Array) -> Array:
        """`s * mask`. This operation is its own adjoint: ops/dropout.py."""

    @abstractmethod
    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, Array],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, Array]:
        """Run an equation over time; or, with one step and no states, over the elements of arrays.

        Each operation rounds once to float32, in the written order. States are zero before the first step.

        Args:
            recurrence: the equation, which the backend prints in its language (printers.py).
            constants: values of its parameters by name.
            inputs: its inputs by name, float32 or uint8, `[steps, ...]`, or `[1, ...]` if they are the same at every
                step.
            steps: number of steps. If the recurrence is in reverse, they run from the last to the first.
            summed: names of numeric outputs that are added over the steps, in the order in which they are computed.

        Returns:
            The outputs by name, `[steps, ...]`, or `[1, ...]` for those that are `summed`: float32, or uint8 for
            conditions.
        """

    # Properties and services of the device.
    def check_precision(self, precision: Precision) -> None:
        """Raise `BackendError` if the device cannot compute in `precision`."""

    def frozen(self, weights: dict[str, Array]) -> dict[str, Array]:
        """`PassContext.weights` that no longer change, in the best form for this backend: see `rules.Frozen`."""
        return weights

    def compiled(self, function: Callable[..., Result], *fixed: Hashable) -> Callable[..., Result]:
        """Return `function(self, *fixed, ...)` as a function of the remaining arguments.

        These are native arrays and numbers, in tuples and mappings. A backend that compiles the whole function does so
        once for each `fixed` and each set of shapes, regardless of the values of the numbers.
        """
        return partial(function, self, *fixed)

    @property
    def compile_seconds(self) -> float:
        """Total time so far that was spent compiling functions passed to `compiled`. Later calls do not include it."""
        return 0.0

    def forget(self) -> None:
        """Free the memory of compiled functions. They are compiled again when needed."""

    # Derived operations. They compute with `arithmetic` and `recur` on the device. A backend may override them with
    # faster ones.
    def weight_grids(
        self, projections: Sequence[Projection], weights: Sequence[Array]
    ) -> list[tuple[Array, WeightGrid]]:
        """Weights of several layers on their grids, for the forward pass: `grid.fit_weight_grid`.

        The host waits for the device only once, unless a layer needs a coarser grid.

        Raises:
            NumericError, ExactnessError: see `grid.weight_grid`.
        """
        first = self.compiled(first_grids, tuple(projections))(list(weights))
        numbers = self.read([pair for _, pair in first])

        def rounded(w: Array, q: int, coarser: int) -> tuple[Array, float]:
            wq, units = self.arithmetic.round_weights(w, 2.0**q, 2.0**-q)
            return wq, float(self.numpy(units))

        return [
            fit_first_grid(projection, wq, pair, partial(rounded, w), self.arithmetic.xp.zeros_like)
            for projection, w, (wq, _), pair in zip(projections, weights, first, numbers, strict=True)
        ]

    def weight_grid(self, projection: Projection, w: Array) -> tuple[Array, WeightGrid]:
        """`weight_grids` of one layer. Training calls `weight_grids`: override both, or only that."""
        (on_grid,) = self.weight_grids((projection,), (w,))
        return on_grid

    def largest_error(self, dz: Array) -> Array:
        """Bits of the largest magnitude in `dz`, native integers `[1]`. NaN is above all numbers.

        The error grid depends on their maximum over the parts of a batch.
        """
        largest: Array = self.arithmetic.largest_error(dz)
        return largest

    def error_grid(self, dz: Array, bits: int, largest: Array | None = None) -> tuple[Array, Array]:
        """Errors rounded for `reproducible` precision, and how many of them were set to zero: `grid.error_exponent`.

        `largest` is the largest error of the whole batch if `dz` is a part of it. None: `dz` is the whole batch. The
        counts of `grid.ZeroedErrors` are integers `[..., 2]`, to be added over the leading axes. The host reads them at
        the end of the step.
        """
        return self.arithmetic.error_grid(dz, bits, largest)

    def sample_grid(self, dz: Array, bits: int) -> Array:
        """`ArrayArithmetic.sample_grid`: errors `[1, B, ...]` of one step, with a grid for each sample."""
        return self.arithmetic.sample_grid(dz, bits)

    def gradient_squares(self, gradients: Sequence[Array]) -> Array:
        """`optim.gradient_squares`, integers `[2]`. The host reads them only at the end of the step."""
        return gradient_squares(gradients, self.arithmetic)

    def spike_count(self, s: Array) -> Array:
        """Native integers whose sum is the number of spikes. The host reads them only at the end of the step."""
        count: Array = self.arithmetic.xp.count_nonzero(s)
        return count

    def unpack(self, frames: PackedFrames) -> Array:
        """Frames `[T, B, ...]` of zeros and ones from bits, as `encode` returns them, unpacked on the device."""
        xp, bits = self.arithmetic.xp, self.asarray(np.moveaxis(frames.bits, -1, 2))
        # A backend whose spikes are float32 may have made float32 of the bytes.
        unpacked = self.arithmetic.unpacked(xp.astype(bits, xp.uint8, copy=False), frames.steps)
        spikes: Array = xp.astype(unpacked, self.arithmetic.spikes, copy=False)
        return spikes

    def broadcast(self, values: Array, shape: Shape) -> Array:
        """Learned parameters `[C]` or `[1]`, repeated for each element of `shape` `[B, C, ...]`: `[1, B, C, ...]`."""
        return self.arithmetic.broadcast(values, shape)

    def broadcast_all(self, equations: NeuronEquations, learned: Mapping[str, Array], shape: Shape) -> dict[str, Array]:
        """`NeuronResiduals.learned`: the learned parameters that `equations` read, each `broadcast` over `shape`."""
        return {free: self.broadcast(learned[name], shape) for name, free in equations.learned.items()}

    def channel_totals(self, x: Array, count: int) -> Array:
        """Sums of `x`, float32 `[1, B, C, ...]`, over all axes except `C`; over all axes if `count` is 1.

        Returns float64 `[count]`.
        """
        return self.arithmetic.channel_totals(x, count)

    def moments(self, z: Array, exponent: Array) -> Array:
        """`moments` of batchnorm.py: integer sums from the weighted sums `z` to be normalised, int64 `[3, C]`."""
        return moments(z, exponent, self.arithmetic)

    def error_moments(self, dy: Array, z: Array, exponent: Array) -> Array:
        """`error_moments` of batchnorm.py, float64 `[3, C]`."""
        return error_moments(dy, z, exponent, self.arithmetic)

    def channelwise(self, recurrence: Recurrence, arrays: Mapping[str, Array], numbers: Mapping[str, Array]) -> Array:
        """The output of an equation of batchnorm.py.

        Args:
            recurrence: the equation. Its inputs are the names of `arrays`, followed by those of `numbers`.
            arrays: `[T, B, ...]`.
            numbers: one number per channel, `[C]`.
        """
        (first, *_) = arrays.values()
        channel_values = {name: self.broadcast(x, tuple(first.shape[1:])) for name, x in numbers.items()}
        (output,) = self.recur(recurrence, {}, {**arrays, **channel_values}, len(first)).values()
        return output

    def of_channels(self, function: Callable[..., Any], *arrays: Any, **fixed: Any) -> Any:
        """Apply a function of batchnorm.py to float64 and int64 numbers of channels. Each operation rounds once.

        Args:
            function: takes `arrays` as `ChannelArithmetic` of the backend's arrays, and `fixed`. It returns arrays in
                tuples.
            arrays: small arrays, or tuples of them.
            fixed: numbers that are known when a network is compiled.
        """
        return function(ChannelArithmetic(self.arithmetic), *arrays, **fixed)

    def rounded(self, x: Array) -> Array:
        """`x`, float64 or float32, as float32."""
        return self.arithmetic.float32(x)

    # Time.
    def scan(
        self,
        step: Callable[[tuple[Array, ...], dict[str, Array]], tuple[tuple[Array, ...], dict[str, Array]]],
        carried: tuple[Array, ...],
        inputs: Mapping[str, Array],
        steps: int,
        *,
        reverse: bool = False,
    ) -> tuple[tuple[Array, ...], dict[str, Array]]:
        """Call `step` for each time step. Returns the final carried arrays, and the outputs `[T, ...]`.

        Args:
            step: function of the carried arrays and the inputs of a step, `[1, ...]`. It returns the new carried
                arrays, with the same shapes and types, and the outputs of the step, `[1, ...]`.
            carried: carried arrays before the first step.
            inputs: `[steps, ...]`, or `[1, ...]` if they are the same at every step.
            steps: number of steps.
            reverse: whether the steps run from the last to the first. Outputs are in the order of time in any case.
        """
        step_outputs: list[dict[str, Array]] = []
        for t in reversed(range(steps)) if reverse else range(steps):
            step_inputs = {name: x if len(x) == 1 else x[t : t + 1] for name, x in inputs.items()}
            carried, outputs = step(carried, step_inputs)
            step_outputs.append(outputs)
        if reverse:
            step_outputs.reverse()
        return carried, {
            name: self.concatenate([of_step[name] for of_step in step_outputs]) for name in step_outputs[0]
        }

    def zeros(self, shape: Shape) -> Array:
        """Float32 zeros of `shape`, which is in the layout of native arrays."""
        return self.arithmetic.zeros(shape)

    def silence(self, shape: Shape) -> Array:
        """Spikes, all zero, of `shape`, which is in the layout of native arrays."""
        return self.arithmetic.silence(shape)

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Arrays `[..., B, ...]` concatenated along the first axis."""
        return self.arithmetic.concatenate(arrays)

    def shift_time(self, x: Array, steps: int) -> Array:
        """`x` `[T, ...]` shifted by `steps` to later times, or to earlier times if negative; the gap becomes zero."""
        count = min(abs(steps), len(x))
        gap = self.arithmetic.xp.zeros_like(x[:count])
        return self.concatenate([gap, x[: len(x) - count]] if steps >= 0 else [x[count:], gap])

    # Learned delays (ops/delay.py). They are data, so that no program is compiled again when they change.
    def delay_forward(self, x: Array, delays: Array) -> Array:
        """Values `[T, B, C, ...]`, delayed by the whole numbers of steps nearest to `delays`, float32 `[C]`."""
        return self.arithmetic.delayed(x, self.arithmetic.whole_delays(delays))

    def delay_backward(self, error: Array, delays: Array) -> Array:
        """The adjoint of `delay_forward`: the error of its input from that of its output, `[T, B, C, ...]`."""
        return self.arithmetic.delayed(error, -self.arithmetic.whole_delays(delays))

    def delay_gradient(self, x: Array, delays: Array, error: Array) -> Array:
        """Sums of the gradients of delays over steps, samples, rows and columns, float64 `[C]`.

        Args:
            x: values before the delay `[T', B, C, ...]`. If there are more steps than those of `error`, the first ones
                are earlier than its first step.
            delays: float32 `[C]`.
            error: error of the values after the delay, `[T, B, C, ...]`; in `reproducible` precision on its grid.
        """
        return self.arithmetic.channel_totals(self.arithmetic.delay_terms(x, delays, error), delays.shape[0])

    # Several parts of a batch.
    def add(self, a: Array, b: Array) -> Array:
        """The sum of two arrays of one type, float32, float64 or int64."""
        total: Array = a + b
        return total

    def maximum(self, arrays: Sequence[Array]) -> Array:
        """Elementwise maximum of arrays of integers."""
        return reduce(self.arithmetic.xp.maximum, arrays)

    def mask_samples(self, error: Array, count: int) -> Array:
        """`error` `[T, B, ...]` with zeros for all samples except the first `count`."""
        # The count may be a number of the device.
        if isinstance(count, int) and count == error.shape[1]:
            return error
        return self.arithmetic.mask_samples(error, count)

    def mask_steps(self, x: Array, inside: Array) -> Array:
        """`x` `[T, B, ...]` with zeros where `inside`, uint8 `[T, B]`, is 0."""
        return self.arithmetic.mask_steps(x, inside)

    def alone(self) -> Collective[Array]:
        """A collective of only this process. A backend may spread each batch over several devices of its own."""
        return Alone()

    def join(self, rendezvous: Rendezvous) -> Collective[Array]:
        """The collective of the processes that a launcher has started, for this backend's arrays.

        Raises:
            BackendError: the backend supports only one process, or the library that connects processes is missing.
        """
        raise BackendError(f"backend {self.name!r} computes in one process only")

    def population_forward(
        self, equations: NeuronEquations, zs: Sequence[Array], steps: int, learned: Mapping[str, Array]
    ) -> tuple[Array, NeuronResiduals[Array]]:
        """Spikes `[T, B, ...]` of neurons from their inputs: neurons/, ops/psp.py.

        Args:
            equations: the neurons and the synaptic filters before them.
            zs: weighted spikes of each projection, `[1 or T, B, ...]`: the inputs of `equations`.
            steps: `T`.
            learned: learned parameters of the model by name, each `[1]` or `[C]`.
        """
        learned_values = self.broadcast_all(equations, learned, zs[0].shape[1:])
        inputs = {**dict(zip(equations.inputs, zs, strict=True)), **learned_values}
        outputs = self.recur(equations.forward, equations.constants, inputs, steps)
        spikes = outputs.pop("o")
        return spikes, NeuronResiduals(outputs, spikes, len(zs) == len(zs[0]) == 1 and steps > 1, learned_values)

    def population_backward(
        self, equations: NeuronEquations, residuals: NeuronResiduals[Array], ds: Array, static: Sequence[bool]
    ) -> tuple[tuple[Array, ...], dict[str, Array]]:
        """`dL/dz` of each input from `dL/do`, and the contributions of each element to the gradients of learned
        parameters.

        `static` states which inputs served all steps. Their errors, `[1, B, ...]`, are added over the steps from the
        last to the first, in float32. So are the contributions.
        """
        summed = {error for error, is_static in zip(equations.errors, static, strict=True) if is_static}
        terms = equations.terms
        inputs = {**residuals.kept, **residuals.learned, "g": ds}
        outputs = self.recur(
            equations.backward, equations.constants, inputs, len(ds), summed=(*sorted(summed), *terms.values())
        )
        return tuple(outputs[error] for error in equations.errors), {name: outputs[x] for name, x in terms.items()}

    def neuron_forward(
        self,
        neuron: NeuronModel,
        filter: SynapticFilter,
        z: Array,
        steps: int,
        learned: Mapping[str, Array] = _NONE,
    ) -> tuple[Array, NeuronResiduals[Array]]:
        """`population_forward` of neurons with one input. Backends override `population_forward`, not this."""
        return self.population_forward(neuron_equations(filter, neuron), (z,), steps, learned)

    def neuron_backward(
        self, neuron: NeuronModel, filter: SynapticFilter, residuals: NeuronResiduals[Array], ds: Array
    ) -> tuple[Array, dict[str, Array]]:
        """`population_backward` of neurons with one input. Backends override `population_backward`, not this."""
        equations = neuron_equations(filter, neuron)
        (dz,), terms = self.population_backward(equations, residuals, ds, (residuals.static,))
        return dz, terms

    def learned_gradient(self, terms: Array, count: int, precision: Precision) -> Array:
        """Gradient `[count]` of a learned parameter from the contributions `[1, B, ...]` of `neuron_backward`.

        In `reproducible` precision, they are on an error grid whose bits let float64 add all elements exactly.
        """
        if precision == "reproducible":
            bits = sum_bits(math.prod(terms.shape) // count)
            terms, _ = self.error_grid(terms, bits)
        return self.rounded(self.channel_totals(terms, count))

    def neuron_potentials(self, residuals: NeuronResiduals[Array]) -> Array:
        """Membrane potentials `[T, B, ...]` of a forward pass."""
        return residuals.kept["u"]

    def read(self, arrays: Sequence[Array]) -> list[AnyArray]:
        """`numpy` of several arrays. A device should be waited for only once."""
        return [self.numpy(x) for x in arrays]

    def spike_rate(self, s: Array) -> float:
        """Mean of the spikes over all axes."""
        return int(np.sum(self.numpy(self.spike_count(s)), dtype=np.int64)) / math.prod(s.shape)

    def gradient_norm(self, gradients: Sequence[Array]) -> float:
        """`optim.gradient_norm`."""
        return norm_of(self.numpy(self.gradient_squares(gradients)), sum(math.prod(g.shape) for g in gradients))

    def psp_forward(self, psp: PSP, s: Array) -> Array:
        """Postsynaptic potentials `[T, ...]` of spike trains: ops/psp.py."""
        equations = filter_equations(psp.filter())
        return self.recur(equations.forward, equations.constants, {"o": s}, len(s))["a"]

    def psp_backward(self, psp: PSP, da: Array) -> Array:
        """Adjoint of the filter."""
        equations = filter_equations(psp.filter())
        return self.recur(equations.backward, equations.constants, {"da": da}, len(da))["do"]

    def loss_error(
        self,
        loss: Loss,
        psp: PSP,
        s: Array,
        targets: Array,
        batch: int | None = None,
        padding: Mapping[str, Array] | None = None,
    ) -> Array:
        """`dL/do` of the loss of a batch at the output, `[T, B, N]`: losses/. `s` holds `B` of its `batch` samples.

        For a loss of potentials, `s` are the potentials of a readout, and the result is `dL/du`.

        `padding` holds native arrays of `equations.loss_padding`, which mark padded steps. None: no step is padded.
        """
        steps = len(s)
        batch = s.shape[1] if batch is None else batch
        values, constants = {"o": s, "target": targets}, dict[str, np.float32]()
        if padding is None:
            equations, counting = loss_equations(loss), COUNT
            layer_constants = loss.layer_constants(psp, steps, batch, s.shape[-1])
            constants = {name: np.float32(value) for name, value in layer_constants.items()}
            counted_within = dict[str, Array]()
        else:
            equations, counting = padded_loss_equations(loss), COUNT_INSIDE
            values |= padding
            counted_within = {"inside": padding[str(equations.inside)]}
        for name, counted in (("count", s), ("target_count", targets)):
            if name in equations.backward.inputs:
                values[name] = self.recur(counting, {}, {"o": counted, **counted_within}, steps, summed=("n",))["n"]
        if equations.forward is not None:
            values["r"] = self.recur(equations.forward, constants, values, steps)["r"]
        return self.recur(equations.backward, constants, values, steps)["do"]

    def rate_penalty(
        self,
        penalty: RatePenalty,
        s: Array,
        batch: int,
        inside: Array | None = None,
        of_lengths: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Array]:
        """The penalty on the rates of neurons with the spikes `s`: models/rate_penalty.py.

        Args:
            penalty: the penalty.
            s: spikes `[T, B, ...]` of `B` of the `batch` samples.
            batch: number of samples of the whole batch.
            inside: uint8 `[T, B]`, 0 at padded steps. None: no step is padded.
            of_lengths: constants of each sample (`RatePenalty.constants_of_lengths`), if there is `inside`.

        Returns:
            The error at each step that is not padded, `[1, B, ...]`; and the squares of the excess rates in multiples
            of `UNIT`, `[1, B, ...]`.
        """
        steps, constants, values = len(s), dict[str, np.float32](), dict[str, Array]()
        equation = EXCESS if of_lengths is None else EXCESS_OF_LENGTHS
        if of_lengths is None:
            numbers = penalty.constants(math.prod(s.shape[2:]), steps, batch)
            constants = {name: np.float32(x) for name, x in numbers.items()}
        else:
            values |= of_lengths
        values["n"] = self.spike_counts(s, inside)
        excess = self.recur(equation, constants, values, 1)
        return excess["error"], self.arithmetic.xp.round(excess["units"])

    def spike_counts(self, s: Array, inside: Array | None = None) -> Array:
        """Number of spikes of each neuron in each sample, float32 `[1, B, ...]`. Padded steps do not count."""
        counted = s if inside is None else self.mask_steps(s, inside)
        return self.recur(COUNT, {}, {"o": counted}, len(s), summed=("n",))["n"]

    def with_rate_penalty(self, error: Array, of_penalty: Array, inside: Array | None = None) -> Array:
        """The error of a layer's spikes, `[T, B, ...]`, with the error `[1, B, ...]` of the penalty on its rates."""
        if inside is not None:
            of_penalty = self.mask_steps(of_penalty, inside)
        return self.recur(ADDED, {}, {"g": error, "error": of_penalty}, len(error))["total"]

    def readout_error(
        self, loss: CrossEntropy, u: Array, targets: Array, batch: int, inside: Array | None = None
    ) -> Array:
        """`dL/du` at the potentials of a readout, `[T, B, N]`, for `fast` precision: losses/cross_entropy.py.

        `u` holds `B` of the `batch` samples. `inside`, uint8 `[T, B]`, is 0 at padded steps. None: no step is padded.
        """
        arithmetic = self.arithmetic
        return self.rounded(loss.error(arithmetic.float64(u), targets, batch, inside, arithmetic))

    def updated(
        self, scalars: Scalars, domain: tuple[float, float] | None, w: Array, g: Array, *moments: Array
    ) -> tuple[Array, ...]:
        """A parameter and its moments after an update of the optimiser: models/optim. May work in place.

        Args:
            scalars: constants of the update, which also have its equations.
            domain: lowest and highest value of a learned parameter, such as a bias. None: `w` are weights.
            w, g, moments: the parameter, its gradient, and its moments, of equal shapes.

        Returns:
            The new parameter and the new moments, in the same order.
        """
        update = scalars.update if domain is None else scalars.learned_update
        bounds = {} if domain is None else dict(zip(("low", "high"), map(np.float32, domain), strict=True))
        constants = {name: bounds[name] if name in bounds else getattr(scalars, name) for name in update.parameters}
        inputs = {name: x[None] for name, x in zip(update.inputs, (w, g, *moments), strict=True)}
        new = self.recur(update, constants, inputs, 1)
        return tuple(new[name][0] for name in update.outputs)

    def pack_spikes(self, s: Array) -> Any:
        """Pack spikes (zeros and ones) into bits."""
        return self.arithmetic.pack(s), s.shape, s.dtype

    def unpack_spikes(self, packed: Any) -> Array:
        """Inverse of `pack_spikes`."""
        bits, shape, dtype = packed
        values = self.arithmetic.unpack(bits, math.prod(shape))
        spikes: Array = self.arithmetic.xp.astype(values.reshape(shape), dtype, copy=False)
        return spikes


def fit_first_grid(
    projection: Projection,
    first: Array,
    numbers: AnyArray,
    rounded: Callable[[int, int], tuple[Array, float]],
    zeros_like: Callable[[Array], Array],
) -> tuple[Array, WeightGrid]:
    """`grid.fit_weight_grid`, beginning with weights that a device has rounded to their finest grid.

    Args:
        projection: the weights' projection.
        first: the weights on that grid, `[out, ...]`.
        numbers: bits of their largest magnitude, and their largest partial sum in units of the grid, `[2]`.
        rounded: function of `q` and of the number of bits that were given up. It returns the weights on a coarser grid,
            and their largest partial sum in its units.
        zeros_like: makes zeros for weights that are all zero.
    """
    tried = 0

    def on_grid(q: int) -> tuple[Array, float]:
        nonlocal tried
        wq, units = rounded(q, tried) if tried else (first, float(numbers[1]))
        tried += 1
        return wq, math.ldexp(units, -q)

    wq, grid = fit_weight_grid(
        magnitude(int(numbers[0])),
        on_grid,
        summands=math.prod(first.shape[1:]),
        weight_bits=projection.synapse.weight_bits,
        input_exponent=projection.input.exponent,
        input_max=projection.input.maximum,
        layer=projection.name,
    )
    return zeros_like(first) if wq is None else wq, grid


def first_grids(
    backend: Operations[Array], projections: Sequence[Projection], weights: Sequence[Array]
) -> list[tuple[Array, Array]]:
    """`ArrayArithmetic.first_grid` of several layers, as a function for `Operations.compiled`."""
    return [
        backend.arithmetic.first_grid(w, projection.synapse.weight_bits)
        for projection, w in zip(projections, weights, strict=True)
    ]


def weights_on_grid(
    backend: Operations[Array], network: Network, weights: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, WeightGrid]]:
    """Weights on their grids together with other learned parameters, statistics and exponents; and the grids, by name.

    The first mapping has the form of `rules.PassContext.weights`.
    """
    projections = network.projections
    pairs = backend.weight_grids(projections, [weights[projection.parameter] for projection in projections])
    by_name = {projection.name: pair for projection, pair in zip(projections, pairs, strict=True)}
    wq = {**weights, **{name: rounded for name, (rounded, _) in by_name.items()}}
    for projection in network.normalised:
        exponent = by_name[projection.name][1].exponent + projection.input.exponent
        wq[f"{projection.name}.exponent"] = backend.asarray(np.array([exponent], np.int32))
    return wq, {name: grid for name, (_, grid) in by_name.items()}
