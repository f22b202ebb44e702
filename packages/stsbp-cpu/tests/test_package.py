"""stsbp-cpu needs stsbp-spec, numpy and numba, and nothing else."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import stsbp_cpu

PACKAGE = Path(stsbp_cpu.__file__).parent
OWN = {"stsbp_cpu", "stsbp_spec", "numpy", "numba", "llvmlite"}

WITHOUT_FRAMEWORKS = """
import importlib, pkgutil, sys
for name in ("torch", "jax", "jaxlib", "cupy", "triton"):
    sys.modules[name] = None  # to import it is an error
import numpy as np
import stsbp_cpu
for module in pkgutil.walk_packages(stsbp_cpu.__path__, "stsbp_cpu."):
    importlib.import_module(module.name)
from stsbp_cpu.models import neurons
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.neurons import LIF
from stsbp_spec.networks.ops import IDENTITY

equations = neuron_equations(IDENTITY, LIF(4))
z = np.full((3, 1), 2, np.float32)
u, spikes = np.empty((3, 1), np.float32), np.empty((3, 1), np.uint8)
neurons.forward(equations, z, u, spikes, np.empty((len(equations.kept) - 1, 3, 1), np.float32))
print(*u.reshape(-1), *spikes.reshape(-1))
"""


def test_it_imports_and_computes_where_no_framework_can_be_imported() -> None:
    variables = {"NUMBA_OPT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FRAMEWORKS], capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    assert [float(word) for word in done.stdout.split()] == [2, 2, 2, 1, 1, 1]


def test_it_imports_what_it_requires_and_nothing_else() -> None:
    packages = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                packages.add((node.module or "").partition(".")[0])
    assert packages - set(sys.stdlib_module_names) == OWN
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {line.replace(">", "=").partition("=")[0] for line in project["dependencies"]}
    # llvmlite is what numba compiles with, in the one version that it asks for.
    assert names == {"stsbp-spec", "numpy", "numba"}
