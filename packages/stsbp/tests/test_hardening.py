"""Odd surroundings and forged files: one clear line and an exit code, never a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import Result
from stsbp.training import checkpoint
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


Stsbp = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    """Assert that a command failed with one message."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.count("Error: ") == 1
    for word in words:
        assert word in result.stderr


def forge(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `last.json` and its digest with it."""
    path = run / "last.json"
    description = json.loads(path.read_text())
    description.pop("digest")
    change(description)
    path.write_text(json.dumps({**description, "digest": checkpoint._digest(description)}))


def forge_tensor(run: Path, name: str, x: Any) -> None:
    """Change a tensor, and all that is said of it."""
    last = checkpoint.load(run, "last")
    data = safetensors.numpy.save({**last.tensors, name: np.asarray(x)})
    digest = hashlib.sha256(data).hexdigest()
    file = f"last-{last.info['step']}-{digest[:12]}.safetensors"
    (run / file).write_bytes(data)
    tensors = {key: [str(t.dtype), list(t.shape)] for key, t in safetensors.numpy.load(data).items()}
    forge(run, lambda d: d.update(file=file, sha256=digest, tensors=tensors))


def nested(depth: int = 100_000) -> str:
    return "[" * depth + "]" * depth


@pytest.fixture
def run(train_tiny: Stsbp, tmp_path: Path) -> Path:
    """A run that is over."""
    assert train_tiny(tmp_path / "run").exit_code == 0
    return tmp_path / "run"


WRONG: dict[str, list[Any]] = {
    "file": [3, None, "last\0", "../last-6-0.safetensors", "x/last.safetensors", "", "last.json"],
    "metrics_bytes": [-1, 10**30, "3", None, 0.5],
    "epoch": [-1, 4, 2, "1", 10**30, None, True],
    "batch": [-1, 1, "0", 10**30, None],
    "step": [-1, 5, "6", 10**30, None],
    "sums": [{}, None, [], {"rates": {}}],
    "window": [{}, None, []],
    "best": [None, {}, 3, {"epoch": 1}],
    "sha256": [3],
    "tensors": [None],
    "config": [None],
    "data": [None],
}


@pytest.mark.parametrize("changes", [{key: value} for key, values in WRONG.items() for value in values], ids=str)
def test_forged_description(run: Path, stsbp: Stsbp, changes: dict[str, Any]) -> None:
    before = sorted(path.name for path in run.iterdir())
    forge(run, lambda description: description.update(changes))
    refused(stsbp("train", "--resume", run), str(run))
    assert sorted(path.name for path in run.iterdir()) == before


def test_best_in_the_place_of_last(run: Path, stsbp: Stsbp) -> None:
    (run / "last.json").write_bytes((run / "best.json").read_bytes())
    refused(stsbp("train", "--resume", run), "no tensor file of the checkpoint 'last'")
    assert len(list(run.glob("last-*.safetensors"))) == 1


@pytest.mark.parametrize("key", ["batch", "epoch", "sums", "window", "best", "metrics_bytes", "step", "file"])
def test_description_that_lacks_a_part(run: Path, stsbp: Stsbp, key: str) -> None:
    forge(run, lambda description: description.pop(key))
    refused(stsbp("train", "--resume", run), "is damaged: ")


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("step", np.zeros(3, np.int64)),
        ("step", np.int64(5)),
        ("step", np.float32(6)),
        ("adamw.v/linear1", np.full((64, 12), -1, np.float32)),
        ("adamw.m/linear1", np.full((64, 12), np.nan, np.float32)),
    ],
)
def test_forged_tensors(run: Path, stsbp: Stsbp, name: str, x: Any) -> None:
    assert name in checkpoint.load(run, "last").tensors
    forge_tensor(run, name, x)
    refused(stsbp("train", "--resume", run), f"its tensor {name}")
    refused(stsbp("evaluate", run), f"its tensor {name}")


def test_deeply_nested_files_of_a_run(run: Path, stsbp: Stsbp) -> None:
    for content in ('{"starts": {}}', f'{{"starts": {nested()}}}', f'{{"starts": {nested(900)}}}', nested(), "3"):
        (run / "environment.json").write_text(content)
        assert stsbp("train", "--resume", run).exit_code == 0
    (run / "last.json").write_text(nested())
    refused(stsbp("train", "--resume", run), "is damaged: ")
    refused(stsbp("evaluate", run), "is damaged: ")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom permissions stop")
def test_run_folder_without_permission(run: Path, stsbp: Stsbp) -> None:
    run.chmod(0o600)
    try:
        refused(stsbp("train", "--resume", run), "Permission denied")
        refused(stsbp("evaluate", run), "Permission denied")
    finally:
        run.chmod(0o700)


def test_run_folder_whose_name_is_too_long(stsbp: Stsbp) -> None:
    refused(stsbp("evaluate", "x" * 5000), "File name too long")
