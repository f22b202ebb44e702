"""Postsynaptic potential (PSP), Eq. (3a): `a_t = k_s a_{t-1} + c_s o_t`, `k_s = 1 - 1/tau_s`, `c_s = 1/tau_s`.

With these constants, the potential of each spike has the area 1, as in the paper (`normalised`). In many simulators, a
spike instead raises the potential by 1 (`unit`): `c_s = 1`. There is then no factor between weights and current, so
networks can be exchanged with these simulators without changing their weights.

With `tau_rise`, the potential rises before it decays. It is then the difference of two exponentials
(`SecondOrderFilter`).

The filter is linear and the same for every neuron of a layer, so it commutes with the weights:
`W a_t = i_t` with `i_t = k_s i_{t-1} + c_s (W o_t)`. Backends compute it in this second form, after the weights and
fused into the neuron's loop (neurons/lif.py). The weights are then applied to binary spikes, and their sums are exact.
The operation of this file, the filter alone, is for the van Rossum distance and for users who need the potentials.

Order of operations: `a = snap(k a + c o)`. Adjoint, Eq. (15), (11), from T-1 down: `e = snap(k e + da)`, `do = c e`.

A projection may add a bias before the filter (`Biased`): `x_t = g z_t + b`, one number per channel (dense layers: per
neuron). `g` is the training gain, the `1/(1 - rate)` of dropout. Without a bias, the gain is part of the filter's
constant. With a bias it is not, because it must not scale the bias. Order of operations: `x = snap(snap(g z) + b)`,
without `g` if it is 1. Backward: `db = sum dx` over steps, samples and positions, `dz = g dx`. A bias starts at 0, does
not decay, and stays between -2^100 and 2^100.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from stsbp_spec.contract.grid import CEILING, FLOOR
from stsbp_spec.equations.expressions import Expr, Names, named, snap, unsnapped
from stsbp_spec.errors import SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.validation import real, shown

__all__ = [
    "BIAS",
    "GAINS",
    "IDENTITY",
    "PSP",
    "Biased",
    "Filter",
    "FilterAdjoint",
    "FilterStep",
    "SecondOrderFilter",
    "SynapticFilter",
]


@dataclass(frozen=True)
class FilterStep:
    """The new value of each state of a filter, and the resulting current."""

    states: Mapping[str, Expr]
    current: Expr


@dataclass(frozen=True)
class FilterAdjoint:
    """Values for the previous step by name, `dL/dz`, and this step's contributions to gradients of learned
    parameters."""

    carried: Mapping[str, Expr]
    dz: Expr
    learned: Mapping[str, Expr] = field(default_factory=dict)


class SynapticFilter(ABC):
    """A filter from weighted spikes to a current, step by step, as expressions. It is linear in its input."""

    states: ClassVar[tuple[str, ...]]
    carried: ClassVar[tuple[str, ...]] = ()
    """Names of the values that a written `adjoint` passes from step to step."""

    @abstractmethod
    def constants(self) -> Mapping[str, float | np.float32]:
        """The constants of `step` by name, each rounded once to float32."""

    def learned(self) -> Mapping[str, Learned]:
        """The learned parameters of `step`, by name."""
        return {}

    @abstractmethod
    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        """One step. `p`: constants and learned parameters. `s`: states before the step. `z`: weighted spikes."""

    def adjoint(self, p: Names, d: Names, current: Expr) -> FilterAdjoint | None:
        """The backward pass from the error of the current, if it has its own order. None: it is derived from `step`."""
        return None


@dataclass(frozen=True)
class Filter(SynapticFilter):
    """A first-order filter `i = decay i + gain z`. Its constants are float32, rounded once from float64."""

    states: ClassVar[tuple[str, ...]] = ("i",)
    carried: ClassVar[tuple[str, ...]] = ("e",)

    decay: np.float32
    gain: np.float32

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"k": self.decay, "c": self.gain}

    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        i = named("i", snap(p.k * s.i + p.c * z))
        return FilterStep({"i": i}, i)

    def adjoint(self, p: Names, d: Names, current: Expr) -> FilterAdjoint:
        e = named("e", snap(p.k * d.e + current))
        # Not snapped: the errors are rounded to the error grid next, whose finest unit is 2^-102.
        return FilterAdjoint({"e": e}, unsnapped(p.c * e))


@dataclass(frozen=True)
class SecondOrderFilter(SynapticFilter):
    """`a = decay a + gain z`, `b = rise b + gain z`, `i = a - b`. Constants are float32, rounded once from float64."""

    states: ClassVar[tuple[str, ...]] = ("a", "b")

    decay: np.float32
    rise: np.float32
    gain: np.float32

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"k": self.decay, "kr": self.rise, "c": self.gain}

    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        a = snap(p.k * s.a + p.c * z)
        b = snap(p.kr * s.b + p.c * z)
        return FilterStep({"a": a, "b": b}, named("i", snap(a - b)))


GAINS = ("normalised", "unit")
"""How much a spike adds to a potential: so much that the area of the potential is 1 (`normalised`), or 1 (`unit`)."""

IDENTITY = Filter(np.float32(0), np.float32(1))
"""No filter: for direct-coded images and event frames, which enter the first layer unfiltered (line 2)."""


@dataclass(frozen=True)
class PSP:
    """The synaptic filter of a layer's output spikes.

    Args:
        tau_s: synaptic time constant in steps, at least 1 (1: the potential is the spike itself).
        tau_rise: rise time constant in steps, from 1 to less than `tau_s`; 0: the rise is immediate.
        gain: `normalised`: the potential has the area 1. `unit`: a spike adds 1 (to each exponential).
    """

    tau_s: float = 4.0
    tau_rise: float = 0.0
    gain: str = "normalised"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau_s", time_constant("tau_s", self.tau_s))
        object.__setattr__(self, "tau_rise", rise_time("tau_rise", self.tau_rise))
        if self.tau_rise >= self.tau_s:
            raise SpecError(f"tau_rise must be below tau_s, {self.tau_s:g}, got {self.tau_rise:g}")
        if self.tau_rise:
            exact = 1 / self.tau_rise - 1 / self.tau_s
            if abs(float(_decay(self.tau_s)) - float(_decay(self.tau_rise)) - exact) > _LARGEST_ERROR * exact:
                raise SpecError(
                    f"tau_rise, {self.tau_rise!r}, is so near to tau_s, {self.tau_s!r}, that float32 cannot represent "
                    "the difference of their decays; choose a smaller tau_rise"
                )
        if self.gain not in GAINS:
            raise SpecError(f"the gain of a synapse is {' or '.join(map(repr, GAINS))}, got {shown(self.gain)}")

    def __repr__(self) -> str:
        rise = f", tau_rise={self.tau_rise!r}" if self.tau_rise else ""
        gain = "" if self.gain == "normalised" else f", gain={self.gain!r}"
        return f"PSP(tau_s={self.tau_s!r}{rise}{gain})"

    @property
    def first_order(self) -> PSP:
        """The normalised filter of the same `tau_s`, without rise. The van Rossum distance uses it."""
        return PSP(self.tau_s)

    @property
    def area(self) -> float:
        """Sum over all steps of the potential of one spike. It is 1 if the filter is normalised."""
        return 1.0 if self.gain == "normalised" else self.tau_s - self.tau_rise

    def filter(self, gain: float = 1.0) -> SynapticFilter:
        """The filter for an input times `gain` (the 1/(1-p) of dropout). A constant input of 1 gives `gain area`."""
        decay = _decay(self.tau_s)
        factor = np.float32(gain if self.gain == "unit" else gain / (self.tau_s - self.tau_rise))
        if not self.tau_rise:
            return Filter(decay, factor)
        return SecondOrderFilter(decay, _decay(self.tau_rise), factor)


_LARGEST_ERROR = 0.01
"""Largest relative error of the difference of the two decays of a filter, and so of its area."""


def _decay(tau: float) -> np.float32:
    return np.float32(1 - 1 / tau)


def rise_time(name: str, value: object) -> float:
    """A time constant in steps, or 0."""
    number = real(name, value)
    return 0.0 if number == 0 else time_constant(name, number)


def time_constant(name: str, value: object) -> float:
    """`value` as a float. Raises `SpecError` unless it is at least one step, and `1/value` is at least `FLOOR`."""
    value = real(name, value)
    if not (math.isfinite(value) and value >= 1):
        raise SpecError(f"{name} is a time constant in steps and must be at least 1, got {value:g}")
    if np.float32(1 / value) < FLOOR:
        raise SpecError(f"{name} must be at most 2^100, so that 1/{name} does not vanish in float32, got {value:g}")
    return value


# Not on the weight grid, which makes sums independent of their order: a bias is added once, to an exact sum.
BIAS = Learned(0.0, low=-CEILING, high=CEILING, per="channel")


@dataclass(frozen=True)
class Biased(SynapticFilter):
    """A filter whose input is `gain z + bias`.

    Args:
        filter: the filter, without a gain of its own.
        gain: training gain, float32.
    """

    filter: SynapticFilter
    gain: np.float32

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.filter.states

    @property
    def carried(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.filter.carried

    def constants(self) -> Mapping[str, float | np.float32]:
        gain = {"gain": self.gain} if self.gain != 1 else {}
        return {**self.filter.constants(), **gain}

    def learned(self) -> Mapping[str, Learned]:
        return {"bias": BIAS}

    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        # Other libraries also add the bias before the filter (NIR: `tau_syn i' = -i + W o + b`).
        weighted = snap(p.gain * z) if self.gain != 1 else z
        return self.filter.step(p, s, named("x", snap(weighted + p.bias)))

    def adjoint(self, p: Names, d: Names, current: Expr) -> FilterAdjoint | None:
        adjoint = self.filter.adjoint(p, d, current)
        if adjoint is None:
            return None
        dx = adjoint.dz.args[0] if adjoint.dz.op == "unsnapped" else adjoint.dz
        dz = unsnapped(p.gain * dx) if self.gain != 1 else adjoint.dz
        return FilterAdjoint(adjoint.carried, dz, {"bias": adjoint.dz})
