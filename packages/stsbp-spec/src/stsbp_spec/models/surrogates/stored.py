"""Surrogates as text, and surrogates that are loaded from their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stsbp_spec.equations.expressions import Expr, Names, variable
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
from stsbp_spec.models.surrogates.functions import Surrogate
from stsbp_spec.typing import AnyArray

__all__ = ["StoredSurrogate", "as_text", "described"]


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
