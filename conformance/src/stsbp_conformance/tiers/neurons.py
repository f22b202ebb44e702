"""Tier 5 for all neuron models: forward and backward pair in isolation, bit for bit against the numpy reference.

`MODELS` follows the spec's table of models, so new models are included automatically. `checks(neuron)` gives the checks
of any model, including user-defined ones. Inputs and errors are made from the model's own equations: potentials that
reach the threshold exactly or within one unit in the last place, states that fall silent, products on both sides of the
floor.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import Recurrence, unsnapped
from stsbp_spec.equations.ranges import flushes_of
from stsbp_spec.models.neurons import NEURONS, NeuronModel, parameters
from stsbp_spec.models.surrogates import SURROGATES, Rectangle, Surrogate, Triangle
from stsbp_spec.networks.ops import IDENTITY, PSP
from stsbp_spec.networks.ops.psp import Biased, SynapticFilter
from stsbp_spec.reference.backend import recur
from stsbp_spec.typing import AnyArray, Float32, Precision, Shape

from stsbp_conformance.cases import BIAS_DRAWN, learned, normal
from stsbp_conformance.check import Check, Compared
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers.pairs import Body, pair_check, powers, values

__all__ = [
    "CHECKS",
    "MODELS",
    "checks",
    "compare",
    "meeting_the_threshold",
    "models",
    "near_the_floor",
    "silent",
    "with_surrogate",
]

_GIVEN = {"tau_m": 3.0, "tau_s": 2.0, "tau_a": 5 / 3, "threshold": 0.5}
"""No value is 2, because such products are exact and hide fused multiply-adds. All decay to the floor in 240 steps."""


_PRECISIONS: tuple[Precision, ...] = ("fast", "reproducible")


def models(kind: type[NeuronModel]) -> list[NeuronModel]:
    """A model with each of its resets, and with each way to share learned parameters."""
    arguments: dict[str, Any] = {name: value for name, value in _GIVEN.items() if name in parameters(kind)}
    variants: list[dict[str, Any]] = [{}, {}] if "reset" in parameters(kind) else [{}]
    for name, choices in (("reset", ("zero", "subtract")), ("per", ("layer", "channel"))):
        if name in parameters(kind):
            variants = [{**other, name: value} for other, value in zip(variants, choices, strict=False)]
    return [kind(**arguments, **other) for other in variants]


MODELS = tuple(neuron for kind in NEURONS.values() for neuron in models(kind))
"""All models of the spec."""


def _label(neuron: NeuronModel) -> str:
    reset = getattr(neuron, "reset", None)
    return neuron.name if reset is None else f"{neuron.name}, reset {reset}"


def with_surrogate(neuron: NeuronModel, surrogate: Surrogate) -> NeuronModel:
    """The model with another surrogate derivative."""
    changed: NeuronModel = replace(neuron, surrogate=surrogate)  # type: ignore[type-var]
    return changed


def learned_numbers(neuron: NeuronModel, filter: SynapticFilter, output: Shape) -> dict[str, Float32]:
    """Possible learned parameters of a layer whose spikes have the shape `output`, by name."""
    domains = {**neuron.learned(), **dict.fromkeys(filter.learned(), BIAS_DRAWN)}
    numbered = enumerate(domains.items())
    return {name: learned(x, x.shape(output)[0], 84, number) for number, (name, x) in numbered}


def compare(
    backend: AbstractBackend,
    compared: Compared,
    label: str,
    neuron: NeuronModel,
    filter: SynapticFilter,
    z: Float32,
    ds: Float32,
) -> None:
    """Compare both passes of a neuron with the reference. Gradients that may differ are compared with their bound.

    `z` `[1 or T, B, ...]` are inputs of the filter, and `ds` `[T, B, ...]` errors of the spikes.
    """
    numbers = learned_numbers(neuron, filter, z.shape[2:])
    s, residuals = NUMPY.neuron_forward(neuron, filter, z, len(ds), numbers)
    native_numbers = {name: backend.asarray(x) for name, x in numbers.items()}
    native_s, native = backend.neuron_forward(neuron, filter, backend.asarray(z), len(ds), native_numbers)
    potentials = backend.numpy(backend.neuron_potentials(native))
    compared.equal(f"{label}: potentials", potentials, NUMPY.neuron_potentials(residuals))
    compared.equal(f"{label}: spikes", values(backend, native_s, np.uint8), s)
    grad_input, terms = backend.neuron_backward(neuron, filter, native, backend.asarray(ds))
    native_dz = backend.numpy(grad_input)
    gradients = {
        (name, precision): backend.numpy(backend.learned_gradient(x, len(numbers[name]), precision))
        for name, x in terms.items()
        for precision in _PRECISIONS
    }
    if neuron.surrogate.exact:
        dz, expected = NUMPY.neuron_backward(neuron, filter, residuals, ds)
        compared.equal(f"{label}: dL/dz", native_dz, dz)
        for name, x in expected.items():
            compared.equal(f"{label}: terms of {name}", backend.numpy(terms[name]), x)
            exact = NUMPY.learned_gradient(x, len(numbers[name]), "reproducible")
            compared.equal(f"{label}: dL/d{name}", gradients[name, "reproducible"], exact)
    if numbers or not neuron.surrogate.exact:
        constants_of_filter = tuple(roundoff.exact(float(value)) for value in filter.constants().values())
        constants = roundoff.Filtering(constants_of_filter, filter)
        saved = {name: roundoff.exact(x) for name, x in {**residuals.kept, **residuals.learned}.items()}
        near = roundoff.neuron_backward(neuron, constants, saved, s, roundoff.exact(ds), static=residuals.static)
        compared.within(f"{label}: dL/dz", native_dz, near, random=True)
        for name, bound in roundoff.learned_gradients(neuron, constants, saved, s, roundoff.exact(ds)).items():
            compared.within(f"{label}: fast dL/d{name}", gradients[name, "fast"], bound, random=True)


def _stepped(neuron: NeuronModel) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        biased = Biased(PSP(5 / 3).filter(), np.float32(1)), Biased(PSP(5.0, 5 / 3).filter(), np.float32(1 / 0.7))
        filters = (PSP(5 / 3).filter(), PSP(3.0).filter(1 / 0.7), PSP(5.0, 5 / 3).filter(), IDENTITY, *biased)
        surrogates = (*(cls() for cls in SURROGATES.values()), Triangle(0.4))
        for number, surrogate in enumerate(surrogates):
            filter = filters[number % len(filters)]
            z, ds = normal((11, 2, 37), 50 + number), normal((11, 2, 37), 60 + number)
            compare(backend, compared, str(surrogate), with_surrogate(neuron, surrogate), filter, z, ds)

    return body


def _shapes(neuron: NeuronModel) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        filter: SynapticFilter = PSP(3.0).filter()
        for label, steps, shape in (
            ("one step", 1, (1, 3, 11)),
            ("one neuron", 15, (15, 1, 1)),
            ("maps", 4, (4, 2, 3, 5, 7)),
        ):
            z, ds = normal(shape, 70), normal((steps, *shape[1:]), 71)
            compare(backend, compared, label, neuron, filter, z, ds)
        static = ("static", IDENTITY), ("static, filtered", PSP(3.0).filter(1 / 0.7))
        for label, filter in (*static, ("static, with a bias", Biased(IDENTITY, np.float32(1 / 0.7)))):
            compare(backend, compared, label, neuron, filter, normal((1, 2, 41), 72), normal((12, 2, 41), 73))

    return body


def meeting_the_threshold(neuron: NeuronModel, steps: int = 8) -> tuple[Float32, AnyArray]:
    """`z` with which a third of the potentials reach the threshold, and a third the next lower number; and distances.

    The input of each step is corrected for the remaining values of earlier steps. Also returns the distances of all.
    """
    equations = neuron_equations(IDENTITY, neuron)
    forward = equations.forward
    u, threshold = (unsnapped(x) for x in forward.outputs["o"].args)
    both = Recurrence("both", forward.parameters, forward.inputs, _as_they_are(forward), {"u": u, "v": threshold})
    z = normal((steps, 2, 66), 74)
    is_below = np.broadcast_to(np.arange(66) % 3 == 1, z.shape[1:])
    correction = np.zeros_like(z)
    numbers = learned_numbers(neuron, IDENTITY, z.shape[2:])
    learned_inputs = {free: NUMPY.broadcast(numbers[name], z.shape[1:]) for name, free in equations.learned.items()}
    for t in range(steps):
        for _ in range(3):
            outputs = recur(both, equations.constants, {"z": z, **learned_inputs}, t + 1)
            goal = np.where(is_below, np.nextafter(outputs["v"][t], np.float32(-np.inf)), outputs["v"][t])
            correction[t] = goal - outputs["u"][t]
            z[t, :, np.arange(66) % 3 < 2] += correction[t][:, np.arange(66) % 3 < 2].T
    outputs = recur(both, equations.constants, {"z": z, **learned_inputs}, steps)
    return z, outputs["u"] - outputs["v"]


def _as_they_are(recurrence: Recurrence) -> dict[str, Any]:
    return {name: unsnapped(x) for name, x in recurrence.states.items()}


def _at_the_threshold(neuron: NeuronModel) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        z, _ = meeting_the_threshold(neuron)
        for surrogate in (Rectangle(), Triangle()):
            model = with_surrogate(neuron, surrogate)
            compare(backend, compared, str(surrogate), model, IDENTITY, z, normal(z.shape, 75))

    return body


def silent(steps: int = 240) -> tuple[Float32, Float32]:
    """Input only at the first step, and errors only at the last step."""
    z, ds = normal((steps, 2, 19), 76), normal((steps, 2, 19), 77)
    z[1:], ds[:-1] = 0, 0
    return z, ds


def _silence(neuron: NeuronModel) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        compare(backend, compared, "silence", neuron, PSP(5 / 3).filter(), *silent())

    return body


def near_the_floor(steps: int = 8) -> list[tuple[str, Float32, Float32]]:
    """Inputs, errors, and both together: small multiples of powers of two near 2^-100, whose sums often cancel."""
    shape = (steps, 1, 96)

    def tiny(seed: int) -> Float32:
        mantissas, exponent = (
            uniform(seed, Stream.ENCODER, math.prod(shape), substream=k).reshape(shape) for k in (4, 5)
        )
        eighths = np.rint(16 * mantissas - 8)
        drawn: Float32 = np.ldexp(eighths, (-106 + np.floor(7 * exponent)).astype(int)).astype(np.float32)
        return drawn

    z, ds = normal(shape, 78), normal(shape, 79)
    return [("inputs", tiny(80), ds), ("errors", z, tiny(81)), ("inputs and errors", tiny(82), tiny(83))]


def _floor(neuron: NeuronModel) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        halved = powers(30, -90)[::-1].copy(), powers(30, -90)
        for label, z, ds in (*near_the_floor(), ("halving", *halved)):
            for surrogate, filter in (
                (Rectangle(2), PSP(2.0).filter()),
                (Triangle(1), IDENTITY),
                (Rectangle(0.25), IDENTITY),
            ):
                model = with_surrogate(neuron, surrogate)
                compare(backend, compared, f"{label}, {surrogate}", model, filter, z, ds)

    return body


def _flushes(neuron: NeuronModel) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        for filter in (IDENTITY, PSP(5 / 3).filter(), PSP(5.0, 5 / 3).filter()):
            flushes = flushes_of(neuron, filter)
            compared.true("; ".join(map(str, flushes)) or "no flush shows", not flushes)

    return body


def checks(neuron: NeuronModel) -> tuple[Check, ...]:
    """The checks of one model."""
    label = _label(neuron)
    return (
        pair_check(f"{label}: every surrogate", _stepped(neuron)),
        pair_check(f"{label}: shapes, static input", _shapes(neuron)),
        pair_check(f"{label}: at the threshold", _at_the_threshold(neuron)),
        pair_check(f"{label}: silence until the floor", _silence(neuron)),
        pair_check(f"{label}: on both sides of the floor", _floor(neuron)),
        pair_check(f"{label}: no product whose flush would show", _flushes(neuron)),
    )


def _spared(neuron: NeuronModel, check: Check) -> Check:
    """All surrogates with all models would compile for minutes, so quick checks use them only with the last model."""
    return replace(check, quick=neuron is MODELS[-1] or not check.id.endswith("every surrogate"))


CHECKS = tuple(_spared(neuron, check) for neuron in MODELS for check in checks(neuron))
