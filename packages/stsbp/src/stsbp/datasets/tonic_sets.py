"""Data sets that the library tonic reads and downloads: SHD, SSC, DVS128 Gesture, CIFAR10-DVS, and others by name.

The files are in tonic's layout, in a subfolder of the data folder with the name of tonic's class, for example
`SHD/shd_train.h5`. Users may also put them there by hand, with or without the archive that contained them. tonic opens
them. Its results are checked, and binned like N-MNIST's recordings (`stsbp_spec.models.encoders.events`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.errors import SpecError
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray

from stsbp import budget
from stsbp.datasets.base import (
    Dataset,
    FrameSplit,
    Progress,
    Request,
    Skipped,
    Split,
    check_class_count,
    cut_test,
    left_out,
    names_unreadable,
)
from stsbp.datasets.cache import CacheForm, CacheWriter, SourceFiles, cached, combine_digests, digest_files
from stsbp.datasets.events import late_events, late_notes
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.nmnist import OVERFLOW_ROW
from stsbp.datasets.spoken import SpokenFile
from stsbp.errors import DataError, did_you_mean
from stsbp.files import GIGABYTE, check_regular

__all__ = ["CIFAR10_DVS", "GESTURE", "SHD", "SSC", "TONIC", "load"]

_INSTALL = 'pip install "stsbp[tonic]"'
_NAMES = {"shd": "SHD", "ssc": "SSC", "dvs-gesture": "DVSGesture", "cifar10-dvs": "CIFAR10DVS"}
"""Data sets with names of their own, and tonic's classes for them."""
_SENSORS = {"NCALTECH101": (240, 180, 2)}
"""Width, height and number of polarities for classes of tonic that do not define them."""
_FOLDERS = {"SMNIST": "smnist"}
"""Folders for classes of tonic that do not read from a folder with their own name."""
_LIKE_NMNIST = ("NMNIST", "NCALTECH101")
"""Classes of tonic whose files have the format of N-MNIST."""
_BY_LAST_CHARACTERS = {"NMNIST": ".bin", "ASLDVS": ".mat", "POKERDVS": ".npy"}
"""Classes of tonic that take the last characters of a folder for the class of its files, and the suffixes of these."""
_BYTES_OF_EVENT = 5
_ARCHIVES = (".zip", ".gz", ".tar", ".md5")
_MOST = 16 * GIGABYTE
"""Largest size of a file in bytes. The largest file of SSC has 3 GB."""


def _tonic() -> Any:
    try:
        import tonic.datasets
    except ImportError as error:
        raise DataError(f"this data set needs the library tonic ({error}): {_INSTALL}") from error
    return tonic.datasets


def _class_of(name: str) -> Any:
    """tonic's class of a name. Upper and lower case do not matter."""
    module = _tonic()
    data_set_names = [
        class_name for class_name in module.__all__ if hasattr(getattr(module, class_name), "__getitem__")
    ]
    matches = [class_name for class_name in data_set_names if class_name.casefold() == name.casefold()]
    if not matches:
        raise DataError(
            f"tonic has no data set {name!r}{did_you_mean(name, data_set_names)}; known: {', '.join(data_set_names)}"
        )
    return getattr(module, matches[0])


def _folder(tonic_class: Any, data_dir: Path) -> Path:
    """The folder from which tonic's class reads."""
    name: str = tonic_class.__name__
    return data_dir / _FOLDERS.get(name, name)


def _parts(tonic_class: Any) -> dict[str, dict[str, Any]]:
    """The arguments of tonic's class for training and test samples, if it distinguishes them."""
    parameters = inspect.signature(tonic_class).parameters
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" in parameters:
        return {"train": {"split": "train"}, "test": {"split": "test"}}
    return {"train": {}}


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, except archives."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix not in _ARCHIVES and path.is_file())


def _without_download(tonic_class: Any) -> Any:
    """tonic's class, changed so that it accepts existing files and downloads nothing."""

    def exists(self: Any) -> bool:
        return any(_files(Path(self.location_on_system, self.folder_name)))

    def download(self: Any) -> None:
        raise FileNotFoundError(2, "no such data", self.location_on_system)

    # tonic uses the name of the class as the name of the folder. Some classes unpack and delete an archive that they
    # find, unless it seems to be missing.
    changed = {"_check_exists": exists, "download": download, "_is_file_present": lambda _self: False}
    return type(tonic_class.__name__, (tonic_class,), changed)


