"""Data sets: two splits that return uint8 inputs for any list of sample numbers, and the choice of samples.

The spec's counter-based generator chooses the samples that are held out or dropped. So the split is the same for every
backend and on every machine. Its seed is not the training seed, so runs with different training seeds are comparable.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np
from stsbp_spec.contract.random import Stream, permutation
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.encoders import EventBinning, PackedFrames
from stsbp_spec.models.encoders.packed import Inputs, unpacked
from stsbp_spec.models.user_classes import calling
from stsbp_spec.typing import AnyArray, Coding, Int64, Shape, UInt8
from stsbp_spec.validation import array_of, integer, integer_between, is_masked, shown

from stsbp.datasets.forecast import Forecast
from stsbp.errors import DataError

__all__ = [
    "ArraySplit",
    "Dataset",
    "FrameSplit",
    "GuardedSplit",
    "MappedSamples",
    "Progress",
    "ProgressCallback",
    "Request",
    "SequenceLabels",
    "Skipped",
    "Split",
    "Subset",
    "content_of",
    "cut_test",
    "distinct_count",
    "hold_out",
    "ignored_files",
    "left_out",
    "lengths_of",
    "names_unreadable",
    "select_balanced",
    "stamp_of",
]

_LONGEST_SHOWN = 200
_CLASSES = "the labels of these samples are classes, not spike trains"

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is being done, the items done and their total, at most about ten times a second."""


@runtime_checkable
class Split(Protocol):
    """Samples with random access."""

    @property
    def labels(self) -> Int64:
        """The class of every sample, `[n]`."""

    def __len__(self) -> int:
        """Number of samples, n."""

    def inputs(self, indices: Int64) -> UInt8:
        """Inputs of some samples: `[B, C, H, W]` for direct coding, frames `[T, B, C, H, W]` for events."""

    def stored(self, indices: Int64) -> Inputs:
        """The same inputs in the form of a batch: frames of zeros and ones stay bits."""


@runtime_checkable
class SequenceLabels(Protocol):
    """Additional method of a split whose labels are sequences; its `labels` then only group the samples."""

    def targets(self, indices: Int64) -> AnyArray:
        """Targets of some samples, `[T, B, N]`: spike trains, uint8, or real numbers, float32."""


def lengths_of(split: Split) -> Int64 | None:
    """Number of steps of every sample, `[n]`, 1 to T: the attribute `lengths` of a split.

    None: every sample has T steps.
    """
    lengths: Int64 | None = getattr(split, "lengths", None)
    return lengths


LONGEST_NAME = 255
"""Largest number of characters in the name of a class. Names of folders are no longer."""
MOST_CLASSES = 4096
"""Largest number of classes. The confusion matrix, which every evaluation makes, then takes 128 MiB."""

_AT_ONCE = 64
"""Number of samples that are read at a time to compute a digest."""


def content_of(split: Split) -> str:
    """SHA-256 of the inputs of all samples in their order.

    A split may have a method `content`, which is quicker than reading the inputs. The cache knows the digest of its
    bytes, for example.
    """
    content_method: Callable[[], str] | None = getattr(split, "content", None)
    return _content(split) if content_method is None else content_method()


def _content(split: Split) -> str:
    digest = hashlib.sha256()
    for first in range(0, len(split), _AT_ONCE):
        inputs = split.inputs(np.arange(first, min(first + _AT_ONCE, len(split))))
        digest.update(repr(inputs.shape).encode() + inputs.tobytes())
    return digest.hexdigest()


def check_class_count(name: str, count: int) -> None:
    """Raise `DataError` if the data set `name` has too many classes."""
    if count > MOST_CLASSES:
        raise DataError(f"{name}: a data set has at most {MOST_CLASSES:,} classes, got {count:,}")


def _is_array(x: object) -> TypeGuard[AnyArray]:
    """Whether `x` is an array of numpy without masked values, which would be read as if they were there."""
    return isinstance(x, np.ndarray) and not is_masked(x)


def _actual(x: object) -> str:
    """`x` for a message: type and shape of an array."""
    if is_masked(x):
        return "a masked array; fill in its masked values"
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else shown(x)


