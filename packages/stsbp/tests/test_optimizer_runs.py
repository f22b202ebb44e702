"""Runs with another optimiser, with frozen parameters, and runs that end early: their settings, files and bits."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import Result
from stsbp.config import RunConfig, SettingsSource, resolve
from stsbp.errors import ConfigError
from stsbp.training import loop
from stsbp.training.optimizer import build_optimizer, describe_frozen, frozen_parameters
from stsbp_spec import LIF, NetworkSpec
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.optim import SGD, Adam, AdamW

Call = Callable[..., Result]
SameRun = Callable[[Path, Path], None]
Tensors = Callable[..., bytes]
Records = Callable[[Path], list[dict[str, Any]]]

SGD_RUN = ("--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.8", "--weight-decay", "0.01", "--clip-norm", "1")
ADAM_RUN = ("--optimizer", "adam", "--weight-decay", "0.01", "--clip-norm", "1")
_PREFIXES = {SGD_RUN: {"sgd.momentum"}, ADAM_RUN: {"adam.m", "adam.v"}}
_EXACT = ("--precision", "reproducible")
_both = pytest.mark.parametrize("options", [SGD_RUN, ADAM_RUN], ids=["sgd", "adam"])
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="processes are connected by PyTorch")


def _config(**settings: Any) -> RunConfig:
    return resolve([SettingsSource("command line", {"dataset": "digits", "epochs": 4, "lr": 0.5, **settings})])


def test_the_optimiser_has_the_settings_of_the_run() -> None:
    schedule: dict[str, Any] = {"lr": 0.5, "total_steps": 12, "warmup_steps": 3, "weight_decay": 0.25, "clip_norm": 2.0}
    settings: dict[str, Any] = {"warmup": 1.0, "weight_decay": 0.25, "clip_norm": 2.0, "schedule": "cosine"}
    assert build_optimizer(_config(**settings), 3) == AdamW(**schedule)
    assert build_optimizer(_config(optimizer="adam", **settings), 3) == Adam(**schedule)
    assert build_optimizer(_config(optimizer="sgd", momentum=0.75, **settings), 3) == SGD(momentum=0.75, **schedule)
    constant = build_optimizer(_config(schedule="constant", clip_norm=0.0), 3)
    assert (constant.total_steps, constant.clip_norm) == (None, None)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer sdg: input should be 'adamw', 'adam' or 'sgd'.*did you mean sgd"):
        _config(optimizer="sdg")
    with pytest.raises(ConfigError, match=r"unknown setting 'optimiser'.*did you mean optimizer"):
        _config(optimiser="sgd")


@_both
def test_a_run_is_resumed_to_the_bit_and_has_the_moments_of_its_optimiser(
    train_tiny: Call, stsbp: Call, tmp_path: Path, same_run: SameRun, tensors: Tensors, options: tuple[str, ...]
) -> None:
    assert train_tiny(tmp_path / "whole", *options).exit_code == 0
    run = tmp_path / "run"
    assert train_tiny(run, *options, "--stop-after", 1e-6).exit_code == 75
    for _ in range(20):
        if (done := stsbp("train", "--resume", run, "--stop-after", 1e-6)).exit_code == 0:
            break
        assert done.exit_code == 75
    same_run(run, tmp_path / "whole")
    saved = safetensors.numpy.load(tensors(run))
    assert {name.partition("/")[0] for name in saved} == {"step", "weight", *_PREFIXES[options]}
    assert all(x.any() for name, x in saved.items())
    assert stsbp("evaluate", run).exit_code == 0


def test_a_run_keeps_its_optimiser(
    train_tiny: Call, stsbp: Call, tmp_path: Path, refused: Callable[..., None], tensors: Tensors
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, *SGD_RUN).exit_code == 0
    refused(stsbp("train", "--resume", run, "--optimizer", "adam"), 'optimizer: "sgd" in the run, "adam" asked')
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('optimizer = "sgd"', 'optimizer = "adam"'))
    refused(stsbp("train", "--resume", run), "is not what the checkpoint 'last' was trained with")
    (run / "config.toml").write_text(text)
    # The weights alone may go on with another one.
    new = tmp_path / "new"
    assert train_tiny(new, *ADAM_RUN, "--init-from", run, "--lr", "1e-30").exit_code == 0
    weights = [
        {name: x for name, x in safetensors.numpy.load(tensors(path)).items() if name.startswith("weight/")}
        for path in (run, new)
    ]
    for name, x in weights[0].items():
        assert np.array_equal(weights[1][name], x), name


def test_a_typed_momentum_needs_sgd(train_tiny: Call, tmp_path: Path, refused: Callable[..., None]) -> None:
    run = tmp_path / "run"
    refused(train_tiny(run, "--momentum", "0.9"), "--momentum is that of --optimizer sgd, but the optimiser is adamw")
    refused(train_tiny(run, "--optimizer", "sgd", "--weight-decay", "1e40"), "SGD: weight_decay is outside its domain")
    assert not run.exists()


# Frozen parameters.
_NOTATION = NetworkSpec.parse("4C3p1bn-P2-9R{reset=subtract}-8b", input_shape=(2, 6, 6), outputs=4, neuron=PLIF(5, 3))
_NODES = NetworkSpec.parse(
    "\n".join(
        f'[[node]]\nname = "{name}"\n{what}\nfrom = "{source}"'
        for name, what, source in (
            ("first", 'weights = "3C3p1b"', "input"),
            ("cells", 'neurons = "neuron=plif"', "first"),
            ("second", 'weights = "3C3p1"', "cells"),
            ("more", 'neurons = ""', "second"),
            ("again", 'weights = "3C3p1"\nweights_of = "second"', "more"),
            ("rest", 'neurons = ""', "again"),
            ("flat", 'layer = "F"', "rest"),
            ("out", 'weights = "3"', "flat"),
            ("end", 'neurons = ""', "out"),
        )
    ),
    input_shape=(3, 4, 4),
    neuron=LIF(5, 3),
)


@pytest.mark.parametrize(
    ("network", "names", "expected"),
    [
        (_NOTATION, "", set()),
        (_NOTATION, "conv1", {"conv1", "conv1.scale", "conv1.shift", "conv1.decay"}),
        (_NOTATION, "linear2", {"linear2", "linear2.recurrent", "linear2.decay"}),
        (_NOTATION, "linear2.recurrent", {"linear2.recurrent"}),
        (_NOTATION, "linear3.bias,linear2.decay", {"linear3.bias", "linear2.decay"}),
        (_NOTATION, "*.decay", {"conv1.decay", "linear2.decay", "linear3.decay", "linear4.decay"}),
        (_NOTATION, "linear?.bias", {"linear3.bias"}),
        (_NODES, "first", {"first", "first.bias", "first.decay"}),
        (_NODES, "cells", {"first.bias", "first.decay"}),
        (_NODES, "second", {"second"}),
        (_NODES, "again", {"second"}),
        (_NODES, "out,second", {"out", "second"}),
    ],
)
def test_names_of_layers_nodes_and_parameters_can_be_frozen(
    network: NetworkSpec, names: str, expected: set[str]
) -> None:
    assert frozen_parameters(network, names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "linaer2",
            "--freeze 'linaer2': the network has no such layer or parameter .did you mean linear2.*conv1.scale",
        ),
        ("conv1,conv", "--freeze 'conv': the network has no such layer or parameter"),
        ("rest*", r"--freeze 'rest\*': the network has no such layer or parameter"),
        ("*", r"--freeze '\*' freezes all parameters, so nothing is left to train"),
    ],
)
def test_names_that_fit_nothing_are_refused(names: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        frozen_parameters(_NOTATION, names)


@pytest.mark.parametrize("names", [",", "conv1,,conv2", "conv1,"])
def test_empty_names_are_refused(names: str) -> None:
    with pytest.raises(ConfigError, match=r"freeze.*: input should be names of layers or parameters, separated by"):
        _config(freeze=names)


def test_spaces_around_names_do_not_count() -> None:
    assert _config(freeze=" conv1 , conv2").freeze == "conv1,conv2"
    assert _config(freeze=" ").freeze == ""


def test_a_line_counts_what_is_frozen() -> None:
    assert describe_frozen(_NOTATION, ()) == ""
    assert describe_frozen(_NOTATION, {"conv1.scale", "conv1"}) == "frozen: conv1, conv1.scale (76 of 601 parameters)"


def test_frozen_layers_of_a_run_keep_the_weights_of_another(
    train_tiny: Call, stsbp: Call, tmp_path: Path, tensors: Tensors, same_run: SameRun, refused: Callable[..., None]
) -> None:
    net = ("--net", "12b-8")
    assert train_tiny(tmp_path / "first", *net).exit_code == 0
    freeze = ("--freeze", "linear1", "--freeze", "linear3")
    options = (*net, "--init-from", str(tmp_path / "first"), *freeze, "--weight-decay", "0.5", *_EXACT)
    done = train_tiny(tmp_path / "whole", *options)
    assert done.exit_code == 0, done.output
    assert "frozen: linear1, linear1.bias, linear3 (860 of 956 parameters)" in done.stderr
    run = tmp_path / "run"
    assert train_tiny(run, *options, "--stop-after", 1e-6).exit_code == 75
    refused(stsbp("train", "--resume", run, "--freeze", "linear2"), 'freeze: "linear1,linear3" in the run, "linear2"')
    done = stsbp("train", "--resume", run)
    assert "frozen: linear1" in done.stderr
    same_run(run, tmp_path / "whole")
    first, last = (safetensors.numpy.load(tensors(path)) for path in (tmp_path / "first", run))
    for name in ("linear1", "linear1.bias", "linear2", "linear3"):
        assert np.array_equal(first[f"weight/{name}"], last[f"weight/{name}"]) == (name != "linear2"), name
        assert last[f"adamw.v/{name}"].any() == (name == "linear2"), name
    assert stsbp("report", run, "--out", tmp_path / "page.html").exit_code == 0
    assert "frozen: linear1, linear1.bias, linear3 (860 of 956 parameters)" in (tmp_path / "page.html").read_text()
    refused(train_tiny(tmp_path / "none", "--freeze", "linear9"), "--freeze 'linear9'", "linear1, linear2")
    assert not (tmp_path / "none").exists()


# Runs that end early.
_LONG = ("--epochs", "12", "--lr", "1e-12", "--schedule", "constant")
"""With such a learning rate the validation result never changes, so the first epoch stays the best one."""


def _progress(run: Path) -> tuple[int, bool, int]:
    saved = json.loads((run / "last.json").read_text())
    return saved["epoch"], saved["finished"], saved["best"]["epoch"]


def test_patience_ends_a_run_with_a_test(
    train_tiny: Call, stsbp: Call, tmp_path: Path, records: Records, tensors: Tensors
) -> None:
    run = tmp_path / "run"
    done = train_tiny(run, *_LONG, "--patience", 3, "--test-every", 0)
    assert done.exit_code == 0, done.output
    assert _progress(run) == (4, True, 1)
    why = "after epoch 4 of 12, because no epoch was better than epoch 1 by validation accuracy (--patience 3)"
    assert f"the run ends {why}" in done.stderr
    assert "best checkpoint: epoch 1" in done.stdout
    evaluated = [(r["split"], r["epoch"]) for r in records(run) if r["kind"] == "evaluation"]
    assert evaluated == [*(("validation", epoch) for epoch in (1, 2, 3, 4)), ("test", 4)]
    again = stsbp("train", "--resume", run)
    assert again.exit_code == 0
    assert f"is finished: it ended {why}. Its result follows. To train it longer, give a larger --patience" in (
        again.stderr
    )
    assert again.stdout == done.stdout
    # Without patience the first four epochs are the same.
    assert train_tiny(tmp_path / "four", *_LONG, "--epochs", 4).exit_code == 0
    assert tensors(run) == tensors(tmp_path / "four")


def test_more_patience_continues_a_run_to_the_bit(
    train_tiny: Call, stsbp: Call, tmp_path: Path, same_run: SameRun
) -> None:
    assert train_tiny(tmp_path / "whole", *_LONG, "--patience", 5).exit_code == 0
    run = tmp_path / "run"
    assert train_tiny(run, *_LONG, "--patience", 2).exit_code == 0
    assert _progress(run) == (3, True, 1)
    more = stsbp("train", "--resume", run, "--patience", 5, "--stop-after", 1e-6)
    assert more.exit_code == 75
    assert "patience 5 instead of 2" in more.stderr
    assert _progress(run) == (3, False, 1)
    # The new number is a setting of the run from now on.
    assert stsbp("train", "--resume", run).exit_code == 0
    assert _progress(run) == (6, True, 1)
    same_run(run, tmp_path / "whole")
    assert (run / "config.toml").read_text() == (tmp_path / "whole/config.toml").read_text()
    assert stsbp("train", "--resume", run, "--epochs", 20).exit_code == 0
    assert _progress(run) == (6, True, 1)
    off = stsbp("train", "--resume", run, "--patience", 0, "--epochs", 21)
    assert "patience off instead of 5" in off.stderr
    assert _progress(run) == (21, True, 1)


def test_less_patience_ends_a_run_at_the_end_of_its_epoch(train_tiny: Call, stsbp: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, *_LONG, "--epochs", 3).exit_code == 0
    assert stsbp("train", "--resume", run, "--epochs", 12, "--stop-after", 1e-6).exit_code == 75
    saved = json.loads((run / "last.json").read_text())
    assert (saved["epoch"], saved["batch"]) == (3, 1)
    assert stsbp("train", "--resume", run, "--patience", 1).exit_code == 0
    assert _progress(run) == (4, True, 1)


def test_a_run_that_improves_goes_on(train_tiny: Call, tmp_path: Path, records: Records) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--epochs", 6, "--lr", "0.05", "--limit", 300, "--patience", 2).exit_code == 0
    saved = _progress(run)
    best = 0
    results = [(r["accuracy"], -r["loss"]) for r in records(run) if r.get("split") == "validation"]
    for epoch, result in enumerate(results):
        best = epoch if result > results[best] else best
        assert epoch - best < 2 or epoch == len(results) - 1
    assert saved == (len(results), True, best + 1)
    assert best > 1


def test_interrupted_in_the_last_test(
    train_tiny: Call, tmp_path: Path, same_run: SameRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*_LONG, "--patience", 2, "--test-every", 0)
    assert train_tiny(tmp_path / "whole", *options).exit_code == 0
    run, original = tmp_path / "run", loop._TrainingLoop.evaluate

    def interrupt(self: loop._TrainingLoop, name: str, *more: Any) -> Any:
        if name == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loop._TrainingLoop, "evaluate", interrupt)
        assert train_tiny(run, *options).exit_code == 143
    assert _progress(run) == (2, False, 1)
    assert train_tiny(run, *options, "--resume").exit_code == 0
    same_run(run, tmp_path / "whole")


def test_patience_needs_validation_samples(
    train_tiny: Call, stsbp: Call, tmp_path: Path, refused: Callable[..., None]
) -> None:
    message = "patience ends a run by its results on validation samples, but it has none; give --validation M"
    refused(train_tiny(tmp_path / "run", "--validation", 0, "--patience", 2), message)
    assert not (tmp_path / "run").exists()
    assert train_tiny(tmp_path / "run", "--validation", 0).exit_code == 0
    refused(stsbp("train", "--resume", tmp_path / "run", "--patience", 2), message)


def test_seeds_of_an_experiment_end_early(stsbp: Call, tiny: tuple[str, ...], tmp_path: Path) -> None:
    command = ("experiment", "digits", *tiny, *_LONG, "--patience", 2, "--seeds", 2, "--out", tmp_path / "seeds")
    done = stsbp(*command, "--json")
    assert done.exit_code == 0, done.output
    assert [_progress(tmp_path / f"seeds/seed-{seed}") for seed in (0, 1)] == [(3, True, 1), (3, True, 1)]
    table = json.loads(done.stdout)
    assert [seed["last"]["epoch"] for seed in table["seeds"]] == [3, 3]
    again = stsbp(*command, "--json")
    assert json.loads(again.stdout)["seeds"] == table["seeds"]


@needs_torch
@pytest.mark.parametrize("options", [SGD_RUN, pytest.param(ADAM_RUN, marks=pytest.mark.long)], ids=["sgd", "adam"])
def test_three_processes_write_the_run_of_one(
    train_tiny: Call, tiny: tuple[str, ...], tmp_path: Path, same_run: SameRun, options: tuple[str, ...]
) -> None:
    """Also frozen parameters, learned delays, rate penalties and the end of the run are the same in every process."""
    more = (*options, "--net", "12-T3-8", "--freeze", "linear2", *_EXACT, "--dropout", "0.1")
    more = (*more, "--rate-penalty", "0.1:0.1,linear2=0.2:0.1", "--init-gain", "6", "--epochs", "9", "--patience", "1")
    assert train_tiny(tmp_path / "alone", *more).exit_code == 0
    command = [sys.executable, "-m", "stsbp", "--backend", "numpy", "train", "digits", *tiny, *more]
    command += ["--out", str(tmp_path / "run"), "--processes", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    same_run(tmp_path / "run", tmp_path / "alone")
    epoch, finished, best = _progress(tmp_path / "run")
    assert (finished, epoch - best) == (True, 1)
    assert epoch < 9
    assert done.stderr.count("the run ends after epoch") == 1
