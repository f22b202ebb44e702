"""Runs of neurons that learn: their checkpoints, what `--init-from` and `--init-rate` do with them, their report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from click.testing import Result
from safetensors.numpy import load_file
from stsbp_spec.typing import AnyArray


def _tensors(run: Path) -> dict[str, AnyArray]:
    """What the last checkpoint of a run holds."""
    info = json.loads((run / "last.json").read_text())
    return load_file(run / info["file"])


LEARNS = ("--neuron", "plif:per=channel", "--precision", "reproducible")


def test_a_checkpoint_holds_what_neurons_learned(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run", *LEARNS, "--epochs", 1)
    tensors = _tensors(tmp_path / "run")
    assert {"weight/linear2.decay", "adamw.m/linear2.decay", "adamw.v/linear1.decay"} <= set(tensors)
    assert (tensors["weight/linear1.decay"] != np.float32(0.8)).any()
    result = stsbp("train", "--resume", tmp_path / "run", "--epochs", 2)
    assert result.exit_code == 0, result.output
    moved = _tensors(tmp_path / "run")
    assert moved["step"] == 2 * tensors["step"]
    assert (moved["weight/linear1.decay"] != tensors["weight/linear1.decay"]).any()
    result = stsbp("evaluate", tmp_path / "run")
    assert result.exit_code == 0, result.output


def test_a_run_begins_with_what_another_one_learned(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "first", *LEARNS, "--epochs", 1)
    train_tiny(tmp_path / "second", *LEARNS, "--epochs", 1, "--init-from", tmp_path / "first", "--lr", 1e-12)
    first, second = (_tensors(tmp_path / name) for name in ("first", "second"))
    name = "weight/linear1.decay"
    assert np.abs(second[name] - first[name]).max() < 1e-6
    train_tiny(tmp_path / "plain", "--epochs", 1)
    result = stsbp(
        "train", "digits", *LEARNS, "--net", "24", "--init-from", tmp_path / "plain", "--out", tmp_path / "third"
    )
    assert result.exit_code != 0
    assert "no such layer there" in result.output
    assert "linear1.decay" in result.output


def test_initial_weights_are_scaled_and_not_what_is_learned(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", *LEARNS, "--epochs", 1, "--init-rate", 0.2, "--lr", 1e-12)
    tensors = _tensors(tmp_path / "run")
    assert np.abs(tensors["weight/linear1.decay"] - np.float32(0.8)).max() < 1e-6


def test_the_report_shows_what_neurons_learned(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    for name, options in (("learned", LEARNS), ("plain", ())):
        train_tiny(tmp_path / name, *options, "--epochs", 1)
        result = stsbp("report", tmp_path / name, "--no-samples")
        assert result.exit_code == 0, result.output
    learned, plain = ((tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("learned", "plain"))
    x = _tensors(tmp_path / "learned")["weight/linear1.decay"]
    assert f"decay {float(x.min()):.4g} to {float(x.max()):.4g}" in learned
    assert "learned by neurons" in learned
    assert "learned by neurons" not in plain
