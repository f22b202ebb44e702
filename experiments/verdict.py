"""Do sequence labels classify better than spike counts? Van Rossum and Hamming against STBP on the same samples.

    python experiments/verdict.py train --data-dir D --stop-after 60      # again and again, until all runs are finished
    python experiments/verdict.py decide

Each finished run is tested at once, and leaves its record in `experiments/verdict/`. Runs with a record are not
repeated, so the runs may be spread over several machines. D has MNIST, from which the recordings are simulated, and
`NMNIST/Train` with real recordings of the first 1,000 digits, which are not among the simulated ones.

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
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stsbp
from scipy.stats import binomtest
from stsbp.datasets import Split
from stsbp.files import write_atomically
from stsbp.training.build import load_test_set
from stsbp_spec.models.decoders import nearest_sequence

SEEDS = (0, 1, 2)
ARMS = {"van-rossum": 20, "hamming": 20, "stbp": 20, "stbp-equal-time": 11}
"""Epochs of the runs of each loss."""
PAIRS = [(loss, baseline) for baseline in ("stbp", "stbp-equal-time") for loss in ("van-rossum", "hamming")]
MARGIN = 0.2
"""In points: a smaller difference does not matter."""
TESTS = ("nmnist-sim", "nmnist")
RECORDS = Path(__file__).parent / "verdict"
"""Its files RUN.json have the right samples of both tests (packed bits as hexadecimal digits) and the costs."""


def preset(arm: str) -> str:
    """The preset with the settings of a run."""
    return "nmnist-" + arm.removesuffix("-equal-time")


def train(out: Path, records: Path, data_dir: str, backend: str, minutes: float | None) -> bool:
    """Train and test what has no record yet, one run after the other; False: the time is up before all are finished."""
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    for seed in SEEDS:
        for arm, epochs in ARMS.items():
            folder, record = out / f"{arm}-{seed}", records / f"{arm}-{seed}.json"
            if record.exists():
                continue
            resumed = (folder / "config.toml").exists()
            if not (resumed and stsbp.load_run(folder).finished):
                settings: dict[str, Any] = {"resume": True} if resumed else {
                    "preset": preset(arm), "epochs": epochs, "seed": seed, "validation": 3000, "data_dir": data_dir,
                    "test_every": 0, "threads": 1,
                }  # fmt: skip
                left = None if minutes is None else max((until - time.monotonic()) / 60, 0.01)
                data = None if resumed else "nmnist-sim"
                run = stsbp.train(data, out=folder, backend=backend, stop_after=left, progress=False, **settings)
                print(f"{folder}: epoch {run.info['epoch']} of {epochs}", flush=True)
                if not run.finished:
                    return False
            records.mkdir(parents=True, exist_ok=True)
            write_atomically(record, (json.dumps(tested(folder, data_dir, backend), indent=1) + "\n").encode())
            print(f"{record}: written", flush=True)
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
    """The record of a finished run: its best epoch, tested once."""
    run = stsbp.load_run(folder, "best", backend=backend)
    record: dict[str, Any] = {"epoch": run.info["epoch"], "right": {}}
    for name in TESTS:
        dataset = load_test_set(run.settings, name, lambda *_: None, data_dir)
        right = is_right(run, run.other_samples(dataset))
        record["right"][name] = {"samples": right.size, "bits": np.packbits(right).tobytes().hex()}
    cost = run.evaluate(energy=True)
    record["spikes"] = spikes_of_sample(cost)
    record["latency"] = cost["measures"]["latency"]["median"]
    record["energy_pj"] = cost["energy"]["pj"]["total"]
    return record


def right_samples(record: Mapping[str, Any], name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """From a record, the right samples of a test, `[n]`."""
    bits = record["right"][name]
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits["bits"]), np.uint8), count=bits["samples"]).astype(bool)


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


def decide(records: Path) -> None:
    """Print the tables. Every run must have its record."""
    results = {arm: [json.loads((records / f"{arm}-{seed}.json").read_text()) for seed in SEEDS] for arm in ARMS}
    right = {(arm, name): [right_samples(record, name) for record in results[arm]] for arm in ARMS for name in TESTS}
    print("| Loss | Epochs | Simulated | Real | Spikes a sample | Latency | Energy |")
    print("|---|---|---|---|---|---|---|")
    for arm, epochs in ARMS.items():
        accuracies = [" ".join(f"{100 * r.mean():.2f}" for r in right[arm, name]) for name in TESTS]
        spikes, latency, energy = (
            statistics.mean(record[key] for record in results[arm]) for key in ("spikes", "latency", "energy_pj")
        )
        row = (arm, epochs, *accuracies, f"{spikes:.0f}", f"{latency:.1f}", f"{energy / 1000:.1f} nJ")
        print(f"| {' | '.join(map(str, row))} |")
    print("\n| Loss | Against | Test | Difference in points | McNemar's p of each seed | Verdict |")
    print("|---|---|---|---|---|---|")
    for loss, baseline in PAIRS:
        for name in TESTS:
            pairs = list(zip(right[loss, name], right[baseline, name], strict=True))
            d, half, word = verdict(np.array([a.astype(float) - b.astype(float) for a, b in pairs]))
            counts = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in pairs]
            p = ", ".join(f"{binomtest(k, k + m).pvalue if k + m else 1.0:.3g}" for k, m in counts)
            print(f"| {loss} | {baseline} | {name} | {d:+.2f} ± {half:.2f} | {p} | {word} |")


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "decide"))
    parser.add_argument("--data-dir", default=".")
    parser.add_argument("--out", type=Path, default=Path("runs/verdict"), help="folder of the runs")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records of finished runs")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES")
    arguments = parser.parse_args(words)
    if arguments.what == "decide":
        decide(arguments.records)
    elif not train(arguments.out, arguments.records, arguments.data_dir, arguments.backend, arguments.stop_after):
        sys.exit("the time is up; repeat the command")


if __name__ == "__main__":
    main()
