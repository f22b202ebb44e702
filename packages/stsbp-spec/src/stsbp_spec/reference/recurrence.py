"""Recurrences on numpy: one step after the other, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stsbp_spec.equations import Constants
from stsbp_spec.expr import Recurrence
from stsbp_spec.printers import numpy_function
from stsbp_spec.typing import AnyArray

__all__ = ["recur"]


def recur(
    recurrence: Recurrence,
    constants: Constants,
    inputs: Mapping[str, AnyArray],
    steps: int,
    *,
    summed: tuple[str, ...] = (),
    step: Callable[..., Any] | None = None,
) -> dict[str, AnyArray]:
    """`AbstractBackend.recur`; `step` computes one step (None: what is printed for numpy)."""
    step = step or numpy_function(recurrence)
    parameters = [constants[name] for name in recurrence.parameters]
    arrays = [inputs[name] for name in recurrence.inputs]
    shape = arrays[0].shape[1:]
    states = [np.zeros(shape, np.float32) for _ in recurrence.states]
    found: dict[str, AnyArray] = {
        name: np.zeros((1 if name in summed else steps, *shape), np.uint8 if x.is_condition else np.float32)
        for name, x in recurrence.outputs.items()
    }
    for t in reversed(range(steps)) if recurrence.reverse else range(steps):
        values = (x[t % len(x)].astype(np.float32, copy=False) for x in arrays)
        # Far from the threshold 1/inf is 0, as it should be; 0/0 is a NaN, which whoever reads results looks for.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            states, outputs = step(*parameters, *values, *states)
        for (name, whole), output in zip(found.items(), outputs, strict=True):
            if name in summed:
                whole[0] += output
            else:
                whole[t] = output
    return found
