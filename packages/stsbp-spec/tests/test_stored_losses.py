"""Losses and surrogates as text: what is read back computes the same, and damage is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp_spec.equations.assembly import loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Expr, Names, exp, where
from stsbp_spec.errors import NumericError, SpecError
from stsbp_spec.models.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.models.losses.base import LossStep
from stsbp_spec.models.losses.stored import as_text, from_text
from stsbp_spec.models.neurons import ALIF, LIF, NeuronModel
from stsbp_spec.models.neurons import stored as neurons
from stsbp_spec.models.optim.adamw import AdamW
from stsbp_spec.models.surrogates import SURROGATES, StoredSurrogate, Surrogate, equation
from stsbp_spec.models.surrogates import as_text as surrogate_text
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float64, UInt8


@dataclass(frozen=True)
class Filtered(Loss):
    """The van Rossum distance as expressions, with a weight and a word."""

    name: ClassVar[str] = "filtered"
    parameters: ClassVar[tuple[str, ...]] = ("k", "c", "scaled", "half")
    states: ClassVar[tuple[str, ...]] = ("r",)
    back_states: ClassVar[tuple[str, ...]] = ("e",)
    weight: float = 1.0
    word: str = "plain"

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        slow = psp.first_order
        k = 1 - 1 / slow.tau_s
        return {"k": k, "c": 1 / psp.tau_s, "scaled": self.weight / batch / psp.tau_s, "half": self.weight * 0.5}

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep:
        r = p.k * s.r + p.c * (x.o - x.target)
        return LossStep({"r": r}, r)

    def measure(self, p: Names, x: Names) -> Expr:
        return p.half * (x.r * x.r)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        e = p.k * s.e + x.r
        return LossStep({"e": e}, p.scaled * e)


@dataclass(frozen=True)
class Rates(Loss):
    """The spike count loss as expressions; a step's share of the distance is that of every step."""

    name: ClassVar[str] = "rates"
    parameters: ClassVar[tuple[str, ...]] = ("scale", "share")

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {"scale": 1 / (steps * steps * batch), "share": np.float64(0.5) / (steps * steps * steps)}

    def measure(self, p: Names, x: Names) -> Expr:
        return p.share * ((x.count - x.target_count) * (x.count - x.target_count))

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        return LossStep({}, p.scale * (x.count - x.target_count))


@dataclass(frozen=True)
class Differing(Loss):
    """The Hamming distance, as a condition."""

    name: ClassVar[str] = "differing"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {"scale": 1 / batch}

    def measure(self, p: Names, x: Names) -> Expr:
        return abs(x.o - x.target) >= 1

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        return LossStep({}, p.scale * (x.o - x.target))


@dataclass(frozen=True)
class Steep(Surrogate):
    """Of compact support, with two parameters."""

    name: ClassVar[str] = "steep"
    compact: ClassVar[bool] = True
    width: float = 1.0
    height: float = 2.0

    def constants(self) -> Mapping[str, float]:
        return {"width": self.width, "height": self.height}

    def expression(self, p: Names, x: Expr) -> Expr:
        return where(abs(x) < p.width, p.height, 0)

    def primitive(self, x: Any) -> Any:
        raise NotImplementedError


LOSS_PAIRS = [(Filtered(), VanRossum()), (Rates(), SpikeCount()), (Differing(), Hamming())]
TEXT = as_text(Filtered(0.7, "other"))


def _trains(shape: tuple[int, ...]) -> UInt8:
    return (np.random.default_rng(len(shape)).random(shape) < 0.4).astype(np.uint8)


@pytest.mark.parametrize(("expressed", "spec"), LOSS_PAIRS, ids=lambda loss: str(loss.name))
@pytest.mark.parametrize("psp", [PSP(3.0), PSP(5 / 3), PSP(4.0, 2.0)], ids=repr)
def test_a_distance_that_is_an_expression_is_that_of_the_spec(expressed: Loss, spec: Loss, psp: PSP) -> None:
    o, target = _trains((9, 4, 6)), _trains((9, 1, 6))
    for loss in (expressed, from_text(as_text(expressed))):
        np.testing.assert_allclose(loss.distance(o, target, psp), spec.distance(o, target, psp), rtol=1e-14)
    # As distances to label sequences are asked for: neurons one by one.
    single: Float64 = expressed.distance(o[..., None], _trains((9, 1, 1, 1)), psp)
    np.testing.assert_allclose(single, spec.distance(o[..., None], _trains((9, 1, 1, 1)), psp), rtol=1e-14)


@pytest.mark.parametrize("loss", [expressed for expressed, _ in LOSS_PAIRS], ids=lambda loss: str(loss.name))
def test_what_is_read_back_computes_the_same(loss: Loss) -> None:
    stored = from_text(as_text(loss))
    assert loss_equations(stored) == loss_equations(loss)
    for psp, steps, batch in ((PSP(3.0), 10, 7), (PSP(7.3, 1.1), 100_000, 999_999_999), (PSP(1.0), 1, 1)):
        assert stored.constants(psp, steps, batch) == loss.constants(psp, steps, batch)
    assert stored == from_text(as_text(stored))
    assert stored.name == loss.name
    o, target = _trains((9, 4, 6)), _trains((9, 4, 6))
    backend = NumpyBackend()
    computed = backend.loss_error(stored, PSP(3), o, target)
    assert computed.tobytes() == backend.loss_error(loss, PSP(3), o, target).tobytes()


