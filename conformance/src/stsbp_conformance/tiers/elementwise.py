"""Tier 5 for elementwise pairs: neurons with their filter, filters alone, errors of losses and rate
penalties, and updates.

A case computes the results of a pair, by name. The suite compares them bit for bit with those of the numpy reference.
`stsbp_conformance.hashes` compares the SHA-256 of those of the stored cases with the hashes of an earlier time. Inputs
of stored cases reach thresholds exactly, decay to below the floor, and contain zeros of either sign. They are drawn
without `log` or `cos`, whose last bits differ between machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from stsbp_spec.contract.grid import FLOOR, round_to_grid
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses import LOSSES, OF_REAL_TARGETS
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import SGD, Adam, AdamW, Optimizer
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.models.surrogates import SURROGATES, Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.networks.ops import IDENTITY, PSP, Filter
from stsbp_spec.typing import AnyArray, Float32, Shape, UInt8

from stsbp_conformance.cases import EXACT_LOSSES, normal, spikes
from stsbp_conformance.check import Compared
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers import neurons
from stsbp_conformance.tiers.pairs import Body, pair_check, powers, values

__all__ = ["CASES", "CHECKS", "EXACT", "HALVING", "PairCase", "Results", "first_order", "neuron_inputs", "readout_data"]

Results = dict[str, AnyArray]
"""Arrays by the name of the result."""


@dataclass(frozen=True)
class PairCase:
    """A pair with its inputs.

    Attributes:
        id: unique name.
        compute: computes the results on an opened backend.
        quick: whether it belongs to the few cases of `stsbp_conformance.hashes --quick`.
        stored: whether hashes of its results are stored.
    """

    id: str
    compute: Callable[[AbstractBackend], Results]
    quick: bool = False
    stored: bool = True


def bell(shape: Shape, seed: int) -> Float32:
    """Random numbers of `shape` with mean 0 and width about 1: sums of uniform numbers, equal on every machine."""
    n = math.prod(shape)
    a, b, c, d = (uniform(seed, Stream.ENCODER, n, substream=k) for k in range(4, 8))
    drawn: Float32 = (1.75 * (a + b + c + d - 2)).astype(np.float32).reshape(shape)
    return drawn


_MEETS, _TINY, _ZEROS, _HUGE, _BURST = slice(0, 4), slice(4, 12), slice(12, 14), slice(14, 16), slice(16, 24)
"""Neurons with certain kinds of inputs. All later neurons have random inputs."""


def first_order(tau_s: float, gain: float = 1.0) -> Filter:
    """The synaptic filter with one time constant."""
    filter = PSP(tau_s).filter(gain)
    assert isinstance(filter, Filter)
    return filter


def neuron_inputs(
    neuron: LIF, filter: Filter, seed: int, *, steps: int, static: bool, shape: Shape, quantum: int | None = None
) -> tuple[Float32, Float32]:
    """`z` `[1 or T, B, ...]` and output errors `[T, B, ...]` for the pair of a neuron. `shape` is `[B, ...]`.

    Four neurons begin just below the threshold, on it, and just above it. Eight stay near the floor, where filter,
    potential and error snap to zero. Two have zeros of either sign, and two have potentials far from the threshold.
    Eight get powers of two at the first step (as errors at the last step), which reach the floor itself with `HALVING`.
    If `quantum` is given, random inputs are multiples of `2^-quantum`. With `HALVING`, potentials then reach the
    surrogate's edges exactly.
    """
    batch, lead = shape[0], 1 if static else steps
    z = bell((lead, batch, math.prod(shape[1:])), seed) * np.float32(1.5 * neuron.threshold) / filter.gain
    ds = bell((steps, *z.shape[1:]), seed + 1)
    if quantum is not None:
        z = round_to_grid(z, quantum)
    z[0, :, _MEETS] = _meeting(neuron, filter)
    z[..., _TINY] = bell(z[..., _TINY].shape, seed + 2) * np.float32(4 * FLOOR)
    ds[..., _TINY] = bell(ds[..., _TINY].shape, seed + 3) * np.float32(4 * FLOOR)
    z[..., _ZEROS] = np.copysign(np.float32(0), z[..., _ZEROS])
    ds[..., _ZEROS] = np.where(ds[..., _ZEROS] < 0, np.float32(-0.0), ds[..., _ZEROS])
    z[..., _HUGE] *= np.float32(1e6)
    bursts = np.ldexp(np.resize(np.array([1, -1], np.float32), 8), np.arange(8) // 2 - 98)
    z[..., _BURST], ds[..., _BURST] = 0, 0
    z[0, :, _BURST], ds[-1, :, _BURST] = bursts, bursts
    return z.reshape(lead, *shape), ds.reshape(steps, *shape)


def _meeting(neuron: LIF, filter: Filter) -> Float32:
    """Inputs `[4]` with which the first potential is one unit below the threshold, on it (twice), and one unit
    above."""
    threshold = np.float32(neuron.threshold)
    potentials = (
        np.nextafter(threshold, np.float32(0)),
        threshold,
        threshold,
        np.nextafter(threshold, np.float32(np.inf)),
    )
    inputs = np.array([w / filter.gain for w in potentials], np.float32)
    for place, u in enumerate(potentials):
        near = inputs[place]
        for _ in range(4):
            product = filter.gain * near
            if product != u:
                near = np.nextafter(near, np.float32(np.inf if product < u else -np.inf))
        inputs[place] = near
    return inputs


_TAUS_S = {"1": 1.0, "5/3": 5 / 3, "3": 3.0, "4": 4.0, "5": 5.0}
_TAUS_M = {"1": 1.0, "5/3": 5 / 3, "2": 2.0, "8": 8.0}
_QUICK_TAUS = (("3", "2"), ("4", "2"), ("5/3", "5/3"), ("5", "8"))
"""One pair of time constants for each surrogate."""
EXACT: tuple[Surrogate, ...] = (Arctan(), FastSigmoid(3.0), Triangle(0.7), Rectangle(0.8))
"""One of each surrogate that had the same bits everywhere when the hashes were first stored. The cases' names follow
from their number and order, so that a later surrogate does not stand here but in `LATER`."""
LATER: tuple[Surrogate, ...] = tuple(
    surrogate
    for surrogate in (cls() for cls in SURROGATES.values())
    if surrogate.exact and type(surrogate) not in map(type, EXACT)
)
"""Every other surrogate of the spec that has the same bits everywhere: it gets its cases as soon as it has a name."""
HALVING = LIF(2.0, 1.0, 0.5, Rectangle(2.0))
_STEPS = 10


def _neuron_case(
    neuron: LIF, filter: Filter, seed: int, id: str, *, static: bool, quick: bool, quantum: int | None = None
) -> PairCase:
    shape = (3, 4, 3, 4) if seed % 3 else (3, 43)

    def compute(backend: AbstractBackend) -> Results:
        z, ds = neuron_inputs(neuron, filter, seed, steps=_STEPS, static=static, shape=shape, quantum=quantum)
        s, residuals = backend.neuron_forward(neuron, filter, backend.asarray(z), len(ds))
        fired, u = values(backend, s, np.uint8), backend.numpy(backend.neuron_potentials(residuals)).copy()
        dz = backend.numpy(backend.neuron_backward(neuron, filter, residuals, backend.asarray(ds))[0])
        return {"spikes": fired, "potentials": u, "dL/dz": dz}

    return PairCase(id, compute, quick)


def _neuron_cases() -> Iterable[PairCase]:
    """All pairs of time constants with all surrogates, with an input for each step, and with one for all steps."""
    for row, (name_s, tau_s) in enumerate(_TAUS_S.items()):
        for column, (name_m, tau_m) in enumerate(_TAUS_M.items()):
            surrogate = EXACT[(row + column) % len(EXACT)]
            neuron = LIF(tau_m, tau_s, (0.5, 1.0, 0.3)[(row + column) % 3], surrogate)
            filter = first_order(tau_s, 1.25 if column % 2 else 1.0)
            for static in (False, True):
                seed = 200 + 8 * (4 * row + column) + 4 * static
                kind = "static input" if static else "stepped input"
                identifier = f"neuron, tau_s {name_s}, tau_m {name_m}, {surrogate}, {kind}"
                quick = (name_s, name_m) in _QUICK_TAUS
                yield _neuron_case(neuron, filter, seed, identifier, static=static, quick=quick)
    for surrogate in LATER:
        for row, (name_s, tau_s) in enumerate(_TAUS_S.items()):
            for static in (False, True):
                kind = "static input" if static else "stepped input"
                identifier = f"neuron, tau_s {name_s}, tau_m 8, {surrogate}, {kind}"
                neuron, quick = LIF(8.0, tau_s, 0.5, surrogate), name_s == "3"
                yield _neuron_case(
                    neuron, first_order(tau_s), 424 + 8 * row + 4 * static, identifier, static=static, quick=quick
                )
    for static in (False, True):
        kind = "static input" if static else "stepped input"
        neuron, identifier = LIF(3.0, 5.0, 0.5, Arctan()), f"neuron without a filter, {kind}"
        yield _neuron_case(neuron, IDENTITY, 400 + 4 * static, identifier, static=static, quick=False)
        identifier = f"neuron, states and errors halve to the floor, {kind}"
        yield _neuron_case(HALVING, first_order(1), 408 + 4 * static, identifier, static=static, quick=True)
        identifier = f"neuron, potentials on the surrogate's edges, {kind}"
        yield _neuron_case(HALVING, first_order(1), 416 + 4 * static, identifier, static=static, quick=True, quantum=3)


def _filter_case(id: str, psp: PSP, inputs: Callable[[], tuple[UInt8, Float32]], **options: bool) -> PairCase:
    """A filter alone. `inputs` are spikes and errors of its potentials, both `[T, B, ...]`."""

    def compute(backend: AbstractBackend) -> Results:
        s, da = inputs()
        a = backend.numpy(backend.psp_forward(psp, backend.asarray(s)))
        return {"potentials": a, "dL/do": backend.numpy(backend.psp_backward(psp, backend.asarray(da)))}

    return PairCase(id, compute, **options)


def _decaying(seed: int) -> tuple[UInt8, Float32]:
    """Long enough to decay from 1 to below the floor at tau 5, after the burst in the first two steps."""
    shape = (330, 2, 17)
    s, da = spikes(shape, 0.3, seed), bell(shape, seed + 1)
    s[2:, 0], da[:-2, 0] = 0, 0
    da[:, 1, :4] *= np.float32(4 * FLOOR)
    da[:, 1, 4:6] = np.copysign(np.float32(0), da[:, 1, 4:6])
    return s, da


def _drawn(shape: Shape, counts: int = 1, *, burst: bool = False, signs: bool = False) -> tuple[UInt8, Float32]:
    """Normally distributed errors, or only their `signs`. After a burst there is only silence."""
    s, da = spikes(shape, 0.3, 15) * np.uint8(counts), normal(shape, 16)
    if signs:
        da = np.copysign(np.float32(1), da)
    if burst:
        s[1:], da[:-1] = 0, 0
    return s, da


_OTHER_FILTERS = {
    "PSP, tau 3, rise 1": (PSP(3.0, 1.0), partial(_drawn, (11, 2, 7, 3))),
    "PSP, tau 5, rise 1.67": (PSP(5.0, 5 / 3), partial(_drawn, (11, 2, 7, 3))),
    "PSP with a rise, silence until the floor": (PSP(3.0, 5 / 3), partial(_drawn, (240, 2, 5), burst=True)),
    "PSP, counts": (PSP(3.0), partial(_drawn, (11, 2, 7, 3), 7)),
    "PSP, halving to the floor": (PSP(2.0), partial(_drawn, (120, 2, 5), burst=True, signs=True)),
}


def _loss_case(loss: str, name: str, seed: int) -> PairCase:
    def compute(backend: AbstractBackend) -> Results:
        shape = (330, 3, 10)
        s, targets = spikes(shape, 0.4, seed), spikes(shape, 0.3, seed + 1)
        s[3:, 0], targets[3:, 0] = 0, 0  # decays below the floor
        psp = PSP(_TAUS_S[name])
        error = backend.loss_error(LOSSES[loss], psp, backend.asarray(s), backend.asarray(targets))
        return {"dL/do": backend.numpy(error)}

    return PairCase(f"error of {loss}, tau_s {name}", compute, quick=name == "5/3")


def _penalty_case(name: str, penalty: RatePenalty, seed: int, *, of_lengths: bool) -> PairCase:
    """The error of a rate penalty, the squares that are reported, and the sum with errors of the layer's readers."""

    def compute(backend: AbstractBackend) -> Results:
        steps, batch, shape = 330, 3, (2, 7, 3)
        s = spikes((steps, batch, *shape), 0.4, seed)
        s[:, :, 0, :2], s[:, :, 0, 2], s[3:, 0] = 0, 1, 0
        error = bell(s.shape, seed + 1)
        is_inside, constants = None, None
        if of_lengths:
            lengths = np.array([330, 7, 101])
            is_inside = backend.asarray(inside(lengths, steps).astype(np.uint8))
            numbers = penalty.constants_of_lengths(shape, lengths, batch)
            constants = {key: backend.asarray(x) for key, x in numbers.items()}
        of_penalty, units = backend.rate_penalty(penalty, backend.asarray(s), 2 * batch, is_inside, constants)
        total = backend.with_rate_penalty(backend.asarray(error), of_penalty, is_inside)
        return {
            "dL/do": backend.numpy(of_penalty),
            "squares": backend.numpy(units),
            "dL/do with errors": backend.numpy(total),
        }

    return PairCase(f"rate penalty, {name}", compute, quick=True)


