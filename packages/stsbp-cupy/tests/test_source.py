"""Kernel signatures read from the .cu files, argument checks, and the cache of builds."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stsbp_cupy.source import KERNELS, cache_folder, cached, entries, fingerprint, source_files
from stsbp_spec.errors import BackendError


def test_entries_hold_every_kernel_of_the_files() -> None:
    text = "".join(path.read_text() for path in source_files())
    assert len(entries()) == text.count("__global__") == len(re.findall(r'extern "C"', text))


def test_entry_reads_parameter_types() -> None:
    parameters = {p.name: (p.dtype.name, p.pointer) for p in entries()["keep_mask"].parameters}
    assert parameters == {
        "mask": ("uint8", True),
        "count": ("int64", False),
        "area": ("int64", False),
        "channels": ("int32", False),
        "key0": ("uint32", False),
        "key1": ("uint32", False),
        "step": ("uint32", False),
        "threshold": ("uint64", False),
    }


def test_arguments_become_the_parameters_types() -> None:
    s = np.zeros(4, np.uint8)
    values = entries()["dropout_u8"].arguments((s, s, s, 4, 4))
    assert values[0] is s
    assert [type(v) for v in values[3:]] == [np.int64, np.int64]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(4, np.uint8),) * 3, "dropout_u8 takes 5 arguments, got 3"),
        ((np.zeros(4, np.float32),) * 3 + (4, 4), "s must be a contiguous array of uint8, got float32"),
        ((np.zeros(8, np.uint8)[::2],) * 3 + (4, 4), "s must be a contiguous array of uint8"),
    ],
    ids=["count", "dtype", "strides"],
)
def test_arguments_that_do_not_fit_raise(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        entries()["dropout_u8"].arguments(arguments)


def test_fingerprint_depends_on_every_part() -> None:
    assert fingerprint("g++", "-O3") == fingerprint("g++", "-O3")
    assert len({fingerprint("g++", "-O3"), fingerprint("g++", "-O2"), fingerprint("clang++", "-O3")}) == 3


def test_cached_writes_once_and_moves_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    with cached("a.so") as (path, scratch):
        assert scratch is not None
        assert not path.exists()
        scratch.write_text("built")
    assert path == tmp_path / "kernels" / "a.so"
    assert path.read_text() == "built"
    with cached("a.so") as (_, scratch):
        assert scratch is None
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.so", "a.so.sha256"]


def test_cached_builds_a_damaged_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    damages: list[Callable[[Path], object]] = [
        lambda path: path.write_text("bui"),
        lambda path: path.with_name("a.so.sha256").unlink(),
    ]
    for damage in damages:
        with cached("a.so") as (path, scratch):
            if scratch is not None:
                scratch.write_text("built")
        damage(path)
        with cached("a.so") as (path, scratch):
            assert scratch is not None
            scratch.write_text("built")
        assert path.read_text() == "built"


def test_cached_leaves_nothing_of_a_failed_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))

    def build() -> None:
        with cached("a.so") as (_, scratch):
            assert scratch is not None
            scratch.write_text("half")
            raise RuntimeError("the compiler stopped")

    with pytest.raises(RuntimeError, match="the compiler stopped"):
        build()
    assert list((tmp_path / "kernels").iterdir()) == []


def test_cached_by_many_threads_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    seen: list[str] = []

    def build() -> None:
        with cached("a.so") as (path, scratch):
            if scratch is not None:
                scratch.write_text("x" * 100_000)
        seen.append(path.read_text())

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["x" * 100_000] * 8


def test_cache_that_cannot_be_written_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "file"))
    with (
        pytest.raises(BackendError, match=r"cannot be kept: .*; choose another folder with .* STSBP_CACHE"),
        cached("a"),
    ):
        pass


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("STSBP_CACHE", raising=False)
    assert cache_folder() == Path("/x/stsbp/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/stsbp/kernels"


def test_kernel_folder_holds_only_what_is_compiled() -> None:
    compiled = {path.name for path in source_files()}
    assert {path.name for path in KERNELS.iterdir() if path.is_file()} == {*compiled, "contract.cuh", "host_shim.h"}
