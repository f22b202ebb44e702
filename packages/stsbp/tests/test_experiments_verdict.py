"""The rule of decision and the records of experiments/verdict.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[3] / "experiments" / "verdict.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="this is no checkout: it has no experiments")


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("verdict", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


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
    script = load_script()
    differences = np.zeros((3, 10_000))
    for seed, (plus, minus) in enumerate(zip(better, worse, strict=True)):
        differences[seed, :plus], differences[seed, plus : plus + minus] = 1, -1
    d, half, verdict = script.verdict(differences)
    assert verdict == word, (d, half)
    assert d == pytest.approx(100 * (sum(better) - sum(worse)) / 30_000)


def test_the_tables_are_made_of_records_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script()
    wrong = {"van-rossum": 1, "hamming": 2, "stbp": 3, "stbp-equal-time": 41}
    for arm, count in wrong.items():
        for seed in script.SEEDS:
            right = {}
            for name, samples in (("nmnist-sim", 1001), ("nmnist", 101)):
                mask = np.arange(samples) >= count
                right[name] = {"samples": samples, "bits": np.packbits(mask).tobytes().hex()}
            record = {"epoch": 3, "right": right, "spikes": 10.0 + seed, "latency": 2.0, "energy_pj": 3000.0}
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(record))
    script.decide(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "| hamming | 20 | 99.80 99.80 99.80 | 98.02 98.02 98.02 | 11 | 2.0 | 3.0 nJ |" in lines
    assert (
        "| van-rossum | stbp-equal-time | nmnist-sim | +4.00 ± 1.21 | 1.82e-12, 1.82e-12, 1.82e-12 | better |" in lines
    )


def test_runs_with_a_record_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script()
    trained: list[str] = []

    def train(data: Any, **settings: Any) -> Any:
        trained.append(settings["out"].name)
        return SimpleNamespace(finished=True, info={"epoch": 20})

    monkeypatch.setattr(script.stsbp, "train", train)
    monkeypatch.setattr(script, "tested", lambda folder, *_: {"epoch": 20, "of": folder.name})
    records = tmp_path / "records"
    records.mkdir()
    (records / "stbp-1.json").write_text("{}")
    assert script.train(tmp_path, records, ".", "cpu", None)
    assert len(trained) == 11
    assert "stbp-1" not in trained
    assert json.loads((records / "hamming-2.json").read_text()) == {"epoch": 20, "of": "hamming-2"}
    trained.clear()
    assert script.train(tmp_path, records, ".", "cpu", None)
    assert trained == []
