"""N-MNIST (Orchard et al. 2015): MNIST digits recorded by an event camera that makes three saccades.

Published layout: `Train/<class>/<id>.bin` and `Test/<class>/<id>.bin`. A file is a list of 40-bit events: 8 bits x,
8 bits y, 1 bit polarity, 23 bits time in microseconds. An event with y = 240 marks an overflow of the clock. tonic
drops it and adds 2^13 us to all later times. Recordings of N-MNIST last 0.3 s and the clock covers 8.4 s, so they have
no overflows. Times are checked after this correction.

Every file is checked before tonic reads it, because tonic accepts any bytes as events.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.typing import AnyArray, Int64

from stsbp.datasets.base import (
    Dataset,
    FrameSplit,
    Progress,
    Request,
    Skipped,
    Split,
    cut_test,
    ignored_files,
    left_out,
    names_unreadable,
)
from stsbp.datasets.cache import (
    CacheForm,
    CacheWriter,
    SourceFiles,
    cached,
    combine_digests,
    digest_files,
    read_unchanged,
)
from stsbp.datasets.digits import CLASSES
from stsbp.datasets.events import late_events, late_notes
from stsbp.datasets.info import ByLoss, DatasetInfo
from stsbp.errors import DataError
from stsbp.files import MEGABYTE, has_folder

__all__ = [
    "DEFAULT_HOLDOUT",
    "MAX_BYTES",
    "NMNIST",
    "OVERFLOW_ROW",
    "SENSOR",
    "load",
    "read_recording",
    "tested_digits",
]

SENSOR = 34
"""Width and height of the part of the sensor that N-MNIST uses."""
DEFAULT_HOLDOUT = 100
MAX_BYTES = 16 * MEGABYTE
"""Largest size of a recording in bytes: 3.3 million events. Those of N-MNIST have about 4,000 events."""
PUBLISHED = {"Train": 60_000, "Test": 10_000}

_HOME = "https://www.garrickorchard.com/datasets/n-mnist"
_INSTALL = 'pip install "stsbp[nmnist]"'
OVERFLOW_ROW = 240
"""The row of an entry that only advances the clock."""
_OVERFLOW_US = 1 << 13
_MAX_OVERFLOWS = 1024
"""Number of overflows that covers the clock's range once. A file with more is not a recording (and takes tonic
long)."""
_EVENT_DTYPE = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])


def _tonic() -> Any:
    try:
        import tonic.datasets
        import tonic.io
    except ImportError as error:
        raise DataError(f"N-MNIST needs the library tonic ({error}): {_INSTALL}") from error
    return tonic


def _complaint(content: bytes) -> str | None:
    """What is wrong with a file; None if it is valid."""
    if not content:
        return "the file is empty"
    if len(content) % 5:
        return f"its length, {len(content)} bytes, is not a multiple of the 5 bytes of an event; it may be cut off"
    entries = np.frombuffer(content, dtype=np.uint8).reshape(-1, 5).astype(np.int64)
    x, y = entries[:, 0], entries[:, 1]
    overflow = y == OVERFLOW_ROW
    if overflow.all() or int(overflow.sum()) > _MAX_OVERFLOWS:
        return f"{int(overflow.sum())} of its {len(entries)} events are clock overflows (y = {OVERFLOW_ROW})"
    outside = np.flatnonzero(~overflow & ((x >= SENSOR) | (y >= SENSOR)))
    if outside.size:
        k = int(outside[0])
        return f"event {k} lies at x = {x[k]}, y = {y[k]}, outside the sensor of {SENSOR} x {SENSOR} pixels"
    t = ((entries[:, 2] & 127) << 16 | entries[:, 3] << 8 | entries[:, 4]) + _OVERFLOW_US * np.cumsum(overflow)
    t = t[~overflow]
    backwards = np.flatnonzero(np.diff(t) < 0)
    if backwards.size:
        k = int(backwards[0]) + 1
        return f"time runs backwards at event {k}: {t[k]} us after {t[k - 1]} us"
    return None


def read_recording(content: bytes, path: Path) -> tuple[Int64, Int64, Int64, Int64]:
    """Events of one file: column, row, polarity and time in microseconds, each `[n]`.

    Raises:
        DataError: the bytes are not a recording (the message contains `path`), or tonic is not installed.
    """
    if (complaint := _complaint(content)) is not None:
        raise DataError(f"{path}: {complaint}")
    events: AnyArray = _tonic().io.read_mnist_file(io.BytesIO(content), dtype=_EVENT_DTYPE, is_stream=True)
    return events["x"], events["y"], events["p"], events["t"]


def _root(data_dir: Path, *splits: str) -> Path | None:
    """The folder that contains one of the splits, by default Train."""
    for candidate in (data_dir, data_dir / "NMNIST"):
        if any(has_folder(candidate / split) for split in splits or ("Train",)):
            return candidate
    return None


def tested_digits(data_dir: Path) -> Int64:
    """Numbers of the MNIST training digits whose recordings are used for the test, if there is no folder Test.

    Recording k of the Train folder shows training digit k - 1.
    """
    root = _root(data_dir)
    if root is None or has_folder(root / "Test"):
        return np.zeros(0, dtype=np.int64)
    names = [Path(file).stem for file in _files(root / "Train")]
    # Other files may have longer numbers as names, which do not fit into 64 bits.
    numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 10]
    return np.array(numbers, dtype=np.int64) - 1


def _files(folder: Path) -> list[str]:
    """Recordings in the folder of a split, `<class>/<id>.bin`, in order."""
    return [
        f"{name}/{path.name}"
        for name in CLASSES
        if has_folder(folder / name)
        for path in sorted((folder / name).iterdir())
        if path.suffix == ".bin" and not path.name.startswith(".")
    ]


def _ignored(folder: Path) -> tuple[str, ...]:
    """A note of recordings in the folder of a split whose names are not those of N-MNIST."""
    read = set(_files(folder))
    names = (path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.suffix.lower() == ".bin")
    rule = "only files <class 0 to 9>/<id>.bin are read"
    return ignored_files(folder, (name for name in names if name not in read), rule)


def _download(data_dir: Path) -> None:
    """Download both splits with tonic. They are checked by md5, and `zipfile` keeps all names inside the folder."""
    source = _tonic().datasets.NMNIST
    try:
        # Standard output is only for the results of the command.
        with contextlib.redirect_stdout(sys.stderr):
            for train in (True, False):
                source(save_to=str(data_dir), train=train)
    except (OSError, RuntimeError, RecursionError) as error:
        raise DataError(
            f"could not download N-MNIST: {error}\nFetch {source.train_filename} (md5 {source.train_md5}, "
            f"{source.train_url}) and {source.test_filename} (md5 {source.test_md5}, {source.test_url}), see {_HOME}; "
            f"put both into {data_dir / 'NMNIST'} and run the same command again: they are checked and unpacked there"
        ) from error


def _load_split(folder: Path, request: Request) -> tuple[FrameSplit, tuple[Skipped, ...], tuple[str, ...]]:
    """The recordings in the folder of a split as frames, cached; those left out; and a note of late events."""
    files = _files(folder)
    if not files:
        raise DataError(f"{folder} holds no recordings: expected {folder}/<class 0 to 9>/<id>.bin")
    digests = digest_files(folder, files, max_bytes=MAX_BYTES, cache_dir=request.cache_dir, progress=request.progress)
    binning = request.binning

    def build(writer: CacheWriter) -> None:
        report = Progress(request.progress, f"reading {folder}{writer.rebuild_reason}", len(files))
        for files_done, relative in enumerate(files, 1):
            path = folder / relative
            content = read_unchanged(path, digests[relative])
            if request.skip_malformed and (complaint := _complaint(content)) is not None:
                writer.skip(relative, complaint)
            else:
                recording = read_recording(content, path)
                stored_frames = FrameSplit.store(binning.frames(*recording)[np.newaxis], binary=binning.binary)
                lengths = [binning.length(recording[-1])] if request.own_lengths else None
                writer.add(stored_frames, [CLASSES.index(relative[0])], lengths)
                writer.count_events(late_events(recording[-1], binning), len(recording[-1]))
            report(files_done)

    key = {
        "source": combine_digests(digests),
        "binning": dataclasses.asdict(binning),
        "skip_malformed": request.skip_malformed,
        **request.length_key,
    }
    source = SourceFiles(folder, digests.size, len(files))
    form = CacheForm.of_frames(
        len(CLASSES),
        binning.shape,
        binning.steps,
        binary=binning.binary,
        own_lengths=request.own_lengths,
        events=True,
    )
    recordings = cached("nmnist", key, cache_dir=request.cache_dir, build=build, root=folder, source=source, form=form)
    notes = () if recordings.events is None else late_notes(*recordings.events, binning)
    frames = recordings.frames(binning.steps, binary=binning.binary)
    return frames, recordings.skipped, tuple(f"{folder.name}: {note}" for note in notes)


@names_unreadable
def load(request: Request) -> Dataset:
    """N-MNIST, or the part of it that exists.

    Raises:
        DataError: `data_dir` has no recordings, a recording is malformed, or the download failed.
    """
    data_dir = request.data_dir
    if data_dir is None:
        raise DataError(
            "N-MNIST needs a data folder: name the one that holds NMNIST/Train/ with --data-dir or STSBP_DATA; with "
            "--download, name a folder to put them into"
        )
    parts = ("Test", "Train") if request.only_test else ("Train",)
    root = _root(data_dir, *parts)
    if request.download:
        complete = root is not None and all(len(_files(root / name)) >= n for name, n in PUBLISHED.items())
        if not complete:
            # tonic puts its folder NMNIST into the given folder.
            _download(root.parent if root is not None and root.name == "NMNIST" else data_dir)
            root = _root(data_dir, *parts)
    test: Split
    if root is None:
        raise DataError(
            f"no N-MNIST at {data_dir}: expected {data_dir}/NMNIST/Train/<class 0 to 9>/<id>.bin (and Test/ beside "
            f"Train/); fetch it with --download, or from {_HOME}"
        )
    if request.only_test and has_folder(root / "Test"):
        test, skipped, late = _load_split(root / "Test", request)
        notes = [
            _count_note("Test", len(test), root),
            *late,
            *_ignored(root / "Test"),
            *left_out(skipped, "recordings"),
        ]
        return Dataset("nmnist", "events", request.binning.shape, CLASSES, test, test, tuple(notes), skipped)
    train_recordings, skipped, late = _load_split(root / "Train", request)
    notes = [_count_note("Train", len(train_recordings), root), *_ignored(root / "Train")]
    train: Split = train_recordings
    if has_folder(root / "Test") and request.wants_own_test:
        test, test_skipped, test_late = _load_split(root / "Test", request)
        skipped += test_skipped
        notes += [_count_note("Test", len(test), root), *_ignored(root / "Test")]
        late += test_late
    else:
        train, test = cut_test(train_recordings, DEFAULT_HOLDOUT, request)
        reason = "as asked" if not request.wants_own_test else "there is no Test folder"
        if not request.train_only:
            notes.append(
                f"{reason}: {len(test)} of the Train recordings are held out as test samples (split seed "
                f"{request.seed}); results do not compare with published ones"
            )
    notes += late
    notes += left_out(skipped, "recordings")
    return Dataset("nmnist", "events", request.binning.shape, CLASSES, train, test, tuple(notes), skipped)


def _count_note(name: str, count: int, root: Path) -> str:
    return f"{name}: {count} of the {PUBLISHED[name]} published recordings, from {root / name}"


NMNIST = DatasetInfo(
    name="nmnist",
    description="N-MNIST: MNIST in front of an event camera, 2 x 34 x 34, 60,000 + 10,000 recordings, or a part",
    coding="events",
    load=load,
    defaults={
        "net": "12C5-P2-64C5-P2",
        "steps": 25,
        "epochs": 25,
        "batch_size": 10,
        "lr": 5e-3,
        "tau_m": 5.0,
        "tau_s": 3.0,
        "surrogate": "fast-sigmoid:beta=3",
        "init_gain": 1.0,
        "label_pattern": ByLoss("1", "1", "01"),
        "augment_shift": 1,
        "augment_rotate": 12.0,
        "augment_scale": 0.12,
        "augment_shear": 0.12,
        "augment_elastic": 2.0,
    },
    default_holdout=DEFAULT_HOLDOUT,
    can_download=True,
    recordings=True,
    saccades=True,
    extra="nmnist",
    licence="CC BY-SA 4.0",
)
"""The data set of `stsbp train nmnist`, with its default settings."""
