"""Bounds of the distance between `fast` gradients in float32 and float64: running error analysis of the backward pass.

Each float64 value has a bound of its distance to the float32 value. The bound is computed by the same steps as the
value:

- a float32 operation rounds once: `fl(a op b) = (a op b)(1 + d)`, `|d| <= u = 2^-24`;
- a sum of `n` products, in any order, with or without fused multiply-adds, is off by at most `gamma(n)` times the sum
  of their magnitudes, `gamma(n) = n u / (1 - n u)`;
- `snap` changes a value by less than `FLOOR`, and underflow (gradual or flushed) by less than `TINY`;
- existing errors are propagated by the derivative of each step, and second-order terms are kept.

docs/proof.md derives these steps. The bound holds for every single weight and for any data, provided that nothing
overflows. The second number beside each value, `spread`, is not a bound. It adds independent errors by their squares,
and estimates their size for random data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from stsbp_spec.contract.arrays import NUMPY
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.contract.random import keep_mask
from stsbp_spec.engine.backend import LayerRun
from stsbp_spec.equations.assembly import NeuronEquations, neuron_equations
from stsbp_spec.equations.expressions import Expr, Recurrence, ordered
from stsbp_spec.models.losses import Hamming, Loss, MeanSquaredError, SpikeCount, VanRossum
from stsbp_spec.models.neurons import LIF, NeuronModel
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.models.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.models.surrogates import equation as surrogate_equation
from stsbp_spec.networks.graph import BoundNode, Input, Network, Neurons, Projection, Weighted
from stsbp_spec.networks.ops import (
    IDENTITY,
    PSP,
    AvgPool2d,
    Conv2d,
    Dropout,
    LearnedDelay,
    Linear,
    OneToOne,
    Upsample2d,
    batchnorm,
)
from stsbp_spec.networks.ops.base import Merge, Passing, Values
from stsbp_spec.networks.ops.dropout import substream
from stsbp_spec.networks.ops.psp import Biased, SynapticFilter
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import (
    RULES,
    NumpyBackend,
    by_group,
    chunks,
    fold,
    of_groups,
    recur,
    unfold,
    weight_rows,
)
from stsbp_spec.typing import AnyArray, Float32, Float64, UInt8

__all__ = [
    "TINY",
    "Near",
    "Potentials",
    "U",
    "exact",
    "exact_filter",
    "gamma",
    "gradients",
    "input_errors",
    "learned_gradients",
    "loss_error",
    "membrane_potentials",
    "neuron_backward",
    "neuron_forward",
    "synapse_backward",
]

U = 2.0**-24
"""Unit roundoff of float32."""

TINY = 2.0**-125
"""Underflow changes a value by less than this, whether subnormal numbers are kept, or flushed on reading or writing."""

EXP_ULPS = 4
"""Largest error of a library's float32 `exp(-a)` in units in the last place, besides `2 a u` for a reduced argument."""

Potentials: TypeAlias = Literal["float32", "float64"]
"""Which potentials the float64 gradients use: those of the float32 forward pass, or those of a float64 simulation."""


# A closed formula would assume the largest potential, derivative and weight everywhere, and after a few steps its bound
# would be useless. A limit of `4 u sqrt(n)` times the largest gradient of a layer, chosen from measurements, was
# exceeded by correct backends: errors can grow over time, equal terms round in one direction, and large terms cancel.
@dataclass(frozen=True)
class Near:
    """Float64 values, and how far the float32 values can be from them; three arrays of one shape, or numbers.

    Attributes:
        value: the float64 value.
        error: largest distance of the float32 value; see `bound`.
        spread: estimate of the distance as the root of a sum of squares, for independent rounding errors.
    """

    value: Float64
    error: Float64
    spread: Float64

    def __getitem__(self, index: Any) -> Near:
        return Near(self.value[index], self.error[index], self.spread[index])

    def apply(self, linear: Callable[[Float64], Float64]) -> Near:
        """Apply a linear map without negative coefficients that float32 computes exactly."""
        return Near(linear(self.value), linear(self.error), linear(self.spread))

    @property
    def bound(self) -> Float64:
        """`error`, plus the rounding errors of float64 in the value and in the error itself: 2^-29 of float32's."""
        return self.error * (1 + 2.0**-20)

    @property
    def largest(self) -> Float64:
        """The largest magnitude that the float32 value can have."""
        return np.abs(self.value) + self.error


def exact(value: AnyArray | float) -> Near:
    """Values that are exact in both float32 and float64."""
    wide: Float64 = np.asarray(value, np.float64)
    return Near(wide, np.zeros_like(wide), np.zeros_like(wide))


def _constant(wide: float) -> Near:
    """A constant, which is rounded once to float32."""
    error = np.float64(abs(float(np.float32(wide)) - wide))
    return Near(np.float64(wide), error, error)  # type: ignore[arg-type]


def gamma(n: AnyArray | int) -> Float64:
    """`n u / (1 - n u)`: bound of the error of a sum of `n` products, in any order, relative to their magnitudes' sum.

    It is infinite from `n = 2^24` on.
    """
    total = np.asarray(n, np.float64) * U
    return np.where(total < 1, total / np.where(total < 1, 1 - total, 1), np.inf)


def _root(*parts: Any) -> Float64:
    total: Float64 = np.sqrt(sum(np.square(part) for part in parts))
    return total


def _is_power_of_two(a: Near) -> bool:
    """Whether the value is a constant power of two, with which products are exact."""
    return a.value.ndim == 0 and a.error == 0 and math.frexp(abs(float(a.value)))[0] in (0.0, 0.5)


def _multiply(a: Near, b: Near) -> Near:
    value = a.value * b.value
    propagated = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    u = 0.0 if _is_power_of_two(a) or _is_power_of_two(b) else U
    error = propagated + u * (np.abs(value) + propagated)
    spread = _root(a.value * b.spread, b.value * a.spread, u * value)
    tiny = np.where((a.largest > 0) & (b.largest > 0), TINY, 0)
    return Near(value, error + tiny, spread + tiny)


def _add(a: Near, b: Near) -> Near:
    """Sum. Errors are added linearly in `spread` too, because they often come from the same rounding."""
    value = a.value + b.value
    propagated = a.error + b.error
    u = np.where((a.largest > 0) & (b.largest > 0), U, 0)  # adding a zero does not round
    return Near(value, propagated + u * (np.abs(value) + propagated), _root(a.spread + b.spread, u * value))


def _negative(a: Near) -> Near:
    return replace(a, value=-a.value)


def _divide(a: Near, b: Near) -> Near:
    """`a / b`. Neither float64 nor float32 may have a `b` below 1."""
    value = a.value / b.value
    propagated = (np.abs(value) * b.error + a.error) / np.maximum(b.value - b.error, 1)
    error = propagated + U * (np.abs(value) + propagated) + TINY
    return Near(value, error, _root(value * b.spread / b.value, a.spread / b.value, U * value))


def _snap(a: Near) -> Near:
    """Apply the floor, which only float32 has."""
    floor = _floor(a.value, a.error)
    return replace(a, error=a.error + floor, spread=a.spread + floor)


