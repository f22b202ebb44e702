"""Odd surroundings and forged files: one clear line and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stsbp.training.progress import TerminalReporter, reporter


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `stsbp` (called `$S` in the command) in a shell."""
    environment = {**os.environ, "S": f"{sys.executable} -m stsbp"}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 1, "Error: cannot write the output: No space left on device\n"),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>/dev/full", 1, ""),
    ],
)
def test_closed_and_full_streams(tmp_path: Path, redirection: str, code: int, said: str) -> None:
    result = shell(f"$S networks 8 {redirection}", tmp_path)
    assert (result.returncode, result.stderr) == (code, said)


def test_reporter_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    show = reporter()
    show.note("said to nobody")
    show.close()


def test_bar_shows_brackets_as_they_are(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w+", encoding="utf-8") as file:
        show = TerminalReporter(file)
        show._console._force_terminal = True
        show.loading("decoding im/q[/b]x", 1, 2)
        show.close()
        file.seek(0)
        assert "im/q[/b]x" in file.read()
