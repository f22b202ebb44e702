"""Measures of spike times as text, from their record (`stsbp.training.timing.SpikeTiming.record`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from stsbp_spec.validation import shown

from stsbp.measures.matching import TOLERANCES, within
from stsbp.training.timing_text import chance_text, measure_rows, reference_tolerance, share_rows

__all__ = ["Tolerances", "spike_times_text"]

_MOST_TOLERANCES = 20


class Tolerances(click.ParamType[tuple[int, ...]]):
    """Numbers of steps, separated by commas: `0,1,2,5`."""

    name = "K,K,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, ascending and without repetitions."""
        if not isinstance(value, str):
            return tuple(value)
        words = value.split(",")
        if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in map(str.strip, words)):
            example = ",".join(map(str, TOLERANCES))
            self.fail(f"{shown(value)} is not a list of numbers of steps below 10^9, such as {example}", param, ctx)
        if len(words) > _MOST_TOLERANCES:
            self.fail(f"there are {len(words)} tolerances; give at most {_MOST_TOLERANCES}", param, ctx)
        return tuple(sorted({int(word) for word in words}))


def spike_times_text(means: Mapping[str, Any], by_neuron: Mapping[str, Any]) -> list[str]:
    """Lines of text: shares at each tolerance, then the other measures, each beside its chance level.

    Args:
        means: results of an evaluation (`Evaluation.means`) with `measures`.
        by_neuron: measures of each output neuron (`SpikeTiming.record_by_neuron`).
    """
    measures = means["measures"]
    text_lines = [*_aligned(share_rows(measures)), *_aligned(measure_rows(measures, means))]
    if len(by_neuron["neurons"]) > 1:
        text_lines.append(_extremes(measures["tolerances"], by_neuron))
    return [*text_lines, chance_text(measures)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines. The first and the last column begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    outer_columns = (0, len(widths) - 1)
    return [
        "  ".join(
            cell.ljust(width) if index in outer_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _extremes(tolerances: Sequence[int], by_neuron: Mapping[str, Any]) -> str:
    """The output neurons with the lowest and the highest F1, at the tolerance of 1 step or the next larger one."""
    index = reference_tolerance(tolerances)
    shares, names, chance = by_neuron["f1"][index], by_neuron["neurons"], by_neuron["chance"]
    ranked = sorted(range(len(names)), key=lambda number: shares[number])
    texts = [
        f"{shares[number]:.2%} ({names[number]}"
        + ("" if chance is None else f", by chance {chance['f1'][index][number]:.2%}")
        + ")"
        for number in (ranked[0], ranked[-1])
    ]
    return f"F1 {within(tolerances[index])} by neuron: {' to '.join(texts)}"
