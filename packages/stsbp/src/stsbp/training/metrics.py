"""What a run records: sums over samples, distances to the label sequences, and lines of JSON.

`metrics.jsonl` grows line by line. A checkpoint knows how long it was, and a resumed run cuts it back to there, so that
the file of an interrupted run ends up like that of an uninterrupted one (but for times).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from stsbp_spec.encoders import LabelCode
from stsbp_spec.grid import ZeroedErrors
from stsbp_spec.losses import CrossEntropy
from stsbp_spec.losses.base import Loss, joined
from stsbp_spec.metrics import f1, precision, recall
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import AnyArray, Float64, Int64, UInt8

from stsbp import records
from stsbp.errors import CheckpointError, FileError
from stsbp.files import GIGABYTE, MEGABYTE, OpenFolder, open_regular

__all__ = ["LabelDistances", "MetricsFile", "ReadoutDistances", "Sums", "Workload", "read_records", "spike_figures"]


class LabelDistances:
    """Distances `[B, K]` of output spike trains to the label sequence of every class.

    The same numbers as `stsbp_spec.decoders.distances`, up to rounding, at a cost that does not grow with the number of
    classes: a label code has two patterns, so each neuron is compared with both, and class `k` takes the desired
    pattern's distance at neuron `k` and the undesired one's everywhere else. Outputs begin with step `first` of the
    sequences.
    """

    def __init__(self, code: LabelCode, classes: int, steps: int, loss: Loss, psp: PSP, first: int = 0) -> None:
        # The patterns are the same whatever the number of classes, and K sequences of K neurons are many.
        self._patterns = code.sequences(2, steps, first)[0, :, :, None, None]
        self._loss = loss
        self._psp = psp

    def __call__(self, spikes: AnyArray, lengths: Int64 | None = None) -> Float64:
        """Distances of outputs `[T, B, N]`, without the padded steps of samples of `lengths` `[B]`."""
        return self._distances(spikes, self._parts(spikes, lengths), lengths)

    def with_loss(
        self, spikes: AnyArray, targets: UInt8, labels: Int64, lengths: Int64 | None = None
    ) -> tuple[Float64, Float64]:
        """The same, and the loss of each sample, `[B]`: `Loss.distances` of its outputs and its targets `[T, B, N]`.

        Where the loss runs a filter over the outputs, it runs once for all of this.
        """
        parts = self._parts(spikes, lengths)
        if parts is None:
            losses = self._loss.distances(spikes, targets, self._psp, lengths)
            return self._distances(spikes, None, lengths), losses
        labelled = labels[:, None] == np.arange(spikes.shape[-1])
        own = np.where(labelled, parts[:, 0], parts[:, 1])
        return self._distances(spikes, parts, lengths), joined(own)

    def _parts(self, spikes: UInt8, lengths: Int64 | None) -> Float64 | None:
        """`Loss.parts` of each neuron's output and either pattern, `[T, 2, B, N]`."""
        return self._loss.parts(spikes[:, None], self._patterns, self._psp, lengths)

    def _distances(self, spikes: UInt8, parts: Float64 | None, lengths: Int64 | None) -> Float64:
        if parts is None:
            # One neuron at a time: [T, 2, B, N, 1] has patterns and neurons as batch axes.
            each = None if lengths is None else lengths[:, None]
            alone = self._loss.distances(spikes[:, None, ..., None], self._patterns[..., None], self._psp, each)
        else:
            alone = parts.sum(axis=0)
        desired, undesired = alone
        distances: Float64 = undesired.sum(axis=1, keepdims=True) + (desired - undesired)
        return distances


class ReadoutDistances:
    """Losses `[B, K]` that potentials of a readout would have for each class, in the place of `LabelDistances`."""

    def __init__(self, loss: CrossEntropy) -> None:
        self._loss = loss

    def __call__(self, potentials: AnyArray, lengths: Int64 | None = None) -> Float64:
        """Of potentials `[T, B, N]`, without the padded steps of samples of `lengths` `[B]`."""
        return self._loss.of_classes(potentials, lengths)

    def with_loss(
        self, potentials: AnyArray, targets: UInt8, labels: Int64, lengths: Int64 | None = None
    ) -> tuple[Float64, Float64]:
        """The same, and those of each sample's own class, `[B]`."""
        found = self(potentials, lengths)
        return found, np.take_along_axis(found, labels[:, None], axis=1)[:, 0]


