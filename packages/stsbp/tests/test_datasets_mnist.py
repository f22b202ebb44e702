"""mnist, fashion-mnist and sequential MNIST from small idx files, and from the published ones where they are."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets import Dataset, load, mnist
from stsbp.datasets.mnist import DIGIT_FILES, FASHION_FILES, IdxFiles, find
from stsbp.errors import DataError
from stsbp_spec.typing import UInt8

REAL = Path(os.environ["STSBP_DATA"]) if os.environ.get("STSBP_DATA") else None
KINDS = {"mnist": DIGIT_FILES, "fashion-mnist": FASHION_FILES}


def _images(count: int, seed: int) -> UInt8:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def _files(seed: int = 0) -> dict[str, bytes]:
    files = {}
    for split, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in (("images-idx3", _images(count, seed + count)), ("labels-idx1", labels)):
            sizes = np.array(array.shape, dtype=">u4").tobytes()
            files[f"{split}-{name}-ubyte.gz"] = gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes())
    return files


def _write(folder: Path, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _files(seed).items():
        (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def _no_system_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What packages of this system have installed is not these tests' business."""
    fashion_files = FASHION_FILES._replace(system=tmp_path / "system")
    monkeypatch.setattr(mnist, "FASHION_FILES", fashion_files)
    monkeypatch.delenv("STSBP_DATA", raising=False)


@pytest.mark.parametrize("name", KINDS)
def test_images_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    _write(tmp_path / KINDS[name].folders[1])
    dataset = load(name, data_dir=tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.input_shape) == (40, 20, (1, 28, 28))
    assert dataset.coding == "direct"
    assert np.array_equal(dataset.train.inputs(np.array([3, 7]))[:, 0], _images(40, 40)[[3, 7]])
    assert np.array_equal(dataset.test.inputs(np.array([5]))[0, 0], _images(20, 20)[5])
    assert dataset.test.labels.tolist() == [k % 10 for k in range(20)]
    assert dataset.classes[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]


def test_both_beside_each_other_are_told_apart(tmp_path: Path) -> None:
    _write(tmp_path)
    _write(tmp_path / "fashion-mnist", seed=1)
    digits, clothes = (load(name, data_dir=tmp_path).train.inputs(np.array([0])) for name in KINDS)
    assert np.array_equal(digits[0, 0], _images(40, 40)[0])
    assert np.array_equal(clothes[0, 0], _images(40, 41)[0])


