"""The plugin from the outside: options, the matrix, its data and page, and what a failing backend looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stsbp_conformance.matrix import TIERS
from stsbp_conformance.page import main as make_page

SUITE = "from stsbp_conformance.suite import *\n"


def _run(folder: Path, *arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(SUITE)
    environment = dict(os.environ)
    if site is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def _installed(folder: Path, name: str, target: str, module: str = "") -> Path:
    """A site folder in which a distribution registers the backend `name`."""
    info = folder / "site" / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[stsbp.backends]\n{name} = {target}\n")
    if module:
        (folder / "site" / f"{name}_module.py").write_text(module)
    return folder / "site"


def test_the_plugin_imports_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules); import stsbp_conformance.plugin\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} & {'numpy', 'stsbp_spec', 'torch', 'jax'}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_a_matrix_that_cannot_be_written_is_refused_before_any_test(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "before.json").write_text("{}")
    for path in (".", "file/x.json"):
        run = _run(tmp_path, "--backend", "numpy", "-k", "tier1 and rectangle", "--conformance-json", path)
        assert run.returncode == 4
        assert f"--conformance-json {path} cannot be written: " in run.stderr
        assert "passed" not in run.stdout
    run = _run(tmp_path, "--backend", "numpy", "-k", "no such test", "--conformance-json", "before.json")
    assert (tmp_path / "before.json").read_text() == "{}"


def test_matrix_json_and_page(tmp_path: Path) -> None:
    run = _run(tmp_path, "--backend", "numpy", "-k", "tier1 and rectangle", "--conformance-json", "out/results.json")
    assert run.returncode == 0, run.stdout
    assert "tier 1: rational oracle" in run.stdout
    assert "numpy: 4 passed, 0 failed, 0 skipped;" in run.stdout
    report = json.loads((tmp_path / "out/results.json").read_text())
    assert list(report["backends"]) == ["numpy"]
    assert {(c["tier"], c["backend"], c["result"], c["kind"]) for c in report["cells"]} == {
        (1, "numpy", "passed", "equal")
    }
    assert all(cell["values"] > 100 for cell in report["cells"])
    for name in ("page.md", "page.html"):
        make_page([str(tmp_path / "out/results.json"), "-o", str(tmp_path / name)])
        page = (tmp_path / name).read_text()
        assert TIERS[1] in page
        assert "rectangle, T=4, hamming" in page


def test_quick_leaves_out_the_large_checks_and_nothing_else(tmp_path: Path) -> None:
    names = "tier2 and (one or real) or tier4 and step"
    for options, left_out in ((["--conformance-quick"], 3), ([], 0)):
        run = _run(tmp_path, "--backend", "numpy", "--collect-only", "-k", names, *options)
        assert run.returncode == 0, run.stdout
        assert run.stdout.count("real N-MNIST input") == 3 - left_out
        assert run.stdout.count("one step, one sample") == 2
    (tmp_path / "test_other.py").write_text("def test_of_someone_else(): pass\n")
    run = _run(tmp_path, "--backend", "numpy", "--conformance-quick", "-k", "one and else", "test_other.py")
    assert "1 passed" in run.stdout


def test_a_wrong_backend_fails(tmp_path: Path) -> None:
    module = 'from stsbp_conformance.faults import BACKENDS\n\nBackend = BACKENDS["StrictThreshold"]\n'
    site = _installed(tmp_path, "wrong", "wrong_module:Backend", module)
    chosen = ["--backend", "wrong", "--backend", "numpy", "-k", "tier2 and equal"]
    run = _run(tmp_path, *chosen, "--conformance-json", "results.json", site=site)
    assert run.returncode == 1
    assert "FAILED      equal" in run.stdout
    assert "wrong: 0 passed, 1 failed, 0 skipped" in run.stdout
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    (failed,) = [cell for cell in cells if cell["result"] == "failed"]
    assert failed["backend"] == "wrong"
    assert "values differ, the first at" in failed["note"]


def test_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path, "--backend", "nosuch")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no backend 'nosuch' is installed; installed:" in run.stderr + run.stdout
    assert "Traceback" not in run.stderr + run.stdout


def test_a_device_of_a_backend_that_is_not_tested_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path, "--backend", "numpy", "--device", "torch=cpu")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--device names backends that are not tested: torch" in run.stderr + run.stdout


def test_a_device_that_cannot_run_fails_when_asked_for(tmp_path: Path) -> None:
    run = _run(tmp_path, "--backend", "numpy", "--device", "tpu", "-k", "tier1 and rectangle and hamming")
    assert run.returncode == 1
    assert "has the device cpu only, got 'tpu'" in run.stdout


_NO_DEVICE = """
from stsbp_spec.engine.backend import Device
from stsbp_spec.errors import BackendError
from stsbp_spec.reference.backend import NumpyBackend

class Backend(NumpyBackend):
    @classmethod
    def devices(cls):
        return (Device("gpu", "a GPU", "no driver"), *(Device("host", "here") for _ in range({hosts})))

    def open(self, device):
        if device != "host" or not {hosts}:
            raise BackendError("no driver was found")
        return device
"""


@pytest.mark.parametrize("hosts", [0, 1], ids=["no device", "another device"])
def test_the_default_device_cannot_run(tmp_path: Path, hosts: int) -> None:
    """Of all installed backends, one that cannot run is skipped with its reason, or runs on a device that can."""
    site = _installed(tmp_path, "gpuonly", "gpuonly_module:Backend", _NO_DEVICE.format(hosts=hosts))
    run = _run(tmp_path, "-k", "tier1 and rectangle and hamming and (gpuonly or numpy)", site=site)
    assert run.returncode == 0, run.stdout + run.stderr
    if hosts:
        assert "gpuonly: device host, here" in run.stdout
        assert "gpuonly: 1 passed" in run.stdout
    else:
        assert "gpuonly: 0 passed, 0 failed, 1 skipped" in run.stdout
        assert "skipped: no driver was found" in run.stdout
        named_run = _run(tmp_path, "--backend", "gpuonly", "-k", "tier1 and rectangle and hamming", site=site)
        assert named_run.returncode == 1
        assert "no driver was found" in named_run.stdout
