"""How the training step grows with T, batch, neurons, depth and spike density, with the fitted exponents.

`python benchmarks/scaling.py [--backend torch] [--out FILE.json]`. One axis at a time around a base case; the sizes
of an axis are taken in turn. The exponent is the slope of log time over log size: 1 is linear. `local` exponents
between neighbours show where a buffer leaves a cache.

`--large` takes other axes, up to 1,000 steps, 1,024 samples and 10 million neurons, and measures memory beside time:
each size in a process of its own, one after the other, with `--memory full` or `low`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from options import guarded, parser_of, write_report
from stsbp.benchmarks.cases import BenchmarkRun
from stsbp.benchmarks.device import describe, peak_memory, reset_peak_memory
from stsbp.benchmarks.timing import Timing, interleaved
from stsbp.config import SettingsSource, resolve
from stsbp.errors import StsbpError
from stsbp.training.build import Inputs, build_task
from stsbp.training.initial import scaled_to_rate
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.engine.memory import kept_bytes
from stsbp_spec.models.encoders import encode_repeat
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.registry import open_backend

__all__ = ["AXES", "LARGE", "exponent", "main", "measure", "measure_large"]

BASE = {"T": 20, "B": 20, "C": 16, "depth": 2, "density": 0.05}
AXES: dict[str, tuple[float, ...]] = {
    "T": (5, 10, 20, 40, 80),
    "B": (5, 10, 20, 40, 80),
    "C": (4, 8, 16, 32, 64),
    "depth": (1, 2, 4, 8),
    "density": (0.0125, 0.025, 0.05, 0.1, 0.2),
}
"""Sizes of each axis: steps, batch, channels (neurons grow with it, weights with its square), layers, input density."""
LARGE: dict[str, tuple[dict[str, float], tuple[float, ...]]] = {
    "T": (BASE, (50, 100, 200, 500, 1000)),
    "B": (BASE, (64, 128, 256, 512, 1024)),
    "N": (BASE | {"T": 10, "B": 4}, (1e5, 3e5, 1e6, 3e6, 1e7)),
}
"""Base and sizes of each axis of `--large`: steps, batch, neurons of all layers (of larger frames, as many weights)."""
SIDE = 16
"""Height and width of the frames, in pixels, but on the axis N."""
_SAMPLES = 80
"""Of which the rates are taken, at most."""
RATE = 0.05
"""Spikes per neuron and step of every layer, at least: silent layers would cost next to nothing."""


def make_step(backend: AbstractBackend, size: dict[str, float], memory: str = "full") -> BenchmarkRun:
    """A training step on random event frames: `depth` layers of `C` channels, 3 x 3.

    They have `SIDE` x `SIDE` pixels, or so many that all layers have about `N` neurons where `size` says so. Weights
    are scaled until every layer spikes at `RATE`, and hardly move afterwards.
    """
    steps, batch, channels = int(size["T"]), int(size["B"]), int(size["C"])
    # The pooling takes 4 x 4 pixels.
    side = SIDE if "N" not in size else max(4, 4 * round(math.sqrt(size["N"] / size["depth"] / channels) / 4))
    net = "-".join([f"{channels}C3p1"] * int(size["depth"]) + ["P4"])
    inputs = Inputs((2, side, side), "events", tuple("0123456789"))
    settings = {"dataset": "nmnist", "net": net, "steps": steps, "batch_size": batch, "lr": 1e-9, "memory": memory}
    task = build_task(resolve([SettingsSource("benchmark", settings)]), inputs, backend)
    random = np.random.default_rng(0)
    shape = (batch, 2, side, side)
    frames = np.stack([random.random(shape, np.float32) < size["density"] for _ in range(steps)]).view(np.uint8)
    labels = np.arange(batch, dtype=np.int64) % 10
    targets = encode_repeat(labels, 10, steps, task.config.label_code)
    weights = initial_weights(task.network, task.config.seed, task.config.init_gain)
    scaled = scaled_to_rate(task, weights, frames[:, :_SAMPLES], RATE)
    return BenchmarkRun(task, [Batch(frames, targets)], scaled)


def measure_size(backend: AbstractBackend, size: dict[str, float], memory: str, *, rounds: int) -> dict[str, Any]:
    """Times of the step on a size, and the most memory that it took besides the batch, in this process."""
    step = make_step(backend, size, memory)
    (batch,) = step.batches
    step(Batch(unpacked(batch.inputs)[:, :4].copy(), batch.targets[:, :4].copy()))
    some_weights = next(iter(step.state.weights.values()))
    start_bytes = reset_peak_memory(some_weights)
    seconds = list[float]()
    for _ in range(1 + rounds):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    peak = peak_memory(some_weights)
    return {
        "seconds": Timing(tuple(seconds[1:])).to_json(),
        "peak_bytes": None if peak is None or start_bytes is None else peak - start_bytes,
        "kept_bytes": kept_bytes(step.task.network, int(size["T"])) * int(size["B"]),
        "rates": step.rates,
    }


def measure_large(options: argparse.Namespace, axis: str) -> dict[str, Any]:
    """Times and memory along an axis of `LARGE`, each size in a process of its own."""
    base, values = LARGE[axis]
    measurements: list[dict[str, Any]] = []
    for value in values:
        size = json.dumps(base | {axis: value})
        command = [sys.executable, __file__, "--backend", options.backend, "--memory", options.memory, "--one", size]
        command += ["--rounds", str(options.rounds), *(["--device", options.device] if options.device else [])]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0:
            last = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}, no message"]
            raise StsbpError(f"the process that measures {axis} = {value:g} failed: {last[0]}")
        measurements.append(json.loads(process.stdout.splitlines()[-1]))
        print(f"{axis} = {value:g}: {measurements[-1]['seconds']['median']:.3g} s", file=sys.stderr)
    names = ("seconds", "peak_bytes", "kept_bytes", "rates")
    return {
        "axis": axis,
        "base": base,
        "values": list(values),
        **{name: [x[name] for x in measurements] for name in names},
    }


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
    return {
        "axis": axis,
        "values": values,
        "seconds": [timing.to_json() for timing in times.values()],
        "rates": [step.rates for step in steps],
        "exponent": exponent(values, medians),
        "local": local_exponents(values, medians),
    }


def local_exponents(sizes: list[float], times: list[float]) -> list[float]:
    """Exponents between neighbours."""
    pairs = zip(times, times[1:], sizes, sizes[1:], strict=False)
    return [math.log(b / a) / math.log(y / x) for a, b, x, y in pairs]


def line(sizes: list[float], seconds: list[float]) -> tuple[float, float, float]:
    """Fixed part and slope of the straight line with the least squares of relative errors, and its largest one."""
    x, y = np.asarray(sizes), np.asarray(seconds)
    fixed, slope = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(y)), rcond=None)[0]
    return float(fixed), float(slope), float(np.abs((fixed + slope * x) / y - 1).max())


LARGE_HEAD = "| axis | size | ms per step | quartiles | exponent | peak MB | x kept |\n|---|---|---|---|---|---|---|"


def large_table(report: dict[str, Any]) -> str:
    """Lines of Markdown below `LARGE_HEAD`: one for each size, and one for the straight lines through all of them.

    The exponent is that between the size and the one before.
    """
    axis, values, has_memory = report["axis"], report["values"], None not in report["peak_bytes"]
    times = [{name: 1e3 * s[name] for name in ("median", "low", "high")} for s in report["seconds"]]
    medians = [timing["median"] for timing in times]
    local = ["", *(f"{x:.2f}" for x in local_exponents(values, medians))]
    mb = [peak / 1e6 for peak in report["peak_bytes"]] if has_memory else []
    lines = []
    for i, (value, timing) in enumerate(zip(values, times, strict=True)):
        cells = [
            axis,
            f"{value:,.0f}",
            f"{timing['median']:.4g}",
            f"{timing['low']:.4g} - {timing['high']:.4g}",
            local[i],
        ]
        cells += (
            [f"{mb[i]:.0f}", f"{1e6 * mb[i] / report['kept_bytes'][i]:.2f}"] if has_memory else ["not known here", ""]
        )
        lines.append(f"| {' | '.join(cells)} |")
    straight = straight_line(axis, values, mb) if has_memory else ""
    lines.append(f"| {axis} | straight line | {straight_line(axis, values, medians)} | | | {straight} | |")
    return "\n".join(lines)


def straight_line(axis: str, values: list[float], times: list[float]) -> str:
    """The line through the values, in words."""
    fixed, slope, worst = line(values, times)
    return f"{fixed:.3g} + {slope:.3g} {axis}, within {worst:.0%}"


HEAD = "| axis | value: ms per step | exponent | between neighbours | straight line, ms |\n|---|---|---|---|---|"


def table(report: dict[str, Any]) -> str:
    """A line of Markdown below `HEAD`."""
    ms = [1e3 * s["median"] for s in report["seconds"]]
    cells = (f"{v:g}: {x:.1f}" for v, x in zip(report["values"], ms, strict=True))
    local = " ".join(f"{x:.2f}" for x in report["local"])
    straight = straight_line(report["axis"], report["values"], ms)
    return f"| {report['axis']} | {', '.join(cells)} | {report['exponent']:.2f} | {local} | {straight} |"


def main(arguments: list[str] | None = None) -> None:
    """Measure every axis, print a table, write JSON."""
    parser = parser_of(__doc__, "backend", "device", "rounds", "shrink", "out")
    parser.add_argument("--axes", nargs="*", choices=sorted({*AXES, *LARGE}), help="default: all of them")
    parser.add_argument("--large", action="store_true", help="large sizes, and memory beside time")
    parser.add_argument("--memory", default="full", choices=["full", "low"], help="with --large: of the training")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    axes: dict[str, Any] = dict(LARGE if options.large else AXES)
    if unknown := sorted(set(options.axes or axes) - set(axes)):
        parser.error(f"{', '.join(unknown)}: {'no axis of --large' if options.large else 'an axis of --large alone'}")
    if not options.large and not options.one and (options.memory == "low"):
        parser.error("--memory goes with --large")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    backend = open_backend(options.backend, options.device)
    if options.one:
        print(json.dumps(measure_size(backend, options.one, options.memory, rounds=options.rounds)))
        return
    settings = {"rounds": options.rounds, "shrink": options.shrink, "base": BASE, "rate": RATE}
    settings |= {"memory": options.memory} if options.large else {}
    report: dict[str, Any] = {"format": 1, "machine": describe(backend, settings), "axes": []}
    print(LARGE_HEAD if options.large else HEAD)
    for axis in options.axes or axes:
        if options.large:
            measured = measure_large(options, axis)
        else:
            measured = measure(backend, axis, rounds=options.rounds, shrink=options.shrink)
        print(large_table(measured) if options.large else table(measured), flush=True)
        report["axes"].append(measured)
    write_report(report, options.out)


if __name__ == "__main__":
    sys.exit(guarded(main))
