"""The records of a run: sums over samples, distances to the label sequences, and lines of JSON.

`metrics.jsonl` grows line by line. A checkpoint contains its length, and a resumed run cuts it to this length. The file
of an interrupted run therefore ends like that of an uninterrupted one (except for times). A checkpoint also contains
the SHA-256 of the file until then, so that the records of another run are not taken for those of this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from stsbp_spec.contract.grid import ZeroedErrors
from stsbp_spec.models.encoders import LabelCode
from stsbp_spec.models.losses import CrossEntropy
from stsbp_spec.models.losses.base import Loss, joined
from stsbp_spec.models.metrics import f1, precision, recall
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import AnyArray, Float64, Int64, UInt8

from stsbp import records
from stsbp.config import RunConfig
from stsbp.errors import CheckpointError, FileError
from stsbp.files import GIGABYTE, MEGABYTE, OpenFolder, open_regular
from stsbp.training import checkpoint
from stsbp.training.quality import QUALITIES, Quality

__all__ = [
    "LabelDistances",
    "MetricsFile",
    "ReadoutDistances",
    "Sums",
    "Workload",
    "check_records",
    "read_records",
    "spike_figures",
]


class LabelDistances:
    """Distances `[B, K]` of output spike trains to the label sequence of every class.

    The results equal those of `stsbp_spec.models.decoders.distances`, up to rounding, but the cost does not grow with
    the number of classes. A label code has only two patterns, so each neuron is compared with both. The distance to
    class `k` is that of the desired pattern at neuron `k`, plus that of the undesired pattern at all others. Outputs
    begin with step `first` of the sequences.
    """

    def __init__(self, code: LabelCode, classes: int, steps: int, loss: Loss, psp: PSP, first: int = 0) -> None:
        # The patterns do not depend on the number of classes, and K sequences of K neurons would need much memory.
        self._patterns = code.sequences(2, steps, first)[0, :, :, None, None]
        self._loss = loss
        self._psp = psp

    def __call__(self, spikes: AnyArray, lengths: Int64 | None = None) -> Float64:
        """Distances of outputs `[T, B, N]`. With `lengths` `[B]`, padded steps are ignored."""
        return self._distances(spikes, self._parts(spikes, lengths), lengths)

    def with_loss(
        self, spikes: AnyArray, targets: UInt8, labels: Int64, lengths: Int64 | None = None
    ) -> tuple[Float64, Float64]:
        """The distances, and the loss of each sample, `[B]`: `Loss.distances` of its outputs and targets `[T, B, N]`.

        If the loss filters the outputs, the filter runs only once for both.
        """
        parts = self._parts(spikes, lengths)
        if parts is None:
            losses = self._loss.distances(spikes, targets, self._psp, lengths)
            return self._distances(spikes, None, lengths), losses
        labelled = labels[:, None] == np.arange(spikes.shape[-1])
        parts_of_label = np.where(labelled, parts[:, 0], parts[:, 1])
        return self._distances(spikes, parts, lengths), joined(parts_of_label)

    def _parts(self, spikes: UInt8, lengths: Int64 | None) -> Float64 | None:
        """`Loss.parts` of each neuron's output with each of the two patterns, `[T, 2, B, N]`."""
        return self._loss.parts(spikes[:, None], self._patterns, self._psp, lengths)

    def _distances(self, spikes: UInt8, parts: Float64 | None, lengths: Int64 | None) -> Float64:
        if parts is None:
            # Treat each neuron separately: [T, 2, B, N, 1] has patterns and neurons as batch axes.
            pattern_lengths = None if lengths is None else lengths[:, None]
            neuron_distances = self._loss.distances(
                spikes[:, None, ..., None], self._patterns[..., None], self._psp, pattern_lengths
            )
        else:
            neuron_distances = parts.sum(axis=0)
        desired, undesired = neuron_distances
        distances: Float64 = undesired.sum(axis=1, keepdims=True) + (desired - undesired)
        return distances


class ReadoutDistances:
    """Losses `[B, K]` of a readout's potentials for each class. It replaces `LabelDistances` for readouts."""

    def __init__(self, loss: CrossEntropy) -> None:
        self._loss = loss

    def __call__(self, potentials: AnyArray, lengths: Int64 | None = None) -> Float64:
        """Losses of potentials `[T, B, N]`. With `lengths` `[B]`, padded steps are ignored."""
        return self._loss.of_classes(potentials, lengths)

    def with_loss(
        self, potentials: AnyArray, targets: UInt8, labels: Int64, lengths: Int64 | None = None
    ) -> tuple[Float64, Float64]:
        """The losses for all classes, and the loss of each sample's own class, `[B]`."""
        losses = self(potentials, lengths)
        return losses, np.take_along_axis(losses, labels[:, None], axis=1)[:, 0]


