"""The fusion of the CPU: a population with what stands before it as one step, by sparse kernels where they pay.

The sparse kernels know an input of bytes that changes with time and a convolution of stride 1; they are taken where few
enough inputs are non-zero, forward pass and gradient one by one. The share of non-zero inputs is taken from a sample of
the frames: it depends on nothing but the data, and so does the choice.

Errors go from step to step with the adjoint of a pooling (`PooledError`) or of a whole convolution (`DeferredError`)
still to be taken, which the step below does on its way, or leaves out where it needs no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from stsbp_cpu.sparse import kernels, needed
from stsbp_cpu.sparse.spikes import NO_MASK, density
from stsbp_cpu.synapses.conv2d_bytes import doubled
from stsbp_cpu.threads import get_num_threads
from stsbp_cpu.vectors import LANES
from stsbp_spec.backend import NeuronResiduals
from stsbp_spec.equations import neuron_equations
from stsbp_spec.graph import Op, Place, Projection
from stsbp_spec.neurons.base import NeuronModel
from stsbp_spec.plan import Chain, Drops, Population, Weights
from stsbp_spec.rules import Ahead, Back, Deferred, Exchange, Run, Step
from stsbp_spec.synapses import AvgPool2d, Conv2d, Dropout
from stsbp_spec.synapses.psp import SynapticFilter
from stsbp_spec.typing import Precision, Shape

from stsbp_torch.layout import empty, end_to_end, flat_frames, laid_out, view
from stsbp_torch.neurons.fused_cpu import beside_u, numbers
from stsbp_torch.synapses import avgpool2d, conv2d, conv2d_bytes, dropout

__all__ = ["Block", "DeferredError", "Input", "PooledError", "Residuals", "SparseBlock", "fuse"]

FORWARD_BELOW = {
    ("gather", "bytes"): 0.03,
    ("gather", "floats"): 0.4,
    ("scatter", "bytes"): 0.17,
    ("scatter", "floats"): 0.2,
}
GRADIENT_BELOW = 0.3
ERROR_BELOW = {"narrow": 0.4, "wide": 0.18}
"""Densities below which the sparse kernels are faster than oneDNN's: `benchmarks/crossover.py` measures them."""
_SAMPLED = 32


