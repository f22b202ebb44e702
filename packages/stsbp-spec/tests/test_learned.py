"""Numbers that neurons learn: what they are, how a model of them is stored, what each step adds to their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_spec.contract.grid import sum_bits
from stsbp_spec.engine.backend import Batch
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import Expr, Names, Recurrence, named, snap, spike, variable
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import LIF, NeuronModel
from stsbp_spec.models.neurons.base import Adjoint, Learned, Step
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.models.neurons.stored import as_text, from_text
from stsbp_spec.models.optim.adamw import AdamW
from stsbp_spec.models.surrogates import Triangle
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import IDENTITY, PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Memory

NUMPY = NumpyBackend()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2.0, 0.0, 1.0), "initial of a learned parameter must be between low, 0, and high, 1, got 2"),
        ((0.5, 1.0, 0.0), "must be between low, 1, and high, 0"),
        ((0.5, 0.5, 0.5), "must be between"),
        ((2.0**-101, 0.0, 1.0), "initial of a learned parameter must be 0 or from 2\\^-100 to 2\\^100"),
        ((0.5, 0.0, 2.0**101), "high of a learned parameter must be"),
        ((0.5, float("-inf"), 1.0), "low of a learned parameter must be"),
        ((float("nan"), 0.0, 1.0), "initial of a learned parameter must be"),
        ((0.5, 0.0, 1.0, "neuron"), "per is 'layer' or 'channel', got 'neuron'"),
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Learned(*arguments)


def test_one_a_layer_or_one_a_channel() -> None:
    assert Learned(0.1, 0, 1).values((3, 5, 4)).tolist() == [np.float32(0.1)]
    assert Learned(-0.1, -1, 1, per="channel").values((3, 5, 4)).tolist() == [np.float32(-0.1)] * 3
    assert Learned(0.1, 0, 1, per="channel").shape((7,)) == (7,)
    assert Learned(0.1, 0, 1).initial == float(np.float32(0.1))


@dataclass(frozen=True)
class Gain(NeuronModel):
    """`u = gain i`, with an adjoint of its own: `mistake` says what is wrong with it."""

    name: ClassVar[str] = "gain"
    states: ClassVar[tuple[str, ...]] = ("m",)
    carried: ClassVar[tuple[str, ...]] = ("m",)
    mistake: str = ""

    def __post_init__(self) -> None:
        pass

    def constants(self) -> Mapping[str, float]:
        return {"keep": 0.5} | ({"gain": 1.0} if self.mistake == "twice" else {})

    def learned(self) -> Mapping[str, Learned]:
        return {"gain": Learned(1.5, 0, 4)}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m + i))
        return Step(u, spike(u, p.gain), {"m": p.keep * u})

    def adjoint(self, p: Names, d: Names, u: Expr, g: Expr, h: Any) -> Adjoint:
        r = snap(h(u - p.gain) * g)
        new = r + snap(p.keep * d.m)
        return Adjoint(new, {"m": new}, {} if self.mistake == "missing" else {"gain": -r})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("twice", "the neuron gain: gain is both a constant and learned"),
        ("missing", "the gradients of the learned numbers of the neuron gain: expected gain, got none"),
    ],
)
def test_mistakes_in_a_model_are_named(mistake: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        neuron_equations(IDENTITY, Gain(mistake=mistake))


@dataclass(frozen=True)
class Idle(NeuronModel):
    """Learns two numbers, of which its step reads one, and the other has the name of a state."""

    name: ClassVar[str] = "idle"
    states: ClassVar[tuple[str, ...]] = ("m",)

    def constants(self) -> Mapping[str, float]:
        return {"vth": self.threshold}

    def learned(self) -> Mapping[str, Learned]:
        return {"decay": Learned(0.5, 0, 1), "m": Learned(0.5, 0, 1)}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", s.m * p.decay + i)
        return Step(u, spike(u, p.vth), {"m": u})


def test_a_learned_number_that_no_step_reads_is_refused_when_the_model_is_made() -> None:
    with pytest.raises(SpecError, match="neuron idle learns m, which its step never reads; leave it out"):
        Idle()


@pytest.mark.parametrize(
    "neuron", [Gain(), PLIF(3, 2, 0.5), PLIF(3, 2, 0.5, Triangle(), reset="subtract", per="channel")], ids=repr
)
def test_a_stored_model_learns_the_same(neuron: NeuronModel) -> None:
    stored = from_text(as_text(neuron))
    assert dict(stored.learned()) == dict(neuron.learned())
    assert as_text(stored) == as_text(neuron)
    one, two = (neuron_equations(PSP(3).filter(), model) for model in (neuron, stored))
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
        summed = NUMPY.recur(equations.backward, equations.constants, inputs, 9, summed=("d_decay",))
        states = equations.summing.states
        assert [*states][-1] == "sum_d_decay"
        assert [*equations.summing.outputs] == ["dz"]
        shown = equations.summing.changed(outputs={"total": states["sum_d_decay"]})
        totals = NUMPY.recur(shown, equations.constants, inputs, 9)["total"]
        assert np.array_equal(totals[:1], summed["d_decay"])
        assert summed["dz"].shape == (9, 2, 30)


def test_a_sum_gets_a_name_that_is_free() -> None:
    x = variable("x")
    recurrence = Recurrence("r", (), ("x", "sum_y"), {}, {"y": x * x, "z": x + variable("sum_y")})
    assert [*recurrence.summing(["y"]).states] == ["sum_y_"]


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
    gradient = NUMPY.learned_gradient(lost, 1, "reproducible").item()
    assert gradient == np.float32(2.0**-20 + (n - 1) * np.float64(lost[0, 1, 0]))
    lost[0, 0] = 1
    assert NUMPY.learned_gradient(lost, 1, "reproducible").item() == 1
    assert NUMPY.learned_gradient(lost, 1, "fast").item() == np.float32(1 + (n - 1) * np.float64(lost[0, 1, 0]))


# In networks.

NETWORK = NetworkSpec.parse(
    "3C3{per=channel}-P2-5{neuron=lif}-4{reset=subtract}", input_shape=(2, 6, 6), outputs=3, neuron=PLIF(3, 2, 0.4)
)


def _batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = (rng.random((7, 2, *NETWORK.input_shape)) < 0.4).astype(np.uint8)
    return Batch(inputs, (rng.random((7, 2, 3)) < 0.4).astype(np.uint8))


def test_parameters_have_names_and_shapes_in_the_order_of_the_nodes() -> None:
    shapes = {name: parameter.shape for name, parameter in NETWORK.parameters.items()}
    assert list(shapes.items()) == [
        ("conv1", (3, 2, 3, 3)),
        ("conv1.decay", (3,)),
        ("linear2", (5, 12)),
        ("linear3", (4, 5)),
        ("linear3.decay", (1,)),
        ("linear4", (3, 4)),
        ("linear4.decay", (1,)),
    ]
    assert NETWORK.weight_shapes == {name: shape for name, shape in shapes.items() if "." not in name}
    assert [name for name, parameter in NETWORK.parameters.items() if parameter.learned] == [
        n for n in shapes if "." in n
    ]


def test_learned_numbers_begin_where_their_model_says() -> None:
    weights = initial_weights(NETWORK, 3)
    assert list(weights) == list(NETWORK.parameters)
    assert weights["conv1.decay"].tolist() == [np.float32(2 / 3)] * 3
    assert {x.dtype for x in weights.values()} == {np.dtype(np.float32)}
    without = NetworkSpec.parse("3C3-P2-5-4", input_shape=(2, 6, 6), outputs=3, neuron=LIF(3, 2, 0.4))
    for name, w in initial_weights(without, 3).items():
        assert np.array_equal(w, weights[name])


def test_the_table_counts_what_is_learned() -> None:
    assert "conv1: 3C3p0s1{neuron=plif,tau_m=3.0,tau_s=2.0,threshold=0.4," in repr(NETWORK)
    assert "weights 3x2x3x3, decay 3" in repr(NETWORK)
    total = sum(int(np.prod(x.shape)) for x in NETWORK.parameters.values())
    assert f"{total}" in NETWORK.table().splitlines()[-1].split()


def test_an_update_neither_decays_nor_leaves_the_domain() -> None:
    rng = np.random.default_rng(0)
    w, g, m = (rng.normal(size=40).astype(np.float32) for _ in range(3))
    w = np.clip(w, -0.5, 0.75)
    w[:3], g[:3], m[:3] = (2.0**-99, 0.1, 0.1), 0, (2.0**-99, 0, 0)
    v = np.abs(rng.normal(size=40)).astype(np.float32)
    v[0] = 1
    scalars = AdamW(lr=0.3, weight_decay=0.5).scalars(2, np.float32(0.7))
    updated = NUMPY.updated(scalars, (-0.5, 0.75), w, g, m, v)
    plain = NUMPY.updated(replace(scalars, decay=np.float32(1)), None, w, g, m, v)
    expected = np.clip(plain[0], np.float32(-0.5), np.float32(0.75))
    expected[np.abs(expected) < 2.0**-100] = 0
    assert updated[0].tobytes() == expected.tobytes()
    assert (updated[0] == -0.5).any()
    assert (updated[0] == 0.75).any()
    assert (np.abs(plain[0]) > 0.76).any()
    for got, reference in zip(updated[1:], plain[1:], strict=True):
        assert got.tobytes() == reference.tobytes()
    tiny = np.array([2.0**-101, -(2.0**-101), 2.0**-100], np.float32)
    still = np.zeros(3, np.float32)
    assert NUMPY.updated(scalars, (-0.5, 0.75), tiny, still, still, still)[0].tolist() == [0, 0, 2.0**-100]


@pytest.mark.parametrize("memory", ["full", "low"])
def test_training_moves_what_is_learned_and_exports_it(memory: Memory) -> None:
    trainer = NUMPY.trainer(
        NETWORK, LOSSES["van-rossum"], AdamW(lr=0.4, weight_decay=0.1), precision="reproducible", memory=memory
    )
    weights = initial_weights(NETWORK, 2, 4.0)
    state = trainer.init({name: w.copy() for name, w in weights.items()})
    gradient = NUMPY.value_and_grad(NETWORK, LOSSES["van-rossum"], weights, _batch(), precision="reproducible")
    assert list(gradient.gradients) == list(NETWORK.parameters)
    moved = []
    for number in range(4):
        state, result = trainer.step(state, _batch(number))
        moved.append({name: NUMPY.numpy(state.weights[name]).copy() for name in NETWORK.parameters if "." in name})
        assert np.isfinite(result.gradient_norm)
    for name, x in moved[0].items():
        # The first update of AdamW is one of the size of the rate against the sign of the gradient.
        expected = np.clip(weights[name] - 0.4 * np.sign(gradient.gradients[name]), 0, 1)
        assert np.abs(x - expected).max() < 1e-3
        assert gradient.gradients[name].all()
    assert all(((values >= 0) & (values <= 1)).all() for step in moved for values in step.values())
    exported = trainer.export_state(state)
    names = {f"{part}/{name}" for part in ("weight", "adamw.m", "adamw.v") for name in NETWORK.parameters}
    assert set(exported) == {"step", *names}
    imported = trainer.import_state(exported)
    for name, x in trainer.export_state(imported).items():
        assert np.asarray(x).tobytes() == np.asarray(exported[name]).tobytes()


def test_the_gradient_norm_has_what_is_learned_in_it() -> None:
    batch, loss = _batch(), LOSSES["van-rossum"]
    computed = NUMPY.value_and_grad(NETWORK, loss, initial_weights(NETWORK, 1, 3.0), batch, precision="reproducible")
    trainer = NUMPY.trainer(NETWORK, loss, AdamW(), precision="reproducible")
    _, result = trainer.step(trainer.init(initial_weights(NETWORK, 1, 3.0)), batch)
    squares = {name: float((g.astype(np.float64) ** 2).sum()) for name, g in computed.gradients.items()}
    assert result.gradient_norm == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)
    assert sum(x for name, x in squares.items() if "." in name) > 1e-3 * sum(squares.values())


def test_learned_numbers_outside_of_their_domain_are_refused() -> None:
    batch, loss = _batch(), LOSSES["van-rossum"]
    trainer = NUMPY.trainer(NETWORK, loss, AdamW())
    exported = trainer.export_state(trainer.init(initial_weights(NETWORK, 1)))
    for value in (1.5, -0.25, float("nan"), 2.0**-110):
        weights = initial_weights(NETWORK, 1)
        weights["conv1.decay"][1] = value
        calls: list[Callable[[], object]] = [
            lambda w=weights: trainer.init(w),  # type: ignore[misc]
            lambda w=weights: NUMPY.run(NETWORK, w, batch.inputs, 7),  # type: ignore[misc]
            lambda w=weights: NUMPY.value_and_grad(NETWORK, loss, w, batch),  # type: ignore[misc]
            lambda w=weights: trainer.import_state({**exported, "weight/conv1.decay": w["conv1.decay"]}),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(NumericError, match=r"conv1\.decay must be from 0 to 1, .* got "):
                call()
    # A moment may be anything that an update leaves.
    moments = {"adamw.m/conv1.decay": np.full(3, -7, np.float32), "adamw.v/conv1.decay": np.ones(3, np.float32)}
    trainer.import_state({**exported, **moments})
    del exported["weight/linear3.decay"]
    with pytest.raises(ShapeError, match=r"must have the layers conv1, conv1\.decay, linear2"):
        trainer.import_state(exported)
