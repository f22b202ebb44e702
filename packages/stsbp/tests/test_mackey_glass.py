"""The Mackey-Glass series, its code, and networks that continue it on their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from stsbp.datasets import load
from stsbp.datasets.base import distinct_count, hold_out
from stsbp.datasets.forecast import Forecast
from stsbp.datasets.mackey_glass import (
    BETA,
    DIRECT_NET,
    FIELDS,
    GAMMA,
    HIGH,
    HISTORY,
    LOW,
    STARTS,
    SYSTEMS,
    UNITS,
    decode,
    encode,
    series,
)
from stsbp.errors import DataError
from stsbp.training.rollout import Rollout, roll_out
from stsbp_spec.registry import installed_backends
from stsbp_spec.typing import AnyArray, Float64

ALL_STARTS = (STARTS - 1) * 75 // 2 + 1501
"""Number of points that the protocol uses."""
QUICK: dict[str, Any] = {"epochs": 2, "precision": "reproducible", "threads": 1, "progress": False}
BACKENDS = [("numpy", None), ("cpu", None), ("torch", "cpu"), ("jax", "cpu")]


def everything(split: Any) -> tuple[AnyArray, AnyArray]:
    indices = np.arange(len(split))
    return split.inputs(indices), split.targets(indices)


def test_series_has_the_same_bits_everywhere() -> None:
    digest = hashlib.sha256()
    for tau in SYSTEMS:
        digest.update(series(tau, ALL_STARTS).astype("<f8").tobytes())
    assert digest.hexdigest() == "03ff33ea421d7042b32560e59561210f4db303bef4649f7f351a4e94a65eeea8"


def test_series_of_another_length_begins_with_the_same_bits() -> None:
    for count in (1, 2, 8, 100):
        assert series(17, count).tobytes() == series(17, ALL_STARTS)[:count].tobytes()


def test_series_takes_a_step_of_runge_kutta() -> None:
    """The first point of tau = 24: 97 steps, computed here in exact fractions. The past is constant until then."""
    lyapunov, before = SYSTEMS[24]
    h, beta, gamma, x = Fraction(1, 75), Fraction(BETA), Fraction(GAMMA), Fraction(before)
    production = beta * x / (1 + x**10)
    # For a constant past, a step of the method is a step of a linear equation, whose four slopes are one polynomial.
    z = -gamma * h
    growth = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    level = production / gamma
    expected = level + (x - level) * growth**lyapunov
    # Every operation of a step is off by at most 2^-53 of a value below 1. There are fewer than 30 in a step.
    assert abs(Fraction(float(series(24, 2)[1])) - expected) < 30 * lyapunov * Fraction(1, 2**53)


def test_series_converges_with_the_fourth_power_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value at time 75 with steps of 1, 1/2 and 1/4 against one with steps of 1/128: errors fall by 2^4."""
    from stsbp.datasets import mackey_glass

    def at(steps_per_unit: int) -> float:
        monkeypatch.setattr(mackey_glass, "PER_LYAPUNOV", steps_per_unit)
        monkeypatch.setitem(mackey_glass.SYSTEMS, 20, mackey_glass.System(75 * steps_per_unit, 0.9))
        mackey_glass._points.cache_clear()
        return float(series(20, 2)[1])

    exact = at(128)
    errors = [abs(at(steps) - exact) for steps in (1, 2, 4)]
    mackey_glass._points.cache_clear()
    assert 15 < errors[0] / errors[1] < 17
    assert 15 < errors[1] / errors[2] < 17


def test_values_are_within_the_receptive_fields() -> None:
    for tau in SYSTEMS:
        values = series(tau, ALL_STARTS)
        assert LOW < values.min() < values.max() < HIGH


def test_decode_gives_the_value_back() -> None:
    spacing = (HIGH - LOW) / (FIELDS - 1)
    values = np.linspace(LOW + 2 * spacing, HIGH - 2 * spacing, 1001)
    counts = encode(values)
    assert counts.shape == (1001, FIELDS)
    assert counts.dtype == np.uint8
    # Four fields are active, whose centres are 4 spacings away in all, and each is off by at most half a spike. They
    # have 510 spikes together, less 2 by rounding.
    assert np.abs(decode(counts) - values).max() <= 0.5 * 4 * spacing / 508
    # At the lowest centre, the next field is half active: 127.5 spikes, less what the division rounds.
    assert encode(np.array([LOW]))[0, :4].tolist() == [255, 127, 0, 0]


