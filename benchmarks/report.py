"""Make tables and a plot of benchmarks/results/*.json: `python benchmarks/report.py`.

The comparison with other libraries replaces what stands between the two marks of docs/benchmarks.md, so that no number
of it is typed by hand. All other tables go into benchmarks/results/README.md.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from compare import library_table
from harness import HERE, table
from scaling import scaling_table
from stsbp.benchmarks.show import remarks

BEGIN, END = "<!-- results, written by benchmarks/report.py -->", "<!-- end of the results -->"
HEAD = """# Results of the benchmarks

`python benchmarks/report.py` makes this file of the JSON files in this folder. `docs/benchmarks.md` explains the terms
and compares with other libraries. `measured.md` has what no JSON file has."""


def origin(machine: dict[str, Any], command: str) -> str:
    """Where numbers come from."""
    names = ("stsbp", "python", "numpy", "torch", "numba", "jax")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in names if name in machine["versions"])
    when = f"{machine['date'][:10]}, load average {machine['load_average']}"
    return f"Machine: {machine['processor']}. Versions: {versions}. Date: {when}. Command: `{command}`."


def backends_section(reports: list[dict[str, Any]]) -> str:
    """One table of several `stsbp benchmark`: medians, and what the floor says of them."""
    lines, names, rows = ["## One backend", ""], [], dict[tuple[str, str], dict[str, str]]()
    for report in reports:
        machine, settings = report["machine"], report["machine"]["settings"]
        names.append(f"{machine['backend']} on {machine['device']}")
        command = f"stsbp --backend {machine['backend']} --device {machine['device']} benchmark {settings['group']}"
        data = " --data-dir D" if settings["data_dir"] else ""
        lines.append(
            f"- {names[-1]}: {origin(machine, ' '.join([command + data, '--rounds', str(settings['rounds'])]))}"
        )
        for row in report["rows"]:
            share = f"{row['ratio'] or 0:.0%} of" if row["group"] == "kernels" else f"{row['ratio'] or 0:.2f} x"
            verdict = [f"{share} {row['floor']}"] if row["ratio"] is not None else []
            measured = (
                f"{1e3 * row['seconds']['median']:.4g}" if row["seconds"] else remarks(row["detail"]).split(" (")[0]
            )
            rows.setdefault((row["case"], row["what"]), {})[names[-1]] = ", ".join([measured, *verdict])
    lines += ["", "Medians in ms, and the peaks of memory:", ""]
    cells = ((*key, *(row.get(name, "") for name in names)) for key, row in rows.items())
    return "\n".join([*lines, table(["case", "what", *names], cells)])


def peers_section(report: dict[str, Any], picture: str | None) -> str:
    """Tables of compare.py."""
    machine = report["machine"]
    settings = machine["settings"]
    options = " ".join(f"--{name} {' '.join(settings[name])}" for name in ("own", "peers", "modes"))
    command = f"nox -s bench_peers -- --data-dir D {options} --patience {settings['patience']:g}"
    lines = ["## Beside other libraries", "", origin(machine, command), f"Medians of {settings['rounds']} rounds."]
    for case in report["cases"]:
        lines += [
            "",
            f"**{case['case']}**: {case['network']}, data: {case['data']}",
            "",
            library_table(case["records"]),
        ]
        ours, peer = fastest(case["records"], is_stsbp=True), fastest(case["records"], is_stsbp=False)
        if ours and peer:
            ratio = peer["seconds"]["median"] / ours["seconds"]["median"]
            other = f"{peer['name']} (mode *{peer['mode']}*), the fastest other library"
            lines += ["", f"stsbp trains {ratio:.2f} times as many samples per second as {other}."]
    if picture:
        lines += ["", f"![Milliseconds per step, each library in its fastest mode]({picture})"]
    return "\n".join(lines)


def label(record: dict[str, Any]) -> str:
    """Name and mode."""
    return "dense floor" if record["mode"] == "floor" else f"{record['name']} {record['mode']}"


def fastest(records: list[dict[str, Any]], *, is_stsbp: bool) -> dict[str, Any] | None:
    """The fastest of stsbp, or of the others."""
    timed = [r for r in records if not r["problem"] and r["mode"] != "floor" and (r["name"] == "stsbp") == is_stsbp]
    return min(timed, key=lambda r: float(r["seconds"]["median"]), default=None)


def scaling_section(report: dict[str, Any]) -> str:
    """The table of scaling.py."""
    machine, settings = report["machine"], report["machine"]["settings"]
    base = ", ".join(f"{name} = {value:g}" for name, value in settings["base"].items())
    text = (
        f"One quantity varies at a time, beside {base}. A layer has `C` channels of 16 x 16 neurons, kernels of 3 x 3, "
        f"and a spike rate of {settings['rate']:g} or a little more. Medians of {settings['rounds']} rounds."
    )
    title = f"## How the step grows: {machine['backend']} on {machine['device']}"
    command = f"python benchmarks/scaling.py --backend {machine['backend']}"
    return "\n".join([title, "", origin(machine, command), text, "", scaling_table(report["axes"])])


def crossover_section(report: dict[str, Any]) -> str:
    """The table of crossover.py."""
    text = (
        "The sparse kernel is faster below this density of the input (after the pooling). *Forward* is the "
        "convolution, the filter and the neurons; *gradient* the backward pass of the neurons and the gradient of the "
        "weights. *Error* is the share of error signals below which computing only the needed ones is faster. "
        f"Medians of {report['machine']['settings']['rounds']} rounds."
    )
    names = ("forward sparse / bytes", "forward sparse / floats", "gradient sparse / dense", "error needed / dense")
    rows = []
    for block in report["blocks"]:
        crossings = [block["crossings"].get(name, math.nan) for name in names]
        cells = ("never" if x is None else "-" if math.isnan(x) else f"{x:.3f}" for x in crossings)
        rows.append((f"{block['case']} {block['block']}", *cells))
    origin_line = origin(report["machine"], "python benchmarks/crossover.py")
    return "\n".join(["## Where sparse kernels pay", "", origin_line, text, "", table(("layer", *names), rows)])


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars of every library's fastest mode, the floor as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(report["cases"]), squeeze=False)[0]
    for panel, case in zip(panels, report["cases"], strict=True):
        timed = [r for r in case["records"] if not r["problem"]]
        floor = next((r for r in timed if r["mode"] == "floor"), None)
        slowest_first = sorted(timed, key=lambda r: -float(r["seconds"]["median"]))
        best = list({r["name"]: r for r in slowest_first if r is not floor}.values())
        best.sort(key=lambda r: -float(r["seconds"]["median"]))
        medians = [1e3 * r["seconds"]["median"] for r in best]
        spread = [[1e3 * abs(r["seconds"][end] - r["seconds"]["median"]) for r in best] for end in ("low", "high")]
        colours = ["C0" if r["name"] == "stsbp" else "0.7" for r in best]
        panel.barh([label(r) for r in best], medians, xerr=spread, color=colours)
        if floor:
            panel.axvline(1e3 * floor["seconds"]["median"], color="C3", linestyle="--", label="dense floor")
            panel.legend(fontsize=7)
        panel.set_title(case["case"], fontsize=9)
        panel.set_xlabel("ms per step", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.savefig(path, dpi=130)


def main(results: Path = HERE / "results", page: Path = HERE.parent / "docs" / "benchmarks.md") -> None:
    """Replace what stands between the marks of `page`, and write `results`/README.md."""
    compared = ""
    sections, backends = [HEAD], list[dict[str, Any]]()
    for path in sorted(results.glob("*.json")):
        report = json.loads(path.read_text())
        if path.name == "peers.json":
            draw(report, page.parent / "benchmarks-peers.png")
            compared = peers_section(report, "benchmarks-peers.png")
        elif path.name.startswith("scaling-"):
            sections.append(scaling_section(report))
        elif path.name == "crossover.json":
            sections.append(crossover_section(report))
        else:
            backends.append(report)
    head, marked = page.read_text().split(BEGIN)
    _, tail = marked.split(END)
    page.write_text(f"{head}{BEGIN}\n\n{compared}\n\n{END}{tail}")
    (results / "README.md").write_text("\n\n".join([*sections, backends_section(backends)]) + "\n")


if __name__ == "__main__":
    main()
