"""The worked third-party backend of the docs: passes the quick checks, and is built, found and tested as a package."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stsbp_conformance.faults import caught

PACKAGE = Path(__file__).parents[2] / "docs" / "third_party_backend"


def test_it_passes_every_quick_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    module = importlib.import_module("stsbp_einsum.backend")
    assert caught(module.EinsumBackend()) == {}


def test_it_is_built_found_by_its_entry_point_and_tested(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed, which builds the package")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*install, "--target", str(tmp_path / "site"), str(PACKAGE)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (tmp_path / "test_conformance.py").write_text((PACKAGE / "tests" / "test_conformance.py").read_text())
    run = [sys.executable, "-m", "pytest", "-q", "--backend", "einsum", "-k", "tier1 or tier7", "test_conformance.py"]
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    suite = subprocess.run(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert suite.returncode == 0, suite.stdout + suite.stderr
    assert "einsum: device cpu, numpy.einsum" in suite.stdout
    assert "0 failed, 0 skipped" in suite.stdout
