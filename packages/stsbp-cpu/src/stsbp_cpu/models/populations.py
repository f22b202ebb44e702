"""Neurons with several input projections, possibly with a recurrence. One kernel computes all steps.

Recurrent connections do not cross samples. So a thread takes some samples and computes all steps of them, with their
states in its cache. In the forward pass, the spikes of a step select the rows of the recurrent weights that are added.
These sums are exact in any order. In the backward pass, the error signals of a few samples are multiplied by the
weights together, so that the weights are loaded into the cache only once for these samples. Without a recurrence, the
neurons are divided into runs of some hundred neurons instead. The step of the neurons is that of neurons.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import prange
from stsbp_spec.contract.grid import FINEST_ERROR_EXPONENT, FLOOR
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.typing import Float32, Float64, Int32, Int64, UInt8

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.threads import get_num_threads
from stsbp_cpu.equations.vectors import LANES, NONE, ROOM, sum_scaled
from stsbp_cpu.models.neurons import NOTHING, fire_all, fired_all, propagate_all, propagated_all
from stsbp_cpu.ops.sparse.spikes import list_nonzero

__all__ = ["RecurrentWeights", "backward", "forward"]

_CHUNK = 512
"""Number of neurons in a run if there is no recurrence."""
_TOGETHER, _ROWS = 8, 16
"""Maximum number of samples that are multiplied by the weights together, and number of rows of the weights at a time.

