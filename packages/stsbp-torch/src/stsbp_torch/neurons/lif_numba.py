"""neurons/lif.py of the spec as fused CPU kernels: the loop over T inside, states in the first-level cache.

Neurons are cut into chunks that the threads share; a chunk's filter and membrane states stay in cache while the steps
stream through it, so memory moves each array once. Nothing is fused or reordered: `fastmath` is off, every scalar is a
float32, and each line below rounds as the spec's contract says.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from stsbp_spec.grid import FLOOR
from stsbp_spec.typing import Float32, UInt8

__all__ = ["backward", "forward"]

_CHUNK = 1024
_FLOOR = np.float32(FLOOR)
_ZERO = np.float32(0)
_ONE = np.float32(1)


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def forward(
    z: Float32, u: Float32, spikes: UInt8, k: np.float32, c: np.float32, km: np.float32, vth: np.float32
) -> None:
    """Fill `u` and `spikes`, `[T, M]`, from `z`, `[1 or T, M]` (`u` may be `z` itself)."""
    steps, neurons = u.shape
    chunks = (neurons + _CHUNK - 1) // _CHUNK
    for chunk in prange(chunks):
        low = chunk * _CHUNK
        n = min(neurons - low, _CHUNK)
        i = np.zeros(_CHUNK, np.float32)
        m = np.zeros(_CHUNK, np.float32)
        for t in range(steps):
            zt = z[t if z.shape[0] > 1 else 0, low : low + n]
            ut = u[t, low : low + n]
            st = spikes[t, low : low + n]
            # Two loops: `zt` and `ut` may be the same memory, which would keep one loop from being vectorised.
            for j in range(n):
                x = k * i[j] + c * zt[j]
                i[j] = _ZERO if abs(x) < _FLOOR else x
            for j in range(n):
                y = m[j] + i[j]
                y = _ZERO if abs(y) < _FLOOR else y
                o = y >= vth
                ut[j] = y
                m[j] = _ZERO if o else km * y
                st[j] = o


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def backward(
    u: Float32,
    spikes: UInt8,
    ds: Float32,
    dz: Float32,
    k: np.float32,
    c: np.float32,
    km: np.float32,
    vth: np.float32,
    kind: int,
    p0: np.float32,
    p1: np.float32,
) -> None:
    """Fill `dz`, `[1 or T, M]`, from `ds`, `[T, M]` (`dz` may be `ds`); `kind`, `p0`, `p1`: `lif.surrogate_code`."""
    steps, neurons = u.shape
    chunks = (neurons + _CHUNK - 1) // _CHUNK
    static = dz.shape[0] == 1 and steps > 1
    for chunk in prange(chunks):
        low = chunk * _CHUNK
        n = min(neurons - low, _CHUNK)
        d = np.zeros(_CHUNK, np.float32)
        e = np.zeros(_CHUNK, np.float32)
        h = np.zeros(_CHUNK, np.float32)
        total = np.zeros(_CHUNK, np.float32)
        for s in range(steps):
            t = steps - 1 - s
            ut = u[t, low : low + n]
            st = spikes[t, low : low + n]
            gt = ds[t, low : low + n]
            if kind == 0:
                for j in range(n):
                    h[j] = p1 if abs(ut[j] - vth) < p0 else _ZERO
            elif kind == 1:
                for j in range(n):
                    y = _ONE - abs(ut[j] - vth) * p0
                    h[j] = y if y > _ZERO else _ZERO
            elif kind == 2:
                for j in range(n):
                    y = _ONE + abs(ut[j] - vth) * p0
                    h[j] = _ONE / (y * y)
            elif kind == 3:
                for j in range(n):
                    y = (ut[j] - vth) * p0
                    h[j] = _ONE / (_ONE + y * y)
            else:
                for j in range(n):
                    w = np.exp(-(abs(ut[j] - vth) * p0))
                    y = _ONE + w
                    h[j] = w / (y * y) * p0
            for j in range(n):
                d1 = km * d[j]
                d1 = _ZERO if abs(d1) < _FLOOR else d1
                p = ut[j] * d1
                p = _ZERO if abs(p) < _FLOOR else p
                r = h[j] * (gt[j] - p)
                r = _ZERO if abs(r) < _FLOOR else r
                d[j] = r + (_ZERO if st[j] != 0 else d1)
                x = k * e[j] + d[j]
                e[j] = _ZERO if abs(x) < _FLOOR else x
            if static:
                for j in range(n):
                    total[j] += c * e[j]
            else:
                out = dz[t, low : low + n]
                for j in range(n):
                    out[j] = c * e[j]
        if static:
            out = dz[0, low : low + n]
            for j in range(n):
                out[j] = total[j]
