"""The section of a report on spike times: F1 against the tolerance, timing errors, output neurons, chance levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stsbp.measures.matching import within
from stsbp.report import svg
from stsbp.report.svg import Figure, Series
from stsbp.training.timing_text import reference_tolerance

__all__ = ["spike_time_figures"]

_MANY = 16
"""Number of output neurons that are drawn."""


def spike_time_figures(measures: Mapping[str, Any], by_neuron: Mapping[str, Any]) -> list[Figure]:
    """The drawings of measures (`stsbp.training.timing.SpikeTiming`).

    Args:
        measures: result of `SpikeTiming.record`.
        by_neuron: result of `SpikeTiming.record_by_neuron`.
    """
    return [_against_tolerance(measures), *_histogram(measures), *_by_neuron(measures, by_neuron)]


def _against_tolerance(measures: Mapping[str, Any]) -> Figure:
    tolerances, chance = measures["tolerances"], measures["chance"]
    series = [
        Series(name, tolerances, measures[key])
        for name, key in (("F1", "f1"), ("precision", "precision"), ("recall", "recall"))
    ]
    series += [] if chance is None else [Series("F1 by chance", tolerances, chance["f1"])]
    chart = svg.lines("precision, recall and F1", "tolerance, steps", series, percent=True)
    return Figure("F1 of spike times within so many steps", chart, svg.legend(series))


def _histogram(measures: Mapping[str, Any]) -> list[Figure]:
    errors, chance = measures["timing_error"], measures["chance"]
    if not errors["pairs"]:
        return []
    chance_counts = None if chance is None or not chance["timing_error"]["pairs"] else chance["timing_error"]
    first, last = _drawn(errors["histogram"])
    chart = svg.histogram(
        "timing errors",
        "output spike too early (below 0) or too late, steps",
        errors["errors"][first:last],
        _shares(errors, first, last),
        None if chance_counts is None else _shares(chance_counts, first, last),
    )
    caption = f"Timing errors of {errors['pairs']:,} matches {within(errors['tolerance'])}"
    return [Figure(caption + ("" if chance_counts is None else "; outlined: by chance"), chart)]


def _drawn(histogram: Sequence[int]) -> tuple[int, int]:
    """The part of a histogram that is drawn: all of a short one, else what is around its middle and not empty."""
    middle = len(histogram) // 2
    farthest = max(abs(index - middle) for index, count in enumerate(histogram) if count)
    reach = min(middle, max(farthest, 5), 40)
    return middle - reach, middle + reach + 1


def _shares(record: Mapping[str, Any], first: int, last: int) -> list[float]:
    return [count / record["pairs"] for count in record["histogram"][first:last]]


def _by_neuron(measures: Mapping[str, Any], by_neuron: Mapping[str, Any]) -> list[Figure]:
    """F1 of each output neuron; of many, those with the lowest F1."""
    if len(by_neuron["neurons"]) < 2:
        return []
    index = reference_tolerance(measures["tolerances"])
    shares = np.array(by_neuron["f1"][index])
    shown = np.sort(np.argsort(shares, kind="stable")[:_MANY])
    chance = by_neuron["chance"]
    by_chance = [""] * len(shares) if chance is None else [f" ({share:.0%})" for share in chance["f1"][index]]
    chart = svg.bars(
        shares[shown],
        [by_neuron["neurons"][number] + by_chance[number] for number in shown],
        range(len(shown)),
        label="F1 of output neurons",
        percent=True,
        largest=1.0,
    )
    neurons_text = "each output neuron" if len(shown) == len(shares) else f"the {_MANY} output neurons with the lowest"
    caption = f"F1 {within(measures['tolerances'][index])} of {neurons_text}"
    return [Figure(caption + ("" if chance is None else "; in brackets: by chance"), chart)]
