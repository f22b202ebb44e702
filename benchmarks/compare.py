"""stsbp, the dense floor and the other libraries of the field on the same training step, taken in turn.

`python benchmarks/compare.py --envs FOLDER` (`nox -s bench_peers` makes the environments). Each library lives in a
process of its own, in its own environment, and makes a step when it is told to: several a turn, of which the first is
not counted, since it wakes threads and brings memory back. Only what passes the checks of peers/ (spikes are 0 and 1,
the first layer is neither silent nor saturated, time is really stepped) is timed.

The case `recurrent` is one layer of 256 LIF neurons that read spikes of 256 channels and, through a full connection,
their own of the step before, and a readout of 10; T = 100, B = 64. There the projection of the input is one product
over all steps wherever the library lets it be one, and norse has the mode `cell` (peers/peer_norse.py).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import HERE, guarded, parser_of, spread, table, write_report
from stsbp.benchmarks.cases import ALL_CASES, CASES, Case
from stsbp.benchmarks.step import folder_of
from stsbp.benchmarks.timing import alternated
from stsbp.training.build import build_network
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import AvgPool2d, Conv2d
from stsbp_spec.networks.spec import NetworkSpec
from workers import Worker, WorkerError

sys.path.insert(0, str(HERE / "peers"))

from problem import Problem

PEERS = ("spikingjelly", "snntorch", "norse", "sinabs", "spyx")
MODES = ("plain", "step", "neuron", "network")
RECURRENT_MODES = {
    "norse": ("plain", "step", "cell", "network"),
    "snntorch": ("plain", "step", "network"),
    "spikingjelly": ("plain", "network"),
}
"""Modes of each that are timed with a recurrent layer: `plain` where it is not the slowest, and what compiles."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""What stsbp's torch backend asks of glibc (keep freed memory), for every process, so that all have the same."""


def make_problem(
    case: Case, *, scale: float, data_dir: Path | None, device: str | None, seed: int = 0
) -> tuple[Problem, str]:
    """Network, initial weights and a batch of a case, and where the batch comes from."""
    config = case.config(scale)
    network = build_network(config, case.inputs)
    split, source = case.split(folder_of(case, data_dir), config.batch_size)
    indices = np.resize(np.arange(len(split)), config.batch_size)
    layers: list[dict[str, Any]] = []
    for block in network.blocks:
        layers += [{"kind": "pool", "size": layer.size} for layer in block.before if isinstance(layer, AvgPool2d)]
        synapse = block.synapse
        fields: dict[str, Any] = {"kind": "linear", "weight": block.name}
        if isinstance(synapse, Conv2d):
            fields |= {"kind": "conv", "stride": synapse.stride, "padding": synapse.padding}
        layers.append(fields)
    return Problem(
        layers=layers,
        weights=initial_weights(network, seed, config.init_gain),
        inputs=np.ascontiguousarray(split.inputs(indices)),
        labels=split.labels[indices],
        steps=config.steps,
        tau_m=config.tau_m,
        tau_s=config.tau_s,
        threshold=config.threshold,
        lr=config.lr,
        setup={"case": case.name, "scale": scale, "device": device},
    ), source


def recurrent_problem(*, scale: float, device: str | None, precision: str) -> tuple[Problem, str]:
    """The case `recurrent`, with random spikes; `scale` multiplies the batch."""
    steps, batch, width, outputs = 100, max(1, round(64 * scale)), 256, 10
    network = NetworkSpec.parse(f"{width}R", input_shape=(width,), outputs=outputs)
    random = np.random.default_rng(0)
    setup = {"case": "recurrent", "network": f"{width}R", "outputs": outputs, "precision": precision, "device": device}
    return Problem(
        layers=[
            {"kind": "recurrent", "weight": "linear1", "recurrent": "linear1.recurrent"},
            {"kind": "linear", "weight": "linear2"},
        ],
        weights=initial_weights(network, 0, 2.0),
        inputs=(random.random((steps, batch, width)) < 0.05).astype(np.uint8),
        labels=random.integers(0, outputs, batch),
        steps=steps,
        tau_m=5.0,
        tau_s=3.0,
        threshold=0.5,
        lr=1e-4,
        setup=setup,
    ), "random spikes"


