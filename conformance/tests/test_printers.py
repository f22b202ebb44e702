"""The printer of every backend, spoilt in one way: the suite sees it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from stsbp_conformance.printers import PRINTERS, RULES
from stsbp_spec.registry import installed_backends


def test_every_backend_of_this_project_that_prints_for_itself_is_tried() -> None:
    assert set(PRINTERS) == {"torch", "jax", "cupy"}
    assert RULES == ("PrinterFuses", "PrinterDropsASnap", "PrinterSwapsOperands")


def _pairs() -> Iterator[Any]:
    """Every backend with every wrong rule; one rule for each backend is quick, and together they are all rules."""
    for i, backend in enumerate(PRINTERS):
        for j, rule in enumerate(RULES):
            marks = () if i % len(RULES) == j else (pytest.mark.long,)
            yield pytest.param(backend, rule, id=f"{backend}-{rule}", marks=marks)


@pytest.mark.parametrize(("backend", "rule"), [*_pairs()])
def test_what_is_printed_wrongly_is_seen(backend: str, rule: str) -> None:
    if backend not in installed_backends():
        pytest.skip(f"the backend {backend} is not installed")
    command = [sys.executable, "-m", "stsbp_conformance.printers", backend, rule]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "values differ" in run.stdout
