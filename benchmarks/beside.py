"""An older checkout and this one on the same kernels and training steps, in turn: `python benchmarks/beside.py OLD`.

Each checkout lives in a process of its own (beside_worker.py) with its own packages and its own folder of compiled
kernels, and computes when it is told to. A pair is one run of each, the order changing from pair to pair; what counts
is the ratio new to old. Good is a median of at most 1.03, or quartiles with 1 between them; of the first update, in a
new process with nothing compiled, a median of at most 1.1. torch on the CPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from harness import HERE, count, folder, guarded, parser_of, table, write_report
from stsbp.benchmarks.timing import Timing, alternated
from stsbp.errors import StsbpError
from workers import Worker

_PATIENCE = 3600.0
"""Seconds in which a worker must have compiled everything, on a busy machine too."""
_SECONDS = 0.15
"""Of one run's repetitions."""
_BAND, _FIRST_BAND = 1.03, 1.1


def environment(checkout: Path, cache: Path, threads: int | None) -> dict[str, str]:
    """Variables of a process that imports the packages of a checkout, compiled kernels in `cache`."""
    sources = sorted(str(path.resolve()) for path in checkout.glob("packages/*/src"))
    if not sources:
        raise StsbpError(f"{checkout} is no checkout of stsbp: it has no packages/*/src")
    variables = {"PYTHONPATH": os.pathsep.join(sources), "STSBP_CACHE": str(cache), "OMP_WAIT_POLICY": "PASSIVE"}
    if threads is not None:
        variables |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    return {**os.environ, **variables}


def start(name: str, variables: dict[str, str], logs: Path, mode: str, clock: str, *works: str) -> Worker:
    """The process of a checkout, warm."""
    command = [sys.executable, HERE / "beside_worker.py", mode, clock, *works]
    return Worker(f"the {name} checkout", command, logs / f"{name}-{mode}.log", variables).wait(_PATIENCE)


def record(work: str, times: dict[str, Timing], band: float = _BAND) -> dict[str, Any]:
    """Ratios of pairs as a row of the report: good if the median is within the band, or 1 between the quartiles."""
    ratios = Timing.ratios(times["new"], times["old"])
    good = ratios.median <= band or ratios.low <= 1 <= ratios.high
    seconds = {name: timing.to_json() for name, timing in times.items()}
    return {"what": work, **seconds, "ratio": ratios.to_json(), "good": good}


def pairs(
    environments: dict[str, dict[str, str]], names: list[str], *, rounds: int, logs: Path, clock: str = "wall"
) -> list[dict[str, Any]]:
    """Time every piece of work that both checkouts have.

    Raises:
        StsbpError: what both compute differs, or nothing is common to them.
        WorkerError: a checkout does not run.
    """
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(start(name, variables, logs, "all", clock, *names))
            for name, variables in environments.items()
        }
        old, new = (worker.ready for worker in workers.values())
        for name, loss in old["losses"].items():
            if loss != new["losses"].get(name, loss):
                raise StsbpError(f"{name}: the checkouts compute different spikes or losses, so times say nothing")
        common = [name for name in old["names"] if name in new["names"]]
        if missing := sorted({*old["names"], *new["names"]} - set(common)):
            print(f"not in both checkouts, see {logs}: {', '.join(missing)}", file=sys.stderr)
        if not common:
            raise StsbpError(f"the checkouts have no work in common, see {logs}")

        def seconds(worker: Worker, work: str, repeat: int) -> float:
            return float(worker.ask("time", work, repeat)["seconds"])

        rows = []
        for work in common:
            repeat = max(1, round(_SECONDS / seconds(workers["old"], work, 1)))
            turns = {name: partial(seconds, worker, work, repeat) for name, worker in workers.items()}
            rows.append(record(work, alternated(turns, rounds=rounds)))
        return rows


def first_updates(
    checkouts: dict[str, Path], *, rounds: int, threads: int | None, logs: Path, clock: str = "wall"
) -> dict[str, Any]:
    """Time the first update, compiling included, of new processes with empty folders of compiled kernels."""

    def seconds(name: str) -> float:
        with tempfile.TemporaryDirectory() as cache:
            variables = environment(checkouts[name], Path(cache), threads)
            with start(name, variables, logs, "first", clock) as worker:
                return float(worker.ready["seconds"])

    times = alternated({name: partial(seconds, name) for name in checkouts}, rounds=rounds)
    return record("first update, nothing compiled", times, _FIRST_BAND)


def pair_table(rows: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    cells = []
    for row in rows:
        ratio, times = row["ratio"], [f"{1e3 * row[name]['median']:.2f}" for name in ("old", "new")]
        ratios = (f"{ratio['median']:.3f}", f"{ratio['low']:.3f} - {ratio['high']:.3f}")
        cells.append((row["what"], ratio["runs"], *times, *ratios, "" if row["good"] else "SLOWER"))
    return table(["", "pairs", "old ms", "new ms", "new / old", "quartiles", ""], cells)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, measure, print a table; the exit code is 1 where the new checkout is slower."""
    parser = parser_of(__doc__, "threads", "clock", "out")
    parser.add_argument("old", type=folder, metavar="OLD", help="the older checkout")
    parser.add_argument("--new", type=folder, default=HERE.parent, help="the newer one; default: this one")
    parser.add_argument("--pairs", type=count, default=21, help="how often each is timed")
    parser.add_argument("--first", type=int, default=5, help="pairs of first updates; 0 leaves them out")
    parser.add_argument("--caches", type=Path, metavar="FOLDER", help="keep compiled kernels here, for the next time")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the rows, e.g. 'AdamW'")
    options = parser.parse_args(arguments)
    checkouts, threads = {"old": options.old, "new": options.new}, options.threads
    logs = Path(tempfile.mkdtemp(prefix="beside-"))
    with tempfile.TemporaryDirectory() as emptied:
        caches = (options.caches or Path(emptied)).resolve()
        environments = {name: environment(path, caches / name, threads) for name, path in checkouts.items()}
        rows = pairs(environments, options.only, rounds=options.pairs, logs=logs, clock=options.clock)
    if options.first > 0:
        rows.append(first_updates(checkouts, rounds=options.first, threads=threads, logs=logs, clock=options.clock))
    print(pair_table(rows))
    settings = {"old": str(options.old), "new": str(options.new), "threads": threads, "clock": options.clock}
    write_report(options.out, None, settings, rows=rows)
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
