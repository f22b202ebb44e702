"""`stsbp compare`: shows runs side by side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import say, say_warning
from stsbp.config import OWN, PATHS, RunConfig
from stsbp.datasets.registry import named_path
from stsbp.energy.text import picojoules
from stsbp.errors import ConfigError, printable
from stsbp.files import real
from stsbp.measures.matching import within
from stsbp.training.build import TOLERANCE
from stsbp.training.compare import (
    NOT_COMPARABLE,
    SHORT,
    are_comparable,
    facts,
    have_other_samples,
    rows,
    rows_csv,
    sample_settings,
    sorted_facts,
)
from stsbp.training.regression_text import error_cells
from stsbp.training.run_folder import RunFolder
from stsbp.training.timing_text import latency_text, mean_text, timing_text

__all__ = ["command"]

_FIGURES = (
    *("accuracy", "accuracy_spike_count", "precision", "recall", "f1"),
    *("van_rossum", "hamming", "mse", "loss"),
)
_MATCHED = {"precision": "precision", "recall": "recall", "f1": "F1"}
"""Figures that have a tolerance."""
_STORED = {**{user_class.model: setting for setting, user_class in OWN.items()}, "init_sha256": "init_from"}
"""Texts that a run stores for a setting: the equations of a class, or the digest of a checkpoint."""


@click.command("compare", short_help=COMMANDS["compare"])
@click.argument("runs", nargs=-1, required=True, type=PathName(path_type=Path), metavar="RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each run.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with one row for each run.")
@click.option(
    "--sort",
    "sort_key",
    metavar="KEY",
    help="Sort the runs by this column of --csv, for example test.accuracy or lr, smallest first.",
)
@click.option("--reverse", is_flag=True, help="Sort the largest value first.")
@click.option(
    "--short",
    is_flag=True,
    help="Show only the settings that differ, the epochs, the accuracy (F1 or mean squared error for other labels), "
    "the loss, the energy and the time.",
)
def command(
    runs: tuple[Path, ...], as_json: bool, as_csv: bool, sort_key: str | None, reverse: bool, short: bool
) -> None:
    """Show RUNs side by side: results, spike rates, times, and the settings that differ.

    The command reads only the records of the runs, so it needs no data set and no backend. If you name several
    RUNs, the command skips paths that are not runs, and prints a note.

    In a terminal, a table that is too wide is split into several tables. In a file or a pipe, the command writes one
    table with full paths.
    """
    if as_json and (as_csv or short):
        raise ConfigError("--json prints everything, in its own form; leave --csv and --short out")
    run_facts = [facts(run, say_warning) for run in _chosen(runs)]
    run_facts = sorted_facts(run_facts, sort_key, reverse=reverse)
    if as_csv:
        click.echo(rows_csv(rows(run_facts, short=short)), nl=False)
        return
    if as_json:
        for fact in run_facts:
            click.echo(json.dumps(fact))
        return
    say(_table(run_facts, shutil.get_terminal_size().columns if sys.stdout.isatty() else None, short=short))


def _chosen(runs: Sequence[Path]) -> list[Path]:
    """The paths that are runs. If none is a run, all of them, so that the error names the first."""
    not_runs = [run for run in runs if run.exists() and not RunFolder(run).is_run]
    if len(not_runs) == len(runs):
        return list(runs)
    for path in not_runs:
        seeds = any(path.glob("seed-*/config.toml"))
        description = "an experiment: its runs are " + click.format_filename(path / "seed-*") if seeds else "no run"
        with contextlib.suppress(OSError):
            click.echo(f"{click.format_filename(path)} is left out: it is {description}", err=True)
    return [run for run in runs if run not in not_runs]


def _label(measure: str, run_facts: Sequence[dict[str, Any]]) -> str:
    """What a figure of these runs is called."""
    if measure in _MATCHED:
        return f"{_MATCHED[measure]} {within(TOLERANCE)}"
    if measure != "accuracy_spike_count":
        return measure.replace("_", " ")
    return "accuracy " + " or ".join(dict.fromkeys(fact["decoders"][1] for fact in run_facts))


def _shortened_paths(values: list[str]) -> list[str]:
    """Settings that are paths, shortened to their last parts. Unchanged if different paths would look the same."""
    shortened = []
    for value in values:
        named = named_path(value)
        prefix, path = ("", value) if named is None else (named[0], str(named[1]))
        shortened.append(prefix + os.path.basename(path))
    return shortened if len({*shortened}) == len({*values}) else values


def _side_by_side(widths: list[int], room: int | None) -> list[list[int]]:
    """The columns for each table: as many as fit into `room` characters, but at least one."""
    groups: list[list[int]] = []
    remaining_width = 0
    for number, width in enumerate(widths):
        if not groups or (room is not None and remaining_width < width + 2):
            groups.append([])
            remaining_width = room or 0
        groups[-1].append(number)
        remaining_width -= width + 2
    return groups


def _are_told_apart(run_facts: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether the setting to which the text `key` belongs has another value wherever the text is another one."""
    pairs = {(fact["settings"][_STORED[key]], fact["settings"][key]) for fact in run_facts}
    return len({named for named, _ in pairs}) == len(pairs)


