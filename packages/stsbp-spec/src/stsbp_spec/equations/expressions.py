"""Equations as data: an expression is written once and printed in every backend's language (printers.py).

The result is exactly what is written: each operation is float32 and rounds once. Nothing is fused, reordered or
replaced. Python's operators build expressions. `where`, `snap`, `spike`, `sqrt` and `exp` are functions of this module.
A `Recurrence` is one step of an equation that runs over time, or, without states, over the elements of arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from keyword import iskeyword
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from stsbp_spec.errors import SpecError
from stsbp_spec.typing import Float32
from stsbp_spec.validation import real, shown

__all__ = [
    "MOST_OPERATIONS",
    "OPERATIONS",
    "Expr",
    "Names",
    "Number",
    "Recurrence",
    "as_expr",
    "as_exprs",
    "checked_name",
    "constant",
    "exp",
    "finished",
    "free_name",
    "merged",
    "named",
    "ordered",
    "snap",
    "spike",
    "sqrt",
    "unsnapped",
    "variable",
    "where",
]

OPERATIONS = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "neg": 1, "abs": 1, "sqrt": 1, "exp": 1, "snap": 1, "unsnapped": 1,
    "lt": 2, "ge": 2, "spike": 2, "where": 3,
}  # fmt: skip
"""All operations with their numbers of operands. `exp` is inexact, because libraries differ in its last bits."""

MOST_OPERATIONS = 1000
"""Largest number of operations of a step. numba takes 3 to 7 ms and 0.15 MB for each; for a `where`, five times as
much. So a step compiles within 10 seconds and 0.3 GB."""
_WHERE = 5

CONDITIONS = ("lt", "ge", "spike")
"""Operations whose result is true or false; `spike(a, b)` is `a >= b` with a surrogate derivative."""

Number: TypeAlias = "Expr | float | int"


@dataclass(frozen=True, eq=False)
class Expr:
    """An expression: a variable, a constant, or an operation on other expressions. Compared by identity.

    Attributes:
        op: `variable`, `constant`, or one of `OPERATIONS`.
        args: the operands.
        value: value of a constant, rounded to float32.
        name: name of a variable. For anything else, the name that printers give it, or None.
    """

    op: str
    args: tuple[Expr, ...] = ()
    value: float = 0.0
    name: str | None = None

    @property
    def is_condition(self) -> bool:
        """Whether the expression is a condition (true or false) rather than a number."""
        return self.op in CONDITIONS

    def with_operands(self, args: tuple[Expr, ...]) -> Expr:
        """The same operation on other operands. Returns the expression itself if they are the same."""
        if all(old is new for old, new in zip(self.args, args, strict=True)):
            return self
        return Expr(self.op, args, self.value, self.name)

    def __add__(self, other: Number) -> Expr:
        return _operation("add", self, other)

    def __radd__(self, other: Number) -> Expr:
        return _operation("add", other, self)

    def __sub__(self, other: Number) -> Expr:
        return _operation("sub", self, other)

    def __rsub__(self, other: Number) -> Expr:
        return _operation("sub", other, self)

    def __mul__(self, other: Number) -> Expr:
        return _operation("mul", self, other)

    def __rmul__(self, other: Number) -> Expr:
        return _operation("mul", other, self)

    def __truediv__(self, other: Number) -> Expr:
        return _operation("div", self, other)

    def __rtruediv__(self, other: Number) -> Expr:
        return _operation("div", other, self)

    def __neg__(self) -> Expr:
        return _operation("neg", self)

    def __abs__(self) -> Expr:
        return _operation("abs", self)

    def __lt__(self, other: Number) -> Expr:
        return _operation("lt", self, other)

    def __gt__(self, other: Number) -> Expr:
        return _operation("lt", other, self)

    def __ge__(self, other: Number) -> Expr:
        return _operation("ge", self, other)

    def __le__(self, other: Number) -> Expr:
        return _operation("ge", other, self)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        # Python would compare the objects, and an `if` of a model would silently take one branch.
        raise SpecError("expressions have no == or !=; use <, <=, > or >=")

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise SpecError("an expression has no truth value before it runs; choose with where(condition, a, b)")

    def __pow__(self, other: object) -> Expr:
        raise SpecError("expressions have no power operator, because libraries round powers differently; write x * x")

    def __iter__(self) -> Iterator[Expr]:
        raise SpecError("an expression is one number, not a sequence")

    def __float__(self) -> float:
        raise SpecError(
            "an expression has no value yet; use the functions of stsbp_spec.equations.expressions, not those of math "
            "or numpy"
        )

    __array_ufunc__ = None  # makes numpy scalars use the operators of this class


def as_expr(x: object, label: str = "a number in an expression") -> Expr:
    """`x`, or a number as a constant. Raises `SpecError`, which begins with `label`, for anything else."""
    if isinstance(x, Expr):
        return x
    number = real(label, x)
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    if not math.isfinite(rounded):
        raise SpecError(f"a constant of an expression must be finite in float32, got {shown(x)}")
    return Expr("constant", value=rounded)


def as_exprs(label: str, values: object) -> dict[str, Expr]:
    """`as_expr` of each value of a dict."""
    if not isinstance(values, Mapping):
        raise SpecError(f"{label} must be a dict of expressions by name, got {shown(values)}")
    return {name: as_expr(x, f"{label}: {name}") for name, x in values.items()}


def _operation(op: str, *args: object) -> Expr:
    operands = [as_expr(x) for x in args]
    for i, x in enumerate(operands):
        wants_condition = op == "where" and i == 0
        if x.is_condition and not wants_condition:
            # A spike in arithmetic is 1 or 0.
            operands[i] = Expr("where", (x, as_expr(1), as_expr(0)))
        elif wants_condition and not x.is_condition:
            raise SpecError("the first operand of where is a condition: a comparison or a spike")
    return Expr(op, tuple(operands))


def variable(name: str) -> Expr:
    """A named number: a parameter, an input, a state."""
    return Expr("variable", name=checked_name(name))


def constant(value: float) -> Expr:
    """A literal number in the equation, rounded to float32."""
    return as_expr(value)


def named(name: str, x: Number) -> Expr:
    """`x` with a name that printed code keeps."""
    x = as_expr(x)
    return x if x.op in ("variable", "constant") else Expr(x.op, x.args, x.value, checked_name(name))


def where(condition: Expr, a: Number, b: Number) -> Expr:
    """`a` where the condition holds, else `b`. Both are computed. A gradient passes the condition only if it is a
    `spike`."""
    return _operation("where", condition, a, b)


def snap(x: Number) -> Expr:
    """`x` with magnitudes below 2^-100 replaced by zero."""
    return _operation("snap", x)


def unsnapped(x: Number) -> Expr:
    """`x`, a new state or a result, without a snap. The author guarantees that magnitudes below 2^-126 have no
    effect."""
    return _operation("unsnapped", x)


def spike(u: Number, threshold: Number) -> Expr:
    """`u >= threshold`. Its derivative is the neuron's surrogate at `u - threshold`. As a number, it is 1 or 0."""
    return _operation("spike", u, threshold)


