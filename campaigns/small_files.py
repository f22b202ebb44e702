"""Small files with large harm: what asks for much memory, time or disk, imports a module, waits for ever, or is lost.

HDF5 files of SHD, archives of events, pictures and sounds that are cut or odd, settings that name modules, states that
are not finite, names of C exports, data that change, and pipes in place of files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import unittest.mock
import warnings
import wave
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from stsbp.config import read_toml, resolve, to_toml_value
from stsbp.datasets import load, spoken
from stsbp.datasets.fsdd import read_recording
from stsbp.datasets.image_folder import read_image
from stsbp.training import checkpoint
from stsbp.training.loop import import_checkpoint
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.registry import open_backend

from campaigns.calls import Complaint
from campaigns.cases import Case, Kind
from campaigns.forked import forking
from campaigns.mutate import TEXTS, mutated_bytes
from campaigns.worlds import PICTURES, RASTERS, RECORDINGS, World, picture

__all__ = ["EVIL", "SMALL_FILES", "plain_shd"]

EVIL = "evil"
"""Beginning of the names of modules that must not be imported."""
_NUMPY = ("--backend", "numpy")
_UNITS = 700
_SECONDS = 6.0
"""Seconds that reading a file of SHD may take. HDF5 loops in many damaged files until half of them have passed."""
_MICROSECONDS = 1e6
_MOST_CACHE = _MOST_MEMORY = 5 << 28
"""Bytes; the budget of a file is 1 GiB (`stsbp.budget`)."""


def _fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _special(path: Path, kind: str) -> None:
    """Something in place of a file or a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    else:
        targets = {
            "loop": path.name,
            "gone": "nothing",
            "zero": "/dev/zero",
            "null": "/dev/null",
            "stdin": "/dev/stdin",
        }
        path.symlink_to(targets[kind])


_SPECIAL = ("pipe", "folder", "empty", "loop", "gone", "zero", "null")


class Spoken(Kind):
    """HDF5 files in the layout of SHD: hostile values and shapes, links, chunks that were never written."""

    memory = _MOST_MEMORY
    name, weight, modules = "spoken", 0.3, ("h5py", "tonic.datasets")

    def make(self, rng: random.Random, world: World) -> Case:
        content = _shd(rng)
        if rng.random() < 0.25:
            content = mutated_bytes(rng, content)
        elif rng.random() < 0.02:
            # HDF5 loops in some of them, which takes seconds each.
            content = _restructured(rng, content)
        options: dict[str, Any] = {"steps": rng.choice((1, 4, 10)), "own_lengths": rng.random() < 0.3}
        options["skip"] = rng.random() < 0.2
        if rng.random() < 0.004:
            out = ("--out", "runs/new", "--steps", "4", "--net", "4", "--epochs", "1", "--stop-after", "0.001")
            return Case(
                self.name,
                arguments=(*_NUMPY, "train", "shd", "--data-dir", "../data/spoken", *out, "--no-test"),
                files={"data/spoken/SHD/shd_train.h5": content, "data/spoken/SHD/shd_test.h5": content},
                may_make=("work/runs/new",),
            )
        return Case(self.name, content, options)

    def read(self, case: Case, world: World) -> None:
        folder, options = _fresh(world.outside / "spoken"), case.how
        path = folder / "SHD/shd_train.h5"
        path.parent.mkdir()
        path.write_bytes(case.content)
        binning = EventBinning(window_us=1_000_000)
        with forking(), unittest.mock.patch.object(spoken, "SECONDS", _SECONDS):
            data = load(
                "shd", data_dir=folder, cache_dir=folder / "cache", steps=options["steps"], binning=binning,
                train_only=True, own_lengths=options["own_lengths"], skip_malformed=options["skip"],
            )  # fmt: skip
        _check_cache(folder / "cache")
        self.compare(
            path,
            data,
            EventBinning(steps=options["steps"], window_us=1_000_000, width=_UNITS, height=1),
            options["skip"],
        )

    @staticmethod
    def compare(path: Path, data: Any, binning: EventBinning, skip: bool) -> None:
        """Complain unless the samples are those of the file, read in another way."""
        expected: list[tuple[int, bytes]] = []
        for number, (recording, why) in enumerate(_recordings(path)):
            if why:
                if skip:
                    continue
                raise Complaint(f"a file was accepted although {why}\nrecording {number}")
            times, units, label = recording
            zeros = np.zeros(len(units), np.int64)
            frames = _flat_frames(times, units, zeros, binning)
            expected.append((label, frames.tobytes()))
        split = data.train
        stored = [
            (int(split.labels[k]), np.ascontiguousarray(split.inputs(np.array([k]))[:, 0]).tobytes())
            for k in range(len(split))
        ]
        if sorted(stored) != sorted(expected):
            labels = sorted(label for label, _ in stored), sorted(label for label, _ in expected)
            raise Complaint(f"recordings are not those of the file\nlabels {labels[0]} for {labels[1]}")


