"""Recordings of events, each with a class, from a user's own `.npz` file.

The events of all n samples are in columns of the same length m, in any order. `sample` is the sample of an event, 0 to
n - 1. `x` (and `y`) is the pixel or neuron that sent the event, `p` its polarity, 0 or 1, and `t` its time in
microseconds since the beginning of the sample. Without `p` there is one polarity. Without `y` and `p` the sensor is a
row of neurons. `labels` `[n]`, `classes` and `split` are those of `stsbp.datasets.npz`. `sensor` `[2]` is the number of
rows and columns, or `[1]` the number of neurons; by default, the sizes follow from the largest values in the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray, Int64, Shape
from stsbp_spec.validation import listed

from stsbp import budget
from stsbp.datasets.base import Dataset, FrameSplit, Progress, Request, names_unreadable
from stsbp.datasets.cache import CacheForm, CacheWriter, SourceFiles, cached
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.npz import class_labels, read_arrays, split_train_test
from stsbp.errors import DataError

__all__ = ["EVENTS", "Recordings", "late_events", "late_notes", "load", "read_recordings", "window_text"]

_COLUMNS = (("sample", "x", "t"), ("sample", "x", "y", "t"), ("sample", "x", "y", "t", "p"))
_OTHERS = ("labels", "split", "classes", "sensor")
_LARGEST = {"x": 2**14 - 1, "y": 2**14 - 1, "p": 1, "t": 2**40}
_PER_EVENT = 64
"""Bytes of memory for an event while the events are sorted and binned."""
_CHUNK_EVENTS = 2**20
_MAX_PIXELS = 2**22
"""Largest number of pixels of a frame. A sensor with a megapixel has half as many, with both polarities."""


class Recordings(NamedTuple):
    """The contents of a file.

    Attributes:
        names: names of its columns.
        columns: the columns, each `[m]`, with checked values.
        labels: class of each sample, `[n]`.
        classes: names of the classes.
        sensor: channels, rows and columns of a frame.
    """

    names: tuple[str, ...]
    columns: Mapping[str, AnyArray]
    labels: Int64
    classes: tuple[str, ...]
    sensor: tuple[int, int, int]

    @property
    def shape(self) -> Shape:
        """Shape of a frame. Without rows, that of a row of neurons."""
        return self.sensor if "y" in self.names else (self.sensor[2],)

    def of(self, events: AnyArray) -> list[AnyArray]:
        """x, y, p and t of the events with these numbers."""
        zeros = np.zeros(len(events), dtype=np.int64)
        return [self.columns[name][events] if name in self.names else zeros for name in ("x", "y", "p", "t")]


def read_recordings(path: Path, arrays: Mapping[str, AnyArray]) -> Recordings:
    """The arrays of a file as recordings.

    Raises:
        DataError: an array is missing or invalid. The message names the file and the array.
    """
    names = _columns(arrays, path)
    labels, classes = class_labels(arrays, path)
    _check(arrays, names, len(labels), path)
    sensor = (2 if "p" in names else 1, *_sensor(arrays, names, path))
    return Recordings(names, {name: arrays[name] for name in names}, labels, classes, sensor)


def _columns(arrays: Mapping[str, AnyArray], path: Path) -> tuple[str, ...]:
    """The names of the file's event columns."""
    names = tuple(name for name in _COLUMNS[-1] if name in arrays)
    unknown = set(arrays) - {*names, *_OTHERS}
    if names not in _COLUMNS or "labels" not in arrays or unknown:
        column_sets = ", or ".join(" ".join(columns) for columns in _COLUMNS)
        raise DataError(
            f"{path} must hold labels and the columns {column_sets}, and may hold split, classes and sensor; got "
            f"{listed(arrays) or 'nothing'}"
        )
    return names


def _check(arrays: Mapping[str, AnyArray], names: tuple[str, ...], samples: int, path: Path) -> None:
    """Raise `DataError` unless the columns `names` are integers in their ranges, one value for each event."""
    m = len(np.atleast_1d(arrays["t"]))
    if not m:
        raise DataError(
            f"{path}: there are no events, because t is empty; save the events of all samples in its columns"
        )
    for name in names:
        column = arrays[name]
        if column.shape != (m,) or column.dtype.kind not in "iub":
            unit = ", in microseconds" if name == "t" else ""
            raise DataError(
                f"{path}: {name} must be integers [{m}] as t is{unit}, got {column.dtype} {list(column.shape)}"
            )
        largest = _LARGEST.get(name, samples - 1)
        if m and not 0 <= int(column.min()) <= int(column.max()) <= largest:
            raise DataError(f"{path}: {name} must be 0 to {largest}, got {int(column.min())} to {int(column.max())}")


def _sensor(arrays: Mapping[str, AnyArray], names: tuple[str, ...], path: Path) -> tuple[int, int]:
    """Rows and columns. A row of neurons has one row."""
    axes = [name for name in ("y", "x") if name in names]
    extent = [int(arrays[name].max(initial=0)) + 1 for name in axes]
    sensor = arrays.get("sensor")
    if sensor is not None:
        fits = sensor.shape == (len(axes),) and sensor.dtype.kind in "iu"
        if not fits or any(int(size) < minimum for size, minimum in zip(sensor, extent, strict=True)):
            expected = "rows and columns" if len(axes) == 2 else "neurons"
            got = sensor.tolist() if sensor.size < 4 else list(sensor.shape)
            raise DataError(f"{path}: sensor must be {expected}, at least {extent}, got {sensor.dtype} {got}")
        extent = [int(size) for size in sensor]
    rows, columns = extent if len(extent) == 2 else (1, *extent)
    if rows * columns * (2 if "p" in names else 1) > _MAX_PIXELS or max(rows, columns) > _LARGEST["x"] + 1:
        raise DataError(f"{path}: a sensor of {extent} is too large; frames may have {_MAX_PIXELS:,} pixels")
    return rows, columns


