"""Data sets that tonic reads: small files in the published formats, a server in the place of the published one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets import Dataset, load, spoken, spoken_child, tonic_sets
from stsbp.datasets.base import MOST_CLASSES, lengths_of
from stsbp.datasets.cache import CacheWriter
from stsbp.errors import DataError
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray, UInt8

pytest.importorskip("tonic")
h5py = pytest.importorskip("h5py")

_HEADER = {"labels": "<i8", "times": "<f8", "units": "<u2", "count": 3, "classes": 20}
"""What the process that reads a file of SHD says of it."""
T = 10
WINDOW_US = 1_000_000


class Recording(NamedTuple):
    """Columns of a recording, times in milliseconds since it began, and its class."""

    x: AnyArray
    y: AnyArray
    p: AnyArray
    ms: AnyArray
    label: int

    def frames(self, shape: tuple[int, ...]) -> UInt8:
        """What it is in T steps, each event set one by one."""
        frames = np.zeros((T, *shape), np.uint8)
        for x, y, p, ms in zip(self.x, self.y, self.p, self.ms, strict=True):
            if ms < 1000:
                frames[(int(ms) * T // 1000, int(x)) if len(shape) == 1 else (int(ms) * T // 1000, p, y, x)] = 1
        return frames


def _recording(seed: int, label: int, size: int) -> Recording:
    random = np.random.default_rng(seed)
    n = 30 + seed
    ms = np.sort(random.integers(0, 1200, n))
    # Cameras begin to count with the first event.
    ms -= ms[0]
    return Recording(random.integers(0, size, n), random.integers(0, size, n), random.integers(0, 2, n), ms, label)


def _shd(recordings: list[Recording], classes: int) -> bytes:
    """An HDF5 file as that of SHD and SSC."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        times = file.create_dataset("spikes/times", (len(recordings),), h5py.vlen_dtype(np.float64))
        units = file.create_dataset("spikes/units", (len(recordings),), h5py.vlen_dtype(np.uint16))
        for k, recording in enumerate(recordings):
            # In seconds; a millisecond is not exact in binary, so half of one more keeps it above its edge.
            times[k] = (recording.ms + 0.5) / 1000
            units[k] = recording.x.astype(np.uint16)
        file["labels"] = np.array([recording.label for recording in recordings], np.uint16)
        file["extra/keys"] = np.array([f"word {k}".encode() for k in range(classes)])
        file["extra/speaker"] = np.zeros(len(recordings), np.uint16)
    return content.getvalue()


def _gesture(recording: Recording) -> bytes:
    """A file of DVS128 Gesture as tonic's copy has it: columns x, y, polarity and milliseconds."""
    content = io.BytesIO()
    np.save(content, np.stack([recording.x, recording.y, recording.p, recording.ms + 7000], axis=1).astype(np.float64))
    return content.getvalue()


_XML = """<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/"><node name="0"
path="/mainloop/Recorder/outInfo/0/"><attr key="typeIdentifier" type="string">EVTS</attr><node name="info"
path="/mainloop/Recorder/outInfo/0/info/"><attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr>
</node></node></node></dv>"""


def _aedat4(recording: Recording) -> bytes:
    """A file of AEDAT 4.0 without compression: a header and packets, each a FlatBuffer with its size in front."""

    def sized(buffer: bytes) -> bytes:
        return struct.pack("<I", len(buffer)) + buffer

    def packet(rows: list[tuple[int, int, int, int]]) -> bytes:
        body = b"".join(struct.pack("<qhh?3x", ms * 1000 + 5_000_000, x, y, bool(p)) for x, y, p, ms in rows)
        table = struct.pack("<I", 16) + b"EVTS" + struct.pack("<HHHHiI4xI", 6, 8, 4, 0, 8, 8, len(rows)) + body
        return struct.pack("<I", 0) + sized(sized(table))

    text = _XML.encode()
    header = struct.pack("<I", 20) + b"IOHE" + struct.pack("<HHHHHHiiI", 10, 12, 4, 0, 8, 0, 12, 0, 4)
    columns = (recording.x, recording.y, recording.p, recording.ms)
    rows = [(int(x), int(y), int(p), int(ms)) for x, y, p, ms in zip(*columns, strict=True)]
    return b"#!AER-DAT4.0\r\n" + sized(header + sized(text) + b"\0") + packet(rows[:9]) + packet(rows[9:])


