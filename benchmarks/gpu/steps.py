"""Training steps whose kernels are launched one by one, and recorded as CUDA graphs, in turn.

Of torch also the same network's convolutions alone (the dense floor of `stsbp benchmark step`). Where the device
records nothing, only the first is timed. With --trace torch's profiler traces each case too, and prints its kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from harness import guarded, machine, parser_of  # noqa: E402
from stsbp.benchmarks.cases import CASES, BenchmarkRun, Case, prepare  # noqa: E402
from stsbp.benchmarks.floor import dense_floor  # noqa: E402
from stsbp.benchmarks.result import Report, Row  # noqa: E402
from stsbp.benchmarks.timing import interleaved  # noqa: E402
from stsbp.training.build import build_task  # noqa: E402
from stsbp_spec.engine.backend import AbstractBackend  # noqa: E402
from stsbp_spec.engine.replay import SWITCH  # noqa: E402
from stsbp_spec.registry import open_backend  # noqa: E402


def measure(name: str, device: str | None, case: Case, *, scale: float, rounds: int) -> tuple[list[Row], BenchmarkRun]:
    """Rows of a case, and a step that is warm."""
    eager, recording = opened(name, device, "0"), opened(name, device, "1")
    task, data = prepare(case, eager, scale=scale, surrogate=None, data_dir=None)
    step = BenchmarkRun(task, data.batches)
    work: dict[str, Callable[[], object]] = {"training step": step}
    if getattr(recording, "graphs", None) is not None:
        work["training step, recorded"] = BenchmarkRun(build_task(task.config, case.inputs, recording), data.batches)
    if name == "torch":
        floor_device = "cuda" if eager.device.startswith("cuda") else "cpu"
        work["dense floor"] = dense_floor(task.network, step.weights, data.batches[0], floor_device)
    times = interleaved(work, rounds=rounds, warmup=6)
    size = f"{case.net}-{task.network.outputs} T={case.steps} B={task.config.batch_size}"
    detail: dict[str, Any] = {"spike_rates": step.rates, "data": data.source}
    floor = times.get("dense floor")
    rows = []
    for row_name, timing in times.items():
        ratio = timing.median / floor.median if floor is not None and row_name != "dense floor" else None
        row_detail = detail | {"samples_per_second": task.config.batch_size / timing.median}
        rows.append(Row("step", size, row_name, timing, "dense" if ratio is not None else "", ratio, row_detail))
    return rows, step


def opened(name: str, device: str | None, switch: str) -> AbstractBackend:
    """A backend that records, or does not."""
    former = os.environ.get(SWITCH)
    os.environ[SWITCH] = switch
    try:
        return open_backend(name, device)
    finally:
        os.environ.pop(SWITCH)
        if former is not None:
            os.environ[SWITCH] = former


def traced(step: BenchmarkRun) -> str:
    """What torch's profiler says of three steps."""
    import torch
    from torch.profiler import profile

    with profile() as profiler:
        for _ in range(3):
            step()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = f"self_{device}_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=60))


def main(arguments: list[str] | None = None) -> None:
    """Time all cases, print them, write a report as `stsbp benchmark` does."""
    parser = parser_of(__doc__, "backend", "device", "rounds", "scale", "out", rounds=21)
    parser.add_argument("--trace", action="store_true", help="print a table of kernels as well")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    warm: list[BenchmarkRun] = []
    for case in CASES.values():
        case_rows, step = measure(options.backend, options.device, case, scale=options.scale, rounds=options.rounds)
        for row in case_rows:
            assert row.timing is not None
            print(f"{row.case}: {row.what} {1e3 * row.timing.median:.3f} ms", flush=True)
        rows += case_rows
        warm.append(step)
    if options.out is not None:
        settings = {"scale": options.scale, "rounds": options.rounds}
        Report(machine(open_backend(options.backend, options.device), settings), rows).write(options.out)
    # At the end, so that nothing is lost if it fails.
    if options.trace:
        for step in warm:
            print(traced(step), flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