def _frames(path: Path, recordings: Recordings, binning: EventBinning, request: Request) -> FrameSplit:
    """The events of the samples as frames."""
    names, labels, sample = recordings.names, recordings.labels, recordings.columns["sample"]
    size = path.stat().st_size
    budget.check_memory(_PER_EVENT * len(sample), size, path)
    # Frames are in memory, and counts as 64 bits each, before they are stored.
    budget.check_memory((2 if binning.binary else 12) * binning.steps * math.prod(recordings.sensor), size, path)
    digest = hashlib.sha256(labels.astype("<i8").tobytes())
    for name in names:
        for first in range(0, len(sample), _CHUNK_EVENTS):
            digest.update(recordings.columns[name][first : first + _CHUNK_EVENTS].astype("<i8").tobytes())

    def build(writer: CacheWriter) -> None:
        order = np.argsort(sample, kind="stable")
        boundaries = np.cumsum(np.bincount(sample.astype(np.int64), minlength=len(labels)))
        report = Progress(request.progress, f"binning events{writer.rebuild_reason}", len(labels))
        for k, label in enumerate(labels):
            events = recordings.of(order[0 if k == 0 else boundaries[k - 1] : boundaries[k]])
            frames = binning.frames(*events).reshape(1, binning.steps, *recordings.shape)
            lengths = [binning.length(events[-1])] if request.own_lengths else None
            writer.add(FrameSplit.store(frames, binary=binning.binary), [int(label)], lengths)
            report(k + 1)

    binned = {"binning": dataclasses.asdict(binning), **request.length_key}
    # The digest does not say where the labels end and each column begins.
    key = {"source": digest.hexdigest(), "sizes": [len(labels), len(sample)], "columns": names, **binned}
    source = SourceFiles(path, size, len(labels))
    form = CacheForm.of_frames(
        len(recordings.classes), recordings.shape, binning.steps, binary=binning.binary, own_lengths=request.own_lengths
    )
    cached_frames = cached("events", key, cache_dir=request.cache_dir, build=build, source=source, form=form)
    return cached_frames.frames(binning.steps, binary=binning.binary)


def late_events(times: AnyArray, binning: EventBinning) -> int:
    """Number of events after the window, by their times in microseconds, `[n]`."""
    return 0 if binning.window_us is None else int(np.count_nonzero(times >= binning.start_us + binning.window_us))


def late_notes(late_count: int, count: int, binning: EventBinning) -> tuple[str, ...]:
    """A note about events after the window, of which there are `late_count` among `count`; empty: there are none."""
    note = f"{late_count:,} of {count:,} events lie after {window_text(binning)} and are dropped"
    return (note,) if late_count else ()


def window_text(binning: EventBinning) -> str:
    """The window, as a part of a message."""
    return f"the window of {(binning.window_us or 0) / 1000:g} ms (--window-ms)"


def _dropped(path: Path, times: AnyArray, binning: EventBinning) -> tuple[str, ...]:
    """A note about events after the window.

    Raises:
        DataError: there are no others.
    """
    late_count = late_events(times, binning)
    if late_count and late_count == len(times):
        raise DataError(
            f"{path}: all of its {late_count:,} events lie after {window_text(binning)}. Times are in microseconds "
            "since the beginning of each sample; convert them, or give a longer window"
        )
    return late_notes(late_count, len(times), binning)


@names_unreadable
def load(request: Request) -> Dataset:
    """The recordings of a file. Without `split`, a fifth of them is held out as the test set.

    Raises:
        DataError: the file cannot be read, or an array is invalid. The message names the file and the array.
    """
    path = request.data_dir
    if path is None:
        raise DataError("name the file: stsbp train events:PATH, or --data-dir PATH")
    if path.is_dir():
        path = path / "events.npz"
    arrays = read_arrays(path)
    recordings = read_recordings(path, arrays)
    polarities, rows, columns = recordings.sensor
    binning = dataclasses.replace(request.binning, height=rows, width=columns, polarities=polarities)
    notes = _dropped(path, recordings.columns["t"], binning)
    samples = _frames(path, recordings, binning, request)
    train, test, note = split_train_test(samples, arrays, path, request)
    return Dataset("events", "events", recordings.shape, recordings.classes, train, test, (note, *notes))


EVENTS = DatasetInfo(
    name="events",
    description="your own recordings of events with classes, in an .npz file: events:PATH",
    coding="events",
    load=load,
    defaults={
        "net": "256",
        "steps": 25,
        "epochs": 20,
        "batch_size": 20,
        "lr": 2e-3,
        "tau_m": 5.0,
        "tau_s": 3.0,
        "label_pattern": "01",
    },
    recordings=True,
)
"""The data set of `stsbp train events`, with its default settings."""
