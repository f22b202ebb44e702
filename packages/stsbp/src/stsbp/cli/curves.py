"""`stsbp curves`: accuracy of trained networks against time, spikes and noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from stsbp_spec.typing import Coding

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import (
    batch_size_option,
    checkpoint_option,
    choose_backend,
    say,
    say_warning,
    split_option,
    threads_option,
)
from stsbp.cli.energy import energy_table_option
from stsbp.cli.settings import complete_data_set
from stsbp.config import RunConfig
from stsbp.datasets import Split
from stsbp.datasets.base import Subset
from stsbp.energy.table import asked_table
from stsbp.energy.text import picojoules
from stsbp.energy.totals import EnergyPrices
from stsbp.errors import ConfigError, printable
from stsbp.files import as_argument
from stsbp.measures.matching import within
from stsbp.plots import PLOT, check_plots, escape_dollars, new_figure, save
from stsbp.threads import limit_threads
from stsbp.training.blank import warn_of_blank
from stsbp.training.build import TOLERANCE, contents_of, decoders, load_data, load_test_set
from stsbp.training.compare import NOT_COMPARABLE, are_comparable
from stsbp.training.curves import by_noise, over_time
from stsbp.training.evaluate_run import check_on
from stsbp.training.noise import KINDS, parse_noise
from stsbp.training.overlap import check_on_other, names_on, warn_of_seen
from stsbp.training.progress import choose_reporter
from stsbp.training.quality import QUALITIES, quality_of
from stsbp.training.run_folder import RunFolder
from stsbp.training.timing import Measuring
from stsbp.training.timing_text import chance_f1, timing_text
from stsbp.training.trained import load_trained

__all__ = ["command"]


@click.command("curves", short_help=COMMANDS["curves"])
@click.argument("runs", nargs=-1, required=True, type=PathName(path_type=Path), metavar="RUN...")
@checkpoint_option()
@split_option()
@click.option(
    "--samples", type=click.IntRange(1, 10**9), help="Use only this many samples, evenly spaced.  [default: all]"
)
@click.option("--data-dir", help="Folder of the data set.  [default: the folder that the run used]")
@click.option(
    "--on",
    metavar="DATASET",
    help="Use the test set of another data set, or all its samples if it has no test set.",
    shell_complete=complete_data_set,
)
@click.option(
    "--noise",
    "noises",
    multiple=True,
    metavar="NAME=AMOUNT,...",
    help="Kind and amounts of noise. For events, NAME is jitter, lost or added. For images, NAME is noise or lost. You "
    "can repeat the option.  [default: all kinds, with default amounts]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the noise.")
@batch_size_option
@threads_option("Number of processor threads.  [default: that of the first run]")
@click.option(
    "--energy", is_flag=True, help="Also show the accuracy against the energy that was used until the decision."
)
@energy_table_option("Energy of the operations that --energy counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each run.")
@click.option("--plot", type=PathName(path_type=Path), metavar="FILE.png", help="Draw all curves into this file.")
@click.pass_obj
def command(
    options: Globals,
    runs: tuple[Path, ...],
    checkpoint: str,
    split: str,
    samples: int | None,
    data_dir: str | None,
    on: str | None,
    noises: tuple[str, ...],
    seed: int,
    batch_size: int | None,
    threads: int | None,
    energy: bool,
    energy_table: str | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Show how the accuracy of RUNs depends on time, on the number of spikes, and on noise in the inputs.

    If labels are classes, the command shows the accuracy for each amount of noise. The command also shows the accuracy
    after each step, computed from the outputs up to this step. If labels are spike trains, the command shows only the
    F1 score, its chance level and the timing errors for each amount of noise; if targets are real numbers, the mean
    squared error.
    """
    check_on(on, split)
    table = asked_table(energy=energy, name=energy_table)
    if plot is not None:
        check_plots()
        PLOT.target_path(plot)
    folders = [RunFolder(run) for run in runs]
    configs = [folder.read_config() for folder in folders]
    if on is not None:
        for run, config in zip(runs, configs, strict=True):
            check_on_other(config, on, data_dir, str(run))
    limit_threads(configs[0].threads if threads is None else threads)
    backend = choose_backend(options)
    loaded = [load_trained(folder, checkpoint, backend, warn=say_warning) for folder in folders]
    for run, trained in zip(runs, loaded, strict=True):
        if table is not None and trained.task.inputs.sequences:
            raise ConfigError(
                f"--energy gives the energy until a class is decided, but {run} has no classes; leave --energy out. "
                f"stsbp evaluate {as_argument(run)} --energy gives the energy of its samples"
            )
    amounts = [_amounts(noises, trained.task.inputs.coding) for trained in loaded]
    reporter, curve_records, comparison = choose_reporter(), [], _Comparison(split)
    try:
        for run, config, trained, noise_amounts in zip(runs, configs, loaded, amounts, strict=True):
            task, coding = trained.task, trained.task.inputs.coding
            if on is None:
                with names_on(config, data_dir):
                    split_samples = trained.samples(load_data(config, reporter.loading, data_dir, True), split)
            else:
                split_samples = trained.other_samples(load_test_set(config, on, reporter.loading, data_dir))
            chosen = _subset(split_samples, samples)
            warn_of_blank(on or config.dataset, coding, {split: chosen}, reporter, on or config.test_on)
            shared_count = None if on is None else warn_of_seen(trained, on, chosen, reporter, str(run))
            size, total = batch_size or config.batch_size, len(chosen)
            record: dict[str, Any] = {"run": str(run), "checkpoint": checkpoint, "step": trained.info["step"]}
            record |= {
                "split": split,
                "dataset": on or config.dataset,
                "samples": total,
                "coding": coding,
                "seed": seed,
            }
            record |= {} if shared_count is None else {"seen_in_training": shared_count}
            report = _progress_callback(reporter.loading, str(run), total)
            record["decoders"] = [] if task.inputs.sequences else list(decoders(task.network.has_readout))
            if not task.inputs.sequences:
                prices = None if table is None else EnergyPrices(task.network, table)
                curve = over_time(task, trained.state, chosen, size, partial(report, "time", 0), prices)
                record |= {"settled": curve.settled, "time": curve.record()}
                record |= {} if table is None else {"energy_table": table.name}
            record["noise"] = by_noise(task, trained.state, chosen, size, noise_amounts, seed, report, Measuring())
            curve_records.append(record)
            contents = contents_of(split, chosen, sequences=task.inputs.sequences) if len(runs) > 1 else {}
            comparison.add(record, config, on, contents)
    finally:
        reporter.close()
    if as_json:
        for record in curve_records:
            click.echo(json.dumps(record))
    else:
        say(_text(curve_records, comparison))
    if plot is not None:
        _plot(curve_records, [config.loss for config in configs], comparison, plot)


