"""Targets that are real numbers: files, arrays, training, evaluation, prediction, reports, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from stsbp.datasets.sequences import SequenceSplit
from stsbp.errors import ConfigError, DataError
from stsbp.measures import RegressionTotals, regression_errors
from stsbp.measures.regression import mean_of_targets
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.errors import ShapeError
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32, UInt8

STEPS, SAMPLES = 20, 40
TINY = ("--loss", "mse", "--net", "12", "--epochs", 2, "--batch-size", 8, "--validation", 6)


def data(samples: int = SAMPLES) -> tuple[UInt8, Float32]:
    """Spikes `[n, T, 5]`, and two filtered sums of them `[n, T, 2]`."""
    random = np.random.default_rng(3)
    inputs = (random.random((samples, STEPS, 5)) < 0.3).astype(np.uint8)
    targets = np.zeros((samples, STEPS, 2))
    for t in range(STEPS):
        before = targets[:, t - 1] if t else 0.0
        targets[:, t] = 0.8 * before + np.stack([inputs[:, t, 0], inputs[:, t, 1:3].sum(axis=1)], axis=1) * 0.3
    return inputs, targets.astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    inputs, targets = data()
    np.savez(tmp_path / "real.npz", inputs=inputs, targets=targets)
    return tmp_path / "real.npz"


def plain(outputs: AnyArray, targets: AnyArray, inside: AnyArray) -> dict[str, float]:
    """MSE, R2 and sMAPE by another way: over flat arrays of the steps that count."""
    u, y = (x.astype(np.float64)[inside] for x in (outputs, targets))
    error, size = u - y, np.abs(u) + np.abs(y)
    return {
        "mse": float((error**2).mean()),
        "r2": float(1 - (error**2).sum() / ((y - y.mean(axis=0)) ** 2).sum()),
        "smape": float(200 * np.where(size > 0, np.abs(error) / np.where(size > 0, size, 1), 0).mean()),
    }


@pytest.mark.parametrize("lengths", [None, np.array([7, 20, 1, 13])])
def test_errors_are_those_of_their_definitions(lengths: AnyArray | None) -> None:
    random = np.random.default_rng(0)
    outputs, targets = (random.normal(size=(STEPS, 4, 3)) for _ in range(2))
    targets[0, 0] = outputs[0, 0] = 0.0
    inside = np.arange(STEPS)[:, None] < (np.full(4, STEPS) if lengths is None else lengths)
    errors = regression_errors(outputs, targets, lengths)
    for name, value in plain(outputs, targets, inside).items():
        assert getattr(errors, name) == pytest.approx(value, rel=1e-12)
    for n in range(3):
        of_neuron = plain(outputs[..., n : n + 1], targets[..., n : n + 1], inside)
        assert errors.mse_by_neuron[n] == pytest.approx(of_neuron["mse"], rel=1e-12)
        assert errors.r2_by_neuron[n] == pytest.approx(of_neuron["r2"], rel=1e-12)
        assert errors.smape_by_neuron[n] == pytest.approx(of_neuron["smape"], rel=1e-12)


def test_baselines_are_predictions() -> None:
    random = np.random.default_rng(1)
    targets = random.normal(size=(STEPS, 4, 2))
    lengths = np.array([20, 3, 1, 9])
    inside = np.arange(STEPS)[:, None] < lengths
    mean = targets[inside].mean(axis=0)
    totals = RegressionTotals(mean_of_targets([(targets, lengths)]))
    totals.add(targets + 1, targets, lengths)
    record = totals.record()
    expected = plain(np.broadcast_to(mean, targets.shape), targets, inside)
    assert record["baselines"]["mean"] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert record["mse"] == pytest.approx(1, rel=1e-12)
    last = plain(targets[:-1], targets[1:], inside[1:])
    assert record["baselines"]["last_value"]["mse"] == pytest.approx(last["mse"], rel=1e-12)
    assert record["baselines"]["last_value"]["smape"] == pytest.approx(last["smape"], rel=1e-12)


def test_errors_do_not_depend_on_batches_or_order() -> None:
    random = np.random.default_rng(2)
    outputs, targets = (random.normal(size=(STEPS, 9, 2)).astype(np.float32) for _ in range(2))
    mean = mean_of_targets([(targets, None)])
    records = []
    for batches in ([range(9)], [[8, 0], [3, 1, 2], [7, 6, 5, 4]]):
        totals = RegressionTotals(mean)
        for batch in batches:
            totals.add(outputs[:, [*batch]], targets[:, [*batch]])
        records.append(totals.record())
    assert records[0] == records[1]
    # A batch in another layout of memory has the same sums.
    totals = RegressionTotals(mean)
    totals.add(np.asfortranarray(outputs), np.asfortranarray(targets))
    assert totals.record() == records[0]


def test_targets_that_do_not_vary_have_no_r2() -> None:
    constant = np.ones((STEPS, 3, 1))
    totals = RegressionTotals(mean_of_targets([(constant, None)]))
    totals.add(constant, constant)
    assert totals.record() | {"by_neuron": 0, "baselines": 0} == {
        "mse": 0,
        "r2": None,
        "smape": 0,
        "by_neuron": 0,
        "baselines": 0,
    }


def test_other_shapes_are_refused() -> None:
    x = np.zeros((STEPS, 3, 1))
    with pytest.raises(ShapeError, match=r"real numbers \[T, B, N\] of the same shape"):
        regression_errors(x, x[:, :2])
    with pytest.raises(ShapeError, match=r"one of them is \[B, T, N\]: swap its axes 0 and 1"):
        regression_errors(x, np.swapaxes(x, 0, 1))
    with pytest.raises(ShapeError, match="lengths"):
        regression_errors(x, x, np.array([1, 2]))


def test_a_run_on_a_file(
    file: Path, stsbp: Callable[..., Result], records: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = stsbp("train", f"sequences:{file}", *TINY, "--out", run)
    assert done.exit_code == 0, done.output
    assert re.search(r"test MSE \S+, R2 \S+, sMAPE \S+ %, loss \S+, 8 samples", done.stdout)
    assert "by validation loss" in done.stdout
    trained = load_trained(RunFolder(run), "last", NumpyBackend())
    assert trained.network.has_readout
    from stsbp.training.build import load_data

    test = load_data(trained.settings).test
    indices = np.arange(len(test))
    inputs, targets = test.inputs(indices), test.targets(indices)  # type: ignore[attr-defined]
    assert targets.dtype == np.float32
    potentials = trained.backend.run(trained.network, trained.weights, inputs, STEPS).layers["linear2"].potentials
    assert np.array_equal(trained.predict(inputs).spikes, potentials)
    line = records(run)[-1]
    evaluated = json.loads(stsbp("evaluate", run, "--json").stdout)
    expected = plain(potentials, targets, np.ones(targets.shape[:2], bool))
    assert line["loss"] == evaluated["loss"] == pytest.approx(expected["mse"], rel=1e-12)
    for name, value in expected.items():
        assert evaluated["regression"][name] == line["regression"][name] == pytest.approx(value, rel=1e-12)
    shown = stsbp("evaluate", run).stdout
    assert "the target of the step before" in shown
    assert f"{expected['r2']:.4f}" in shown
    compared = stsbp("compare", run, run).stdout
    assert "test sMAPE of the target of the step before" in compared
    curves = json.loads(stsbp("curves", run, "--noise", "lost=0,0.5", "--json").stdout)
    assert [row["amount"] for row in curves["noise"]["lost"]] == [0, 0.5]
    assert curves["noise"]["lost"][0]["mse"] == line["mse"]
    assert "mean squared error by lost" in stsbp("curves", run, "--noise", "lost=0,0.5").stdout
    predicted = [json.loads(text) for text in stsbp("predict", run, "--sample", 2, "--json").stdout.splitlines()]
    assert np.array_equal(np.array(predicted[0]["outputs"], np.float32), potentials[:, 2].T)
    assert np.array_equal(np.array(predicted[0]["targets"], np.float32), targets[:, 2].T)
    assert stsbp("report", run).exit_code == 0
    page = run.with_suffix(".html").read_text()
    assert "Outputs over targets, by step" in page
    assert 'stroke="var(--target)"' in page
    assert "test R2 / sMAPE" in page


def test_compare_marks_errors_on_other_samples(file: Path, stsbp: Callable[..., Result], tmp_path: Path) -> None:
    for name, words in (("a", ()), ("b", ("--split-seed", 1, "--holdout", 5)), ("c", ("--lr", 0.02))):
        done = stsbp("train", f"sequences:{file}", *TINY, *words, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    rows = ("test R2", "test sMAPE", "test sMAPE of the target of the step before")
    same, other = (stsbp("compare", "a", run).stdout.splitlines() for run in "cb")
    for row in rows:
        assert any(line.startswith(f"{row}  ") for line in same), row
        assert any(line.startswith(f"{row} *  ") for line in other), row
    assert other[-1].startswith("* not comparable: of other samples")


def test_a_run_continues_with_the_same_bits(file: Path, same_run: Callable[[Path, Path], None], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "loss": "mse",
        "epochs": 3,
        "batch_size": 8,
        "validation": 6,
        "backend": "numpy",
        "precision": "reproducible",
    }
    package.train(f"sequences:{file}", "12", out=tmp_path / "whole", **settings)

    unfinished = package.train(f"sequences:{file}", "12", out=tmp_path / "cut", stop_after=1e-9, **settings)
    assert unfinished.info["step"] == 1
    for _ in range(5):
        package.train(resume=tmp_path / "cut", backend="numpy", stop_after=1e-9)
    package.train(resume=tmp_path / "cut", backend="numpy")
    same_run(tmp_path / "cut", tmp_path / "whole")


def test_changed_targets_are_noticed(file: Path, stsbp: Callable[..., Result], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert stsbp("train", f"sequences:{file}", *TINY, "--out", run).exit_code == 0
    inputs, targets = data()
    targets[0, 0, 0] = np.nextafter(targets[0, 0, 0], np.float32(9))
    np.savez(file, inputs=inputs, targets=targets)
    refused = stsbp("evaluate", run)
    assert refused.exit_code == 1
    assert "targets of the" in refused.output


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"targets": np.full((SAMPLES, STEPS, 2), np.nan)}, "targets must be finite numbers of float32, got nan"),
        ({"targets": np.full((SAMPLES, STEPS, 2), 1e39)}, "targets must be finite numbers of float32, got 1e+39"),
        ({"targets": np.ones((SAMPLES, STEPS, 2), np.int64)}, "or real targets with targets.astype(np.float32)"),
        ({"targets": np.ones((SAMPLES, STEPS))}, "targets [n, T, N]"),
        ({"targets": np.ones((SAMPLES, STEPS + 1, 2))}, "the arrays do not agree"),
        ({"inputs": np.ones((SAMPLES, STEPS, 5))}, "inputs must be uint8"),
    ],
)
def test_other_files_are_refused(
    changed: dict[str, AnyArray], text: str, stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    inputs, targets = data()
    arrays: dict[str, Any] = {"inputs": inputs, "targets": targets, **changed}
    np.savez(tmp_path / "wrong.npz", **arrays)
    refused = stsbp("train", f"sequences:{tmp_path / 'wrong.npz'}", *TINY, "--steps", STEPS, "--out", tmp_path / "run")
    assert refused.exit_code == 1
    assert text in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("name", "loss", "text"),
    [
        ("real", "van-rossum", "give --loss 'mse'"),
        ("real", "cross-entropy", "give --loss 'mse'"),
        ("digits", "mse", "these labels are classes"),
        ("patterns", "mse", "these labels are spike trains"),
    ],
)
def test_a_loss_of_other_targets_is_refused(
    name: str, loss: str, text: str, file: Path, stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    dataset = f"sequences:{file}" if name == "real" else name
    refused = stsbp("train", dataset, "--loss", loss, "--epochs", 1, "--out", tmp_path / "run")
    assert refused.exit_code == 1
    assert text in " ".join(refused.output.split())


def test_targets_that_are_always_the_same_are_noted(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    inputs, targets = data()
    np.savez(tmp_path / "flat.npz", inputs=inputs, targets=np.full_like(targets, 2))
    done = stsbp("train", f"sequences:{tmp_path / 'flat.npz'}", *TINY, "--out", tmp_path / "run")
    assert done.exit_code == 0
    assert "are always the same numbers, so R2 says nothing" in " ".join(done.output.split())
    assert "R2 -" in done.stdout


def test_arrays_in_python(tmp_path: Path) -> None:
    inputs, targets = np.swapaxes(data()[0], 0, 1), np.swapaxes(data()[1], 0, 1)
    named = {"inputs": inputs, "targets": targets.astype(np.float64), "lengths": np.full(SAMPLES, STEPS - 3)}
    run = package.train(named, "12", loss="mse", epochs=1, backend="numpy", out=tmp_path / "run")
    record = run.evaluate()
    assert record["regression"]["baselines"]["mean"]["r2"] == pytest.approx(0, abs=1e-12)
    outputs = run.predict(inputs[:, :4], np.full(4, 5))
    assert np.shape(outputs.values) == (4, 2, 5)
    with pytest.raises(ConfigError, match="have no spikes; take values"):
        _ = outputs.sequences
    with pytest.raises(DataError, match="must be finite numbers"):
        package.train(named | {"targets": targets * np.nan}, "12", loss="mse", out=tmp_path / "other")


def test_images_with_real_targets(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    targets = np.repeat(images.mean(axis=(1, 2, 3), dtype=np.float32)[None, :, None] / 256, 6, axis=0)
    data = {"inputs": images, "targets": targets}
    run = package.train(data, "8", loss="mse", epochs=2, backend="numpy", out=tmp_path / "run")
    assert run.settings.steps == 6
    assert set(run.evaluate()["regression"]["baselines"]) == {"mean", "last_value"}


def test_a_split_with_real_targets() -> None:
    inputs, targets = data(6)
    split = SequenceSplit(inputs, targets, np.zeros(6, np.int64))
    chosen = split.targets(np.array([4, 1]))
    assert chosen.dtype == np.float32
    assert chosen.flags.c_contiguous
    assert np.array_equal(chosen, np.swapaxes(targets[[4, 1]], 0, 1))
    targets[0, 2, 1] = np.inf
    with pytest.raises(DataError, match=r"SequenceSplit, targets must be finite .* got inf at \[0, 2, 1\]"):
        SequenceSplit(inputs, targets, np.zeros(6, np.int64))


def test_a_split_of_counts() -> None:
    inputs, targets = data(6)
    split = SequenceSplit(inputs * 200, targets, np.zeros(6, np.int64), counts=True)
    assert np.array_equal(split.inputs(np.array([4, 1])), np.swapaxes(inputs[[4, 1]] * 200, 0, 1))
    with pytest.raises(DataError, match="frames must have values 0 and 1, got 0 to 200"):
        SequenceSplit(inputs * 200, targets, np.zeros(6, np.int64))


def test_a_stream_prints_all_outputs(file: Path, stsbp: Callable[..., Result], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert stsbp("train", f"sequences:{file}", *TINY, "--out", run).exit_code == 0
    inputs, _ = data()
    lines = [f"{t} {n}" for t, n in np.argwhere(inputs[3]).tolist()]
    (tmp_path / "events.txt").write_text("\n".join(lines))
    shown = stsbp("predict", run, "--stream", tmp_path / "events.txt").stdout
    potentials = load_trained(RunFolder(run), "last", NumpyBackend()).predict(inputs[3][:, None]).spikes[:, 0]
    first = " ".join(f"{value:.4g}" for value in potentials[0].tolist())
    assert re.search(rf"^ +0  {re.escape(first)}$", shown, re.MULTILINE)
