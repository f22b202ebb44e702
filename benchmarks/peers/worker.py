"""One library in its own process, for compare.py and same_time.py: `python worker.py PEER MODE PROBLEM.npz [WORK]`.

A step is one of training, or, where the work is `prediction`, a forward pass of the batch. It says versions and what
the checks found, spike rates among them, and answers (workers.py):

- `step`: makes a step, and says how long it took.
- `train RATE BATCH.npz`: the same on another batch (`inputs`, `labels`), with this learning rate. The time of reading
  the batch is not part of the answer.
- `classes BATCH.npz`: the classes that the network gives to the samples of a batch.
- `memory`: the most memory that the process had.
"""

from __future__ import annotations

import importlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]

from problem import Problem  # noqa: E402
from workers import serve  # noqa: E402

WARMUP = 5


def prepare(peer: str, mode: str, path: str, work: str = "training") -> tuple[dict[str, Any], dict[str, Any]]:
    """What the library says of itself, and the requests."""
    model = importlib.import_module(f"peer_{peer}").build(Problem.read(Path(path)), mode)
    checks: dict[str, Any] = model.check() if hasattr(model, "check") else {}
    run: Callable[[], object] = model.step if work == "training" else model.predict

    def step() -> dict[str, float]:
        began, cpu_began = time.perf_counter(), time.process_time()
        run()
        return {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - cpu_began}

    def load(path: str) -> None:
        with np.load(path, allow_pickle=False) as batch:
            model.load(batch["inputs"], batch["labels"])

    def train(rate: float, path: str) -> dict[str, float]:
        load(path)
        model.set_rate(rate)
        return step()

    def classes(path: str) -> dict[str, Any]:
        load(path)
        return {"classes": model.classes()}

    def memory() -> dict[str, int]:
        return {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}

    warmup_seconds = sum(step()["seconds"] for _ in range(WARMUP))
    ready = {"versions": model.versions, "checks": checks, "warmup_seconds": warmup_seconds}
    return ready, {"step": step, "train": train, "classes": classes, "memory": memory}


if __name__ == "__main__":
    serve(lambda: prepare(*sys.argv[1:]))
