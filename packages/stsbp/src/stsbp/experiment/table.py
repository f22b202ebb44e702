"""The table of an experiment: a summary over its seeds, beside the published result and its conditions."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from stsbp_spec.networks.spec import NetworkSpec

from stsbp.config import FREE, RunConfig, to_toml_value
from stsbp.errors import printable
from stsbp.experiment.run import FORMAT, Experiment, same_command
from stsbp.presets import NamedPreset
from stsbp.training.build import decoders
from stsbp.training.operations import MOST_SAMPLES

__all__ = ["document", "markdown"]

_PERCENT = {
    "accuracy": "accuracy, {0}",
    "accuracy_spike_count": "accuracy, {1}",
    "precision": "precision of spike times",
    "recall": "recall of spike times",
    "f1": "F1 of spike times",
}
"""Figures that are shares, in words with the two decoders."""
_FOLLOWS = ("precision", "recall", "f1", "van_rossum", "hamming")
"""Measures of how well the outputs match their label sequences, if labels are classes."""
_NOT_SHOWN = FREE | {"seed", "test_every", "validation"}
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
        overlaps: warnings of test samples that the networks were trained on.
    """
    own, plain, data = experiment.config.model_dump(), base.model_dump(), experiment.data
    starts = [start for seed in experiment.seeds for start in experiment.folder(seed).starts()]
    read = {block.name: network.graph.projections_to(block.population) for block in network.blocks}
    changed = [key for key in own if key not in _NOT_SHOWN and own[key] != plain[key]]
    return {
        "format": FORMAT,
        "stsbp": importlib.metadata.version("stsbp"),
        "experiment": name,
        "source": None if preset is None else preset.source,
        "published": None if preset is None or preset.published is None else preset.published._asdict(),
        "remark": "" if preset is None else preset.remark,
        "command": list(command),
        "asked": list(experiment.seeds),
        "settings": {key: value for key, value in own.items() if key != "seed"},
        "changed": [{"setting": key, "preset": plain[key], "here": own[key]} for key in changed],
        "notes": [*data.dataset.notes, *overlaps],
        "samples": {split: len(samples) for split, samples in data.splits().items()},
        "decoders": [] if data.inputs.sequences else list(decoders(network.has_readout)),
        "network": {
            "notation": str(network),
            "multiply_adds": {name: sum(each.multiply_adds for each in weights) for name, weights in read.items()},
            "pixels": {
                name: sum(each.multiply_adds for each in weights if each.input.static)
                for name, weights in read.items()
                if any(each.input.static for each in weights)
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
        where = f"{start.get('processors')} processors, {start.get('platform')}, Python {start.get('python')}"
        texts.append(", ".join([f"{backend} on {device}", *used, where]))
    return list(dict.fromkeys(texts))


def _summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, spread and range over the seeds, for the reported epoch (`test`) and the last epoch (`last`). If each epoch
    was tested, also for the epoch with the best test result (`best_tested`)."""
    summary: dict[str, Any] = {"seeds": len(results)}
    for where in ("test", "last", "best_tested"):
        if any(result[where] is None for result in results):
            continue
        every = (*_PERCENT, "van_rossum", "hamming", "loss")
        names = [name for name in every if all(name in result[where] for result in results)]
        summary[where] = {name: _spread([r[where][name] for r in results]) for name in names}
    for key, found in (("rates", [r["test"]["rates"] for r in results]), ("operations", _of(results, "operations"))):
        summary[key] = {layer: fmean(values[layer] for values in found) for layer in found[0]}
    summary["seconds_per_epoch"] = _spread(_of(results, "seconds_per_epoch"))
    return summary


def _of(results: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [result[key] for result in results]


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values), "deviation": deviation, "least": min(values), "most": max(values)}


def markdown(found: dict[str, Any]) -> str:
    """A result of `document` as Markdown text."""
    parts = [f"# {found['experiment']} on {found['settings']['dataset']}"]
    done, asked = {result["seed"] for result in found["seeds"]}, found["asked"]
    if missing := [seed for seed in asked if seed not in done]:
        parts.append(
            f"**{len(done)} of {len(asked)} seeds are done**, {', '.join(map(str, missing))} not yet. "
            f"Run {same_command(found['command'])} to continue."
        )
    if found["summary"] is not None:
        parts += [_main_table(found), _selection(found), _seed_table(found), _layer_table(found)]
    parts += [_conditions(found), f"Made by `{shlex.join(found['command'])}`, stsbp {found['stsbp']}."]
    return printable("\n\n".join(parts) + "\n", lines=True)


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(spread: dict[str, Any], *, percent: bool) -> str:
    scale, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    mean = f"{scale * spread['mean']:.{digits}f}"
    if spread["deviation"] is None:
        return mean + unit
    least, most = (f"{scale * spread[key]:.{digits}f}" for key in ("least", "most"))
    return f"{mean} ± {scale * spread['deviation']:.{digits}f}{unit} ({least} to {most})"


def _text(found: dict[str, Any], name: str) -> str:
    """A figure in words."""
    return _PERCENT.get(name, name.replace("_", " ")).format(*found["decoders"])


def _main_table(found: dict[str, Any]) -> str:
    summary, published = found["summary"], found["published"]
    rows = []
    for name, spread in summary["test"].items():
        if name != "loss":
            text = f"test {_text(found, name)}"
            if name in _FOLLOWS and "accuracy" in summary["test"]:
                text += ", outputs against label sequences"
            figure = f"{published['accuracy']:.2f} %" if published and name == "accuracy" else ""
            rows.append([text, _shown(spread, percent=name in _PERCENT), figure])
    if "best_tested" in summary:
        name = next(name for name in ("accuracy", "f1") if name in summary["best_tested"])
        text = f"test {_text(found, name)}, best epoch of each seed by the test set itself"
        rows.append([text, _shown(summary["best_tested"][name], percent=True), ""])
    settings, samples = found["settings"], found["samples"]
    split = (
        f"{samples['train']:,} training, {samples.get('validation', 0):,} validation, {samples['test']:,} test samples"
    )
    counts = ", ".join(
        f"{n} {what}{'s' * (n != 1)}" for n, what in ((settings["epochs"], "epoch"), (summary["seeds"], "seed"))
    )
    here = f"{split}, T = {settings['steps']}, {counts}"
    rows.append(["conditions", here, published["conditions"] if published else ""])
    rows.append(["seconds per epoch, training alone", f"{summary['seconds_per_epoch']['mean']:.2f}", ""])
    operations, adds = sum(summary["operations"].values()), found["network"]["multiply_adds"]
    pixels = sum(found["network"]["pixels"].values())
    text = f"{operations:,.0f} additions" + (f" and {pixels:,} multiply-adds on pixels" if pixels else "")
    total = sum(adds.values())
    rows.append(["synaptic operations a sample", text, ""])
    rows.append(["multiply-adds of the same ANN", f"{total:,}", ""])
    rows.append(["operations over multiply-adds", f"{(operations + pixels) / total:.2f}", ""])
    return _rows(["figure", "here, mean ± standard deviation (range)", "published"], rows)


def _selection(found: dict[str, Any]) -> str:
    validation = found["samples"].get("validation", 0)
    but = ", but for the row of its best epochs" if "best_tested" in found["summary"] else ""
    chose = f"the test set chose nothing{but}"
    if not validation:
        return f"Model selection: none. The last epoch of each seed is reported; {chose}."
    return (
        f"Model selection: of each seed the epoch that was best on {validation:,} validation sample"
        f"{'s' * (validation != 1)}, taken from the training set and not trained on. {chose[0].upper()}{chose[1:]}."
    )


def _seed_table(found: dict[str, Any]) -> str:
    figures = found["summary"]["test"]
    names = [name for name in figures if name in _PERCENT and not (name in _FOLLOWS and "accuracy" in figures)]
    short = [f"by {found['decoders'][1]}" if name == "accuracy_spike_count" else name for name in names]
    header = ["seed", "epoch", "validation", *(f"test {name}" for name in short), *(f"{name}, last" for name in short)]
    rows = []
    for result in found["seeds"]:
        validation = result["validation"]
        shown = "-" if validation is None else f"{validation['accuracy' if 'accuracy' in validation else 'f1']:.2%}"
        cells = [f"{result[where][name]:.2%}" for where in ("test", "last") for name in names]
        rows.append([str(result["seed"]), str(result["epoch"]), shown, *cells])
    return _rows(header, rows) + '\n\n"last" is the last epoch.'


def _layer_table(found: dict[str, Any]) -> str:
    summary, adds = found["summary"], found["network"]["multiply_adds"]
    rows = []
    for layer, rate in summary["rates"].items():
        operations = summary["operations"].get(layer)
        shown = "pixels" if operations is None else f"{operations:,.0f}"
        rows.append([layer, f"{rate:.4f}", shown, f"{adds[layer]:,}"])
    header = ["layer", "spikes per neuron and step", "synaptic operations a sample", "multiply-adds of the ANN"]
    samples = min(MOST_SAMPLES, found["samples"]["test"])
    return _rows(header, rows) + (
        f"\n\nA synaptic operation is a spike that meets a weight, counted on {samples} test samples; an ANN's layer "
        "multiplies and adds once for every weight and place. Updates of neurons are not counted."
    )


def _conditions(found: dict[str, Any]) -> str:
    lines = []
    if found["source"]:
        lines.append(f"Settings: {found['source']}." + (f" Remark: {found['remark']}." if found["remark"] else ""))
    if found["changed"]:
        changed = (
            f"`{c['setting']}` {to_toml_value(c['here'])} instead of {to_toml_value(c['preset'])}"
            for c in found["changed"]
        )
        lines.append(f"Changed: {', '.join(changed)}.")
    lines.append(f"Network: {found['network']['notation']}.")
    lines += [f"Data: {note}." for note in found["notes"]]
    lines += [f"Machine: {machine}." for machine in found["machines"]]
    if found["dates"]:
        lines.append(f"Date: {' to '.join(dict.fromkeys((found['dates'][0], found['dates'][-1])))}.")
    return "\n".join(f"- {line}" for line in lines)
