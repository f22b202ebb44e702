"""Test accuracy over losses and seeds, as a table for the documentation with all that it must say beside its numbers.

    python experiments/accuracy.py nmnist --data-dir D --losses van-rossum hamming --seeds 0 1 2 -- --epochs 10

What stands behind `--` goes to `stsbp train`. Every run is a process of its own; its folder is kept under --out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

RESULT = re.compile(r"test accuracy ([0-9.]+)% .* (\d+) samples")


def run(dataset: str, loss: str, seed: int, out: Path, options: list[str]) -> tuple[float, int, float]:
    """Train once; test accuracy in percent, test samples, and seconds of the whole command."""
    folder = out / f"{dataset}-{loss}-{seed}"
    command = ["stsbp", "--backend", "torch", "train", dataset, "--loss", loss, "--seed", str(seed)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--out", str(folder), "--overwrite", *options], stdout=subprocess.PIPE, text=True, check=False
    )
    result = RESULT.search(done.stdout)
    if done.returncode or result is None:
        raise SystemExit(f"failed with exit code {done.returncode}: {' '.join(command)}")
    return float(result[1]), int(result[2]), time.monotonic() - began


def main() -> None:
    """Run everything and print a Markdown table."""
    own = sys.argv[1:]
    options = own[own.index("--") + 1 :] if "--" in own else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--losses", nargs="+", default=["van-rossum", "hamming"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    given = parser.parse_args(own[: len(own) - len(options) - ("--" in own)])
    if given.data_dir:
        options = ["--data-dir", given.data_dir, *options]
    rows = []
    for loss in given.losses:
        runs = [run(given.dataset, loss, seed, given.out, options) for seed in given.seeds]
        accuracies = [accuracy for accuracy, _, _ in runs]
        shown = f"{statistics.mean(accuracies):.2f} | {', '.join(f'{a:.2f}' for a in accuracies)}"
        rows.append(f"| {loss} | {shown} | {runs[0][1]} | {statistics.mean(r[2] for r in runs):.0f} |")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "torch", "numba"))
    print(f"\n| loss | mean % | seeds {given.seeds} | test samples | s a run |\n|---|---|---|---|---|", *rows, sep="\n")
    print(f"\n`experiments/accuracy.py {' '.join(re.sub('.*/', '', arg) for arg in own)}` at {commit or 'no commit'},")
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, {versions}.")


if __name__ == "__main__":
    main()
