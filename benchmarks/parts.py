"""Where a training step's time goes, pair by pair: `python benchmarks/parts.py --backend jax --data-dir D`.

The spec's trainer walks the network with the backend's pairs, and each call is waited for and timed; a backend that
joins pairs (torch on the CPU: whole blocks, JAX: the whole step) shows what it joins as one. Beside it stands the
step of the backend's own trainer. Medians over the rounds; what lies inside another part is counted in both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from functools import wraps
from pathlib import Path
from typing import Any

from options import guarded, parser_of
from stsbp.benchmarks.cases import CASES, Step, prepare
from stsbp.benchmarks.device import synchronise
from stsbp.benchmarks.step import folder_of
from stsbp_spec.registry import open_backend
from stsbp_spec.trainer import Trainer

__all__ = ["PARTS", "main", "measure"]

PARTS = (
    "asarray",
    "encode",
    "weight_grid",
    "avgpool2d_forward",
    "synapse_forward",
    "neuron_forward",
    "block_forward",
    "loss_error",
    "neuron_backward",
    "synapse_backward",
    "avgpool2d_backward",
    "block_backward",
    "gradient_squares",
    "adamw",
    "numpy",
    "spike_count",
)
"""Methods of a backend that are timed, in the order of a step."""


def watch(backend: Any, spent: dict[str, float]) -> None:
    """Make the backend's methods add their seconds to `spent`, waiting for what they compute."""

    def timed(name: str, method: Any) -> Any:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **kwargs)
            parts = result if isinstance(result, tuple) else (result,)
            synchronise(*(x for x in parts if hasattr(x, "shape")))
            spent[name] += time.perf_counter() - began
            return result

        return call

    for name in PARTS:
        setattr(backend, name, timed(name, getattr(backend, name)))


def measure(name: str, device: str | None, case: str, *, rounds: int, scale: float, data_dir: Path | None) -> None:
    """Print the parts of one network's step."""
    backend = open_backend(name, device)
    task, data = prepare(CASES[case], backend, scale=scale, surrogate=None, data_dir=folder_of(CASES[case], data_dir))
    whole = Step(task, data.batches)
    own = task.trainer
    step = Step(task, data.batches)
    pairs = Trainer(backend, own.network, own.loss, own.optimizer, own.precision, own.seed, own.memory)
    spent: dict[str, float] = defaultdict(float)
    watch(backend, spent)
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 3):
        began = time.perf_counter()
        whole()
        middle = time.perf_counter()
        spent.clear()
        step.state, _ = pairs.step(step.state, data.batches[number % len(data.batches)])
        end = time.perf_counter()
        if number >= 3:
            found["own step"].append(middle - began)
            found["step by pairs"].append(end - middle)
            for part in PARTS:
                found[part].append(spent[part])
    print(f"\n{name} on {backend.device}, {case}: {task.config.net}, data: {data.source}, {rounds} rounds")
    for part, seconds in found.items():
        if statistics.median(seconds) > 1e-5:
            print(f"  {part:20} {1e3 * statistics.median(seconds):8.2f} ms")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = parser_of(__doc__, "backend", "device", "rounds", "scale", "data-dir")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args(arguments)
    for case in options.cases:
        measure(
            options.backend, options.device, case, rounds=options.rounds, scale=options.scale, data_dir=options.data_dir
        )


if __name__ == "__main__":
    sys.exit(guarded(main))
