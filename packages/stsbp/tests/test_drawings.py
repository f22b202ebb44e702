"""What a report draws, as text: a change of a drawing is seen as a change of these files.

python packages/stsbp/tests/test_drawings.py        writes them again
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stsbp.report import svg
from stsbp_spec.typing import Float32, Int64, UInt8

FILES = Path(__file__).parent / "drawings"


def _spikes(steps: int, n: int, seed: int = 0) -> UInt8:
    return (np.random.default_rng(seed).random((steps, n)) < 0.2).astype(np.uint8)


def _counts(k: int) -> Int64:
    counts: Int64 = np.random.default_rng(1).integers(0, 5, (k, k)) + 40 * np.eye(k, dtype=np.int64)
    counts[1] = 0
    return counts


def _potentials(steps: int, n: int) -> Float32:
    return np.random.default_rng(2).normal(0.3, 0.6, (steps, n)).cumsum(axis=0).astype(np.float32)


def _curve(name: str, n: int, scale: float, first: int = 1) -> svg.Series:
    return svg.Series(name, list(range(first, first + n)), [scale / (1 + i) for i in range(n)])


DRAWINGS: dict[str, Callable[[], str]] = {
    "accuracy": lambda: svg.lines(
        "accuracy & loss", "epoch", [_curve("train", 6, 0.9), _curve("<test>", 4, 0.7, 2)], percent=True, floor=0.1
    ),
    "negative": lambda: svg.lines("logs", "update", [_curve("log", 45, -2.5, 100_000)], zero=False),
    "one-point": lambda: svg.lines("loss", "epoch", [svg.Series("loss", [3], [0.25])]),
    "legend": lambda: svg.legend([_curve("train", 1, 1), _curve("<test>", 1, 1)]),
    "matrix-digits": lambda: svg.matrix(_counts(6), list("012345")),
    "matrix-slanted": lambda: svg.matrix(_counts(4), ["left", "right", "a name that is too long", "d"]),
    "raster": lambda: svg.raster(_spikes(12, 5), _spikes(12, 5, 1), list("abcde"), [2]),
    "raster-many": lambda: svg.raster(_spikes(12, 40), _spikes(12, 40, 1), [str(i) for i in range(40)]),
    "inputs": lambda: svg.spikes(_spikes(9, 30)),
    "traces": lambda: svg.traces(
        _potentials(10, 3), _spikes(10, 3), 1.0, ["one", "2", "three"], [f"var(--c{i})" for i in range(3)]
    ),
    "bars": lambda: svg.bars(np.array([3.0, 0.5, 1.25, 0.0]), ["a", "bb", "ccc", "d"], [3], [1]),
    "bars-shares": lambda: svg.bars(np.array([0.25, 0.5]), ["a", "<b>"], [0, 1], label="F1", percent=True, largest=1.0),
    "histogram": lambda: svg.histogram("errors", "steps", range(-2, 3), [0, 0.1, 0.6, 0.3, 0], [0.2] * 5),
    "histogram-wide": lambda: svg.histogram("errors", "steps", range(-20, 21), [1 / 41] * 41),
    "bars-many": lambda: svg.bars(np.arange(40.0), [str(i) for i in range(40)], [0], [7, 8]),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_drawn_as_before(name: str) -> None:
    stored = (FILES / f"{name}.html").read_text(encoding="utf-8")
    drawn = str(DRAWINGS[name]()).replace("><", ">\n<") + "\n"
    assert drawn == stored, f"to write the files again: python {Path(__file__).name}"


def test_every_drawing_is_there() -> None:
    assert {path.stem for path in FILES.iterdir()} == set(DRAWINGS)


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FILES / f"{name}.html").write_text(str(draw()).replace("><", ">\n<") + "\n", encoding="utf-8")
