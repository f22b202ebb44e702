"""How a fault changes the numpy backend: functions that return a subclass of it with one change.

A function that replaces a method takes the unchanged method first, bound to the backend, and then the arguments of the
method: `method(psp_backward=lambda correct, psp, da: correct(psp, da) * 2)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
from stsbp_spec.contract import arrays
from stsbp_spec.engine.plan import rule_of
from stsbp_spec.engine.rules import Rule
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.equations.assembly import Constants, NeuronEquations, neuron_equations
from stsbp_spec.equations.expressions import Expr, Recurrence, ordered
from stsbp_spec.equations.printers import LANGUAGES, compiled
from stsbp_spec.models.neurons import NeuronModel
from stsbp_spec.networks.graph import Op
from stsbp_spec.networks.ops import MERGES, batchnorm
from stsbp_spec.reference.backend import NumpyBackend, recur
from stsbp_spec.typing import AnyArray

__all__ = [
    "Fault",
    "Miswritten",
    "equation",
    "fused",
    "loss",
    "method",
    "neuron",
    "node",
    "reads",
    "rewritten",
    "rule",
    "trainer",
    "with_neuron",
    "with_roots",
]

Change = Callable[..., Any]
"""A function of what it replaces and of the arguments that this is called with."""

Rewrite = Callable[[Expr], Expr | None]
"""A function from an operation to its replacement; None: the operation is not changed."""


@dataclass(frozen=True)
class Fault:
    """A faulty backend.

    Attributes:
        name: unique name.
        description: what is wrong, in one sentence.
        backend: the numpy backend with this fault.
    """

    name: str
    description: str
    backend: type[NumpyBackend]


def method(**functions: Change) -> type[NumpyBackend]:
    """Other methods, by name. A function that replaces a property takes its value."""
    return type("Faulty", (NumpyBackend,), {name: _replaced(name, function) for name, function in functions.items()})


def _replaced(name: str, function: Change) -> Any:
    correct = getattr(NumpyBackend, name)
    if isinstance(correct, property):
        return property(lambda self: function(correct.__get__(self)))
    return lambda self, *arguments, **options: function(correct.__get__(self), *arguments, **options)


def rule(kind: type[Any], *, forward: Change | None = None, backward: Change | None = None) -> type[NumpyBackend]:
    """Other rules of all operations of a kind, also of merged branches, for which backends need no rule."""
    derived = {op: rule_of(NumpyBackend(), op()) for op in MERGES.values() if issubclass(op, kind)}

    def changed(rules: Mapping[type[Op], Rule[AnyArray]]) -> Mapping[type[Op], Rule[AnyArray]]:
        return {
            op: Rule(_wrapped(forward, correct.forward), _wrapped(backward, correct.backward))
            if issubclass(op, kind)
            else correct
            for op, correct in (*rules.items(), *derived.items())
        }

    return method(rules=changed)


def _wrapped(function: Change | None, correct: Change) -> Change:
    return correct if function is None else partial(function, correct)


def loss(kind: type[Any], function: Change) -> type[NumpyBackend]:
    """Another `loss_error` of all losses of a kind."""
    return method(
        loss_error=lambda correct, loss, *args: (
            function(correct, loss, *args) if isinstance(loss, kind) else correct(loss, *args)
        )
    )


def neuron(other: Callable[[NeuronEquations], NeuronEquations], *passes: str) -> type[NumpyBackend]:
    """Other equations of a population in `passes`: `forward`, `backward` or both."""

    def changed(correct: Change, equations: NeuronEquations, *args: Any) -> Any:
        return correct(other(equations), *args)

    return method(**{f"population_{name}": changed for name in passes})


def with_neuron(equations: NeuronEquations, neuron: NeuronModel) -> NeuronEquations:
    """The equations of another model, if there is one projection."""
    return neuron_equations(equations.filters, neuron) if len(equations.filters) == 1 else equations


def trainer(**functions: Change) -> Change:
    """A function that replaces the method `trainer`: its trainer has other methods, by name."""

    def changed(correct: Change, *arguments: Any, **options: Any) -> Trainer:
        faulty: Trainer = correct(*arguments, **options)
        for name, function in functions.items():
            setattr(faulty, name, partial(function, getattr(faulty, name)))
        return faulty

    return changed


# Equations. They are printed for numpy, with one more operation, as a compiler might choose it.
_NUMPY = LANGUAGES["numpy"]
_LANGUAGE = replace(_NUMPY, operations={**_NUMPY.operations, "fma": "fma({0}, {1}, {2})"})
_WORDS: Mapping[str, Any] = {
    "number": np.float32,
    "snap": arrays.snap,
    "where": np.where,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "fma": lambda a, b, c: (np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32),
}


class Miswritten(NumpyBackend):
    """Equations that are written, printed or run wrongly. See `equation`."""

    target: ClassVar[str | None]
    words: ClassVar[Mapping[str, Any]]
    written: Callable[[Recurrence], Recurrence]
    constants: Callable[[Constants], Constants]
    inputs: Callable[[Mapping[str, AnyArray]], Mapping[str, AnyArray]]

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, AnyArray],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, AnyArray]:
        if self.target not in (None, _equation_name(recurrence)):
            return super().recur(recurrence, constants, inputs, steps, summed=summed)
        step, written = _compiled(type(self), recurrence)
        return recur(written, self.constants(constants), self.inputs(inputs), steps, summed=summed, step=step)


@cache
def _compiled(backend: type[Miswritten], recurrence: Recurrence) -> tuple[Callable[..., Any], Recurrence]:
    written = backend().written(recurrence)
    return compiled(written, _LANGUAGE, backend.words), written


def _equation_name(recurrence: Recurrence) -> str:
    """`forward` or `backward` for the equations of neurons; for all others their name."""
    if recurrence in (batchnorm.FORWARD, batchnorm.BACKWARD):
        return recurrence.name
    return "forward" if "z" in recurrence.inputs else "backward" if "dz" in recurrence.outputs else recurrence.name


def equation(
    target: str | None = None,
    *,
    transform: Callable[[Recurrence], Recurrence] = lambda recurrence: recurrence,
    constants: Callable[[Constants], Constants] = lambda constants: constants,
    inputs: Callable[[Mapping[str, AnyArray]], Mapping[str, AnyArray]] = lambda inputs: inputs,
    words: Mapping[str, Any] | None = None,
    **rewrites: Rewrite,
) -> type[NumpyBackend]:
    """Other equations.

    Args:
        target: which equations: the `forward` or `backward` pass of neurons, or the equation of this name; None: all.
        transform: replaces the whole recurrence, before `rewrites`.
        constants: replaces the constants of the recurrence.
        inputs: replaces its inputs.
        words: functions that printed code calls, by name, where they differ.
        rewrites: functions that replace single operations, by the name of the operation (`rewritten`).
    """
    changes = {
        "target": target,
        "words": {**_WORDS, **(words or {})},
        "written": staticmethod(lambda recurrence: rewritten(transform(recurrence), rewrites)),
        "constants": staticmethod(constants),
        "inputs": staticmethod(inputs),
    }
    return type("Faulty", (Miswritten,), changes)


def rewritten(recurrence: Recurrence, rewrites: Mapping[str, Rewrite]) -> Recurrence:
    """A recurrence with each operation replaced by its own function, operands first. No snaps are added."""
    changed: dict[int, Expr] = {}
    for x in ordered(recurrence.roots):
        copy = x.with_operands(tuple(changed[id(operand)] for operand in x.args))
        replacement = rewrites[x.op](copy) if x.op in rewrites else None
        changed[id(x)] = copy if replacement is None else replacement
    return with_roots(recurrence, [changed[id(x)] for x in recurrence.roots])


def with_roots(recurrence: Recurrence, roots: Sequence[Expr]) -> Recurrence:
    """A recurrence with other new states and outputs, in its order."""
    states = dict(zip(recurrence.states, roots, strict=False))
    outputs = dict(zip(recurrence.outputs, roots[len(states) :], strict=True))
    return recurrence.changed(states=states, outputs=outputs)


def node(op: str, *args: Expr) -> Expr:
    """An operation exactly as given. `Expr`'s own operators might write it differently."""
    return Expr(op, args)


def reads(x: Expr, name: str) -> bool:
    """Whether an operand of `x` has this name."""
    return any(operand.name == name for operand in x.args)


def fused(x: Expr, factor: str | None = None) -> Expr | None:
    """A sum with a product, of `factor` if one is named, as one operation. For two products, the first is fused."""
    for product, other in (x.args, x.args[::-1]):
        if product.op == "mul" and (factor is None or reads(product, factor)):
            return Expr("fma", (*product.args, other), name=x.name)
    return None
