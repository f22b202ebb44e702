"""One training step on one process with all threads and on several with fewer: `python benchmarks/processes.py`.

Groups of processes live side by side; each makes some steps when it is told to, in turn, on the same batches. Every
process counts what it sends (messages and bytes of gradients, maxima and reports) and how long it waits for the others.
What is measured is what one machine's memory carries; the model in docs/distributed.md has other links.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from compare import Worker
from options import count, guarded, parser_of, write_report
from stsbp.benchmarks.cases import CASES
from stsbp.benchmarks.device import describe
from stsbp.errors import StsbpError
from stsbp_spec.distributed.rendezvous import free_port
from stsbp_spec.registry import open_backend

__all__ = ["Group", "main", "summary"]

WORKER = Path(__file__).with_name("processes_worker.py")
_PATIENCE = 1800.0


class Group:
    """`size` processes that train together.

    Args:
        size: how many.
        threads: of each; None: the backend's own choice.
        arguments: of the worker, without rank, size and port.
        logs: folder of what the processes print.
    """

    def __init__(self, size: int, threads: int | None, arguments: list[str], logs: Path) -> None:
        port = str(free_port())
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        self.size, self.turns = size, list[list[dict[str, Any]]]()
        self.workers = [
            Worker.start(
                [sys.executable, str(WORKER), str(rank), str(size), port, *arguments],
                environment,
                f"rank {rank} of {size}",
                "",
                logs / f"{size}-{rank}.log",
            )
            for rank in range(size)
        ]

    def wait(self) -> None:
        """Wait until all are warm.

        Raises:
            StsbpError: one of them ended.
        """
        for worker in self.workers:
            worker.wait(_PATIENCE)
            if worker.problem is not None:
                raise StsbpError(f"{worker.name}: {worker.problem}; see {worker.log}")

    def turn(self, steps: int) -> None:
        """Let all make so many steps, and keep what each says."""
        for worker in self.workers:
            assert worker.process.stdin is not None
            worker.process.stdin.write(f"{steps}\n")
            worker.process.stdin.flush()
        self.turns.append([worker.answer() for worker in self.workers])

    def stop(self) -> None:
        """Let all end."""
        for worker in self.workers:
            worker.stop()


def summary(group: Group) -> dict[str, Any]:
    """Medians over the turns, of the slowest process; what one of them sends a step."""
    seconds = [max(report["seconds"] for report in turn) for turn in group.turns]
    waited = [max(report["waited"] for report in turn) for turn in group.turns]
    first = group.turns[-1][0]
    return {
        "processes": group.size,
        "seconds": statistics.median(seconds),
        "quartiles": statistics.quantiles(seconds, n=4)[::2] if len(seconds) > 1 else [seconds[0]] * 2,
        "waited": statistics.median(waited),
        "share": statistics.median(w / s for w, s in zip(waited, seconds, strict=True)),
        "messages": first["messages"],
        "bytes": first["bytes"],
        "loss": first["loss"],
    }


def _row(case: str, precision: str, sizes: dict[int, int | None], options: Any) -> list[dict[str, Any]]:
    arguments = [
        options.backend,
        options.device or "",
        case,
        precision,
        str(options.scale),
        str(options.data_dir or ""),
    ]
    logs = Path(tempfile.mkdtemp(prefix="processes-"))
    groups = list[Group]()
    try:
        for size, threads in sizes.items():
            groups.append(Group(size, threads, arguments, logs))
            groups[-1].wait()
        for number in range(options.turns):
            for group in groups if number % 2 == 0 else groups[::-1]:
                group.turn(options.steps)
    finally:
        for group in groups:
            group.stop()
    rows = [{"case": case, "precision": precision, **summary(group)} for group in groups]
    losses = {row["loss"] for row in rows}
    if precision == "reproducible" and len(losses) != 1:
        raise StsbpError(f"{case}: groups computed different losses: {', '.join(map(str, sorted(losses)))}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    lines = [
        "| network | precision | processes | step ms | quartiles | waiting for others | messages | KiB sent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (1e3 * x for x in row["quartiles"])
        lines.append(
            f"| {row['case']} | {row['precision']} | {row['processes']} | {1e3 * row['seconds']:.1f} | "
            f"{low:.1f} - {high:.1f} | {1e3 * row['waited']:.1f} ms, {row['share']:.0%} | {row['messages']:g} | "
            f"{row['bytes'] / 1024:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
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
            rows += _row(case, precision, sizes, options)
    print(table(rows))
    settings = {"sizes": options.sizes, "cores": options.cores, "scale": options.scale, "steps": options.steps}
    machine = describe(open_backend("numpy"), {"backend": options.backend, "device": options.device, **settings})
    write_report({"format": 1, "machine": machine, "rows": rows}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
