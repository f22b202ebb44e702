"""Which blocks take the sparse kernels, and the arrays they meet there.

A block takes them where its input is bytes that change with time, its layer is a convolution of stride 1, and few
enough inputs are non-zero; forward pass and gradient are chosen one by one. The share of non-zero inputs is taken from
a sample of the frames: it depends on nothing but the data, and so does the choice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from stsbp_cpu.sparse import kernels, needed
from stsbp_cpu.sparse.spikes import NO_MASK, density
from stsbp_cpu.synapses.conv2d_bytes import doubled
from stsbp_cpu.threads import get_num_threads
from stsbp_cpu.vectors import LANES
from stsbp_spec import passes
from stsbp_spec.backend import NeuronResiduals
from stsbp_spec.equations import neuron_equations
from stsbp_spec.network import Block
from stsbp_spec.neurons.base import NeuronModel
from stsbp_spec.pairs import BlockTrace, Pairs
from stsbp_spec.synapses import AvgPool2d, Conv2d
from stsbp_spec.synapses.psp import SynapticFilter
from stsbp_spec.typing import AnyArray, Precision, Shape

from stsbp_torch.layout import empty, end_to_end, laid_out, view
from stsbp_torch.neurons.fused_cpu import beside_u
from stsbp_torch.synapses import conv2d, conv2d_bytes

__all__ = [
    "DeferredError",
    "Input",
    "PooledError",
    "Residuals",
    "backward",
    "block_backward",
    "block_forward",
    "forward",
    "forward_bytes",
    "forward_kind",
    "given_input",
    "known",
    "may_defer",
]

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
        frames = _frames(self.s)
        return float(density(frames, self.size, max(1, len(frames) // _SAMPLED)))

    def largest(self, block: Block) -> int:
        """The largest sum of a pooling window."""
        return int(block.input.maximum * self.size**2)

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


class DeferredError(NamedTuple):
    """An error that still stands after a convolution, until the layer below says where it uses it.

    `dz` of `block`, which took `given` and `wq`.
    """

    block: Block
    given: Input
    wq: torch.Tensor
    dz: torch.Tensor

    def taken(self, backend: Pairs[torch.Tensor], u: torch.Tensor, neuron: NeuronModel) -> torch.Tensor | PooledError:
        """The error of the spikes of the layer below, of potentials `u`."""
        # Few input channels leave parts of the dense product's vectors empty.
        width = "narrow" if self.block.synapse_shape[0] < LANES else "wide"
        below = self.needed(u, neuron) if self.share(u, neuron) < ERROR_BELOW[width] else self.dense()
        return _below(backend, self.block, self.given, below)

    def share(self, u: torch.Tensor, neuron: NeuronModel) -> float:
        """The part of the error that the layer below uses, from a sample of frames."""
        support = needed.support(neuron)
        if support is None:
            return 1.0
        frames = _frames(u)
        return needed.share(support, frames, self.given.size, max(1, len(frames) // _SAMPLED))

    def needed(self, u: torch.Tensor, neuron: NeuronModel) -> torch.Tensor:
        """The error of the convolution's input, zero where the layer below does not use it."""
        conv = self.block.synapse
        assert isinstance(conv, Conv2d)
        support = needed.support(neuron)
        assert support is not None
        below = empty(self._shape(), torch.float32, u.device)
        wq, size = self.wq.numpy(), self.given.size
        needed.error(support, conv, wq, _frames(u), size, _frames(self.dz), _frames(below))
        return below

    def dense(self) -> torch.Tensor:
        """All of the error of the convolution's input."""
        assert isinstance(self.block.synapse, Conv2d)
        return conv2d.input_error(self.block.synapse, self.wq, self.dz, self._shape())

    def _shape(self) -> Shape:
        return (*self.given.s.shape[:2], *self.block.synapse_shape)


class PooledError(NamedTuple):
    """An error after a pooling whose adjoint is still to be taken: `d` of the windows, `shape` before the pooling."""

    d: torch.Tensor
    pool: AvgPool2d
    shape: Shape


Error = torch.Tensor | PooledError | DeferredError
"""Of the spikes of a layer, on its way from the layer above."""


