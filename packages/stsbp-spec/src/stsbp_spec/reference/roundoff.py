"""How far `fast` gradients in float32 can be from float64: a running error analysis of the backward pass.

Beside each float64 value stands a bound of its distance to float32, built up by the same steps as the value:

- a float32 operation rounds once: `fl(a op b) = (a op b)(1 + d)`, `|d| <= u = 2^-24`;
- a sum of `n` products, in any order, with or without fused multiply-adds, is off by at most `gamma(n)` times the sum
  of their magnitudes, `gamma(n) = n u / (1 - n u)`;
- `snap` moves a value by less than `FLOOR`, and underflow (gradual or flushed) by less than `TINY`;
- errors that were there before are carried on by the derivative of each step, and second-order terms are kept.

docs/exactness.md derives the steps. The result holds for every weight by itself, whatever the data, as long as nothing
overflows. The second figure beside each value, `spread`, is no bound: it adds independent errors by their squares and
says how large they are for random data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from stsbp_spec.backend import LayerRun
from stsbp_spec.equations import NeuronEquations, neuron_equations
from stsbp_spec.expr import Expr, Recurrence, ordered
from stsbp_spec.grid import FLOOR
from stsbp_spec.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.neurons import LIF, NeuronModel
from stsbp_spec.random import keep_mask
from stsbp_spec.reference.backend import (
    RULES,
    by_group,
    chunks,
    conv_forward,
    fold,
    linear_forward,
    of_groups,
    recur,
    unfold,
    weight_rows,
)
from stsbp_spec.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Triangle
from stsbp_spec.synapses import IDENTITY, PSP, AvgPool2d, Conv2d, Dropout, Linear, Upsample2d, batchnorm
from stsbp_spec.synapses.base import Passing
from stsbp_spec.synapses.bias import Biased
from stsbp_spec.synapses.psp import SynapticFilter
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
    "learned_gradients",
    "loss_error",
    "neuron_backward",
    "neuron_forward",
    "synapse_backward",
]

U = 2.0**-24
"""Unit roundoff of float32."""

TINY = 2.0**-125
"""More than underflow can move a value, whether subnormal numbers are kept or flushed where written and where read."""

EXP_ULPS = 4
"""Units in the last place by which a library's float32 `exp(-a)` may be off, besides `2 a u` for a reduced argument."""

Potentials: TypeAlias = Literal["float32", "float64"]
"""Which potentials the float64 gradients stand on: those of the float32 forward pass, or a float64 simulation's own."""


@dataclass(frozen=True)
class Near:
    """Float64 values, and where float32 lies; three arrays of one shape, or numbers.

    Attributes:
        value: in float64.
        error: float32 is nowhere further away than this; see `bound`.
        spread: how far away it is by the root of the sum of squares, for roundings that know nothing of each other.
    """

    value: Float64
    error: Float64
    spread: Float64

    def __getitem__(self, index: Any) -> Near:
        return Near(self.value[index], self.error[index], self.spread[index])

    def each(self, linear: Callable[[Float64], Float64]) -> Near:
        """A linear map without negative coefficients that float32 computes exactly."""
        return Near(linear(self.value), linear(self.error), linear(self.spread))

    @property
    def bound(self) -> Float64:
        """`error`, and what float64 rounds in the value and in the error itself: 2^-29 of what float32 may round."""
        return self.error * (1 + 2.0**-20)

    @property
    def largest(self) -> Float64:
        """The largest magnitude that float32 can have."""
        return np.abs(self.value) + self.error


def exact(value: AnyArray | float) -> Near:
    """What float32 and float64 both hold."""
    wide: Float64 = np.asarray(value, np.float64)
    return Near(wide, np.zeros_like(wide), np.zeros_like(wide))


def _constant(wide: float) -> Near:
    """A constant, in float32 rounded once."""
    error = np.float64(abs(float(np.float32(wide)) - wide))
    return Near(np.float64(wide), error, error)  # type: ignore[arg-type]


def gamma(n: AnyArray | int) -> Float64:
    """`n u / (1 - n u)`: the error of a sum of `n` products, in any order, as a part of the sum of their magnitudes.

    Infinite from `n = 2^24` on.
    """
    total = np.asarray(n, np.float64) * U
    return np.where(total < 1, total / np.where(total < 1, 1 - total, 1), np.inf)


