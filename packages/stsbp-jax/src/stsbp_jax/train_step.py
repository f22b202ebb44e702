"""One jitted function a training step: weight grids, encoding, forward, loss error, backward, update.

The passes of the spec walk through the operations of pairs.py, inside the jit and channels-last. What the loop needs to
know (is the gradient finite, which grid fitted) comes back as values and is checked on the host, so nothing in the
middle waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.losses import Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.optim.adamw import AdamW, AdamWScalars
from stsbp_spec.passes import FORWARD_PASSES, backward_pass
from stsbp_spec.typing import Coding, Float32, Memory, Precision

from stsbp_jax.grid import GridChoice, weight_grid
from stsbp_jax.optim.adamw import clip_factor, gradient_norm
from stsbp_jax.pairs import PAIRS

__all__ = ["Compiled", "Forward", "Gradients", "Step", "backward", "encode", "forward", "scalars", "step"]

_log = logging.getLogger("stsbp_jax")

Weights = dict[str, Array]


def channels_last(x: Array) -> Array:
    """`[..., C, H, W]` as `[..., H, W, C]`, for arrays of five axes; others as they are."""
    return jnp.moveaxis(x, 2, -1) if x.ndim == 5 else x


def channels_first(x: Array) -> Array:
    """Inverse of `channels_last`."""
    return jnp.moveaxis(x, -1, 2) if x.ndim == 5 else x


def encode(inputs: Array, coding: Coding) -> Array:
    """Inputs as they meet the weights, channels-last: uint8 frames, or images `x / 256` with one step."""
    if coding == "events":
        return channels_last(inputs)
    return channels_last(inputs[None].astype(np.float32) * np.float32(2.0**-8))


class Forward(NamedTuple):
    """Result of a forward pass: spikes of each layer, potentials and grids, channels-last, by layer name."""

    traces: list[Any]
    grids: dict[str, GridChoice]

    @property
    def spikes(self) -> Array:
        """Output spikes, float32 `[T, B, N]`."""
        output: Array = self.traces[-1].spikes
        return output

    @property
    def counts(self) -> dict[str, Array]:
        """Spikes of each layer in each sample, int32 `[B]`; summed over time first, which vectorises."""
        return {
            t.block.name: t.spikes.astype(np.int32).sum(0, dtype=np.int32).reshape(t.spikes.shape[1], -1).sum(1)
            for t in self.traces
        }


def forward(
    network: NetworkSpec,
    weights: Weights,
    inputs: Array,
    steps: int,
    dropout: tuple[Array, Array] | None,
    memory: Memory = "full",
) -> Forward:
    """Lines 1-9 of the algorithm: weights to their grid, inputs encoded, layer by layer."""
    wq, grids = {}, {}
    for block in network.blocks:
        wq[block.name], grids[block.name] = weight_grid(block, weights[block.name])
    x = encode(inputs, network.coding)
    # The seed and the step of the masks are traced numbers here; the pass hands them to `dropout_mask` only.
    return Forward(FORWARD_PASSES[memory](PAIRS, network, wq, x, steps, dropout), grids)


class Gradients(NamedTuple):
    """Gradient of each layer's weights, whether it is finite, the global norm, float64, and what was zeroed."""

    values: Weights
    finite: dict[str, Array]
    norm: Array
    zeroed: dict[str, Array]


def backward(
    network: NetworkSpec, loss: Loss, result: Forward, targets: Array, precision: Precision, *, training: bool
) -> Gradients:
    """Lines 10-31: error of the output, then the layers from the last to the first."""
    error = PAIRS.loss_error(loss, network.output_psp, result.spikes, targets)
    values = backward_pass(PAIRS, result.traces, error, precision, training=training)
    finite = {name: jnp.isfinite(g).all() for name, g in values.items()}
    zeroed = {t.block.name: t.zeroed for t in result.traces if t.zeroed is not None}
    return Gradients(values, finite, gradient_norm(list(values.values())), zeroed)


class Step(NamedTuple):
    """Result of one training step, before the host has looked at it."""

    weights: Weights
    m: Weights
    v: Weights
    spikes: Array
    counts: dict[str, Array]
    grids: dict[str, GridChoice]
    finite: dict[str, Array]
    norm: Array
    zeroed: dict[str, Array]


SCALARS = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "c1", "c2", "eps", "decay", "rate")


def scalars(optimizer: AdamW, step: int) -> Float32:
    """The update's constants except the clipping factor, `[9]`: arguments of the jit, so no step compiles again."""
    constants = optimizer.scalars(step, np.float32(1))
    return np.array([getattr(constants, name) for name in SCALARS], np.float32)


def step(
    network: NetworkSpec,
    loss: Loss,
    precision: Precision,
    clip_norm: float | None,
    memory: Memory,
    weights: Weights,
    m: Weights,
    v: Weights,
    inputs: Array,
    targets: Array,
    dropout: tuple[Array, Array],
    constants: Array,
) -> Step:
    """One update on a batch; everything before `weights` is fixed when it is compiled."""
    result = forward(network, weights, inputs, targets.shape[0], dropout, memory)
    gradients = backward(network, loss, result, targets, precision, training=True)
    clip = clip_factor(gradients.norm, clip_norm)
    c = AdamWScalars(clip=cast(Any, clip), **{name: cast(Any, constants[i]) for i, name in enumerate(SCALARS)})
    updated = {n: PAIRS.adamw(c, weights[n], g, m[n], v[n]) for n, g in gradients.values.items()}
    new_weights, new_m, new_v = ({n: parts[i] for n, parts in updated.items()} for i in range(3))
    spikes = result.spikes.astype(np.uint8)
    found = gradients.finite, gradients.norm, gradients.zeroed
    return Step(new_weights, new_m, new_v, spikes, result.counts, result.grids, *found)


class Compiled:
    """A jitted function that compiles once for each set of shapes and keeps account of the time.

    Args:
        function: traced with the arguments of a call.
        what: its name in the log.
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self._jit = jax.jit(function)
        self._what = what
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    @property
    def programs(self) -> int:
        """How many sets of shapes were compiled."""
        return len(self._programs)

    def __call__(self, *args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        if shapes not in self._programs:
            start = time.perf_counter()
            self._programs[shapes] = self._jit.lower(*args).compile()
            seconds = time.perf_counter() - start
            self.seconds += seconds
            _log.info("compiled the %s in %.1f s", self._what, seconds)
        return self._programs[shapes](*args)
