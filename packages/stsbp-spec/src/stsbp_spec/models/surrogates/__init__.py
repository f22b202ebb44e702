"""Surrogate derivatives of the spike: the functions, and their names in notation and settings."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from stsbp_spec.equations.printers import evaluate
from stsbp_spec.errors import SpecError, did_you_mean
from stsbp_spec.models.surrogates.functions import (
    SURROGATES,
    Arctan,
    FastSigmoid,
    Logistic,
    Rectangle,
    Surrogate,
    Triangle,
    equation,
)
from stsbp_spec.models.surrogates.stored import StoredSurrogate, as_text, described
from stsbp_spec.models.user_classes import calling, imported, names_a_class, read_values, split
from stsbp_spec.typing import AnyArray
from stsbp_spec.validation import shown

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
    "derivative",
    "described",
    "equation",
    "parse_surrogate",
]


def derivative(surrogate: Surrogate, x: AnyArray) -> AnyArray:
    """`h(x)` of an array of any shape, in its own precision (float32, float64 or exact fractions)."""
    number = Fraction if x.dtype == object else x.dtype.type
    values = {name: number(value) for name, value in surrogate.constants().items()}
    # Far from the threshold, 1/inf correctly gives 0.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return evaluate(equation(surrogate), {**values, "x": x}, number)["h"]


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
