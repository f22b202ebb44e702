"""How the training step grows with T, batch, neurons, depth and spike density, with the fitted exponents.

`python benchmarks/scaling.py [--backend torch] [--out FILE.json]`. One axis at a time around a base case; each size
has a process of its own, which also says its most memory, and all sizes of an axis are taken in turn. The exponent is
the slope of log time over log size: 1 is linear. `local` exponents between neighbours show where a buffer leaves a
cache.

`--large` takes other axes, up to 1,000 steps, 1,024 samples and 10 million neurons, one size after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import guarded, parser_of, table, write_report
from stsbp.benchmarks.cases import BenchmarkRun
from stsbp.benchmarks.device import peak_memory, reset_peak_memory
from stsbp.benchmarks.timing import Timing, alternated
from stsbp.config import SettingsSource, resolve
from stsbp.training.build import Inputs, build_task
from stsbp.training.initial import scaled_to_rate
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.engine.memory import kept_bytes
from stsbp_spec.models.encoders import encode_repeat
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.registry import open_backend
from workers import Worker, serve

BASE = {"T": 20, "B": 20, "C": 16, "depth": 2, "density": 0.05}
Axis = tuple[dict[str, float], tuple[float, ...]]
AXES: dict[str, Axis] = {
    "T": (BASE, (5, 10, 20, 40, 80)),
    "B": (BASE, (5, 10, 20, 40, 80)),
    "C": (BASE, (4, 8, 16, 32, 64)),
    "depth": (BASE, (1, 2, 4, 8)),
    "density": (BASE, (0.0125, 0.025, 0.05, 0.1, 0.2)),
}
"""Base and sizes of each axis: steps, batch, channels (neurons grow with it, weights with its square), layers, input
density."""
LARGE: dict[str, Axis] = {
    "T": (BASE, (50, 100, 200, 500, 1000)),
    "B": (BASE, (64, 128, 256, 512, 1024)),
    "N": (BASE | {"T": 10, "B": 4}, (1e5, 3e5, 1e6, 3e6, 1e7)),
}
"""The same of `--large`: steps, batch, neurons of all layers (of larger frames, as many weights)."""
SIDE = 16
"""Height and width of the frames, in pixels, but on the axis N."""
_SAMPLES = 80
"""Of which the rates are taken, at most."""
RATE = 0.05
"""Spikes per neuron and step of every layer, at least: silent layers would cost next to nothing."""
_PATIENCE = 3600.0
COLUMNS = (
    "axis, size: ms per step, exponent, between neighbours, straight line in ms, size: peak MB, straight line in MB"
)


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


def sized(backend: str, device: str, memory: str, size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The process of a size, in JSON: it answers `step` and `memory`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sizes = json.loads(size)
    step = make_step(open_backend(backend, device or None), sizes, memory)
    (batch,) = step.batches
    # One sample compiles the kernels, whose memory does not count.
    step(Batch(unpacked(batch.inputs)[:, :4].copy(), batch.targets[:, :4].copy()))
    some_weights = next(iter(step.state.weights.values()))
    start_bytes = reset_peak_memory(some_weights)
    step()

    def timed() -> dict[str, float]:
        step()  # what lay in the caches is gone after the wait for the other sizes
        began = time.perf_counter()
        step()
        return {"seconds": time.perf_counter() - began}

    def peak() -> dict[str, Any]:
        peak = peak_memory(some_weights)
        return {
            "peak_bytes": None if peak is None or start_bytes is None else peak - start_bytes,
            "kept_bytes": kept_bytes(step.task.network, int(sizes["T"])) * int(sizes["B"]),
            "rates": step.rates,
        }

    return {}, {"step": timed, "memory": peak}


def measure(options: argparse.Namespace, axis: str) -> dict[str, Any]:
    """Times and memory along an axis."""
    base, values = (LARGE if options.large else AXES)[axis]
    times: dict[str, Timing] = {}
    peaks: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        # Large sizes together would need more memory than a machine has.
        for together in [[value] for value in values] if options.large else [values]:
            with ExitStack() as stack:
                workers = []
                for value in together:
                    size = base | {axis: value}
                    # A label sequence needs two steps.
                    size |= {key: max(2, size[key] // options.shrink) for key in ("T", "B", "C")}
                    own = (options.backend, options.device or "", options.memory, json.dumps(size))
                    log = Path(folder) / f"{value:g}.log"
                    worker = Worker(f"{axis} = {value:g}", [sys.executable, __file__, "--size", *own], log)
                    workers.append(stack.enter_context(worker).wait(_PATIENCE))
                turns = {worker.name: partial(_seconds, worker) for worker in workers}
                times |= alternated(turns, rounds=options.rounds)
                peaks += [worker.ask("memory") for worker in workers]
            print(*(f"{name}: {timing.median:.3g} s" for name, timing in times.items()), sep=", ", file=sys.stderr)
    medians = [timing.median for timing in times.values()]
    return {
        "axis": axis,
        "base": base,
        "values": list(values),
        "seconds": [timing.to_json() for timing in times.values()],
        **{name: [peak[name] for peak in peaks] for name in ("peak_bytes", "kept_bytes", "rates")},
        "exponent": exponent(list(values), medians),
        "local": local_exponents(list(values), medians),
    }


def _seconds(worker: Worker) -> float:
    return float(worker.ask("step")["seconds"])


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of the line through log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def local_exponents(sizes: list[float], times: list[float]) -> list[float]:
    """Exponents between neighbours."""
    pairs = zip(times, times[1:], sizes, sizes[1:], strict=False)
    return [math.log(b / a) / math.log(y / x) for a, b, x, y in pairs]


def straight_line(axis: str, sizes: list[float], values: list[float]) -> str:
    """The straight line with the least squares of relative errors, and its largest one, in words."""
    x, y = np.asarray(sizes), np.asarray(values)
    fixed, slope = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(y)), rcond=None)[0]
    return f"{fixed:.3g} + {slope:.3g} {axis}, within {np.abs((fixed + slope * x) / y - 1).max():.0%}"


def scaling_table(axes: list[dict[str, Any]]) -> str:
    """Axes as Markdown; memory only where it is known."""
    rows = []
    for report in axes:
        axis, values, peaks = report["axis"], report["values"], report.get("peak_bytes", [None])
        ms = [1e3 * seconds["median"] for seconds in report["seconds"]]
        local = " ".join(f"{x:.2f}" for x in report["local"])
        cells = [axis, _pairs(values, ms, ".1f"), f"{report['exponent']:.2f}", local, straight_line(axis, values, ms)]
        if None not in peaks:
            mb = [peak / 1e6 for peak in peaks]
            cells += [_pairs(values, mb, ".0f"), straight_line(axis, values, mb)]
        rows.append(cells)
    return table(COLUMNS.split(", "), rows)


def _pairs(values: list[float], numbers: list[float], digits: str) -> str:
    return ", ".join(f"{value:g}: {number:{digits}}" for value, number in zip(values, numbers, strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Measure every axis, print a table, write JSON."""
    parser = parser_of(__doc__, "backend", "device", "rounds", "shrink", "out")
    parser.add_argument("--axes", nargs="*", choices=sorted({*AXES, *LARGE}), help="default: all of them")
    parser.add_argument("--large", action="store_true", help="large sizes")
    parser.add_argument("--memory", default="full", choices=["full", "low"], help="of the training")
    options = parser.parse_args(arguments)
    axes = options.axes or list(LARGE if options.large else AXES)
    if unknown := sorted(set(axes) - set(LARGE if options.large else AXES)):
        parser.error(f"{', '.join(unknown)}: {'no axis of --large' if options.large else 'an axis of --large alone'}")
    backend = open_backend(options.backend, options.device)
    measured = [measure(options, axis) for axis in axes]
    print(scaling_table(measured))
    settings = {name: getattr(options, name) for name in ("rounds", "shrink", "memory")} | {"base": BASE, "rate": RATE}
    write_report(options.out, backend, settings, axes=measured)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--size"]:
        serve(lambda: sized(*sys.argv[2:]))
    else:
        sys.exit(guarded(main))
