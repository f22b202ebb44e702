"""optim/adamw.py of the spec as one pass over memory on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numba import get_num_threads, prange
from stsbp_spec.optim.adamw import UPDATE, AdamWScalars
from stsbp_spec.typing import Float32

from stsbp_torch.compiling import cached_njit
from stsbp_torch.printed import step
from stsbp_torch.threads import threads_for

__all__ = ["update"]


def update(
    scalars: AdamWScalars, w: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New `(w, m, v)`."""
    p = np.array([getattr(scalars, name) for name in UPDATE.parameters], np.float32)
    out = tuple(torch.empty_like(w) for _ in range(3))
    with threads_for(w.numel()):
        _kernel()(p, *(x.reshape(-1).numpy() for x in (w, g.contiguous(), m, v, *out)))
    return out[0], out[1], out[2]


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
