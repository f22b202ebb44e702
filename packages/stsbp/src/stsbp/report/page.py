"""The page: HTML that contains its style and charts, so that it loads nothing from the network.

A content security policy in its head forbids scripts and all requests. Missing content would therefore not be loaded.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.models.decoders import equally_near
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float64, Int64

from stsbp.config import RunConfig
from stsbp.errors import printable
from stsbp.files import OutputKind, as_argument, real
from stsbp.measures.matching import within
from stsbp.rate_penalty import describe_penalties, penalties_of
from stsbp.report import svg
from stsbp.report.collect import Sample
from stsbp.report.energy import energy_section
from stsbp.report.spike_times import spike_time_figures
from stsbp.report.svg import Series
from stsbp.tables import html_table
from stsbp.training.build import TOLERANCE, decoders
from stsbp.training.optimizer import describe_frozen, frozen_parameters
from stsbp.training.quality import QUALITIES, Quality
from stsbp.training.regression_text import errors_table
from stsbp.training.timing_text import chance_text, measure_rows

__all__ = ["PAGE", "Content", "command_text", "page", "render", "samples_section", "threshold_of"]

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b2230;--muted:#5d6778;--line:#d5dae3;--panel:#f5f7fa;--target:#f2b63c;
--c0:#2563eb;--c1:#d2490c;--c2:#0b8457;--c3:#8b35d6;--c4:#a86a06;--c5:#c0185f;--c6:#0b7285;--c7:#5f6b7d;--on:#fff}
@media (prefers-color-scheme:dark){:root{--bg:#12161d;--fg:#e7ebf2;--muted:#9ba7b8;--line:#333c4a;--panel:#1a202a;
--target:#b07a14;--c0:#6ea0ff;--c1:#ff8a55;--c2:#46c995;--c3:#c28bff;--c4:#e0ab3f;--c5:#ff7fae;--c6:#4fc3d9;
--c7:#a3afbf;--on:#0d1117}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px;border-top:1px solid var(--line);padding-top:16px}
h3{font-size:15px;margin:0 0 8px}p{margin:6px 0;max-width:80ch}.muted,figcaption{color:var(--muted);font-size:13px}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}
.tiles div{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:8px 14px}
.tiles b{display:block;font-size:20px;font-weight:600}
.row{display:flex;flex-wrap:wrap;gap:20px}figure{margin:0;max-width:100%}figcaption{margin-bottom:4px}
svg{max-width:100%;height:auto;display:block;font-family:system-ui,sans-serif}
.pixels{image-rendering:pixelated;background:var(--panel);border:1px solid var(--line)}
.grid{stroke:var(--line)}.limit{stroke:var(--muted);stroke-dasharray:4 3}.band{fill:var(--panel)}
.tick{fill:var(--muted);font-size:11px}.cell{fill:var(--fg);font-size:11px}.on{fill:var(--on);font-size:11px}
.legend{font-size:13px;color:var(--muted)}.legend span{margin-right:14px;white-space:nowrap}
.legend i{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:5px;vertical-align:middle}
.card{border:1px solid var(--line);border-radius:6px;padding:14px;margin:12px 0}
table{border-collapse:collapse;font-size:13px}.scroll{overflow-x:auto}
th,td{text-align:left;padding:3px 14px 3px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--muted)}td.n{text-align:right;font-variant-numeric:tabular-nums}
tr.own td{font-weight:600}code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:10px;
white-space:pre-wrap;overflow-wrap:anywhere;margin:8px 0}
@media print{.card,figure{break-inside:avoid}}
"""
_MANY = 16
"""Number of distances that are drawn."""
_MAKES = ("train", "experiment", "import", "convert")
"""Commands that make runs."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_POLICY_TAG = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
_HEAD = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
_MARK = '<meta name="generator" content="stsbp">'
PAGE = OutputKind(
    "a page of stsbp report or predict --draw",
    # Older pages have the policy in place of the mark.
    re.compile("|".join(re.escape(_HEAD + tag) for tag in (_MARK, _POLICY_TAG)).encode()),
)
"""The kind of file that a page may replace."""


class DelayCounts(NamedTuple):
    """Number of channels with each delay in whole steps, `[maximum + 1]`.

    Attributes:
        before: before training; None: the run began with weights of another run.
        after: at the checkpoint.
    """

    before: Int64 | None
    after: Int64


class Content:
    """The contents of the report of a run.

    Args:
        folder: folder of the run.
        config: its settings.
        network: the trained network.
        records: lines of metrics.
        starts: entries of the environment file.
        classes: names of the classes; empty if labels are spike trains.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        network: NetworkSpec,
        records: Sequence[Mapping[str, Any]],
        starts: Sequence[Mapping[str, Any]],
        classes: Sequence[str],
    ) -> None:
        self.folder, self.config, self.network = folder, config, network
        self.starts, self.classes = starts, classes
        # Lines for another network or task can only come from a damaged file.
        layers, key = {block.name for block in network.blocks}, self.measure.key
        weights = {projection.name for projection in network.graph.projections}
        self.history = [record["history"] for record in records if record["kind"] == "history"]
        self.records = [
            r
            for r in records
            if layers == set(r.get("rates", ())) and weights == set(r.get("grids", weights)) and key in r
        ]
        self.split = self.checkpoint = self.training_command = ""
        self.confusion: Int64 | None = None
        self.measures: Mapping[str, Any] | None = None
        self.by_neuron: Mapping[str, Any] = {}
        self.regression: Mapping[str, Any] | None = None
        self.wrong: Sequence[Sample] = ()
        self.right: Sequence[Sample] = ()
        self.grids: Mapping[str, Mapping[str, float]] = {}
        self.learned: Mapping[str, AnyArray] = {}
        self.delays: Mapping[str, DelayCounts] = {}
        self.notes: Sequence[str] = ()
        self.energy: Mapping[str, Any] | None = None

    @property
    def measure(self) -> Quality:
        """The quality measure of the network."""
        if self.classes:
            return QUALITIES["accuracy"]
        if self.network.has_readout:
            return QUALITIES["mse"]._replace(name="mean squared error")
        return QUALITIES["f1"]._replace(name=f"F1 of spike times {within(TOLERANCE)}")

    def of_kind(self, kind: str, split: str | None = None) -> list[Mapping[str, Any]]:
        """Records of a kind and, optionally, of a split."""
        return [r for r in self.records if r["kind"] == kind and (split is None or r.get("split") == split)]