def readout_data(shape: Shape, seed: int) -> tuple[Float32, Float32]:
    """Potentials of a readout and real targets, `[T, B, N]` with at least 8 neurons.

    Potentials are 0 or at least the floor. Neuron by neuron: subnormal targets of either sign; targets below the floor;
    potentials and targets near the floor; differences that are the floor itself; large targets; targets equal to the
    potentials; their negatives. Targets of later neurons are drawn.
    """
    u, targets = (bell(shape, seed + i) for i in range(2))
    sign = np.copysign(np.float32(1), targets)
    u[..., :2], targets[..., 0], targets[..., 1] = 0, sign[..., 0] * np.float32(1e-42), sign[..., 1] * FLOOR / 1024
    near = u[..., 2] * np.float32(4 * FLOOR)
    u[..., 2], targets[..., 2] = np.where(np.abs(near) < FLOOR, 0, near), targets[..., 2] * np.float32(4 * FLOOR)
    u[..., 3], targets[..., 3] = FLOOR, np.where(sign[..., 3] > 0, 2 * FLOOR, 0)
    targets[..., 4] *= np.float32(1e30)
    targets[..., 5], targets[..., 6] = u[..., 5], -u[..., 6]
    targets[3:, 0] = u[3:, 0]
    return u, targets


def _readout_loss_case(loss: str, seed: int) -> PairCase:
    def compute(backend: AbstractBackend) -> Results:
        u, targets = readout_data((330, 3, 10), seed)
        error = backend.loss_error(EXACT_LOSSES[loss], PSP(3.0), backend.asarray(u), backend.asarray(targets))
        return {"dL/do": backend.numpy(error)}

    return PairCase(f"error of {loss}", compute, quick=True)