def test_samples_are_windows_of_the_series() -> None:
    data = load("mackey-glass:tau=30:start=3", steps=5)
    points = series(30, ALL_STARTS)[112:]  # three starts of 37.5 points, rounded down
    train, test = data.train, data.test
    assert (data.input_max, data.real_targets, data.input_shape) == (255, True, (HISTORY * FIELDS,))
    for split, end, count in ((train, 750, 146), (test, 1500, 150)):
        inputs, targets = everything(split)
        changes = np.diff(points)[end - 5 * count : end].reshape(count, 5)
        assert np.array_equal(targets[:, :count, 0].T, (changes * UNITS).astype(np.float32))
        codes = inputs[:, :count].reshape(5, count, HISTORY, FIELDS)
        for lag in range(HISTORY):
            values = points[end - 5 * count - lag : end - lag].reshape(count, 5)
            assert np.array_equal(codes[:, :, lag], encode(values).swapaxes(0, 1))
    # Every sample is shown eight times.
    assert len(train) == 8 * 146


def test_forecast_begins_where_the_training_ends() -> None:
    data = load("mackey-glass:tau=19:start=29", steps=5)
    points = series(19, ALL_STARTS)[1087:]
    assert data.forecast is not None
    assert np.array_equal(data.forecast.known, points[:751])
    assert np.array_equal(data.forecast.truth, points[751:1501])
    # The inputs of the forecast are those of the samples.
    inputs, _ = everything(data.test)
    assert np.array_equal([*data.forecast.known_inputs()][-1], inputs[0, 0])
    assert load("mackey-glass", steps=5, train_only=True).forecast is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mackey-glass:tau=16", {}, "tau must be a number from 17 to 30, got '16'"),
        ("mackey-glass:start=30", {}, "start must be a number from 0 to 29, got '30'"),
        ("mackey-glass:tau=x", {}, "tau must be a number from 17 to 30, got 'x'"),
        ("mackey-glass", {"steps": 400}, "a sample has 1 to 365 steps, got 400"),
        ("mackey-glass", {"holdout": 5}, "leave holdout out"),
    ],
)
def test_load_refuses(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name, **{"steps": 5, **options})
    with pytest.raises(DataError, match="expected tau from 17 to 30"):
        series(16, 10)


def test_forecast_refuses_what_cannot_be_continued() -> None:
    forecast = load("mackey-glass", steps=5).forecast
    assert forecast is not None
    with pytest.raises(DataError, match="known \\[K\\] must have at least 20 values"):
        replace(forecast, known=forecast.known[:19])
    with pytest.raises(DataError, match="truth \\[M\\] at least one"):
        replace(forecast, truth=forecast.truth[:0])


class Constant:
    """Stands for a trained network whose output is always the same. It keeps the inputs that it received."""

    def __init__(self, output: float) -> None:
        self.output, self.inputs = output, list[AnyArray]()

    def stream(self) -> Constant:
        return self

    def step(self, inputs: AnyArray) -> AnyArray:
        self.inputs.append(inputs[0])
        return np.array([[self.output]], np.float32)


