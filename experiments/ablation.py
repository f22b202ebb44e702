"""What each choice buys a deep network: one training run a choice, as a table for the documentation.

    python experiments/ablation.py --data-dir D --limit 12000 --epochs 5 --seeds 0 1 --out runs/ablation

Every row but the last changes one thing of the base: the preset of CIFAR-10 with the network and options below. A run
is a process of its own with a folder below --out; started again, the script goes on where it was stopped and repeats
nothing. The accuracy is that of the validation samples, which are cut off from the training samples: a table that
choices are made by leaves the test set alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

NET = "16C3-P2-32C3-P2-32C3-32C3-32C3-P2-128"
BASE = "base"
ROWS: dict[str, tuple[str, ...]] = {
    BASE: ("--init-gain", "3", "--init-rate", "0.1", "--surrogate", "arctan:alpha=1", "--lr", "0.004"),
    "gain 1.5": ("--init-gain", "1.5"),
    "gain 1.5, no initial rate": ("--init-gain", "1.5", "--init-rate", "0"),
    "gain 3, no initial rate": ("--init-rate", "0"),
    "gain 4.5, no initial rate": ("--init-gain", "4.5", "--init-rate", "0"),
    "arctan, alpha 0.5 (twice as wide)": ("--surrogate", "arctan:alpha=0.5"),
    "arctan, alpha 2 (half as wide, the default)": ("--surrogate", "arctan"),
    "arctan, alpha 4 (a quarter as wide)": ("--surrogate", "arctan:alpha=4"),
    "fast sigmoid, beta 1": ("--surrogate", "fast-sigmoid:beta=1"),
    "learning rate 0.001": ("--lr", "0.001"),
    "learning rate 0.008": ("--lr", "0.008"),
    "constant learning rate": ("--schedule", "constant"),
    "dropout 0.2": ("--dropout", "0.2"),
    "gradients clipped at norm 1": ("--clip-norm", "1"),
    "weight decay 0.01": ("--weight-decay", "0.01"),
    "no augmentation": ("--augment-shift", "0", "--no-augment-flip"),
    "cut-out of 8 pixels": ("--augment-cutout", "8"),
    "no augmentation, arctan alpha 2, clipped at norm 1": (
        "--augment-shift",
        "0",
        "--no-augment-flip",
        "--surrogate",
        "arctan",
        "--clip-norm",
        "1",
    ),
}
"""Options of `stsbp train` by the name of the row, after those of the base."""


class Result(NamedTuple):
    """How a run ended: accuracies in percent, the least rate of a layer in the first update and in the last epoch."""

    validation: float
    training: float
    first_rate: float
    last_rate: float


def run(row: str, seed: int, options: Sequence[str], out: Path) -> Result:
    """Train once, or go on with what was begun."""
    folder = out / f"{re.sub('[^a-z0-9]+', '-', row.lower()).strip('-')}-{seed}"
    row_options = [*options, *ROWS[BASE], *ROWS[row]]
    command = ["stsbp", "--backend", "torch", "train", "cifar10", "--seed", str(seed), *row_options]
    process = subprocess.run([*command, "--out", str(folder), "--resume"], stdout=subprocess.DEVNULL, check=False)
    if process.returncode:
        raise SystemExit(f"failed with exit code {process.returncode}: {' '.join(command)}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    tested = [line for line in lines if line["kind"] == "evaluation" and line["split"] == "validation"]
    first = next(line for line in lines if line["kind"] == "step")
    return Result(
        100 * tested[-1]["accuracy"],
        100 * epochs[-1]["accuracy"],
        min(first["rates"].values()),
        min(epochs[-1]["rates"].values()),
    )


def main() -> None:
    """Run everything and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of CIFAR-10")
    parser.add_argument("--net", default=NET)
    parser.add_argument("--limit", type=int, default=12_000, help="training images, validation among them")
    parser.add_argument("--validation", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    if arguments.validation < 1:
        parser.error("the table is of validation samples: give --validation 1 or more")
    options = ["--data-dir", arguments.data_dir, "--net", arguments.net, "--log-every", "1", "--test-every", "0"]
    for name in ("limit", "validation", "epochs", "threads"):
        options += [f"--{name}", str(getattr(arguments, name))]
    print(
        "| what differs from the base | validation % | training % | least rate of a layer, first update | "
        "last epoch |\n|---|---|---|---|---|"
    )
    for row in arguments.rows:
        results = [run(row, seed, options, arguments.out) for seed in arguments.seeds]
        means = Result(*(statistics.mean(figures) for figures in zip(*results, strict=True)))
        accuracies = f" ({', '.join(f'{r.validation:.1f}' for r in results)})" if len(results) > 1 else ""
        print(
            f"| {row} | {means.validation:.1f}{accuracies} | {means.training:.1f} | {means.first_rate:.4f} | "
            f"{means.last_rate:.4f} |",
            flush=True,
        )
    commit = ""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(FileNotFoundError):
        commit = subprocess.run(describe, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "torch", "numba"))
    print(f"\n`experiments/ablation.py {' '.join(re.sub('.*/', '', arg) for arg in sys.argv[1:])}` at")
    print(f"{commit or 'no commit'}, {datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()},")
    print(f"{versions}.")


if __name__ == "__main__":
    main()
