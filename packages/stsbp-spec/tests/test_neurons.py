"""Neuron models: the derived way back against the literal form, finite differences and LIF's own; notation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.oracles.literal import Literal
from stsbp_spec.engine.backend import Batch
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import Expr, Names, named, snap, spike, where
from stsbp_spec.equations.printers import numpy_function
from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import ALIF, IF, LIF, NEURONS, PLIF, NeuronModel, parse_neuron
from stsbp_spec.models.neurons.base import Step, parameter, steps
from stsbp_spec.models.neurons.stored import as_text, from_text
from stsbp_spec.models.surrogates import SURROGATES, Arctan, FastSigmoid, Logistic, Rectangle, Triangle
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.ops.psp import FilterStep, SynapticFilter
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray

NUMPY = NumpyBackend()
MODELS: list[NeuronModel] = [
    LIF(3, 2, 0.5),
    LIF(3, 2, 0.5, reset="subtract"),
    IF(2, 0.9),
    IF(2, 0.9, reset="subtract"),
    ALIF(3, 2, 0.5, tau_a=4),
    ALIF(3, 2, 0.5, tau_a=4, beta=0.7, reset="subtract"),
    LIF(3, 4, 0.4, tau_rise=2),
    LIF(3, 2, 0.9, psp_gain="unit"),
    ALIF(3, 4, 0.4, tau_a=4, tau_rise=2, psp_gain="unit"),
    ALIF(3, 4, 0.3, tau_a=4, tau_rise=1),
    PLIF(3, 2, 0.5),
    PLIF(3, 2, 0.5, reset="subtract", per="channel"),
]
each_model = pytest.mark.parametrize("neuron", MODELS, ids=lambda n: f"{n.name}-{n.reset}-{n.tau_rise:g}-{n.psp_gain}")


def _problem(neuron: NeuronModel, seed: int = 0) -> tuple[NetworkSpec, dict[str, AnyArray], Batch]:
    """Weights and inputs with which the literal form in fractions is exact in float64's range."""
    rng = np.random.default_rng(seed)
    network = NetworkSpec.parse("3C3-P2-6", input_shape=(2, 8, 8), outputs=4, neuron=neuron)
    weights = {
        name: (rng.integers(-190, 256, shape) / 2**8).astype(np.float32) * np.float32(0.5)
        for name, shape in network.weight_shapes.items()
    }
    for name, trained in network.parameters.items():
        if trained.learned is not None:
            weights[name] = (rng.integers(16, 240, trained.shape) / 2**8).astype(np.float32)
    inputs = (rng.random((6, 2, 2, 8, 8)) < 0.3).astype(np.uint8)
    return network, weights, Batch(inputs, (rng.random((6, 2, 4)) < 0.4).astype(np.uint8))


@each_model
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("surrogate", [Arctan(), Triangle(0.7), Logistic()], ids=str)
def test_gradients_against_the_literal_form(neuron: Any, loss: str, surrogate: Any) -> None:
    """The literal form in float64, which shares nothing with the expressions; float32 within the derived bound."""
    network, weights, batch = _problem(replace(neuron, surrogate=surrogate))
    literal = Literal(network)
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    run = literal.forward(wide, [literal.array(x) for x in batch.inputs])
    targets = [literal.array(x) for x in batch.targets]
    expected = literal.backward(LOSSES[loss], wide, run, targets)
    layers = NUMPY.run(network, weights, batch.inputs, 6).layers
    for o, (name, layer) in zip(run.o.values(), layers.items(), strict=True):
        assert np.array_equal(np.stack(o), layer.spikes)
        assert 0.02 < layer.spikes.mean() < 0.98, name
    computed = NUMPY.value_and_grad(network, LOSSES[loss], weights, batch)
    error = roundoff.loss_error(LOSSES[loss], network.output_psp, computed.spikes, batch.targets)
    near = roundoff.gradients(network, weights, batch.inputs, layers, error, potentials="float64")
    close = roundoff.gradients(network, weights, batch.inputs, layers, error)
    for name, gradient in expected.items():
        size = np.abs(gradient).max()
        assert np.count_nonzero(gradient) > gradient.size // 3
        assert np.abs(near[name].value - gradient).max() <= 1e-12 * size
        assert (np.abs(computed.gradients[name] - near[name].value) <= near[name].bound).all()
        assert (np.abs(computed.gradients[name] - close[name].value) <= close[name].bound).all()
        assert np.abs(computed.gradients[name] - gradient).max() <= 1e-5 * size


