"""How neurons stream through memory, chosen for the processor at hand by a short trial, and kept with the kernels.

How many neurons a chunk has, whether its next step is asked for before this one is computed, and whether results are
written past the caches changes no bit, but the time by up to a factor of two, and processors disagree: an Intel Xeon is
fastest with short chunks that ask ahead, an AMD EPYC with long ones that do neither (docs/benchmarks.md). So the first
large call of each kind runs once in every manner of `CHOICES` and twice more, on its own arrays, which the last run
fills as the first one did. What was fastest is written beside the compiled kernels, for the number of threads and
about the size; `STSBP_TUNE=0` takes the first two choices without a trial.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from stsbp_cpu.compiling import own_folder
from stsbp_cpu.threads import get_num_threads

__all__ = ["CHOICES", "TRIED_FROM", "Manner", "in_best_manner"]

_LOG = logging.getLogger(__name__)


class Manner(NamedTuple):
    """How a kernel goes through memory.

    Attributes:
        chunk: neurons whose states stay in a cache while the steps stream through it.
        ahead: whether the lines of a chunk's next step are asked for before this one is computed.
        past: whether results are written past the caches.
    """

    chunk: int
    ahead: bool
    past: bool


CHOICES = (
    Manner(1024, ahead=True, past=True),
    Manner(512, ahead=True, past=False),
    Manner(4096, ahead=False, past=False),
    Manner(16384, ahead=False, past=False),
)
TRIED_FROM = 2**21
"""Potentials, 8 MB; arrays of fewer stay in a cache."""
_PAST = 2**24
"""Potentials, 64 MB, of which little is still in a cache when the backward pass comes: without a trial, results of so
many are written past the caches."""
_ROUNDS, _GAIN = 3, 0.95
"""Runs of each, of which the fastest counts; and what part of the first choice's time another must not exceed."""
_FILE = "manner-{}.json"

_chosen: dict[str, Manner] = {}


def in_best_manner(kind: str, size: int, neurons: int, run: Callable[[int, bool, bool], None]) -> None:
    """Call `run(*manner)` in the manner that is the fastest here.

    Args:
        kind: of work, a word.
        size: potentials, `T M`.
        neurons: `M`.
        run: computes; it fills the same arrays with the same bits however often it is called.
    """
    threads = get_num_threads()
    if size < TRIED_FROM or os.environ.get("STSBP_TUNE", "1") == "0":
        run(*_shared(CHOICES[0 if size >= _PAST else 1], neurons, threads))
        return
    key = f"{kind}-{threads}-{round(math.log2(size))}"
    if found := _chosen.get(key) or _read(key):
        run(*_shared(found, neurons, threads))
    else:
        found = _fastest(neurons, threads, run)
        _write(key, found)
    _chosen[key] = found


def _fastest(neurons: int, threads: int, run: Callable[[int, bool, bool], None]) -> Manner:
    times = dict.fromkeys(CHOICES, math.inf)
    for _ in range(_ROUNDS):
        for manner in CHOICES:
            began = time.perf_counter()
            run(*_shared(manner, neurons, threads))
            times[manner] = min(times[manner], time.perf_counter() - began)
    best = min(CHOICES, key=times.__getitem__)
    return best if times[best] < _GAIN * times[CHOICES[0]] else CHOICES[0]


def _shared(manner: Manner, neurons: int, threads: int) -> Manner:
    """The same with chunks so short that each thread has some."""
    each = -(-neurons // (4 * threads))
    return manner._replace(chunk=min(manner.chunk, max(CHOICES[1].chunk, -(-each // 64) * 64)))


def _read(key: str) -> Manner | None:
    folder = own_folder()
    kept = None if folder is None else folder.read(_FILE.format(key))
    try:
        found = Manner(*json.loads(kept)) if kept is not None else None
    except (ValueError, TypeError):
        return None
    return found if found in CHOICES else None


def _write(key: str, manner: Manner) -> None:
    _LOG.info("neurons go through memory in chunks of %d (%s)", manner.chunk, key)
    folder = own_folder()
    if folder is not None:
        folder.write(_FILE.format(key), json.dumps(manner).encode())
