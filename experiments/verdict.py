"""Do sequence labels classify better than spike counts? Van Rossum and Hamming against STBP on the same samples.

    python experiments/verdict.py train --data-dir D --stop-after 60      # again and again, until all runs are finished
    python experiments/verdict.py decide --data-dir D

D has MNIST, from which the recordings are simulated, and `NMNIST/Train` with real recordings of the first 1,000 digits,
which are not among the simulated ones.

Rules, written before the first run:

- Runs: the presets nmnist-van-rossum, nmnist-hamming and nmnist-stbp on nmnist-sim (59,000 recordings), of which 3,000
  are held out for validation, with seeds 0, 1 and 2. Each is trained for 20 epochs, and STBP also for 11: an epoch of
  STBP, which has 50 steps instead of 25, takes 1.76 times as long (docs/experiments.md), so 11 epochs take about the
  time of 20 epochs of van Rossum. Nothing else is tuned.
- The epoch is the one with the best validation accuracy. It is tested once, on the 10,000 simulated test recordings and
  on the real ones. The verdict is about the simulated ones, because they are ten times as many.
- d is the mean over the seeds of the difference of the accuracies, in points. Its 95 % interval comes from the samples:
  the differences of one sample, averaged over the seeds, have a mean and a standard error. McNemar's exact test of each
  seed is shown beside it.
- Equivalent: the interval lies within -0.2 and 0.2 points. Otherwise better, or worse: the interval is on one side of 0
  and all three seeds agree. Undecided: anything else.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stsbp
from scipy.stats import binomtest
from stsbp.datasets import Split
from stsbp.training.build import load_test_set
from stsbp_spec.models.decoders import nearest_sequence

SEEDS = (0, 1, 2)
ARMS = {"van-rossum": 20, "hamming": 20, "stbp": 20, "stbp-equal-time": 11}
"""Epochs of the runs of each loss."""
PAIRS = [(loss, baseline) for baseline in ("stbp", "stbp-equal-time") for loss in ("van-rossum", "hamming")]
MARGIN = 0.2
"""In points: a smaller difference does not matter."""
TESTS = ("nmnist-sim", "nmnist")


def preset(arm: str) -> str:
    """The preset with the settings of a run."""
    return "nmnist-" + arm.removesuffix("-equal-time")


def train(out: Path, data_dir: str, backend: str, minutes: float | None) -> bool:
    """Train what is not finished yet, one run after the other; False: the time is up before all are finished."""
    for seed in SEEDS:
        for arm, epochs in ARMS.items():
            folder = out / f"{arm}-{seed}"
            resumed = (folder / "config.toml").exists()
            if resumed and stsbp.load_run(folder).finished:
                continue
            settings: dict[str, Any] = {"resume": True} if resumed else {
                "preset": preset(arm), "epochs": epochs, "seed": seed, "validation": 3000, "data_dir": data_dir,
                "test_every": 0, "threads": 1,
            }  # fmt: skip
            data = None if resumed else "nmnist-sim"
            run = stsbp.train(data, out=folder, backend=backend, stop_after=minutes, progress=False, **settings)
            print(f"{folder}: epoch {run.info['epoch']} of {epochs}", flush=True)
            if not run.finished:
                return False
    return True


def is_right(run: Any, samples: Split) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which samples have their own label sequence as the nearest one, `[n]`."""
    task, right = run.task, []
    for i in range(0, len(samples), 100):
        batch, labels = task.batch(samples, np.arange(i, min(i + 100, len(samples))))
        spikes = task.trainer.predict(run.state, batch.inputs, task.config.steps, batch.lengths).spikes
        right.append(nearest_sequence(task.distances(spikes)) == labels)
    return np.concatenate(right)


def tested(folder: Path, data_dir: str, backend: str) -> dict[str, Any]:
    """The right samples of both tests, kept in the folder of the run, and the figures of its evaluation."""
    file = folder / "verdict.npz"
    run = stsbp.load_run(folder, "best", backend=backend)
    if not file.exists():
        right: dict[str, Any] = {}
        for name in TESTS:
            dataset = load_test_set(run.settings, name, lambda *_: None, data_dir)
            right[name] = is_right(run, run.other_samples(dataset))
        np.savez(file, **right)
    with np.load(file) as stored:
        return {name: stored[name] for name in TESTS} | {"costs": run.evaluate(energy=True)}


def spikes_of_sample(cost: Mapping[str, Any]) -> float:
    """Mean number of spikes in all layers, from an evaluation with its energy."""
    energy, rates = cost["energy"], cost["rates"]
    # A neuron is updated once in a step, and its rate is the mean over these updates.
    spikes: float = sum(rates[layer["name"]] * layer["updates"] for layer in energy["layers"])
    return spikes / int(energy["samples"])


def verdict(differences: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, str]:
    """From `[seeds, samples]` of 1, 0 and -1: d and half of its interval in points, and the verdict."""
    of_samples = 100 * differences.mean(axis=0)
    d, half = float(of_samples.mean()), 1.96 * float(of_samples.std(ddof=1)) / math.sqrt(of_samples.size)
    of_seeds = differences.mean(axis=1)
    if abs(d) + half < MARGIN:
        return d, half, "equivalent"
    if d - half > 0 and (of_seeds > 0).all():
        return d, half, "better"
    if d + half < 0 and (of_seeds < 0).all():
        return d, half, "worse"
    return d, half, "undecided"


def decide(out: Path, data_dir: str, backend: str) -> None:
    """Print the tables. Every run must be finished."""
    results = {arm: [tested(out / f"{arm}-{seed}", data_dir, backend) for seed in SEEDS] for arm in ARMS}
    print("| Loss | Epochs | Simulated | Real | Spikes a sample | Latency | Energy |")
    print("|---|---|---|---|---|---|---|")
    for arm, epochs in ARMS.items():
        accuracies = [" ".join(f"{100 * r[name].mean():.2f}" for r in results[arm]) for name in TESTS]
        costs = [r["costs"] for r in results[arm]]
        spikes = statistics.mean(spikes_of_sample(cost) for cost in costs)
        energy = statistics.mean(cost["energy"]["pj"]["total"] for cost in costs)
        latency = statistics.mean(cost["measures"]["latency"]["median"] for cost in costs)
        row = (arm, epochs, *accuracies, f"{spikes:.0f}", f"{latency:.1f}", f"{energy / 1000:.1f} nJ")
        print(f"| {' | '.join(map(str, row))} |")
    print("\n| Loss | Against | Test | Difference in points | McNemar's p of each seed | Verdict |")
    print("|---|---|---|---|---|---|")
    for loss, baseline in PAIRS:
        for name in TESTS:
            pairs = [(a[name], b[name]) for a, b in zip(results[loss], results[baseline], strict=True)]
            d, half, word = verdict(np.array([a.astype(float) - b.astype(float) for a, b in pairs]))
            counts = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in pairs]
            p = ", ".join(f"{binomtest(k, k + m).pvalue if k + m else 1.0:.3g}" for k, m in counts)
            print(f"| {loss} | {baseline} | {name} | {d:+.2f} ± {half:.2f} | {p} | {word} |")


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "decide"))
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/verdict"))
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES")
    arguments = parser.parse_args(words)
    if arguments.what == "decide":
        decide(arguments.out, arguments.data_dir, arguments.backend)
    elif not train(arguments.out, arguments.data_dir, arguments.backend, arguments.stop_after):
        sys.exit("the time is up; repeat the command")


if __name__ == "__main__":
    main()
