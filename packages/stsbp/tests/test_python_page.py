"""docs/python.md as a reader would follow it, and what `stsbp.load_run` gives besides."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from stsbp.datasets import load
from stsbp.errors import CheckpointError, ConfigError, DataError
from stsbp.training.build import build_task, load_data
from stsbp_spec.errors import BackendError, ShapeError, SpecError
from stsbp_spec.registry import installed_backends

PAGE = Path(__file__).parents[3] / "docs" / "python.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages")
def test_the_pages_blocks_run_one_after_the_other(
    stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (command,), blocks = (
        re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for kind in ("sh", "python")
    )
    assert len(blocks) == 6
    assert stsbp(*shlex.split(command)[1:]).exit_code == 0
    # The page takes the default; here the numpy backend alone need be there.
    monkeypatch.setattr("stsbp_spec.registry.default_backend", lambda: "numpy")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    run, losses = names["run"], names["losses"]
    assert len(names["images"]) == 3
    assert run.settings.net == "8C3-P2"
    assert losses[-1] < 0.7 * losses[0]
    assert set(names["saved"]) >= {"step", "weight/conv1", "adamw.v/linear2"}


def test_a_run_predicts_what_the_command_line_prints(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    assert train_tiny(tmp_path / "run").exit_code == 0
    images = load("digits", steps=3).test.inputs(np.arange(45))
    np.save(tmp_path / "one.npy", images[7])
    printed = stsbp("predict", tmp_path / "run", tmp_path / "one.npy").stdout
    for backend in {"numpy", *installed_backends()} & {"numpy", "torch"}:
        run = package.load_run(tmp_path / "run", "last", backend=backend)
        assert run.backend.name == backend
        prediction = run.predict(images)
        # 45 samples are three batches of the run.
        assert prediction.spikes.shape == (3, 45, 10)
        layers = run.backend.run(run.network, run.weights, images, 3).layers
        assert np.array_equal(prediction.spikes, layers["linear2"].spikes)
        assert f"one.npy: {prediction.classes[7]} (by spike count {run.names[prediction.counted[7]]})" in printed
        assert [len(times) for times in prediction.sequences[7]] == prediction.spikes[:, 7].sum(0).tolist()
        assert prediction.distances is not None
        assert prediction.distances.shape == (45, 10)
    with pytest.raises(ShapeError, match=r"inputs with direct coding must be \[B, ...\], ... = \(1, 8, 8\)"):
        run.predict(images[:, 0])


@pytest.mark.parametrize("stored", [True, False])
def test_a_loaded_run_trains_further_as_the_command_does(
    train_tiny: Callable[..., Result], forge: Callable[..., None], tmp_path: Path, stored: bool
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--warmup", "0.5").exit_code == 0
    if not stored:
        # Checkpoints of older versions do not have it.
        forge(run, lambda description: description.pop("samples"), "best")
    loaded = package.load_run(run, "best", backend="numpy")
    data = load_data(loaded.settings)
    assert (
        loaded.task.trainer.optimizer
        == build_task(loaded.settings, data.inputs, loaded.backend, len(data.train)).trainer.optimizer
    )


def test_a_split_that_no_run_has_is_named(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "run", "--validation", 0).exit_code == 0
    run = package.load_run(tmp_path / "run", backend="numpy")
    data = load_data(run.settings)
    with pytest.raises(ConfigError, match="there is no split 'valid'; name train, validation or test"):
        run.samples(data, "valid")
    with pytest.raises(ConfigError, match="no validation split, because it was trained without --validation"):
        run.samples(data, "validation")


def test_a_run_of_spike_trains_has_no_classes(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    tiny = ("--net", "6", "--epochs", "1", "--batch-size", "4", "--limit", "8", "--steps", "25")
    assert stsbp("train", "motor", *tiny, "--out", tmp_path / "run").exit_code == 0
    run = package.load_run(tmp_path / "run", backend="numpy")
    frames = load("motor", steps=25).test.inputs(np.arange(6))
    prediction = run.predict(frames)
    assert prediction.spikes.shape == (25, 6, 16)
    assert (len(prediction.sequences), len(prediction.sequences[0]), run.names) == (6, 16, ())
    for attribute in ("nearest", "counted", "classes"):
        with pytest.raises(ConfigError, match="the labels of this run are sequences, not classes"):
            getattr(prediction, attribute)
    with pytest.raises(ShapeError, match="inputs have 11 steps, expected 25"):
        run.predict(frames[:11])


def test_paths_without_a_run_are_refused(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run folder"):
        package.load_run(tmp_path / "nothing")
    assert train_tiny(tmp_path / "run").exit_code == 0
    with pytest.raises(BackendError, match="no backend 'nunpy' is installed"):
        package.load_run(tmp_path / "run", backend="nunpy")


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, stsbp; stsbp.train, stsbp.load_run, stsbp.save_run, stsbp.compare; "
        "print([m for m in ('numpy', 'pydantic', 'stsbp_spec') if m in sys.modules])"
    )
    path = f"import sys; sys.path[:] = {sys.path!r}; "
    run = subprocess.run([sys.executable, "-S", "-c", path + code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


_NO_TEXT = (3, b"x", ["x"])


@pytest.mark.parametrize("wrong", [None, *_NO_TEXT], ids=str)
def test_load_run_refuses_invalid_paths(wrong: Any) -> None:
    with pytest.raises(CheckpointError, match="a run is the path of its folder"):
        package.load_run(wrong)


@pytest.mark.parametrize("wrong", [*_NO_TEXT, ""], ids=str)
def test_load_run_refuses_invalid_backends_and_devices(
    wrong: Any, train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    assert train_tiny(tmp_path / "run").exit_code == 0
    with pytest.raises(BackendError):
        package.load_run(tmp_path / "run", backend=wrong)
    with pytest.raises(BackendError):
        package.load_run(tmp_path / "run", backend="numpy", device=wrong)


@pytest.mark.parametrize("name", [None, *_NO_TEXT], ids=str)
def test_load_refuses_invalid_names(name: Any) -> None:
    with pytest.raises(DataError, match="a data set has a name such as 'digits', got"):
        load(name)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("steps", value) for value in (1.5, True, "a", None)),
        *((name, value) for name in ("limit", "holdout", "image_size") for value in (1.5, "a", True)),
        *(("seed", value) for value in (1.5, "a", None)),
        *((name, 3) for name in ("data_dir", "cache_dir", "binning")),
        *(("image_size", value) for value in (8, 2**70)),
        *(
            (name, value)
            for name in ("download", "skip_malformed", "own_lengths", "only_test", "train_only")
            for value in ("no", float("nan"), 1, [3], None)
        ),
    ],
)
def test_load_refuses_an_option_of_another_type(option: str, value: Any) -> None:
    with pytest.raises((DataError, SpecError), match=option):
        load("digits", **{option: value})


def test_decode_refuses_invalid_spike_trains(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "run").exit_code == 0
    run = package.load_run(tmp_path / "run", backend="numpy")
    prediction = run.predict(load("digits", steps=3).test.inputs(np.arange(4)))
    assert prediction.distances is not None
    for spikes in (prediction.spikes.tolist(), prediction.spikes.astype(bool), prediction.spikes.astype(np.float32)):
        decoded = run.decode(spikes)
        assert decoded.spikes.dtype == np.uint8
        assert np.array_equal(decoded.distances, prediction.distances)  # type: ignore[arg-type]
    for wrong in (
        None,
        "a",
        3,
        prediction.spikes * np.nan,
        prediction.spikes + 7,
        prediction.spikes.view([("spike", np.uint8)]),
    ):
        with pytest.raises(ShapeError):
            run.decode(wrong)
    for first in ("1", 1.5, -1, True, None):
        with pytest.raises(ShapeError, match="first is the number of a step, 0 or more, got"):
            run.decode(prediction.spikes, first=first)  # type: ignore[arg-type]


def test_a_trainer_refuses_invalid_states(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "run").exit_code == 0
    trainer = package.load_run(tmp_path / "run", backend="numpy").task.trainer
    wrong: Any = {}
    for call in (trainer.predictor, trainer.export_state, lambda state: trainer.step(state, wrong)):
        with pytest.raises(SpecError, match="a state is a TrainState"):
            call(wrong)
