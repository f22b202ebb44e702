"""Recurrences in JAX: the printed step in a `lax.scan` over the time steps, or as one elementwise expression.

The scan runs on flattened neurons, `[T, B * N]`, which vectorises. Spikes that depend only on the potentials are
computed after the scan. This is cheaper than another array that the scan fills step by step.

XLA rewrites float32 arithmetic as if numbers were real numbers. It fuses `a*b + c`. If two constants are added one
after the other, it adds the constants to each other first. It replaces the division by a number with a multiplication
by the reciprocal, and a quotient of quotients with another quotient. Therefore, the printed step passes every product,
quotient and root, and all constants, through `Rounding`. `divide` handles the remaining cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.equations.adjoint import free_variables, substituted
from stsbp_spec.equations.expressions import Recurrence, variable
from stsbp_spec.equations.printers import LANGUAGES, compiled

from stsbp_jax.contract.grid import ZERO, Rounding, divide, snap, square_root
from stsbp_jax.distributed.replication import match_replication

__all__ = ["recur"]


def recur(
    recurrence: Recurrence,
    constants: Mapping[str, Any],
    inputs: Mapping[str, Array],
    steps: int,
    *,
    summed: tuple[str, ...] = (),
) -> dict[str, Array]:
    """Implements `AbstractBackend.recur`, to be traced. Constants are float32 numbers, traced or not.

    Outputs in `summed` are added over the steps, `[1, ...]`. Inputs are `[steps, ...]`, or `[1, ...]` if they are the
    same at every step. `lax.scan` only takes the former, so the step reads the latter from outside.
    """
    if not summed and (parts := _split(recurrence)) is not None:
        recurrence_part, later_conditions = parts
        part_outputs = recur(recurrence_part, constants, inputs, steps)
        return part_outputs | recur(
            later_conditions, constants, {name: part_outputs[name] for name in later_conditions.inputs}, steps
        )
    arrays = [inputs[name] for name in recurrence.inputs]
    shape = arrays[0].shape[1:]
    rounded = Rounding(arrays[0])

    def number(value: float) -> Any:
        return ZERO if value == 0 else rounded(np.float32(value))

    helpers = {"snap": snap, "where": jnp.where, "abs": jnp.abs, "sqrt": square_root, "exp": jnp.exp,
               "rounded": rounded, "divide": divide, "float32": number}  # fmt: skip
    function = compiled(recurrence, LANGUAGES["jax"], helpers)
    parameters = [rounded(constants[name]) for name in recurrence.parameters]
    conditions = [x.is_condition for x in recurrence.outputs.values()]

    def step(values: list[Array], states: tuple[Array, ...], shape: tuple[int, ...]) -> Any:
        """New states and outputs, each of the whole shape, even if the equation gives a constant."""
        new, outputs = function(*parameters, *(x.astype(np.float32) for x in values), *states)
        types = (np.uint8 if condition else np.float32 for condition in conditions)
        return (
            tuple(jnp.broadcast_to(x, shape) for x in new),
            tuple(jnp.broadcast_to(x, shape).astype(dtype) for x, dtype in zip(outputs, types, strict=True)),
        )

    if not recurrence.states and not summed:
        _, outputs = step(arrays, (), (steps, *shape))
        return dict(zip(recurrence.outputs, outputs, strict=True))

    flat = [x.reshape(len(x), -1) for x in arrays]
    varying = [None if len(x) == 1 else x for x in flat]
    zeros = match_replication(jnp.zeros(flat[0].shape[1:], np.float32), flat)

    def scan_step(carry: Any, values: list[Array | None]) -> Any:
        states, totals = carry
        step_inputs = [array[0] if x is None else x for x, array in zip(values, flat, strict=True)]
        states, outputs = step(step_inputs, states, zeros.shape)
        step_outputs = dict(zip(recurrence.outputs, outputs, strict=True))
        return (states, {name: step_outputs.pop(name) + total for name, total in totals.items()}), step_outputs

    start = (zeros,) * len(recurrence.states), dict.fromkeys(summed, zeros)
    (_, totals), scanned = lax.scan(scan_step, start, varying, length=steps, reverse=recurrence.reverse)
    return {
        name: totals[name].reshape(1, *shape) if name in summed else scanned[name].reshape(steps, *shape)
        for name in recurrence.outputs
    }


@cache
def _split(recurrence: Recurrence) -> tuple[Recurrence, Recurrence] | None:
    """Split off the conditions that depend only on the other outputs; None: there are no such conditions.

    Returns the recurrence without these conditions, and a second recurrence that computes them.
    """
    read_names = {*recurrence.parameters, *recurrence.inputs, *recurrence.states}
    numbers = {k: x for k, x in recurrence.outputs.items() if not x.is_condition and k not in read_names}
    variable_of = {id(x): variable(name) for name, x in numbers.items()}
    later_outputs = {}
    for name, x in recurrence.outputs.items():
        (written,) = substituted([x], variable_of)
        names_read = set(free_variables([written])) - {*recurrence.parameters}
        if recurrence.states and x.is_condition and names_read and names_read <= set(numbers):
            later_outputs[name] = written
    if not later_outputs:
        return None
    other_outputs = {name: x for name, x in recurrence.outputs.items() if name not in later_outputs}
    recurrence_part = recurrence.changed(outputs=other_outputs)
    inputs = tuple(name for name in free_variables(later_outputs.values()) if name in numbers)
    parameters = tuple(name for name in free_variables(later_outputs.values()) if name in recurrence.parameters)
    return recurrence_part, Recurrence(f"{recurrence.name}_after", parameters, inputs, {}, later_outputs)
