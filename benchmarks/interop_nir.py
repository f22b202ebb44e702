"""What every importer of NIR makes of exported networks: `python benchmarks/interop_nir.py FOLDER --peer NAME=PYTHON`.

Trains small runs into FOLDER (those that are there are taken as they are), exports each as the importers read it best,
and runs it with our own reference over the samples held out. Each peer, in an environment of its own (PYTHON), runs the
files with interop_nir_peer.py. Printed: one table of runs, one of small networks, one of single populations, where each
library is compared with what `stsbp.interop.nir_readings` says of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, guarded, parser_of, table, tested
from stsbp.errors import ConfigError
from stsbp.interop import nir_readings
from stsbp.interop.nir_file import write
from stsbp.interop.nir_graph import Form, graph_of
from stsbp.interop.program import About, NetworkProgram, program
from stsbp_spec import open_backend
from stsbp_spec.networks.graph import Neurons
from stsbp_spec.typing import AnyArray, Float32, UInt8

sys.path.insert(0, str(HERE.parent / "packages" / "stsbp" / "tests" / "shared"))
from small_networks import SMALL, Small, case_of  # type: ignore[import-not-found,unused-ignore]

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "below": {"threshold_below": True},
    "sum": {"pool": "sum"},
    "sum, below": {"pool": "sum", "threshold_below": True},
    "fold": {"fold": True},
}
NEURONS = ("CubaLIF", "CubaLI", "IF")
EXACT = ("spikingjelly", "norse", "snntorch")
"""Importers that can compute the same, and are given all small networks."""
TAUS = ((2, 2), (4, 8), (3, 5), (5 / 3, 7), (2.5, 3), (10, 20))
SAME = {"spikingjelly": "plain", "snntorch": "below"}
"""Files with which every spike and every potential is to be ours."""
UNREAD = ("delay", "branches", "one source, several delays", "readout")
NOT_READ = {"spikingjelly": ("plif", *UNREAD), "snntorch": ("if", "digits, IF", *UNREAD)}
"""Cases that they refuse."""
RUNS: dict[str, list[str]] = {
    "digits": ["digits", "--psp-gain", "unit", "--tau-m", "5", "--tau-s", "3"],
    "digits, normalised": ["digits", "--tau-m", "5", "--tau-s", "3"],
    "digits, full": ["digits", "--net", "64", "--psp-gain", "unit", "--tau-m", "2.5", "--tau-s", "3"],
    "digits, IF": ["digits", "--net", "64", "--neuron", "if", "--tau-s", "1"],
    "nmnist": ["nmnist", "--psp-gain", "unit", "--holdout", "100", "--epochs", "3"],
}
"""What is trained, by the name of the case."""


def small_cases() -> dict[str, Small]:
    """Small networks: all that there are, both gains and several time constants, and recurrence that NIR can say."""
    cases = dict(SMALL)
    for tau_m, tau_s in TAUS:
        for gain in ("unit", "normalised"):
            cases[f"tau {tau_m:.3g}, {tau_s}, {gain}"] = Small(
                "40-20", (40,), tau_m=tau_m, tau_s=tau_s, neuron=f"lif:psp_gain={gain}", input_tau_s=tau_s
            )
    for name in ("recurrent", "one to one", "recurrent convolution"):
        cases[f"{name}, filtered input"] = replace(SMALL[name], input_tau_s=SMALL[name].tau_s)
    return cases


def reference(exported: NetworkProgram, weights: dict[str, Float32], inputs: UInt8, steps: int) -> dict[str, AnyArray]:
    """Spikes and potentials after each reset of every population, by the names that NIR has for them.

    And how many potentials met the threshold exactly.
    """
    network, backend, parts = exported.network, open_backend("torch"), []
    axis = 1 if network.coding == "events" else 0
    for first in range(0, inputs.shape[axis], 20):
        batch = np.take(inputs, range(first, min(first + 20, inputs.shape[axis])), axis)
        parts.append(backend.run(network, weights, batch, steps))
    arrays: dict[str, AnyArray] = {"ties": np.array(0)}
    names = [name for name, node in graph_of(exported, Form()).nodes.items() if node.kind in NEURONS]
    for name, layer, population in zip(names, parts[0].layers, exported.populations.values(), strict=True):
        spikes = np.concatenate([part.layers[layer].spikes for part in parts], 1)
        potentials = np.concatenate([part.layers[layer].potentials for part in parts], 1)
        op = population.bound_node.node.op
        assert isinstance(op, Neurons)
        arrays["ties"] += (potentials == np.float32(op.model.threshold)).sum()
        arrays[f"spikes/{name}"] = spikes
        arrays[f"left/{name}"] = np.where(spikes == 1, np.float32(0), potentials)
    return arrays


def prepare(
    folder: Path,
    about: About,
    exported: NetworkProgram,
    weights: dict[str, Float32],
    inputs: UInt8,
    labels: AnyArray | None,
) -> str | None:
    """Files of a case, and what our reference makes of it; a reason where NIR cannot say it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in FORMS.items():
        try:
            write(exported, about, folder / f"{name}.nir", **options)
        except ConfigError as error:
            return str(error)
    arrays = reference(exported, weights, inputs, about.steps)
    fields = {"inputs": inputs, "direct": np.array(exported.network.coding == "direct"), "steps": np.array(about.steps)}
    fields |= {} if labels is None else {"labels": labels}
    np.savez(folder / "reference.npz", allow_pickle=False, **fields, **arrays)
    return None