class Library(NamedTuple):
    """A library in one of its modes, and the interpreter of its environment."""

    python: Path
    name: str
    mode: str

    def start(self, problem: Path, log: Path, work: str = "training") -> Worker:
        """A process that is to compute the problem in a file."""
        print(f"preparing {self.name} {self.mode}", file=sys.stderr, flush=True)
        environment = {**os.environ, **ALLOCATOR}
        if self.name == "stsbp":  # what its backend asks for; others are faster with threads that spin for a while
            environment["OMP_WAIT_POLICY"] = "PASSIVE"
        command = [self.python, HERE / "peers" / "worker.py", self.name, self.mode, problem, work]
        return Worker(f"{self.name} {self.mode}", command, log, environment)


def with_peers(parser: argparse.ArgumentParser, **defaults: Any) -> argparse.ArgumentParser:
    """Add the options that say which libraries are compared, and where they are."""
    location = parser.add_mutually_exclusive_group(required=True)
    location.add_argument("--envs", type=Path, help="folder of the peers' environments, one a name")
    location.add_argument("--here", action="store_true", help="the peers are installed beside stsbp")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="other libraries")
    parser.add_argument("--own", nargs="*", default=["torch"], help="backends of stsbp, e.g. torch, jax=cpu:xla")
    parser.add_argument("--patience", type=float, default=600, help="seconds for a library to compile and warm up")
    parser.set_defaults(**defaults)
    return parser


def chosen(options: argparse.Namespace, modes: dict[str, Any]) -> list[Library]:
    """The libraries of the options of `with_peers`; `modes` has those of each peer, after those that all have: ''."""
    interpreter = Path(sys.executable)
    libraries = [Library(interpreter, "stsbp", mode) for mode in options.own]
    for peer in options.peers:
        python = interpreter if options.here else options.envs / peer / "bin" / "python"
        libraries += [Library(python, peer, mode) for mode in modes.get(peer, modes[""])]
    return libraries


