"""Chooses, by a short trial on this processor, how the neuron kernels access memory.

A `Manner` sets the number of neurons in a chunk, whether a chunk's next step is prefetched, and whether results are
written past the caches. The manner does not change any bit of the results, but it changes the time by up to a factor of
two. The fastest manner depends on the processor. An Intel Xeon is fastest with short chunks and prefetching. An AMD
EPYC is mostly fastest with long chunks, with prefetching and writing past the caches, or with neither.

Therefore, the first large call of each kind runs three times in every manner of `CHOICES`, on the arrays of the call.
Every run fills these arrays with the same values. The fastest manner is stored beside the compiled kernels, for the
number of threads and the approximate size. With `STSBP_TUNE=0`, one of the first two choices is used without a trial.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from stsbp_cpu.engine.compiling import own_folder
from stsbp_cpu.engine.threads import get_num_threads

__all__ = ["CHOICES", "TRIED_FROM", "Manner", "in_best_manner"]

_LOG = logging.getLogger(__name__)


class Manner(NamedTuple):
    """How a kernel accesses memory.

    Attributes:
        chunk: number of neurons in a chunk. Their states stay in a cache during all steps.
        prefetch: whether a chunk's next step is prefetched before the current step is computed.
        past: whether results are written past the caches.
    """

    chunk: int
    prefetch: bool
    past: bool


# No single choice is best. On an AMD EPYC (Zen 5, 2 cores, 6 December 2026), the forward pass reached these shares of
# the bandwidth of a copy, in the order of this list: 0.48, 0.61, 0.89 and 0.79 at T = 4 and 2,000,000 neurons; 0.76,
# 0.69, 0.83 and 0.72 at T = 100 and 250,000 neurons. Its backward pass at T = 100: 0.73, 0.73, 0.72 and 0.80. A table
# of processors would be wrong for new processors, and in virtual machines with other caches.
CHOICES = (
    Manner(1024, prefetch=True, past=True),
    Manner(512, prefetch=True, past=False),
    Manner(8192, prefetch=True, past=True),
    Manner(16384, prefetch=False, past=False),
)
TRIED_FROM = 2**21
"""Number of potentials (8 MB) from which on there is a trial. Smaller arrays stay in a cache."""
_PAST = 2**24
"""Number of potentials (64 MB) from which on results are written past the caches if there is no trial.

Little of an array of this size is still in a cache when the backward pass begins.
"""
_ROUNDS, _GAIN = 3, 0.95
"""Number of runs of each choice, of which the fastest counts, and a limit on the time relative to the first choice.

A later choice is used only if its time is below this limit.
"""
_FILE = "manner-{}.json"

_chosen: dict[str, Manner] = {}


def in_best_manner(kind: str, size: int, neurons: int, run: Callable[[int, bool, bool], None]) -> None:
    """Call `run(*manner)` with the manner that is fastest on this processor.

    Args:
        kind: kind of work, a word.
        size: number of potentials, `T M`.
        neurons: number of neurons, `M`.
        run: the computation. Every call fills the same arrays with the same bits.
    """
    threads = get_num_threads()
    if size < TRIED_FROM or os.environ.get("STSBP_TUNE", "1") == "0":
        run(*_shared(CHOICES[0 if size >= _PAST else 1], neurons, threads))
        return
    # Kept on the disk, because a trial at each start would slow down every short run.
    key = f"{kind}-{threads}-{round(math.log2(size))}"
    if manner := _chosen.get(key) or _stored_manner(key):
        run(*_shared(manner, neurons, threads))
    else:
        manner = _fastest(neurons, threads, run)
        _write(key, manner)
    _chosen[key] = manner


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
    """`manner` with chunks that are short enough for every thread to get some."""
    share = -(-neurons // (4 * threads))
    return manner._replace(chunk=min(manner.chunk, max(CHOICES[1].chunk, -(-share // 64) * 64)))


def _stored_manner(key: str) -> Manner | None:
    folder = own_folder()
    content = None if folder is None else folder.read(_FILE.format(key))
    try:
        manner = Manner(*json.loads(content)) if content is not None else None
    except (ValueError, TypeError):
        return None
    return manner if manner in CHOICES else None


def _write(key: str, manner: Manner) -> None:
    _LOG.info("neurons are computed in chunks of %d (%s)", manner.chunk, key)
    folder = own_folder()
    if folder is not None:
        folder.write(_FILE.format(key), json.dumps(manner).encode())
