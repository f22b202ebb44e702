"""Whether loading slows down training: updates with the real loader, and the same updates on batches in memory.

The loader is that of the training loop: recordings are binned once into a cache; then a thread unpacks, moves and
encodes batches in advance.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.models.encoders.packed import Inputs, PackedFrames
from stsbp_spec.typing import Int64

from stsbp.benchmarks.cases import CASES, BenchmarkRun
from stsbp.benchmarks.result import Announce, Row
from stsbp.benchmarks.step import folder_of
from stsbp.benchmarks.timing import Timing, interleaved
from stsbp.config import SettingsSource, resolve
from stsbp.training.augment import augment
from stsbp.training.build import build_task, load_data
from stsbp.training.prefetch import prefetched

__all__ = ["measure"]

_SAMPLES, _UPDATES = 1000, 10


def measure(
    backend: AbstractBackend, *, scale: float, rounds: int, data_dir: Path | None, announce: Announce
) -> list[Row]:
    """Time loading with an empty and a full cache, and updates with and without the loader.

    Args:
        backend: the backend to measure.
        scale: factor of the batch size and the number of samples.
        rounds: number of timed rounds of ten updates each.
        data_dir: folder of recordings; without it, the embedded `digits-events` is used.
        announce: function that receives what is measured next.
    """
    case = CASES["N-MNIST"]
    folder = folder_of(case, data_dir)
    limit = max(20, round(_SAMPLES * scale))
    settings = {
        "dataset": case.dataset if folder else case.stand_in,
        "data_dir": str(folder or ""),
        "net": case.net,
        "steps": case.steps,
        "batch_size": max(1, round(case.batch * scale)),
        "limit": limit,
        "holdout": 20,
    }
    if folder is not None:
        # There are at least 1,000 recordings, and some of them are held out.
        settings["limit"] = min(limit, 900)
    config = resolve([SettingsSource("benchmark", settings)])
    with _empty_cache() as cache:
        announce("loading, first time")
        began = time.perf_counter()
        data = load_data(config)
        first = time.perf_counter() - began
        announce("loading, from the cache")
        began = time.perf_counter()
        data = load_data(config)
        from_cache = time.perf_counter() - began
        on_disk = sum(path.stat().st_size for path in cache.glob("*.cache"))

        task = build_task(config, data.inputs, backend, len(data.train))
        order: Int64 = np.resize(np.arange(len(data.train)), _UPDATES * config.batch_size)
        batch_indices = np.split(order, _UPDATES)

        def fetch(indices: Int64) -> Batch[Inputs]:
            batch, _ = task.batch(data.train, indices)
            augmented = augment(batch.inputs, indices, seed=config.seed, epoch=0, augmentation=task.augmentation)
            return batch._replace(inputs=augmented)

        resident = [fetch(indices) for indices in batch_indices]
        step = BenchmarkRun(task, resident)

        def in_memory() -> None:
            for batch in resident:
                step(batch)

        def with_loader() -> None:
            with closing(prefetched(fetch, batch_indices)) as batches:
                for _, batch in batches:
                    step(batch)

        def loading_alone() -> None:
            for indices in batch_indices:
                fetch(indices)

        announce("updates with and without the loader")
        work = {"loader": with_loader, "memory": in_memory, "alone": loading_alone}
        times = interleaved(work, rounds=rounds, warmup=1)
    size = f"{config.dataset} T={config.steps} B={config.batch_size}"
    samples = {"samples": len(data.train) + len(data.test)}
    updates = {"updates": _UPDATES}
    inputs = resident[0].inputs
    batch_detail = {"batch_bytes": int(inputs.bits.nbytes if isinstance(inputs, PackedFrames) else inputs.nbytes)}
    ratio = times["loader"].median / times["memory"].median
    return [
        Row("data", size, "load, first time", Timing((first,)), detail=samples),
        Row("data", size, "load, from the cache", Timing((from_cache,)), detail={**samples, "cache_bytes": on_disk}),
        Row("data", size, "10 updates, loader", times["loader"], "in memory", ratio, updates),
        Row("data", size, "10 updates, in memory", times["memory"], detail=updates),
        Row("data", size, "10 batches, loading alone", times["alone"], detail={**updates, **batch_detail}),
    ]


@contextmanager
def _empty_cache() -> Iterator[Path]:
    """A cache folder for decoded samples that is removed at the end."""
    former_folder = os.environ.get("STSBP_CACHE")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["STSBP_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            if former_folder is None:
                del os.environ["STSBP_CACHE"]
            else:
                os.environ["STSBP_CACHE"] = former_folder
