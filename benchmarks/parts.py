"""Where a training step's time goes, part by part: `python benchmarks/parts.py --backend jax --data-dir D`.

The spec's trainer takes the steps of the backend's plan, and each is waited for and timed, forward and backward, by the
name of its last node; a backend that fuses nodes (torch on the CPU: whole blocks) shows what it joins as one, and one
that compiles the whole step (JAX) computes it part by part here. Beside it stands the step as it is. Medians over the
rounds; what lies inside another part is counted in both. `--work prediction` divides the prediction of a batch instead.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

from harness import guarded, parser_of
from stsbp.benchmarks.cases import ALL_CASES, CASES, BenchmarkRun, prepare
from stsbp.benchmarks.device import synchronise
from stsbp.benchmarks.step import folder_of
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.plan import Chain, plan
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.registry import open_backend
from stsbp_spec.typing import Precision

PARTS = (
    "asarray",
    "encode",
    "weight_grid",
    "population_forward",
    "loss_error",
    "population_backward",
    "gradient_squares",
    "updated",
    "numpy",
    "spike_count",
)
"""Methods of a backend that are timed, in the order of a step."""
WORK = {"training": "step", "prediction": "prediction"}
"""What can be divided into parts, and the word for it."""


def watch(backend: Any, steps: Iterable[Any], precision: Precision, spent: dict[str, float]) -> None:
    """Make the backend's methods and steps add their seconds to `spent`, waiting for what they compute."""

    def timed(name: str, method: Any) -> Any:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **kwargs)
            waited_for(result)
            spent[name] += time.perf_counter() - began
            return result

        return call

    def timed_results(name: str, method: Any) -> Any:
        @wraps(method)
        def call(*args: Any) -> Iterator[Any]:
            results = method(*args)
            for _ in args[0]:
                began = time.perf_counter()
                result = next(results)
                waited_for(result)
                spent[name] += time.perf_counter() - began
                yield result

        return call

    def waited_for(result: Any) -> None:
        parts = result if isinstance(result, tuple) else (result,)
        synchronise(*(x for x in parts if hasattr(x, "shape")))

    for name in PARTS:
        setattr(backend, name, timed(name, getattr(backend, name)))
    for step in steps:
        # In a pass that needs numbers of the whole batch, the parts of a chain are computed one by one.
        parts = step.parts if isinstance(step, Chain) and step.exchanges(precision) else (step,)
        for part, direction in ((step, "forward"), *((part, "backward") for part in parts)):
            # A step is frozen data; its methods are shadowed for this process alone.
            object.__setattr__(part, direction, timed_results(f"{step.name} {direction}", getattr(part, direction)))


def measure(
    name: str,
    device: str | None,
    case: str,
    *,
    rounds: int,
    scale: float,
    data_dir: Path | None,
    work: str = "training",
) -> None:
    """Print the parts of one network's training step, or of its prediction of a batch."""
    backend = open_backend(name, device)
    benchmark_case = ALL_CASES[case]
    folder = folder_of(benchmark_case, data_dir)
    task, data = prepare(benchmark_case, backend, scale=scale, surrogate=None, data_dir=folder)
    full_step = BenchmarkRun(task, data.batches)
    trainer = task.trainer
    step = BenchmarkRun(task, data.batches)
    watched: Any = open_backend(name, device)
    watched.compiled = partial(Operations.compiled, watched)
    parted = Trainer(
        watched, trainer.network, trainer.loss, trainer.optimizer, trainer.precision, trainer.seed, trainer.memory
    )
    spent: dict[str, float] = defaultdict(float)
    watch(watched, plan(watched, trainer.network.graph).steps, trainer.precision, spent)

    def train(batch: Any) -> None:
        step.state, _ = parted.step(step.state, batch)

    def predicting(trainer: Trainer[Any]) -> Any:
        predict = trainer.predictor(step.state)
        return lambda batch: predict(batch.inputs, benchmark_case.steps)

    whole_step, by_parts = (full_step, train) if work == "training" else (predicting(trainer), predicting(parted))
    seconds_by_part: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 3):
        batch = data.batches[number % len(data.batches)]
        began = time.perf_counter()
        whole_step(batch)
        middle = time.perf_counter()
        spent.clear()
        by_parts(batch)
        end = time.perf_counter()
        if number >= 3:
            seconds_by_part[f"own {WORK[work]}"].append(middle - began)
            seconds_by_part[f"{WORK[work]} by parts"].append(end - middle)
            for part, spent_seconds in spent.items():
                seconds_by_part[part].append(spent_seconds)
    print(f"\n{name} on {backend.device}, {case}: {task.config.net}, data: {data.source}, {rounds} rounds")
    for part, seconds in seconds_by_part.items():
        if statistics.median(seconds) > 1e-5:
            print(f"  {part:20} {1e3 * statistics.median(seconds):8.2f} ms")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = parser_of(__doc__, "backend", "device", "rounds", "scale", "data-dir")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(ALL_CASES))
    parser.add_argument("--work", choices=WORK, default="training", help="what is divided into its parts")
    options = parser.parse_args(arguments)
    for case in options.cases:
        measure(
            options.backend, options.device, case, rounds=options.rounds, scale=options.scale,
            data_dir=options.data_dir, work=options.work,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(guarded(main))
