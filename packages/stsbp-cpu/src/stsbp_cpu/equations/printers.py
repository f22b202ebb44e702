"""Equations of the spec as functions for numba: one step of `n` elements, as a loop over rows of arrays.

The rows do not share memory, so the loop becomes vector code for any number of states and outputs. Its text is the text
that the spec prints (`stsbp equations NAME --as numba`), and one line for each array that is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import LANGUAGES, function, lines

from stsbp_cpu.engine.compiling import cached_njit, printed_njit

__all__ = ["called", "condition", "loop", "pointer", "run", "step"]

_FLOOR = np.float32(FLOOR)
_ZERO = np.float32(0)


@cached_njit()
def snap(x: np.float32) -> np.float32:
    """`x`, or zero if its magnitude is below 2^-100."""
    return _ZERO if abs(x) < _FLOOR else x


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing_context: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` of a pointer or of an array in C order."""
    kind = types.CPointer(array.dtype)

    def generated(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, number = arguments
        if isinstance(array, types.Array):
            first = context.make_array(array)(context, builder, first).data
        return builder.gep(first, [number])

    return kind(array, types.intp), generated


_ADDRESSED: list[Any] = []
"""Functions whose addresses have been returned, so that they stay alive."""
_WORDS = {"__name__": __name__, "snap": snap, "float32": np.float32, "sqrt": np.sqrt, "exp": np.exp}


@cache
def loop(recurrence: Recurrence) -> Callable[..., None]:
    """A function `f(*parameters, *inputs, *states, *outputs, n)` that computes one step of `n` elements.

    Parameters are float32 numbers. Inputs, states and outputs are pointers (`pointer`) to `n` elements that share no
    memory. Arrays would take several times as long to compile. States are updated in place.
    """
    program = lines(recurrence, LANGUAGES["numba"])
    inputs_and_states = (*recurrence.inputs, *recurrence.states)
    # No name in an equation begins with an underscore.
    arrays = [*(f"_of_{name}" for name in inputs_and_states), *(f"_to_{name}" for name in recurrence.outputs)]
    body = [f"{name} = _of_{name}[_j]" for name in inputs_and_states]
    body += [line.text for line in program.lines]
    body += [f"_of_{name}[_j] = {value}" for name, value in program.states.items()]
    body += [f"_to_{name}[_j] = {value}" for name, value in program.outputs.items()]
    text = "\n".join(
        [
            f"def {recurrence.name}({', '.join((*recurrence.parameters, *arrays))}, _n):",
            "    for _j in range(_n):",
            *(f"        {line}" for line in body),
        ]
    )
    return printed_njit(f"{text}\n", recurrence.name, _WORDS, distinct=True, error_model="numpy")


def step(recurrence: Recurrence, signature: Mapping[str, types.Type], values: Sequence[str], states: str = "") -> int:
    """Address of a function that computes one step by `loop`, with several of the loop's arrays in each argument.

    Args:
        recurrence: equation of the step.
        signature: arguments of the function, as for `called`. `p` are the float32 parameters, and `n` is the number of
            elements.
        values: for each input and output, the text that `run` returns for it.
        states: name of the argument with the states, `[states, n]`.
    """
    count = len(recurrence.inputs)
    arguments = [f"p[{i}]" for i in range(len(recurrence.parameters))]
    arguments += [*values[:count], *(run(states, i) for i in range(len(recurrence.states))), *values[count:]]
    passed = _passed(signature)
    name = f"{recurrence.name}_rows"
    text = f"def {name}({', '.join(passed)}):\n    loop({', '.join(arguments)}, n)\n"
    words = {"__name__": __name__, "loop": loop(recurrence), "pointer": pointer}
    function: Any = printed_njit(text, name, words, inner=True, error_model="numpy")
    kinds = tuple(passed.values())
    function.compile(kinds)
    compiled = function.overloads[kinds]
    _ADDRESSED.append(function)
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address


def run(array: str, row: int | None = None, first: str = "0") -> str:
    """Text for a function of `step`: an argument `[n]`, or `[row, first : first + n]` of an argument `[rows, ...]`."""
    return array if row is None else f"pointer({array}, {row} * {array}_row + {first})"


def _passed(signature: Mapping[str, types.Type]) -> dict[str, types.Type]:
    """The arguments that a function of `step` really takes.

    An array is passed as its address. If it has rows, the distance from one row to the next is passed, too. numba would
    pass shape, strides and owner of each array, which is 60 words for one step of neurons.
    """
    passed = {}
    for name, kind in signature.items():
        if isinstance(kind, types.Array):
            passed[name] = types.CPointer(kind.dtype)
            if kind.ndim > 1:
                passed[f"{name}_row"] = types.int64
        else:
            passed[name] = kind
    return passed


def called(signature: Mapping[str, types.Type]) -> Callable[..., None]:
    """A function `f(address, ...)` for use in kernels, which calls the function of `step` at an address.

    With it, a kernel is compiled only once for all equations. numba's own type for function arguments would look up the
    address at each call, through Python.

    Args:
        signature: arguments of the function. Arrays are in C order.
    """
    native = types.void(*_passed(signature).values())

    def typed(_: Any, address: Any, *argument_types: Any) -> Any:
        kinds = []
        for declared, kind in zip(signature.values(), argument_types, strict=True):
            is_array = isinstance(declared, types.Array)
            # numba has a different type for read-only arrays.
            if is_array and (kind.dtype, kind.ndim, kind.layout) != (declared.dtype, declared.ndim, declared.layout):
                raise TypingError(f"expected {declared}, got {kind}")
            kinds.append(kind if is_array else declared)

        def generated(context: Any, builder: Any, _: Any, args: Any) -> Any:
            flat = []
            for kind, value in zip(kinds, args[1:], strict=True):
                if isinstance(kind, types.Array):
                    array = context.make_array(kind)(context, builder, value)
                    flat.append(array.data)
                    if kind.ndim > 1:
                        shape = cgutils.unpack_tuple(builder, array.shape)
                        flat.append(reduce(builder.mul, shape[1:]))
                else:
                    flat.append(value)
            conventions = context.call_conv
            function_type = conventions.get_function_type(native.return_type, native.args)
            function = builder.inttoptr(args[0], function_type.as_pointer())
            status, _ = conventions.call_function(builder, function, native.return_type, native.args, flat)
            with cgutils.if_unlikely(builder, status.is_error):
                conventions.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.intp, *kinds), generated

    # numba inspects how many arguments the function has.
    parameters = ", ".join(signature)
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def called(typing, address, {parameters}):\n    return typed(typing, address, {parameters})", scope)
    intrinsic_: Callable[..., None] = intrinsic(scope["called"])
    return intrinsic_


@cache
def condition(recurrence: Recurrence) -> Callable[..., bool]:
    """A function `f(p, x)`: whether the single output for the input `x`, with the parameters `p`, is non-zero."""
    arguments = ", ".join([*(f"p[{i}]" for i in range(len(recurrence.parameters))), "x"])
    value = printed_njit(function(recurrence, LANGUAGES["numba"]), recurrence.name, _WORDS, error_model="numpy")
    text = f"def {recurrence.name}_there(p, x):\n    return value({arguments})[1][0] != 0\n"
    words: dict[str, Any] = {"__name__": __name__, "value": value}
    return printed_njit(text, f"{recurrence.name}_there", words, error_model="numpy")
