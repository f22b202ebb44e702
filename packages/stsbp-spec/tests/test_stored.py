"""Neuron models as text: what is read back computes the same, and damage is refused."""

from __future__ import annotations

import contextlib
import inspect
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.printers import LANGUAGES, function
from stsbp_spec.errors import SpecError
from stsbp_spec.models.neurons import ALIF, IF, LIF, NeuronModel
from stsbp_spec.models.neurons.stored import StoredNeuron, as_text, from_text
from stsbp_spec.models.surrogates import Logistic, Rectangle, Triangle
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend

MODELS: list[NeuronModel] = [
    LIF(3, 2, 0.7),
    LIF(reset="subtract", surrogate=Rectangle(0.3)),
    IF(surrogate=Logistic()),
    ALIF(surrogate=Triangle(0.4)),
    ALIF(reset="subtract"),
]
TEXT = as_text(ALIF())


@pytest.mark.parametrize("neuron", MODELS, ids=repr)
def test_what_is_read_back_computes_the_same(neuron: NeuronModel) -> None:
    stored = from_text(as_text(neuron))
    filter = PSP(3).filter()
    one, two = neuron_equations(filter, neuron), neuron_equations(filter, stored)
    assert (one.forward, one.backward, one.kept) == (two.forward, two.backward, two.kept)
    assert (one.constants, one.unrounded) == (two.constants, two.unrounded)
    assert (stored.tau_s, stored.threshold) == (neuron.tau_s, neuron.threshold)
    assert stored.surrogate.exact == neuron.surrogate.exact
    assert as_text(stored) == as_text(neuron)
    assert stored == from_text(as_text(neuron))
    assert hash(stored) == hash(from_text(as_text(neuron)))
    assert repr(stored).startswith(f"{neuron.name}(")


def _changed(change: Any) -> str:
    data = json.loads(TEXT)
    change(data)
    return json.dumps(data)


DAMAGE: dict[str, Any] = {
    "no text": lambda d: d.clear(),
    "another format": lambda d: d.update(format=2),
    "a name that is code": lambda d: d.update(name="__import__('os')"),
    "a state that is none": lambda d: d["states"].append("b"),
    "a constant that is none": lambda d: d["constants"].update(km="nan"),
    "a constant that is missing": lambda d: d["constants"].pop("km"),
    "an operand after the operation": lambda d: d["nodes"][3].__setitem__(2, 40),
    "an operand that is no number": lambda d: d["nodes"][3].__setitem__(2, "0"),
    "an operation that is unknown": lambda d: d["nodes"][3].__setitem__(0, "system"),
    "an operand too many": lambda d: d["nodes"][3].append(0),
    "a variable that is code": lambda d: d["nodes"][0].__setitem__(1, "s.m); import os; ("),
    "a name of a node that is code": lambda d: next(n for n in d["nodes"] if n[1] == "u").__setitem__(1, "u = 1"),
    "a spike that is a number": lambda d: d["roots"].update(spike=d["roots"]["u"]),
    "a potential that is a condition": lambda d: d["roots"].update(u=d["roots"]["spike"]),
    "a result that is missing": lambda d: d["roots"].pop("u"),
    "a result beyond the end": lambda d: d["roots"].update(u=9999),
    "a time constant below one": lambda d: d.update(tau_s=(0.5).hex()),
    "no threshold": lambda d: d.update(threshold=(0.0).hex()),
    "too many operations": lambda d: d["nodes"].extend([["constant", "0x0p+0"]] * 5000),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(kind: str) -> None:
    with pytest.raises(SpecError):
        neuron_equations(PSP().filter(), from_text(_changed(DAMAGE[kind])))


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", "[" * 5000, "x" * 2**19])
def test_what_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        from_text(text)


def _grown(nodes: int) -> str:
    return _changed(lambda d: d["nodes"].extend([["constant", "0x0p+0"]] * (nodes - len(d["nodes"]))))


@pytest.mark.parametrize(
    ("largest", "more", "message"),
    [
        (TEXT.ljust(2**18), TEXT.ljust(2**18 + 1), "at most 262,144 characters, got 262,145"),
        (_grown(4096), _grown(4097), "^a neuron model has at most 4,096 operations, got 4,097$"),
        *(
            (_changed(lambda d, x=x: d["constants"].update(km=x.hex())), _changed(lambda d, x=x: d["constants"].update(
                km=(x * (1 + 2.0**-30)).hex())), "is not finite in float32")
            for x in (float(np.finfo(np.float32).max), -float(np.finfo(np.float32).max))
        ),
    ],
    ids=["characters", "operations", "largest number", "smallest number"],
)  # fmt: skip
def test_what_fits_just_so_is_read_and_the_next_is_refused(largest: str, more: str, message: str) -> None:
    assert from_text(largest).states == ALIF.states
    with pytest.raises(SpecError, match=message):
        from_text(more)


def test_a_refusal_is_not_called_damage() -> None:
    with pytest.raises(SpecError, match=r"^a neuron model of format 2; this version reads 1$"):
        from_text(_changed(DAMAGE["another format"]))


def test_damage_is_named() -> None:
    def counted_with(d: dict[str, Any]) -> None:
        d["nodes"].append(["neg", None, d["roots"]["spike"]])
        d["roots"]["u"] = len(d["nodes"]) - 1

    with pytest.raises(SpecError, match="reads a condition in place of a number"):
        from_text(_changed(counted_with))
    with pytest.raises(SpecError, match="its results do not match its states"):
        from_text(_changed(lambda d: d["roots"].update(u=len(d["nodes"]))))


def test_a_stored_model_is_its_text() -> None:
    """Everything else comes from the text, and what a file says of its parameters is cut to what people read."""
    assert [*inspect.signature(StoredNeuron).parameters] == ["text"]
    long = from_text(_changed(lambda d: d["parameters"].update(beta="1" * 1000)))
    assert long.written()["beta"] == "1" * 100


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_a_text_is_read_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TEXT) - 1))
    length = data.draw(st.integers(0, 3))
    put = data.draw(st.text(st.sampled_from('0123456789abmsuxp.-+",:[]{}e'), max_size=3))
    with contextlib.suppress(SpecError):
        neuron_equations(PSP().filter(), from_text(TEXT[:at] + put + TEXT[at + length :]))