def _open(tonic_class: Any, data_dir: Path, part: Mapping[str, Any], request: Request) -> Any:
    """tonic's object for some samples.

    Raises:
        DataError: the files do not exist or cannot be read, or the download failed.
    """
    name, folder = tonic_class.__name__, _folder(tonic_class, data_dir)
    try:
        # Standard output is only for the results of the command.
        with contextlib.redirect_stdout(sys.stderr):
            return (tonic_class if request.download else _without_download(tonic_class))(save_to=str(data_dir), **part)
    except ImportError as error:
        raise DataError(f"{name} needs another library ({error}): {_INSTALL}") from error
    except SystemExit as error:
        # tonic ends the program if it cannot download the files, for example because they need a browser.
        raise DataError(
            f"no {name} at {folder}, and tonic cannot download it. {_by_hand(tonic_class, folder)}"
        ) from error
    except Exception as error:
        # For truncated or forged files, tonic and its libraries can raise almost any error.
        if request.download:
            raise DataError(f"could not download {name}: {error}\n{_by_hand(tonic_class, folder)}") from error
        if not folder.is_dir() or isinstance(error, FileNotFoundError):
            raise DataError(
                f"no {name} at {folder}: fetch it with --download, or by hand. {_by_hand(tonic_class, folder)}"
            ) from error
        raise DataError(f"{folder} cannot be read as {name}: {type(error).__name__}: {error}") from error


def _spoken_path(tonic_class: Any, folder: Path, part: str) -> Path | None:
    """The file of SHD or SSC with some samples; None for other data sets."""
    archive = getattr(tonic_class, f"{part}_zip", None)
    return folder / archive.removesuffix(".zip") if tonic_class.__name__ in ("SHD", "SSC") and archive else None


def _by_hand(tonic_class: Any, folder: Path) -> str:
    """Which files to download from where, and where to put them, if tonic's class contains this information."""
    downloads = []
    for prefix in ("", "train_", "test_", "valid_"):
        file = getattr(tonic_class, f"{prefix}filename", None) or getattr(tonic_class, f"{prefix}zip", None)
        base = getattr(tonic_class, "base_url", "")
        url = getattr(tonic_class, f"{prefix}url", None) or (f"{base}{file}" if base.endswith("/") else base)
        md5 = getattr(tonic_class, f"{prefix}md5", None) or getattr(tonic_class, "file_md5", None)
        if file and url:
            downloads.append(f"{file} (md5 {md5}, {url})")
    sentence_start = f"Fetch {', '.join(downloads)}, u" if downloads else "U"
    return f"{sentence_start}npack what you fetched into {folder} and run the same command again"


def _ordered(source: Any) -> list[int]:
    """The order of the samples. tonic's own order may depend on the order in which a disk lists files."""
    data, targets, numbers = getattr(source, "data", []), getattr(source, "targets", []), range(len(source))
    if len(data) == len(numbers) and all(isinstance(path, str) for path in data):
        return sorted(numbers, key=lambda k: Path(data[k]).parts)
    if len(data) == len(targets) == len(numbers) and all(isinstance(events, np.ndarray) for events in data):
        return sorted(numbers, key=lambda k: (targets[k], data[k].tobytes()))
    return list(numbers)


def _classes(tonic_class: Any, source: Any) -> tuple[str, ...]:
    """Names of the classes: those of tonic, else the labels of the samples."""
    class_names = getattr(source, "classes", None)
    if isinstance(class_names, Mapping):
        return tuple(str(name) for name, _ in sorted(class_names.items(), key=lambda pair: pair[1]))
    if class_names is not None:
        return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in class_names)
    targets = list(getattr(source, "targets", []))
    if targets and all(isinstance(target, str) for target in targets):
        return tuple(sorted({*targets}))
    if targets and all(isinstance(target, int | np.integer) for target in targets):
        return tuple(map(str, range(int(max(targets)) + 1)))
    raise DataError(f"the samples of {tonic_class.__name__} have no classes, so it cannot be trained on as it is")


