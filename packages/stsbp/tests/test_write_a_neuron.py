"""docs/write_a_neuron.md as a stranger would follow it: its file, its commands, what it promises."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from stsbp_spec.registry import installed_backends

PAGE = Path(__file__).parents[3] / "docs" / "write_a_neuron.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
FILES, COMMANDS = (re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE) for kind in ("python", "sh"))

pytestmark = pytest.mark.skipif(not TEXT, reason="the documentation is not beside the packages")


def _stsbp(line: str, folder: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-m", *shlex.split(line)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_strangers_neuron_trains_to_the_same_bits_and_outlives_its_module(tmp_path: Path) -> None:
    module = tmp_path / "my_neurons.py"
    module.write_text(FILES[0])
    shown, trained, evaluated = (block.splitlines() for block in COMMANDS)
    numpy_text, cuda_text = (_stsbp(line, tmp_path) for line in shown)
    assert "heard = snap(new_i / (number(1.0) + r))" in numpy_text
    assert "__fdiv_rn(new_i_, __fadd_rn(1.0f, r_))" in cuda_text
    weights = {}
    for name in installed_backends():
        if name not in ("numpy", "torch", "jax", "cupy"):
            continue
        device = " --device host" if name == "cupy" else ""
        line = trained[0].replace("--backend numpy", f"--backend {name}{device}").replace("by-numpy", f"by-{name}")
        _stsbp(line, tmp_path)
        weights[name] = json.loads((tmp_path / "runs" / f"by-{name}" / "last.json").read_text())["sha256"]
    assert len(weights) >= 2 or installed_backends() == ("numpy",)
    assert len(set(weights.values())) == 1, weights
    assert 'neuron = "my_neurons:Refractory:tau_r=4"' in (tmp_path / "runs/by-numpy/config.toml").read_text()
    said = []
    for _ in range(2):
        # The first line says how fast it was.
        said.append(_stsbp(evaluated[0].replace("by-torch", "by-numpy"), tmp_path).splitlines()[1:])
        module.unlink(missing_ok=True)
    assert len(said[0]) > 5
    assert said[0] == said[1]


def test_the_pages_last_example_runs(tmp_path: Path) -> None:
    (tmp_path / "my_neurons.py").write_text(FILES[0])
    run = subprocess.run([sys.executable, "-c", FILES[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == FILES[1].rsplit("# ", 1)[1].strip()
