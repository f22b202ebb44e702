"""The pytest plugin. It chooses backends and devices, and collects, prints and saves the matrix of cases and backends.

Every pytest run loads it where the package is installed, so it only imports pytest and the standard library. The first
test that needs a backend imports stsbp_spec.

    pytest --backend torch --backend jax                  two backends on their default devices
    pytest --backend torch --device cpu:eager             another device
    pytest --device torch=cuda:0 --device cupy=host       devices by backend, of all installed backends
    pytest --conformance-quick                            the small checks of every tier: for each change, in minutes
    pytest --conformance-json results.json                the matrix as data, for `python -m stsbp_conformance.page`
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stsbp_spec.engine.backend import AbstractBackend

    from stsbp_conformance.check import Check

__all__ = ["Column", "run_check", "stsbp_backend"]

_PROPERTY = "stsbp_conformance"


@dataclass(frozen=True)
class Column:
    """A backend on a device. `named`: the command line names it, so it must not be skipped."""

    name: str
    device: str | None
    named: bool

    def __str__(self) -> str:
        return self.name if self.device is None else f"{self.name}@{self.device}"


@dataclass
class Matrix:
    """Cells of the matrix by backend and case, in the order of the run."""

    cells: list[dict[str, Any]] = field(default_factory=list)
    backends: dict[str, dict[str, Any]] = field(default_factory=dict)


_MATRIX = pytest.StashKey[Matrix]()
_VERDICT = pytest.StashKey[Any]()
_CHECKS = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--backend`, `--device`, `--conformance-quick` and `--conformance-json`."""
    group = parser.getgroup("stsbp-conformance", "conformance of stsbp backends")
    group.addoption(
        "--backend", action="append", default=[], metavar="NAME", help="backend to test, repeatable; default: all"
    )
    group.addoption(
        "--device",
        action="append",
        default=[],
        metavar="[NAME=]D",
        help="device, of every chosen backend or of the one named; repeatable",
    )
    group.addoption(
        "--conformance-quick",
        action="store_true",
        help="only the quick checks: every tier, without full-size networks and without every combination",
    )
    group.addoption("--conformance-json", metavar="FILE", type=Path, help="write the conformance matrix as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the matrix. Raise an error for wrong values of `--backend` and `--device` before any test runs."""
    config.stash[_MATRIX] = Matrix()
    path: Path | None = config.getoption("--conformance-json")
    if path is not None:
        _check_writable(path)
    if config.getoption("--backend") or config.getoption("--device"):
        _columns(config)


def _check_writable(path: Path) -> None:
    """Raise an error if the matrix cannot be written to `path`, before any test runs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if path.stat().st_size == 0:
            path.unlink()
    except OSError as error:
        raise pytest.UsageError(f"--conformance-json {path} cannot be written: {error.strerror}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each chosen backend and device."""
    if "stsbp_backend" in metafunc.fixturenames:
        columns = _columns(metafunc.config)
        metafunc.parametrize("stsbp_backend", columns, indirect=True, scope="session", ids=[str(c) for c in columns])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--conformance-quick`, leave out all checks that are not quick."""
    if not config.getoption("--conformance-quick"):
        return
    slow = [item for item in items if (check := _check_of(item)) is not None and not check.quick]
    config.hook.pytest_deselected(items=slow)
    left_out = set(slow)
    items[:] = [item for item in items if item not in left_out]


def _check_of(item: pytest.Item) -> Check | None:
    """The check that a test of the suite runs; None for any other test."""
    if "run_check" not in getattr(item, "fixturenames", ()):
        return None
    check: Check | None = item.callspec.params.get("check")  # type: ignore[attr-defined]
    return check


def _columns(config: pytest.Config) -> list[Column]:
    from stsbp_spec.errors import BackendError
    from stsbp_spec.registry import installed_backends, load_backend

    named: list[str] = config.getoption("--backend")
    devices: dict[str, list[str]] = {}
    for text in config.getoption("--device"):
        name, equals, device = text.partition("=")
        devices.setdefault(name if equals else "", []).append(device if equals else text)
    columns = []
    for name in dict.fromkeys(named) or installed_backends():
        if named:
            try:
                load_backend(name)
            except BackendError as error:
                raise pytest.UsageError(str(error)) from None
        column_devices: list[str | None] = [*devices.get(name, devices.get("", []))]
        columns += [Column(name, device, bool(named) or device is not None) for device in column_devices or [None]]
    unknown = set(devices) - {c.name for c in columns} - {""}
    if unknown:
        raise pytest.UsageError(f"--device names backends that are not tested: {', '.join(sorted(unknown))}")
    return columns


@pytest.fixture(scope="session")
def stsbp_backend(request: pytest.FixtureRequest) -> AbstractBackend:
    """The opened backend under test."""
    from stsbp_spec.errors import BackendError
    from stsbp_spec.registry import load_backend

    from stsbp_conformance.tiers.trainer import open_usable

    column: Column = request.param
    try:
        backend = open_usable(load_backend(column.name), column.device)
    except BackendError as error:
        if column.named:
            raise
        pytest.skip(str(error))
    description = {d.name: d.description for d in backend.devices()}.get(backend.device, "")
    request.config.stash[_MATRIX].backends[str(column)] = {
        "name": column.name,
        "device": backend.device,
        "description": description,
    }
    return backend


_MANY_CHECKS = 50
"""Number of checks after which a backend forgets its compiled code. On Linux, a process can map 65,530 memory regions,
and each compiled program takes several."""


@pytest.fixture
def run_check(request: pytest.FixtureRequest, stsbp_backend: AbstractBackend) -> Callable[[Check], None]:
    """Runs a check on the backend under test, and stores its verdict for the matrix."""
    from stsbp_spec.reference.backend import NumpyBackend

    from stsbp_conformance.check import Unavailable

    def run(check: Check) -> None:
        if type(stsbp_backend) is NumpyBackend and check.by_reference and not check.quick:
            pytest.skip("numpy is what the others are compared with; it runs the small cases of this tier")
        request.config.stash[_CHECKS] = checks = request.config.stash.get(_CHECKS, 0) + 1
        if checks % _MANY_CHECKS == 0:
            stsbp_backend.forget()
        try:
            request.node.stash[_VERDICT] = check.run(stsbp_backend)
        except Unavailable as reason:
            pytest.skip(str(reason))

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the cell of the matrix to the report as a property, which is also kept in distributed runs."""
    report = yield
    parameters = getattr(item, "callspec", None)
    check = parameters.params.get("check") if parameters is not None else None
    column = parameters.params.get("stsbp_backend") if parameters is not None else None
    if check is None or column is None or (report.when != "call" and report.passed):
        return report
    cell: dict[str, Any] = {
        "tier": check.tier,
        "case": check.id,
        "backend": str(column),
        "result": report.outcome,
        "kind": None,
        "values": 0,
        "margin": None,
        "spreads": None,
        "note": "",
        "seconds": round(report.duration, 3),
    }
    verdict = item.stash.get(_VERDICT, None)
    if report.skipped and isinstance(report.longrepr, tuple):
        cell["note"] = str(report.longrepr[2]).removeprefix("Skipped: ")
    elif report.failed and call.excinfo is not None:
        lines = str(call.excinfo.value).splitlines() or [""]
        cell["note"] = f"{call.excinfo.type.__name__}: {lines[0]}"
    elif verdict is not None:
        cell.update(asdict(verdict))
    report.user_properties.append((_PROPERTY, cell))
    return report


class _Collector:
    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.matrix.cells += [cell for name, cell in report.user_properties if name == _PROPERTY]  # type: ignore[misc]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start collecting cells."""
    session.config.pluginmanager.register(_Collector(session.config.stash[_MATRIX]), "stsbp-conformance-collector")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the matrix as JSON, if requested."""
    path: Path | None = session.config.getoption("--conformance-json")
    matrix = session.config.stash[_MATRIX]
    if path is not None and matrix.cells and not hasattr(session.config, "workerinput"):
        from stsbp_conformance.matrix import save

        try:
            save(path, matrix.cells, matrix.backends)
        except OSError as error:
            session.config.issue_config_time_warning(
                pytest.PytestWarning(f"--conformance-json {path} cannot be written: {error.strerror}"), stacklevel=2
            )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the matrix."""
    matrix = config.stash[_MATRIX]
    if matrix.cells:
        from stsbp_conformance.matrix import text

        terminalreporter.section("conformance")
        terminalreporter.write_line(text(matrix.cells, matrix.backends))
