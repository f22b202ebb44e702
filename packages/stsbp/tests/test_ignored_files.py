"""Files that look like samples, but are not read because of their names, are told of; so are other small surprises."""

from __future__ import annotations

import os
import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from stsbp.config import _absolute, read_toml
from stsbp.datasets.tonic_sets import _damage
from stsbp.errors import ConfigError
from stsbp.processes.launcher import launch


def _recordings(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        with wave.open(str(folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            sound = 9000 * np.sin(np.arange(2400) * (0.2 + 0.1 * number))
            file.writeframes(sound.astype("<i2").tobytes())


def test_sounds_of_other_names_are_counted(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    names = [f"{digit}_theo_{number}.wav" for digit in (0, 1) for number in (10, 11, 12, 13, 14)]
    _recordings(tmp_path / "fsdd", *names, "1_ge-org_10.wav", "0_lucas_10.WAV")
    output = stsbp("train", "fsdd", "--data-dir", str(tmp_path), "--net", "4", "--epochs", "1").output
    assert "10 recordings of 1 speaker, from" in output
    assert f"left out of {tmp_path / 'fsdd'}: 2 files, such as 0_lucas_10.WAV; only names of the form" in output


def test_recordings_of_other_names_are_counted(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("tonic")
    event = bytes([3, 4, 0x80, 0, 100])
    for name in (
        "Train/0/00001.bin",
        "Train/1/00002.bin",
        "Train/1/00003.BIN",
        "Train/10/00004.bin",
        "Test/0/00005.Bin",
    ):
        path = tmp_path / "NMNIST" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(event * 20)
    shutil.copytree(tmp_path / "NMNIST" / "Train" / "0", tmp_path / "NMNIST" / "Test" / "1")
    output = stsbp("train", "nmnist", "--data-dir", str(tmp_path), "--net", "4", "--epochs", "1").output
    train, test = tmp_path / "NMNIST" / "Train", tmp_path / "NMNIST" / "Test"
    assert f"left out of {train}: 2 files, such as 1/00003.BIN; only files <class 0 to 9>/<id>.bin are read" in output
    assert f"left out of {test}: 1 file, such as 0/00005.Bin; only files" in output


@pytest.mark.parametrize("other", ["Test", "valid/car"])
def test_folders_with_images_beside_train_are_named(stsbp: Callable[..., Result], tmp_path: Path, other: str) -> None:
    for name in ("train/car", "train/bus", "test/car", other):
        (tmp_path / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), 40 * number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "notes").mkdir()
    output = stsbp("train", f"folder:{tmp_path}", "--net", "4", "--epochs", "1", "--steps", "2").output
    assert f"left out of {tmp_path}: folders with images: {other.split('/')[0]}; the samples are those in" in output


def test_settings_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (path := tmp_path / "c.toml").write_bytes(b'\xef\xbb\xbfdataset = "digits"\n')
    assert read_toml(path).values == {"dataset": "digits"}


def test_a_data_folder_with_a_zero_byte_is_shown_as_text(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    (path := tmp_path / "c.toml").write_text('data_dir = "a\\u0000"\ndataset = "fsdd"\n')
    output = stsbp("train", "--config", str(path)).output
    assert "which has no zero byte" in output
    assert "PosixPath" not in output


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FloatingPointError("overflow encountered in multiply"), "is too large for the type"),
        (ValueError("you can load it unsafely using the `allow_pickle=` keyword"), "pickled objects, which are never"),
        (AttributeError("'NpzFile' object has no attribute 'ndim'"), "it is damaged, or has another format"),
    ],
    ids=["overflow", "pickle", "npz"],
)
def test_errors_of_readers_become_sentences(error: Exception, sentence: str) -> None:
    assert sentence in _damage(error)
    assert "unsafely" not in _damage(error)


@pytest.fixture
def removed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "removed").mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    try:
        os.getcwd()
    except FileNotFoundError:
        return
    pytest.skip("this system keeps the name of a removed working folder")


@pytest.mark.usefixtures("removed_folder")
def test_a_removed_working_folder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot find ev\.npz: the working folder does not exist any more"):
        _absolute("dataset", "events:ev.npz")
    with pytest.raises(ConfigError, match="the working folder does not exist any more"):
        launch(["train", "digits"], 2)
