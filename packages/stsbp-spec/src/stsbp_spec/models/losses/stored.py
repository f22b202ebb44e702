"""A loss as text (stored.py). A run can then be loaded without the module that defined the loss.

Its two passes and its distance are stored as expressions. Its constants depend on the filter, the number of steps and
the size of a batch. `constants` is therefore called once with symbols for these, and its operations on them are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, constant, variable, where
from stsbp_spec.equations.stored import (
    Stored,
    StoredExpressions,
    dashed_word,
    dumped,
    loaded,
    nodes_of,
    placeholders,
    refusing,
    texts,
    word,
    words,
)
from stsbp_spec.errors import SpecError
from stsbp_spec.models.losses.base import AHEAD, Loss, LossStep, step_names, step_values
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.validation import shown

__all__ = ["StoredLoss", "as_text", "from_text"]

_CONSTANT_SYMBOLS = ("tau_s", "tau_rise", "steps", "batch", "neurons")
_MOST_NODES = 1024
_MOST_BITS = 1000
"""Largest size of an integer in bits. Numbers of steps and batch sizes have at most 30 bits."""


@dataclass(frozen=True, eq=False)
class _Symbol:
    """A number in the computation of `constants`: one of `_CONSTANT_SYMBOLS`, a Python number, or an operation on two
    symbols."""

    op: str
    args: tuple[Any, ...] = ()

    def __add__(self, other: object) -> _Symbol:
        return _operation("add", self, other)

    def __radd__(self, other: object) -> _Symbol:
        return _operation("add", other, self)

    def __sub__(self, other: object) -> _Symbol:
        return _operation("sub", self, other)

    def __rsub__(self, other: object) -> _Symbol:
        return _operation("sub", other, self)

    def __mul__(self, other: object) -> _Symbol:
        return _operation("mul", self, other)

    def __rmul__(self, other: object) -> _Symbol:
        return _operation("mul", other, self)

    def __truediv__(self, other: object) -> _Symbol:
        return _operation("div", self, other)

    def __rtruediv__(self, other: object) -> _Symbol:
        return _operation("div", other, self)

    def __neg__(self) -> _Symbol:
        return _operation("sub", 0, self)

    def _no(self, *_: object) -> Any:
        raise SpecError(
            "the constants of a loss that a run stores may use only + - * / of psp.tau_s, psp.tau_rise, steps, batch "
            "and neurons"
        )

    __bool__ = __float__ = __int__ = __index__ = __pow__ = __rpow__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _no
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __round__ = _no
    __array_ufunc__ = None  # makes numpy scalars use the operators of this class


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
}  # fmt: skip


def _operation(op: str, *args: object) -> _Symbol:
    return _Symbol(op, tuple(_symbol(x) for x in args))


def _symbol(x: object) -> _Symbol:
    if isinstance(x, _Symbol):
        return x
    if isinstance(x, (int, np.integer)):
        return _Symbol("integer", (int(x),))
    if isinstance(x, (float, np.floating)):
        return _Symbol("number", (float(x),))
    raise SpecError(f"the constants of a loss are numbers, got {shown(x)}")


class _SymbolicPSP:
    """The properties of the output's filter that a loss may use."""

    def __init__(self, tau_rise: Any = None) -> None:
        self.tau_s = _Symbol("tau_s")
        self.tau_rise = _Symbol("tau_rise") if tau_rise is None else tau_rise

    @property
    def first_order(self) -> _SymbolicPSP:
        return _SymbolicPSP(0.0)

    def __getattr__(self, name: str) -> Any:
        raise SpecError(f"the constants of a loss that a run stores may use psp.tau_s and psp.tau_rise, but not {name}")


def _program(constants: Mapping[str, Any]) -> dict[str, Any]:
    """The constants as JSON values: operations, each after its operands, and the index of each constant."""
    index_of: dict[int, int] = {}
    nodes: list[list[Any]] = []

    def visit(x: _Symbol) -> int:
        if id(x) not in index_of:
            operands = [
                visit(a) if isinstance(a, _Symbol) else a.hex() if isinstance(a, float) else str(a) for a in x.args
            ]
            index_of[id(x)] = len(nodes)
            nodes.append([x.op, *operands])
        return index_of[id(x)]

    symbols = {name: _symbol(x) for name, x in constants.items()}
    return {"nodes": nodes, "roots": {name: visit(x) for name, x in symbols.items()}}


