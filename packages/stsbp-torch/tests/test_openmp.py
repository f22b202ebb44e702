"""Waiting threads of torch's OpenMP sleep, although torch is loaded before this project."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

_SCRIPT = """\
import time, torch
torch.set_num_threads(2)
{setup}
x = torch.zeros(1 << 17)
x += 1
begin = time.process_time()
for _ in range(100):
    x += 1
    time.sleep(0.004)
print(time.process_time() - begin)
"""
"""Prints the processor time of a process that hardly ever has work."""


def _seconds(setup: str) -> float:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", _SCRIPT.format(setup=setup)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or len(os.sched_getaffinity(0)) < 2
    or "OpenMP" not in torch.__config__.parallel_info(),
    reason="threads of libgomp spin only on Linux with two processors or more",
)
def test_a_spiking_layer_lets_waiting_threads_of_torch_sleep() -> None:
    layer = "from stsbp_torch import LIF; LIF()(torch.zeros(3, 1, 4))"
    assert _seconds(layer) < _seconds("") / 3
