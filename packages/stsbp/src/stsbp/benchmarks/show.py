"""A report for people: a table on the terminal, and a plot (with matplotlib, the extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stsbp.benchmarks.result import Report, Row
from stsbp.benchmarks.timing import Timing
from stsbp.plots import check_plots, new_figure, save

__all__ = ["plot", "print_report", "remarks"]


def seconds(value: float) -> str:
    """A duration in milliseconds."""
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{1e3 * value:.0f} ms"


def _times(timing: Timing | None) -> tuple[str, str]:
    if timing is None:
        return "", ""
    spread = f"{_number(timing.low)} - {seconds(timing.high)}" if len(timing.seconds) > 1 else ""
    return seconds(timing.median), spread


def _number(value: float) -> str:
    return seconds(value).split(" ")[0]


def _verdict(row: Row) -> str:
    if row.ratio is None:
        return ""
    if row.group == "kernels":
        return f"{row.ratio:.0%} of {row.floor}"
    return f"{row.ratio:.2f} x {row.floor}"


def remarks(detail: dict[str, Any]) -> str:
    """Further information about a row."""
    texts: list[str] = []
    if "bytes_per_second" in detail:
        texts.append(f"{detail['bytes_per_second'] / 1e9:.1f} GB/s")
    if "samples_per_second" in detail:
        texts.append(f"{detail['samples_per_second']:.0f} samples/s of {detail['data']}")
    if "spike_rates" in detail:
        texts.append("rates " + " ".join(f"{rate:.3f}" for rate in detail["spike_rates"].values()))
    if detail.get("peak_bytes") is not None:
        texts.append(f"peak {detail['peak_bytes'] / 1e6:.0f} MB (kept: {detail['kept_bytes'] / 1e6:.0f} MB)")
        texts.append(f"{detail['growth_bytes'] / 1e6:+.1f} MB in 24 more steps")
    if "cache_bytes" in detail:
        texts.append(f"{detail['cache_bytes'] / 1e6:.1f} MB on disk for {detail['samples']} samples")
    if "batch_bytes" in detail:
        texts.append(f"{detail['batch_bytes'] / 1e6:.2f} MB per batch")
    if "empty_caches" in detail:
        texts.append(f"{detail['empty_caches']:.1f} s with empty caches")
    return ", ".join(texts)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the machine and the rows."""
    console = console or Console()
    machine: dict[str, Any] = report.machine
    console.print(f"backend {machine['backend']} on {machine['device']}: {machine['processor']}", style="bold")
    for case in dict.fromkeys(row.case for row in report.rows):
        table = Table(title=case or "start-up", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("", "median", "quartiles", "floor", ""):
            table.add_column(name, justify="right" if name in ("median", "quartiles") else "left", overflow="fold")
        for row in report.rows:
            if row.case == case:
                table.add_row(row.what, *_times(row.timing), _verdict(row), remarks(row.detail))
        console.print(table)
    versions = " ".join(f"{name} {version}" for name, version in machine["versions"].items())
    settings = " ".join(f"{name}={value}" for name, value in machine["settings"].items())
    console.print(f"{machine['date']}  load {machine['load_average']}  {versions}  {settings}", style="dim")


def plot(report: Report, path: Path) -> None:
    """Draw each measured time as a bar with its quartiles, in one panel per group, with the lower bounds marked.

    Raises:
        FileError: the file cannot be written.
    """
    check_plots()
    groups = list(dict.fromkeys(row.group for row in report.rows if row.timing is not None))
    timed = {name: [row for row in report.rows if row.group == name and row.timing is not None] for name in groups}
    heights = [max(1, len(rows)) for rows in timed.values()]
    figure = new_figure(9, 1.2 + 0.35 * sum(heights))
    panels = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, (name, rows) in zip(panels, timed.items(), strict=True):
        for bar_position, row in enumerate(reversed(rows)):
            assert row.timing is not None
            median = row.timing.median
            spread = [[1e3 * (median - row.timing.low)], [1e3 * (row.timing.high - median)]]
            is_floor = row.what in ("copy", "dense floor", "10 updates, in memory")
            panel.barh(bar_position, 1e3 * median, xerr=spread, color="0.75" if is_floor else "C0", height=0.7)
            if verdict := _verdict(row):
                panel.annotate(
                    verdict, (1e3 * median, bar_position), (5, 0), textcoords="offset points", va="center", fontsize=7
                )
        panel.set_yticks(range(len(rows)), [f"{row.what}  {row.case}" for row in reversed(rows)], fontsize=7)
        panel.set_xscale("log")
        panel.set_xlabel("ms")
        panel.set_title(name, fontsize=9)
    machine = report.machine
    figure.suptitle(
        f"{machine['backend']} on {machine['device']}, {machine['processor']}, {machine['date'][:10]}", fontsize=9
    )
    save(figure, path)
