"""events:PATH, a user's own recordings of events in an .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets import Dataset, load
from stsbp.datasets.base import lengths_of
from stsbp.errors import DataError
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray

SAMPLES, EVENTS = 10, 400


def _arrays(**changes: AnyArray | None) -> dict[str, Any]:
    random = np.random.default_rng(0)
    arrays: dict[str, AnyArray | None] = {
        "sample": random.integers(0, SAMPLES, EVENTS),
        "x": random.integers(0, 7, EVENTS).astype(np.uint16),
        "y": random.integers(0, 5, EVENTS).astype(np.uint16),
        "t": random.integers(0, 300_000, EVENTS),
        "p": random.integers(0, 2, EVENTS).astype(bool),
        "labels": np.arange(SAMPLES) % 2,
        **changes,
    }
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.fixture
def events_file(tmp_path: Path) -> Callable[..., Path]:
    """A file of 10 samples; keywords replace its arrays, None leaves one out."""

    def write(**changes: AnyArray | None) -> Path:
        np.savez_compressed(tmp_path / "own.npz", **_arrays(**changes))
        return tmp_path / "own.npz"

    return write


def _load(path: Path, **options: Any) -> Dataset:
    return load(f"events:{path}", cache_dir=path.parent / "cache", **{"steps": 6, **options})


@pytest.mark.parametrize(
    ("without", "shape"), [((), (2, 5, 7)), (("p",), (1, 5, 7)), (("y", "p"), (7,))], ids=["xytp", "xyt", "xt"]
)
def test_frames_have_an_event_where_the_file_has_one(
    without: tuple[str, ...], shape: tuple[int, ...], events_file: Callable[..., Path]
) -> None:
    arrays = _arrays(**dict.fromkeys(without))
    split = (np.arange(SAMPLES) == 8).astype(np.uint8)
    data = _load(events_file(**dict.fromkeys(without), split=split))
    assert data.input_shape == shape
    expected = np.zeros((6, *shape), np.uint8)
    for k in np.flatnonzero(arrays["sample"] == 8):
        place = [int(arrays[name][k]) for name in ("p", "y", "x") if name in arrays]
        place = [0, *place] if len(place) == 2 else place
        expected[(int(arrays["t"][k]) * 6 // 300_000, *place)] = 1
    assert np.array_equal(data.test.inputs(np.array([0]))[:, 0], expected)
    assert (len(data.train), len(data.test)) == (9, 1)
    assert data.test.labels.tolist() == [0]


def test_names_of_classes_size_of_the_sensor_and_samples_without_events(events_file: Callable[..., Path]) -> None:
    path = events_file(labels=np.arange(SAMPLES + 1) % 2, classes=np.array(["left", "right"]), sensor=np.array([8, 9]))
    data = _load(path)
    assert data.input_shape == (2, 8, 9)
    assert data.classes == ("left", "right")
    assert (len(data.train), len(data.test)) == (9, 2)
    all_samples = _load(path, train_only=True).train
    assert len(all_samples) == SAMPLES + 1
    assert not all_samples.inputs(np.array([SAMPLES])).any()
    assert _load(events_file(y=None, p=None, sensor=np.array([20]))).input_shape == (20,)


def test_binning_is_that_of_the_options(events_file: Callable[..., Path]) -> None:
    path = events_file(split=np.array([1] * 5 + [0] * 5))
    early = _load(path, binning=EventBinning(window_us=100_000)).test.inputs(np.arange(5))
    longer = _load(path, steps=18).test.inputs(np.arange(5))
    assert np.array_equal(early, longer[:6])


_NOT_UNICODE = np.full((2, 1), 0x110000, "<u4").view("<U1")[:, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": _NOT_UNICODE}, "classes has a text with a character that is not in Unicode"),
        ({"classes": np.array(["a", "a"])}, "at least 2 different texts"),
        ({"z" * 5000: np.zeros(1)}, f", {'z' * 100}[.]{{3}}$"),
        ({f"z{number}": np.zeros(1) for number in range(500)}, "[(]506 in all[)]$"),
        ({"labels": None}, "must hold labels and the columns sample x t, or sample x y t, or sample x y t p"),
        ({"sample": None}, "must hold labels and the columns"),
        ({"y": None}, "must hold labels and the columns"),
        ({"extra": np.zeros(3)}, "got sample, x, y, t, p, labels, extra"),
        ({"t": np.zeros(EVENTS)}, rf"t must be integers \[{EVENTS}\] as t is, in microseconds, got float64"),
        ({"t": np.int64(3)}, r"sample must be integers \[1\] as t is"),
        ({"x": np.zeros(EVENTS - 1, np.int64)}, rf"x must be integers \[{EVENTS}\] as t is, got int64 \[399\]"),
        ({"x": np.full(EVENTS, 2**14)}, "x must be 0 to 16383, got 16384 to 16384"),
        ({"y": np.full(EVENTS, -1)}, "y must be 0 to 16383, got -1 to -1"),
        ({"p": np.full(EVENTS, 2)}, "p must be 0 to 1, got 2 to 2"),
        ({"sample": np.full(EVENTS, SAMPLES)}, "sample must be 0 to 9, got 10 to 10"),
        ({"t": np.full(EVENTS, -5)}, "t must be 0 to 1099511627776, got -5 to -5"),
        ({"labels": np.zeros(SAMPLES)}, r"labels must be integers \[n\]"),
        ({"labels": np.int64(1)}, r"labels must be integers \[n\]"),
        ({"sensor": np.array([4, 7])}, r"sensor must be rows and columns, at least \[5, 7\], got int64 \[4, 7\]"),
        ({"sensor": np.array([9])}, "sensor must be rows and columns"),
        ({"sensor": np.array([10_000, 10_000])}, "is too large"),
        ({"split": np.zeros(3, np.uint8)}, "split must be 10 values 0 and 1"),
        ({"x": np.array([None, {}])}, r"\(\.npz\): Object arrays cannot be loaded$"),
    ],
)
def test_own_file_is_checked(events_file: Callable[..., Path], changes: dict[str, AnyArray], message: str) -> None:
    path = events_file(**changes)
    with pytest.raises(DataError, match=message) as error:
        _load(path)
    assert str(path) in str(error.value)


def test_array_that_a_file_has_twice(events_file: Callable[..., Path]) -> None:
    path = events_file()
    with zipfile.ZipFile(path, "a") as file, file.open("labels", "w") as member:
        np.lib.format.write_array(member, 1 - np.arange(SAMPLES) % 2)
    with pytest.raises(DataError, match="has the array 'labels' twice; leave one of them out"):
        _load(path)


def test_names_of_classes_have_a_length_that_checkpoints_may_hold(events_file: Callable[..., Path]) -> None:
    assert len(_load(events_file(classes=np.array(["a" * 255, "b"]))).classes[0]) == 255
    with pytest.raises(DataError, match="events: the name of a class has at most 255 characters, got 256"):
        _load(events_file(classes=np.array(["a" * 256, "b"])))


def test_own_events_are_trained_and_evaluated(events_file: Callable[..., Path], stsbp: Callable[..., Result]) -> None:
    path = events_file()
    options = ("--net", 5, "--steps", 4, "--epochs", 1, "--bin-ms", 10, "--out", "run")
    done = stsbp("train", f"events:{path}", *options)
    assert done.exit_code == 0, done.output
    assert "10 samples of" in done.output
    assert stsbp("evaluate", "run").exit_code == 0
    assert f'dataset = "events:{path}"' in Path("run/config.toml").read_text()
    refused = stsbp("train", "events")
    assert refused.exit_code == 1


def test_files_whose_arrays_are_cut_elsewhere_have_caches_of_their_own(tmp_path: Path) -> None:
    for labels, sample, x in (([0, 1, 0, 1, 0], [0, 0], [1, 1]), ([0, 1], [0, 1, 0], [0, 0, 1])):
        path = tmp_path / f"{len(labels)}.npz"
        np.savez(path, labels=labels, sample=sample, x=x, t=np.ones_like(x), sensor=[2])
        dataset = _load(path)
        assert len(dataset.train.labels) + len(dataset.test.labels) == len(labels)


def test_recordings_of_their_own_lengths(events_file: Callable[..., Path]) -> None:
    arrays = _arrays()
    # Every recording ends earlier than the one before.
    t = arrays["t"] * (SAMPLES - arrays["sample"]) // SAMPLES
    path = events_file(t=t, split=np.zeros(SAMPLES, np.uint8))
    full, ended = (_load(path, own_lengths=own_lengths, train_only=True) for own_lengths in (False, True))
    assert lengths_of(full.train) is None
    lengths = lengths_of(ended.train)
    assert lengths is not None
    last = [int(t[arrays["sample"] == k].max()) for k in range(SAMPLES)]
    assert lengths.tolist() == [6 * at // 300_000 + 1 for at in last]
    assert len(set(lengths.tolist())) > 3
    everything = np.arange(SAMPLES)
    assert np.array_equal(full.train.inputs(everything), ended.train.inputs(everything))


def test_changed_names_of_classes_are_named(events_file: Callable[..., Path], stsbp: Callable[..., Result]) -> None:
    path = events_file(classes=np.array(["x", "y"]))
    options = ("--net", 5, "--steps", 4, "--epochs", 1, "--out", "run")
    assert stsbp("train", f"events:{path}", *options).exit_code == 0
    events_file(classes=np.array(["x", "z"]))
    refused = stsbp("evaluate", "run")
    assert refused.exit_code == 1
    assert "with 2 classes of other names, but the run was trained on events" in refused.stderr


def test_training_and_evaluating_say_that_there_is_one_class(
    events_file: Callable[..., Path], stsbp: Callable[..., Result], tiny: tuple[str, ...]
) -> None:
    name, small = (
        f"events:{events_file(labels=np.zeros(SAMPLES, np.int64))}",
        ("--limit", 6, "--holdout", 2, "--validation", 0),
    )
    warning = "has only the class '0', so every accuracy is 100 % and says nothing"
    for command in (("train", name, *tiny, *small, "--out", "run"), ("evaluate", "run")):
        result = stsbp(*command)
        assert result.exit_code == 0, result.output
        assert result.stderr.count(warning) == 1, result.stderr


def test_training_and_evaluating_say_that_classes_of_the_test_are_untrained(
    events_file: Callable[..., Path], stsbp: Callable[..., Result], tiny: tuple[str, ...]
) -> None:
    split = (np.arange(SAMPLES) >= 7).astype(np.uint8)
    labels = np.where(split, np.arange(SAMPLES) % 2 + 1, 0)
    name, small = f"events:{events_file(labels=labels, split=split)}", ("--limit", 0, "--holdout", 0, "--validation", 0)
    warning = "3 of the 3 test samples are of classes without training samples, which the network cannot know: '1', '2'"
    for command in (("train", name, *tiny, *small, "--out", "run"), ("evaluate", "run")):
        result = stsbp(*command)
        assert result.exit_code == 0, result.output
        assert result.stderr.count(warning) == 1, result.stderr
    some = events_file(labels=np.where(split, np.arange(SAMPLES) % 2, 0), split=split)
    result = stsbp("train", f"events:{some}", *tiny, *small, "--out", "other")
    assert "2 of the 3 test samples are of classes without training samples" in result.stderr, result.stderr


def test_events_after_the_window_are_noted(events_file: Callable[..., Path]) -> None:
    times = _arrays()["t"]
    path = events_file(t=times)
    assert not any("after the window" in note for note in _load(path).notes)
    late = int((times >= 100_000).sum())
    assert 0 < late < EVENTS
    binning = EventBinning(window_us=100_000)
    message = f"{late} of 400 events lie after the window of 100 ms (--window-ms) and are dropped"
    assert message in _load(path, binning=binning).notes
    with pytest.raises(
        DataError, match=r"all of its 400 events lie after the window of 300 ms \(--window-ms\)\. Times"
    ):
        _load(events_file(t=times + 10**9))
