"""Measures of spike times: how well output spikes follow target spikes, and what chance alone would give. For outputs
and targets that are real numbers, `regression_errors`.

All other functions take spike trains `[T, B, N]` of 0 and 1: numpy arrays, or tensors of torch or JAX, on any device.
With `lengths` `[B]`, the later steps of a sample are ignored. Everything is computed with numpy on the CPU, from
integers where possible, so results do not depend on the backend, on the order of samples or on the size of batches.

    import stsbp.measures as measures

    measures.precision_recall_f1(outputs, targets, tolerances=(0, 1, 2, 5)).f1
    measures.chance_level(measures.victor_purpura, outputs, targets, cost=0.5).mean()
"""

from __future__ import annotations

from stsbp.measures.chance import chance_level, partners
from stsbp.measures.distances import van_rossum, victor_purpura
from stsbp.measures.latency import first_match_latency, first_spike_latency
from stsbp.measures.matching import (
    TOLERANCES,
    Matches,
    PrecisionRecallF1,
    TimingErrors,
    precision_recall_f1,
    spike_matches,
    timing_errors,
)
from stsbp.measures.regression import RegressionErrors, RegressionTotals, regression_errors
from stsbp.measures.totals import SpikeMeasures

__all__ = [
    "TOLERANCES",
    "Matches",
    "PrecisionRecallF1",
    "RegressionErrors",
    "RegressionTotals",
    "SpikeMeasures",
    "TimingErrors",
    "chance_level",
    "first_match_latency",
    "first_spike_latency",
    "partners",
    "precision_recall_f1",
    "regression_errors",
    "spike_matches",
    "timing_errors",
    "van_rossum",
    "victor_purpura",
]