def _floor(value: Float64, error: Float64) -> Float64:
    """Largest change by `snap` of a float32 value within `error` of `value`."""
    reached = (np.abs(value) - error < FLOOR) & (np.abs(value) + error > 0)
    return np.where(reached, FLOOR, 0.0)


# Neurons.


def _derivative(neuron: LIF, u: Near) -> Near:
    """`h(u - V_th)`, with the operations of surrogates/functions.py."""
    surrogate, vth = neuron.surrogate, _constant(neuron.threshold)
    # If float32 has exactly the same potential, the difference to the threshold is exact.
    is_exact = u.error == 0
    with np.errstate(over="ignore"):
        narrow = u.value.astype(np.float32) - np.float32(neuron.threshold)
    value = u.value - neuron.threshold
    distance = np.abs(narrow - value)
    propagated = u.error + vth.error
    x = Near(
        value,
        np.where(is_exact, distance, propagated + U * (np.abs(value) + propagated)),
        np.where(is_exact, distance, _root(u.spread, vth.error, U * value)),
    )
    one, size = exact(1.0), replace(x, value=np.abs(x.value))
    if isinstance(surrogate, Rectangle):
        return _rectangle(surrogate, size, np.where(is_exact, np.abs(narrow), np.nan))
    if isinstance(surrogate, Triangle):
        y = _add(one, _negative(_multiply(size, _constant(1 / surrogate.width))))
        beyond = y.value + y.error <= 0
        return Near(np.maximum(y.value, 0), np.where(beyond, 0, y.error), np.where(beyond, 0, y.spread))
    if isinstance(surrogate, Logistic):
        return _logistic(surrogate, size)
    if isinstance(surrogate, FastSigmoid):
        y = _add(one, _multiply(size, _constant(surrogate.beta)))
        h = _divide(one, _multiply(y, y))
    elif isinstance(surrogate, Arctan):
        y = _multiply(size, _constant(math.pi / 2 * surrogate.alpha))
        h = _divide(one, _add(one, _multiply(y, y)))
    else:
        return _by_expression(surrogate, x)
    return replace(h, error=np.minimum(h.error, 1.0))  # both lie between 0 and 1


def _by_expression(surrogate: Surrogate, x: Near) -> Near:
    """`h(x)` of any surrogate, operation by operation. The analyses by hand are tighter: they know bounds of `h`."""
    recurrence = surrogate_equation(surrogate)
    variables = {**{name: _constant(value) for name, value in surrogate.constants().items()}, "x": x}
    fired = np.zeros(x.value.shape, bool)  # no surrogate reads the spikes
    h: Near = _node_values(ordered(recurrence.roots), variables, fired)[id(recurrence.outputs["h"])]
    return h


def _rectangle(surrogate: Rectangle, size: Near, narrow: AnyArray) -> Near:
    """Error of the full height of the jump if float32 and float64 are, or may be, on different sides of an edge.

    `narrow` is the float32 value of `|x|` if it is known, else NaN.
    """
    edge, height = _constant(surrogate.width / 2), _constant(1 / surrogate.width)
    inside = size.value < edge.value
    unsure = np.abs(size.value - edge.value) <= size.error + edge.error
    jump = np.where(np.isnan(narrow), unsure, (narrow < np.float32(edge.value)) != inside)
    error = np.where(jump, height.largest, np.where(inside, height.error, 0))
    return Near(np.where(inside, height.value, 0), error, error)


def _logistic(surrogate: Logistic, size: Near) -> Near:
    one, steep = exact(1.0), _constant(1 / surrogate.width)
    z = _exp(_negative(_multiply(size, steep)))
    y = _add(one, z)
    h = _multiply(_divide(z, _multiply(y, y)), steep)
    return replace(h, error=np.minimum(h.error, steep.largest))  # both lie between 0 and 1/(4 width)


_NONE: Mapping[str, Float32] = MappingProxyType({})


class Filtering(NamedTuple):
    """A synaptic filter in the literal form.

    Attributes:
        constants: constants in the filter's order: decay and gain, or decay, rise and gain. With a bias, the last one
            is the gain of training.
        like: a filter with the same number of constants. It defines the computation.
    """

    constants: tuple[Near, ...]
    like: SynapticFilter


def exact_filter(psp: PSP | None, gain: float = 1.0, *, biased: bool = False) -> Filtering:
    """A filter in the literal form, with the errors of its float32 constants; None: no filter."""
    if biased:
        plain = exact_filter(psp)
        if gain == 1:
            return Filtering(plain.constants, Biased(plain.like, np.float32(1)))
        return Filtering((*plain.constants, _constant(gain)), Biased(plain.like, np.float32(gain)))
    if psp is None:
        return Filtering((exact(0.0), _constant(gain)), IDENTITY)
    decay = _constant(1 - 1 / psp.tau_s)
    factor = _constant(gain if psp.gain == "unit" else gain / (psp.tau_s - psp.tau_rise))
    if psp.tau_rise:
        return Filtering((decay, _constant(1 - 1 / psp.tau_rise), factor), PSP(3.0, 2.0).filter())
    return Filtering((decay, factor), IDENTITY)


def _is_plain(neuron: NeuronModel, filter: Filtering) -> bool:
    return isinstance(neuron, LIF) and neuron.reset == "zero" and filter.like == IDENTITY


def _equations(neuron: NeuronModel, filter: Filtering) -> NeuronEquations:
    """The equations. They do not contain the values of the filter's constants."""
    return neuron_equations(filter.like, neuron)


def _filtered(decay: Near, state: Near, x: Near) -> Near:
    """`snap(decay state + x)`."""
    return _snap(_add(_multiply(decay, state), x))


def neuron_forward(
    neuron: NeuronModel, filter: Filtering, z: AnyArray | Near, spikes: UInt8, learned: Mapping[str, Float32] = _NONE
) -> dict[str, Near]:
    """The values that the backward pass reads, from a float64 simulation with the given spikes: `u` and others by name.

    Args:
        neuron: the neuron model.
        filter: constants of the filter before the neurons.
        z: weighted sums `[1 or T, B, ...]`, exact or with errors.
        spikes: spikes of the float32 forward pass, `[T, B, ...]`.
        learned: learned parameters of the neurons by name, each `[1]` or `[C]`. The result contains them too.
    """
    z = z if isinstance(z, Near) else exact(z)
    if _is_plain(neuron, filter):
        return {"u": _lif_forward(neuron, filter, z, spikes)}  # type: ignore[arg-type]
    equations = _equations(neuron, filter)
    learned_inputs = {
        free: exact(_broadcast_channels(learned[name], spikes)) for name, free in equations.learned.items()
    }
    outputs = _run(equations.forward, _constants(equations, filter), {"z": z, **learned_inputs}, spikes)
    return {name: outputs[name] for name in equations.kept} | learned_inputs


def _broadcast_channels(values: Float32, spikes: UInt8) -> AnyArray:
    """One number per channel, or one for all, repeated for each neuron: `[1, B, ...]`."""
    per_channel = values.reshape(1, 1, -1, *(1,) * (spikes.ndim - 3))
    return np.broadcast_to(per_channel, (1, *spikes.shape[1:]))


