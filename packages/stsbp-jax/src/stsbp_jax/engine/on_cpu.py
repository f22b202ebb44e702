"""The operations of the JAX backend on the CPU: operations of stsbp_cpu, called on JAX's memory (host_callback.py).

In memory, arrays that are channels last in JAX, `[T, B, H, W, C]`, are the arrays that stsbp_cpu calls
`[T, B, C, H, W]`. A sparse block is one call in the forward pass and one in the backward pass. Each call chooses from
its input how to compute, as in every backend that uses these kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_cpu.backend import CpuBackend
from stsbp_cpu.contract import reductions
from stsbp_cpu.engine import block, recurrent
from stsbp_cpu.engine.layout import NUMPY
from stsbp_cpu.engine.recurrent import FusedRecurrent
from stsbp_cpu.engine.threads import get_num_threads, set_num_threads
from stsbp_cpu.ops import conv2d, dropout, linear
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.plan import Chain, Drops, Population, Recurrent, Weights, rule_of
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.engine.rules import BackwardResult, Deferred, ForwardResult, PassContext, Rule, Step
from stsbp_spec.equations.assembly import Constants, NeuronEquations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import ExactnessError, NumericError
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.networks.graph import Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Linear, MaxPool2d, batchnorm
from stsbp_spec.typing import AnyArray, Precision, Shape

from stsbp_jax.contract.grid import GridChoice, enable_x64
from stsbp_jax.engine.host_callback import Making, host_call, one_at_a_time

__all__ = [
    "RULES", "channelwise", "delay_backward", "delay_forward", "delay_gradient",
    "dropout_mask", "error_grid", "error_moments", "fits", "fuse",
    "gradient_squares",
    "largest_error", "moments", "of_channels", "population_backward",
    "population_forward", "recur", "sample_grid", "spike_count", "updated", "weight_grid",
    "weight_grid_of_values",
]  # fmt: skip

_FLAT, _IMAGES = 3, 5


def _cpu() -> CpuBackend:
    global _opened
    if _opened is None:
        _opened = CpuBackend()
    return _opened


_opened: CpuBackend | None = None


def _call(function: Callable[..., Any], results: Any, *arrays: Any, fixed: tuple[Hashable, ...] = ()) -> Any:
    """Call `function(*fixed, *arrays)` with numpy arrays.

    `arrays` and the results may be trees. `results` has the shapes and dtypes of the results.
    """
    leaves, of_given = jax.tree.flatten(arrays)
    result_types, of_wanted = jax.tree.flatten(results)
    with enable_x64():
        if (device := _common_device(leaves)) is not None:
            memories = [_opened_memory(x) for x in leaves]
            with one_at_a_time:
                outputs = _run_numpy(function, fixed, of_given, *memories)
            # A JAX array may take over the memory of a numpy array. This memory must not belong to another JAX array.
            unshared = (x.copy() if any(np.may_share_memory(x, y) for y in memories) else x for x in outputs)
            jax_arrays = [jax.device_put(x, device[0]) for x in unshared]
        else:
            jax_arrays = list(
                host_call(_NUMPY_CALL, result_types, *leaves, fixed=(get_num_threads(), function, fixed, of_given))
            )
    return jax.tree.unflatten(of_wanted, jax_arrays)


def _common_device(arrays: Sequence[Any]) -> tuple[Any] | None:
    """The device, in a tuple, to which the results of an operation belong that runs on its own.

    `(None,)`: the results are not tied to a certain device. None: the arguments are traced, or on several devices.
    """
    devices: set[Any] = set()
    committed = False
    for x in arrays:
        if isinstance(x, jax.core.Tracer):
            return None
        if isinstance(x, Array):
            devices |= x.devices()
            committed |= x.committed
    if len(devices) != 1:
        return None
    return (devices.pop() if committed else None,)


def _opened_memory(x: Any) -> AnyArray:
    """An array's memory as a writeable array. For a read-only array, numba would compile every kernel again."""
    array = np.asarray(x)
    if array.flags.writeable or not array.nbytes:
        return array
    memory: Any = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.ndarray(array.shape, array.dtype, memory)


def _run_on_threads(threads: int, *arguments: Any) -> list[AnyArray]:
    """`_run_numpy` on a thread of XLA, with the number of numba threads of the thread that made the program."""
    set_num_threads(threads)
    return _run_numpy(*arguments)


