"""Reads the nodes of a NIR graph one by one: the meaning of their parameters in stsbp, or why they cannot be read.

With `dt` seconds per step and the input `s`, a `CubaLIF` is read as

    i = (1 - dt/tau_syn) i + (w_in dt/tau_syn) s
    v = (1 - dt/tau_mem) v + (r dt/tau_mem) i,    a spike if v >= v_threshold

and a `LIF` without the first line. The factors of `s` and `i` are included in the weights before them. So are
thresholds that differ between neurons: a potential that rests at 0 and is reset to 0 may be measured in units of the
threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import numpy as np
from stsbp_spec.errors import SpecError
from stsbp_spec.models.neurons import IF, LIF, PLIF, NeuronModel, Readout
from stsbp_spec.models.surrogates import Surrogate
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Linear
from stsbp_spec.networks.ops.base import MAX_DELAY
from stsbp_spec.typing import AnyArray, Float64
from stsbp_spec.validation import MAX_SIZE, shown

from stsbp.errors import DataError
from stsbp.interop.nir_reader import GraphNode, NirGraph

__all__ = [
    "KINDS",
    "LARGEST_DELAYS",
    "NEAR",
    "NEURONS",
    "POOLS",
    "WEIGHTS",
    "Choices",
    "Factor",
    "NeuronParameters",
    "WeightParameters",
    "diagonal",
    "fail",
    "is_one",
    "numbers",
    "one_of_them",
    "read_delays",
    "read_largest_delays",
    "read_neurons",
    "read_node",
    "read_pool",
    "read_scale",
    "read_weights",
]

NEURONS = ("LIF", "CubaLIF", "IF", "Threshold", "LI", "CubaLI", "I")
WEIGHTS = ("Linear", "Affine", "Conv1d", "Conv2d")
POOLS = ("AvgPool2d", "SumPool2d")
KINDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        kind: frozenset(keys.split())
        for kind, keys in {
            "Input": "shape",
            "Output": "shape",
            "Identity": "shape",
            "Linear": "weight",
            "Affine": "weight bias",
            "Conv1d": "weight bias stride padding dilation groups input_shape",
            "Conv2d": "weight bias stride padding dilation groups input_shape",
            "AvgPool2d": "kernel_size stride padding",
            "SumPool2d": "kernel_size stride padding",
            "Flatten": "start_dim end_dim input_type",
            "Scale": "scale",
            "Delay": "delay",
            "LIF": "tau r v_leak v_threshold v_reset",
            "CubaLIF": "tau_mem tau_syn r v_leak v_threshold v_reset w_in",
            "IF": "r v_threshold v_reset",
            "Threshold": "threshold",
            "LI": "tau r v_leak",
            "CubaLI": "tau_mem tau_syn r v_leak w_in",
            "I": "r",
        }.items()
    }
)
"""All supported kinds of nodes, with their parameters."""

NEAR = 1e-6
"""Largest relative distance at which numbers of a file, which are often float32, are treated as equal."""
_LEAKLESS, _ENDLESS, _LONGEST = 2.0**25, 2.0**40, 2.0**100
"""Time constants in steps. From the first one on, a decay is 1 in float32. The second one is that of an integrator. The
third one is the largest."""
_MOST_AXES = 64

LARGEST_DELAYS = "largest_delays"
"""The metadata of stsbp's own files with the largest number of steps that learned delays can have: JSON, by node. NIR
has delays alone, which training may have left far below this number."""

_BuiltOp = TypeVar("_BuiltOp")
Factor: TypeAlias = float | Float64
"""One factor for all elements of a signal, or one for each."""


@dataclass(frozen=True)
class Choices:
    """Choices for properties that NIR does not define.

    Attributes:
        dt: length of a step in seconds.
        reset: effect of a spike on the potential, as in `LIF`.
        tau_s: synaptic time constant of the output's spikes in steps, which no graph contains.
        surrogate: surrogate of all neurons.
        weight_bits: bits of all weights.
        threshold_above: whether thresholds are replaced by the next higher float32 number, for files of programs that
            spike if `v > v_threshold`, as NIR defines it.
    """

    dt: float
    reset: str = "zero"
    tau_s: float = 4.0
    surrogate: Surrogate = field(default_factory=lambda: LIF().surrogate)
    weight_bits: int = 12
    threshold_above: bool = False


@dataclass(frozen=True)
class NeuronParameters:
    """The meaning of the parameters of neurons.

    Attributes:
        model: the neuron model, without the synapse of its spikes.
        decay: decay of the potential, if it differs between neurons.
        tau_s: time constant of their input synapse in steps; 1: there is none.
        w_in: the input of the synapse is multiplied by `w_in / tau_s`.
        gain: the output of the synapse is multiplied by `gain`.
    """

    model: NeuronModel
    decay: Float64 | None
    tau_s: float
    w_in: Factor
    gain: Factor


@dataclass(frozen=True)
class WeightParameters:
    """Weights: their geometry, their values `[out, in, ...]`, and the bias `[out]`; None if it is zero everywhere."""

    op: Conv2d | Linear
    values: AnyArray
    bias: Float64 | None


def fail(node: GraphNode, text: str) -> DataError:
    """The error for a node."""
    return DataError(f"node {node.name or '(no name)'} ({node.kind}): {text}")


def read_node(node: GraphNode, choices: Choices) -> None:
    """Read a single node, independently of its neighbours.

    Raises:
        DataError: the node cannot be read. The message names the node and the parameter.
    """
    if node.kind not in KINDS:
        raise fail(node, f"this kind of node is unknown; known: {', '.join(KINDS)}")
    if unknown := sorted(node.values.keys() - KINDS[node.kind]):
        raise fail(node, f"it has the parameter {shown(unknown[0])}, which no {node.kind} has")
    if node.kind in NEURONS:
        read_neurons(node, choices)
    elif node.kind in WEIGHTS:
        read_weights(node)
    elif node.kind in POOLS:
        read_pool(node)
    elif node.kind == "Delay":
        read_delays(node, choices)
    elif node.kind == "Scale":
        read_scale(node)
    elif node.kind == "Flatten":
        _check_flatten(node)


def read_neurons(node: GraphNode, choices: Choices) -> NeuronParameters:
    """Read neurons, or the integrators at the end of a network.

    Raises:
        DataError: they cannot be read.
    """
    parameter_names = KINDS[node.kind]
    for key in ("v_leak", "v_reset"):
        if key in parameter_names and not (key == "v_reset" and key not in node.values):
            _check_zero(node, key)
    tau_s: float = 1.0
    w_in: Factor = 1.0
    if "tau_syn" in parameter_names:
        tau_s = _uniform_value(node, "tau_syn", _steps(node, "tau_syn", choices))
        w_in = numbers(node, "w_in") if "w_in" in node.values else 1.0
    gain: Factor = numbers(node, "r") if "r" in parameter_names else 1.0
    membrane = next((key for key in ("tau", "tau_mem") if key in parameter_names), None)
    tau = _steps(node, membrane, choices) if membrane is not None else np.ones(1)
    gain = gain * choices.dt if node.kind in ("IF", "I") else _product(node, gain, 1 / tau)
    if node.kind in ("LI", "CubaLI", "I"):
        tau_m = _ENDLESS if membrane is None else _uniform_value(node, membrane, tau)
        return NeuronParameters(_checked_op(node, lambda: Readout(tau_m)), None, tau_s, w_in, gain)
    threshold = numbers(node, "threshold" if node.kind == "Threshold" else "v_threshold")
    if not (threshold > 0).all():
        raise fail(node, f"a threshold is {threshold.min():g}, but must be above 0, the resting potential")
    level = float(threshold.flat[0])
    if not _is_uniform(threshold):
        gain, level = _product(node, gain, 1 / threshold), 1.0
    if choices.threshold_above:
        level = float(np.nextafter(np.float32(level), np.float32(np.inf)))
    common: dict[str, Any] = {"threshold": level, "surrogate": choices.surrogate, "reset": choices.reset}
    tau_m, decay = float(tau.flat[0]), None
    if node.kind == "IF" or (tau >= _LEAKLESS).all():
        model: NeuronModel = _checked_op(node, lambda: IF(**common))
    elif _is_uniform(tau):
        model = _checked_op(node, lambda: LIF(tau_m, **common))
    else:
        model, decay = _checked_op(node, lambda: PLIF(tau_m, per="channel", **common)), 1 - 1 / tau
    return NeuronParameters(model, decay, tau_s, w_in, gain)


def read_weights(node: GraphNode) -> WeightParameters:
    """Read the weights of a fully connected layer or a convolution. A 1-d convolution has kernels of one row.

    Raises:
        DataError: they cannot be read.
    """
    values = _array(node, "weight")
    axes = {"Conv1d": 3, "Conv2d": 4}.get(node.kind, 2)
    if values.ndim != axes or not values.size:
        raise fail(node, f"weight has the shape {list(values.shape)}, but must have {axes} axes, none of them empty")
    bias = numbers(node, "bias") if "bias" in KINDS[node.kind] else None
    if bias is not None:
        bias_shape = _array(node, "bias").shape
        if bias_shape not in ((len(values),), ()):
            raise fail(node, f"bias has the shape {list(bias_shape)}, but weight has {len(values)} outputs")
        bias = np.broadcast_to(bias, len(values)) if bias.any() else None
    if axes == 2:
        return WeightParameters(_checked_op(node, lambda: Linear(len(values), bias=bias is not None)), values, bias)
    if axes == 3:
        values = values[:, :, None, :]
    kernels = values.shape[2:]
    stride, dilation = (_pair(node, key, 1, axes == 3) for key in ("stride", "dilation"))
    groups = _count(node, "groups", _array(node, "groups"), 1)
    padding = _padding(node, kernels, stride, dilation, axes == 3)

    def build_conv() -> Conv2d:
        options: dict[str, Any] = {"dilation": dilation, "groups": groups, "bias": bias is not None}
        return Conv2d(len(values), kernels, stride, padding, **options)

    return WeightParameters(_checked_op(node, build_conv), values, bias)


def diagonal(parameters: WeightParameters) -> Float64 | None:
    """The factor of each channel, `[C]`; None if the weights are not diagonal."""
    op, values = parameters.op, parameters.values
    if isinstance(op, Conv2d):
        if not (op.square and op.kernel == 1 and op.stride == 1 and op.padding == 0):
            return None
        values = values[:, :, 0, 0]
    if values.shape[0] != values.shape[1]:
        return None
    factors = np.diagonal(values)
    return factors.astype(np.float64) if np.count_nonzero(values) == np.count_nonzero(factors) else None


def read_pool(node: GraphNode) -> tuple[AvgPool2d, float]:
    """Read a pooling node, and the factor of its means.

    Raises:
        DataError: it cannot be read.
    """
    size = _pair(node, "kernel_size", 1)
    if _pair(node, "stride", 1) != size:
        raise fail(
            node,
            f"stride is not kernel_size, {list(size)}: stsbp pools only over windows that do not "
            "overlap and leave no gaps",
        )
    if any(_pair(node, "padding", 0)):
        raise fail(node, "padding is not 0, but stsbp pools without padding")
    pool = _checked_op(node, lambda: AvgPool2d(size))
    return pool, float(pool.area) if node.kind == "SumPool2d" else 1.0


def read_delays(node: GraphNode, choices: Choices) -> Float64:
    """Read delays as whole numbers of steps, with the shape that they have in the file; one number if all are the same.

    Raises:
        DataError: one of them is not a whole number of steps, or negative, or too large.
    """
    steps = numbers(node, "delay") / choices.dt
    delays = np.rint(steps)
    allowed = (delays >= 0) & (delays <= MAX_DELAY) & (np.abs(steps - delays) <= NEAR * np.maximum(1.0, steps))
    if not allowed.all():
        condition = f"a whole number of them, at most {MAX_DELAY:,}"
        wrong = steps.flat[int(np.argmin(allowed))]
        raise fail(node, f"delay is {wrong:g} steps of {choices.dt:g} s, but must be {condition}")
    # Otherwise a delay just below 0 would be -0.
    whole = np.abs(delays)
    return whole.flat[0].reshape(()) if (whole == whole.flat[0]).all() else whole


def read_largest_delays(graph: NirGraph) -> dict[str, int]:
    """The largest numbers of steps of learned delays by node, from the metadata of a file of stsbp. Empty for others.

    Raises:
        DataError: the metadata do not say this for nodes that are delays.
    """
    text = graph.metadata.get(LARGEST_DELAYS)
    if text is None:
        return {}
    try:
        largest: object = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        largest = None
    if not isinstance(largest, dict):
        raise DataError(f"the metadata {LARGEST_DELAYS} must be numbers of steps by node, in JSON")
    for name, steps in largest.items():
        if name not in graph.nodes or graph.nodes[name].kind != "Delay":
            raise DataError(f"the metadata {LARGEST_DELAYS} name {shown(name)}, which is not a Delay of the graph")
        if type(steps) is not int or not 1 <= steps <= MAX_DELAY:
            condition = f"must be a whole number from 1 to {MAX_DELAY:,}"
            raise fail(graph.nodes[name], f"its largest delay in the metadata is {shown(steps)}, but {condition}")
    return {str(name): steps for name, steps in largest.items()}


def _check_flatten(node: GraphNode) -> None:
    """Raise `DataError` unless axes and sizes of a `Flatten` are those of some array. They are not used otherwise."""
    for key in ("start_dim", "end_dim"):
        if key in node.values:
            axis = _uniform_value(node, key, numbers(node, key))
            if axis != round(axis) or abs(axis) > _MOST_AXES:
                raise fail(node, f"{key} is {axis:g}, but must be the number of an axis, at most {_MOST_AXES}")
    if "input_type" in node.values:
        for size in _array(node, "input_type").reshape(-1)[: _MOST_AXES + 1]:
            _count(node, "input_type", np.asarray(size).reshape(1), 1)


def read_scale(node: GraphNode) -> Factor:
    """A factor.

    Raises:
        DataError: it is not finite.
    """
    return numbers(node, "scale")


def is_one(factor: Factor) -> bool:
    """Whether the factor is 1."""
    return bool(np.all(np.abs(np.asarray(factor) - 1) <= NEAR))


def _array(node: GraphNode, key: str) -> AnyArray:
    """A numeric parameter, as it is in the file, with all numbers finite."""
    if key not in node.values:
        raise fail(node, f"it has no {key}")
    values = node.values[key]
    if not isinstance(values, np.ndarray) or not values.size:
        raise fail(node, f"{key} is {shown(values) if isinstance(values, str) else 'empty'}, but must be numbers")
    # If all elements of an array are the same, check only one of them, because the array may be huge.
    if not np.isfinite(values if any(values.strides) else values.flat[:1]).all():
        raise fail(node, f"{key} is not finite")
    return values


def numbers(node: GraphNode, key: str) -> Float64:
    """A parameter of a node in float64; one number if it is the same everywhere.

    Raises:
        DataError: it is missing or not finite.
    """
    values = _array(node, key)
    return (values if any(values.strides) else values.flat[:1].reshape(())).astype(np.float64, copy=False)


def _check_zero(node: GraphNode, key: str) -> None:
    values = numbers(node, key)
    if values.any():
        nonzero = values.flat[int(np.argmax(values != 0))]
        raise fail(node, f"{key} is {nonzero:g}, but must be 0: in stsbp, potentials rest at 0 and are reset to 0")


def _steps(node: GraphNode, key: str, choices: Choices) -> Float64:
    """A time constant in steps, at least 1."""
    steps = numbers(node, key) / choices.dt
    if not (steps >= 1 - NEAR).all():
        shortest = f"{key} is {steps.min() * choices.dt:g} s"
        comparison = f"{shortest}, which is less than a step of {choices.dt:g} s"
        raise fail(node, f"{comparison}; give another --dt, or leave it out if the file states the step")
    if not (steps <= _LONGEST).all():
        raise fail(node, f"{key} is {steps.max() * choices.dt:g} s, which is more than 2^100 steps")
    return np.maximum(steps, 1.0)


def _is_uniform(values: Float64) -> bool:
    first = values.flat[0]
    return bool((np.abs(values - first) <= NEAR * abs(first)).all())


def _uniform_value(node: GraphNode, key: str, values: Float64) -> float:
    """The number, which must be the same for all neurons."""
    if not _is_uniform(values):
        extent = f"{values.min():g} to {values.max():g}"
        raise fail(node, f"{key} differs from neuron to neuron, {extent}, but must be the same for all")
    return float(values.flat[0])


def one_of_them(shapes: list[tuple[int, ...]]) -> bool:
    """Whether one of these shapes is the result of broadcasting all of them together."""
    try:
        together = math.prod(np.broadcast_shapes(*shapes))
    except ValueError:
        return False
    return together <= max(map(math.prod, shapes))


def _product(node: GraphNode, first: Factor, second: Factor) -> Factor:
    shapes = [np.shape(factor) for factor in (first, second)]
    if not one_of_them(shapes):
        raise fail(node, "its parameters have different shapes")
    return first * second


def _count(node: GraphNode, key: str, values: AnyArray, minimum: int) -> int:
    number = float(values.flat[0])
    if values.size != 1 or number != round(number) or not minimum <= number <= MAX_SIZE:
        value_text = f"{number:g}" if values.size == 1 else f"{values.size:,} numbers"
        raise fail(node, f"{key} is {value_text}, but must be a whole number from {minimum} to {MAX_SIZE:,}")
    return round(number)


def _pair(node: GraphNode, key: str, minimum: int, is_row: bool = False) -> tuple[int, int]:
    """Numbers for rows and columns. For a 1-d convolution, only the latter are given."""
    sizes_array = _array(node, key).reshape(-1)
    if sizes_array.size not in (1, 1 if is_row else 2):
        raise fail(node, f"{key} has {sizes_array.size:,} numbers")
    sizes = [_count(node, key, size, minimum) for size in np.split(sizes_array, sizes_array.size)]
    return (minimum, sizes[0]) if is_row else (sizes[0], sizes[-1])


def _padding(
    node: GraphNode, kernels: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int], is_row: bool
) -> tuple[int, int]:
    """Rows and columns of zeros on each side, from numbers or from the words `same` and `valid`."""
    text = node.values.get("padding")
    if not isinstance(text, str):
        return _pair(node, "padding", 0, is_row)
    if text == "valid":
        return (0, 0)
    reach = [step * (kernel - 1) for step, kernel in zip(dilation, kernels, strict=True)]
    if text != "same" or stride != (1, 1) or any(extent % 2 for extent in reach):
        condition = "with odd kernels and a stride of 1" if text == "same" else "'same', 'valid' or numbers"
        raise fail(node, f"padding is {shown(text)}, which is read {condition} only")
    return (reach[0] // 2, reach[1] // 2)


def _checked_op(node: GraphNode, build: Callable[[], _BuiltOp]) -> _BuiltOp:
    try:
        return build()
    except SpecError as error:
        raise fail(node, str(error)) from None
