"""A whole training step, alternating with the dense lower bound: the same network with identity neurons (floor.py).

Memory is measured in a separate process (memory.py), in which nothing else has run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.memory import kept_bytes
from stsbp_spec.typing import Memory

from stsbp.benchmarks.cases import CASES, BenchmarkRun, Case, prepare
from stsbp.benchmarks.floor import dense_floor
from stsbp.benchmarks.result import Announce, Row
from stsbp.benchmarks.timing import interleaved
from stsbp.errors import StsbpError
from stsbp.training.build import build_task

__all__ = ["measure"]


def measure(
    backend: AbstractBackend,
    *,
    scale: float,
    rounds: int,
    data_dir: Path | None,
    surrogate: str | None,
    announce: Announce,
) -> list[Row]:
    """Time, rates and memory of the step on each of `CASES`.

    Args:
        backend: the backend to measure.
        scale: factor of the batch size.
        rounds: number of timed rounds.
        data_dir: folder of recordings and photographs. Missing data sets are replaced.
        surrogate: surrogate to use instead of the preset's.
        announce: function that receives what is measured next.
    """
    rows: list[Row] = []
    for case in CASES.values():
        announce(f"training step, {case.name} network")
        task, data = prepare(case, backend, scale=scale, surrogate=surrogate, data_dir=folder_of(case, data_dir))
        step = BenchmarkRun(task, data.batches)
        work: dict[str, Any] = {"step": step}
        # The bound is written in torch, and no framework other than the backend's own is imported.
        if backend.name == "torch":
            device = "cuda" if backend.device.startswith("cuda") else "cpu"
            work["floor"] = dense_floor(task.network, step.weights, data.batches[0], device)
        low_memory_config = task.config.model_copy(update={"memory": "low"})
        work["low"] = BenchmarkRun(build_task(low_memory_config, case.inputs, backend), data.batches)
        times = interleaved(work, rounds=rounds, warmup=5)
        size = f"{case.net}-{task.network.outputs} T={case.steps} B={task.config.batch_size}"
        detail: dict[str, Any] = {
            "samples_per_second": task.config.batch_size / times["step"].median,
            "spike_rates": step.rates,
            "data": data.source,
            "surrogate": task.config.surrogate,
        }
        floor = times.get("floor")
        ratio = times["step"].median / floor.median if floor is not None else None
        rows.append(Row("step", size, "training step", times["step"], "dense" if floor else "", ratio, detail))
        if floor is not None:
            rows.append(Row("step", size, "dense floor", floor))
        low = times["low"]
        rows.append(Row("step", size, "step in little memory", low, "step", low.median / times["step"].median))
        saved_bytes = task.config.batch_size * kept_bytes(task.network, case.steps)
        modes: tuple[tuple[Memory, str], ...] = (("full", "memory"), ("low", "little memory"))
        for mode, name in modes:
            announce(f"{name}, {case.name} network")
            memory = _memory(backend, case, scale, surrogate, mode)
            memory["kept_bytes"] = saved_bytes
            peak = memory["peak_bytes"]
            rows.append(Row("step", size, name, None, "kept", peak / saved_bytes if peak else None, detail=memory))
    return rows


def folder_of(case: Case, data_dir: Path | None) -> Path | None:
    """The data folder, if it contains the data set of the case."""
    folders = {"nmnist": ("NMNIST", "Train"), "cifar10": ("cifar10", "cifar-10-batches-bin", "train")}
    if data_dir is None or not any((data_dir / name).is_dir() for name in folders[case.dataset]):
        return None
    return data_dir


def _memory(backend: AbstractBackend, case: Case, scale: float, surrogate: str | None, mode: Memory) -> dict[str, Any]:
    """Run `python -m stsbp.benchmarks.memory` on replacement data. The memory of the step does not depend on the
    data."""
    arguments = [backend.name, backend.device, case.name, str(scale), surrogate or "", mode]
    command = [sys.executable, "-P", "-m", "stsbp.benchmarks.memory", *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        last = completed.stderr.strip().splitlines()[-1:] or ["no message"]
        raise StsbpError(f"the process that measures memory failed: {last[0]}")
    figures: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return figures
