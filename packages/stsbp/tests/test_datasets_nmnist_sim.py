"""nmnist-sim from small idx files: layouts, malformed files, what is left out, the download, and tests on real data."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.config import RunConfig
from stsbp.datasets import Dataset, Split, load, mnist, nmnist_sim
from stsbp.datasets.mnist import read
from stsbp.datasets.nmnist_sim import CAMERA
from stsbp.datasets.saccades import ImagePosition, SaccadeCamera
from stsbp.errors import ConfigError, DataError
from stsbp.training.build import Data, load_data
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import UInt8

BINNING = EventBinning(steps=5)


def _images(count: int) -> UInt8:
    """Bars that differ in width and place."""
    images = np.zeros((count, 28, 28), dtype=np.uint8)
    for k, image in enumerate(images):
        image[5:23, 8 + k % 7 : 11 + k % 7 + k % 3] = 255 - k % 50
    return images


def _idx(array: UInt8) -> bytes:
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def _files(train: int = 24, test: int = 11) -> dict[str, bytes]:
    files = {}
    for split, count in (("train", train), ("t10k", test)):
        files[f"{split}-images-idx3-ubyte"] = _idx(_images(count))
        files[f"{split}-labels-idx1-ubyte"] = _idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def _write(folder: Path, *, packed: bool = True, **counts: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _files(**counts).items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture(autouse=True)
def _few_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files have fewer digits than the camera was calibrated on."""
    monkeypatch.setattr(nmnist_sim, "CALIBRATED_ON", 4)


def _load(data_dir: Path, tmp_path: Path, **options: Any) -> Dataset:
    return load("nmnist-sim", data_dir=data_dir, cache_dir=tmp_path / "cache", **{"steps": 5, **options})


@pytest.mark.parametrize("folder", [".", "mnist", "raw", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_digits_are_found_and_read(folder: str, packed: bool, tmp_path: Path) -> None:
    _write(tmp_path / folder, packed=packed)
    digits = read(tmp_path, "train")
    assert np.array_equal(digits.images, _images(24))
    assert digits.labels.tolist() == [k % 10 for k in range(24)]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip", "damaged"),
        ("train-images-idx3-ubyte.gz", gzip.compress(_idx(_images(24)))[:50], "damaged"),
        ("train-images-idx3-ubyte.gz", gzip.compress(_idx(_images(24))[:-1]), "cut off"),
        ("train-images-idx3-ubyte.gz", gzip.compress(_idx(_images(24))[:9]), "cut off"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes((0, 0, 8, 3, *[0] * 4, *[255] * 8))), "cut off"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b""), "begins with nothing"),
        ("train-images-idx3-ubyte.gz", gzip.compress(_idx(_images(24)[0])), "begins with 00 00 08 02"),
        ("train-images-idx3-ubyte.gz", gzip.compress(_idx(_images(24)[:, 1:])), "28 x 28"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(_idx(np.zeros(23, np.uint8))), "24 digits"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(_idx(np.full(24, 10, np.uint8))), "label 0 is 10"),
    ],
)
def test_malformed_files_are_named(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as failure:
        _load(tmp_path, tmp_path)
    assert str(tmp_path) in str(failure.value)
    assert "ubyte" in str(failure.value)


def test_what_is_longer_than_the_largest_file_is_refused_and_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path)
    content = _idx(_images(24))
    monkeypatch.setattr(mnist, "_LARGEST", len(content))
    assert len(read(tmp_path, "train").images) == 24
    for more in (1, 1_000_000):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content + bytes(more)))
        with pytest.raises(DataError, match=f"does not fit {len(content) + 1} bytes"):
            read(tmp_path, "train")


def test_without_files_it_says_what_is_expected_and_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz.*MNIST/raw.*--download"):
        _load(tmp_path, tmp_path)


