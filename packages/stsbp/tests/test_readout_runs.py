"""Runs whose network ends with a readout: trained, measured, predicted, drawn, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.models.losses import CrossEntropy
from stsbp_spec.reference.backend import NumpyBackend

TINY = ("--net", "12", "--steps", 4, "--epochs", 2, "--limit", 60, "--holdout", 40, "--batch-size", 20, "--lr", 0.02)


@pytest.mark.parametrize("loss", ["cross-entropy", "cross-entropy-max"])
def test_a_run_with_a_readout(
    loss: str,
    stsbp: Callable[..., Result],
    records: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    # A readout has no spikes, so that a label pattern has no effect and no layer is reported as silent.
    (tmp_path / "own.toml").write_text('label_pattern = "0001"\n')
    settings = ("--config", tmp_path / "own.toml", "--loss", loss, "--init-rate", 0.05)
    done = stsbp("train", "digits", *TINY, *settings, "--out", run)
    assert done.exit_code == 0, done.output
    assert "linear2 is silent" not in done.output
    assert "(least loss)" in done.stdout
    assert "(mean potential)" in done.stdout
    trained = load_trained(RunFolder(run), "last", NumpyBackend())
    assert trained.network.has_readout
    evaluated = json.loads(stsbp("evaluate", run, "--json").stdout)
    test = records(run)[-1]
    assert evaluated["loss"] == test["loss"]
    assert evaluated["rates"]["linear2"] == 0
    from stsbp.training.build import load_data

    data = load_data(trained.settings)
    images, labels = data.test.inputs(np.arange(40)), data.test.labels
    prediction = trained.predict(images)
    assert prediction.spikes.dtype == np.float32
    potentials = trained.backend.run(trained.network, trained.weights, images, 4).layers["linear2"].potentials
    assert np.array_equal(prediction.spikes, potentials)
    v = potentials.mean(axis=0) if loss == "cross-entropy" else potentials.max(axis=0)
    assert np.array_equal(prediction.nearest, v.argmax(axis=1))
    assert np.array_equal(prediction.counted, potentials.mean(axis=0).argmax(axis=1))
    assert evaluated["accuracy"] == (prediction.nearest == labels).mean()
    assert evaluated["accuracy_spike_count"] == (prediction.counted == labels).mean()
    assert isinstance(trained.loss, CrossEntropy)
    losses = trained.loss.of_classes(potentials)[np.arange(40), labels]
    assert evaluated["loss"] == pytest.approx(losses.mean(), rel=1e-12)
    np.save(tmp_path / "one.npy", images[0])
    predicted = stsbp("predict", run, tmp_path / "one.npy", "--draw", tmp_path / "page.html")
    assert f": {prediction.classes[0]} (by mean potential" in predicted.stdout
    assert stsbp("report", run).exit_code == 0
    for page in (tmp_path / "page.html", tmp_path / "run.html"):
        text = page.read_text()
        assert "Loss of each class" in text
        assert "Output over target" not in text
        assert "The loss of" in text
        assert "nearest label sequence" not in text
    assert "a column the class of the least loss." in text


def test_an_experiment_with_a_readout_names_its_decoders(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    done = stsbp("experiment", "digits", *TINY, "--loss", "cross-entropy", "--seeds", 1, "--out", "e")
    assert done.exit_code == 0, done.output
    assert "| test accuracy, least loss |" in done.stdout
    assert "| test accuracy, mean potential |" in done.stdout
    assert "| test accuracy | test by mean potential | accuracy, last | by mean potential, last |" in done.stdout
    assert json.loads((tmp_path / "e" / "experiment.json").read_text())["decoders"] == ["least loss", "mean potential"]


def test_compare_names_the_decoders_of_readouts(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    for out, loss in (("spiking", "hamming"), ("read", "cross-entropy")):
        done = stsbp("train", "digits", *TINY, "--loss", loss, "--out", out)
        assert done.exit_code == 0, done.output
    assert "test accuracy mean potential " in stsbp("compare", "read").stdout
    assert "test accuracy spike count " in stsbp("compare", "spiking").stdout
    assert "test accuracy spike count or mean potential " in stsbp("compare", "spiking", "read").stdout
    facts = [json.loads(line) for line in stsbp("compare", "read", "spiking", "--json").stdout.splitlines()]
    assert [fact["decoders"] for fact in facts] == [
        ["least loss", "mean potential"], ["nearest label sequence", "spike count"],
    ]  # fmt: skip


def test_readouts_are_refused_where_labels_are_spike_trains_or_bits_are_promised(stsbp: Callable[..., Result]) -> None:
    refused = stsbp("train", "motor", "--loss", "cross-entropy")
    assert refused.exit_code == 1
    assert "cross-entropy needs classes, but these labels are spike trains" in refused.stderr
    refused = stsbp("train", "digits", *TINY, "--loss", "cross-entropy", "--precision", "reproducible")
    assert refused.exit_code == 1
    assert "for reproducible precision take the loss van-rossum, hamming or spike-count" in refused.stderr
    refused = stsbp("train", "digits", *TINY, "--loss", "cross-entropie")
    assert refused.exit_code == 2
    assert "cross-entropy" in refused.stderr
