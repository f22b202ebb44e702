"""All kernels are compiled ahead, and a process that begins with none gets help."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import stsbp_cpu
from numba.core.dispatcher import Dispatcher
from stsbp_cpu.engine import precompile

LINES = precompile.FIRST + precompile.OTHERS
SMALL = ("contract.reductions._counts b3 i1", "contract.reductions._largest_bits i1")


def test_every_parallel_kernel_is_listed() -> None:
    modules = (importlib.import_module(m.name) for m in pkgutil.walk_packages(stsbp_cpu.__path__, "stsbp_cpu."))
    dispatchers = {x for module in modules for x in vars(module).values() if isinstance(x, Dispatcher)}
    assert {x for x in dispatchers if x.targetoptions.get("parallel")} == {
        precompile.kernel(line).dispatcher for line in LINES
    }
    assert len(set(LINES)) == len(LINES)


def test_what_is_filled_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, available = precompile.fill()
    assert 0 <= compiled <= available == len(LINES)
    monkeypatch.setattr(precompile, "_start", None)
    assert precompile.fill() == (0, available)


def test_losses_are_filled(tmp_path: Path) -> None:
    program = "precompile.FIRST, precompile.OTHERS, precompile.NEURONS = (), (), {}; precompile.fill()"
    _run(tmp_path, program)
    names = {"van_rossum_forward", "van_rossum_backward", "hamming_backward", "spike_count_backward", "count"}
    rows = {f"stsbp_cpu.equations.printers.{name}_rows" for name in names}
    assert rows <= {name.rpartition("_rows")[0] + "_rows" for name in _files(tmp_path)}


def _files(cache: Path) -> set[str]:
    """Kernels in a cache."""
    return {path.name.partition("-")[0] for path in cache.rglob("stsbp_cpu.*")}


def _run(cache: Path, program: str) -> str:
    environment = {**os.environ, "STSBP_CACHE": str(cache)}
    environment.pop("STSBP_COMPILE_BESIDE", None)
    command = [sys.executable, "-c", f"import os; from stsbp_cpu.engine import precompile; SMALL = {SMALL}\n{program}"]
    return subprocess.run(command, env=environment, check=True, text=True, capture_output=True).stdout


def test_a_helper_compiles_what_is_missing_while_its_parent_is_there(tmp_path: Path) -> None:
    counts, largest = "stsbp_cpu.contract.reductions._counts", "stsbp_cpu.contract.reductions._largest_bits"
    _run(tmp_path, "precompile.FIRST = SMALL; precompile.main('1', 'sparse')")
    assert _files(tmp_path) == set()
    # What another process is at is left to it.
    claimed = "folder = precompile.own_folder(); claim = folder.claim(precompile.kernel(SMALL[0]).file)\n"
    _run(tmp_path, f"{claimed}precompile.FIRST = SMALL; precompile.main(str(os.getppid()), 'dense')")
    assert _files(tmp_path) == {largest}
    _run(
        tmp_path,
        "precompile.FIRST, precompile.OTHERS = SMALL[1:], SMALL[:1]; precompile.main(str(os.getppid()), '1', '2')",
    )
    assert _files(tmp_path) == {counts, largest}


def test_one_helper_is_started_where_nothing_is_there(tmp_path: Path) -> None:
    program = """
started = []
class Helper:
    def terminate(self): started.append("ended")
    def wait(self): print(*started)
def start(kind):
    started.append(kind)
    return Helper()
precompile._start, precompile._cores = start, lambda: CORES
precompile.prepare(dense=True)
precompile.prepare(dense=True)
"""
    assert _run(tmp_path, program.replace("CORES", "2")) == "dense ended\n"
    assert _run(tmp_path, program.replace("CORES", "1")) == ""
    assert _run(tmp_path, f"os.environ['STSBP_COMPILE_BESIDE'] = '0'\n{program.replace('CORES', '2')}") == ""
    _run(tmp_path, "first = precompile.kernel(precompile.FIRST[0]); first.dispatcher.compile(first.types)")
    assert _run(tmp_path, program.replace("CORES", "2")) == ""
