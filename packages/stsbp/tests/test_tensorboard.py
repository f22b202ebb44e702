"""What TensorBoard is told: every record once, however often a run was stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from stsbp.training.tracking import scalars


def test_scalars_of_the_kinds_of_records() -> None:
    position = {"step": 4, "epoch": 2}
    step = {"kind": "step", **position, "loss": 0.5, "rates": {"conv1": 0.25}, "grids": {"conv1": {"bits": 9}}}
    assert dict(scalars(step)) == {"train/epoch": 2.0, "train/loss": 0.5, "train/rates/conv1": 0.25}
    epoch = {"kind": "epoch", **position, "zeroed": {"conv1": 0.125}}
    assert dict(scalars(epoch)) == {"epoch/zeroed/conv1": 0.125}
    test = {"kind": "evaluation", "split": "test", **position, "samples": 7, "accuracy": 1, "seconds": None}
    assert dict(scalars(test)) == {"test/accuracy": 1.0}


def test_missing_library_is_named_and_nothing_is_begun(
    train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    failed = train_tiny(tmp_path / "run", "--tensorboard")
    assert failed.exit_code == 1
    assert 'pip install "stsbp[tensorboard]"' in failed.stderr
    assert not (tmp_path / "run").exists()


def test_resumed_run_shows_every_record_once(
    train_tiny: Callable[..., Result],
    stsbp: Callable[..., Result],
    tmp_path: Path,
    records: Callable[[Path], list[dict[str, Any]]],
) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    assert train_tiny(run, "--tensorboard", "--stop-after", 1e-9).exit_code == 75
    # The switch is kept, and may be changed.
    assert stsbp("train", "--resume", run, "--stop-after", 1e-9, "--no-tensorboard").exit_code == 75
    assert stsbp("train", "--resume", run).exit_code == 0
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    shown = reader.EventAccumulator(str(run))
    shown.Reload()
    lines = records(run)
    for tag, kind in (("train/loss", "step"), ("epoch/loss", "epoch")):
        assert [event.step for event in shown.Tensors(tag)] == [r["step"] for r in lines if r["kind"] == kind]
    assert train_tiny(run, "--overwrite").exit_code == 0
    assert list(run.glob("events.out.tfevents.*")) == []


def test_event_files_of_others_stay(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert train_tiny(run, "--tensorboard", "--stop-after", 1e-9).exit_code == 75
    (event_file,) = run.glob("events.out.tfevents.*")
    # A file of the same second and process would have the same name.
    event_file = event_file.rename(run / "events.out.tfevents.0000000001.host.1.0")
    copy = event_file.with_name(f"{event_file.name}.bak")
    copy.write_bytes(b"precious")
    assert train_tiny(run, "--resume").exit_code == 0
    assert not event_file.exists()
    assert copy.read_bytes() == b"precious"
