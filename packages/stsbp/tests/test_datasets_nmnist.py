"""N-MNIST from files of the published layout: layouts, malformed recordings, the cache, and the download."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets import Dataset, load, nmnist
from stsbp.datasets.nmnist import read_recording
from stsbp.errors import DataError
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import Int64

pytest.importorskip("tonic")


def _encode(x: Int64, y: Int64, p: Int64, t: Int64) -> bytes:
    raw = np.stack([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255], axis=1)
    return raw.astype(np.uint8).tobytes()


def _recording(seed: int, n: int = 200) -> tuple[Int64, Int64, Int64, Int64]:
    rng = np.random.default_rng(seed)
    x, y, p = rng.integers(0, 34, n), rng.integers(0, 34, n), rng.integers(0, 2, n)
    return x, y, p, np.sort(rng.integers(0, 310_000, n))


def _write(root: Path, split: str, per_class: int, classes: int = 10) -> None:
    for k in range(classes):
        folder = root / split / str(k)
        folder.mkdir(parents=True)
        for i in range(per_class):
            number = k * per_class + i
            (folder / f"{number:05}.bin").write_bytes(_encode(*_recording(number)))


def _load(path: Path, tmp_path: Path, **options: Any) -> Dataset:
    return load("nmnist", data_dir=path, cache_dir=tmp_path / "cache", **{"steps": 5, **options})


def test_recording_is_decoded() -> None:
    events = _recording(3)
    for column, expected in zip(read_recording(_encode(*events), Path("a.bin")), events, strict=True):
        assert np.array_equal(column, expected)


def test_clock_overflow_events_shift_the_time_and_are_dropped() -> None:
    one = np.ones(4, np.int64)
    x, y, p, t = read_recording(_encode(one, np.array([5, 240, 6, 7]), one, np.array([8000, 0, 10, 20])), Path("a.bin"))
    assert y.tolist() == [5, 6, 7]
    assert t.tolist() == [8000, 8192 + 10, 8192 + 20]
    assert len(x) == len(p) == 3


_ONE, _TWO = np.ones(1, np.int64), np.ones(2, np.int64)
MALFORMED = {
    "empty": (b"", "the file is empty"),
    "cut": (_encode(_ONE, _ONE, _ONE, _ONE)[:-1], r"its length, 4 bytes, is not a multiple of the 5 bytes"),
    "x": (_encode(34 * _ONE, _ONE, _ONE, _ONE), "event 0 lies at x = 34, y = 1, outside the sensor of 34 x 34"),
    "y": (_encode(_TWO, np.array([33, 250]), _TWO, _TWO), "event 1 lies at x = 1, y = 250"),
    "time": (
        _encode(_TWO, _TWO, _TWO, np.array([70_000, 69_999])),
        "time runs backwards at event 1: 69999 us after 70000",
    ),
    "overflow": (_encode(_ONE, 240 * _ONE, _ONE, _ONE), "1 of its 1 events are clock overflows"),
    "overflows": (
        _encode(*(np.ones(5000, np.int64),), np.array([1, *[240] * 4999]), *(np.ones(5000, np.int64),) * 2),
        "4999 of its 5000 events are clock overflows",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_recording_is_named_or_left_out(kind: str, tmp_path: Path) -> None:
    content, reason = MALFORMED[kind]
    _write(tmp_path / "NMNIST", "Train", 2)
    bad = tmp_path / "NMNIST" / "Train" / "3" / "bad.bin"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=reason) as raised:
        _load(tmp_path, tmp_path, holdout=5)
    assert str(bad) in str(raised.value)
    for _ in range(2):  # built, then from the cache
        dataset = _load(tmp_path, tmp_path, holdout=5, skip_malformed=True)
        assert len(dataset.train) + len(dataset.test) == 20
        assert [s.path for s in dataset.skipped] == [str(bad)]
        assert str(bad) in dataset.notes[-1]
    with pytest.raises(DataError, match=reason):
        _load(tmp_path, tmp_path, holdout=5)


def test_malformed_recordings_of_both_folders_are_left_out(tmp_path: Path) -> None:
    bad = []
    for folder in ("Train", "Test"):
        _write(tmp_path / "NMNIST", folder, 1)
        bad.append(tmp_path / "NMNIST" / folder / "4" / "bad.bin")
        bad[-1].write_bytes(b"")
    dataset = _load(tmp_path, tmp_path, skip_malformed=True)
    assert [s.path for s in dataset.skipped] == [str(path) for path in bad]
    assert dataset.notes[-1].startswith(f"left out 2 malformed recordings, the first {bad[0]}: ")


def test_hidden_files_are_no_recordings_and_long_numbers_no_digits(tmp_path: Path) -> None:
    _write(tmp_path, "Train", 1)
    # macOS writes such files into archives and onto some disks.
    (tmp_path / "Train" / "3" / "._00001.bin").write_bytes(b"\0\5\x16\7")
    long = tmp_path / "Train" / "3" / "99999999999999999999.bin"
    long.write_bytes((tmp_path / "Train" / "3" / "00003.bin").read_bytes())
    assert len(_load(tmp_path, tmp_path, only_test=True).test) == 11
    assert sorted(nmnist.tested_digits(tmp_path)) == [k - 1 for k in range(10)]


@pytest.mark.parametrize("inside", ["", "NMNIST"])
def test_layout_is_found_from_the_folder_or_its_parent(inside: str, tmp_path: Path) -> None:
    _write(tmp_path / "data" / "NMNIST", "Train", 1)
    _write(tmp_path / "data" / "NMNIST", "Test", 1, classes=4)
    dataset = _load(tmp_path / "data" / inside, tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (10, 4)
    assert (dataset.coding, dataset.input_shape, len(dataset.classes)) == ("events", (2, 34, 34), 10)
    assert "10 of the 60000" in dataset.notes[0]
    assert "4 of the 10000" in dataset.notes[1]
    assert dataset.test.labels.tolist() == [0, 1, 2, 3]


def test_folder_of_another_name_that_holds_train_is_accepted(tmp_path: Path) -> None:
    _write(tmp_path / "mine", "Train", 1)
    assert len(_load(tmp_path / "mine", tmp_path, holdout=3).train) == 7


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "counts"])
@pytest.mark.parametrize("window", [300_000, None])
def test_frames_are_those_of_the_recordings(binary: bool, window: int | None, tmp_path: Path) -> None:
    _write(tmp_path, "Train", 2)
    _write(tmp_path, "Test", 1)
    binning = EventBinning(steps=7, window_us=window, polarities=1, binary=binary)
    dataset = _load(tmp_path, tmp_path, steps=7, binning=binning)
    frames = dataset.train.inputs(np.array([4, 19]))
    assert frames.shape == (7, 2, 1, 34, 34)
    assert np.array_equal(frames[:, 0], binning.frames(*_recording(4)))
    assert np.array_equal(frames[:, 1], binning.frames(*_recording(19)))


def test_without_test_folder_samples_are_held_out_and_the_note_says_so(tmp_path: Path) -> None:
    _write(tmp_path, "Train", 12)
    dataset = _load(tmp_path, tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (20, 100)
    assert "no Test folder: 100 of the Train recordings are held out" in dataset.notes[-2]
    assert re.fullmatch(
        "Train: [0-9]+ of 24,000 events lie after the window of 300 ms .* are dropped", dataset.notes[-1]
    )
    divided = _load(tmp_path, tmp_path, holdout=30, seed=4)
    assert len(divided.test) == 30
    assert "split seed 4" in divided.notes[-2]
    with pytest.raises(DataError, match="cannot hold out 120 of 120"):
        _load(tmp_path, tmp_path, holdout=120)


def test_missing_data_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no N-MNIST at .*expected .*NMNIST/Train/<class 0 to 9>/<id>\.bin"):
        _load(tmp_path, tmp_path)
    (tmp_path / "NMNIST" / "Train" / "0").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no recordings"):
        _load(tmp_path, tmp_path)


def test_missing_tonic_gives_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "Train", 1)
    monkeypatch.setitem(__import__("sys").modules, "tonic", None)
    monkeypatch.setitem(__import__("sys").modules, "tonic.datasets", None)
    with pytest.raises(DataError, match=r'pip install "stsbp\[nmnist\]"'):
        _load(tmp_path, tmp_path, holdout=2)


def test_cache_is_used_until_a_source_or_the_binning_changes(tmp_path: Path) -> None:
    _write(tmp_path, "Train", 2)
    work: list[str] = []

    def cold(**options: Any) -> Dataset:
        work.clear()
        return _load(tmp_path, tmp_path, holdout=5, progress=lambda activity, *_: work.append(activity), **options)

    first = cold()
    assert any("reading" in activity for activity in work)
    cold()
    assert not any("reading" in activity for activity in work)
    cold(steps=6)
    assert any("reading" in activity for activity in work)
    for binning in (
        EventBinning(window_us=90_000),
        EventBinning(first_saccade=True),
        EventBinning(stabilise=True),
        EventBinning(stabilise=True, saccade_us=100_000),
    ):
        frames = cold(binning=binning).train.inputs(np.arange(1))
        assert any("reading" in activity for activity in work)
        assert np.array_equal(frames, cold(binning=binning).train.inputs(np.arange(1)))
        assert not any("reading" in activity for activity in work)
    # Same length and name, another event.
    path = tmp_path / "Train" / "0" / "00000.bin"
    path.write_bytes(_encode(*_recording(99)))
    changed = cold()
    assert any("reading" in activity for activity in work)
    everything = np.arange(15)
    assert not np.array_equal(
        np.concatenate([first.train.inputs(everything), first.test.inputs(np.arange(5))], axis=1),
        np.concatenate([changed.train.inputs(everything), changed.test.inputs(np.arange(5))], axis=1),
    )


def _serve(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch, evil: str | None = None) -> None:
    import tonic.datasets

    for split, per_class in (("train", 2), ("test", 1)):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for number in range(10 * per_class):
                name = f"{split.capitalize()}/{number // per_class}/{number:05}.bin"
                file.writestr(name, _encode(*_recording(number)))
            if evil is not None:
                file.writestr(evil, b"evil")
        (folder / f"{split}.zip").write_bytes(archive.getvalue())
        digest = hashlib.md5(archive.getvalue(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(tonic.datasets.NMNIST, f"{split}_url", f"{address}/{split}.zip")
        monkeypatch.setattr(tonic.datasets.NMNIST, f"{split}_md5", digest)


def test_download_fetches_checks_and_unpacks(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _serve(*server, monkeypatch)
    target = tmp_path / "new" / "data"
    dataset = _load(target, tmp_path, download=True)
    assert (len(dataset.train), len(dataset.test)) == (20, 10)
    assert (target / "NMNIST" / "Train" / "0" / "00000.bin").is_file()
    assert capsys.readouterr().out == ""
    assert len(_load(target, tmp_path).train) == 20


def test_download_stays_inside_its_folder(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve(*server, monkeypatch, evil="../../../escaped.txt")
    _load(tmp_path / "a" / "b", tmp_path, download=True)
    escaped = list(tmp_path.rglob("escaped.txt"))
    assert all((tmp_path / "a" / "b" / "NMNIST") in path.parents for path in escaped)


@pytest.mark.parametrize("fault", ["refused", "corrupt"])
def test_failed_download_says_what_to_fetch_and_where_to_put_it(
    fault: str, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tonic.datasets

    address, folder = server
    _serve(address, folder, monkeypatch)
    if fault == "refused":
        monkeypatch.setattr(tonic.datasets.NMNIST, "train_url", "http://127.0.0.1:9/train.zip")
    else:
        (folder / "train.zip").write_bytes(b"something else")
    with pytest.raises(
        DataError, match=r"(?s)could not download N-MNIST.*train\.zip \(md5 .*test\.zip.*put both into"
    ) as e:
        _load(tmp_path / "data", tmp_path, download=True)
    assert str(tmp_path / "data" / "NMNIST") in str(e.value)
    # As the message says: the right archives put there are unpacked.
    _serve(address, folder, monkeypatch)
    for name in ("train.zip", "test.zip"):
        (tmp_path / "data" / "NMNIST").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "NMNIST" / name).write_bytes((folder / name).read_bytes())
    monkeypatch.setattr(tonic.datasets.NMNIST, "train_url", "http://127.0.0.1:9/train.zip")
    monkeypatch.setattr(tonic.datasets.NMNIST, "test_url", "http://127.0.0.1:9/test.zip")
    if fault == "refused":
        assert len(_load(tmp_path / "data", tmp_path, download=True).train) == 20


TRAIN = ("--net", "4", "--steps", 3, "--epochs", 1, "--holdout", 5, "--validation", 5)


def test_run_is_evaluated_on_another_folder_of_recordings(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    _write(tmp_path / "own", "Train", 2)
    _write(tmp_path / "new" / "NMNIST", "Test", 3)
    _write(tmp_path / "mixed", "Train", 3)
    for split in tmp_path / "new" / "NMNIST" / "Test", tmp_path / "mixed" / "Train":
        # Recordings 0 to 29 of which none, or the first 20, are those of the run.
        for number, path in enumerate(sorted(split.glob("*/*.bin"))):
            path.write_bytes(_encode(*_recording(number + (100 if split.name == "Test" else 0))))
    done = stsbp("train", "nmnist", "--data-dir", tmp_path / "own", *TRAIN, "--out", "run")
    assert done.exit_code == 0, done.output
    on = ("evaluate", "run", "--on", "nmnist", "--json")
    evaluated = stsbp(*on, "--data-dir", tmp_path / "new")
    assert evaluated.exit_code == 0, evaluated.output
    record = json.loads(evaluated.stdout)
    assert (record["samples"], record["seen_in_training"]) == (30, 0)
    assert "warning" not in evaluated.stderr
    evaluated = stsbp(*on, "--data-dir", tmp_path / "mixed")
    record = json.loads(evaluated.stdout)
    # 5 of the run's 20 recordings were held out.
    assert (record["samples"], record["seen_in_training"]) == (30, 15)
    assert (
        "warning: 15 of the 30 samples have the same content as samples that the run was trained on" in evaluated.stderr
    )
    (tmp_path / "own").rename(tmp_path / "gone")
    evaluated = stsbp(*on, "--data-dir", tmp_path / "mixed")
    assert evaluated.exit_code == 0, evaluated.output
    assert "seen_in_training" not in json.loads(evaluated.stdout)
    assert (
        "cannot check whether the run was trained on some of these samples: nmnist: the data folder" in evaluated.stderr
    )
    (tmp_path / "gone").rename(tmp_path / "own")
    for same in ((), ("--data-dir", "own")):
        refused = stsbp(*on, *same)
        assert refused.exit_code == 1
        assert "leave --on out to test it on samples that it has not seen" in refused.output
    assert stsbp("evaluate", "run").exit_code == 0


def test_folder_with_test_recordings_alone_is_to_test_on(tmp_path: Path) -> None:
    _write(tmp_path, "Test", 1)
    data = _load(tmp_path, tmp_path, only_test=True)
    assert len(data.test) == 10
    assert data.notes == (
        f"Test: 10 of the 10000 published recordings, from {tmp_path / 'Test'}",
        "Test: 69 of 2,000 events lie after the window of 300 ms (--window-ms) and are dropped",
    )
    with pytest.raises(DataError, match="no N-MNIST at"):
        _load(tmp_path, tmp_path)


def test_training_recordings_are_not_read_to_test(tmp_path: Path) -> None:
    _write(tmp_path, "Test", 1)
    _write(tmp_path, "Train", 1)
    (tmp_path / "Train" / "0" / "00000.bin").write_bytes(b"x")
    assert len(_load(tmp_path, tmp_path, only_test=True).test) == 10


def test_without_a_test_set_all_training_recordings_are_trained_on_and_no_other_is_read(tmp_path: Path) -> None:
    _write(tmp_path, "Test", 1)
    _write(tmp_path, "Train", 2)
    (tmp_path / "Test" / "0" / "00000.bin").write_bytes(b"x")
    data = _load(tmp_path, tmp_path, train_only=True)
    assert (len(data.train), len(data.test)) == (20, 0)
    assert "held out" not in " ".join(data.notes)