def neuron_backward(
    neuron: NeuronModel,
    filter: Filtering,
    saved: Mapping[str, Near],
    spikes: UInt8,
    g: Near,
    *,
    static: bool,
) -> Near:
    """`dL/dz`, `[1 or T, B, ...]`, from `g = dL/do`, and from `saved`: `neuron_forward`, or `exact` float32 values."""
    if _is_plain(neuron, filter):
        return _lif_backward(neuron, filter, saved["u"], spikes, g, static=static)  # type: ignore[arg-type]
    equations = _equations(neuron, filter)
    dz = _run(equations.backward, _constants(equations, filter), {**saved, "g": g}, spikes)["dz"]
    return _stack([_over_time(dz)]) if static else dz


def _over_time(steps: Near) -> Near:
    """The sum over the steps from the last to the first."""
    total = exact(np.zeros(steps.value.shape[1:]))
    for t in reversed(range(len(steps.value))):
        total = _add(total, steps[t])
    return total


def learned_gradients(
    neuron: NeuronModel, filter: Filtering, saved: Mapping[str, Near], spikes: UInt8, g: Near
) -> dict[str, Near]:
    """Gradients of the neurons' learned parameters by name, each `[1]` or `[C]`: see `neuron_backward`."""
    equations = _equations(neuron, filter)
    if not equations.terms:
        return {}
    outputs = _run(equations.backward, _constants(equations, filter), {**saved, "g": g}, spikes)
    learned = {**filter.like.learned(), **neuron.learned()}
    return {
        name: _channel_sums(_over_time(outputs[output]), *learned[name].shape(spikes.shape[2:]))
        for name, output in equations.terms.items()
    }


def _channel_sums(terms: Near, count: int) -> Near:
    """Sums of `terms` `[B, C, ...]` in float64 over all axes except `C`, or all (`count` 1), rounded once."""

    def sum_axes(x: Float64) -> Float64:
        sums: Float64 = np.moveaxis(x, 1, 0).reshape(count, -1).sum(axis=1)
        return sums

    value, error = sum_axes(terms.value), sum_axes(terms.error)
    # A sum of n numbers, in any order, is off by at most n 2^-53 of their magnitudes.
    error = error + terms.value.size * 2.0**-53 * sum_axes(terms.largest)
    error = error + U * (np.abs(value) + error) + TINY
    spread = _root(np.sqrt(sum_axes(np.square(terms.spread))), U * value) + TINY
    return Near(value, error, spread)


def _constants(equations: NeuronEquations, filter: Filtering) -> dict[str, Near]:
    constants = filter.constants
    of_filter = dict(zip(equations.forward.parameters[: len(constants)], constants, strict=True))
    return {name: _constant(value) for name, value in equations.unrounded.items()} | of_filter


def _run(
    recurrence: Recurrence, constants: Mapping[str, Near], inputs: Mapping[str, Near], spikes: UInt8
) -> dict[str, Near]:
    """Outputs of a recurrence by name, `[T, B, ...]`. Every spike in it is that of the float32 forward pass."""
    nodes = ordered(recurrence.roots)
    states = {name: exact(np.zeros(spikes.shape[1:])) for name in recurrence.states}
    steps: dict[str, list[Near]] = {name: [] for name, x in recurrence.outputs.items() if not x.is_condition}
    for t in reversed(range(len(spikes))) if recurrence.reverse else range(len(spikes)):
        variables = {
            **constants,
            **{name: inputs[name][t % len(inputs[name].value)] for name in recurrence.inputs},
            **states,
        }
        node_values = _node_values(nodes, variables, spikes[t] != 0)
        states = {name: node_values[id(x)] for name, x in recurrence.states.items()}
        for name, step_outputs in steps.items():
            step_outputs.append(node_values[id(recurrence.outputs[name])])
    return {
        name: _stack(step_outputs[::-1] if recurrence.reverse else step_outputs) for name, step_outputs in steps.items()
    }


def _node_values(nodes: Sequence[Expr], variables: Mapping[str, Near], fired: AnyArray) -> dict[int, Any]:
    """The values of expressions by their identity. Operands come before the expressions that read them."""
    node_values: dict[int, Any] = {}
    for x in nodes:
        node_values[id(x)] = _value(x, [node_values[id(a)] for a in x.args], variables, fired)
    return node_values


def _value(x: Expr, a: Sequence[Any], variables: Mapping[str, Near], fired: AnyArray) -> Any:
    """One node: a `Near`; or for a condition, its value in float64, and whether float32 may decide differently."""
    if x.op == "variable":
        return variables[str(x.name)]
    if x.op == "constant":
        return exact(x.value)
    if x.op == "spike":
        return fired, np.zeros_like(fired)
    if x.op in ("lt", "ge"):
        off = a[0].error + a[1].error
        truth = a[0].value < a[1].value
        return (truth if x.op == "lt" else ~truth), (off > 0) & (np.abs(a[0].value - a[1].value) <= off)
    if x.op == "where":
        return _where(*a)
    if x.op == "abs":
        return replace(a[0], value=np.abs(a[0].value))
    if x.op == "exp":
        return _exp(a[0])
    if x.op == "sub":
        return _add(a[0], _negative(a[1]))
    if x.op not in _NEAR:
        raise TypeError(f"no error analysis of the operation {x.op}")
    return _NEAR[x.op](*a)


def _where(condition: tuple[AnyArray, AnyArray], a: Near, b: Near) -> Near:
    """`where`. If float32 may choose the other operand, the error includes the whole difference of both."""
    truth, unsure = condition
    jump = np.where(unsure, np.abs(a.value - b.value) + np.maximum(a.error, b.error), 0)
    error, spread = (np.where(truth, p, q) for p, q in ((a.error, b.error), (a.spread, b.spread)))
    return Near(np.where(truth, a.value, b.value), np.maximum(error, jump), np.maximum(spread, jump))


def _exp(a: Near) -> Near:
    """`exp` of a number that is at most 0."""
    rounding = (2 * EXP_ULPS + 2 * a.largest) * U
    value = np.exp(a.value)
    relative = np.expm1(np.minimum(a.error, 700))
    # The float32 value is within exp(a + error) (1 + rounding), and exp(a) never exceeds 1.
    return Near(
        value,
        np.minimum(value * (relative + rounding + relative * rounding), 1 + rounding) + TINY,
        value * _root(a.spread, rounding),
    )


def _sqrt(a: Near) -> Near:
    value = np.sqrt(a.value)
    propagated = value - np.sqrt(np.maximum(a.value - a.error, 0))  # the change is larger downwards than upwards
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(value > 0, a.spread / (2 * value), np.sqrt(a.spread))
    return Near(value, propagated + (value + propagated) * U, _root(spread, value * U))


_NEAR: dict[str, Callable[..., Near]] = {
    "add": _add, "mul": _multiply, "div": _divide, "neg": _negative, "snap": _snap, "sqrt": _sqrt,
}  # fmt: skip


def _lif_forward(neuron: LIF, filter: Filtering, z: Near, spikes: UInt8) -> Near:
    """`neuron_forward` of LIF with reset to zero: the potentials."""
    decay, gain = filter.constants
    km = _constant(1 - 1 / neuron.tau_m)
    i = m = exact(np.zeros(spikes.shape[1:]))
    steps = []
    for t, fired in enumerate(spikes != 0):
        i = _filtered(decay, i, _multiply(gain, z[t % len(z.value)]))
        u = _snap(_add(m, i))
        steps.append(u)
        m = _multiply(km, u).apply(lambda x, silent=~fired: x * silent)  # type: ignore[misc]
    return _stack(steps)


