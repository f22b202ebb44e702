"""The base class of neuron models. A model writes one time step as an expression."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.adjoint import free_variables
from stsbp_spec.equations.expressions import Expr, Names, as_expr, as_exprs, variable
from stsbp_spec.equations.stored import placeholders
from stsbp_spec.errors import SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.surrogates.functions import SURROGATES, Arctan, Surrogate
from stsbp_spec.models.user_classes import Guarded, constants_by_name, declared, returns
from stsbp_spec.networks.ops.psp import GAINS, PSP, rise_time, time_constant
from stsbp_spec.validation import real, shown

__all__ = ["Adjoint", "Learned", "NeuronModel", "Step", "above_zero", "choice", "parameter", "steps"]

Check = Callable[[str, Any], Any]

_COMMON_PARAMETERS = ("tau_s", "tau_rise", "threshold", "surrogate", "psp_gain")
"""Parameters that every model has."""


@dataclass(frozen=True)
class Step:
    """One step of a neuron. Plain numbers are made constants.

    Attributes:
        u: the membrane potential.
        spike: whether it spikes: `spike(u, threshold)`.
        states: the new value of each state.
    """

    u: Expr
    spike: Expr
    states: Mapping[str, Expr]

    def __post_init__(self) -> None:
        if not isinstance(self.spike, Expr):
            raise SpecError(f"a step must return spike(u, threshold) as its spike, got {shown(self.spike)}")
        object.__setattr__(self, "u", as_expr(self.u, "the potential of a step"))
        object.__setattr__(self, "states", as_exprs("the states of a step", self.states))


@dataclass(frozen=True)
class Adjoint:
    """The backward pass through one step.

    Attributes:
        current: gradient `dL/di` with respect to the neuron's current.
        carried: values that are passed on to the previous step, by name.
        learned: contribution of this step to the gradient of each learned parameter, by name.
    """

    current: Expr
    carried: Mapping[str, Expr]
    learned: Mapping[str, Expr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "current", as_expr(self.current, "the gradient of the current"))
        for name in ("carried", "learned"):
            object.__setattr__(self, name, as_exprs(f"{name} of an adjoint", getattr(self, name)))


class NeuronModel(metaclass=Guarded):
    """Parameters and equations of a layer of neurons. A subclass must be a frozen dataclass.

    A model only needs `step`. The backward pass is derived from it (adjoint.py). Every new state, and every gradient
    that leaves a step, is set to zero if it is below 2^-100, even if the model does not write this.

    Attributes:
        name: name in the notation, in settings and in messages.
        makes_spikes: whether it makes spikes, which other nodes can read.
        states: names of the states. They are zero before the first step.
        tau_s: synaptic time constant of the layer's output spikes in steps, at least 1.
        tau_rise: rise time constant of the synaptic filter; 0: the rise is immediate.
        psp_gain: gain of the synaptic filter: `normalised` or `unit` (ops/psp.py).
        threshold: threshold of a neuron at rest, above 0. Reports draw it.
        surrogate: derivative of the spike in the backward pass.
    """

    name: ClassVar[str]
    makes_spikes: ClassVar[bool] = True
    states: ClassVar[tuple[str, ...]]
    carried: ClassVar[tuple[str, ...]] = ()
    """Names of the values that `adjoint`, if the model defines it, passes from step to step."""

    tau_s: float = 4.0
    tau_rise: float = 0.0
    psp_gain: str = "normalised"
    threshold: float = 1.0
    surrogate: Surrogate = Arctan()

    def __init_subclass__(cls) -> None:
        """Make dataclass fields of the parameters that every model has, unless the class defines them itself."""
        super().__init_subclass__()
        Guarded.guard(cls, _GUARDS)
        if any(issubclass(base, NeuronModel) and base is not NeuronModel for base in cls.__bases__):
            return
        annotations = dict(vars(cls).get("__annotations__", {}))
        for name in _COMMON_PARAMETERS:
            if name not in annotations:
                annotations[name] = NeuronModel.__annotations__[name]
                setattr(cls, name, vars(cls).get(name, getattr(NeuronModel, name)))
        cls.__annotations__ = annotations

    def __post_init__(self) -> None:
        declared(self, name=str, states=(tuple, list, str))
        for parameter in fields(self):  # type: ignore[arg-type]
            check = parameter.metadata.get("check", _CHECKS.get(parameter.name, real))
            object.__setattr__(self, parameter.name, check(parameter.name, getattr(self, parameter.name)))
        _ = self.psp
        if unread := self._unread():
            problem = f"the neuron {self.name} learns {', '.join(unread)}"
            raise SpecError(f"{problem}, which its step never reads; leave it out of `learned`")

    def _unread(self) -> list[str]:
        """Learned parameters that `step` does not read."""
        learned = self.learned()
        if not learned:
            return []
        p, s = placeholders("p", (*self.constants(), *learned)), placeholders("s", self.states)
        step = self.step(p, s, variable("i"))
        names_read = free_variables([*step.states.values(), step.u, step.spike])
        return [name for name in learned if f"p.{name}" not in names_read]

    @abstractmethod
    def constants(self) -> Mapping[str, float | np.float32]:
        """The constants that `step` uses, by name, each rounded once to float32."""

    def learned(self) -> Mapping[str, Learned]:
        """The learned parameters that `step` uses, by name."""
        return {}

    @abstractmethod
    def step(self, p: Names, s: Names, i: Expr) -> Step:
        """One step. `p`: constants and learned parameters. `s`: states before the step. `i`: the filtered current."""

    def adjoint(self, p: Names, d: Names, u: Expr, g: Expr, h: Callable[[Expr], Expr]) -> Adjoint | None:
        """The backward pass, if a model defines its own order of operations. None: it is derived from `step`.

        Args:
            p: the constants and learned parameters.
            d: the values that are passed from step to step, by the names of `carried`.
            u: the membrane potential.
            g: `dL/do`.
            h: the surrogate derivative.
        """
        return None

    def written(self) -> dict[str, str]:
        """The model's name under the key `neuron`, and its parameters, as in the notation."""
        return {"neuron": self.name, **{field.name: _written(getattr(self, field.name)) for field in fields(self)}}  # type: ignore[arg-type]

    @cached_property
    def psp(self) -> PSP:
        """The filter of this layer's output spikes."""
        return PSP(self.tau_s, self.tau_rise, self.psp_gain)