def _root(*parts: Any) -> Float64:
    total: Float64 = np.sqrt(sum(np.square(part) for part in parts))
    return total


def _is_power_of_two(a: Near) -> bool:
    """A constant with which products are exact."""
    return a.value.ndim == 0 and a.error == 0 and math.frexp(abs(float(a.value)))[0] in (0.0, 0.5)


def _multiply(a: Near, b: Near) -> Near:
    value = a.value * b.value
    carried = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    u = 0.0 if _is_power_of_two(a) or _is_power_of_two(b) else U
    error = carried + u * (np.abs(value) + carried)
    spread = _root(a.value * b.spread, b.value * a.spread, u * value)
    tiny = np.where((a.largest > 0) & (b.largest > 0), TINY, 0)
    return Near(value, error + tiny, spread + tiny)


def _add(a: Near, b: Near) -> Near:
    """Errors of the two are added in `spread` too: they often come from one rounding."""
    value = a.value + b.value
    carried = a.error + b.error
    u = np.where((a.largest > 0) & (b.largest > 0), U, 0)  # the sum with a zero does not round
    return Near(value, carried + u * (np.abs(value) + carried), _root(a.spread + b.spread, u * value))


def _negative(a: Near) -> Near:
    return replace(a, value=-a.value)


def _divide(a: Near, b: Near) -> Near:
    """`a / b`, where neither float64 nor float32 can have a `b` below 1."""
    value = a.value / b.value
    carried = (np.abs(value) * b.error + a.error) / np.maximum(b.value - b.error, 1)
    error = carried + U * (np.abs(value) + carried) + TINY
    return Near(value, error, _root(value * b.spread / b.value, a.spread / b.value, U * value))


def _snap(a: Near) -> Near:
    """The floor, which float64 does not have."""
    floor = _floor(a.value, a.error)
    return replace(a, error=a.error + floor, spread=a.spread + floor)


def _floor(value: Float64, error: Float64) -> Float64:
    """What `snap` can change of a float32 value within `error` of `value`."""
    reached = (np.abs(value) - error < FLOOR) & (np.abs(value) + error > 0)
    return np.where(reached, FLOOR, 0.0)


# The neuron.


def _derivative(neuron: LIF, u: Near) -> Near:
    """`h(u - V_th)`, by the operations that surrogates.py writes."""
    surrogate, vth = neuron.surrogate, _constant(neuron.threshold)
    # Where float32 has the very same potential, its difference is known to the bit.
    known = u.error == 0
    with np.errstate(over="ignore"):
        narrow = u.value.astype(np.float32) - np.float32(neuron.threshold)
    value = u.value - neuron.threshold
    off = np.abs(narrow - value)
    carried = u.error + vth.error
    x = Near(
        value,
        np.where(known, off, carried + U * (np.abs(value) + carried)),
        np.where(known, off, _root(u.spread, vth.error, U * value)),
    )
    one, size = exact(1.0), replace(x, value=np.abs(x.value))
    if isinstance(surrogate, Rectangle):
        return _rectangle(surrogate, size, np.where(known, np.abs(narrow), np.nan))
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
        raise TypeError(f"no error analysis of the surrogate {surrogate!r}")
    return replace(h, error=np.minimum(h.error, 1.0))  # both lie between 0 and 1


def _rectangle(surrogate: Rectangle, size: Near, narrow: AnyArray) -> Near:
    """A jump by all of the height where float32 and float64 stand, or may stand, on two sides of an edge.

    `narrow` is float32's `|x|` where it is known, else NaN.
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
        constants: in its own order: decay and gain, or decay, rise and gain; with a bias, last, the gain of training.
        like: a filter with as many constants, which says what is computed.
    """

    constants: tuple[Near, ...]
    like: SynapticFilter


