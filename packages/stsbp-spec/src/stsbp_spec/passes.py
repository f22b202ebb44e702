"""The walk through a network, forward and backward, once for every backend (the pseudo-code's two pipelines).

Forward (lines 1-9): for each block pool and drop the spikes of the layer below, meet the weights, filter and fire.
Backward (lines 11-31): the same blocks from the last to the first; each pair's adjoint in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.pairs import BlockTrace, Pairs
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.typing import Array, Memory, Precision

__all__ = [
    "FORWARD_PASSES",
    "BlockTrace",
    "LeanTrace",
    "backward_pass",
    "before_backward",
    "block_backward",
    "block_forward",
    "forward_pass",
    "lean_forward_pass",
    "synapse_backward",
]


@dataclass
class LeanTrace(Generic[Array]):
    """The same in little memory: the spikes as bits, and how to run the block again."""

    block: Block
    unpack: Callable[[], Array]
    again: Callable[[], BlockTrace[Array]]
    zeroed: Array | None = None

    @property
    def spikes(self) -> Array:
        """Spikes of the block."""
        return self.unpack()


def forward_pass(
    backend: Pairs[Array],
    network: NetworkSpec,
    wq: dict[str, Array],
    x: Array,
    steps: int,
    dropout: tuple[int, int] | None,
) -> list[BlockTrace[Array]]:
    """Run the network on encoded inputs.

    Args:
        backend: computes the pairs.
        network: the network.
        wq: weights on their grid, by name.
        x: encoded inputs, `[1 or T, B, ...]` (`Pairs.encode`).
        steps: `T`.
        dropout: `(seed, step)` of the masks; None: no dropout.

    Returns:
        The trace of each block; the last one's `spikes` are the output.
    """
    traces: list[BlockTrace[Array]] = []
    for block in network.blocks:
        traces.append(backend.block_forward(block, traces[-1].spikes if traces else x, wq[block.name], steps, dropout))
    return traces


def lean_forward_pass(
    backend: Pairs[Array],
    network: NetworkSpec,
    wq: dict[str, Array],
    x: Array,
    steps: int,
    dropout: tuple[int, int] | None,
) -> list[LeanTrace[Array]]:
    """`forward_pass` that keeps one bit a spike; the backward pass runs each block again when it comes to it."""
    traces: list[LeanTrace[Array]] = []
    s, unpack = x, lambda: x
    for block in network.blocks:

        def again(block: Block = block, below: Callable[[], Array] = unpack) -> BlockTrace[Array]:
            return backend.block_forward(block, below(), wq[block.name], steps, dropout)

        s = backend.block_forward(block, s, wq[block.name], steps, dropout).spikes
        unpack = partial(backend.unpack_spikes, backend.pack_spikes(s))
        traces.append(LeanTrace(block, unpack, again))
    return traces


FORWARD_PASSES: Mapping[Memory, Callable[..., list[Any]]] = {"full": forward_pass, "low": lean_forward_pass}
"""The forward pass of each way to use memory."""


def backward_pass(
    backend: Pairs[Array],
    traces: Sequence[BlockTrace[Array] | LeanTrace[Array]],
    ds: Array,
    precision: Precision,
    *,
    training: bool,
) -> dict[str, Array]:
    """Gradients of every block's weights from `dL/do` of the output, `[T, B, N]`.

    The gradient passes the weight grid unchanged (straight through). Of a trace only the spikes and what the error grid
    zeroed are left afterwards, so that the blocks below have its memory.
    """
    gradients: dict[str, Array] = {}
    below: Array | None = ds
    for kept in reversed(traces):
        assert below is not None  # of the first block alone
        trace = kept.again() if isinstance(kept, LeanTrace) else kept
        below, gradients[trace.block.name] = backend.block_backward(trace, below, precision, training=training)
        trace.before, trace.synapse, trace.lif, kept.zeroed = [], None, None, trace.zeroed
        del trace  # before the next block is run again
    return gradients


def block_forward(
    backend: Pairs[Array], block: Block, s: Array, wq: Array, steps: int, dropout: tuple[int, int] | None
) -> BlockTrace[Array]:
    """One block of `forward_pass` by the backend's pairs, on the spikes `s` of the block below, `[1 or T, B, ...]`."""
    before: list[Any] = []
    shape = block.input_shape
    for place, layer in enumerate(block.before):
        residual: Any = None
        if isinstance(layer, AvgPool2d):
            s, residual = backend.avgpool2d_forward(layer, s)
        elif dropout is not None and layer.rate > 0:
            seed, step = dropout
            stream = block.dropout_substream(place)
            residual = backend.dropout_mask(seed, stream, step, (s.shape[1], *shape), layer.rate)
            s = backend.dropout(residual, s)
        before.append(residual)
        shape = layer.output_shape(shape)
    z, synapse = backend.synapse_forward(block.synapse, s, wq)
    spikes, lif = backend.neuron_forward(block.neuron, block.filter(training=dropout is not None), z, steps)
    return BlockTrace(block, before, synapse, lif, spikes)


def block_backward(
    backend: Pairs[Array], trace: BlockTrace[Array], ds: Array, precision: Precision, *, training: bool
) -> tuple[Array | None, Array]:
    """One block of `backward_pass` by the backend's pairs: `(error of s, gradient of the weights)`.

    The first block has no error of `s`: None.
    """
    below, gradient = synapse_backward(backend, trace, ds, precision, training=training)
    return (None if below is None else before_backward(backend, trace, below)), gradient


def synapse_backward(
    backend: Pairs[Array], trace: BlockTrace[Array], ds: Array, precision: Precision, *, training: bool
) -> tuple[Array | None, Array]:
    """`block_backward` through neurons and weights: the error after pooling and dropout."""
    block = trace.block
    dz, _ = backend.neuron_backward(block.neuron, block.filter(training=training), trace.lif, ds)
    if precision == "reproducible":
        dz, trace.zeroed = backend.error_grid(dz, block.error_bits(frames=dz.shape[0] * dz.shape[1]))
    return backend.synapse_backward(block.synapse, trace.synapse, dz, precision=precision, need_input=block.index > 0)


def before_backward(backend: Pairs[Array], trace: BlockTrace[Array], below: Array, first: int = 0) -> Array:
    """The rest of `block_backward`: through pooling and dropout, down to layer `first` of them."""
    layers = list(zip(trace.block.before, trace.before, strict=True))[first:]
    for layer, residual in reversed(layers):
        if isinstance(layer, AvgPool2d):
            below = backend.avgpool2d_backward(layer, residual, below)
        elif residual is not None:
            below = backend.dropout(residual, below)
    return below