def _sensor(tonic_class: Any, source: Any) -> tuple[int, int, int]:
    sensor = _SENSORS.get(tonic_class.__name__, getattr(source, "sensor_size", None))
    if sensor is None or len(sensor) != 3 or not all(isinstance(size, int) for size in sensor):
        raise DataError(f"tonic does not say how large the sensor of {tonic_class.__name__} is, so it cannot be binned")
    return sensor


def _gesture(path: str) -> AnyArray:
    """The events of a file of DVS128 Gesture: rows of x, y, polarity and time in milliseconds.

    tonic converts them to small types, which wraps large numbers and takes every polarity but 0 for 1.

    Raises:
        DataError: the file contains other arrays.
    """
    rows = np.load(path, allow_pickle=False)
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf":
        raise DataError(f"expected rows of x, y, p and t, got {rows.dtype} of shape {list(rows.shape)}")
    _check_numbers(rows.T)
    times = rows[:, 3] if rows.dtype.kind == "f" else rows[:, 3].astype(np.int64)
    # As in tonic, in the type of the file.
    return _as_integers(dict(zip("xyp", rows.T, strict=False)) | {"t": np.trunc(times * times.dtype.type(1000))})


def _lip(path: str) -> AnyArray:
    """The events of a file of DVSLip. tonic converts them to small types too.

    Raises:
        DataError: the file contains other arrays.
    """
    rows = np.load(path, allow_pickle=False)
    names = rows.dtype.names or ()
    if rows.ndim != 1 or not {*"xypt"} <= {*names} or any(rows.dtype[name].kind not in "iuf" for name in "xypt"):
        raise DataError(f"expected events with x, y, p and t, got {rows.dtype} of shape {list(rows.shape)}")
    columns = {name: rows[name] for name in "xypt"}
    _check_numbers([*columns.values()])
    return _as_integers(columns)


def _check_numbers(columns: Sequence[AnyArray]) -> None:
    """Raise `DataError` if an event has a number that no position, polarity or time can be."""
    in_range = [np.abs(column.astype(np.float64)) < 2**40 for column in columns]
    if (wrong := np.flatnonzero(~np.all(in_range, axis=0))).size:
        event = [column[wrong[0]].item() for column in columns]
        raise DataError(f"event {wrong[0]} has a number that is no position, polarity or time: {event}")


def _as_integers(columns: Mapping[str, AnyArray]) -> AnyArray:
    """Events with these columns as integers. Raises `DataError` if one of them is not a whole number."""
    events = np.empty(len(columns["t"]), [(name, np.int64) for name in columns])
    for name, column in columns.items():
        if (wrong := np.flatnonzero(column != np.trunc(column))).size:
            raise DataError(f"event {wrong[0]}: {name} is no whole number: {column[wrong[0]]}")
        events[name] = column
    return events


_READERS: Mapping[str, Callable[[str], AnyArray]] = {"DVSGesture": _gesture, "DVSLip": _lip}
"""Replace tonic's reading of a file for classes that convert its numbers to types that are too small."""


def _check_bytes(path: str) -> None:
    """Raise `DataError` unless a file in the format of N-MNIST has at least one event, and no part of one.

    tonic ignores the rest of a file that was cut.
    """
    content = np.fromfile(path, np.uint8)
    if len(content) % _BYTES_OF_EVENT:
        raise DataError(f"its {len(content):,} bytes are no whole number of events, of {_BYTES_OF_EVENT} bytes each")
    if (content[1::_BYTES_OF_EVENT] == OVERFLOW_ROW).all():
        raise DataError("it has no events")


