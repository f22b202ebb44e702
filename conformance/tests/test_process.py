"""The processes of tier 8."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from stsbp_conformance import process
from stsbp_conformance.check import Mismatch
from stsbp_conformance.reference import NUMPY


def test_started_reports_the_process_that_failed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter(range(2))

    class Fake(subprocess.Popen[str]):
        def __init__(self, command: list[str], **options: Any) -> None:
            code = "import sys; sys.exit('the cause')" if next(ranks) else "import time; time.sleep(60)"
            super().__init__([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", Fake)
    began = time.monotonic()
    with pytest.raises(Mismatch, match="rank 1 ended with exit code 1: the cause"):
        process.started(NUMPY, 2, 1, [])
    assert time.monotonic() - began < 30