def spike_figures(sums: Mapping[str, float], samples: int) -> dict[str, float]:
    """How well outputs follow target spike trains, from sums over so many samples.

    `sums` has `matched`, `spikes` and `targets` (`stsbp_spec.metrics.SpikeMatches`) and the distances `van_rossum` and
    `hamming`. Returns `precision`, `recall` and `f1` of all spikes together, and the means of both distances.
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
    """Running sums over the samples of a stretch of training (or of an evaluation)."""

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
    """Where labels are spike trains: `matched`, `spikes`, `targets`, and the distances `van_rossum` and `hamming`."""
    errors: dict[str, int] = field(default_factory=dict)
    """In `reproducible` precision, of each layer: errors before the error grid that were not zero ..."""
    zeroed: dict[str, int] = field(default_factory=dict)
    """... and those of them that were zero after it."""
    padded: float = 0.0
    """Of samples of different lengths, what of them was padding: 0.25 for one of 3 of 4 steps."""

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
        padded: float = 0.0,
    ) -> None:
        """Add a batch; `loss` and `rates` are its means, the rest its sums."""
        self.batches += 1
        self.padded += padded
        self.samples += samples
        self.loss += loss * samples
        self.correct += correct
        self.correct_by_count += correct_by_count
        self.gradient_norm += gradient_norm
        self.largest_gradient_norm = max(self.largest_gradient_norm, gradient_norm)
        self.seconds += seconds
        for name, rate in rates.items():
            self.rates[name] = self.rates.get(name, 0.0) + rate * (samples - padded)
        for name, value in (sequence or {}).items():
            self.sequence[name] = self.sequence.get(name, 0.0) + value
        for name, counts in (zeroed or {}).items():
            self.errors[name] = self.errors.get(name, 0) + counts.nonzero
            self.zeroed[name] = self.zeroed.get(name, 0) + counts.zeroed

    @property
    def headline(self) -> tuple[str, float]:
        """The figure that says how good it is: `accuracy`, or `f1` of spike times where labels are spike trains."""
        if self.sequence:
            return "f1", f1(*_matches(self.sequence))
        return "accuracy", self.correct / max(1, self.samples)

    def means(self) -> dict[str, Any]:
        """Loss, accuracies (of spike trains: precision and so on, and distances) and rates, means over the samples."""
        n = max(1, self.samples)
        if self.sequence:
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
        """Share of each layer's non-zero errors that the error grid zeroed; empty in `fast` precision."""
        return {name: ZeroedErrors(self.zeroed[name], errors).share for name, errors in self.errors.items()}

    def training(self) -> dict[str, Any]:
        """The means, gradient norms and speed; in `reproducible` precision what the error grid zeroed."""
        return {
            **self.means(),
            **({"zeroed": shares} if (shares := self.zeroed_shares()) else {}),
            "gradient_norm": self.gradient_norm / max(1, self.batches),
            "largest_gradient_norm": self.largest_gradient_norm,
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(self.samples / self.seconds, 2) if self.seconds > 0 else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Every field; JSON keeps all bits of a float."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**values)


class Workload:
    """How long each of several processes worked, and waited in exchanges, over a stretch of training."""

    def __init__(self, size: int) -> None:
        self.worked, self.waited = np.zeros(size), np.zeros(size)

    def add(self, worked: Float64, waited: Float64) -> None:
        """Seconds that each process worked and waited, `[size]`."""
        self.worked += worked
        self.waited += waited

    @property
    def slowest(self) -> int:
        """Rank of the process that worked longest."""
        return int(self.worked.argmax())

    @property
    def share(self) -> float:
        """Share of the processes' time that goes into exchanges, waiting for others included."""
        return float(self.waited.sum() / max(1e-9, (self.worked + self.waited).sum()))

    def figures(self) -> dict[str, Any]:
        """As a part of a line of metrics; empty for one process, only their number where exchanges are not seen."""
        if len(self.worked) == 1:
            return {}
        if not self.waited.any():
            return {"processes": len(self.worked)}
        return {"processes": len(self.worked), "slowest_rank": self.slowest, "exchange_share": round(self.share, 4)}


_MOST = GIGABYTE
_LONGEST_LINE = MEGABYTE


def read_records(path: Path, warn: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that is still being written is left out, as are damaged ones.

    Args:
        path: of the file.
        warn: told once if lines are damaged.

    Raises:
        CheckpointError: the file cannot be read.
    """
    found, damaged = [], []
    try:
        with open_regular(path, _MOST) as file:
            for number, line in enumerate(file, 1):
                try:
                    if len(line) > _LONGEST_LINE:
                        raise ValueError(f"it has {len(line):,} bytes")
                    found.append(records.metrics_line(line))
                except ValueError as error:
                    if line.endswith(b"\n"):
                        damaged.append((number, records.why(error)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if damaged and warn is not None:
        number, why = damaged[0]
        warn(f"{path}: damaged lines are left out: {len(damaged)}, the first line {number}: {why}")
    return found


class MetricsFile:
    """Appends lines of JSON to a file, and never leaves half a line behind when the disk is full.

    Args:
        folder: where the file is, checked before each line.
        keep: cut an existing file to this many bytes first (whole lines; None: to nothing).
        name: of the file, made where missing.

    Raises:
        FileError: the file cannot be opened.
    """

    def __init__(self, folder: OpenFolder, keep: int | None = None, name: str = "metrics.jsonl") -> None:
        self._folder = folder
        self.path = folder.path / name
        try:
            folder.check()
            self._file = folder.open(name, os.O_RDWR | os.O_CREAT)
            # Never asks for more than there is: a number from a file may be any.
            with open(self._file.fileno(), "rb", closefd=False) as whole:
                content = whole.read(min(keep or 0, os.fstat(whole.fileno()).st_size))
            # A file that lost its end (or was edited) keeps its whole lines.
            self.size = content.rfind(b"\n") + 1
            self.short = self.size != (keep or 0)
            self._file.truncate(self.size)
            self._file.seek(self.size)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            FileError: the system refused; the file ends with the line before.
        """
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        self._folder.check()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
            with contextlib.suppress(OSError):
                self._file.close()
            raise _unwritable(self.path, error) from error
        self.size += len(data)

    def sync(self) -> int:
        """Bring everything to the disk and return the size in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self.size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unwritable(path: Path, error: OSError) -> FileError:
    return FileError(f"cannot write {path}: {error.strerror or error}; the checkpoints are untouched")
