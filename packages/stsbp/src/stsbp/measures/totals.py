"""Measures over many batches: sums of integers and distances of samples, so that no spike trains are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from stsbp_spec.errors import SpecError
from stsbp_spec.typing import AnyArray, Float64, Int64

from stsbp.measures.distances import check_cost, van_rossum, victor_purpura
from stsbp.measures.latency import first_match_latency, first_spike_latency
from stsbp.measures.matching import (
    TOLERANCES,
    Matches,
    PrecisionRecallF1,
    TimingErrors,
    check_tolerances,
    quantile,
    spike_matches,
    timing_errors,
)
from stsbp.measures.trains import read_trains

__all__ = ["LATENCY_TOLERANCE", "SpikeMeasures"]

_ENOUGH_ROWS = 4096
"""Number of spike trains from which on waiting batches are measured."""
LATENCY_TOLERANCE = 1
"""Tolerance in steps of the first right spike, if targets are spike trains without classes."""


class SpikeMeasures:
    """All measures of the samples that were added, batch by batch. The results do not depend on the batches.

    Sums are those of integers, and the distances of samples are added exactly. Some numbers are kept for each neuron,
    and two for each sample. The spike trains of small batches wait until there are at least 4,096 of them.

    Args:
        tolerances: tolerances in steps. Timing errors are those at the largest one.
        cost: cost of moving a spike by one step (`victor_purpura`).
        tau: time constant of the van Rossum distance in steps. None: it is left out.

    Raises:
        SpecError: an argument is not in its range.
    """

    def __init__(
        self, tolerances: Sequence[int] | int = TOLERANCES, cost: float = 1.0, tau: float | None = None
    ) -> None:
        self.tolerances, self.cost, self.tau = check_tolerances(tolerances), check_cost(cost), tau
        self.samples = 0
        self._of_classes = False
        self._pending: list[tuple[AnyArray, AnyArray]] = []
        """Outputs and targets of small batches, bool `[T, B, N]`. Many samples together are measured faster."""
        self._pending_rows = 0
        self._shape: tuple[int, int] | None = None
        self._matches: Matches | None = None
        self._errors: TimingErrors | None = None
        self._victor_purpura: list[float] = []
        self._van_rossum: list[float] = []
        self._latencies: Int64 = np.zeros(1, dtype=np.int64)
        """Number of samples by the step of the first right spike. Place 0: there is none."""

    def add(self, outputs: Any, targets: Any, lengths: Any = None, labels: Any = None) -> None:
        """Add the samples of a batch.

        Args:
            outputs, targets: spike trains, `[T, B, N]`. T and N are those of the other batches.
            lengths: number of steps of each sample, `[B]`. None: all steps count.
            labels: the class of each sample, the number of its output neuron, `[B]`. The first right spike is then the
                first one of this neuron. None: it is the first that matches a target spike.

        Raises:
            ShapeError: the arrays do not fit each other.
            SpecError: the batch has other axes than the batches before.
        """
        output_trains, target_trains = read_trains(outputs, targets, lengths)
        steps, samples, neurons = output_trains.shape
        if self._shape is not None and self._shape != (steps, neurons):
            raise SpecError(
                f"all batches of a measurement must have the same number of steps and neurons, {self._shape}, got "
                f"{(steps, neurons)}"
            )
        if labels is None:
            latencies = first_match_latency(output_trains, target_trains, LATENCY_TOLERANCE)
        else:
            latencies = first_spike_latency(output_trains, labels)
        self._add_latencies(latencies)
        self._shape, self._of_classes = (steps, neurons), labels is not None
        self.samples += samples
        if self.tau is not None:
            self._van_rossum += _of_samples(van_rossum(outputs, targets, self.tau, lengths))
        self._pending.append((output_trains, target_trains))
        self._pending_rows += samples * neurons
        if self._pending_rows >= _ENOUGH_ROWS:
            self.finish()

    def finish(self) -> None:
        """Measure the batches that still wait. All results do this by themselves."""
        if not self._pending:
            return
        output_trains, target_trains = (np.concatenate(trains, axis=1) for trains in zip(*self._pending, strict=True))
        self._pending.clear()
        self._pending_rows = 0
        matches = spike_matches(output_trains, target_trains, self.tolerances)
        summed = Matches(
            matches.tolerances, matches.matched.sum(axis=1), matches.outputs.sum(axis=0), matches.targets.sum(axis=0)
        )
        errors = timing_errors(output_trains, target_trains, self.tolerances[-1])
        self._matches = summed if self._matches is None else _sum_of(self._matches, summed)
        self._errors = errors if self._errors is None else _errors_of(self._errors, errors)
        self._victor_purpura += _of_samples(victor_purpura(output_trains, target_trains, self.cost))

    def _add_latencies(self, latencies: Float64) -> None:
        counts = np.bincount(np.nan_to_num(latencies).astype(np.int64))
        extended = np.zeros(max(len(counts), len(self._latencies)), dtype=np.int64)
        extended[: len(self._latencies)] += self._latencies
        extended[: len(counts)] += counts
        self._latencies = extended

    @property
    def matches(self) -> Matches:
        """Numbers of matches `[K, N]` and of spikes `[N]` of each neuron. Raises `SpecError` before the first batch."""
        self.finish()
        if self._matches is None:
            raise SpecError("nothing was measured yet; add a batch first")
        return self._matches

    @property
    def timing_errors(self) -> TimingErrors:
        """Signed timing errors at the largest tolerance. Raises `SpecError` before the first batch."""
        self.finish()
        if self._errors is None:
            raise SpecError("nothing was measured yet; add a batch first")
        return self._errors

    @property
    def latency(self) -> tuple[int | None, tuple[int, int] | None, int]:
        """Latency of the first right spike in steps: median, quartiles, and the number of samples without such a spike.

        The first two are None if no sample has one.
        """
        counts = self._latencies[1:]
        low, median, high = (quantile(counts, quarters) for quarters in (1, 2, 3))
        missing = int(self._latencies[0])
        if low is None or median is None or high is None:
            return None, None, missing
        return median + 1, (low + 1, high + 1), missing

    def precision_recall_f1(self, *, by_neuron: bool = False) -> PrecisionRecallF1:
        """The shares at each tolerance, `[K]`, or those of each neuron, `[K, N]`."""
        tolerances, matched, outputs, targets = self.matches
        if not by_neuron:
            matched, outputs, targets = (x.sum(axis=-1) for x in (matched, outputs, targets))
        return PrecisionRecallF1.of(tolerances, matched, outputs, targets)

    def record(self) -> dict[str, Any]:
        """All measures with their parameters, as JSON values. Distances are means over the samples."""
        shares, errors = self.precision_recall_f1(), self.timing_errors
        median, quartiles, missing = self.latency
        record: dict[str, Any] = {
            "samples": self.samples,
            "tolerances": list(shares.tolerances),
            "precision": shares.precision.tolist(),
            "recall": shares.recall.tolist(),
            "f1": shares.f1.tolist(),
            "timing_error": {
                "tolerance": errors.tolerance,
                "pairs": errors.pairs,
                "median": errors.median,
                "quartiles": None if errors.quartiles is None else list(errors.quartiles),
                "errors": errors.errors.tolist(),
                "histogram": errors.histogram.tolist(),
            },
            "victor_purpura": {"cost": self.cost, "mean": math.fsum(self._victor_purpura) / max(1, self.samples)},
            "latency": {
                "of": "class neuron" if self._of_classes else "matched spike",
                "tolerance": None if self._of_classes else LATENCY_TOLERANCE,
                "median": median,
                "quartiles": None if quartiles is None else list(quartiles),
                "missing": missing,
            },
        }
        if self.tau is not None:
            record["van_rossum"] = {"tau": self.tau, "mean": math.fsum(self._van_rossum) / max(1, self.samples)}
        return record

    def record_by_neuron(self) -> dict[str, Any]:
        """Numbers of spikes of each neuron and its shares at each tolerance, as JSON values."""
        shares, matches = self.precision_recall_f1(by_neuron=True), self.matches
        counts = self.timing_errors.counts
        medians = [TimingErrors(self.tolerances[-1], row[None]).median for row in counts]
        return {
            "outputs": matches.outputs.tolist(),
            "targets": matches.targets.tolist(),
            "precision": shares.precision.tolist(),
            "recall": shares.recall.tolist(),
            "f1": shares.f1.tolist(),
            "median_timing_error": medians,
        }


def _of_samples(distances: Float64) -> list[float]:
    """Distance of each sample, the sum over its neurons, rounded once."""
    return [math.fsum(row) for row in distances.tolist()]


def _sum_of(first: Matches, second: Matches) -> Matches:
    return Matches(
        first.tolerances, first.matched + second.matched, first.outputs + second.outputs, first.targets + second.targets
    )


def _errors_of(first: TimingErrors, second: TimingErrors) -> TimingErrors:
    return TimingErrors(first.tolerance, first.counts + second.counts)
