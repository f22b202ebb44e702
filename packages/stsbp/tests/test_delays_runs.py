"""Runs with learned delays: their learning rate, files, several processes, streams, reports, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp
from click.testing import Result
from safetensors.numpy import load_file
from stsbp.api.state import settings_of_trainer
from stsbp.config import RunConfig, SettingsSource, resolve
from stsbp.errors import ConfigError
from stsbp.training.optimizer import build_optimizer
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend

Call = Callable[..., Result]

TINY = ("--net", "12-T3-8-T2-6", "--steps", "6", "--epochs", "2", "--limit", "60", "--holdout", "20")
OPTIONS = (*TINY, "--batch-size", "20", "--delay-lr", "0.5", "--init-gain", "4", "--precision", "reproducible")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="processes are connected by PyTorch")


def _config(**settings: Any) -> RunConfig:
    return resolve([SettingsSource("command line", {"dataset": "digits", **settings})])


def _tensors(run: Path) -> dict[str, Any]:
    (path,) = run.glob("last-*.safetensors")
    return load_file(path)


def test_the_learning_rate_of_delays() -> None:
    assert build_optimizer(_config(), 5).delay_lr is None
    assert build_optimizer(_config(delay_lr=0.25), 5).delay_lr == 0.25
    optimizer = build_optimizer(_config(delay_lr=0.25, weight_decay=0.1, warmup=2.0), 5).for_delays()
    assert (optimizer.lr, optimizer.weight_decay, optimizer.warmup_steps) == (0.25, 0.0, 10)


def test_a_run(stsbp: Call, tmp_path: Path) -> None:
    done = stsbp("train", "digits", *OPTIONS, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "delay_lr = 0.5" in (tmp_path / "run" / "config.toml").read_text()
    network = NetworkSpec.parse("12-T3-8-T2-6", input_shape=(1, 8, 8), outputs=10, coding="direct")
    start, tensors = initial_weights(network, 0, 4.0), _tensors(tmp_path / "run")
    for name, maximum in (("delay2.steps", 3), ("delay3.steps", 2)):
        delays = tensors[f"weight/{name}"]
        assert delays.dtype == np.float32
        assert delays.shape == start[name].shape
        assert 0 <= delays.min() <= delays.max() <= maximum
        # An update of AdamW is at most about as large as the learning rate, and the default is below.
        assert np.abs(delays - start[name]).max() > 0.3
    parts = stsbp("train", "digits", *OPTIONS, "--micro-batch", "7", "--out", tmp_path / "parts")
    assert parts.exit_code == 0, parts.output
    for name, x in _tensors(tmp_path / "parts").items():
        assert x.tobytes() == tensors[name].tobytes(), name
    report = stsbp("report", tmp_path / "run")
    assert report.exit_code == 0, report.output
    page = (tmp_path / "run.html").read_text()
    assert "<h2>Learned delays</h2>" in page
    assert page.count("delay2.steps: number of channels") >= 1
    assert "before training" in page
    assert stsbp("evaluate", tmp_path / "run", "--energy").exit_code == 0
    printed = stsbp("evaluate", tmp_path / "run")
    assert printed.exit_code == 0, printed.output
    lines = printed.stdout.partition("learned delays in whole steps:\n")[2].splitlines()
    record = json.loads(stsbp("evaluate", tmp_path / "run", "--json").stdout)["delays"]
    for name, maximum in (("delay2.steps", 3), ("delay3.steps", 2)):
        whole = np.sort(np.rint(tensors[f"weight/{name}"])).tolist()
        quartiles = [float(np.quantile(whole, k / 4)) for k in range(5)]
        assert record[name] == {"channels": len(whole), "quartiles": quartiles, "maximum": maximum}
        (line,) = (text for text in lines if name in text)
        assert [float(word) for word in line.split()[1:]] == [len(whole), *quartiles, maximum]
    for form in ("c", "onnx", "nir"):
        exported = stsbp("export", tmp_path / "run", "--to", form, "--out", tmp_path / f"export.{form}")
        assert exported.exit_code == 0, exported.output


def test_a_resumed_run_is_the_undivided_one(stsbp: Call, tmp_path: Path) -> None:
    # One epoch less has another schedule, so that the rate must be constant.
    constant = ("--schedule", "constant")
    assert stsbp("train", "digits", *OPTIONS, *constant, "--out", tmp_path / "two").exit_code == 0
    assert stsbp("train", "digits", *OPTIONS, *constant, "--epochs", "1", "--out", tmp_path / "one").exit_code == 0
    done = stsbp("train", "--resume", tmp_path / "one", "--epochs", "2")
    assert done.exit_code == 0, done.output
    two, one = _tensors(tmp_path / "two"), _tensors(tmp_path / "one")
    assert {name: x.tobytes() for name, x in one.items()} == {name: x.tobytes() for name, x in two.items()}


def test_freezing_delays(stsbp: Call, tmp_path: Path) -> None:
    done = stsbp("train", "digits", *OPTIONS, "--freeze", "delay2", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "frozen: delay2.steps" in done.output
    network = NetworkSpec.parse("12-T3-8-T2-6", input_shape=(1, 8, 8), outputs=10, coding="direct")
    start, tensors = initial_weights(network, 0, 4.0), _tensors(tmp_path / "run")
    assert tensors["weight/delay2.steps"].tobytes() == start["delay2.steps"].tobytes()
    assert tensors["weight/delay3.steps"].tobytes() != start["delay3.steps"].tobytes()


@pytest.mark.long  # beside the run of test_optimizer_runs.py, which has learned delays and rate penalties
@needs_torch
def test_three_processes_write_the_run_of_one(stsbp: Call, tmp_path: Path) -> None:
    assert stsbp("train", "digits", *OPTIONS, "--out", tmp_path / "alone").exit_code == 0
    command = [sys.executable, "-m", "stsbp", "--backend", "numpy", "train", "digits", *OPTIONS]
    command += ["--out", str(tmp_path / "run"), "--processes", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    alone, run = _tensors(tmp_path / "alone"), _tensors(tmp_path / "run")
    assert {name: x.tobytes() for name, x in run.items()} == {name: x.tobytes() for name, x in alone.items()}


EVENTS = "T4-8-T2-6"


def _trainer(optimizer: AdamW) -> Any:
    spec = NetworkSpec.parse(EVENTS, input_shape=(9,), outputs=3)
    return NumpyBackend().trainer(spec, VanRossum(), optimizer, precision="reproducible")


def test_a_trainer_is_saved_with_the_learning_rate_of_its_delays(tmp_path: Path) -> None:
    trainer, rng = _trainer(AdamW(delay_lr=0.125)), np.random.default_rng(1)
    inputs, targets = ((rng.random((5, 6, n)) < 0.4).astype(np.uint8) for n in (9, 3))
    state, _ = trainer.step(trainer.init(initial_weights(trainer.network, 0)), Batch(inputs, targets))
    assert settings_of_trainer(trainer)["delay_lr"] == 0.125
    assert settings_of_trainer(_trainer(AdamW()))["delay_lr"] == 0.0
    with pytest.raises(ConfigError, match="freeze them instead"):
        settings_of_trainer(_trainer(AdamW(delay_lr=0.0)))
    data = (inputs, np.array([0, 1, 2, 0, 1, 2]))
    run = stsbp.save_run(trainer, tmp_path / "saved", state=state, data=data, batch_size=6, backend="numpy")
    assert run.settings.delay_lr == 0.125
    again = stsbp.load_run(tmp_path / "saved", backend="numpy")
    assert again.settings.delay_lr == 0.125
    for name, x in trainer.export_state(state).items():
        if name.startswith("weight/"):
            assert again.weights[name.removeprefix("weight/")].tobytes() == x.tobytes()


@needs_torch
def test_an_optimiser_of_torch_has_a_group_for_delays(tmp_path: Path) -> None:
    import torch
    from stsbp_torch import Network, spike_loss

    spec, rng = NetworkSpec.parse(EVENTS, input_shape=(9,), outputs=3), np.random.default_rng(1)
    inputs, targets = ((rng.random((5, 6, n)) < 0.4).astype(np.uint8) for n in (9, 3))
    net = Network(spec, seed=0, precision="reproducible")
    named = net.named()
    delays = [x for name, x in named.items() if spec.parameters[name].is_delay]
    others = [x for name, x in named.items() if not spec.parameters[name].is_delay]
    groups = [{"params": others, "weight_decay": 0.01}, {"params": delays, "lr": 0.125, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    spikes = net(torch.from_numpy(inputs))
    loss: Any = spike_loss(VanRossum(), spikes, torch.from_numpy(targets), psp=spec.output_psp)
    loss.backward()
    assert all(x.grad is not None for x in named.values())
    optimizer.step()
    net.clip_to_domain()
    data = (inputs, np.array([0, 1, 2, 0, 1, 2]))
    run = stsbp.save_run(net, tmp_path / "saved", state=optimizer, data=data, batch_size=6, loss="van-rossum")
    assert (run.settings.lr, run.settings.delay_lr, run.settings.weight_decay) == (2e-3, 0.125, 0.01)