def _lif_backward(neuron: LIF, filter: Filtering, u: Near, spikes: UInt8, g: Near, *, static: bool) -> Near:
    """`neuron_backward` of LIF with reset to zero. Its bound is tighter than that of single operations.

    Float32 differs from `d = h g + ((1 - o) - h u) d1`, `d1 = k_m d_{t+1}`, by

        (h' - h) w' + h (g' - g) - h (u' - u) d1' + ((1 - o) - h u) (d1' - d1) + h' (rounding of p and w) + ...

    The primed values are those of float32, and `w = g - u d1`. An error from the following step is multiplied by the
    neuron's own factor `(1 - o) - h u`, the difference of the paths through leak and reset, not by the sum of both.
    """
    decay, gain = filter.constants
    km = _constant(1 - 1 / neuron.tau_m)
    h_of_all = _derivative(neuron, u)
    d = e = exact(np.zeros(spikes.shape[1:]))
    total = d
    steps: list[Near] = []
    for t in reversed(range(len(spikes))):
        h, ut, gt, silent = h_of_all[t], u[t], g[t], spikes[t] == 0
        d1 = _snap(_multiply(km, d))
        p = ut.value * d1.value
        w = gt.value - p
        propagated_p = np.abs(ut.value) * d1.error + ut.error * d1.largest
        round_p = np.where((ut.largest > 0) & (d1.largest > 0), U * ut.largest * d1.largest + TINY, 0)
        floor_p = _floor(p, propagated_p + round_p)
        round_p = round_p + floor_p
        propagated_w = gt.error + propagated_p + round_p
        largest_w = np.abs(w) + propagated_w
        round_w = np.where((gt.largest > 0) & (round_p > 0), U * largest_w, 0)
        r = h.value * w
        largest_r = h.largest * (largest_w + round_w)
        round_r = np.where((h.largest > 0) & (largest_w > 0), U * largest_r + TINY, 0)
        floor_r = _floor(r, largest_r - np.abs(r) + round_r)
        round_r = round_r + floor_r
        # With `|1 - o| + |h u|`, which is above 1 for an ordinary silent neuron, the bound would grow without limit.
        factor = silent - h.value * ut.value
        value = r + silent * d1.value
        error = (
            h.error * largest_w
            + np.abs(h.value) * (gt.error + ut.error * d1.largest)
            + np.abs(factor) * d1.error
            + h.largest * (round_p + round_w)
            + round_r
        )
        u_d = np.where(silent & (round_r > 0) & (d1.largest > 0), U, 0)
        error = error + u_d * (np.abs(value) + error)
        spread = _root(
            h.spread * (np.abs(w) + gt.spread + np.abs(ut.value) * d1.spread),
            h.value * _root(gt.spread, d1.value * ut.spread, U * p, floor_p, U * w),
            factor * d1.spread,
            U * r,
            floor_r,
            u_d * value,
        )
        d = Near(value, error, spread)
        e = _filtered(decay, e, d)
        dz = _multiply(gain, e)
        if static:
            total = _add(total, dz)
        else:
            steps.append(dz)
    return _stack([total] if static else steps[::-1])


# Synapses.