def exact_filter(psp: PSP | None, gain: float = 1.0, *, biased: bool = False) -> Filtering:
    """A filter in the literal form, and how far its float32 constants are; None: no filter."""
    if biased:
        plain = exact_filter(psp)
        if gain == 1:
            return Filtering(plain.constants, Biased(plain.like, np.float32(1)))
        return Filtering((*plain.constants, _constant(gain)), Biased(plain.like, np.float32(gain)))
    if psp is None:
        return Filtering((exact(0.0), _constant(gain)), IDENTITY)
    decay = _constant(1 - 1 / psp.tau_s)
    if psp.tau_rise:
        rise, slow = _constant(1 - 1 / psp.tau_rise), psp.tau_s - psp.tau_rise
        return Filtering((decay, rise, _constant(gain / slow)), PSP(3.0, 2.0).filter())
    return Filtering((decay, _constant(gain / psp.tau_s)), IDENTITY)


def _is_plain(neuron: NeuronModel, filter: Filtering) -> bool:
    return isinstance(neuron, LIF) and neuron.reset == "zero" and filter.like == IDENTITY


def _equations(neuron: NeuronModel, filter: Filtering) -> NeuronEquations:
    """Which values the constants of the filter have is said apart."""
    return neuron_equations(filter.like, neuron)


def _filtered(decay: Near, state: Near, x: Near) -> Near:
    """`snap(decay state + x)`."""
    return _snap(_add(_multiply(decay, state), x))


def neuron_forward(
    neuron: NeuronModel, filter: Filtering, z: AnyArray | Near, spikes: UInt8, learned: Mapping[str, Float32] = _NONE
) -> dict[str, Near]:
    """What the way back reads of a float64 simulation with the given spikes, `[T, B, ...]` by name: `u` and others.

    Args:
        neuron: its model.
        filter: constants of the filter before it.
        z: exact, `[1 or T, B, ...]`, or near it.
        spikes: of float32, `[T, B, ...]`.
        learned: what the neurons have learned, by name, each `[1]` or `[C]`; it is among the result too.
    """
    z = z if isinstance(z, Near) else exact(z)
    if _is_plain(neuron, filter):
        return {"u": _lif_forward(neuron, filter, z, spikes)}  # type: ignore[arg-type]
    equations = _equations(neuron, filter)
    each = {free: exact(_spread(learned[name], spikes)) for name, free in equations.learned.items()}
    found = _run(equations.forward, _constants(equations, filter), {"z": z, **each}, spikes)
    return {name: found[name] for name in equations.kept} | each


def _spread(values: Float32, spikes: UInt8) -> AnyArray:
    """One number a channel, or one for all, for each neuron: `[1, B, ...]`."""
    each = values.reshape(1, 1, -1, *(1,) * (spikes.ndim - 3))
    return np.broadcast_to(each, (1, *spikes.shape[1:]))


def neuron_backward(
    neuron: NeuronModel,
    filter: Filtering,
    kept: Mapping[str, Near],
    spikes: UInt8,
    g: Near,
    *,
    static: bool,
) -> Near:
    """`dL/dz`, `[1 or T, B, ...]`, from `g = dL/do` and `kept`, `neuron_forward` or `exact` values of float32."""
    if _is_plain(neuron, filter):
        return _lif_backward(neuron, filter, kept["u"], spikes, g, static=static)  # type: ignore[arg-type]
    equations = _equations(neuron, filter)
    dz = _run(equations.backward, _constants(equations, filter), {**kept, "g": g}, spikes)["dz"]
    return _stack([_over_time(dz)]) if static else dz


def _over_time(steps: Near) -> Near:
    """The sum over the steps from the last to the first."""
    total = exact(np.zeros(steps.value.shape[1:]))
    for t in reversed(range(len(steps.value))):
        total = _add(total, steps[t])
    return total


def learned_gradients(
    neuron: NeuronModel, filter: Filtering, kept: Mapping[str, Near], spikes: UInt8, g: Near
) -> dict[str, Near]:
    """Gradients of what the neurons learn, by name, each `[1]` or `[C]`: see `neuron_backward`."""
    equations = _equations(neuron, filter)
    if not equations.terms:
        return {}
    found = _run(equations.backward, _constants(equations, filter), {**kept, "g": g}, spikes)
    gradients, learned = {}, {**filter.like.learned(), **neuron.learned()}
    for name, output in equations.terms.items():
        (count,) = learned[name].shape(spikes.shape[2:])

        def total(x: Float64, count: int = count) -> Float64:
            added: Float64 = np.moveaxis(x, 1, 0).reshape(count, -1).sum(axis=1)
            return added

        each = _over_time(found[output])
        value, error = total(each.value), total(each.error)
        # n numbers added in float64, in any order: off by at most n 2^-53 of their magnitudes. Then rounded once.
        error = error + each.value.size * 2.0**-53 * total(each.largest)
        error = error + U * (np.abs(value) + error) + TINY
        spread = _root(np.sqrt(total(np.square(each.spread))), U * value) + TINY
        gradients[name] = Near(value, error, spread)
    return gradients


