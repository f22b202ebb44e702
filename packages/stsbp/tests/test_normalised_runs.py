"""Runs of networks with batch normalisation: their checkpoints, other backends that go on with them, `--init-from`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from safetensors.numpy import load_file
from stsbp_spec.typing import AnyArray

NET = ("digits", "--net", "12bn{factor=0.5}", "--dropout", "0.2", "--limit", 60, "--batch-size", 25, "--steps", 5)
EXACT = ("--precision", "reproducible", "--no-test", "--init-rate", 0)


def _tensors(run: Path) -> dict[str, AnyArray]:
    """What the last checkpoint of a run holds."""
    info = json.loads((run / "last.json").read_text())
    return load_file(run / info["file"])


@pytest.fixture
def trained(stsbp: Callable[..., Result], tmp_path: Path) -> Callable[..., dict[str, AnyArray]]:
    """Trains a run and reads its last checkpoint."""

    def train(name: str, *options: object, backend: str = "numpy") -> dict[str, AnyArray]:
        result = stsbp("--backend", backend, "train", *options, *(() if "--resume" in options else (*NET, *EXACT)))
        assert result.exit_code == 0, result.output
        return _tensors(tmp_path / name)

    return train


def test_another_backend_goes_on_with_a_run_to_the_same_bits(
    trained: Callable[..., dict[str, AnyArray]], tmp_path: Path
) -> None:
    pytest.importorskip("stsbp_torch")
    trained("own", "--epochs", 1, "--out", tmp_path / "own", "--micro-batch", 7)
    uninterrupted = trained("own", "--resume", tmp_path / "own", "--epochs", 2)
    half = trained("half", "--epochs", 1, "--out", tmp_path / "half")
    assert {"weight/linear1.mean", "weight/linear1.variance", "adamw.m/linear1.scale"} <= set(half)
    assert "adamw.m/linear1.mean" not in half
    continued = trained("half", "--resume", tmp_path / "half", "--epochs", 2, backend="torch")
    assert set(continued) == set(uninterrupted)
    for name, x in uninterrupted.items():
        assert continued[name].tobytes() == x.tobytes(), name
    assert (continued["weight/linear1.variance"] != half["weight/linear1.variance"]).any()


def test_a_run_begins_with_the_statistics_of_another(
    trained: Callable[..., dict[str, AnyArray]], tmp_path: Path
) -> None:
    first = trained("first", "--epochs", 1, "--out", tmp_path / "first")
    start = ("--init-from", tmp_path / "first", "--lr", 1e-12)
    second = trained("second", "--epochs", 1, "--out", tmp_path / "second", *start)
    assert np.abs(second["weight/linear1.scale"] - first["weight/linear1.scale"]).max() < 1e-6
    # Three batches of 10 percent each.
    assert np.abs(second["weight/linear1.mean"] - first["weight/linear1.mean"]).max() < 0.5
    assert (second["weight/linear1.variance"] < 1).any()
    run = package.load_run(tmp_path / "first", backend="numpy")
    assert np.array_equal(run.weights["linear1.variance"], first["weight/linear1.variance"])