def page(title: str, body: Iterable[str]) -> str:
    """A complete HTML file. Control characters in text from outside are removed."""
    text = (
        f"{_HEAD}{_MARK}{_POLICY_TAG}"
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )
    return printable(text, lines=True)


def command_text(command: Sequence[object]) -> str:
    """A command as it would be typed, without the program's own path; or a call in Python, which is a single word."""
    if _is_call(command):
        return str(command[0])
    return shlex.join(["stsbp", *map(str, command[1:])])


def _is_call(command: Sequence[object]) -> bool:
    """Whether a run was started by a call in Python."""
    return len(command) == 1 and str(command[0]).startswith("stsbp.")


def render(content: Content) -> str:
    """The report as HTML."""
    parts = [_head(content), *([_history(content)] if content.history else []), _curves(content)]
    if content.confusion is not None and content.classes:
        parts.append(_confusion(content, content.confusion))
    if content.measures is not None:
        parts.append(_spike_times(content, content.measures))
    if content.regression is not None:
        parts.append(_regression(content, content.regression))
    names = content.classes or [str(n) for n in range(content.network.outputs)]
    threshold = threshold_of(content.network)
    if content.wrong or content.right:
        first, second = (
            ("Samples read wrong", "Samples read right") if content.classes else ("Worst samples", "Best samples")
        )
        parts.append(samples_section(first, content.wrong, names, threshold, of_classes=bool(content.classes)))
        parts.append(samples_section(second, content.right, names, threshold, of_classes=bool(content.classes)))
    parts += [] if content.energy is None else [energy_section(content.energy)]
    parts += [_layers(content), _delays(content), _settings(content), _environment(content)]
    kind = "network" if content.training_command else "run"
    return page(f"stsbp {kind} {_name(content)}", parts)


