"""Prints expressions in the languages of the backends, with one rounding per operation.

A `Language` is a table that defines how each operation, a constant and a line are written. `lines` gives a step as
statements, which a backend puts into a loop of its own. `function` gives the whole step as a function, which the array
languages run. `definition` shows the whole step to people, in its language.
The words in them (`snap`, `where`, `rounded`, ...) are short helper functions that a backend defines beside its loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import numpy as np

from stsbp_spec.contract.arrays import snap
from stsbp_spec.equations.expressions import Expr, Recurrence, merged
from stsbp_spec.typing import AnyArray

__all__ = ["LANGUAGES", "Braces", "Language", "Statement", "definition", "evaluate", "function", "lines", "new_state",
           "numpy_function", "written_out"]  # fmt: skip

_SUM, _PRODUCT, _SIGN, _ATOM = 1, 2, 3, 4  # how tightly an operation binds
_DEEPEST_LINE = 32
"""Largest depth of nested operations in a line. Parsers allow about 100 nested parentheses."""


@dataclass(frozen=True)
class Braces:
    """How functions of C-like languages are written, as patterns. `{0}` is the name of the type of the result.

    Attributes:
        opened, closed: the text before and after the fields of that type.
        head: the text before the function's own name.
        result: pattern of the result; `{1}` are the values of the fields.
    """

    opened: str
    closed: str
    head: str
    result: str


@dataclass(frozen=True, eq=False)
class Language:
    """How expressions are written.

    Attributes:
        name: name for people.
        operations: a pattern for each operation; `{0}`, `{1}`, ... are its operands. The operators of `_BINDING` put
            operands in parentheses if the order of operations requires it.
        constant: function that writes a constant.
        wrappers: patterns for text around the result of an operation.
        number, condition: patterns of a line; `{0}` is the name, `{1}` the value.
        word: pattern for names that may be reserved words of the language.
        decorator: the text before a Python function in this language.
        braces: how functions are written in a language other than Python.
    """

    name: str
    operations: Mapping[str, str]
    constant: Callable[[float], str]
    number: str = "{0} = {1}"
    condition: str = "{0} = {1}"
    wrappers: Mapping[str, str] = field(default_factory=dict)
    word: str = "{0}"
    decorator: str = ""
    braces: Braces | None = None


_OPERATORS = {"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}",
              "lt": "{0} < {1}", "ge": "{0} >= {1}", "spike": "{0} >= {1}", "snap": "snap({0})"}  # fmt: skip
_BINDING = {"{0} + {1}": _SUM, "{0} - {1}": _SUM, "{0} * {1}": _PRODUCT, "{0} / {1}": _PRODUCT, "-{0}": _SIGN,
            "{0} < {1}": 0, "{0} >= {1}": 0}  # fmt: skip
_CALLS = {"abs": "abs({0})", "sqrt": "sqrt({0})", "exp": "exp({0})", "where": "where({0}, {1}, {2})"}


def _hex(value: float) -> str:
    """A float32 constant that C and C++ read without rounding."""
    text = f"{value.hex()}f" if value != int(value) or abs(value) > 2**20 else f"{value:.1f}f"
    return f"({text})" if text[0] == "-" else text


def _decimal(value: float) -> str:
    return repr(value)


LANGUAGES: Mapping[str, Language] = MappingProxyType(
    {
        "numpy": Language("numpy", {**_OPERATORS, **_CALLS}, lambda x: f"number({x!r})"),
        "torch": Language("torch", {**_OPERATORS, **_CALLS}, lambda x: f"number({x!r})"),
        "numba": Language(
            "numba",
            {**_OPERATORS, **_CALLS, "where": "({1} if {0} else {2})"},
            lambda x: f"float32({x!r})",
            decorator="@njit",
        ),
        "jax": Language(
            "jax",
            {**_OPERATORS, **_CALLS, "div": "divide({0}, {1})"},
            lambda x: f"float32({x!r})",
            wrappers={"mul": "rounded({0})", "div": "rounded({0})", "sqrt": "rounded({0})"},
        ),
        "triton": Language(
            "triton",
            {**_OPERATORS, **_CALLS, "abs": "tl.abs({0})", "where": "tl.where({0}, {1}, {2})", "exp": "tl.exp({0})",
             "div": "tl.div_rn({0}, {1})", "sqrt": "tl.sqrt_rn({0})"},
            _decimal,
            decorator="@triton.jit",
        ),
        "cuda": Language(
            "cuda",
            {"add": "__fadd_rn({0}, {1})", "sub": "__fsub_rn({0}, {1})", "mul": "__fmul_rn({0}, {1})",
             "div": "__fdiv_rn({0}, {1})", "neg": "(-{0})", "abs": "fabsf({0})", "sqrt": "__fsqrt_rn({0})",
             "exp": "expf({0})", "snap": "snap({0})", "lt": "{0} < {1}", "ge": "{0} >= {1}", "spike": "{0} >= {1}",
             "where": "({0} ? {1} : {2})"},
            _hex,
            "const float {0} = {1};",
            "const bool {0} = {1};",
            word="{0}_",
            braces=Braces("struct {0} {{", "}};", "__device__ {0}", "return {{{1}}};"),
        ),
        "c": Language(
            "c",
            {**_OPERATORS, "abs": "fabsf({0})", "sqrt": "sqrtf({0})", "exp": "expf({0})", "where": "({0} ? {1} : {2})"},
            _hex,
            "const float {0} = {1};",
            "const bool {0} = {1};",
            word="{0}_",
            braces=Braces("typedef struct {{", "}} {0};", "static {0}", "return ({0}){{{1}}};"),
        ),
    }
)  # fmt: skip
"""All languages by name."""


@dataclass(frozen=True)
class Statement:
    """One statement: the name of a value, and the statement as text."""

    name: str
    text: str


def new_state(name: str) -> str:
    """The name of a state's new value."""
    return f"new_{name}"


