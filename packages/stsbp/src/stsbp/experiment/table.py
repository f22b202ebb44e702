"""The table of an experiment: a summary over its seeds, beside the published result and its conditions."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from stsbp_spec.networks.spec import NetworkSpec

from stsbp.config import FREE, RunConfig, to_toml_value
from stsbp.errors import printable
from stsbp.experiment.run import FORMAT, Experiment, same_command
from stsbp.presets import NamedPreset
from stsbp.training.build import decoders
from stsbp.training.operations import MOST_SAMPLES
from stsbp.training.quality import quality_of

__all__ = ["document", "markdown"]

_PERCENT = {
    "accuracy": "accuracy, {0}",
    "accuracy_spike_count": "accuracy, {1}",
    "precision": "precision of spike times within 1 step",
    "recall": "recall of spike times within 1 step",
    "f1": "F1 of spike times within 1 step",
}
"""Figures that are shares, in words with the two decoders."""
_FOLLOWS = ("precision", "recall", "f1", "van_rossum", "hamming")
"""Measures of how well the outputs match their label sequences, if labels are classes."""
_NOT_SHOWN = (FREE - {"patience"}) | {"seed", "test_every", "validation"}
"""Settings that may differ from the preset without being listed as changes."""


def document(
    name: str,
    preset: NamedPreset | None,
    base: RunConfig,
    experiment: Experiment,
    network: NetworkSpec,
    results: Sequence[dict[str, Any]],
    command: Sequence[str],
    overlaps: Sequence[str],
) -> dict[str, Any]:
    """The contents of `experiment.json`, as JSON values.

    Args:
        name: the requested preset or data set.
        preset: the named preset, if there is one.
        base: settings of the preset, without those of the command line.
        experiment: the actual settings and data.
        network: the trained network.
        results: results of the finished seeds.
        command: the typed command.
        overlaps: warnings of the data and of the weights that the networks begin with.
    """
    settings, preset_settings, data = experiment.config.model_dump(), base.model_dump(), experiment.data
    starts = [start for seed in experiment.seeds for start in experiment.folder(seed).starts()]
    projections_read = {block.name: network.graph.projections_to(block.population) for block in network.blocks}
    changed = [key for key in settings if key not in _NOT_SHOWN and settings[key] != preset_settings[key]]
    return {
        "format": FORMAT,
        "stsbp": importlib.metadata.version("stsbp"),
        "experiment": name,
        "source": None if preset is None else preset.source,
        "published": None if preset is None or preset.published is None else preset.published._asdict(),
        "remark": "" if preset is None else preset.remark,
        "command": list(command),
        "asked": list(experiment.seeds),
        "settings": {key: value for key, value in settings.items() if key != "seed"},
        "changed": [{"setting": key, "preset": preset_settings[key], "here": settings[key]} for key in changed],
        "notes": [*data.dataset.notes, *overlaps],
        "samples": {split: len(samples) for split, samples in data.splits().items()},
        "decoders": [] if data.inputs.sequences else list(decoders(network.has_readout)),
        "network": {
            "notation": str(network),
            "multiply_adds": {
                name: sum(projection.multiply_adds for projection in weights)
                for name, weights in projections_read.items()
            },
            "pixels": {
                name: sum(projection.multiply_adds for projection in weights if projection.input.static)
                for name, weights in projections_read.items()
                if any(projection.input.static for projection in weights)
            },
        },
        "machines": _machines(starts),
        "dates": sorted({str(start.get("time"))[:10] for start in starts}),
        "seeds": list(results),
        "summary": _summary(results) if results else None,
    }


def _machines(starts: Iterable[dict[str, Any]]) -> list[str]:
    """Backends, devices and versions, with each combination listed once."""
    texts = []
    for start in starts:
        versions = start.get("versions", {})
        backend, device = str(start.get("backend")), str(start.get("device_description") or start.get("device"))
        used = [f"{k} {v}" for k, v in versions.items() if k.partition("-")[0] == backend and str(v) not in device]
        machine = f"{start.get('processors')} processors, {start.get('platform')}, Python {start.get('python')}"
        texts.append(", ".join([f"{backend} on {device}", *used, machine]))
    return list(dict.fromkeys(texts))


def _summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, spread and range over the seeds, for the reported epoch (`test`) and the last epoch (`last`). If each epoch
    was tested, also for the epoch with the best test result (`best_tested`)."""
    summary: dict[str, Any] = {"seeds": len(results)}
    for epoch_kind in ("test", "last", "best_tested"):
        if any(result[epoch_kind] is None for result in results):
            continue
        figures = (*_PERCENT, "van_rossum", "hamming", "mse", "loss")
        names = [name for name in figures if all(name in result[epoch_kind] for result in results)]
        summary[epoch_kind] = {name: _spread([r[epoch_kind][name] for r in results]) for name in names}
    for key, layer_values in (
        ("rates", [r["test"]["rates"] for r in results]),
        ("operations", _values_of(results, "operations")),
    ):
        summary[key] = {layer: fmean(values[layer] for values in layer_values) for layer in layer_values[0]}
    summary["seconds_per_epoch"] = _spread(_values_of(results, "seconds_per_epoch"))
    return summary