def _constants(equations: NeuronEquations, filter: Filtering) -> dict[str, Near]:
    constants = filter.constants
    of_filter = dict(zip(equations.forward.parameters[: len(constants)], constants, strict=True))
    return {name: _constant(value) for name, value in equations.wide.items()} | of_filter


def _run(
    recurrence: Recurrence, constants: Mapping[str, Near], inputs: Mapping[str, Near], spikes: UInt8
) -> dict[str, Near]:
    """Outputs of a recurrence by name, `[T, B, ...]`; every spike in it is the one that float32 had."""
    nodes = ordered(recurrence.roots)
    states = {name: exact(np.zeros(spikes.shape[1:])) for name in recurrence.states}
    steps: dict[str, list[Near]] = {name: [] for name, x in recurrence.outputs.items() if not x.is_condition}
    for t in reversed(range(len(spikes))) if recurrence.reverse else range(len(spikes)):
        known = {
            **constants,
            **{name: inputs[name][t % len(inputs[name].value)] for name in recurrence.inputs},
            **states,
        }
        made: dict[int, Any] = {}
        for x in nodes:
            made[id(x)] = _value(x, [made[id(a)] for a in x.args], known, spikes[t] != 0)
        states = {name: made[id(x)] for name, x in recurrence.states.items()}
        for name, found in steps.items():
            found.append(made[id(recurrence.outputs[name])])
    return {name: _stack(found[::-1] if recurrence.reverse else found) for name, found in steps.items()}


def _value(x: Expr, a: Sequence[Any], known: Mapping[str, Near], fired: AnyArray) -> Any:
    """One node: a `Near`, or for a condition whether it holds in float64 and whether float32 may see it otherwise."""
    if x.op == "variable":
        return known[str(x.name)]
    if x.op == "constant":
        return exact(x.value)
    if x.op == "spike":
        return fired, np.zeros_like(fired)
    if x.op in ("lt", "ge"):
        off = a[0].error + a[1].error
        truth = a[0].value < a[1].value
        return (truth if x.op == "lt" else ~truth), (off > 0) & (np.abs(a[0].value - a[1].value) <= off)
    if x.op == "where":
        return _chosen(*a)
    if x.op == "abs":
        return replace(a[0], value=np.abs(a[0].value))
    if x.op == "exp":
        return _exp(a[0])
    if x.op == "sub":
        return _add(a[0], _negative(a[1]))
    if x.op not in _NEAR:
        raise TypeError(f"no error analysis of the operation {x.op}")
    return _NEAR[x.op](*a)


def _chosen(condition: tuple[AnyArray, AnyArray], a: Near, b: Near) -> Near:
    """`where`: by all that the two differ, where float32 may choose the other one."""
    truth, unsure = condition
    jump = np.where(unsure, np.abs(a.value - b.value) + np.maximum(a.error, b.error), 0)
    error, spread = (np.where(truth, p, q) for p, q in ((a.error, b.error), (a.spread, b.spread)))
    return Near(np.where(truth, a.value, b.value), np.maximum(error, jump), np.maximum(spread, jump))


def _exp(a: Near) -> Near:
    """`exp` of a number of at most 0."""
    off = (2 * EXP_ULPS + 2 * a.largest) * U
    value = np.exp(a.value)
    grown = np.expm1(np.minimum(a.error, 700))
    # Float32 is within exp(a + error) (1 + off); no value of exp(a) exceeds 1.
    return Near(value, np.minimum(value * (grown + off + grown * off), 1 + off) + TINY, value * _root(a.spread, off))