@dataclass(frozen=True)
class PrintedStep:
    """A step as statements, and the name that stands for each new state and each output."""

    lines: tuple[Statement, ...]
    states: Mapping[str, str]
    outputs: Mapping[str, str]


@cache
def lines(recurrence: Recurrence, language: Language) -> PrintedStep:
    """The statements of a step. A value gets a name if it already has one, is a result, is used twice, or is deep."""
    used_names = {*recurrence.parameters, *recurrence.inputs, *recurrence.states}
    results: dict[int, str] = {}
    nodes, index_of = merged(recurrence.roots)
    for name, x in recurrence.outputs.items():
        results.setdefault(index_of[id(x)], name)
    for name, x in recurrence.states.items():
        results.setdefault(index_of[id(x)], new_state(name))
    uses = dict.fromkeys(range(len(nodes)), 0)
    for _, operands in nodes:
        for operand in operands:
            uses[operand] += 1
    statements: list[Statement] = []
    text: dict[int, tuple[str, int]] = {}
    depth: dict[int, int] = {}
    counter = 0
    for number, (x, operands) in enumerate(nodes):
        if x.op == "variable":
            text[number] = (language.word.format(x.name), _ATOM)
            continue
        if x.op == "constant":
            text[number] = _constant(language, x.value)
            continue
        text[number] = _written(language, x.op, [text[operand] for operand in operands])
        depth[number] = 1 + max(depth.get(operand, 0) for operand in operands)
        if x.name is None and number not in results and uses[number] < 2 and depth[number] < _DEEPEST_LINE:
            continue
        depth[number] = 0
        if (base_name := x.name or results.get(number)) is None:
            counter += 1
            base_name = f"x{counter}"
        name = base_name
        while name in used_names:
            name = new_state(name) if name in recurrence.states else f"{name}_"
        used_names.add(name)
        pattern = language.condition if x.is_condition else language.number
        word = language.word.format(name)
        statements.append(Statement(name, pattern.format(word, text[number][0])))
        text[number] = (word, _ATOM)
    states = {name: text[index_of[id(x)]][0] for name, x in recurrence.states.items()}
    outputs = {name: text[index_of[id(x)]][0] for name, x in recurrence.outputs.items()}
    return PrintedStep(tuple(statements), MappingProxyType(states), MappingProxyType(outputs))


def _constant(language: Language, value: float) -> tuple[str, int]:
    text = language.constant(value)
    return text, _SIGN if text.startswith("-") else _ATOM


def _written(language: Language, op: str, operands: Sequence[tuple[str, int]]) -> tuple[str, int]:
    pattern = language.operations[op]
    if op in language.wrappers:
        without_wrappers = replace(language, wrappers={})
        return language.wrappers[op].format(_written(without_wrappers, op, operands)[0]), _ATOM
    binding = _BINDING.get(pattern, _ATOM)
    if binding == _ATOM:
        return pattern.format(*(text for text, _ in operands)), _ATOM
    # Keep parentheses around a right operand of equal or lower precedence: a + (b + c) is not a + b + c. The same holds
    # for a sign: in C, -(-a) is not --a.
    written = [
        text if inner > binding or (inner == binding and position == 0 and 0 < binding < _SIGN) else f"({text})"
        for position, (text, inner) in enumerate(operands)
    ]
    return pattern.format(*written), binding


