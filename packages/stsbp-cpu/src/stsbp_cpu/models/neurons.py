"""Fused CPU kernels for neurons and the filter before them, with the loop over T inside the kernel.

The neurons are divided into chunks, which the threads share. The states of a chunk stay in a cache during all steps, so
each array is moved through memory only once. The length of a chunk, whether its next step is prefetched, and whether
results are written past the caches, are chosen for this processor (tuning.py). No operations are fused or reordered:
`fastmath` is off, and every scalar is a float32.

`fire` and `propagate` make functions that compute one step of the forward and of the backward pass, for a run of
neurons, as printed from the equation. sparse/kernels.py uses these functions, too. The loops around them are compiled
once and take the addresses of these functions. So for a user's own model, only its steps are compiled, in a few
tenths of a second.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numba import float32, int64, prange, uint8
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.typing import Float32, UInt8

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.tuning import in_best_manner
from stsbp_cpu.equations.printers import called, run, step
from stsbp_cpu.equations.vectors import fetch, fetch_to_write, stream, view, view_of_rows, wait_for_streams

__all__ = ["NONE_KEPT", "NOTHING", "backward", "fire", "fire_all", "fire_run", "forward", "propagate", "propagate_all"]

_ZERO = np.float32(0)
NOTHING = np.empty((0, 1), np.float32)
"""An array without rows, for parameters of neurons that learn none and for potentials that nothing reads."""
NONE_KEPT = np.empty((0, 1, 1), np.float32)
"""The array of kept values for neurons that keep only the potential."""
_FORWARD_RUN, _BACKWARD_RUN = 512, 256
"""Number of neurons whose step is computed by one call.

The next step of the forward pass reads 32 cache lines for 512 neurons, and that of the backward pass 32 for 256. On an
AMD EPYC (Zen 5), more lines that are prefetched together make both passes slower.