def test_parameters_are_kept_for_people() -> None:
    assert repr(from_text(TEXT)) == "filtered(weight=0.7, word=other)"


def _changed(change: Any) -> str:
    data = json.loads(TEXT)
    change(data)
    return json.dumps(data)


DAMAGE: dict[str, Any] = {
    "nothing": lambda d: d.clear(),
    "another format": lambda d: d.update(format=2),
    "a name that is code": lambda d: d.update(name="__import__('os')"),
    "a state that is missing": lambda d: d["states"].clear(),
    "a state too many": lambda d: d["back_states"].append("f"),
    "an operand after the operation": lambda d: d["nodes"][2].__setitem__(2, 40),
    "an operand that is a truth value": lambda d: d["nodes"][2].__setitem__(2, True),
    "a surrogate": lambda d: d["nodes"].__setitem__(-1, ["surrogate", None, 0]),
    "an operation with the name of a word": lambda d: d["nodes"][2].__setitem__(1, "lambda"),
    "a result that is missing": lambda d: d["roots"].pop("distance"),
    "a constant that is missing": lambda d: d["constants"]["roots"].pop("k"),
    "a constant beyond the end": lambda d: d["constants"]["roots"].update(k=99),
    "a constant before the beginning": lambda d: d["constants"]["roots"].update(k=-1),
    "a constant's operand after it": lambda d: d["constants"]["nodes"].insert(0, ["add", 1, 2]),
    "an unknown operation of a constant": lambda d: d["constants"]["nodes"].__setitem__(0, ["system"]),
    "a number of a constant that is code": lambda d: d["constants"]["nodes"].__setitem__(0, ["number", "1+1"]),
    "a constant by zero": lambda d: d["constants"]["nodes"].__setitem__(
        d["constants"]["nodes"].index(["tau_s"]), ["number", "0x0p+0"]
    ),
    "a constant that is none": lambda d: d["constants"]["nodes"].__setitem__(0, ["number", "nan"]),
    "an integer of 5,000 digits": lambda d: d["constants"]["nodes"].__setitem__(0, ["integer", "9" * 5000]),
    "too many operations": lambda d: d["nodes"].extend([["constant", "0x0p+0"]] * 5000),
    "too many operations of constants": lambda d: d["constants"]["nodes"].extend([["batch"]] * 5000),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(kind: str) -> None:
    with pytest.raises(SpecError):
        _used(_changed(DAMAGE[kind]))


def _used(text: str) -> None:
    loss = from_text(text)
    loss_equations(loss)
    loss.distance(_trains((3, 2, 2)), _trains((3, 2, 2)), PSP(3))


def test_integers_that_grow_without_end_are_refused() -> None:
    data = json.loads(TEXT)
    squares = [["integer", "9"], *(["mul", i, i] for i in range(500))]
    data["constants"] = {"nodes": squares, "roots": dict.fromkeys(("k", "c", "scaled", "half"), 500)}
    with pytest.raises(SpecError, match="too large"):
        from_text(json.dumps(data)).constants(PSP(3), 5, 5)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_of_a_text_is_read_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TEXT) - 1))
    length = data.draw(st.integers(0, 3))
    put = data.draw(st.text(st.sampled_from('0123456789abmsuxp.-+",:[]{}e'), max_size=3))
    with contextlib.suppress(SpecError), np.errstate(all="ignore"):
        _used(TEXT[:at] + put + TEXT[at + length :])


@pytest.mark.parametrize("surrogate", [Steep(0.5), *(cls() for cls in SURROGATES.values())], ids=lambda s: str(s.name))
def test_a_surrogate_that_is_read_back_computes_the_same(surrogate: Surrogate) -> None:
    stored = StoredSurrogate(surrogate_text(surrogate))
    assert equation(stored) == equation(surrogate)
    assert stored.constants() == surrogate.constants()
    assert (stored.name, stored.compact, stored.exact) == (surrogate.name, surrogate.compact, surrogate.exact)
    assert str(stored) == stored.written() == surrogate.written()
    assert StoredSurrogate(surrogate_text(stored)) == stored
    one, two = (neuron_equations(PSP(3).filter(), LIF(surrogate=model)) for model in (surrogate, stored))
    assert (one.forward, one.backward, one.constants) == (two.forward, two.backward, two.constants)


@pytest.mark.parametrize(
    "neuron",
    [LIF(surrogate=StoredSurrogate(surrogate_text(Steep(0.5)))), neurons.from_text(neurons.as_text(ALIF(tau_a=9.0)))],
    ids=["surrogate", "neuron"],
)
def test_notation_of_what_has_no_name_of_its_own_is_read_back(neuron: NeuronModel) -> None:
    network = NetworkSpec.parse("8C3-P2-12", input_shape=(1, 8, 8), outputs=3, neuron=neuron)
    assert NetworkSpec.parse(network.notation, input_shape=(1, 8, 8), outputs=3, neuron=neuron) == network


