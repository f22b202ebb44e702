"""The rule of decision of experiments/verdict.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[3] / "experiments" / "verdict.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="this is no checkout: it has no experiments")


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ((0, 0, 0), (0, 0, 0), "equivalent"),
        ((10, 10, 10), (5, 5, 5), "equivalent"),
        ((100, 120, 110), (20, 10, 20), "better"),
        ((20, 10, 20), (100, 120, 110), "worse"),
        ((300, 300, 90), (20, 20, 100), "undecided"),
        ((60, 40, 60), (45, 45, 35), "undecided"),
    ],
)
def test_verdicts(better: tuple[int, ...], worse: tuple[int, ...], word: str) -> None:
    spec = importlib.util.spec_from_file_location("verdict", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    differences = np.zeros((3, 10_000))
    for seed, (plus, minus) in enumerate(zip(better, worse, strict=True)):
        differences[seed, :plus], differences[seed, plus : plus + minus] = 1, -1
    d, half, verdict = script.verdict(differences)
    assert verdict == word, (d, half)
    assert d == pytest.approx(100 * (sum(better) - sum(worse)) / 30_000)
