"""`stsbp nir-check`: shows how each program that reads NIR would interpret a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import click
from stsbp_spec.validation import listed

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import Choice, Finite, say
from stsbp.cli.import_ import said_step
from stsbp.errors import DataError
from stsbp.interop.nir_check import IMPORTERS, OWN, Check, check
from stsbp.interop.nir_import import likely_step
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_reader import NirGraph, read_graph
from stsbp.interop.nir_readings import READINGS

__all__ = ["command"]

_MOST_ROWS = 200
_LONGEST = 24
"""Largest length of a name in the table."""


@click.command("nir-check", short_help=COMMANDS["nir-check"])
@click.argument("file", type=PathName(path_type=Path))
@click.option(
    "--dt",
    type=Finite(0, 1e9, min_open=True),
    metavar="SECONDS",
    help="Duration of a step.  [default: from the file, otherwise estimated from its neurons, otherwise 0.0001]",
)
@click.option(
    "--expect",
    multiple=True,
    type=Choice(IMPORTERS),
    metavar="IMPORTER",
    help="Fail if IMPORTER reads any node wrongly. You can repeat the option.",
)
@click.option("--notes", is_flag=True, help="Print notes on each program.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, dt: float | None, expect: tuple[str, ...], notes: bool, as_json: bool) -> None:
    """Show, node by node, how several programs would read the NIR graph in FILE.

    For each node and each program, the table shows one of these words:

    \b
    - same: the neurons spike at the steps that NIR defines
    - scaled: the spikes are as NIR defines, but the potentials are in other units
    - others: the neurons spike at other steps than NIR defines
    - unknown: the neurons never spiked in the simulation, or the command does not simulate this kind of node
    - read: the node has no neurons, and the program reads it
    - refused: the program refuses the graph
    - left out: the program has no node of this kind
    """
    graph = read_graph(file)
    step, step_origin = _step(graph, dt)
    checked = check(graph, Choices(step))
    if as_json:
        click.echo(json.dumps(_record(file, graph, checked)))
    else:
        for line in _table_lines(file, graph, checked, step_origin, notes=notes):
            say(line)
    if failed := [name for name in expect if not checked.faithful(name)]:
        raise DataError(f"{file}: not read as the file says by {', '.join(failed)}")


def _step(graph: NirGraph, dt: float | None) -> tuple[float, str]:
    """Length of a step in seconds, and where it comes from."""
    if dt is not None:
        return dt, "as asked for"
    if (file_step := said_step(graph)) is not None:
        return file_step, "as the file says"
    likely = likely_step(graph)
    return (1e-4, "which is usual; the file does not say it") if likely is None else (likely, "with which r = tau/dt")


def _record(file: Path, graph: NirGraph, checked: Check) -> dict[str, object]:
    nodes = [
        {
            "name": name,
            "kind": graph.nodes[name].kind,
            "importers": {importer: vars(verdict) for importer, verdict in verdicts.items()},
        }
        for name, verdicts in checked.nodes.items()
    ]
    return {
        "file": str(file),
        "version": graph.version,
        "dt": checked.dt,
        "nodes": nodes,
        "edges": graph.edges,
        "refused_as_a_whole": checked.refusal,
        "faithful": [name for name in IMPORTERS if checked.faithful(name)],
    }


def _table_lines(file: Path, graph: NirGraph, checked: Check, step_origin: str, *, notes: bool) -> Iterator[str]:
    version = f", written by nir {graph.version}" if graph.version else ""
    nodes = f"{len(graph.nodes):,} nodes and {len(graph.edges):,} edges"
    yield f"{file}: {nodes}{version}; a step of {checked.dt:g} s, {step_origin}"
    rows = [("node", "kind", *IMPORTERS)]
    for name, verdicts in list(checked.nodes.items())[:_MOST_ROWS]:
        shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        rows.append((shown, graph.nodes[name].kind[:_LONGEST], *(verdicts[importer].word for importer in IMPORTERS)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    if len(checked.nodes) > _MOST_ROWS:
        yield f"... and {len(checked.nodes) - _MOST_ROWS:,} nodes more"
    for importer in IMPORTERS:
        yield ""
        yield from _about(importer, checked, notes=notes)


def _about(importer: str, checked: Check, *, notes: bool) -> Iterator[str]:
    """Name of an importer, and the reasons for its results: each reason once, with its nodes."""
    reasons: dict[str, list[str]] = {}
    for name, verdict in ((name, verdicts[importer]) for name, verdicts in checked.nodes.items()):
        if not verdict.faithful:
            count_text = f" ({verdict.much})" if verdict.much else ""
            reasons.setdefault(f"{verdict.word}: {verdict.why}", []).append(f"{name}{count_text}")
    if importer == OWN:
        yield f"{OWN}: stsbp import, a step of {checked.dt:g} s"
        yield "  spikes where v >= v_threshold, and NIR says v > v_threshold, which differs where a potential meets it:"
        yield "  import with --threshold-above, and export with --threshold-below for snntorch and norse"
        if checked.refusal:
            reasons[f"refused: {checked.refusal}"] = ["the graph"]
    else:
        reading = READINGS[importer]
        step_length = checked.dt if reading.dt_given else reading.dt
        step = "a step of its own" if math.isnan(step_length) else f"a step of {step_length:g} s"
        call = reading.call.replace("dt=1e-4", f"dt={step_length:g}")
        yield f"{importer} {reading.version}: {call}, {step}"
    if not reasons:
        yield "  does all that the file says"
    for reason, names in reasons.items():
        yield f"  {listed(names)} {reason}"
    if notes and importer != OWN:
        yield from (f"  ({note})" for note in READINGS[importer].notes)