def _name(content: Content) -> str:
    """Name of the run. For a seed of an experiment, it begins with the folder of the experiment."""
    folder = content.folder if content.training_command else real(content.folder)
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("seed-") else folder.name


def _head(content: Content) -> str:
    config, measure = content.config, content.measure
    key, name = measure.key, measure.name
    tests, validations = content.of_kind("evaluation", "test"), content.of_kind("evaluation", "validation")
    epochs = content.of_kind("epoch")
    tiles = []
    if tests:
        tiles.append((measure.text(tests[-1][key]), f"test {name}, epoch {tests[-1]['epoch']}"))
    if validations:
        tiles.append((measure.text(validations[-1][key]), f"validation {name}, epoch {validations[-1]['epoch']}"))
    if epochs:
        tiles.append((measure.text(epochs[-1][key]), f"training {name}, epoch {epochs[-1]['epoch']}"))
        tiles.append((f"{epochs[-1]['epoch']} of {config.epochs}", "epochs"))
        tiles.append((f"{sum(r['seconds'] for r in epochs):.0f} s", "training time"))
    if tests and "accuracy_spike_count" in tests[-1]:
        decoder = decoders(content.network.has_readout)[1]
        tiles.insert(1, (f"{tests[-1]['accuracy_spike_count']:.2%}", f"test accuracy by {decoder}"))
    if tests and content.classes and "f1" in tests[-1]:
        tiles.insert(
            2, (f"{tests[-1]['f1']:.2%}", f"F1 of test outputs and their label sequences, {within(TOLERANCE)}")
        )
    if tests and (regression := tests[-1].get("regression")) and None not in (regression["r2"], regression["smape"]):
        tiles.insert(1, (f"{regression['r2']:.4f} / {regression['smape']:.2f} %", "test R2 / sMAPE"))
    if tests and key == "f1":
        tiles.insert(
            1,
            (
                f"{tests[-1]['precision']:.2%} / {tests[-1]['recall']:.2%}",
                f"test precision / recall {within(TOLERANCE)}",
            ),
        )
    command = next((s["command"] for s in content.starts if isinstance(s.get("command"), list)), None)
    html_lines = [
        f"<h1>{escape(_name(content))}</h1>",
        f'<p class="muted">{escape(config.dataset)}, network <code>{escape(str(content.network))}</code>, loss '
        f"{escape(config.loss)}, T = {config.steps}, seed {config.seed}</p>",
        '<div class="tiles">' + "".join(f"<div><b>{a}</b>{escape(b)}</div>" for a, b in tiles) + "</div>",
    ]
    if command is not None:
        html_lines.append(f"<p>Made by</p><pre>{escape(command_text(command))}</pre>")
    frozen = describe_frozen(content.network, frozen_parameters(content.network, config.freeze))
    penalised = describe_penalties(penalties_of(content.network, config.rate_penalty).items())
    html_lines += [f'<p class="muted">{escape(note)}</p>' for note in (frozen, penalised, *content.notes) if note]
    return "\n".join(html_lines)