def test_rollout_feeds_predictions_back() -> None:
    """By hand: two known values, and an output that adds 1/2 at each step, up to the limit."""
    network: Any = Constant(0.5)
    forecast = Forecast(
        known=np.array([1.0, 2.0]),
        truth=np.array([2.5, 3.0, 9.0]),
        history=2,
        encode=lambda history: history.astype(np.uint8),
        next_value=lambda last, output: min(last + output, 3.25),
        unit=1,
        unit_name="day",
    )
    rollout = roll_out(network, forecast)
    assert rollout.values.tolist() == [2.5, 3.0, 3.25]
    assert [x.tolist() for x in network.inputs] == [[1, 2], [2, 2], [2, 3]]
    # 200 |3.25 - 9| / 12.25 for the last of three values, 0 for the others.
    assert rollout.smape(rollout.values) == pytest.approx({"1": 0, "2": 0, "all": 200 * 5.75 / 12.25 / 3})
    record = rollout.record()
    assert record["baselines"]["mean"]["1"] == pytest.approx(200 * 1 / 4)
    assert record["baselines"]["last_value"]["1"] == pytest.approx(200 * 0.5 / 4.5)
    assert rollout.text()[1].split() == ["sMAPE", "1", "day", "2", "days", "3", "values"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "numpy"
    package.train("mackey-glass:tau=18:start=1", "16", out=folder, backend="numpy", **QUICK)
    return folder


def shortened(forecast: Forecast | None) -> Forecast:
    assert forecast is not None
    return replace(forecast, known=forecast.known[-60:], truth=forecast.truth[:40])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_rollouts_are_equal_on_all_backends(run_folder: Path, backend: str, device: str | None) -> None:
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    forecast = shortened(load("mackey-glass:tau=18:start=1", steps=5).forecast)
    values = roll_out(package.load_run(run_folder, backend=backend, device=device), forecast).values
    expected = roll_out(package.load_run(run_folder, backend="numpy"), forecast).values
    assert values.tobytes() == expected.tobytes()
    assert np.ptp(values) > 0.01


@pytest.mark.parametrize(("backend", "device"), BACKENDS[1:])
def test_trainings_are_equal_on_all_backends(
    run_folder: Path, backend: str, device: str | None, tmp_path: Path, tensors: Callable[..., bytes]
) -> None:
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    package.train("mackey-glass:tau=18:start=1", "16", out=tmp_path / "run", backend=backend, device=device, **QUICK)
    digests = [hashlib.sha256(tensors(run)).hexdigest() for run in (run_folder, tmp_path / "run")]
    assert digests[0] == digests[1]


def test_the_command_line_trains_and_continues_the_series(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    # Without hidden neurons, one epoch takes a moment.
    (tmp_path / "direct.toml").write_text(DIRECT_NET)
    done = stsbp("train", "mackey-glass", "--net", tmp_path / "direct.toml", "--epochs", 8, "--out", run)
    assert done.exit_code == 0, done.output
    assert "751 points to train on, 750 more to continue with" in done.output
    record = json.loads(stsbp("evaluate", run, "--json").stdout)
    rollout = record["rollout"]
    values: Float64 = np.array(rollout["values"])
    truth: Float64 = np.array(rollout["truth"])
    assert np.array_equal(truth, series(17, ALL_STARTS)[751:1501])
    for name, end in {"1": 75, "2": 150, "3": 225, "all": 750}.items():
        error = np.abs(values - truth)[:end] / (values + truth)[:end]
        assert rollout["smape"][name] == pytest.approx(200 * error.mean(), rel=1e-12)
    # The network knows the series for a while.
    assert rollout["smape"]["1"] < rollout["baselines"]["mean"]["1"] / 2
    shown = stsbp("evaluate", run).stdout
    assert f"{rollout['smape']['all']:.2f} %" in shown
    assert "the series continued by the network on its own" in shown
    other = json.loads(stsbp("evaluate", run, "--on", "mackey-glass:tau=17:start=2", "--json").stdout)
    assert other["rollout"]["truth"] != rollout["truth"]
    assert "rollout" not in json.loads(stsbp("evaluate", run, "--split", "train", "--json").stdout)
    assert "750 points after those of the training" in stsbp("datasets", "mackey-glass").stdout


def test_rollout_refuses_outputs_that_are_not_finite() -> None:
    forecast = shortened(load("mackey-glass", steps=5).forecast)
    network: Any = Constant(np.inf)
    from stsbp_spec.errors import NumericError

    with pytest.raises(NumericError, match="not finite"):
        roll_out(network, forecast)
    assert isinstance(roll_out(Constant(0.0), forecast), Rollout)  # type: ignore[arg-type]


def test_no_repetition_of_a_validation_sample_is_trained_on() -> None:
    train = load("mackey-glass", steps=5).train
    assert (len(train), distinct_count(train)) == (146 * 8, 146)
    kept, held_out = hold_out(train, 14, seed=3)
    assert (len(kept), len(held_out)) == (132 * 8, 14)
    trained, tested = (
        {frames.tobytes() for frames in split.inputs(np.arange(len(split))).swapaxes(0, 1)}
        for split in (kept, held_out)
    )
    assert (len(trained), len(tested)) == (132, 14)
    assert not trained & tested
    with pytest.raises(DataError, match="cannot hold out 146 of 146 samples: expected 1 to 145"):
        hold_out(train, 146)


def test_experiment_of_real_targets(stsbp: Callable[..., Result]) -> None:
    done = stsbp("experiment", "mackey-glass", "--seeds", 2, "--epochs", 1, "--net", "8", "--out", "experiment")
    assert done.exit_code == 0, done.output
    table = Path("experiment/experiment.md").read_text()
    assert "| seed | epoch | validation | test mse | mse, last |" in table
    record = json.loads(Path("experiment/experiment.json").read_text())
    assert record["samples"]["validation"] == 14
    assert f"| 0 | 1 | {record['seeds'][0]['validation']['mse']:.4f} |" in table
