"""The budget for what a file may become in memory and on disk."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from stsbp import budget
from stsbp.datasets import load
from stsbp.datasets.cache import CacheWriter, SourceFiles, cached
from stsbp.datasets.npz import read_arrays
from stsbp.errors import ConfigError, DataError
from stsbp_spec.models.encoders import EventBinning

GIB = 2**30


def test_check_memory_allows_the_budget_or_a_multiple_of_the_file() -> None:
    budget.check_memory(GIB, 1000, "file")
    with pytest.raises(DataError, match=r"file: reading it takes 1\.0\d* GiB of memory, more than the 1 GiB allowed"):
        budget.check_memory(GIB + 2**20 * 10, 1000, "file")
    budget.check_memory(64 * GIB, GIB, "file")
    with pytest.raises(DataError, match="--file-budget"):
        budget.check_memory(64 * GIB + 1, GIB, "file")


def test_check_disk_allows_no_more_than_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget.check_disk(1000, 10, "data", tmp_path / "not" / "there")
    with pytest.raises(DataError, match=r"data: its decoded samples take 5 TiB on disk, more than the 1 GiB allowed"):
        budget.check_disk(5 * 2**40, 10, "data", tmp_path)
    monkeypatch.setenv(budget.VARIABLE, "1048576")
    with pytest.raises(DataError, match=r"but the disk of .* has only .* left; choose another folder with .*CACHE"):
        budget.check_disk(2**50, 10, "data", tmp_path)


@pytest.mark.parametrize("text", ["", "nan", "-1", "0", "much", "1e9", "inf"])
def test_a_budget_that_is_none_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "own.npz", inputs=np.zeros(3, np.uint8))
    monkeypatch.setenv(budget.VARIABLE, text)
    if text:
        wrong = "^the environment variable STSBP_FILE_BUDGET must be a number of GiB .*; correct or unset it$"
        with pytest.raises(ConfigError, match=wrong):
            budget.memory(0)
        # The file is not the cause.
        with pytest.raises(ConfigError, match=wrong):
            read_arrays(tmp_path / "own.npz")
    else:
        assert budget.memory(0) == GIB
        assert len(read_arrays(tmp_path / "own.npz")) == 1


@pytest.mark.parametrize("text", ["nan", "inf"])
def test_an_option_that_is_no_budget_is_refused_by_its_name(text: str, stsbp: Callable[..., Result]) -> None:
    result = stsbp("--file-budget", text, "datasets")
    assert result.exit_code == 2
    assert "Invalid value for '--file-budget': " in result.output
    assert "environment variable" not in result.output


def test_samples_that_are_compressed_to_nothing_count(tmp_path: Path) -> None:
    path, n = tmp_path / "own.npz", 2**20 + 1
    np.savez_compressed(path, inputs=np.zeros((n, 2, 1), np.uint8), labels=np.zeros(n, np.uint8))
    with pytest.raises(DataError, match=r"own\.npz, 1,048,577 samples: reading it takes 1 GiB of memory, more than"):
        load(f"sequences:{path}", steps=2)


def _packed(path: Path, **sizes: int) -> Path:
    """A small file of arrays of zeros with these numbers of bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, size in sizes.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(
                    member,
                    {"descr": "|u1", "fortran_order": False, "shape": (size,)},
                )
                for _ in range(size >> 20):
                    member.write(bytes(2**20))
    return path


def test_read_arrays_refuses_a_small_file_of_large_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _packed(tmp_path / "own.npz", inputs=16 << 20)
    monkeypatch.setenv(budget.VARIABLE, str(24 / 1024))
    with pytest.raises(DataError, match=r"own\.npz: reading it takes 32 MiB of memory, more than the 24 MiB allowed"):
        read_arrays(path)
    monkeypatch.setenv(budget.VARIABLE, str(40 / 1024))
    assert len(read_arrays(path)["inputs"]) == 16 << 20


def _events(path: Path, samples: int, sensor: list[int]) -> Path:
    zeros = np.zeros(3, np.int64)
    np.savez_compressed(
        path, sample=zeros, x=zeros, y=zeros, t=zeros, labels=np.zeros(samples, np.uint8), sensor=np.array(sensor)
    )
    return path


def test_events_refuses_a_cache_of_terabytes_before_it_writes(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    path = _events(tmp_path / "own.npz", 10_000, [256, 256])
    assert path.stat().st_size < 8000
    train = ("train", f"events:{path}", "--net", 2, "--out", "run", "--steps")
    refused(stsbp(*train, 100), "own.npz: its decoded samples take 7.93 GiB on disk, more than the 1 GiB allowed")
    assert not any((tmp_path / "cache").glob("*.cache"))
    # A single sample would take more than the memory.
    refused(stsbp(*train, 100_000), "own.npz: reading it takes 12.2 GiB of memory, more than the 1 GiB allowed")


def test_file_budget_is_an_option_of_every_command(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    path = _events(tmp_path / "own.npz", 20, [64, 64])
    train = ("train", f"events:{path}", "--net", 2, "--epochs", 1, "--out", "run", "--steps", 1500)
    monkeypatch.setenv(budget.VARIABLE, "0.01")
    refused(stsbp(*train), "of memory, more than the 10.2 MiB allowed", "stsbp --file-budget GIB COMMAND")
    monkeypatch.setattr(budget, "TIMES_DISK", 1)
    refused(stsbp("--file-budget", 0.012, *train), "on disk, more than the 12.3 MiB allowed")
    assert stsbp("--file-budget", 0.02, "train", *train[1:-1], 3).exit_code == 0


def test_a_cache_that_is_there_is_read_without_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceFiles("own", 10, 4)

    def build(writer: CacheWriter) -> None:
        writer.add(np.zeros((4, 1000), np.uint8), np.zeros(4, np.int64))

    cached("own", {}, cache_dir=tmp_path, build=build, source=source)
    monkeypatch.setattr(budget, "disk", lambda _size: 1)
    assert cached("own", {}, cache_dir=tmp_path, build=build, source=source).data.shape == (4, 1000)
    with pytest.raises(DataError, match="own: its decoded samples take 4,000 bytes on disk, more than the 1 bytes"):
        cached("own", {"other": 1}, cache_dir=tmp_path, build=build, source=source)


def test_folders_and_recordings_stay_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "NMNIST" / "Train" / "0"
    folder.mkdir(parents=True)
    for k in range(200):
        (folder / f"{k}.bin").write_bytes(bytes(5))
    monkeypatch.setenv(budget.VARIABLE, "0.001")
    with pytest.raises(DataError, match=r"Train: its decoded samples take 5\.73 MiB on disk, more than the 1"):
        load("nmnist", data_dir=tmp_path, cache_dir=tmp_path / "cache", binning=EventBinning(), steps=100)
