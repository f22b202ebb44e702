"""Equations of the spec as LaTeX, and LaTeX as MathML, which browsers show without a script or a download."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from latex2mathml.converter import convert
from stsbp_spec.equations.assembly import filter_equations, loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Expr, Recurrence, merged
from stsbp_spec.models.losses import Loss
from stsbp_spec.models.neurons import NeuronModel
from stsbp_spec.models.surrogates import Surrogate, equation
from stsbp_spec.networks.ops import PSP

__all__ = ["mathml", "recurrences", "typeset"]

_SUM, _PRODUCT, _ATOM = 1, 2, 3
"""How tightly an operation binds."""
_SYMBOLS = {
    "k": "k_s", "c": "c_s", "km": "k_m", "ka": "k_a", "kr": "k_r", "vth": r"V_\mathrm{th}", "beta": r"\beta",
    "d": r"\tilde{d}", "d1": r"\bar{d}", "dz": r"\partial L / \partial z", "da": r"\partial L / \partial a",
    "do": r"\partial L / \partial o", "target": "y",
}  # fmt: skip


def recurrences(model: object) -> list[Recurrence]:
    """The steps that a model of the spec computes, forward and back; none of what is no such model."""
    if isinstance(model, NeuronModel):
        both = neuron_equations(PSP().filter(), model)
        return [both.forward, both.backward]
    if isinstance(model, PSP):
        alone = filter_equations(model.filter())
        return [alone.forward, alone.backward]
    if isinstance(model, Surrogate):
        return [equation(model)]
    if isinstance(model, Loss) and not model.of_potentials:
        passes = loss_equations(model)
        return [recurrence for recurrence in (passes.forward, passes.backward) if recurrence is not None]
    return []


def typeset(recurrence: Recurrence) -> list[str]:
    """One step as LaTeX, an equation for each value that has a name."""
    return [*_Step(recurrence).lines()]


def mathml(latex: str, *, block: bool) -> str:
    """LaTeX as an element of HTML."""
    markup = convert(latex, display="inline")
    # Large as in a block, and on the left as the text is.
    return markup.replace('display="inline"', 'display="inline" displaystyle="true"') if block else markup


class _Step:
    """The nodes of a step, and which of them stand for what."""

    def __init__(self, recurrence: Recurrence) -> None:
        self.recurrence = recurrence
        self.nodes, self.of = merged(recurrence.roots)
        self.results: dict[int, str] = {}
        for results in (recurrence.outputs, recurrence.states):
            for name, x in results.items():
                self.results.setdefault(self.of[id(x)], name)
        self.before, self.now = ("t+1", "t") if recurrence.reverse else ("t-1", "t")
        self.written: dict[int, tuple[str, int]] = {}

    def symbol(self, name: str, time: str = "") -> str:
        latex = _SYMBOLS.get(name) or (name if len(name) == 1 else rf"\mathrm{{{name}}}".replace("_", r"\_"))
        if time and ("_" in latex or "/" in latex):
            latex = rf"{{\left({latex}\right)}}" if "/" in latex else f"{{{latex}}}"
        return f"{latex}_{{{time}}}" if time else latex

    def lines(self) -> Iterator[str]:
        step = self.recurrence
        in_time = bool(step.states)
        for number, (x, operands) in enumerate(self.nodes):
            if x.op == "variable":
                time = self.before if x.name in step.states else self.now if x.name in step.inputs and in_time else ""
                self.written[number] = self.symbol(str(x.name), time), _ATOM
                continue
            self.written[number] = self.text(x, operands)
            name = self.results.get(number) or x.name
            if name is None:
                continue
            symbol = self.symbol(name, self.now if in_time else "")
            yield f"{symbol} = {self.written[number][0]}"
            self.written[number] = symbol, _ATOM
        # A state that is one of the values above, under the name that the next step reads it by.
        for results in (step.states, step.outputs):
            for name, x in results.items():
                text, symbol = self.written[self.of[id(x)]][0], self.symbol(name, self.now if in_time else "")
                if text != symbol:
                    yield f"{symbol} = {text}"

    def text(self, x: Expr, operands: tuple[int, ...]) -> tuple[str, int]:
        """LaTeX of a node, and how tightly it binds."""
        a = [self.written[operand] for operand in operands]
        match x.op:
            case "constant":
                return f"{x.value:g}", _ATOM if x.value >= 0 else _SUM
            case "snap" | "unsnapped":
                return a[0]
            case "add":
                return f"{_held(a[0], _SUM)} + {_held(a[1], _SUM + 1)}", _SUM
            case "sub":
                return f"{_held(a[0], _SUM)} - {_held(a[1], _SUM + 1)}", _SUM
            case "mul":
                return rf"{_held(a[0], _PRODUCT)} \, {_held(a[1], _PRODUCT + 1)}", _PRODUCT
            case "div":
                return rf"\frac{{{a[0][0]}}}{{{a[1][0]}}}", _ATOM
            case "neg":
                return f"-{_held(a[0], _PRODUCT)}", _SUM
            case "where":
                rows = rf"{a[1][0]} & \text{{if }} {a[0][0]} \\ {a[2][0]} & \text{{otherwise}}"
                return rf"\begin{{cases}}{rows}\end{{cases}}", _SUM
            case _:
                return _CALLS[x.op].format(*(text for text, _ in a)), _SUM if x.is_condition else _ATOM


_CALLS: Mapping[str, str] = {
    "abs": r"\left|{0}\right|",
    "sqrt": r"\sqrt{{{0}}}",
    "exp": r"e^{{{0}}}",
    "lt": "{0} < {1}",
    "ge": r"{0} \ge {1}",
    "spike": r"\left[{0} \ge {1}\right]",
}


def _held(written: tuple[str, int], binding: int) -> str:
    text, own_binding = written
    return text if own_binding >= binding else rf"\left({text}\right)"
