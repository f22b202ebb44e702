"""What is freed stays in the process, where glibc allocates; of several threads: test_jax_trainer.py of stsbp-jax."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
from stsbp_spec.engine.memory import keep_freed_memory, release_freed_memory

FAULTS = """
import resource
from stsbp_spec.engine.memory import keep_freed_memory

kept = keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * (40 * 2**20)  # touches each page
    del block
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults)
"""

RELEASED = """
from pathlib import Path
from stsbp_spec.engine.memory import keep_freed_memory, release_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024

keep_freed_memory()
block = bytearray(b"x") * (200 * 2**20)
del block
print(resident(), release_freed_memory(), resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is told to keep memory with glibc only")
def test_blocks_that_were_freed_are_not_faulted_in_again() -> None:
    outputs = {}
    for keep in ("0", "1"):
        command, environment = [sys.executable, "-c", FAULTS], {**os.environ, "STSBP_KEEP_MEMORY": keep}
        outputs[keep] = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.split()
    (default_set, default_faults), (keep_set, keep_faults) = outputs["0"], outputs["1"]
    assert (default_set, keep_set) == ("False", "True")
    assert int(keep_faults) < int(default_faults) / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory here")
def test_kept_blocks_are_given_back_on_request() -> None:
    done = subprocess.run([sys.executable, "-c", RELEASED], capture_output=True, text=True, check=True)
    megabytes, released, megabytes_after = done.stdout.split()
    assert released == "True"
    assert int(megabytes) > 200
    assert int(megabytes_after) < int(megabytes) - 190


@pytest.mark.parametrize("one_pool", [False, True])
def test_what_is_set_has_the_numbers_of_malloc_h(one_pool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No arrays by mmap, nothing given back from the top of the heap, and one arena where it is asked for."""
    calls: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            calls.append((parameter, value))
            return 1

    monkeypatch.setattr("stsbp_spec.engine.memory.ctypes.CDLL", lambda name: Library)
    monkeypatch.setattr("stsbp_spec.engine.memory.sys.platform", "linux")
    monkeypatch.delenv("STSBP_KEEP_MEMORY", raising=False)
    assert keep_freed_memory(one_pool=one_pool)
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    assert sorted(calls) == [
        *([(m_arena_max, 1)] if one_pool else []), (m_mmap_max, 0), (m_trim_threshold, -1),
    ]  # fmt: skip


def test_an_allocator_that_refuses_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp_spec.engine.memory.sys.platform", "linux")
    monkeypatch.delenv("STSBP_KEEP_MEMORY", raising=False)
    monkeypatch.setattr("stsbp_spec.engine.memory.ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *_: 0))
    assert not keep_freed_memory()
    monkeypatch.setattr("stsbp_spec.engine.memory.ctypes.CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory()
    assert not release_freed_memory()
    monkeypatch.setattr("stsbp_spec.engine.memory.sys.platform", "darwin")
    assert not keep_freed_memory()
    assert not release_freed_memory()
