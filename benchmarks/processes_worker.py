"""One of the processes of processes.py: RANK SIZE PORT BACKEND DEVICE CASE PRECISION SCALE DATA.

Says that it is warm, then reads how many steps to make and answers how long one took, how much of it was spent in
exchanges, and what was sent.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stsbp.benchmarks.cases import CASES, BenchmarkRun, prepare
from stsbp.benchmarks.step import folder_of
from stsbp_spec.distributed.collective import Alone, Collective, Rendezvous
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.encoders.packed import Inputs, of_part
from stsbp_spec.registry import load_backend


class Traffic:
    """Counts the exchanges of a collective, and the time until each is over.

    A sum counts as one message, though an engine may put several into one. Its methods are replaced on the object.
    """

    def __init__(self, collective: Collective[Any]) -> None:
        self.seconds, self.messages, self.bytes = 0.0, 0, 0
        for name in ("largest", "start_total", "gather"):
            setattr(collective, name, self._counted(getattr(collective, name)))

    def _timed(self, method: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = method(*arguments)
        self.seconds += time.perf_counter() - began
        return result

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def exchange(x: Any) -> Any:
            self.messages += 1
            self.bytes += x.nbytes
            result = self._timed(method, x)
            return (lambda: self._timed(result)) if callable(result) else result

        return exchange


def _part_of_batch(batch: Batch[Inputs], collective: Collective[Any], axis: int) -> Batch[Inputs]:
    """The inputs of this process's part."""
    part = collective.parts(batch.targets.shape[1])[collective.rank]
    return Batch(of_part(batch.inputs, part, axis), batch.targets)


def main(arguments: list[str]) -> None:
    """Train with the others."""
    rank, size, port, name, device, case, precision, scale, data = arguments
    kind, place = load_backend(name), Rendezvous(int(rank), int(size), int(rank), "127.0.0.1", int(port))
    if device in ("cuda", "gpu") and int(size) > 1:
        device = f"{device}:{rank}"
    collective: Collective[Any] = Alone()
    if int(size) > 1:
        kind.connect(place, device or None)
    backend = kind(device or None)
    if int(size) > 1:
        collective = backend.join(place)
    traffic = Traffic(collective)
    benchmark_case, folder = CASES[case], Path(data) if data else None
    task, resident = prepare(
        benchmark_case, backend, scale=float(scale), surrogate=None, data_dir=folder_of(benchmark_case, folder)
    )
    trainer = backend.trainer(
        task.network,
        task.trainer.loss,
        task.trainer.optimizer,
        precision="reproducible" if precision == "reproducible" else "fast",
        seed=task.config.seed,
        collective=collective,
    )
    task = replace(task, trainer=trainer)
    axis = int(task.network.coding == "events")
    step = BenchmarkRun(task, [_part_of_batch(batch, collective, axis) for batch in resident.batches])
    for _ in range(4):
        step()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        traffic.seconds, traffic.messages, traffic.bytes = 0.0, 0, 0
        began = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = time.perf_counter() - began
        assert step.result is not None
        answer = {
            "seconds": seconds / steps,
            "waited": traffic.seconds / steps,
            "messages": traffic.messages / steps if collective.size > 1 else 0,
            "bytes": traffic.bytes / steps if collective.size > 1 else 0,
            "loss": step.result.loss,
        }
        print(json.dumps(answer), flush=True)
    collective.close()


if __name__ == "__main__":
    main(sys.argv[1:])