def spike_figures(sums: Mapping[str, float], samples: int) -> dict[str, float]:
    """How well outputs match target spike trains, from sums over `samples` samples.

    `sums` has `matched`, `spikes` and `targets` (`stsbp_spec.models.metrics.SpikeMatches`) and the distances
    `van_rossum` and `hamming`. Returns `precision`, `recall` and `f1` over all spikes, and the means of both distances.
    """
    matches = _matches(sums)
    return {
        "precision": precision(*matches),
        "recall": recall(*matches),
        "f1": f1(*matches),
        "van_rossum": sums["van_rossum"] / max(1, samples),
        "hamming": sums["hamming"] / max(1, samples),
    }


def _matches(sums: Mapping[str, float]) -> tuple[float, float, float]:
    return sums["matched"], sums["spikes"], sums["targets"]


@dataclass
class Sums:
    """Running sums over the samples of a part of the training, or of an evaluation."""

    batches: int = 0
    samples: int = 0
    loss: float = 0.0
    correct: int = 0
    correct_by_count: int = 0
    gradient_norm: float = 0.0
    largest_gradient_norm: float = 0.0
    seconds: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    sequence: dict[str, float] = field(default_factory=dict)
    """If labels are spike trains: `matched`, `spikes`, `targets`, and the distances `van_rossum` and `hamming`."""
    errors: dict[str, int] = field(default_factory=dict)
    """In `reproducible` precision, for each layer: number of errors that were non-zero before the error grid."""
    zeroed: dict[str, int] = field(default_factory=dict)
    """The number of those errors that were zero after the error grid."""
    penalties: dict[str, float] = field(default_factory=dict)
    """The rate penalty of each penalised layer, which is not in `loss`."""
    padded: float = 0.0
    """Amount of padding, in samples: for example 0.25 for a sample with 3 of 4 steps."""
    squared_error: float | None = None
    """If targets are real numbers: the mean squared errors of the samples."""

    def add(
        self,
        *,
        samples: int,
        loss: float,
        correct: int = 0,
        correct_by_count: int = 0,
        sequence: Mapping[str, float] | None = None,
        rates: Mapping[str, float],
        gradient_norm: float = 0.0,
        seconds: float = 0.0,
        zeroed: Mapping[str, ZeroedErrors] | None = None,
        penalties: Mapping[str, float] | None = None,
        padded: float = 0.0,
        squared_error: float | None = None,
    ) -> None:
        """Add a batch. `loss`, `rates` and `penalties` are means over it, all other values are sums."""
        self.batches += 1
        self.padded += padded
        self.samples += samples
        self.loss += loss * samples
        self.correct += correct
        self.correct_by_count += correct_by_count
        self.gradient_norm += gradient_norm
        self.largest_gradient_norm = max(self.largest_gradient_norm, gradient_norm)
        self.seconds += seconds
        if squared_error is not None:
            self.squared_error = (self.squared_error or 0.0) + squared_error
        for name, rate in rates.items():
            self.rates[name] = self.rates.get(name, 0.0) + rate * (samples - padded)
        for name, value in (sequence or {}).items():
            self.sequence[name] = self.sequence.get(name, 0.0) + value
        for name, counts in (zeroed or {}).items():
            self.errors[name] = self.errors.get(name, 0) + counts.nonzero
            self.zeroed[name] = self.zeroed.get(name, 0) + counts.zeroed
        for name, penalty in (penalties or {}).items():
            self.penalties[name] = self.penalties.get(name, 0.0) + penalty * samples

    @property
    def headline(self) -> tuple[Quality, float]:
        """The quality measure: accuracy; F1 of spike times if labels are spike trains; or the mean squared error, if
        targets are real numbers."""
        if self.squared_error is not None:
            return QUALITIES["mse"], self.squared_error / max(1, self.samples)
        if self.sequence:
            return QUALITIES["f1"], f1(*_matches(self.sequence))
        return QUALITIES["accuracy"], self.correct / max(1, self.samples)

    def means(self) -> dict[str, Any]:
        """Means over the samples: loss, rates, and accuracies (for spike trains: precision and so on, and distances;
        for real numbers: the mean squared error)."""
        n = max(1, self.samples)
        how_good: dict[str, float]
        if self.squared_error is not None:
            how_good = {"mse": self.squared_error / n}
        elif self.sequence:
            how_good = spike_figures(self.sequence, self.samples)
        else:
            how_good = {"accuracy": self.correct / n, "accuracy_spike_count": self.correct_by_count / n}
        return {
            "samples": self.samples,
            "loss": self.loss / n,
            **how_good,
            "rates": {name: self.rate(name) for name in self.rates},
        }

    def rate(self, name: str) -> float:
        """Mean spikes per neuron and step of a layer, without padded steps."""
        return self.rates[name] / max(1e-9, self.samples - self.padded)

    def zeroed_shares(self) -> dict[str, float]:
        """Share of each layer's non-zero errors that the error grid set to zero. Empty in `fast` precision."""
        return {name: ZeroedErrors(self.zeroed[name], errors).share for name, errors in self.errors.items()}

    def mean_penalties(self) -> dict[str, float]:
        """The rate penalty of each penalised layer: the mean over the batches, weighted by their samples."""
        return {name: penalty / max(1, self.samples) for name, penalty in self.penalties.items()}

    def training(self) -> dict[str, Any]:
        """The means, gradient norms and speed; in `reproducible` precision also the shares of zeroed errors; and rate
        penalties, if there are any."""
        return {
            **self.means(),
            **({"rate_penalty": penalties} if (penalties := self.mean_penalties()) else {}),
            **({"zeroed": shares} if (shares := self.zeroed_shares()) else {}),
            "gradient_norm": self.gradient_norm / max(1, self.batches),
            "largest_gradient_norm": self.largest_gradient_norm,
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(self.samples / self.seconds, 2) if self.seconds > 0 else None,
        }

    def to_json(self) -> dict[str, Any]:
        """All fields that are known. JSON keeps all bits of a float."""
        return {name: x for name, x in asdict(self).items() if x is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**values)