def trained_case(name: str, folder: Path, data: str | None) -> str | None:
    """A run and the samples that it has not seen."""
    run, options = folder / "run", list(RUNS[name])
    if not (run / "last.json").is_file():
        data_options = ["--data-dir", data] if data is not None and options[0] == "nmnist" else []
        command = [sys.executable, "-m", "stsbp", "train", *options, *data_options, "--threads", "1", "--out", str(run)]
        subprocess.run([*command, "--overwrite"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trained, split = tested(run, open_backend("torch"), Path(data) if data is not None and "nmnist" in name else None)
    samples = np.arange(len(split))
    about = About(name, trained.info["sha256"], trained.settings.steps, trained.names)
    exported = program(trained.network, trained.weights)
    return prepare(folder, about, exported, trained.weights, split.inputs(samples), split.labels[samples])


def main(arguments: list[str] | None = None) -> int:
    """Export, run and compare."""
    parser = parser_of(__doc__, "data-dir")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of trained runs and files")
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON: an importer, and its interpreter")
    options = parser.parse_args(arguments)
    folder, data = options.folder, options.data_dir and str(options.data_dir)
    runs = [name for name in RUNS if name != "nmnist" or data]
    cases = {name: trained_case(name, folder / "runs" / name, data) for name in runs}
    for name, small in small_cases().items():
        case = case_of(small, steps=9 if name in SMALL else 60, samples=3 if name in SMALL else 8)
        about = About(name, "0" * 64, len(case.inputs) if case.network.coding == "events" else 9)
        exported = program(case.network, case.weights)
        cases[name] = prepare(folder / "small" / name, about, exported, case.weights, case.inputs, None)
    print("not written:\n" + "\n".join(f"  {name}: {reason}" for name, reason in cases.items() if reason))
    written = [name for name, reason in cases.items() if reason is None]
    lists = [json.dumps([name for name in written if (name in RUNS) == is_run]) for is_run in (True, False)]
    problems: list[str] = []
    for peer in options.peer:
        name, _, python = peer.partition("=")
        report = folder / f"{name}.json"
        worker = [python, HERE / "interop_nir_peer.py", folder, name, nir_readings.__file__, *lists, report]
        subprocess.run(list(map(str, worker)), check=True)
        peer_report = json.loads(report.read_text())
        print(importer_tables(name, peer_report), flush=True)
        problems += unexpected(name, peer_report)
    if problems:
        print("\nnot as docs/deploy.md has it:", *problems, sep="\n  ")
    return int(bool(problems))


def unexpected(peer: str, report: dict[str, Any]) -> list[str]:
    """Where an importer that computes the same did not, and where a library did not what we say of it."""
    problems = [
        f"{peer}, {row['case']}: {row}"
        for row in report["rows"]
        if SAME.get(peer) == row["form"]
        and row["case"] not in NOT_READ[peer]
        and (row.get("problem") or row["differing"] or row["potentials"])
    ]
    # The exponential functions of numpy and torch differ in their last bits.
    readings = report["readings"] if peer != "rockpool" else []
    return problems + [f"{peer}, {row['node']}: {row}" for row in readings if row["differing"]]


def importer_tables(peer: str, report: dict[str, Any]) -> str:
    """Runs one by one, small networks together, and single populations, as Markdown."""
    rows = [
        _of_run(row) for row in report["rows"] if row["case"] in RUNS or ("tau" in row["case"] and peer not in EXACT)
    ]
    small, problems = [row for row in report["rows"] if row["case"] not in RUNS], []
    for form in dict.fromkeys(row["form"] for row in small):
        ran = [row for row in small if row["form"] == form and "problem" not in row]
        sums = {key: sum(row[key] for row in ran) for key in ("differing", "spikes", "ties", "potentials")}
        distance = max((row["distance"] for row in ran), default=0.0)
        counts = (sums["differing"], sums["spikes"], "", sums["ties"], sums["potentials"], f"{distance:.2g}")
        rows.append((f"{len(ran)} small networks", form, *counts))
        problems += [f"  {row['case']}: {row['problem']}" for row in small if row["form"] == form and "problem" in row]
    columns = "case, file, differing spikes, of, rate, ties, differing potentials, distance, accuracy and ours"
    readings = [[row[key] for key in ("node", "differing", "spikes", "ties")] for row in report["readings"]]
    populations = table(["population", "differing spikes", "of", "at the threshold"], readings)
    title = f"\n### {peer} {report['version']}, nir {report['nir']}\n"
    return "\n".join([title, table(columns.split(", "), rows), *problems, "", populations])


def _of_run(row: dict[str, Any]) -> tuple[object, ...]:
    if "problem" in row:
        return row["case"], row["form"], row["problem"]
    accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}, {row['own_accuracy']:.2%}"
    numbers = (row["differing"], row["spikes"], f"{row['rate']:.3f}", row["ties"], row["potentials"])
    return row["case"], row["form"], *numbers, f"{row['distance']:.2g}", accuracy


if __name__ == "__main__":
    sys.exit(guarded(main))
