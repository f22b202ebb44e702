"""What is freed stays in the process, where glibc allocates; of several threads: test_jax_trainer.py of stsbp-jax."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from stsbp_spec.memory import keep_freed_memory

kept = keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * (40 * 2**20)  # touches each page
    del block
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is told to keep memory with glibc only")
def test_blocks_that_were_freed_are_not_faulted_in_again() -> None:
    found = {}
    for keep in ("0", "1"):
        command, environment = [sys.executable, "-c", FAULTS], {**os.environ, "STSBP_KEEP_MEMORY": keep}
        found[keep] = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.split()
    (left_alone, many), (kept, few) = found["0"], found["1"]
    assert (left_alone, kept) == ("False", "True")
    assert int(few) < int(many) / 10