@each_model
def test_the_literal_form_is_the_derivative_of_its_smooth_loss(neuron: Any) -> None:
    network, weights, batch = _problem(replace(neuron, surrogate=FastSigmoid(2.0)), seed=3)
    literal = Literal(network, smooth=True)
    inputs, targets = ([literal.array(x) for x in arrays] for arrays in (batch.inputs, batch.targets))
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    gradients = literal.backward(LOSSES["van-rossum"], wide, literal.forward(wide, inputs), targets)
    rng = np.random.default_rng(4)
    for name in wide:
        direction = rng.normal(size=wide[name].shape)
        both = []
        for sign in (1, -1):
            moved = {**wide, name: wide[name] + sign * 1e-5 * direction}
            both.append(literal.loss(LOSSES["van-rossum"], literal.forward(moved, inputs), targets))
        slope = (both[0] - both[1]) / 2e-5
        assert slope == pytest.approx((gradients[name] * direction).sum(), rel=1e-6, abs=1e-9)


@each_model
def test_spikes_are_those_of_exact_fractions(neuron: Any) -> None:
    """Time constants that are powers of two, and few steps: every potential of float32 is exact."""
    powers = {name: 2.0 for name in ("tau_m", "tau_s", "tau_a") if hasattr(neuron, name)}
    powers |= {"tau_rise": 1.0} if neuron.tau_rise else {}
    exact = replace(neuron, **powers, threshold=0.5, surrogate=Rectangle(2.0))
    exact = replace(exact, beta=0.5) if isinstance(exact, ALIF) else exact
    network = NetworkSpec.parse("5", input_shape=(8,), outputs=3, neuron=exact)
    rng = np.random.default_rng(1)
    weights = {n: (rng.integers(-8, 9, s) / 8).astype(np.float32) for n, s in network.weight_shapes.items()}
    for n, trained in network.parameters.items():
        if trained.learned is not None:
            weights[n] = (rng.integers(1, 4, trained.shape) / 4).astype(np.float32)
    inputs = (rng.random((5, 3, 8)) < 0.5).astype(np.uint8)
    literal = Literal(network, Fraction)
    run = literal.forward({n: literal.array(w) for n, w in weights.items()}, [literal.array(x) for x in inputs])
    layers = NUMPY.run(network, weights, inputs, 5).layers.values()
    for u, o, layer in zip(run.u.values(), run.o.values(), layers, strict=True):
        assert np.array_equal(np.stack(o).astype(float), layer.spikes)
        assert np.array_equal(np.stack(u).astype(float), layer.potentials)
        assert 0 < layer.spikes.mean() < 1


class Derived(LIF):
    """LIF without its written adjoint."""

    def adjoint(self, p: Any, d: Any, u: Any, g: Any, h: Any) -> None:
        return None


@pytest.mark.parametrize("surrogate", [cls() for cls in SURROGATES.values() if cls().exact], ids=str)
def test_lifs_own_order_is_the_derived_one_but_for_roundings(surrogate: Any) -> None:
    rng = np.random.default_rng(2)
    u, g = rng.normal(0.5, 1, (30, 50)), rng.normal(size=(30, 50))
    grads = []
    for kind in (LIF, Derived):
        equations = neuron_equations(PSP(3).filter(), kind(4, 3, 0.5, surrogate))
        backward = equations.backward
        step = numpy_function(backward, np.float64)
        states = [np.zeros(50) for _ in backward.states]
        dz = []
        for ut, gt in zip(u[::-1], g[::-1], strict=True):
            states, (x,) = step(*(np.float64(equations.constants[n]) for n in backward.parameters), ut, gt, *states)
            dz.append(x)
        grads.append(np.stack(dz))
    assert np.abs(grads[0] - grads[1]).max() <= 1e-13 * np.abs(grads[0]).max()
    assert neuron_equations(PSP(3).filter(), Derived()).kept == ("u",)


def test_alif_keeps_potential_and_threshold() -> None:
    for reset in ("zero", "subtract"):
        assert neuron_equations(PSP(3).filter(), ALIF(reset=reset)).kept == ("u", "threshold")


def test_models_that_are_one_another() -> None:
    """IF is LIF without a leak; ALIF with next to no adaptation is LIF."""
    rng = np.random.default_rng(5)
    z = rng.normal(0.3, 1, (20, 3, 40)).astype(np.float32)
    filter = PSP(3).filter()
    for reset in ("zero", "subtract"):
        slow = LIF(1e30, 3, 0.5, reset=reset)
        assert np.array_equal(
            NUMPY.neuron_forward(slow, filter, z, 20)[0],
            NUMPY.neuron_forward(IF(3, 0.5, reset=reset), filter, z, 20)[0],
        )
        pair = LIF(5, 3, 0.5, reset=reset), ALIF(5, 3, 0.5, reset=reset, beta=2.0**-60)
        one, two = (NUMPY.neuron_forward(neuron, filter, z, 20)[0] for neuron in pair)
        assert np.array_equal(one, two)
    adapted = NUMPY.neuron_forward(ALIF(5, 3, 0.5, beta=5.0), filter, z, 20)[0]
    assert adapted.mean() < 0.8 * NUMPY.neuron_forward(LIF(5, 3, 0.5), filter, z, 20)[0].mean()


