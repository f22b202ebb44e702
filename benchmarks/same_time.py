"""Train stsbp and other libraries on the same network for the same time, and compare their test accuracy.

`python benchmarks/same_time.py --envs FOLDER --data-dir D --minutes 30` (`nox -s bench_accuracy` makes the
environments). Each library has a process of its own, as in compare.py, and the same initial weights. All get the same
batches in the same order, with the augmentation of the data set's preset. They take turns. Only the time of training
steps counts. A library that is faster therefore does more updates. Its learning rate follows a cosine over this time.

The loss of the other libraries is the mean squared error of the firing rates; that of stsbp is the preset's. The class
is the output neuron with most spikes.

Learning rates are chosen on samples that are not trained on: --validation 5000 tests on these instead of the test set.
The report is written anew after each test, so a run that is stopped loses only what was measured since then.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from compare import ALLOCATOR, Library, chosen, make_problem, with_peers
from harness import HERE, count, factor, guarded, parser_of, table, write_report
from stsbp.benchmarks.cases import ALL_CASES, Case
from stsbp.config import RunConfig
from stsbp.datasets import Split
from stsbp.errors import StsbpError
from stsbp.training.augment import Augmentation, augment
from stsbp.training.build import build_augmentation, load_data
from stsbp.training.progress import time_text
from stsbp_spec.contract.random import Stream, permutation
from stsbp_spec.typing import Int64
from workers import Worker

TESTS = 10
"""Number of tests of each library, at equal intervals of its training time."""


@dataclass(frozen=True)
class Samples:
    """Batches of training and test samples, the same for each library."""

    train: Split
    test: Split
    size: int
    seed: int
    augmentation: Augmentation

    @property
    def per_epoch(self) -> int:
        """Number of batches in an epoch. A last batch that is smaller is left out."""
        return len(self.train) // self.size

    def write(self, path: Path, update: int) -> None:
        """Write the batch of an update."""
        epoch, number = divmod(update, self.per_epoch)
        order = permutation(self.seed, Stream.SHUFFLE, len(self.train), step=epoch)
        indices = order[number * self.size : (number + 1) * self.size]
        inputs = augment(
            self.train.inputs(indices), indices, seed=self.seed, epoch=epoch, augmentation=self.augmentation
        )
        np.savez(path, inputs=inputs, labels=self.train.labels[indices])

    def accuracy(self, worker: Worker, path: Path) -> float:
        """Share of the test samples that a library classifies correctly."""
        correct = 0
        for first in range(0, len(self.test), self.size):
            # Every batch has the same size: the last one is filled with samples that do not count.
            indices: Int64 = np.arange(first, first + self.size) % len(self.test)
            new = min(self.size, len(self.test) - first)
            labels = self.test.labels[indices]
            np.savez(path, inputs=self.test.inputs(indices), labels=labels)
            classes = worker.ask("classes", str(path))["classes"]
            correct += int((np.array(classes[:new]) == labels[:new]).sum())
        return correct / len(self.test)


@dataclass
class Contender:
    """A library in training.

    Attributes:
        library: its name and mode.
        worker: its process.
        lr: its peak learning rate.
        updates: number of updates so far.
        seconds: time of these updates.
        tests: `[seconds, epochs, accuracy]` of each test.
        tested: tenths of the time that were over at the last test.
    """

    library: Library
    worker: Worker
    lr: float
    updates: int = 0
    seconds: float = 0.0
    tests: list[list[float]] = field(default_factory=list)
    tested: int = 0

    def train(self, samples: Samples, path: Path, budget: float, turn: int) -> None:
        """Do updates until its turn or its time is over."""
        for _ in range(turn):
            if self.seconds >= budget:
                return
            samples.write(path, self.updates)
            rate = self.lr * 0.5 * (1 + math.cos(math.pi * self.seconds / budget))
            self.seconds += float(self.worker.ask("train", rate, str(path))["seconds"])
            self.updates += 1

    def test(self, samples: Samples, path: Path, budget: float) -> bool:
        """Test it if another tenth of its time is over, and return whether it was tested."""
        over = min(TESTS, int(TESTS * self.seconds / budget))
        if over == self.tested:
            return False
        self.tested = over
        self.tests.append([self.seconds, self.updates / samples.per_epoch, samples.accuracy(self.worker, path)])
        return True

    def record(self, samples: Samples) -> dict[str, Any]:
        """The form that is written."""
        return {
            "name": self.library.name,
            "mode": self.library.mode,
            "lr": self.lr,
            "updates": self.updates,
            "epochs": self.updates / samples.per_epoch,
            "seconds": self.seconds,
            "tests": self.tests,
            "versions": self.worker.ready["versions"],
        }


def race(
    contenders: list[Contender],
    samples: Samples,
    folder: Path,
    *,
    budget: float,
    turn: int,
    tested: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Train all for `budget` seconds each, `turn` updates at a time, and test them.

    `tested` receives the records of all of them after each test.
    """
    path, began = folder / "batch.npz", time.perf_counter()
    while any(contender.seconds < budget for contender in contenders):
        for contender in contenders:
            contender.train(samples, path, budget, turn)
            if contender.test(samples, path, budget):
                tested([other.record(samples) for other in contenders])
                progress = sum(other.seconds for other in contenders) / (budget * len(contenders))
                _, epoch, accuracy = contender.tests[-1]
                remaining = (time.perf_counter() - began) * (1 - progress) / progress
                print(
                    f"{contender.worker.name}  {contender.seconds:.0f} of {budget:.0f} s  epoch "
                    f"{epoch:.1f}  accuracy {accuracy:.2%}  left {time_text(max(0.0, remaining))}",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(0.02)  # its threads may spin for some milliseconds more


def accuracy_table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown."""
    columns = "library, mode, learning rate, seconds, epochs, accuracy in %, accuracy after each tenth of it in %"
    rows = []
    for r in records:
        accuracies = [100 * accuracy for _, _, accuracy in r["tests"]]
        name = f"{r['name']} {r['versions'].get(r['name'], '')}"
        numbers = (f"{r['lr']:g}", f"{r['seconds']:.0f}", f"{r['epochs']:.1f}", f"{accuracies[-1]:.2f}")
        rows.append((name, r["mode"], *numbers, " ".join(f"{x:.1f}" for x in accuracies)))
    return table(columns.split(", "), rows)


def rates_of(texts: list[str]) -> dict[str, float]:
    """Learning rates by library, from `NAME=RATE`."""
    rates: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            rates[name] = factor(value)
        except (ValueError, argparse.ArgumentTypeError):
            raise StsbpError(f"--lr takes NAME=RATE, such as spikingjelly=1e-3, got {text!r}") from None
    return rates


def samples_of(case: Case, config: RunConfig) -> tuple[Samples, str]:
    """Samples of a case, and what its test samples are."""
    data = load_data(config)
    test, split_name = (data.test, "test") if data.validation is None else (data.validation, "validation")
    if not len(test):
        raise StsbpError(f"{case.dataset} has no test samples here; hold some out with --validation N")
    if len(data.train) < config.batch_size:
        raise StsbpError(f"{len(data.train)} training samples are fewer than a batch of {config.batch_size}")
    train, size = data.train, config.batch_size
    return Samples(
        train, test, size, config.seed, build_augmentation(config)
    ), f"{len(train)} training and {len(test)} {split_name} samples"


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train, print a table, write JSON."""
    parser = parser_of(__doc__, "device", "scale", "data-dir", "out", out=HERE / "results" / "same-time.json")
    with_peers(parser, peers=["spikingjelly"])
    parser.add_argument("--case", default="CIFAR-10", choices=list(ALL_CASES), help="network and data set")
    parser.add_argument("--mode", default="neuron", help="mode of the peers on PyTorch: see peers/torch_network.py")
    parser.add_argument("--minutes", type=factor, default=30.0, help="training time of each library")
    parser.add_argument("--lr", nargs="*", default=[], metavar="NAME=RATE", help="peak learning rates; default: preset")
    parser.add_argument("--samples", type=count, default=0, help="train on this many samples; default: all")
    parser.add_argument("--validation", type=count, default=0, help="hold out this many samples, and test on them")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order and augmentation")
    parser.add_argument("--turn", type=count, default=20, help="updates of each library in a turn")
    options = parser.parse_args(arguments)
    rates, case, libraries = rates_of(options.lr), ALL_CASES[options.case], chosen(options, {"": [options.mode]})
    names = {library.name for library in libraries}
    if unknown := sorted(set(rates) - names):
        raise StsbpError(f"--lr names {', '.join(unknown)}, but only {', '.join(sorted(names))} train")
    overrides = {"seed": options.seed, "limit": options.samples, "validation": options.validation}
    config = case.config(options.scale).model_copy(update={**overrides, "data_dir": str(options.data_dir or "")})
    samples, description = samples_of(case, config)
    problem, _ = make_problem(
        case, scale=options.scale, data_dir=options.data_dir, device=options.device, seed=options.seed
    )
    settings = {**overrides, "minutes": options.minutes, "turn": options.turn, "device": options.device}
    settings |= {"allocator": ALLOCATOR}
    network = f"{case.net}-10 T={case.steps} B={samples.size}"
    print(f"{case.name}: {network}, {description}", file=sys.stderr, flush=True)
    records: list[dict[str, Any]] = []

    def tested(so_far: list[dict[str, Any]]) -> None:
        records[:] = so_far
        write_report(options.out, None, settings, case=case.name, network=network, data=description, records=records)

    logs = options.out.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        problem.write(Path(folder) / "problem.npz")
        contenders = []
        for library in libraries:
            log = logs / f"same-time-{library.name}-{library.mode}.log"
            worker = stack.enter_context(library.start(Path(folder) / "problem.npz", log)).wait(options.patience)
            contenders.append(Contender(library, worker, rates.get(library.name, config.lr)))
        race(contenders, samples, Path(folder), budget=60 * options.minutes, turn=options.turn, tested=tested)
    print(f"\n{accuracy_table(records)}\n", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
