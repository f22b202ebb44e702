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

    class Fake(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            code = "import sys; sys.exit('the cause')" if next(ranks) else "import time; time.sleep(60)"
            super().__init__([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", Fake)
    began = time.monotonic()
    with pytest.raises(Mismatch, match="rank 1 ended with exit code 1: the cause"):
        process.started(NUMPY, 2, 1, [])
    assert time.monotonic() - began < 30


def test_started_reads_results_that_fill_the_buffer_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            code = "import json; print(json.dumps({'a case': {'weights': 'a hash', 'steps': [['step']] * 100_000}}))"
            super().__init__([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", Fake)
    monkeypatch.setattr(process, "_PATIENCE", 20.0)
    results = process.started(NUMPY, 2, 1, [])
    assert [len(result["a case"].steps) for result in results] == [100_000, 100_000]
