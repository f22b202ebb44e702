"""What need not be said, and the largest and smallest of what may be: changing one of these changes old commands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stsbp_spec.errors import ExactnessError, NetworkError, SpecError
from stsbp_spec.models.neurons import ALIF, IF, LIF, PLIF
from stsbp_spec.models.neurons.stored import as_text, from_text
from stsbp_spec.models.optim import AdamW
from stsbp_spec.models.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.networks.ops import PSP, Conv2d, Dropout, Linear
from stsbp_spec.networks.spec import NetworkSpec, SpikingLayer

DEFAULTS: dict[type, dict[str, object]] = {
    LIF: {
        "tau_m": 8, "tau_s": 4, "threshold": 1, "surrogate": Arctan(2), "reset": "zero", "tau_rise": 0,
        "psp_gain": "normalised",
    },
    IF: {"tau_s": 4, "threshold": 1, "surrogate": Arctan(2), "reset": "zero", "tau_rise": 0, "psp_gain": "normalised"},
    ALIF: {
        "tau_m": 8, "tau_s": 4, "threshold": 1, "surrogate": Arctan(2), "reset": "zero", "tau_rise": 0, "tau_a": 20,
        "beta": 1.6, "psp_gain": "normalised",
    },
    PLIF: {
        "tau_m": 8, "tau_s": 4, "threshold": 1, "surrogate": Arctan(2), "reset": "zero", "tau_rise": 0, "per": "layer",
        "psp_gain": "normalised",
    },
    PSP: {"tau_s": 4, "tau_rise": 0, "gain": "normalised"},
    Arctan: {"alpha": 2},
    FastSigmoid: {"beta": 2},
    Logistic: {"width": 0.25},
    Rectangle: {"width": 1},
    Triangle: {"width": 1},
    AdamW: {},
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: str(kind.__name__))
def test_what_is_not_said(kind: type) -> None:
    values = vars(kind())
    assert {name: values[name] for name in DEFAULTS[kind]} == DEFAULTS[kind]


def test_operations() -> None:
    assert Conv2d(3, 5) == Conv2d(3, 5, stride=1, padding=0, weight_bits=12)
    assert Linear(3) == Linear(3, weight_bits=12)
    assert SpikingLayer(Linear(3)) == SpikingLayer(Linear(3), LIF())


def test_a_surrogate_has_wide_support_unless_it_says_so() -> None:
    assert [kind.compact for kind in (Surrogate, Arctan, FastSigmoid, Logistic)] == [False] * 4
    assert [kind.compact for kind in (Rectangle, Triangle)] == [True] * 2


def test_the_surrogate_of_a_stored_neuron_that_says_nothing_of_its_support_has_a_wide_one() -> None:
    data = json.loads(as_text(LIF(surrogate=Triangle())))
    assert from_text(json.dumps(data)).surrogate.compact
    del data["surrogate"]["compact"]
    assert not from_text(json.dumps(data)).surrogate.compact


def test_event_counts_up_to_255() -> None:
    network = NetworkSpec.parse("4", input_shape=(3,), outputs=2, input_max=255)
    assert network.blocks[0].input.maximum == 255
    assert "input: events 3, values up to 255\n" in repr(network)
    assert "input: events 3, values up to 2\n" in repr(NetworkSpec.parse("4", input_shape=(3,), outputs=2, input_max=2))
    assert "input: events 3\n" in repr(NetworkSpec.parse("4", input_shape=(3,), outputs=2))
    with pytest.raises(SpecError, match="input_max is an event count from 1 to 255"):
        NetworkSpec.parse("4", input_shape=(3,), outputs=2, input_max=256)


def test_inputs_of_up_to_nine_digits() -> None:
    for shape in ((10**9 - 1,), (1, 10**9 - 1, 1)):
        with pytest.raises(ExactnessError):
            NetworkSpec.parse("4", input_shape=shape, outputs=2)
    with pytest.raises(SpecError, match="an input shape is"):
        NetworkSpec.parse("4", input_shape=(10**9,), outputs=2)


def test_as_many_layers_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp_spec.networks.spec.MAX_LAYERS", 3)
    assert len(NetworkSpec((3,), (SpikingLayer(Linear(2)),) * 3).layers) == 3
    with pytest.raises(NetworkError, match=r"^a network has at most 3 layers, got 4"):
        NetworkSpec((3,), (SpikingLayer(Linear(2)),) * 4)


def test_sums_that_cannot_be_exact_are_told_with_what_they_are_of() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, r"sums of 16781312 spikes \(0 or 1\)"),
        ({"input_max": 2}, "inputs with 1-bit values"),  # one bit is no spike
        ({"coding": "direct"}, "inputs with 8-bit values"),
    )
    for options, message in cases:
        with pytest.raises(ExactnessError, match=message):
            NetworkSpec.parse("4", input_shape=(1, 4097, 4096), outputs=2, **options)


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    network = NetworkSpec((2, 9, 9), (SpikingLayer(Conv2d(12, 3)), Dropout(0.25), SpikingLayer(Linear(10))))
    rows = network.table().split("\n")
    at = rows[0].index("output")
    assert all(row[at - 2 : at] == "  " for row in rows)
    assert [row[at:].split()[0] for row in rows[1:5]] == ["2x9x9", "12x7x7", "12x7x7", "10"]