def block_forward(
    backend: Pairs[torch.Tensor],
    block: Block,
    s: torch.Tensor,
    wq: torch.Tensor,
    steps: int,
    dropout: tuple[int, int] | None,
) -> BlockTrace[torch.Tensor]:
    """`passes.block_forward` by these kernels where they pay."""
    if not known(block) or s.dtype != torch.uint8 or s.shape[1] < get_num_threads():
        return passes.block_forward(backend, block, s, wq, steps, dropout)
    given = given_input(backend, block, s, dropout)
    density = given.density()
    filter = block.filter(training=dropout is not None)
    kind = forward_kind(block, given, density)
    if kind == "sparse":
        spikes, lif = forward(block, given, wq, filter, steps)
    elif kind == "bytes":
        spikes, lif = forward_bytes(backend, block, given, wq, filter, steps)
    else:
        z, _ = backend.synapse_forward(block.synapse, _floats(backend, block, given)[0], wq)
        spikes, lif = backend.neuron_forward(block.neuron, filter, z, steps)
    return BlockTrace(block, [], Residuals(given, wq, density < GRADIENT_BELOW), lif, spikes)


def forward_kind(block: Block, given: Input, density: float) -> str:
    """How a block is computed: `sparse`, `bytes` or `floats`."""
    assert isinstance(block.synapse, Conv2d)
    of_bytes = conv2d_bytes.usable(block.synapse, block.synapse_shape, given.largest(block))
    order = "gather" if kernels.gathers(block.synapse) else "scatter"
    if density < FORWARD_BELOW[order, "bytes" if of_bytes else "floats"]:
        return "sparse"
    return "bytes" if of_bytes else "floats"


def forward_bytes(
    backend: Pairs[torch.Tensor], block: Block, given: Input, wq: torch.Tensor, filter: SynapticFilter, steps: int
) -> tuple[torch.Tensor, NeuronResiduals[torch.Tensor]]:
    """Spikes and residuals of a block by a convolution of bytes."""
    assert isinstance(block.synapse, Conv2d)
    z = conv2d_bytes.forward(block.synapse, given.doubled(), wq, 1 / given.size**2)
    return backend.neuron_forward(block.neuron, filter, z, steps)


def block_backward(
    backend: Pairs[torch.Tensor], trace: BlockTrace[torch.Tensor], ds: Error, precision: Precision, *, training: bool
) -> tuple[Error | None, torch.Tensor]:
    """`passes.block_backward` by these kernels where the forward pass chose them.

    The error may come and go with the adjoint of a pooling, or of a whole block's synapses, still to be taken.
    """
    block, residuals = trace.block, trace.synapse
    if isinstance(ds, DeferredError):
        ds = ds.taken(backend, trace.lif.kept["u"], block.neuron)
    if not isinstance(residuals, Residuals) or precision == "reproducible":
        if isinstance(ds, PooledError):
            ds = backend.avgpool2d_backward(ds.pool, ds.shape, ds.d)
        pairs = _by_pairs(backend, trace) if isinstance(residuals, Residuals) else trace
        below, dw = passes.synapse_backward(backend, pairs, ds, precision, training=training)
        trace.zeroed = pairs.zeroed
        if below is None or not block.before or not isinstance(block.before[0], AvgPool2d):
            return (None if below is None else passes.before_backward(backend, pairs, below)), dw
        below = passes.before_backward(backend, pairs, below, first=1)
        return PooledError(below, block.before[0], pairs.before[0]), dw
    given, conv = residuals.given, block.synapse
    assert isinstance(conv, Conv2d)
    need_input, filter = block.index > 0, block.filter(training=training)
    need_below = need_input and not may_defer(block)
    if residuals.sparse:
        dz, dw = backward(block, given, trace.lif, ds, filter, need_error=need_input, need_weights=True)
        below = DeferredError(block, given, residuals.wq, dz).dense() if need_below else None
    else:
        dz, _ = backward(block, given, trace.lif, ds, filter, need_error=True, need_weights=False)
        pairs = _by_pairs(backend, trace).synapse
        below, dw = conv2d.backward(conv, pairs, dz, precision=precision, need_input=need_below)
    if below is not None:
        return _below(backend, block, given, below), dw
    return (DeferredError(block, given, residuals.wq, dz) if need_input else None), dw


def _below(backend: Pairs[torch.Tensor], block: Block, given: Input, below: torch.Tensor) -> torch.Tensor | PooledError:
    """The error of the spikes below from that of the input of a block's synapses."""
    if given.mask is not None and given.masked == 2:
        below = backend.dropout(given.mask, below)
    pool = next((layer for layer in block.before if isinstance(layer, AvgPool2d)), None)
    if pool is None:
        kept: torch.Tensor = below if given.mask is None else backend.dropout(given.mask, below)
        return kept
    pooled = PooledError(below, pool, tuple(given.s.shape))
    if given.masked != 1:
        return pooled
    assert given.mask is not None
    kept = backend.dropout(given.mask, backend.avgpool2d_backward(pool, pooled.shape, below))
    return kept


