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
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, Recurrence, as_expr, exp, named, unsnapped, variable, where
from stsbp_spec.equations.printers import evaluate
from stsbp_spec.equations.stored import (
    Stored,
    StoredExpressions,
    dashed_word,
    dumped,
    loaded,
    nodes_of,
    numbers,
    placeholders,
    refusing,
    texts,
    written,
)
from stsbp_spec.errors import SpecError, did_you_mean
from stsbp_spec.models.user_classes import (
    Guarded,
    calling,
    constants_by_name,
    declared,
    imported,
    names_a_class,
    read_values,
    split,
)
from stsbp_spec.typing import AnyArray
from stsbp_spec.validation import real, shown

__all__ = [
    "SURROGATES",
    "Arctan",
    "FastSigmoid",
    "Logistic",
    "Rectangle",
    "StoredSurrogate",
    "Surrogate",
    "Triangle",
    "as_text",
    "described",
    "equation",
    "parse_surrogate",
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

    def derivative(self, x: AnyArray) -> AnyArray:
        """`h(x)` of an array of any shape, in its own precision (float32, float64 or exact fractions)."""
        number = Fraction if x.dtype == object else x.dtype.type
        values = {name: number(value) for name, value in self.constants().items()}
        # Far from the threshold, 1/inf correctly gives 0.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return evaluate(equation(self), {**values, "x": x}, number)["h"]

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


def parse_surrogate(text: str, *, foreign: bool = False) -> Surrogate:
    """Read `"arctan"` or `"triangle:width=0.5"`, the form that `str(surrogate)` writes.

    Args:
        text: name of a surrogate, and its parameters.
        foreign: whether the text may also name a class of another module, `"my_module:MySurrogate:a=2"`. The module is
            imported. It may also be in the current folder.

    Raises:
        SpecError: the name or a parameter is unknown, a value is outside its domain, or the import fails.
    """
    if foreign and names_a_class(text, SURROGATES):
        cls: type[Surrogate] = imported(text, (Surrogate,), "surrogate")
        module, name, pairs = split(text)
        name = f"{module}:{name}"
    else:
        name, *pairs = text.strip().split(":")
        if name not in SURROGATES:
            hint = ", and classes of your own as module:Class" if foreign else ""
            names = ", ".join(SURROGATES)
            raise SpecError(f"unknown surrogate {shown(name)}{did_you_mean(name, SURROGATES)}; known: {names}{hint}")
        cls = SURROGATES[name]
    title = f"surrogate {name!r}"
    values = read_values(cls, pairs, title)
    with calling(f"the {title} cannot be made"):
        return cls(**values)


def as_text(surrogate: Surrogate) -> str:
    """The surrogate and its constants, as JSON (stored.py).

    Raises:
        SpecError: the surrogate is inconsistent, for example in the names of its constants.
    """
    if isinstance(surrogate, StoredSurrogate):
        return surrogate.text
    slope = surrogate.expression(placeholders("q", surrogate.constants()), variable("x"))
    return dumped({**described(surrogate), **nodes_of({"slope": slope})})


def described(surrogate: Surrogate) -> dict[str, Any]:
    """What a stored text contains about a surrogate in addition to the expression of its derivative."""
    return {
        "name": surrogate.name,
        "parameters": surrogate.shown_parameters(),
        "constants": written(surrogate.constants()),
        "compact": surrogate.compact,
    }


class _SurrogateContents:
    """The contents of the text of a surrogate, checked."""

    def __init__(self, text: str) -> None:
        data = loaded(text, "surrogate")
        with refusing("surrogate"):
            self.name = dashed_word(data["name"])
            self.parameters = texts(data["parameters"])
            self.constants = numbers(data["constants"])
            self.compact = data["compact"] is True
        self.graph = StoredExpressions("surrogate", data, {"slope"})


@dataclass(frozen=True, repr=False)
class StoredSurrogate(Stored[_SurrogateContents], Surrogate):
    """A surrogate that was loaded from its text."""

    contents = _SurrogateContents

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the original surrogate."""
        return self.data.name

    @property
    def compact(self) -> bool:  # type: ignore[override]
        """Whether the original surrogate is declared compact."""
        return self.data.compact

    def constants(self) -> Mapping[str, float]:
        return self.data.constants

    def expression(self, p: Names, x: Expr) -> Expr:
        variables = {f"q.{name}": getattr(p, name) for name in self.data.constants}
        return self.data.graph.built({**variables, "x": x}, ("slope",))[0]

    def primitive(self, x: AnyArray) -> AnyArray:
        raise NotImplementedError("a stored surrogate has no primitive, which is for tests of the model itself")

    def shown_parameters(self) -> dict[str, str]:
        return self.data.parameters

    def __str__(self) -> str:
        return self.written()

    __repr__ = __str__
