"""Waiting threads of OpenMP sleep, without an environment variable."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest
from stsbp_cpu.engine import openmp

_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SCRIPT = """\
import time
{setup}
import numpy as np
from numba import njit, prange

@njit(parallel=True)
def add(x):
    for i in prange(len(x)):
        x[i] += 1

x = np.zeros(1 << 16)
add(x)
begin = time.process_time()
for _ in range(100):
    add(x)
    time.sleep(0.004)
print(time.process_time() - begin)
"""
"""Prints the processor time of a process that hardly ever has work."""
_CALL = "from stsbp_cpu.engine.openmp import let_waiting_threads_sleep; "


def _seconds(setup: str = "", **variables: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in _POLICIES}
    # Two threads, however many processors there are: one of them waits.
    environment |= {"NUMBA_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "omp", **variables}
    command = [sys.executable, "-c", _SCRIPT.format(setup=setup)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2 or find_library("gomp") is None,
    reason="threads of libgomp spin only on Linux with two processors or more",
)
def test_let_waiting_threads_sleep_saves_the_time_of_spinning() -> None:
    spinning, sleeping = _seconds(), _seconds(_CALL + "assert let_waiting_threads_sleep()")
    assert sleeping < spinning / 3
    chosen = _CALL + "assert not let_waiting_threads_sleep()"
    assert _seconds(chosen, GOMP_SPINCOUNT="300000") > 3 * sleeping


def test_let_waiting_threads_sleep_handles_a_library_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in _POLICIES:
        monkeypatch.delenv(name, raising=False)
    openmp.let_waiting_threads_sleep()
    assert openmp.let_waiting_threads_sleep() == []
    # A file of this name that is no library, and a system without the list of libraries.
    maps = tmp_path / "maps"
    monkeypatch.setattr(openmp, "_MAPS", maps)
    assert openmp.let_waiting_threads_sleep() == []
    maps.write_text(f"7f00-7f01 r-xp 00000000 08:01 1 {tmp_path}/libgomp.so.1 (deleted)\n")
    assert openmp.let_waiting_threads_sleep() == []
