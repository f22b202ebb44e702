"""One training step on one process with all threads and on several with fewer: `python benchmarks/processes.py`.

Groups of processes live side by side; each makes some steps when it is told to, in turn, on the same batches. Every
process counts what it sends (messages and bytes of gradients, maxima and reports) and how long it waits for the others.
What is measured is what one machine's memory carries; the model in docs/distributed.md has other links.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import count, guarded, parser_of, spread, table, write_report
from stsbp.benchmarks.cases import CASES, BenchmarkRun, prepare
from stsbp.benchmarks.step import folder_of
from stsbp.benchmarks.timing import Timing, alternated
from stsbp.errors import StsbpError
from stsbp_spec.distributed.collective import Alone, Collective, Rendezvous
from stsbp_spec.distributed.rendezvous import free_port
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.encoders.packed import Inputs, of_part
from stsbp_spec.registry import load_backend
from workers import Worker, serve

_PATIENCE = 1800.0


class Traffic:
    """Counts the exchanges of a collective, and the time until each is over.

    A sum counts as one message, though an engine may put several into one. Its methods are replaced on the object.
    """

    def __init__(self, collective: Collective[Any]) -> None:
        self.reset()
        for name in ("largest", "start_total", "gather"):
            setattr(collective, name, self._counted(getattr(collective, name)))

    def reset(self) -> None:
        """Begin to count anew."""
        self.seconds, self.messages, self.bytes = 0.0, 0, 0

    def _timed(self, method: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = method(*arguments)
        self.seconds += time.perf_counter() - began
        return result

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def exchange(x: Any) -> Any:
            self.messages += 1
            self.bytes += x.nbytes
            result = self._timed(method, x)
            return (lambda: self._timed(result)) if callable(result) else result

        return exchange


def part_of_batch(batch: Batch[Inputs], collective: Collective[Any], axis: int) -> Batch[Inputs]:
    """The inputs of this process's part."""
    part = collective.parts(batch.targets.shape[1])[collective.rank]
    return Batch(of_part(batch.inputs, part, axis), batch.targets)


