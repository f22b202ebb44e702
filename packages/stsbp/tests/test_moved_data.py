"""Data that moved, changed or were damaged between two commands, and two processes that want one folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from stsbp.cli import train as train_command
from stsbp.datasets import cache
from stsbp.training import build

Call = Callable[..., Result]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for number in range(12):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def run(stsbp: Call, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    options = ("--net", "8", "--padding", "valid", "--steps", 2, "--epochs", 1, "--holdout", 4, "--out", "run")
    done = stsbp("train", f"folder:{images}", *options)
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


def test_evaluate_follows_data_that_moved(stsbp: Call, run: Path, images: Path, tmp_path: Path) -> None:
    images.rename(tmp_path / "elsewhere")
    assert stsbp("evaluate", run).exit_code == 1
    done = stsbp("evaluate", run, "--data-dir", tmp_path / "elsewhere")
    assert done.exit_code == 0, done.output
    assert stsbp("train", "--resume", run, "--data-dir", tmp_path / "elsewhere").exit_code == 0


def test_evaluate_refuses_data_that_changed(stsbp: Call, run: Path, images: Path) -> None:
    (images / "a" / "0.png").unlink()
    done = stsbp("evaluate", run)
    assert done.exit_code == 1
    assert "not those" in done.output


def test_an_unknown_home_is_one_line(stsbp: Call) -> None:
    done = stsbp("train", "folder:~nosuchuser/x", "--out", "run")
    assert done.exit_code == 1
    assert "cannot find ~nosuchuser" in done.output


def test_a_damaged_manifest_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files that changed a moment ago are not remembered; here they are.
    monkeypatch.setattr(cache, "_RACY_NS", -(10**12))
    folder = tmp_path / "cache"
    folder.mkdir()
    (tmp_path / "a.bin").write_bytes(b"content")
    good = cache.digest_files(tmp_path, ["a.bin"], cache_dir=folder)
    (manifest,) = folder.glob("manifest-*.json")
    content = json.loads(manifest.read_text())
    content["files"]["a.bin"][3] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert cache.digest_files(tmp_path, ["a.bin"], cache_dir=folder) == good


def test_a_run_that_another_process_began_meanwhile_stays(
    stsbp: Call, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build.load_data

    def slow(*arguments: object) -> object:
        monkeypatch.setattr(train_command, "load_data", original)
        assert stsbp("train", "digits", *tiny, "--out", "run").exit_code == 0
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_command, "load_data", slow)
    done = stsbp("train", "digits", *tiny, "--seed", 7, "--out", "run")
    assert done.exit_code == 1
    assert "meanwhile" in done.output
    assert "seed = 0" in (tmp_path / "run" / "config.toml").read_text()