class Input(NamedTuple):
    """What enters a convolution, before pooling and dropout, whose work the kernels do on the way.

    Attributes:
        s: spikes or event counts, uint8 `[T, B, C, H, W]`.
        size: of the pooling window; 1: none.
        mask: of dropout, uint8 `[B, C, ...]`; None: none.
        masked: 0: no dropout; 1: before the pooling; 2: after it.
    """

    s: torch.Tensor
    size: int
    mask: torch.Tensor | None
    masked: int

    def arrays(self) -> kernels.Given:
        """As the kernels take it."""
        kept = NO_MASK[None] if self.mask is None else self.mask.permute(0, 2, 3, 1).numpy()
        return kernels.Given(view(self.s), self.size, kept, self.masked)

    def density(self) -> float:
        """Share of non-zero values after the pooling, from a sample of frames, dropout left out."""
        frames = flat_frames(self.s)
        return float(density(frames, self.size, max(1, len(frames) // _SAMPLED)))

    def doubled(self) -> torch.Tensor:
        """What enters a convolution of bytes: `conv2d_bytes.doubled` of the sums of the pooling windows."""
        t, b, c, h, w = self.s.shape
        out = empty((t, b, 2 * c, h // self.size, w // self.size), torch.uint8, self.s.device)
        s, size, mask, masked = self.arrays()
        doubled(s, mask, masked, size, view(out))
        return out


class Residuals(NamedTuple):
    """What the backward pass of a block meets again, and whether its input is sparse enough for these kernels."""

    given: Input
    wq: torch.Tensor
    sparse: bool
    neurons: NeuronResiduals[torch.Tensor]


@dataclass(frozen=True, eq=False)
class PooledError(Deferred[torch.Tensor]):
    """An error after a pooling whose adjoint is still to be taken: `d` of the windows, `shape` before the pooling."""

    d: torch.Tensor
    pool: AvgPool2d
    shape: Shape

    def array(self) -> torch.Tensor:
        return avgpool2d.backward(self.pool, self.shape, self.d, fused=True)


@dataclass(frozen=True, eq=False)
class DeferredError(Deferred[torch.Tensor]):
    """An error that still stands after a convolution, until the layer below says where it uses it.

    `dz` of `block`, which took `given` and `wq`.
    """

    block: SparseBlock
    given: Input
    wq: torch.Tensor
    dz: torch.Tensor

    def array(self) -> torch.Tensor:
        below = self.block.below(self.given, self.dense())
        return below.array() if isinstance(below, PooledError) else below

    def taken(self, u: torch.Tensor, neuron: NeuronModel) -> torch.Tensor | PooledError:
        """The error of the spikes of the layer below, of potentials `u`."""
        # Few input channels leave parts of the dense product's vectors empty.
        width = "narrow" if self.block.projection.input.shape[0] < LANES else "wide"
        below = self.needed(u, neuron) if self.share(u, neuron) < ERROR_BELOW[width] else self.dense()
        return self.block.below(self.given, below)

    def share(self, u: torch.Tensor, neuron: NeuronModel) -> float:
        """The part of the error that the layer below uses, from a sample of frames."""
        support = needed.support(neuron)
        if support is None:
            return 1.0
        frames = flat_frames(u)
        return needed.share(support, frames, self.given.size, max(1, len(frames) // _SAMPLED))

    def needed(self, u: torch.Tensor, neuron: NeuronModel) -> torch.Tensor:
        """The error of the convolution's input, zero where the layer below does not use it."""
        support = needed.support(neuron)
        assert support is not None
        below = empty(self._shape(), torch.float32, u.device)
        wq, size = self.wq.numpy(), self.given.size
        needed.error(support, self.block.conv, wq, flat_frames(u), size, flat_frames(self.dz), flat_frames(below))
        return below

    def dense(self) -> torch.Tensor:
        """All of the error of the convolution's input."""
        return conv2d.input_error(self.block.conv, self.wq, self.dz, self._shape())

    def _shape(self) -> Shape:
        return (*self.given.s.shape[:2], *self.block.projection.input.shape)


def fuse(chain: tuple[Step[torch.Tensor], ...]) -> Step[torch.Tensor] | None:
    """A population and all that stands before it as one step."""
    population, weights = chain[-1], chain[-2] if len(chain) > 1 else None
    if not (isinstance(weights, Weights) and type(population) is Population):
        return None
    conv, static = weights.projection.synapse, weights.projection.input.static
    known = chain[_known_from(chain[:-2]) :]
    kinds = [type(part.places[0].node.op) for part in known[:-2]]
    simple = sorted(kinds, key=str) in ([], [AvgPool2d], [Dropout], [AvgPool2d, Dropout])
    if simple and not static and type(conv) is Conv2d and conv.square and conv.stride == 1:
        return SparseBlock(*_places(known), known, weights.projection, population, conv)
    return Block(*_places(chain), chain, weights.projection, population)


def _known_from(before: tuple[Step[torch.Tensor], ...]) -> int:
    """Where the kernels' own pooling and dropout begin, after the last step that is something else."""
    others = (i for i, part in enumerate(before, 1) if not (isinstance(part, Drops) or _halves(part.places[0].node.op)))
    return max(others, default=0)


def _halves(op: Op) -> bool:
    """Whether this is a pooling of the kernels: means of square windows."""
    return isinstance(op, AvgPool2d) and isinstance(op.size, int) and op.divisor == 1


def _places(chain: tuple[Step[torch.Tensor], ...]) -> tuple[tuple[Place, ...], tuple[bool, ...]]:
    return tuple(part.places[0] for part in chain), chain[0].needed


@dataclass(frozen=True, eq=False)
class Block(Chain[torch.Tensor]):
    """A population and what stands before it, one part after the other."""

    takes_deferred: ClassVar[bool] = True

    projection: Projection
    neurons: Population[torch.Tensor]

    def backward(
        self, run: Run[torch.Tensor], residuals: Any, error: Any, precision: Precision
    ) -> Exchange[torch.Tensor]:
        error = self.taken(residuals, error)
        if isinstance(error, PooledError):
            error = error.array()
        pool = self.places[0].node.op
        if not (isinstance(pool, AvgPool2d) and _halves(pool) and self.needed[0]):
            return (yield from super().backward(run, residuals, error, precision))
        back = yield from self.back_to(1, run, residuals, error, precision)
        (below,) = back.errors
        assert isinstance(below, torch.Tensor)
        return back._replace(errors=(PooledError(below, pool, residuals[0]),))

    def taken(self, residuals: Any, error: Any) -> torch.Tensor | PooledError:
        """The error of the block's spikes, as far as the block uses it."""
        if isinstance(error, DeferredError):
            return error.taken(self.population(residuals).kept["u"], self.neurons.op.model)
        kept: torch.Tensor | PooledError = error
        return kept


@dataclass(frozen=True, eq=False)
class SparseBlock(Block):
    """The same with a convolution that the sparse kernels know."""

    conv: Conv2d

    def forward(self, run: Run[torch.Tensor], *inputs: torch.Tensor) -> Ahead[torch.Tensor]:
        (s,) = inputs
        if s.dtype != torch.uint8 or s.shape[1] < get_num_threads():
            return (yield from super().forward(run, s))
        wq, given = run.weights[self.projection.name], self.given(run, s)
        density = given.density()
        kind = self.kind(given, density)
        if kind == "sparse":
            spikes, neurons = self.fire(
                given, wq, self.neurons.filters[run.training], run.steps, self.neurons.learned(run)
            )
        else:
            z = self.sums(given, wq, of_bytes=kind == "bytes")
            spikes, neurons = yield from self.neurons.forward(run, z)
        return spikes, Residuals(given, wq, density < GRADIENT_BELOW, neurons)

    def backward(
        self, run: Run[torch.Tensor], residuals: Any, error: Any, precision: Precision
    ) -> Exchange[torch.Tensor]:
        if not isinstance(residuals, Residuals):
            return (yield from super().backward(run, residuals, error, precision))
        error = self.taken(residuals, error)
        if precision == "reproducible":
            return (yield from super().backward(run, self.by_parts(residuals), error, precision))
        given, wq, sparse, neurons = residuals
        filter, (need_input,) = self.neurons.filters[run.training], self.needed
        need_below = need_input and not self.may_defer
        below = None
        if sparse:
            dz, dw, terms = self.propagate(given, neurons, error, filter, need_error=need_input, need_weights=True)
            if need_below:
                below = DeferredError(self, given, wq, dz).dense()
        else:
            dz, _, terms = self.propagate(given, neurons, error, filter, need_error=True, need_weights=False)
            dense = conv2d.Residuals(self.floats(given)[0], wq)
            below, found_dw = conv2d.backward(self.conv, dense, dz, precision=precision, need_input=need_below)
            assert found_dw is not None
            dw = found_dw
        found: torch.Tensor | Deferred[torch.Tensor] | None = None
        if below is not None:
            found = self.below(given, below)
        elif need_input:
            found = DeferredError(self, given, wq, dz)
        learned = yield from self.neurons.gradients(run, terms, precision)
        return Back((found,), {self.projection.name: dw, **learned}, {})

    def population(self, residuals: Any) -> NeuronResiduals[torch.Tensor]:
        return residuals.neurons if isinstance(residuals, Residuals) else super().population(residuals)

    @property
    def may_defer(self) -> bool:
        """Whether the block below may leave parts of its error unused, and that kernel knows the convolution."""
        return needed.support(self.neurons.op.model) is not None and self.conv.channels % LANES == 0

    def kind(self, given: Input, density: float) -> str:
        """How the block is computed: `sparse`, `bytes` or `floats`."""
        largest = int(self.projection.input.maximum * given.size**2)
        of_bytes = conv2d_bytes.usable(self.conv, self.projection.input.shape, largest)
        order = "gather" if kernels.gathers(self.conv) else "scatter"
        if density < FORWARD_BELOW[order, "bytes" if of_bytes else "floats"]:
            return "sparse"
        return "bytes" if of_bytes else "floats"

    def given(self, run: Run[torch.Tensor], s: torch.Tensor) -> Input:
        """What the block takes from the spikes of the block below."""
        size, mask, masked = 1, None, 0
        for part in self.parts:
            op = part.places[0].node.op
            if isinstance(op, AvgPool2d):
                size, _ = op.sizes
            elif isinstance(part, Drops) and (mask := part.mask(run, s.shape[1])) is not None:
                masked = 1 if size == 1 else 2
        return Input(s, size, mask, masked)

    def sums(self, given: Input, wq: torch.Tensor, *, of_bytes: bool) -> torch.Tensor:
        """Weighted sums by a convolution of bytes, or of floats."""
        if of_bytes:
            return conv2d_bytes.forward(self.conv, given.doubled(), wq, 1 / given.size**2)
        return conv2d.forward(self.conv, self.floats(given)[0], wq)[0]

    def floats(self, given: Input) -> tuple[torch.Tensor, list[Any]]:
        """The input as the weights meet it, float32, and the residuals of pooling and dropout."""
        s, before = given.s, list[Any]()
        for place in self.places[:-2]:
            residual: Any = given.mask
            if isinstance(place.node.op, AvgPool2d):
                s, residual = avgpool2d.forward(place.node.op, s, fused=True)
            elif given.mask is not None:
                s = dropout.apply(given.mask, s)
            before.append(residual)
        return laid_out(s.float()), before

    def by_parts(self, residuals: Residuals) -> list[Any]:
        """The residuals that the parts would have left."""
        s, before = self.floats(residuals.given)
        return [*before, conv2d.Residuals(s, residuals.wq), residuals.neurons]

    def below(self, given: Input, below: torch.Tensor) -> torch.Tensor | PooledError:
        """The error of the spikes below from that of the input of the convolution."""
        if given.mask is not None and given.masked == 2:
            below = dropout.apply(given.mask, below)
        pool = next((place.node.op for place in self.places if isinstance(place.node.op, AvgPool2d)), None)
        if pool is None:
            return below if given.mask is None else dropout.apply(given.mask, below)
        pooled = PooledError(below, pool, tuple(given.s.shape))
        if given.masked != 1:
            return pooled
        assert given.mask is not None
        return dropout.apply(given.mask, pooled.array())

    def fire(
        self,
        given: Input,
        wq: torch.Tensor,
        filter: SynapticFilter,
        steps: int,
        learned: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, NeuronResiduals[torch.Tensor]]:
        """Spikes and residuals by the sparse kernels."""
        equations = neuron_equations(filter, self.neurons.op.model)
        shape, device = (steps, given.s.shape[1], *self.projection.output_shape), given.s.device
        kept = dict(zip(equations.kept, end_to_end(len(equations.kept), shape, device), strict=True))
        spikes = empty(shape, torch.uint8, device)
        each = self.neurons.backend.spread_all(equations, learned, shape[1:])
        kernels.forward(
            self.conv, equations, given.arrays(), wq.numpy(), view(kept["u"]), view(spikes), beside_u(kept),
            numbers(each),
        )  # fmt: skip
        return spikes, NeuronResiduals(kept, spikes, static=False, learned=each)

    def propagate(
        self,
        given: Input,
        residuals: NeuronResiduals[torch.Tensor],
        ds: torch.Tensor | PooledError,
        filter: SynapticFilter,
        *,
        need_error: bool,
        need_weights: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """`dz` and `dW` from the error of the spikes by the sparse kernels; what is not needed is empty.

        The third is what each neuron adds to the gradients of learned numbers, by name.
        """
        equations, u = neuron_equations(filter, self.neurons.op.model), residuals.kept["u"]
        above, pooled = (ds.d, ds.pool.sizes[0]) if isinstance(ds, PooledError) else (ds, 1)
        dz = empty(tuple(u.shape) if need_error else (0,) * 5, torch.float32, u.device)
        terms = dict(zip(equations.terms, end_to_end(len(equations.terms), (1, *u.shape[1:]), u.device), strict=True))
        dw = kernels.backward(
            self.conv, equations, given.arrays(), view(u), beside_u(residuals.kept), view(above), pooled, view(dz),
            numbers(residuals.learned), numbers(terms), need_weights=need_weights,
        )  # fmt: skip
        return dz, torch.empty(0) if dw is None else torch.from_numpy(dw), terms
