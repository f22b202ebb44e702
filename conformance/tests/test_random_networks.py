"""Random networks: every backend computes a few of them like the reference, and the comparison finds faults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import pytest
from stsbp_conformance import compare_networks
from stsbp_conformance.compare_networks import CHECKS, Reference, compare, computable, first_difference, main, shrunk
from stsbp_conformance.faults import FAULTS
from stsbp_conformance.random_networks import FEATURES, RandomCase, features, random_case, smaller
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.results import RunResult
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import SURROGATES, Arctan
from stsbp_spec.networks.nodes import is_nodes
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Coding, Float32, Shape, UInt8

SEED = 1
NUMBERS = (30, 0, 37, 11, 29, 19, 28)
"""Small networks that together contain nearly every feature."""


def _surrogates(case: RandomCase) -> set[str]:
    return {block.neuron.surrogate.name for block in case.network.blocks}


@dataclass(frozen=True)
class Later(Arctan):
    """A surrogate that the spec gets later."""

    name: ClassVar[str] = "later"


def test_networks_have_every_surrogate_of_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = range(60)
    before = [_surrogates(random_case(SEED, number, lively=False)) for number in numbers]
    assert set().union(*before) == set(SURROGATES)
    monkeypatch.setitem(SURROGATES, "later", Later)
    assert "later" in set().union(*(_surrogates(random_case(SEED, number, lively=False)) for number in numbers))


READERS = "\n".join(
    f'[[node]]\nname = "{name}"\n{fields}\nfrom = {json.dumps(sources)}'
    for name, fields, sources in (
        ("w1", 'weights = "8"', ["input"]),
        ("n1", 'neurons = ""', ["w1"]),
        ("a", 'weights = "5"', ["n1"]),
        ("b", 'weights = "5"', ["n1"]),
        ("c", 'weights = "5"', ["n1"]),
        ("nb", 'neurons = ""', ["b"]),
        ("nc", 'neurons = ""', ["c"]),
        ("na", 'neurons = ""', ["a"]),
        ("sum", "add = true", ["na", "nb", "nc"]),
        ("w2", 'weights = "3"', ["sum"]),
        ("n2", 'neurons = ""', ["w2"]),
    )
)
"""Three nodes read `n1`. The populations after them follow in another order: a backend may compute both together."""


def _written(
    notation: str, shape: Shape, steps: int, batch: int, coding: Coding = "events", lengths: Sequence[int] | None = None
) -> RandomCase:
    network = NetworkSpec.parse(
        notation,
        input_shape=shape,
        outputs=None if is_nodes(notation) else 3,
        coding=coding,
        neuron=LIF(3, 5 / 3, 0.3),
        weight_bits=12,
    )
    padded = None if lengths is None else tuple(lengths)
    return RandomCase(notation, network, steps, batch, gain=3.0, density=0.4, lengths=padded)


CORNERS = (
    _written("6C2s1x2-9", (1, 8, 3), 4, 3),
    _written("3C3x1", (2, 4, 4), 1, 1),
    _written("3C2bn-5", (2, 4, 3), 3, 3, "direct", (3, 1, 2)),
    _written(READERS, (6,), 5, 4),
)
"""Shapes for which libraries had special cases that were wrong; padded samples after images that are normalised; and
readers of a population whose own populations have another order."""


@cache
def _expected(number: int) -> Reference:
    return Reference(random_case(SEED, number))


def test_a_backend_computes_networks_like_the_reference(stsbp_backend: AbstractBackend) -> None:
    # JAX compiles each network for seconds.
    numbers = NUMBERS[:1] if stsbp_backend.name == "jax" else NUMBERS
    for reference in (*map(Reference, CORNERS), *map(_expected, numbers)):
        assert computable(reference)
        difference = first_difference(stsbp_backend.name, stsbp_backend, reference)
        assert difference is None, str(difference)


def test_networks_have_every_feature() -> None:
    feature_sets = [features(random_case(SEED, number, lively=False)) for number in range(60)]
    assert frozenset.union(*feature_sets) == FEATURES


def test_a_network_is_drawn_again() -> None:
    case = random_case(3, 8)
    assert random_case(3, 8) == case
    assert {random_case(3, number).network for number in range(9, 12)}.isdisjoint({case.network})
    assert case.id == "3:8"
    assert case.network.notation in str(case)


@pytest.mark.parametrize(
    "name",
    [
        "FusedMembrane",
        "FusedAdjoint",
        "FusedAdamW",
        "RecurrenceStepLate",
        "DelayStepLonger",
        "BranchesConcatenatedFromTheLast",
        "ErrorsOfOtherChannels",
        "LateErrorMovedLater",
        "DelaySlopeStepLate",
    ],
)
def test_a_fault_is_found(name: str) -> None:
    """Within the first networks, and not without the fault."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    backend = fault.backend()
    differences = (first_difference(name, backend, _expected(number)) for number in NUMBERS)
    difference = next(filter(None, differences))
    assert first_difference("numpy", NumpyBackend(), Reference(difference.case)) is None


class _Stumbles(NumpyBackend):
    """Raises an error for samples that are computed alone."""

    def run(self, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int) -> RunResult:
        if inputs.shape[int(network.coding == "events")] == 1:
            raise RuntimeError("a view is not compatible")
        return super().run(network, weights, inputs, steps)


def test_an_error_is_a_difference_and_names_the_comparison() -> None:
    reference = Reference(CORNERS[0])
    difference = first_difference("stumbles", _Stumbles(), reference)
    assert difference is not None
    assert difference.message == "a sample alone: RuntimeError: a view is not compatible"
    compare(_Stumbles(), reference, [name for name in CHECKS if name != "a sample alone"])


def test_a_network_is_made_smaller_as_long_as_it_differs() -> None:
    reference = Reference(_written("6C2p1-P2-D0.2-9b-7", (1, 5, 4), 4, 3, "events", (4, 2, 3)))
    difference = first_difference("stumbles", _Stumbles(), reference)
    assert difference is not None
    case = shrunk(difference, _Stumbles()).case
    assert (case.steps, case.batch, case.lengths, case.updates) == (1, 1, None, 0)
    assert len(case.network.layers) == 1
    assert all(other.steps <= 4 and other.batch <= 3 for other in smaller(reference.case))


def test_the_command_replays_a_network_and_says_what_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["numpy", "--replay", "1:30"]) == 0
    printed = capsys.readouterr().out
    assert random_case(1, 30).network.notation in printed
    assert "1 networks, 0 left out, 0 differences" in printed
    monkeypatch.setattr(compare_networks, "open_usable", lambda cls, device: _Stumbles())
    assert main(["numpy", "--count", "2", "--first", "29"]) == 1
    printed = capsys.readouterr().out
    assert "2 of 2" in printed
    assert "a view is not compatible" in printed
    assert "--replay 1:" in printed
    assert main(["nothing", "--count", "1"]) == 2
    assert "no backend 'nothing' is installed" in capsys.readouterr().err
