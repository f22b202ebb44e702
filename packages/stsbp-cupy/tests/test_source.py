"""Kernel signatures read from the .cu files, argument checks, and the cache of builds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from stsbp_cupy.engine import source
from stsbp_cupy.engine.source import KERNELS, KernelEntry, built, fingerprint, source_files
from stsbp_spec.engine.kernel_cache import digest


def entries() -> dict[str, KernelEntry]:
    return {entry.name: entry for source in source_files() for entry in source.entries}


def test_entries_hold_every_kernel_of_the_files() -> None:
    text = "".join(source.text for source in source_files())
    assert len(entries()) == text.count("__global__") == len(re.findall(r'extern "C"', text))


def test_entry_reads_parameter_types() -> None:
    parameters = {p.name: (p.dtype.name, p.pointer) for p in entries()["keep_mask"].parameters}
    assert parameters == {
        "mask": ("uint8", True),
        "count": ("int64", False),
        "before": ("int64", False),
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


def test_built_once_for_these_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    calls: list[Path] = []

    def build(path: Path) -> None:
        calls.append(path)
        path.write_text("built")

    parts = ("g++", "-O3")
    first = built("a", parts, ".so", build)
    assert built("a", parts, ".so", build) == first
    assert first.read_text() == "built"
    assert first == tmp_path / "kernels" / f"cupy-{fingerprint()}" / f"a-{digest(*parts)}.so"
    assert len({built("a", other, ".so", build) for other in (parts, ("g++", "-O2"), ("clang++", "-O3"))}) == 3
    monkeypatch.setattr(source, "KERNELS", tmp_path)
    (tmp_path / "contract.cuh").write_text("other kernels")
    assert built("a", parts, ".so", build).parent != first.parent
    assert len(calls) == 4


def test_kernel_folder_holds_only_what_is_compiled() -> None:
    compiled = {f"{source.name}.cu" for source in source_files()}
    assert {path.name for path in KERNELS.iterdir() if path.is_file()} == {*compiled, "contract.cuh", "host_shim.h"}