@dataclass(frozen=True)
class Stranger(NeuronModel):
    """Potential and threshold that are not snapped by their author; a constant called as one of the filter's."""

    name: ClassVar[str] = "stranger"
    states: ClassVar[tuple[str, ...]] = ("i", "e")
    k: float = parameter(3.0, steps)

    def constants(self) -> Mapping[str, float]:
        return {"k": 1 - 1 / self.k, "c": 0.5}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = s.i + i
        rest = named("rest", p.c * s.e)
        o = spike(u, 1 + rest)
        return Step(u, o, {"i": where(o, rest, p.k * u), "e": p.k * s.e + where(o, 1, 0)})


def test_every_model_has_the_parameters_of_all() -> None:
    kind: Any = Stranger
    strange = kind(tau_s=5, threshold=0.25, surrogate=Rectangle(0.5), tau_rise=2, psp_gain="unit")
    assert (strange.tau_s, strange.threshold, strange.psp) == (5.0, 0.25, PSP(5, 2, "unit"))
    assert kind(4.0).k == 4.0
    assert kind() == kind(3.0, 4.0, 0.0, 1.0, Arctan())
    with pytest.raises(SpecError, match="threshold must be a finite number above 0"):
        kind(threshold=0)


def test_names_of_parts_do_not_meet_and_kept_values_are_snapped() -> None:
    equations = neuron_equations(PSP(3).filter(), Stranger())
    assert equations.forward.parameters == ("k", "c", "k_", "c_")
    assert list(equations.forward.states) == ["i", "i_", "e"]
    assert equations.constants["k"] == np.float32(2 / 3) == equations.constants["k_"]
    assert all(x.op in ("snap", "spike") for x in equations.forward.outputs.values())
    z = np.random.default_rng(0).normal(0.5, 1, (9, 2, 30)).astype(np.float32)
    spikes, residuals = NUMPY.neuron_forward(Stranger(), PSP(3).filter(), z, 9)
    assert 0.05 < spikes.mean() < 0.9
    assert np.isfinite(NUMPY.neuron_backward(Stranger(), PSP(3).filter(), residuals, z)[0]).all()
    assert np.array_equal(snap_of(residuals.kept["u"]), residuals.kept["u"])


@dataclass(frozen=True)
class Moving(NeuronModel):
    """A threshold that moves. The backward pass reads its value, which has any name."""

    name: ClassVar[str] = "moving"
    states: ClassVar[tuple[str, ...]] = ("m", "a")
    value: str = parameter("moved", lambda name, value: value)

    def constants(self) -> Mapping[str, float]:
        return {"km": 0.75, "threshold": 0.125, "ka": 0.875, "beta": 0.5}

    def learned(self) -> Mapping[str, Learned]:
        return {"jump": Learned(0.125, 0, 1)}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", s.m + i)
        moved = named(self.value, p.threshold + p.beta * s.a)
        o = spike(u, moved)
        return Step(u, o, {"m": p.km * (u - where(o, moved, 0)), "a": p.ka * s.a + where(o, p.jump, 0)})


_TAKEN = ["threshold", "jump", "k", "scale", "u", "o", "g", "gu", "h", "z", "i", "m", "e", "dz", "back", "current",
          "d_m", "d_a", "d_jump", "m_before", "a_before"]  # fmt: skip


@pytest.mark.parametrize("value", _TAKEN)
@pytest.mark.parametrize("stored", [False, True])
def test_gradients_do_not_depend_on_the_name_of_a_kept_value(value: str, stored: bool) -> None:
    results = []
    for name in ("moved", value):
        model: NeuronModel = Moving(value=name)
        network, weights, batch = _problem(from_text(as_text(model)) if stored else model)
        results.append(NUMPY.value_and_grad(network, LOSSES["van-rossum"], weights, batch))
        assert all(
            len(neuron_equations(PSP(3).filter(), model, (), potentials).kept) == 2 for potentials in (False, True)
        )
    for name, gradient in results[0].gradients.items():
        assert gradient.any(), name
        np.testing.assert_array_equal(gradient, results[1].gradients[name])