def _sqrt(a: Near) -> Near:
    value = np.sqrt(a.value)
    moved = value - np.sqrt(np.maximum(a.value - a.error, 0))  # downwards it moves further than upwards
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(value > 0, a.spread / (2 * value), np.sqrt(a.spread))
    return Near(value, moved + (value + moved) * U, _root(spread, value * U))


_NEAR: dict[str, Callable[..., Near]] = {
    "add": _add, "mul": _multiply, "div": _divide, "neg": _negative, "snap": _snap, "sqrt": _sqrt,
}  # fmt: skip


def _lif_forward(neuron: LIF, filter: Filtering, z: Near, spikes: UInt8) -> Near:
    """`neuron_forward` of LIF with reset to zero: its potentials."""
    decay, gain = filter.constants
    km = _constant(1 - 1 / neuron.tau_m)
    i = m = exact(np.zeros(spikes.shape[1:]))
    steps = []
    for t, fired in enumerate(spikes != 0):
        i = _filtered(decay, i, _multiply(gain, z[t % len(z.value)]))
        u = _snap(_add(m, i))
        steps.append(u)
        m = _multiply(km, u).each(lambda x, kept=~fired: x * kept)  # type: ignore[misc]
    return _stack(steps)


def _lif_backward(neuron: LIF, filter: Filtering, u: Near, spikes: UInt8, g: Near, *, static: bool) -> Near:
    """`neuron_backward` of LIF with reset to zero, closer than operation by operation.

    Float32 differs from `d = h g + ((1 - o) - h u) d1`, `d1 = k_m d_{t+1}`, by

        (h' - h) w' + h (g' - g) - h (u' - u) d1' + ((1 - o) - h u) (d1' - d1) + h' (rounding of p and w) + ...

    where the primed values are float32's and `w = g - u d1`. An error from the step after it is carried by the neuron's
    own factor `(1 - o) - h u`, in which the reset's path is taken off the leak's, not by the sum of both.
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
        carried_p = np.abs(ut.value) * d1.error + ut.error * d1.largest
        round_p = np.where((ut.largest > 0) & (d1.largest > 0), U * ut.largest * d1.largest + TINY, 0)
        floor_p = _floor(p, carried_p + round_p)
        round_p = round_p + floor_p
        carried_w = gt.error + carried_p + round_p
        largest_w = np.abs(w) + carried_w
        round_w = np.where((gt.largest > 0) & (round_p > 0), U * largest_w, 0)
        r = h.value * w
        largest_r = h.largest * (largest_w + round_w)
        round_r = np.where((h.largest > 0) & (largest_w > 0), U * largest_r + TINY, 0)
        floor_r = _floor(r, largest_r - np.abs(r) + round_r)
        round_r = round_r + floor_r
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


# What stands between neurons.


def synapse_backward(
    synapse: Conv2d | Linear, s: AnyArray, wq: Float32, dz: Near, *, need_input: bool, alike: int = 1
) -> tuple[Near | None, Near]:
    """`(ds, dW)` from inputs `[T, B, ...]` and `dz` `[T, B, ...]`, sums in any order.

    Args:
        synapse, s, wq: the weights' geometry, inputs and weights.
        dz: error of the outputs.
        need_input: whether `ds` is wanted, else None.
        alike: how many neighbours have nearly the same `dz` (a window of the pooling above), for the spread.
    """
    flat, size, variance, squares = (
        x.reshape(-1, *x.shape[2:]) for x in (s, dz.largest, np.square(dz.spread), np.square(dz.value))
    )
    value, error = (x.reshape(-1, *x.shape[2:]) for x in (dz.value, dz.error))
    groups = synapse.groups if isinstance(synapse, Conv2d) else 1
    (n,) = _weight_sums(synapse, flat != 0, [np.ones_like(value[:, :groups])])
    n = n if groups == 1 else np.repeat(n, len(wq) // groups, axis=0)
    sums = _weight_sums(synapse, flat, [value, error, size])
    # What one neuron sends back at several steps, and neighbours of one window, is alike, so that it does not cancel:
    # (sum of m terms)^2 is at most m times the sum of their squares.
    together = np.square(s.astype(np.float64)) * np.count_nonzero(s, axis=0) * alike
    sums += _weight_sums(synapse, together.reshape(flat.shape), [variance, squares])
    dw = _sum(n, *sums).each(lambda x: x.reshape(wq.shape))
    if not need_input:
        return None, dw
    w = wq.astype(np.float64)
    matrices = (w, np.abs(w), np.abs(w), w * w, w * w)
    fields = (value, error, size, variance, squares)
    below = [_input_sums(synapse, *pair, s.shape[2:]) for pair in zip(matrices, fields, strict=True)]
    ds = _sum(synapse.summands(s.shape[2:])[2], *below)
    return ds.each(lambda x: x.reshape(s.shape)), dw


def _sum(
    n: AnyArray | int, value: Float64, error: Float64, largest: Float64, variance: Float64, squares: Float64
) -> Near:
    """A sum of `n` products whose errors, magnitudes, squared spreads and squares add up to what is given.

    Partial sums in random order: after `k` products `k/n` of the value, and about it a variance of at most `k/n (1 -
    k/n)` of the squares. Each rounds once.
    """
    tiny = np.where(largest > 0, 2 * np.asarray(n) * TINY, 0)
    partial = np.asarray(n) * (np.square(value) / 3 + squares / 6)
    return Near(value, error + gamma(n) * largest + tiny, np.sqrt(variance + U * U * partial) + tiny)


def _weight_sums(synapse: Conv2d | Linear, inputs: AnyArray, fields: Sequence[Float64]) -> list[Float64]:
    """Sums of fields `[n, C', ...]` times what each weight meets of `inputs` `[n, C, ...]`; `[C', fan-in]` each."""
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
        back = by_group(synapse, _rows(errors[chunk])) @ rows
        ds[chunk] = fold(synapse, of_groups(synapse, back), ds[chunk].shape)
    return ds


def loss_error(loss: Loss, psp: PSP, s: UInt8, targets: UInt8) -> Near:
    """`dL/do` of the batch loss, `[T, B, N]`."""
    steps, batch = s.shape[:2]
    difference = exact(s.astype(np.float64) - targets)
    if isinstance(loss, Hamming):
        return _multiply(_constant(1 / batch), difference)
    if isinstance(loss, SpikeCount):
        count = exact(difference.value.sum(axis=0))
        error = _multiply(_constant(1 / (steps * steps * batch)), count)
        return error.each(lambda x: np.repeat(x[None], steps, axis=0))
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


# Batch normalisation.


@dataclass(frozen=True)
class _Normalised:
    """Sums of weights and what normalises them.

    Attributes:
        z: the sums, `[1 or T, B, ...]`.
        numbers: `mean` and `a` of `batchnorm.FORWARD`, and where float32 has them.
        stretch, narrowing: see `batchnorm.Coefficients`, `[C]`.
        unit: of the sums.
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
        """An equation of batchnorm.py on all sums; numbers of a channel are `[C]`."""
        given = {name: x.each(self.spread) if x.value.ndim == 1 else x for name, x in inputs.items()}
        none = np.zeros(self.z.shape, np.uint8)
        (found,) = _run(recurrence, {}, {"z": exact(self.z), **given}, none).values()
        return found

    def spread(self, values: Float64) -> Float64:
        wide: Float64 = np.broadcast_to(values.reshape(1, 1, -1, *(1,) * (self.z.ndim - 3)), (1, *self.z.shape[1:]))
        return wide

    def sums(self, x: Float64) -> Float64:
        """`x` of the shape of `z`, added up channel by channel."""
        added: Float64 = np.moveaxis(x, 2, 0).reshape(x.shape[2], -1).sum(axis=1)
        return added

    def forward(self, shift: Float32) -> Near:
        """What the neurons read."""
        return self.run(batchnorm.FORWARD, **self.numbers, shift=exact(shift))

    def backward(self, dy: Near) -> tuple[Near, Near, Near]:
        """`dz`, and the gradients of scale and shift."""
        n = math.prod(self.z.shape) // len(self.mean)
        about = self.z - self.spread(self.mean)
        size = self.sums(dy.largest * np.abs(self.z)), self.sums(dy.largest)
        # Two pieces of z, each less than z and 2^12 units in magnitude, and n sums of float64 in any order.
        rounded = (n + 8) * 2.0**-53 * (size[0] + (2.0**13 * self.unit + np.abs(self.mean)) * size[1])
        total = self._sum(dy, np.ones_like(about), n * 2.0**-53 * size[1])
        around = self._sum(dy, about, rounded)
        if not self.training:
            none = exact(np.zeros(len(self.mean)))
            of_all = slope = none
        else:
            of_all = _rounded(total.each(lambda x: x / n))
            slope = _rounded(_times(around, self.narrowing / n))
        numbers = {name: self.numbers[name] for name in ("mean", "a")}
        dz = self.run(batchnorm.BACKWARD, dy=dy, **numbers, of_all=of_all, slope=slope)
        return dz, _rounded(_times(around, self.stretch)), _rounded(total)

    def _sum(self, dy: Near, factor: Float64, rounded: Float64) -> Near:
        error = self.sums(dy.error * np.abs(factor)) + rounded
        # What one neuron sends back at several steps is alike.
        alike = np.square((dy.spread * np.abs(factor)).sum(axis=0, keepdims=True))
        return Near(self.sums(dy.value * factor), error, np.sqrt(self.sums(alike)))


