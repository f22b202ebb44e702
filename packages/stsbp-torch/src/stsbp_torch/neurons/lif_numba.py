"""neurons/lif.py of the spec as fused CPU kernels: the loop over T inside, states in the first-level cache.

Neurons are cut into chunks that the threads share; a chunk's filter and membrane states stay in cache while the steps
stream through it, so memory moves each array once. A chunk's next step lies elsewhere in memory, where the processor
does not look ahead by itself, so each step asks for the next one's lines before it computes. Nothing is fused or
reordered: `fastmath` is off, every scalar is a float32, and each line below rounds as the spec's contract says.
`fire` and `propagate` are one step of each pass, on one run of neurons; sparse/kernels.py uses them too.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.grid import FLOOR
from stsbp_spec.typing import Float32, UInt8

from stsbp_torch.compiling import cached_njit
from stsbp_torch.vectors import fetch, fetch_to_write, stream

__all__ = ["backward", "fire", "forward", "propagate"]

_CHUNK, _SHORT_CHUNK = 1024, 512
"""Neurons; the best of 256 to 16,384 on an Intel Xeon with 48 KB of first-level cache, writing past it and into it."""
_PAST = 2**24
"""Potentials, 64 MB, of which little is still in a cache when the backward pass comes."""
_FLOOR = np.float32(FLOOR)
_ZERO = np.float32(0)
_ONE = np.float32(1)


@cached_njit(error_model="numpy")
def fire(
    z: Float32, i: Float32, m: Float32, u: Float32, spikes: UInt8,
    k: np.float32, c: np.float32, km: np.float32, vth: np.float32,
) -> None:  # fmt: skip
    """One step of `[n]` neurons: fill `u` and `spikes` from `z` (`u` may be `z`), move the states `i` and `m` on."""
    # Two loops: `z` and `u` may be the same memory, which would keep one loop from being vectorised.
    for j in range(len(u)):
        x = k * i[j] + c * z[j]
        i[j] = _ZERO if abs(x) < _FLOOR else x
    for j in range(len(u)):
        y = m[j] + i[j]
        y = _ZERO if abs(y) < _FLOOR else y
        o = y >= vth
        u[j] = y
        m[j] = _ZERO if o else km * y
        spikes[j] = o


@cached_njit(error_model="numpy")
def propagate(
    u: Float32, ds: Float32, d: Float32, e: Float32, h: Float32,
    k: np.float32, km: np.float32, vth: np.float32, kind: int, p0: np.float32, p1: np.float32,
) -> None:  # fmt: skip
    """One step back of `[n]` neurons: move the states `d` and `e` from step `t + 1` to `t`; `h` is scratch.

    The error of `z` is `c e` afterwards. Spikes are where `u >= vth`, as in `fire`.
    """
    if kind == 0:
        for j in range(len(u)):
            h[j] = p1 if abs(u[j] - vth) < p0 else _ZERO
    elif kind == 1:
        for j in range(len(u)):
            y = _ONE - abs(u[j] - vth) * p0
            h[j] = y if y > _ZERO else _ZERO
    elif kind == 2:
        for j in range(len(u)):
            y = _ONE + abs(u[j] - vth) * p0
            h[j] = _ONE / (y * y)
    elif kind == 3:
        for j in range(len(u)):
            y = (u[j] - vth) * p0
            h[j] = _ONE / (_ONE + y * y)
    else:
        for j in range(len(u)):
            w = np.exp(-(abs(u[j] - vth) * p0))
            y = _ONE + w
            h[j] = w / (y * y) * p0
    for j in range(len(u)):
        d1 = km * d[j]
        d1 = _ZERO if abs(d1) < _FLOOR else d1
        p = u[j] * d1
        p = _ZERO if abs(p) < _FLOOR else p
        r = h[j] * (ds[j] - p)
        r = _ZERO if abs(r) < _FLOOR else r
        d[j] = r + (_ZERO if u[j] >= vth else d1)
        x = k * e[j] + d[j]
        e[j] = _ZERO if abs(x) < _FLOOR else x


@cached_njit(parallel=True, error_model="numpy")
def forward(
    z: Float32, u: Float32, spikes: UInt8, k: np.float32, c: np.float32, km: np.float32, vth: np.float32
) -> None:
    """Fill `u` and `spikes`, `[T, M]`, from `z`, `[1 or T, M]` (`u` may be `z` itself)."""
    steps, neurons = u.shape
    past = u.size >= _PAST
    length = _CHUNK if past else _SHORT_CHUNK
    chunks = (neurons + length - 1) // length
    for chunk in prange(chunks):
        low = chunk * length
        high = min(neurons, low + length)
        i = np.zeros(high - low, np.float32)
        m = np.zeros(high - low, np.float32)
        own = np.empty(high - low, np.float32)
        for t in range(steps):
            if t + 1 < steps:
                if z.shape[0] > 1:
                    fetch(z[t + 1, low:high])
                if not past:
                    fetch_to_write(u[t + 1, low:high])
                fetch_to_write(spikes[t + 1, low:high])
            zt = z[t if z.shape[0] > 1 else 0, low:high]
            fire(zt, i, m, own if past else u[t, low:high], spikes[t, low:high], k, c, km, vth)
            if past:
                stream(u[t, low:high], own)


@cached_njit(parallel=True, error_model="numpy")
def backward(
    u: Float32,
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
        high = min(neurons, low + _CHUNK)
        d = np.zeros(high - low, np.float32)
        e = np.zeros(high - low, np.float32)
        h = np.zeros(high - low, np.float32)
        total = np.zeros(high - low, np.float32)
        for s in range(steps):
            t = steps - 1 - s
            if t > 0:
                fetch(u[t - 1, low:high])
                fetch(ds[t - 1, low:high])
            propagate(u[t, low:high], ds[t, low:high], d, e, h, k, km, vth, kind, p0, p1)
            if static:
                for j in range(high - low):
                    total[j] += c * e[j]
            else:
                for j in range(high - low):
                    h[j] = c * e[j]
                stream(dz[t, low:high], h)
        if static:
            out = dz[0, low:high]
            for j in range(high - low):
                out[j] = total[j]