class _Constants:
    """The result of `_program`, checked."""

    def __init__(self, data: Any) -> None:
        self.nodes, self.roots = list(data["nodes"]), {word(k): v for k, v in data["roots"].items()}
        if len(self.nodes) > _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES} operations for its constants")
        for index, (op, *args) in enumerate(self.nodes):
            if op in _OPERATIONS:
                valid = len(args) == 2 and all(type(a) is int and 0 <= a < index for a in args)
            elif op in ("integer", "number"):
                valid = len(args) == 1 and isinstance(args[0], str) and len(args[0]) < 400
                float.fromhex(args[0]) if op == "number" else int(args[0])
            else:
                valid = op in _CONSTANT_SYMBOLS and not args
            if not valid:
                raise ValueError(f"operation {index} of its constants")
        if any(type(n) is not int or not 0 <= n < len(self.nodes) for n in self.roots.values()):
            raise ValueError("a constant refers to an operation that does not exist")

    def values(self, psp: PSP, steps: int, batch: int, neurons: int) -> dict[str, float]:
        inputs = {"tau_s": psp.tau_s, "tau_rise": psp.tau_rise, "steps": steps, "batch": batch, "neurons": neurons}
        values: list[Any] = []
        for op, *args in self.nodes:
            if op in _OPERATIONS:
                x = _OPERATIONS[op](*(values[a] for a in args))
            elif op == "number":
                x = float.fromhex(args[0])
            else:
                x = int(args[0]) if op == "integer" else inputs[op]
            if isinstance(x, int) and x.bit_length() > _MOST_BITS:
                raise OverflowError("an integer of its constants is too large")
            values.append(x)
        constants = {name: float(values[n]) for name, n in self.roots.items()}
        if wrong := [name for name, x in constants.items() if not math.isfinite(x)]:
            raise OverflowError(f"the constant {wrong[0]} is not finite")
        return constants


def as_text(loss: Loss) -> str:
    """The loss and all its numbers, as JSON.

    Raises:
        SpecError: the loss is inconsistent, or cannot be stored. It cannot be stored if its distance is written in
            numpy, or if its constants use more than arithmetic.
    """
    if isinstance(loss, StoredLoss):
        return loss.text
    if type(loss).distance is not Loss.distance:
        raise SpecError(
            f"the loss {loss.name} computes its distance in numpy, so a run cannot store it; write "
            "the distance as an expression in `measure`"
        )
    p, s, b = placeholders("p", loss.parameters), placeholders("s", loss.states), placeholders("b", loss.back_states)
    forward_step = loss.ahead(p, s, Names("value of a step", {name: variable(name) for name in AHEAD}))
    x = step_names(loss, forward_step)
    measured, backward_step = loss.measure(p, x), loss.back(p, b, x)
    if measured is None:
        raise SpecError(f"the loss {loss.name} has no distance: write `measure`")
    roots = {"distance": measured, "error": backward_step.value}
    for kind, step, states in (("s", forward_step, loss.states), ("b", backward_step, loss.back_states)):
        if step is not None and set(step.states) != set(states):
            raise SpecError(
                f"the loss {loss.name}: its states are {', '.join(states) or 'none'}, but a step returns others"
            )
        roots |= {} if step is None else {f"{kind}.{name}": value for name, value in step.states.items()}
    roots |= {} if forward_step is None else {"r": forward_step.value}
    psp: Any = _SymbolicPSP()
    constants = loss.layer_constants(psp, *map(_Symbol, ("steps", "batch", "neurons")))  # type: ignore[arg-type]
    if set(constants) != set(loss.parameters):
        raise SpecError(f"the loss {loss.name}: `parameters` and `constants` name different constants")
    text = dumped(
        {
            "name": loss.name,
            "parameters": {parameter.name: str(getattr(loss, parameter.name)) for parameter in fields(loss)},
            "constants": _program({name: constants[name] for name in loss.parameters}),
            "ahead": forward_step is not None,
            "states": list(loss.states) if forward_step is not None else [],
            "back_states": list(loss.back_states),
            **({"outputs": kind} if (kind := _kind(loss)) != _SPIKES else {}),
            **nodes_of({name: _number(x) for name, x in roots.items()}),
        }
    )
    # Symbols cannot show whether `constants` takes another branch for other values, so compare some values.
    for numbers in ((PSP(3.0), 7, 5, 2), (PSP(1.5), 1, 1, 1), (PSP(5.0, 2.0), 12, 64, 10)):
        if from_text(text).layer_constants(*numbers) != {
            k: float(v) for k, v in loss.layer_constants(*numbers).items()
        }:
            raise SpecError(
                f"the constants of the loss {loss.name} cannot be stored: they must be the same + - * / "
                "of numbers in every run"
            )
    return text


