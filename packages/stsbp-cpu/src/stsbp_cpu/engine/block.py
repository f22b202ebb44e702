"""A fusion: a population and the operations before it as one step, with sparse kernels where these are faster.

The sparse kernels support convolutions of stride 1 whose input consists of bytes and changes over time. They are used
if few enough inputs are non-zero. The forward pass and the gradient are decided separately. The share of non-zero
inputs is estimated from a fixed sample of the frames, so the same data always lead to the same choice.

Error signals are passed from step to step before the adjoint of a pooling (`PooledError`) or of a whole convolution
(`DeferredError`) is applied. The step below applies the adjoint, or skips it where it needs no error signal.

A library with arrays in the CPU's memory implements `DenseConvolution`, which convolves inputs that are not sparse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Generic, NamedTuple

import numpy as np
from stsbp_spec.engine.plan import ByRule, Chain, Drops, Population, Weights
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.engine.rules import BackwardResult, Deferred, ForwardResult, PassContext, Step
from stsbp_spec.equations.assembly import NeuronEquations, neuron_equations
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.networks.graph import BoundNode, Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Dropout, Flatten, Linear
from stsbp_spec.networks.ops.psp import SynapticFilter
from stsbp_spec.typing import Array, Float32, Precision, Shape

from stsbp_cpu.engine import fused
from stsbp_cpu.engine.layout import Layout, beside_u, learned_numbers, numbers
from stsbp_cpu.engine.threads import get_num_threads
from stsbp_cpu.equations.vectors import LANES
from stsbp_cpu.ops import pooling
from stsbp_cpu.ops.sparse import integer_conv, kernels, needed
from stsbp_cpu.ops.sparse.spikes import NO_MASK, density

__all__ = [
    "ConvInput",
    "DeferredError",
    "DenseConvolution",
    "FusedBlock",
    "PooledError",
    "SparseBlock",
    "SparseBlockSaved",
    "fusion",
]

FORWARD_BELOW = {
    ("choose", "tiles"): 0.1,
    ("choose", "bytes"): 0.45,
    ("choose", "floats"): 0.9,
    ("gather", "tiles"): 0.03,
    ("gather", "bytes"): 0.1,
    ("gather", "floats"): 0.4,
    ("scatter", "tiles"): 0.17,
    ("scatter", "bytes"): 0.35,
    ("scatter", "floats"): 0.2,
}
GRADIENT_BELOW = 0.45
ERROR_BELOW = {"narrow": 0.4, "wide": 0.18}
"""Densities below which the sparse kernels are faster than those of oneDNN. `benchmarks/crossover.py` measures them."""
_SAMPLED = 32


class DenseConvolution(ABC, Generic[Array]):
    """Convolutions of a library on its own arrays, for inputs that are not sparse.

    `layout` is the layout of these arrays.
    """

    layout: Layout[Array]

    @property
    def byte_unit(self) -> str:
        """The unit of the processor that multiplies bytes: `tiles` (AMX), or `bytes` for vector instructions."""
        return "bytes"

    @abstractmethod
    def forward(self, conv: Conv2d, s: Array, wq: Array) -> Array:
        """Weighted sums `z`, `[T, B, C', H', W']`, of a float32 input."""

    @abstractmethod
    def backward(self, conv: Conv2d, s: Array, wq: Array, dz: Array, *, need_input: bool) -> tuple[Array | None, Array]:
        """`(ds, dW)` in `fast` precision."""

    @abstractmethod
    def input_error(self, conv: Conv2d, wq: Array, dz: Array, shape: Shape) -> Array:
        """Only `ds`, of shape `shape`, in `fast` precision."""

    @abstractmethod
    def saved_for_backward(self, s: Array, wq: Array) -> Any:
        """The residuals that the library's rule for convolutions stores for this input and these weights."""

    def takes_bytes(self, conv: Conv2d, shape: Shape, largest: int) -> bool:
        """Whether `of_bytes` is exact and fast for frames of `shape` `(C, H, W)` with inputs up to `largest`."""
        return False

    def of_bytes(self, conv: Conv2d, conv_input: ConvInput[Array], wq: Array) -> Array:
        """`z`, computed by a convolution of bytes.

        This method is called only if `takes_bytes` returned true. A class that overrides `takes_bytes` must override
        this method as well.
        """
        raise NotImplementedError


