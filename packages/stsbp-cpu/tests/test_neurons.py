"""Neurons and their filter, both ways: the bits of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_cpu.engine.tuning import CHOICES, Manner
from stsbp_cpu.models import neurons
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.neurons import ALIF, LIF, NeuronModel
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.models.surrogates import Rectangle
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend

REFERENCE = NumpyBackend()
FILTER = PSP(4, 2).filter(1.25)  # two states
NEURONS = {
    "lif": LIF(3, surrogate=Rectangle(0.7)),
    "alif": ALIF(3, beta=0.6, tau_a=9),
    "plif": PLIF(3, reset="subtract", per="channel"),
}


@pytest.mark.parametrize("manner", CHOICES, ids=lambda manner: f"chunks of {manner.chunk}")
@pytest.mark.parametrize("neuron", list(NEURONS.values()), ids=list(NEURONS))
@pytest.mark.parametrize(
    ("input_steps", "steps", "count"),
    [(9, 9, 333), (1, 9, 333), (1, 1, 40), (6, 6, 1), (3, 3, 2057), (1, 3, 2057)],
    ids=["every step", "static", "one step", "one neuron", "more than a chunk", "static, more than a chunk"],
)
def test_bits_are_those_of_the_reference(
    neuron: NeuronModel, input_steps: int, steps: int, count: int, manner: Manner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neurons, "in_best_manner", lambda _kind, _size, _neurons, run: run(*manner))
    rng = np.random.default_rng(2)
    z = (4 * rng.standard_normal((input_steps, count)) + 3).astype(np.float32)
    ds = rng.standard_normal((steps, count)).astype(np.float32)
    learned = {name: rng.random(count).astype(np.float32) for name in neuron.learned()}
    expected, residuals = REFERENCE.neuron_forward(neuron, FILTER, z[:, None], steps, learned)
    grad_sums, grad_learned = REFERENCE.neuron_backward(neuron, FILTER, residuals, ds[:, None])
    equations = neuron_equations(FILTER, neuron)
    u, spikes = np.full((steps, count), np.nan, np.float32), np.full((steps, count), 9, np.uint8)
    saved = np.full((len(equations.kept) - 1, steps, count), np.nan, np.float32)
    numbers = np.array(list(learned.values()), np.float32).reshape(-1, count)
    neurons.forward(equations, z, u, spikes, saved, numbers)
    assert np.array_equal(spikes, expected[:, 0])
    assert steps * count < 500 or 0.05 < spikes.mean() < 0.95
    for name, actual in zip(equations.kept, (u, *saved), strict=True):
        assert actual.tobytes() == residuals.kept[name][:, 0].tobytes(), name
    dz = np.full((input_steps, count), np.nan, np.float32)
    terms = np.full((len(learned), count), np.nan, np.float32)
    neurons.backward(equations, u, saved, ds, dz, numbers, terms)
    assert dz.tobytes() == grad_sums.tobytes()
    for name, actual in zip(equations.terms, terms, strict=True):
        assert actual.tobytes() == grad_learned[name].tobytes()
        assert steps == 1 or np.count_nonzero(actual) > count // 2


def test_what_is_read_may_be_closed_to_writing() -> None:
    """As JAX's arrays are, seen from numpy."""
    equations, rng = neuron_equations(FILTER, NEURONS["alif"]), np.random.default_rng(3)
    z, ds = (rng.standard_normal((4, 77)).astype(np.float32) for _ in range(2))
    results = []
    for closed in (False, True):
        for x in (z, ds):
            x.flags.writeable = not closed
        u, spikes, dz = np.empty((4, 77), np.float32), np.empty((4, 77), np.uint8), np.empty((4, 77), np.float32)
        saved = np.empty((len(equations.kept) - 1, 4, 77), np.float32)
        neurons.forward(equations, z, u, spikes, saved)
        for x in (u, saved):
            x.flags.writeable = not closed
        neurons.backward(equations, u, saved, ds, dz)
        results.append((u.tobytes(), spikes.tobytes(), dz.tobytes()))
    assert results[0] == results[1]


def test_the_loops_are_compiled_once_for_all_equations() -> None:
    """What another equation adds is its steps: a second of compiling instead of seven."""
    loops = (neurons._forward, neurons._backward)
    signatures = []
    for neuron in (NEURONS["lif"], ALIF(2, surrogate=Rectangle(0.3), reset="subtract"), LIF(7)):
        equations = neuron_equations(FILTER, neuron)
        z, ds, u, dz = (np.ones((2, 5), np.float32) for _ in range(4))
        saved = np.empty((len(equations.kept) - 1, 2, 5), np.float32)
        neurons.forward(equations, z, u, np.empty((2, 5), np.uint8), saved)
        neurons.backward(equations, u, saved, ds, dz)
        signatures.append([set(loop.signatures) for loop in loops])  # type: ignore[attr-defined]
    assert signatures[0] == signatures[1] == signatures[2]
