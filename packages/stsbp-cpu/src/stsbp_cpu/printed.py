"""Equations of the spec as functions for numba: one step of many elements, `[n]`, as a loop over arrays.

The loop's arrays share no memory, so it is vector code for any number of states and outputs. Its text is the spec's
(`stsbp equations NAME --as numba`), with a line for each array that is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from stsbp_spec.expr import Recurrence
from stsbp_spec.grid import FLOOR
from stsbp_spec.printers import LANGUAGES, function, lines

from stsbp_cpu.compiling import cached_njit, printed_njit

__all__ = ["condition", "loop", "step"]

_FLOOR = np.float32(FLOOR)
_ZERO = np.float32(0)


@cached_njit()
def snap(x: np.float32) -> np.float32:
    """Magnitudes below 2^-100 become zero."""
    return _ZERO if abs(x) < _FLOOR else x


_WORDS = {"__name__": __name__, "snap": snap, "float32": np.float32, "sqrt": np.sqrt, "exp": np.exp}


@cache
def loop(recurrence: Recurrence) -> Callable[..., None]:
    """One step of `[n]` elements, `f(*parameters, *inputs, *states, *outputs)`.

    Parameters are float32 numbers, everything else arrays `[n]` that share no memory; states move on in place.
    """
    program = lines(recurrence, LANGUAGES["numba"])
    read = (*recurrence.inputs, *recurrence.states)
    # No name in an equation begins with an underscore.
    arrays = [*(f"_of_{name}" for name in read), *(f"_to_{name}" for name in recurrence.outputs)]
    body = [f"{name} = _of_{name}[_j]" for name in read]
    body += [line.text for line in program.lines]
    body += [f"_of_{name}[_j] = {value}" for name, value in program.states.items()]
    body += [f"_to_{name}[_j] = {value}" for name, value in program.outputs.items()]
    text = "\n".join(
        [
            f"def {recurrence.name}({', '.join((*recurrence.parameters, *arrays))}):",
            f"    for _j in range(len({arrays[0]})):",
            *(f"        {line}" for line in body),
        ]
    )
    return printed_njit(f"{text}\n", recurrence.name, _WORDS, distinct=True, error_model="numpy")


@cache
def step(recurrence: Recurrence, arguments: str, values: Sequence[str], states: str) -> Callable[..., None]:
    """`loop` of arrays that lie together: `f(p, ...)` with `p` the float32 parameters as an array.

    Args:
        recurrence: of the step.
        arguments: of the function after `p`, as text.
        values: an expression of them for each input and output.
        states: one for the states, `[states, n]`.
    """
    count = len(recurrence.inputs)
    given = [f"p[{i}]" for i in range(len(recurrence.parameters))]
    given += [*values[:count], *(f"{states}[{i}]" for i in range(len(recurrence.states))), *values[count:]]
    text = f"def {recurrence.name}_rows(p, {arguments}):\n    loop({', '.join(given)})\n"
    words = {"__name__": __name__, "loop": loop(recurrence)}
    return printed_njit(text, f"{recurrence.name}_rows", words, error_model="numpy")


@cache
def condition(recurrence: Recurrence) -> Callable[..., bool]:
    """`f(p, x)`: whether the one output of one input, with the parameters `p`, is not zero."""
    given = ", ".join([*(f"p[{i}]" for i in range(len(recurrence.parameters))), "x"])
    value = printed_njit(function(recurrence, LANGUAGES["numba"]), recurrence.name, _WORDS, error_model="numpy")
    text = f"def {recurrence.name}_there(p, x):\n    return value({given})[1][0] != 0\n"
    words: dict[str, Any] = {"__name__": __name__, "value": value}
    return printed_njit(text, f"{recurrence.name}_there", words, error_model="numpy")
