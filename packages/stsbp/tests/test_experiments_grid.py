"""`experiments/grid.py`: which networks are trained, what is skipped, and the numbers of the table."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from stsbp.errors import ConfigError

SCRIPT = Path(__file__).parents[3] / "experiments" / "grid.py"
OPTIONS = ("--steps", "3", "--epochs", "1", "--batch-size", "20", "--limit", "50", "--holdout", "30")


@pytest.fixture(scope="module")
def grid() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("grid_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its classes look for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the script has started, which run as usual."""
    started: list[list[str]] = []
    run: Callable[..., Any] = subprocess.run

    def recorded(words: list[str], **rest: Any) -> Any:
        if "experiment" in words:
            started.append(words)
        return run(words, **rest)

    monkeypatch.setattr(subprocess, "run", recorded)
    return started


def test_half_width_is_that_of_students_t(grid: ModuleType) -> None:
    # The standard deviation of 1, 2, 3 is 1; the quantile for two degrees of freedom is 4.303.
    assert grid.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3), rel=1e-12)
    assert grid.half_width([5.0, 7.0]) == pytest.approx(12.706, rel=1e-12)
    assert grid.half_width([4.0]) is None
    with pytest.raises(IndexError):
        grid.half_width([0.0] * (grid.MOST_SEEDS + 1))


@pytest.mark.parametrize("wanted", [1, 13, 14, 20, 21, 22, 1000, 40_000])
def test_nearest_width_is_the_best_of_all(grid: ModuleType, wanted: int) -> None:
    def parameters(width: int) -> int:
        return 12 * width + width * width

    expected = min(range(1, 3000), key=lambda width: (abs(parameters(width) - wanted), width))
    assert grid.nearest_width(parameters, wanted) == expected


def test_nearest_width_has_a_limit(grid: ModuleType) -> None:
    with pytest.raises(ConfigError, match="16,384 neurons have fewer than 20,000 parameters"):
        grid.nearest_width(lambda width: width, 20_000)


def test_pairs_have_folders_of_their_own(grid: ModuleType) -> None:
    pairs = [grid.Pair(*pair) for pair in (("9R", "lif"), ("9-R", "lif"), ("9{delay=3}", "lif"), ("9-delay=3", "lif"))]
    assert len({pair.folder for pair in pairs}) == 4
    assert all("/" not in pair.folder and "{" not in pair.folder for pair in pairs)


def test_grid_trains_with_equal_parameters_and_repeats_nothing(
    grid: ModuleType, commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["digits", "--nets", "{width}", "{width}R", "--parameters", "1500", "--backend", "numpy"]
    words += ["--out", str(tmp_path / "g")]
    grid.main([*words, "--seeds", "1", "--", *OPTIONS])
    document = json.loads((tmp_path / "g" / "grid.json").read_text())
    # The digits have 64 pixels and ten classes, without bias: 64 w + 10 w, and w^2 more with recurrence.
    for row, width in zip(document["rows"], (20, 17), strict=True):
        recurrent = row["net"].endswith("R")
        assert row["net"] == f"{width}{'R' * recurrent}"
        assert row["parameters"] == 74 * width + width * width * recurrent
        assert row["half_width"] is None
        assert row["seeds"] == [0]
        assert row["epochs"] == 1
        assert row["validation_mean"] is not None
    assert len(commands) == 2

    # Again: nothing is trained, and the table is the same.
    table = (tmp_path / "g" / "grid.md").read_text()
    grid.main([*words, "--seeds", "1", "--", *OPTIONS])
    assert len(commands) == 2
    assert (tmp_path / "g" / "grid.md").read_text() == table

    # A second seed is added to the first, whose result stays.
    grid.main([*words, "--seeds", "2", "--", *OPTIONS])
    more = json.loads((tmp_path / "g" / "grid.json").read_text())
    assert len(commands) == 4
    for row, earlier in zip(more["rows"], document["rows"], strict=True):
        assert row["seeds"] == [0, 1]
        assert row["accuracy"][0] == earlier["accuracy"][0]
        assert row["half_width"] == grid.half_width(row["accuracy"])
        assert row["mean"] == pytest.approx(sum(row["accuracy"]) / 2)
    assert "| `17R` | `lif` |" in capsys.readouterr().out

    # Other settings are refused rather than mixed into the table.
    with pytest.raises(SystemExit) as stopped:
        grid.main([*words, "--seeds", "2", "--", *OPTIONS, "--lr", "0.5"])
    assert stopped.value.code not in (0, None)
    assert json.loads((tmp_path / "g" / "grid.json").read_text()) == more


def test_width_and_parameters_belong_together(grid: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--nets", "{width}"], ["--nets", "12", "--parameters", "100"]):
        with pytest.raises(SystemExit):
            grid.main(["digits", *words])
        assert "give both or neither" in capsys.readouterr().err