def test_images_and_labels_are_both_packed_or_both_unpacked(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    _write(raw, seed=1)
    for name, packed in _files(seed=2).items():
        (raw / name.removesuffix(".gz")).write_bytes(gzip.decompress(packed))
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    for seed, split in ((2, "train"), (1, "test")):
        loaded = getattr(load("mnist", data_dir=tmp_path), split)
        other = tmp_path / f"other{seed}"
        _write(other / "MNIST" / "raw", seed=seed)
        expected = getattr(load("mnist", data_dir=other), split)
        assert np.array_equal(loaded.labels, expected.labels)
        assert np.array_equal(loaded.inputs(np.arange(len(loaded))), expected.inputs(np.arange(len(loaded))))


def test_both_splits_are_read_from_one_folder(tmp_path: Path) -> None:
    _write(tmp_path)
    clothes = tmp_path / "fashion-mnist"
    _write(clothes, seed=1)
    for name in ("images-idx3", "labels-idx1"):
        (clothes / f"t10k-{name}-ubyte.gz").unlink()
    dataset = load("fashion-mnist", data_dir=tmp_path, holdout=10)
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    with pytest.raises(DataError, match="cannot hold out 1000 of 40"):
        load("fashion-mnist", data_dir=tmp_path)
    tested = load("fashion-mnist", data_dir=tmp_path, only_test=True)
    assert np.array_equal(tested.test.inputs(np.array([0]))[0, 0], _images(40, 41)[0])
    assert tested.notes[0].startswith(f"40 training images of Fashion-MNIST, from {clothes}")


def test_folder_with_both_splits_comes_before_one_with_a_part(tmp_path: Path) -> None:
    _write(tmp_path)
    _write(tmp_path / "MNIST" / "raw", seed=1)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    dataset = load("mnist", data_dir=tmp_path)
    assert np.array_equal(dataset.train.inputs(np.array([0]))[0, 0], _images(40, 41)[0])
    assert dataset.notes == (f"40 training and 20 test images of MNIST, from {tmp_path / 'MNIST' / 'raw'}",)


def test_files_that_may_be_of_another_data_set_are_noted(tmp_path: Path) -> None:
    _write(tmp_path)
    first, second = load("fashion-mnist", data_dir=tmp_path).notes
    assert first == f"40 training and 20 test images of Fashion-MNIST, from {tmp_path}"
    assert second.startswith("other data sets, such as MNIST, have files of the same names; ")
    assert second.endswith(f"put those of Fashion-MNIST into {tmp_path / 'fashion-mnist'}")


def test_files_of_a_system_package_need_no_data_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Fashion-MNIST found.*system; name the data folder with --data-dir"):
        load("fashion-mnist")
    _write(tmp_path / "system")
    assert len(load("fashion-mnist").train) == 40
    with pytest.raises(DataError, match=r"no MNIST found.*a data folder; name the data folder"):
        load("mnist")


@pytest.mark.parametrize("name", ["mnist", "smnist"])
def test_test_images_are_the_published_or_held_out(name: str, tmp_path: Path) -> None:
    _write(tmp_path)

    def sizes(**options: Any) -> tuple[int, int]:
        dataset = load(name, data_dir=tmp_path, steps=28, **options)
        return len(dataset.train), len(dataset.test)

    assert sizes() == (40, 20)
    assert sizes(holdout=10) == (30, 10)
    assert sizes(train_only=True) == (40, 0)
    assert sizes(only_test=True)[1] == 20
    for split in ("images-idx3", "labels-idx1"):
        (tmp_path / f"t10k-{split}-ubyte.gz").unlink()
    assert sizes(holdout=10) == (30, 10)
    assert sizes(only_test=True)[1] == 40
    with pytest.raises(DataError, match="cannot hold out 1000 of 40"):
        sizes()


@pytest.mark.parametrize("levels", [1, 3])
def test_rows_and_pixels_spike_where_they_are_bright_enough(levels: int, tmp_path: Path) -> None:
    _write(tmp_path)
    image = _images(40, 40)[11]
    assert {42, 43} <= {*image.ravel()}
    bright = np.stack([image >= (2 * k + 1) * 256 / (2 * levels) for k in range(levels)], axis=-1)
    chosen = np.array([11])
    rows = load(f"smnist:levels={levels}", data_dir=tmp_path, steps=28)
    assert rows.input_shape == (28 * levels,)
    assert np.array_equal(rows.train.inputs(chosen)[:, 0], bright.reshape(28, -1))
    pixels = load(f"smnist-pixels:levels={levels}", data_dir=tmp_path, steps=784)
    assert pixels.input_shape == (levels,)
    assert np.array_equal(pixels.train.inputs(chosen)[:, 0], bright.reshape(784, -1))


def test_steps_and_levels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    for name, message in {
        "smnist": "28 rows, one a step, not 25: give --steps 28",
        "smnist-pixels": "784 pixels, one a step, not 25: give --steps 784",
        "smnist:levels=0": "smnist:levels=0: levels must be a number from 1 to 128, got '0'",
        "smnist:levels=129": "from 1 to 128, got '129'",
        "smnist:levels=two": "from 1 to 128, got 'two'",
    }.items():
        with pytest.raises(DataError, match=message):
            load(name, data_dir=tmp_path)


def test_sequential_digits_are_trained_and_evaluated(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    _write(tmp_path / "data")
    options = ("--data-dir", tmp_path / "data", "--net", "8", "--epochs", "1", "--out", tmp_path / "run")
    done = stsbp("train", "smnist:levels=2", *options)
    assert done.exit_code == 0, done.output
    assert "40 training and 20 test images of MNIST" in done.output
    assert stsbp("evaluate", tmp_path / "run").exit_code == 0
    named = stsbp("train", "smnist", "--data-dir", tmp_path / "data", "--net", "8", "--epochs", "1")
    assert named.exit_code == 0, named.output
    assert stsbp("train", "smnist:levels=2", *options[:-2], "--show-config").exit_code == 0


@pytest.fixture(params=KINDS)
def published(
    request: pytest.FixtureRequest, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, IdxFiles, Path]:
    """A data set, and the folder that a local server serves in the place of the published one."""
    files = KINDS[request.param]
    source = getattr(pytest.importorskip("torchvision.datasets"), files.torchvision)
    address, folder = server
    resources = []
    for name, content in _files().items():
        (folder / name).write_bytes(content)
        resources.append((name, hashlib.md5(content, usedforsecurity=False).hexdigest()))
    monkeypatch.setattr(source, "resources", resources)
    monkeypatch.setattr(source, "mirrors", [f"{address}/"])
    return request.param, files, folder


def test_download_fetches_and_checks(published: tuple[str, IdxFiles, Path], tmp_path: Path) -> None:
    name, files, folder = published
    target = tmp_path / "new"
    dataset: Dataset = load(name, data_dir=target, download=True)
    assert (len(dataset.train), len(dataset.test)) == (40, 20)
    assert len(list((target / files.torchvision / "raw").glob("*.gz"))) == 4
    # MNIST's files in the data folder are not taken for those of Fashion-MNIST.
    _write(tmp_path / "digits", seed=1)
    downloaded = load(name, data_dir=tmp_path / "digits", download=True).train.inputs(np.array([0]))[0, 0]
    assert np.array_equal(downloaded, _images(40, 40 if files.shared else 41)[0])
    with pytest.raises(DataError, match="is downloaded into a data folder"):
        load(name, download=True)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"not what was published")
    with pytest.raises(DataError, match=rf"could not download {files.title}.*\nFetch train-images-idx3-ubyte"):
        load(name, data_dir=tmp_path / "other", download=True)


@pytest.mark.parametrize(
    ("name", "first", "digest"),
    [
        ("mnist", [5, 0, 4, 1, 9], "5b92582eb909c82a"),
        ("fashion-mnist", [9, 0, 0, 3, 0], "0fbbfcb392782b3b"),
    ],
)
def test_the_published_files(name: str, first: list[int], digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if find(REAL, "train", KINDS[name]) is None:
        pytest.skip(f"needs {name} in STSBP_DATA")
    monkeypatch.setattr(mnist, "FASHION_FILES", FASHION_FILES)
    dataset = load(name, data_dir=REAL)
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.train.labels[:5].tolist() == first
    content = dataset.train.inputs(np.arange(60_000)).tobytes() + dataset.test.inputs(np.arange(10_000)).tobytes()
    assert hashlib.sha256(content).hexdigest().startswith(digest)


def test_the_default_settings_are_those_of_the_loss_that_they_set(stsbp: Callable[..., Result]) -> None:
    shown = stsbp("datasets", "smnist").stdout
    assert "settings by default, with the loss cross-entropy:" in shown
    assert "van-rossum" not in shown
    assert "settings by default, with the loss van-rossum:" in stsbp("datasets", "mnist").stdout