def snap_of(x: AnyArray) -> AnyArray:
    return np.where(np.abs(x) < 2.0**-100, np.float32(0), x)


@dataclass(frozen=True)
class Wrong(NeuronModel):
    """A model with a mistake."""

    name: ClassVar[str] = "wrong"
    states: ClassVar[tuple[str, ...]] = ("m",)
    mistake: str = parameter("", lambda name, value: value)

    def constants(self) -> Mapping[str, float]:
        return {"a": 0.5}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        if self.mistake == "name":
            return Step(s.v, spike(s.v, 1), {})
        u = named("u", snap(s.m + i))
        o = u >= 1 if self.mistake == "comparison" else spike(u, 1)
        return Step(u, o, {"x" if self.mistake == "state" else "m": p.b * u if self.mistake == "constant" else p.a * u})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("name", "no state of the neuron wrong 'v'; there are: m"),
        ("constant", "no constant of the neuron wrong 'b'; there are: a"),
        ("state", "the states of the neuron wrong: expected m, got x"),
        ("comparison", "a step must return spike"),
    ],
)
def test_mistakes_in_a_model_are_named(mistake: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        neuron_equations(PSP(3).filter(), Wrong(mistake=mistake))


@pytest.mark.parametrize(
    ("text", "neuron"),
    [
        ("lif", LIF(tau_m=5)),
        ("lif:reset=subtract", LIF(tau_m=5, reset="subtract")),
        ("if", IF()),
        ("alif:beta=2:tau_a=7", ALIF(tau_m=5, beta=2, tau_a=7)),
        ("alif:tau_m=3:surrogate=triangle", ALIF(tau_m=3, surrogate=Triangle())),
        ("plif:per=channel", PLIF(tau_m=5, per="channel")),
    ],
)
def test_neurons_are_read_from_text(text: str, neuron: NeuronModel) -> None:
    assert parse_neuron(text, {"tau_m": 5.0}) == neuron


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alfi", "unknown neuron 'alfi' \\(did you mean alif\\?\\); known: lif, if, alif, plif"),
        (
            "if:tau_m=3",
            "the neuron 'if' has no parameter 'tau_m'; it has: tau_s, threshold, surrogate, reset, tau_rise, psp_gain",
        ),
        ("lif:reset", "expected key=value, got 'reset'"),
        ("lif:reset=", "expected key=value, got 'reset='"),
        ("plif:per=neuron", "per is 'layer' or 'channel', got 'neuron'"),
        ("lif:tau_m=5:tau_m=6", "neuron 'lif': 'tau_m' is given twice; leave one of them out"),
        ("lif:reset=half", "reset is 'zero' or 'subtract', got 'half'"),
        ("alif:beta=x", "beta must be a number, got 'x'"),
        ("alif:beta=0", "beta must be a finite number above 0"),
        ("alif:tau_a=0.5", "tau_a is a time constant"),
    ],
)
def test_what_is_no_neuron_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_neuron(text, {})


def test_a_threshold_is_judged_as_float32_holds_it() -> None:
    for threshold in (2.0**-100, 2.0**-100 * (1 - 2.0**-30), 2.0**128 * (1 - 2.0**-24)):
        assert LIF(threshold=threshold).threshold == threshold
    for threshold in (2.0**-100 * (1 - 2.0**-24), 2.0**128 * (1 - 2.0**-26)):
        with pytest.raises(SpecError, match="threshold must be from 2\\^-100 to the largest float32"):
            LIF(threshold=threshold)


def test_a_time_constant_is_judged_by_its_inverse_in_float32() -> None:
    for tau in (2.0**100, 2.0**100 * (1 + 2.0**-30)):
        assert PSP(tau).tau_s == tau
    with pytest.raises(SpecError, match="tau_s must be at most 2\\^100"):
        PSP(2.0**100 * (1 + 2.0**-20))


@each_model
def test_notation_reads_back(neuron: NeuronModel) -> None:
    network = NetworkSpec.parse("3C3-6", input_shape=(2, 8, 8), outputs=4, neuron=neuron)
    assert NetworkSpec.parse(network.notation, input_shape=(2, 8, 8)) == network
    assert network.notation.count(f"neuron={neuron.name},") == 3


