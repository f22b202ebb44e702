"""Mackey-Glass by the protocol of NeuroBench: every delay, start and seed, one run after the other on one core.

    python experiments/mackey_glass.py --out runs/mackey-glass.jsonl                      # 14 x 30 x 3 runs
    python experiments/mackey_glass.py --out runs/start-0.jsonl --starts 0                # 14 x 3 runs
    python experiments/mackey_glass.py --out runs/direct.jsonl --starts 0 --no-hidden     # without hidden neurons

A run is `stsbp train mackey-glass:tau=TAU:start=START --seed SEED` and `stsbp evaluate`, with the default settings. A
line of JSON with its results is added to the file after each run. Started again, the script does only what is missing
there. At the end, and with --summary at once, it prints a table for the documentation.

The interval is that of the mean, 95 % by Student's t. Runs of one start, or with one start those of one seed, are
averaged first, because the series of one start with different delays and seeds are no independent samples of the
starts.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stsbp
from scipy.stats import t as student
from stsbp.datasets.mackey_glass import DIRECT_NET, STARTS, SYSTEMS

PARTS = ("1", "2", "3", "all")
"""sMAPE of the first 1, 2 and 3 Lyapunov times, and of all 10."""


def one_run(tau: int, start: int, seed: int, backend: str, *, hidden: bool) -> dict[str, Any]:
    """Train, and let the network continue the series. The results as JSON values."""
    began = time.perf_counter()
    settings: dict[str, Any] = {} if hidden else {"net": DIRECT_NET}
    with tempfile.TemporaryDirectory() as folder:
        run = stsbp.train(
            f"mackey-glass:tau={tau}:start={start}",
            out=Path(folder) / "run",
            backend=backend,
            threads=1,
            seed=seed,
            progress=False,
            **settings,
        )
        result = run.evaluate()
    rollout = result["rollout"]
    return {
        "tau": tau,
        "start": start,
        "seed": seed,
        "smape": rollout["smape"],
        "mean": rollout["baselines"]["mean"],
        "last_value": rollout["baselines"]["last_value"],
        "mse_one_step": result["regression"]["mse"],
        "r2_one_step": result["regression"]["r2"],
        "rates": result["rates"],
        "seconds": round(time.perf_counter() - began, 1),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of the file. A last line that a stop has cut is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean by Student's t. NaN for one value."""
    if len(values) < 2:
        return math.nan
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def mean_of(rows: Sequence[Mapping[str, Any]], kind: str, part: str) -> float:
    """Mean sMAPE of the network (`smape`) or of a baseline."""
    return statistics.fmean(row[kind][part] for row in rows)


def interval(rows: Sequence[Mapping[str, Any]], part: str) -> float:
    """Half of the 95 % interval of the network's mean sMAPE."""
    key = "start" if len({row["start"] for row in rows}) > 1 else "seed"
    groups = [[row for row in rows if row[key] == number] for number in sorted({row[key] for row in rows})]
    return half_width([mean_of(group, "smape", part) for group in groups])


def _with_interval(mean: float, half: float) -> str:
    """A mean and half of its interval, if it is known."""
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each delay and one for all, in Markdown."""
    lines = [
        "| tau | 1 Lyapunov time | 2 | 3 | all 10 | mean, all 10 | last value, all 10 | R2 of one step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_tau = {str(tau): [row for row in rows if row["tau"] == tau] for tau in SYSTEMS}
    for name, some in {**by_tau, "all": list(rows)}.items():
        if some:
            figures = [_with_interval(mean_of(some, "smape", part), interval(some, part)) for part in PARTS]
            baselines = [f"{mean_of(some, kind, 'all'):.2f}" for kind in ("mean", "last_value")]
            r2 = f"{statistics.fmean(row['r2_one_step'] for row in some):.5f}"
            lines.append(f"| {' | '.join([name, *figures, *baselines, r2])} |")
    starts, seeds = (len({row[key] for row in rows}) for key in ("start", "seed"))
    seconds = statistics.median(row["seconds"] for row in rows)
    return "\n".join([*lines, "", f"{len(rows)} runs, {starts} starts, {seeds} seeds, {seconds:.1f} s a run (median)"])


def main() -> None:
    """Read the command line, do the missing runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of the results, one line of JSON for each run")
    parser.add_argument("--starts", nargs="+", type=int, default=list(range(STARTS)), metavar="START")
    parser.add_argument("--taus", nargs="+", type=int, default=list(SYSTEMS), choices=list(SYSTEMS), metavar="TAU")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--no-hidden", action="store_true", help="leave the hidden neurons out")
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    path: Path = arguments.out
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path)
    finished = {(row["start"], row["tau"], row["seed"]) for row in rows}
    jobs = [(start, tau, seed) for start in arguments.starts for tau in arguments.taus for seed in arguments.seeds]
    for start, tau, seed in [] if arguments.summary else [job for job in jobs if job not in finished]:
        row = one_run(tau, start, seed, arguments.backend, hidden=not arguments.no_hidden)
        with path.open("a") as file:
            # After a line that was cut, this one begins a new line.
            file.write(("\n" if path.stat().st_size else "") + json.dumps(row))
        rows.append(row)
        smape = row["smape"]
        print(f"start {start} tau {tau} seed {seed}: " + ", ".join(f"{smape[part]:.2f}" for part in PARTS), flush=True)
    print(table(rows) if rows else "no results yet")


if __name__ == "__main__":
    main()