def _times(a: Near, exactly: Float64) -> Near:
    return Near(a.value * exactly, a.error * np.abs(exactly), a.spread * np.abs(exactly))


def _rounded(a: Near) -> Near:
    """A number that float64 has, as float32, or 0 below the floor."""
    error = a.error + U * (np.abs(a.value) + a.error) + TINY
    return _snap(Near(a.value, error, _root(a.spread, U * a.value) + TINY))


def _normalised(
    block: Block, z: Float32, wq: Mapping[str, AnyArray], dropout: tuple[int, int] | None
) -> _Normalised | None:
    """What normalises the sums `z` of a block; None: nothing does."""
    norm = block.synapse.norm
    if norm is None:
        return None
    training, (scale, mean, variance) = (
        dropout is not None,
        (wq[f"{block.name}.{name}"].astype(np.float64) for name in ("scale", "mean", "variance")),
    )
    gain = block.input.gain if training else 1.0
    if training:
        axes = tuple(axis for axis in range(z.ndim) if axis != 2)
        mean, variance = z.mean(axes, dtype=np.float64), z.var(axes, dtype=np.float64)
    s2 = gain * gain * variance + norm.eps
    stretch = norm.factor * gain / np.sqrt(s2)
    narrow = {"mean": mean, "a": scale * stretch}
    numbers = {name: _rounded(exact(x)) for name, x in narrow.items()}
    unit = 2.0 ** -int(wq[f"{block.name}.exponent"][0])
    return _Normalised(z, numbers, mean, stretch, gain * gain / s2, unit, training)


