"""Settings of numba with which no kernel can run are refused when a device is opened, and named."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import pytest
from stsbp_cpu.backend import CpuBackend
from stsbp_cpu.engine import precompile
from stsbp_spec.errors import BackendError

OPEN = """
from stsbp_spec import open_backend
from stsbp_spec.errors import BackendError
try:
    open_backend("cpu")
except BackendError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("NUMBA_DISABLE_JIT", "1", "unset it before Python starts"),
        ("NUMBA_NUM_THREADS", "-3", "set it to at least 1"),
        ("NUMBA_THREADING_LAYER", "foo", "set NUMBA_THREADING_LAYER to omp or workqueue"),
        ("NUMBA_THREADING_LAYER_PRIORITY", "omp", "unset it"),
    ],
)
def test_open_backend_names_the_variable(variable: str, value: str, remedy: str) -> None:
    environment = {**os.environ, variable: value}
    run = subprocess.run([sys.executable, "-c", OPEN], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert f"the environment variable {variable}={value}" in run.stdout
    assert remedy in run.stdout


def test_open_backend_takes_a_usable_setting() -> None:
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", OPEN], env=environment, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


def test_devices_and_fill_without_the_compiler_of_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CpuBackend.devices()[0].problem is None
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert "NUMBA_DISABLE_JIT" in str(CpuBackend.devices()[0].problem)
    with pytest.raises(BackendError, match="NUMBA_DISABLE_JIT"):
        precompile.fill()
