"""The page of a run: what `stsbp report` shows (templates/run.html)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Int64

from stsbp.config import RunConfig
from stsbp.energy.text import energy_rows, energy_summary, picojoules
from stsbp.files import as_argument, real
from stsbp.measures.matching import within
from stsbp.rate_penalty import describe_penalties, penalties_of
from stsbp.report import svg
from stsbp.report.collect import Sample
from stsbp.report.page import page
from stsbp.report.samples import Samples, samples_section
from stsbp.report.spike_times import spike_time_figures
from stsbp.report.svg import Figure, Series
from stsbp.training.build import TOLERANCE, decoders
from stsbp.training.optimizer import describe_frozen, frozen_parameters
from stsbp.training.quality import QUALITIES, Quality
from stsbp.training.regression_text import errors_table
from stsbp.training.timing_text import chance_text, measure_rows

__all__ = ["Content", "DelayCounts", "render"]

_MAKES = ("train", "experiment", "import", "convert")
"""Commands that make runs."""


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


def render(content: Content) -> str:
    """The report as HTML."""
    config, network, measures = content.config, content.network, content.measures
    kind, name = "network" if content.training_command else "run", _name(content)
    frozen = describe_frozen(network, frozen_parameters(network, config.freeze))
    penalised = describe_penalties(penalties_of(network, config.rate_penalty).items())
    disturbances = {
        "dropout": bool(config.dropout),
        "augmentation": any(value for key, value in config if key.startswith("augment_")),
    }
    repetition, commands = _repetition(content)
    return page(
        "run.html",
        title=f"stsbp {kind} {name}",
        name=name,
        content=content,
        config=config,
        result_tiles=_tiles(content),
        command=next((text for start in content.starts if (text := _command_of(start)) is not None), None),
        notes=[note for note in (frozen, penalised, *content.notes) if note],
        history=_history(content),
        learning=_curves(content),
        disturbances=[disturbance for disturbance, happens in disturbances.items() if happens],
        confusion=None if content.confusion is None or not content.classes else _confusion(content, content.confusion),
        decoder=decoders(network.has_readout)[0],
        spike_times=[] if measures is None else spike_time_figures(measures, content.by_neuron),
        chance="" if measures is None else chance_text(measures),
        measures=[] if measures is None else measure_rows(measures, {}),
        errors="" if content.regression is None else "\n".join(errors_table(content.regression)),
        sample_sections=_samples(content),
        **({} if content.energy is None else _energy(content.energy)),
        layers=_layer_figures(content),
        layer_rows=_layer_rows(content),
        delays=_delays(content),
        settings=_settings(config),
        repetition=repetition,
        commands=commands,
        starts=[_environment(start) for start in content.starts],
    )


def _name(content: Content) -> str:
    """Name of the run. For a seed of an experiment, it begins with the folder of the experiment."""
    folder = content.folder if content.training_command else real(content.folder)
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("seed-") else folder.name


def _tiles(content: Content) -> list[tuple[str, str]]:
    """The last results and the time of training, each with its description."""
    measure, epochs = content.measure, content.of_kind("epoch")
    tiles = []
    for split in ("test", "validation"):
        for record in content.of_kind("evaluation", split)[-1:]:
            tiles.append((measure.text(record[measure.key]), f"{split} {measure.name}, epoch {record['epoch']}"))
            tiles += _test_tiles(content, record) if split == "test" else []
    if epochs:
        last = epochs[-1]
        tiles.append((measure.text(last[measure.key]), f"training {measure.name}, epoch {last['epoch']}"))
        tiles.append((f"{last['epoch']} of {content.config.epochs}", "epochs"))
        tiles.append((f"{sum(record['seconds'] for record in epochs):.0f} s", "training time"))
    return tiles


def _test_tiles(content: Content, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Further results of a test."""
    tiles = []
    if "accuracy_spike_count" in record:
        decoder = decoders(content.network.has_readout)[1]
        tiles.append((f"{record['accuracy_spike_count']:.2%}", f"test accuracy by {decoder}"))
    if content.classes and "f1" in record:
        tiles.append((f"{record['f1']:.2%}", f"F1 of test outputs and their label sequences, {within(TOLERANCE)}"))
    if (regression := record.get("regression")) and None not in (regression["r2"], regression["smape"]):
        tiles.append((f"{regression['r2']:.4f} / {regression['smape']:.2f} %", "test R2 / sMAPE"))
    if content.measure.key == "f1":
        shares = f"{record['precision']:.2%} / {record['recall']:.2%}"
        tiles.append((shares, f"test precision / recall {within(TOLERANCE)}"))
    return tiles


def _series(name: str, records: Sequence[Any], *keys: str, x: str = "epoch") -> Series:
    """The values under `keys`, of which each leads into the next mapping, over those of `x`."""
    return Series(name, [record[x] for record in records], [reduce(getitem, keys, record) for record in records])


