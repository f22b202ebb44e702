"""The suite tested itself: every injected fault fails it, and the reference without a fault does not."""

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