def _run_numpy(
    function: Callable[..., Any], fixed: tuple[Hashable, ...], tree: Any, *memories: AnyArray
) -> list[AnyArray]:
    results = function(*fixed, *jax.tree.unflatten(tree, [NUMPY.from_memory(x) for x in memories]))
    return [NUMPY.view(NUMPY.laid_out(x)) for x in jax.tree.leaves(results)]


_NUMPY_CALL = Making(_run_on_threads)


class _ByIdentity:
    """Wraps equations, which have no hash, as an argument that is the same in each call. They equal only themselves."""

    def __init__(self, value: NeuronEquations) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _shape_dtype(shape: Shape, dtype: Any = np.float32) -> Any:
    kind: Any = jax.ShapeDtypeStruct
    return kind(tuple(shape), dtype)


def _logical(shape: Shape) -> Shape:
    """The logical shape that an array of JAX has in stsbp_cpu."""
    return (*shape[:2], shape[4], *shape[2:4]) if len(shape) == _IMAGES else tuple(shape)


def _memory(shape: Shape) -> Shape:
    """Inverse of `_logical`."""
    return (*shape[:2], *shape[3:], shape[2]) if len(shape) == _IMAGES else tuple(shape)


# Rules.
def _wide_or_not(precision: Precision) -> type[np.floating]:
    return np.float64 if precision == "reproducible" else np.float32


def _forward_weights(op: Any, s: Array, wq: Array) -> tuple[Array, tuple[Array, Array]]:
    shape = op.output_shape(_logical(s.shape)[2:])
    z: Array = _call(_forward_rule, _shape_dtype(_memory((*s.shape[:2], *shape))), s, wq, fixed=(op,))
    return z, (s, wq)


def _backward_weights(
    op: Any, saved: tuple[Array, Array], dz: Array, precision: Precision, need_input: bool, need_weights: bool = True
) -> tuple[Array | None, Array | None]:
    s, wq = saved
    ds = _shape_dtype(s.shape) if need_input else None
    dw = _shape_dtype(wq.shape, _wide_or_not(precision)) if need_weights else None
    gradients: tuple[Array | None, Array | None] = _call(
        _backward_rule, (ds, dw), s, wq, dz, fixed=(op, precision, need_input, need_weights)
    )
    return gradients


def _forward_rule(op: Op, *arrays: AnyArray) -> AnyArray:
    output: AnyArray = _cpu().rule(op).forward(op, *arrays)[0]
    return output


def _backward_rule(
    op: Op, precision: Precision, need_input: bool, need_weights: bool, s: AnyArray, wq: AnyArray, dz: AnyArray
) -> tuple[AnyArray | None, AnyArray | None]:
    saved = _SAVED[type(op)](op, s, wq)
    gradients: tuple[AnyArray | None, AnyArray | None] = (
        _cpu().rule(op).backward(op, saved, dz, precision=precision, need_input=need_input, need_weights=need_weights)
    )
    return gradients


_SAVED: Mapping[type[Op], Callable[..., Any]] = {
    Conv2d: lambda _, s, wq: conv2d.Conv2dSaved(s, wq),
    Linear: linear.saved_for_backward,
}
"""The residuals of the forward pass with weights, made without its sums."""


def _pooled(pool: AvgPool2d | MaxPool2d, s: Array) -> Shape:
    return _memory((*s.shape[:2], *pool.output_shape(_logical(s.shape)[2:])))


def _average(pool: AvgPool2d, s: Array) -> tuple[Array, Shape]:
    return _call(_forward_rule, _shape_dtype(_pooled(pool, s)), s, fixed=(pool,)), s.shape


def _average_backward(pool: AvgPool2d, shape: Shape, d: Array) -> Array:
    grad_input: Array = _call(_pool_backward, _shape_dtype(shape), d, fixed=(pool, _logical(shape)))
    return grad_input


def _pool_backward(pool: AvgPool2d, shape: Shape, d: AnyArray) -> AnyArray:
    grad_input: AnyArray = _cpu().rule(pool).backward(pool, shape, d)
    return grad_input


def _largest(pool: MaxPool2d, s: Array) -> tuple[Array, tuple[Shape, Array]]:
    shape = _pooled(pool, s)
    largest, first = _call(
        _largest_forward, (_shape_dtype(shape, s.dtype), _shape_dtype(shape, np.int32)), s, fixed=(pool,)
    )
    return largest, (s.shape, first)


def _largest_forward(pool: MaxPool2d, s: AnyArray) -> tuple[AnyArray, AnyArray]:
    largest, (first, _) = _cpu().rule(pool).forward(pool, s)
    return largest, first