def member(
    rank: str, size: str, port: str, name: str, device: str, case: str, precision: str, scale: str, data: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One process of a group: it answers `steps COUNT`."""
    kind, place = load_backend(name), Rendezvous(int(rank), int(size), int(rank), "127.0.0.1", int(port))
    joined = int(size) > 1
    if device in ("cuda", "gpu") and joined:
        device = f"{device}:{rank}"
    if joined:
        kind.connect(place, device or None)
    backend = kind(device or None)
    collective: Collective[Any] = backend.join(place) if joined else Alone()
    traffic = Traffic(collective)
    folder = folder_of(CASES[case], Path(data) if data else None)
    task, resident = prepare(CASES[case], backend, scale=float(scale), surrogate=None, data_dir=folder)
    trainer = backend.trainer(
        task.network,
        task.trainer.loss,
        task.trainer.optimizer,
        precision="reproducible" if precision == "reproducible" else "fast",
        seed=task.config.seed,
        collective=collective,
    )
    axis = int(task.network.coding == "events")
    batches = [part_of_batch(batch, collective, axis) for batch in resident.batches]
    step = BenchmarkRun(replace(task, trainer=trainer), batches)
    for _ in range(4):
        step()

    def steps(number: int) -> dict[str, Any]:
        traffic.reset()
        began = time.perf_counter()
        for _ in range(number):
            step()
        seconds = time.perf_counter() - began
        assert step.result is not None
        sent = {"messages": traffic.messages * joined / number, "bytes": traffic.bytes * joined / number}
        return {"seconds": seconds / number, "waited": traffic.seconds / number, **sent, "loss": step.result.loss}

    return {}, {"steps": steps}


class Group:
    """`size` processes that train together, each with so many threads (None: the backend's own choice)."""

    def __init__(self, stack: ExitStack, size: int, threads: int | None, arguments: list[str], logs: Path) -> None:
        self.size, self.turns, port = size, list[list[dict[str, Any]]](), free_port()
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        self.workers = []
        for rank in range(size):
            command = [sys.executable, __file__, "--member", *map(str, (rank, size, port)), *arguments]
            worker = Worker(f"rank {rank} of {size}", command, logs / f"{size}-{rank}.log", environment)
            self.workers.append(stack.enter_context(worker))
        for worker in self.workers:
            worker.wait(_PATIENCE)

    def turn(self, steps: int) -> float:
        """Let all make so many steps; the seconds of one, of the slowest."""
        for worker in self.workers:
            worker.tell("steps", steps)
        self.turns.append([worker.answer() for worker in self.workers])
        return max(float(answer["seconds"]) for answer in self.turns[-1])


def summary(group: Group, times: Timing) -> dict[str, Any]:
    """Medians over the turns, of the slowest process; what one of them sends a step."""
    waited = Timing(tuple(max(answer["waited"] for answer in turn) for turn in group.turns))
    first = group.turns[-1][0]
    return {
        "processes": group.size,
        "seconds": times.median,
        "quartiles": [times.low, times.high],
        "waited": waited.median,
        "share": Timing.ratios(waited, times).median,
        **{name: first[name] for name in ("messages", "bytes", "loss")},
    }


def measure(case: str, precision: str, sizes: dict[int, int | None], options: Any) -> list[dict[str, Any]]:
    """Time groups of these sizes, with these numbers of threads, on a case."""
    arguments = [options.backend, options.device or "", case, precision, options.scale, options.data_dir or ""]
    logs = Path(tempfile.mkdtemp(prefix="processes-"))
    with ExitStack() as stack:
        groups = [Group(stack, size, threads, list(map(str, arguments)), logs) for size, threads in sizes.items()]
        turns = {str(group.size): partial(group.turn, options.steps) for group in groups}
        times = alternated(turns, rounds=options.turns)
    rows = [{"case": case, "precision": precision, **summary(group, times[str(group.size)])} for group in groups]
    losses = {row["loss"] for row in rows}
    if precision == "reproducible" and len(losses) != 1:
        raise StsbpError(f"{case}: groups computed different losses: {', '.join(map(str, sorted(losses)))}")
    return rows


def group_table(rows: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    columns = "network, precision, processes, step ms, quartiles, waiting for others, messages, KiB sent"
    cells = []
    for row in rows:
        times = spread({"median": row["seconds"], "low": row["quartiles"][0], "high": row["quartiles"][1]})
        waited = f"{1e3 * row['waited']:.1f} ms, {row['share']:.0%}"
        names = [row[name] for name in ("case", "precision", "processes")]
        cells.append((*names, *times, waited, f"{row['messages']:g}", f"{row['bytes'] / 1024:.1f}"))
    return table(columns.split(", "), cells)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, print a table."""
    parser = parser_of(__doc__, "backend", "device", "scale", "data-dir", "out")
    parser.add_argument("--sizes", type=count, nargs="+", default=[1, 2], help="numbers of processes; default: 1 2")
    parser.add_argument("--cores", type=count, default=os.cpu_count() or 1, help="threads of each group together")
    parser.add_argument("--turns", type=count, default=7, help="how often each group is timed")
    parser.add_argument("--steps", type=count, default=3, help="steps of a turn")
    options = parser.parse_args(arguments)
    gpu = bool(options.device) and not options.device.startswith(("cpu", "host"))
    sizes = {size: None if gpu else max(1, options.cores // size) for size in options.sizes}
    rows: list[dict[str, Any]] = []
    for case in CASES:
        for precision in ("fast", "reproducible"):
            print(f"{case}, {precision}", file=sys.stderr, flush=True)
            rows += measure(case, precision, sizes, options)
    print(group_table(rows))
    names = ("backend", "device", "sizes", "cores", "scale", "steps")
    write_report(options.out, None, {name: getattr(options, name) for name in names}, rows=rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--member"]:
        serve(lambda: member(*sys.argv[2:]))
    else:
        sys.exit(guarded(main))