def _figure(caption: str, label: str, series: Sequence[Series], x_label: str = "epoch", **options: Any) -> Figure:
    """Lines and their legend."""
    return Figure(caption, svg.lines(label, x_label, series, **options), svg.legend(series))


def _history(content: Content) -> list[Figure]:
    """The numbers of the loop that trained the network before it became a run."""
    figures = []
    for name in dict.fromkeys(name for record in content.history for name in record):
        values = {number: record[name] for number, record in enumerate(content.history, 1) if name in record}
        figures.append(Figure(name, svg.lines(name, "record", [Series(name, [*values], [*values.values()])])))
    return figures


def _curves(content: Content) -> list[Figure]:
    """Loss, quality, gradient norm and learning rate; empty before the first epoch is complete."""
    epochs, (key, name, is_share) = content.of_kind("epoch"), content.measure
    if not epochs:
        return []
    splits = {"training": epochs} | {split: content.of_kind("evaluation", split) for split in ("validation", "test")}
    loss, quality = (
        [_series(split, records, measured) for split, records in splits.items() if records]
        for measured in ("loss", key)
    )
    norms = [_series("mean", epochs, "gradient_norm"), _series("largest", epochs, "largest_gradient_norm")]
    rate = svg.lines("learning rate", "epoch", [_series("learning rate", epochs, "learning_rate")])
    return [
        _figure(f"Loss ({content.config.loss}), mean over samples", "loss", loss),
        _figure(name[:1].upper() + name[1:], name, quality, percent=is_share, zero=not is_share),
        _figure("Gradient norm before clipping", "gradient norm", norms),
        Figure("Learning rate at the end of the epoch", rate),
    ]


def _confusion(content: Content, counts: Int64) -> Mapping[str, Any]:
    """The confusion matrix, and the most frequent mistakes."""
    cells = np.argwhere(counts).tolist()
    mistakes = [(content.classes[i], content.classes[j], int(counts[i, j])) for i, j in cells if i != j]
    return {
        "wrong": sum(count for _, _, count in mistakes),
        "total": int(counts.sum()),
        "matrix": svg.matrix(counts, content.classes),
        "mistakes": sorted(mistakes, key=lambda entry: -entry[2])[:8],
    }


def _samples(content: Content) -> list[Samples]:
    """Samples that were read wrong and right, or those with the worst and the best scores."""
    if not content.wrong and not content.right:
        return []
    names = content.classes or [str(n) for n in range(content.network.outputs)]
    titles = ("Samples read wrong", "Samples read right") if content.classes else ("Worst samples", "Best samples")
    return [
        samples_section(title, samples, names, content.network, of_classes=bool(content.classes))
        for title, samples in zip(titles, (content.wrong, content.right), strict=True)
    ]


def _energy(energy: Mapping[str, Any]) -> Mapping[str, Any]:
    """The energy of a run: bars and a table by layer, and sentences.

    Args:
        energy: result of `stsbp.energy.stored.stored_energy`.
    """
    totals = np.array([layer["pj"]["total"] for layer in energy["layers"]])
    names = [f"{layer['name']} ({picojoules(layer['pj']['total'])})" for layer in energy["layers"]]
    chart = svg.bars(totals / max(totals.sum(), 1e-12), names, range(len(names)), label="energy by layer", percent=True)
    return {"energy_chart": chart, "energy_sentences": energy_summary(energy), "energy_rows": energy_rows(energy)}


def _layer_figures(content: Content) -> list[Figure]:
    """Spike rates, penalties, errors that were zeroed, and headroom of the layers during training."""
    epochs, layers = content.of_kind("epoch"), [block.name for block in content.network.blocks]
    penalised = [name for name in layers if any(name in record.get("rate_penalty", ()) for record in epochs)]
    zeroed = _with_values(epochs, "zeroed", layers)
    charts = [
        ("Spikes per neuron and step of each layer, in training", "spike rates", "rates", epochs, layers),
        (
            "Rate penalty of each layer, in training. The loss does not contain it",
            "rate penalty",
            "rate_penalty",
            _with_values(epochs, "rate_penalty", penalised) if penalised else [],
            penalised,
        ),
        (
            "Share of each layer's errors that the error grid of reproducible precision zeroed",
            "share of zeroed errors",
            "zeroed",
            zeroed if any(share > 0 for record in zeroed for share in record["zeroed"].values()) else [],
            layers,
        ),
    ]
    figures = [
        _figure(caption, label, [_series(name, records, key, name) for name in names])
        for caption, label, key, records, names in charts
        if records
    ]
    if measured := _with_headroom(content):
        rooms = [_series(name, measured, "grids", name, "headroom", x="step") for name in layers]
        caption = "Exactness headroom in bits: at 0 or above, sums are exact"
        figures.append(_figure(caption, "exactness headroom", rooms, "update", floor=0.0))
    return figures


