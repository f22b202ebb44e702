"""The suite as pytest tests. Authors of backends write one line: `from stsbp_conformance.suite import *`.

`pytest --backend NAME --device D` chooses what is tested. The fixture `run_check` comes from the package's plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from stsbp_conformance.check import Check
from stsbp_conformance.tiers import (
    bits,
    elementwise,
    errors,
    expressions,
    gradients,
    neurons,
    pairs,
    parts,
    rational,
    reproducible,
    trainer,
)

__all__ = [
    "test_tier1_rational",
    "test_tier2_bits",
    "test_tier3_fast_gradients",
    "test_tier4_reproducible",
    "test_tier5_pairs",
    "test_tier6_trainer",
    "test_tier7_errors",
    "test_tier8_parts",
]

Run: TypeAlias = Callable[[Check], None]


def _cases(checks: tuple[Check, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", checks, ids=[check.id for check in checks])


@_cases(rational.CHECKS)
def test_tier1_rational(check: Check, run_check: Run) -> None:
    """Spikes, potentials and gradients against exact fractions, tolerance zero."""
    run_check(check)


@_cases(bits.CHECKS)
def test_tier2_bits(check: Check, run_check: Run) -> None:
    """Spikes and membrane potentials of whole networks, bit for bit."""
    run_check(check)


@_cases(gradients.CHECKS)
def test_tier3_fast_gradients(check: Check, run_check: Run) -> None:
    """Gradients in `fast` precision against float64, within the bound."""
    run_check(check)


@_cases(reproducible.CHECKS)
def test_tier4_reproducible(check: Check, run_check: Run) -> None:
    """Gradients and updates in `reproducible` precision, bit for bit."""
    run_check(check)


@_cases((*pairs.CHECKS, *elementwise.CHECKS, *expressions.CHECKS, *neurons.CHECKS))
def test_tier5_pairs(check: Check, run_check: Run) -> None:
    """Each operation's forward and backward pair alone."""
    run_check(check)


@_cases(trainer.CHECKS)
def test_tier6_trainer(check: Check, run_check: Run) -> None:
    """Metrics, checkpoints, and resuming on another backend."""
    run_check(check)


@_cases(errors.CHECKS)
def test_tier7_errors(check: Check, run_check: Run) -> None:
    """Invalid arguments are refused."""
    run_check(check)


@_cases(parts.CHECKS)
def test_tier8_parts(check: Check, run_check: Run) -> None:
    """Micro-batches and several processes give the same bits as the whole batch."""
    run_check(check)
