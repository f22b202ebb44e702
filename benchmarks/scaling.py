"""How the training step grows with T, batch, neurons, depth and spike density, with the fitted exponents.

`python benchmarks/scaling.py [--backend torch] [--out FILE.json]`. One axis at a time around a base case; the sizes
of an axis are taken in turn. The exponent is the slope of log time over log size: 1 is linear. `local` exponents
between neighbours show where a buffer leaves a cache.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from options import guarded, parser_of, write_report
from stsbp.benchmarks.cases import Step
from stsbp.benchmarks.device import describe
from stsbp.benchmarks.timing import interleaved
from stsbp.config import Source, resolve
from stsbp.training.build import Inputs, build_task
from stsbp.training.initial import scaled_to_rate
from stsbp_spec.backend import AbstractBackend, Batch
from stsbp_spec.encoders import encode_repeat
from stsbp_spec.init import initial_weights
from stsbp_spec.registry import open_backend

__all__ = ["AXES", "exponent", "main", "measure"]

BASE = {"T": 20, "B": 20, "C": 16, "depth": 2, "density": 0.05}
AXES: dict[str, tuple[float, ...]] = {
    "T": (5, 10, 20, 40, 80),
    "B": (5, 10, 20, 40, 80),
    "C": (4, 8, 16, 32, 64),
    "depth": (1, 2, 4, 8),
    "density": (0.0125, 0.025, 0.05, 0.1, 0.2),
}
"""Sizes of each axis: steps, batch, channels (neurons grow with it, weights with its square), layers, input density."""
RATE = 0.05
"""Spikes per neuron and step of every layer, at least: silent layers would cost next to nothing."""


def make_step(backend: AbstractBackend, size: dict[str, float], side: int = 16) -> Step:
    """A training step on random event frames: `depth` layers of `C` channels, 3 x 3, on `side` x `side` pixels.

    Weights are scaled until every layer spikes at `RATE`, and hardly move afterwards.
    """
    steps, batch, channels = int(size["T"]), int(size["B"]), int(size["C"])
    net = "-".join([f"{channels}C3p1"] * int(size["depth"]) + ["P4"])
    inputs = Inputs((2, side, side), "events", tuple("0123456789"))
    chosen = {"dataset": "nmnist", "net": net, "steps": steps, "batch_size": batch, "lr": 1e-9}
    task = build_task(resolve([Source("benchmark", chosen)]), inputs, backend)
    random = np.random.default_rng(0)
    frames = (random.random((steps, batch, 2, side, side)) < size["density"]).astype(np.uint8)
    labels = np.arange(batch, dtype=np.int64) % 10
    targets = encode_repeat(labels, 10, steps, task.config.label_code)
    weights = initial_weights(task.network, task.config.seed, task.config.init_gain)
    return Step(task, [Batch(frames, targets)], scaled_to_rate(task, weights, frames, RATE))


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of the line through log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(backend: AbstractBackend, axis: str, *, rounds: int, shrink: int = 1) -> dict[str, Any]:
    """Times along an axis; `shrink` divides T, B and C of all sizes."""
    sizes = [BASE | {axis: value} for value in AXES[axis]]
    for size in sizes:
        # A label sequence needs two steps.
        size |= {key: max(2, size[key] // shrink) for key in ("T", "B", "C")}
    steps = [make_step(backend, size) for size in sizes]
    work: dict[str, Callable[[], object]] = {str(value): step for value, step in zip(AXES[axis], steps, strict=True)}
    times = interleaved(work, rounds=rounds, warmup=3)
    medians = [timing.median for timing in times.values()]
    values = list(AXES[axis])
    local = [
        math.log(b / a) / math.log(y / x) for a, b, x, y in zip(medians, medians[1:], values, values[1:], strict=False)
    ]
    return {
        "axis": axis,
        "values": values,
        "seconds": [timing.to_json() for timing in times.values()],
        "rates": [step.rates for step in steps],
        "exponent": exponent(values, medians),
        "local": local,
    }


def line(sizes: list[float], seconds: list[float]) -> tuple[float, float, float]:
    """Fixed part and slope of the straight line with the least squares of relative errors, and its largest one."""
    x, y = np.asarray(sizes), np.asarray(seconds)
    fixed, slope = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(y)), rcond=None)[0]
    return float(fixed), float(slope), float(np.abs((fixed + slope * x) / y - 1).max())


HEAD = "| axis | value: ms a step | exponent | between neighbours | straight line, ms |\n|---|---|---|---|---|"


def table(found: dict[str, Any]) -> str:
    """A line of Markdown below `HEAD`."""
    fixed, slope, worst = line(found["values"], [1e3 * s["median"] for s in found["seconds"]])
    cells = (f"{v:g}: {1e3 * s['median']:.1f}" for v, s in zip(found["values"], found["seconds"], strict=True))
    local = " ".join(f"{x:.2f}" for x in found["local"])
    return (
        f"| {found['axis']} | {', '.join(cells)} | {found['exponent']:.2f} | {local} | "
        f"{fixed:.3g} + {slope:.3g} {found['axis']}, within {worst:.0%} |"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure every axis, print a table, write JSON."""
    parser = parser_of(__doc__, "backend", "device", "rounds", "shrink", "out")
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES))
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    backend = open_backend(options.backend, options.device)
    settings = {"rounds": options.rounds, "shrink": options.shrink, "base": BASE, "rate": RATE}
    report: dict[str, Any] = {"format": 1, "machine": describe(backend, settings), "axes": []}
    print(HEAD)
    for axis in options.axes:
        found = measure(backend, axis, rounds=options.rounds, shrink=options.shrink)
        print(table(found), flush=True)
        report["axes"].append(found)
    write_report(report, options.out)


if __name__ == "__main__":
    sys.exit(guarded(main))