_UPDATES: dict[str, tuple[Optimizer, int, float]] = {
    "AdamW, plain": (AdamW(), 0, 1.0),
    "AdamW, decay, clipping": (AdamW(lr=0.01, weight_decay=0.1), 3, 0.37),
    "AdamW, warm-up": (AdamW(lr=0.1, warmup_steps=10), 7, 0.9),
    "AdamW, moments that halve to the floor": (AdamW(beta1=0.5, beta2=0.5), 4, 1.0),
    "AdamW, late in a schedule": (AdamW(lr=0.1, total_steps=500, warmup_steps=10, final_fraction=0.05), 480, 1.0),
    "AdamW, other betas": (AdamW(beta1=0.0, beta2=0.9, eps=1e-3), 1, 0.9),
    "Adam, plain": (Adam(), 0, 1.0),
    "Adam, decay, clipping": (Adam(lr=0.01, weight_decay=0.1), 3, 0.37),
    "Adam, moments that halve to the floor": (Adam(beta1=0.5, beta2=0.5, weight_decay=2.0**-20), 4, 1.0),
    "SGD, plain": (SGD(lr=0.1, momentum=0.0), 0, 1.0),
    "SGD, momentum, decay, clipping": (SGD(lr=0.1, weight_decay=0.1), 3, 0.37),
    "SGD, warm-up": (SGD(lr=0.3, momentum=0.7, warmup_steps=10), 7, 0.9),
    "SGD, momentum that halves to the floor": (SGD(lr=0.1, momentum=0.5, weight_decay=2.0**-20), 4, 1.0),
}
"""Optimiser, first update and clipping factor of each case."""
_NOT_STORED = {"AdamW, late in a schedule", "AdamW, other betas"}
_QUICK_UPDATES = {"AdamW, decay, clipping", "Adam, decay, clipping", "SGD, momentum, decay, clipping"}


