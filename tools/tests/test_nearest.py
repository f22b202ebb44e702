"""Which tests a mutant meets first: those that execute its line, the quickest first."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).parents[1]
SOURCE = """LIMIT = 3


def kernel(x):
    return x + LIMIT


def larger(x, y):
    if x > y:
        return x
    return y


def sum_of(x):
    return kernel(x)
"""
PATH = "packages/stsbp/src/one.py"


def _module(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


mutants = _module("mutants")
nearest = _module("nearest")


@pytest.fixture
def lines() -> Any:
    record = nearest.Lines()
    record.add("test.py::test_slow", 5.0, [(PATH, "return x"), (PATH, "if x > y:")])
    record.add("test.py::test_case[1]", 0.5, [(PATH, "return x"), (PATH, "if x > y:")])
    record.add("test.py::test_case[2]", 0.75, [(PATH, "return x"), (PATH, "if x > y:")])
    record.add("test.py::test_other", 0.25, [(PATH, "return y"), (PATH, "if x > y:")])
    record.add("test.py::test_sum", 0.25, [(PATH, "return kernel(x)")])
    return record


def _near(lines: Any, root: Path, line: str, budget: float) -> list[str]:
    (root / PATH).parent.mkdir(parents=True, exist_ok=True)
    (root / PATH).write_text(SOURCE)
    mutant = next(m for m in mutants.mutants_of(PATH, SOURCE) if m.context == line)
    return [test.removeprefix("test.py::test_") for test in lines.near(mutant, SOURCE, root, budget)]


@pytest.mark.parametrize(
    ("budget", "tests"),
    [
        (100, ["case[1]", "slow", "case[2]", "other"]),  # every function once, then again, then other lines of it
        (1.5, ["case[1]", "case[2]", "other"]),
        (0.75, ["case[1]", "other"]),
        (0, ["case[1]"]),
    ],
)
def test_the_quickest_tests_of_the_line_come_first(
    lines: Any,
    tmp_path: Path,
    budget: float,
    tests: list[str],
) -> None:
    assert _near(lines, tmp_path, "return x", budget) == tests


@pytest.mark.parametrize("line", ["return x + LIMIT", "LIMIT = 3"])
def test_a_line_that_no_test_executes_is_held_by_what_names_it(
    lines: Any,
    tmp_path: Path,
    line: str,
) -> None:
    """As a kernel that numba compiles, and a constant of such a kernel."""
    assert _near(lines, tmp_path, line, 100) == ["sum"]
    # A test may call it itself.
    (tmp_path / "test.py").write_text("from one import kernel\n\n\ndef test_other():\n    assert kernel(1) == 4\n")
    assert sorted(_near(lines, tmp_path, line, 100)) == ["other", "sum"]


def test_a_record_is_kept_and_added_to(lines: Any, tmp_path: Path) -> None:
    lines.save(tmp_path / "build" / "lines.json")
    loaded = nearest.Lines.load(tmp_path / "build" / "lines.json")
    assert loaded == lines
    loaded.add("test.py::test_sum", 9.0, [(PATH, "return x")])
    assert _near(loaded, tmp_path, "return x", 100) == ["case[1]", "slow", "sum", "case[2]", "other"]


def test_lines_of_tests_are_recorded(tmp_path: Path) -> None:
    pytest.importorskip("coverage")
    for name in ("mutants", "nearest"):
        (tmp_path / "tools").mkdir(exist_ok=True)
        (tmp_path / "tools" / f"{name}.py").write_bytes((TOOLS / f"{name}.py").read_bytes())
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_text(SOURCE)
    (tmp_path / "test_one.py").write_text(
        "import pytest\n\n\n@pytest.fixture\ndef one():\n    import one\n    return one\n\n\n"
        "@pytest.mark.parametrize('x', [1, 3])\ndef test_larger(one, x):\n    assert one.larger(x, 2) == max(x, 2)\n"
    )
    command = ["-m", "pytest", "-q", "-p", "nearest", "--lines", "lines.json", "-p", "no:cacheprovider", "test_one.py"]
    paths = os.pathsep.join(
        [*map(str, (tmp_path / "tools", (tmp_path / PATH).parent)), os.environ.get("PYTHONPATH", "")]
    )
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": paths})
    recorded = nearest.Lines.load(tmp_path / "lines.json")
    assert list(recorded.seconds) == ["test_one.py::test_larger[1]", "test_one.py::test_larger[3]"]
    assert recorded.executed == {PATH: {"if x > y:": [0, 1], "return y": [0], "return x": [1]}}