def _largest_backward(pool: MaxPool2d, saved: tuple[Shape, Array], d: Array) -> Array:
    shape, first = saved
    grad_input: Array = _call(_max_pool_backward, _shape_dtype(shape), first, d, fixed=(pool, _logical(shape)))
    return grad_input


def _max_pool_backward(pool: MaxPool2d, shape: Shape, first: AnyArray, d: AnyArray) -> AnyArray:
    grad_input: AnyArray = _cpu().rule(pool).backward(pool, (first, shape), d)
    return grad_input


RULES: Mapping[type[Op], Rule[Array]] = {
    Conv2d: Rule(_forward_weights, _backward_weights),
    Linear: Rule(_forward_weights, _backward_weights),
    AvgPool2d: Rule(_average, _average_backward),
    MaxPool2d: Rule(_largest, _largest_backward),
}
"""The rules of the operations that have kernels."""


# Equations.
def recur(
    recurrence: Recurrence, constants: Constants, inputs: Mapping[str, Array], steps: int, summed: tuple[str, ...]
) -> dict[str, Array]:
    """Implements `Operations.recur`. The constants may be traced."""
    kernel_inputs = {name: x if x.dtype == np.uint8 else x.astype(np.float32) for name, x in inputs.items()}
    shape = kernel_inputs[recurrence.inputs[0]].shape[1:]
    results = {
        name: _shape_dtype((1 if name in summed else steps, *shape), np.uint8 if x.is_condition else np.float32)
        for name, x in recurrence.outputs.items()
    }
    parameters = {name: jnp.asarray(constants[name], np.float32) for name in recurrence.parameters}
    ordered_inputs = {name: kernel_inputs[name] for name in recurrence.inputs}
    outputs: dict[str, Array] = _call(
        _over_time, results, parameters, ordered_inputs, fixed=(recurrence, steps, summed)
    )
    return {name: outputs[name] for name in recurrence.outputs}


def _over_time(
    recurrence: Recurrence,
    steps: int,
    summed: tuple[str, ...],
    parameters: dict[str, AnyArray],
    inputs: dict[str, AnyArray],
) -> dict[str, AnyArray]:
    constants = {name: np.float32(x) for name, x in parameters.items()}
    return _cpu().recur(recurrence, constants, inputs, steps, summed=summed)


def fits(x: Array) -> bool:
    """Whether `x` has axes that the kernels support: `[T, B, N]` or `[T, B, H, W, C]`."""
    return x.ndim in (_FLAT, _IMAGES)