def _zip(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Kind(NamedTuple):
    """A data set: tonic's class, size of its sensor, training and test recordings, and its files."""

    cls: str
    shape: tuple[int, ...]
    train: list[Recording]
    test: list[Recording]

    def files(self) -> dict[str, bytes]:
        """Unpacked, by their paths in the data folder."""
        if self.cls in ("SHD", "SSC"):
            parts = {"train": self.train, "test": self.test}
            return {
                f"{self.cls}/{self.cls.lower()}_{part}.h5": _shd(recordings, 20) for part, recordings in parts.items()
            }
        if self.cls == "CIFAR10DVS":
            return {
                f"CIFAR10DVS/{CIFAR10[r.label]}/cifar10_{CIFAR10[r.label]}_{k}.aedat4": _aedat4(r)
                for k, r in enumerate(self.train)
            }
        return {
            f"DVSGesture/ibmGesture{part}/user{k:02}_fluorescent/{r.label}.npy": _gesture(r)
            for part, recordings in (("Train", self.train), ("Test", self.test))
            for k, r in enumerate(recordings)
        }

    def write(self, root: Path) -> None:
        """Lay the files into a data folder."""
        for name, content in self.files().items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

    def serve(self, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lay the archives into a server's folder, and let tonic fetch them from there."""
        source = getattr(sys.modules["tonic.datasets"], self.cls)
        files = {name.removeprefix(f"{self.cls}/"): content for name, content in self.files().items()}

        def put(name: str, content: bytes, **attributes: str) -> None:
            (folder / name).write_bytes(content)
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            for attribute, value in attributes.items():
                monkeypatch.setattr(source, attribute, {"url": f"{address}/{name}", "md5": md5}.get(value, value))

        if self.cls in ("SHD", "SSC"):
            monkeypatch.setattr(source, "base_url", f"{address}/")
            for name, content in files.items():
                part = name.split("_")[1].removesuffix(".h5")
                put(f"{name}.zip", _zip({name: content}), **{f"{part}_md5": "md5"})
        elif self.cls == "CIFAR10DVS":
            files_of_class = {
                name: {path: data for path, data in files.items() if path.startswith(name)} for name in CIFAR10
            }
            packed = _zip({f"{name}.zip": _zip(paths) for name, paths in files_of_class.items()})
            put("CIFAR10DVS.zip", packed, url="url", file_md5="md5")
        else:
            for part in ("Train", "Test"):
                files_of_part = {path: data for path, data in files.items() if path.startswith(f"ibmGesture{part}")}
                lower = part.lower()
                put(f"ibmGesture{part}.tar.gz", _tar(files_of_part), **{f"{lower}_url": "url", f"{lower}_md5": "md5"})


def _kind(cls: str, size: int, labels: list[int]) -> Kind:
    flat = cls in ("SHD", "SSC")
    recordings = [_recording(k, label, size) for k, label in enumerate(labels)]
    return Kind(cls, (size,) if flat else (2, size, size), recordings[:-2], recordings[-2:])


KINDS = {
    "shd": _kind("SHD", 700, [0, 19, 3, 4, 5]),
    "ssc": _kind("SSC", 700, [1, 2, 3, 4, 5]),
    "dvs-gesture": _kind("DVSGesture", 128, [0, 10, 3, 4, 5]),
    "cifar10-dvs": _kind("CIFAR10DVS", 128, [9, 1, 0, 4, 4, 5, 6]),
}


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    """Each data set's."""
    if request.param == "cifar10-dvs":
        pytest.importorskip("aedat")
    return str(request.param)


def _load(name: str, root: Path, **options: Any) -> Dataset:
    options = {"binning": EventBinning(window_us=WINDOW_US), **options}
    return load(name, data_dir=root, **{"cache_dir": root / "cache", "steps": T, **options})


def _everything(dataset: Dataset) -> tuple[list[Any], list[int]]:
    split = dataset.train
    return list(np.swapaxes(split.inputs(np.arange(len(split))), 0, 1)), split.labels.tolist()


def test_recordings_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    kind.write(tmp_path)
    held = {"holdout": 1} if name == "cifar10-dvs" else {}
    dataset = _load(name, tmp_path, **held)
    assert dataset.input_shape == kind.shape
    assert (len(dataset.train), len(dataset.test)) == ((4, 1) if held else (3, 2))
    frames, labels = _everything(_load(name, tmp_path, train_only=True))
    # Those of CIFAR10-DVS are in the order of their classes' names.
    expected = sorted(kind.train, key=lambda r: CIFAR10[r.label]) if held else kind.train
    assert labels == [recording.label for recording in expected]
    for sample, recording in zip(frames, expected, strict=True):
        assert np.array_equal(sample, recording.frames(kind.shape))
    if not held:
        tested = dataset.test.inputs(np.array([1]))[:, 0]
        assert np.array_equal(tested, kind.test[1].frames(kind.shape))
    late = sum(int((recording.ms >= 1000).sum()) for recording in kind.train)
    assert late > 0
    events = f"{late} of {sum(len(recording.ms) for recording in kind.train)} events"
    note = f"; {events} lie after the window of 1000 ms (--window-ms) and are dropped"
    assert [note in line for line in dataset.notes if line.startswith("train: ")] == [True]
    # The numbers are in the cache.
    assert dataset.notes == _load(name, tmp_path, **held).notes
    longer = EventBinning(window_us=1_200_000)
    assert not any("lie after" in line for line in _load(name, tmp_path, binning=longer, **held).notes)
    names = {"shd": "word 3", "ssc": "word 3", "dvs-gesture": "Right arm cw", "cifar10-dvs": "cat"}
    assert dataset.classes[3] == names[name]


def test_a_cache_without_numbers_of_events_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS["shd"].write(tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr(CacheWriter, "count_events", lambda *_: None)
        assert "lie after the window" not in _load("shd", tmp_path).notes[0]
    assert "lie after the window" in _load("shd", tmp_path).notes[0]


def test_the_same_set_by_its_name_in_tonic(tmp_path: Path) -> None:
    KINDS["dvs-gesture"].write(tmp_path)
    first, second = (_load(data_set, tmp_path) for data_set in ("dvs-gesture", "tonic:dvsgesture"))
    assert np.array_equal(first.train.inputs(np.arange(3)), second.train.inputs(np.arange(3)))
    assert first.classes == second.classes


def test_download_fetches_checks_and_unpacks(
    name: str, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    address, folder = server
    kind = KINDS[name]
    pytest.importorskip("tonic.datasets")
    kind.serve(folder, address, monkeypatch)
    target = tmp_path / "new"
    options = {"holdout": 1} if name == "cifar10-dvs" else {}
    dataset = _load(name, target, download=True, **options)
    assert len(dataset.train) + len(dataset.test) == 5
    assert capsys.readouterr().out == ""
    for path in folder.iterdir():
        path.unlink()
    # What was fetched is found without the server, and without the archives.
    for path in [*target.rglob("*.zip"), *target.rglob("*.tar.gz")]:
        path.unlink()
    reloaded = _load(name, target, **options)
    assert np.array_equal(reloaded.train.inputs(np.arange(2)), dataset.train.inputs(np.arange(2)))
    with pytest.raises(DataError, match=rf"could not download {kind.cls}: .*\nFetch .*\(md5 [0-9a-f]{{32}}, http"):
        _load(name, tmp_path / "other", download=True)


def test_a_download_that_is_not_what_was_published(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    KINDS["shd"].serve(folder, address, monkeypatch)
    (folder / "shd_train.h5.zip").write_bytes(b"something else")
    with pytest.raises(DataError, match="could not download SHD: File not found or corrupted"):
        _load("shd", tmp_path, download=True)


def test_what_is_missing_says_what_to_fetch_and_nothing_is_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STSBP_DATA", raising=False)
    kind = KINDS[name]
    with pytest.raises(DataError, match=rf"{kind.cls} needs a data folder"):
        load(name)
    with pytest.raises(
        DataError, match=rf"no {kind.cls} at .*{kind.cls}: fetch it with --download, or by hand\. Fetch "
    ):
        _load(name, tmp_path)
    assert not list(tmp_path.rglob("*.h5"))


def test_a_set_that_tonic_cannot_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """tonic would end the program, and would unpack and delete an archive that it finds."""
    message = (
        r"no DVSLip at .*DVSLip, and tonic cannot download it\. Fetch DVS-Lip\.zip \(md5 [0-9a-f]+, https:.*/view\)"
    )
    for options in ({}, {"download": True}):
        with pytest.raises(DataError, match=message):
            _load("tonic:DVSLip", tmp_path, **options)
    archive = tmp_path / "DVSLip" / "DVS-Lip.zip"
    archive.parent.mkdir()
    archive.write_bytes(_zip({"DVS-Lip/train/accused/0.npy": b""}))
    with pytest.raises(DataError, match=message):
        _load("tonic:DVSLip", tmp_path)
    assert list(archive.parent.iterdir()) == [archive]
    assert capsys.readouterr().out == ""


def test_a_set_whose_folder_has_another_name_than_its_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no SMNIST at .*/smnist: "):
        _load("tonic:SMNIST", tmp_path)
    (tmp_path / "smnist").mkdir()
    for part, n in (("train", 20), ("t10k", 5)):
        for kind, array in (("images-idx3", np.zeros((n, 28, 28), np.uint8)), ("labels-idx1", np.arange(n) % 10)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            content = header + array.astype(np.uint8).tobytes()
            (tmp_path / "smnist" / f"{part}-{kind}-ubyte").write_bytes(content)
    dataset = _load("tonic:SMNIST", tmp_path)
    assert dataset.train.labels.tolist() == [k % 10 for k in range(20)]
    assert len(dataset.test) == 5


def test_the_order_of_samples_does_not_depend_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tonic gives the arrays of POKERDVS, and not their paths, in the order in which the disk lists the folders."""
    for k, name in enumerate(("sp", "cl", "he", "di")):
        for part in ("train", "test"):
            folder = tmp_path / "POKERDVS" / f"pips_{part}" / name
            folder.mkdir(parents=True)
            for n in range(2):
                column = np.arange(10 + n + k)
                np.save(folder / f"{n}.npy", np.stack([column * 1000, column, column, column % 2], axis=1))
    walk, loaded = os.walk, []
    for turned in (False, True):

        def walked(top: str, turned: bool = turned) -> Iterator[tuple[str, list[str], list[str]]]:
            for path, folders, files in walk(top):
                folders.sort(reverse=turned)
                yield path, folders, files

        monkeypatch.setattr("os.walk", walked)
        loaded.append(_everything(_load("tonic:POKERDVS", tmp_path, cache_dir=tmp_path / f"cache {turned}")))
    (frames, labels), (others, their) = loaded
    assert labels == their == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.array_equal(frames, others)


def test_unknown_names_and_sets_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set 'SHDD' \(did you mean SHD\?\); known: .*POKERDVS.*SSC"):
        _load("tonic:SHDD", tmp_path)
    with pytest.raises(DataError, match="tonic needs a name after a colon: tonic:NAME"):
        _load("tonic", tmp_path)


def test_a_set_with_named_classes_and_recordings_of_many_sizes(tmp_path: Path) -> None:
    """N-Caltech101, in the format of N-MNIST: tonic says neither its classes nor its sensor."""
    recordings = [_recording(k, 0, 100) for k in range(6)]
    for k, r in enumerate(recordings):
        us = (r.ms * 1000).astype(np.int64)
        rows = np.stack([r.x, r.y, r.p << 7 | us >> 16, us >> 8 & 255, us & 255], axis=1).astype(np.uint8)
        path = tmp_path / "NCALTECH101/Caltech101" / ("ant", "bass")[k % 2] / f"image_{k:04}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rows.tobytes())
    dataset = _load("tonic:ncaltech101", tmp_path)
    assert dataset.classes == ("ant", "bass")
    assert dataset.input_shape == (2, 180, 240)
    assert (len(dataset.train), len(dataset.test)) == (5, 1)
    assert "1 of them held out as test samples (split seed 0)" in dataset.notes
    frames, labels = _everything(_load("tonic:ncaltech101", tmp_path, train_only=True))
    assert labels == [0, 0, 0, 1, 1, 1]
    # tonic moves each picture into the corner.
    first = recordings[0]
    moved = first._replace(x=first.x - first.x.min(), y=first.y - first.y.min())
    assert np.array_equal(frames[0], moved.frames((2, 180, 240)))


def _fake(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    """Let tonic have a data set of four samples, with these attributes."""
    events = np.zeros(5, [("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.bool_)])

    def begin(self: Any, save_to: str) -> None:
        self.location_on_system, self.folder_name = str(Path(save_to) / "Fake"), ""

    members: dict[str, Any] = {
        "__init__": begin,
        "__len__": lambda _self: 4,
        "__getitem__": lambda _self, _k: (events, 1),
        "sensor_size": (4, 4, 2),
        "classes": ["a", "b"],
        **attributes,
    }
    module = sys.modules["tonic.datasets"]
    monkeypatch.setattr(module, "Fake", type("Fake", (), members), raising=False)
    monkeypatch.setattr(module, "__all__", [*module.__all__, "Fake"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"classes": None}, "the samples of Fake have no classes"),
        ({"classes": None, "targets": [{"box": 1}] * 4}, "the samples of Fake have no classes"),
        ({"sensor_size": None}, "does not say how large the sensor of Fake is"),
        ({"__getitem__": lambda _self, _k: ({"imu": 1}, 1)}, "expected events with t, x, y, got dict"),
        ({"__getitem__": lambda _self, _k: (np.zeros(3), 1)}, "expected events with t, x, y, got ndarray"),
        ({"classes": ["a"]}, "its label 1 is none of the 1 classes"),
        ({"__init__": lambda _self, _save_to: 1 / 0}, "cannot be read as Fake|no Fake at"),
    ],
)
def test_sets_that_are_no_events_with_classes(
    attributes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Fake").mkdir()
    (tmp_path / "Fake" / "events.dat").write_bytes(b"0")
    _fake(monkeypatch)
    assert len(_load("tonic:Fake", tmp_path, holdout=1).train) == 3
    _fake(monkeypatch, **attributes)
    with pytest.raises(DataError, match=message):
        _load("tonic:Fake", tmp_path, holdout=1, steps=9)


def test_missing_libraries_give_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    with pytest.raises(DataError, match=r'needs the library tonic .*pip install "stsbp\[tonic\]"'):
        _load("shd", tmp_path)


def test_a_recording_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS["cifar10-dvs"].write(tmp_path)
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(DataError, match=r'CIFAR10DVS needs another library .*pip install "stsbp\[tonic\]"'):
        _load("cifar10-dvs", tmp_path, holdout=1)


def test_which_samples_are_tested_on(tmp_path: Path) -> None:
    KINDS["ssc"].write(tmp_path)
    for options, sizes in (
        ({}, (3, 2)),
        ({"holdout": 1}, (2, 1)),
        ({"train_only": True}, (3, 0)),
        ({"only_test": True}, (2, 2)),
    ):
        dataset = _load("ssc", tmp_path, **options)
        assert (len(dataset.train), len(dataset.test)) == sizes
    (tmp_path / "SSC" / "ssc_train.h5").unlink()
    assert len(_load("ssc", tmp_path, only_test=True).test) == 2
    with pytest.raises(DataError, match="no SSC at"):
        _load("ssc", tmp_path)


def test_own_lengths_are_those_of_the_recordings(tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path)
    lengths = lengths_of(_load("shd", tmp_path, own_lengths=True).train)
    assert lengths is not None
    expected = [max(int(ms) for ms in r.ms if ms < 1000) * T // 1000 + 1 for r in KINDS["shd"].train]
    assert lengths.tolist() == expected


@pytest.mark.parametrize("fault", ["pixel", "label", "cut", "text", "pickle"])
def test_malformed_recordings_are_named_or_left_out(fault: str, tmp_path: Path) -> None:
    kind = KINDS["dvs-gesture"]
    kind.write(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user01_fluorescent/10.npy"
    if fault == "label":
        path.rename(path.with_name("11.npy"))
        path = path.with_name("11.npy")
    elif fault == "pixel":
        path.write_bytes(_gesture(kind.train[1]._replace(x=kind.train[1].x + 100)))
    elif fault == "pickle":
        np.save(path, np.array([{}, None], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[:-3] if fault == "cut" else b"no array")
    complaint = {"pixel": "x is out of range", "label": "its label 11 is none of the 11 classes", "pickle": "pickle"}
    with pytest.raises(DataError, match=rf"user01_fluorescent/1[01]\.npy: .*{complaint.get(fault, '')}"):
        _load("dvs-gesture", tmp_path)
    dataset = _load("dvs-gesture", tmp_path, skip_malformed=True)
    assert dataset.train.labels.tolist() == [0, 3]
    assert [sample.path for sample in dataset.skipped] == [str(path)]
    assert dataset.notes[-1].startswith(f"left out 1 malformed samples, the first {path}: ")
    # The cache contains no path of the data.
    (tmp_path / "DVSGesture").rename(tmp_path / "moved")
    (tmp_path / "new").mkdir()
    (tmp_path / "moved").rename(tmp_path / "new" / "DVSGesture")
    moved = _load("dvs-gesture", tmp_path / "new", cache_dir=tmp_path / "cache", skip_malformed=True)
    assert [sample.path for sample in moved.skipped] == [str(tmp_path / "new" / path.relative_to(tmp_path))]


@pytest.mark.parametrize("content", [b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100), b""])
def test_a_file_that_is_no_hdf5(content: bytes, tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path)
    (tmp_path / "SHD" / "shd_train.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"shd_train\.h5: it is not a readable HDF5 file"):
        _load("shd", tmp_path)


def _changed(path: Path, name: str, data: Any, **options: Any) -> None:
    """Replace a dataset of a file."""
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_dataset(name, data=data, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1e13, 1e308])
def test_spikes_at_impossible_times_are_named(value: float, tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path)
    path = tmp_path / "SHD" / "shd_train.h5"
    with h5py.File(path, "a") as file:
        file["spikes/times"][1] = np.append(file["spikes/times"][1][:-1], value)
        last = len(file["spikes/times"][1]) - 1
    with pytest.raises(DataError, match=rf"shd_train\.h5: .*spikes/times, recording 1, spike {last}: .* is no time"):
        _load("shd", tmp_path)
    assert len(_load("shd", tmp_path, skip_malformed=True).train) == len(KINDS["shd"].train) - 1


def test_a_time_that_no_integer_holds_is_an_error_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    kind = KINDS["dvs-gesture"]
    kind.write(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user01_fluorescent/10.npy"
    events = np.load(path)
    events[3, 3] = np.nan
    np.save(path, events)
    with pytest.raises(
        DataError, match=r"fluorescent/10\.npy: event 3 has a number that is no position, polarity or time"
    ):
        _load("dvs-gesture", tmp_path)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda rows: rows * [1, 1, 2, 1] - [0, 0, 1, 0], "p is out of range|polarity"),
        (lambda rows: rows + np.array([2**16, 0, 0, 0]), "x is out of range"),
        (lambda rows: rows + np.array([0.5, 0, 0, 0]), r"event 0: x is no whole number: \d+\.5"),
        (lambda rows: rows.astype(complex), "expected rows of x, y, p and t, got complex128"),
        (lambda rows: rows[:, :3], r"expected rows of x, y, p and t, got float64 of shape \[\d+, 3\]"),
    ],
    ids=["signs", "wrapped position", "half a pixel", "complex", "no times"],
)
def test_events_that_tonic_would_convert_wrongly_are_named(
    change: Callable[[AnyArray], AnyArray], complaint: str, tmp_path: Path
) -> None:
    KINDS["dvs-gesture"].write(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user01_fluorescent/10.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(DataError, match=rf"user01_fluorescent/10\.npy: .*({complaint})"):
        _load("dvs-gesture", tmp_path)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int64])
def test_times_of_small_integers_do_not_wrap(dtype: type[np.integer[Any]], tmp_path: Path) -> None:
    KINDS["dvs-gesture"].write(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user01_fluorescent/10.npy"
    frames, _ = _everything(_load("dvs-gesture", tmp_path))
    np.save(path, np.load(path).astype(dtype))
    converted, _ = _everything(_load("dvs-gesture", tmp_path))
    assert all(map(np.array_equal, frames, converted))


@pytest.mark.parametrize("value", [0.5, np.nan, -1, 700])
def test_spikes_of_impossible_units_are_named(value: float, tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path)
    path = tmp_path / "SHD" / "shd_train.h5"
    with h5py.File(path, "a") as file:
        lists = [file["spikes/units"][k].astype(np.float64) for k in range(len(file["labels"]))]
        del file["spikes/units"]
        units = file.create_dataset("spikes/units", (len(lists),), h5py.vlen_dtype(np.float64))
        for k, values in enumerate(lists):
            units[k] = np.append(values[:-1], value) if k == 1 else values
    with pytest.raises(DataError, match=r"spikes/units, recording 1, spike \d+: .* is no whole number from 0 to 699"):
        _load("shd", tmp_path)


@pytest.mark.parametrize("name", ["spikes/times", "spikes/units"])
def test_lists_in_another_byte_order_are_refused(name: str, tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path)
    with h5py.File(tmp_path / "SHD" / "shd_train.h5", "a") as file:
        lists = file[name][()]
        kind = lists[0].dtype.newbyteorder()
        del file[name]
        file.create_dataset(name, (len(lists),), h5py.vlen_dtype(kind))
        for k, values in enumerate(lists):
            file[name][k] = values.astype(kind)
    with pytest.raises(DataError, match=rf"{name} must be stored in the byte order of this processor"):
        _load("shd", tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("labels", [0.0, 0.5, 0.0], r"labels, recording 1: 0\.5 is no whole number"),
        ("labels", [0, 0, -1], "labels, recording 2: -1 is no whole number"),
        ("labels", [0, 60000, 0], "labels, recording 1: 60000 is none of the"),
        ("labels", [0, 0], "spikes/times 3, spikes/units 3, labels 2"),
        ("labels", 0, r"labels must be a list, .* of shape \[\]"),
        ("labels", [b"a", b"b", b"c"], "labels must be integers"),
        ("extra/keys", b"word", r"extra/keys must be a list, .* of shape \[\]"),
        ("extra/speaker", 0, "extra/speaker must be a list"),
        ("spikes/times", [[0.5], [0.5], [0.5]], r"spikes/times must be a list, .* of shape \[3, 1\]"),
        ("spikes/times", [0.5, 0.5, 0.5], "spikes/times must be lists of numbers"),
    ],
)
def test_datasets_that_are_not_those_of_recordings_are_named(
    name: str, data: Any, message: str, tmp_path: Path
) -> None:
    KINDS["shd"].write(tmp_path)
    _changed(tmp_path / "SHD" / "shd_train.h5", name, data)
    with pytest.raises(DataError, match=rf"shd_train\.h5: .*{message}"):
        _load("shd", tmp_path)


@pytest.mark.parametrize("name", ["labels", "extra/keys", "extra/speaker", "spikes/times"])
def test_datasets_that_are_only_declared_stay_within_the_budget(name: str, tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path)
    path = tmp_path / "SHD" / "shd_train.h5"
    with h5py.File(path, "a") as file:
        dtype = file[name].dtype
        del file[name]
        file.create_dataset(name, (500_000_000,), dtype, chunks=(1_000_000,), compression="gzip")
    assert path.stat().st_size < 40_000
    with pytest.raises(DataError, match=rf"{name} of 500,000,000 entries: reading it takes .* of memory, more than"):
        _load("shd", tmp_path)


def test_half_precision_numbers_are_read(tmp_path: Path) -> None:
    """Their largest number is smaller than what a label may be."""
    KINDS["shd"].write(tmp_path)
    labels = _load("shd", tmp_path).train.labels.tolist()
    with h5py.File(tmp_path / "SHD" / "shd_train.h5", "a") as file:
        halves = file["labels"][()].astype(np.float16)
        del file["labels"]
        file["labels"] = halves
    assert _load("shd", tmp_path).train.labels.tolist() == labels


def test_a_data_set_of_very_many_classes_is_refused(tmp_path: Path) -> None:
    """The memory of an evaluation grows with the square of their number."""
    KINDS["shd"].write(tmp_path)
    for split in ("train", "test"):
        with h5py.File(tmp_path / "SHD" / f"shd_{split}.h5", "a") as file:
            del file["extra/keys"]
            file["extra/keys"] = np.array([f"class {k}" for k in range(4097)], h5py.string_dtype())
    with pytest.raises(DataError, match="shd: a data set has at most 4,096 classes, got 4,097"):
        _load("shd", tmp_path)


def test_names_of_classes_stay_within_the_budget(tmp_path: Path) -> None:
    """16 million numbers take 32 MB, but as names of classes 64 times as much."""
    KINDS["shd"].write(tmp_path)
    with h5py.File(tmp_path / "SHD" / "shd_train.h5", "a") as file:
        del file["extra/keys"]
        file.create_dataset("extra/keys", (1 << 24,), np.uint16, chunks=(1 << 20,), compression="gzip")
    with pytest.raises(DataError, match=r"extra/keys of 16,777,216 entries: reading it takes .* of memory, more than"):
        _load("shd", tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory")
@pytest.mark.parametrize("name", ["spikes/times", "spikes/units"])
def test_lists_with_a_length_that_the_file_cannot_hold_take_no_memory(name: str, tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path)
    path = tmp_path / "SHD" / "shd_train.h5"
    with h5py.File(path) as file:
        first = file[name].id.get_offset()
    content = bytearray(path.read_bytes())
    content[first : first + 4] = struct.pack("<I", 0x20000000)
    path.write_bytes(content)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom stsbp.datasets.spoken import SpokenFile\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with SpokenFile(Path(sys.argv[1])) as file:\n"
        "    print(file.next_lists())\n"
        "    file.recording(1, file.next_lists(), 700)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    message, kilobytes = result.stdout.splitlines()
    assert f"shd_train.h5: {name}, recording 0 cannot be read" in message
    assert int(kilobytes) < 128 * 1024


def _endless(content: bytes) -> bytes:
    """A file of SHD that HDF5 reads for ever: the last of its lists extends into the description of free space."""
    damaged, at = bytearray(content), content.index(b"GCOL") + 16
    while (number := int.from_bytes(content[at : at + 2], "little")) and number < 0x8000:
        last, size = at + 8, int.from_bytes(content[at + 8 : at + 16], "little")
        at += 16 + -(-size // 8) * 8
    damaged[last : last + 8] = (size + 6).to_bytes(8, "little")
    return bytes(damaged)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not limit the processor time")
def test_a_file_in_which_hdf5_would_loop_for_ever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS["shd"].write(tmp_path)
    path = tmp_path / "SHD" / "shd_train.h5"
    path.write_bytes(_endless(path.read_bytes()))
    monkeypatch.setattr(spoken, "SECONDS", 3.0)
    for skip in (False, True):
        with pytest.raises(DataError, match=r"shd_train\.h5 cannot be read: it takes more than 3 seconds to read"):
            _load("shd", tmp_path, skip_malformed=skip)


@pytest.mark.parametrize("name", ["labels", "extra/keys", "extra/speaker"])
def test_types_that_are_unknown_are_named(name: str, tmp_path: Path) -> None:
    """h5py has no integers of three bytes."""
    KINDS["shd"].write(tmp_path)
    path = tmp_path / "SHD" / "shd_train.h5"
    with h5py.File(path, "a") as file:
        count = len(file[name])
        del file[name]
        odd = h5py.h5t.NATIVE_UINT32.copy()
        odd.set_size(3)
        h5py.h5d.create(file.id, name.encode(), odd, h5py.h5s.create_simple((count,)))
    with pytest.raises(DataError, match=rf"shd_train\.h5: {name} cannot be read: .*u3"):
        _load("shd", tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os\nos.kill(os.getpid(), 11)", r"cannot be read: .* ended without a message \(SIGSEGV\)"),
        ("print('[1]')", "ended without a message"),
        ("print('[' * 2**21)", "ended without a message"),
        (f"print({json.dumps(_HEADER)!r})", "ended without a message"),
        (f"print({json.dumps(_HEADER | {'labels': '|O8'})!r})", "ended without a message"),
        (f"print({json.dumps(_HEADER | {'count': 2**39})!r})", r"a list of 549,755,813,888 entries: reading it takes"),
        ('print(\'{"what": 5, "needed": 5}\')', "ended without a message"),
    ],
)
def test_output_of_the_reading_process_is_checked(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS["shd"].write(tmp_path)
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(spoken_child, "__file__", str(tmp_path / "child.py"))
    with pytest.raises(DataError, match=rf"shd_train\.h5.*{message}"):
        _load("shd", tmp_path)


@pytest.mark.parametrize("link", ["external", "virtual", "soft link", "loop", "external link", "missing"])
def test_data_of_other_files_are_refused(link: str, tmp_path: Path) -> None:
    """Their changes would not be noticed, and they could be anything."""
    KINDS["shd"].write(tmp_path)
    path, other = tmp_path / "SHD" / "shd_train.h5", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["labels"] = np.zeros(3, np.int64)
    with h5py.File(path, "a") as file:
        del file["labels"]
        if link == "external":
            file.create_dataset("labels", (3,), np.int64, external=[(str(tmp_path / "raw"), 0, 24)])
        elif link == "virtual":
            layout = h5py.VirtualLayout((3,), np.int64)
            layout[:] = h5py.VirtualSource(str(other), "labels", (3,))
            file.create_virtual_dataset("labels", layout)
        elif link != "missing":
            links = {"soft link": h5py.SoftLink("/extra/speaker"), "loop": h5py.SoftLink("/labels")}
            file["labels"] = links.get(link, h5py.ExternalLink(str(other), "labels"))
    messages = {"external": "lies in another file", "virtual": "lies in another file", "missing": "no dataset labels"}
    with pytest.raises(DataError, match=rf"shd_train\.h5: .*{messages.get(link, 'labels is a link')}"):
        _load("shd", tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("name", ["shd", "dvs-gesture"])
def test_a_pipe_among_the_files_is_refused(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    kind.write(tmp_path)
    path = next(path for path in sorted((tmp_path / kind.cls).rglob("*")) if path.suffix in (".h5", ".npy"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=rf"cannot read .*{path.name}: it is a pipe, not a regular file"):
        _load(name, tmp_path)


def test_frames_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS["dvs-gesture"].write(tmp_path)
    called: list[str] = []

    def progress(activity: str, _done: int, _total: int) -> None:
        called.append(activity.partition(" ")[0])

    _load("dvs-gesture", tmp_path, progress=progress)
    assert "reading" in called
    called.clear()
    _load("dvs-gesture", tmp_path, progress=progress)
    assert "reading" not in called


def test_spoken_digits_are_trained_and_evaluated(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    KINDS["shd"].write(tmp_path / "data")
    options = ("--data-dir", tmp_path / "data", "--net", "6", "--epochs", "1", "--steps", "8", "--out", "run")
    done = stsbp("train", "tonic:SHD", *options, "--own-lengths")
    assert done.exit_code == 0, done.output
    assert "train: 3 samples of SHD" in done.output
    assert stsbp("evaluate", "run").exit_code == 0


def test_a_recording_that_stops_its_reader_is_named_and_can_be_skipped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aedat")
    KINDS["cifar10-dvs"].write(tmp_path)
    path = sorted((tmp_path / "CIFAR10DVS").rglob("*.aedat4"))[0]
    path.write_bytes(b"#!AER-DAT4.0\r\n" + bytes(8))
    with pytest.raises(DataError, match=rf"^{path}: "):
        _load("cifar10-dvs", tmp_path, holdout=1)
    assert "panicked" not in capfd.readouterr().err
    assert len(_load("cifar10-dvs", tmp_path, holdout=1, skip_malformed=True).skipped) == 1


_WORDS = ("accused", "action")


def _lip(path: Path, dtype: Any = np.int64, **columns: Any) -> None:
    """A file of DVSLip, with two words."""
    events = np.zeros(20, [(name, dtype) for name in "txyp"])
    for name, column in {"t": np.arange(20) * 1000, "x": 5, "y": 7, "p": 1, **columns}.items():
        events[name] = column
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, events)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({}, ""),
        ({"x": 2**16 + 7}, r"an event's x is out of range: expected 0 to 127, got 65543"),
        ({"p": 7}, "polarity is out of range: expected 0 to 1, got 7"),
        ({"x": 3.9, "dtype": np.float64}, r"event 0: x is no whole number: 3\.9"),
        ({"y": np.nan, "dtype": np.float64}, "event 0 has a number that is no position, polarity or time"),
        ({"dtype": np.complex128}, "expected events with x, y, p and t, got"),
    ],
)
def test_events_of_lips_are_not_wrapped(tmp_path: Path, changed: dict[str, Any], complaint: str) -> None:
    for part in ("train", "test"):
        for word in _WORDS:
            _lip(tmp_path / "DVSLip/DVS-Lip" / part / word / "0.npy")
    _lip(tmp_path / "DVSLip/DVS-Lip/train/accused/1.npy", **changed)
    if not complaint:
        frames = _load("tonic:DVSLip", tmp_path).train.inputs(np.arange(2))
        assert {tuple(place[2:]) for place in np.argwhere(frames).tolist()} == {(1, 7, 5)}
        return
    with pytest.raises(DataError, match=rf"train/accused/1\.npy: .*{complaint}"):
        _load("tonic:DVSLip", tmp_path)


def _caltech(root: Path, content: bytes) -> Path:
    """Recordings of NCALTECH101, one of which has `content`."""
    folder = root / "NCALTECH101/Caltech101"
    events = bytes([1, 2, 128, 0, 9] * 3)
    for name, data in {"a/0.bin": events, "b/0.bin": events, "b/1.bin": content}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / "b/1.bin"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (bytes([3, 4, 0, 0, 5, 1]), "its 6 bytes are no whole number of events, of 5 bytes each"),
        (bytes([3, 4, 0, 0]), "its 4 bytes are no whole number of events"),
        (b"", "it has no events"),
        (bytes([0, 240, 0, 0, 0] * 2), "it has no events"),
    ],
)
def test_recordings_of_caltech_that_were_cut_are_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = _caltech(tmp_path, content)
    with pytest.raises(DataError, match=rf"^{path}: {complaint}"):
        _load("tonic:NCALTECH101", tmp_path, holdout=1)


def test_too_many_classes_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder = _caltech(tmp_path, b"").parents[1]
    for k in range(MOST_CLASSES):
        (folder / f"c{k}").mkdir()
        (folder / f"c{k}" / "0.bin").touch()
    with pytest.raises(DataError, match=r"^tonic:NCALTECH101: a data set has at most 4,096 classes, got 4,098"):
        _load("tonic:NCALTECH101", tmp_path, holdout=1)


@pytest.mark.parametrize("other", ["13", "copy of 1"])
def test_a_folder_of_nmnist_has_the_name_of_a_class(tmp_path: Path, other: str) -> None:
    """tonic sees the last character only."""
    for part in ("Train", "Test"):
        for name in ("0", "1", other):
            path = tmp_path / "NMNIST" / part / name / "0.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([3, 5, 0x80, 0, 1]))
    with pytest.raises(DataError, match=f"Train/{other} has samples, but its name is none .* of NMNIST: 0, 1, .*, 9;"):
        _load("tonic:NMNIST", tmp_path)
    for part in ("Train", "Test"):
        (tmp_path / "NMNIST" / part / other / "0.bin").rename(tmp_path / "NMNIST" / part / "1" / "1.bin")
    assert _load("tonic:NMNIST", tmp_path).train.labels.tolist() == [0, 1, 1]


def test_a_folder_of_pokerdvs_has_the_name_of_a_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("sp", "old sp"):
            folder = tmp_path / "POKERDVS" / f"pips_{part}" / name
            folder.mkdir(parents=True)
            np.save(folder / "0.npy", np.ones((4, 4), np.int64))
    with pytest.raises(DataError, match="pips_train/old sp has samples, but its name is none of the classes of POKER"):
        _load("tonic:POKERDVS", tmp_path)


@pytest.mark.parametrize("name", ["0_3.npy", " 3.npy", "+3.npy", "03.npy", "3_npy"])
def test_a_file_of_dvs_gesture_has_the_name_of_a_class(tmp_path: Path, name: str) -> None:
    """tonic reads it with Python's `int`, which takes all of these for 3."""
    KINDS["dvs-gesture"].write(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user01_fluorescent" / name
    path.write_bytes((path.parent / "10.npy").read_bytes())
    with pytest.raises(DataError, match=rf"{re.escape(name)} is no sample of DVSGesture, whose files are 0.npy to 10"):
        _load("dvs-gesture", tmp_path)
    path.unlink()
    assert len(_load("dvs-gesture", tmp_path).train) == 3


def test_samples_that_tonic_read_before_the_digest_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POKERDVS has all samples in memory as soon as it is opened."""

    def write(column: int) -> None:
        for part in ("train", "test"):
            for name in ("cl", "sp"):
                folder = tmp_path / "POKERDVS" / f"pips_{part}" / name
                folder.mkdir(parents=True, exist_ok=True)
                events = np.zeros((4, 4), np.int64)
                events[:, 1] = column
                np.save(folder / "0.npy", events)

    write(3)
    opened = tonic_sets._open

    def open_and_change(*arguments: Any) -> Any:
        source = opened(*arguments)
        write(5)
        return source

    expected = [_load("tonic:POKERDVS", tmp_path, cache_dir=tmp_path / "first").train.inputs(np.arange(2))]
    monkeypatch.setattr(tonic_sets, "_open", open_and_change)
    changed = _load("tonic:POKERDVS", tmp_path, cache_dir=tmp_path / "second").train.inputs(np.arange(2))
    monkeypatch.undo()
    expected.append(_load("tonic:POKERDVS", tmp_path, cache_dir=tmp_path / "third").train.inputs(np.arange(2)))
    assert not np.array_equal(expected[0], expected[1])
    assert np.array_equal(changed, expected[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_events_in_arrays_of_matlab(tmp_path: Path, axis: int) -> None:
    matlab = pytest.importorskip("scipy.io")
    for letter in "ab":
        for k in range(2):
            path = tmp_path / "ASLDVS" / letter / f"{k}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            n: AnyArray = np.arange(4)
            columns: dict[str, AnyArray] = {"ts": 1000 * n, "x": n + 10, "y": 0 * n + 179 - 20, "pol": n % 2}
            matlab.savemat(path, {name: np.expand_dims(column, axis) for name, column in columns.items()})
    (tmp_path / "ASLDVS" / "b").rename(tmp_path / "ASLDVS" / "old b")
    with pytest.raises(
        DataError, match="ASLDVS/old b has samples, but its name is none of the classes of ASLDVS: a, b"
    ):
        _load("tonic:ASLDVS", tmp_path, holdout=1)
    (tmp_path / "ASLDVS" / "old b").rename(tmp_path / "ASLDVS" / "b")
    frames = _load("tonic:ASLDVS", tmp_path, holdout=1).train.inputs(np.arange(3))
    assert {tuple(place[2:]) for place in np.argwhere(frames).tolist()} == {(k % 2, 20, 10 + k) for k in range(4)}