def _update_case(name: str, seed: int) -> PairCase:
    optimizer, step, clip = _UPDATES[name]

    def compute(backend: AbstractBackend) -> Results:
        w, g, m = (bell((9, 7, 3, 3), seed + i) for i in range(3))
        v = np.square(bell(w.shape, seed + 3))
        tiny = np.float32(2 * FLOOR)
        g[0], m[0], v[0] = 0, 0, 0
        g[1], m[1], v[1] = np.float32(-0.0), m[1] * tiny, v[1] * tiny
        g[2], v[2] = g[2] * np.float32(2.0**-50), v[2] * tiny
        g[3], m[3], v[3] = 0, tiny, tiny
        g[4], m[4] = g[4] * tiny, np.float32(-0.0)
        if not isinstance(optimizer, AdamW):
            # The decay reaches moments, so these rows would not stay near the floor.
            w[0], w[3], w[4] = 0, w[3] * tiny, w[4] * tiny
        moments = dict(zip(optimizer.moments, (m, v), strict=False))
        for number in range(3):
            scalars = optimizer.scalars(step + number, np.float32(clip))
            native = (backend.asarray(x.copy()) for x in (w, g, *moments.values()))
            w, *new = (backend.numpy(x) for x in backend.updated(scalars, None, *native))
            moments = dict(zip(moments, new, strict=True))
        return {"weights": w, **moments}

    return PairCase(name, compute, quick=name in _QUICK_UPDATES, stored=name not in _NOT_STORED)


