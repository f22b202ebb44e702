"""Computes any equation of the spec over time, on arrays of floats and bytes.

The loop over T is inside the kernel, and the states stay in the cache. The loop is compiled only once. It takes the
address of the equation's step (printers.py) and the addresses of the arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, float32, int64, prange, types
from numba.extending import intrinsic
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.typing import AnyArray, Array, Float32, Int64

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.layout import Layout
from stsbp_cpu.engine.threads import threads_for
from stsbp_cpu.equations.printers import called, run, step

__all__ = ["RUNS_BEFORE_COMPILING", "pays", "recur", "recur_of", "step_of"]

RUNS_BEFORE_COMPILING = 4
"""Number of runs after which an equation is compiled. Compiling takes some tenths of a second."""
_runs: Counter[Recurrence] = Counter()
_CHUNK = 512
"""Elements that a thread takes at a time. Their states and the arrays of a step stay in the first-level cache."""
_ADDRESS, _STRIDE, _ITEM_SIZE = 0, 1, 2
"""Columns of `_table`."""
_ROWS = float32[:, ::1]
_STEP = {"p": float32[::1], "given": _ROWS, "states": _ROWS, "made": _ROWS, "n": int64}
call_step = called(_STEP)
"""For use in kernels: calls the function at the address that `step_of` returns."""


def pays(recurrence: Recurrence) -> bool:
    """Whether to compile an equation that is about to run once more.

    Only exact equations may be compiled, because the last bits of `exp` differ between libraries.
    """
    _runs[recurrence] += 1
    return _runs[recurrence] > RUNS_BEFORE_COMPILING and _exact(recurrence)


@cache
def _exact(recurrence: Recurrence) -> bool:
    return recurrence.exact


def recur_of(
    layout: Layout[Array],
    recurrence: Recurrence,
    constants: Constants,
    inputs: Mapping[str, Array],
    steps: int,
    summed: tuple[str, ...] = (),
) -> dict[str, Array]:
    """Implements `AbstractBackend.recur` for a library's own arrays, float32 or uint8."""
    arrays = [layout.laid_out(inputs[name]) for name in recurrence.inputs]
    shape = tuple(arrays[0].shape[1:])
    outputs = {
        name: layout.empty((1 if name in summed else steps, *shape), np.uint8 if x.is_condition else np.float32)
        for name, x in recurrence.outputs.items()
    }
    output_rows = {name: layout.rows(x) for name, x in outputs.items()}
    recur(recurrence, constants, [layout.rows(x) for x in arrays], output_rows, steps, summed)
    return outputs


def recur(
    recurrence: Recurrence,
    constants: Constants,
    inputs: Sequence[AnyArray],
    outputs: Mapping[str, AnyArray],
    steps: int,
    summed: tuple[str, ...] = (),
) -> None:
    """Implements `AbstractBackend.recur`.

    Args:
        recurrence, constants, steps, summed: see `AbstractBackend.recur`.
        inputs: inputs in the order of the equation, float32 or uint8 `[1 or steps, M]`, contiguous.
        outputs: filled with the outputs, by name: float32, or uint8 for conditions, `[steps, M]`, or `[1, M]` for names
            in `summed`.
    """
    added = np.array([name in summed for name in recurrence.outputs])
    p = recurrence.numbers(constants)
    # The caller's arrays outlive the call, so the addresses in the tables stay valid.
    targets = [outputs[name] for name in recurrence.outputs]
    size = inputs[0].shape[1]
    with threads_for(size * steps):
        _recur(
            step_of(recurrence), p, _table(inputs), _table(targets), added, len(recurrence.states), steps, size,
            recurrence.reverse,
        )  # fmt: skip


def _table(arrays: Sequence[AnyArray]) -> Int64:
    """For each array its address, the distance between steps in bytes, and the size of an element, `[., 3]`."""
    entries = [(x.ctypes.data, x.strides[0] if len(x) > 1 else 0, x.itemsize) for x in arrays]
    return np.array(entries, np.int64).reshape(-1, 3)


@cache
def step_of(recurrence: Recurrence) -> int:
    """Address of a function that computes one step of `n` elements. Its arguments are `(p, given, states, made, n)`.

    `p` are the parameters. `given`, `states` and `made` have a row `[n]` for each input, state and output.
    """
    arrays = [run("given", i) for i in range(len(recurrence.inputs))]
    return step(recurrence, _STEP, [*arrays, *(run("made", i) for i in range(len(recurrence.outputs)))], "states")


def _pointer_to(number_type: Any) -> Any:
    """A function for use in kernels that makes a pointer to `number_type` from an address."""

    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> ir.Value:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(number_type)(types.int64), generate

    return pointer


_floats, _bytes = _pointer_to(types.float32), _pointer_to(types.uint8)


@cached_njit(parallel=True, error_model="numpy")
def _recur(
    step: int, p: Float32, sources: Int64, targets: Int64, added: AnyArray, states: int, steps: int, size: int,
    reverse: bool,
) -> None:  # fmt: skip
    """`sources` and `targets` are made by `_table`. `added` says which targets are sums over the steps."""
    for chunk in prange((size + _CHUNK - 1) // _CHUNK):
        low = chunk * _CHUNK
        n = min(_CHUNK, size - low)
        s = np.zeros((states, n), np.float32)
        step_inputs, step_outputs = np.zeros((len(sources), n), np.float32), np.zeros((len(targets), n), np.float32)
        totals = np.zeros((len(targets), n), np.float32)
        for number in range(steps):
            t = steps - 1 - number if reverse else number
            for i in range(len(sources)):
                address = sources[i, _ADDRESS] + t * sources[i, _STRIDE] + low * sources[i, _ITEM_SIZE]
                if sources[i, _ITEM_SIZE] == 1:
                    spikes = carray(_bytes(address), n)
                    for j in range(n):
                        step_inputs[i, j] = spikes[j]
                elif number == 0 or sources[i, _STRIDE] != 0:
                    values = carray(_floats(address), n)
                    for j in range(n):
                        step_inputs[i, j] = values[j]
            call_step(step, p, step_inputs, s, step_outputs, n)
            for k in range(len(targets)):
                address = targets[k, _ADDRESS] + t * targets[k, _STRIDE] + low * targets[k, _ITEM_SIZE]
                if added[k]:
                    for j in range(n):
                        totals[k, j] += step_outputs[k, j]
                elif targets[k, _ITEM_SIZE] == 1:
                    spikes = carray(_bytes(address), n)
                    for j in range(n):
                        spikes[j] = np.uint8(step_outputs[k, j])
                else:
                    values = carray(_floats(address), n)
                    for j in range(n):
                        values[j] = step_outputs[k, j]
        for k in range(len(targets)):
            if added[k]:
                values = carray(_floats(targets[k, _ADDRESS] + low * targets[k, _ITEM_SIZE]), n)
                for j in range(n):
                    values[j] = totals[k, j]