# The whole network.


@dataclass(frozen=True)
class _Trace:
    """What met a block's weights, `[1 or T, B, ...]`, and how to go back through pooling and dropout."""

    s: AnyArray
    back: Callable[[Near], Near]


def _before(block: Block, s: AnyArray, dropout: tuple[int, int] | None) -> _Trace:
    undo: list[Callable[[Near], Near]] = []
    for place, (layer, shape) in enumerate(block.entering):
        if not isinstance(layer, Dropout):
            rule = RULES[type(layer)]
            s, residuals = rule.forward(layer, s)
            undo.append(partial(_undone, layer, residuals))
        elif dropout is not None and layer.rate > 0:
            seed, step = dropout
            mask = keep_mask(seed, block.dropout_substream(place), step, (s.shape[1], *shape), layer.rate)
            s = s * mask
            undo.append(lambda d, mask=mask: d.each(lambda x: x * mask))  # type: ignore[misc]

    def back(d: Near) -> Near:
        for adjoint in reversed(undo):
            d = adjoint(d)
            tiny = np.where(d.largest > 0, TINY, 0)
            d = replace(d, error=d.error + tiny, spread=d.spread + tiny)
        return d

    return _Trace(s, back)


def _undone(layer: Passing, residuals: Any, d: Near) -> Near:
    """Adjoint of an operation without weights."""
    if isinstance(layer, Upsample2d):
        return _block_sums(layer, d)
    return d.each(lambda x: RULES[type(layer)].backward(layer, residuals, x))


def _block_sums(up: Upsample2d, d: Near) -> Near:
    """Sums of the blocks of an upsampling; each addition rounds once."""
    rows, columns = up.factors
    return reduce(_add, (d[..., i::rows, j::columns] for i in range(rows) for j in range(columns)))