CASES = (
    *_neuron_cases(),
    *(
        _filter_case(f"synaptic filter, tau_s {name}", PSP(tau), partial(_decaying, 500 + 4 * i), quick=name == "5/3")
        for i, (name, tau) in enumerate(_TAUS_S.items())
    ),
    *(
        _loss_case(loss, name, 530 + 4 * i + 2 * j)
        for i, loss in enumerate(LOSSES)
        for j, name in enumerate(("5/3", "5"))
    ),
    *(_readout_loss_case(loss, 640 + 4 * i) for i, loss in enumerate(OF_REAL_TARGETS)),
    *(_update_case(name, 560 + 4 * i) for i, name in enumerate(_UPDATES)),
    _penalty_case("target 0.37", RatePenalty(0.37, 3.0), 620, of_lengths=False),
    _penalty_case("target 1/3, lengths", RatePenalty(1 / 3, 1e4), 624, of_lengths=True),
    *(_filter_case(id, psp, inputs, stored=False) for id, (psp, inputs) in _OTHER_FILTERS.items()),
)
"""All cases."""


@cache
def _expected(case: PairCase) -> Results:
    return case.compute(NUMPY)


def _same_results(case: PairCase) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        results = case.compute(backend)
        for name, expected in _expected(case).items():
            compared.equal(name, results[name], expected)

    return body


def _lif(neuron: LIF, shape: Shape) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        z = normal(shape, 13) * np.float32(neuron.threshold)
        neurons.compare(backend, compared, str(neuron), neuron, PSP(5 / 3).filter(), z, normal(shape, 14))

    return body


def _at_the_floor(neuron: LIF, z: Float32, ds: Float32) -> Body:
    """At tau 2, states and errors that are powers of two reach the floor itself, which is kept, before they vanish."""

    def body(backend: AbstractBackend, compared: Compared) -> None:
        for tau in (1, 2):
            neurons.compare(backend, compared, f"tau_s {tau}", neuron, PSP(tau).filter(), z, ds)

    return body


_HALVES = np.stack([np.full((1, 16), z, np.float32) for z in (0.5, 0.25)])  # hold a potential at 1/2
_SURROGATES = (*(cls() for cls in SURROGATES.values()), Rectangle(0.3), Triangle(0.4), FastSigmoid(100 / 3))

CHECKS = (
    *(pair_check(f"LIF, {s}", _lif(LIF(3, 2, 0.7, s), (9, 2, 37))) for s in _SURROGATES),
    pair_check("LIF, many neurons", _lif(LIF(5, 2, 0.5), (6, 2, 16, 33, 31))),
    # Beyond the range of exp in float32. A form of the logistic surrogate that grows there would end in NaN.
    pair_check("LIF, logistic, far from the threshold", _lif(LIF(3, 2, 40, Logistic()), (9, 2, 37))),
    *(
        pair_check(
            f"LIF, halving to the floor, {s}",
            _at_the_floor(LIF(2, 2, 0.5, s), powers(30, -90)[::-1], powers(30, -90)),
        )
        for s in (Rectangle(2), Triangle(1))
    ),
    pair_check(
        "LIF, at the floor through the reset", _at_the_floor(LIF(2, 2, 0.7, Rectangle(0.5)), _HALVES, powers(2, -103))
    ),
    *(pair_check(case.id, _same_results(case)) for case in CASES),
)
