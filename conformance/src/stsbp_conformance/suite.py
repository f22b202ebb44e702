"""The suite as pytest tests. A backend's author writes one line: `from stsbp_conformance.suite import *`.

`pytest --backend NAME --device D` chooses what is tested; the fixture `run_check` comes from the package's plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from stsbp_conformance.check import Check
from stsbp_conformance.tiers import bits, reproducible

__all__ = ["test_tier2_bits", "test_tier4_reproducible"]

Run: TypeAlias = Callable[[Check], None]


def _cases(checks: tuple[Check, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", checks, ids=[check.id for check in checks])


@_cases(bits.CHECKS)
def test_tier2_bits(check: Check, run_check: Run) -> None:
    """Spikes and membrane potentials, bit for bit."""
    run_check(check)


@_cases(reproducible.CHECKS)
def test_tier4_reproducible(check: Check, run_check: Run) -> None:
    """Gradients and updates in `reproducible` precision, bit for bit."""
    run_check(check)
