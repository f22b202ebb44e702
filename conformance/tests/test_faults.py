"""The suite tested itself: every injected fault fails it, and the reference without a fault does not."""

import json
from pathlib import Path

import pytest
from stsbp_conformance.faults import FAULTS, Fault, caught
from stsbp_spec.reference.backend import NumpyBackend


class Unchanged(NumpyBackend):
    """No fault."""


def test_there_are_at_least_25_faults() -> None:
    assert len(FAULTS) >= 25
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.description for fault in FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_fault_is_caught(fault: Fault) -> None:
    assert caught(fault.backend(), first=True)


def test_backend_without_a_fault_passes() -> None:
    assert caught(Unchanged()) == {}


def test_published_table_is_of_these_faults() -> None:
    table = json.loads((Path(__file__).parents[2] / "docs" / "conformance" / "faults.json").read_text(encoding="utf-8"))
    assert [(row["fault"], row["description"]) for row in table["faults"]] == [(f.name, f.description) for f in FAULTS]
    assert all(row["caught"] for row in table["faults"])