def _number(x: Any) -> Expr:
    """A result as a number: a plain number becomes a constant, and a condition becomes 1 or 0."""
    if not isinstance(x, Expr):
        return constant(x)
    return where(x, 1, 0) if x.is_condition else x


_SPIKES = "spikes"
_KINDS = {_SPIKES: (False, False), "potentials": (True, False), "potentials and real targets": (True, True)}
"""`Loss.of_potentials` and `Loss.real_targets`, by the words of a text."""


def _kind(loss: Loss) -> str:
    return next(kind for kind, flags in _KINDS.items() if flags == (loss.of_potentials, loss.real_targets))


class _LossContents:
    """The contents of a text, checked."""

    def __init__(self, text: str) -> None:
        data = loaded(text, "loss")
        with refusing("loss"):
            self.name = dashed_word(data["name"])
            self.parameters = texts(data["parameters"])
            self.constants = _Constants(data["constants"])
            self.ahead = data["ahead"] is True
            self.states, self.back_states = words(data["states"]), words(data["back_states"])
            self.of_potentials, self.real_targets = _KINDS[data.get("outputs", _SPIKES)]
            roots = {"distance", "error", *(f"b.{name}" for name in self.back_states)}
            roots |= {"r", *(f"s.{name}" for name in self.states)} if self.ahead else set()
            self.graph = StoredExpressions("loss", data, roots)


@dataclass(frozen=True, repr=False)
class StoredLoss(Stored[_LossContents], Loss):
    """A loss that was loaded from its text."""

    contents = _LossContents

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the original loss."""
        return self.data.name

    @property
    def parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the constants."""
        return tuple(self.data.constants.roots)

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the states of the forward pass."""
        return self.data.states

    @property
    def back_states(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the states of the backward pass."""
        return self.data.back_states

    @property
    def of_potentials(self) -> bool:  # type: ignore[override]
        """Whether it reads potentials."""
        return self.data.of_potentials

    @property
    def real_targets(self) -> bool:  # type: ignore[override]
        """Whether its targets are real numbers."""
        return self.data.real_targets

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return self.layer_constants(psp, steps, batch, 1)

    def layer_constants(self, psp: PSP, steps: int, batch: int, neurons: int) -> Mapping[str, float]:
        with refusing("loss"):
            return self.data.constants.values(psp, steps, batch, neurons)

    def measure(self, p: Names, x: Names) -> Expr:
        return self._built(("distance",), self._variables(p, x, self._step))[0]

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep | None:
        if not self.data.ahead:
            return None
        variables = self._variables(p, x, AHEAD) | {f"s.{name}": getattr(s, name) for name in self.states}
        value, *states = self._built(("r", *(f"s.{name}" for name in self.states)), variables)
        return LossStep(dict(zip(self.states, states, strict=True)), value)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        variables = self._variables(p, x, self._step) | {f"b.{name}": getattr(s, name) for name in self.back_states}
        value, *states = self._built(("error", *(f"b.{name}" for name in self.back_states)), variables)
        return LossStep(dict(zip(self.back_states, states, strict=True)), value)

    @property
    def _step(self) -> tuple[str, ...]:
        return step_values(self, ahead=self.data.ahead)

    def _variables(self, p: Names, x: Names, inputs: tuple[str, ...]) -> dict[str, Expr]:
        return {f"p.{name}": getattr(p, name) for name in self.parameters} | {name: getattr(x, name) for name in inputs}

    def _built(self, roots: tuple[str, ...], variables: Mapping[str, Expr]) -> list[Expr]:
        return self.data.graph.built(variables, roots)


def from_text(text: str) -> StoredLoss:
    """The loss from a text that `as_text` wrote.

    Raises:
        SpecError: the text is damaged.
    """
    return StoredLoss(text)
