"""Pipes and links that lead nowhere in the place of data: they are refused by name, and never count as absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stsbp.datasets import load
from stsbp.errors import DataError
from stsbp.files import has_file, has_folder

WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, "it is a pipe"),
    "to-nothing": (lambda path: path.symlink_to("nothing"), "it is a link to nothing"),
    "circular": (lambda path: path.symlink_to(path.name), "it is a link that leads back to itself"),
}
"""Makes something wrong in the place of a file or folder, and what is said about it."""

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes")


@pytest.mark.parametrize("kind", WRONG)
def test_only_a_missing_name_is_absent(kind: str, tmp_path: Path) -> None:
    make, complaint = WRONG[kind]
    make(tmp_path / "x")
    for present in (has_file, has_folder):
        assert not present(tmp_path / "y")
        assert not present(tmp_path / "y\0")
        with pytest.raises(OSError, match=complaint):
            present(tmp_path / "x")
    (tmp_path / "file").touch()
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "to-folder").symlink_to(tmp_path)
    assert has_file(tmp_path / "to-file")
    assert has_folder(tmp_path / "to-folder")
    assert not has_folder(tmp_path / "file" / "below")
    with pytest.raises(OSError, match="it is a file, not a folder"):
        has_folder(tmp_path / "file")
    with pytest.raises(OSError, match="it is a folder, not a regular file"):
        has_file(tmp_path)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_3.bin", "test_batch.bin"])
def test_batches_of_cifar10(name: str, kind: str, tmp_path: Path) -> None:
    record = bytes([1]) + bytes(3072)
    for batch in ("data_batch_1.bin", "data_batch_2.bin"):
        (tmp_path / batch).write_bytes(record * 4)
    make, complaint = WRONG[kind]
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(DataError, match=rf"cannot read \S*{name}: {complaint}"):
        load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache", steps=2, holdout=None)


@pytest.mark.parametrize("kind", WRONG)
def test_the_test_folder_of_images(kind: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        for k in range(3):
            path = tmp_path / "train" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(np.full((4, 4), 50 * k, np.uint8)).save(path)
    make, complaint = WRONG[kind]
    make(tmp_path / "test")
    with pytest.raises(DataError, match=rf"cannot read \S*/test: {complaint}"):
        load(f"folder:{tmp_path}", cache_dir=tmp_path / "cache", steps=2)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", ["Train", "Test", "Train/3"])
def test_folders_of_nmnist(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("tonic")
    for digit in (0, 1):
        path = tmp_path / "Train" / str(digit) / "00001.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([3, 5, 0x80, 0, 1]) * 2)
    make, complaint = WRONG[kind]
    if name == "Train":
        (tmp_path / name).rename(tmp_path / "moved")
    make(tmp_path / name)
    with pytest.raises(DataError, match=rf"cannot read \S*/{name}: {complaint}"):
        load("nmnist", data_dir=tmp_path, cache_dir=tmp_path / "cache", steps=2, holdout=None)


@pytest.mark.parametrize("name", ["fsdd", "nmnist", "cifar10", "shd"])
def test_a_data_folder_that_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: the data folder \S*/gone is missing; name one with --data-dir"):
        load(name, data_dir=tmp_path / "gone", cache_dir=tmp_path / "cache")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(DataError, match=r"the data folder \S*/link is a link to nothing"):
        load(name, data_dir=tmp_path / "link", cache_dir=tmp_path / "cache")
