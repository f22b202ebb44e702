"""A whole network as one differentiable function, for ordinary JAX code: `jit`, `grad`, `vmap`, `checkpoint`, optax.

The function is built from `custom_vjp` functions, whose derivatives are the spec's pairs. A network of another shape
can be built in the same way from the layer functions (`conv2d`, `linear`, `lif`, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from stsbp_spec.checks import check_precision, samples_first
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.graph import Projection
from stsbp_spec.grid import FLOOR
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.synapses import Conv2d, Linear
from stsbp_spec.typing import Precision
from stsbp_spec.values import listed

from stsbp_jax import grid
from stsbp_jax.checks import check_array, check_finite, checked_weights, dropout_words, on_grid
from stsbp_jax.segments import Piece, Settings, State, compute, fork, pieces
from stsbp_jax.synapses.conv2d import conv2d
from stsbp_jax.synapses.linear import linear

__all__ = ["Output", "apply", "clip_to_domain", "snap_weights"]

_SYNAPSES: dict[type, Callable[..., Array]] = {Conv2d: conv2d, Linear: linear}


def snap_weights(block: Block, w: ArrayLike) -> Array:
    """Round weights to their grid, on which sums are exact. The gradient passes unchanged (straight through).

    Inside a jit, no error can be raised. If a weight is not finite, or if no grid meets the bound, all weights of the
    layer become NaN.

    Args:
        block: one of `network.blocks`.
        w: master weights, `block.weight_shape`, float32.

    Raises:
        ShapeError: the weights have another shape, or are not floating-point numbers.
        NumericError: outside of a jit, a weight is not finite, or too large.
    """
    checked = checked_weights(w, block.name, block.weight_shape)
    _check_grid(block, w)
    return _snap(block, checked)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _snap(block: Block, w: Array) -> Array:
    return grid.weight_grid(block, w)[0]


_snap.defvjp(lambda block, w: (_snap(block, w), None), lambda block, _, dw: (dw,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def snap_errors(bits: int, z: Array) -> Array:
    """The identity. Its error signal is rounded to the error grid of `reproducible` precision."""
    return z


snap_errors.defvjp(lambda bits, z: (z, None), lambda bits, _, dz: (grid.error_grid(dz, bits)[0],))


def clip_to_domain(network: NetworkSpec, weights: Mapping[str, Array]) -> dict[str, Array]:
    """`weights`, with the learned parameters of neurons clipped to their domains, as in the spec's update."""
    clipped = dict(weights)
    for name, parameter in network.parameters.items():
        if (own := parameter.learned) is not None:
            x = jnp.where(jnp.abs(weights[name]) < FLOOR, np.float32(0), weights[name])
            clipped[name] = jnp.clip(x, np.float32(own.low), np.float32(own.high))
    return clipped


class Output(NamedTuple):
    """The full output of `apply`.

    Attributes:
        spikes: spikes of the last layer, float32 `[T, B, N]`.
        potentials: membrane potentials of each population by the names of the network, `[T, B, ...]`; losses may use
            them.
        state: the state for the next call. No gradient flows back through it.
        statistics: running statistics of batch normalisation after the batch in training; empty otherwise.
        layer_spikes: spikes of each population by the same names as the potentials, float32 `[T, B, ...]`; a readout
            has none.
    """

    spikes: Array
    potentials: dict[str, Array]
    state: State
    statistics: dict[str, Array]
    layer_spikes: dict[str, Array]


