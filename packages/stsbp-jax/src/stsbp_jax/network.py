"""A whole network as one differentiable function, for ordinary JAX code: `jit`, `grad`, `vmap`, `checkpoint`, optax.

The function is built from `custom_vjp` functions, whose derivatives are the spec's pairs. A network of another shape
can be built in the same way from the layer functions (`conv2d`, `linear`, `lif`, ...).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.engine.checks import check_precision, other_axes, samples_first
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.networks.graph import Network, Projection
from stsbp_spec.networks.spec import Block, NetworkSpec
from stsbp_spec.typing import Coding, Precision
from stsbp_spec.validation import integer, listed, shown

from stsbp_jax.backend import OPERATIONS
from stsbp_jax.contract import grid
from stsbp_jax.engine.checks import (
    as_array,
    check_array,
    check_finite,
    checked_weights,
    dropout_words,
    in_domain,
    on_grid,
    running_statistic,
)
from stsbp_jax.engine.compiling import as_one, pair
from stsbp_jax.engine.segments import JaxSegmentSettings, State, compute, fork, network_segments

__all__ = ["Output", "apply", "clip_to_domain", "snap_weights"]


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
    snapped: Array = _snap(block, checked)
    return snapped


_snap = pair(1, lambda block, w: (OPERATIONS.choose_grid(block, w)[0], None), lambda block, _, dw: (dw,))


def clip_to_domain(network: NetworkSpec, weights: Mapping[str, Array]) -> dict[str, Array]:
    """`weights`, with the learned parameters of neurons clipped to their domains, as in the spec's update."""
    clipped = dict(weights)
    for name, parameter in network.parameters.items():
        if (domain := parameter.learned) is not None:
            clipped[name] = _clip(domain.low, domain.high, weights[name])
    return clipped


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _clip(low: float, high: float, x: Array) -> Array:
    return jnp.clip(jnp.where(jnp.abs(x) < FLOOR, np.float32(0), x), np.float32(low), np.float32(high))


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
            parameter or, in evaluation, a running statistic is outside its domain.
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
    if (number := integer(steps)) is None:
        raise ShapeError(f"steps must be a whole number, got {shown(steps)}")
    steps = number
    events = network.coding == "events"
    shape, lead = np.shape(inputs), 2 if events else 1
    if shape[lead:] != network.input_shape or 0 in shape or steps < 1:
        letters = "[T, B, ...]" if events else "[B, ...]"
        raise ShapeError(
            f"inputs must be {letters} without empty axes, ... = {network.input_shape}, got {shape}"
            f"{other_axes(network, shape)}"
        )
    if events and shape[0] != steps:
        raise ShapeError(f"inputs have {shape[0]} steps, expected {steps}{samples_first(shape, steps)}")
    graph = network.graph
    entering = graph.values[graph.nodes[0].name]
    if events:
        s = on_grid("apply", inputs, 0, entering.maximum)
    elif jnp.result_type(inputs) == np.uint8:
        s = as_array(inputs)
    else:
        s = on_grid("apply", inputs, 8, entering.maximum)
    words = dropout_words(dropout)
    arrays = _checked_arrays(network, weights, training=dropout is not None)
    initial_state = _checked_state(graph, state, shape[lead - 1])
    settings = JaxSegmentSettings(steps, dropout is not None, precision, full or state is not None)
    output: Any = _output(network, settings, full, s, arrays, words, initial_state)
    if not full:
        return output.spikes
    spikes, *by_name = output
    return Output(spikes, *(dict(x) for x in by_name))