def _written(value: Any) -> str:
    if isinstance(value, Surrogate):
        return value.written()
    return value if isinstance(value, str) else repr(value)


def parameter(default: Any, check: Check) -> Any:
    """A field of a neuron model with its default and the check of its value (for example `steps` or `above_zero`)."""
    return field(default=default, metadata={"check": check})


def steps(name: str, value: object) -> float:
    """Check for a time constant in steps, at least 1."""
    return time_constant(name, value)


def above_zero(name: str, value: object) -> float:
    """Check for a finite number above 0, at least 2^-100 in float32."""
    number = real(name, value)
    if not (math.isfinite(number) and number > 0):
        raise SpecError(f"{name} must be a finite number above 0, got {number:g}")
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float32(number)
    if not FLOOR <= rounded < np.inf:
        raise SpecError(f"{name} must be from 2^-100 to the largest float32, 3.4e38, got {number:g}")
    return number


def choice(*allowed: str) -> Check:
    """Check for one of several words."""

    def check(name: str, value: object) -> str:
        if value not in allowed:
            raise SpecError(f"{name} is {' or '.join(map(repr, allowed))}, got {shown(value)}")
        return str(value)

    return check


def _surrogate(name: str, value: object) -> Surrogate:
    if not isinstance(value, Surrogate):
        names = ", ".join(f"{cls.__name__}()" for cls in SURROGATES.values())
        raise SpecError(f"a neuron's surrogate is one of {names}, got {shown(value)}")
    return value


def _learned(name: str, _: object, returned: object) -> object:
    if not isinstance(returned, Mapping) or not all(isinstance(value, Learned) for value in returned.values()):
        raise SpecError(f"{name} must return a dict of Learned(...) by name, got {shown(returned)}")
    return returned


_GUARDS = {
    "constants": constants_by_name,
    "learned": _learned,
    "step": returns(Step),
    "adjoint": returns(Adjoint, type(None)),
}

_CHECKS: dict[str, Check] = {
    "tau_s": steps,
    "tau_rise": rise_time,
    "psp_gain": choice(*GAINS),
    "threshold": above_zero,
    "surrogate": _surrogate,
}
