"""Data without any event, spike or pixel: no network learns from them, and no accuracy on them means anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets import load

SAMPLES = 10


def _events(path: Path, **changes: Any) -> str:
    sample = np.arange(200) % SAMPLES
    arrays: dict[str, Any] = {"sample": sample, "x": np.arange(200) % 7, "t": np.arange(200) * 1000}
    np.savez(path / "own.npz", labels=np.arange(SAMPLES) % 2, **{**arrays, **changes})
    return f"events:{path / 'own.npz'}"


def _told(stsbp: Callable[..., Result], tmp_path: Path, name: str, *words: Any) -> list[str]:
    """The warnings of training with a data set, except those of layers, which are silent then."""
    done = stsbp("train", name, "--steps", 6, "--net", 2, "--epochs", 1, "--out", tmp_path / "run", *words)
    assert done.exit_code == 0, done.output
    return [line for line in done.stderr.splitlines() if line.startswith("warning") and "layer" not in line]


def test_a_file_without_events_is_refused(tmp_path: Path, stsbp: Callable[..., Result]) -> None:
    name = _events(tmp_path, **dict.fromkeys(("sample", "x", "t"), np.zeros(0, np.int64)))
    told = stsbp("train", name, "--out", tmp_path / "run")
    assert (told.exit_code, told.stdout) == (1, "")
    assert f"{tmp_path / 'own.npz'}: there are no events, because t is empty" in told.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("part", "number"), [("train", 0), ("test", 1)])
def test_a_part_without_events_is_told_of(tmp_path: Path, stsbp: Callable[..., Result], part: str, number: int) -> None:
    name = _events(tmp_path, sample=np.arange(200) % 5 * 2 + 1 - number, split=np.arange(SAMPLES) % 2)
    text = (
        f"warning: all 5 {part} samples of {name} are without events in the window; check the unit of the times, or "
        "give another --window-ms"
    )
    assert _told(stsbp, tmp_path, name) == [text]
    for command in ("evaluate", "curves"):
        told = stsbp(command, tmp_path / "run", "--split", part)
        assert told.exit_code == 0, told.output
        assert text in told.stderr
    other = stsbp("evaluate", tmp_path / "run", "--split", "test" if part == "train" else "train")
    assert "without events" not in other.stderr


def test_one_event_suffices(tmp_path: Path, stsbp: Callable[..., Result]) -> None:
    one = np.array([9])
    name = _events(tmp_path, sample=one, x=one, t=one)
    assert _told(stsbp, tmp_path, name, "--no-test") == []
    assert load(name, cache_dir=tmp_path, steps=6, train_only=True).train.inputs(np.arange(SAMPLES)).sum() == 1


@pytest.mark.parametrize("part", ["train", "test"])
def test_rasters_without_spikes_are_told_of(tmp_path: Path, stsbp: Callable[..., Result], part: str) -> None:
    split = np.arange(SAMPLES) % 2
    inputs = np.ones((SAMPLES, 6, 3), np.uint8)
    inputs[split == (part == "test")] = 0
    np.savez(tmp_path / "own.npz", inputs=inputs, labels=np.arange(SAMPLES) % 3, split=split)
    name = f"sequences:{tmp_path / 'own.npz'}"
    assert _told(stsbp, tmp_path, name) == [
        f"warning: all 5 {part} samples of {name} are without spikes; check the data"
    ]


def test_a_blank_data_set_for_the_test_is_named(tmp_path: Path, stsbp: Callable[..., Result]) -> None:
    inputs = np.ones((SAMPLES, 6, 3), np.uint8)
    for name, values in (("own", inputs), ("other", 0 * inputs)):
        np.savez(tmp_path / f"{name}.npz", inputs=values, labels=np.arange(SAMPLES) % 2)
    own, other = (f"sequences:{tmp_path / name}.npz" for name in ("own", "other"))
    text = f"warning: all 10 test samples of {other} are without spikes; check the data"
    assert _told(stsbp, tmp_path, own, "--test-on", other) == [text]
    assert text in stsbp("evaluate", tmp_path / "run").stderr
    assert text in stsbp("curves", tmp_path / "run", "--on", other).stderr


def test_black_images_are_told_of(tmp_path: Path, stsbp: Callable[..., Result]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow writes the images")
    for name in "ab":
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(4):
            image.new("L", (4, 4)).save(tmp_path / "own" / name / f"{number}.png")
    name = f"folder:{tmp_path / 'own'}"
    assert _told(stsbp, tmp_path, name, "--holdout", 1) == [
        f"warning: all 7 train samples of {name} are black; check the images",
        f"warning: the only test sample of {name} is black; check the images",
    ]
