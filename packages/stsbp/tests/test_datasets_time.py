"""Data sets whose answer is only in time: their bits, their definitions, and what their spike counts tell."""

from __future__ import annotations

import hashlib
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets import load, yinyang
from stsbp.datasets.fsdd_timing import equal_counts
from stsbp.datasets.latency import latency_spikes
from stsbp.datasets.randman import SAMPLES, manifold_times
from stsbp.errors import DataError
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray, UInt8


def _sha256(*arrays: AnyArray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("seed", "count", "sha256"),
    [
        (42, 5000, "dc94fd7370f86cfef2d9b6c14052893f52a6baf7649d2fce6d41e8490ff71267"),
        (41, 1000, "72eb8dfae7ec1231057ee70e57c4dcb96e03c72375ddae2089e10526a0a5e285"),
        (40, 1000, "52b0dc20c37ea8eca77f6e01a2a06724c20534dc9d53a7b3d397422145b3eeea"),
    ],
    ids=["train", "validation", "test"],
)
def test_points_are_the_published_ones(seed: int, count: int, sha256: str) -> None:
    """The hashes are those of the first two columns and the labels in the files that the authors published."""
    drawn, classes = yinyang.points(seed, count)
    assert _sha256(drawn, classes) == sha256


def test_yinyang_has_the_published_sets() -> None:
    data = load("yinyang", steps=60)
    assert (len(data.train), len(data.test), data.input_shape, data.classes) == (5000, 1000, (5,), yinyang.CLASSES)
    drawn, classes = yinyang.points(40, 1000)
    assert np.array_equal(data.test.labels, classes)
    spikes = data.test.inputs(np.arange(1000))
    assert (spikes.sum(axis=0) == 1).all()
    steps = spikes.argmax(axis=0)
    assert np.array_equal(steps[:, 0], np.floor(40 * drawn[:, 0]))
    assert np.array_equal(steps[:, 3], np.floor(40 * (1 - drawn[:, 1])))
    assert not steps[:, 4].any()
    validation = load("yinyang:test=validation", steps=60).test
    assert np.array_equal(validation.labels, yinyang.points(41, 1000)[1])
    assert len(load("yinyang", steps=60, holdout=200).train) == 4800


def test_latency_spikes_keep_numbers_in_the_first_two_thirds() -> None:
    spikes = latency_spikes(np.array([[0.0, 0.5, 1.0, np.nextafter(1.0, 0.0)]]), 30)
    assert spikes[0].argmax(axis=0).tolist() == [0, 10, 19, 19]
    assert spikes.sum() == 4


@pytest.mark.parametrize(
    ("arguments", "sha256"),
    [
        ((0, 10, 2, 2, 100), "a658eb456f5ae10341e6f019ded353f8a39310d2c48a06fad929b325ca68403b"),
        ((7, 3, 1, 3, 20), "4e6148d9b0dd1f3fc68d1d92a67044b6faa2df10e9c89932b98054d3fe572d15"),
    ],
    ids=str,
)
def test_manifold_times_have_the_same_bits_everywhere(arguments: tuple[int, ...], sha256: str) -> None:
    assert _sha256(manifold_times(*arguments)) == sha256


def test_manifold_times_are_those_of_the_equation() -> None:
    seed, classes, dims, alpha, neurons, count = 5, 2, 2, 3, 4, 30
    drawn = uniform(seed, Stream.SIMULATION, classes * 3 * dims * 10 * neurons, substream=3)
    a, b, c = drawn.reshape(classes, 3, dims, 10, neurons).swapaxes(0, 1)
    x = uniform(seed, Stream.SIMULATION, classes * count * dims, substream=4).reshape(classes, dims, count)
    times = manifold_times(seed, classes, dims, alpha, neurons, count)
    for m in range(classes):
        for i in range(neurons):
            values = [
                math.prod(
                    sum(
                        a[m, d, k, i]
                        * (k + 1) ** -alpha
                        * math.sin(2 * math.pi * (k * b[m, d, k, i] * y + c[m, d, k, i]))
                        for k in range(1, 10)
                    )
                    for d, y in enumerate(point)
                )
                for point in x[m].T
            ]
            scaled = (np.array(values) - min(values)) / (max(values) - min(values))
            # The table of sines has steps of 2^-14 of a turn, and the range of the product is about its own size.
            assert np.abs(times[m, :, i] - scaled).max() < 0.02