def _numbered(prefix: str, texts: Sequence[str]) -> list[str]:
    """Names for long texts: `version 1`, `version 2`, ... in their order. Empty texts stay empty."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(filter(None, texts)), 1)}
    return [f"{prefix} version {numbers[text]}".strip() if text else "" for text in texts]


def _spike_times(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Rows of the measures of spike times: their names, and a cell for each record."""
    measured = [record.get("measures") for record in records]
    rows: dict[str, dict[int, str]] = {}
    for number, measures in enumerate(measured):
        if measures is not None:
            chance = measures["chance"] or {"f1": [], "tolerances": []}
            for source, suffix in ((measures, ""), (chance, " by chance")):
                for tolerance, share in zip(source["tolerances"], source["f1"], strict=True):
                    if suffix or tolerance != TOLERANCE:
                        rows.setdefault(f"F1 {within(tolerance)}{suffix}", {})[number] = f"{share:.2%}"
            text_by_name = {
                f"timing error {within(measures['timing_error']['tolerance'])}": timing_text(measures["timing_error"]),
                "step of first right spike": latency_text(measures["latency"]),
                f"Victor-Purpura, cost {measures['victor_purpura']['cost']:g}": mean_text(measures["victor_purpura"]),
            }
            for name, text in text_by_name.items():
                rows.setdefault(name, {})[number] = text
    return [(name, [cells.get(number, "-") for number in range(len(records))]) for name, cells in rows.items()]


