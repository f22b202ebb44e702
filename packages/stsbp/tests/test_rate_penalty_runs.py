"""Runs with a rate penalty: the setting, the files of the run, several processes, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp
from click.testing import Result
from stsbp.api.state import settings_of_trainer
from stsbp.config import RunConfig, SettingsSource, read_toml, resolve
from stsbp.errors import ConfigError
from stsbp.rate_penalty import canonical, describe_penalties, penalties_of, text_of
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import Readout
from stsbp_spec.models.optim import AdamW
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.layers import SpikingLayer
from stsbp_spec.networks.ops import Linear
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend

Call = Callable[..., Result]
SameRun = Callable[[Path, Path], None]
Records = Callable[[Path], list[dict[str, Any]]]

_NETWORK = NetworkSpec.parse("4C3-P2-5C3-12", input_shape=(1, 8, 8), outputs=10)
_READOUT = NetworkSpec.parse("12", input_shape=(9,), outputs=4, output_neuron=Readout(5))
_OUTPUT_ONLY = NetworkSpec((9,), (SpikingLayer(Linear(4)),))
_OPTIONS = ("--net", "12-8", "--rate-penalty", "0.05:20", "--rate-penalty", "linear2=0.1:3")
_EXACT = ("--precision", "reproducible")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="processes are connected by PyTorch")


def _config(**settings: Any) -> RunConfig:
    return resolve([SettingsSource("command line", {"dataset": "digits", **settings})])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("0.05:2", {"conv1": (0.05, 2), "conv2": (0.05, 2), "linear3": (0.05, 2)}),
        ("conv1=0:1e-3", {"conv1": (0, 1e-3)}),
        ("linear4=0.2:1", {"linear4": (0.2, 1)}),
        ("conv*=0.1:1", {"conv1": (0.1, 1), "conv2": (0.1, 1)}),
        ("*=0.1:1,conv?=0:0", {"linear3": (0.1, 1), "linear4": (0.1, 1)}),
        ("conv1=0.3:4,0.05:2", {"conv1": (0.05, 2), "conv2": (0.05, 2), "linear3": (0.05, 2)}),
        ("0.05:2,conv1=0.3:4", {"conv1": (0.3, 4), "conv2": (0.05, 2), "linear3": (0.05, 2)}),
    ],
)
def test_the_last_part_that_fits_a_layer_counts(text: str, expected: dict[str, tuple[float, float]]) -> None:
    assert penalties_of(_NETWORK, text) == {layer: RatePenalty(*numbers) for layer, numbers in expected.items()}


def test_the_setting_has_one_form() -> None:
    assert _config(rate_penalty=" .05:2 , conv1 = 1e-1:3").rate_penalty == "0.05:2.0,conv1=0.1:3.0"
    assert _config(rate_penalty=" ").rate_penalty == ""
    penalties = (("conv1", RatePenalty(0.1, 1 / 3)), ("linear3", RatePenalty(0.0, 1e-9)))
    assert penalties_of(_NETWORK, canonical(text_of(penalties))) == dict(penalties)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.05", r"rate.penalty 0.05: input should be TARGET:WEIGHT or LAYER=TARGET:WEIGHT, for example 0.05:1 or"),
        ("a:b", "should be TARGET:WEIGHT or LAYER=TARGET:WEIGHT.*got 'a:b'"),
        ("0.05:1,", "should be TARGET:WEIGHT"),
        ("=0.05:1", "should be TARGET:WEIGHT"),
        ("0.05:1:2", "should be TARGET:WEIGHT"),
        ("nan:1", "should be TARGET:WEIGHT"),
        ("1:1", "target in spikes per step, from 0 to less than 1, got '1:1'"),
        ("-0.1:1", "target in spikes per step"),
        ("0.1:-1", r"weight of 0, or from 2\^-100 to 2\^100, got '0.1:-1'"),
        ("0.1:1e31", "weight of 0, or from"),
    ],
)
def test_wrong_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(rate_penalty=text)


@pytest.mark.parametrize(
    ("network", "text", "message"),
    [
        (
            _NETWORK,
            "convv1=0.1:1",
            "--rate-penalty 'convv1': the network has no such layer .did you mean conv1..; layers",
        ),
        (_NETWORK, "pool*=0.1:1", r"no such layer; layers that spike are conv1, conv2, linear3, linear4"),
        (_READOUT, "linear2=0.1:1", "--rate-penalty linear2=...: linear2 is a readout, which does not spike"),
        (_READOUT, "linear?2=0.1:1", "no such layer"),
        (
            _OUTPUT_ONLY,
            "0.1:1",
            "the network has no hidden layer; to penalise the output layer, give its name: .*linear1=",
        ),
    ],
)
def test_layers_without_rates_are_refused(network: NetworkSpec, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        penalties_of(network, text)


def test_a_readout_is_not_a_hidden_layer() -> None:
    for text in ("0.1:1", "*=0.1:1"):
        assert penalties_of(_READOUT, text) == {"linear1": RatePenalty(0.1, 1)}


def test_a_line_says_which_layers_are_penalised() -> None:
    assert describe_penalties({}.items()) == ""
    assert describe_penalties(penalties_of(_NETWORK, "conv1=0.05:2,linear3=0:0.5").items()) == (
        "rate penalty: conv1 above 0.05 (weight 2), linear3 above 0 (weight 0.5)"
    )


def test_a_run_is_resumed_to_the_bit_and_reports_its_penalties(
    train_tiny: Call, stsbp: Call, tmp_path: Path, same_run: SameRun, refused: Callable[..., None]
) -> None:
    done = train_tiny(tmp_path / "whole", *_OPTIONS, *_EXACT)
    assert done.exit_code == 0, done.output
    assert "rate penalty: linear1 above 0.05 (weight 20), linear2 above 0.1 (weight 3)" in done.stderr
    assert re.search(r"epoch 3/3  loss \d+\.\d{4}  rate penalty \d+\.\d{4}  accuracy train", done.stderr)
    run = tmp_path / "run"
    assert train_tiny(run, *_OPTIONS, *_EXACT, "--stop-after", 1e-6).exit_code == 75
    refused(
        stsbp("train", "--resume", run, "--rate-penalty", "0.2:1"),
        'rate_penalty: "0.05:20.0,linear2=0.1:3.0" in the run, "0.2:1',
    )
    same = ("--rate-penalty", "0.05:20", "--rate-penalty", "linear2=0.1:3")
    assert stsbp("train", "--resume", run, *same).exit_code == 0
    same_run(run, tmp_path / "whole")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert ("rate_penalty" in line) == (line["kind"] != "evaluation"), line["kind"]
        for layer, penalty in line.get("rate_penalty", {}).items():
            assert layer in ("linear1", "linear2")
            assert penalty >= 0
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    assert list(last["rate_penalty"]) == ["linear1", "linear2"]
    assert last["rate_penalty"]["linear1"] > 0
    assert stsbp("report", run, "--out", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "rate penalty: linear1 above 0.05 (weight 20)" in page
    assert "Rate penalty of each layer, in training. The loss does not contain it" in page
    assert read_toml(run / "config.toml").values["rate_penalty"] == "0.05:20.0,linear2=0.1:3.0"


def test_a_penalty_lowers_the_rates_and_is_not_in_the_loss(train_tiny: Call, tmp_path: Path, records: Records) -> None:
    options = ("--net", "12", "--epochs", "6", "--lr", "0.02")
    assert train_tiny(tmp_path / "plain", *options).exit_code == 0
    assert train_tiny(tmp_path / "fewer", *options, "--rate-penalty", "0:100").exit_code == 0
    plain, fewer = (
        [line for line in records(tmp_path / name) if line["kind"] == "epoch"] for name in ("plain", "fewer")
    )
    assert fewer[-1]["rates"]["linear1"] < 0.5 * plain[-1]["rates"]["linear1"]
    assert "rate_penalty" not in plain[0]
    assert fewer[0]["rate_penalty"]["linear1"] > fewer[-1]["rate_penalty"]["linear1"] > 0
    assert fewer[0]["loss"] < 3 * plain[0]["loss"]


def test_unknown_layers_leave_no_run(train_tiny: Call, tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(train_tiny(tmp_path / "none", "--rate-penalty", "linear9=0.1:1"), "--rate-penalty 'linear9'", "linear1")
    assert not (tmp_path / "none").exists()


@pytest.mark.long  # beside the run of test_optimizer_runs.py, which has learned delays and rate penalties
@needs_torch
def test_three_processes_write_the_run_of_one(
    train_tiny: Call, tiny: tuple[str, ...], tmp_path: Path, same_run: SameRun
) -> None:
    more = (*_OPTIONS, *_EXACT, "--dropout", "0.1")
    assert train_tiny(tmp_path / "alone", *more).exit_code == 0
    command = [sys.executable, "-m", "stsbp", "--backend", "numpy", "train", "digits", *tiny, *more]
    command += ["--out", str(tmp_path / "run"), "--processes", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    same_run(tmp_path / "run", tmp_path / "alone")


def test_train_in_python(tiny: tuple[str, ...], tmp_path: Path) -> None:
    run = stsbp.train(
        "digits", net="12", epochs=1, limit=40, holdout=20, rate_penalty=["0.05:20", "linear2=0.1:3"],
        out=tmp_path / "run", backend="numpy",
    )  # fmt: skip
    assert run.settings.rate_penalty == "0.05:20.0,linear2=0.1:3.0"


def test_a_trainer_is_saved_with_its_penalties(tmp_path: Path) -> None:
    spec = NetworkSpec.parse("6", input_shape=(9,), outputs=3)
    trainer = NumpyBackend().trainer(
        spec, VanRossum(), AdamW(), precision="reproducible", rate_penalty={"linear1": RatePenalty(0.05, 7.0)}
    )
    rng = np.random.default_rng(1)
    inputs, targets = ((rng.random((5, 2, n)) < 0.4).astype(np.uint8) for n in (9, 3))
    batch = Batch(inputs, targets)
    state, result = trainer.step(trainer.init(initial_weights(spec, 0)), batch)
    assert result.penalties.keys() == {"linear1"}
    assert settings_of_trainer(trainer)["rate_penalty"] == "linear1=0.05:7.0"
    assert state.step == 1