def sqrt(x: Number) -> Expr:
    """The square root, correctly rounded."""
    return _operation("sqrt", x)


def exp(x: Number) -> Expr:
    """The exponential function. It is not allowed in `reproducible` precision, because libraries differ in its last
    bits."""
    return _operation("exp", x)


def finished(x: Number) -> Expr:
    """A new state or a result as it leaves a step: snapped, unless it already is, or is marked with `unsnapped`."""
    x = as_expr(x)
    if x.op == "unsnapped":
        return x.args[0]
    if x.op in ("snap", "variable", "constant") or x.is_condition:
        return x
    return snap(x)


def ordered(roots: Iterable[Expr]) -> list[Expr]:
    """Every node in the expressions `roots` once, operands before the operations that use them."""
    visited: set[int] = set()
    nodes: list[Expr] = []
    # Use a stack instead of recursion, because an expression may be deeper than Python's recursion limit.
    stack = [(x, False) for x in reversed([*roots])]
    while stack:
        x, is_done = stack.pop()
        if is_done:
            nodes.append(x)
        elif id(x) not in visited:
            visited.add(id(x))
            stack.append((x, True))
            stack += [(operand, False) for operand in reversed(x.args)]
    return nodes


def merged(roots: Iterable[Expr]) -> tuple[list[tuple[Expr, tuple[int, ...]]], dict[int, int]]:
    """The nodes in `roots` without duplicates, each with its operands' indices; and the index of every node by `id`."""
    nodes: list[tuple[Expr, tuple[int, ...]]] = []
    numbers: dict[tuple[object, ...], int] = {}
    index_of: dict[int, int] = {}
    for x in ordered(roots):
        operands = tuple(index_of[id(a)] for a in x.args)
        structure = (x.op, operands, x.value.hex(), x.name if x.op == "variable" else None)
        if structure not in numbers:
            numbers[structure] = len(nodes)
            nodes.append((x, operands))
        elif x.name is not None and nodes[numbers[structure]][0].name is None:
            nodes[numbers[structure]] = (x, operands)
        index_of[id(x)] = numbers[structure]
    return nodes, index_of


