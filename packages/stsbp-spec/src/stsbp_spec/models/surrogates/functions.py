"""Surrogate derivatives `h(x)` of the spike, `x = u - V_th` (lines 11-31 of the algorithm: the factor do/du).

Each surrogate is an immutable set of parameters with two functions. `expression` is the derivative, which the backward
pass uses. `primitive` is its integral, a smoothed spike, which tests use for finite differences. Every backend prints
the expression as it is written here. Its constants are rounded once from float64.

All surrogates except `Logistic` use only + - * / and comparisons, so they are bit-identical everywhere (`exact`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, Recurrence, as_expr, exp, named, unsnapped, variable, where
from stsbp_spec.errors import SpecError
from stsbp_spec.models.user_classes import Guarded, constants_by_name, declared
from stsbp_spec.typing import AnyArray
from stsbp_spec.validation import real

__all__ = [
    "SURROGATES",
    "Arctan",
    "FastSigmoid",
    "Logistic",
    "Rectangle",
    "Surrogate",
    "Triangle",
    "equation",
]


@dataclass(frozen=True)
class Surrogate(metaclass=Guarded):
    """A surrogate derivative."""

    name: ClassVar[str]
    compact: ClassVar[bool] = False
    """Whether `h` depends only on `|x|` and is zero for all `|x|` above some value."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Guarded.guard(
            cls, {"constants": constants_by_name, "expression": lambda name, _, returned: as_expr(returned, name)}
        )

    def __post_init__(self) -> None:
        declared(self, name=str)
        for field in fields(self):
            value = real(f"surrogate {self.name}: {field.name}", getattr(self, field.name))
            if not (math.isfinite(value) and value > 0):
                raise SpecError(f"surrogate {self.name}: {field.name} must be a finite number above 0, got {value}")
            object.__setattr__(self, field.name, value)

    @abstractmethod
    def constants(self) -> Mapping[str, float]:
        """The constants of `expression` by name, float64."""

    @abstractmethod
    def expression(self, p: Names, x: Expr) -> Expr:
        """`h(x)` of `x = u - V_th`; `p` holds the constants."""

    @abstractmethod
    def primitive(self, x: AnyArray) -> AnyArray:
        """`H(x)` with `H' = h` and `H(0) = 1/2`, float64: the smoothed spike."""

    @property
    def exact(self) -> bool:
        """Whether the derivative uses only correctly rounded operations, as `reproducible` precision requires."""
        return equation(self).exact

    def shown_parameters(self) -> dict[str, str]:
        """The parameters by name, as in the notation."""
        return {field.name: repr(getattr(self, field.name)) for field in fields(self)}

    def written(self) -> str:
        """The name and the parameters, as in the notation."""
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.shown_parameters().items())])

    def __str__(self) -> str:
        return self.name + "".join(f":{f.name}={getattr(self, f.name):g}" for f in fields(self))


@cache
def equation(surrogate: Surrogate) -> Recurrence:
    """The derivative `h` of `x` as a recurrence without states."""
    names = tuple(surrogate.constants())
    p = Names(f"constant of the surrogate {surrogate.name}", {name: variable(name) for name in names})
    h = unsnapped(named("h", surrogate.expression(p, variable("x"))))
    return Recurrence("surrogate", names, ("x",), {}, {"h": h})


@dataclass(frozen=True)
class Rectangle(Surrogate):
    """`h(x) = 1/width` if `|x| < width/2`, else 0 (STBP, Wu et al. 2018)."""

    name: ClassVar[str] = "rectangle"
    compact: ClassVar[bool] = True
    width: float = 1.0

    def constants(self) -> Mapping[str, float]:
        return {"half": self.width / 2, "height": 1 / self.width}

    def expression(self, p: Names, x: Expr) -> Expr:
        return where(abs(x) < p.half, p.height, 0)

    def primitive(self, x: AnyArray) -> AnyArray:
        spike: AnyArray = np.clip(x / self.width, -0.5, 0.5) + 0.5
        return spike


@dataclass(frozen=True)
class Triangle(Surrogate):
    """`h(x) = max(0, 1 - |x|/width)`, which is zero from `|x| = width` on (Esser et al. 2016)."""

    name: ClassVar[str] = "triangle"
    compact: ClassVar[bool] = True
    width: float = 1.0

    def constants(self) -> Mapping[str, float]:
        return {"slope": 1 / self.width}

    def expression(self, p: Names, x: Expr) -> Expr:
        y = 1 - abs(x) * p.slope
        return where(y > 0, y, 0)

    def primitive(self, x: AnyArray) -> AnyArray:
        z = np.clip(x / self.width, -1, 1)
        spike: AnyArray = 0.5 + self.width * (z - np.sign(z) * z * z / 2)
        return spike


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """`h(x) = 1 / (1 + beta |x|)^2` (SuperSpike, Zenke and Ganguli 2018)."""

    name: ClassVar[str] = "fast-sigmoid"
    beta: float = 2.0

    def constants(self) -> Mapping[str, float]:
        return {"beta": self.beta}

    def expression(self, p: Names, x: Expr) -> Expr:
        y = 1 + abs(x) * p.beta
        return 1 / (y * y)

    def primitive(self, x: AnyArray) -> AnyArray:
        return 0.5 + x / (1 + self.beta * np.abs(x))


@dataclass(frozen=True)
class Arctan(Surrogate):
    """`h(x) = 1 / (1 + (pi/2 alpha x)^2)` (Fang et al. 2021, without their factor alpha/2)."""

    name: ClassVar[str] = "arctan"
    alpha: float = 2.0

    def constants(self) -> Mapping[str, float]:
        return {"scale": math.pi / 2 * self.alpha}

    def expression(self, p: Names, x: Expr) -> Expr:
        y = x * p.scale
        return 1 / (1 + y * y)

    def primitive(self, x: AnyArray) -> AnyArray:
        scale = math.pi / 2 * self.alpha
        return 0.5 + np.arctan(scale * x) / scale


@dataclass(frozen=True)
class Logistic(Surrogate):
    """`h(x) = s (1 - s) / width` with `s = 1 / (1 + exp(-x/width))`: the derivative of the logistic function.

    `exp` differs between libraries, so `reproducible` precision refuses this surrogate.
    """

    name: ClassVar[str] = "logistic"
    width: float = 0.25

    def constants(self) -> Mapping[str, float]:
        return {"steep": 1 / self.width}

    def expression(self, p: Names, x: Expr) -> Expr:
        # Use |x|: the derivative is even, and exp then never overflows.
        z = exp(-(abs(x) * p.steep))
        y = 1 + z
        return z / (y * y) * p.steep

    def primitive(self, x: AnyArray) -> AnyArray:
        return 0.5 + 0.5 * np.tanh(x / (2 * self.width))


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (Rectangle, Triangle, FastSigmoid, Arctan, Logistic)}
"""All surrogates by name."""
