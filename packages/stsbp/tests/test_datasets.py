"""Choosing samples, the registry, digits, and the simulated camera."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp.datasets import DATASETS, Dataset, Subset, hold_out, load, select_balanced
from stsbp.datasets.base import ArraySplit, FrameSplit, Progress, Request, cut_test, names_unreadable
from stsbp.datasets.digits import read_digits
from stsbp.datasets.saccades import SaccadeCamera, enlarge
from stsbp.errors import DataError
from stsbp_spec.errors import SpecError, StsbpError
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray, Float64, Int64, UInt8


def _split(labels: Int64) -> ArraySplit:
    images = np.arange(len(labels), dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]
    return ArraySplit(images, labels)


@pytest.mark.parametrize("count", [1, 7, 30, 60, 100, 200])
@pytest.mark.parametrize("seed", [0, 5])
def test_select_balanced_takes_as_many_of_each_class_as_there_are(count: int, seed: int) -> None:
    labels = np.random.default_rng(1).choice([0, 1, 2], 100, p=[0.6, 0.3, 0.1])
    chosen = select_balanced(labels, count, seed=seed)
    assert len(chosen) == min(count, 100)
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, select_balanced(labels, count, seed=seed))
    selected, available = np.bincount(labels[chosen], minlength=3), np.bincount(labels, minlength=3)
    # A class that is not exhausted has at most one sample less than any other.
    assert all(selected[k] == available[k] or selected[k] >= selected.max() - 1 for k in range(3))


@pytest.mark.parametrize(
    ("filename", "named"), [("/data/a/b.bin", "/data/a/b.bin"), (None, "/data"), ("x" * 5000, "x{200,1000}\\.\\.\\.")]
)
def test_files_that_the_system_refuses_to_read_are_named(filename: str | None, named: str, tmp_path: Path) -> None:
    @names_unreadable
    def loads(request: Request) -> Dataset:
        error = PermissionError(13, "Permission denied")
        error.filename = filename
        raise error

    with pytest.raises(DataError, match=f"^cannot read {named}: Permission denied$"):
        loads(Request("nmnist", Path("/data"), tmp_path))


def test_select_balanced_is_frozen() -> None:
    """The split must not change between versions: results would stop being comparable."""
    labels = np.arange(30) % 3
    assert select_balanced(labels, 5).tolist() == [8, 9, 16, 17, 27]
    assert select_balanced(labels, 5, seed=1).tolist() == [1, 2, 7, 18, 26]


@pytest.mark.parametrize("wrong", [2**24, 2**70, -1, 1.5, True, "2", np.arange(20)], ids=str)
def test_samples_are_not_chosen_without_a_substream(wrong: Any) -> None:
    labels = np.arange(20) % 4
    with pytest.raises(SpecError, match=r"^substream must be"):
        select_balanced(labels, 8, substream=wrong)
    with pytest.raises(SpecError, match=r"^substream must be"):
        hold_out(_split(labels), 8, substream=wrong)


@pytest.mark.parametrize("wrong", ["8", None, 8.0, True], ids=str)
def test_holdout_must_be_a_number_of_samples(wrong: Any) -> None:
    with pytest.raises(SpecError, match="the number of samples to hold out must be an integer, got"):
        hold_out(_split(np.arange(20) % 4), wrong)


def test_hold_out_parts_are_disjoint_and_complete() -> None:
    labels = np.arange(20) % 4
    train, test = hold_out(_split(labels), 8)
    assert len(test) == 8
    assert np.bincount(test.labels).tolist() == [2, 2, 2, 2]
    assert sorted([*train.indices, *test.indices]) == list(range(20))
    assert test.indices.tolist() == hold_out(_split(labels), 8, seed=0, substream=0)[1].indices.tolist()
    assert test.indices.tolist() != hold_out(_split(labels), 8, seed=1)[1].indices.tolist()


@pytest.mark.parametrize(("holdout", "held"), [(None, 8), (5, 5)])
def test_holdout_is_the_requested_or_the_default_number(holdout: int | None, held: int) -> None:
    request = Request("digits", Path("/data"), Path("/cache"), holdout=holdout, seed=3)
    train, test = cut_test(_split(np.arange(20) % 4), 8, request)
    assert (len(train), len(test)) == (20 - held, held)
    assert test.indices.tolist() == hold_out(_split(np.arange(20) % 4), held, seed=3)[1].indices.tolist()


def test_progress_is_reported_ten_times_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, reports = iter([0.0, 0.05, 0.1, 0.15, 0.25, 0.26]), []
    monkeypatch.setattr("stsbp.datasets.base.time.monotonic", lambda: next(now))
    progress = Progress(lambda activity, done, total: reports.append((activity, done, total)), "reading", 6)
    for done in (1, 2, 3, 4, 5, 6):
        progress(done)
    assert reports == [("reading", done, 6) for done in (1, 3, 5, 6)]


@pytest.mark.parametrize("count", [1, 19])
def test_hold_out_takes_one_and_leaves_one(count: int) -> None:
    train, test = hold_out(_split(np.zeros(20, np.int64)), count)
    assert (len(train), len(test)) == (20 - count, count)


@pytest.mark.parametrize("count", [-1, 0, 20, 21])
def test_hold_out_refuses_to_leave_nothing(count: int) -> None:
    with pytest.raises(DataError, match="cannot hold out"):
        hold_out(_split(np.zeros(20, np.int64)), count)


def test_subset_of_a_subset_maps_to_the_samples() -> None:
    split = _split(np.arange(10))
    inner = Subset(Subset(split, np.array([8, 6, 4, 2])), np.array([3, 0]))
    assert inner.labels.tolist() == [2, 8]
    assert len(inner) == 2
    assert inner.inputs(np.array([1, 0, 1])).ravel().tolist() == [8, 2, 8]


@pytest.mark.parametrize("indices", [[-1], [10], [[1]]])
def test_subset_refuses_bad_indices(indices: list[int]) -> None:
    with pytest.raises(DataError, match="indices from 0 to 9"):
        Subset(_split(np.arange(10)), np.array(indices))


def test_subset_of_a_mask_are_the_samples_for_which_it_is_true() -> None:
    split = _split(np.arange(10))
    assert Subset(split, split.labels % 4 == 1).indices.tolist() == [1, 5, 9]
    assert Subset(split, np.zeros(10, bool)).indices.tolist() == []
    assert Subset(split, [True] * 9 + [False]).indices.tolist() == list(range(9))  # type: ignore[arg-type]
    assert Subset(split, []).indices.dtype == np.int64  # type: ignore[arg-type]


class _Unreadable:
    """An array that its library does not pass on, as torch does not a tensor with a gradient."""

    def __array__(self, *_: object, **__: object) -> AnyArray:
        raise RuntimeError("detach it first")

    def __index__(self) -> int:
        raise RuntimeError("detach it first")

    def __repr__(self) -> str:
        return "an array that stays away"


_INDICES: tuple[tuple[Any, str], ...] = (
    (np.array([0.5]), r"float64 \[1\]"),
    (np.array([3, 10]), r"int64 \[2\] from 3 to 10"),
    ("all", "'all'"),
    (np.array(["1"]), r"<U1 \[1\]"),
    (np.ma.masked_array([1, 2], [False, True]), "a masked array; fill in its masked values"),
    (_Unreadable(), "an array that stays away"),
)


@pytest.mark.parametrize(("indices", "got"), _INDICES)
def test_splits_refuse_invalid_sample_numbers(indices: Any, got: str) -> None:
    images = _split(np.arange(10))
    frames = FrameSplit(FrameSplit.store(np.zeros((10, 3, 4), np.uint8)), np.arange(10), 3)
    for call in (images.inputs, images.stored, frames.inputs, frames.stored, Subset(images, np.arange(10)).inputs):
        with pytest.raises(DataError, match=f"samples have numbers from 0 to 9, an array of integers .k., got {got}"):
            call(indices)


def test_the_path_of_a_folder_has_no_zero_byte() -> None:
    for option in ("cache_dir", "data_dir"):
        with pytest.raises(DataError, match=f"{option} is the path of a folder, which has no zero byte, got 'a"):
            load("digits-events", **{option: "a\0b"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("indices", "got"),
    [
        (np.array([True, False]), r"got bool \[2\]"),
        (np.ones((10, 1), bool), r"got bool \[10, 1\]"),
        (np.array([0.5, 1.9]), r"got float64 \[2\]"),
        (np.array([2**64 - 1], np.uint64), r"got uint64 \[1\]"),
        (np.array(["1"]), r"got <U1 \[1\]"),
        (None, "got None"),
        ([[1, 2], [3]], r"got \[\[1, 2\], \[3\]\]"),
        (np.ma.masked_array([1, 2], [False, True]), "got a masked array; fill in its masked values"),
        (_Unreadable(), "got an array that stays away"),
    ],
)
def test_subset_accepts_only_indices_or_a_mask(indices: Any, got: str) -> None:
    with pytest.raises(DataError, match=f"indices from 0 to 9 on one axis, or a mask of 10 bools, {got}"):
        Subset(_split(np.arange(10)), indices)


@pytest.mark.parametrize("count", [-1, 1.5, True, None])
def test_select_balanced_refuses_invalid_counts(count: Any) -> None:
    with pytest.raises(SpecError, match="the number of chosen samples must be"):
        select_balanced(np.array([0, 1, 0, 1]), count)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], None, np.array([0.0, 1.0]), np.array([[0, 1]]), np.array(["a", "b"])])
def test_labels_that_are_no_array_of_integers_are_refused(labels: Any) -> None:
    count = 1 if labels is None else len(labels)
    with pytest.raises(DataError, match=r"^labels must be a numpy array of integers \[n\], got "):
        select_balanced(labels, 1)
    with pytest.raises(DataError, match=rf"^ArraySplit: labels must be .*, one for each of {count} samples, got "):
        ArraySplit(np.zeros((count, 2, 2, 1), np.uint8), labels)
    with pytest.raises(DataError, match=rf"^FrameSplit: labels must be .*, one for each of {count} samples, got "):
        FrameSplit(np.zeros((count, 1, 3), np.uint8), labels, 5)


@pytest.mark.parametrize("count", [3, 5])
def test_every_sample_has_one_label(count: int) -> None:
    labels = np.zeros(count, np.int64)
    with pytest.raises(DataError, match=rf"one for each of 4 samples, got int64 \[{count}\]"):
        ArraySplit(np.zeros((4, 2, 2, 1), np.uint8), labels)
    with pytest.raises(DataError, match=rf"one for each of 4 samples, got int64 \[{count}\]"):
        FrameSplit(np.zeros((4, 1, 3), np.uint8), labels, 5)


def test_samples_are_an_array() -> None:
    images: Any = [[[[1]]]]
    with pytest.raises(DataError, match=r"^ArraySplit: images must be a numpy array .*, got \[\[\[\[1\]\]\]\]"):
        ArraySplit(images, np.array([0]))
    wrong: list[Any] = [np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2), np.uint8)]
    for array in wrong:
        with pytest.raises(DataError, match=rf"^ArraySplit: images must .*, got {array.dtype} \[1, 2, 2"):
            ArraySplit(array, np.array([0]))


_STORED = np.zeros((4, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "steps", "binary", "message"),
    [
        (_STORED * 0.5, 16, True, r"frames must be a numpy array of uint8, .*, got float64 \[4, 2, 3\]"),
        (_STORED.astype(np.int64), 2, False, r"frames must be a numpy array of uint8, .*, got int64 \[4, 2, 3\]"),
        (_STORED[..., None], 16, True, r"with three or five axes, got uint8 \[4, 2, 3, 1\]"),
        (_STORED, 17, True, "2 entries, which are 9 to 16 steps with binary=True, but steps is 17; give"),
        (_STORED, 8, True, "2 entries, which are 9 to 16 steps with binary=True, but steps is 8; give"),
        (_STORED, 16, False, "2 entries, which are 2 steps with binary=False, but steps is 16; give"),
        (_STORED, 0, True, "steps must be at least 1, got 0"),
        (_STORED, 10.0, True, "steps must be an integer, got 10.0"),
        (FrameSplit.store(np.ones((4, 10, 3), np.uint8)), 9, True, "spikes in step 10, but steps is 9; give"),
    ],
)
def test_frames_in_another_form_than_the_stored_one_are_refused(
    frames: Any, steps: Any, binary: bool, message: str
) -> None:
    with pytest.raises(StsbpError, match=f"^FrameSplit: .*{message}"):
        FrameSplit(frames, np.zeros(4, np.int64), steps, binary)


def test_lengths_in_a_list_are_refused() -> None:
    lengths: Any = [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"4 samples need as many lengths, a numpy array .*, got \[1, 2, 3, 4\]"):
        FrameSplit(_STORED, np.zeros(4, np.int64), 16, lengths=lengths)


@pytest.mark.parametrize(
    ("frames", "binary", "message"),
    [
        (
            np.array([[[0, 2]]]),
            True,
            "must have values 0 and 1, got 0 to 2; a FrameSplit keeps counts if it and store get binary=False$",
        ),
        (np.array([[[0, -1]]]), True, "must have values 0 and 1, got -1 to 0$"),
        (np.array([[[0, -1]]]), False, "must have values from 0 to 255, got -1 to 0$"),
        (np.array([[[256, 256]]]), False, "must have values from 0 to 255, got 256 to 256$"),
        (np.array([[[0, 2**64 - 1]]], np.uint64), True, "must have values 0 and 1, got 0 to 18446744073709551615$"),
        (np.array([[[0.5]]]), False, r"must be a numpy array of integers, .*, got float64 \[1, 1, 1\]"),
        (np.array([[1]]), True, r"must be a numpy array of integers, .*, got int64 \[1, 1\]"),
        ([[[1]]], True, r"must be a numpy array of integers, .*, got \[\[\[1\]\]\]"),
    ],
)
def test_store_refuses_frames_that_it_cannot_represent(frames: Any, binary: bool, message: str) -> None:
    with pytest.raises(DataError, match=rf"^FrameSplit\.store: frames {message}"):
        FrameSplit.store(frames, binary=binary)


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.int64, np.uint16])
def test_store_accepts_integers_of_any_type(kind: Any) -> None:
    frames = np.arange(20).reshape(2, 5, 2) % 2
    stored = FrameSplit.store(frames.astype(kind))
    assert np.array_equal(FrameSplit(stored, np.zeros(2, np.int64), 5).inputs(np.arange(2)), frames.swapaxes(0, 1))
    if kind is not np.bool_:
        counts = FrameSplit.store((7 * frames).astype(kind), binary=False)
        assert counts.dtype == np.uint8
        assert counts.max() == 7


class _ShortLabels:
    """A split of the user with fewer labels than samples."""

    labels = np.array([0])

    def __len__(self) -> int:
        return 2

    def inputs(self, indices: Int64) -> UInt8:
        return np.zeros((len(indices), 1, 1, 1), np.uint8)

    stored = inputs


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input_shape", 6, r"input_shape must be a tuple \(N,\) or \(C, H, W\) of integers, got 6"),
        ("input_shape", [1, 1, 1], "input_shape must be a tuple"),
        ("input_shape", (1, 0, 1), "input_shape must be a tuple"),
        ("input_shape", (np.int64(6),), "input_shape must be a tuple"),
        ("classes", (0, 1), r"classes must be a tuple of the names of the classes, got \(0, 1\)"),
        ("classes", np.array(["a", "b"]), "classes must be a tuple of the names"),
        ("classes", ["a", "b"], "classes must be a tuple of the names"),
        ("classes", "ab", "classes must be a tuple of the names"),
        ("classes", ("a", "b", "a"), "classes must have different names, got 'a' twice"),
        ("classes", (), "there must be classes, or else neurons.*, got 0 classes and neurons = 0"),
        ("neurons", 3, "there must be classes, or else neurons.*, got 2 classes and neurons = 3"),
        ("notes", "a note", r"notes must be a tuple of texts, for example \('a note',\), got 'a note'"),
        ("notes", ("a note", 2), "notes must be a tuple of texts"),
        ("train", None, r"train must be a split, .* and stored\(indices\), got a NoneType"),
        ("test", np.zeros(3), r"test must be a split, .* and stored\(indices\), got a ndarray"),
        ("train", _ShortLabels(), r"the labels of train must be .*, one for each of 2 samples, got int64 \[1\]"),
        ("test", _split(np.array([0, 2])), "the labels of test must be 0 to 1, the numbers of its classes, got 0 to 2"),
        ("train", _split(np.array([-1, 0])), "the labels of train must be 0 to 1, .* got -1 to 0"),
    ],
)
def test_data_set_with_a_mistake_is_refused(field: str, value: Any, message: str) -> None:
    split = _split(np.array([0, 1]))
    good = Dataset("own", "direct", (1, 1, 1), ("a", "b"), split, split)
    with pytest.raises(StsbpError, match=f"^own: {message}"):
        replace(good, **{field: value})


@pytest.mark.parametrize("binary", [True, False], ids=["packed", "counts"])
@pytest.mark.parametrize("shape", [(2, 34, 34), (1, 3, 5), (2, 1, 1)])
def test_frames_survive_storage(shape: tuple[int, int, int], binary: bool) -> None:
    frames: UInt8 = np.random.default_rng(0).integers(0, 2 if binary else 256, (6, 4, *shape), dtype=np.uint8)
    split = FrameSplit(FrameSplit.store(frames, binary=binary), np.zeros(6, np.int64), 4, binary)
    indices = np.array([5, 0, 3, 3])
    batch = split.inputs(indices)
    assert batch.shape == (4, 4, *shape)
    assert batch.dtype == np.uint8
    assert np.moveaxis(batch, 2, -1).flags.c_contiguous
    assert np.array_equal(batch, frames[indices].swapaxes(0, 1))
    assert split.inputs(np.zeros(0, np.int64)).shape == (4, 0, *shape)


def test_progress_is_throttled_and_tells_the_end() -> None:
    calls: list[tuple[str, int, int]] = []
    report = Progress(lambda *call: calls.append(call), "work", 1000)
    for done in range(1, 1001):
        report(done)
    assert calls[0] == ("work", 1, 1000)
    assert calls[-1] == ("work", 1000, 1000)
    assert len(calls) < 20
    Progress(None, "work", 1)(1)


def test_listing_data_sets_imports_nothing_heavy() -> None:
    code = (
        "import sys; from stsbp.datasets import DATASETS; assert len([*DATASETS.values()]) >= 20; "
        "heavy = {'torch', 'tonic', 'torchvision', 'sklearn', 'PIL', 'pandas', 'h5py', 'aedat'}; "
        "print(sorted(heavy & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_data_sets_are_described() -> None:
    for name, info in DATASETS.items():
        assert info.name == name
        assert info.description
        assert info.coding in ("direct", "events")


def test_load_refuses_unknown_names() -> None:
    message = r"unknown data set 'mnits' \(did you mean mnist\?\); known: digits, .*folder:PATH"
    with pytest.raises(DataError, match=message):
        load("mnits")
    with pytest.raises(DataError, match="limit must be at least 1"):
        load("digits", limit=0)
    with pytest.raises(SpecError, match="steps"):
        load("digits", steps=0)
    with pytest.raises(SpecError, match="seed"):
        load("digits", seed=-1)


@pytest.mark.parametrize("name", ["nmnist", "cifar10", "images"])
def test_load_asks_for_a_data_folder(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STSBP_DATA", raising=False)
    with pytest.raises(DataError, match="folder"):
        load(name, cache_dir=tmp_path)
    monkeypatch.setenv("STSBP_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        load(name, cache_dir=tmp_path)


class TestDigits:
    def test_are_scaled_and_split(self) -> None:
        dataset = load("digits")
        assert dataset.coding == "direct"
        assert dataset.input_shape == (1, 8, 8)
        assert len(dataset.classes) == 10
        assert (len(dataset.train), len(dataset.test)) == (1438, 359)
        assert set(np.bincount(dataset.test.labels)) == {35, 36}
        images = dataset.train.inputs(np.arange(len(dataset.train)))
        assert images.dtype == np.uint8
        assert set(np.unique(images)) == {*range(0, 256, 16), 255}
        assert "1797" in dataset.notes[0]

    def test_are_those_of_scikit_learn(self) -> None:
        sklearn_datasets = pytest.importorskip("sklearn.datasets")
        expected = sklearn_datasets.load_digits()
        images, labels = read_digits()
        assert np.array_equal(images, np.minimum(255, expected.images * 16))
        assert np.array_equal(labels, expected.target)

    def test_limit_is_balanced_and_part_of_the_training_samples(self) -> None:
        unlimited, limited = load("digits"), load("digits", limit=50)
        assert np.bincount(limited.train.labels).tolist() == [5] * 10
        assert np.array_equal(unlimited.test.labels, limited.test.labels)
        assert "limited to 50 of 1438" in limited.notes[-1]
        assert len(load("digits", limit=1438).train) == 1438
        assert load("digits", limit=1438).notes == unlimited.notes

    def test_a_limit_above_the_number_of_samples_is_noted(self) -> None:
        beyond = load("digits", limit=1439)
        assert len(beyond.train) == 1438
        assert beyond.notes[-1] == "limit 1,439 has no effect: there are only 1,438 training samples"

    def test_split_follows_its_seed(self) -> None:
        first, repeated, other = (load("digits", seed=seed, holdout=100).test for seed in (0, 0, 1))
        everything = np.arange(100)
        assert np.array_equal(first.inputs(everything), repeated.inputs(everything))
        assert not np.array_equal(first.inputs(everything), other.inputs(everything))

    def test_need_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(DataError, match=r'pip install "stsbp\[digits\]"'):
            load("digits")


class TestSaccadeCamera:
    @pytest.fixture
    def digits(self) -> UInt8:
        return enlarge(read_digits()[0][:30], 3)

    def test_enlarge_keeps_flat_images_and_interpolates(self) -> None:
        flat = np.full((2, 3, 4), 77, np.uint8)
        assert np.array_equal(enlarge(flat, 3), np.full((2, 9, 12), 77))
        ramp = enlarge(np.array([[[0, 60]]], np.uint8), 3)[0, 0]
        assert ramp.tolist() == [0, 0, 20, 40, 60, 60]
        assert np.array_equal(enlarge(ramp[np.newaxis, np.newaxis], 1)[0, 0], ramp)

    def test_events_are_ordered_in_range_and_about_as_many_as_real_ones(self, digits: UInt8) -> None:
        recordings = SaccadeCamera().record(digits)
        counts = np.array([len(recording.t) for recording in recordings])
        assert 3000 < counts.mean() < 5000
        assert counts.min() > 1500
        for x, y, p, t in recordings:
            assert (np.diff(t) >= 0).all()
            assert t.min() >= 0
            assert t.max() <= 300_000
            assert min(x.min(), y.min()) >= 0
            assert max(x.max(), y.max()) < 34
            assert set(np.unique(p)) == {0, 1}
            assert 0.45 < p.mean() < 0.55

    def test_each_saccade_has_its_share(self, digits: UInt8) -> None:
        t = np.concatenate([recording.t for recording in SaccadeCamera().record(digits)])
        shares = np.histogram(t, 3, (0, 300_000))[0] / len(t)
        assert ((shares > 0.2) & (shares < 0.5)).all()

    def test_recording_does_not_depend_on_the_batch(self, digits: UInt8) -> None:
        camera = SaccadeCamera()
        together = camera.record(digits)
        for k in (0, 17):
            alone = camera.record(digits[k : k + 1])[0]
            assert all(np.array_equal(a, b) for a, b in zip(alone, together[k], strict=True))
        many = camera.record(np.concatenate([digits] * 3))
        assert len(many) == 90
        assert np.array_equal(many[89].t, together[29].t)

    @pytest.mark.parametrize(
        ("until", "row", "column"), [(100_000, 6.5, 3.0), (200_000, -0.5, 6.5), (300_001, -0.5, -0.5)]
    )
    def test_events_follow_the_log_intensity(self, until: int, row: float, column: float) -> None:
        """ON minus OFF events, times the threshold, are a pixel's change of log intensity.

        Within half a threshold at the start (where it begins between two events) and one at the end.
        """
        image = np.zeros((28, 28), np.uint8)
        image[6:20, 10:13] = 200
        image[9:12, 4:22] = 90
        camera = SaccadeCamera()
        x, y, p, t = camera.record(image[np.newaxis])[0]
        net = np.zeros((34, 34))
        np.add.at(net, (y[t < until], x[t < until]), np.where(p[t < until] == 1, 1, -1))

        def log_intensity(row: float, column: float) -> Float64:
            """The image with its corner at a place in half pixels, drawn at twice the size and averaged."""
            drawn = np.zeros((80, 80))
            top, left = round(2 * row) + 2, round(2 * column) + 2
            drawn[top : top + 56, left : left + 56] = np.kron(image / 255, np.ones((2, 2)))
            light = drawn[2:70, 2:70].reshape(34, 2, 34, 2).mean(axis=(1, 3))
            return np.asarray(np.log(camera.floor + light))

        change = log_intensity(row, column) - log_intensity(-0.5, -0.5)
        assert np.abs(change - net * camera.threshold).max() <= 1.5 * camera.threshold + 1e-3
        assert np.abs(net).max() >= (2 if until < 300_000 else 0)

    def test_a_blank_image_is_silent(self) -> None:
        assert len(SaccadeCamera().record(np.full((1, 28, 28), 0, np.uint8))[0].t) == 0

    def test_refuses_images_larger_than_the_field(self) -> None:
        with pytest.raises(DataError, match="at most 34 x 34"):
            SaccadeCamera().record(np.zeros((1, 35, 20), np.uint8))


@pytest.mark.usefixtures("few_recordings")
@pytest.mark.parametrize("few_recordings", [120], indirect=True)
def test_digits_events_are_simulated_once(tmp_path: Path) -> None:
    images, _ = read_digits()
    calls: list[str] = []

    def load_watched() -> Dataset:
        return load("digits-events", steps=5, cache_dir=tmp_path, progress=lambda activity, *_: calls.append(activity))

    first = load_watched()
    assert calls
    assert (first.coding, first.input_shape) == ("events", (2, 34, 34))
    assert (len(first.train), len(first.test)) == (96, 24)
    calls.clear()
    reloaded = load_watched()
    assert not calls
    indices = np.arange(20)
    frames = first.train.inputs(indices)
    assert frames.shape == (5, 20, 2, 34, 34)
    assert set(np.unique(frames)) == {0, 1}
    assert np.array_equal(frames, reloaded.train.inputs(indices))
    assert isinstance(first.train, Subset)
    number = int(first.train.indices[7])
    recording = SaccadeCamera().record(enlarge(images[number : number + 1], 3))[0]
    assert np.array_equal(frames[:, 7], EventBinning(steps=5).frames(*recording))
    # The simulated saccades are shorter than those of N-MNIST.
    still = EventBinning(stabilise=True, first_saccade=True, window_us=100_000)
    assert np.array_equal(
        load("digits-events", steps=5, cache_dir=tmp_path, binning=still).train.inputs(indices)[:, 7],
        replace(still, steps=5, saccade_us=100_000).frames(*recording),
    )


def test_stabilisation_makes_a_simulated_recording_sharper() -> None:
    images, _ = read_digits()
    counts = {}
    for still in (False, True):
        binning = EventBinning(steps=1, stabilise=still, saccade_us=100_000)
        counts[still] = sum(
            int(binning.frames(*r).any(axis=1).sum()) for r in SaccadeCamera().record(enlarge(images[:20], 3))
        )
    assert counts[True] < 0.95 * counts[False]