def may_defer(block: Block) -> bool:
    """Whether the layer below may leave parts of its error unused, and the kernel for that knows the convolution."""
    return needed.support(block.neuron) is not None and block.output_shape[0] % LANES == 0


def known(block: Block) -> bool:
    """Whether the kernels know such a block."""
    pools = sum(isinstance(layer, AvgPool2d) for layer in block.before)
    return (
        type(block.synapse) is Conv2d
        and block.synapse.stride == 1
        and not block.static
        and not block.neuron.learned()
        and pools <= 1
        and len(block.before) - pools <= 1
    )


def given_input(backend: Pairs[torch.Tensor], block: Block, s: torch.Tensor, dropout: tuple[int, int] | None) -> Input:
    """What a block that is `known` takes from the spikes of the block below."""
    size, mask, masked, shape = 1, None, 0, block.input_shape
    for place, layer in enumerate(block.before):
        if isinstance(layer, AvgPool2d):
            size = layer.size
        elif dropout is not None and layer.rate > 0:
            stream = block.dropout_substream(place)
            mask = backend.dropout_mask(dropout[0], stream, dropout[1], (s.shape[1], *shape), layer.rate)
            masked = 1 if size == 1 else 2
        shape = layer.output_shape(shape)
    return Input(s, size, mask, masked)


def _by_pairs(backend: Pairs[torch.Tensor], trace: BlockTrace[torch.Tensor]) -> BlockTrace[torch.Tensor]:
    """The trace that the pairs would have left."""
    given, wq, _ = trace.synapse
    s, before = _floats(backend, trace.block, given)
    return replace(trace, before=before, synapse=conv2d.Residuals(s, wq))


def _floats(backend: Pairs[torch.Tensor], block: Block, given: Input) -> tuple[torch.Tensor, list[Any]]:
    """The input as the weights meet it, float32, and the residuals of pooling and dropout."""
    s, before = given.s, []
    for layer in block.before:
        residual: Any = None
        if isinstance(layer, AvgPool2d):
            s, residual = backend.avgpool2d_forward(layer, s)
        elif given.mask is not None:
            residual = given.mask
            s = backend.dropout(residual, s)
        before.append(residual)
    return laid_out(s.float()), before


def forward(
    block: Block, given: Input, wq: torch.Tensor, filter: SynapticFilter, steps: int
) -> tuple[torch.Tensor, NeuronResiduals[torch.Tensor]]:
    """Spikes and residuals of a block."""
    conv, equations = block.synapse, neuron_equations(filter, block.neuron)
    assert isinstance(conv, Conv2d)
    shape, device = (steps, given.s.shape[1], *block.output_shape), given.s.device
    kept = dict(zip(equations.kept, end_to_end(len(equations.kept), shape, device), strict=True))
    spikes = empty(shape, torch.uint8, device)
    beside = beside_u(kept)
    kernels.forward(conv, equations, given.arrays(), wq.numpy(), view(kept["u"]), view(spikes), beside)
    return spikes, NeuronResiduals(kept, spikes, static=False)


def backward(
    block: Block,
    given: Input,
    residuals: NeuronResiduals[torch.Tensor],
    ds: torch.Tensor | PooledError,
    filter: SynapticFilter,
    *,
    need_error: bool,
    need_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(dz, dW)` of a block from the error of its spikes; what is not needed is empty."""
    conv, equations, u = block.synapse, neuron_equations(filter, block.neuron), residuals.kept["u"]
    assert isinstance(conv, Conv2d)
    above, pooled = (ds.d, ds.pool.size) if isinstance(ds, PooledError) else (ds, 1)
    dz = empty(tuple(u.shape) if need_error else (0,) * 5, torch.float32, u.device)
    dw = kernels.backward(
        conv, equations, given.arrays(), view(u), beside_u(residuals.kept), view(above), pooled, view(dz),
        need_weights=need_weights,
    )  # fmt: skip
    return dz, torch.empty(0) if dw is None else torch.from_numpy(dw)


def _frames(x: torch.Tensor) -> AnyArray:
    """`[T, B, C, H, W]` as `[T B, H, W, C]`, without a copy."""
    frames = view(x)
    return frames.reshape(-1, *frames.shape[2:])