@as_one(3)
def _output(
    network: NetworkSpec,
    settings: JaxSegmentSettings,
    full: bool,
    s: Array,
    weights: dict[str, Array],
    words: tuple[Array, Array],
    state: State,
) -> Output:
    """The output of `apply`, with nothing but spikes if `full` is False."""
    graph = network.graph
    x = _channels_last(network.coding, s)
    walk = network_segments(graph)
    reads = [name for jax_segment in walk for name in jax_segment.reads]
    values = {graph.nodes[0].name: iter(fork(reads.count(graph.nodes[0].name), x))}
    names = {block.population: block.name for block in network.blocks}
    arrays = _by_use(network, weights)
    # A program returns dictionaries in the order of their names, but ordered ones as they are.
    output = Output(x, OrderedDict(), OrderedDict(), OrderedDict(), OrderedDict())
    readout = graph.nodes[-1].name if network.has_readout else ""
    for jax_segment in walk:
        segment_arrays = {name: arrays[name] for name in jax_segment.parameters}
        segment_inputs = tuple(next(values[name]) for name in jax_segment.reads)
        segment_state = {name: state[name] for name in jax_segment.states if state}
        results = compute(jax_segment, settings, segment_inputs, segment_arrays, words, segment_state)
        values |= {name: iter(copies) for name, copies in results.outputs.items()}
        if full:
            fired = {name: copies[0] for name, copies in results.outputs.items() if name in names and name != readout}
            output.layer_spikes.update({names[name]: _channels_first(s) for name, s in fired.items()})
            output.potentials.update({names[name]: _channels_first(u) for name, u in results.potentials.items()})
            output.state.update(results.state)
            output.statistics.update(results.statistics)
    return output._replace(spikes=next(values[graph.nodes[-1].name]))


@as_one(1)
def _channels_last(coding: Coding, s: Array) -> Array:
    """Inputs of `apply` as float32, `[1 or T, B, ...]`, channels last."""
    x = s.astype(np.float32)
    if coding != "events":
        x = (x * np.float32(2.0**-8) if s.dtype == np.uint8 else x)[None]
    return jnp.moveaxis(x, 2, -1) if x.ndim == 5 else x


def _checked_arrays(network: NetworkSpec, weights: Mapping[str, ArrayLike], *, training: bool) -> dict[str, Array]:
    """All weights, learned parameters and running statistics of the network, float32."""
    shapes = {name: parameter.shape for name, parameter in network.parameters.items()}
    shapes |= {name: x.shape for name, x in network.statistics.items()}
    if not isinstance(weights, Mapping):
        raise ShapeError(f"weights must be a dict of arrays by name, got {type(weights).__name__}")
    if missing := [name for name in shapes if name not in weights]:
        raise ShapeError(f"weights must have the layers {listed(shapes)}, but they lack {listed(missing)}")
    checked = {name: checked_weights(weights[name], name, shape) for name, shape in shapes.items()}
    for projection in network.graph.projections:
        _check_grid(projection, weights[projection.parameter])
    for name, parameter in network.parameters.items():
        # Those of a tracer become NaN in the segment.
        if (domain := parameter.learned) is not None and not isinstance(weights[name], jax.core.Tracer):
            in_domain(name, checked[name], domain.low, domain.high)
    # In training, batches are normalised by their own statistics.
    for name in () if training else network.statistics:
        if not isinstance(weights[name], jax.core.Tracer):
            running_statistic(name, checked[name])
    return checked


def _by_use(network: NetworkSpec, arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays of the network, with shared weights once for each use."""
    uses = [projection.parameter for projection in network.graph.projections]
    copies = {name: iter(fork(uses.count(name), arrays[name])) for name in uses}
    return arrays | {projection.name: next(copies[projection.parameter]) for projection in network.graph.projections}


def _check_grid(projection: Projection, w: ArrayLike) -> None:
    if not isinstance(w, jax.core.Tracer):
        grid.grid_of_spec(projection, w)


def _channels_first(x: Array) -> Array:
    """`[T, B, H, W, C]` as `[T, B, C, H, W]`; other arrays unchanged."""
    return jnp.moveaxis(x, -1, 2) if x.ndim == 5 else x


def _checked_state(graph: Network, state: State | None, batch: int) -> State:
    """A state of the network; empty for None."""
    checked: State = {}
    if state is None:
        return checked
    expected_of = {name: x for jax_segment in network_segments(graph) for name, x in jax_segment.states.items()}
    for name, (count, steps, shape) in expected_of.items():
        if name not in state:
            raise ShapeError(f"the state does not contain {name}; it belongs to another network")
        shapes, expected = [np.shape(x) for x in state[name]], [(steps, batch, *shape)] * count
        if shapes != expected:
            raise ShapeError(
                f"the arrays of {name} in the state have the shapes {shapes}, not {expected}; the state belongs to "
                "another network or batch"
            )
        for x in state[name]:
            check_finite(f"the state of {name}", x)
        checked[name] = tuple(as_array(x) for x in state[name])
    return checked