def test_notation_chooses_a_model_for_a_layer() -> None:
    network = NetworkSpec.parse("4{beta=2,neuron=alif}-3{reset=subtract}-2", input_shape=(6,), neuron=LIF(tau_m=3))
    assert [b.neuron for b in network.blocks] == [ALIF(tau_m=3, beta=2), LIF(tau_m=3, reset="subtract"), LIF(tau_m=3)]
    with pytest.raises(NetworkError, match="unknown parameter 'beta'; known: neuron, tau_m"):
        NetworkSpec.parse("4{beta=2}", input_shape=(6,), outputs=2)
    with pytest.raises(NetworkError, match="unknown neuron 'alfi'"):
        NetworkSpec.parse("4{neuron=alfi}", input_shape=(6,), outputs=2)


def test_every_model_has_its_name() -> None:
    assert {name: cls.name for name, cls in NEURONS.items()} == {name: name for name in NEURONS}
    assert {type(neuron) for neuron in MODELS} == set(NEURONS.values())


def test_a_potential_rises_before_it_decays() -> None:
    """The difference of two exponentials, with the area of the filter of first order."""
    spike_at_0 = np.zeros((400, 1), np.uint8)
    spike_at_0[0] = 1
    slow, fast = (NUMPY.psp_forward(psp, spike_at_0)[:, 0] for psp in (PSP(8, 3), PSP(8)))
    t = np.arange(400)
    expected = ((1 - 1 / 8) ** t - (1 - 1 / 3) ** t) / (8 - 3)
    assert np.abs(slow - expected).max() < 1e-7
    assert 2 <= slow.argmax() <= 6
    assert fast.argmax() == 0
    assert slow.sum() == pytest.approx(1, rel=1e-5)
    assert fast.sum() == pytest.approx(1, rel=1e-5)


def test_the_adjoint_of_the_filter_is_its_transpose() -> None:
    rng = np.random.default_rng(7)
    s, da = (rng.random((30, 4)) < 0.3).astype(np.uint8), rng.normal(size=(30, 4)).astype(np.float32)
    for psp in (PSP(5), PSP(5, 2), PSP(4, 1)):
        filtered, adjoint = NUMPY.psp_forward(psp, s), NUMPY.psp_backward(psp, da)
        assert (filtered.astype(float) * da).sum() == pytest.approx((s * adjoint.astype(float)).sum(), rel=1e-5)


@dataclass(frozen=True)
class Spiking(SynapticFilter):
    """A filter that spikes."""

    states: ClassVar[tuple[str, ...]] = ("a",)

    def constants(self) -> Mapping[str, float]:
        return {"k": 0.5}

    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        a = p.k * s.a + z
        return FilterStep({"a": where(spike(a, 1), 0, a)}, a)


def test_a_filter_that_spikes_is_refused() -> None:
    with pytest.raises(SpecError, match="a filter has no spikes of its own"):
        neuron_equations(Spiking(), LIF())


@pytest.mark.parametrize("rise", [4.0, 5.0, 0.5, -1.0, float("nan")])
def test_a_rise_that_is_none_is_refused(rise: float) -> None:
    with pytest.raises(SpecError, match="tau_rise"):
        LIF(3, 4, 1.0, tau_rise=rise)


@pytest.mark.parametrize(("tau_s", "rise"), [(4, 2), (4, 3.9999), (30, 29), (1000, 900), (2.0**90, 1)])
def test_a_filter_that_rises_has_its_area(tau_s: float, rise: float) -> None:
    c = {name: float(x) for name, x in PSP(tau_s, rise).filter().constants().items()}
    if tau_s <= 1000:
        assert c["c"] * (c["k"] - c["kr"]) / ((1 - c["k"]) * (1 - c["kr"])) == pytest.approx(1, abs=0.011)


@pytest.mark.parametrize(("tau_s", "rise"), [(4, 3.99999), (4, 4 - 1e-7), (30, 29.9999), (1000, 999.9)])
def test_a_rise_that_float32_cannot_tell_from_the_decay_is_refused(tau_s: float, rise: float) -> None:
    with pytest.raises(SpecError, match=f"tau_rise, {rise!r}, is so near to tau_s, {float(tau_s)!r}, that float32"):
        PSP(tau_s, rise)


@pytest.mark.parametrize("rise", [0, 2])
def test_both_gains_of_a_synapse_begin_alike(rise: float) -> None:
    normalised, unit = (
        initial_weights(
            NetworkSpec.parse("6", input_shape=(5,), outputs=3, neuron=LIF(3, 4, tau_rise=rise, psp_gain=g)), 1
        )
        for g in ("normalised", "unit")
    )
    assert np.array_equal(normalised["linear1"], unit["linear1"])
    assert np.allclose(normalised["linear2"], unit["linear2"] * (4 - rise), rtol=1e-6)
    with pytest.raises(SpecError, match="'normalised' or 'unit', got 'one'"):
        PSP(3, gain="one")