def _values_of(results: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [result[key] for result in results]


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values), "deviation": deviation, "least": min(values), "most": max(values)}


def markdown(experiment: dict[str, Any]) -> str:
    """A result of `document` as Markdown text."""
    parts = [f"# {experiment['experiment']} on {experiment['settings']['dataset']}"]
    finished_seeds, requested_seeds = {result["seed"] for result in experiment["seeds"]}, experiment["asked"]
    if missing := [seed for seed in requested_seeds if seed not in finished_seeds]:
        parts.append(
            f"**{len(finished_seeds)} of {len(requested_seeds)} seeds are done**, {', '.join(map(str, missing))} not "
            f"yet. Run {same_command(experiment['command'])} to continue."
        )
    if experiment["summary"] is not None:
        parts += [_main_table(experiment), _selection(experiment), _seed_table(experiment), _layer_table(experiment)]
    parts += [_conditions(experiment), f"Made by `{shlex.join(experiment['command'])}`, stsbp {experiment['stsbp']}."]
    return printable("\n\n".join(parts) + "\n", lines=True)


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows_with_header = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows_with_header)


def _spread_text(spread: dict[str, Any], *, percent: bool) -> str:
    scale, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    mean = f"{scale * spread['mean']:.{digits}f}"
    if spread["deviation"] is None:
        return mean + unit
    minimum, maximum = (f"{scale * spread[key]:.{digits}f}" for key in ("least", "most"))
    return f"{mean} ± {scale * spread['deviation']:.{digits}f}{unit} ({minimum} to {maximum})"


def _text(experiment: dict[str, Any], name: str) -> str:
    """A figure in words."""
    return _PERCENT.get(name, name.replace("_", " ")).format(*experiment["decoders"])


def _main_table(experiment: dict[str, Any]) -> str:
    summary, published = experiment["summary"], experiment["published"]
    rows = []
    for name, spread in summary["test"].items():
        if name != "loss":
            text = f"test {_text(experiment, name)}"
            if name in _FOLLOWS and "accuracy" in summary["test"]:
                text += ", outputs against label sequences"
            published_text = f"{published['accuracy']:.2f} %" if published and name == "accuracy" else ""
            rows.append([text, _spread_text(spread, percent=name in _PERCENT), published_text])
    if "best_tested" in summary:
        name = quality_of(summary["best_tested"]).key
        text = f"test {_text(experiment, name)}, best epoch of each seed by the test set itself"
        rows.append([text, _spread_text(summary["best_tested"][name], percent=name in _PERCENT), ""])
    settings, samples = experiment["settings"], experiment["samples"]
    split = (
        f"{samples['train']:,} training, {samples.get('validation', 0):,} validation, {samples['test']:,} test samples"
    )
    counts = ", ".join(
        f"{n} {unit}{'s' * (n != 1)}" for n, unit in ((settings["epochs"], "epoch"), (summary["seeds"], "seed"))
    )
    conditions = f"{split}, T = {settings['steps']}, {counts}"
    rows.append(["conditions", conditions, published["conditions"] if published else ""])
    rows.append(["seconds per epoch, training alone", f"{summary['seconds_per_epoch']['mean']:.2f}", ""])
    operations, adds = sum(summary["operations"].values()), experiment["network"]["multiply_adds"]
    pixels = sum(experiment["network"]["pixels"].values())
    text = f"{operations:,.0f} additions" + (f" and {pixels:,} multiply-adds on pixels" if pixels else "")
    total = sum(adds.values())
    rows.append(["synaptic operations a sample", text, ""])
    rows.append(["multiply-adds of the same ANN", f"{total:,}", ""])
    rows.append(["operations over multiply-adds", f"{(operations + pixels) / total:.2f}", ""])
    return _rows(["figure", "here, mean ± standard deviation (range)", "published"], rows)