def gradients(
    network: NetworkSpec,
    wq: Mapping[str, Float32],
    inputs: UInt8,
    layers: Mapping[str, LayerRun],
    error: Near,
    *,
    potentials: Potentials = "float32",
    dropout: tuple[int, int] | None = None,
) -> dict[str, Near]:
    """Gradients of all parameters in float64, and how far a backend's `fast` ones can be from them.

    Args:
        network: the network.
        wq: weights on their grid, what else was learned, statistics and exponents, by name: `trainer.on_grid`.
        inputs: `[B, ...]` (direct) or `[T, B, ...]` (events), uint8.
        layers: spikes and potentials of the float32 forward pass, by layer name (`AbstractBackend.run`).
        error: `dL/do` of the output: `loss_error`, or `exact` cotangents.
        potentials: which ones float64 stands on; with `float64` only the spikes of `layers` are used.
        dropout: `(seed, step)` of the masks that the forward pass used.
    """
    s: AnyArray = inputs if network.coding == "events" else inputs[None].astype(np.float32) * np.float32(2.0**-8)
    traces, kept, norms = {}, {}, dict[str, _Normalised]()
    for block in network.blocks:
        run = layers[block.name]
        trace = traces[block.name] = _before(block, s, dropout)
        forward: Any = conv_forward if isinstance(block.synapse, Conv2d) else linear_forward
        z = forward(block.synapse, trace.s, wq[block.name])[0]
        if (norm := _normalised(block, z, wq, dropout)) is not None:
            norms[block.name] = norm
        if potentials == "float32":
            kept[block.name] = {name: exact(x) for name, x in _kept(block, run, z, wq, dropout).items()}
        else:
            if norm is not None:
                z = norm.forward(wq[f"{block.name}.shift"])
            learned = {name: wq[f"{block.name}.{name}"] for name in block.learned}
            kept[block.name] = neuron_forward(block.neuron, _filter(block, dropout), z, run.spikes, learned)
        s = run.spikes
    found: dict[str, Near] = {}
    g: Near | None = error
    alike = 1
    for block in reversed(network.blocks):
        assert g is not None
        trace, spikes = traces[block.name], layers[block.name].spikes
        static = len(trace.s) == 1 and len(spikes) > 1
        own = block.neuron, _filter(block, dropout), kept.pop(block.name), spikes, g
        found |= {f"{block.name}.{name}": x for name, x in learned_gradients(*own).items()}
        dz = neuron_backward(*own, static=static)
        if block.name in norms:
            dz, found[f"{block.name}.scale"], found[f"{block.name}.shift"] = norms.pop(block.name).backward(dz)
        below, found[block.name] = synapse_backward(
            block.synapse, trace.s, wq[block.name], dz, need_input=block.index > 0, alike=alike
        )
        alike = math.prod(layer.area for layer, _ in block.entering if isinstance(layer, AvgPool2d))
        g = None if below is None else trace.back(below)
    return found


def _kept(
    block: Block, run: LayerRun, z: Float32, wq: Mapping[str, Float32], dropout: tuple[int, int] | None
) -> dict[str, Float32]:
    """What float32's way back reads of its forward pass: the potentials of `run`, and what else the model asks for."""
    equations = neuron_equations(block.filter(training=dropout is not None), block.neuron)
    each = {free: _spread(wq[f"{block.name}.{name}"], run.spikes) for name, free in equations.learned.items()}
    if equations.kept == ("u",):
        return {"u": run.potentials} | each
    if block.synapse.norm is not None:
        raise TypeError(f"no error analysis of {block.neuron.name} after batch normalisation on float32's potentials")
    found = recur(equations.forward, equations.constants, {"z": z, **each}, len(run.spikes))
    return {name: found[name] for name in equations.kept} | each


def _filter(block: Block, dropout: tuple[int, int] | None) -> Filtering:
    return exact_filter(block.psp, block.sums.factor(training=dropout is not None), biased=block.synapse.bias)


def _stack(steps: Sequence[Near]) -> Near:
    return Near(*(np.stack([getattr(x, name) for x in steps]) for name in ("value", "error", "spread")))
