"""The worked third-party backend of the docs is built and found as a package, and passes the quick checks."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stsbp_conformance.matrix import TIERS

PACKAGE = Path(__file__).parents[2] / "docs" / "third_party_backend"


@pytest.mark.parametrize(
    ("selection", "tiers"),
    [("tier1 or tier4 and not updates", [1, 4]), pytest.param("tier", TIERS, marks=pytest.mark.long)],
)
def test_it_is_built_found_by_its_entry_point_and_tested(selection: str, tiers: list[int], tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed, which builds the package")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*install, "--target", str(tmp_path / "site"), str(PACKAGE)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (tmp_path / "test_conformance.py").write_text((PACKAGE / "tests" / "test_conformance.py").read_text())
    run = [sys.executable, "-m", "pytest", "-q", "--backend", "einsum", "--conformance-quick", "test_conformance.py"]
    run += ["-k", selection]
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    suite = subprocess.run(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert suite.returncode == 0, suite.stdout + suite.stderr
    assert "einsum: device cpu, numpy.einsum" in suite.stdout
    assert "0 failed, 0 skipped" in suite.stdout
    assert [f"tier {tier}: " in suite.stdout for tier in TIERS] == [tier in tiers for tier in TIERS]