def _flat_frames(times: Any, units: Any, zeros: Any, binning: EventBinning) -> Any:
    frames = np.zeros((binning.steps, _UNITS), np.uint8)
    in_window = (times >= 0) & (times < 1_000_000)
    frames[times[in_window] * binning.steps // 1_000_000, units[in_window]] = 1
    return frames


def _recordings(path: Path) -> list[tuple[Any, str]]:
    """Times in microseconds, units and label of each recording; and what forbids it, or nothing."""
    import h5py

    with h5py.File(path, "r") as file:
        times, units, labels, keys = (file[name] for name in ("spikes/times", "spikes/units", "labels", "extra/keys"))
        if max(x.size for x in (times, units, labels, keys)) > 10**6:
            raise Complaint("a file with a huge array was accepted")
        if not len(times) == len(units) == len(labels):
            return [(None, "there are not as many times, units and labels")]
        recordings: list[tuple[Any, str]] = []
        for k in range(len(labels)):
            try:
                t, x, label = (np.asarray(dataset[k]) for dataset in (times, units, labels))
            except (OSError, MemoryError) as error:
                recordings.append((None, f"HDF5 cannot read it: {error}"))
                continue
            why = ""
            if label.ndim or label.dtype.kind not in "iuf" or not 0 <= float(label) < len(keys) or float(label) % 1:
                why = f"a label is {label.dtype} and no class"
            elif t.shape != x.shape or t.ndim != 1:
                why = "times and units have different shapes"
            elif t.dtype.kind not in "iuf" or not np.isfinite(t).all() or (t.size and np.abs(t).max() > 2**40 / 1e6):
                why = "a time is not finite or far from any recording"
            elif x.dtype.kind not in "iuf" or (x.size and not ((x >= 0) & (x < _UNITS) & (x == np.floor(x))).all()):
                why = "a unit is no neuron"
            elif t.size and t.min() < 0:
                why = "a time is negative"
            recording = (
                None
                if why
                else ((t.astype(np.float64) * _MICROSECONDS).astype(np.int64), x.astype(np.int64), int(label))
            )
            recordings.append((recording, why))
        return recordings


_FLOATS = (float("nan"), float("inf"), float("-inf"), 1e13, 1e300, -1.0, -1e-9, 1e-300, 2.0**40, 1e9)
_LABELS = (0.5, -1, 2**31, 1e13, float("nan"), 3, 65535, -0.5)


def _shd(rng: random.Random) -> bytes:
    """A file of SHD with up to two changes."""
    import h5py

    n, classes = rng.choice((1, 2, 4)), rng.choice((2, 3))
    times = [np.sort([rng.random() for _ in range(rng.choice((0, 1, 5, 20)))]) for _ in range(n)]
    units = [np.array([rng.randrange(_UNITS) for _ in range(len(t))], np.int64) for t in times]
    arrays: dict[str, Any] = {
        "spikes/times": ("ragged", np.float64, times),
        "spikes/units": ("ragged", np.uint16, units),
        "labels": ("plain", np.array([rng.randrange(classes) for _ in range(n)], np.uint16)),
        "extra/keys": ("plain", np.array([f"word {k}".encode() for k in range(classes)])),
        "extra/speaker": ("plain", np.zeros(n, np.uint16)),
    }
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        _change_shd(rng, arrays, n)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, entry in arrays.items():
            _write(file, name, entry)
    return content.getvalue()


def _restructured(rng: random.Random, content: bytes) -> bytes:
    """A file of HDF5 with up to three changes in its structure, among them the descriptions of its lists."""
    data = bytearray(content)
    marks = [match.start() for match in re.finditer(rb"GCOL|SNOD|TREE|HEAP|OHDR|FRHP", content)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        lists = content.find(b"GCOL")
        if lists >= 0 and rng.random() < 0.5:
            # The objects of a heap of lists: number, count of references, and size, each in 16 bytes, and a list.
            places, at = [lists], lists + 16
            while at + 16 <= len(content) and content[at]:
                places.append(at)
                at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
            at = rng.choice((*places, at)) + rng.choice((0, 2, 8, 8, 8, 9))
        elif marks and rng.random() < 0.5:
            at = rng.choice(marks) + rng.randrange(64)
        else:
            at = rng.choice([k for k, byte in enumerate(content) if byte] or [0])
        at = min(at, len(data) - 1)
        data[at] = rng.choice((rng.randrange(256), data[at] ^ 1 << rng.randrange(8), data[at] + 6 & 255, 0, 255))
    return bytes(data)


def _change_shd(rng: random.Random, arrays: dict[str, Any], n: int) -> None:
    name = rng.choice(sorted(arrays))
    change = rng.randrange(8)
    entry = arrays[name]
    if entry[0] not in ("plain", "ragged"):
        return
    if change < 3 and entry[0] == "ragged" and entry[2]:
        kind, values = entry[1:]
        values = [np.asarray(value, np.float64) for value in values]
        at = rng.randrange(len(values))
        odd = (
            rng.choice(_FLOATS)
            if name.endswith("times")
            else rng.choice((0.5, 700, -1, 65535, float("nan"), 1e13, 699))
        )
        if rng.random() < 0.3:
            values[at] = values[at][: len(values[at]) // 2]
        elif values[at].size:
            values[at][rng.randrange(values[at].size)] = odd
        fits_uint16 = kind is np.uint16 and np.isfinite(odd) and 0 <= odd <= 65535 and odd % 1 == 0
        arrays[name] = ("ragged", kind if fits_uint16 else rng.choice((np.float64, np.float32)), values)
    elif change < 4 and entry[0] == "plain" and entry[1].dtype.kind in "iu" and entry[1].size:
        values = entry[1].astype(rng.choice((np.float64, np.int64)))
        with np.errstate(all="ignore"):
            values.flat[rng.randrange(values.size)] = np.array(rng.choice(_LABELS)).astype(values.dtype)
        arrays[name] = ("plain", values)
    elif change == 4:
        count = rng.choice((0, 1, n - 1, n + 1, 5 * n))
        arrays[name] = (
            ("plain", np.resize(entry[1], count))
            if entry[0] == "plain"
            else (*entry[:2], [*entry[2], *entry[2]][:count])
        )
    elif change == 5:
        arrays[name] = rng.choice(
            (
                *(("plain", np.float64(1)), ("plain", np.uint16(1)), ("plain", np.array(b"word")), ("missing",)),
                *(("plain", np.zeros((n, 2))), ("plain", np.zeros(0)), ("plain", np.array([b"x"] * n)), ("group",)),
                *(("plain", np.array([b"\xff\xfe"] * n)), ("plain", np.zeros(n, "c8")), ("plain", np.zeros(n, bool))),
                *(
                    ("plain", np.zeros(n, [("a", "f4"), ("b", "S3")])),
                    ("null",),
                    ("plain", np.array(["é".encode() * 3000] * 2)),
                ),
            )
            if rng.random() < 0.98
            else (("plain", np.array([b"k"] * 100_000)),)
        )
    elif change == 6:
        shape = rng.choice(((1 << 28,), (1 << 31,), (1 << 40,), (n, 1 << 28), (1 << 26,)))
        arrays[name] = ("unwritten", shape, rng.choice(("f8", "u2", "S8", "ragged")), rng.choice((None, 7)))
    else:
        link = rng.choice(("soft", "loop", "external", "hard", "outside", "virtual", "self"))
        arrays[name] = ("link", link)
        if link == "loop":
            # A group that contains itself.
            arrays["extra/again"] = ("link", "hard")


def _write(file: Any, name: str, entry: tuple[Any, ...]) -> None:
    import h5py

    kind = entry[0]
    if kind == "ragged":
        ragged = file.create_dataset(name, (len(entry[2]),), h5py.vlen_dtype(entry[1]))
        for k, values in enumerate(entry[2]):
            with np.errstate(all="ignore"):
                ragged[k] = np.asarray(values).astype(entry[1])
    elif kind == "plain":
        file[name] = entry[1] if entry[1].dtype.kind != "U" else entry[1].astype("S")
    elif kind == "group":
        file.create_group(f"{name}/within")
    elif kind == "null":
        file[name] = h5py.Empty("f4")
    elif kind == "unwritten":
        dtype = h5py.vlen_dtype(np.float64) if entry[2] == "ragged" else np.dtype(entry[2])
        chunks = tuple(min(side, 1 << 12) for side in entry[1])
        fill = entry[3] if entry[2] not in ("ragged", "S8") else None
        file.create_dataset(name, entry[1], dtype, chunks=chunks, compression="gzip", fillvalue=fill)
    elif kind == "link":
        links = {
            "soft": lambda: h5py.SoftLink("/labels"),
            "self": lambda: h5py.SoftLink(f"/{name}"),
            "loop": lambda: h5py.SoftLink("/extra/again"),
            "external": lambda: h5py.ExternalLink("/etc/passwd", "/x"),
        }
        file.require_group(os.path.dirname(name) or "/")
        if entry[1] in links:
            file[name] = links[entry[1]]()
        elif entry[1] == "hard":
            file[name] = file["/"]
        elif entry[1] == "outside":
            file.create_dataset(name, (4,), "u2", external=[("/etc/passwd", 0, 8)])
        else:
            layout = h5py.VirtualLayout((4,), "u2")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
            file.create_virtual_dataset(name, layout)


def _check_cache(folder: Path) -> None:
    """Complain of a cache that is larger than a small file may ask for."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    if size > _MOST_CACHE:
        raise Complaint(f"a small file made a large cache\n{size:,} bytes")


class Archives(Kind):
    """`.npz` files of events and of rasters, from the file to the cache: huge sizes, lies in headers, odd values."""

    memory = _MOST_MEMORY
    name, weight = "archives", 0.2

    def make(self, rng: random.Random, world: World) -> Case:
        events = rng.random() < 0.6
        arrays = _events(rng) if events else _rasters(rng)
        for _ in range(rng.choice((0, 1, 1, 2))):
            # Text has no number to change, and a date of numpy no short text.
            with (
                contextlib.suppress(ValueError, TypeError, OverflowError, RuntimeError),
                np.errstate(all="ignore"),
                warnings.catch_warnings(action="ignore"),
            ):
                _change_archive(rng, arrays)
        content = _archive(rng, arrays)
        if rng.random() < 0.2:
            content = mutated_bytes(rng, content)
        options = {
            "form": "events" if events else "sequences",
            "steps": rng.choice((1, 4, 4, 4, 25, 1000)) if rng.random() < 0.98 else 100_000,
            "own_lengths": events and rng.random() < 0.3,
        }
        return Case(self.name, content, options)

    def read(self, case: Case, world: World) -> None:
        folder, options = _fresh(world.outside / "archives"), case.how
        path = folder / "input.npz"
        path.write_bytes(case.content)
        data = load(
            f"{options['form']}:{path}", cache_dir=folder / "cache", steps=options["steps"],
            own_lengths=options["own_lengths"], holdout=1, binning=EventBinning(window_us=1000),
        )  # fmt: skip
        _check_cache(folder / "cache")
        for split in (data.train, data.test):
            if len(split):
                frames = split.inputs(np.arange(min(2, len(split))))
                if frames.dtype != np.uint8 or frames.shape[2:] != data.input_shape:
                    raise Complaint(f"samples {frames.dtype} {frames.shape} were accepted")


def _events(rng: random.Random) -> dict[str, Any]:
    m, n = rng.choice((0, 1, 5, 30)), rng.choice((1, 2, 4))
    arrays: dict[str, Any] = {name: np.array([rng.randrange(9) for _ in range(m)], np.int64) for name in "xy"}
    arrays["t"] = np.sort(np.array([rng.randrange(1200) for _ in range(m)], np.int64))
    arrays["p"] = np.array([rng.randrange(2) for _ in range(m)], np.int64)
    for name in rng.choice(((), (), ("p",), ("y", "p"))):
        del arrays[name]
    arrays["sample"] = np.array([rng.randrange(n) for _ in range(m)], np.int64)
    arrays["labels"] = np.arange(n) % 2
    if rng.random() < 0.4:
        arrays["sensor"] = np.array([9, 9] if "y" in arrays else [9])
    if rng.random() < 0.3:
        arrays["split"] = np.arange(n) % 2
    return arrays


def _rasters(rng: random.Random) -> dict[str, Any]:
    n, steps = rng.choice((2, 3, 5)), rng.choice((1, 4, 4))
    arrays: dict[str, Any] = {"inputs": np.array(rng.choices((0, 1), k=n * steps * 6), np.uint8).reshape(n, steps, 6)}
    if rng.random() < 0.5:
        arrays["targets"] = np.array(rng.choices((0, 1), k=n * steps * 3), np.uint8).reshape(n, steps, 3)
    else:
        arrays["labels"] = np.arange(n) % 2
    return arrays


_INTEGERS = (-1, 1, 2, 100, 2**14 - 1, 2**14, 2**20, 2**22, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))


def _change_archive(rng: random.Random, arrays: dict[str, Any]) -> None:
    name = rng.choice(sorted(arrays))
    array, change = arrays[name], rng.randrange(8)
    if isinstance(array, tuple):
        # Its header lies already.
        return
    if change < 3 and array.size:
        array = array.astype(np.int64)
        array.flat[rng.randrange(array.size)] = rng.choice(_INTEGERS)
        arrays[name] = array
    elif change == 3:
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(
                rng.choice(("f8", "f4", "u1", "i1", "?", "U3", "S2", "c8", ">i4", "u8", "M8[s]"))
            )
        if arrays[name].dtype.kind == "f" and arrays[name].size:
            arrays[name].flat[0] = rng.choice(_FLOATS[:5])
    elif change == 4:
        arrays[name] = rng.choice((np.array(3), np.zeros(0, np.int64), np.zeros((2, 2), np.int64), np.resize(array, 7)))
    elif change == 5:
        arrays[rng.choice(("sensor", "classes", "split", "labels", "targets", "inputs", "x", "n"))] = rng.choice(
            (
                *(
                    np.array([2**14, 2**14]),
                    np.array([2**11, 2**11]),
                    np.array([2**40, 1]),
                    np.array([16384]),
                    np.array([0, 0]),
                ),
                *(np.array(["a", "a"]), np.array(["\x1b[31m", "b"]), np.array(["x" * 9000, "y"]), np.arange(2) + 0.5),
            )
        )
    elif change == 6:
        # The header says what the packed bytes are too few for.
        arrays[name] = (
            "lie",
            rng.choice(((1 << 40,), (1 << 31, 1 << 31), (1 << 20,), (10**30,), (5, 1 << 28), (-1,))),
            array,
        )
    elif rng.random() < 0.1:
        arrays[name] = ("zeros", 10**6 if rng.random() < 0.95 else 3 * 10**8, array)
    else:
        del arrays[name]


def _archive(rng: random.Random, arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # Without a description of its own, a member has the time of now, and the case is not the same again.
            member = zipfile.ZipInfo(f"{name}.npy")
            if isinstance(array, tuple):
                archive.writestr(member, _lie(*array), zipfile.ZIP_DEFLATED, 1)
            else:
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                archive.writestr(member, content.getvalue(), packing, 1)
    return file.getvalue()


def _lie(kind: str, size: Any, array: Any) -> bytes:
    """A `.npy` file with a header of its own."""
    shape = size if kind == "lie" else (size,)
    descr = array.dtype.str if array.dtype.kind in "iub" else "|u1"
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    body = array.tobytes() if kind == "lie" else bytes(size)
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


class Media(Kind):
    """Pictures and sounds that lack a part or have an odd depth: they must be refused, not guessed."""

    memory = _MOST_MEMORY
    name, weight = "media", 0.14

    def make(self, rng: random.Random, world: World) -> Case:
        if rng.random() < 0.3:
            return self.sound(rng)
        if rng.random() < 0.02:
            side, scans = rng.choice((8, 200, 1000, 3996)), rng.choice((3, 60, 1000, 1001, 32_000))
            options: dict[str, Any] = {"what": "picture", "size": None}
            if scans > 1000 or scans * side**2 > 10**9:
                options["refuse"] = "it has too many scans"
            return Case(self.name, _scans(rng, side, scans), options)
        side, mode = rng.choice((6, 20, 64)), rng.choice(("PNG", "PNG", "JPEG", "BMP"))
        data, options = _noise(mode, rng.choice(("L", "RGB")), side), {"what": "picture", "size": rng.choice((None, 5))}
        if rng.random() < 0.4:
            begin = {"PNG": data.index(b"IDAT") if mode == "PNG" else 0, "JPEG": data.find(b"\xff\xda"), "BMP": 54}[
                mode
            ]
            # Less than half of the pixels, which do not compress, is left.
            data, options["refuse"] = (
                data[: begin + rng.randrange((len(data) - begin) // 2)],
                "most of its pixels are missing",
            )
        elif mode == "PNG" and rng.random() < 0.7:
            data, why = _deep(rng, side)
            options |= {"refuse": why} if why else {}
        else:
            data = mutated_bytes(rng, data)
        return Case(self.name, data, options)

    def sound(self, rng: random.Random) -> Case:
        """A WAV file with another header or length."""
        file = io.BytesIO()
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(rng.randbytes(2 * rng.choice((50, 300))))
        data, options = bytearray(file.getvalue()), {"what": "sound"}
        change = rng.randrange(5)
        if change == 0:
            bits = rng.choice((*range(1, 16), 17, 24, 255, 65535))
            data[34:36] = struct.pack("<H", bits)
            options["refuse"] = "its samples do not have 16 bits"
        elif change == 1:
            data, options["refuse"] = data[: 46 + rng.randrange(len(data) - 50)], "its samples are cut off"
        elif change == 2:
            data[20:22] = struct.pack("<H", rng.choice((0, 2, 3, 6, 7, 0x55, 65534)))
            options["refuse"] = "it is not plain PCM"
        elif change == 3:
            at = rng.choice((22, 24, 28, 32, 16, 4, 40))
            data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 3, 2**31, 2**32 - 1, 8001)))
        else:
            data = bytearray(mutated_bytes(rng, bytes(data)))
        return Case(self.name, bytes(data), options)

    def read(self, case: Case, world: World) -> None:
        if case.how["what"] == "sound":
            read_recording(case.content, Path("0_one_0.wav"))
        else:
            read_image(case.content, Path("one.png"), channels=None, size=case.how["size"])


@cache
def _noise(form: str, mode: str, side: int) -> bytes:
    from PIL import Image

    shape = (side, side) if mode == "L" else (side, side, 3)
    pixels = np.random.default_rng(side).integers(0, 256, shape).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def _scans(rng: random.Random, side: int, scans: int) -> bytes:
    """A progressive JPEG of zeros, whose scans have few bytes, and sometimes markers between them."""

    def segment(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body

    blocks = (-(-side // 8)) ** 2
    # A code of one bit says that there is no difference, or that 14 bits say how many blocks beyond 16,384 are zero.
    runs = "".join("0" + "1" * 14 for _ in range(-(-blocks // 32767)))
    coded = int(runs.ljust(-(-len(runs) // 8) * 8, "1"), 2).to_bytes(-(-len(runs) // 8), "big")
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00")
    tables = [segment(0xC4, bytes((kind, 1, *[0] * 15, value))) for kind, value in ((0, 0), (0x10, 0xE0))]
    first = segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + bytes(-(-blocks // 8))
    between = rng.choice((b"", b"", b"\xff\x01", b"\xff\xd0", b"\xff\xff", b"\xff\xfe\x00\x02"))
    others = (between + segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + coded.replace(b"\xff", b"\xff\x00")) * (scans - 1)
    return (
        b"\xff\xd8" + segment(0xDB, bytes(1) + b"\x01" * 64) + frame + b"".join(tables) + first + others + b"\xff\xd9"
    )


def _deep(rng: random.Random, side: int) -> tuple[bytes, str]:
    """A PNG of any depth and kind of colour with noise for pixels, and why it must be refused, if so."""
    colour, depths = rng.choice(((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))))
    depth, channels = rng.choice(depths), {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = -(-side * channels * depth // 8)
    rows = side if rng.random() < 0.7 else rng.randrange(side // 2)
    pixels = b"".join(b"\0" + rng.randbytes(row) for _ in range(rows))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))]
    if colour == 3:
        parts.append((b"PLTE", rng.randbytes(3 << depth)))
    parts += [(b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    why = "it has 16 bits a channel" if depth == 16 else "rows of pixels are missing" if rows < side else ""
    return data, why


class Imports(Kind):
    """Settings that name modules: in a file alone they must not be imported, however they are written."""

    name, weight = "imports", 0.12

    def make(self, rng: random.Random, world: World) -> Case:
        setting = rng.choice(
            ("neuron", "loss", "surrogate", "dataset", "test_on", "net", "init_from", "neuron_model", "track")
        )
        named = rng.choice(
            (
                *(
                    f"{EVIL}:E",
                    f" {EVIL}:E",
                    f"{EVIL}.sub:E",
                    f"{EVIL}:E:a=2",
                    f"{EVIL}:E:",
                    f"{EVIL}::E",
                    f"lif:{EVIL}:E",
                ),
                *(
                    f"{EVIL}.py:E",
                    f"../{EVIL}:E",
                    f"{EVIL}",
                    f"tonic:{EVIL}",
                    f"events:{EVIL}:E",
                    f"5{{neuron={EVIL}:E}}",
                ),
                *(
                    f"5{{surrogate={EVIL}:E}}",
                    f"\t{EVIL}:E\n",
                    f"{EVIL}:__class__",
                    f"{EVIL}\u200b:E",
                    f"arctan:{EVIL}:E",
                ),
            )
        )
        lines = [f"{setting} = {to_toml_value(named)}"]
        if setting != "dataset":
            lines.append('dataset = "folder:../data/pictures"')
        other = rng.choice(("neuron", "loss", "surrogate", "tau_m", "epochs"))
        if rng.random() < 0.4 and other != setting:
            lines.append(f"{other} = " + (rng.choice(("5.0", "5")) if other in ("tau_m", "epochs") else f'"{EVIL}:E"'))
        if rng.random() < 0.3:
            lines.append(
                f"{rng.choice(('neuron_model', 'loss_model', 'surrogate_model'))} = "
                + rng.choice(('""', '"{}"', '"x"'))
            )
        text = "\n".join(rng.sample(lines, len(lines))) + "\n"
        content = text.encode() if rng.random() < 0.85 else mutated_bytes(rng, text.encode())
        more = rng.choice(
            (("--show-config",), ("--show-config",), (), ("--tau-m", "4"), ("--epochs", "1"), ("--loss", "hamming"))
        )
        out = ("--out", "runs/new", "--stop-after", "0.001")
        if rng.random() < 0.15:
            # The settings of a run.
            arguments: tuple[str, ...] = rng.choice(
                (
                    ("train", "--resume", "runs/stopped", "--stop-after", "0.001"),
                    ("evaluate", "runs/stopped", "--checkpoint", "last"),
                    ("train", *PICTURES, "--init-from", "runs/stopped", *out),
                    ("report", "runs/stopped", "--no-samples"),
                    ("train", "--resume", "runs/stopped", "--config", "own.toml", "--stop-after", "0.001"),
                )
            )
            config = world.content("work/runs/stopped/config.toml").decode().splitlines()
            keys = {line.partition(" =")[0] for line in lines}
            config_lines = [*(line for line in config if line.partition(" =")[0] not in keys), *lines]
            files = {"work/runs/stopped/config.toml": "\n".join(config_lines).encode()}
            if "--config" in arguments:
                files = {"work/own.toml": content}
        else:
            arguments, files = (
                ("train", "--config", "own.toml", *more, *(() if "--show-config" in more else out)),
                {"work/own.toml": content},
            )
        files |= {f"work/{EVIL}.py": b"E = 1\n", f"work/{EVIL}/__init__.py": b"E = 1\n"}
        return Case(
            self.name,
            arguments=(*_NUMPY, *arguments),
            files=files,
            may_make=("work/runs/new", "work/runs/stopped.html"),
            may_change=("work/runs/stopped", "cache", "work/runs/stopped.html"),
        )


class States(Kind):
    """States of runs that are not finite or far too large: they must not replace a good run."""

    name, weight = "states", 0.1

    def make(self, rng: random.Random, world: World) -> Case:
        run = rng.choice(("pictures", "recordings", "rasters", "stopped"))
        folder = f"work/runs/{run}"
        description = json.loads(world.content(f"{folder}/last.json"))
        data = world.content(f"{folder}/{description['file']}")
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
        name = rng.choice(sorted(key for key in header if key != "__metadata__" and header[key]["dtype"] == "F32"))
        begin, end = header[name]["data_offsets"]
        value = rng.choice((float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 3.4e38, -1.0, 1e-45))
        offsets = (
            range(begin, end, 4)
            if rng.random() < 0.5
            else [begin + 4 * rng.randrange((end - begin) // 4)]
            if end > begin
            else []
        )
        for at in offsets:
            body[at : at + 4] = struct.pack("<f", value)
        files = _stored(folder, description, data[: 8 + length] + bytes(body))
        options = {"run": run, "tensor": name, "value": value if value == value else "nan"}
        if rng.random() < 0.9:
            return Case(self.name, how=options, files=files)
        target = rng.choice(("pictures", "stopped"))
        settings = {"recordings": RECORDINGS, "rasters": RASTERS}.get(run, PICTURES)
        commands: tuple[tuple[str, ...], ...] = (
            ("train", "--resume", f"runs/{run}", "--epochs", "3", "--stop-after", "0.001"),
            ("train", *settings, "--init-from", f"runs/{run}:last", "--out", f"runs/{target}", "--overwrite"),
            ("train", *settings, "--init-from", f"runs/{run}:last", "--out", "runs/new"),
            ("evaluate", f"runs/{run}", "--checkpoint", "last"),
        )
        arguments = rng.choice(commands)
        options["kept"] = [f"work/runs/{target}"] if "--overwrite" in arguments and target != run else []
        if "--resume" in arguments:
            options["kept"] = [f"{folder}/config.toml"]
        return Case(
            self.name,
            arguments=(*_NUMPY, *arguments),
            how=options,
            files=files,
            may_make=("work/runs/new",),
            may_change=(folder, f"work/runs/{target}", "cache"),
        )

    def read(self, case: Case, world: World) -> None:
        with world.run_with("states", case.how["run"], case.files) as copy:
            backend = open_backend("numpy")
            trained = load_trained(RunFolder(copy), "last", backend)
            state = import_checkpoint(trained.task, checkpoint.load(copy, "last"), RunFolder(copy))
            exported = trained.task.trainer.export_state(state)
            for name, x in exported.items():
                if not np.isfinite(x).all():
                    raise Complaint(f"a state that is not finite was accepted\n{name}")
                if name.startswith("adamw.v") and (x < 0).any():
                    raise Complaint(f"a negative second moment was accepted\n{name}")


def _stored(folder: str, description: dict[str, Any], data: bytes) -> dict[str, bytes]:
    """A checkpoint with these tensors whose description agrees with them."""
    from hashlib import sha256

    digest = sha256(data).hexdigest()
    described = {**description, "file": f"last-{description['step']}-{digest[:12]}.safetensors", "sha256": digest}
    described.pop("digest")
    text = json.dumps(described, sort_keys=True).encode("utf-8", "surrogatepass")
    described["digest"] = sha256(text).hexdigest()
    return {f"{folder}/{described['file']}": data, f"{folder}/last.json": json.dumps(described).encode()}


class Changes(Kind):
    """Data or records that change between the parts of a run: `--resume` must say so, and leave the run as it is."""

    name, weight = "changes", 0.03

    def make(self, rng: random.Random, world: World) -> Case:
        run, prefix = rng.choice(
            (
                ("stopped", "data/pictures/"),
                ("pictures", "data/pictures/"),
                ("recordings", "data/recordings/"),
                ("rasters", "data/rasters.npz"),
            )
        )
        names = [name for name in world.names() if name.startswith(prefix) and world.content(name)]
        name = rng.choice(names)
        content, refuse, files = bytearray(world.content(name)), "the data changed", {}
        if run == "rasters":
            with np.load(io.BytesIO(bytes(content))) as archive:
                arrays = {key: archive[key] for key in archive.files}
            array = arrays[rng.choice(sorted(arrays))]
            array.flat[rng.randrange(array.size)] ^= 1
            file = io.BytesIO()
            np.savez(file, **arrays)
            files[name] = file.getvalue()
        elif run == "recordings":
            at = 5 * rng.randrange(len(content) // 5)
            content[at] = (content[at] + 1 + rng.randrange(32)) % 34
            files[name] = bytes(content)
        else:
            files[name] = picture(100 + rng.randrange(1000))
        if rng.random() < 0.1:
            refuse, files = "", {name: world.content(name)}
        elif run != "stopped" and rng.random() < 0.2:
            # The run that was stopped has no records before its checkpoint.
            other = "recordings" if run == "rasters" else "rasters"
            refuse, records = "the records are those of another run", world.content(f"work/runs/{other}/metrics.jsonl")
            files = {f"work/runs/{run}/metrics.jsonl": records}
        arguments = (
            "train",
            "--resume",
            f"runs/{run}",
            "--epochs",
            "100001" if run == "stopped" else "3",
            "--stop-after",
            "0.001",
        )
        # The list of starts may grow.
        inside = [name for name in world.names() if name.startswith(f"work/runs/{run}/")]
        options: dict[str, Any] = {"kept": [name for name in inside if not name.endswith("environment.json")]}
        options |= {"refuse": refuse} if refuse else {}
        return Case(
            self.name,
            how=options,
            arguments=(*_NUMPY, *arguments),
            files=files,
            may_change=(f"work/runs/{run}", "cache"),
        )


_HEADERS = (
    "assert", "complex", "ctype", "errno", "features", "float", "limits", "locale", "math", "setjmp", "signal",
    "stdint", "stdbool", "stdio", "stdlib", "string", "time", "wchar",
)  # fmt: skip
_C_NAMES = (
    *_HEADERS, "int", "double", "main", "static", "inline", "restrict", "_Bool", "NULL", "memcpy", "run", "network",
    "stdint.h", "float32", "error", "bool", "x y", "1st", "é", "a-b", "", "-", "a" * 300,
)  # fmt: skip


class Exports(Kind):
    """Names of exported networks: the C source must still compile, and shadow no header."""

    name, weight = "exports", 0.015

    def make(self, rng: random.Random, world: World) -> Case:
        run = rng.choice(("pictures", "recordings", "rasters"))
        name = rng.choice(_C_NAMES) if rng.random() < 0.8 else rng.choice(TEXTS).replace("\0", "")
        name = os.fsdecode(name.encode("utf-8", "replace"))
        files = {}
        folder = run
        if rng.random() < 0.6 and name and "/" not in name and name not in (".", "..") and len(name.encode()) < 200:
            # The name of a run becomes that of the network.
            folder = name
            inside = f"work/runs/{run}/"
            files = {
                f"work/runs/{name}/{key.removeprefix(inside)}": world.content(key)
                for key in world.names()
                if key.startswith(inside) and world.content(key)
            }
        # A folder that the user names outside of the world is written, as it should be.
        leaves = name.startswith("/") or ".." in name.split("/")
        out = f"exported-{run}" if leaves or rng.random() < 0.5 else name
        arguments = (
            "export",
            f"runs/{folder}",
            "--to",
            rng.choice(("c", "c", "c", "onnx", "nir", "hub")),
            f"--out={out}",
        )
        return Case(
            self.name,
            arguments=(*_NUMPY, *arguments),
            files=files,
            how={"compile": out},
            may_make=(f"work/{out}", f"work/runs/{folder}"),
            may_change=("work",),
        )

    @staticmethod
    def check(case: Case, world: World) -> None:
        """Compile what was written."""
        folder = world.root / "work" / case.how["compile"]
        if "c" not in case.arguments or not folder.is_dir() or shutil.which("gcc") is None:
            return
        for path in sorted(folder.iterdir()):
            if path.suffix == ".h" and path.stem in _HEADERS:
                raise Complaint(f"an exported header has the name of one of C's\n{path.name}")
            if path.suffix == ".c":
                done = subprocess.run(
                    ["gcc", "-std=c99", "-fsyntax-only", "-I", str(folder), str(path)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    raise Complaint(f"exported C does not compile\n{done.stderr[-800:]}")


class Places(Kind):
    """Pipes, folders, links in a circle and devices in place of files."""

    memory = _MOST_MEMORY
    name, weight = "places", 0.08
    files = (
        *("SHD/shd_train.h5", "SHD/shd_test.h5", "input.npz", "pictures/a/1.png", "pictures/a"),
        *("MNIST/train-images-idx3-ubyte", "fsdd/0_one_0.wav", "Train/3/1.bin", "Train/3", "NMNIST"),
        *("cifar-10-batches-bin/data_batch_1.bin", "input.toml", "input.nir"),
        *("run/config.toml", "run/last.json", "run/metrics.jsonl"),
    )

    def make(self, rng: random.Random, world: World) -> Case:
        special = rng.choice(_SPECIAL) if rng.random() < 0.7 else ""
        options = {"file": rng.choice(self.files), "special": special, "skip": rng.random() < 0.3}
        return Case(self.name, how=options)

    def read(self, case: Case, world: World) -> None:
        folder, file, special = _fresh(world.outside / "places"), case.how["file"], case.how["special"]
        if file.startswith("run/"):
            shutil.copytree(world.root / "work/runs/pictures", folder / "run")
        elif file.startswith("pictures"):
            for name in ("a/2.png", "b/1.png"):
                path = folder / "pictures" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(1))
        elif file.startswith("Train"):
            shutil.copytree(world.root / "data/recordings/Train", folder / "Train")
        elif file == "SHD/shd_test.h5":
            (folder / "SHD").mkdir()
            (folder / "SHD/shd_train.h5").write_bytes(plain_shd())
        if special:
            _special(folder / file, special)
        names = {
            "SHD": "shd",
            "MNIST": "mnist",
            "fsdd": "fsdd",
            "Train": "nmnist",
            "NMNIST": "nmnist",
            "cifar-10-batches-bin": "cifar10",
        }
        first = file.partition("/")[0]
        if first == "run":
            run = RunFolder(folder / "run")
            load_trained(run, "last", open_backend("numpy"))
            if file == "run/metrics.jsonl":
                from stsbp.training.metrics import read_records

                read_records(run.path, run.read_config())
        elif file == "input.toml":
            resolve([read_toml(folder / file)])
        elif file == "input.nir":
            from stsbp.interop.nir_reader import read_graph

            read_graph(folder / file)
        else:
            name = (
                f"events:{folder / file}"
                if file == "input.npz"
                else f"folder:{folder / 'pictures'}"
                if first == "pictures"
                else names[first]
            )
            load(name, data_dir=folder, cache_dir=folder / "cache", steps=3, skip_malformed=case.how["skip"])


@cache
def plain_shd() -> bytes:
    """A file of SHD with two recordings."""
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, kind, values in (("times", np.float64, [0.1, 0.2]), ("units", np.uint16, [1, 2])):
            _write(file, f"spikes/{name}", ("ragged", kind, [np.array(values)] * 2))
        file["labels"] = np.array([0, 1], np.uint16)
        file["extra/keys"] = np.array([b"a", b"b"])
        file["extra/speaker"] = np.zeros(2, np.uint16)
    return content.getvalue()


SMALL_FILES: tuple[Kind, ...] = (
    *((Spoken(),) if importlib.util.find_spec("tonic") and importlib.util.find_spec("h5py") else ()),
    *(Archives(), Media(), Imports(), States(), Changes(), Exports(), Places()),
)
"""The kinds of this module. Recordings of SHD need the library tonic."""
