"""optim/adamw.py of the spec as one pass over memory on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import get_num_threads, prange
from stsbp_spec.optim.adamw import UPDATE, AdamWScalars
from stsbp_spec.typing import Float32

from stsbp_cpu.compiling import cached_njit
from stsbp_cpu.printed import step
from stsbp_cpu.threads import threads_for

__all__ = ["update"]


def update(
    scalars: AdamWScalars,
    w: Float32,
    g: Float32,
    m: Float32,
    v: Float32,
    new_w: Float32,
    new_m: Float32,
    new_v: Float32,
) -> None:
    """Fill `new_w`, `new_m` and `new_v` from weights, gradient and moments; all `[N]`."""
    p = np.array([getattr(scalars, name) for name in UPDATE.parameters], np.float32)
    with threads_for(w.size):
        _kernel()(p, w, g, m, v, new_w, new_m, new_v)


@cache
def _kernel() -> Callable[..., None]:
    names = (*UPDATE.inputs, *UPDATE.outputs)
    updated = step(UPDATE, ", ".join(names), names, "")

    @cached_njit(parallel=True, error_model="numpy")
    def update_all(
        p: Float32, w: Float32, g: Float32, m: Float32, v: Float32, new_w: Float32, new_m: Float32, new_v: Float32
    ) -> None:
        threads = get_num_threads()
        for thread in prange(threads):
            a = thread * w.size // threads
            b = (thread + 1) * w.size // threads
            updated(p, w[a:b], g[a:b], m[a:b], v[a:b], new_w[a:b], new_m[a:b], new_v[a:b])

    return update_all