class ConvInput(NamedTuple, Generic[Array]):
    """The input of a convolution before pooling and dropout. The kernels apply these when they read the input.

    Attributes:
        s: spikes or event counts, uint8 `[T, B, C, H, W]`.
        size: size of the pooling window; 1: no pooling.
        mask: dropout mask, uint8 `[B, C, ...]`; None: no dropout.
        masked: where dropout is applied. 0: nowhere; 1: before the pooling; 2: after the pooling.
    """

    s: Array
    size: int
    mask: Array | None
    masked: int

    def arrays(self, layout: Layout[Array]) -> kernels.KernelInput:
        """The input in the form that the kernels take."""
        mask_memory = NO_MASK[None] if self.mask is None else layout.view(self.mask[None])[0]
        return kernels.KernelInput(layout.view(self.s), self.size, mask_memory, self.masked)

    def density(self, layout: Layout[Array]) -> float:
        """Share of non-zero values after the pooling, without dropout, estimated from a sample of frames."""
        frames = layout.frames(self.s)
        return float(density(frames, self.size, max(1, len(frames) // _SAMPLED)))

    def spikes(self, layout: Layout[Array]) -> float:
        """Mean number of spikes per value after the pooling, without dropout, estimated from a sample of frames."""
        frames = layout.frames(self.s)
        return self.size**2 * float(density(frames, 1, max(1, len(frames) // _SAMPLED)))


class SparseBlockSaved(NamedTuple, Generic[Array]):
    """What the backward pass of a block reads, and whether the input is sparse enough for the sparse kernels."""

    conv_input: ConvInput[Array]
    wq: Array
    sparse: bool
    neurons: NeuronResiduals[Array]


@dataclass(frozen=True, eq=False)
class PooledError(Deferred[Array]):
    """An error signal after a pooling whose adjoint has not been applied yet.

    `d` is the error signal of the windows, and `shape` is the shape before the pooling.
    """

    layout: Layout[Array]
    d: Array
    pool: AvgPool2d
    shape: Shape

    def array(self) -> Array:
        return pooling.average_backward(self.layout, self.pool, self.shape, self.d)


@dataclass(frozen=True, eq=False)
class DeferredError(Deferred[Array]):
    """An error signal after a convolution, until the layer below says where it uses the error signal.

    `dz` is the error signal of the weighted sums of `block`, which were computed from `conv_input` and `wq`.
    """

    block: SparseBlock[Array]
    conv_input: ConvInput[Array]
    wq: Array
    dz: Array

    def array(self) -> Array:
        grad_input = self.block.spike_error_below(self.conv_input, self.all())
        return grad_input.array() if isinstance(grad_input, PooledError) else grad_input

    def spike_error(self, u: Array, neuron: NeuronModel) -> Array | PooledError[Array]:
        """The error signal of the spikes of the layer below, whose potentials are `u`."""
        # With few input channels, the vectors of the dense product are partly empty.
        width = "narrow" if self.block.projection.input.shape[0] < LANES else "wide"
        grad_input = self.needed(u, neuron) if self.share(u, neuron) < ERROR_BELOW[width] else self.all()
        return self.block.spike_error_below(self.conv_input, grad_input)

    def share(self, u: Array, neuron: NeuronModel) -> float:
        """The share of the error signal that the layer below uses, estimated from a sample of frames."""
        support = needed.support(neuron)
        if support is None:
            return 1.0
        frames = self.block.dense.layout.frames(u)
        return needed.share(support, frames, self.conv_input.size, max(1, len(frames) // _SAMPLED))

    def needed(self, u: Array, neuron: NeuronModel) -> Array:
        """The error signal of the convolution's input, zero where the layer below does not use it."""
        support, layout = needed.support(neuron), self.block.dense.layout
        assert support is not None
        grad_input = layout.empty(self._shape(), np.float32)
        wq, frames = layout.view(self.wq), layout.frames
        needed.error(support, self.block.conv, wq, frames(u), self.conv_input.size, frames(self.dz), frames(grad_input))
        return grad_input

    def all(self) -> Array:
        """The whole error signal of the convolution's input."""
        return self.block.dense.input_error(self.block.conv, self.wq, self.dz, self._shape())

    def _shape(self) -> Shape:
        return (*self.conv_input.s.shape[:2], *self.block.projection.input.shape)


def fusion(dense: DenseConvolution[Array]) -> Callable[[tuple[Step[Array], ...]], Step[Array] | None]:
    """The fusion for a backend (`Operations.fusions`): a population and all operations before it as one step."""
    return partial(_fuse, dense)


def _fuse(dense: DenseConvolution[Array], chain: tuple[Step[Array], ...]) -> Step[Array] | None:
    population, weights = chain[-1], chain[-2] if len(chain) > 1 else None
    if not (isinstance(weights, Weights) and type(population) is Population):
        return None
    conv, static = weights.projection.synapse, weights.projection.input.static
    supported = chain[_supported_from(chain[:-2]) :]
    kinds = [type(part.bound_nodes[0].node.op) for part in supported[:-2]]
    only_pooling_and_dropout = sorted(kinds, key=str) in ([], [AvgPool2d], [Dropout], [AvgPool2d, Dropout])
    if only_pooling_and_dropout and not static and type(conv) is Conv2d and conv.square and conv.stride == 1:
        return SparseBlock(*_parts(dense, supported), dense, weights.projection, population, conv)
    if type(conv) is Linear and not static and weights.projection.input.maximum == 1:
        ops = [part.bound_nodes[0].node.op for part in chain[:-2]]
        if ops and type(ops[-1]) is Flatten:
            ops.pop()
        if not ops or (len(ops) == 1 and _halves(ops[0])):
            return ConnectedBlock(*_parts(dense, chain), dense, weights.projection, population)
    return FusedBlock(*_parts(dense, chain), dense, weights.projection, population)


def _supported_from(steps: tuple[Step[Array], ...]) -> int:
    """Index from which on `steps` contains only pooling and dropout that the kernels apply themselves."""
    unsupported = (
        i for i, part in enumerate(steps, 1) if not (isinstance(part, Drops) or _halves(part.bound_nodes[0].node.op))
    )
    return max(unsupported, default=0)


def _halves(op: Op) -> bool:
    """Whether the kernels support this operation: a pooling that averages over square windows."""
    return isinstance(op, AvgPool2d) and isinstance(op.size, int) and op.divisor == 1


def _parts(
    dense: DenseConvolution[Array], chain: tuple[Step[Array], ...]
) -> tuple[tuple[BoundNode, ...], tuple[bool, ...], tuple[Step[Array], ...]]:
    """The nodes of a block, which of its inputs need an error signal, and its parts."""
    first, *later_steps = chain
    if isinstance(first, ByRule) and _halves(first.bound_nodes[0].node.op):
        first = FirstPooling(first.bound_nodes, first.needed, first.op, first.rule, dense.layout)
    return tuple(part.bound_nodes[0] for part in chain), first.needed, (first, *later_steps)


@dataclass(frozen=True, eq=False)
class FirstPooling(ByRule[Array]):
    """The pooling at the beginning of a block. The step below applies its adjoint."""

    layout: Layout[Array]

    def backward_slice(
        self, run: PassContext[Array], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[Array]:
        pool = self.bound_nodes[0].node.op
        assert isinstance(pool, AvgPool2d)
        return BackwardResult((PooledError(self.layout, grad, pool, saved),))


@dataclass(frozen=True, eq=False)
class FusedBlock(Chain[Array]):
    """A population and the operations before it, computed one after the other."""

    takes_deferred: ClassVar[bool] = True

    dense: DenseConvolution[Array]
    projection: Projection
    neurons: Population[Array]

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        if run.keeps or run.initial_states is not None or not isinstance(self.projection.synapse, Conv2d):
            return super().forward_slice(run, *inputs)
        for part in self.parts[:-1]:
            inputs = (part.forward_slice(run, *inputs).output,)
        (z,) = inputs
        return ForwardResult(self.spikes_of(run, z), None)

    def equations(self, run: PassContext[Array]) -> NeuronEquations:
        """The equations of the neurons and of the filter before them."""
        return self.neurons.equations[run.training]

    def spikes_of(self, run: PassContext[Array], z: Array) -> Array:
        """The spikes for weighted sums `z` if no backward pass follows. Potentials are not stored."""
        backend, learned = self.neurons.backend, self.neurons.learned(run)
        return fused.spikes_alone(backend, self.dense.layout, self.equations(run), z, run.steps, learned)

    def received(self, saved: Any, grad: Any) -> Any:
        return super().received(saved, self.spike_error(saved, grad))

    def spike_error(self, residuals: Any, error: Any) -> Array | PooledError[Array]:
        """The error signal of the block's spikes. Elements that the block does not use may be zero."""
        if isinstance(error, DeferredError):
            return error.spike_error(self.population(residuals).kept["u"], self.neurons.op.model)
        plain_error: Array | PooledError[Array] = error
        return plain_error


@dataclass(frozen=True, eq=False)
class ConnectedBlock(FusedBlock[Array]):
    """A `FusedBlock` with a full connection whose inputs are spikes.

    If no backward pass follows, the spikes select the weights that are added. Potentials are stored nevertheless,
    because the block may be the last one of the network.
    """

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        (s,), layout = inputs, self.dense.layout
        if run.keeps or run.initial_states is not None or not layout.is_bytes(s):
            return super().forward_slice(run, s)
        neurons, wq = self.neurons, run.weights[self.projection.name]
        equations = self.equations(run)
        shape = (run.steps, s.shape[1], *self.projection.output_shape)
        saved, spikes = fused.kept_arrays(layout, equations, shape), layout.empty(shape, np.uint8)
        learned = neurons.backend.broadcast_all(equations, neurons.learned(run), shape[1:])
        pool = self.bound_nodes[0].node.op
        size = pool.sizes[0] if isinstance(pool, AvgPool2d) else 1
        frames = layout.view(layout.laid_out(s))
        frames = frames if frames.ndim == 5 else frames[:, :, None, None]
        kernels_ = (frames.shape[2] // size, frames.shape[3] // size)
        weights = run.converted(self.name, lambda: integer_conv.integer_weights(layout.view(wq), kernels_))
        u, fired = (layout.view(x)[:, :, None, None] for x in (saved["u"], spikes))
        integer_conv.forward(
            kernels.KernelInput(frames, size, NO_MASK[None], 0), weights, (0, 0), equations, u, fired,
            beside_u(layout, equations, saved), learned_numbers(layout, equations, learned),
        )  # fmt: skip
        residuals = [None] * (len(self.parts) - 1)
        return ForwardResult(spikes, [*residuals, NeuronResiduals(saved, spikes, static=False, learned=learned)])


@dataclass(frozen=True, eq=False)
class SparseBlock(FusedBlock[Array]):
    """A `FusedBlock` with a convolution that the sparse kernels support."""

    conv: Conv2d

    def forward_slice(self, run: PassContext[Array], *inputs: Array) -> ForwardResult[Array]:
        (s,) = inputs
        if not self.dense.layout.is_bytes(s):
            return super().forward_slice(run, s)
        conv_input = self.conv_input(run, s)
        return self.fired(run, conv_input) if run.keeps else ForwardResult(self.spikes_alone(run, conv_input), None)

    def fired(self, run: PassContext[Array], conv_input: ConvInput[Array]) -> ForwardResult[Array]:
        """`forward_slice` if a backward pass may follow."""
        wq = run.weights[self.projection.name]
        density = self.density(conv_input)
        kind = self.kind(conv_input, self.work(conv_input, density))
        if kind == "sparse":
            filter, learned = self.neurons.filters[run.training], self.neurons.learned(run)
            spikes, neurons = self.fire(conv_input, wq, filter, run.steps, learned)
        else:
            z = self.sums(conv_input, wq, of_bytes=kind != "floats")
            spikes, neurons = self.neurons.forward_slice(run, z)
        return ForwardResult(spikes, SparseBlockSaved(conv_input, wq, density < GRADIENT_BELOW, neurons))

    def spikes_alone(self, run: PassContext[Array], conv_input: ConvInput[Array]) -> Array:
        """The spikes of `fired` if no backward pass follows. Potentials are not stored."""
        wq, layout, equations = run.weights[self.projection.name], self.dense.layout, self.equations(run)
        kind = self.kind(conv_input, self.work(conv_input))
        if kind != "sparse":
            return self.spikes_of(run, self.sums(conv_input, wq, of_bytes=kind != "floats"))
        no_potentials = layout.empty((0, conv_input.s.shape[1], *self.projection.output_shape), np.float32)
        saved = fused.empty_saved_values(equations)
        weights = run.converted(self.name, lambda: self.ready(wq))
        return self._fired(
            conv_input, weights, equations, run.steps, self.neurons.learned(run), layout.view(no_potentials), saved
        )[0]

    @cached_property
    def chooses(self) -> bool:
        """Whether the input consists of zeros and ones and the forward pass gathers (sparse/kernels.py)."""
        return self.projection.input.maximum == 1 and kernels.gathers(self.conv)

    def ready(self, wq: Array) -> Float32 | integer_conv.IntegerWeights:
        """The weights in the form that the sparse forward pass takes."""
        w: Float32 = self.dense.layout.view(wq)
        return integer_conv.integer_weights(w, self.conv.kernels) if self.chooses else w

    def density(self, conv_input: ConvInput[Array]) -> float:
        """`ConvInput.density`, multiplied by the number of threads per sample if there are more threads than samples.

        The sparse kernels divide the samples among the threads, so some threads would have no work.
        """
        spread: float = max(1, get_num_threads() / conv_input.s.shape[1])
        return spread * conv_input.density(self.dense.layout)

    def work(self, conv_input: ConvInput[Array], density: float | None = None) -> float:
        """Work of the sparse forward pass per input: the number of spikes if these select weights, else the density."""
        if self.chooses:
            return conv_input.spikes(self.dense.layout)
        return self.density(conv_input) if density is None else density

    def is_sparse(self, conv_input: ConvInput[Array]) -> bool:
        """The value of `SparseBlockSaved.sparse` for this input."""
        return self.density(conv_input) < GRADIENT_BELOW

    def backward_slice(
        self, run: PassContext[Array], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[Array]:
        if not isinstance(saved, SparseBlockSaved):
            return super().backward_slice(run, saved, grad, precision)
        return self.propagated(run, saved, self.spike_error(saved, grad))

    def propagated(
        self, run: PassContext[Array], residuals: SparseBlockSaved[Array], error: Array | PooledError[Array]
    ) -> BackwardResult[Array]:
        """`backward_slice` in `fast` precision, from the error signal that `spike_error` returns."""
        conv_input, wq, sparse, neurons = residuals
        filter, (need_input,) = self.neurons.filters[run.training], self.needed
        need_below = need_input and not self.may_defer
        grad_input = None
        if sparse:
            dz, dw, terms = self.propagate(conv_input, neurons, error, filter, need_error=need_input, need_weights=True)
            if need_below:
                grad_input = DeferredError(self, conv_input, wq, dz).all()
        else:
            dz, _, terms = self.propagate(conv_input, neurons, error, filter, need_error=True, need_weights=False)
            s, _ = self.floats(conv_input)
            grad_input, dw = self.dense.backward(self.conv, s, wq, dz, need_input=need_below)
        grad_below: Array | Deferred[Array] | None = None
        if grad_input is not None:
            grad_below = self.spike_error_below(conv_input, grad_input)
        elif need_input:
            grad_below = DeferredError(self, conv_input, wq, dz)
        (learned,) = self.neurons.gradients([run], [terms], "fast")
        return BackwardResult((grad_below,), {self.projection.name: dw, **learned})

    def population(self, saved: Any) -> NeuronResiduals[Array]:
        return saved.neurons if isinstance(saved, SparseBlockSaved) else super().population(saved)

    @property
    def may_defer(self) -> bool:
        """Whether neurons may ignore parts of the error signal, and the kernel for this supports the convolution."""
        return needed.support(self.neurons.op.model) is not None and self.conv.channels % LANES == 0

    def kind(self, conv_input: ConvInput[Array], density: float) -> str:
        """How the block is computed: `sparse`, `floats`, or `DenseConvolution.byte_unit` (a convolution of bytes)."""
        largest = int(self.projection.input.maximum * conv_input.size**2)
        of_bytes = self.dense.takes_bytes(self.conv, self.projection.input.shape, largest)
        order = "choose" if self.chooses else "gather" if kernels.gathers(self.conv) else "scatter"
        dense = self.dense.byte_unit if of_bytes else "floats"
        if density < FORWARD_BELOW[order, dense]:
            return "sparse"
        return dense

    @cached_property
    def pool(self) -> AvgPool2d | None:
        """The pooling before the convolution; None: no pooling."""
        ops = (bound_node.node.op for bound_node in self.bound_nodes)
        return next((op for op in ops if isinstance(op, AvgPool2d)), None)

    @cached_property
    def window(self) -> int:
        """Size of the pooling windows; 1: no pooling."""
        return 1 if self.pool is None else self.pool.sizes[0]

    @cached_property
    def masked(self) -> int:
        """Where dropout is applied: see `ConvInput`."""
        for bound_node in self.bound_nodes[:-2]:
            if isinstance(bound_node.node.op, Dropout):
                return 1 if bound_node is self.bound_nodes[0] else 2
        return 0

    def conv_input(self, run: PassContext[Array], s: Array) -> ConvInput[Array]:
        """The input of the block's convolution, from the spikes of the block below."""
        mask = None
        for part in self.parts:
            if isinstance(part, Drops):
                mask = part.mask(run, s.shape[1])
        return ConvInput(self.dense.layout.laid_out(s), self.window, mask, 0 if mask is None else self.masked)

    def sums(self, conv_input: ConvInput[Array], wq: Array, *, of_bytes: bool) -> Array:
        """Weighted sums, computed by a convolution of bytes or of floats."""
        if of_bytes:
            return self.dense.of_bytes(self.conv, conv_input, wq)
        return self.dense.forward(self.conv, self.floats(conv_input)[0], wq)

    def floats(self, conv_input: ConvInput[Array]) -> tuple[Array, list[Any]]:
        """The input of the convolution after pooling and dropout, and the residuals of pooling and dropout."""
        s, residuals = conv_input.s, list[Any]()
        for bound_node in self.bound_nodes[:-2]:
            residual: Any = conv_input.mask
            if isinstance(bound_node.node.op, AvgPool2d):
                residual = tuple(s.shape)
                s = pooling.average(self.dense.layout, bound_node.node.op, s)
            elif conv_input.mask is not None:
                s = self._dropped(conv_input.mask, s)
            residuals.append(residual)
        return s, residuals

    def by_parts(self, saved: Any) -> Sequence[Any]:
        if not isinstance(saved, SparseBlockSaved):
            return super().by_parts(saved)
        s, residuals = self.floats(saved.conv_input)
        return [*residuals, self.dense.saved_for_backward(s, saved.wq), saved.neurons]

    def spike_error_below(self, conv_input: ConvInput[Array], grad_input: Array) -> Array | PooledError[Array]:
        """The error signal of the spikes below, from the error signal of the convolution's input."""
        if conv_input.mask is not None and conv_input.masked == 2:
            grad_input = self._dropped(conv_input.mask, grad_input)
        if self.pool is None:
            return grad_input if conv_input.mask is None else self._dropped(conv_input.mask, grad_input)
        pooled = PooledError(self.dense.layout, grad_input, self.pool, tuple(conv_input.s.shape))
        if conv_input.masked != 1:
            return pooled
        assert conv_input.mask is not None
        return self._dropped(conv_input.mask, pooled.array())

    def _dropped(self, mask: Array, x: Array) -> Array:
        return self.neurons.backend.dropout(mask, x)

    def fire(
        self, conv_input: ConvInput[Array], wq: Array, filter: SynapticFilter, steps: int, learned: Mapping[str, Array]
    ) -> tuple[Array, NeuronResiduals[Array]]:
        """Spikes and residuals, computed by the sparse kernels."""
        equations, layout = neuron_equations(filter, self.neurons.op.model), self.dense.layout
        saved = fused.kept_arrays(layout, equations, (steps, conv_input.s.shape[1], *self.projection.output_shape))
        saved_besides_u = beside_u(layout, equations, saved)
        spikes, neuron_parameters = self._fired(
            conv_input, self.ready(wq), equations, steps, learned, layout.view(saved["u"]), saved_besides_u
        )
        return spikes, NeuronResiduals(saved, spikes, static=False, learned=neuron_parameters)

    def _fired(
        self, conv_input: ConvInput[Array], weights: Float32 | integer_conv.IntegerWeights, equations: NeuronEquations,
        steps: int, learned: Mapping[str, Array], u: Float32, saved_besides_u: Float32,
    ) -> tuple[Array, dict[str, Array]]:  # fmt: skip
        """Spikes, computed by the sparse kernels, and the learned parameters of each neuron.

        Fills `u` and `saved_besides_u`.
        """
        layout, shape = self.dense.layout, (steps, conv_input.s.shape[1], *self.projection.output_shape)
        spikes = layout.empty(shape, np.uint8)
        neuron_parameters = self.neurons.backend.broadcast_all(equations, learned, shape[1:])
        arrays, numbers_ = conv_input.arrays(layout), learned_numbers(layout, equations, neuron_parameters)
        if isinstance(weights, integer_conv.IntegerWeights):
            integer_conv.forward(
                arrays, weights, self.conv.paddings, equations, u, layout.view(spikes), saved_besides_u, numbers_
            )
        else:
            kernels.forward(self.conv, equations, arrays, weights, u, layout.view(spikes), saved_besides_u, numbers_)
        return spikes, neuron_parameters

    def propagate(
        self,
        conv_input: ConvInput[Array],
        residuals: NeuronResiduals[Array],
        ds: Array | PooledError[Array],
        filter: SynapticFilter,
        *,
        need_error: bool,
        need_weights: bool,
    ) -> tuple[Array, Array, dict[str, Array]]:
        """`dz` and `dW` from the error signal of the spikes, computed by the sparse kernels.

        A result that is not needed is empty. The third result contains each neuron's contribution to the gradients of
        the learned parameters, by name.
        """
        equations, u = neuron_equations(filter, self.neurons.op.model), residuals.kept["u"]
        layout, shape = self.dense.layout, tuple(u.shape)
        spike_error, pooled = (ds.d, ds.pool.sizes[0]) if isinstance(ds, PooledError) else (ds, 1)
        dz = layout.empty(shape if need_error else (0,) * 5, np.float32)
        terms = dict(zip(equations.terms, layout.end_to_end(len(equations.terms), (1, *shape[1:])), strict=True))
        dw = kernels.backward(
            self.conv, equations, conv_input.arrays(layout), layout.view(u),
            beside_u(layout, equations, residuals.kept), layout.view(layout.laid_out(spike_error)),
            pooled, layout.view(dz),
            learned_numbers(layout, equations, residuals.learned), numbers(layout, equations.terms, terms),
            need_weights=need_weights,
        )  # fmt: skip
        return dz, layout.from_memory(np.empty(0, np.float32) if dw is None else dw), terms