def test_recordings_are_those_of_the_camera_without_the_digits_it_was_calibrated_on(tmp_path: Path) -> None:
    _write(tmp_path)
    dataset = _load(tmp_path, tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (20, 11)
    assert "4 of the 24 training digits are left out" in dataset.notes[0]
    assert dataset.train.labels.tolist() == [k % 10 for k in range(4, 24)]
    train = CAMERA.record(_images(24)[[7]], np.array([7]))[0]
    assert np.array_equal(dataset.train.inputs(np.array([3]))[:, 0], BINNING.frames(*train))
    test = CAMERA.record(_images(11)[[2]], np.array([60_002]))[0]
    assert np.array_equal(dataset.test.inputs(np.array([2]))[:, 0], BINNING.frames(*test))


def test_without_test_digits_some_are_held_out(tmp_path: Path) -> None:
    _write(tmp_path)
    for path in tmp_path.glob("t10k*"):
        path.unlink()
    with pytest.raises(DataError, match="cannot hold out 1000 of 20"):
        _load(tmp_path, tmp_path)
    dataset = _load(tmp_path, tmp_path, holdout=5)
    assert (len(dataset.train), len(dataset.test)) == (15, 5)


@pytest.mark.parametrize("test", [11, 0])
def test_without_a_test_no_digit_is_held_out(test: int, tmp_path: Path) -> None:
    _write(tmp_path, test=max(test, 1))
    for path in tmp_path.glob("t10k*") if not test else ():
        path.unlink()
    dataset = _load(tmp_path, tmp_path, train_only=True)
    assert (len(dataset.train), len(dataset.test)) == (20, 0)


def test_a_limit_simulates_no_more_and_the_same_recordings(tmp_path: Path) -> None:
    _write(tmp_path)
    work: list[tuple[str, int]] = []
    limited = _load(tmp_path, tmp_path, limit=6, progress=lambda activity, _, total: work.append((activity, total)))
    assert {total for activity, total in work if "simulating" in activity} == {6, 11}
    assert limited.notes[1:] == ("limited to 6 of 20 training digits (split seed 0)",)
    everything = _load(tmp_path, tmp_path)
    frames = everything.train.inputs(np.arange(20))
    for k, frame in enumerate(limited.train.inputs(np.arange(6)).transpose(1, 0, 2, 3, 4)):
        assert any(
            np.array_equal(frame, frames[:, i]) and limited.train.labels[k] == everything.train.labels[i]
            for i in range(20)
        )


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    _write(tmp_path, train=4)
    with pytest.raises(DataError, match="nothing is left to train on"):
        _load(tmp_path, tmp_path)


def _record(root: Path, split: str, numbers: list[int]) -> None:
    """Recordings as files of N-MNIST: five bytes an event."""
    for number in numbers:
        folder = root / "NMNIST" / split / str((number - 1) % 10)
        folder.mkdir(parents=True, exist_ok=True)
        x, y, p, t = CAMERA.record(_images(24)[[number - 1]])[0]
        raw = np.stack([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255], axis=1)
        (folder / f"{number:05}.bin").write_bytes(raw.astype(np.uint8).tobytes())


class TestOnRealRecordings:
    @pytest.fixture(autouse=True)
    def _few_recordings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("tonic")
        monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
        _write(tmp_path)

    def _data(self, tmp_path: Path, **settings: Any) -> Data:
        values = {"dataset": "nmnist-sim", "steps": 5, "test_on": "nmnist", "data_dir": str(tmp_path), **settings}
        return load_data(RunConfig.model_validate(values))

    def test_all_of_them_are_tested_and_their_digits_not_trained_on(self, tmp_path: Path) -> None:
        _record(tmp_path, "Train", [3, 10, 11, 20])
        data = self._data(tmp_path)
        assert sorted(data.test.labels.tolist()) == [0, 2, 9, 9]
        assert data.train.labels.tolist() == [k % 10 for k in range(4, 24) if k + 1 not in (10, 11, 20)]
        notes = "\n".join(data.dataset.notes)
        assert "tested on 4 samples of nmnist" in notes
        assert "malformed" not in notes

    def test_one_recording_is_enough(self, tmp_path: Path) -> None:
        _record(tmp_path, "Train", [3])
        assert self._data(tmp_path).test.labels.tolist() == [2]

    def test_where_there_are_test_recordings_they_are_tested_and_all_digits_trained_on(self, tmp_path: Path) -> None:
        _record(tmp_path, "Train", [3, 10, 11, 20])
        _record(tmp_path, "Test", [1, 2])
        data = self._data(tmp_path)
        assert sorted(data.test.labels.tolist()) == [0, 1]
        assert len(data.train) == 20

    def test_validation_samples_are_simulated_ones(self, tmp_path: Path) -> None:
        _record(tmp_path, "Train", [3, 10])
        data = self._data(tmp_path, validation=6)
        assert data.validation is not None
        assert (len(data.train), len(data.validation), len(data.test)) == (13, 6, 2)

    def test_a_run_says_what_it_was_tested_on(self, tmp_path: Path, stsbp: Callable[..., Result]) -> None:
        _record(tmp_path, "Train", [3, 10, 11])
        settings = ("--net", "8", "--steps", "3", "--epochs", "1", "--data-dir", tmp_path, "--out", tmp_path / "run")
        done = stsbp("train", "nmnist-sim", "--test-on", "nmnist", *settings)
        assert done.exit_code == 0, done.output
        assert "3 samples" in done.output
        evaluated = stsbp("evaluate", tmp_path / "run")
        assert evaluated.exit_code == 0, evaluated.output
        assert "test: 3 samples" in evaluated.output
        real = json.loads(stsbp("evaluate", tmp_path / "run", "--json").stdout)
        other = json.loads(stsbp("evaluate", tmp_path / "run", "--on", "nmnist", "--json").stdout)
        assert {**other, "seconds": 0} == {**real, "seconds": 0}
        assert real["dataset"] == "nmnist"
        assert (
            "leave --split 'train' out"
            in stsbp("evaluate", tmp_path / "run", "--on", "nmnist", "--split", "train").stderr
        )
        assert "the run was trained on events of shape" in stsbp("evaluate", tmp_path / "run", "--on", "digits").stderr

    def test_a_network_for_real_recordings_is_evaluated_on_simulated_ones(
        self, tmp_path: Path, stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those of the test digits alone: no training digit is simulated for it."""
        _record(tmp_path, "Train", [3, 10, 11, 12])
        options = ("--net", "8", "--steps", "3", "--epochs", "1", "--holdout", "1", "--data-dir", tmp_path)
        assert stsbp("train", "nmnist", *options, "--out", tmp_path / "run").exit_code == 0
        simulated = []
        simulate = nmnist_sim._simulate

        def counted(digits: Any, chosen: Any, *arguments: Any) -> Split:
            simulated.append(len(chosen))
            return simulate(digits, chosen, *arguments)

        monkeypatch.setattr(nmnist_sim, "_simulate", counted)
        done = stsbp("evaluate", tmp_path / "run", "--on", "nmnist-sim")
        assert done.exit_code == 0, done.output
        assert f"nmnist-sim: {simulated[0]} samples" in done.output
        assert "the run was trained on nmnist" in stsbp("evaluate", tmp_path / "run", "--on", "nmnist").stderr
        assert len(simulated) == 1

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"test_on": "nmnist-sim"}, "another data set"),
            ({"holdout": 5}, "another data set"),
            ({"test_on": "digits"}, "nmnist-sim cannot be tested on digits"),
            ({"test_on": "emnist"}, "unknown data set"),
        ],
    )
    def test_unsuitable_test_sets_are_refused(self, settings: dict[str, Any], complaint: str, tmp_path: Path) -> None:
        _record(tmp_path, "Train", [3, 10])
        with pytest.raises((ConfigError, DataError), match=complaint):
            self._data(tmp_path, **settings)


@pytest.fixture
def published(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a local server serves in the place of the published one."""
    source = pytest.importorskip("torchvision.datasets").MNIST
    address, folder = server
    resources = []
    for name, content in _files().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        digest = hashlib.md5((folder / f"{name}.gz").read_bytes(), usedforsecurity=False).hexdigest()
        resources.append((f"{name}.gz", digest))
    monkeypatch.setattr(source, "resources", resources)
    monkeypatch.setattr(source, "mirrors", [f"{address}/"])
    return folder


def test_download_fetches_and_checks(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    assert len(_load(target, tmp_path, download=True).train) == 20
    assert len(list((target / "MNIST" / "raw").glob("*.gz"))) == 4
    assert capsys.readouterr().out == ""
    for path in published.iterdir():
        path.unlink()
    assert len(_load(target, tmp_path, download=True).train) == 20


@pytest.mark.parametrize("fault", ["missing", "corrupt"])
def test_failed_download_says_what_to_fetch_and_where_to_put_it(fault: str, published: Path, tmp_path: Path) -> None:
    path = published / "t10k-images-idx3-ubyte.gz"
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(b"not what was published")
    with pytest.raises(DataError, match=r"Fetch train-images-idx3-ubyte\.gz \(md5 [0-9a-f]{32}\)") as failure:
        _load(tmp_path / "new", tmp_path, download=True)
    assert str(tmp_path / "new" / "MNIST" / "raw") in str(failure.value)


def test_download_without_torchvision_gives_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match=r'pip install "stsbp\[mnist\]"'):
        _load(tmp_path, tmp_path, download=True)


class TestCamera:
    def test_is_the_same_alone_and_among_others(self) -> None:
        images, numbers = _images(70), np.arange(100, 170)
        together = CAMERA.record(images, numbers)
        for k in (0, 63, 64, 69):
            alone = CAMERA.record(images[[k]], numbers[[k]])[0]
            assert all(np.array_equal(a, b) for a, b in zip(alone, together[k], strict=True))

    def test_events_are_the_same_on_every_machine(self) -> None:
        """Where this changes on purpose, `_SIMULATION` of nmnist_sim.py counts up, so that old caches are left."""
        digest = hashlib.sha256()
        for recording in CAMERA.record(_images(3)):
            for column in recording:
                digest.update(column.astype("<i8").tobytes())
        assert digest.hexdigest()[:16] == "0f17077aca1bef2e"

    def test_recordings_differ_by_number_and_seed(self) -> None:
        image = _images(1)
        base, number, seed = (
            CAMERA.record(image, np.array([5]))[0],
            CAMERA.record(image, np.array([6]))[0],
            dataclasses.replace(CAMERA, seed=1).record(image, np.array([5]))[0],
        )
        assert not np.array_equal(base.t, number.t)
        assert not np.array_equal(base.t, seed.t)

    def test_a_blank_picture_gives_noise_at_its_rates(self) -> None:
        blank = np.zeros((40, 28, 28), np.uint8)
        quiet = dataclasses.replace(CAMERA, noise_on=0.0, noise_off=0.0, start=0.0)
        assert sum(len(recording.t) for recording in quiet.record(blank)) == 0
        noisy = dataclasses.replace(quiet, noise_on=0.5, noise_off=0.1).record(blank)
        p, t, pixel = (
            np.concatenate([r.p for r in noisy]),
            np.concatenate([r.t for r in noisy]),
            np.concatenate([34 * r.y + r.x for r in noisy]),
        )
        seconds = CAMERA.path[-1].t / 1e6
        for polarity, rate in ((0, 0.1), (1, 0.5)):
            assert (p == polarity).sum() / (40 * 34 * 34 * seconds) == pytest.approx(rate, rel=0.02)
        assert 0.48 < t.mean() / CAMERA.path[-1].t < 0.52
        assert 0.48 < pixel.mean() / (34 * 34) < 0.52

    @pytest.mark.parametrize("off", [0.0, 0.4])
    def test_inverted_pictures_swap_polarities_and_thresholds(self, off: float) -> None:
        """A bar that comes makes a pixel darker: OFF events first, as many as its share of light and threshold say."""
        image = np.zeros((1, 28, 28), np.uint8)
        image[0, :14] = 255
        path = (ImagePosition(0, -14.0, 3.0), ImagePosition(100_000, 3.0, 3.0))
        camera = SaccadeCamera(threshold=0.2, off_threshold=off, floor=0.1, path=path)
        for inverted in (False, True):
            p = dataclasses.replace(camera, inverted=inverted).record(image)[0].p
            expected = round(np.log(1.1 / 0.1) / (off if inverted and off else 0.2))
            first = {False: 1, True: 0}[inverted]
            assert (p == first).sum() > (p == 1 - first).sum()
            assert (p == first).sum() / (17 * 28) == pytest.approx(expected, abs=1)