def _fired(equations: NeuronEquations, shape: Shape) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Types of the spikes of shape `[T, B, ...]`, of the kept values, and of the learned parameters of each element."""
    saved = {name: _shape_dtype(shape) for name in equations.kept}
    neuron_parameters = {name: _shape_dtype((1, *shape[1:])) for name in equations.learned.values()}
    return _shape_dtype(shape, np.uint8), saved, neuron_parameters


def population_forward(
    equations: NeuronEquations, zs: Sequence[Array], steps: int, learned: Mapping[str, Array]
) -> tuple[Array, NeuronResiduals[Array]]:
    """Implements `Operations.population_forward`."""
    results = _fired(equations, (steps, *zs[0].shape[1:]))
    float_zs = tuple(z.astype(np.float32) for z in zs)
    spikes, saved, neuron_parameters = _call(
        _fire_all, results, float_zs, dict(learned), fixed=(_ByIdentity(equations), steps)
    )
    return spikes, NeuronResiduals(saved, spikes, len(zs) == len(zs[0]) == 1 and steps > 1, neuron_parameters)


def _fire_all(
    equations: _ByIdentity, steps: int, zs: tuple[AnyArray, ...], learned: dict[str, AnyArray]
) -> tuple[AnyArray, dict[str, AnyArray], dict[str, AnyArray]]:
    spikes, residuals = _cpu().population_forward(equations.value, zs, steps, learned)
    return spikes, residuals.kept, dict(residuals.learned)


def population_backward(
    equations: NeuronEquations, residuals: NeuronResiduals[Array], ds: Array, static: Sequence[bool]
) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """Implements `Operations.population_backward`."""
    summed_shape = (1, *ds.shape[1:])
    errors = tuple(_shape_dtype(summed_shape if is_static else ds.shape) for is_static in static)
    results = errors, {name: _shape_dtype(summed_shape) for name in equations.terms}
    arrays = (residuals.kept, dict(residuals.learned), ds.astype(np.float32))
    gradients: tuple[tuple[Array, ...], dict[str, Array]] = _call(
        _propagate_all, results, *arrays, fixed=(_ByIdentity(equations), tuple(static))
    )
    return gradients


def _propagate_all(
    equations: _ByIdentity, static: tuple[bool, ...], saved: dict[str, AnyArray],
    neuron_parameters: dict[str, AnyArray], ds: AnyArray,
) -> tuple[tuple[AnyArray, ...], dict[str, AnyArray]]:  # fmt: skip
    return _cpu().population_backward(equations.value, NeuronResiduals(saved, ds, False, neuron_parameters), ds, static)


# The contract, batch normalisation, dropout, the update.
def weight_grid(projection: Projection, w: Array) -> tuple[Array, GridChoice]:
    """Implements `grid.weight_grid`, whose loop XLA would compile for each layer."""
    wq, numbers = _call(_weight_grid, (_shape_dtype(w.shape), _shape_dtype((4,), np.float64)), w, fixed=(projection,))
    with enable_x64():
        q, coarser, bound, finite = (numbers[i] for i in range(4))
        return wq, GridChoice(q.astype(np.int32), coarser.astype(np.int32), bound, finite > 0)


def _weight_grid(projection: Projection, w: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Weights on their grid, and the numbers of a `GridChoice`, float64."""
    bits = projection.synapse.weight_bits
    try:
        wq, chosen, bound = reductions.weight_grid_and_bound(projection, w)
    except (NumericError, ExactnessError) as error:
        nothing = np.full(w.shape, np.nan, np.float32)
        return nothing, np.array([0, bits, 0, isinstance(error, ExactnessError)], np.float64)
    return wq, np.array([chosen.exponent, bits - chosen.bits, bound * 2.0**chosen.exponent, True], np.float64)


def weight_grid_of_values(projection: Projection, w: Array) -> tuple[Array, WeightGrid]:
    """Implements `Operations.weight_grid` for weights that are not traced. XLA need not compile a program for it."""
    with one_at_a_time:
        wq, grid = _cpu().weight_grid(projection, _opened_memory(w))
    return jax.device_put(wq, w.sharding), grid


def largest_error(dz: Array) -> Array:
    """Implements `Operations.largest_error`."""
    largest: Array = _call(_largest_error, _shape_dtype((1,), np.int32), dz)
    return largest


def _largest_error(dz: AnyArray) -> AnyArray:
    return _cpu().largest_error(dz)


def error_grid(dz: Array, bits: int, largest: Array | None) -> tuple[Array, Array]:
    """Implements `Operations.error_grid`. The numbers of zeroed and of non-zero elements are `[1, 2]`."""
    rounded: tuple[Array, Array] = _call(
        _error_grid, (_shape_dtype(dz.shape), _shape_dtype((1, 2), np.int32)), dz, largest, fixed=(bits,)
    )
    return rounded


def _error_grid(bits: int, dz: AnyArray, largest: AnyArray | None) -> tuple[AnyArray, AnyArray]:
    on_grid, counts = _cpu().error_grid(dz, bits, largest)
    return on_grid, counts.sum(axis=0, dtype=np.int64).astype(np.int32)[None]


def sample_grid(dz: Array, bits: int) -> Array:
    """Implements `Operations.sample_grid`."""
    rounded: Array = _call(_sample_grid, _shape_dtype(dz.shape), dz, fixed=(bits,))
    return rounded


def _sample_grid(bits: int, dz: AnyArray) -> AnyArray:
    return _cpu().sample_grid(dz, bits)


def gradient_squares(gradients: Sequence[Array]) -> Array:
    """Implements `Operations.gradient_squares`."""
    squares: Array = _call(_gradient_squares, _shape_dtype((2,), np.int64), tuple(gradients))
    return squares


def _gradient_squares(gradients: tuple[AnyArray, ...]) -> AnyArray:
    return _cpu().gradient_squares(gradients)


def spike_count(s: Array) -> Array:
    """Implements `Operations.spike_count`, with a count for each sample."""
    counts: Array = _call(_spike_count, _shape_dtype((s.shape[1],), np.int32), s)
    return counts


def _spike_count(s: AnyArray) -> AnyArray:
    memory = NUMPY.view(s)
    return reductions.counts(memory.reshape(*memory.shape[:2], -1))