def _recording(source: Any, k: int, classes: tuple[str, ...], flat: bool) -> tuple[list[AnyArray], int]:
    """Columns x, y, p and t of a sample, and the number of its class.

    Raises:
        DataError: the sample is not a list of events with a class.
    """
    class_name = type(source).__name__
    if class_name in _LIKE_NMNIST and isinstance(source.data[k], str):
        _check_bytes(source.data[k])
    if class_name in _READERS:
        events, target = _READERS[class_name](source.data[k]), source.targets[k]
    else:
        with _quiet(class_name):
            events, target = source[k][:2]
    if np.ndim(events) == 2 and 1 in events.shape:
        # Arrays in MATLAB's files have two axes.
        events = events.ravel()
    names = getattr(getattr(events, "dtype", None), "names", None) or ()
    required_columns = {"x", "t"} if flat else {"x", "y", "t"}
    if not required_columns <= {*names} or np.ndim(events) != 1:
        actual = f"{', '.join(names)} of shape {list(events.shape)}" if names else type(events).__name__
        raise DataError(f"expected events with {', '.join(sorted(required_columns))}, got {actual}")
    # Some of tonic's integers are unsigned and cannot be subtracted.
    x, t = (events[name].astype(np.int64) for name in ("x", "t"))
    y, p = (events[name].astype(np.int64) if name in names and not flat else np.zeros_like(x) for name in ("y", "p"))
    if not flat and len(t):
        # Cameras count time from when they were switched on.
        t -= t.min()
    label = classes.index(target) if isinstance(target, str) and target in classes else target
    if np.ndim(label) or not isinstance(label, int | np.integer) or not 0 <= int(label) < len(classes):
        raise DataError(f"its label {target!r} is none of the {len(classes)} classes")
    return [x, y, p, t], int(label)