def _selection(experiment: dict[str, Any]) -> str:
    validation = experiment["samples"].get("validation", 0)
    but = ", but for the row of its best epochs" if "best_tested" in experiment["summary"] else ""
    chose = f"the test set chose nothing{but}"
    if not validation:
        return f"Model selection: none. The last epoch of each seed is reported; {chose}."
    return (
        f"Model selection: of each seed the epoch that was best on {validation:,} validation sample"
        f"{'s' * (validation != 1)}, taken from the training set and not trained on. {chose[0].upper()}{chose[1:]}."
    )


def _seed_figure(name: str, record: Mapping[str, Any]) -> str:
    return f"{record[name]:.2%}" if name in _PERCENT else f"{record[name]:.4f}"


def _seed_table(experiment: dict[str, Any]) -> str:
    figures = experiment["summary"]["test"]
    names = [name for name in figures if name in _PERCENT and not (name in _FOLLOWS and "accuracy" in figures)]
    # Real targets have no shares.
    names = names or ["mse"]
    chosen_by = next(name for name in ("accuracy", "f1", "mse") if name in figures)
    short_names = [f"by {experiment['decoders'][1]}" if name == "accuracy_spike_count" else name for name in names]
    header = [
        "seed",
        "epoch",
        "validation",
        *(f"test {name}" for name in short_names),
        *(f"{name}, last" for name in short_names),
    ]
    rows = []
    for result in experiment["seeds"]:
        validation = result["validation"]
        validation_text = "-" if validation is None else _seed_figure(chosen_by, validation)
        cells = [_seed_figure(name, result[epoch_kind]) for epoch_kind in ("test", "last") for name in names]
        rows.append([str(result["seed"]), str(result["epoch"]), validation_text, *cells])
    return _rows(header, rows) + '\n\n"last" is the last epoch.'


def _layer_table(experiment: dict[str, Any]) -> str:
    summary, adds = experiment["summary"], experiment["network"]["multiply_adds"]
    rows = []
    for layer, rate in summary["rates"].items():
        operations = summary["operations"].get(layer)
        operations_text = "pixels" if operations is None else f"{operations:,.0f}"
        rows.append([layer, f"{rate:.4f}", operations_text, f"{adds[layer]:,}"])
    header = ["layer", "spikes per neuron and step", "synaptic operations a sample", "multiply-adds of the ANN"]
    samples = min(MOST_SAMPLES, experiment["samples"]["test"])
    return _rows(header, rows) + (
        f"\n\nA synaptic operation is a spike that meets a weight, counted on {samples} test samples; an ANN's layer "
        "multiplies and adds once for every weight and place. Updates of neurons are not counted."
    )


def _conditions(experiment: dict[str, Any]) -> str:
    text_lines = []
    if experiment["source"]:
        text_lines.append(
            f"Settings: {experiment['source']}." + (f" Remark: {experiment['remark']}." if experiment["remark"] else "")
        )
    if experiment["changed"]:
        changed = (
            f"`{c['setting']}` {to_toml_value(c['here'])} instead of {to_toml_value(c['preset'])}"
            for c in experiment["changed"]
        )
        text_lines.append(f"Changed: {', '.join(changed)}.")
    text_lines.append(f"Network: {experiment['network']['notation']}.")
    text_lines += [f"Data: {note}." for note in experiment["notes"]]
    text_lines += [f"Machine: {machine}." for machine in experiment["machines"]]
    if experiment["dates"]:
        text_lines.append(f"Date: {' to '.join(dict.fromkeys((experiment['dates'][0], experiment['dates'][-1])))}.")
    return "\n".join(f"- {text_line}" for text_line in text_lines)
