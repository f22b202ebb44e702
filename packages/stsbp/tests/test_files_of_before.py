"""Files that an earlier version wrote go on working: runs, exports, settings and classes of users' own."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets.digits import read_digits

BEFORE = Path(__file__).parent / "files_of_before"
EXPECTED: dict[str, Any] = json.loads((BEFORE / "expected.json").read_text())
RUNS = tuple(EXPECTED)
EPOCHS = {"nodes": ("--epochs", "2")}
"""Options of `--resume` for runs that are at their end. All runs have 6 updates then."""
OWN = ("neuron", "loss", "surrogate")

ORDER_OF_SUMS = 2 * 20 * 4 * 10 * 2.0**-53
"""Bound of the relative difference of two means of losses in float64.

A loss is a sum of at most n = 20 samples * 4 steps * 10 outputs terms, none of them negative. Its relative error is at
most n * 2^-53 in any order of summation, and libraries differ in that order. All other figures are quotients of counts.
"""

every_run = pytest.mark.parametrize("name", RUNS)
needs_nir = pytest.mark.skipif(importlib.util.find_spec("nir") is None, reason="not installed: nir")
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="not installed: onnxruntime")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a run, because reading a run must not change the stored one."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(BEFORE / name, tmp_path / name))

    return copy


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[str], Path]:
    """A compressed file, unpacked."""

    def unpack(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.decompress((BEFORE / f"{name}.gz").read_bytes()))
        return path

    return unpack


@pytest.fixture
def own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's module `my_classes` can be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copy(BEFORE / "my_classes.py.txt", folder / "my_classes.py")
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("my_classes", None)


def figures(result: Result) -> dict[str, Any]:
    """What `stsbp evaluate --json` printed."""
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert isinstance(printed, dict)
    return printed


def assert_same_figures(printed: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if key in ("loss", "van_rossum"):
            assert printed[key] == pytest.approx(value, rel=ORDER_OF_SUMS, abs=0), key
        else:
            assert printed[key] == value, key


def settings(result: Result) -> dict[str, Any]:
    """What `stsbp train --show-config` printed."""
    assert result.exit_code == 0, result.output
    return tomllib.loads(result.stdout)


def assert_keeps(shown: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Every setting of before is there and has its value. A later version may have more settings."""
    assert {key: shown.get(key) for key in stored} == stored


@every_run
def test_evaluate_gives_the_figures_of_before(
    name: str, stsbp: Callable[..., Result], copied: Callable[[str], Path]
) -> None:
    assert_same_figures(figures(stsbp("evaluate", copied(name), "--json")), EXPECTED[name]["evaluated"])


def test_evaluate_reads_the_best_checkpoint(stsbp: Callable[..., Result], copied: Callable[[str], Path]) -> None:
    printed = figures(stsbp("evaluate", copied("nodes"), "--checkpoint", "best", "--json"))
    assert_same_figures(printed, EXPECTED["nodes"]["evaluated"])  # its only epoch


@every_run
def test_resume_ends_with_the_weights_of_before(
    name: str, stsbp: Callable[..., Result], copied: Callable[[str], Path]
) -> None:
    run = copied(name)
    result = stsbp("train", "--resume", run, *EPOCHS.get(name, ()))
    assert result.exit_code == 0, result.output
    last = json.loads((run / "last.json").read_text())
    assert (last["step"], last["sha256"]) == (6, EXPECTED[name]["resumed"])


@every_run
def test_other_commands_read_a_run_of_before(
    name: str, stsbp: Callable[..., Result], copied: Callable[[str], Path]
) -> None:
    run = copied(name)
    for command in (
        ("predict", run, "--sample", "0", "--json"),
        ("report", run, "--out", "report.html"),
        ("compare", run, "--json"),
        ("curves", run, "--samples", "5", "--json"),
        ("export", run, "--to", "c", "--out", "exported"),
    ):
        result = stsbp(*command)
        assert result.exit_code == 0, (command, result.output)


def test_convert_reads_a_run_of_before(stsbp: Callable[..., Result], copied: Callable[[str], Path]) -> None:
    assert stsbp("convert", copied("stopped"), "--psp-gain", "unit", "--out", "converted").exit_code == 0


