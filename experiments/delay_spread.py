"""Learned delays: a spread that shrinks during the training, against the rule of stsbp. A table with an interval.

    python experiments/delay_spread.py --data-dir D --out runs/delay_spread.jsonl

The network is T25-266 of LIF neurons on fsdd-timing, with the settings of `stsbp train fsdd-timing`: 140 inputs, a
delay for each of them, two full connections, 40,040 parameters. A kernel over the whole delays 0 to 25 delays the
spikes of an input. The ways to train differ only in this kernel:

- `rounded` is the rule of stsbp (docs/equations.md#learned-delays): the kernel is 1 at the rounded delay. The gradient
  of the delay is that of linear interpolation.
- `triangle` and `gaussian` spread a spike over the neighbouring delays, with weights that sum to 1 and are
  differentiable in the delay. The width shrinks exponentially with the updates, during the first quarter or the first
  three quarters of the training: the half width of the triangle from 12.5 steps to 1, which is linear interpolation;
  the standard deviation of the Gaussian from 12.5 to 0.23, as in the code of Hammouamri et al. 2023
  (https://arxiv.org/abs/2306.17670; first quarter there).

All are evaluated with rounded delays, begin with the same weights and delays, and have the same batches, AdamW and
cosine schedule. The first weights are not rounded to a grid here, because sums of spread spikes are not exact anyway.

Rule of decision, written before the first run:
1. The settings of both are chosen by the validation accuracy (270 samples, best epoch), mean of seeds 0 and 1.
2. The chosen ones are trained with SEEDS other seeds, and tested at the epoch with the best validation accuracy.
3. The spread is better if the mean difference of the test accuracy, paired by seed, is above 2 points, or above 0 with
   a 95 % interval (Student's t) that excludes 0.
Delays that stay as they began are trained with the same seeds for comparison.

Each run is a line in --out. Started again, the script does only what is missing there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from stsbp.config import RunConfig, SettingsSource, resolve
from stsbp.datasets import Split
from stsbp.training.build import build_loss, build_network, load_data
from stsbp_spec import NetworkSpec, initial_weights
from stsbp_spec.models.decoders import distances, nearest_sequence
from stsbp_torch import Neurons, SpikingLinear
from stsbp_torch.nn import spike_loss

LARGEST = 25
WIDEST = 12.5
NARROWEST = {"triangle": 1.0, "gaussian": 0.23}
SEEDS = range(10, 16)
CHOOSING_SEEDS = range(2)


class Setting(NamedTuple):
    """A way to train delays: the kernel, the learning rate of delays, and the fraction of updates with a shrinking
    width."""

    kernel: str
    delay_lr: float
    shrinking: float = 0.0

    def width(self, progress: float) -> float:
        """Width of the kernel in steps, after the fraction `progress` of all updates."""
        if self.kernel not in NARROWEST:
            return 0.0
        return WIDEST * math.pow(NARROWEST[self.kernel] / WIDEST, min(1.0, progress / self.shrinking))


FIXED = Setting("rounded", 0.0)
RULES = [Setting("rounded", lr) for lr in (0.2, 0.6)]
SPREADS = [Setting(kernel, lr, part) for kernel in NARROWEST for lr in (0.2, 0.6) for part in (0.25, 0.75)]


def kernels(delays: torch.Tensor, kernel: str, width: float) -> torch.Tensor:
    """The weights of the whole delays 0 to LARGEST + 1 for each input, `[N] -> [N, LARGEST + 2]`."""
    steps, delay = torch.arange(LARGEST + 2), delays[:, None]
    if kernel == "rounded":
        known = delay.detach()
        # The slopes of linear interpolation are -1 at the floor of the delay and +1 one step later.
        slope = (steps == known.floor() + 1).float() - (steps == known.floor()).float()
        return (steps == known.round()).float() + slope * (delay - known)
    x = (steps - delay) / width
    weights = (1 - x.abs()).clamp(min=0) if kernel == "triangle" else (-x * x / 2).exp()
    # Tails below 1e-6 only make products slow, because denormal numbers are slow.
    weights = weights * ((steps <= LARGEST) & (weights > 1e-6))
    return weights / weights.sum(dim=1, keepdim=True)


class DelayedNetwork(torch.nn.Module):
    """Inputs, delays, full connection, neurons, full connection, neurons. It begins with the weights of `network`."""

    def __init__(self, network: NetworkSpec, weights: dict[str, Any], steps: int) -> None:
        super().__init__()
        self.delays = torch.nn.Parameter(torch.from_numpy(weights["delay1.steps"]))
        self.weight = torch.nn.Parameter(torch.from_numpy(weights["linear1"]))
        self.hidden = Neurons(network.blocks[0].neuron)
        outputs, width = weights["linear2"].shape
        self.output = SpikingLinear(width, outputs, neuron=network.blocks[1].neuron, psp=network.output_psp)
        with torch.no_grad():
            self.output.weight.copy_(torch.from_numpy(weights["linear2"]))
        lag = torch.arange(steps)[:, None] - torch.arange(steps)
        self._lag = torch.where((lag < 0) | (lag > LARGEST + 1), LARGEST + 2, lag).flatten()

    def forward(self, frames: torch.Tensor, kernel: str = "rounded", width: float = 0.0) -> torch.Tensor:
        """Output spikes of `frames`, `[T, B, N]`. The kernel `rounded` is also the one of the evaluation."""
        steps, _, inputs = frames.shape
        padded = torch.nn.functional.pad(kernels(self.delays, kernel, width), (0, 1))
        shift = padded.index_select(1, self._lag).view(inputs, steps, steps)
        delayed = torch.bmm(shift, frames.permute(2, 0, 1).float()).permute(1, 2, 0)
        spikes: torch.Tensor = self.output(self.hidden(torch.nn.functional.linear(delayed, self.weight)))
        return spikes


def run(setting: Setting, seed: int, settings: dict[str, Any], with_test: bool) -> dict[str, Any]:
    """Train a network. Accuracies in percent, of the epoch with the best validation accuracy."""
    torch.set_num_threads(1)
    config: RunConfig = resolve([SettingsSource("delay_spread.py", settings)])
    data = load_data(config)
    network, loss = build_network(config, data.inputs), build_loss(config)
    sequences = config.label_code.sequences(len(data.inputs.classes), config.steps)
    net = DelayedNetwork(network, initial_weights(network, seed, config.init_gain), config.steps)

    def accuracy(split: Split) -> float:
        with torch.no_grad():
            spikes = net(torch.from_numpy(split.inputs(np.arange(len(split)))))
        nearest = nearest_sequence(distances(spikes.to(torch.uint8), sequences, loss, network.output_psp))
        return 100 * float((nearest == split.labels).mean())

    frames = torch.from_numpy(data.train.inputs(np.arange(len(data.train))))
    targets = torch.from_numpy(sequences[data.train.labels]).permute(1, 0, 2)
    updates = config.epochs * math.ceil(len(data.train) / config.batch_size)
    groups: list[dict[str, Any]] = [
        {"params": [net.weight, net.output.weight]},
        {"params": [net.delays], "lr": setting.delay_lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / updates)))
    random, update, began = np.random.default_rng(seed), 0, net.delays.detach().clone()
    validation: list[float] = []
    best: dict[str, torch.Tensor] = {}
    for _ in range(config.epochs):
        for batch in torch.split(torch.from_numpy(random.permutation(len(data.train))), config.batch_size):
            spikes = net(frames[:, batch], setting.kernel, setting.width(update / updates))
            optimizer.zero_grad()
            torch.autograd.backward(spike_loss(loss, spikes, targets[:, batch], psp=network.output_psp))
            optimizer.step()
            schedule.step()
            net.delays.data.clamp_(0, LARGEST)
            update += 1
        assert data.validation is not None
        validation.append(accuracy(data.validation))
        if validation[-1] > max(validation[:-1], default=-1.0):
            best = copy.deepcopy(net.state_dict())
    moved = float((net.delays.detach() - began).abs().mean())
    net.load_state_dict(best)
    results = {"validation": max(validation), "test": accuracy(data.test) if with_test else None}
    return {"setting": list(setting), "seed": seed, **results, "moved": moved, "validations": validation}


def train_missing(runs: list[tuple[Setting, int, bool]], settings: dict[str, Any], out: Path, jobs: int) -> None:
    """Train the runs that `out` does not have, `jobs` at the same time, and add them."""
    stored = {(row["seed"], *row["setting"]) for row in read(out)}
    missing = [run for run in runs if (run[1], *run[0]) not in stored]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, s, seed, settings, test) for s, seed, test in missing]):
            row = future.result()
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({key: value for key, value in row.items() if key != "validations"}, flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """The stored runs."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def values(rows: list[dict[str, Any]], setting: Setting, seeds: range, key: str) -> list[float]:
    """A number of the runs of a setting, in the order of the seeds."""
    by_seed = {row["seed"]: row[key] for row in rows if row["setting"] == list(setting)}
    return [by_seed[seed] for seed in seeds]