class Names:
    """Expressions by name, as attributes: `p.threshold`, `s.m`."""

    def __init__(self, kind: str, values: Mapping[str, Expr]) -> None:
        self._kind, self._values = kind, dict(values)

    def __getattr__(self, name: str) -> Expr:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            names = ", ".join(self._values) or "none"
            raise SpecError(f"there is no {self._kind} {name!r}; there are: {names}") from None


_WORDS = frozenset(
    {"abs", "divide", "exp", "float32", "len", "number", "range", "rounded", "snap", "sqrt", "tl", "where"}
)
"""Words that printed code calls, in expressions and in the loops around them. C and CUDA need none here: their names
end in `_`."""


def checked_name(name: str) -> str:
    """Return `name`. Raises `SpecError` if it is not allowed in every language in which equations are printed."""
    if name in _WORDS:
        raise SpecError(
            f"{name} is a reserved word in a language that equations are printed in; give the value another name"
        )
    if not (isinstance(name, str) and name.isidentifier() and name.isascii()) or iskeyword(name) or name[0] == "_":
        raise SpecError(
            f"a name in an equation is made of letters, digits and _, and begins with a letter: {shown(name)}"
        )
    return name


def free_name(name: str, used_names: Container[str]) -> str:
    """`name`, with as many `_` appended as are needed so that it is not in `used_names`."""
    while name in used_names:
        name += "_"
    return name


def _cost(nodes: Iterable[Expr]) -> int:
    """Number of operations, in which a `where` counts as several."""
    return sum(_WHERE if x.op == "where" else x.op not in ("variable", "constant") for x in nodes)


