"""Measures of spike times as rows of text, from their record (`stsbp.training.timing.SpikeTiming.record`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stsbp.measures.matching import within
from stsbp.training.build import TOLERANCE

__all__ = [
    "chance_f1",
    "chance_text",
    "latency_text",
    "mean_text",
    "measure_rows",
    "reference_tolerance",
    "share_rows",
    "timing_text",
]


def chance_f1(measures: Mapping[str, Any], tolerance: int = TOLERANCE) -> float | None:
    """F1 by chance within a tolerance. None if it was not measured."""
    chance = measures["chance"]
    if chance is None or tolerance not in chance["tolerances"]:
        return None
    share: float = chance["f1"][chance["tolerances"].index(tolerance)]
    return share


def reference_tolerance(tolerances: Sequence[int]) -> int:
    """The index of the tolerance of 1 step, or of the next larger one, or of the largest."""
    return next((i for i, tolerance in enumerate(tolerances) if tolerance >= TOLERANCE), len(tolerances) - 1)


def chance_text(measures: Mapping[str, Any]) -> str:
    """What the chance level is, in a sentence."""
    chance = measures["chance"]
    if chance is None:
        return "There is no chance level, because there is only one sample."
    return f"By chance: for the targets of other samples, shuffled with seed {chance['seed']}."


def share_rows(measures: Mapping[str, Any]) -> list[list[str]]:
    """A row for each tolerance. For the chance level of precision and recall, people may look into the JSON."""
    chance = measures["chance"]
    rows = [["spike times", "precision", "recall", "F1", *([] if chance is None else ["F1 by chance"]), ""]]
    for index, tolerance in enumerate(measures["tolerances"]):
        shares = [measures[name][index] for name in ("precision", "recall", "f1")]
        shares += [] if chance is None else [chance["f1"][index]]
        rows.append([within(tolerance), *(f"{share:.2%}" for share in shares), ""])
    return rows


def measure_rows(measures: Mapping[str, Any], means: Mapping[str, Any]) -> list[list[str]]:
    """A row for each other measure: its name, its value, its chance level, and what it is.

    `means` may have accuracies, which get rows too.
    """
    chance = measures["chance"]
    rows = [["measure", "value", *([] if chance is None else ["by chance"]), ""]]
    errors, latency, cost = measures["timing_error"], measures["latency"], measures["victor_purpura"]["cost"]
    matches_text = f"steps, median (quartiles) of {errors['pairs']:,} matches {within(errors['tolerance'])}"
    neuron_text = "of the neuron of the class" if latency["of"] == "class neuron" else within(latency["tolerance"])
    missing_text = f"none in {_missing(measures)} of the samples"
    missing_text += "" if chance is None else f", by chance in {_missing(chance)}"
    for name, text, key, note in (
        ("timing error", timing_text, "timing_error", matches_text),
        ("first right spike", latency_text, "latency", f"step, median (quartiles), {neuron_text}; {missing_text}"),
        ("Victor-Purpura", mean_text, "victor_purpura", f"a sample, cost {cost:g} a step"),
        ("van Rossum", mean_text, "van_rossum", f"a sample, time constant {measures['van_rossum']['tau']:g} steps"),
    ):
        rows.append([name, text(measures[key]), *([] if chance is None else [text(chance[key])]), note])
    rows.append(["Hamming", *(f"{x['hamming']:.4f}" for x in (measures, chance) if x is not None), "a sample"])
    for key in ("accuracy", "accuracy_spike_count"):
        if chance is not None and key in chance and key in means:
            rows.append([key.replace("_", " "), f"{means[key]:.2%}", f"{chance[key]:.2%}", ""])
    return rows


def _missing(measures: Mapping[str, Any]) -> str:
    """Share of the samples without a right spike."""
    return f"{measures['latency']['missing'] / max(1, measures['samples']):.1%}"


def timing_text(record: Mapping[str, Any]) -> str:
    """Median and quartiles of signed timing errors in steps: `+1 (0 to +2)`."""
    return _with_quartiles(record, lambda steps: f"{steps:+d}" if steps else "0")


def latency_text(record: Mapping[str, Any]) -> str:
    """Median and quartiles of the latency in steps: `5 (4 to 8)`."""
    return _with_quartiles(record, str)


def _with_quartiles(record: Mapping[str, Any], text: Callable[[int], str]) -> str:
    if record["median"] is None:
        return "-"
    low, high = record["quartiles"]
    return f"{text(record['median'])} ({text(low)} to {text(high)})"


def mean_text(record: Mapping[str, Any]) -> str:
    """Mean of a distance over the samples."""
    return f"{record['mean']:.4f}"