def apply(
    network: NetworkSpec,
    weights: Mapping[str, ArrayLike],
    inputs: ArrayLike,
    steps: int,
    *,
    dropout: tuple[ArrayLike, ArrayLike] | None = None,
    precision: Precision = "fast",
    state: State | None = None,
    full: bool = False,
) -> Any:
    """Output spikes of a network; differentiable in `weights`, and in `inputs` if they are float32.

    Args:
        network: the network (static under `jit`).
        weights: master weights and learned parameters of neurons by name, float32, as in `network.parameters`. `apply`
            rounds weights to their grids. Call `clip_to_domain` after each update.
        inputs: events `[T, B, C, H, W]` or `[T, B, N]`, or with direct coding one image for all steps, `[B, C, H, W]`
            or `[B, N]`. Events are integers of any type from 0 to `network.input_max`. Images are uint8 of value
            `x / 256`, or other types with multiples of 1/256 from 0 to 255/256.
        steps: number of steps, `T`.
        dropout: `(seed, step)` of the dropout masks, numbers or uint32 scalars; None: evaluation.
        precision: precision of the backward pass.
        state: state after the previous steps, from the `Output` of a call; None: the network starts at rest.
        full: True returns an `Output` with potentials and spikes of every population, the state and running
            statistics.

    Returns:
        Spikes, float32 `[T, B, N]`, or an `Output`. Inside a jit, no error can be raised. The spikes are then NaN if an
        input or the weights would raise an error outside of a jit.

    Raises:
        ShapeError: an input is not on its grid, or the inputs do not fit the network and `steps`; or weights are
            missing, have another shape, or are not floating-point numbers.
        SpecError: the precision is unknown; the seed or step of `dropout` is not an integer in `[0, 2**32)`; or `full`
            is False although the network ends with a readout, or although the network has batch normalisation and is
            in training.
        NumericError: an input, a weight or a value of the state is not finite, a weight is too large, or a learned
            parameter is outside its domain.
    """
    check_precision(network, precision)
    if network.has_readout and not full:
        raise SpecError(
            f"the network {network} ends with a readout, which has no spikes; call apply with "
            f"full=True and use the potentials of {network.blocks[-1].name}"
        )
    if network.graph.normalised and dropout is not None and not full:
        raise SpecError(
            "training changes the running statistics of batch normalisation; call apply with "
            "full=True and keep `{**weights, **output.statistics}`"
        )
    check_array("the input of apply", inputs)
    events = network.coding == "events"
    shape, lead = np.shape(inputs), 2 if events else 1
    if shape[lead:] != network.input_shape or 0 in shape or steps < 1:
        letters = "[T, B, ...]" if events else "[B, ...]"
        raise ShapeError(f"inputs must be {letters} without empty axes, ... = {network.input_shape}, got {shape}")
    if events and shape[0] != steps:
        raise ShapeError(f"inputs have {shape[0]} steps, expected {steps}{samples_first(shape, steps)}")
    graph = network.graph
    entering = graph.values[graph.nodes[0].name]
    if events:
        s = on_grid("apply", inputs, 0, entering.maximum)
    elif jnp.result_type(inputs) == np.uint8:
        s = jnp.asarray(inputs)[None].astype(np.float32) * np.float32(2.0**-8)
    else:
        s = on_grid("apply", inputs, 8, entering.maximum)[None]
    x = jnp.moveaxis(s, 2, -1) if s.ndim == 5 else s
    walk = pieces(graph)
    reads = [name for piece in walk for name in piece.reads]
    values = {graph.nodes[0].name: iter(fork(reads.count(graph.nodes[0].name), x))}
    seed, step = dropout_words(dropout)
    settings = Settings(steps, dropout is not None, precision, full or state is not None)
    names = {block.population: block.name for block in network.blocks}
    arrays = _arrays(network, weights)
    output = Output(x, {}, {}, {}, {})
    readout = graph.nodes[-1].name if network.has_readout else ""
    for piece in walk:
        own = {name: arrays[name] for name in piece.parameters}
        read = tuple(next(values[name]) for name in piece.reads)
        made = compute(piece, settings, read, own, (seed, step), _checked(piece, state, read[0].shape[1]))
        values |= {name: iter(copies) for name, copies in made.outputs.items()}
        fired = {name: copies[0] for name, copies in made.outputs.items() if name in names and name != readout}
        output.layer_spikes.update({names[name]: _channels_first(s) for name, s in fired.items()})
        output.potentials.update({names[name]: _channels_first(u) for name, u in made.potentials.items()})
        output.state.update(made.state)
        output.statistics.update(made.statistics)
    spikes = next(values[graph.nodes[-1].name])
    return output._replace(spikes=spikes) if full else spikes


def _arrays(network: NetworkSpec, weights: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """All weights, learned parameters and running statistics of the network, checked, float32. Shared weights are there
    once for each use."""
    shapes = {name: parameter.shape for name, parameter in network.parameters.items()}
    shapes |= {name: x.shape for name, x in network.statistics.items()}
    if missing := [name for name in shapes if name not in weights]:
        raise ShapeError(f"weights must have the layers {listed(shapes)}, but they lack {listed(missing)}")
    found = {name: checked_weights(weights[name], name, shape) for name, shape in shapes.items()}
    for projection in network.graph.projections:
        _check_grid(projection, weights[projection.parameter])
    uses = [projection.parameter for projection in network.graph.projections]
    copies = {name: iter(fork(uses.count(name), found[name])) for name in uses}
    return found | {projection.name: next(copies[projection.parameter]) for projection in network.graph.projections}


def _check_grid(projection: Projection, w: ArrayLike) -> None:
    if not isinstance(w, jax.core.Tracer):
        grid.grid_of_spec(projection, w)


def _channels_first(x: Array) -> Array:
    """`[T, B, H, W, C]` as `[T, B, C, H, W]`; other arrays unchanged."""
    return jnp.moveaxis(x, -1, 2) if x.ndim == 5 else x


def _checked(piece: Piece, state: State | None, batch: int) -> State:
    """The part of a state that belongs to a segment; empty for None."""
    if state is None:
        return {}
    for name, (count, steps, shape) in piece.states.items():
        if name not in state:
            raise ShapeError(f"the state does not contain {name}; it belongs to another network")
        found, wanted = [np.shape(x) for x in state[name]], [(steps, batch, *shape)] * count
        if found != wanted:
            raise ShapeError(
                f"the arrays of {name} in the state have the shapes {found}, not {wanted}; the state belongs to "
                "another network or batch"
            )
        for x in state[name]:
            check_finite(f"the state of {name}", x)
    return {name: tuple(jnp.asarray(x) for x in state[name]) for name in piece.states}
