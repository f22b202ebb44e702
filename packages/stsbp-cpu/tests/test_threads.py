"""How many threads a kernel takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import config, get_num_threads, set_num_threads
from stsbp_cpu.engine.threads import threads_for


@pytest.mark.parametrize("chosen", sorted({1, config.NUMBA_NUM_THREADS}))
def test_few_elements_take_one_thread_and_many_no_more_than_were_chosen(chosen: int) -> None:
    previous = get_num_threads()
    set_num_threads(chosen)
    try:
        with threads_for(100):
            assert get_num_threads() == 1
        assert get_num_threads() == chosen
        with pytest.raises(ZeroDivisionError), threads_for(100):
            raise ZeroDivisionError
        assert get_num_threads() == chosen
        with threads_for(10**9):
            assert get_num_threads() == chosen
        assert get_num_threads() == chosen
    finally:
        set_num_threads(previous)


FORKS = """
import os, sys
import numpy as np
from stsbp_spec import NetworkSpec, initial_weights, open_backend
from stsbp_spec.errors import BackendError

network = NetworkSpec.parse("6", input_shape=(5,), outputs=2)
weights, frames = initial_weights(network, 1), np.ones((4, 3, 5), np.uint8)

def compute():
    return open_backend("cpu").run(network, weights, frames, 4).layers["linear2"].spikes.sum()

if sys.argv[1] == "after":
    compute()
if (child := os.fork()) == 0:
    assert np.load("frames.npy").sum() == 60  # as a process that loads data does
    try:
        compute()
    except BackendError as error:
        print(error, flush=True)
        os._exit(3)
    os._exit(0)
status = os.waitpid(child, 0)[1]
compute()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("when", ["before", "after"])
def test_kernels_in_a_forked_process_run_or_raise(when: str, tmp_path: Path) -> None:
    """GNU OpenMP has no threads in a fork of a process that has used it. numba would end the fork by a signal."""
    np.save(tmp_path / "frames.npy", np.ones((4, 3, 5), np.uint8))
    command = [sys.executable, "-c", FORKS, when]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    # Other libraries of threads than GNU OpenMP work in forks.
    assert run.returncode in ((0,) if when == "before" else (0, 3)), run.stderr
    assert run.returncode == 0 or "Start processes that compute with multiprocessing.get_context('spawn')" in run.stdout
