"""Neurons and the filter before them as fused CPU kernels: the loop over T inside, states in the first-level cache.

Neurons are cut into chunks that the threads share; a chunk's states stay in cache while the steps stream through it, so
memory moves each array once. How long a chunk is, and whether its next step's lines are asked for before this one is
computed, is chosen for the processor at hand (manner.py). Nothing is fused or reordered: `fastmath` is off,
every scalar is a float32. `fire` and `propagate` are one step of each pass, on one run of neurons, as the equation is
printed; sparse/kernels.py uses them too. The loops around them are compiled once and take their addresses: what a
model of one's own adds is its steps, a second or two of compiling.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numba import float32, int64, prange, uint8
from stsbp_spec.equations import NeuronEquations
from stsbp_spec.expr import Recurrence
from stsbp_spec.typing import Float32, UInt8

from stsbp_cpu.compiling import cached_njit
from stsbp_cpu.manner import in_best_manner
from stsbp_cpu.printed import called, run, step
from stsbp_cpu.vectors import fetch, fetch_to_write, stream, view

__all__ = ["NONE_KEPT", "NOTHING", "backward", "fire", "fire_all", "fire_run", "forward", "propagate", "propagate_all"]

_ZERO = np.float32(0)
NOTHING = np.empty((0, 1), np.float32)
"""No rows: numbers of neurons that learn none, potentials that nothing reads."""
NONE_KEPT = np.empty((0, 1, 1), np.float32)
"""What neurons keep besides the potential, where that is nothing."""
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
"""Call, in a kernel, what `fire`, `propagate`, `fire_all` and `propagate_all` return."""


@cache
def fire(equation: Recurrence) -> int:
    """One step of `[n]` neurons: from `z` and `states`, which move on, to `u`, `spikes` and some of `kept`.

    The address of a function of `(p, z, states, u, spikes, kept, at, learned, place, n)`: `p` are the parameters,
    `states` is `[states, n]`, and `kept`, `[K, T, M]`, takes what the way back reads besides `u`, each `[n]` from its
    number `at` of the `T M`. The numbers that the neurons learned are `learned[:, place : place + n]`, `[P, M]`.
    """
    kept = (run("kept", i, "at") for i in range(len(equation.outputs) - 2))
    arrays = (run("z"), *_learned(len(equation.inputs) - 1), run("u"), *kept, run("spikes"))
    return step(equation, _FIRE, arrays, "states")


@cache
def propagate(equation: Recurrence, count: int) -> int:
    """One step back of `[n]` neurons: from `u`, `kept` and `ds` to `dz`, while `states` move from step `t + 1` to `t`.

    The address of a function of `(p, u, ds, states, kept, at, learned, place, dz, n)`: see `fire`.

    Args:
        equation: `NeuronEquations.summing`.
        count: of learned numbers.
    """
    kept = (run("kept", i, "at") for i in range(len(equation.inputs) - 2 - count))
    return step(equation, _PROPAGATE, (run("u"), *kept, run("ds"), *_learned(count), run("dz")), "states")


@cache
def fire_all(equation: Recurrence, inputs: int) -> int:
    """`fire` of neurons that read several inputs: `z` is `[inputs, n]`."""
    given = (run("z", i) for i in range(inputs))
    kept = (run("kept", i, "at") for i in range(len(equation.outputs) - 2))
    arrays = (*given, *_learned(len(equation.inputs) - inputs), run("u"), *kept, run("spikes"))
    return step(equation, _FIRE_ALL, arrays, "states")


@cache
def propagate_all(equation: Recurrence, count: int, *, recurrent: bool) -> int:
    """`propagate` to several inputs: `dz` is `[outputs of the equation, n]`.

    `ds` is `[1, n]`, where they are `recurrent` `[2, n]`: the second row is what the equation reads as `back`.
    """
    kept = (run("kept", i, "at") for i in range(len(equation.inputs) - 2 - count - recurrent))
    back = (run("ds", 1),) if recurrent else ()
    errors = (run("dz", i) for i in range(len(equation.outputs)))
    arrays = (run("u"), *kept, run("ds", 0), *_learned(count), *back, *errors)
    return step(equation, _PROPAGATE_ALL, arrays, "states")


@cached_njit(inline="always")
def fire_run(
    step: int, p: Float32, z: Float32, states: Float32, u: Float32, spikes: UInt8, kept: Float32, own_u: Float32,
    own_kept: Float32, learned: Float32, neurons: int, t: int, place: int,
) -> None:  # fmt: skip
    """Step `t` of the neurons from `place` on, as many as `z`, in a kernel: `u` and `spikes` are 1-d, `[T neurons]`.

    `u` may be empty: then the potentials, and what is kept besides them, go to `own_u` and `own_kept`, `[K, 1, n]`.
    It becomes a part of the kernel: as a call, with so many arrays, it made a forward pass an eighth slower.
    """
    n = len(z)
    at = t * neurons + place
    if len(u) > 0:
        fired(step, p, z, states, view(u, at, n), view(spikes, at, n), kept, at, learned, place, n)
    else:
        fired(step, p, z, states, own_u, view(spikes, at, n), own_kept, 0, learned, place, n)


def _learned(count: int) -> tuple[str, ...]:
    return tuple(run("learned", i, "place") for i in range(count))


def forward(
    equations: NeuronEquations, z: Float32, u: Float32, spikes: UInt8, kept: Float32, learned: Float32 = NOTHING
) -> None:
    """Compute all steps of neurons and the filter before them.

    Args:
        equations: of both.
        z: weighted inputs, float32 `[1 or T, M]`; of one step: the same at every step.
        u: filled with the potentials, float32 `[T, M]`; no rows: they and what is kept besides them are not wanted.
        spikes: filled with zeros and ones, uint8 `[T, M]`.
        kept: filled with what the way back reads besides `u`: `equations.kept[1:]`, float32 `[K, T, M]`.
        learned: the numbers that the neurons learned, in the order of `equations.learned`, float32 `[P, M]`.
    """
    equation = equations.forward
    given = fire(equation), equations.forward_numbers, z, len(equation.states), u, spikes, kept, learned
    in_best_manner("forward", u.size, spikes.shape[1], partial(_forward, *given))


def backward(
    equations: NeuronEquations,
    u: Float32,
    kept: Float32,
    ds: Float32,
    dz: Float32,
    learned: Float32 = NOTHING,
    terms: Float32 = NOTHING,
) -> None:
    """Compute the error of the weighted inputs.

    Args:
        equations: of the neurons and the filter before them.
        u, kept: what `forward` filled.
        ds: error of the spikes, float32 `[T, M]`.
        dz: filled with the error of `z`, float32 `[T, M]` or, added over the steps, `[1, M]`.
        learned: see `forward`.
        terms: filled with what each neuron adds to the gradients of what is learned, over all steps, float32 `[P, M]`.
    """
    equation = equations.summing
    step, states = propagate(equation, len(equations.terms)), len(equation.states)
    given = step, equations.backward_numbers, u, kept, ds, states, dz, learned, terms
    in_best_manner("backward", u.size, u.shape[1], partial(_backward, *given))


@cached_njit(parallel=True, error_model="numpy")
def _forward(
    step: int, p: Float32, z: Float32, states: int, u: Float32, spikes: UInt8, kept: Float32, learned: Float32,
    length: int, ahead: bool, past: bool,
) -> None:  # fmt: skip
    """Fill `u`, `spikes`, `[T, M]`, and `kept`, `[K, T, M]`, from `z`, `[1 or T, M]`, and `learned`, `[P, M]`."""
    steps, neurons = spikes.shape
    wanted = len(u) > 0
    beside = past or not wanted
    chunks = (neurons + length - 1) // length
    for chunk in prange(chunks):
        low = chunk * length
        high = min(neurons, low + length)
        s = np.zeros((states, high - low), np.float32)
        own = np.empty(high - low, np.float32)
        own_kept = np.empty((len(kept), 1, high - low), np.float32)
        for t in range(steps):
            if ahead and t + 1 < steps:
                if z.shape[0] > 1:
                    fetch(z[t + 1, low:high])
                if not beside:
                    fetch_to_write(u[t + 1, low:high])
                    for k in range(len(kept)):
                        fetch_to_write(kept[k, t + 1, low:high])
                fetch_to_write(spikes[t + 1, low:high])
            zt = z[t if z.shape[0] > 1 else 0, low:high]
            u_t, kept_t = (own, own_kept) if beside else (u[t, low:high], kept)
            at = 0 if beside else t * neurons + low
            fired(step, p, zt, s, u_t, spikes[t, low:high], kept_t, at, learned, low, high - low)
            if beside and wanted:
                stream(u[t, low:high], own)
                for k in range(len(kept)):
                    stream(kept[k, t, low:high], own_kept[k, 0])


@cached_njit(parallel=True, error_model="numpy")
def _backward(
    step: int, p: Float32, u: Float32, kept: Float32, ds: Float32, states: int, dz: Float32, learned: Float32,
    terms: Float32, length: int, ahead: bool, past: bool,
) -> None:  # fmt: skip
    """Fill `dz`, `[1 or T, M]`, and `terms`, `[P, M]`.

    From `u` and `ds`, `[T, M]`, `kept`, `[K, T, M]`, and `learned`, `[P, M]`.
    """
    steps, neurons = u.shape
    chunks = (neurons + length - 1) // length
    static = dz.shape[0] == 1 and steps > 1
    for chunk in prange(chunks):
        low = chunk * length
        high = min(neurons, low + length)
        s = np.zeros((states, high - low), np.float32)
        own = np.empty(high - low, np.float32)
        total = np.zeros(high - low, np.float32)
        for back in range(steps):
            t = steps - 1 - back
            if ahead and t > 0:
                fetch(u[t - 1, low:high])
                fetch(ds[t - 1, low:high])
                for k in range(len(kept)):
                    fetch(kept[k, t - 1, low:high])
            at = t * neurons + low
            out = own if static or past else dz[t, low:high]
            propagated(step, p, u[t, low:high], ds[t, low:high], s, kept, at, learned, low, out, high - low)
            if static:
                for j in range(high - low):
                    total[j] += own[j]
            elif past:
                stream(dz[t, low:high], own)
        if static:
            dz[0, low:high] = total
        for k in range(len(terms)):
            terms[k, low:high] = s[states - len(terms) + k]