@cache
def function(recurrence: Recurrence, language: Language) -> str:
    """A step as a Python function of parameters, inputs and states, which returns `(new states, outputs)`."""
    program = lines(recurrence, language)
    arguments = ", ".join((*recurrence.parameters, *recurrence.inputs, *recurrence.states))
    body = [line.text for line in program.lines]
    states, outputs = (
        f"({', '.join(x.values())}{',' if len(x) == 1 else ''})" for x in (program.states, program.outputs)
    )
    return "\n    ".join([f"def {recurrence.name}({arguments}):", *body, f"return {states}, {outputs}"]) + "\n"


@cache
def definition(recurrence: Recurrence, language: Language) -> str:
    """A step as a function in its language, for people: the one of `function`, or one with braces."""
    braces = language.braces
    if braces is None:
        return f"{language.decorator}\n{function(recurrence, language)}".lstrip("\n")
    program, word, result = lines(recurrence, language), language.word.format, f"{recurrence.name}_result"
    fields = [f"float {word(new_state(name))};  // after the step" for name in recurrence.states]
    for name, x in recurrence.outputs.items():
        fields.append(f"{'bool' if x.is_condition else 'float'} {word(name)};")
    groups = {"parameters": recurrence.parameters, "inputs": recurrence.inputs, "states": tuple(recurrence.states)}
    rows = [(", ".join(f"float {word(name)}" for name in names), comment) for comment, names in groups.items() if names]
    arguments = [f"{row}{')' if i == len(rows) else ','}  // {comment}" for i, (row, comment) in enumerate(rows, 1)]
    values = ", ".join([*program.states.values(), *program.outputs.values()])
    body = [*(line.text for line in program.lines), braces.result.format(result, values)]
    opened, closed, head = (x.format(result) for x in (braces.opened, braces.closed, braces.head))
    parts = [
        *(opened, *_indented(fields), closed),
        *(f"{head} {recurrence.name}(", *_indented(arguments), "{", *_indented(body), "}"),
    ]
    return "\n".join(parts) + "\n"


def _indented(rows: Sequence[str]) -> list[str]:
    return [f"    {row}" for row in rows]


_PLAIN = Language("plain", {**_OPERATORS, **_CALLS}, lambda x: f"{x:g}")
_LONGEST, _DEEPEST = 100, 6


def written_out(x: Expr) -> str:
    """An expression on one line, for people. Named parts appear by name, and long text is cut."""

    def text(x: Expr, depth: int) -> tuple[str, int]:
        if x.op == "variable" or (depth and x.name is not None):
            return str(x.name), _ATOM
        if x.op == "constant":
            return _constant(_PLAIN, x.value)
        if depth > _DEEPEST:
            return "...", _ATOM
        return _written(_PLAIN, x.op, [text(a, depth + 1) for a in x.args])

    line, _ = text(x, 0)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def compiled(recurrence: Recurrence, language: Language, helpers: Mapping[str, Any]) -> Callable[..., Any]:
    """`function` as a callable. `helpers` defines the words of the language."""
    scope = dict(helpers)
    exec(compile(function(recurrence, language), f"<stsbp {recurrence.name} in {language.name}>", "exec"), scope)
    step_function: Callable[..., Any] = scope[recurrence.name]
    return step_function


# numpy, in any number type.


def _helpers(number: Callable[[float], Any]) -> dict[str, Any]:
    return {"number": number, "snap": partial(snap, number=number), "where": np.where, "sqrt": np.sqrt, "exp": np.exp}


@cache
def numpy_function(recurrence: Recurrence, number: Callable[[float], Any] = np.float32) -> Callable[..., Any]:
    """A step on numpy arrays with elements of the type `number`: `np.float32`, `np.float64`, `Fraction`."""
    return compiled(recurrence, LANGUAGES["numpy"], _helpers(number))


def evaluate(recurrence: Recurrence, values: Mapping[str, Any], number: Callable[[float], Any]) -> dict[str, AnyArray]:
    """The outputs of one step from parameters, inputs and states by name, computed in the number type `number`."""
    names = (*recurrence.parameters, *recurrence.inputs, *recurrence.states)
    _, outputs = numpy_function(recurrence, number)(*(values[name] for name in names))
    return dict(zip(recurrence.outputs, outputs, strict=True))