@pytest.mark.parametrize("nodes", [False, True])
@pytest.mark.parametrize(
    "neuron",
    [ALIF(surrogate=StoredSurrogate(surrogate_text(Steep(0.5)))), neurons.from_text(neurons.as_text(ALIF(tau_a=9.0)))],
    ids=["surrogate", "neuron"],
)
def test_notation_of_mixed_neurons_is_read_back(neuron: NeuronModel, nodes: bool) -> None:
    network = NetworkSpec.parse("4{neuron=lif}", input_shape=(6,), outputs=3, neuron=neuron)
    if nodes:
        network = NetworkSpec((6,), nodes=network.graph.nodes[1:])
    assert [type(block.neuron) for block in network.blocks] == [LIF, type(neuron)]
    assert NetworkSpec.parse(network.notation, input_shape=(6,), neuron=neuron) == network


@pytest.mark.parametrize("notation", ["8{tau_s=2}", "8{tau_a=3}", "8{neuron=alif,beta=1}", "8{text=x}"])
def test_parameters_of_a_stored_neuron_do_not_change_in_notation(notation: str) -> None:
    neuron = neurons.from_text(neurons.as_text(ALIF(tau_a=9.0)))
    with pytest.raises(SpecError, match=r"cannot be changed in a network|unknown parameter 'text'"):
        NetworkSpec.parse(notation, input_shape=(4,), outputs=3, neuron=neuron)


def test_reproducible_precision_refuses_a_loss_that_uses_exp() -> None:
    @dataclass(frozen=True)
    class Exponential(Differing):
        def back(self, p: Names, s: Names, x: Names) -> LossStep:
            return LossStep({}, p.scale * exp(x.o - x.target))

    network = NetworkSpec.parse("8", input_shape=(4,), outputs=3)
    backend = NumpyBackend()
    backend.trainer(network, Exponential(), AdamW(), precision="fast")
    with pytest.raises(SpecError, match="the loss differing uses exp"):
        backend.trainer(network, Exponential(), AdamW(), precision="reproducible")


@dataclass(frozen=True)
class Ratio(Rates):
    """0/0 where a neuron has as many spikes as it should; in numpy, or as an expression."""

    def measure(self, p: Names, x: Names) -> Expr:
        return (x.o - x.target) / (x.count - x.target_count)


@dataclass(frozen=True)
class RatioInNumpy(Rates):
    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        return np.full(spikes.shape[1:-1], np.nan)


@pytest.mark.parametrize("loss", [Ratio(), from_text(as_text(Ratio())), RatioInNumpy()], ids=["class", "text", "numpy"])
def test_a_distance_that_is_not_finite_is_an_error(loss: Loss) -> None:
    o = _trains((9, 4, 6))
    with pytest.raises(NumericError, match=r"the loss rates (measures|gives) a distance that is not finite"):
        loss.mean(o, o, PSP(3))


@dataclass(frozen=True)
class Blind(Filtered):
    """Its pass ahead looks at nothing."""

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep:
        return LossStep({"r": p.k * s.r + p.c}, p.c * s.r)


def test_a_pass_that_reads_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="the loss filtered: a step of its forward pass reads neither"):
        loss_equations(Blind())


@dataclass(frozen=True)
class EachWay(Differing):
    """Constants with numbers on either side."""

    name: ClassVar[str] = "each-way"
    parameters: ClassVar[tuple[str, ...]] = ("a", "b", "c", "d", "e", "f", "g", "h", "scale")

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        tau = psp.tau_s
        one_side = {"a": 3 + tau, "b": 3 - tau, "c": 3 * tau, "d": 3 / tau}
        return one_side | {"e": steps + 3, "f": tau - 3, "g": batch * 3, "h": tau / 3, "scale": -tau}


def test_numbers_may_stand_on_either_side_of_an_operation_of_constants() -> None:
    constants = from_text(as_text(EachWay())).constants(PSP(1.5), 10, 7)
    expected = {"a": 4.5, "b": 1.5, "c": 4.5, "d": 2.0, "e": 13.0, "f": -1.5, "g": 21.0, "h": 0.5, "scale": -1.5}
    assert constants == expected


@pytest.mark.parametrize(
    "operands",
    [[], [0], [0, 1, 0], [0, -1], [-1, 0], [0, "here"], ["here", 0], [0, True], [0.0, 1], ["0", "1"]],
    ids=str,
)
def test_an_operation_of_constants_takes_two_that_stand_before_it(operands: list[Any]) -> None:
    data = json.loads(TEXT)
    place, (op, *_) = next((i, node) for i, node in enumerate(data["constants"]["nodes"]) if node[0] == "div")
    assert place >= 2
    data["constants"]["nodes"][place] = [op, *(place if x == "here" else x for x in operands)]
    with pytest.raises(SpecError, match=rf"operation {place} of its constants"):
        from_text(json.dumps(data))