def _is_of_reader(error: BaseException) -> bool:
    """Whether an error may come from reading a damaged file. The reader of .aedat4 files is written in Rust."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _damage(error: BaseException) -> str:
    """What is wrong with a file, from an error of a library that reads it."""
    if isinstance(error, FloatingPointError):
        return "a time or another number is too large for the type in which the file stores it"
    if "allow_pickle" in str(error):
        return "it contains pickled objects, which are never unpacked"
    # The library's words help those who know its format. The sentence around them says that the file is at fault.
    return f"it is damaged, or has another format than this data set ({type(error).__name__}: {error})"


@contextlib.contextmanager
def _quiet(class_name: str) -> Iterator[None]:
    """Hide what the reader of .aedat4 files, in a class of tonic, prints about a damaged file before its error."""
    try:
        standard_error = os.dup(2) if class_name == "CIFAR10DVS" else None
    except OSError:  # Standard error is closed.
        standard_error = None
    if standard_error is None:
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def _check_names(tonic_class: Any, source: Any, folder: Path) -> None:
    """Raise `DataError` if a file or folder with samples does not have exactly the name of a class.

    tonic sees only the last characters of some folders. From files of DVS128 Gesture it reads numbers as Python's `int`
    does, which takes `0_3.npy` and ` 3.npy` for class 3.
    """
    if tonic_class.__name__ == "DVSGesture":
        for file, target in sorted(zip(source.data, source.targets, strict=True)):
            if Path(file).name != f"{target}.npy":
                raise DataError(
                    f"{file} is no sample of DVSGesture, whose files are 0.npy to {len(source.classes) - 1}.npy by "
                    "their class; rename it, or move it away"
                )
    if (suffix := _BY_LAST_CHARACTERS.get(tonic_class.__name__)) is None:
        return
    names = [str(name) for name in getattr(source, "int_classes", range(10))]
    for parent in sorted({path.parent for path in _files(folder) if path.suffix == suffix}):
        if parent.name not in names:
            raise DataError(
                f"{parent} has samples, but its name is none of the classes of {tonic_class.__name__}: "
                f"{', '.join(names)}; rename it, or move it away"
            )


class _PartFrames(NamedTuple):
    """The samples of a part as frames."""

    frames: FrameSplit
    classes: tuple[str, ...]
    binning: EventBinning
    note: str
    skipped: tuple[Skipped, ...]


def _load_part(tonic_class: Any, part: str, request: Request) -> _PartFrames:
    """The samples of a part, `train` or `test`, as frames, from the cache or read by tonic."""
    assert request.data_dir is not None
    name, data_dir = tonic_class.__name__, request.data_dir
    data_folder = _folder(tonic_class, data_dir)
    changed = f"{data_folder} changed while it was read; run again when nothing writes to it"
    for path in data_folder.rglob("*"):
        check_regular(path)
    spoken_path = _spoken_path(tonic_class, data_folder, part)
    if spoken_path is not None and spoken_path.exists():
        # tonic reads some of its arrays whole, in this process.
        with SpokenFile(spoken_path):
            pass
    source = _open(tonic_class, data_dir, _parts(tonic_class)[part], request)
    classes, (width, height, polarities) = _classes(tonic_class, source), _sensor(tonic_class, source)
    check_class_count(request.name, len(classes))
    flat = height == 1
    binning = dataclasses.replace(request.binning, width=width, height=height, polarities=polarities)
    shape = (width,) if flat else binning.shape
    folder = Path(source.location_on_system, source.folder_name)
    _check_names(tonic_class, source, folder)
    named = {str(path) for path in getattr(source, "data", []) if isinstance(path, str)}
    single = getattr(source, "data_filename", None)
    paths = [Path(path) for path in named] or ([folder / single] if isinstance(single, str) else list(_files(folder)))
    relative = sorted(str(path.relative_to(data_folder)) for path in paths)
    digest = partial(
        digest_files, data_folder, relative, max_bytes=_MOST, cache_dir=request.cache_dir, progress=request.progress
    )
    digests = digest()
    source_key, files = combine_digests(digests), SourceFiles(folder, digests.size, len(source))
    # The order of samples that are only declared would already take much memory.
    sample = math.prod(shape) * (-(-binning.steps // 8) if binning.binary else binning.steps)
    budget.check_disk(len(source) * sample, files.size, folder, request.cache_dir)
    order = _ordered(source)

    def build(writer: CacheWriter) -> None:
        nonlocal source, order
        # Some classes of tonic read all samples when they are opened, which was before the digest was computed.
        source = _open(tonic_class, data_dir, _parts(tonic_class)[part], dataclasses.replace(request, download=False))
        if len(source) != len(order) or _classes(tonic_class, source) != classes:
            raise DataError(changed)
        order = _ordered(source)
        with contextlib.nullcontext() if spoken_path is None else SpokenFile(spoken_path) as file:
            read_all(writer, file)
        if combine_digests(digest()) != source_key:
            raise DataError(changed)

    def read_all(writer: CacheWriter, file: SpokenFile | None) -> None:
        report = Progress(request.progress, f"reading {folder}{writer.rebuild_reason}", len(order))
        for samples_done, k in enumerate(order, 1):
            # If no further recording can be read, none can be skipped.
            lists = None if file is None else file.next_lists()
            try:
                # A number that no integer holds is an error, not a warning.
                with np.errstate(invalid="raise", over="raise"):
                    if file is None or lists is None:
                        columns, label = _recording(source, k, classes, flat)
                    else:
                        columns, label = file.recording(k, lists, binning.width)
                frames = binning.frames(*columns).reshape(1, binning.steps, *shape)
            except ImportError as error:
                raise DataError(f"{name} needs another library ({error}): {_INSTALL}") from error
            except BaseException as error:
                if not _is_of_reader(error):
                    raise
                sample_name = str(Path(source.data[k]).relative_to(data_folder)) if named else f"{part} sample {k}"
                reason = f"{error}" if isinstance(error, DataError | SpecError) else _damage(error)
                if not request.skip_malformed:
                    raise DataError(f"{data_folder / sample_name}: {reason}") from error
                writer.skip(sample_name, reason)
            else:
                lengths = [binning.length(columns[-1])] if request.own_lengths else None
                writer.add(FrameSplit.store(frames, binary=binning.binary), [label], lengths)
                writer.count_events(late_events(columns[-1], binning), len(columns[-1]))
            report(samples_done)

    key = {
        "source": source_key,
        "tonic": name,
        "part": part,
        "classes": classes,
        "binning": dataclasses.asdict(binning),
        "skip_malformed": request.skip_malformed,
        **request.length_key,
    }
    form = CacheForm.of_frames(
        len(classes), shape, binning.steps, binary=binning.binary, own_lengths=request.own_lengths, events=True
    )
    cached_data = cached(
        f"tonic-{name.lower()}",
        key,
        cache_dir=request.cache_dir,
        build=build,
        root=data_folder,
        source=files,
        form=form,
    )
    frames = cached_data.frames(binning.steps, binary=binning.binary)
    notes = [f"{part}: {len(frames):,} samples of {name}, from {data_folder}"]
    if cached_data.events is not None:
        notes += late_notes(*cached_data.events, binning)
    return _PartFrames(frames, classes, binning, "; ".join(notes), cached_data.skipped)


@names_unreadable
def load(request: Request) -> Dataset:
    """A data set of tonic.

    Raises:
        DataError: tonic is not installed or has no such data set, the files are missing or malformed, or the download
            failed.
    """
    base = request.name.partition(":")[0]
    tonic_class = _class_of(_NAMES.get(base, request.argument))
    if request.data_dir is None:
        raise DataError(
            f"{tonic_class.__name__} needs a data folder: name the one that holds {_folder(tonic_class, Path())}/ with "
            "--data-dir or STSBP_DATA; with --download, name a folder to put it into"
        )
    has_test_part = "test" in _parts(tonic_class)
    only_test = has_test_part and request.only_test
    first_part = _load_part(tonic_class, "test" if only_test else "train", request)
    notes, skipped, classes, binning = [first_part.note], first_part.skipped, first_part.classes, first_part.binning
    train: Split = first_part.frames
    test = train
    if has_test_part and request.wants_own_test and not only_test:
        test_part = _load_part(tonic_class, "test", request)
        if test_part.classes != classes:
            raise DataError(
                f"{tonic_class.__name__}: the classes of the test samples are not those of the training samples"
            )
        test = test_part.frames
        notes.append(test_part.note)
        skipped += test_part.skipped
    elif not only_test:
        train, test = cut_test(train, max(1, len(train) // 5), request)
        held_out_note = f"{len(test):,} of them held out as test samples (split seed {request.seed})"
        notes += [held_out_note] * bool(request.told_of_test(held_out_note))
    notes += left_out(skipped, "samples")
    shape = (binning.width,) if binning.height == 1 else binning.shape
    return Dataset(request.name, "events", shape, classes, train, test, tuple(notes), skipped)


_info = partial(DatasetInfo, coding="events", load=load, can_download=True, recordings=True, extra="tonic")

SHD = _info(
    name="shd",
    description="Spiking Heidelberg Digits: spoken digits, English and German, 700 neurons, 8,156 + 2,264",
    defaults={
        "net": "256R",
        "steps": 100,
        "window_ms": 1000.0,
        "own_lengths": True,
        "epochs": 30,
        "batch_size": 50,
        "lr": 2e-3,
        "tau_m": 10.0,
        "tau_s": 4.0,
        "label_pattern": "01",
    },
    licence="CC BY 4.0",
)
"""The data set of `stsbp train shd`, with its default settings."""

SSC = _info(
    name="ssc",
    description="Spiking Speech Commands: 35 spoken words, 700 neurons, 75,466 + 20,382",
    defaults={**SHD.defaults, "net": "512R"},
    licence="CC BY 4.0",
)
"""The data set of `stsbp train ssc`, with its default settings."""

GESTURE = _info(
    name="dvs-gesture",
    description="DVS128 Gesture: eleven arm and hand gestures, event camera, 2 x 128 x 128, 1,077 + 264",
    defaults={
        "net": "P4-16C5-P2-32C3-P2-128R",
        "padding": "same",
        "steps": 40,
        "window_ms": 2000.0,
        "epochs": 40,
        "batch_size": 16,
        "lr": 1e-3,
        "tau_m": 10.0,
        "tau_s": 4.0,
        "label_pattern": "01",
    },
    licence="CC BY 4.0",
)
"""The data set of `stsbp train dvs-gesture`, with its default settings."""

CIFAR10_DVS = _info(
    name="cifar10-dvs",
    description="CIFAR10-DVS: CIFAR-10 photographs moving in front of an event camera, 2 x 128 x 128, 10,000",
    defaults={
        "net": "P2-32C3-P2-64C3-P2-128C3-P2-256",
        "padding": "same",
        "steps": 20,
        "window_ms": 1200.0,
        "epochs": 40,
        "batch_size": 32,
        "lr": 1e-3,
        "tau_m": 5.0,
        "tau_s": 3.0,
        "label_pattern": "01",
        "augment_flip": True,
    },
    licence="CC BY 4.0",
)
"""The data set of `stsbp train cifar10-dvs`, with its default settings."""

TONIC = _info(
    name="tonic",
    description="any data set of events with classes in tonic, by its name there: tonic:NCALTECH101",
    defaults={"net": "256", "steps": 25, "epochs": 20, "batch_size": 20, "lr": 2e-3, "label_pattern": "01"},
    argument="NAME",
)
"""The data set of `stsbp train tonic:NAME`, with its default settings."""