def _with_values(records: Sequence[Mapping[str, Any]], key: str, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Records that have a value under `key` for each name."""
    return [record for record in records if set(names) <= set(record.get(key, ()))]


def _with_headroom(content: Content) -> list[Mapping[str, Any]]:
    """Records of updates, with the headroom of every layer."""
    layers = [block.name for block in content.network.blocks]
    steps = content.of_kind("step")
    return [r for r in steps if all(np.isfinite(r["grids"][name]["headroom"]) for name in layers)]


def _layer_rows(content: Content) -> list[list[str]]:
    """A table of the layers: their sizes, their weight grids, and what their neurons learned."""
    head = ["layer", "output", "parameters", "multiply-adds", "weight bits", "headroom, bits"]
    rows = [head + (["learned by neurons"] if content.learned else [])]
    grids, network = content.grids or next((r["grids"] for r in _with_headroom(content)[-1:]), {}), content.network
    for block in network.blocks:
        grid = grids.get(block.name)
        projections = network.graph.projections_to(block.population)
        names = {block.name, *(projection.name for projection in projections)}
        parameters = [p for name, p in network.parameters.items() if name.split(".")[0] in names]
        cells = [
            block.name,
            " x ".join(map(str, block.output_shape)),
            f"{sum(int(np.prod(p.shape)) for p in parameters):,}",
            f"{sum(projection.multiply_adds for projection in projections):,}",
            f"{grid['bits']:.0f} of {block.synapse.weight_bits}" if grid else str(block.synapse.weight_bits),
            f"{grid['headroom']:+.2f}" if grid else f"at least {block.guaranteed_headroom:+.2f}",
        ]
        rows.append(cells + ([_learned(content, block.name)] if content.learned else []))
    return rows


def _learned(content: Content, layer: str) -> str:
    """Learned parameters of the neurons in a layer: one number, or the smallest and the largest one."""
    ranges = []
    for name, x in content.learned.items():
        if name.split(".")[0] == layer:
            low, high = float(x.min()), float(x.max())
            ranges.append(f"{name.split('.')[1]} {low:.4g}" + ("" if x.size == 1 else f" to {high:.4g}"))
    return ", ".join(ranges)


def _delays(content: Content) -> list[Figure]:
    """Histograms of learned delays, before and after training."""
    figures = []
    for name, counts in content.delays.items():
        parts = {"before training": counts.before, "at this checkpoint": counts.after}
        steps = [*range(len(counts.after))]
        series = [Series(part, steps, [*map(float, x)]) for part, x in parts.items() if x is not None]
        caption = f"{name}: number of channels with each delay in whole steps"
        figures.append(_figure(caption, caption, series, "delay"))
    return figures


class Setting(NamedTuple):
    """A setting of the run. `default` is shown if it differs from the value."""

    name: str
    value: Any
    default: Any
    changed: bool


def _settings(config: RunConfig) -> list[Setting]:
    settings = []
    for name, value in config.model_dump().items():
        default = RunConfig.model_fields[name].default
        changed = value != default
        settings.append(Setting(name, value, default if changed and name != "dataset" else "", changed))
    return settings


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
        commands = [_command_text(first_command), *([shlex.join(resume_command)] if len(content.starts) > 1 else [])]
        return "To repeat the run, replace its folder by a new one here", "\n".join(commands)
    return "To repeat the run", shlex.join([*train, "--config", str(content.folder / "config.toml")])


def _call_again(call: str, content: Content) -> str:
    """The call in Python that makes the run again with its settings."""
    if not call.startswith("stsbp.train("):
        return call
    data = "" if content.config.dataset != "arrays" else "data, "
    return f"stsbp.train({data}config={str(content.folder / 'config.toml')!r})"


def _command_text(command: Sequence[object]) -> str:
    """A command as it would be typed, without the program's own path; or a call in Python, which is a single word."""
    if _is_call(command):
        return str(command[0])
    return shlex.join(["stsbp", *map(str, command[1:])])


def _is_call(command: Sequence[object]) -> bool:
    """Whether a run was started by a call in Python."""
    return len(command) == 1 and str(command[0]).startswith("stsbp.")


def _command_of(start: Mapping[str, Any]) -> str | None:
    """The command that began a training, if it is known."""
    return _command_text(command) if isinstance(command := start.get("command"), list) else None


def _environment(start: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The entries of a start, with their names."""
    versions = start.get("versions") or {}
    return [
        ("began", start.get("time")),
        ("from update", start.get("step")),
        ("backend", f"{start.get('backend')} on {start.get('device')} {start.get('device_description') or ''}"),
        ("machine", f"{start.get('platform')}, {start.get('processors')} processors"),
        ("Python", start.get("python")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("command", _command_of(start)),
    ]
