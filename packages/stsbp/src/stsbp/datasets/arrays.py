"""Data sets of arrays in memory, for `stsbp.train` and `Run.evaluate`.

Inputs have the axes of `Run.predict`: images `[n, C, H, W]` or `[n, N]`, frames `[T, n, C, H, W]`, spike trains
`[T, n, N]`. Answers are classes `[n]`, or target spike trains `[T, n, N]`. A run that was trained on arrays has the
data set `arrays` in its settings. No file has its samples, so only a program that has the arrays can continue it.

If inputs and targets are rasters, and nothing else tells samples from steps, the axes may be those of files,
`[n, T, N]`: the user is then asked, as for files (`stsbp.datasets.sequences`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from stsbp_spec.errors import ShapeError
from stsbp_spec.typing import AnyArray, Coding, Int64, Shape, UInt8
from stsbp_spec.validation import array_of, integer, listed, shown

from stsbp.datasets.base import MOST_CLASSES, Dataset, FrameSplit, Request, Split, cut_test
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.sequences import RealTargets, SequenceSplit, axis_order_error, may_be_swapped, real_targets
from stsbp.errors import DataError, did_you_mean

__all__ = ["ARRAYS", "FORMS", "GivenData", "given_data", "listed_names"]

FORMS = (
    "(inputs, labels), (inputs, labels, test_inputs, test_labels), or a dict with inputs, labels or targets, and "
    "perhaps lengths, classes, test_inputs, test_labels or test_targets, test_lengths"
)
_TEST = "test_"
_OF_SAMPLES = ("inputs", "labels", "targets", "lengths")
_KEYS = (*_OF_SAMPLES, *(_TEST + name for name in _OF_SAMPLES), "classes")
_TEST_SHARE = 0.2
_SWAP = "swap the first two axes, np.swapaxes(x, 0, 1)"


def _refuse(request: Request) -> Dataset:
    raise DataError(
        "the samples are arrays that are in no file: they were given to stsbp in Python, or not at all. Give them in "
        "Python: stsbp.train(data, resume=RUN), or stsbp.load_run(RUN, data=data) to evaluate and report. To use the "
        "command line, save them with np.savez and train on sequences:FILE.npz"
    )


ARRAYS = DatasetInfo(
    name="arrays",
    description="arrays that were given in Python",
    coding="events",
    load=_refuse,
    needs_data_dir=False,
)
"""What the settings of a run name that was trained on arrays."""


@dataclass(frozen=True)
class GivenData:
    """A data set that was given as an object.

    Attributes:
        info: loads it, with the settings of a run.
        coding: `direct` for images, `events` for frames and spike trains.
        steps: number of steps of the arrays; None: images with classes, for which the settings decide.
        unconfirmed_samples: number of samples of rasters with target rasters, if nothing but the order of their axes
            tells samples from steps; None: something does.
    """

    info: DatasetInfo
    coding: Coding
    steps: int | None
    unconfirmed_samples: int | None = None

    def check_axes(self, known_steps: Collection[object]) -> None:
        """Check that the first axis of rasters is time, unless one of `known_steps`, which were given, confirms it.

        Raises:
            DataError: it may be the axis of the samples.
        """
        samples, steps = self.unconfirmed_samples, self.steps
        if samples is None or steps is None or not may_be_swapped(samples, steps):
            return
        if steps in map(integer, known_steps):
            return
        raise axis_order_error("data have", samples, steps, "time", f"the samples, {_SWAP}")


class _Images:
    """Images `[n, C, H, W]` or `[n, N]`, uint8, with their classes `[n]`."""

    def __init__(self, images: UInt8, labels: Int64) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, indices: Int64) -> UInt8:
        images: UInt8 = self.images[indices]
        return images

    stored = inputs

    def content(self) -> str:
        """SHA-256 of the images (`stsbp.datasets.base.content_of`)."""
        return hashlib.sha256(repr(self.images.shape).encode() + self.images.tobytes()).hexdigest()


class _ImagesWithTargets(_Images):
    """Images whose answers are target sequences `[n, T, N]`: spike trains, uint8, or real numbers, float32."""

    def __init__(self, images: UInt8, targets: AnyArray) -> None:
        labels = np.zeros(len(images), np.int64)
        super().__init__(images, labels)
        self._targets: FrameSplit | RealTargets
        if targets.dtype == np.float32:
            self._targets = RealTargets(targets)
        else:
            self._targets = FrameSplit(FrameSplit.store(targets), labels, targets.shape[1])

    def targets(self, indices: Int64) -> AnyArray:
        """Targets of some samples, `[T, B, N]`."""
        return self._targets.inputs(indices)


@dataclass(frozen=True)
class _Samples:
    """Checked arrays of samples: inputs as they were given, and either labels `[n]` or targets `[T, n, N]`."""

    inputs: UInt8
    labels: Int64 | None
    targets: AnyArray | None
    lengths: Int64 | None

    @property
    def real_targets(self) -> bool:
        """Whether targets are real numbers."""
        return self.targets is not None and self.targets.dtype == np.float32

    @property
    def coding(self) -> Coding:
        return "direct" if self.inputs.ndim in (2, 4) else "events"

    @property
    def shape(self) -> Shape:
        """Shape of the input of a sample at a step."""
        return self.inputs.shape[1 if self.coding == "direct" else 2 :]

    @property
    def steps(self) -> int | None:
        if self.coding == "events":
            return len(self.inputs)
        return None if self.targets is None else len(self.targets)

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.inputs.shape[0 if self.coding == "direct" else 1])

    @property
    def unconfirmed(self) -> int | None:
        """The number of samples if only the order of axes tells them from steps, else None."""
        told = self.coding == "direct" or self.labels is not None or self.lengths is not None
        return None if told else self.count

    @property
    def answers(self) -> str:
        """What the samples are answered with, for a message."""
        if self.targets is None:
            return "classes"
        return f"{'real targets' if self.real_targets else 'target spike trains'} of {self.targets.shape[2]} neurons"

    def split(self, *, binary: bool) -> Split:
        """The samples as a split. `binary`: whether frames have only zeros and ones."""
        targets = None if self.targets is None else np.swapaxes(self.targets, 0, 1)
        if self.coding == "direct":
            if targets is not None:
                return _ImagesWithTargets(self.inputs, targets)
            assert self.labels is not None
            return _Images(self.inputs, self.labels)
        frames = np.swapaxes(self.inputs, 0, 1)
        if targets is not None:
            return SequenceSplit(frames, targets, np.zeros(len(frames), np.int64), self.lengths)
        assert self.labels is not None
        stored = FrameSplit.store(frames, binary=binary)
        return FrameSplit(stored, self.labels, frames.shape[1], binary, self.lengths)


def given_data(data: Any, classes: Sequence[str] | None = None, input_max: int | None = None) -> GivenData:
    """A data set from arrays or from a `Dataset`.

    Args:
        data: a `Dataset`, or arrays (`FORMS`). Arrays of torch and JAX and lists are copied into numpy's.
        classes: names of the classes, which the data do not contain; None: the data do, or they are the numbers.
        input_max: the largest spike count of an entry; None: the largest one in the arrays.

    Raises:
        DataError: the data have another form. The message says which one they should have.
    """
    if isinstance(data, Dataset):
        return _of_dataset(data)
    arrays = _by_name(data)
    train = _samples(arrays, "")
    test = _samples(arrays, _TEST) if any(name.startswith(_TEST) for name in arrays) else None
    for what in ("coding", "shape", "steps", "answers"):
        if test is not None and getattr(test, what) != getattr(train, what):
            swapped = what == "steps" and train.unconfirmed == test.unconfirmed is not None
            hint = f"; the first axis of all arrays must be time: {_SWAP}" if swapped else ""
            raise DataError(
                f"data: the {what} of the training samples are {getattr(train, what)}, but those of the test samples "
                f"{getattr(test, what)}{hint}"
            )
    parts = [train, *([] if test is None else [test])]
    names = () if train.targets is not None else _class_names(arrays.get("classes", classes), parts)
    if train.coding == "direct":
        largest = 1
    else:
        largest = input_max or max(1, *(int(part.inputs.max(initial=0)) for part in parts))

    def load(request: Request) -> Dataset:
        if train.steps not in (None, request.binning.steps):
            raise _wrong_steps_error(train, request.binning.steps)
        splits = [part.split(binary=largest == 1) for part in parts]
        neurons = 0 if train.targets is None else train.targets.shape[2]
        shape = tuple(map(int, train.shape))
        some = splits[0]
        dataset = Dataset(
            ARRAYS.name,
            train.coding,
            shape,
            names,
            some,
            some,
            neurons=neurons,
            input_max=largest,
            real_targets=train.real_targets,
        )
        return _cut(dataset, splits[0], splits[1] if test is not None else None, request)

    # Test samples of the same T and of another number confirm which axis is time.
    unconfirmed = train.unconfirmed if test is None or test.unconfirmed == train.unconfirmed else None
    return GivenData(replace(ARRAYS, coding=train.coding, load=load), train.coding, train.steps, unconfirmed)


def _wrong_steps_error(samples: _Samples, requested_steps: int) -> DataError:
    hint = f", or if their first axis is the samples, {_SWAP}" if samples.unconfirmed == requested_steps else ""
    return DataError(
        f"the arrays have {samples.steps} steps, not {requested_steps}: leave steps out of a new run, or give arrays "
        f"of {requested_steps} steps{hint}"
    )


def _of_dataset(dataset: Dataset) -> GivenData:
    def load(request: Request) -> Dataset:
        return _cut(dataset, dataset.train, dataset.test if len(dataset.test) else None, request)

    steps = None
    if dataset.coding == "events" and len(dataset.train):
        steps = int(dataset.train.inputs(np.arange(1)).shape[0])
    return GivenData(replace(ARRAYS, coding=dataset.coding, load=load), dataset.coding, steps)


def _cut(dataset: Dataset, train: Split, test: Split | None, request: Request) -> Dataset:
    """The data set with the splits that a request asks for. Without a test set, a fifth is held out."""
    if test is not None and request.only_test:
        return replace(dataset, train=test, test=test)
    if test is not None and request.wants_own_test:
        return replace(dataset, train=train, test=test)
    rest, held = cut_test(train, max(1, round(_TEST_SHARE * len(train))), request)
    note = request.told_of_test(
        f"{len(held)} of {len(train)} samples are held out as test samples (split seed {request.seed})"
    )
    notes = (note,) if note and not request.only_test else ()
    return replace(dataset, train=rest, test=held, notes=(*dataset.notes, *notes))


def _by_name(data: Any) -> dict[str, Any]:
    """The arrays by the names of a dict."""
    if isinstance(data, Mapping):
        for key in data:
            if key not in _KEYS:
                raise DataError(f"data: unknown array {shown(key)}{did_you_mean(str(key), _KEYS)}; give {FORMS}")
        return {key: x for key, x in data.items() if x is not None}
    parts = list(data) if isinstance(data, (tuple, list)) else []
    # Two lists of numbers are two samples and their classes.
    if len(parts) == 2 and all(_is_pair(part) for part in parts):
        parts = [x for part in parts for x in part]
    if len(parts) not in (2, 4):
        raise DataError(f"data are the name of a data set such as 'digits', a Dataset, or arrays: {FORMS}")
    named: dict[str, Any] = {}
    for prefix, inputs, answers in zip(("", _TEST), parts[::2], parts[1::2], strict=False):
        named[f"{prefix}inputs"] = inputs
        named[f"{prefix}{'targets' if _array('labels', answers).ndim == 3 else 'labels'}"] = answers
    return named


def _is_pair(part: Any) -> bool:
    """Whether a part of the data is `(inputs, labels)`."""
    return isinstance(part, (tuple, list)) and len(part) == 2 and not any(np.isscalar(x) for x in part)


def _array(name: str, x: Any) -> AnyArray:
    try:
        return array_of(x)
    except ShapeError as error:
        raise DataError(f"data: {name}: {error}") from error


def _bytes(name: str, x: Any, most: int, advice: str) -> UInt8:
    """`x` as bytes, if it has whole numbers from 0 to `most`."""
    array = _array(name, x)
    if array.dtype.kind not in "biu":
        raise DataError(f"data: {name} must be integers, got {array.dtype}; {advice}")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > most:
        raise DataError(f"data: {name} must be from 0 to {most}, got {low} to {high}; {advice}")
    return np.ascontiguousarray(array).astype(np.uint8)


def _targets(name: str, x: Any) -> AnyArray:
    """Target sequences: spike trains as bytes, or floats as real numbers, float32."""
    array = _array(name, x)
    if array.dtype.kind == "f":
        return np.ascontiguousarray(real_targets(f"data: {name}", array))
    return _bytes(name, x, 1, "targets are spikes, 0 and 1; real numbers are floats, x.astype(np.float32)")


def _samples(arrays: Mapping[str, Any], prefix: str) -> _Samples:
    """The training samples, or with `_TEST` the test samples."""
    named = {name: arrays[prefix + name] for name in _OF_SAMPLES if prefix + name in arrays}
    if "inputs" not in named or ("labels" in named) == ("targets" in named):
        wanted = f"{prefix}inputs and either {prefix}labels or {prefix}targets"
        raise DataError(f"data: give {wanted}, got {listed(prefix + name for name in named) or 'nothing'}")
    advice = "pixels between 0 and 1 are converted with (x * 255).round().astype(np.uint8), spikes with x.astype(bool)"
    inputs = _bytes(f"{prefix}inputs", named["inputs"], 255, advice)
    labels, targets = None, None
    if "labels" in named:
        labels = _array(f"{prefix}labels", named["labels"])
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
            raise DataError(
                f"data: {prefix}labels must be the numbers of classes, integers [n], got {labels.dtype} "
                f"{list(labels.shape)}; target spike trains are [T, n, N]"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
            raise DataError(f"data: {prefix}labels must be 0 to {MOST_CLASSES - 1}")
        labels = labels.astype(np.int64)
    else:
        targets = _targets(f"{prefix}targets", named["targets"])
        if targets.ndim != 3 or 0 in targets.shape:
            raise DataError(f"data: {prefix}targets must be [T, n, N], got {list(targets.shape)}")
    samples = _Samples(inputs, labels, targets, None)
    _check_axes(samples, prefix)
    return replace(samples, lengths=_lengths(named.get("lengths"), samples, prefix))


def _check_axes(samples: _Samples, prefix: str) -> None:
    inputs, labels, targets = samples.inputs, samples.labels, samples.targets
    forms = "images [n, C, H, W] or [n, N], or spikes [T, n, N] or [T, n, C, H, W]"
    if not 2 <= inputs.ndim <= 5 or 0 in inputs.shape:
        raise DataError(f"data: {prefix}inputs must be {forms}, got {list(inputs.shape)}")
    if inputs.ndim == 4 and inputs.shape[3] in (1, 3, 4) and inputs.shape[1] == inputs.shape[2] > 4:
        raise DataError(
            f"data: {prefix}inputs must be images [n, C, H, W], but the last axis of {list(inputs.shape)} looks like "
            "that of the channels; move it, np.moveaxis(x, -1, 1)"
        )
    axis = 0 if samples.coding == "direct" else 1
    if targets is not None and targets.shape[0] == inputs.shape[axis] != targets.shape[1]:
        raise DataError(
            f"data: {prefix}targets must be [T, n, N], but the first axis of {list(targets.shape)} is that of the "
            f"{inputs.shape[axis]} samples; {_SWAP}"
        )
    count = len(labels) if labels is not None else targets.shape[1]  # type: ignore[union-attr]
    if inputs.shape[axis] != count:
        hint = ""
        if inputs.ndim in (3, 5) and inputs.shape[0] == count:
            hint = f"; if these are spikes, {_SWAP}"
            hint += "; if these are images [n, H, W], add the axis of channels, x[:, None]" if inputs.ndim == 3 else ""
        raise DataError(
            f"data: {prefix}inputs must be {forms}; {count} samples have answers, but the inputs are "
            f"{list(inputs.shape)}{hint}"
        )
    if targets is not None and samples.coding == "events" and len(targets) != len(inputs):
        raise DataError(f"data: {prefix}inputs have {len(inputs)} steps, but {prefix}targets {len(targets)}")


def _lengths(lengths: Any, samples: _Samples, prefix: str) -> Int64 | None:
    if lengths is None:
        return None
    if samples.coding == "direct":
        raise DataError(
            f"data: {prefix}lengths are the numbers of steps of frames or spike trains, but {prefix}inputs "
            f"{list(samples.inputs.shape)} are images, which have none; leave {prefix}lengths out"
        )
    array = _array(f"{prefix}lengths", lengths)
    if array.shape != (samples.count,) or array.dtype.kind not in "iu":
        swapped = samples.unconfirmed is not None and array.shape == (samples.steps,)
        hint = f"; they fit samples in the first axis, which must be time: {_SWAP} of inputs and targets"
        raise DataError(
            f"data: {prefix}lengths are the numbers of steps of frames or spike trains, integers [{samples.count}], "
            f"got {array.dtype} {list(array.shape)}{hint if swapped else ''}"
        )
    if not 1 <= array.min() <= array.max() <= len(samples.inputs):
        raise DataError(f"data: {prefix}lengths must be from 1 to the {len(samples.inputs)} steps of the inputs")
    return array.astype(np.int64)


def listed_names(classes: Any) -> tuple[str, ...] | None:
    """Names of classes from a list of any kind or an array with one axis; None: it is neither, for example a text."""
    is_list = classes.ndim == 1 if isinstance(classes, np.ndarray) else isinstance(classes, Sequence)
    return tuple(map(str, classes)) if is_list and not isinstance(classes, str) else None


def _class_names(classes: Any, parts: Sequence[_Samples]) -> tuple[str, ...]:
    count = 1 + max(int(part.labels.max()) for part in parts if part.labels is not None)
    if classes is None:
        return tuple(map(str, range(count)))
    names = listed_names(classes)
    if names is None or len(names) < count:
        raise DataError(f"data: classes must be the names of at least {count} classes, got {shown(classes)}")
    return names