class Workload:
    """How long each of several processes worked, and waited in exchanges, during a part of the training."""

    def __init__(self, size: int) -> None:
        self.worked, self.waited = np.zeros(size), np.zeros(size)

    def add(self, worked: Float64, waited: Float64) -> None:
        """Add the seconds that each process worked and waited, `[size]`."""
        self.worked += worked
        self.waited += waited

    @property
    def slowest(self) -> int:
        """Rank of the process with the longest working time."""
        return int(self.worked.argmax())

    @property
    def share(self) -> float:
        """Share of the processes' time in exchanges, including waiting for other processes."""
        return float(self.waited.sum() / max(1e-9, (self.worked + self.waited).sum()))

    def figures(self) -> dict[str, Any]:
        """Values for a line of metrics. Empty for one process. If exchanges cannot be measured, only their number."""
        if len(self.worked) == 1:
            return {}
        if not self.waited.any():
            return {"processes": len(self.worked)}
        return {"processes": len(self.worked), "slowest_rank": self.slowest, "exchange_share": round(self.share, 4)}


_NAME = "metrics.jsonl"
_MAX_BYTES = GIGABYTE
_LONGEST_LINE = MEGABYTE
_MAX_CHECKED_BYTES = 64 * GIGABYTE
"""Largest size of a file of which only some lines are in memory at a time."""


