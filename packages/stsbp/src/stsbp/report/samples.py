"""Samples on a page: the input, the output over the target, distances, potentials, and an explanation of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.models.decoders import equally_near
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float64

from stsbp.measures.matching import within
from stsbp.report import svg
from stsbp.report.collect import Sample
from stsbp.report.svg import Figure, Series
from stsbp.training.build import TOLERANCE

__all__ = ["Samples", "samples_section"]

_MANY = 16
"""Number of distances that are drawn."""


class Card(NamedTuple):
    """A sample on the page."""

    heading: str
    story: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Samples:
    """A section of a page with samples (templates/samples.html).

    Attributes:
        title: heading of the section.
        cards: the samples.
        threshold: threshold of the output neurons; None for a readout.
        labelled: whether the targets are known.
        of_classes: whether the labels are classes.
    """

    title: str
    cards: Sequence[Card]
    threshold: float | None
    labelled: bool
    of_classes: bool


def samples_section(
    title: str, samples: Sequence[Sample], names: Sequence[str], network: NetworkSpec, *, of_classes: bool
) -> Samples:
    """The section for some samples.

    Args:
        title: heading of the section.
        samples: the samples. All or none have targets.
        names: names of the output neurons.
        network: the network that read the samples.
        of_classes: whether the labels are classes.
    """
    threshold = None if network.has_readout else network.blocks[-1].neuron.threshold
    cards = [_card(sample, names, threshold) for sample in samples]
    return Samples(title, cards, threshold, any(sample.targets is not None for sample in samples), of_classes)


def _card(sample: Sample, names: Sequence[str], threshold: float | None) -> Card:
    targets: AnyArray = np.zeros_like(sample.outputs) if sample.targets is None else sample.targets
    is_real = targets.dtype == np.float32
    heading, story = (_story if threshold is not None else _readout_story)(sample, names)
    strong = [i for i in (sample.label, sample.nearest) if i is not None]
    figures = [_input(sample)]
    if sample.distances is not None and sample.nearest is not None:
        pale = [] if sample.label is None else [sample.label]
        shown, caption = _drawn_classes(sample.distances, [sample.nearest, *pale])
        chart = svg.bars(
            sample.distances[shown],
            [names[i] for i in shown],
            [shown.index(sample.nearest)],
            [shown.index(i) for i in pale],
        )
        figures.append(Figure(caption if threshold is not None else "Loss of each class", chart))
    if threshold is not None:
        drawn = "Output over target" if sample.targets is not None else "Output spikes"
        figures.append(Figure(f"{drawn}, by step", svg.raster(sample.outputs, targets, names, strong)))
    neurons = _neurons(sample, targets)
    drawing = svg.traces(
        sample.potentials[:, neurons],
        sample.outputs[:, neurons],
        threshold,
        [names[i] for i in neurons],
        [_colour(sample, i) for i in neurons],
        targets[:, neurons] if is_real else None,
    )
    caption = "Outputs over targets, by step" if is_real else "Membrane potentials of output neurons, by step"
    figures.append(Figure(caption, drawing))
    return Card(heading, story, figures)


def _colour(sample: Sample, neuron: int) -> str:
    """Colour of a neuron's trace: the same as for the distances, if the answer and the true class have colours."""
    if neuron == sample.nearest or sample.distances is None:
        return "var(--c0)"
    return "var(--target)" if neuron == sample.label else "var(--muted)"


def _drawn_classes(distances: Float64, required: Sequence[int]) -> tuple[list[int], str]:
    """Classes whose distances are drawn, and a caption: all if they are few, else the nearest ones and `required`."""
    if len(distances) <= _MANY:
        return list(range(len(distances))), "Distance to each label sequence"
    nearest_classes = [int(i) for i in np.argsort(distances, kind="stable")[:_MANY]]
    return sorted({*nearest_classes, *required}), f"Distance to the nearest of {len(distances)} label sequences"


def _neurons(sample: Sample, targets: Any) -> list[int]:
    """Output neurons to draw: those of the true, the nearest and the second nearest class; else those with most
    errors."""
    if sample.distances is None:
        if targets.dtype == np.float32:
            wrong = -np.abs(sample.potentials - targets).sum(axis=0, dtype=np.float64)
        elif sample.targets is None:
            wrong = -sample.outputs.sum(axis=0, dtype=np.int64)
        else:
            wrong = -(sample.outputs != targets).sum(axis=0, dtype=np.int64)
        return [int(i) for i in np.argsort(wrong, kind="stable")[:4]]
    nearest_classes = [int(i) for i in np.argsort(sample.distances, kind="stable")[:2]]
    first = [i for i in (sample.label, sample.nearest) if i is not None]
    return list(dict.fromkeys([*first, *nearest_classes]))[:3]


