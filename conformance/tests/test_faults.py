"""The suite tested itself: every injected fault fails it; without one, the reference is a backend of test_suite.py."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from stsbp_conformance.cases import EXACT_LOSSES
from stsbp_conformance.check import Unavailable
from stsbp_conformance.faults import FAULTS, Fault, caught_by, quick_checks
from stsbp_conformance.tiers import elementwise, pairs
from stsbp_spec.engine.plan import rule_of
from stsbp_spec.engine.rules import Rule
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.models.losses import Loss
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.graph import Op
from stsbp_spec.networks.ops import MERGES, Add, AvgPool2d, Concat, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Coding, UInt8

_KINDS: dict[type[Op], str] = {
    Linear: "linear",
    AvgPool2d: "pooling",
    MaxPool2d: "max pooling",
    Upsample2d: "upsampling",
    Flatten: "flattening",
    Add: "sum",
    Concat: "concatenation",
}


class Recorder(NumpyBackend):
    """No fault; keeps what each tier had it compute, as pairs of tier and feature."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        self.tier, self.seen = 0, set[tuple[int, str]]()

    def _saw(self, *features: str) -> None:
        self.seen.update((self.tier, feature) for feature in features)

    @property
    def rules(self) -> Mapping[type[Op], Rule[AnyArray]]:
        rules = dict(super().rules)
        rules.update((kind, rule_of(NumpyBackend(), kind())) for kind in MERGES.values())
        return {op: replace(rule, forward=partial(self._forward, rule)) for op, rule in rules.items()}

    def _forward(self, rule: Rule[AnyArray], op: Op, *inputs: AnyArray) -> Any:
        self._saw(f"convolution, stride {min(*op.strides, 2)}" if isinstance(op, Conv2d) else _KINDS[type(op)])
        return rule.forward(op, *inputs)

    def encode(self, inputs: UInt8, coding: Coding) -> AnyArray:
        self._saw(coding)
        return super().encode(inputs, coding)

    def dropout_mask(self, *arguments: Any, **options: Any) -> AnyArray:
        self._saw("dropout")
        return super().dropout_mask(*arguments, **options)

    def population_forward(self, equations: NeuronEquations, *arguments: Any) -> Any:
        self._saw(equations.neuron.surrogate.name)
        return super().population_forward(equations, *arguments)

    def delay_gradient(self, *arguments: AnyArray) -> AnyArray:
        self._saw("learned delays")
        return super().delay_gradient(*arguments)

    def loss_error(self, loss: Loss, *arguments: Any) -> Any:
        self._saw(loss.name)
        return super().loss_error(loss, *arguments)

    def trainer(self, *arguments: Any, **options: Any) -> Trainer:
        self._saw(f"memory {options.get('memory', 'full')}", options.get("precision", "fast"))
        return super().trainer(*arguments, **options)


def test_there_are_at_least_25_faults() -> None:
    assert len(FAULTS) >= 25
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.description for fault in FAULTS)


@cache
def _published() -> Any:
    return json.loads((Path(__file__).parents[2] / "docs" / "conformance" / "faults.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_fault_is_caught(fault: Fault) -> None:
    """By the check that caught it first when the published table was made."""
    (name,) = (row["first"] for row in _published()["faults"] if row["fault"] == fault.name)
    assert caught_by(fault.backend(), name)


def test_the_quick_checks_leave_nothing_out() -> None:
    backend = Recorder()
    layers = {"convolution, stride 1", "convolution, stride 2", "linear", "pooling", "events", "direct"}
    passing = {"max pooling", "upsampling", "flattening", "sum", "concatenation"}
    exact = {name for name, surrogate in SURROGATES.items() if surrogate().exact}
    expected = {
        1: {*layers, *passing, *EXACT_LOSSES, "learned delays"},
        2: {*layers, *passing},
        3: {*layers, *passing, *EXACT_LOSSES, *SURROGATES, "learned delays"},
        4: {
            *(*layers, *passing, *EXACT_LOSSES, *exact),
            *("dropout", "learned delays", "memory full", "memory low", "reproducible"),
        },
        # Its checks of synapses, pooling and dropout are all quick, and too small to be less.
        5: {*EXACT_LOSSES, *SURROGATES, "learned delays"},
        6: {*layers, *EXACT_LOSSES, "dropout", "fast", "learned delays", "reproducible"},
        8: {"mse", "learned delays", "convolution, stride 1", "linear", "pooling", "events", "dropout", "reproducible"},
        7: {"drift", "twice-hamming", "parabola", "twice-triangle"},
    }
    missing = {tier: set(features) for tier, features in expected.items()}
    for check in quick_checks():
        if not missing[check.tier]:  # the others of the tier, numpy passes as a backend of the suite
            continue
        backend.tier = check.tier
        with contextlib.suppress(Unavailable):  # processes, which open a backend by its name
            check.run(backend)
        missing[check.tier] -= {feature for tier, feature in backend.seen if tier == check.tier}
    assert not any(missing.values()), missing
    assert all(check.quick for check in (*pairs.CHECKS, *elementwise.CHECKS))


def test_published_table_is_of_these_faults() -> None:
    table = _published()
    assert [(row["fault"], row["description"]) for row in table["faults"]] == [(f.name, f.description) for f in FAULTS]
    assert all(row["caught"] for row in table["faults"])