def _select(samples: AnyArray, indices: Any) -> AnyArray:
    """The entries of `samples` `[n, ...]` with these numbers. Raises `DataError` for what are no numbers of samples."""
    if not is_masked(indices):
        # Tensors of other libraries, and text, have errors of their own.
        with contextlib.suppress(IndexError, TypeError, ValueError, RuntimeError):
            chosen: AnyArray = samples[indices]
            return chosen
    raise DataError(
        f"samples have numbers from 0 to {len(samples) - 1}, an array of integers [k], got {_index_text(indices)}"
    )


def _index_text(indices: object) -> str:
    """Indices for a message: type, shape and range of an array of numbers."""
    if _is_array(indices) and indices.size and indices.dtype.kind in "iu":
        return f"{indices.dtype} {list(indices.shape)} from {indices.min()} to {indices.max()}"
    return _actual(indices)


def _check_labels(name: str, labels: object, samples: int | None = None) -> None:
    """Raise `DataError`, which begins with `name`, unless `labels` are integers `[n]`, one for each sample."""
    if _is_array(labels) and labels.dtype.kind in "iu" and labels.ndim == 1 and samples in (None, len(labels)):
        return
    count_text = "" if samples is None else f", one for each of {samples} samples"
    raise DataError(f"{name} must be a numpy array of integers [n]{count_text}, got {_actual(labels)}")


def _check_lengths(name: str, lengths: object, samples: int) -> None:
    """Raise `DataError`, which begins with `name`, unless `lengths` are integers, one for each of the samples."""
    if _is_array(lengths) and lengths.dtype.kind in "iu" and lengths.shape == (samples,):
        return
    raise DataError(
        f"{name}: {samples} samples need as many lengths, a numpy array of integers, got {_actual(lengths)}"
    )


def _check_arrays(
    location: str, array_name: str, samples: object, labels: object, form: str, axes: tuple[int, ...]
) -> None:
    """Raise `DataError` unless the samples `[n, ...]`, named `array_name`, and their labels `[n]` are such arrays.

    `form` describes the arrays with these numbers of `axes`, for the message.
    """
    if not _is_array(samples) or samples.dtype != np.uint8 or samples.ndim not in axes:
        raise DataError(f"{location}: {array_name} must be a numpy array of uint8, {form}, got {_actual(samples)}")
    _check_labels(f"{location}: labels", labels, len(samples))


