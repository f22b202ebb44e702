"""`stsbp.Run` beside the commands: the same numbers, pages and files; and arrays as data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from stsbp.datasets import load
from stsbp.datasets.arrays import given_data
from stsbp.errors import CheckpointError, ConfigError, DataError, StsbpError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 6), dtype=np.uint8)
LABELS = np.arange(40) % 3
SPIKES = (np.random.default_rng(1).random((7, 40, 5)) < 0.3).astype(np.uint8)
TARGETS = (np.random.default_rng(2).random((7, 40, 2)) < 0.2).astype(np.uint8)


CALLS: Any = package
"""The calls without their types, for wrong arguments."""


@pytest.fixture
def run(tiny_run: Path) -> package.Run:
    return package.load_run(tiny_run, backend="numpy")


def test_a_run_evaluates_as_the_command_does(run: package.Run, stsbp: Callable[..., Result]) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("test", {}),
        ("validation", {}),
        ("test", {"tolerance": 2, "tolerances": (0, 3), "cost": 2.0, "seed": 5}),
    ]
    for split, more in cases:
        words = [word for name, x in more.items() for word in (f"--{name}", ",".join(map(str, np.atleast_1d(x))))]
        expected = json.loads(stsbp("evaluate", run.folder, "--split", split, "--json", *words).stdout)
        record = run.evaluate(split=split, **more)
        assert list(record) == list(expected)
        assert {**json.loads(json.dumps(record)), "seconds": 0} == {**expected, "seconds": 0}


def test_other_samples_are_evaluated_by_name_and_as_arrays(run: package.Run) -> None:
    digits = load("digits", steps=3, holdout=30)
    numbers = np.arange(30)
    arrays = digits.test.inputs(numbers), digits.test.labels
    assert run.evaluate(arrays)["accuracy"] == run.evaluate()["accuracy"]
    with pytest.raises(ConfigError, match=r"on= always uses the test samples of arrays; leave split='train' out"):
        run.evaluate(arrays, split="train")
    with pytest.raises(ConfigError, match="data and on='digits' both say what to evaluate on"):
        run.evaluate(arrays, on="digits")
    with pytest.raises(ConfigError, match="was trained on digits; leave on= out"):
        run.evaluate("digits")
    with pytest.raises(ConfigError, match="but arrays has images of shape"):
        run.evaluate((IMAGES, LABELS))


def test_reports_and_exports_are_those_of_the_commands(
    run: package.Run, stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    page = run.report(tmp_path / "python.html")
    assert stsbp("report", run.folder).exit_code == 0
    assert page.read_bytes() == (tmp_path / "run.html").read_bytes()
    exported = run.export("c", tmp_path / "python")
    assert (exported.path, os.fspath(exported)) == (tmp_path / "python", str(tmp_path / "python"))
    printed = stsbp("export", run.folder, "--to", "c", "--out", tmp_path / "command")
    assert printed.exit_code == 0
    assert str(exported) == printed.stdout.replace(str(tmp_path / "command"), str(tmp_path / "python")).rstrip()
    names = sorted(path.name for path in (tmp_path / "command").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "python").iterdir())
    for name in names:
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    with pytest.raises(ConfigError, match=r"unknown format 'cc' .did you mean c"):
        run.export("cc", tmp_path / "x")
    with pytest.raises(ConfigError, match="dt= is an option of the format nir alone, not of c"):
        run.export("c", tmp_path / "x", dt=1.0)
    with pytest.raises(ConfigError, match=r"export has no option state= .did you mean states"):
        run.export("onnx", tmp_path / "x", state=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.evaluate(tolerances=5), r"tolerances are numbers of steps such as \(0, 1, 2\), got 5"),
        (lambda run: run.evaluate(tolerances=["a"]), "tolerance"),
        (lambda run: run.evaluate(batch_size=0), "batch_size is a number of samples, 1 or more, got 0"),
        (lambda run: run.evaluate(batch_size="5"), "batch_size is a number of samples, 1 or more, got '5'"),
        (lambda run: run.evaluate(split="tset"), "tset"),
        (lambda run: run.evaluate(cost=-1.0), "cost"),
        (lambda run: run.evaluate(seed=-1), "seed"),
        (lambda run: run.report(samples="no"), "samples is True or False, got 'no'"),
        (lambda run: run.report(3), "path is a path such as 'runs/digits', got 3"),
        (lambda run: run.export("nir", "x.nir", dt="a"), "dt= must be a number, got 'a'"),
        (lambda run: run.export("nir", "x.nir", dt=0.0), "dt= is the duration of a step in seconds"),
        (lambda run: run.export("nir", "x.nir", pool="max"), "pool= is mean or sum, got 'max'"),
        (lambda run: run.export("onnx", "x.onnx", states="a"), "states= is True or False, got 'a'"),
        (lambda run: CALLS.train("digits", overwrite="no", out=run.folder), "overwrite is True or False, got 'no'"),
        (lambda run: CALLS.train("digits", preset=5), "preset is the name of a published experiment, got 5"),
        (
            lambda run: CALLS.save_run(run.network, "x", weights=run.weights, classes=5, steps=3),
            "classes are the names of the classes, got 5",
        ),
        (
            lambda run: CALLS.save_run(run.network, "x", weights=run.weights, history=5, steps=3),
            "history is a list of records, or lists by name, got 5",
        ),
        (
            lambda run: CALLS.save_run(run.network, "x", weights=run.weights, history={"a": 5}, steps=3),
            "history: a is a list of numbers, got 5",
        ),
    ],
)
def test_wrong_arguments_are_errors_of_the_family(
    call: Callable[[package.Run], object],
    message: str,
    run: package.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StsbpError, match=message):
        call(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_metrics_are_rows_of_plain_values(run: package.Run) -> None:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in run.metrics] == [line["kind"] for line in lines]
    epoch = next(row for row in run.metrics if row["kind"] == "epoch")
    assert epoch["rates.linear1"] == next(line for line in lines if line["kind"] == "epoch")["rates"]["linear1"]
    assert not any(isinstance(value, dict) for row in run.metrics for value in row.values())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_python_callers_are_warned_as_the_commands_warn(
    run: package.Run, train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    dark: Any = (np.zeros_like(IMAGES), LABELS, IMAGES, LABELS)
    settings: dict[str, Any] = {"steps": 3, "epochs": 1, "backend": "numpy", "progress": False}
    with pytest.warns(UserWarning, match="all 40 train samples of arrays are black; check the images") as warned:
        other = package.train(dark, "12", out=tmp_path / "dark", **settings)
    # The line of this file is shown, not one within stsbp.
    assert [one.filename for one in warned if "black" in str(one.message)] == [__file__]
    with pytest.warns(UserWarning, match="all 40 test samples of arrays are black"):
        other.evaluate(dark[:2])
    with pytest.warns(UserWarning, match="all 40 train samples of arrays are black"):
        package.save_run(other.network, tmp_path / "saved", weights=other.weights, data=dark, steps=3, backend="numpy")
    silent: Any = (np.zeros_like(SPIKES), LABELS)
    with pytest.warns(UserWarning, match="train samples of arrays are without spikes"):
        package.train(silent, "12", out=tmp_path / "silent", **{**settings, "steps": 7})
    # The weights of another run, whose settings were changed after its training.
    path = run.folder / "config.toml"
    path.write_text(path.read_text().replace("tau_m = 5.0", "tau_m = 9.0"))
    with pytest.warns(UserWarning, match="is not what the checkpoint 'last' was trained with"):
        package.train(
            "digits", "12", init_from=str(run.folder), out=tmp_path / "next", limit=50, padding="valid", **settings
        )
    (other.folder / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match="lost lines") as warned:
        assert other.metrics == []
    assert [one.filename for one in warned] == [__file__]
    with pytest.warns(UserWarning, match="lost lines"):
        package.compare([other])


def test_runs_are_compared_in_rows(run: package.Run, train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "other", "--lr", 0.02, "--epochs", 1).exit_code == 0
    rows = package.compare([run, tmp_path / "other"])
    assert [row["run"] for row in rows] == [str(run.folder), str(tmp_path / "other")]
    assert [(row["lr"], row["epochs"], row["epochs_done"]) for row in rows] == [(0.01, 3, 3), (0.02, 1, 1)]
    assert "batch_size" not in rows[0]
    assert rows[0]["test.accuracy"] == run.evaluate()["accuracy"]
    for wrong in ("runs", [3], run):
        with pytest.raises(ConfigError):
            package.compare(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "coding", "steps", "test"),
    [
        ((IMAGES, LABELS), "direct", None, 8),
        ((IMAGES.reshape(40, 36), LABELS), "direct", None, 8),
        ((IMAGES, TARGETS), "direct", 7, 8),
        ((SPIKES, LABELS), "events", 7, 8),
        ((SPIKES.astype(bool), TARGETS.astype(bool), SPIKES[:, :4], TARGETS[:, :4]), "events", 7, 4),
        (((2 * SPIKES, LABELS), (SPIKES[:, :5], LABELS[:5])), "events", 7, 5),
        (
            {"inputs": SPIKES, "labels": LABELS, "lengths": 1 + np.arange(40) % 7, "classes": ["x", "y", "z"]},
            "events",
            7,
            8,
        ),
    ],
)
def test_arrays_of_every_form_are_trained_on(
    data: Any, coding: str, steps: int | None, test: int, tmp_path: Path
) -> None:
    given = given_data(data)
    assert (given.coding, given.steps) == (coding, steps)
    arguments: dict[str, Any] = {} if steps else {"steps": 4}
    run = package.train(data, "8", epochs=1, out=tmp_path / "run", backend="numpy", progress=False, **arguments)
    assert run.settings.steps == (steps or 4)
    assert run.evaluate()["samples"] == test


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data are the name of a data set such as 'digits', a Dataset, or arrays"),
        ((IMAGES / 255, LABELS), "inputs must be integers, got float64; pixels between 0 and 1 are converted"),
        (
            (IMAGES[:, 0], LABELS),
            r"\[40, 6, 6\]; if these are spikes, swap .*; if these are images \[n, H, W\], add the",
        ),
        ((IMAGES, LABELS[:-1]), r"39 samples have answers, but the inputs are \[40, 1, 6, 6\]"),
        ((SPIKES, LABELS - 1), "labels must be 0 to 4095"),
        ((SPIKES, LABELS / 1), r"labels must be the numbers of classes, integers \[n\], got float64"),
        ((SPIKES, 2 * TARGETS), "targets must be from 0 to 1, got 0 to 2"),
        ((SPIKES[:6], TARGETS), "inputs have 6 steps, but targets 7"),
        ({"inputs": SPIKES, "label": LABELS}, r"unknown array 'label' \(did you mean labels\?\)"),
        ({"inputs": SPIKES}, "give inputs and either labels or targets, got inputs"),
        ({"inputs": SPIKES, "labels": LABELS, "lengths": [8] * 40}, "lengths must be from 1 to the 7 steps"),
        ({"inputs": SPIKES, "labels": LABELS, "classes": ["a"]}, "classes must be the names of at least 3 classes"),
        ((SPIKES, LABELS, SPIKES[:, :, :4], LABELS), r"the shape of the training samples are \(5,\), but"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        given_data(data)


def test_a_data_set_as_an_object_is_that_of_its_name(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 3, "epochs": 1, "limit": 50, "batch_size": 20, "backend": "numpy", "lr": 0.01}
    digits = load("digits", steps=3, holdout=30)
    cases: list[tuple[str, Any, dict[str, Any]]] = [("object", digits, {}), ("name", "digits", {"holdout": 30})]
    runs = [
        package.train(
            data, "12", out=tmp_path / name, progress=False, padding="valid", tau_m=5.0, tau_s=3.0, **settings, **more
        )
        for name, data, more in cases
    ]
    assert runs[0].info["contents"] == runs[1].info["contents"]
    with pytest.raises(StsbpError, match="the arrays have 7 steps, not 3: leave steps out of a new run"):
        package.train((SPIKES, LABELS), steps=3, backend="numpy", progress=False, out=tmp_path / "x")


def test_an_object_of_before_the_run_was_continued_says_so(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limit": 20, "steps": 2, "backend": "numpy", "progress": False}
    run = package.train("digits", "4", epochs=1, out=tmp_path / "run", **settings)
    assert run.metrics
    package.train(out=tmp_path / "run", resume=True, epochs=2, backend="numpy", progress=False)
    for read in (lambda: run.metrics, run.report):
        with pytest.raises(CheckpointError, match="was continued or replaced after this object was loaded; load it"):
            read()
    assert package.load_run(tmp_path / "run", backend="numpy").report().is_file()