def synapse_backward(
    synapse: Conv2d | Linear, s: AnyArray, wq: Float32, dz: Near, *, need_input: bool, alike: int = 1
) -> tuple[Near | None, Near]:
    """`(ds, dW)` from inputs `[T, B, ...]` and `dz` `[T, B, ...]`, with sums in any order.

    Args:
        synapse, s, wq: geometry of the weights, inputs and weights.
        dz: error of the outputs.
        need_input: whether `ds` is needed; otherwise it is None.
        alike: number of neighbours with nearly the same `dz` (a window of the pooling above), for the spread.
    """
    flat, size, variance, squares = (
        x.reshape(-1, *x.shape[2:]) for x in (s, dz.largest, np.square(dz.spread), np.square(dz.value))
    )
    value, error = (x.reshape(-1, *x.shape[2:]) for x in (dz.value, dz.error))
    groups = synapse.groups if isinstance(synapse, Conv2d) else 1
    (n,) = _weight_sums(synapse, flat != 0, [np.ones_like(value[:, :groups])])
    n = n if groups == 1 else np.repeat(n, len(wq) // groups, axis=0)
    sums = _weight_sums(synapse, flat, [value, error, size])
    # Errors that one neuron sends back at several steps, and those of a window's neurons, are similar and do not
    # cancel: (sum of m terms)^2 is at most m times the sum of their squares.
    # Before, the spread assumed a random order: torch's correct sums on an N-MNIST network had 11 times that spread.
    together = np.square(s.astype(np.float64)) * np.count_nonzero(s, axis=0) * alike
    sums += _weight_sums(synapse, together.reshape(flat.shape), [variance, squares])
    dw = _sum(n, *sums).apply(lambda x: x.reshape(wq.shape))
    if not need_input:
        return None, dw
    return input_errors(synapse, s.shape[2:], wq, dz), dw


def input_errors(synapse: Conv2d | Linear, shape: tuple[int, ...], wq: Float32, dz: Near) -> Near:
    """`W^T dz`, `[T, B, ...]`, for inputs of `shape`, with sums in any order."""
    value, error, size, variance, squares = (
        x.reshape(-1, *x.shape[2:]) for x in (dz.value, dz.error, dz.largest, np.square(dz.spread), np.square(dz.value))
    )
    w = wq.astype(np.float64)
    matrices = (w, np.abs(w), np.abs(w), w * w, w * w)
    fields = (value, error, size, variance, squares)
    sums = [_input_sums(synapse, *pair, shape) for pair in zip(matrices, fields, strict=True)]
    ds = _sum(synapse.summands(shape)[2], *sums)
    return ds.apply(lambda x: x.reshape(*dz.value.shape[:2], *shape))


def _sum(
    n: AnyArray | int, value: Float64, error: Float64, largest: Float64, variance: Float64, squares: Float64
) -> Near:
    """A sum of `n` products. The other arguments are the sums of their values, errors, magnitudes and squares.

    Partial sums in random order: after `k` products, the mean is `k/n` of the value, and the variance is at most
    `k/n (1 - k/n)` of the squares. Each partial sum rounds once.
    """
    # The bound of a long sum is a thousand times the measured error, so it misses a surrogate that is wrong by 1e-6.
    # The spread agrees with measured errors of random data within a factor of three. The bound of Higham and Mary
    # (2019), `8 sqrt(n) u`, would help little: it covers sums, but not the growth of errors over time.
    tiny = np.where(largest > 0, 2 * np.asarray(n) * TINY, 0)
    partial = np.asarray(n) * (np.square(value) / 3 + squares / 6)
    return Near(value, error + gamma(n) * largest + tiny, np.sqrt(variance + U * U * partial) + tiny)


def _weight_sums(synapse: Conv2d | Linear, inputs: AnyArray, fields: Sequence[Float64]) -> list[Float64]:
    """For each weight, sums of fields `[n, C', ...]` times its inputs `[n, C, ...]`; `[C', fan-in]` each."""
    if isinstance(synapse, Linear):
        x = inputs.reshape(len(inputs), -1).astype(np.float64)
        return [field.T @ x for field in fields]
    sums: list[Any] = [0.0] * len(fields)
    for chunk in chunks(synapse, inputs, 8):
        x = unfold(synapse, inputs[chunk])
        x = by_group(synapse, x.reshape(-1, x.shape[-1]).astype(np.float64))
        rows = [by_group(synapse, _rows(field[chunk])).swapaxes(-1, -2) for field in fields]
        sums = [total + row @ x for total, row in zip(sums, rows, strict=True)]
    return [total.reshape(-1, total.shape[-1]) for total in sums]


def _rows(errors: Float64) -> Float64:
    """`[n, C', H', W']` as `[n H' W', C']`."""
    return errors.transpose(0, 2, 3, 1).reshape(-1, errors.shape[1])


def _input_sums(synapse: Conv2d | Linear, w: Float64, errors: Float64, shape: tuple[int, ...]) -> Float64:
    """`W^T errors`, `[n, ...]`."""
    if isinstance(synapse, Linear):
        return errors @ w.reshape(len(w), -1)
    rows = weight_rows(synapse, w)
    ds = np.empty((len(errors), *shape))
    for chunk in chunks(synapse, ds, 8):
        grad_rows = by_group(synapse, _rows(errors[chunk])) @ rows
        ds[chunk] = fold(synapse, of_groups(synapse, grad_rows), ds[chunk].shape)
    return ds


def loss_error(loss: Loss, psp: PSP, s: AnyArray | Near, targets: AnyArray) -> Near:
    """`dL/do` of the batch loss, `[T, B, N]`.

    For a loss of potentials, `s` are potentials, exact or with errors, and the result is `dL/du`.
    """
    if isinstance(loss, MeanSquaredError):
        difference = _snap(_add(s if isinstance(s, Near) else exact(s), exact(-targets)))
        return _multiply(_constant(2 / targets.size), difference)
    assert not isinstance(s, Near)
    steps, batch = s.shape[:2]
    difference = exact(s.astype(np.float64) - targets)
    if isinstance(loss, Hamming):
        return _multiply(_constant(1 / batch), difference)
    if isinstance(loss, SpikeCount):
        count = exact(difference.value.sum(axis=0))
        error = _multiply(_constant(1 / (steps * steps * batch)), count)
        return error.apply(lambda x: np.repeat(x[None], steps, axis=0))
    if not isinstance(loss, VanRossum):
        raise TypeError(f"no error analysis of the loss {loss!r}")
    decay, gain = exact_filter(psp.first_order).constants
    _, scaled = exact_filter(psp.first_order, 1 / batch).constants
    r, filtered = exact(np.zeros(s.shape[1:])), []
    for t in range(steps):
        r = _filtered(decay, r, _multiply(gain, difference[t]))
        filtered.append(r)
    e, errors = exact(np.zeros(s.shape[1:])), []
    for r in reversed(filtered):
        e = _filtered(decay, e, r)
        errors.append(_multiply(scaled, e))
    return _stack(errors[::-1])


def penalty_error(penalty: RatePenalty, s: UInt8) -> Near:
    """The error of a rate penalty at every step of the spikes `s`, `[T, B, ...]`."""
    steps, counts = len(s), exact(s.sum(axis=0, dtype=np.float64))
    excess = _add(counts, _negative(_constant(penalty.target * steps)))
    # Nothing below the limit counts. This changes no two numbers by more than their distance.
    positive = replace(excess, value=np.maximum(excess.value, 0))
    error = _snap(_multiply(_constant(2 * penalty.weight / (steps * steps * counts.value.size)), positive))
    return error.apply(lambda x: np.repeat(x[None], steps, axis=0))


# Batch normalisation.


@dataclass(frozen=True)
class _Normalisation:
    """Weighted sums, and the statistics that normalise them.

    Attributes:
        z: the sums, `[1 or T, B, ...]`.
        numbers: `mean` and `a` of `batchnorm.FORWARD`, with the errors of their float32 values.
        stretch, narrowing: see `batchnorm.Coefficients`, `[C]`.
        unit: unit of the sums.
        training: whether mean and variance are those of the sums.
    """

    z: Float32
    numbers: Mapping[str, Near]
    mean: Float64
    stretch: Float64
    narrowing: Float64
    unit: float
    training: bool

    def run(self, recurrence: Recurrence, **inputs: Near) -> Near:
        """Run an equation of batchnorm.py on all sums. Numbers per channel are `[C]`."""
        per_neuron = {name: x.apply(self.broadcast) if x.value.ndim == 1 else x for name, x in inputs.items()}
        no_spikes = np.zeros(self.z.shape, np.uint8)
        (output,) = _run(recurrence, {}, {"z": exact(self.z), **per_neuron}, no_spikes).values()
        return output

    def broadcast(self, values: Float64) -> Float64:
        wide: Float64 = np.broadcast_to(values.reshape(1, 1, -1, *(1,) * (self.z.ndim - 3)), (1, *self.z.shape[1:]))
        return wide

    def channel_sums(self, x: Float64) -> Float64:
        """Sums of `x`, which has the shape of `z`, per channel."""
        totals: Float64 = np.moveaxis(x, 2, 0).reshape(x.shape[2], -1).sum(axis=1)
        return totals

    def forward(self, shift: Float32) -> Near:
        """The input of the neurons."""
        return self.run(batchnorm.FORWARD, **self.numbers, shift=exact(shift))

    def backward(self, dy: Near) -> tuple[Near, Near, Near]:
        """`dz`, and the gradients of scale and shift."""
        n = math.prod(self.z.shape) // len(self.mean)
        centred = self.z - self.broadcast(self.mean)
        size = self.channel_sums(dy.largest * np.abs(self.z)), self.channel_sums(dy.largest)
        # z is split in two pieces, each smaller than z plus 2^12 units. n sums of float64 may be in any order.
        rounded = (n + 8) * 2.0**-53 * (size[0] + (2.0**13 * self.unit + np.abs(self.mean)) * size[1])
        total = self._sum(dy, np.ones_like(centred), n * 2.0**-53 * size[1])
        total_centred = self._sum(dy, centred, rounded)
        if not self.training:
            none = exact(np.zeros(len(self.mean)))
            of_all = slope = none
        else:
            of_all = _rounded(total.apply(lambda x: x / n))
            slope = _rounded(_times(total_centred, self.narrowing / n))
        numbers = {name: self.numbers[name] for name in ("mean", "a")}
        dz = self.run(batchnorm.BACKWARD, dy=dy, **numbers, of_all=of_all, slope=slope)
        return dz, _rounded(_times(total_centred, self.stretch)), _rounded(total)

    def _sum(self, dy: Near, factor: Float64, rounded: Float64) -> Near:
        error = self.channel_sums(dy.error * np.abs(factor)) + rounded
        # Errors that one neuron sends back at several steps are similar.
        alike = np.square((dy.spread * np.abs(factor)).sum(axis=0, keepdims=True))
        return Near(self.channel_sums(dy.value * factor), error, np.sqrt(self.channel_sums(alike)))


def _times(a: Near, exactly: Float64) -> Near:
    return Near(a.value * exactly, a.error * np.abs(exactly), a.spread * np.abs(exactly))


def _rounded(a: Near) -> Near:
    """A float64 number rounded to float32, or 0 below the floor."""
    error = a.error + U * (np.abs(a.value) + a.error) + TINY
    return _snap(Near(a.value, error, _root(a.spread, U * a.value) + TINY))


def _normalised(
    projection: Projection, z: Float32, wq: Mapping[str, AnyArray], dropout: tuple[int, int] | None
) -> _Normalisation | None:
    """The normalisation of the sums `z` of weights; None: there is none."""
    norm = projection.synapse.norm
    if norm is None:
        return None
    training, (scale, mean, variance) = (
        dropout is not None,
        (wq[f"{projection.name}.{name}"].astype(np.float64) for name in ("scale", "mean", "variance")),
    )
    gain = projection.input.gain if training else 1.0
    if training:
        axes = tuple(axis for axis in range(z.ndim) if axis != 2)
        mean, variance = z.mean(axes, dtype=np.float64), z.var(axes, dtype=np.float64)
    s2 = gain * gain * variance + norm.eps
    stretch = norm.factor * gain / np.sqrt(s2)
    narrow = {"mean": mean, "a": scale * stretch}
    numbers = {name: _rounded(exact(x)) for name, x in narrow.items()}
    unit = 2.0 ** -int(wq[f"{projection.name}.exponent"][0])
    return _Normalisation(z, numbers, mean, stretch, gain * gain / s2, unit, training)


# The whole network.


def _layer_adjoint(layer: Passing, residuals: Any, d: Near) -> Near:
    """Adjoint of an operation without weights."""
    if isinstance(layer, Upsample2d):
        return _block_sums(layer, d)
    return d.apply(lambda x: RULES[type(layer)].backward(layer, residuals, x))


def _block_sums(up: Upsample2d, d: Near) -> Near:
    """Sums of the blocks of an upsampling. Each addition rounds once."""
    rows, columns = up.factors
    return reduce(_add, (d[..., i::rows, j::columns] for i in range(rows) for j in range(columns)))


def gradients(
    network: NetworkSpec | Network,
    wq: Mapping[str, Float32],
    inputs: UInt8,
    layers: Mapping[str, LayerRun],
    error: Near,
    *,
    potentials: Potentials = "float32",
    dropout: tuple[int, int] | None = None,
    penalties: Mapping[str, Near] = MappingProxyType({}),
) -> dict[str, Near]:
    """Gradients of all parameters in float64, and bounds of the distance of any backend's `fast` gradients to them.

    Args:
        network: the network.
        wq: weights on their grid, other learned parameters, statistics and exponents, by name: `trainer.on_grid`.
        inputs: `[B, ...]` (direct) or `[T, B, ...]` (events), uint8.
        layers: spikes and potentials of the float32 forward pass, by layer name (`AbstractBackend.run`). For a graph,
            by the names of its populations.
        error: `dL/do` of the output: `loss_error`, or `exact` values.
        potentials: which potentials the float64 gradients use. With `float64`, only the spikes of `layers` are used.
        dropout: `(seed, step)` of the masks that the forward pass used.
        penalties: errors of rate penalties by the names of populations (`penalty_error`).
    """
    return _forward(network, wq, inputs, layers, potentials, dropout).backward(error, penalties)


def membrane_potentials(
    network: NetworkSpec | Network,
    wq: Mapping[str, Float32],
    inputs: UInt8,
    layers: Mapping[str, LayerRun],
    dropout: tuple[int, int] | None = None,
) -> dict[str, Near]:
    """Potentials of each population, from a float64 simulation with the spikes of `layers`: see `gradients`."""
    analysis = _forward(network, wq, inputs, layers, "float64", dropout)
    return {name: saved["u"] for name, saved in analysis.saved.items()}


def _forward(
    network: NetworkSpec | Network,
    wq: Mapping[str, Float32],
    inputs: UInt8,
    layers: Mapping[str, LayerRun],
    potentials: Potentials,
    dropout: tuple[int, int] | None,
) -> _NetworkAnalysis:
    if isinstance(network, NetworkSpec):
        graph, runs = network.graph, {block.population: layers[block.name] for block in network.blocks}
    else:
        graph, runs = network, {**layers}
    analysis = _NetworkAnalysis(graph, wq, runs, potentials, dropout)
    coding = next(node.op.coding for node in graph.nodes if isinstance(node.op, Input))
    analysis.forward(NumpyBackend().encode(inputs, coding))
    return analysis


class _NetworkAnalysis:
    """Both passes through a network, in the same order as in `oracles/literal.py`.

    Attributes:
        values: the output of each node, exact, `[1 or T, B, ...]`.
        read: the input of each of the weights and learned delays.
        saved: the values of each population that the backward pass reads.
        adjoints: for each node without weights, the function from the error of its output to that of its input.
        merged: for each node that merges branches, what its backward pass needs.
    """

    def __init__(
        self,
        graph: Network,
        wq: Mapping[str, Float32],
        runs: Mapping[str, LayerRun],
        potentials: Potentials,
        dropout: tuple[int, int] | None,
    ) -> None:
        self.graph, self.wq, self.runs, self.potentials, self.dropout = graph, wq, runs, potentials, dropout
        self.projections = {projection.name: projection for projection in graph.projections}
        self.recurrent = {name for names in graph.recurrent.values() for name in names}
        self.values: dict[str, AnyArray] = {}
        self.read: dict[str, AnyArray] = {}
        self.norms: dict[str, _Normalisation] = {}
        self.saved: dict[str, dict[str, Near]] = {}
        self.adjoints: dict[str, Callable[[Near], Near]] = {}
        self.merged: dict[str, Any] = {}

    @property
    def training(self) -> bool:
        return self.dropout is not None

    def forward(self, inputs: AnyArray) -> None:
        """Exact values of all nodes, from the spikes of the float32 forward pass."""
        for bound_node in self.graph.bound_nodes:
            node, op = bound_node.node, bound_node.node.op
            if node.name in self.recurrent:
                continue
            read = [_shift_time(self.values[e.source], e.delay) for e in node.inputs if e.source not in self.recurrent]
            if isinstance(op, Input):
                self.values[node.name] = inputs
            elif isinstance(op, Weighted):
                self._add_sums(node.name, *read)
            elif isinstance(op, Neurons):
                for name in self.graph.recurrent.get(node.name, ()):
                    self._add_sums(name, _shift_time(self.runs[node.name].spikes, 1))
                self.saved[node.name] = self._save(bound_node)
                self.values[node.name] = self.runs[node.name].spikes
            elif isinstance(op, Merge):
                self.values[node.name], self.merged[node.name] = op.forward(NUMPY, *read)
            elif isinstance(op, LearnedDelay):
                (self.read[node.name],) = read
                self.values[node.name] = _shift_channels(read[0], _whole_delays(self.wq[f"{node.name}.steps"]))
            else:
                (s,) = read
                self.values[node.name], self.adjoints[node.name] = self._pass_on(bound_node, s)

    def _add_sums(self, name: str, s: AnyArray) -> None:
        """Compute weighted sums."""
        projection, self.read[name] = self.projections[name], s
        synapse = projection.synapse
        if isinstance(synapse, OneToOne):
            self.values[name] = s * self.wq[name][:, 0]
            return
        z = RULES[type(synapse)].forward(synapse, s, self.wq[name])[0]
        norm = _normalised(projection, z, self.wq, self.dropout)
        if norm is not None:
            self.norms[name] = norm
        self.values[name] = z

    def _pass_on(self, bound_node: BoundNode, s: AnyArray) -> tuple[AnyArray, Callable[[Near], Near]]:
        op = bound_node.node.op
        assert isinstance(op, Passing)
        if isinstance(op, Dropout):
            if self.dropout is None or op.rate == 0:
                return s, _identity
            (seed, step), stream = self.dropout, substream(bound_node.layer, bound_node.position)
            mask = keep_mask(seed, stream, step, (s.shape[1], *bound_node.output.shape), op.rate)
            return s * mask, lambda d: _add_underflow(d.apply(lambda x: x * mask))
        layer = op.at(bound_node.inputs[0].shape)
        output, residuals = RULES[type(layer)].forward(layer, s)
        return output, lambda d: _add_underflow(_layer_adjoint(layer, residuals, d))

    def _save(self, bound_node: BoundNode) -> dict[str, Near]:
        """The values of a population that the backward pass reads, from float32 potentials or a float64 simulation."""
        op, run = bound_node.node.op, self.runs[bound_node.node.name]
        assert isinstance(op, Neurons)
        sources = [edge.source for edge in bound_node.node.inputs]
        equations, constants = _of_population(bound_node, training=self.training)
        zs = [self.values[source] for source in sources]
        learned = {name: self.wq[parameter] for name, parameter in bound_node.parameters.items()}
        learned_inputs = {
            free: _broadcast_channels(learned[name], run.spikes) for name, free in equations.learned.items()
        }
        if self.potentials == "float32":
            if equations.kept == ("u",):
                outputs = {"u": run.potentials}
            elif any(source in self.norms for source in sources):
                raise TypeError(
                    f"no error analysis of {op.model.name} after batch normalisation on float32's potentials"
                )
            else:
                sums = dict(zip(equations.inputs, zs, strict=True))
                outputs = recur(equations.forward, equations.constants, {**sums, **learned_inputs}, len(run.spikes))
            return {
                name: exact(x)
                for name, x in ({name: outputs[name] for name in equations.kept} | learned_inputs).items()
            }
        near = [
            self.norms[source].forward(self.wq[f"{source}.shift"]) if source in self.norms else exact(z)
            for source, z in zip(sources, zs, strict=True)
        ]
        if len(near) == 1:
            return neuron_forward(
                op.model, _filtering(bound_node.inputs[0], self.training), near[0], run.spikes, learned
            )
        simulated = _run(
            equations.forward,
            constants,
            {
                **dict(zip(equations.inputs, near, strict=True)),
                **{name: exact(x) for name, x in learned_inputs.items()},
            },
            run.spikes,
        )
        return {name: simulated[name] for name in equations.kept} | {
            name: exact(x) for name, x in learned_inputs.items()
        }

    def backward(self, error: Near, penalties: Mapping[str, Near] = MappingProxyType({})) -> dict[str, Near]:
        """Gradients by name. If several nodes read an output, their errors are added in the order of the nodes."""
        pending, grads = {self.graph.nodes[-1].name: [error]}, dict[str, Near]()
        trained = self._trained()
        for bound_node in reversed(self.graph.bound_nodes):
            node, op = bound_node.node, bound_node.node.op
            errors = pending.pop(node.name, [])
            if not errors or isinstance(op, Input):
                continue
            d = reduce(_add, reversed(errors))
            if node.name in penalties:
                d = _add(d, penalties[node.name])
            edges = [edge for edge in node.inputs if edge.source not in self.recurrent]
            grad_inputs: Sequence[Near | None]
            if isinstance(op, Neurons):
                grad_inputs = self._through_neurons(bound_node, d, grads)
            elif isinstance(op, Weighted):
                grad_inputs = [self._through_weights(node.name, d, grads, need_input=trained[edges[0].source])]
            elif isinstance(op, Merge):
                grad_inputs = self._merge_adjoint(op, self.merged[node.name], d, len(edges))
            elif isinstance(op, LearnedDelay):
                grad_inputs = [self._through_delays(node.name, d, grads)]
            else:
                grad_inputs = [self.adjoints[node.name](d)]
            for edge, grad_input in reversed([*zip(edges, grad_inputs, strict=True)]):
                if grad_input is not None and trained[edge.source]:
                    pending.setdefault(edge.source, []).append(
                        grad_input.apply(partial(_shift_time, steps=-edge.delay))
                    )
        uses: dict[str, list[str]] = {}
        for name, projection in self.projections.items():
            uses.setdefault(projection.parameter, []).append(name)
        return grads | {owner: reduce(_add, [grads.pop(name) for name in names]) for owner, names in uses.items()}

    @staticmethod
    def _merge_adjoint(op: Merge, residuals: Any, d: Near, count: int) -> list[Near]:
        """The errors of `count` merged branches. The operation rounds no error; it only passes errors on."""

        def of_branch(i: int, x: AnyArray) -> AnyArray:
            errors: Sequence[AnyArray] = op.backward(NUMPY, residuals, x)
            return errors[i]

        return [d.apply(partial(of_branch, i)) for i in range(count)]

    def _trained(self) -> dict[str, bool]:
        """For each node, whether it has weights or learned delays, or comes after such a node."""
        trained = dict[str, bool]()
        for bound_node in self.graph.bound_nodes:
            name, edges = bound_node.node.name, bound_node.node.inputs
            after_weights = any(trained.get(edge.source, False) for edge in edges)
            trained[name] = isinstance(bound_node.node.op, (Weighted, LearnedDelay)) or after_weights
        return trained

    def _through_weights(self, name: str, dz: Near, grads: dict[str, Near], *, need_input: bool) -> Near | None:
        """The backward pass of weights. Their gradient is added to `grads`."""
        synapse, s, w = self.projections[name].synapse, self.read[name], self.wq[name]
        if name in self.norms:
            dz, grads[f"{name}.scale"], grads[f"{name}.shift"] = self.norms[name].backward(dz)
        if isinstance(synapse, OneToOne):
            terms = dz.apply(lambda x: x * s)
            flat = terms.apply(lambda x: x.reshape(1, -1, len(w)).swapaxes(1, 2))
            grads[name] = _channel_sums(flat, len(w)).apply(lambda x: x.reshape(w.shape))
            return _one_to_one(w, dz) if need_input else None
        assert isinstance(synapse, (Conv2d, Linear))
        alike = max(map(self._alike, self.graph.readers[name]))
        grad_input, grads[name] = synapse_backward(synapse, s, w, dz, need_input=need_input, alike=alike)
        return grad_input

    def _through_delays(self, name: str, d: Near, grads: dict[str, Near]) -> Near:
        """The backward pass of learned delays. Their gradient is added to `grads`."""
        x, delays = self.read[name].astype(np.float64), self.wq[f"{name}.steps"]
        floors = [math.floor(delay) for delay in delays]
        slope = _shift_channels(x, [floor + 1 for floor in floors]) - _shift_channels(x, floors)
        # Products of two float32 numbers, in float64: they are exact.
        terms = Near(d.value * slope, d.error * np.abs(slope), d.spread * np.abs(slope))
        flat = terms.apply(lambda x: x.reshape(-1, *x.shape[2:]))
        grads[f"{name}.steps"] = _channel_sums(flat, len(delays))
        return d.apply(partial(_shift_channels, steps=[-count for count in _whole_delays(delays)]))

    def _alike(self, name: str) -> int:
        """Number of neighbours to which the pooling after a node sends nearly the same error."""
        count = 1
        for reader in self.graph.readers[name]:
            (bound_node,) = (candidate for candidate in self.graph.bound_nodes if candidate.node.name == reader)
            op = bound_node.node.op
            if isinstance(op, Passing):
                layer = op.at(bound_node.inputs[0].shape)
                area = layer.area if isinstance(layer, AvgPool2d) else 1
                count = max(count, area * self._alike(reader))
        return count

    def _through_neurons(self, bound_node: BoundNode, g: Near, grads: dict[str, Near]) -> list[Near]:
        """The backward pass of a population: errors of its inputs, except those of its recurrent weights."""
        op, spikes = bound_node.node.op, self.runs[bound_node.node.name].spikes
        assert isinstance(op, Neurons)
        saved, loops = self.saved.pop(bound_node.node.name), self.graph.recurrent.get(bound_node.node.name, ())
        sources = [edge.source for edge in bound_node.node.inputs]
        static = [values.static and len(spikes) > 1 for values in bound_node.inputs]
        if len(bound_node.inputs) == 1:
            arguments = op.model, _filtering(bound_node.inputs[0], self.training), saved, spikes, g
            grads |= {bound_node.parameters[name]: x for name, x in learned_gradients(*arguments).items()}
            return [neuron_backward(*arguments, static=static[0])]
        equations, constants = _of_population(bound_node, training=self.training)
        summed = tuple(sorted({error for error, is_static in zip(equations.errors, static, strict=True) if is_static}))
        step, states = equations.backward_step(summed)
        zero = exact(np.zeros((1, *spikes.shape[1:])))
        recurrent_grad, state_grads = zero, dict.fromkeys(states, zero)
        steps: dict[str, list[Near]] = {name: [] for name in equations.errors if name not in summed}
        for t in reversed(range(len(spikes))):
            saved_step = {name: x if len(x.value) == 1 else x[t : t + 1] for name, x in saved.items()}
            outputs = _run(
                step,
                constants,
                {**saved_step, "g": g[t : t + 1], "back": recurrent_grad, **state_grads},
                spikes[t : t + 1],
            )
            state_grads = dict(
                zip(states, [outputs[name] for name in [*outputs][len(outputs) - len(states) :]], strict=True)
            )
            for name, errors in steps.items():
                errors.append(outputs[name])
            feedback = [self._feedback(name, outputs[equations.errors[sources.index(name)]]) for name in loops]
            recurrent_grad = reduce(_add, feedback, zero)
        per_step = {name: _concatenate(errors[::-1]) for name, errors in steps.items()}
        names = (*summed, *equations.terms.values())
        totals = dict(zip(names, [*state_grads.values()][len(state_grads) - len(names) :], strict=True))
        for name, output in equations.terms.items():
            (count,) = bound_node.learned[name].shape(bound_node.output.shape)
            grads[bound_node.parameters[name]] = _channel_sums(totals[output][0], count)
        grad_inputs = {**per_step, **{name: totals[name] for name in summed}}
        for name in loops:
            self._through_weights(name, grad_inputs[equations.errors[sources.index(name)]], grads, need_input=False)
        return [
            grad_inputs[error] for source, error in zip(sources, equations.errors, strict=True) if source not in loops
        ]

    def _feedback(self, name: str, dz: Near) -> Near:
        """`V^T dz` of one step, `[1, B, ...]`."""
        projection, w = self.projections[name], self.wq[name]
        if isinstance(projection.synapse, OneToOne):
            return _one_to_one(w, dz)
        assert isinstance(projection.synapse, (Conv2d, Linear))
        return input_errors(projection.synapse, projection.input.shape, w, dz)


def _one_to_one(w: Float32, dz: Near) -> Near:
    weights = exact(w[:, 0])
    return _multiply(
        Near(*(np.broadcast_to(x, dz.value.shape) for x in (weights.value, weights.error, weights.spread))), dz
    )


def _identity(d: Near) -> Near:
    return d


def _add_underflow(d: Near) -> Near:
    """Largest change by underflow."""
    tiny = np.where(d.largest > 0, TINY, 0)
    return replace(d, error=d.error + tiny, spread=d.spread + tiny)


def _shift_time(x: AnyArray, steps: int) -> AnyArray:
    """Delay (`steps` > 0) or advance a sequence, with zeros at the end that has no value."""
    if steps == 0:
        return x
    shifted, count = np.zeros_like(x), max(0, len(x) - abs(steps))
    if steps > 0:
        shifted[len(x) - count :] = x[:count]
    else:
        shifted[:count] = x[len(x) - count :]
    return shifted


def _shift_channels(x: AnyArray, steps: Sequence[int]) -> AnyArray:
    """Delay each channel of a sequence `[T, B, C, ...]` by its own number of steps; see `_shift_time`."""
    return np.stack([_shift_time(x[:, :, channel], count) for channel, count in enumerate(steps)], axis=2)


def _whole_delays(delays: Float32) -> list[int]:
    """The whole numbers nearest to delays; a tie is the even number."""
    return [round(float(delay)) for delay in delays]


def _filtering(values: Values, training: bool) -> Filtering:
    return exact_filter(values.pending, values.factor(training=training), biased=values.biased)


def _of_population(bound_node: BoundNode, *, training: bool) -> tuple[NeuronEquations, dict[str, Near]]:
    """The equations of neurons that read several projections, and the errors of their float32 constants."""
    op, inputs = bound_node.node.op, bound_node.inputs
    assert isinstance(op, Neurons)
    filters = tuple(values.filter(training=training) for values in inputs)
    equations = neuron_equations(filters, op.model, tuple(values.static for values in inputs))
    of_filters = [
        constant
        for values, name, error in zip(inputs, equations.inputs, equations.errors, strict=True)
        for constant in (_filtering(values, training).constants if error == f"d{name}" else ())
    ]
    constants = {name: _constant(value) for name, value in equations.unrounded.items()}
    return equations, constants | dict(zip(equations.forward.parameters, of_filters, strict=False))


def _concatenate(steps: Sequence[Near]) -> Near:
    """Concatenate steps `[1, B, ...]`."""
    return Near(*(np.concatenate([getattr(x, name) for x in steps]) for name in ("value", "error", "spread")))


def _stack(steps: Sequence[Near]) -> Near:
    return Near(*(np.stack([getattr(x, name) for x in steps]) for name in ("value", "error", "spread")))
