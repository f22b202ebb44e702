"""The trials of a sweep as a table, as CSV and as an HTML page, and the command that trains one of them again.

All of it is made from the storage of the study alone. The folders of the runs are not read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stsbp.config import OWN, RunConfig, SettingsSource, resolve
from stsbp.errors import printable
from stsbp.files import OutputKind
from stsbp.report import svg
from stsbp.report.page import page
from stsbp.report.svg import Figure, PointSeries
from stsbp.sweeps.objectives import Objective
from stsbp.training.compare import rows_csv

__all__ = [
    "CSV",
    "TrialRow",
    "best_rows",
    "columns",
    "csv_text",
    "html_page",
    "print_table",
    "train_words",
    "values_of",
]

CSV = OutputKind("the trials of a sweep", re.compile(rb"trial,state,"))
"""The kind of file that the table of a sweep may replace."""
_FINISHED = "finished"
_WIDE = 10_000
"""Width in characters of a table that is written to a file or a pipe."""
_OF_RUNS = ("test_every", "log_every", "checkpoint_every", "init_sha256", *(own.model for own in OWN.values()))
"""Settings that the command to train again leaves out."""


@dataclass(frozen=True)
class TrialRow:
    """A trial.

    Attributes:
        number: its number in the study.
        state: `finished`, `pruned`, `failed`, `running` or `waiting`; `tried again`: it was lost, and a later trial has
            the same values.
        params: the values of the varied settings; None: not yet chosen.
        values: the values of the objectives; empty if it is not finished.
        figures: all figures of its run that are known, and `epoch`, the number of its best epoch.
        last: the last reported value of a pruned trial; None: there is none, or it was not pruned.
        epochs: number of epochs whose values were reported to the pruner; None: none.
        folder: name of the folder of its run.
        again: number of the lost trial whose values it tries again; None: they are new.
        reason: why it failed.
        options: options of `stsbp` with which it was trained: backend and device.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: tuple[float, ...]
    figures: Mapping[str, float]
    last: float | None
    epochs: int | None
    folder: str
    again: int | None
    reason: str
    options: tuple[str, ...] = ()