The kernels below pass `view`s of all arrays, of their own buffers too. numba counts references to slices, and to an
array that a conditional expression selects: this alone made the forward pass a third slower.
"""
_RUN, _ROWS, _KEPT = float32[::1], float32[:, ::1], float32[:, :, ::1]
_FIRE = {
    "p": _RUN, "z": _RUN, "states": _ROWS, "u": _RUN, "spikes": uint8[::1], "kept": _KEPT, "at": int64,
    "learned": _ROWS, "place": int64, "n": int64,
}  # fmt: skip
_PROPAGATE = {
    "p": _RUN, "u": _RUN, "ds": _RUN, "states": _ROWS, "kept": _KEPT, "at": int64, "learned": _ROWS, "place": int64,
    "dz": _RUN, "n": int64,
}  # fmt: skip
_FIRE_ALL, _PROPAGATE_ALL = _FIRE | {"z": _ROWS}, _PROPAGATE | {"ds": _ROWS, "dz": _ROWS}
fired, propagated = called(_FIRE), called(_PROPAGATE)
fired_all, propagated_all = called(_FIRE_ALL), called(_PROPAGATE_ALL)
"""For use in kernels: call the functions at the addresses that `fire`, `propagate` and so on return."""


@cache
def fire(equation: Recurrence) -> int:
    """Address of a function that computes one step of `n` neurons.

    The function reads `z` and `states`, updates `states`, and fills `u`, `spikes` and a part of `kept`. Its arguments
    are `(p, z, states, u, spikes, kept, at, learned, place, n)`. `p` are the parameters, and `states` is `[states, n]`.
    `kept`, `[K, T, M]`, takes the values besides `u` that the backward pass reads. Of the `T M` elements of each of
    these `K` values, the function fills `n`, from index `at` on. The learned parameters of the neurons are
    `learned[:, place : place + n]` of the array `learned`, `[P, M]`.
    """
    saved_runs = (run("kept", i, "at") for i in range(len(equation.outputs) - 2))
    arrays = (run("z"), *_learned(len(equation.inputs) - 1), run("u"), *saved_runs, run("spikes"))
    return step(equation, _FIRE, arrays, "states")


@cache
def propagate(equation: Recurrence, count: int) -> int:
    """Address of a function that computes one step of the backward pass for `n` neurons.

    The function reads `u`, `kept` and `ds`, fills `dz`, and updates `states` from step `t + 1` to step `t`. Its
    arguments are `(p, u, ds, states, kept, at, learned, place, dz, n)`: see `fire`.

    Args:
        equation: `NeuronEquations.summing`.
        count: number of learned parameters.
    """
    saved_runs = (run("kept", i, "at") for i in range(len(equation.inputs) - 2 - count))
    return step(equation, _PROPAGATE, (run("u"), *saved_runs, run("ds"), *_learned(count), run("dz")), "states")


@cache
def fire_all(equation: Recurrence, inputs: int) -> int:
    """`fire` for neurons with several inputs: `z` is `[inputs, n]`."""
    z_runs = (run("z", i) for i in range(inputs))
    saved_runs = (run("kept", i, "at") for i in range(len(equation.outputs) - 2))
    arrays = (*z_runs, *_learned(len(equation.inputs) - inputs), run("u"), *saved_runs, run("spikes"))
    return step(equation, _FIRE_ALL, arrays, "states")


@cache
def propagate_all(equation: Recurrence, count: int, *, recurrent: bool) -> int:
    """`propagate` for neurons with several inputs: `dz` is `[outputs of the equation, n]`.

    `ds` is `[1, n]`. For `recurrent` neurons, `ds` is `[2, n]`, and the second row is the input `back` of the equation.
    """
    saved_runs = (run("kept", i, "at") for i in range(len(equation.inputs) - 2 - count - recurrent))
    recurrent_runs = (run("ds", 1),) if recurrent else ()
    errors = (run("dz", i) for i in range(len(equation.outputs)))
    arrays = (run("u"), *saved_runs, run("ds", 0), *_learned(count), *recurrent_runs, *errors)
    return step(equation, _PROPAGATE_ALL, arrays, "states")


@cached_njit(inline="always")
def fire_run(
    step: int, p: Float32, z: Float32, states: Float32, u: Float32, spikes: UInt8, kept: Float32, u_buffer: Float32,
    kept_buffer: Float32, learned: Float32, neurons: int, t: int, first_neuron: int,
) -> None:  # fmt: skip
    """For use in kernels: compute step `t` of `len(z)` neurons, from neuron `first_neuron` on.

    `u` and `spikes` are 1-d, `[T neurons]`. If `u` is empty, the potentials are written to `u_buffer`, and the other
    kept values to `kept_buffer`, `[K, 1, n]`. This function is inlined into the kernel. A call with so many arrays
    would make the forward pass an eighth slower.
    """
    n = len(z)
    offset = t * neurons + first_neuron
    if len(u) > 0:
        fired(step, p, z, states, view(u, offset, n), view(spikes, offset, n), kept, offset, learned, first_neuron, n)
    else:
        fired(step, p, z, states, u_buffer, view(spikes, offset, n), kept_buffer, 0, learned, first_neuron, n)


def _learned(count: int) -> tuple[str, ...]:
    return tuple(run("learned", i, "place") for i in range(count))


def forward(
    equations: NeuronEquations, z: Float32, u: Float32, spikes: UInt8, kept: Float32, learned: Float32 = NOTHING
) -> None:
    """Compute all steps of neurons and the filter before them.

    Args:
        equations: equations of the neurons and the filter.
        z: weighted inputs, float32 `[1 or T, M]`. A single row is the input of every step.
        u: filled with the potentials, float32 `[T, M]`. If it has no rows, the potentials and the other kept values are
            not stored.
        spikes: filled with zeros and ones, uint8 `[T, M]`.
        kept: filled with the values besides `u` that the backward pass reads, `equations.kept[1:]`, float32
            `[K, T, M]`.
        learned: learned parameters of the neurons, in the order of `equations.learned`, float32 `[P, M]`.
    """
    equation = equations.forward
    arguments = fire(equation), equations.forward_numbers, z, len(equation.states), u, spikes, kept, learned
    in_best_manner("forward", u.size, spikes.shape[1], partial(_forward, *arguments))


def backward(
    equations: NeuronEquations,
    u: Float32,
    kept: Float32,
    ds: Float32,
    dz: Float32,
    learned: Float32 = NOTHING,
    terms: Float32 = NOTHING,
) -> None:
    """Compute the error signal of the weighted inputs.

    Args:
        equations: equations of the neurons and of the filter before them.
        u, kept: the arrays that `forward` filled.
        ds: error signal of the spikes, float32 `[T, M]`.
        dz: filled with the error signal of `z`, float32 `[T, M]` or, summed over the steps, `[1, M]`.
        learned: see `forward`.
        terms: filled with each neuron's contribution to the gradients of the learned parameters, summed over all steps,
            float32 `[P, M]`.
    """
    equation = equations.summing
    step, states = propagate(equation, len(equations.terms)), len(equation.states)
    arguments = step, equations.backward_numbers, u, kept, ds, states, dz, learned, terms
    in_best_manner("backward", u.size, u.shape[1], partial(_backward, *arguments))


@cached_njit(parallel=True, error_model="numpy")
def _forward(
    step: int, p: Float32, z: Float32, states: int, u: Float32, spikes: UInt8, kept: Float32, learned: Float32,
    length: int, prefetch: bool, past: bool,
) -> None:  # fmt: skip
    """Fill `u`, `spikes`, `[T, M]`, and `kept`, `[K, T, M]`, from `z`, `[1 or T, M]`, and `learned`, `[P, M]`."""
    steps, neurons = spikes.shape
    stores_u = len(u) > 0
    buffered = past or not stores_u
    size = steps * neurons
    chunks = (neurons + length - 1) // length
    for chunk in prange(chunks):
        low = chunk * length
        high = min(neurons, low + length)
        runs = (high - low + _FORWARD_RUN - 1) // _FORWARD_RUN
        s = np.zeros((runs * states, _FORWARD_RUN), np.float32)
        u_buffer = np.empty(_FORWARD_RUN, np.float32)
        kept_buffer = np.empty((len(kept), 1, _FORWARD_RUN), np.float32)
        spike_buffer = np.empty(_FORWARD_RUN, np.uint8)
        for t in range(steps):
            for r in range(runs):
                first = low + r * _FORWARD_RUN
                n = min(_FORWARD_RUN, high - first)
                at = t * neurons + first
                if prefetch:
                    # After the last step, the thread's next chunk begins with its first step.
                    last = t + 1 == steps
                    later = first + length if last else at + neurons
                    m = min(n, neurons - first - length) if last else n
                    if z.shape[0] > 1:
                        fetch(view(z, later, m))
                    if not buffered:
                        fetch_to_write(view(u, later, m))
                        for k in range(len(kept)):
                            fetch_to_write(view(kept, k * size + later, m))
                    if not past:
                        fetch_to_write(view(spikes, later, m))
                z_run = view(z, at if z.shape[0] > 1 else first, n)
                s_run = view_of_rows(s, r * states * _FORWARD_RUN, states, _FORWARD_RUN)
                spikes_run = view(spike_buffer, 0, n) if past else view(spikes, at, n)
                if buffered:
                    fired(step, p, z_run, s_run, view(u_buffer, 0, n), spikes_run, kept_buffer, 0, learned, first, n)
                else:
                    fired(step, p, z_run, s_run, view(u, at, n), spikes_run, kept, at, learned, first, n)
                if past:
                    stream(view(spikes, at, n), view(spike_buffer, 0, n))
                if buffered and stores_u:
                    stream(view(u, at, n), view(u_buffer, 0, n))
                    for k in range(len(kept)):
                        stream(view(kept, k * size + at, n), view(kept_buffer, k * _FORWARD_RUN, n))
        wait_for_streams()


@cached_njit(parallel=True, error_model="numpy")
def _backward(
    step: int, p: Float32, u: Float32, kept: Float32, ds: Float32, states: int, dz: Float32, learned: Float32,
    terms: Float32, length: int, prefetch: bool, past: bool,
) -> None:  # fmt: skip
    """Fill `dz`, `[1 or T, M]`, and `terms`, `[P, M]`.

    The inputs are `u` and `ds`, `[T, M]`, `kept`, `[K, T, M]`, and `learned`, `[P, M]`.
    """
    steps, neurons = u.shape
    size = steps * neurons
    chunks = (neurons + length - 1) // length
    static = dz.shape[0] == 1 and steps > 1
    for chunk in prange(chunks):
        low = chunk * length
        high = min(neurons, low + length)
        runs = (high - low + _BACKWARD_RUN - 1) // _BACKWARD_RUN
        s = np.zeros((runs * states, _BACKWARD_RUN), np.float32)
        dz_buffer = np.empty(_BACKWARD_RUN, np.float32)
        total = np.zeros(high - low if static else 0, np.float32)
        for steps_done in range(steps):
            t = steps - 1 - steps_done
            for r in range(runs):
                first = low + r * _BACKWARD_RUN
                n = min(_BACKWARD_RUN, high - first)
                at = t * neurons + first
                if prefetch:
                    # After the first step, the thread's next chunk begins with its last step.
                    last = t == 0
                    later = (steps - 1) * neurons + first + length if last else at - neurons
                    m = min(n, neurons - first - length) if last else n
                    fetch(view(u, later, m))
                    fetch(view(ds, later, m))
                    for k in range(len(kept)):
                        fetch(view(kept, k * size + later, m))
                u_run, ds_run = view(u, at, n), view(ds, at, n)
                s_run = view_of_rows(s, r * states * _BACKWARD_RUN, states, _BACKWARD_RUN)
                dz_run = view(dz_buffer, 0, n) if static or past else view(dz, at, n)
                propagated(step, p, u_run, ds_run, s_run, kept, at, learned, first, dz_run, n)
                if static:
                    for j in range(n):
                        total[first - low + j] += dz_buffer[j]
                elif past:
                    stream(view(dz, at, n), view(dz_buffer, 0, n))
        if static:
            dz[0, low:high] = total
        for k in range(len(terms)):
            for r in range(runs):
                first = low + r * _BACKWARD_RUN
                n = min(_BACKWARD_RUN, high - first)
                terms[k, first : first + n] = s[(r + 1) * states - len(terms) + k, :n]
        wait_for_streams()