def interval(x: list[float]) -> str:
    """Mean ± half of the 95 % interval, by Student's t."""
    return f"{fmean(x):.2f} ± {student.ppf(0.975, len(x) - 1) * stdev(x) / math.sqrt(len(x)):.2f}"


def main() -> None:
    """Choose the settings, train the chosen ones with other seeds, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/delay_spread.jsonl"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"dataset": "fsdd-timing", "net": f"T{LARGEST}-266", "epochs": arguments.epochs, "validation": 270}
    settings |= {"data_dir": arguments.data_dir} if arguments.data_dir else {}
    candidates = [(setting, seed, False) for setting in RULES + SPREADS for seed in CHOOSING_SEEDS]
    train_missing(candidates, settings, arguments.out, arguments.jobs)
    rows = read(arguments.out)
    for setting in RULES + SPREADS:
        print(setting, f"validation {fmean(values(rows, setting, CHOOSING_SEEDS, 'validation')):.2f}")
    rule, spread = (
        max(group, key=lambda setting: fmean(values(rows, setting, CHOOSING_SEEDS, "validation")))
        for group in (RULES, SPREADS)
    )
    compared = [(setting, seed, True) for seed in SEEDS for setting in (rule, spread)]
    compared += [(FIXED, seed, True) for seed in SEEDS]
    train_missing(compared, settings, arguments.out, arguments.jobs)
    rows = read(arguments.out)
    for setting in (rule, spread, FIXED):
        test, validation = (values(rows, setting, SEEDS, key) for key in ("test", "validation"))
        moved = fmean(values(rows, setting, SEEDS, "moved"))
        print(setting, f"test {interval(test)}, validation {fmean(validation):.2f}, delays moved by {moved:.1f} steps")
    for name, setting in (("rule", rule), ("fixed", FIXED)):
        pairs = zip(values(rows, spread, SEEDS, "test"), values(rows, setting, SEEDS, "test"), strict=True)
        print(f"spread - {name}: {interval([a - b for a, b in pairs])} points of the test accuracy")


if __name__ == "__main__":
    main()
