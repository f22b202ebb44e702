"""stsbp, the dense floor and the other libraries of the field on the same training step, taken in turn.

`python benchmarks/compare.py --envs FOLDER` (`nox -s bench_peers` makes the environments). Each library lives in a
process of its own, in its own environment, and makes a step when it is told to: several a turn, of which the first is
not counted, since it wakes threads and brings memory back. While it waits it uses no processor. Only what passes the
checks of its worker (spikes are 0 and 1, the first layer is neither silent nor saturated, time is really stepped) is
timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from options import guarded, parser_of, write_report
from stsbp.benchmarks.cases import ALL_CASES, CASES, Case
from stsbp.benchmarks.device import describe
from stsbp.benchmarks.step import folder_of
from stsbp.benchmarks.timing import Timing
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import AvgPool2d, Conv2d
from stsbp_spec.registry import open_backend

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))

from problem import Problem  # noqa: E402

__all__ = ["compare", "main", "make_problem"]

PEERS = ("spikingjelly", "snntorch", "norse", "sinabs", "spyx")
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""What stsbp's torch backend asks of glibc (keep freed memory), for every process, so that all have the same."""


def make_problem(
    case: Case, *, scale: float, data_dir: Path | None, device: str | None, seed: int = 0
) -> tuple[Problem, str]:
    """Network, initial weights and a batch of a case, and where the batch comes from."""
    from stsbp.training.build import build_network

    config = case.config(scale)
    network = build_network(config, case.inputs)
    split, source = case.split(folder_of(case, data_dir), config.batch_size)
    indices = np.resize(np.arange(len(split)), config.batch_size)
    layers: list[dict[str, Any]] = []
    for block in network.blocks:
        layers += [{"kind": "pool", "size": layer.size} for layer in block.before if isinstance(layer, AvgPool2d)]
        synapse = block.synapse
        if isinstance(synapse, Conv2d):
            fields = {"kind": "conv", "stride": synapse.stride, "padding": synapse.padding, "weight": block.name}
        else:
            fields = {"kind": "linear", "weight": block.name}
        layers.append(fields)
    problem = Problem(
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
    )
    return problem, source


