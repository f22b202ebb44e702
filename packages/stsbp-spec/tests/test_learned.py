"""Numbers that neurons learn: what they are, how a model of them is stored, what each step adds to their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_spec.equations import neuron_equations
from stsbp_spec.errors import SpecError
from stsbp_spec.expr import Expr, Names, Recurrence, named, snap, spike, variable
from stsbp_spec.grid import sum_bits
from stsbp_spec.neurons import LIF, NeuronModel
from stsbp_spec.neurons.base import Adjoint, Learned, Step
from stsbp_spec.neurons.plif import PLIF
from stsbp_spec.neurons.stored import as_text, from_text
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.surrogates import Triangle
from stsbp_spec.synapses import IDENTITY, PSP

NUMPY = NumpyBackend()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((2.0, 0.0, 1.0), "begins between low, 0, and high, 1, got initial=2"),
        ((0.5, 1.0, 0.0), "begins between low, 1, and high, 0"),
        ((0.5, 0.5, 0.5), "begins between"),
        ((2.0**-101, 0.0, 1.0), "initial of a learned number must be 0 or from 2\\^-100 to 2\\^100"),
        ((0.5, 0.0, 2.0**101), "high of a learned number must be"),
        ((0.5, float("-inf"), 1.0), "low of a learned number must be"),
        ((float("nan"), 0.0, 1.0), "initial of a learned number must be"),
        ((0.5, 0.0, 1.0, "neuron"), "per is 'layer' or 'channel', got 'neuron'"),
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Learned(*given)


def test_one_a_layer_or_one_a_channel() -> None:
    assert Learned(0.1, 0, 1).values((3, 5, 4)).tolist() == [np.float32(0.1)]
    assert Learned(-0.1, -1, 1, per="channel").values((3, 5, 4)).tolist() == [np.float32(-0.1)] * 3
    assert Learned(0.1, 0, 1, per="channel").shape((7,)) == (7,)
    assert Learned(0.1, 0, 1).initial == float(np.float32(0.1))


@dataclass(frozen=True)
class Gain(NeuronModel):
    """`u = gain i`, with an adjoint of its own: `how` says what is wrong with it."""

    name: ClassVar[str] = "gain"
    states: ClassVar[tuple[str, ...]] = ("m",)
    carried: ClassVar[tuple[str, ...]] = ("m",)
    how: str = ""

    def __post_init__(self) -> None:
        pass

    def constants(self) -> Mapping[str, float]:
        return {"keep": 0.5} | ({"gain": 1.0} if self.how == "twice" else {})

    def learned(self) -> Mapping[str, Learned]:
        return {"gain": Learned(1.5, 0, 4)}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m + i))
        return Step(u, spike(u, p.gain), {"m": p.keep * u})

    def adjoint(self, p: Names, d: Names, u: Expr, g: Expr, h: Any) -> Adjoint:
        r = snap(h(u - p.gain) * g)
        new = r + snap(p.keep * d.m)
        return Adjoint(new, {"m": new}, {} if self.how == "missing" else {"gain": -r})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("twice", "the neuron gain: gain is both a constant and learned"),
        ("missing", "the gradients of the learned numbers of the neuron gain: expected gain, got none"),
    ],
)
def test_mistakes_in_a_model_are_named(how: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        neuron_equations(IDENTITY, Gain(how=how))


@pytest.mark.parametrize(
    "neuron", [Gain(), PLIF(3, 2, 0.5), PLIF(3, 2, 0.5, Triangle(), reset="subtract", per="channel")], ids=repr
)
def test_a_stored_model_learns_the_same(neuron: NeuronModel) -> None:
    stored = from_text(as_text(neuron))
    assert dict(stored.learned()) == dict(neuron.learned())
    assert as_text(stored) == as_text(neuron)
    one, two = (neuron_equations(PSP(3).filter(), each) for each in (neuron, stored))
    assert (one.forward, one.backward, one.terms) == (two.forward, two.backward, two.terms)


def test_a_damaged_domain_of_a_stored_model_is_refused() -> None:
    text = as_text(PLIF())
    high = (1.0).hex()
    assert text.count(f'"{high}","layer"') == 1
    for other in (f'"{high}","neuron"', f'"{(-1.0).hex()}","layer"', f'"{high}"'):
        with pytest.raises(SpecError):
            from_text(text.replace(f'"{high}","layer"', other))


def test_a_model_that_was_stored_before_any_learned_has_none() -> None:
    text = as_text(LIF())
    assert text.count('"learned":{},') == 1
    assert dict(from_text(text.replace('"learned":{},', "")).learned()) == {}


def test_sums_over_the_steps_may_be_states() -> None:
    """What a loop over time adds to its outputs, and what it adds in states, is the same to the bit."""
    for neuron in (PLIF(3, 2, 0.5), PLIF(3, 2, 0.5, reset="subtract")):
        equations = neuron_equations(PSP(3).filter(), neuron)
        rng = np.random.default_rng(0)
        inputs = {name: rng.normal(size=(9, 2, 30)).astype(np.float32) for name in equations.backward.inputs}
        inputs["decay"] = rng.random((1, 2, 30)).astype(np.float32)
        found = NUMPY.recur(equations.backward, equations.constants, inputs, 9, summed=("d_decay",))
        states = equations.summing.states
        assert [*states][-1] == "sum_d_decay"
        assert [*equations.summing.outputs] == ["dz"]
        shown = equations.summing.changed(outputs={"total": states["sum_d_decay"]})
        each = NUMPY.recur(shown, equations.constants, inputs, 9)["total"]
        assert np.array_equal(each[:1], found["d_decay"])
        assert found["dz"].shape == (9, 2, 30)


def test_a_sum_gets_a_name_that_is_free() -> None:
    x = variable("x")
    taken = Recurrence("r", (), ("x", "sum_y"), {}, {"y": x * x, "z": x + variable("sum_y")})
    assert [*taken.summing(["y"]).states] == ["sum_y_"]


def test_gradients_add_on_the_grid_in_any_order() -> None:
    rng = np.random.default_rng(1)
    terms = (rng.normal(size=(1, 5, 7, 11, 3)) * 2.0 ** rng.integers(-30, 5, (1, 5, 7, 11, 3))).astype(np.float32)
    per_channel = NUMPY.learned_gradient(terms, 7, "reproducible")
    everywhere = NUMPY.learned_gradient(terms, 1, "reproducible")
    mixed = terms.reshape(5, 7, 33)[::-1, :, rng.permutation(33)].reshape(terms.shape)
    assert per_channel.shape == (7,)
    assert np.array_equal(NUMPY.learned_gradient(mixed, 7, "reproducible"), per_channel)
    assert np.array_equal(NUMPY.learned_gradient(mixed, 1, "reproducible"), everywhere)
    wide = terms.astype(np.float64)
    assert np.allclose(per_channel, wide.sum(axis=(0, 1, 3, 4)), rtol=1e-6)
    assert np.allclose(everywhere, wide.sum(), rtol=1e-6)
    # As many bits as float64 has room for: one more, and a sum of the largest may round.
    for n in (1, 5 * 33, 5 * 7 * 33):
        assert n * 2.0 ** sum_bits(n) <= 2.0**53
        assert 2 * n * 2.0 ** sum_bits(n) > 2.0**53 / 2


def test_the_grid_of_the_sum_takes_its_bits_from_the_number_of_summands() -> None:
    """One error at the top and others one unit above and below half a unit of the grid."""
    n = 64
    unit = 2.0 ** -(sum_bits(n) - 1)  # the largest, 1, is below 2^1
    terms = np.full((1, n, 1), unit, np.float32)
    terms[0, 0] = 1
    wide = NUMPY.learned_gradient(terms, 1, "reproducible").item()
    assert wide == np.float32(1 + (n - 1) * unit)
    lost = np.full((1, n, 1), unit * 0.49, np.float32)
    lost[0, 0] = 2.0**-20
    kept = NUMPY.learned_gradient(lost, 1, "reproducible").item()
    assert kept == np.float32(2.0**-20 + (n - 1) * np.float64(lost[0, 1, 0]))
    lost[0, 0] = 1
    assert NUMPY.learned_gradient(lost, 1, "reproducible").item() == 1
    assert NUMPY.learned_gradient(lost, 1, "fast").item() == np.float32(1 + (n - 1) * np.float64(lost[0, 1, 0]))
