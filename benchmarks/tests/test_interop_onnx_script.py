"""`benchmarks/interop_onnx.py` on a tiny run: what it compares and reports, never times."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from stsbp.cli import cli
from stsbp.interop.program import program

sys.path.insert(0, str(Path(__file__).parents[1]))

# The script is found on the path above.
import interop_onnx

MISSING = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of some samples, of which 7 are held out."""
    arguments = ["train", "digits", "--net", "8", "--steps", "4", "--epochs", "1", "--limit", "20", "--holdout", "7"]
    result = CliRunner().invoke(cli, ["--backend", "numpy", *arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_all_of_a_run_is_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    arguments = [str(run), "--backend", "numpy", "--rounds", "1", "--out", str(out)]
    assert interop_onnx.main(arguments) == 0
    (report,) = json.loads(out.read_text())["runs"]
    assert [layer["name"] for layer in report["layers"]] == ["linear1", "linear2"]
    assert [layer["compared"] for layer in report["layers"]] == [4 * 7 * 8, 4 * 7 * 10]
    assert {count for layer in report["layers"] for count in layer["differing"].values()} == {0}
    assert len(report["layers"][0]["potentials"]) == 8
    assert report["samples"] == 7
    assert f"{report['right']} of 7" in capsys.readouterr().out


def test_a_difference_is_counted_and_the_exit_code_is_1(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(network: object, weights: dict[str, object]) -> object:
        return program(network, {**weights, "linear1": -weights["linear1"]})  # type: ignore[arg-type, dict-item, operator]

    monkeypatch.setattr(interop_onnx, "program", other)
    assert interop_onnx.main([str(run), "--backend", "numpy", "--rounds", "1", "--limit", "3"]) == 1
    row = next(line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| linear1"))
    assert int(row[2]) == 4 * 3 * 8
    assert 0 < int(row[4].strip(" |")) <= 8 * int(row[2])


def test_forms_show_what_the_export_avoids(capsys: pytest.CaptureFixture[str]) -> None:
    assert interop_onnx.main(["--forms", "--backend", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * len(interop_onnx.forms())
