"""docs/write_a_neuron.md as a stranger would follow it: its file, its commands, what it promises."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
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


def _trained(lines: list[str], folder: Path) -> None:
    """Run the page's commands of the backends that are installed. All end with the same weights."""
    weights = {}
    for line in lines:
        words = shlex.split(line)
        if words[words.index("--backend") + 1] in installed_backends():
            _stsbp(line, folder)
            weights[line] = json.loads((folder / words[-1] / "last.json").read_text())["sha256"]
    assert len(weights) == len(lines) or "torch" not in installed_backends()
    assert len(set(weights.values())) == 1, weights


def test_a_strangers_neuron_trains_to_the_same_bits_and_outlives_its_module(tmp_path: Path) -> None:
    module = tmp_path / "my_neurons.py"
    module.write_text(FILES[0])
    shown, trained, evaluated, _ = (block.splitlines() for block in COMMANDS)
    numpy_text, cuda_text = (_stsbp(line, tmp_path) for line in shown)
    assert "heard = snap(new_i / (number(1.0) + r))" in numpy_text
    assert "__fdiv_rn(new_i_, __fadd_rn(1.0f, r_))" in cuda_text
    _trained(trained, tmp_path)
    assert 'neuron = "my_neurons:Refractory:tau_r=4"' in (tmp_path / "runs/by-numpy/config.toml").read_text()
    outputs = []
    for _ in range(2):
        # The first line says how fast it was.
        outputs.append(_stsbp(evaluated[0].replace("by-torch", "by-numpy"), tmp_path).splitlines()[1:])
        module.unlink(missing_ok=True)
    assert len(outputs[0]) > 5
    assert outputs[0] == outputs[1]


def test_what_a_strangers_neuron_learns_has_the_same_bits_and_outlives_its_module(tmp_path: Path) -> None:
    """Three states and two learned numbers."""
    module = tmp_path / "my_learners.py"
    module.write_text(FILES[1])
    learned = COMMANDS[3].splitlines()
    assert re.findall(r"states = \((.*)\)", FILES[1]) == ['"m", "a", "w"']
    assert FILES[1].count(": Learned(") == 2
    _trained(learned, tmp_path)
    run = tmp_path / "runs/learned-by-numpy"
    begun, ended = {"decay": 0.8, "beta": 0.2}, load_file(run / json.loads((run / "last.json").read_text())["file"])
    for name, value in begun.items():
        for layer, size in (("linear1", 24), ("linear2", 10)):
            x = ended[f"weight/{layer}.{name}"]
            assert x.shape == (size if name == "decay" else 1,)
            assert (x != np.float32(value)).all()
            assert np.abs(x - value).max() < 0.1
    module.unlink()
    output = _stsbp("stsbp --backend numpy evaluate runs/learned-by-numpy", tmp_path)
    assert "learned-by-numpy" in output or "%" in output


def test_the_pages_last_example_runs(tmp_path: Path) -> None:
    (tmp_path / "my_neurons.py").write_text(FILES[0])
    run = subprocess.run([sys.executable, "-c", FILES[2]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == FILES[2].rsplit("# ", 1)[1].strip()
