"""How networks that were trained on simulated recordings read real ones: a table for docs/experiments.md.

    stsbp --backend torch train nmnist-sim --data-dir D --limit 10000 --test-on nmnist --out runs/transfer ...
    python experiments/transfer.py --data-dir D runs/transfer ...

Each run is tested on MNIST's 10,000 test digits before the simulated camera, on all real recordings in D, and on those
of them that the camera was not fitted on. Nothing is chosen: it is the last checkpoint of each run that is tested.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from calibrate_nmnist import FITTED
from stsbp.datasets import Split, Subset, load
from stsbp.datasets.nmnist import tested_digits
from stsbp.training.evaluate import Evaluation, evaluate
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import Trained, load_trained
from stsbp_spec.registry import open_backend

BATCH = 100


def shares(evaluation: Evaluation) -> str:
    """Accuracy in percent."""
    return f"{100 * np.trace(evaluation.confusion) / evaluation.confusion.sum():.2f}"


def test(trained: Trained, data_dir: Path) -> tuple[dict[str, Evaluation], list[str]]:
    """What a network does on each set of recordings, and the real digits that it misreads, by class."""
    options: dict[str, Any] = {
        "data_dir": data_dir,
        "steps": trained.settings.steps,
        "binning": trained.settings.binning,
    }
    real = load("nmnist", **options, only_test=True).test
    numbers = tested_digits(data_dir)
    if len(numbers) != len(real):
        raise SystemExit(f"{data_dir}/NMNIST holds a test set: the training recordings must be alone there")
    sets: dict[str, Split] = {
        "simulated": load("nmnist-sim", limit=BATCH, **options).test,
        "real": real,
        "real, not fitted on": Subset(real, np.flatnonzero(numbers >= FITTED)),
    }
    evaluations = {name: evaluate(trained.task, trained.state, split, BATCH) for name, split in sets.items()}
    confusion = evaluations["real"].confusion
    misread = [f"{row.sum() - row[k]} of {row.sum()}" for k, row in enumerate(confusion)]
    return evaluations, misread


def main() -> None:
    """Test the runs and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    arguments = parser.parse_args()
    backend = open_backend("torch")
    rows, classes = [], []
    for run in arguments.runs:
        trained = load_trained(RunFolder(run), "last", backend)
        config = trained.settings
        evaluations, misread = test(trained, arguments.data_dir)
        sizes = {name: int(evaluation.confusion.sum()) for name, evaluation in evaluations.items()}
        digits = f"{config.limit:,}" if config.limit else "all"
        accuracies = " | ".join(map(shares, evaluations.values()))
        rows.append(f"| {config.loss} | {digits} | {config.epochs} | {config.seed} | {accuracies} |")
        classes.append(f"| {config.loss}, {digits}, seed {config.seed} | {' | '.join(misread)} |")
    heads = " | ".join(f"{name} ({size:,}) %" for name, size in sizes.items())
    print(f"| loss | digits | epochs | seed | {heads} |\n|---|---|---|---|---|---|---|", *rows, sep="\n")
    print(f"\n| misread real recordings | {' | '.join('0123456789')} |\n|{'---|' * 11}", *classes, sep="\n")


if __name__ == "__main__":
    main()
