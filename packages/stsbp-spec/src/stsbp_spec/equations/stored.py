"""Expressions as text. A run can then store user-defined expressions, and be loaded without the module that defined
them.

The text is JSON. It contains names, numbers, and the nodes of all expressions, operands before the operations that use
them. Only the printers turn it into code, and they know only the operations of expressions.py. neurons/stored.py,
losses/stored.py and surrogates/stored.py define which expressions a model, a loss and a surrogate have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np

from stsbp_spec.equations.expressions import CONDITIONS, OPERATIONS, Expr, Names, Number, as_expr, checked_name, ordered
from stsbp_spec.errors import SpecError
from stsbp_spec.validation import shown

__all__ = ["Stored", "StoredExpressions", "dashed_word", "dumped", "loaded", "nodes_of", "number", "numbers",
           "placeholders", "refusing", "texts", "word", "words", "written"]  # fmt: skip

Contents = TypeVar("Contents")

_FORMAT = 1
_LONGEST = 2**18
_MOST_NODES = 4096
_LARGEST = float(np.finfo(np.float32).max)


def placeholders(kind: str, names: Iterable[str]) -> Names:
    """Variables of one kind, which a text names `kind.name`."""
    return Names(kind, {name: Expr("variable", name=f"{kind}.{name}") for name in names})


def nodes_of(results: Mapping[str, Number]) -> dict[str, Any]:
    """The expressions of some results as JSON values, which `StoredExpressions` reads."""
    index_of: dict[int, int] = {}
    nodes: list[list[Any]] = []
    roots = {name: as_expr(x) for name, x in results.items()}
    for x in ordered(roots.values()):
        index_of[id(x)] = len(nodes)
        label = x.value.hex() if x.op == "constant" else x.name
        nodes.append([x.op, label, *(index_of[id(a)] for a in x.args)])
    return {"nodes": nodes, "roots": {name: index_of[id(x)] for name, x in roots.items()}}


def dumped(data: Mapping[str, Any]) -> str:
    """JSON values as the text that a run stores."""
    return json.dumps({"format": _FORMAT, **data}, separators=(",", ":"))


@contextmanager
def refusing(kind: str) -> Iterator[None]:
    """Turn any error in values from a text into a `SpecError` that says what is damaged."""
    try:
        yield
    except SpecError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise SpecError(f"the stored {kind} is damaged: {shown(error)}") from error


def loaded(text: str, kind: str) -> dict[str, Any]:
    """The JSON values of a text that `dumped` wrote.

    Raises:
        SpecError: the text is too long, is not JSON, or has another format.
    """
    if len(text) > _LONGEST:
        raise SpecError(f"a {kind} has at most {_LONGEST:,} characters, got {len(text):,}")
    with refusing(kind):
        try:
            data = json.loads(text)
        except ValueError as error:
            raise SpecError(
                f"the stored {kind} is damaged: it is not JSON: {shown(text)}. stsbp writes this text itself"
            ) from error
        if data["format"] != _FORMAT:
            raise SpecError(f"a {kind} of format {shown(data['format'])}; this version reads {_FORMAT}")
        return dict(data)


class StoredExpressions:
    """Nodes and results from a text, checked.

    Args:
        kind: the kind of the text, for messages.
        data: JSON values with `nodes` and `roots`.
        roots: names of the required results.
        conditions: names of those results that are conditions. All others are numbers.
    """

    def __init__(
        self, kind: str, data: Mapping[str, Any], roots: Iterable[str], conditions: Iterable[str] = ()
    ) -> None:
        self._kind = kind
        with refusing(kind):
            self.nodes = list(data["nodes"])
            self.roots = {str(k): v for k, v in data["roots"].items()}
            if len(self.nodes) > _MOST_NODES:
                raise SpecError(f"a {kind} has at most {_MOST_NODES:,} operations, got {len(self.nodes):,}")
            self._check(set(roots), set(conditions))

    def _check(self, required: set[str], conditions: set[str]) -> None:
        are_conditions: list[bool] = []
        for index, (op, label, *args) in enumerate(self.nodes):
            if any(type(a) is not int or not 0 <= a < index for a in args):
                raise ValueError(f"operation {index} reads a later one")
            if op in ("variable", "constant"):
                count = 0
                if op == "constant":
                    number(label)
                else:
                    words(label.split(".", 1))
            else:
                count = 1 if op == "surrogate" else OPERATIONS[op]
                if label is not None:
                    checked_name(word(label))
                if any(are_conditions[a] != (op == "where" and i == 0) for i, a in enumerate(args)):
                    raise ValueError(
                        f"operation {index} reads a condition in place of a number, or a number in place of a condition"
                    )
            if len(args) != count:
                raise ValueError(f"operation {index}, {op}, takes {count} operands")
            are_conditions.append(op in CONDITIONS)
        root_indices = self.roots.values()
        if set(self.roots) != required or any(type(n) is not int or not 0 <= n < len(self.nodes) for n in root_indices):
            raise ValueError("its results do not match its states")
        if any(are_conditions[n] != (root in conditions) for root, n in self.roots.items()):
            raise ValueError("a spike must be a condition and every other result a number")

    def built(
        self, variables: Mapping[str, Expr], roots: Iterable[str], h: Callable[[Expr], Expr] | None = None
    ) -> list[Expr]:
        """The expressions of some results, in terms of `variables`. `h`: the surrogate derivative."""
        roots = tuple(roots)
        expressions: dict[int, Expr] = {}
        for index in sorted(self._reachable(roots)):
            op, label, *args = self.nodes[index]
            operands = tuple(expressions[a] for a in args)
            if op == "variable":
                if label not in variables:
                    raise SpecError(f"the stored {self._kind} is damaged: there is no {shown(label)}")
                expressions[index] = variables[label]
            elif op == "constant":
                expressions[index] = Expr("constant", value=float(np.float32(number(label))))
            elif op == "surrogate":
                if h is None:
                    raise SpecError(f"the stored {self._kind} is damaged: its forward pass uses a surrogate derivative")
                expressions[index] = h(operands[0])
            else:
                expressions[index] = Expr(op, operands, name=label)
        return [expressions[self.roots[root]] for root in roots]

    def _reachable(self, roots: Iterable[str]) -> set[int]:
        reached: set[int] = set()
        stack = [self.roots[root] for root in roots]
        while stack:
            index = stack.pop()
            if index not in reached:
                reached.add(index)
                stack += self.nodes[index][2:]
        return reached


@dataclass(frozen=True, repr=False)
class Stored(Generic[Contents]):
    """A neuron model, a loss or a surrogate that was loaded from its text.

    `contents` is the class that reads and checks a text. It has at least `name` and `parameters`.

    Raises:
        SpecError: the text is damaged.
    """

    contents: ClassVar[Any]
    text: str = ""

    def __post_init__(self) -> None:
        _ = self.data

    @property
    def data(self) -> Contents:
        """The contents of the text."""
        return cast("Contents", _parsed(type(self).contents, self.text))

    def __repr__(self) -> str:
        data: Any = self.data
        pairs = ", ".join(f"{name}={value}" for name, value in data.parameters.items())
        return f"{data.name}({pairs})"


@lru_cache(maxsize=192)
def _parsed(contents: Callable[[str], Any], text: str) -> Any:
    return contents(text)


def word(x: Any) -> str:
    """A name in a text. Raises `ValueError` for anything else."""
    if not isinstance(x, str) or not x.isidentifier() or not x.isascii() or len(x) > 100 or x[0] == "_":
        raise ValueError(f"{x!r} is no name")
    return x


def words(x: Any) -> tuple[str, ...]:
    """Names in a text."""
    return tuple(word(name) for name in x)


def number(x: Any) -> float:
    """A number in a text, in hexadecimal. Raises `ValueError` unless it is finite in float32."""
    try:
        value = float.fromhex(x)
    except OverflowError:
        value = math.inf
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{x!r} is not finite in float32")
    return value


def numbers(x: Any) -> dict[str, float]:
    """Numbers by name in a text."""
    return {word(k): number(v) for k, v in x.items()}


def written(values: Mapping[str, Any]) -> dict[str, str]:
    """Inverse of `numbers`."""
    return {name: float(value).hex() for name, value in values.items()}


def dashed_word(x: Any) -> str:
    """A name in a text, which may contain dashes. Raises `ValueError` for anything else."""
    return word(x.replace("-", "_")).replace("_", "-")


def texts(x: Any) -> dict[str, str]:
    """Parameters by name, in the form in which they are shown."""
    return {word(k): str(v)[:100] for k, v in x.items()}
