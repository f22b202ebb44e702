"""Memory of a training step, in this process: `python -m stsbp.benchmarks.memory BACKEND DEVICE CASE SCALE S M`.

The first step, on one sample, is not counted, because it compiles the kernels. S is a surrogate, or empty. M is `full`
or `low`.
"""

from __future__ import annotations

import json
import os
import sys

from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.registry import open_backend
from stsbp_spec.typing import Memory

from stsbp.benchmarks.cases import CASES, BenchmarkRun, prepare
from stsbp.benchmarks.device import peak_memory, reset_peak_memory

__all__ = ["main"]

_STEPS, _MORE = 24, 24


def main(name: str, device: str, case: str, scale: str, surrogate: str, mode: Memory) -> None:
    """Print, as a line of JSON, the peak above the initial memory, and the growth of memory over more steps."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    backend = open_backend(name, device)
    task, data = prepare(
        CASES[case], backend, scale=float(scale), surrogate=surrogate or None, data_dir=None, memory=mode
    )
    first = data.batches[0]
    inputs = unpacked(first.inputs)
    first_sample = inputs[:, :1] if inputs.ndim == 5 else inputs[:1]
    step = BenchmarkRun(task, data.batches)
    step(Batch(first_sample.copy(), first.targets[:, :1].copy()))
    weight = next(iter(step.state.weights.values()))
    initial_bytes = reset_peak_memory(weight)
    for _ in range(_STEPS):
        step()
    peak = peak_memory(weight)
    for _ in range(_MORE):
        step()
    later_peak = peak_memory(weight)
    record: dict[str, int | None] = {"before_bytes": initial_bytes, "peak_bytes": None, "growth_bytes": None}
    if initial_bytes is not None and peak is not None and later_peak is not None:
        # A peak cannot sink, but Linux counts the pages of several threads with a delay of some dozens of pages.
        record |= {"peak_bytes": peak - initial_bytes, "growth_bytes": max(0, later_peak - peak)}
    print(json.dumps(record))


if __name__ == "__main__":
    name, device, case, scale, surrogate, mode = sys.argv[1:]
    main(name, device, case, scale, surrogate, "low" if mode == "low" else "full")