@every_run
def test_train_starts_from_the_settings_and_weights_of_before(
    name: str, stsbp: Callable[..., Result], copied: Callable[[str], Path]
) -> None:
    run = copied(name)
    config = run / "config.toml"
    assert_keeps(settings(stsbp("train", "--config", config, "--show-config")), tomllib.loads(config.read_text()))
    result = stsbp("train", "--config", config, "--init-from", run, "--epochs", "1", "--out", "next")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("next/last.json").read_text())["step"] == 3


@pytest.mark.parametrize("name", ["settings", "readout"])
def test_show_config_reads_settings_of_a_user_and_those_it_has_shown(name: str, stsbp: Callable[..., Result]) -> None:
    shown = BEFORE / f"{name}-shown.toml"
    for file in (BEFORE / f"{name}.toml", shown):
        assert_keeps(settings(stsbp("train", "--config", file, "--show-config")), tomllib.loads(shown.read_text()))


def test_train_reads_nodes_of_a_user(stsbp: Callable[..., Result]) -> None:
    stored_settings = tomllib.loads((BEFORE / "nodes/config.toml").read_text())
    options = [
        word for key in ("limit", "holdout", "steps", "lr", "precision") for word in (f"--{key}", stored_settings[key])
    ]
    options += [
        "--batch-size",
        stored_settings["batch_size"],
        "--init-gain",
        stored_settings["init_gain"],
        "--epochs",
        stored_settings["epochs"],
    ]
    result = stsbp("train", "digits", "--net", BEFORE / "nodes.toml", *options, "--out", "again")
    assert result.exit_code == 0, result.output
    stored, repeated = (json.loads((folder / "last.json").read_text()) for folder in (BEFORE / "nodes", Path("again")))
    assert repeated["sha256"] == stored["sha256"]


@pytest.mark.usefixtures("own_classes")
def test_classes_of_a_user_give_the_equations_of_before(stsbp: Callable[..., Result]) -> None:
    stored_settings = tomllib.loads((BEFORE / "own-classes/config.toml").read_text())
    options = [word for key in OWN for word in (f"--{key}", stored_settings[key])]
    shown = settings(stsbp("train", "digits", *options, "--show-config"))
    for key in (*OWN, *(f"{key}_model" for key in OWN)):
        assert shown[key] == stored_settings[key], key


@needs_nir
def test_import_reads_a_nir_file_of_before(stsbp: Callable[..., Result], unpacked: Callable[[str], Path]) -> None:
    result = stsbp("import", unpacked("stopped.nir"), "--config", BEFORE / "stopped/config.toml", "--out", "back")
    assert result.exit_code == 0, result.output
    expected = EXPECTED["stopped"]["evaluated"]
    printed = figures(stsbp("evaluate", "back", "--json"))
    rates = dict(zip(expected["rates"], printed["rates"].values(), strict=True))  # import may name layers otherwise
    assert_same_figures({**printed, "rates": rates, "step": expected["step"]}, expected)


@needs_onnx
def test_programs_that_use_an_onnx_file_can_use_one_of_today(
    stsbp: Callable[..., Result], copied: Callable[[str], Path], unpacked: Callable[[str], Path]
) -> None:
    import onnxruntime

    assert stsbp("export", copied("stopped"), "--to", "onnx", "--out", "today.onnx").exit_code == 0
    earlier, today = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (unpacked("stopped.onnx"), Path("today.onnx"))
    )
    for kind in ("get_inputs", "get_outputs"):
        ports = [[(x.name, x.type, x.shape) for x in getattr(session, kind)()] for session in (earlier, today)]
        assert ports[0] == ports[1], kind
    earlier_metadata, written = (session.get_modelmeta().custom_metadata_map for session in (earlier, today))
    assert earlier_metadata.keys() <= written.keys()
    assert earlier_metadata["checkpoint_sha256"] == written["checkpoint_sha256"]
    images = read_digits()[0][:8].reshape(8, 1, 8, 8)
    outputs = [x.run(None, {"images": images, "steps": np.array(4, np.int64)}) for x in (earlier, today)]
    assert outputs[0][0].any()
    for old, new in zip(*outputs, strict=True):
        np.testing.assert_array_equal(old, new)