class _Comparison:
    """Tells which curves of several runs are of other samples or were measured in another way, as `stsbp compare` does.

    Args:
        split: the split that the curves are of.
    """

    def __init__(self, split: str) -> None:
        self._split = split
        self._measured: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def add(self, record: dict[str, Any], config: RunConfig, on: str | None, contents: dict[str, str]) -> None:
        """Add a run.

        Args:
            record: its curves.
            config: its settings.
            on: the other data set that the samples are of; None: they are those of the run.
            contents: digests of the samples (`stsbp.training.build.contents_of`).
        """
        settings = config.model_dump()
        if on is not None:
            # Settings that choose the test samples of the run have no effect on another data set.
            settings |= {"dataset": on, "test_on": None, "holdout": None}
        facts = {"settings": settings, "contents": contents, self._split: {"samples": record["samples"]}}
        self._measured.append((record, facts))

    def mark(self, curve_records: Sequence[dict[str, Any]], measure: str) -> str:
        """What follows the title of a table or the label of an axis: ` *` if the runs are not comparable."""
        run_facts = [facts for record, facts in self._measured if any(record is shown for shown in curve_records)]
        return "" if are_comparable(run_facts, self._split, measure) else " *"


def _amounts(noises: Sequence[str], coding: Coding) -> dict[str, list[float]]:
    """The amounts of each kind of noise, ascending, from all the times that it is named. By default all kinds."""
    amounts_by_kind: dict[str, list[float]] = {}
    for name, amounts in (parse_noise(text, coding) for text in noises or KINDS[coding]):
        amounts_by_kind[name] = sorted({*amounts_by_kind.get(name, ()), *amounts})
    return amounts_by_kind