def read_records(
    folder: Path, config: RunConfig, warn: Callable[[str], object] = lambda _: None
) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of a run. A last line that is still being written is left out, and damaged ones are.

    Args:
        folder: folder of the run.
        config: settings of the run.
        warn: function that is called if lines are damaged or lost, and if the last checkpoint is damaged, so that
            nothing says whether they belong to the run.

    Raises:
        CheckpointError: the file cannot be read, or is not that of the last checkpoint, or the settings are not.
    """
    path, entries, damaged = folder / _NAME, [], []
    if (folder / "last.json").exists():
        try:
            info = checkpoint.described(folder, "last")
        except CheckpointError as error:
            warn(f"{path} is not compared with the last checkpoint: {error}")
        else:
            checkpoint.check_of(config, info, folder, "last")
            saved = checkpoint.recorded_of(info, folder)
            check_records(saved, folder)
            if (size := path.stat().st_size if path.exists() else 0) < saved.metrics_bytes:
                warn(f"{path} lost lines: it has {size:,} of the {saved.metrics_bytes:,} bytes of the last checkpoint")
    try:
        with open_regular(path, _MAX_BYTES) as file:
            for number, line in enumerate(file, 1):
                try:
                    if len(line) > _LONGEST_LINE:
                        raise ValueError(f"it has {len(line):,} bytes")
                    entries.append(records.metrics_line(line))
                except ValueError as error:
                    if line.endswith(b"\n"):
                        damaged.append((number, records.reason(error)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if damaged:
        number, reason = damaged[0]
        warn(f"{path}: damaged lines are left out: {len(damaged)}, the first line {number}: {reason}")
    return entries


def check_records(saved: records.Recorded, folder: Path) -> None:
    """Check that `metrics.jsonl` in the folder of a run begins with the records of its checkpoint `last`.

    A file that is missing or empty is accepted, because such a run can continue. If the checkpoint has no SHA-256, a
    file that has lost its end is, too.

    Raises:
        CheckpointError: the file cannot be read, was edited, or is that of another run.
    """
    path = folder / _NAME
    try:
        with open_regular(path, _MAX_CHECKED_BYTES) as file:
            reason = _contradiction(saved, file)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if reason:
        raise CheckpointError(
            f"{path} does not fit the checkpoint {folder / 'last.json'}: {reason}. It was edited or damaged, or is "
            "that of another run. Put the file of this run back, or copy the run folder again if it is a copy; "
            f"otherwise move {_NAME} away, and the run goes on without its records"
        )


def _contradiction(saved: records.Recorded, file: BinaryIO) -> str:
    """What contradicts that a file begins with the records of a checkpoint; "" if nothing."""
    size, digest = saved.metrics_bytes, hashlib.sha256()
    if saved.metrics_sha256 is not None and os.fstat(file.fileno()).st_size > 0:
        remaining = size
        while remaining > 0 and (part := file.read(min(remaining, MEGABYTE))):
            digest.update(part)
            remaining -= len(part)
        if digest.hexdigest() != saved.metrics_sha256:
            return f"its first {size:,} bytes do not have the SHA-256 that the checkpoint says"
    file.seek(max(0, size - _LONGEST_LINE))
    preceding = file.read(min(size, _LONGEST_LINE))
    line = file.readline(_LONGEST_LINE)
    if line and preceding and not preceding.endswith(b"\n"):
        return f"metrics_bytes is {size}, which is within a line"
    while line:
        if (position := _line_position(line)) is not None and (
            position[0] < saved.step or (position[0] == saved.step and position[1] <= saved.epoch)
        ):
            return f"metrics_bytes is {size}, but update {position[0]} comes after it"
        line = file.readline(_LONGEST_LINE)
    position = _line_position(preceding[:-1].rpartition(b"\n")[2])
    return (
        f"metrics_bytes is {size}, but update {position[0]} comes before it"
        if position and position[0] > saved.step
        else ""
    )


def _line_position(line: bytes) -> tuple[int, int] | None:
    """Numbers of updates and epochs after which a line was written; None for a damaged line."""
    try:
        record = records.metrics_line(line)
    except ValueError:
        return None
    # A line of updates is written within its epoch.
    return record["step"], record["epoch"] - (record["kind"] == "step")


class MetricsFile:
    """Appends lines of JSON to a file. It never leaves an incomplete line, even if the disk is full.

    An existing file is replaced, so links to it still lead to the old content.

    Args:
        folder: folder of the file, which is checked before each line.
        kept_bytes: number of bytes (whole lines) to keep of an existing file; None: nothing.
        name: name of the file, which is made if it is missing.

    Raises:
        FileError: the file cannot be opened.
    """

    def __init__(self, folder: OpenFolder, kept_bytes: int | None = None, name: str = _NAME) -> None:
        self._folder = folder
        self.path = folder.path / name
        try:
            content = b""
            with contextlib.suppress(FileNotFoundError):
                content = folder.read(name, kept_bytes or 0)
            # If a file lost its end (or was edited), keep its complete lines.
            self.size = content.rfind(b"\n") + 1
            self.has_lost_lines = self.size != (kept_bytes or 0)
            self._digest = hashlib.sha256(content[: self.size])
            # A snapshot of the run may share the file by a link. So lines are only appended to a file of this start.
            folder.write(name, content[: self.size])
            self._file = folder.open(name, os.O_RDWR)
            self._file.seek(self.size)
            self._is_cut = False
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            FileError: the system refused. The file ends with the previous line.
        """
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        self._folder.check()
        # If another program cut the file, zeros take the place of what it cut, and the size is again as it was.
        self._is_cut |= os.fstat(self._file.fileno()).st_size < self.size
        try:
            unwritten = memoryview(data)
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
            with contextlib.suppress(OSError):
                self._file.close()
            raise _unwritable(self.path, error) from error
        self.size += len(data)
        self._digest.update(data)

    @property
    def sha256(self) -> str:
        """SHA-256 of all complete lines."""
        return self._digest.hexdigest()

    def sync(self) -> int:
        """Write everything to the disk. Returns the size in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self.size

    @property
    def is_kept(self) -> bool:
        """Whether the folder still has the file, with all lines and nothing else."""
        folder_status = self._folder.status(self.path.name)
        return (
            folder_status is not None
            and os.path.samestat(os.fstat(self._file.fileno()), folder_status)
            and self._is_complete
        )

    @property
    def _is_complete(self) -> bool:
        return not self._is_cut and os.fstat(self._file.fileno()).st_size == self.size

    def restore(self) -> bool:
        """Write all lines again if the file was removed. Returns whether it was, and is complete.

        Raises:
            FileError: the system refused.
        """
        if self._folder.status(self.path.name) is not None or not self._is_complete:
            return False
        self._file.seek(0)
        with self._folder.writer(self.path.name) as file:
            shutil.copyfileobj(self._file, file)
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unwritable(path: Path, error: OSError) -> FileError:
    return FileError(f"cannot write {path}: {error.strerror or error}; the checkpoints are untouched")
