"""neurons/lif.py of the spec as fused CUDA kernels (Triton): a lane a neuron, the loop over T inside.

States stay in registers. Fusion of multiply-adds is off (`enable_fp_fusion=False`), so each operation below rounds as
the spec's contract says; divisions use the correctly rounded `div_rn`.
"""

from __future__ import annotations

from typing import SupportsFloat

import numpy as np
import torch
import triton
import triton.language as tl
from stsbp_spec.grid import FLOOR

__all__ = ["backward", "forward"]

_BLOCK = 256
_FLOOR = tl.constexpr(FLOOR)


@triton.jit
def _snap(x):  # type: ignore[no-untyped-def]
    return tl.where(tl.abs(x) < _FLOOR, 0.0, x)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    z_ptr, u_ptr, s_ptr, constants, neurons, steps, STATIC: tl.constexpr, BLOCK: tl.constexpr
):
    # The float32 constants come from memory: a Python number would be folded into the code in another precision.
    k, c, km, vth = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2), tl.load(constants + 3)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    i = tl.zeros([BLOCK], tl.float32)
    m = tl.zeros([BLOCK], tl.float32)
    for t in range(steps):
        row = tl.cast(t, tl.int64) * neurons
        z = tl.load(z_ptr + (at if STATIC else row + at), mask=inside, other=0.0)
        i = _snap(k * i + c * z)
        u = _snap(m + i)
        o = u >= vth
        m = tl.where(o, 0.0, km * u)
        tl.store(u_ptr + row + at, u, mask=inside)
        tl.store(s_ptr + row + at, o.to(tl.uint8), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    u_ptr, s_ptr, g_ptr, dz_ptr, constants, neurons, steps,
    STATIC: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k, c, km, vth = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2), tl.load(constants + 3)
    p0, p1 = tl.load(constants + 4), tl.load(constants + 5)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    d = tl.zeros([BLOCK], tl.float32)
    e = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    one = tl.full([BLOCK], 1.0, tl.float32)
    for s in range(steps):
        row = tl.cast(steps - 1 - s, tl.int64) * neurons
        u = tl.load(u_ptr + row + at, mask=inside, other=0.0)
        o = tl.load(s_ptr + row + at, mask=inside, other=0) != 0
        g = tl.load(g_ptr + row + at, mask=inside, other=0.0)
        x = u - vth
        if KIND == 0:
            h = tl.where(tl.abs(x) < p0, p1, 0.0)
        elif KIND == 1:
            y = 1.0 - tl.abs(x) * p0
            h = tl.where(y > 0.0, y, 0.0)
        elif KIND == 2:
            y = 1.0 + tl.abs(x) * p0
            h = tl.div_rn(one, y * y)
        elif KIND == 3:
            y = x * p0
            h = tl.div_rn(one, 1.0 + y * y)
        else:
            w = tl.exp(-(tl.abs(x) * p0))
            y = 1.0 + w
            h = tl.div_rn(w, y * y) * p0
        d1 = _snap(km * d)
        p = _snap(u * d1)
        r = _snap(h * (g - p))
        d = r + tl.where(o, 0.0, d1)
        e = _snap(k * e + d)
        if STATIC:
            total += c * e
        else:
            tl.store(dz_ptr + row + at, c * e, mask=inside)
    if STATIC:
        tl.store(dz_ptr + at, total, mask=inside)


def _constants(device: torch.device, *values: SupportsFloat) -> torch.Tensor:
    return torch.tensor(np.array([float(x) for x in values], np.float32), device=device)


def forward(
    z: torch.Tensor,
    u: torch.Tensor,
    spikes: torch.Tensor,
    k: SupportsFloat,
    c: SupportsFloat,
    km: SupportsFloat,
    vth: SupportsFloat,
) -> None:
    """Fill `u` and `spikes`, `[T, M]`, from `z`, `[1 or T, M]`."""
    steps, neurons = u.shape
    _forward[(triton.cdiv(neurons, _BLOCK),)](
        z, u, spikes, _constants(u.device, k, c, km, vth), neurons, steps,
        STATIC=len(z) == 1, BLOCK=_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip


def backward(
    u: torch.Tensor,
    spikes: torch.Tensor,
    ds: torch.Tensor,
    dz: torch.Tensor,
    k: SupportsFloat,
    c: SupportsFloat,
    km: SupportsFloat,
    vth: SupportsFloat,
    code: tuple[int, float, float],
) -> None:
    """Fill `dz`, `[1 or T, M]`, from `ds`, `[T, M]`; `code` is `lif.surrogate_code`."""
    steps, neurons = u.shape
    kind, p0, p1 = code
    _backward[(triton.cdiv(neurons, _BLOCK),)](
        u, spikes, ds, dz, _constants(u.device, k, c, km, vth, p0, p1), neurons, steps,
        STATIC=len(dz) == 1 and steps > 1, KIND=kind, BLOCK=_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