def _html_figure(caption: str, *parts: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{''.join(parts)}</figure>"


def _over_epochs(content: Content, key: str) -> list[Series]:
    named = [("training", content.of_kind("epoch"))]
    named += [(split, content.of_kind("evaluation", split)) for split in ("validation", "test")]
    return [Series(name, [r["epoch"] for r in rows], [r[key] for r in rows]) for name, rows in named if rows]


def _history(content: Content) -> str:
    """The numbers of the loop that trained the network before it became a run."""
    figures = []
    for name in dict.fromkeys(name for record in content.history for name in record):
        numbers = [number for number, record in enumerate(content.history, 1) if name in record]
        series = [Series(name, numbers, [content.history[number - 1][name] for number in numbers])]
        figures.append(_html_figure(escape(name), svg.lines(escape(name), "record", series)))
    explanation = "Numbers of the loop that trained the network before it was saved as a run, in their order."
    return f'<h2>History</h2><p class="muted">{explanation}</p><div class="row">{"".join(figures)}</div>'


def _curves(content: Content) -> str:
    if not content.of_kind("epoch"):
        if content.history or content.training_command:
            return ""
        return '<h2>Learning</h2><p class="muted">No epoch is complete yet.</p>'
    key, name, is_share = content.measure
    loss, quality = _over_epochs(content, "loss"), _over_epochs(content, key)
    epochs = content.of_kind("epoch")
    norm = [Series("mean", [r["epoch"] for r in epochs], [r["gradient_norm"] for r in epochs])]
    norm.append(Series("largest", [r["epoch"] for r in epochs], [r["largest_gradient_norm"] for r in epochs]))
    rate = [Series("learning rate", [r["epoch"] for r in epochs], [r["learning_rate"] for r in epochs])]
    figures = [
        _html_figure(
            f"Loss ({escape(content.config.loss)}), mean over samples",
            svg.lines("loss", "epoch", loss),
            svg.legend(loss),
        ),
        _html_figure(
            escape(name[:1].upper() + name[1:]),
            svg.lines(name, "epoch", quality, percent=is_share, zero=not is_share),
            svg.legend(quality),
        ),
        _html_figure("Gradient norm before clipping", svg.lines("gradient norm", "epoch", norm), svg.legend(norm)),
        _html_figure("Learning rate at the end of the epoch", svg.lines("learning rate", "epoch", rate)),
    ]
    config = content.config
    disturbances = [
        *(["dropout"] if config.dropout else []),
        *(["augmentation"] if any(value for key, value in config if key.startswith("augment_")) else []),
    ]
    explanation = "Training figures are taken before each update" + (
        f", with {' and '.join(disturbances)}" if disturbances else ""
    )
    explanation += "; evaluations after the epoch" + (", without." if disturbances else ".")
    return f'<h2>Learning</h2><p class="muted">{explanation}</p><div class="row">{"".join(figures)}</div>'


def _confusion(content: Content, counts: Int64) -> str:
    cells = np.argwhere(counts).tolist()
    mistakes = [(int(counts[i, j]), content.classes[i], content.classes[j]) for i, j in cells if i != j]
    most_frequent = sorted(mistakes, key=lambda entry: -entry[0])[:8]
    rows = "".join(
        f'<tr><td>{escape(a)}</td><td>{escape(b)}</td><td class="n">{n}</td></tr>' for n, a, b in most_frequent
    )
    table = f"<table><tr><th>class</th><th>read as</th><th>samples</th></tr>{rows}</table>" if rows else "<p>None.</p>"
    total, wrong = int(counts.sum()), sum(n for n, _, _ in mistakes)
    return (
        f"<h2>Confusion matrix</h2><p>{escape(content.split)} split, {escape(content.checkpoint)}: {wrong} of {total} "
        "samples read wrong. A row is a true class, a column the class of the "
        f'{decoders(content.network.has_readout)[0]}.</p><div class="row">'
        + _html_figure("Samples", svg.matrix(counts, content.classes))
        + _html_figure("Most frequent mistakes", table)
        + "</div>"
    )


def _spike_times(content: Content, measures: Mapping[str, Any]) -> str:
    explanation = f"{escape(content.split)} split, {escape(content.checkpoint)}. "
    explanation += "Targets are the label sequences of the classes. " if content.classes else ""
    explanation += chance_text(measures)
    figures = [_html_figure(escape(f.caption), *f.parts) for f in spike_time_figures(measures, content.by_neuron)]
    return (
        f'<h2>Spike times</h2><p class="muted">{explanation}</p><div class="row">{"".join(figures)}</div>'
        + html_table(measure_rows(measures, {}))
    )


def _regression(content: Content, regression: Mapping[str, Any]) -> str:
    explanation = (
        f"{escape(content.split)} split, {escape(content.checkpoint)}. Two simple predictions stand beside the "
        "network: the mean of the targets, and the target of the step before."
    )
    rows = errors_table(regression)
    return f'<h2>Errors</h2><p class="muted">{explanation}</p><pre>{escape(chr(10).join(rows))}</pre>'


def threshold_of(network: NetworkSpec) -> float | None:
    """Threshold of the output neurons; None for a readout."""
    return None if network.has_readout else network.blocks[-1].neuron.threshold


def samples_section(
    title: str, samples: Sequence[Sample], names: Sequence[str], threshold: float | None, *, of_classes: bool
) -> str:
    """Samples with input, output over target, distances and potentials. `threshold` is None for a readout."""
    if not samples:
        return f'<h2>{escape(title)}</h2><p class="muted">None.</p>'
    cards = [_card(sample, names, threshold) for sample in samples]
    labelled = samples[0].targets is not None
    if threshold is None and not of_classes:
        explanation = "The potential of each output neuron is its output" + (
            ", over the target, which is yellow." if labelled else "."
        )
        return f'<h2>{escape(title)}</h2><p class="muted">{explanation}</p>' + "".join(cards)
    if threshold is None:
        explanation = (
            "The class of the least loss is the answer, blue in the losses and in the potentials of the readout"
        )
        explanation += "; the true class is yellow where it is another one." if labelled else "."
        return f'<h2>{escape(title)}</h2><p class="muted">{explanation}</p>' + "".join(cards)
    explanation = (
        "Wide yellow bars are target spikes, and the narrow bars on top are output spikes. " if labelled else ""
    )
    if of_classes:
        explanation += (
            "Each class is a label sequence; the nearest one is the answer, blue in the distances and the membrane "
        )
        explanation += "potentials" + ("; the true class is yellow where it is another one. " if labelled else ". ")
    explanation += (
        "In the membrane potentials, the dashed line is the threshold, the thin line is zero, and dots are spikes."
    )
    return f'<h2>{escape(title)}</h2><p class="muted">{explanation}</p>' + "".join(cards)


def _card(sample: Sample, names: Sequence[str], threshold: float | None) -> str:
    targets: AnyArray = np.zeros_like(sample.outputs) if sample.targets is None else sample.targets
    is_real = targets.dtype == np.float32
    heading, explanation = (_story if threshold is not None else _readout_story)(sample, names)
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
        figures.append(_html_figure(caption if threshold is not None else "Loss of each class", chart))
    if threshold is not None:
        drawn = "Output over target" if sample.targets is not None else "Output spikes"
        figures.append(_html_figure(f"{drawn}, by step", svg.raster(sample.outputs, targets, names, strong)))
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
    figures.append(_html_figure(caption, drawing))
    drawings = f'<div class="row">{"".join(figures)}</div>'
    return f'<div class="card"><h3>{escape(heading)}</h3><p>{escape(explanation)}</p>{drawings}</div>'


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


def _input(sample: Sample) -> str:
    x = sample.inputs
    if x.ndim == 1:
        values = Series("value", range(len(x)), x.tolist())
        return _html_figure("Input", svg.lines("input values", "number of the input", [values]))
    if x.ndim == 3:
        return _html_figure("Input", svg.image(x, "input image"))
    if x.ndim == 2:
        return _html_figure("Input spikes, by step", svg.spikes(x))
    counts = x.sum(axis=0, dtype=np.int64)
    if len(counts) == 2:
        picture = np.minimum(255, counts).astype(np.uint8)
        return _html_figure("Input (red: ON, blue: OFF)", svg.image(picture, "input events, summed over time"))
    summed = counts.sum(axis=0, keepdims=True)
    picture = (255 * summed // max(1, int(summed.max()))).astype(np.uint8)
    return _html_figure("Input spikes, summed (white: most)", svg.image(picture, "input spikes, summed over time"))


def _layers(content: Content) -> str:
    epochs, steps = content.of_kind("epoch"), content.of_kind("step")
    layers = [block.name for block in content.network.blocks]
    figures = []
    if epochs:
        rates = [Series(name, [r["epoch"] for r in epochs], [r["rates"][name] for r in epochs]) for name in layers]
        chart = svg.lines("spike rates", "epoch", rates)
        figures.append(_html_figure("Spikes per neuron and step of each layer, in training", chart, svg.legend(rates)))
    if penalised := [name for name in layers if any(name in r.get("rate_penalty", ()) for r in epochs)]:
        with_penalty = [r for r in epochs if set(penalised) <= set(r.get("rate_penalty", ()))]
        penalties = [
            Series(name, [r["epoch"] for r in with_penalty], [r["rate_penalty"][name] for r in with_penalty])
            for name in penalised
        ]
        chart = svg.lines("rate penalty", "epoch", penalties)
        caption = "Rate penalty of each layer, in training. The loss does not contain it"
        figures.append(_html_figure(caption, chart, svg.legend(penalties)))
    counted = [r for r in epochs if set(layers) <= set(r.get("zeroed", ()))]
    if any(share > 0 for r in counted for share in r["zeroed"].values()):
        shares = [Series(name, [r["epoch"] for r in counted], [r["zeroed"][name] for r in counted]) for name in layers]
        chart = svg.lines("share of zeroed errors", "epoch", shares)
        caption = "Share of each layer's errors that the error grid of reproducible precision zeroed"
        figures.append(_html_figure(caption, chart, svg.legend(shares)))
    grids = dict(content.grids)
    measured = [r for r in steps if all(np.isfinite(r["grids"][name]["headroom"]) for name in layers)]
    if measured:
        rooms = [
            Series(n, [r["step"] for r in measured], [r["grids"][n]["headroom"] for r in measured]) for n in layers
        ]
        chart = svg.lines("exactness headroom", "update", rooms, floor=0.0)
        caption = "Exactness headroom in bits: at 0 or above, sums are exact"
        figures.append(_html_figure(caption, chart, svg.legend(rooms)))
        grids = grids or dict(measured[-1]["grids"])
    rows = []
    for block in content.network.blocks:
        grid = grids.get(block.name)
        bits = f"{grid['bits']:.0f} of {block.synapse.weight_bits}" if grid else str(block.synapse.weight_bits)
        room = f"{grid['headroom']:+.2f}" if grid else f"at least {block.guaranteed_headroom:+.2f}"
        shape = " x ".join(map(str, block.output_shape))
        projections = content.network.graph.projections_to(block.population)
        names = {block.name, *(projection.name for projection in projections)}
        layer_parameters = [p for name, p in content.network.parameters.items() if name.split(".")[0] in names]
        adds = sum(projection.multiply_adds for projection in projections)
        cells = [f"{sum(int(np.prod(p.shape)) for p in layer_parameters):,}", f"{adds:,}", bits, room]
        cells += [_learned(content, block.name)] if content.learned else []
        rows.append(
            f"<tr><td>{block.name}</td><td>{shape}</td>" + "".join(f'<td class="n">{c}</td>' for c in cells) + "</tr>"
        )
    heads = ["layer", "output", "parameters", "multiply-adds", "weight bits", "headroom, bits"]
    heads += ["learned by neurons"] if content.learned else []
    table = "<table><tr>" + "".join(f"<th>{h}</th>" for h in heads) + f"</tr>{''.join(rows)}</table>"
    return f'<h2>Layers</h2><div class="row">{"".join(figures)}</div><div class="scroll">{table}</div>'


def _delays(content: Content) -> str:
    """Histograms of learned delays, before and after training; empty if there are none."""
    figures = []
    for name, counts in content.delays.items():
        parts = {"before training": counts.before, "at this checkpoint": counts.after}
        steps = [*range(len(counts.after))]
        series = [Series(part, steps, [*map(float, x)]) for part, x in parts.items() if x is not None]
        caption = f"{name}: number of channels with each delay in whole steps"
        figures.append(_html_figure(caption, svg.lines(caption, "delay", series), svg.legend(series)))
    return f'<h2>Learned delays</h2><div class="row">{"".join(figures)}</div>' if figures else ""


def _learned(content: Content, layer: str) -> str:
    """Learned parameters of the neurons in a layer: one number, or the smallest and the largest one."""
    ranges = []
    for name, x in content.learned.items():
        if name.split(".")[0] == layer:
            low, high = float(x.min()), float(x.max())
            ranges.append(f"{name.split('.')[1]} {low:.4g}" + ("" if x.size == 1 else f" to {high:.4g}"))
    return escape(", ".join(ranges))


def _settings(content: Content) -> str:
    rows = []
    for key, value in content.config.model_dump().items():
        default = RunConfig.model_fields[key].default
        is_changed = value != default
        default_text = escape(str(default)) if is_changed and key != "dataset" else ""
        mark = ' class="own"' if is_changed else ""
        rows.append(f"<tr{mark}><td>{key}</td><td>{escape(str(value))}</td><td>{default_text}</td></tr>")
    explanation, commands = _repetition(content)
    return (
        f"<h2>Settings</h2><p>{explanation}:</p><pre>{escape(commands)}</pre>"
        "<table><tr><th>setting</th><th>value</th><th>default, where it differs</th></tr>" + "".join(rows) + "</table>"
    )


def _repetition(content: Content) -> tuple[str, str]:
    """How to repeat the run, and the commands. The backend is that of its last start."""
    if content.training_command:
        return "To train the network again", content.training_command
    backend = content.starts[-1].get("backend") if content.starts else None
    train = ["stsbp", *(["--backend", str(backend)] if backend else []), "train"]
    first_command = content.starts[0].get("command") if content.starts else None
    if first_command and _is_call(first_command):
        return "To repeat the run in Python", _call_again(str(first_command[0]), content)
    if first_command and next((word for word in first_command[1:] if word in _MAKES), "") in ("import", "convert"):
        # The settings do not contain the weights that the run began with.
        resume_command = [*train, "--resume", as_argument(content.folder), "--epochs", str(content.config.epochs)]
        commands = [command_text(first_command), *([shlex.join(resume_command)] if len(content.starts) > 1 else [])]
        return "To repeat the run, replace its folder by a new one here", "\n".join(commands)
    return "To repeat the run", shlex.join([*train, "--config", str(content.folder / "config.toml")])


def _call_again(call: str, content: Content) -> str:
    """The call in Python that makes the run again with its settings."""
    if not call.startswith("stsbp.train("):
        return call
    data = "" if content.config.dataset != "arrays" else "data, "
    return f"stsbp.train({data}config={str(content.folder / 'config.toml')!r})"


def _environment(content: Content) -> str:
    if content.training_command:
        return ""
    parts = ["<h2>Environment</h2>"]
    if not content.starts:
        parts.append('<p class="muted">The run has no environment.json.</p>')
    for start in content.starts:
        versions = start.get("versions") or {}
        rows = [
            ("began", start.get("time")),
            ("from update", start.get("step")),
            ("backend", f"{start.get('backend')} on {start.get('device')} {start.get('device_description') or ''}"),
            ("machine", f"{start.get('platform')}, {start.get('processors')} processors"),
            ("Python", start.get("python")),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("command", command_text(command) if isinstance(command := start.get("command"), list) else None),
        ]
        cells = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
        parts.append(f'<div class="scroll"><table>{cells}</table></div><p></p>')
    return "".join(parts)