def _regression(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Rows of R2 and sMAPE of runs whose targets are real numbers, beside sMAPE of the target of the step before."""
    errors = [record.get("regression") or {} for record in records]
    _, r2, smape = map(list, zip(*map(error_cells, errors), strict=True))
    last = [error_cells(error.get("baselines", {}).get("last_value", {})) for error in errors]
    rows = [("R2", r2), ("sMAPE", smape), ("sMAPE of the target of the step before", [cells[2] for cells in last])]
    return [(name, cells) for name, cells in rows if set(cells) != {"-"}]


def _have_same_samples(run_facts: Sequence[dict[str, Any]], split: str) -> bool:
    """Whether a split of these runs has the same samples: by their checkpoints, or else by their settings."""
    if all(fact["contents"] for fact in run_facts):
        return not have_other_samples(run_facts, split)
    return len({tuple(fact["settings"][key] for key in sample_settings(split)) for fact in run_facts}) == 1


def _energies(run_facts: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A row of energies for each energy table and each set of samples that some run has.

    Tables of one name may have other prices, and data sets of one name other samples: such rows are numbered. The name
    of a row says where an earlier version stored no digest of the prices.
    """
    rows: dict[tuple[str, str | None, int], dict[int, str]] = {}
    for number, fact in enumerate(run_facts):
        if (energy := fact["energy"]) is None:
            continue
        samples = f"{energy['samples']:,} {energy['split']} samples of {energy['dataset']}"
        row_name = printable(f"energy of {samples}, mean, {energy['table']}")
        version = 0
        while (cells := rows.get((row_name, energy["table_sha256"], version))) is not None:
            if _have_same_samples([*(run_facts[other] for other in cells), fact], energy["split"]):
                break
            version += 1
        key = row_name, energy["table_sha256"], version
        rows.setdefault(key, {})[number] = picojoules(energy["pj"]["total"])
    result = list[tuple[str, list[str]]]()
    for (row_name, prices, version), cells in rows.items():
        same_name = [key for key in rows if key[0] == row_name]
        tables = [digest for digest in dict.fromkeys(key[1] for key in same_name) if digest is not None]
        described = row_name
        if prices is None:
            described += ", prices not stored: not comparable"
        elif len(tables) > 1:
            described += f", prices version {tables.index(prices) + 1}"
        if any(key[2] for key in same_name if key[1] == prices):
            described += f", samples version {version + 1}"
        result.append((described, [cells.get(number, "-") for number in range(len(run_facts))]))
    return result


def _table(run_facts: list[dict[str, Any]], columns: int | None, *, short: bool = False) -> str:
    """The runs side by side, as many as fit into the width of a terminal. The other runs follow below.

    `short`: only the figures of `SHORT`, the energy and the time.
    """
    names = [real(Path(fact["run"])).name for fact in run_facts]
    # Runs of two experiments may have the same names.
    names = names if len({*names}) == len(names) else [fact["run"] for fact in run_facts]
    table_rows: list[tuple[str, list[str]]] = [("run", names)]
    for key in RunConfig.model_fields:
        values = [fact["settings"][key] for fact in run_facts]
        if key == "dataset" or any(value != values[0] for value in values):
            if key in _STORED:
                if _are_told_apart(run_facts, key):
                    continue
                cells = _numbered("", values)
            elif key == "net":
                nodes = _numbered("nodes", [value if "\n" in value else "" for value in values])
                cells = [text or value for text, value in zip(nodes, values, strict=True)]
            else:
                cells = [str(value) for value in values]
            table_rows.append((key, _shortened_paths(cells) if key in PATHS and columns is not None else cells))
    table_rows.append(("epochs done", [f"{fact['epochs']} of {fact['settings']['epochs']}" for fact in run_facts]))
    marked = False
    # F1 is the quality of runs without classes only.
    figures = [key for key in _FIGURES if key in SHORT] if short else list(_FIGURES)
    if short and any("accuracy" in (fact["training"] or {}) for fact in run_facts):
        figures.remove("f1")
    for split in ("training", "validation", "test"):
        records = [fact[split] or {} for fact in run_facts]
        counts = [record.get("samples") for record in records]
        if any(counts) and not short:
            table_rows.append((f"{split} samples", [str(count or "-") for count in counts]))
        for key in figures:
            if any(key in record for record in records):
                shown = ".4g" if key == "mse" else ".4f" if key in ("van_rossum", "hamming", "loss") else ".2%"
                cells = [format(record[key], shown) if key in record else "-" for record in records]
                measured = [fact for fact, record in zip(run_facts, records, strict=True) if key in record]
                mark = "" if are_comparable(measured, split, key) else " *"
                marked |= bool(mark)
                table_rows.append((f"{split} {_label(key, measured)}{mark}", cells))
        if short:
            continue
        measured = [fact for fact, record in zip(run_facts, records, strict=True) if record.get("measures")]
        mark = "" if are_comparable(measured, split, "f1") else " *"
        spike_times = _spike_times(records)
        marked |= bool(mark and spike_times)
        table_rows += [(f"{split} {name}{mark}", cells) for name, cells in spike_times]
        measured = [fact for fact, record in zip(run_facts, records, strict=True) if record.get("regression")]
        mark = "" if are_comparable(measured, split, "mse") else " *"
        errors = _regression(records)
        marked |= bool(mark and errors)
        table_rows += [(f"{split} {name}{mark}", cells) for name, cells in errors]
    table_rows += _energies(run_facts)
    trained = [fact["training"] or {} for fact in run_facts]
    for layer in () if short else dict.fromkeys(name for record in trained for name in record.get("rates", {})):
        cells = [f"{r['rates'][layer]:.4f}" if layer in r.get("rates", {}) else "-" for r in trained]
        table_rows.append((f"spike rate {layer}", cells))
    table_rows.append(("training seconds", [f"{fact['seconds']:.0f}" for fact in run_facts]))
    if not short:
        table_rows.append(("backend", [fact["backend"] or "-" for fact in run_facts]))
    table_rows = [(name, [printable(cell) for cell in cells]) for name, cells in table_rows]
    widths = [max(len(row[1][i]) for row in table_rows) for i in range(len(run_facts))]
    name_width = max(len(name) for name, _ in table_rows)
    text_lines: list[str] = []
    for group in _side_by_side(widths, None if columns is None else columns - name_width):
        text_lines += [""] if text_lines else []
        for name, cells in table_rows:
            aligned = "  ".join(cells[i].rjust(widths[i]) for i in group)
            text_lines.append(f"{name:<{name_width}}  {aligned}".rstrip())
    if marked:
        text_lines.append(NOT_COMPARABLE)
    return "\n".join(text_lines)
