"""Which kinds of files `stsbp predict` reads for the data that a network was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

SETTINGS = ("--net", "4", "--epochs", "1", "--steps", "10")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A recording, a sound and an image."""
    times = range(0, 300_000, 3000)
    events = [bytes([n % 8, n % 7, (n % 2) << 7 | t >> 16, t >> 8 & 255, t & 255]) for n, t in enumerate(times)]
    paths = {end: tmp_path / f"one.{end}" for end in ("bin", "wav", "png")}
    for path in paths.values():
        path.write_bytes(b"".join(events))
    return paths


def _rasters(path: Path, shape: tuple[int, ...]) -> str:
    rng = np.random.default_rng(0)
    np.savez(path, inputs=(rng.random((20, 10, *shape)) < 0.3).astype(np.uint8), labels=np.arange(20) % 2)
    return f"sequences:{path}"


def _events(path: Path) -> str:
    rng, axes = np.random.default_rng(0), {"x": 8, "y": 8, "p": 2, "t": 300_000, "sample": 20}
    columns: dict[str, Any] = {name: rng.integers(0, most, 400) for name, most in axes.items()}
    np.savez(path, labels=np.arange(20) % 2, sensor=np.array([8, 8]), **columns)
    return f"events:{path}"


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        (
            (2, 8, 8),
            {
                "bin": "is a recording, but the network was trained on {}, not on recordings of a camera; give frames "
                "[T, C, H, W] like those that it was trained on (.npy)",
                "wav": "the network reads events, so the file must end in .npy",
                "png": "the network reads events, so the file must end in .npy",
            },
        ),
        (
            (6,),
            {
                "bin": "the network reads events, so the file must end in .npy",
                "wav": "is a sound, but the network was trained on {}, not on sounds as in fsdd; give spike trains",
                "png": "the network reads events, so the file must end in .npy",
            },
        ),
    ],
    ids=["frames", "trains"],
)
def test_rasters_are_neither_recordings_nor_sounds(
    shape: tuple[int, ...],
    refused: dict[str, str],
    files: dict[str, Path],
    tmp_path: Path,
    stsbp: Callable[..., Result],
) -> None:
    """The steps of rasters have no known duration."""
    name = _rasters(tmp_path / "own.npz", shape)
    done = stsbp("train", name, *SETTINGS, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    for end, reason in refused.items():
        told = stsbp("predict", tmp_path / "run", files[end])
        assert (told.exit_code, told.stdout) == (1, "")
        assert reason.format(name) in told.stderr
    told = stsbp("predict", tmp_path / "run", "--stream", files["bin"])
    assert (told.exit_code, told.stdout) == (1, "")
    assert "leave --clock and --time-unit out" not in told.stderr
    if len(shape) == 3:
        assert "the run was not trained on recordings, so its steps have no duration" in told.stderr


def test_recordings_of_a_camera_are_read(files: dict[str, Path], tmp_path: Path, stsbp: Callable[..., Result]) -> None:
    pytest.importorskip("tonic", reason="tonic reads recordings")
    assert stsbp("train", _events(tmp_path / "own.npz"), *SETTINGS, "--out", tmp_path / "run").exit_code == 0
    told = stsbp("predict", tmp_path / "run", files["bin"])
    assert told.exit_code == 0, told.output
    refused = stsbp("predict", tmp_path / "run", files["wav"])
    assert "the network reads events, so the file must end in .bin (N-MNIST) or .npy" in refused.stderr


def test_recordings_of_a_data_set_that_is_not_installed(
    files: dict[str, Path], tmp_path: Path, stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether its frames are those of a camera."""
    assert stsbp("train", _events(tmp_path / "own.npz"), *SETTINGS, "--out", tmp_path / "run").exit_code == 0
    monkeypatch.setattr("stsbp.cli.predict.is_known", lambda _name: False)
    told = stsbp("predict", tmp_path / "run", files["bin"])
    assert told.exit_code == 1
    assert "which is not installed; install its package, or give frames [T, C, H, W]" in told.stderr