def test_randman_tells_the_class_only_by_times() -> None:
    data = load("randman:classes=3:dims=1:neurons=12", steps=30)
    assert (len(data.train), len(data.test), data.input_shape) == (3 * SAMPLES * 4 // 5, 3 * SAMPLES // 5, (12,))
    assert np.bincount(data.test.labels).tolist() == [SAMPLES // 5] * 3
    for split in (data.train, data.test):
        assert (split.inputs(np.arange(len(split))).sum(axis=0) == 1).all()
    other = load("randman:classes=3:dims=1:neurons=12", steps=30, seed=1)
    assert not np.array_equal(other.test.inputs(np.arange(50)), data.test.inputs(np.arange(50)))


@pytest.mark.parametrize("steps", [8, 25])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_equal_counts_keeps_quantiles(steps: int, count: int) -> None:
    random = np.random.default_rng(steps + count)
    spikes = (random.random((steps, 40, 5)) < random.random((1, 40, 5))).astype(np.uint8)
    equal = equal_counts(spikes, count)
    assert (equal.sum(axis=0) == count).all()
    for train, result in zip(spikes.reshape(steps, -1).T, equal.reshape(steps, -1).T, strict=True):
        times, chosen = np.flatnonzero(train), np.flatnonzero(result)
        if len(times) >= count:
            # Different spikes are at different steps, so nothing had to move.
            assert chosen.tolist() == [times[(2 * k + 1) * len(times) // (2 * count)] for k in range(count)]
        elif not len(times):
            assert chosen.tolist() == [(2 * k + 1) * steps // (2 * count) for k in range(count)]


def test_equal_counts_moves_spikes_that_are_equal() -> None:
    spikes: UInt8 = np.zeros((6, 1, 3), dtype=np.uint8)
    spikes[1, 0, 0] = spikes[5, 0, 1] = 1
    spikes[[2, 4], 0, 2] = 1
    equal = equal_counts(spikes, 3)
    assert [np.flatnonzero(equal[:, 0, n]).tolist() for n in range(3)] == [[1, 2, 3], [3, 4, 5], [2, 4, 5]]
    with pytest.raises(DataError, match="7 spikes of a neuron need as many steps, got 6"):
        equal_counts(spikes, 7)


def test_equal_counts_have_the_same_bits_everywhere() -> None:
    spikes = (uniform(3, Stream.SIMULATION, 60 * 50 * 20) < 0.1).astype(np.uint8).reshape(60, 50, 20)
    assert _sha256(equal_counts(spikes, 3)) == "29eb54ad1865cf7ca78b21a49f9c697a1bcef4626762a92818826d40d2a35af7"


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Ten recordings of each of two digits, one of them higher."""
    folder = tmp_path / "data" / "fsdd"
    folder.mkdir(parents=True)
    for digit, frequency in ((0, 300), (1, 1200)):
        for number in range(10):
            n = np.arange(2400 + 40 * number)
            sound = np.round(9000 * np.sin(2 * np.pi * frequency * n / 8000) * np.sin(n / (60 + number))).astype("<i2")
            with wave.open(str(folder / f"{digit}_ada_{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(sound.tobytes())
    return folder.parent


def test_fsdd_timing_has_equal_counts_and_the_samples_of_fsdd(digits: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"binning": EventBinning(40, window_us=480_000), "data_dir": digits, "cache_dir": tmp_path}
    data, recorded = load("fsdd-timing:channels=20:spikes=4", **common), load("fsdd:channels=20", **common)
    assert data.name == "fsdd-timing:channels=20:spikes=4"
    for split, original in ((data.train, recorded.train), (data.test, recorded.test)):
        numbers = np.arange(len(split))
        spikes, expected = split.inputs(numbers), original.inputs(numbers)
        assert np.array_equal(split.labels, original.labels)
        assert (spikes.sum(axis=0) == 4).all()
        assert np.array_equal(spikes, equal_counts(expected, 4))
        # Counts tell these digits apart in fsdd.
        assert len(np.unique(expected.sum(axis=0), axis=0)) > 2
    with pytest.raises(DataError, match="the length of a recording says something about the digit"):
        load("fsdd-timing", own_lengths=True, **common)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yinyang:test=train", "yinyang:test=train: test must be validation, got 'train'"),
        ("randman:classes=1", "classes must be a number from 2 to 100, got '1'"),
        ("randman:dims=0", "dims must be a number from 1 to 4, got '0'"),
        ("randman:alpha=1.5", "alpha must be a number from 1 to 8, got '1.5'"),
        ("randman:neurons=9999", "neurons must be a number from 1 to 1000, got '9999'"),
        ("fsdd-timing:spikes=0", "spikes must be a number from 1 to 20, got '0'"),
        ("yinyang", "a latency code needs at least 6 steps, got 5"),
        ("randman", "a latency code needs at least 6 steps, got 5"),
    ],
)
def test_wrong_options_are_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name, steps=5 if "=" not in name else 30)


@pytest.mark.parametrize("name", ["yinyang", "randman"])
def test_train_needs_no_files(stsbp: Any, name: str) -> None:
    result: Result = stsbp("train", name, "--epochs", 1, "--limit", 100, "--steps", 12, "--out", "run")
    assert result.exit_code == 0, result.output
    assert "test accuracy" in result.output