@dataclass
class Worker:
    """A process that makes steps when it is told to."""

    name: str
    mode: str
    process: subprocess.Popen[str]
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None

    @classmethod
    def start(cls, command: list[str], environment: dict[str, str], name: str, mode: str, log: Path) -> Worker:
        """Begin; `wait` for it before anything else is begun, because it computes."""
        with open(log, "w") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        return cls(name, mode, process, log)

    @classmethod
    def prepared(
        cls, python: Path, name: str, mode: str, problem: Path, log: Path, *, patience: float, work: str = "training"
    ) -> Worker:
        """Start a library on the problem in a file, and wait until it is warm, or until `problem` says why not."""
        print(f"preparing {name} {mode}", file=sys.stderr, flush=True)
        environment = {**os.environ, **ALLOCATOR}
        if name == "stsbp":  # what its backend asks for; the others are faster with threads that spin for a while
            environment["OMP_WAIT_POLICY"] = "PASSIVE"
        command = [str(python), str(HERE / "peers" / "worker.py"), name, mode, str(problem), work]
        worker = cls.start(command, environment, name, mode, log)
        worker.wait(patience)
        return worker

    def wait(self, patience: float) -> None:
        """Wait until it is warm, or note that it went away or took more than `patience` seconds (and end it)."""
        assert self.process.stdout is not None
        began = time.perf_counter()
        limit = threading.Timer(patience, self.process.kill)
        limit.start()
        line = self.process.stdout.readline()
        limit.cancel()
        if line:
            self.ready = json.loads(line)
        elif time.perf_counter() - began >= patience:
            self.process.wait()
            self.problem = f"not ready after {patience:.0f} s"
        else:
            last = self.log.read_text().strip().rpartition("\n")[2]
            self.problem = f"exit code {self.process.wait()}: {last}"

    def ask(self, request: str) -> dict[str, Any]:
        """Send a word and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for what it says."""
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def stop(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(60)


def compare(
    problem: Problem,
    libraries: list[tuple[Path, str, str]],
    *,
    rounds: int,
    logs: Path,
    patience: float = 600.0,
    clock: str = "seconds",
    turn: int = 5,
    work: str = "training",
) -> list[dict[str, Any]]:
    """Time a step of each `(python, name, mode)`, in turn, and return a record of each.

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
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        problem.write(path)
        for python, name, mode in libraries:
            log = logs / f"{problem.setup['case']}-{name}-{mode}.log"
            worker = Worker.prepared(python, name, mode, path, log, patience=patience, work=work)
            if worker.problem is not None:
                print(f"{name} {mode}: {worker.problem}", file=sys.stderr, flush=True)
            workers.append(worker)
        print("timing", file=sys.stderr, flush=True)
        alive = [worker for worker in workers if worker.problem is None]
        for number in range(rounds + 1):
            for worker in [worker for worker in alive if worker.problem is None]:
                try:
                    seconds = [float(worker.ask("step")[clock]) for _ in range(1 + turn)]
                except (BrokenPipeError, json.JSONDecodeError):
                    worker.problem = f"ended while it was timed, exit code {worker.process.wait()}; out of memory?"
                    continue
                time.sleep(0.02)  # its threads may spin for some milliseconds more
                if number > 0:
                    worker.seconds.append(sum(seconds[1:]) / turn)
        records = [record(worker, len(problem.labels)) for worker in workers]
        for worker in alive:
            worker.stop()
    return records


def record(worker: Worker, batch: int) -> dict[str, Any]:
    """What is kept of a worker."""
    fields: dict[str, Any] = {"name": worker.name, "mode": worker.mode, "problem": worker.problem}
    if worker.problem is None:
        timing = Timing(tuple(worker.seconds))
        fields |= {
            "seconds": timing.to_json(),
            "samples_per_second": batch / timing.median,
            "peak_bytes": worker.ask("memory")["peak_bytes"],
            **worker.ready,
        }
    return fields


def table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown, the fastest first."""
    floor = next((r["seconds"]["median"] for r in records if r["mode"] == "floor" and not r["problem"]), None)
    lines = [
        "| library | mode | ms per step | quartiles | samples/s | x floor | peak MB | spike rates at the start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    timed = [r for r in records if r["problem"] is None]
    for r in sorted(timed, key=lambda r: float(r["seconds"]["median"])):
        median, low, high = (1e3 * r["seconds"][key] for key in ("median", "low", "high"))
        ratio = f"{r['seconds']['median'] / floor:.2f}" if floor else ""
        name = "dense floor" if r["mode"] == "floor" else f"{r['name']} {r['versions'].get(r['name'], '')}"
        mode = "" if r["mode"] == "floor" else r["mode"]
        lines.append(
            f"| {name} | {mode} | {median:.0f} | {low:.0f} - {high:.0f} | {r['samples_per_second']:.0f} | {ratio} | "
            f"{r['peak_bytes'] / 1e6:.0f} | {' '.join(f'{rate:.3f}' for rate in r['checks']['spike_rates'])} |"
        )
    lines += [f"| {r['name']} | {r['mode']} | not timed: {r['problem']} | | | | | |" for r in records if r["problem"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, print tables, write JSON."""
    results = HERE / "results" / "peers.json"
    parser = parser_of(__doc__, "device", "rounds", "scale", "data-dir", "out", rounds=9, out=results)
    location = parser.add_mutually_exclusive_group(required=True)
    location.add_argument("--envs", type=Path, help="folder of the peers' environments, one a name")
    location.add_argument("--here", action="store_true", help="the peers are installed beside stsbp")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="which of them")
    parser.add_argument(
        "--modes", nargs="*", default=["plain", "step", "neuron", "network"], help="of the peers on PyTorch"
    )
    parser.add_argument(
        "--own", nargs="*", default=["torch"], help="backends of stsbp, e.g. torch, jax, torch+triangle"
    )
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(ALL_CASES))
    parser.add_argument("--turn", type=int, default=5, help="steps of each in a turn")
    parser.add_argument(
        "--work", choices=["training", "prediction"], default="training", help="what a step is: see worker.py"
    )
    parser.add_argument("--patience", type=float, default=600, help="seconds for a library to compile and warm up")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"format": 1, "machine": {}, "cases": []}
    option_values = {
        name: getattr(options, name)
        for name in ("rounds", "scale", "device", "own", "peers", "modes", "patience", "turn", "work")
    }
    settings = {**option_values, "allocator": ALLOCATOR}
    report["machine"] = describe(open_backend("numpy"), settings)
    for name in options.cases:
        problem, source = make_problem(
            ALL_CASES[name], scale=options.scale, data_dir=options.data_dir, device=options.device
        )
        interpreter = Path(sys.executable)
        floor = ["floor"] if options.work == "training" else []
        libraries = [(interpreter, "stsbp", mode) for mode in (*floor, *options.own)]
        for peer in options.peers:
            python = interpreter if options.here else options.envs / peer / "bin" / "python"
            libraries += [(python, peer, mode) for mode in (["plain"] if peer == "spyx" else options.modes)]
        began = time.perf_counter()
        records = compare(
            problem, libraries, rounds=options.rounds, patience=options.patience, logs=options.out.parent / "logs",
            turn=options.turn, work=options.work,
        )  # fmt: skip
        case = ALL_CASES[name]
        size = f"{case.net}-10 T={case.steps} B={len(problem.labels)}"
        elapsed = time.perf_counter() - began
        print(f"\n{name}: {size}, data: {source}, {elapsed:.0f} s\n\n{table(records)}\n", flush=True)
        report["cases"].append({"case": name, "network": size, "data": source, "records": records})
    write_report(report, options.out)


if __name__ == "__main__":
    sys.exit(guarded(main))