These rows stay in the cache while all samples are multiplied by them.
"""
_ZERO = np.float32(0)
_FLOOR_BITS = np.int32(np.float32(FLOOR).view(np.int32))
_MAGNITUDE = np.int32(0x7FFFFFFF)
_FINEST = FINEST_ERROR_EXPONENT


class RecurrentWeights(NamedTuple):
    """A recurrence: weights through which neurons read their own spikes of the previous step.

    Attributes:
        input_index: index of the recurrence among the inputs of the equations.
        weights: weights on their grid, `[N, N]`, or `[1, N]` for a one-to-one connection.
    """

    input_index: int
    weights: Float32


_NO_RECURRENCE = RecurrentWeights(-1, np.empty((0, 1), np.float32))


def forward(
    equations: NeuronEquations, zs: Sequence[Float32 | None], u: Float32, spikes: UInt8, kept: Float32,
    learned: Float32 = NOTHING, loop: RecurrentWeights | None = None,
) -> None:  # fmt: skip
    """Compute all steps of neurons and the filters before them.

    Args:
        equations: equations of the neurons and the filters.
        zs: the inputs of `equations`, float32 `[1 or T, M]`. A single row is the input of every step. None stands for
            the input of `loop`.
        u, spikes, kept, learned: see `neurons.forward`. The `M` neurons are those of all samples, one sample after the
            other.
        loop: the recurrence; None: no recurrence.
    """
    equation, recurrence = equations.forward, loop or _NO_RECURRENCE
    steps, neurons = u.shape
    varying = [j for j, z in enumerate(zs) if z is not None and len(z) == steps]
    constant = [j for j, z in enumerate(zs) if z is not None and len(z) < steps]
    order = np.full(len(zs), -1)
    order[varying + constant] = np.arange(len(varying) + len(constant))
    stacked = (_stacked([zs[j] for j in varying], neurons), _stacked([zs[j] for j in constant], neurons)[:, 0])
    spike_weights = _padded(recurrence.weights.T if len(recurrence.weights) > 1 else recurrence.weights)
    step, p = fire_all(equation, len(zs)), equations.forward_numbers
    _forward(
        step,
        p,
        *stacked,
        order,
        recurrence.input_index,
        spike_weights,
        _chunk_length(loop),
        len(equation.states),
        u,
        spikes,
        kept,
        learned,
    )


def backward(
    equations: NeuronEquations, static: tuple[str, ...], u: Float32, kept: Float32, ds: Float32, dz: Float32,
    sums: Float32, learned: Float32 = NOTHING, loop: RecurrentWeights | None = None, bits: int = 0,
) -> None:  # fmt: skip
    """Compute the error signals of the weighted inputs.

    Args:
        equations: equations of the neurons and of the filters before them.
        static: names in `equations.errors` whose error signals are summed over the steps, because their inputs are the
            same at every step.
        u, kept, ds, learned: see `neurons.backward`.
        dz: filled with the other error signals, each once, in the order of `equations.errors`, float32 `[E, T, M]`.
        sums: filled with the error signals of `static`, followed by each neuron's contribution to the gradients of the
            learned parameters, `[S, M]`.
        loop: the recurrence. Its weights carry error signals of a step to the spikes of the previous step.
        bits: bits of `Operations.sample_grid`. Error signals are rounded to this grid before they are multiplied by the
            recurrent weights, and sums are float64. 0: no rounding, and sums are float32.
    """
    summed = (*static, *equations.terms.values())
    equation = equations.backward.summing(summed) if loop is None else equations.recurrent(static)
    recurrence = loop or _NO_RECURRENCE
    row = -1 if loop is None else list(equation.outputs).index(equations.errors[loop.input_index])
    chunks = -(-u.shape[1] // _chunk_length(loop))
    together = 1 if loop is None else max(1, min(_TOGETHER, chunks // get_num_threads()))
    step = propagate_all(equation, len(equations.terms), recurrent=loop is not None)
    p, states = equations.backward_numbers, len(equation.states)
    _backward(
        step,
        p,
        u,
        kept,
        ds,
        row,
        _padded(recurrence.weights),
        bits,
        _chunk_length(loop),
        together,
        states,
        dz,
        sums,
        learned,
    )


def _stacked(arrays: Sequence[Float32 | None], neurons: int) -> Float32:
    """The arrays as `[J, T, M]`. A single array is not copied."""
    if not arrays:
        return np.empty((0, 1, neurons), np.float32)
    return np.stack(arrays) if len(arrays) > 1 else np.asarray(arrays[0])[None]  # type: ignore[arg-type]


def _padded(w: Float32) -> Float32:
    """A copy of `w` whose rows are padded with zeros to whole vectors."""
    rows, columns = w.shape
    padded = np.zeros((rows, -(-columns // LANES) * LANES), np.float32)
    padded[:, :columns] = w
    return padded


def _chunk_length(loop: RecurrentWeights | None) -> int:
    """Number of neurons that a thread takes at a time."""
    # With a recurrence a whole sample, because a step of a neuron needs the spikes of all neurons. Samples are
    # independent.
    return _CHUNK if loop is None else loop.weights.shape[1]


@cached_njit(parallel=True, error_model="numpy")
def _forward(
    step: int, p: Float32, varying: Float32, constant: Float32, order: Int64, recurrent_input: int, v: Float32,
    length: int, states: int, u: Float32, spikes: UInt8, kept: Float32, learned: Float32,
) -> None:  # fmt: skip
    """Fill `u`, `spikes`, `[T, M]`, and `kept`, `[K, T, M]`.

    Args:
        step: the address that `fire_all` returns.
        p: parameters of the equation.
        varying, constant: inputs that change over time, `[., T, M]`, and constant inputs, `[., M]`.
        order: for each input of the equation, its index in `varying` followed by `constant`. -1 stands for the
            recurrence, which is input number `recurrent_input`.
        v: weights of the recurrence. Row `i` contains the weights of the spike of neuron `i`, padded to whole vectors.
            A single row: one-to-one connection.
        length: number of neurons in a run; with a recurrence, in a sample.
        states: number of states of the equation.
        learned: learned parameters, `[P, M]`.
    """
    steps, neurons = u.shape
    padded_length = (length + LANES - 1) // LANES * LANES
    weights = v.reshape(-1)
    for chunk in prange((neurons + length - 1) // length):
        low = chunk * length
        n = min(length, neurons - low)
        s = np.zeros((states, length), np.float32)
        inputs = np.zeros((len(order), padded_length), np.float32)
        positions, ones = np.empty(length + 1, np.int32), np.ones(length + 1, np.float32)
        count = 0
        for t in range(steps):
            for j in range(len(order)):
                if order[j] >= 0:
                    row = varying[order[j], t] if order[j] < len(varying) else constant[order[j] - len(varying)]
                    for i in range(n):
                        inputs[j, i] = row[low + i]
            if recurrent_input >= 0 and t > 0:
                inputs[recurrent_input] = _ZERO
                if len(v) == 1:
                    for k in range(count):
                        inputs[recurrent_input, positions[k]] = weights[positions[k]]
                else:
                    sum_scaled(
                        inputs.reshape(-1),
                        recurrent_input * padded_length,
                        weights,
                        positions,
                        padded_length,
                        NONE,
                        ones,
                        NONE,
                        count,
                        padded_length // LANES,
                    )
            fires = spikes[t, low : low + n]
            fired_all(step, p, inputs, s, u[t, low : low + n], fires, kept, t * neurons + low, learned, low, n)
            if recurrent_input >= 0:
                count = 0
                for i in range(n):
                    # Without a branch, which the processor would often predict wrongly. So `positions` has one element
                    # more.
                    positions[count] = i
                    count += fires[i]


@cached_njit(parallel=True, error_model="numpy")
def _backward(
    step: int, p: Float32, u: Float32, kept: Float32, ds: Float32, recurrent_error: int, v: Float32, bits: int,
    length: int, together: int, states: int, dz: Float32, sums: Float32, learned: Float32,
) -> None:  # fmt: skip
    """Fill `dz`, `[E, T, M]`, and `sums`, `[S, M]`. `sums` contains the last `S` states of the equation.

    Args:
        step: the address that `propagate_all` returns.
        p: parameters of the equation.
        u, kept, ds: see the public function.
        recurrent_error: index in `dz` of the error signal that goes back through the recurrence; -1: no recurrence.
        v: weights of the recurrence, `[N, N]` or `[1, N]`, with rows padded to whole vectors.
        bits: see the public function.
        length: number of neurons in a run; with a recurrence, in a sample.
        together: number of samples that are multiplied by the weights together.
        states: number of states of the equation.
        learned: learned parameters, `[P, M]`.
    """
    steps, neurons = u.shape
    padded_length = (length + LANES - 1) // LANES * LANES
    chunks = (neurons + length - 1) // length
    for group in prange((chunks + together - 1) // together):
        first = group * together
        members = min(together, chunks - first)
        s = np.zeros((together, states, length), np.float32)
        spike_errors, input_errors = np.zeros((2, length), np.float32), np.empty((max(1, len(dz)), length), np.float32)
        recurrent_errors = np.zeros((together, padded_length), np.float32)
        exact = np.zeros((together if bits > 0 else 0, length), np.float64)
        positions, scales = np.empty((together, length + ROOM), np.int32), np.empty((together, length), np.float32)
        counts = np.zeros(together, np.int64)
        for steps_done in range(steps):
            t = steps - 1 - steps_done
            for c in range(members):
                low = (first + c) * length
                n = min(length, neurons - low)
                for i in range(n):
                    spike_errors[0, i] = ds[t, low + i]
                    spike_errors[1, i] = recurrent_errors[c, i]
                offset = t * neurons + low
                propagated_all(
                    step, p, u[t, low : low + n], spike_errors, s[c], kept, offset, learned, low, input_errors, n
                )
                for e in range(len(dz)):
                    for i in range(n):
                        dz[e, t, low + i] = input_errors[e, i]
                if recurrent_error >= 0 and t > 0:
                    if bits > 0:
                        _round(input_errors[recurrent_error], bits)
                    counts[c] = list_nonzero(input_errors[recurrent_error], positions[c], scales[c])
            if recurrent_error >= 0 and t > 0:
                _propagate_recurrence(v, positions, scales, counts, members, recurrent_errors, exact)
        for c in range(members):
            low = (first + c) * length
            n = min(length, neurons - low)
            for k in range(len(sums)):
                for i in range(n):
                    sums[k, low + i] = s[c, states - len(sums) + k, i]


@cached_njit()
def _round(x: Float32, bits: int) -> None:
    """Round one sample `[N]` to `Operations.sample_grid`, in place."""
    magnitudes = x.view(np.int32)
    largest = np.int32(0)
    for i in range(len(x)):
        largest = max(largest, magnitudes[i] & _MAGNITUDE)
    if largest < _FLOOR_BITS:
        x[:] = _ZERO
        return
    exponent = min(bits + 126 - int(largest >> 23), _FINEST)
    scale, unit = np.float32(math.ldexp(1.0, exponent)), np.float32(math.ldexp(1.0, -exponent))
    for i in range(len(x)):
        x[i] = np.rint(x[i] * scale) * unit


@cached_njit()
def _propagate_recurrence(
    v: Float32,
    positions: Int32,
    scales: Float32,
    counts: Int64,
    members: int,
    recurrent_errors: Float32,
    exact: Float64,
) -> None:
    """Fill `recurrent_errors`, `[samples, .]`, with the sums of the rows of `v` times the listed error signals.

    The terms are added in list order. If `exact` is not empty, the sums are taken in it, in float64, and then rounded.
    """
    padded_length, weights, rows = recurrent_errors.shape[1], v.reshape(-1), len(v)
    recurrent_errors[:] = _ZERO
    exact[:] = 0.0
    if rows == 1:
        for c in range(members):
            for k in range(counts[c]):
                recurrent_errors[c, positions[c, k]] = scales[c, k] * weights[positions[c, k]]
        return
    for low in range(0, rows, _ROWS):
        for c in range(members):
            high = min(low + _ROWS, counts[c])
            if len(exact) == 0:
                if low < high:
                    sum_scaled(
                        recurrent_errors.reshape(-1),
                        c * padded_length,
                        weights,
                        positions[c],
                        padded_length,
                        NONE,
                        scales[c],
                        low,
                        high,
                        padded_length // LANES,
                    )
            else:
                total = exact[c]
                for k in range(low, high):
                    row, scale = v[positions[c, k]], np.float64(scales[c, k])
                    for i in range(len(total)):
                        total[i] += scale * np.float64(row[i])
    for c in range(len(exact)):
        for i in range(exact.shape[1]):
            recurrent_errors[c, i] = np.float32(exact[c, i])
