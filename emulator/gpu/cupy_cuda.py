"""stsbp's device `cuda` with the real CuPy on the emulated GPU, as a pytest plugin: `-p emulator.gpu.cupy_cuda`.

A test that opens the device `host` gets `cuda`. Findings of launches are errors of the test. The variables of
`build.environment` must be set. `$PTX_ARCH` and `$PTX_SEED` choose the target and the order, as in cupy_kernels.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emulator.gpu import device  # isort: skip  # it must be there before CuPy calls it
import cupy
from stsbp_cupy import backend
from stsbp_cupy.engine import cuda

__all__ = ["install"]

_open = backend.CupyBackend.open


def install() -> None:
    """Let CuPy, and stsbp's device `cuda`, use the emulated GPU."""
    cupy.cuda.set_allocator(None)  # each array is an allocation with exact bounds
    cuda.choose_architecture = lambda capability, supported: f"compute_{capability}"


def _cuda(self: backend.CupyBackend, name: str | None) -> str:
    return _open(self, "cuda" if name == "host" else name)


def pytest_configure() -> None:
    """Install before tests open a device."""
    install()
    backend.CupyBackend.open = _cuda  # type: ignore[method-assign,assignment]


@pytest.fixture(autouse=True)
def _findings() -> Iterator[None]:
    device.FINDINGS.clear()
    yield
    findings = [str(finding) for finding in device.FINDINGS]
    device.FINDINGS.clear()
    if findings:
        pytest.fail("\n".join(findings[:20]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many launches there were, and warnings."""
    launches = device.LAUNCHES
    versions = f"CuPy {cupy.__version__} on PTX sm_{device.CAPABILITY}"
    terminalreporter.write_line(f"{versions}: {launches.total()} launches of {len(launches)} kernels")
    for text, count in device.WARNINGS.most_common(60):
        terminalreporter.write_line(f"  warning x{count}: {text}")
