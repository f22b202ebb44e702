"""One peer in its own process: it is told to make a step, makes it, and says how long that took.

`python worker.py PEER MODE PROBLEM.npz [WORK]`: a step is one of training, or, where the work is `prediction`, a
forward pass of the batch. On standard output a line of JSON that says it is ready (versions, spike rates, what the
checks found), then one line for each line on standard input:

- `step`: makes a step, and says how long it took.
- `train RATE BATCH.npz`: the same on another batch (`inputs`, `labels`), with this learning rate. The time of reading
  the batch is not part of the answer.
- `classes BATCH.npz`: the classes that the network gives to the samples of a batch.
- `memory`: the most memory that the process had.

While it waits it uses no processor.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WARMUP = 5


def main(peer: str, mode: str, path: str, work: str = "training") -> None:
    """Serve until standard input ends."""
    # What a library prints must not come between the lines of the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(__file__).parent))
    from problem import Problem

    model = importlib.import_module(f"peer_{peer}").build(Problem.read(Path(path)), mode)
    checks: dict[str, Any] = model.check() if hasattr(model, "check") else {}
    step = model.step if work == "training" else model.predict
    began = time.perf_counter()
    for _ in range(WARMUP):
        step()
    ready = {"versions": model.versions, "checks": checks, "warmup_seconds": time.perf_counter() - began}
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        request, *arguments = line.split()
        if request == "memory":
            print(json.dumps({"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), file=answers)
            continue
        if request in ("train", "classes"):
            with np.load(arguments[-1], allow_pickle=False) as batch:
                model.load(batch["inputs"], batch["labels"])
        if request == "classes":
            print(json.dumps({"classes": model.classes()}), file=answers)
            continue
        if request == "train":
            model.set_rate(float(arguments[0]))
        began, cpu_began = time.perf_counter(), time.process_time()
        step()
        times = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - cpu_began}
        print(json.dumps(times), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
