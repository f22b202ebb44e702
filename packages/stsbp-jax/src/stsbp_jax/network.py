"""A whole network as one differentiable function, for ordinary JAX code: `jit`, `grad`, `vmap`, `checkpoint`, optax.

Built from the layers' own `custom_vjp` functions (`conv2d`, `linear`, `lif`, ...), whose derivatives are the
spec's pairs; a network of another shape is built from the same functions in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from stsbp_spec.checks import check_precision, check_spikes
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.grid import FLOOR
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.synapses import AvgPool2d, Conv2d, Linear
from stsbp_spec.tables import implementation
from stsbp_spec.typing import Precision

from stsbp_jax import grid
from stsbp_jax.checks import on_grid
from stsbp_jax.neurons.lif import lif
from stsbp_jax.synapses import dropout as masks
from stsbp_jax.synapses.avgpool2d import avgpool2d
from stsbp_jax.synapses.conv2d import conv2d
from stsbp_jax.synapses.linear import linear

__all__ = ["apply", "clip_to_domain", "snap_weights"]

_SYNAPSES: dict[type, Callable[..., Array]] = {Conv2d: conv2d, Linear: linear}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def snap_weights(block: Block, w: Array) -> Array:
    """Weights rounded to their grid, on which sums are exact; the gradient passes unchanged (straight through).

    Inside a jit nothing can be raised: where a weight is not finite, or no grid meets the bound, all of the layer's
    weights become NaN. Outside, `stsbp_spec.grid.weight_grid` says which.

    Args:
        block: one of `network.blocks`.
        w: master weights, `block.weight_shape`, float32.
    """
    return grid.weight_grid(block, w)[0]


snap_weights.defvjp(lambda block, w: (snap_weights(block, w), None), lambda block, _, dw: (dw,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def snap_errors(bits: int, z: Array) -> Array:
    """The identity; its error signal is rounded to the error grid of `reproducible` precision."""
    return z


snap_errors.defvjp(lambda bits, z: (z, None), lambda bits, _, dz: (grid.error_grid(dz, bits)[0],))


def clip_to_domain(network: NetworkSpec, weights: Mapping[str, Array]) -> dict[str, Array]:
    """`weights` with what neurons learn brought back between the ends of its domain, as the spec's update does."""
    clipped = dict(weights)
    for name, parameter in network.parameters.items():
        if (own := parameter.learned) is not None:
            x = jnp.where(jnp.abs(weights[name]) < FLOOR, np.float32(0), weights[name])
            clipped[name] = jnp.clip(x, np.float32(own.low), np.float32(own.high))
    return clipped


def apply(
    network: NetworkSpec,
    weights: Mapping[str, ArrayLike],
    inputs: ArrayLike,
    steps: int,
    *,
    dropout: tuple[ArrayLike, ArrayLike] | None = None,
    precision: Precision = "fast",
) -> Array:
    """Output spikes of a network; differentiable in `weights`, and in `inputs` where they are float32.

    Args:
        network: the network (static under `jit`).
        weights: master weights and what neurons learned by name, float32, `network.parameters`; weights are rounded to
            their grids here. Call `clip_to_domain` after each update.
        inputs: events `[T, B, C, H, W]` or `[T, B, N]`; direct coding: one image for all steps, `[B, C, H, W]` or
            `[B, N]`, uint8 of value `x / 256`. Events, of any number type, are whole numbers from 0 to
            `network.input_max`; images that are not uint8 are taken as they are, multiples of 1/256 from 0 to 255/256.
        steps: `T`.
        dropout: `(seed, step)` of the masks, numbers or uint32 scalars; None: evaluation.
        precision: of the backward pass.

    Returns:
        Spikes, float32 `[T, B, N]`. Inside a jit nothing can be raised: inputs that are refused outside, and weights
        for which no grid fits, make them NaN.

    Raises:
        ShapeError: an input lies off its grid, or the inputs do not fit the network and `steps`.
        SpecError: there is no such precision, a layer is normalised over batches, or the last one is a readout.
        NumericError: an input is not finite.
    """
    check_precision(network, precision)
    check_spikes(network, "apply")
    if network.graph.normalised:
        raise SpecError(
            "apply has no batch normalisation, whose statistics a training step moves; train such a network with "
            "JaxBackend().trainer(...), and run it with JaxBackend().run(...)"
        )
    events = network.coding == "events"
    shape, lead = np.shape(inputs), 2 if events else 1
    if shape[lead:] != network.input_shape or 0 in shape or steps < 1:
        letters = "[T, B, ...]" if events else "[B, ...]"
        raise ShapeError(f"inputs must be {letters} without empty axes, ... = {network.input_shape}, got {shape}")
    if events and shape[0] != steps:
        raise ShapeError(f"inputs have {shape[0]} steps, expected {steps}")
    first = network.blocks[0]
    if events:
        s = on_grid("apply", inputs, 0, first.input.maximum)
    elif jnp.result_type(inputs) == np.uint8:
        s = jnp.asarray(inputs)[None].astype(np.float32) * np.float32(2.0**-8)
    else:
        s = on_grid("apply", inputs, 8, first.input.maximum)[None]
    s = jnp.moveaxis(s, 2, -1) if s.ndim == 5 else s
    for block in network.blocks:
        shape = block.input_shape
        for place, layer in enumerate(block.before):
            if isinstance(layer, AvgPool2d):
                s = avgpool2d(layer, s)
            elif dropout is not None and layer.rate > 0:
                seed, step = (jnp.asarray(x, np.uint32) for x in dropout)
                keep = masks.mask(seed, block.dropout_substream(place), step, (s.shape[1], *shape), layer.rate)
                s = masks.forward(keep, s)
            shape = layer.output_shape(shape)
        connect = implementation("jax", _SYNAPSES, block.synapse, "synapse")
        z = connect(block.synapse, s, snap_weights(block, jnp.asarray(weights[block.name])), precision)
        if precision == "reproducible":
            z = snap_errors(block.error_bits(frames=z.shape[0] * z.shape[1]), z)
        learned = {name: jnp.asarray(weights[f"{block.name}.{name}"]) for name in block.learned}
        filter = block.filter(training=dropout is not None)
        s = lif(block.neuron, filter, z, steps, learned, precision=precision)
    return s
