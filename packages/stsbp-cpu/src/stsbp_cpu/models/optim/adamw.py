"""Implements optim/adamw.py and optim/adam.py of the spec as one pass over memory on the CPU."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import float32, int64, prange
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.typing import Float32

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.threads import get_num_threads, threads_for
from stsbp_cpu.equations.printers import called, run, step

__all__ = ["step_of_update", "update"]

_STEP = dict.fromkeys(("p", "w", "g", "m", "v", "new_w", "new_m", "new_v"), float32[::1]) | {"n": int64}
updated = called(_STEP)
"""For use in kernels: calls the function at the address that `step_of_update` returns."""


def update(
    scalars: Scalars,
    w: Float32,
    g: Float32,
    m: Float32,
    v: Float32,
    new_w: Float32,
    new_m: Float32,
    new_v: Float32,
) -> None:
    """Fill `new_w`, `new_m` and `new_v` from the weights, the gradient and the moments. All arrays are `[N]`."""
    rule = scalars.update
    p = np.array([getattr(scalars, name) for name in rule.parameters], np.float32)
    with threads_for(w.size):
        _update(step_of_update(rule), p, w, g, m, v, new_w, new_m, new_v, get_num_threads())


@cache
def step_of_update(rule: Recurrence) -> int:
    """Address of a function that updates one element after the other: see `printed.step`."""
    return step(rule, _STEP, [run(name) for name in (*rule.inputs, *rule.outputs)])


@cached_njit(parallel=True, error_model="numpy")
def _update(
    step: int, p: Float32, w: Float32, g: Float32, m: Float32, v: Float32, new_w: Float32, new_m: Float32,
    new_v: Float32, threads: int,
) -> None:  # fmt: skip
    for thread in prange(threads):
        a = thread * w.size // threads
        b = (thread + 1) * w.size // threads
        updated(step, p, w[a:b], g[a:b], m[a:b], v[a:b], new_w[a:b], new_m[a:b], new_v[a:b], b - a)