def delay_forward(x: Array, delays: Array) -> Array:
    """Implements `Operations.delay_forward`."""
    delayed: Array = _call(_delay_forward, _shape_dtype(x.shape, x.dtype), x, delays)
    return delayed


def _delay_forward(x: AnyArray, delays: AnyArray) -> AnyArray:
    return _cpu().delay_forward(x, delays)


def delay_backward(error: Array, delays: Array) -> Array:
    """Implements `Operations.delay_backward`."""
    grad_input: Array = _call(_delay_backward, _shape_dtype(error.shape), error, delays)
    return grad_input


def _delay_backward(error: AnyArray, delays: AnyArray) -> AnyArray:
    return _cpu().delay_backward(error, delays)


def delay_gradient(x: Array, delays: Array, error: Array) -> Array:
    """Implements `Operations.delay_gradient`."""
    sums: Array = _call(_delay_gradient, _shape_dtype(delays.shape, np.float64), x, delays, error)
    return sums


def _delay_gradient(x: AnyArray, delays: AnyArray, error: AnyArray) -> AnyArray:
    return _cpu().delay_gradient(x, delays, error)


def moments(z: Array, exponent: Array) -> Array:
    """Implements `Operations.moments`."""
    sums: Array = _call(_moments, _shape_dtype((3, z.shape[-1]), np.int64), z, exponent)
    return sums


def _moments(z: AnyArray, exponent: AnyArray) -> AnyArray:
    return _cpu().moments(z, exponent)


def error_moments(dy: Array, z: Array, exponent: Array) -> Array:
    """Implements `Operations.error_moments`."""
    sums: Array = _call(_error_moments, _shape_dtype((3, z.shape[-1]), np.float64), dy, z, exponent)
    return sums


def _error_moments(dy: AnyArray, z: AnyArray, exponent: AnyArray) -> AnyArray:
    return _cpu().error_moments(dy, z, exponent)


def channelwise(recurrence: Recurrence, arrays: Mapping[str, Array], numbers: Mapping[str, Array]) -> Array:
    """Implements `Operations.channelwise`."""
    (first, *_) = arrays.values()
    normalised: Array = _call(_channelwise, _shape_dtype(first.shape), dict(arrays), dict(numbers), fixed=(recurrence,))
    return normalised


def _channelwise(recurrence: Recurrence, arrays: dict[str, AnyArray], numbers: dict[str, AnyArray]) -> AnyArray:
    return _cpu().channelwise(recurrence, arrays, numbers)


def of_channels(function: Callable[..., Any], *arrays: Any, **fixed: Any) -> Any:
    """Implements `Operations.of_channels`."""
    keywords = tuple(sorted(fixed.items()))
    with np.errstate(all="ignore"):
        # This call finds the shapes and dtypes of the results.
        results = _channels(function, keywords, *jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arrays))
    return _call(
        _channels, jax.tree.map(lambda x: _shape_dtype(x.shape, x.dtype), results), *arrays, fixed=(function, keywords)
    )


def _channels(function: Callable[..., Any], fixed: tuple[tuple[str, Any], ...], *arrays: Any) -> Any:
    numbers = function(batchnorm.ChannelArithmetic(), *arrays, **dict(fixed))
    return jax.tree.map(np.asarray, numbers)


def dropout_mask(words: tuple[Any, ...], layer: int, shape: Shape, rate: float) -> Array:
    """Implements `Operations.dropout_mask`. `words` are seed, step and first sample, uint32, traced or not."""
    memory_shape = (shape[0], *shape[2:], shape[1])
    word_arrays = tuple(jnp.asarray(x, np.uint32) for x in words)
    mask: Array = _call(_mask, _shape_dtype(memory_shape, np.uint8), word_arrays, fixed=(layer, shape, rate))
    return jnp.moveaxis(mask, -1, 1)


def _mask(layer: int, shape: Shape, rate: float, words: tuple[AnyArray, ...]) -> AnyArray:
    seed, step, first = map(int, words)
    return dropout.mask(seed, layer, step, shape, rate, first)


def updated(scalars: Scalars, w: Array, g: Array, *moments: Array) -> tuple[Array, ...]:
    """Implements `Operations.updated` for weights."""
    new: tuple[Array, ...] = _call(_update, (_shape_dtype(w.shape),) * (1 + len(moments)), scalars, w, g, *moments)
    return new


def _update(scalars: Scalars, *arrays: AnyArray) -> tuple[AnyArray, ...]:
    return _cpu().updated(scalars, None, *arrays)