def _progress_callback(
    loading: Callable[[str, int, int], None], run: str, total: int
) -> Callable[[str, float, int], None]:
    """A function that reports what is measured, the current amount of noise and the number of finished samples."""
    return lambda noise_name, amount, samples_done: loading(
        f"{run}: {noise_name} {amount:g}" if amount else f"{run}: {noise_name}", samples_done, total
    )


def _subset(samples: Split, count: int | None) -> Split:
    """`count` of the samples, spread evenly; all of them if there are no more.

    Raises:
        ConfigError: there are no samples.
    """
    if len(samples) == 0:
        raise ConfigError("the run has no such samples")
    if count is None or count >= len(samples):
        return samples
    return Subset(samples, np.linspace(0, len(samples) - 1, count).round().astype(np.int64))


def _measure(record: dict[str, Any]) -> str:
    """The quality measure of a run: that of classes, or that of spike trains."""
    if "time" in record:
        return "accuracy"
    figures = next(iter(record["noise"].values()))[0]
    return quality_of(figures).key


_NAMES = {"accuracy": "accuracy", "f1": f"F1 {within(TOLERANCE)}", "mse": "mean squared error"}


def _by_noise(curve_records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs that share a table and a panel: those with the same kind of noise and the same quality measure."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in curve_records:
        for name in record["noise"]:
            groups.setdefault((name, _measure(record)), []).append(record)
    return groups


def _meaning(name: str, records: Sequence[dict[str, Any]]) -> str:
    """What an amount of a kind of noise means for these runs."""
    return "; ".join(dict.fromkeys(KINDS[record["coding"]][name].text for record in records))


def _text(curve_records: Sequence[dict[str, Any]], comparison: _Comparison) -> str:
    """Tables with a column for each run: accuracy and operations after each step, and quality by amount of noise.

    Titles of tables whose runs are not comparable have a mark, which the last line explains.
    """
    names = [record["run"] for record in curve_records]
    parts = [
        f"{r['run']}: {r['samples']} {r['split']} samples of {r['dataset']}, after update {r['step']}"
        for r in curve_records
    ]
    timed = [record for record in curve_records if "time" in record]
    marks = []
    if timed:
        marks.append(mark := comparison.mark(timed, "accuracy"))
        for decoder_index, key in enumerate(("accuracy", "accuracy_spike_count")):
            rules = "/".join(dict.fromkeys(record["decoders"][decoder_index] for record in timed))
            parts += ["", f"accuracy after so many steps, {rules}{mark}:"]
            parts += _table("step", [(r["run"], {m["step"]: f"{m[key]:.2%}" for m in r["time"]}) for r in timed])
        parts += ["", f"synaptic operations of a sample up to then (spikes of all neurons){mark}:"]
        shown = [
            (r["run"], {m["step"]: f"{m['operations']:,.0f} ({m['spikes']:,.0f})" for m in r["time"]}) for r in timed
        ]
        parts += _table("step", shown)
        if priced := [record for record in timed if "energy_table" in record]:
            table_name = printable(priced[0]["energy_table"])
            parts += ["", f"energy of a sample up to then, by the table {table_name}{mark}:"]
            parts += _table("step", [(r["run"], {m["step"]: picojoules(m["pj"]) for m in r["time"]}) for r in priced])
        parts += ["", f"step from which on the answer stays the same, mean{mark}:"]
        width = max(map(len, names))
        parts += [f"  {record['run']:<{width}}  {record['settled']:.2f}" for record in timed]
    for (name, key), group_records in _by_noise(curve_records).items():
        marks.append(mark := comparison.mark(group_records, key))
        parts += ["", f"{_NAMES[key]} by {name} ({_meaning(name, group_records)}){mark}:"]
        parts += _table(
            name,
            [(r["run"], {e["amount"]: QUALITIES[key].text(e[key]) for e in r["noise"][name]}) for r in group_records],
        )
        if key == "f1":
            parts += _spike_times(name, group_records, mark)
    parts += [NOT_COMPARABLE] if any(marks) else []
    return "\n".join(parts)


def _spike_times(name: str, records: Sequence[dict[str, Any]], mark: str) -> list[str]:
    """Tables of the chance level of F1, and of the timing errors, by the amount of a kind of noise."""
    parts: list[str] = []
    rows = [(r["run"], [(e["amount"], e["measures"]) for e in r["noise"][name] if "measures" in e]) for r in records]
    for title, text in ((f"{_NAMES['f1']} by chance", _chance_text), ("timing error, median (quartiles)", _error_text)):
        parts += ["", f"{title}, by {name}{mark}:"]
        parts += _table(name, [(run, {amount: text(measures) for amount, measures in cells}) for run, cells in rows])
    return parts


def _chance_text(measures: dict[str, Any]) -> str:
    share = chance_f1(measures)
    return "-" if share is None else f"{share:.2%}"


def _error_text(measures: dict[str, Any]) -> str:
    return timing_text(measures["timing_error"])


def _table(first: str, columns: Sequence[tuple[str, dict[Any, str]]]) -> list[str]:
    """A table with a row for each key in any of the columns, and a column for each name."""
    keys = sorted({key for _, cells in columns for key in cells})
    row_names = [first, *(f"{key:g}" for key in keys)]
    rows = [[name, *(cells.get(key, "-") for key in keys)] for name, cells in columns]
    widths = [max(map(len, column)) for column in (row_names, *rows)]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(row_names, *rows, strict=True)
    ]


