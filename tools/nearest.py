"""Which tests execute a line, the quickest first: for `mutation.py --nearest`.

    python -m pytest -p nearest --lines build/lines.json PATHS AND OPTIONS    (tools/ on PYTHONPATH, coverage installed)

records the lines that each test executes and how long it takes, of tests that pass. What was recorded of other tests
before stays. A line is known by its file and its text, as a mutant is, so a record outlives changes of other lines.
Code that numba compiles is not seen, nor what a module executes when it is imported, nor other processes: such a line
counts as executed where the name of its function or constant stands.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutants import CUDA, Mutant, collapsed, read

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Lines:
    """What each test executes.

    Attributes:
        seconds: of each test, by its name for pytest.
        executed: numbers of tests, in the order of `seconds`, by file and line.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    executed: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Lines:
        """Read a record."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write a record."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": self.seconds, "executed": self.executed}), encoding="utf-8")

    def add(self, test: str, seconds: float, lines: Iterable[tuple[str, str]]) -> None:
        """Record a test; what was known of it is kept, since it may hide behind a cache this time."""
        number = list(self.seconds).index(test) if test in self.seconds else len(self.seconds)
        self.seconds[test] = seconds
        for path, line in set(lines):
            tests = self.executed.setdefault(path, {}).setdefault(line, [])
            if number not in tests:
                tests.append(number)

    @cached_property
    def _names(self) -> list[str]:
        return list(self.seconds)

    def near(self, mutant: Mutant, text: str, root: Path, budget: float) -> list[str]:
        """Tests that take no longer than `budget` seconds together and execute a mutant's line, the quickest first.

        Of each test function one case comes before any second case. Where time is left, tests of other lines of the
        same function follow. One test at least is named if any executes the line. `text`: of the mutant's file.
        """
        if mutant.path.endswith(CUDA):
            return []
        owners = _owners(text)
        owner = owners.get(mutant.line, "")
        line = self._tests(mutant.path, [mutant.context])
        function = self._tests(mutant.path, [x for n, x in enumerate(_stripped(text), 1) if owners.get(n) == owner])
        rings = [line, function - line] if function else [self._by_name(root, mutant.path, owner)]
        tests: list[str] = []
        remaining = budget
        for ring in rings:
            for test in self._ordered(ring, mutant.path):
                if self.seconds[test] <= remaining or not tests:
                    tests.append(test)
                    remaining -= self.seconds[test]
        return tests

    def _tests(self, path: str, lines: Iterable[str]) -> set[str]:
        executed = self.executed.get(path, {})
        return {self._names[number] for line in lines for number in executed.get(line, ())}

    def _ordered(self, tests: Iterable[str], path: str) -> list[str]:
        cases: dict[str, int] = {}
        order = []
        package = path.partition("/src/")[0] + "/"
        for test in sorted(tests, key=lambda name: self.seconds[name]):
            function = test.partition("[")[0]
            cases[function] = cases.get(function, 0) + 1
            # Tests of the package itself call less, so that they compile less if it is a kernel that changed.
            order.append((cases[function], not test.startswith(package), test))
        return [test for *_, test in sorted(order, key=lambda key: key[:2])]

    def _by_name(self, root: Path, path: str, name: str) -> set[str]:
        """Tests that execute a line with the name in it or have one, or with the name of a function that has it.

        A name may stand in its own file and in files with the name of its module.
        """
        of_function: dict[tuple[str, str], set[str]] = {}
        for test in self.seconds:
            path_of_test, _, function = test.partition("[")[0].partition("::")
            of_function.setdefault((path_of_test, function), set()).add(test)
        paths = [*self.executed, *dict.fromkeys(path_of_test for path_of_test, _ in of_function)]
        texts = {path: read(root, path) for path in paths if path.endswith(".py") and (root / path).exists()}
        names = {(path, name)} if name else set()
        visited = set(names)
        while names:
            tests: set[str] = set()
            callers = set()
            for of, word in names:
                pattern, module = (re.compile(rf"\b{re.escape(x)}\b") for x in (word, _module(of)))
                for path, text in texts.items():
                    if path == of or module.search(text):
                        for number, line in enumerate(_stripped(text), 1):
                            if pattern.search(line):
                                caller = (path, _owners(text).get(number, ""))
                                tests |= self._tests(path, [line]) | of_function.get(caller, set())
                                callers.add(caller)
            if tests:
                return tests
            names = {caller for caller in callers - visited if caller[1]}
            visited |= names
        return set()


def _module(path: str) -> str:
    """Last part of the name of a module."""
    return Path(path).parent.name if path.endswith("__init__.py") else Path(path).stem


@cache
def _stripped(text: str) -> list[str]:
    return [collapsed(line) for line in text.splitlines()]


@cache
def _owners(text: str) -> dict[int, str]:
    """Name of the innermost function, or else of the class, the constant or what is called, of each line."""
    owners: dict[int, str] = {}
    for node in ast.walk(ast.parse(text)):  # breadth first: what is inside comes later
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            owners.update(dict.fromkeys(_span(node), node.name))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                owners |= {line: target.id for line in _span(node) if line not in owners}
        elif isinstance(node, ast.Expr) and (names := [x.id for x in ast.walk(node) if isinstance(x, ast.Name)]):
            owners |= {line: names[0] for line in _span(node) if line not in owners}  # function.defvjp(...)
    return owners


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _in_functions(text: str) -> set[int]:
    """Numbers of the lines in bodies of functions: what runs when its function is called, not when it is imported."""
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    return {line for function in functions for line in range(function.body[0].lineno, (function.end_lineno or 0) + 1)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--lines`."""
    parser.addoption("--lines", type=Path, help="record the lines that each test executes")


def pytest_configure(config: pytest.Config) -> None:
    """Record if a file is named."""
    if config.getoption("--lines") is not None:
        config.pluginmanager.register(_Recorder(config.getoption("--lines")))


class _Recorder:
    def __init__(self, path: Path) -> None:
        import coverage  # type: ignore[import-not-found, unused-ignore]

        self.path = path
        self.measured: Any = coverage.Coverage(data_file=None, config_file=False, include=[f"{ROOT}/packages/*/src/*"])
        self.measured.start()
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.measured.switch_context(nodeid)
        self.seconds[nodeid] = -sum(os.times()[:4])

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.measured.switch_context("")
        self.seconds[nodeid] += sum(os.times()[:4])  # processes that it started and that ended are counted

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.measured.stop()
        lines = Lines.load(self.path) if self.path.exists() else Lines()
        data = self.measured.get_data()
        of_test: dict[str, list[tuple[str, str]]] = {test: [] for test in self.seconds}
        for measured in data.measured_files():
            path = Path(measured).relative_to(ROOT).as_posix()
            text = read(ROOT, path)
            lines_of, called = _stripped(text), _in_functions(text)
            for number, tests in data.contexts_by_lineno(measured).items():
                for test in filter(None, tests if number in called else ()):
                    of_test[test].append((path, lines_of[number - 1]))
        for test, executed in of_test.items():
            if test not in self.failed:
                lines.add(test, round(self.seconds[test], 2), executed)
        lines.save(self.path)