# As many as a step and its way back may have.
@pytest.mark.parametrize(("op", "count"), [("neg", 600), ("mul", 120), ("div", 80), ("named", 300)])
def test_hundreds_of_operations_within_each_other_are_read_printed_and_run(op: str, count: int) -> None:
    def nest(d: dict[str, Any]) -> None:
        nodes = d["nodes"]
        first = last = next(place for place, node in enumerate(nodes) if node[1] == "i")
        for number in range(count):
            name = f"n{number}" if op == "named" else None
            nodes.append(["neg", None, last] if op == "neg" else ["add" if op == "named" else op, name, first, last])
            last = len(nodes) - 1
        d["roots"]["s.a"] = last

    both = neuron_equations(PSP().filter(), from_text(_changed(nest)))
    for language in ("jax", "numba", "triton", "torch", "numpy"):
        for step in (both.forward, both.backward):
            compile(function(step, LANGUAGES[language]), language, "exec")
    backend, z = NumpyBackend(), np.ones((2, 1, 3), np.float32)
    _, residuals = backend.neuron_forward(from_text(_changed(nest)), PSP().filter(), z, 2)
    assert backend.neuron_backward(from_text(_changed(nest)), PSP().filter(), residuals, z)[0].shape == z.shape


def test_values_to_keep_are_found_among_hundreds_with_a_name() -> None:
    def nest(d: dict[str, Any]) -> None:
        nodes = d["nodes"]
        last = next(place for place, node in enumerate(nodes) if node[1] == "i")
        for number in range(150):
            nodes.append(["mul", f"n{number}", last, last])
            last = len(nodes) - 1
        d["roots"]["s.a"] = last

    neuron, filter = from_text(_changed(nest)), PSP().filter()
    assert len(neuron_equations(filter, neuron).kept) > 100
    z = np.full((2, 1, 3), 0.25, np.float32)
    _, residuals = NumpyBackend().neuron_forward(neuron, filter, z, 2)
    assert NumpyBackend().neuron_backward(neuron, filter, residuals, z)[0].shape == z.shape


@pytest.mark.parametrize("name", ["lambda", "snap", "where", "float32"])
def test_a_value_is_not_named_like_a_word_of_a_language(name: str) -> None:
    with pytest.raises(SpecError):
        from_text(_changed(lambda d: next(n for n in d["nodes"] if n[1] == "u").__setitem__(1, name)))


def test_the_gain_of_a_stored_models_synapse_is_kept_and_older_texts_are_as_they_were() -> None:
    assert "psp_gain" not in as_text(LIF(3, 2))
    stored = from_text(as_text(LIF(3, 2, psp_gain="unit")))
    assert stored.psp == PSP(2, gain="unit")
    assert stored.written()["psp_gain"] == "unit"