@dataclass(frozen=True, eq=False)
class Recurrence:
    """One step of an equation over time. Each element of its arrays is computed on its own.

    Two recurrences of the same name are equal if they compute the same. Printed and compiled code then serves both.

    Attributes:
        name: name for people, and for printed code.
        parameters: names of float32 numbers that are the same for all elements and steps.
        inputs: names of arrays with one value per element and step, or one per element for all steps.
        states: the new value of each state by its name. Before the first step, every state is zero.
        outputs: values of each step. Conditions become uint8 0 and 1.
        reverse: whether the steps run from the last to the first.
    """

    name: str
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    states: Mapping[str, Expr]
    outputs: Mapping[str, Expr]
    reverse: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", MappingProxyType({k: finished(x) for k, x in self.states.items()}))
        object.__setattr__(self, "outputs", MappingProxyType({k: finished(x) for k, x in self.outputs.items()}))
        object.__setattr__(self, "name", checked_name(re.sub(r"\W", "_", self.name, flags=re.ASCII)))
        names = [*self.parameters, *self.inputs, *self.states]
        for name in (*names, *self.outputs):
            checked_name(name)
        if twice := {name for name in names if names.count(name) > 1}:
            raise SpecError(f"{self.name}: these names are used twice: {', '.join(sorted(twice))}")
        nodes = ordered(self.roots)
        # Equal nodes are computed once.
        if _cost(nodes) > MOST_OPERATIONS and (cost := _cost(x for x, _ in merged(self.roots)[0])) > MOST_OPERATIONS:
            raise SpecError(
                f"{self.name} has {cost:,} operations in one step, more than the {MOST_OPERATIONS:,} that are allowed; "
                f"a where counts as {_WHERE}. Compiling it would take too much time and memory: write a smaller model"
            )
        for x in nodes:
            if x.op == "variable" and x.name not in names:
                raise SpecError(f"{self.name}: {x.name} is neither a parameter nor an input nor a state")
            if x.op == "unsnapped":
                raise SpecError(f"{self.name}: unsnapped(...) must enclose a whole state or result")
        for name, x in self.states.items():
            if x.is_condition:
                raise SpecError(f"{self.name}: the state {name} is a condition; write where({name}, 1, 0)")

    def numbers(self, constants: Mapping[str, np.float32]) -> Float32:
        """The values of the parameters, in their order."""
        return np.array([constants[name] for name in self.parameters], np.float32)

    def changed(self, **fields: Any) -> Recurrence:
        """A copy with other fields, which are used as they are. `dataclasses.replace` would snap them again."""
        changes: dict[str, Any] = {"states": self.states, "outputs": self.outputs, **fields}
        for name in ("states", "outputs"):
            changes[name] = {k: x if x.is_condition else unsnapped(x) for k, x in changes[name].items()}
        return replace(self, **changes)

    def summing(self, names: Iterable[str]) -> Recurrence:
        """A copy with sums over the steps of the outputs `names` as its last states, instead of these outputs."""
        states, outputs = dict(self.states), dict(self.outputs)
        used_names = {*self.parameters, *self.inputs, *states, *outputs}
        for output in names:
            name = free_name(f"sum_{output}", used_names)
            used_names.add(name)
            states[name] = variable(name) + outputs.pop(output)
        return self.changed(states=states, outputs=outputs)

    def single(self) -> Recurrence:
        """One step without time: the states become further inputs, and their new values become further outputs."""
        used_names, outputs = {*self.outputs}, dict(self.outputs)
        for name, x in self.states.items():
            new = free_name(f"new_{name}", used_names)
            used_names.add(new)
            outputs[new] = x
        return self.changed(
            name=f"{self.name}_step", inputs=(*self.inputs, *self.states), states={}, outputs=outputs, reverse=False
        )

    @property
    def roots(self) -> tuple[Expr, ...]:
        """The results of a step: new states, then outputs."""
        return (*self.states.values(), *self.outputs.values())

    @property
    def exact(self) -> bool:
        """Whether every operation is correctly rounded on all backends."""
        return all(x.op != "exp" for x in ordered(self.roots))

    @cached_property
    def key(self) -> str:
        """The computation as text. It names the recurrence, parameters, inputs, states and outputs, but no inner
        values."""
        nodes, index_of = merged(self.roots)
        node_lines = (
            " ".join(map(str, (x.op, *operands, x.value.hex(), x.name if x.op == "variable" else None)))
            for x, operands in nodes
        )
        heads = ([self.name], self.parameters, self.inputs, [*self.states], [*self.outputs], [self.reverse])
        root_indices = " ".join(str(index_of[id(x)]) for x in self.roots)
        return "\n".join([*(" ".join(map(str, head)) for head in heads), *node_lines, root_indices])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recurrence) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)
