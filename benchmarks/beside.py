"""An older checkout and this one on the same kernels and training steps, in turn: `python benchmarks/beside.py OLD`.

Each checkout lives in a process of its own (beside_worker.py) with its own packages and its own folder of compiled
kernels, and computes when it is told to. A pair is one run of each, the order changing from pair to pair; what counts
is the ratio new to old. Good is a median of at most 1.03, or quartiles with 1 between them; of the first update, in a
new process with nothing compiled, a median of at most 1.1. torch on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compare import Worker
from options import count, folder, guarded, parser_of, write_report
from stsbp.benchmarks.device import describe
from stsbp.benchmarks.timing import Timing
from stsbp.errors import StsbpError
from stsbp_spec.registry import open_backend

__all__ = ["environment", "first_updates", "good", "main", "pairs"]

HERE = Path(__file__).parent
WORKER = HERE / "beside_worker.py"
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


def good(ratios: Timing, band: float = _BAND) -> bool:
    """Whether the new checkout is no slower: the median within the band, or 1 between the quartiles."""
    return ratios.median <= band or ratios.low <= 1 <= ratios.high


def record(work: str, seconds_by_checkout: dict[str, list[float]], band: float = _BAND) -> dict[str, Any]:
    """Ratios of pairs as a row of the report."""
    ratios = Timing(
        tuple(new / old for old, new in zip(seconds_by_checkout["old"], seconds_by_checkout["new"], strict=True))
    )
    times = {name: Timing(tuple(seconds)).to_json() for name, seconds in seconds_by_checkout.items()}
    return {"what": work, **times, "ratio": ratios.to_json(), "good": good(ratios, band)}


def order(number: int) -> tuple[str, str]:
    """Which comes first in a pair."""
    return ("old", "new") if number % 2 == 0 else ("new", "old")


def pairs(
    environments: dict[str, dict[str, str]], names: list[str], *, rounds: int, logs: Path, clock: str = "wall"
) -> list[dict[str, Any]]:
    """Time every piece of work that both checkouts have.

    Raises:
        StsbpError: a checkout does not run, or what both compute differs.
    """
    workers = {}
    try:
        for name, variables in environments.items():
            command = [sys.executable, str(WORKER), "all", clock, *names]
            workers[name] = Worker.start(command, variables, name, "all", logs / f"{name}.log")
            workers[name].wait(_PATIENCE)
            if workers[name].problem is not None:
                raise StsbpError(f"the {name} checkout does not run: {workers[name].problem}")
        old, new = (workers[name].ready for name in ("old", "new"))
        for name, loss in old["losses"].items():
            if loss != new["losses"].get(name, loss):
                raise StsbpError(f"{name}: the checkouts compute different spikes or losses, so times say nothing")
        common = [name for name in old["names"] if name in new["names"]]
        if missing := sorted({*old["names"], *new["names"]} - set(common)):
            print(f"not in both checkouts, see {logs}: {', '.join(missing)}", file=sys.stderr)
        if not common:
            raise StsbpError(f"the checkouts have no work in common, see {logs}")
        seconds_by_work: dict[str, dict[str, list[float]]] = {name: {"old": [], "new": []} for name in common}
        repeat = {name: max(1, round(_SECONDS / workers["old"].ask(f"{name} 1")["seconds"])) for name in common}
        for number in range(rounds):
            for name in common:
                for checkout in order(number):
                    seconds_by_work[name][checkout].append(workers[checkout].ask(f"{name} {repeat[name]}")["seconds"])
        return [record(name, seconds) for name, seconds in seconds_by_work.items()]
    except (json.JSONDecodeError, BrokenPipeError):
        raise StsbpError(f"a worker ended while it was timed, see {logs}") from None
    finally:
        for worker in workers.values():
            worker.stop()


def first_updates(
    checkouts: dict[str, Path], *, rounds: int, threads: int | None, logs: Path, clock: str = "wall"
) -> dict[str, Any]:
    """Time the first update, compiling included, of new processes with empty folders of compiled kernels."""
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    for number in range(rounds):
        for name in order(number):
            with tempfile.TemporaryDirectory() as cache, open(logs / f"{name}-first.log", "w") as log:
                process = subprocess.run(
                    [sys.executable, str(WORKER), "first", clock],
                    env=environment(checkouts[name], Path(cache), threads),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            if process.returncode != 0:
                raise StsbpError(f"the first update of the {name} checkout failed, see {logs / f'{name}-first.log'}")
            seconds[name].append(json.loads(process.stdout)["seconds"])
    return record("first update, nothing compiled", seconds, _FIRST_BAND)


def table(rows: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    lines = ["| | pairs | old ms | new ms | new / old | quartiles | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        old, new, ratio = row["old"], row["new"], row["ratio"]
        lines.append(
            f"| {row['what']} | {ratio['runs']} | {1e3 * old['median']:.2f} | {1e3 * new['median']:.2f} | "
            f"{ratio['median']:.3f} | {ratio['low']:.3f} - {ratio['high']:.3f} | {'' if row['good'] else 'SLOWER'} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, measure, print a table; the exit code is 1 where the new checkout is slower."""
    parser = parser_of(__doc__, "out")
    parser.add_argument("old", type=folder, metavar="OLD", help="the older checkout")
    parser.add_argument("--new", type=folder, default=HERE.parent, help="the newer one; default: this one")
    parser.add_argument("--pairs", type=count, default=21, help="how often each is timed")
    parser.add_argument("--first", type=int, default=5, help="pairs of first updates; 0 leaves them out")
    parser.add_argument("--threads", type=count, help="of each process; default: one a core")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, steadier on a busy machine"
    )
    parser.add_argument("--caches", type=Path, metavar="FOLDER", help="keep compiled kernels here, for the next time")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the rows, e.g. 'AdamW'")
    options = parser.parse_args(arguments)
    checkouts = {"old": options.old, "new": options.new}
    with tempfile.TemporaryDirectory() as emptied:
        caches = options.caches or Path(emptied)
        logs = Path(tempfile.mkdtemp(prefix="beside-"))
        environments = {
            name: environment(path, caches.resolve() / name, options.threads) for name, path in checkouts.items()
        }
        rows = pairs(environments, options.only, rounds=options.pairs, logs=logs, clock=options.clock)
    if options.first > 0:
        rows.append(
            first_updates(checkouts, rounds=options.first, threads=options.threads, logs=logs, clock=options.clock)
        )
    print(table(rows))
    settings = {"old": str(options.old), "new": str(options.new), "threads": options.threads, "clock": options.clock}
    report = {"format": 1, "machine": describe(open_backend("numpy"), settings), "rows": rows}
    write_report(report, options.out)
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
