"""Neurons that read several projections, their own spikes of the step before among them: all steps in one kernel.

What a sample's neurons send each other meets no other sample, so a thread takes samples and runs all steps of them,
with their states in its cache. Forward, the spikes of a step choose the rows of the recurrent weights that are added:
exact in any order. Backward, the errors of a few samples meet the weights together, so that these come into the cache
once for all of them. Without a recurrence the neurons are cut into runs of some hundred instead. The neurons' own step
is that of neurons.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import prange
from stsbp_spec.equations import NeuronEquations
from stsbp_spec.grid import FINEST_ERROR_EXPONENT, FLOOR
from stsbp_spec.typing import Float32, Float64, Int32, Int64, UInt8

from stsbp_cpu.compiling import cached_njit
from stsbp_cpu.neurons import NOTHING, fire_all, fired_all, propagate_all, propagated_all
from stsbp_cpu.sparse.spikes import list_present
from stsbp_cpu.threads import get_num_threads
from stsbp_cpu.vectors import LANES, NONE, ROOM, sum_scaled

__all__ = ["Loop", "backward", "forward"]

_CHUNK = 512
"""Neurons of a run, where there is no recurrence."""
_TOGETHER, _ROWS = 8, 16
"""Samples whose errors meet the weights together, at most, and rows of the weights that meanwhile stay in the cache."""
_ZERO = np.float32(0)
_FLOOR_BITS = np.int32(np.float32(FLOOR).view(np.int32))
_MAGNITUDE = np.int32(0x7FFFFFFF)
_FINEST = FINEST_ERROR_EXPONENT


class Loop(NamedTuple):
    """Weights through which neurons read their own spikes of the step before.

    Attributes:
        at: which of the inputs of the equations it is.
        weights: on their grid, `[N, N]`, or, of a one-to-one connection, `[1, N]`.
    """

    at: int
    weights: Float32


_NO_LOOP = Loop(-1, np.empty((0, 1), np.float32))


def forward(
    equations: NeuronEquations, zs: Sequence[Float32 | None], u: Float32, spikes: UInt8, kept: Float32,
    learned: Float32 = NOTHING, loop: Loop | None = None,
) -> None:  # fmt: skip
    """Compute all steps of neurons and the filters before them.

    Args:
        equations: of both.
        zs: the inputs of `equations`, float32 `[1 or T, M]`, of one step: the same at every step; None: that of `loop`.
        u, spikes, kept, learned: see `neurons.forward`; `M` are the neurons of all samples, one sample after the other.
        loop: the recurrence; None: there is none.
    """
    equation, own = equations.forward, loop or _NO_LOOP
    steps, neurons = u.shape
    moving = [j for j, z in enumerate(zs) if z is not None and len(z) == steps]
    still = [j for j, z in enumerate(zs) if z is not None and len(z) < steps]
    order = np.full(len(zs), -1)
    order[moving + still] = np.arange(len(moving) + len(still))
    given = (_stacked([zs[j] for j in moving], neurons), _stacked([zs[j] for j in still], neurons)[:, 0])
    of_spikes = _padded(own.weights.T if len(own.weights) > 1 else own.weights)
    step, p = fire_all(equation, len(zs)), equations.forward_numbers
    _forward(step, p, *given, order, own.at, of_spikes, _run(loop), len(equation.states), u, spikes, kept, learned)


def backward(
    equations: NeuronEquations, static: tuple[str, ...], u: Float32, kept: Float32, ds: Float32, dz: Float32,
    sums: Float32, learned: Float32 = NOTHING, loop: Loop | None = None, bits: int = 0,
) -> None:  # fmt: skip
    """Compute the errors of the weighted inputs.

    Args:
        equations: of the neurons and the filters before them.
        static: of `equations.errors` those that are added over the steps, since their inputs served all of them.
        u, kept, ds, learned: see `neurons.backward`.
        dz: filled with the other errors, each once, in the order of `equations.errors`, float32 `[E, T, M]`.
        sums: filled with `static`, then with what each neuron adds to the gradients of what is learned, `[S, M]`.
        loop: the recurrence, through whose weights errors of a step reach the spikes of the step before.
        bits: of `grid.sample_grid`, which they meet before, with sums in float64; 0: they do not, sums in float32.
    """
    summed = (*static, *equations.terms.values())
    equation = equations.backward.summing(summed) if loop is None else equations.recurrent(static)
    own = loop or _NO_LOOP
    row = -1 if loop is None else list(equation.outputs).index(equations.errors[loop.at])
    chunks = -(-u.shape[1] // _run(loop))
    together = 1 if loop is None else max(1, min(_TOGETHER, chunks // get_num_threads()))
    step = propagate_all(equation, len(equations.terms), recurrent=loop is not None)
    p, states = equations.backward_numbers, len(equation.states)
    _backward(step, p, u, kept, ds, row, _padded(own.weights), bits, _run(loop), together, states, dz, sums, learned)


def _stacked(arrays: Sequence[Float32 | None], neurons: int) -> Float32:
    """`[J, T, M]`; of one without a copy."""
    if not arrays:
        return np.empty((0, 1, neurons), np.float32)
    return np.stack(arrays) if len(arrays) > 1 else np.asarray(arrays[0])[None]  # type: ignore[arg-type]


def _padded(w: Float32) -> Float32:
    """Rows with zeros up to a whole vector."""
    rows, columns = w.shape
    padded = np.zeros((rows, -(-columns // LANES) * LANES), np.float32)
    padded[:, :columns] = w
    return padded


def _run(loop: Loop | None) -> int:
    """Neurons that a thread takes at a time."""
    return _CHUNK if loop is None else loop.weights.shape[1]


@cached_njit(parallel=True, error_model="numpy")
def _forward(
    step: int, p: Float32, moving: Float32, still: Float32, order: Int64, own: int, v: Float32, length: int,
    states: int, u: Float32, spikes: UInt8, kept: Float32, learned: Float32,
) -> None:  # fmt: skip
    """Fill `u`, `spikes`, `[T, M]`, and `kept`, `[K, T, M]`.

    Args:
        step: what `fire_all` returns.
        p: parameters of the equation.
        moving, still: inputs `[., T, M]` and `[., M]`.
        order: which of both, one after the other, each input of the equation is; -1: the recurrence, number `own`.
        v: of the recurrence the weights of each neuron's spike, a row padded to whole vectors; one row: one-to-one.
        length: neurons of a run, with a recurrence those of a sample.
        states: of the equation.
        learned: `[P, M]`.
    """
    steps, neurons = u.shape
    wide = (length + LANES - 1) // LANES * LANES
    weights = v.reshape(-1)
    for chunk in prange((neurons + length - 1) // length):
        low = chunk * length
        n = min(length, neurons - low)
        s = np.zeros((states, length), np.float32)
        given = np.zeros((len(order), wide), np.float32)
        places, ones = np.empty(length + 1, np.int32), np.ones(length + 1, np.float32)
        count = 0
        for t in range(steps):
            for j in range(len(order)):
                if order[j] >= 0:
                    row = moving[order[j], t] if order[j] < len(moving) else still[order[j] - len(moving)]
                    for i in range(n):
                        given[j, i] = row[low + i]
            if own >= 0 and t > 0:
                given[own] = _ZERO
                if len(v) == 1:
                    for k in range(count):
                        given[own, places[k]] = weights[places[k]]
                else:
                    sum_scaled(
                        given.reshape(-1), own * wide, weights, places, wide, NONE, ones, NONE, count, wide // LANES
                    )
            fires = spikes[t, low : low + n]
            fired_all(step, p, given, s, u[t, low : low + n], fires, kept, t * neurons + low, learned, low, n)
            if own >= 0:
                count = 0
                for i in range(n):
                    places[count] = i
                    count += fires[i]


@cached_njit(parallel=True, error_model="numpy")
def _backward(
    step: int, p: Float32, u: Float32, kept: Float32, ds: Float32, own: int, v: Float32, bits: int, length: int,
    together: int, states: int, dz: Float32, sums: Float32, learned: Float32,
) -> None:  # fmt: skip
    """Fill `dz`, `[E, T, M]`, and `sums`, `[S, M]`, which are the last states.

    Args:
        step: what `propagate_all` returns.
        p: parameters of the equation.
        u, kept, ds: see the public function.
        own: which of `dz` goes back through the recurrence; -1: there is none.
        v: its weights `[N, N]` or `[1, N]`, rows padded to whole vectors.
        bits: see the public function.
        length: neurons of a run, with a recurrence those of a sample.
        together: how many samples meet the weights together.
        states: of the equation.
        learned: `[P, M]`.
    """
    steps, neurons = u.shape
    wide = (length + LANES - 1) // LANES * LANES
    chunks = (neurons + length - 1) // length
    for group in prange((chunks + together - 1) // together):
        first = group * together
        members = min(together, chunks - first)
        s = np.zeros((together, states, length), np.float32)
        above, below = np.zeros((2, length), np.float32), np.empty((max(1, len(dz)), length), np.float32)
        back = np.zeros((together, wide), np.float32)
        exact = np.zeros((together if bits > 0 else 0, length), np.float64)
        places, scales = np.empty((together, length + ROOM), np.int32), np.empty((together, length), np.float32)
        counts = np.zeros(together, np.int64)
        for late in range(steps):
            t = steps - 1 - late
            for c in range(members):
                low = (first + c) * length
                n = min(length, neurons - low)
                for i in range(n):
                    above[0, i] = ds[t, low + i]
                    above[1, i] = back[c, i]
                at = t * neurons + low
                propagated_all(step, p, u[t, low : low + n], above, s[c], kept, at, learned, low, below, n)
                for e in range(len(dz)):
                    for i in range(n):
                        dz[e, t, low + i] = below[e, i]
                if own >= 0 and t > 0:
                    if bits > 0:
                        _round(below[own], bits)
                    counts[c] = list_present(below[own], places[c], scales[c])
            if own >= 0 and t > 0:
                _send_back(v, places, scales, counts, members, back, exact)
        for c in range(members):
            low = (first + c) * length
            n = min(length, neurons - low)
            for k in range(len(sums)):
                for i in range(n):
                    sums[k, low + i] = s[c, states - len(sums) + k, i]


@cached_njit()
def _round(x: Float32, bits: int) -> None:
    """`grid.sample_grid` of one sample `[N]`, in place."""
    magnitudes = x.view(np.int32)
    most = np.int32(0)
    for i in range(len(x)):
        most = max(most, magnitudes[i] & _MAGNITUDE)
    if most < _FLOOR_BITS:
        x[:] = _ZERO
        return
    exponent = min(bits + 126 - int(most >> 23), _FINEST)
    scale, unit = np.float32(math.ldexp(1.0, exponent)), np.float32(math.ldexp(1.0, -exponent))
    for i in range(len(x)):
        x[i] = np.rint(x[i] * scale) * unit


@cached_njit()
def _send_back(
    v: Float32, places: Int32, scales: Float32, counts: Int64, members: int, back: Float32, exact: Float64
) -> None:
    """Fill `back`, `[samples, .]`, with the sums of the rows of `v` times the listed errors, each in their order.

    By way of `exact`, where it holds anything, in float64.
    """
    wide, weights, rows = back.shape[1], v.reshape(-1), len(v)
    back[:] = _ZERO
    exact[:] = 0.0
    if rows == 1:
        for c in range(members):
            for k in range(counts[c]):
                back[c, places[c, k]] = scales[c, k] * weights[places[c, k]]
        return
    for low in range(0, rows, _ROWS):
        for c in range(members):
            high = min(low + _ROWS, counts[c])
            if len(exact) == 0:
                if low < high:
                    sum_scaled(
                        back.reshape(-1), c * wide, weights, places[c], wide, NONE, scales[c], low, high, wide // LANES
                    )
            else:
                total = exact[c]
                for k in range(low, high):
                    row, scale = v[places[c, k]], np.float64(scales[c, k])
                    for i in range(len(total)):
                        total[i] += scale * np.float64(row[i])
    for c in range(len(exact)):
        for i in range(exact.shape[1]):
            back[c, i] = np.float32(exact[c, i])