def compare(
    problem: Problem,
    libraries: list[Library],
    *,
    rounds: int,
    logs: Path,
    patience: float = 600.0,
    clock: str = "seconds",
    turn: int = 5,
    work: str = "training",
) -> list[dict[str, Any]]:
    """Time a step of each library, in turn, and return a record of each.

    Args:
        problem: network and batch.
        libraries: which.
        rounds: timed rounds; every worker has warmed up before.
        logs: folder of what the processes print.
        patience: seconds in which a worker must have compiled and warmed up.
        clock: `seconds`, or `processor_seconds` of all its threads.
        turn: steps of each in a turn that are counted, after one that is not; their mean is one time.
        work: `training` or `prediction`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    workers: dict[str, Worker] = {}
    problems: dict[str, str] = {}

    def seconds_of(name: str) -> float:
        if name in problems:
            return math.nan
        try:
            seconds = [float(workers[name].ask("step")[clock]) for _ in range(1 + turn)]
        except WorkerError as error:
            problems[name] = f"ended while it was timed, {error.reason}; out of memory?"
            return math.nan
        time.sleep(0.02)  # its threads may spin for some milliseconds more
        return sum(seconds[1:]) / turn

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "problem.npz"
        problem.write(path)
        for library in libraries:
            name = f"{library.name} {library.mode}"
            worker = library.start(path, logs / f"{problem.setup['case']}-{library.name}-{library.mode}.log", work)
            try:
                workers[name] = stack.enter_context(worker).wait(patience)
            except WorkerError as error:
                problems[name] = error.reason
                print(error, file=sys.stderr, flush=True)
        print("timing", file=sys.stderr, flush=True)
        times = alternated({name: partial(seconds_of, name) for name in workers}, rounds=rounds, warmup=1)
        records: list[dict[str, Any]] = []
        for _, name, mode in libraries:
            key = f"{name} {mode}"
            records.append({"name": name, "mode": mode, "problem": problems.get(key)})
            if key not in problems:
                records[-1] |= {
                    "seconds": times[key].to_json(),
                    "samples_per_second": len(problem.labels) / times[key].median,
                    **workers[key].ask("memory"),
                    **workers[key].ready,
                }
    return records


def library_table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown, the fastest first."""
    timed = sorted((r for r in records if r["problem"] is None), key=lambda r: float(r["seconds"]["median"]))
    floor = next((r["seconds"]["median"] for r in timed if r["mode"] == "floor"), None)
    rows = []
    for r in timed:
        ratio = f"{r['seconds']['median'] / floor:.2f}" if floor else ""
        name = ("dense floor", "") if r["mode"] == "floor" else (f"{r['name']} {r['versions'][r['name']]}", r["mode"])
        rates = " ".join(f"{rate:.3f}" for rate in r["checks"]["spike_rates"])
        times = (*spread(r["seconds"], ".0f"), f"{r['samples_per_second']:.0f}", ratio)
        rows.append((*name, *times, f"{r['peak_bytes'] / 1e6:.0f}", rates))
    rows += [(r["name"], r["mode"], f"not timed: {r['problem']}") for r in records if r["problem"]]
    columns = "library, mode, ms per step, quartiles, samples/s, x floor, peak MB, spike rates at the start"
    return table(columns.split(", "), rows)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, print tables, write JSON."""
    results = HERE / "results" / "peers.json"
    parser = parser_of(__doc__, "device", "rounds", "scale", "data-dir", "clock", "out", rounds=9, out=results)
    with_peers(parser)
    parser.add_argument("--modes", nargs="*", help="of the peers on PyTorch: see peers/torch_network.py; default: all")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=[*ALL_CASES, "recurrent"])
    parser.add_argument("--turn", type=int, default=5, help="steps of each in a turn")
    parser.add_argument("--work", choices=["training", "prediction"], default="training", help="what a step is")
    parser.add_argument("--precision", choices=["fast", "reproducible"], default="fast", help="of `recurrent`")
    options = parser.parse_args(arguments)
    names = ("rounds", "scale", "device", "own", "peers", "modes", "patience", "turn", "work", "clock")
    settings = {name: getattr(options, name) for name in names} | {"allocator": ALLOCATOR, "load": os.getloadavg()[0]}
    settings["modes"] = options.modes or list(MODES)
    cases = []
    for name in options.cases:
        if name == "recurrent":
            problem, source = recurrent_problem(scale=options.scale, device=options.device, precision=options.precision)
            modes = {"": options.modes or MODES} if options.modes else {**RECURRENT_MODES, "": ()}
            libraries = chosen(options, modes)
        else:
            case = ALL_CASES[name]
            problem, source = make_problem(case, scale=options.scale, data_dir=options.data_dir, device=options.device)
            libraries = chosen(options, {"spyx": ("plain",), "": settings["modes"]})
            if options.work == "training":
                libraries.insert(0, Library(Path(sys.executable), "stsbp", "floor"))
        began = time.perf_counter()
        records = compare(
            problem, libraries, rounds=options.rounds, patience=options.patience, logs=options.out.parent / "logs",
            clock={"wall": "seconds", "cpu": "processor_seconds"}[options.clock], turn=options.turn, work=options.work,
        )  # fmt: skip
        network = problem.setup["network"] if name == "recurrent" else case.net
        size = f"{network}-10 T={problem.steps} B={len(problem.labels)}"
        elapsed = time.perf_counter() - began
        print(f"\n{name}: {size}, data: {source}, {elapsed:.0f} s\n\n{library_table(records)}\n", flush=True)
        cases.append({"case": name, "network": size, "data": source, "records": records})
    write_report(options.out, None, settings, cases=cases)


if __name__ == "__main__":
    sys.exit(guarded(main))