# Fusions.
def fuse(chain: tuple[Step[Array], ...]) -> Step[Array] | None:
    """The fusion of a sparse block, or of a recurrence, as one step."""
    cpu_chain = tuple(_as_of_cpu(part) for part in chain)
    step = chain[-1]
    if type(step) is Recurrent:
        fused = recurrent.fusion(NUMPY, linear.saved_for_backward)(cpu_chain)
        if fused is None:
            return None
        assert isinstance(fused, FusedRecurrent)
        return _HostRecurrent(step.bound_nodes, step.needed, step.backend, step.op, step.loops, cpu=fused)
    cpu_block = block.fusion(_cpu().dense)(cpu_chain)
    if not isinstance(cpu_block, block.SparseBlock):
        return None
    covered = chain[len(chain) - len(cpu_block.parts) :]
    population = covered[-1]
    assert isinstance(population, Population)
    return _HostBlock(cpu_block.bound_nodes, cpu_block.needed, covered, cpu_block, population)


def _as_of_cpu(step: Any) -> Any:
    """The same step for stsbp_cpu's backend, in all parts that the fusions read."""
    if isinstance(step, Weights):
        return replace(step, backend=_cpu(), rule=rule_of(_cpu(), step.projection.synapse))
    if isinstance(step, Population):
        return replace(step, backend=_cpu(), loops=tuple(map(_as_of_cpu, step.loops)))
    return replace(step, backend=_cpu()) if isinstance(step, Drops) else step


