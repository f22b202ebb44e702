"""The device `host`: how the kernels are built, and what is said where they cannot be."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.engine import host
from stsbp_cupy.engine.source import KERNELS, fingerprint, source_files
from stsbp_spec.errors import BackendError


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    host._library.cache_clear()
    yield tmp_path / "kernels" / f"cupy-{fingerprint()}"
    host._library.cache_clear()


def test_builds_once_and_keeps_the_library(own_cache: Path, compiler_path: str) -> None:
    first = host.build(*source_files())
    built = first.stat().st_mtime_ns
    assert host.build(*source_files()) == first
    assert first.stat().st_mtime_ns == built
    assert sorted(p.name for p in own_cache.iterdir()) == [first.name, f"{first.name}.sha256"]


def test_rebuilds_a_damaged_library(own_cache: Path, compiler_path: str) -> None:
    path = host.build(*source_files())
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    assert host.build(*source_files()) == path
    assert path.stat().st_size == size
    assert host._library(*source_files()).host_sum_squares


BUILD = """
import sys
from stsbp_cupy.engine.host import build
from stsbp_cupy.engine.source import CudaSource

name = sys.argv[1]
print(build(CudaSource(name, f'extern "C" __global__ void {name}(float* x) {{ x[0] = 1; }}')))
"""


def test_kernels_that_no_process_asks_for_any_more_go(own_cache: Path, compiler_path: str) -> None:
    def built(name: str) -> Path:
        done = subprocess.run([sys.executable, "-c", BUILD, name], capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    idle, used = built("idle"), built("used")
    for file in own_cache.iterdir():
        os.utime(file, (time.time() - 31 * 86400,) * 2)
    assert built("used") == used
    assert idle.exists()
    fresh = built("fresh")
    assert {path.name for path in own_cache.iterdir()} == {
        name for path in (used, fresh) for name in (path.name, f"{path.name}.sha256")
    }


def test_without_a_compiler_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendError, match=r"device host needs a C\+\+ compiler.*apt-get install g\+\+"):
        host.build(*source_files())
    (*_, device) = CupyBackend.devices()
    assert device.name == "host"
    assert device.problem is not None
    assert "apt-get install g++" in device.problem


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("no-such-c++ -m64", "CXX is 'no-such-c\\+\\+ -m64', but there is no program 'no-such-c\\+\\+'"),
        ("g++ 'open", "CXX is .*: No closing quotation"),
        ("BROKEN", "the C\\+\\+ compiler .*broken cannot be run: Exec format error"),
    ],
)
def test_a_compiler_that_cannot_be_used_is_named(
    chosen: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\0\0\0\0")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", chosen.replace("BROKEN", str(broken)))
    with pytest.raises(BackendError, match=message):
        host.build(*source_files())


def test_a_compiler_may_have_arguments(
    own_cache: Path, compiler_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"{compiler_path} -DOF_USER=1")
    assert host.compiler() == (compiler_path, "-DOF_USER=1")
    (*_, device) = CupyBackend.devices()
    assert device.problem is None
    assert host.build(*source_files()).is_file()


def test_a_library_that_cannot_be_loaded_is_named(
    own_cache: Path, compiler_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"{compiler_path} -c")
    with pytest.raises(BackendError, match=r"the library .* -c built, cannot be loaded: .*CXX"):
        host._library(*source_files())


def test_with_a_compiler_that_fails_shows_its_words(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fake-c++"
    fake.write_text("#!/bin/sh\necho 'error: unknown word template' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(BackendError, match=r"(?s)fake-c\+\+ cannot build the kernels.*CXX.*unknown word template"):
        host.build(*source_files())
    assert list(own_cache.iterdir()) == []


def test_other_flags_make_another_library(own_cache: Path, compiler_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = host.build(*source_files())
    monkeypatch.setattr(host, "FLAGS", (*host.FLAGS, "-DOTHER"))
    assert host.build(*source_files()) != first


def test_another_machine_makes_another_library(
    own_cache: Path, compiler_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = host.build(*source_files())
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert host.build(*source_files()) != first


def test_without_a_place_to_keep_it_the_library_is_temporary(
    own_cache: Path, compiler_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.parent.write_text("a file, no folder")
    path = host.build(*source_files())
    assert path.is_file()
    assert own_cache not in path.parents
    assert host.build(*source_files()) == path
    assert host._library(*source_files()).host_sum_squares
    assert len(caplog.messages) == 1
    assert "compiled kernels cannot be kept" in caplog.messages[0]


def test_shim_compiles_without_warnings(compiler_path: str) -> None:
    command = [compiler_path, *host.FLAGS, "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}", "-x", "c++", "-"]
    command[command.index("-shared")] = "-fsyntax-only"
    subprocess.run(command, input=host.host_source(*source_files()), text=True, check=True)


def test_launch_covers_every_thread(compiler_path: str) -> None:
    s, mask = np.arange(1, 1001, dtype=np.float32), np.ones(1000, np.uint8)
    out = np.zeros_like(s)
    host.HostRuntime().launch("dropout_f32", 1000, s, mask, out, 1000, 1000)
    assert np.array_equal(out, s)


@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm(compiler_path: str, rng: np.random.Generator, accumulate: bool) -> None:
    a, b = rng.integers(-9, 9, (3, 5)).astype(np.float32), rng.integers(-9, 9, (4, 5)).astype(np.float32)
    out = np.full((3, 4), 7, np.float32)
    host.HostRuntime().gemm(a, b.T, out, accumulate=accumulate)
    assert np.array_equal(out, a @ b.T + (7 if accumulate else 0))
