"""The first kernel that is compiled is announced, a loaded one is not."""

from __future__ import annotations

import logging

import pytest
from numba import njit
from stsbp_torch import compiling


def _kernel(module: str, offset: float) -> None:
    def kernel(x: float) -> float:
        return x + offset

    kernel.__module__ = module
    compiled = njit(kernel)
    assert compiled(1.0) == 1.0 + offset


def test_compiling_is_announced_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling.announce()
    monkeypatch.setattr(compiling._announcement, "said", False)
    with caplog.at_level(logging.WARNING, logger="stsbp_torch"):
        _kernel("another_package.kernels", 1.0)
        assert not caplog.messages
        _kernel("stsbp_torch.kernels", 2.0)
        compiling.announce()
        _kernel("stsbp_torch.kernels", 3.0)
    assert len(caplog.messages) == 1
    assert "compiling the kernels" in caplog.messages[0]