@dataclass(frozen=True, eq=False)
class _HostRecurrent(Recurrent[Array]):
    """`plan.Recurrent`, computed by the step `cpu` of stsbp_cpu."""

    cpu: Any = None

    @cached_property
    def _weights_read(self) -> tuple[str, ...]:
        """Names of the weights that the step reads."""
        return (*(loop.name for loop in self.loops), *self.bound_nodes[0].parameters.values())

    def fire(self, run: PassContext[Array], inputs: Sequence[Array]) -> tuple[Array, NeuronResiduals[Array]]:
        results = _fired(self.equations[run.training], (run.steps, *inputs[0].shape[1:]))
        arguments = (
            {name: run.weights[name] for name in self._weights_read},
            tuple(z.astype(np.float32) for z in inputs),
        )
        spikes, saved, neuron_parameters = _call(
            _fire_loop, results, *arguments, fixed=(self.cpu, run.training, run.steps)
        )
        return spikes, NeuronResiduals(saved, spikes, static=False, learned=neuron_parameters)

    def propagate(
        self,
        run: PassContext[Array],
        residuals: NeuronResiduals[Array],
        error: Array,
        static: tuple[str, ...],
        precision: Precision,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        equations = self.backward_equations(run, residuals)
        summed_type = _shape_dtype((1, *error.shape[1:]))
        errors = {name: summed_type if name in static else _shape_dtype(error.shape) for name in equations.errors}
        results = errors, dict.fromkeys(equations.terms, summed_type)
        weights = {name: run.weights[name] for name in self._weights_read}
        gradients: tuple[dict[str, Array], dict[str, Array]] = _call(
            _propagate_loop, results, weights, residuals.kept, dict(residuals.learned), error,
            fixed=(self.cpu, run.training, static, precision),
        )  # fmt: skip
        return gradients


def _of_cpu(weights: Mapping[str, AnyArray], steps: int, training: bool, batch: int) -> PassContext[AnyArray]:
    return PassContext(weights, steps, (0, 0) if training else None, BatchSlice(0, batch, batch))


def _fire_loop(
    step: FusedRecurrent[AnyArray], training: bool, steps: int, weights: dict[str, AnyArray],
    inputs: tuple[AnyArray, ...],
) -> tuple[AnyArray, dict[str, AnyArray], dict[str, AnyArray]]:  # fmt: skip
    spikes, residuals = step.fire(_of_cpu(weights, steps, training, inputs[0].shape[1]), inputs)
    return spikes, residuals.kept, dict(residuals.learned)


def _propagate_loop(
    step: FusedRecurrent[AnyArray], training: bool, static: tuple[str, ...], precision: Precision,
    weights: dict[str, AnyArray], saved: dict[str, AnyArray], neuron_parameters: dict[str, AnyArray], error: AnyArray,
) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:  # fmt: skip
    run = _of_cpu(weights, len(error), training, error.shape[1])
    residuals = NeuronResiduals(saved, error, static=False, learned=neuron_parameters)
    return step.propagate(run, residuals, error, static, precision)


class _HostBlockSaved(NamedTuple):
    """The residuals of a block: input, dropout mask (None: no dropout), weights, and the residuals of its neurons."""

    s: Array
    mask: Array | None
    wq: Array
    neurons: NeuronResiduals[Array]


@dataclass(frozen=True, eq=False)
class _PooledHostError(Deferred[Array]):
    """`block.PooledError` with JAX arrays."""

    d: Array
    pool: AvgPool2d
    shape: Shape

    def array(self) -> Array:
        return _average_backward(self.pool, self.shape, self.d)


@dataclass(frozen=True, eq=False)
class _DeferredHostError(Deferred[Array]):
    """`block.DeferredError` with JAX arrays, of a block."""

    block: _HostBlock
    s: Array
    mask: Array | None
    wq: Array
    dz: Array

    def array(self) -> Array:
        grad_input: Array = _call(
            _deferred_array, _shape_dtype(self.s.shape), self.s, self.mask, self.wq, self.dz, fixed=(self.block.cpu,)
        )
        return grad_input


def _deferred_array(
    step: block.SparseBlock[AnyArray], s: AnyArray, mask: AnyArray | None, wq: AnyArray, dz: AnyArray
) -> AnyArray:
    return block.DeferredError(step, _entering(step, s, mask), wq, dz).array()


def _entering(step: block.SparseBlock[AnyArray], s: AnyArray, mask: AnyArray | None) -> block.ConvInput[AnyArray]:
    logical_mask = None if mask is None else mask.transpose(0, 3, 1, 2)
    size, masked = step.window, step.masked
    return block.ConvInput(s, size, logical_mask, 0 if logical_mask is None else masked)


@dataclass(frozen=True, eq=False)
class _HostBlock(Chain[Array]):
    """`block.SparseBlock`: the forward pass and the backward pass are one call each of the step `cpu` of stsbp_cpu."""

    takes_deferred: ClassVar[bool] = True

    cpu: block.SparseBlock[AnyArray]
    neurons: Population[Array]

    @cached_property
    def _weights_read(self) -> tuple[str, ...]:
        return (self.cpu.projection.name, *self.neurons.bound_nodes[0].parameters.values())

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        (s,) = inputs
        if s.dtype != np.uint8:
            return super().forward_slice(run, s)
        conv, (steps, batch) = self.cpu.projection, (run.steps, s.shape[1])
        shape = _memory((steps, batch, *conv.output_shape))
        mask = None
        for part in self.parts:
            if isinstance(part, Drops) and (drop_mask := part.mask(run, batch)) is not None:
                mask = jnp.moveaxis(drop_mask, 1, -1)
        weights = {name: run.weights[name] for name in self._weights_read}
        fixed = (self.cpu, run.training, steps)
        if not run.keeps:
            return ForwardResult(
                _call(_block_spikes, _shape_dtype(shape, np.uint8), weights, s, mask, fixed=fixed), None
            )
        results = _fired(self.neurons.equations[run.training], shape)
        spikes, saved, neuron_parameters = _call(_block_fired, results, weights, s, mask, fixed=fixed)
        neurons = NeuronResiduals(saved, spikes, static=False, learned=neuron_parameters)
        return ForwardResult(spikes, _HostBlockSaved(s, mask, run.weights[conv.name], neurons))

    def backward_slice(
        self, run: PassContext[Array], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[Array]:
        if not isinstance(saved, _HostBlockSaved):
            return super().backward_slice(run, saved, grad, precision)
        s, mask, wq, neurons = saved
        (need_input,) = self.needed
        defers, pools = need_input and self.cpu.may_defer, self.cpu.pool is not None and self.cpu.masked != 1
        below_type: Any = None
        if need_input:
            below_type = _shape_dtype(neurons.kept["u"].shape if defers else self._entering(s) if pools else s.shape)
        gradient_types = {"dw": _shape_dtype(wq.shape), "below": below_type}
        learned = {
            name: _shape_dtype(run.weights[name].shape) for name in self.neurons.bound_nodes[0].parameters.values()
        }
        kind, arrays = _split_error(grad)
        arguments = (
            {name: run.weights[name] for name in self._weights_read},
            s,
            mask,
            neurons.kept,
            dict(neurons.learned),
        )
        computed, gradients = _call(
            _block_backward, (gradient_types, learned), *arguments, arrays, fixed=(self.cpu, run.training, kind)
        )
        grad_below: Any = computed["below"]
        if defers:
            grad_below = _DeferredHostError(self, s, mask, wq, grad_below)
        elif need_input and pools:
            assert self.cpu.pool is not None
            grad_below = _PooledHostError(grad_below, self.cpu.pool, s.shape)
        return BackwardResult((grad_below,), {self.cpu.projection.name: computed["dw"], **gradients})

    def population(self, saved: Any) -> NeuronResiduals[Array]:
        return saved.neurons if isinstance(saved, _HostBlockSaved) else super().population(saved)

    def _entering(self, s: Array) -> Shape:
        """Shape of the input of the convolution, after pooling."""
        return _memory((*s.shape[:2], *self.cpu.projection.input.shape))

    def by_parts(self, saved: Any) -> Sequence[Any]:
        if not isinstance(saved, _HostBlockSaved):
            return super().by_parts(saved)
        s, residuals = saved.s, list[Any]()
        for part in self.parts[:-2]:
            op = part.bound_nodes[0].node.op
            if isinstance(op, AvgPool2d):
                s, residual = _average(op, s)
                residuals.append(residual)
            else:
                mask = None if saved.mask is None else jnp.moveaxis(saved.mask, -1, 1)
                s = s if mask is None else self.neurons.backend.dropout(mask, s)
                residuals.append(mask)
        return [*residuals, (s, saved.wq), saved.neurons]


def _split_error(error: Any) -> tuple[tuple[Hashable, ...], Any]:
    """The kind of an error signal, and its arrays."""
    if isinstance(error, _PooledHostError):
        return ("pooled", error.pool, _logical(error.shape)), error.d
    if isinstance(error, _DeferredHostError):
        return ("deferred", error.block.cpu), (error.s, error.mask, error.wq, error.dz)
    return ("plain",), error


def _joined_error(kind: tuple[Any, ...], arrays: Any) -> Any:
    """Inverse of `_split_error`, on numpy arrays."""
    if kind[0] == "pooled":
        return block.PooledError(NUMPY, arrays, *kind[1:])
    if kind[0] == "deferred":
        s, mask, wq, dz = arrays
        return block.DeferredError(kind[1], _entering(kind[1], s, mask), wq, dz)
    return arrays


def _block_fired(
    step: block.SparseBlock[AnyArray], training: bool, steps: int, weights: dict[str, AnyArray], s: AnyArray,
    mask: AnyArray | None,
) -> tuple[AnyArray, dict[str, AnyArray], dict[str, AnyArray]]:  # fmt: skip
    run = _of_cpu(weights, steps, training, s.shape[1])
    spikes, block_saved = step.fired(run, _entering(step, s, mask))
    return spikes, block_saved.neurons.kept, dict(block_saved.neurons.learned)


def _block_spikes(
    step: block.SparseBlock[AnyArray], training: bool, steps: int, weights: dict[str, AnyArray], s: AnyArray,
    mask: AnyArray | None,
) -> AnyArray:  # fmt: skip
    return step.spikes_alone(_of_cpu(weights, steps, training, s.shape[1]), _entering(step, s, mask))


def _block_backward(
    step: block.SparseBlock[AnyArray], training: bool, kind: tuple[Any, ...], weights: dict[str, AnyArray], s: AnyArray,
    mask: AnyArray | None, saved: dict[str, AnyArray], neuron_parameters: dict[str, AnyArray], arrays: Any,
) -> tuple[dict[str, Any], dict[str, AnyArray]]:  # fmt: skip
    conv_input = _entering(step, s, mask)
    run = _of_cpu(weights, len(saved["u"]), training, s.shape[1])
    neurons = NeuronResiduals(saved, s, static=False, learned=neuron_parameters)
    block_saved = block.SparseBlockSaved(conv_input, weights[step.projection.name], step.is_sparse(conv_input), neurons)
    error = step.spike_error(block_saved, _joined_error(kind, arrays))
    result = step.propagated(run, block_saved, error)
    (grad_below,) = result.grad_inputs
    if isinstance(grad_below, block.DeferredError):
        grad_below = grad_below.dz
    elif isinstance(grad_below, block.PooledError):
        grad_below = grad_below.d
    gradients = dict(result.gradients)
    results = {"dw": gradients.pop(step.projection.name), "below": grad_below}
    return results, {name: x.astype(np.float32).reshape(-1) for name, x in gradients.items()}
