"""`tools/arm.py`, without the emulated processor: what it asks for, what it hands on, and what it leaves alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_arm", ROOT / "tools" / "arm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


arm = _load()


def test_missing_tools_are_named_by_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"apt-get install .*g\+\+-aarch64-linux-gnu qemu-user"):
        arm.main(["--home", str(tmp_path / "arm")])
    assert not (tmp_path / "arm").exists()


def test_wheels_are_those_that_the_packages_require() -> None:
    names = arm.required_packages()
    assert {"numba>=0.61", "safetensors>=0.4.3", "pytest"} <= set(names)
    assert not [name for name in names if name.startswith(("stsbp", "torch"))]


def test_variables_of_this_machine_stay_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENBLAS_CORETYPE", "PYTHONHOME", "LD_PRELOAD", "QEMU_CPU", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "mine")
    variables = arm.environment(tmp_path)
    assert not {"OPENBLAS_CORETYPE", "PYTHONHOME", "LD_PRELOAD", "QEMU_CPU"} & set(variables)
    assert variables["NUMBA_NUM_THREADS"] == "mine"
    assert variables["PYTHONPATH"] == f"{tmp_path}/own:{tmp_path}/site"


def test_a_folder_with_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(arm, "missing", list)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SystemExit, match="holds something else"):
        arm.main(["--home", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
