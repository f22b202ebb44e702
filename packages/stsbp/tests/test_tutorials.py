"""The tutorials run from top to bottom: every cell of docs/tutorials, in a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "docs" / "tutorials"
PAGES = sorted(FOLDER.glob("*.md"))
QUICK = "coming_from"
NEEDED = ("matplotlib", "torch", "jax", "optax", "tonic", "PIL")
CELL = re.compile(r"^```\{code-cell\} ipython3\n(?P<tags>(?::[^\n]*\n)*)(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)

RUNNER = """\
import os, shlex, subprocess, sys
sys.path.insert(0, "")


def shell(line, may_fail):
    words = shlex.split(line)
    assert words[0] == "stsbp", line
    code = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    assert may_fail or code == 0, f"{line} ended with {code}"


def write(name, text):
    with open(name, "w") as file:
        file.write(text)
"""


def script(page: Path) -> str:
    """The cells of a page as one program, with commands and written files in place of the notebook's words for them."""
    lines = [RUNNER]
    for cell in CELL.finditer(page.read_text(encoding="utf-8")):
        code, may_fail = cell["code"].replace(" \\\n", " "), "raises-exception" in cell["tags"]
        if code.startswith("%%writefile "):
            head, _, text = code.partition("\n")
            code = f"write({head.split()[1]!r}, {text!r})\n"
        call = "shell(f'''\\1''', may_fail=" + f"{may_fail})"
        lines.append(re.sub(r"^!(.*)$", call, code, flags=re.MULTILINE))
    return "\n".join(lines)


def test_there_are_tutorials() -> None:
    if not FOLDER.is_dir():
        pytest.skip("the documentation is not beside the packages")
    assert len(PAGES) >= 9
    assert all(script(page).count("plt.show()") for page in PAGES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled kernels of all tutorials, made anew."""
    return tmp_path_factory.mktemp("cache")


# The quick one is among all tests, the others are for `nox -s notebooks`.
CASES = [pytest.param(page, id=page.stem, marks=() if page.stem == QUICK else pytest.mark.tutorial) for page in PAGES]


@pytest.mark.slow
@pytest.mark.parametrize("page", CASES)
def test_tutorial_runs_from_top_to_bottom(page: Path, cache: Path, tmp_path: Path) -> None:
    program = script(page)
    named = {*re.findall(r"(?:import|from) (\w+)", program), *re.findall(r"stsbp_(torch|jax)", program), "torch"}
    if "stsbp train nmnist" in program:
        named.add("tonic")
    for name in NEEDED:
        if name in named and importlib.util.find_spec(name) is None:
            pytest.skip(f"the tutorial uses {name}, which is not installed")
    variables = {"MPLBACKEND": "Agg", "PYTHONWARNINGS": "error::RuntimeWarning"}
    environment = {**os.environ, **variables}
    if page.stem != QUICK:
        environment["STSBP_CACHE"] = str(cache)
    environment.pop("STSBP_DATA", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
