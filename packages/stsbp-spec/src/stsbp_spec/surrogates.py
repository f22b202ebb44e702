"""Surrogate derivatives `h(x)` of the spike, `x = u - V_th` (lines 11-31 of the algorithm: the factor do/du).

Each is a frozen parameter set with two functions: `expression`, the derivative, used in the backward pass, and
`primitive`, its integral, a smoothed spike for tests by finite differences. Every backend prints the expression as it
stands here; its constants are rounded once from float64.

All but `Logistic` use only + - * / and comparison, so they are bit-identical everywhere (`exact`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache
from typing import ClassVar

import numpy as np

from stsbp_spec.errors import SpecError, did_you_mean
from stsbp_spec.expr import Expr, Names, Recurrence, exp, named, unsnapped, variable, where
from stsbp_spec.printers import evaluate
from stsbp_spec.typing import AnyArray
from stsbp_spec.values import real, shown

__all__ = [
    "SURROGATES",
    "Arctan",
    "FastSigmoid",
    "Logistic",
    "Rectangle",
    "Surrogate",
    "Triangle",
    "equation",
    "parse_surrogate",
]


@dataclass(frozen=True)
class Surrogate(ABC):
    """A surrogate derivative."""

    name: ClassVar[str]
    compact: ClassVar[bool] = False
    """Whether `h` depends on `|x|` alone and is zero from some `|x|` on."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = real(f"surrogate {self.name}: {field.name}", getattr(self, field.name))
            if not (math.isfinite(value) and value > 0):
                raise SpecError(f"surrogate {self.name}: {field.name} must be a finite number above 0, got {value}")
            object.__setattr__(self, field.name, value)

    @abstractmethod
    def constants(self) -> Mapping[str, float]:
        """The numbers of `expression` by name, float64."""

    @abstractmethod
    def expression(self, p: Names, x: Expr) -> Expr:
        """`h(x)` of `x = u - V_th`; `p` are the constants."""

    @abstractmethod
    def primitive(self, x: AnyArray) -> AnyArray:
        """`H(x)` with `H' = h` and `H(0) = 1/2`, float64: the spike's smoothed form."""

    @property
    def exact(self) -> bool:
        """Whether the derivative uses only correctly rounded operations, as `reproducible` precision requires."""
        return equation(self).exact

    def derivative(self, x: AnyArray) -> AnyArray:
        """`h(x)` of an array of any shape, in its own precision (float32, float64 or exact fractions)."""
        number = Fraction if x.dtype == object else x.dtype.type
        values = {name: number(value) for name, value in self.constants().items()}
        with np.errstate(over="ignore"):  # far from the threshold: 1/inf is 0, as it should be
            return evaluate(equation(self), {**values, "x": x}, number)["h"]

    def __str__(self) -> str:
        return self.name + "".join(f":{f.name}={getattr(self, f.name):g}" for f in fields(self))


@cache
def equation(surrogate: Surrogate) -> Recurrence:
    """The derivative `h` of `x` as a step without states."""
    names = tuple(surrogate.constants())
    p = Names(f"constant of the surrogate {surrogate.name}", {name: variable(name) for name in names})
    h = unsnapped(named("h", surrogate.expression(p, variable("x"))))
    return Recurrence("surrogate", names, ("x",), {}, {"h": h})


@dataclass(frozen=True)
class Rectangle(Surrogate):
    """`h(x) = 1/width` where `|x| < width/2`, else 0 (STBP, Wu et al. 2018)."""

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
    """`h(x) = max(0, 1 - |x|/width)`: compact support of half width `width` (Esser et al. 2016)."""

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

    Not in the exact tier: `exp` differs between libraries, so `reproducible` precision refuses it.
    """

    name: ClassVar[str] = "logistic"
    width: float = 0.25

    def constants(self) -> Mapping[str, float]:
        return {"steep": 1 / self.width}

    def expression(self, p: Names, x: Expr) -> Expr:
        # Of |x|: the derivative is even, and exp never overflows.
        z = exp(-(abs(x) * p.steep))
        y = 1 + z
        return z / (y * y) * p.steep

    def primitive(self, x: AnyArray) -> AnyArray:
        return 0.5 + 0.5 * np.tanh(x / (2 * self.width))


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (Rectangle, Triangle, FastSigmoid, Arctan, Logistic)}
"""Every surrogate by its name."""


def number(text: str) -> float:
    """`float(text)` of ASCII digits without `_`; raises `ValueError` for anything else."""
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(text)


def parse_surrogate(text: str) -> Surrogate:
    """Read `"arctan"` or `"triangle:width=0.5"`, the form that `str(surrogate)` writes.

    Raises:
        SpecError: the name or parameter is unknown, or the value is outside its domain.
    """
    name, *pairs = text.strip().split(":")
    if name not in SURROGATES:
        raise SpecError(
            f"unknown surrogate {shown(name)}{did_you_mean(name, SURROGATES)}; known: {', '.join(SURROGATES)}"
        )
    cls = SURROGATES[name]
    known = [f.name for f in fields(cls)]
    values: dict[str, float] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known:
            raise SpecError(f"surrogate {name!r} has no parameter {shown(key)}; it has: {', '.join(known)}")
        try:
            values[key] = number(value)
        except ValueError:
            raise SpecError(f"surrogate {name!r}: {key} must be a number, got {shown(value)}") from None
    return cls(**values)
