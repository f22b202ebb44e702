"""Equations of the spec as functions for numba: one step of many elements, `[n]`, as a loop over arrays.

The loop's arrays share no memory, so it is vector code for any number of states and outputs. Its text is the spec's
(`stsbp equations NAME --as numba`), with a line for each array that is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import Signature
from numba.extending import intrinsic
from stsbp_spec.expr import Recurrence
from stsbp_spec.grid import FLOOR
from stsbp_spec.printers import LANGUAGES, function, lines

from stsbp_cpu.compiling import cached_njit, printed_njit

__all__ = ["called", "condition", "loop", "step"]

_FLOOR = np.float32(FLOOR)
_ZERO = np.float32(0)


@cached_njit()
def snap(x: np.float32) -> np.float32:
    """Magnitudes below 2^-100 become zero."""
    return _ZERO if abs(x) < _FLOOR else x


_ADDRESSED: list[Any] = []
"""Functions whose address somebody has."""
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


def step(recurrence: Recurrence, arguments: str, values: Sequence[str], states: str, signature: Signature) -> int:
    """`loop` of arrays that lie together: the address of `f(p, ...)` with `p` the float32 parameters as an array.

    Args:
        recurrence: of the step.
        arguments: of the function after `p`, as text.
        values: an expression of them for each input and output.
        states: one for the states, `[states, n]`.
        signature: of the function, for `called`.
    """
    count = len(recurrence.inputs)
    given = [f"p[{i}]" for i in range(len(recurrence.parameters))]
    given += [*values[:count], *(f"{states}[{i}]" for i in range(len(recurrence.states))), *values[count:]]
    text = f"def {recurrence.name}_rows(p, {arguments}):\n    loop({', '.join(given)})\n"
    words = {"__name__": __name__, "loop": loop(recurrence)}
    function: Any = printed_njit(text, f"{recurrence.name}_rows", words, error_model="numpy")
    function.compile(signature.args)
    compiled = function.overloads[signature.args]
    _ADDRESSED.append(function)
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address


def called(signature: Signature) -> Callable[..., None]:
    """What calls, in a kernel, the function of `signature` at an address: `f(address, ...)`.

    So a kernel is compiled once for all equations. (numba's own type for such arguments looks addresses up at each
    call, by way of Python.)
    """

    def typed(_: Any, *given: Any) -> Any:
        def generated(context: Any, builder: Any, _: Any, args: Any) -> Any:
            conventions = context.call_conv
            kind = conventions.get_function_type(signature.return_type, signature.args)
            function = builder.inttoptr(args[0], kind.as_pointer())
            status, _ = conventions.call_function(builder, function, signature.return_type, signature.args, args[1:])
            with cgutils.if_unlikely(builder, status.is_error):
                conventions.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return signature.return_type(types.intp, *signature.args), generated

    # numba asks how many arguments there are.
    given = ", ".join(f"x{i}" for i in range(len(signature.args) + 1))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def called(typing, {given}):\n    return typed(typing, {given})", scope)
    intrinsic_: Callable[..., None] = intrinsic(scope["called"])
    return intrinsic_


@cache
def condition(recurrence: Recurrence) -> Callable[..., bool]:
    """`f(p, x)`: whether the one output of one input, with the parameters `p`, is not zero."""
    given = ", ".join([*(f"p[{i}]" for i in range(len(recurrence.parameters))), "x"])
    value = printed_njit(function(recurrence, LANGUAGES["numba"]), recurrence.name, _WORDS, error_model="numpy")
    text = f"def {recurrence.name}_there(p, x):\n    return value({given})[1][0] != 0\n"
    words: dict[str, Any] = {"__name__": __name__, "value": value}
    return printed_njit(text, f"{recurrence.name}_there", words, error_model="numpy")