def _story(sample: Sample, names: Sequence[str]) -> tuple[str, str]:
    """A heading, and an explanation of the network's answer for the sample."""
    counts = sample.outputs.sum(axis=0, dtype=np.int64)
    if sample.nearest is None or sample.distances is None:
        text = f"{int(counts.sum())} output spikes"
        if sample.targets is not None:
            text += f", {int(sample.targets.sum())} target spikes"
        score = "" if sample.score is None else f": F1 {sample.score:.1%} {within(TOLERANCE)}"
        return f"{sample.name}{score}", text + "."
    distances, answer = sample.distances, sample.nearest
    if sample.label is None:
        second = int(np.argsort(distances, kind="stable")[1]) if len(distances) > 1 else answer
        text = (
            f"The nearest label sequence is that of {names[answer]}, at {distances[answer]:.4g}; next is "
            f"{names[second]}, at {distances[second]:.4g}."
        )
        return f"{sample.name}: {names[answer]}", text + _tie(distances)
    label = sample.label
    text = f"The neuron of {names[label]} spikes {_times(counts[label])}"
    if sample.targets is not None:
        text += f" ({int(sample.targets[:, label].sum())} wanted)"
    if label == answer:
        text += f"; distance {distances[label]:.4g}."
        return f"{sample.name}: {names[label]}, read right", text + _tie(distances)
    text += f", the neuron of {names[answer]} spikes {_times(counts[answer])}"
    if sample.targets is not None:
        text += f" ({int(sample.targets[:, answer].sum())} wanted)"
    label_distance, answer_distance = float(distances[label]), float(distances[answer])
    if equally_near(distances[None])[0, label]:
        text += f". Both label sequences are equally far ({label_distance:.4g}); then the lowest class is the answer."
    else:
        text += f". So the output is nearer to the sequence of {names[answer]} ({answer_distance:.4g}) than to that of "
        text += f"{names[label]} ({label_distance:.4g})."
    return f"{sample.name}: {names[label]}, read as {names[answer]}", text


def _readout_story(sample: Sample, names: Sequence[str]) -> tuple[str, str]:
    """The same for a sample of a network with a readout."""
    if sample.distances is None:
        steps, outputs = sample.potentials.shape
        score = "" if sample.score is None else f": mean squared error {sample.score:.4g}"
        return f"{sample.name}{score}", f"{steps} steps, {outputs} output{'s' * (outputs != 1)}."
    assert sample.nearest is not None
    answer, label, losses = sample.nearest, sample.label, sample.distances
    text = f"The loss of {names[answer]} is the least, {losses[answer]:.4g}"
    if label is None:
        return f"{sample.name}: {names[answer]}", text + "."
    if label == answer:
        return f"{sample.name}: {names[label]}, read right", text + "."
    return (
        f"{sample.name}: {names[label]}, read as {names[answer]}",
        f"{text}; that of {names[label]} {losses[label]:.4g}.",
    )


def _tie(distances: Float64) -> str:
    """A note, if several label sequences are equally near and the answer is the first of them."""
    count = int(equally_near(distances[None]).sum())
    return f" {count} label sequences are equally far: the lowest class is the answer." if count > 1 else ""


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(int(count), f"{count} times")


def _input(sample: Sample) -> Figure:
    x = sample.inputs
    if x.ndim == 1:
        values = Series("value", range(len(x)), x.tolist())
        return Figure("Input", svg.lines("input values", "number of the input", [values]))
    if x.ndim == 3:
        return Figure("Input", svg.image(x, "input image"))
    if x.ndim == 2:
        return Figure("Input spikes, by step", svg.spikes(x))
    counts = x.sum(axis=0, dtype=np.int64)
    if len(counts) == 2:
        picture = np.minimum(255, counts).astype(np.uint8)
        return Figure("Input (red: ON, blue: OFF)", svg.image(picture, "input events, summed over time"))
    summed = counts.sum(axis=0, keepdims=True)
    picture = (255 * summed // max(1, int(summed.max()))).astype(np.uint8)
    return Figure("Input spikes, summed (white: most)", svg.image(picture, "input spikes, summed over time"))