def _plot(curve_records: Sequence[dict[str, Any]], losses: Sequence[str], comparison: _Comparison, path: Path) -> None:
    """Draw one panel per curve, with one line per run. Panels whose runs are not comparable have a mark."""
    timed = any("time" in record for record in curve_records)
    panels = [("time", "step", "accuracy", "steps until the decision")] if timed else []
    panels += [("time", "operations", "accuracy", "synaptic operations until the decision")] if timed else []
    if tables := {record["energy_table"] for record in curve_records if "energy_table" in record}:
        panels.append(("time", "pj", "accuracy", f"energy until the decision, pJ ({escape_dollars(tables.pop())})"))
    for (name, key), group_records in _by_noise(curve_records).items():
        panels.append((name, "amount", key, f"{name}: {_meaning(name, group_records)}"))
    columns = min(3, len(panels))
    figure = new_figure(4 * columns, 0.4 + 3 * -(-len(panels) // columns))
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    short_names = [Path(record["run"]).name for record in curve_records]
    # Seeds of two experiments may have the same names.
    runs = short_names if len({*short_names}) == len(short_names) else [record["run"] for record in curve_records]
    # Legends leave out names that begin with an underscore, as that of a folder may.
    names = [escape_dollars(f"{loss}, {run}") for run, loss in zip(runs, losses, strict=True)]
    plot_lines: dict[str, Any] = {}
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    for panel, (curve, x, key, axis_text) in zip(axes, panels, strict=False):
        for number, (record, name) in enumerate(zip(curve_records, names, strict=True)):
            rows = record["noise"].get(curve, []) if x == "amount" else record.get(curve, [])
            if rows and _measure(record) == key:
                y = [(100 if QUALITIES[key].is_share else 1) * row[key] for row in rows]
                (plot_lines[name],) = panel.plot([row[x] for row in rows], y, marker=".", color=f"C{number}")
                chances = [chance_f1(row["measures"]) for row in rows if key == "f1" and "measures" in row]
                if len(chances) == len(rows) and None not in chances:
                    shares = [100 * share for share in chances if share is not None]
                    (plot_lines["F1 by chance"],) = panel.plot(
                        [row[x] for row in rows], shares, ":", color=f"C{number}"
                    )
        if x == "step" or curve == "jitter":
            panel.xaxis.get_major_locator().set_params(integer=True)
        if x == "pj":
            # Networks can differ by powers of ten.
            panel.set_xscale("log")
        drawn = [
            record
            for record in curve_records
            if _measure(record) == key and curve in (record["noise"] if x == "amount" else record)
        ]
        mark = comparison.mark(drawn, key)
        # The whole explanation is too long for a panel. The text of the command has it.
        panel.set_xlabel(f"{axis_text}\n* not comparable" if mark else axis_text, fontsize=7)
        panel.set_ylabel(f"{_NAMES[key]}{', %' if QUALITIES[key].is_share else ''}{mark}", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(color="0.9")
    axes[0].legend([*plot_lines.values()], [*plot_lines], fontsize=7)
    save(figure, path)
