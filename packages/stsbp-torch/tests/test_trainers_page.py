"""The programs of docs/trainers.md, as a reader would run them: Lightning and Accelerate on two processes of a CPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[3] / "docs" / "trainers.md"
STEP = "        optimizer.step()\n"
SAVE = """\
    if not int(__import__("os").environ["RANK"]):
        torch.save([p.detach() for p in accelerator.unwrap_model(net).parameters()], f"WORLD-{epoch}.pt")
"""
"""What the page does not show: after each epoch, one process stores the parameters."""
pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed"),
    pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages"),
    pytest.mark.slow,
]


def needs(library: str) -> pytest.MarkDecorator:
    """Skip a test if a library is not installed. Importing it here would take seconds."""
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    blocks = re.findall(
        r"^```python\n(# (\w+\.py)\n.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert [name for _, name in blocks] == ["digit_spikes.py", "lightning_loop.py", "accelerate_loop.py"]
    for block, name in blocks:
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


def summaries(command: list[str], folder: Path, processes: int) -> str:
    """What every process printed after its name, which must be the same."""
    # Those of a launcher of these tests are not for these processes.
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stderr
    # Lines of two processes may be printed without an end between them.
    printed = re.findall(r"rank (\d) of (\d): (accuracy [\d.]+%, SHA-256 [0-9a-f]{64})", ended.stdout + ended.stderr)
    assert sorted(rank for rank, _, _ in printed) == [str(rank) for rank in range(processes)], ended.stdout
    assert {int(size) for _, size, _ in printed} == {processes}
    (summary,) = {summary for _, _, summary in printed}
    print(f"{command[-1]}, {processes} processes: {summary}")
    return str(summary)


def accuracy(summary: str) -> float:
    return float(summary.split("%")[0].removeprefix("accuracy "))


@needs("lightning")
def test_lightning_on_two_processes(programs: Path) -> None:
    first, second = (summaries([sys.executable, "lightning_loop.py"], programs, 2) for _ in range(2))
    assert first == second
    assert accuracy(first) > 80


@needs("accelerate")
def test_accelerate_on_two_processes(programs: Path) -> None:
    program = programs / "accelerate_loop.py"
    text = program.read_text(encoding="utf-8")
    assert text.count(STEP) == 1
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
    results = []
    for processes in (1, 2, 2):
        program.write_text(text.replace(STEP, STEP + SAVE.replace("WORLD", str(processes))), encoding="utf-8")
        results.append(summaries([*torchrun, str(processes), program.name], programs, processes))
    assert results[1] == results[2]
    assert min(map(accuracy, results)) > 80
    differences = []
    for epoch in range(6):
        alone, shared = (
            torch.cat([x.flatten() for x in torch.load(programs / f"{size}-{epoch}.pt", weights_only=True)])
            for size in (1, 2)
        )
        differences.append((alone - shared).abs())
        differing, largest = int((differences[-1] > 0).sum()), float(differences[-1].max())
        print(f"epoch {epoch + 1}: {differing} of {len(alone)} parameters differ, by at most {largest:.1e}")
    # The same samples, added in another order. A rounded gradient can move a spike, but not yet in most of the network.
    assert differences[0].median() < 1e-5
