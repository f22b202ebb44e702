"""The energy of a run as text: a table by layer, and the energies beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stsbp_spec.engine.cost import COUNTS

from stsbp.errors import printable
from stsbp.tables import text_table

__all__ = ["energy_rows", "energy_summary", "energy_text", "neurobench_text", "picojoules"]

_UNITS = (("J", 1e12), ("mJ", 1e9), ("uJ", 1e6), ("nJ", 1e3))


def picojoules(pj: float) -> str:
    """An energy in the largest unit of which it is at least one."""
    unit, size = next(((unit, size) for unit, size in _UNITS if pj >= size), ("pJ", 1.0))
    return f"{pj / size:.3g} {unit}" if pj < 1e15 else f"{pj / size:.3e} {unit}"


def energy_rows(energy: Mapping[str, Any]) -> list[list[str]]:
    """A table by layer: a head, a row for each layer, and a row of the sums. Counts are means over the samples."""
    samples, layers = energy["samples"], energy["layers"]
    shown = [kind for kind in COUNTS if any(layer[kind] for layer in layers)]
    head = ["layer", *shown, "states", "synapses", "neurons", "memory", "total"]
    rows = [
        [
            layer["name"],
            *(f"{layer[kind] / samples:,.0f}" for kind in shown),
            str(layer["states"]),
            *(picojoules(layer["pj"][part]) for part in ("synapses", "neurons", "memory", "total")),
        ]
        for layer in layers
    ]
    sums = [f"{sum(layer[kind] for layer in layers) / samples:,.0f}" for kind in shown]
    energies = [picojoules(energy["pj"][part]) for part in ("synapses", "neurons", "memory", "total")]
    return [head, *rows, ["all", *sums, "", *energies]]


def energy_summary(energy: Mapping[str, Any]) -> list[str]:
    """Sentences on the energy of samples and on the dense network."""
    samples, every, one = energy["pj_of_samples"], energy["dense"]["every_step"], energy["dense"]["one_frame"]
    return [
        f"a sample: {picojoules(energy['pj']['total'])}, from {picojoules(samples['smallest'])} to "
        f"{picojoules(samples['largest'])}",
        f"a dense network of the same shape, every step: {every['multiplications']:,.0f} multiply-adds, "
        f"{picojoules(every['pj']['total'])}",
        f"a dense network of the same shape, one frame: {one['multiplications']:,} multiply-adds, "
        f"{picojoules(one['pj']['total'])}",
    ]


def energy_text(energy: Mapping[str, Any]) -> list[str]:
    """The lines of `stsbp evaluate --energy`."""
    source = f" ({energy['source']})" if energy["source"] else ""
    title = f"energy of a sample, counts as means, energies by the table {energy['table']}{source}:"
    return [
        printable(title),
        *_indented(energy_rows(energy)),
        *energy_summary(energy),
    ]


def neurobench_text(record: Mapping[str, Any]) -> list[str]:
    """The lines of `stsbp evaluate --neurobench`.

    Args:
        record: result of `NeuroBenchResult.record`.
    """
    first, second = _flat(record["neurobench"]), _flat(record["stsbp"])
    rows = [["", f"NeuroBench {record['version']}", "stsbp"]]
    rows += [[name, f"{value:.10g}", f"{second[name]:.10g}"] for name, value in first.items()]
    differing = record["differing"]
    verdict = f"These figures differ: {', '.join(differing)}." if differing else "Both count the same."
    return ["figures of NeuroBench's harness, and those of stsbp:", *_indented(rows), verdict]


def _flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in figures.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _indented(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {row}" for row in text_table(rows)]
