"""Runs and files that a later version of the exact-arithmetic contract wrote: whoever reads them says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp import load_run
from stsbp_spec import CONTRACT_VERSION

NEWER = CONTRACT_VERSION + 1
SAID = f"under version {NEWER} of the exact-arithmetic contract, but this stsbp computes under version"


@pytest.fixture
def run(train_tiny: Callable[..., Result], forge: Callable[..., None], tmp_path: Path) -> Path:
    path = tmp_path / "run"
    assert train_tiny(path, "--epochs", "1", "--validation", "0").exit_code == 0
    for name in ("last", "best"):
        forge(path, lambda description: description.update(contract=NEWER), name)
    return path


def test_commands_that_read_a_run_of_a_newer_contract_say_so(run: Path, stsbp: Callable[..., Result]) -> None:
    np.save("image.npy", np.zeros((1, 8, 8), np.uint8))
    for command in (
        ("evaluate", run),
        ("predict", run, "image.npy"),
        ("report", run, "--no-samples"),
        ("export", run, "--to", "c", "--out", "exported"),
        ("convert", run, "--psp-gain", "unit", "--out", "other"),
    ):
        result = stsbp(*command)
        assert result.exit_code == 0, (command, result.output)
        assert result.stderr.count(SAID) == 1, command


def test_load_run_warns_of_a_newer_contract(run: Path, forge: Callable[..., None], recwarn: Any) -> None:
    with pytest.warns(UserWarning, match=SAID):
        load_run(run, backend="numpy")
    recwarn.clear()
    forge(run, lambda description: description.update(contract=CONTRACT_VERSION))
    load_run(run, backend="numpy")
    assert [warning for warning in recwarn if "contract" in str(warning.message)] == []


def test_import_says_that_a_file_is_of_a_newer_contract(
    run: Path, stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nir")
    monkeypatch.setattr("stsbp.interop.nir_file.CONTRACT_VERSION", NEWER)
    assert stsbp("export", run, "--to", "nir", "--out", "run.nir").exit_code == 0
    result = stsbp("import", "run.nir", "--config", run / "config.toml", "--out", "back")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(SAID) == 1