def columns(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """A row of plain values for each trial: `trial`, `state`, the settings, the objectives, `epoch`, `seconds`, and
    so on."""
    return [
        {
            "trial": row.number,
            "state": row.state,
            **row.params,
            **values_of(row, objectives),
            **{f"figure.{key}": value for key, value in row.figures.items() if key not in ("epoch", "seconds")},
            "epoch": None if "epoch" not in row.figures else int(row.figures["epoch"]),
            "seconds": row.figures.get("seconds"),
            "run": row.folder,
            "tries_again": row.again,
            "reason": row.reason,
        }
        for row in rows
    ]


def values_of(row: TrialRow, objectives: Sequence[Objective]) -> dict[str, float | None]:
    """The values of the objectives of a trial by name. A pruned trial has the last one that was reported."""
    values: Sequence[float | None] = row.values or (row.last,) * len(objectives)
    return {objective.key: value for objective, value in zip(objectives, values, strict=True)}


def best_rows(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> list[TrialRow]:
    """The finished trials that no other one beats: for one objective, the best and those that equal it; for several,
    the Pareto front. They are in the order of the first objective, best first."""
    signs = [-1 if objective.maximise else 1 for objective in objectives]
    finished = [row for row in rows if row.state == _FINISHED]
    costs = {row.number: tuple(s * x for s, x in zip(signs, row.values, strict=True)) for row in finished}

    def is_beaten(row: TrialRow) -> bool:
        own = costs[row.number]
        return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in costs.values())

    return sorted((row for row in finished if not is_beaten(row)), key=lambda row: (costs[row.number], row.number))


def csv_text(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> str:
    """The trials as CSV."""
    table = columns(rows, objectives)
    names = dict.fromkeys(name for row in table for name in row)
    # Other figures come last, because only some trials have all of them.
    return rows_csv(table, sorted(names, key=lambda name: name.startswith("figure.")))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return printable(f"{value:.6g}" if isinstance(value, float) else str(value))


def _cells(row: TrialRow, objectives: Sequence[Objective], *, is_best: bool) -> list[str]:
    values = values_of(row, objectives)
    epoch = row.figures.get("epoch", row.epochs)
    note = row.reason or ("" if row.again is None else f"tries trial {row.again} again")
    return [
        f"{row.number}{'*' * is_best}",
        row.state,
        *map(_shown, row.params.values()),
        *("-" if (x := values[objective.key]) is None else objective.shown(x) for objective in objectives),
        "-" if epoch is None else f"{epoch:.0f}",
        f"{row.figures['seconds']:.0f}" if "seconds" in row.figures else "-",
        printable(note.splitlines()[0] if note else ""),
    ]


def _table_rows(rows: Sequence[TrialRow], varied: Sequence[str], objectives: Sequence[Objective]) -> list[list[str]]:
    """A head, and a row of cells for each trial."""
    best = {row.number for row in best_rows(rows, objectives)}
    head = ["trial", "state", *varied, *(objective.key for objective in objectives), "epoch", "seconds", ""]
    cells = [_cells(row, objectives, is_best=row.number in best) for row in rows]
    if not any(row[-1] for row in cells):
        head, cells = head[:-1], [row[:-1] for row in cells]
    return [head, *cells]


def print_table(
    rows: Sequence[TrialRow], varied: Sequence[str], objectives: Sequence[Objective], file: IO[str]
) -> None:
    """Print the trials as a table. Those that no other one beats have a star."""
    head, *cells = _table_rows(rows, varied, objectives)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(head):
        is_text = number == 1 or name == ""
        table.add_column(Text(name), justify="left" if is_text else "right", overflow="fold")
    for row in cells:
        # As `Text`, brackets are no markup.
        table.add_row(*map(Text, row))
    is_terminal = file.isatty()
    console = Console(file=file, width=None if is_terminal else _WIDE, highlight=False, soft_wrap=False)
    with console.capture() as captured:
        console.print(table)
    text = captured.get()
    file.write(text if is_terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def train_words(config: RunConfig, out: str) -> list[str]:
    """The words of `stsbp train` that train with these settings. The network is then also tested."""
    words = ["train", config.dataset]
    default = resolve([SettingsSource("default", {"dataset": config.dataset, "loss": config.loss})])
    for name in RunConfig.model_fields:
        value = getattr(config, name)
        # The default settings of a data set depend on the loss.
        usual = RunConfig.model_fields[name].default if name == "loss" else getattr(default, name)
        if name in ("dataset", "test", *_OF_RUNS) or value == usual:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", _word(value)]
    return [*words, "--out", out]


def _word(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def html_page(
    title: str,
    rows: Sequence[TrialRow],
    varied: Sequence[str],
    objectives: Sequence[Objective],
    explanation: str,
    commands: Mapping[int, str],
) -> str:
    """The sweep as one HTML file.

    Args:
        title: name of the sweep.
        rows: the trials.
        varied: names of the varied settings.
        objectives: the objectives.
        explanation: what was varied, and how.
        commands: commands that train the best trials again, by the numbers of these.
    """
    states = [row.state for row in rows]
    tiles = [(str(states.count(state)), state) for state in dict.fromkeys(states)]
    best = best_rows(rows, objectives)
    if best and len(objectives) == 1:
        tiles.insert(0, (objectives[0].shown(best[0].values[0]), f"best {objectives[0].text}, trial {best[0].number}"))
    return page(
        "sweep.html",
        title=f"stsbp sweep {title}",
        name=title,
        explanation=explanation,
        result_tiles=tiles,
        charts_heading="Pareto front" if len(objectives) > 1 else "Results",
        charts=_charts(rows, varied, objectives),
        commands=commands,
        best=best,
        rows=_table_rows(rows, varied, objectives),
    )


def _charts(rows: Sequence[TrialRow], varied: Sequence[str], objectives: Sequence[Objective]) -> list[Figure]:
    finished = [row for row in rows if row.state == _FINISHED]
    if not finished:
        return []
    if len(objectives) > 1:
        pairs = itertools.combinations(range(len(objectives)), 2)
        return [_front_chart(finished, objectives, pair) for pair in pairs]
    objective = objectives[0]
    numbers, values = [row.number for row in finished], [row.values[0] for row in finished]
    choose = max if objective.maximise else min
    best_so_far = PointSeries("best so far", numbers, list(itertools.accumulate(values, choose)), joined=True)
    points = PointSeries("trial", numbers, values, names=[_name(row) for row in finished])
    charts = [_figure(objective.text, "trial", objective.text, [points, best_so_far], percent_y=objective.maximise)]
    for name in varied:
        xs = [row.params[name] for row in finished]
        if all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in xs):
            series = PointSeries("trial", xs, values, names=[_name(row) for row in finished])
            charts.append(
                _figure(f"{objective.text} by {name}", name, objective.text, [series], percent_y=objective.maximise)
            )
    return charts


def _name(row: TrialRow) -> str:
    params = ", ".join(f"{name}={_shown(value)}" for name, value in row.params.items())
    return f"trial {row.number}: {params}"


def _front_chart(finished: Sequence[TrialRow], objectives: Sequence[Objective], pair: tuple[int, int]) -> Figure:
    """All finished trials by two objectives, and the front of all objectives."""
    second, first = (objectives[i] for i in pair)
    front = {row.number for row in best_rows(finished, objectives)}
    series = []
    for name, is_front in (("other trials", False), ("Pareto front", True)):
        # The front of two objectives is a line.
        part = sorted((row for row in finished if (row.number in front) == is_front), key=lambda r: r.values[pair[1]])
        xs, ys = ([row.values[i] for row in part] for i in (pair[1], pair[0]))
        joined = is_front and len(objectives) == 2
        series.append(PointSeries(name, xs, ys, names=[_name(row) for row in part], joined=joined))
    caption = f"{second.text} against {first.text}"
    unit = f"{first.text}{', pJ' if first.key == 'energy' else ''}"
    series = [one for one in series if one.x]
    percents = {"percent_x": first.maximise, "percent_y": second.maximise}
    return _figure(caption, unit, second.text, series, **percents)


def _figure(
    caption: str,
    x_label: str,
    y_label: str,
    series: Sequence[PointSeries],
    *,
    percent_x: bool = False,
    percent_y: bool = False,
) -> Figure:
    chart = svg.points(f"{caption}: {y_label}", x_label, series, percent_x=percent_x, percent_y=percent_y)
    return Figure(caption, chart, svg.legend(series)) if len(series) > 1 else Figure(caption, chart)