def _digest(form: object, array: UInt8, array_digest: str = "") -> str:
    """SHA-256 of an array and of the form of its samples. `array_digest` is the SHA-256 of its bytes, if it was "
    "computed."""
    array_digest = (
        array_digest or hashlib.sha256(np.ascontiguousarray(array).data.cast("B") if array.size else b"").hexdigest()
    )
    return hashlib.sha256(repr((form, array.shape, array_digest)).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Images, uint8, for direct coding, in memory or memory-mapped; channels last, `[n, H, W, C]`.

    `sha256` is that of the bytes of the images, if it is known.

    Raises:
        DataError: the images are no such array, or `labels` are not one integer for each of them.
    """

    images: UInt8
    labels: Int64
    sha256: str = ""

    def __post_init__(self) -> None:
        _check_arrays("ArraySplit", "images", self.images, self.labels, "[n, H, W, C]", (4,))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        """`(C, H, W)` of an image."""
        height, width, channels = self.images.shape[1:]
        return (channels, height, width)

    def inputs(self, indices: Int64) -> UInt8:
        return np.moveaxis(np.asarray(_select(self.images, indices)), -1, 1)

    stored = inputs

    def content(self) -> str:
        """SHA-256 of the images (`content_of`)."""
        return _digest("images", self.images, self.sha256)


class MappedSamples(np.memmap[Any, np.dtype[np.uint8]]):
    """The samples of a cache file, `[n, ...]`, mapped read-only.

    If another program cuts the file, the system ends a process that reads what is missing (SIGBUS); if it writes into
    the file, the samples are no longer those that were checked. The size and the modification time of the file are
    therefore checked before every access, which takes microseconds. Reading with `pread` instead would leave no moment
    between check and access, but takes two to ten times as long for a batch.
    """

    _path: Path | None = None
    _file: BinaryIO
    _stamp: tuple[int, int]

    @classmethod
    def of(
        cls, path: Path, file: BinaryIO, offset: int, shape: tuple[int, ...], stamp: tuple[int, int]
    ) -> MappedSamples:
        """The samples of an open file, which had this `stamp_of` before they were checked."""
        mapped = cls(file, mode="r", dtype=np.uint8, offset=offset, shape=shape)
        assert isinstance(mapped, MappedSamples)
        # The mapping has its own copy of the descriptor, which is not accessible.
        mapped._path, mapped._file = path, os.fdopen(os.dup(file.fileno()), "rb")
        mapped._stamp = stamp
        return mapped

    def __getitem__(self, index: Any) -> Any:
        # Views have no path.
        if self._path is not None and (stamp := stamp_of(self._file)) != self._stamp:
            change = "cut" if stamp[0] < self._stamp[0] else "changed"
            raise DataError(
                f"{self._path}, the cache of decoded samples, was {change} while it was in use. Run the command again, "
                "which builds it anew; a run in training continues with --resume"
            )
        return super().__getitem__(index)


def stamp_of(file: BinaryIO) -> tuple[int, int]:
    """Size and modification time of an open file. The change time is none of it: a rename over the file changes it."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, eq=False)
class FrameSplit:
    """Frames of `steps` steps in the form of `store` (channels last), in memory or memory-mapped.

    Frames of zeros and ones are bits, eight steps per byte (`PackedFrames`), `[n, ceil(T/8), H, W, C]` or
    `[n, ceil(T/8), N]`. Counts take one byte per step, `[n, T, H, W, C]`. Samples with fewer steps are padded to T at
    the end, and `lengths` `[n]` is the number of steps of each. `sha256` is that of the bytes of the frames, if it is
    known.

    Raises:
        DataError: the frames are no such array of T steps, or `labels` are not one integer for each sample, or
            `lengths` not one number from 1 to T.
    """

    frames: UInt8
    labels: Int64
    steps: int
    binary: bool = True
    lengths: Int64 | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        form = "as FrameSplit.store(...) returns them, with three or five axes"
        _check_arrays("FrameSplit", "frames", self.frames, self.labels, form, (3, 5))
        steps, entries = integer_between("FrameSplit: steps", self.steps, 1), self.frames.shape[1]
        if entries != (-(-steps // 8) if self.binary else steps):
            possible_steps = f"{8 * entries - 7} to {8 * entries}" if self.binary else str(entries)
            raise DataError(
                f"FrameSplit: the second axis of frames has {entries} entries, which are {possible_steps} steps with "
                f"binary={self.binary}, but steps is {steps}; give the number of steps and the binary that "
                "FrameSplit.store received"
            )
        # Of a mapped file, this would read most pages. The caches of stsbp are such files.
        if self.binary and not isinstance(self.frames, np.memmap):
            last = int(np.bitwise_or.reduce(self.frames[:, -1], axis=None)).bit_length()
            if last > steps - 8 * (entries - 1):
                raise DataError(
                    f"FrameSplit: the frames have spikes in step {8 * (entries - 1) + last}, but steps is {steps}; "
                    "give the number of steps that FrameSplit.store received"
                )
        if (lengths := self.lengths) is None:
            return
        _check_lengths("FrameSplit", lengths, len(self))
        if len(self) and not 1 <= lengths.min() <= lengths.max() <= self.steps:
            raise DataError(
                f"FrameSplit: samples of up to {self.steps} steps have lengths from 1 to {self.steps}, got "
                f"{lengths.min()} to {lengths.max()}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, indices: Int64) -> UInt8:
        return unpacked(self.stored(indices))

    def stored(self, indices: Int64) -> Inputs:
        chosen = np.ascontiguousarray(np.swapaxes(_select(self.frames, indices), 0, 1))
        return PackedFrames(chosen, self.steps) if self.binary else np.moveaxis(chosen, -1, 2)

    def content(self) -> str:
        """SHA-256 of the frames (`content_of`)."""
        return _digest((self.steps, self.binary), self.frames, self.sha256)

    @staticmethod
    def store(frames: UInt8, *, binary: bool = True) -> UInt8:
        """Convert frames `[n, T, C, H, W]` or `[n, T, N]` to the stored form.

        Raises:
            DataError: the frames are no such array of integers, or have values other than 0 and 1 (`binary`), or than 0
                to 255.
        """
        if not _is_array(frames) or frames.dtype.kind not in "biu" or frames.ndim not in (3, 5):
            raise DataError(
                "FrameSplit.store: frames must be a numpy array of integers, [n, T, N] or [n, T, C, H, W], got "
                f"{_actual(frames)}"
            )
        low, high = (int(frames.min()), int(frames.max())) if frames.size else (0, 0)
        if low < 0 or high > (1 if binary else 255):
            remedy = "; a FrameSplit keeps counts if it and store get binary=False" if 0 <= low < high < 256 else ""
            raise DataError(
                f"FrameSplit.store: frames must have values {'0 and 1' if binary else 'from 0 to 255'}, got {low} to "
                f"{high}{remedy}"
            )
        last = np.moveaxis(frames.astype(np.uint8, copy=False), 2, -1)
        return np.packbits(last, axis=1, bitorder="little") if binary else np.ascontiguousarray(last)


class Subset:
    """Some samples of another split, `[n]`, in the given order.

    Args:
        split: the other split.
        indices: numbers of the samples, `[k]`, or a bool mask, `[n]`, which is true for the samples.

    Raises:
        DataError: `indices` are neither such numbers nor such a mask, or the labels of `split` are not one integer for
            each sample.
    """

    def __init__(self, split: Split, indices: AnyArray) -> None:
        self.split = split
        self.indices: Int64 = _numbers(indices, len(split))
        _check_labels("Subset: the labels of the split", split.labels, len(split))
        self.labels: Int64 = split.labels[self.indices]
        lengths = lengths_of(split)
        self.lengths: Int64 | None = None if lengths is None else lengths[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def inputs(self, indices: Int64) -> UInt8:
        return self.split.inputs(_select(self.indices, indices))

    def stored(self, indices: Int64) -> Inputs:
        return self.split.stored(_select(self.indices, indices))

    def content(self) -> str:
        """SHA-256 of the split, and of the numbers of the samples in it (`content_of`)."""
        return hashlib.sha256(content_of(self.split).encode() + self.indices.astype("<i8").tobytes()).hexdigest()

    def targets(self, indices: Int64) -> UInt8:
        """Target spike trains `[T, B, N]`, if the split has them (`SequenceLabels`)."""
        if not isinstance(self.split, SequenceLabels):
            raise DataError(_CLASSES)
        return self.split.targets(_select(self.indices, indices))


class GuardedSplit:
    """A split of another package. Errors in its methods name the data set and the line that failed.

    Args:
        name: name of the data set.
        split: the split.

    Raises:
        DataError: a method fails, or does not return an array.
    """

    def __init__(self, name: str, split: Split) -> None:
        self.name, self.split = name, split
        self.labels: Int64 = split.labels
        self.lengths = lengths_of(split)

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, indices: Int64) -> UInt8:
        inputs: UInt8 = self._array("inputs", indices, np.ndarray)
        return inputs

    def stored(self, indices: Int64) -> Inputs:
        inputs: Inputs = self._array("stored", indices, np.ndarray, PackedFrames)
        return inputs

    def targets(self, indices: Int64) -> UInt8:
        """Target spike trains `[T, B, N]`, if the split has them (`SequenceLabels`)."""
        if not isinstance(self.split, SequenceLabels):
            raise DataError(_CLASSES)
        targets: UInt8 = self._array("targets", indices, np.ndarray)
        return targets

    def content(self) -> str:
        """SHA-256 of the inputs (`content_of`)."""
        if not hasattr(self.split, "content"):
            return _content(self)
        with calling(f"{type(self.split).__name__}.content of the data set {self.name!r} fails", DataError):
            return content_of(self.split)

    def _array(self, method: str, indices: Int64, *types: type) -> Any:
        method_name = f"{type(self.split).__name__}.{method} of the data set {self.name!r}"
        with calling(f"{method_name} fails", DataError):
            array = getattr(self.split, method)(indices)
        if not isinstance(array, types):
            raise DataError(f"{method_name} must return a numpy array, got {shown(array)}")
        return array


def _numbers(indices: object, count: int) -> Int64:
    """Numbers of some of `count` samples, `[k]`, from such numbers or from a mask `[count]`."""
    try:
        array = array_of(indices)
    except ShapeError:
        array = np.asarray(None)
    if array.dtype == np.bool_ and array.shape == (count,):
        return np.flatnonzero(array)
    # numpy makes an empty list an array of floats.
    if array.ndim != 1 or (array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= count)):
        raise DataError(
            f"a subset of {count} samples needs indices from 0 to {count - 1} on one axis, or a mask of {count} bools, "
            f"got {_actual(indices if array.dtype == object else array)}"
        )
    return array.astype(np.int64)


class Skipped(NamedTuple):
    """A file that was left out, and the reason."""

    path: str
    reason: str


def ignored_files(folder: Path, names: Iterable[str], rule: str) -> tuple[str, ...]:
    """A note of files that look like samples, but are not read because of their names; none if there are none."""
    sorted_names = sorted(names)
    if not sorted_names:
        return ()
    files = "1 file" if len(sorted_names) == 1 else f"{len(sorted_names):,} files"
    return (f"left out of {folder}: {files}, such as {sorted_names[0]}; {rule}",)


def left_out(skipped: Sequence[Skipped], plural: str) -> list[str]:
    """A note about samples that were left out, `plural` in the plural; none if there are none."""
    return [f"left out {len(skipped)} malformed {plural}, the first {path}: {reason}" for path, reason in skipped[:1]]


@dataclass(frozen=True)
class Dataset:
    """A data set, ready for training.

    Raises:
        DataError: a field has another form than described here; there are more than `MOST_CLASSES` classes; classes
            have the same name, or one of more than `LONGEST_NAME` characters; or a label is not the number of a class.
    """

    name: str
    coding: Coding
    input_shape: Shape
    """`(C, H, W)` of an image or frame, `(N,)` of spike trains."""
    classes: tuple[str, ...]
    """Names of the classes; empty if labels are sequences. Both splits are then `SequenceLabels`."""
    train: Split
    test: Split
    notes: tuple[str, ...] = ()
    """Notes for the output and the report, for example how many samples of a published set were found."""
    skipped: tuple[Skipped, ...] = ()
    neurons: int = 0
    """Number of neurons of a target sequence; 0 if labels are classes."""
    input_max: int = 1
    """The largest spike count of an entry of a frame or raster, from 1 to 255; 1 for spikes, and for images."""
    real_targets: bool = False
    """Whether target sequences are real numbers instead of spikes."""
    forecast: Forecast | None = None
    """How a network continues the series of the test samples on its own; None: there is no such series."""

    def __post_init__(self) -> None:
        # A run whose checkpoint contains other values cannot be read (`stsbp.records.InputsRecord`).
        shape: object = self.input_shape
        if not (isinstance(shape, tuple) and shape and all(type(size) is int and size > 0 for size in shape)):
            raise DataError(
                f"{self.name}: input_shape must be a tuple (N,) or (C, H, W) of integers, got {shown(shape)}"
            )
        names: object = self.classes
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise DataError(f"{self.name}: classes must be a tuple of the names of the classes, got {shown(names)}")
        check_class_count(self.name, len(self.classes))
        if len({*self.classes}) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise DataError(f"{self.name}: classes must have different names, got {shown(twice)} twice")
        # Every checkpoint contains the names, and is read only up to a certain size.
        if (longest := max(map(len, self.classes), default=0)) > LONGEST_NAME:
            raise DataError(
                f"{self.name}: the name of a class has at most {LONGEST_NAME} characters, got {longest:,}; shorten it"
            )
        if bool(self.classes) == bool(integer_between(f"{self.name}: neurons", self.neurons, 0)):
            raise DataError(
                f"{self.name}: there must be classes, or else neurons, the number of target spike trains, got "
                f"{len(self.classes)} classes and neurons = {self.neurons}"
            )
        if self.real_targets and not self.neurons:
            raise DataError(f"{self.name}: real_targets are target sequences, so give neurons, their number")
        integer_between(f"{self.name}: input_max", self.input_max, 1, 255 if self.coding == "events" else 1)
        notes: object = self.notes
        if not (isinstance(notes, (tuple, list)) and all(isinstance(note, str) for note in notes)):
            raise DataError(f"{self.name}: notes must be a tuple of texts, for example ('a note',), got {shown(notes)}")
        for split_name, split in (("train", self.train), ("test", self.test)):
            self._check_split(split_name, split)

    def _check_split(self, split_name: str, split: object) -> None:
        if not isinstance(split, Split):
            raise DataError(
                f"{self.name}: {split_name} must be a split, which has labels, a length and the methods "
                f"inputs(indices) and stored(indices), got a {type(split).__name__}"
            )
        _check_labels(f"{self.name}: the labels of {split_name}", split.labels, len(split))
        if self.classes and len(split) and not 0 <= split.labels.min() <= split.labels.max() < len(self.classes):
            raise DataError(
                f"{self.name}: the labels of {split_name} must be 0 to {len(self.classes) - 1}, the numbers of its "
                f"classes, got {split.labels.min()} to {split.labels.max()}"
            )
        if (lengths := lengths_of(split)) is not None:
            _check_lengths(f"{self.name}: {split_name}", lengths, len(split))
        while isinstance(split, Subset):
            split = split.split
        # Counts in a mapped file, or in a split of another class, are checked when they are read.
        if isinstance(split, FrameSplit) and not split.binary and not isinstance(split.frames, np.memmap):
            largest_count = int(split.frames.max(initial=0))
            if largest_count > self.input_max:
                raise DataError(
                    f"{self.name}: {split_name} has frames with counts up to {largest_count}, but input_max is "
                    f"{self.input_max}; give the Dataset the largest count that its samples may have"
                )


@dataclass(frozen=True)
class Request:
    """The request to load a data set; each loader uses the fields that concern it."""

    name: str
    data_dir: Path | None
    cache_dir: Path
    argument: str = ""
    """The text after the name and a colon, for data sets with an `argument`."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options in the name, `NAME:option=value`."""
    binning: EventBinning = field(default_factory=EventBinning)
    own_lengths: bool = False
    """Whether a recording ends at its own last step (`FrameSplit.lengths`, `EventBinning.length`)."""
    seed: int = 0
    limit: int | None = None
    """Number of training samples that are needed; a loader need not prepare more."""
    holdout: int | None = None
    only_test: bool = False
    """Whether only the test set is needed. If the source has none, all samples are the test set."""
    train_only: bool = False
    """Whether no test set is needed. Then no samples are held out."""
    download: bool = False
    skip_malformed: bool = False
    image_size: int | None = None
    progress: ProgressCallback | None = None

    def whole_option(
        self, option: str, default: int, least: int, largest: int, *, most_digits: int | None = None
    ) -> int:
        """A whole number in the name, `NAME:option=value`, of at most as many digits as the largest one, or as given.

        Raises:
            DataError: it is none from `least` to `largest`.
        """
        text = self.options.get(option, str(default))
        is_short = len(text) <= (most_digits or len(str(largest)))
        if not (is_short and text.isascii() and text.isdigit() and least <= int(text) <= largest):
            raise DataError(f"{self.name}: {option} must be a number from {least} to {largest}, got {text!r}")
        return int(text)

    @property
    def length_key(self) -> dict[str, bool]:
        """Part of the key of cached frames; empty without own lengths."""
        return {"own_lengths": True} if self.own_lengths else {}

    @property
    def wants_own_test(self) -> bool:
        """Whether the source's own test set should be read."""
        return self.holdout is None and not self.train_only

    def told_of_test(self, text: str) -> str:
        """`text` about the test set, or nothing if no test set is needed."""
        return "" if self.train_only else text


def names_unreadable(load: Callable[[Request], Dataset]) -> Callable[[Request], Dataset]:
    """Let a loader raise `DataError` if a folder or file of the data cannot be read."""

    @functools.wraps(load)
    def loaded(request: Request) -> Dataset:
        try:
            return load(request)
        except OSError as error:
            path = str(request.data_dir if error.filename is None else error.filename)
            shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."
            raise DataError(f"cannot read {shown}: {error.strerror or error}") from error

    return loaded


class Progress:
    """Tells a callback how far a piece of work is, at most ten times a second and once at its end."""

    def __init__(self, callback: ProgressCallback | None, activity: str, total: int) -> None:
        self._callback = callback
        self._activity = activity
        self._total = total
        self._last = -1.0

    def __call__(self, items_done: int) -> None:
        now = time.monotonic()
        if self._callback is not None and (items_done == self._total or now - self._last >= 0.1):
            self._last = now
            self._callback(self._activity, items_done, self._total)


def select_balanced(labels: Int64, count: int, *, seed: int = 0, substream: int = 0) -> Int64:
    """Choose `count` of the samples with classes `labels` `[n]`, equal numbers of each class as far as possible.

    Samples are drawn in the order of the spec's permutation of stream `SPLIT`, from each class in turn. Returns their
    numbers in ascending order, `[count]`, or all n numbers if `count` is larger.

    Raises:
        DataError: `labels` are not integers `[n]`.
        SpecError: `count` is not an integer of at least 0, or `seed` or `substream` none in its range
            (`stsbp_spec.contract.random.bits`).
    """
    count = integer_between("the number of chosen samples", count, 0)
    _check_labels("labels", labels)
    order = permutation(seed, Stream.SPLIT, len(labels), substream=substream)
    drawn_labels = labels[order]
    # Position of each sample among those of its class, in the order drawn.
    by_class = np.argsort(drawn_labels, kind="stable")
    starts = np.searchsorted(drawn_labels[by_class], drawn_labels[by_class])
    rank_in_class = np.empty(len(labels), dtype=np.int64)
    rank_in_class[by_class] = np.arange(len(labels)) - starts
    return np.sort(order[np.argsort(rank_in_class, kind="stable")[:count]])


def cut_test(split: Split, default: int, request: Request) -> tuple[Subset, Subset]:
    """Cut the test set off samples whose source brings none: as many as the request says, or `default`.

    Raises:
        DataError: that is below 1 or leaves nothing.
    """
    if request.only_test:
        all_samples = Subset(split, np.arange(len(split)))
        return all_samples, all_samples
    if request.train_only:
        return Subset(split, np.arange(len(split))), Subset(split, np.arange(0))
    return hold_out(split, default if request.holdout is None else request.holdout, seed=request.seed)


def hold_out(
    split: Split, count: int, *, seed: int = 0, substream: int = 0, option: str = "holdout"
) -> tuple[Subset, Subset]:
    """Cut `count` class-balanced samples off: what remains, and what is held out.

    If samples of a `Subset` are repeated, a sample is held out once, and none of its repetitions remains.

    `option` is the setting that gave `count`, for the message.

    Raises:
        DataError: `count` is below 1 or leaves nothing.
        SpecError: `count` is no integer, or `seed` or `substream` none in its range (`contract.random.bits`).
    """
    if integer(count) is None:
        raise SpecError(f"the number of samples to hold out must be an integer, got {shown(count)}")
    samples = _sample_numbers(split)
    numbers = _distinct(samples)
    if not 1 <= count < len(numbers):
        possible = (
            f"expected 1 to {len(numbers) - 1}; choose another {option}" if len(numbers) > 1 else "none would be left"
        )
        raise DataError(f"cannot hold out {count} of {len(numbers)} samples: {possible}")
    held_out = numbers[select_balanced(split.labels[numbers], count, seed=seed, substream=substream)]
    remaining = np.flatnonzero(~np.isin(samples, samples[held_out]))
    return Subset(split, remaining), Subset(split, held_out)


def distinct_count(split: Split) -> int:
    """Number of samples of a split, without repetitions."""
    return len(_distinct(_sample_numbers(split)))


def _sample_numbers(split: Split) -> Int64:
    """For each sample of a split its number in the split of which it is a subset, or in itself."""
    return split.indices if isinstance(split, Subset) else np.arange(len(split), dtype=np.int64)


def _distinct(numbers: Int64) -> Int64:
    """Places in a list of numbers that are no repetitions of an earlier one, in order."""
    return np.sort(np.unique(numbers, return_index=True)[1]).astype(np.int64)
