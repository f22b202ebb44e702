"""Spike rasters, each with a target sequence or a class, in memory and from a user's own `.npz` file.

The file (docs/sequences.md) contains `inputs` `[n, T, ...]`, 0 and 1, and either `targets` `[n, T, N]`, 0 and 1 or real
numbers (floats), or `labels` `[n]`, integers. Optional arrays are `split` `[n]`, 0 for training and 1 for test samples;
`lengths` `[n]`, the number of steps of each sample (later steps are padding); and `classes`, the names of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stsbp_spec.models.encoders.packed import Inputs
from stsbp_spec.typing import AnyArray, Float32, Int64, Shape, UInt8
from stsbp_spec.validation import listed

from stsbp.datasets.base import Dataset, FrameSplit, Request, names_unreadable
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.npz import class_labels, read_arrays, read_shapes, split_train_test
from stsbp.errors import DataError

__all__ = [
    "SEQUENCES",
    "RealTargets",
    "SequenceSplit",
    "Sequences",
    "axis_order_error",
    "load",
    "may_be_swapped",
    "read_sequences",
    "real_targets",
    "steps_of",
]  # fmt: skip

_SWAP = "swap the first two axes of its rasters, np.swapaxes(x, 0, 1)"
_TIME_LAST = "; time seems to be the last axis, and must be the second: swap the two axes, np.swapaxes(x, 1, 2)"


class SequenceSplit:
    """Input rasters `[n, T, ...]` with targets `[n, T, N]`.

    Inputs are zeros and ones, and stored as bits. With `counts`, they are numbers of spikes, 0 to 255. Target spike
    trains, which are integers, are stored as bits too. Targets that are floats are real numbers, and stored as float32.

    `labels` are groups from which samples are chosen. `lengths` are numbers of steps, if some samples have fewer than
    T.

    Raises:
        DataError: the rasters and the targets are no such arrays with the same n and T, or `labels` or `lengths` are
            not one number for each of them.
    """

    def __init__(
        self,
        rasters: UInt8,
        targets: AnyArray,
        labels: Int64,
        lengths: Int64 | None = None,
        *,
        counts: bool = False,
    ) -> None:
        raster_shapes = [np.shape(x) for x in (rasters, targets)]
        if raster_shapes[0][:2] != raster_shapes[1][:2] or len(raster_shapes[1]) != 3:
            raise DataError(
                "SequenceSplit: rasters [n, T, ...] and targets [n, T, N] must have the same n and T, got "
                f"{' and '.join(str(list(raster_shape)) for raster_shape in raster_shapes)}"
            )
        self.labels, self.lengths = labels, lengths
        self._rasters = _part("rasters", rasters, labels, lengths, binary=not counts)
        self._targets: FrameSplit | RealTargets
        if np.asarray(targets).dtype.kind == "f":
            self._targets = RealTargets(real_targets("SequenceSplit, targets", targets))
        else:
            self._targets = _part("targets", targets, labels, lengths)

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, indices: Int64) -> UInt8:
        return self._rasters.inputs(indices)

    def stored(self, indices: Int64) -> Inputs:
        return self._rasters.stored(indices)

    def content(self) -> str:
        """SHA-256 of the input rasters (`stsbp.datasets.base.content_of`)."""
        return self._rasters.content()

    def targets(self, indices: Int64) -> AnyArray:
        """Targets of some samples, `[T, B, N]`."""
        return self._targets.inputs(indices)


class RealTargets:
    """Real targets `[n, T, N]`, float32, which are read as frames are."""

    def __init__(self, values: Float32) -> None:
        self._values = values

    def inputs(self, indices: Int64) -> Float32:
        """Targets of some samples, `[T, B, N]`."""
        return np.ascontiguousarray(np.swapaxes(self._values[indices], 0, 1))


def real_targets(name: str, targets: AnyArray) -> Float32:
    """Targets that are real numbers, as float32. Raises `DataError` if one is not finite; `name` begins the message."""
    with np.errstate(over="ignore"):
        values = np.asarray(targets).astype(np.float32)
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0].tolist()
        raise DataError(
            f"{name} must be finite numbers of float32, got {targets[tuple(where)]} at {where}; leave out or replace it"
        )
    return values


def _part(array_name: str, frames: UInt8, labels: Int64, lengths: Int64 | None, *, binary: bool = True) -> FrameSplit:
    """The rasters or the targets of a `SequenceSplit`. `array_name` names them in messages."""
    try:
        stored = FrameSplit.store(frames, binary=binary)
        return FrameSplit(stored, labels, frames.shape[1], binary, lengths)
    except DataError as error:
        raise DataError(f"SequenceSplit, {array_name}: {error}") from error


class Sequences(NamedTuple):
    """The contents of a file: inputs `[n, T, ...]`, targets `[n, T, N]`; optionally split and lengths `[n]`."""

    inputs: UInt8
    targets: AnyArray
    split: UInt8 | None
    lengths: Int64 | None


def read_sequences(path: Path) -> Sequences:
    """The arrays of a file with target rasters.

    Raises:
        DataError: the file cannot be read, or its arrays have other shapes or values other than 0 and 1.
    """
    return _checked_sequences(path, _read_arrays(path))


def _read_arrays(path: Path) -> dict[str, AnyArray]:
    """The arrays of a file, with bytes in place of bool."""
    arrays = read_arrays(path)
    return {name: x.view(np.uint8) if x.dtype == np.bool_ else x for name, x in arrays.items()}


def _checked_sequences(path: Path, arrays: Mapping[str, AnyArray]) -> Sequences:
    """The arrays of a file with target rasters, checked."""
    _check_contents(path, arrays, {"inputs", "targets"}, {"split", "lengths"})
    rasters = {name: array for name, array in arrays.items() if name != "lengths"}
    is_real = arrays["targets"].dtype.kind == "f"
    _check_rasters(path, {name: array for name, array in rasters.items() if not (is_real and name == "targets")})
    inputs, targets, split = arrays["inputs"], arrays["targets"], arrays.get("split")
    if inputs.ndim not in (3, 5) or targets.ndim != 3 or 0 in (*inputs.shape, *targets.shape):
        raise DataError(
            f"{path}: inputs must be [n, T, N] or [n, T, C, H, W] and targets [n, T, N], "
            f"got {list(inputs.shape)} and {list(targets.shape)}"
        )
    if inputs.shape[:2] != targets.shape[:2] or (split is not None and split.shape != inputs.shape[:1]):
        array_list = ", ".join(f"{name} {list(array.shape)}" for name, array in rasters.items())
        hint = _if_time_first(inputs.shape, len(targets) if split is None else len(split))
        if not hint and inputs.ndim == 3 and inputs.shape[2] in targets.shape[1:] and len(inputs) == len(targets):
            hint = _TIME_LAST
        raise DataError(f"{path}: the arrays do not agree in samples n and steps T: {array_list}{hint}")
    if is_real:
        targets = real_targets(f"{path}: targets", targets)
    return Sequences(inputs, targets, split, _lengths(path, arrays))


def _checked_classes(path: Path, arrays: Mapping[str, AnyArray]) -> tuple[FrameSplit, tuple[str, ...]]:
    """Rasters, each with a class, and the names of the classes."""
    _check_contents(path, arrays, {"inputs", "labels"}, {"split", "lengths", "classes"})
    labels, classes = class_labels(arrays, path)
    inputs = arrays["inputs"]
    _check_rasters(path, {"inputs": inputs})
    if inputs.ndim not in (3, 5) or 0 in inputs.shape or len(inputs) != len(labels):
        raise DataError(
            f"{path}: inputs must be [n, T, N] or [n, T, C, H, W] and labels [n], got {list(inputs.shape)} and "
            f"{list(labels.shape)}{_if_time_first(inputs.shape, len(labels))}"
        )
    lengths = _lengths(path, arrays)
    return FrameSplit(FrameSplit.store(inputs), labels, inputs.shape[1], lengths=lengths), classes


def _check_contents(path: Path, arrays: Mapping[str, AnyArray], required: set[str], optional: set[str]) -> None:
    if required - set(arrays) or set(arrays) - required - optional:
        raise DataError(
            f"{path} must hold inputs, targets and perhaps split and lengths, or inputs, labels and perhaps split, "
            f"lengths and classes, got {listed(arrays) or 'nothing'}"
        )


def _check_rasters(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    """Raise `DataError` unless all arrays are uint8, 0 and 1."""
    for name, array in arrays.items():
        if array.dtype != np.uint8:
            remedy = f"; convert them with {name}.astype(np.uint8)" if array.dtype.kind in "iuf" else ""
            remedy += ", or real targets with targets.astype(np.float32)" if name == "targets" and remedy else ""
            raise DataError(f"{path}: {name} must be uint8 values 0 and 1, got {array.dtype}{remedy}")
        if array.size and array.max() > 1:
            raise DataError(f"{path}: {name} must be uint8 values 0 and 1, got {array.dtype} up to {array.max()}")


def _lengths(path: Path, arrays: Mapping[str, AnyArray]) -> Int64 | None:
    """The numbers of steps of the samples, `[n]`, checked; None: the file has none."""
    lengths, (n, steps) = arrays.get("lengths"), arrays["inputs"].shape[:2]
    if lengths is None:
        return None
    if lengths.dtype.kind not in "iu" or lengths.shape != (n,):
        hint = _if_time_first(arrays["inputs"].shape, lengths.size)
        raise DataError(
            f"{path}: lengths must be integers [n] = [{n}], got {lengths.dtype} {list(lengths.shape)}{hint}"
        )
    if (wrong := np.flatnonzero((lengths < 1) | (lengths > steps))).size:
        raise DataError(
            f"{path}: lengths must be from 1 to the {steps} steps of the arrays; sample {wrong[0]} has "
            f"{lengths[wrong[0]]}"
        )
    return lengths.astype(np.int64)


def _if_time_first(shape: Shape, samples: int) -> str:
    """End of a message about rasters of another number of samples, if this number is that of their second axis."""
    if len(shape) < 2 or samples != shape[1]:
        return ""
    return f"; time seems to be the first axis, and must be the second: {_SWAP}"


def _may_be_time_first(shape_by_name: Mapping[str, Shape], requested_steps: int | None = None) -> bool:
    """Whether time may be the first axis of all rasters: no array confirms that they are `[n, T, ...]`, and there are
    more steps than samples, or the first axis has the number of steps that was asked for."""
    n, steps = shape_by_name["inputs"][:2]
    if shape_by_name.get("targets", (n, steps))[:2] != (n, steps):
        return False
    return not {"labels", "split", "lengths"} & {*shape_by_name} and may_be_swapped(n, steps, requested_steps)


def may_be_swapped(samples: int, steps: int, requested_steps: int | None = None) -> bool:
    """Whether the axes of samples and of time may be confused in rasters of which no other array confirms the number of
    samples: there are more steps than samples, or as many samples as steps that were asked for."""
    return samples < steps or samples == requested_steps


def steps_of(path: Path) -> int | None:
    """The number of steps of the samples of a file. None if the file cannot be read.

    Raises:
        DataError: time may be the first axis of the file.
    """
    try:
        path = path / "sequences.npz" if path.is_dir() else path
    except OSError:  # the name is too long, for example
        return None
    shape_by_name = read_shapes(path)
    if len(shape_by_name.get("inputs", ())) < 2:
        return None
    if _may_be_time_first(shape_by_name):
        raise _axis_order_error(path, shape_by_name["inputs"])
    return shape_by_name["inputs"][1]


def _axis_order_error(path: Path, shape: Shape) -> DataError:
    return axis_order_error(f"{path} has", shape[0], shape[1], "the samples", f"time, {_SWAP}")


def axis_order_error(owner: str, samples: int, steps: int, first: str, otherwise: str) -> DataError:
    """The error for rasters whose axes of samples and of time may be confused.

    Args:
        owner: beginning of the sentence, for example `FILE has`.
        samples, steps: their numbers, if the first axis is what it must be.
        first: what the first axis must be.
        otherwise: the other axis, and what to do if it is the first.
    """
    return DataError(
        f"{owner} {samples} samples of {steps} steps if the first axis of its rasters is {first}, as it must be. If "
        f"this is so, give --steps {steps}. If the first axis is {otherwise}"
    )


def _wrong_steps_error(path: Path, arrays: Mapping[str, AnyArray], requested_steps: int) -> DataError:
    if _may_be_time_first({name: array.shape for name, array in arrays.items()}, requested_steps):
        return _axis_order_error(path, arrays["inputs"].shape)
    steps = arrays["inputs"].shape[1]
    return DataError(f"the samples of {path} have {steps} steps, not {requested_steps}: give --steps {steps}")


@names_unreadable
def load(request: Request) -> Dataset:
    """The samples of a file. Without `split`, a fifth of them is held out as the test set."""
    path = request.data_dir
    if path is None:
        raise DataError("name the file: stsbp train sequences:PATH, or --data-dir PATH")
    if path.is_dir():
        path = path / "sequences.npz"
    arrays = _read_arrays(path)
    samples: FrameSplit | SequenceSplit
    classes: tuple[str, ...] = ()
    neurons, is_real = 0, False
    if "labels" in arrays:
        samples, classes = _checked_classes(path, arrays)
    else:
        inputs, targets, _, lengths = _checked_sequences(path, arrays)
        samples = SequenceSplit(inputs, targets, np.zeros(len(inputs), dtype=np.int64), lengths)
        neurons, is_real = targets.shape[2], targets.dtype == np.float32
    steps, shape = arrays["inputs"].shape[1], arrays["inputs"].shape[2:]
    if steps != request.binning.steps:
        raise _wrong_steps_error(path, arrays, request.binning.steps)
    train, test, note = split_train_test(samples, arrays, path, request)
    notes = (note, f"inputs [n, T, ...] = {list(arrays['inputs'].shape)}")
    return Dataset("sequences", "events", shape, classes, train, test, notes, neurons=neurons, real_targets=is_real)


SEQUENCES = DatasetInfo(
    name="sequences",
    description="your own rasters with target sequences or classes, in an .npz file: sequences:PATH",
    coding="events",
    load=load,
    steps=steps_of,
    defaults={
        "net": "200",
        "steps": 50,
        "epochs": 40,
        "batch_size": 20,
        "lr": 5e-3,
        "tau_m": 5.0,
        "tau_s": 2.0,
        "test_every": 5,
    },
)
"""The data set of `stsbp train sequences`, with its default settings."""
