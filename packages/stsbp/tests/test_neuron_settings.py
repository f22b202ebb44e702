"""Numbers of neurons that are typed reach the neurons, or are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from stsbp.config import RunConfig
from stsbp.training import build

HEARD = """
from dataclasses import dataclass

from stsbp_spec.equations.expressions import named, spike, where
from stsbp_spec.models.neurons.base import Learned, NeuronModel, Step


@dataclass(frozen=True)
class Heard(NeuronModel):
    name = "heard"
    states = ("m",)

    def constants(self):
        return {"vth": self.threshold}

    def step(self, p, s, i):
        u = named("u", s.m + i)
        o = spike(u, p.vth)
        return Step(u, o, {"m": where(o, 0, u)})


@dataclass(frozen=True)
class Idle(Heard):
    name = "idle"

    def learned(self):
        return {"decay": Learned(0.5, 0, 1)}
"""


@pytest.fixture
def folder_of_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "heard.py").write_text(HEARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "heard", raising=False)
    return tmp_path


NODES = """
[[node]]
name = "a"
weights = "{}"
from = "input"
[[node]]
name = "b"
neurons = ""
from = "a"
"""


@pytest.mark.parametrize("command", ["train", "experiment"])
@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("digits", ("--net", "nodes.toml", "--dropout", 0.5), "--dropout does not apply to a file of nodes; add"),
        ("digits", ("--input-tau-s", 4), "--input-tau-s filters event frames, but digits has images; leave it out"),
        (
            "digits",
            ("--loss", "cross-entropy", "--label-pattern", "0001"),
            "--label-pattern: the loss cross-entropy reads potentials, which follow no pattern; leave it out",
        ),
        ("digits", ("--net", 8, "--padding", "same"), "--padding applies to convolutions without a padding"),
        ("digits", ("--net", "8C3p1-8", "--padding", "same"), "but --net has none; leave it out"),
        ("digits", ("--net", "nodes.toml", "--padding", "same"), "but --net has none; leave it out"),
        (
            "digits",
            ("--neuron", "lif:tau_m=5", "--tau-m", 20),
            "--tau-m has no effect, because the neuron lif:tau_m=5 sets tau_m itself; give it only once",
        ),
        (
            "digits",
            ("--neuron", "heard:Heard:threshold=3", "--threshold", 0.5),
            "--threshold has no effect, because the neuron heard:Heard:threshold=3 sets threshold itself",
        ),
        (
            "digits",
            ("--neuron", "lif:surrogate=triangle", "--surrogate", "arctan"),
            "--surrogate has no effect, because the neuron lif:surrogate=triangle sets surrogate itself",
        ),
        (
            "motor",
            ("--label-pattern", "0101", "--undesired-pattern", 1),
            "--label-pattern, --undesired-pattern: the labels of motor are spike trains and need no pattern",
        ),
    ],
)
def test_options_without_effect_are_refused(
    command: str,
    dataset: str,
    options: tuple[object, ...],
    message: str,
    folder_of_module: Path,
    stsbp: Callable[..., Result],
    refused: Callable[..., None],
) -> None:
    (folder_of_module / "nodes.toml").write_text(NODES.format(10))
    size = ("--epochs", 1, "--limit", 8, "--steps", 20, *(("--seeds", 1) if command == "experiment" else ()))
    refused(stsbp(command, dataset, *size, *options, "--out", "run"), message)
    assert not Path("run").exists()


@pytest.mark.parametrize("net", ["8C3", "8C3p1-8C3", "nodes.toml"])
def test_padding_of_a_convolution_is_accepted(net: str, folder_of_module: Path, stsbp: Callable[..., Result]) -> None:
    (folder_of_module / "nodes.toml").write_text(NODES.format("4C3"))
    done = stsbp("train", "digits", "--net", net, "--padding", "same", "--tau-m", 4, "--show-config")
    assert done.exit_code == 0, done.stderr


def test_files_of_settings_may_have_options_without_effect(
    folder_of_module: Path, stsbp: Callable[..., Result]
) -> None:
    (folder_of_module / "nodes.toml").write_text(NODES.format(16))
    (folder_of_module / "own.toml").write_text('net = "nodes.toml"\ndropout = 0.5\nlabel_pattern = "0101"\n')
    size = ("--config", "own.toml", "--epochs", 1, "--limit", 8, "--steps", 25)
    done = stsbp("train", "motor", *size, "--out", "run")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", ["train", "experiment"])
@pytest.mark.parametrize("neuron", ["if", "if:reset=subtract", "heard:Heard"])
@pytest.mark.usefixtures("folder_of_module")
def test_a_time_constant_that_the_neuron_does_not_have_is_refused(
    command: str, neuron: str, stsbp: Callable[..., Result], refused: Callable[..., None]
) -> None:
    done = stsbp("--backend", "numpy", command, "digits", "--neuron", neuron, "--tau-m", 4, "--out", "run")
    refused(done, f"--tau-m is a parameter of the neurons lif, alif, plif, but not of {neuron}; leave it out")
    assert not Path("run").exists()


@pytest.mark.usefixtures("folder_of_module")
def test_what_a_preset_a_file_or_another_model_says_is_not_refused(stsbp: Callable[..., Result]) -> None:
    Path("some.toml").write_text("tau_m = 3.0\n")
    for arguments in (
        ("--neuron", "if", "--config", "some.toml"),
        ("--neuron", "heard:Heard", "--tau-s", 2, "--threshold", 0.5),
        ("--neuron", "alif", "--tau-m", 4),
    ):
        done = stsbp("--backend", "numpy", "train", "digits", *arguments, "--show-config")
        assert done.exit_code == 0, done.stderr
        assert f'neuron = "{arguments[1]}"' in done.stdout


@pytest.mark.usefixtures("folder_of_module")
def test_a_learned_number_that_is_never_read_is_refused(
    stsbp: Callable[..., Result], refused: Callable[..., None]
) -> None:
    done = stsbp("--backend", "numpy", "train", "digits", "--neuron", "heard:Idle", "--out", "run")
    refused(done, "the neuron idle learns decay, which its step never reads; leave it out of `learned`")
    assert not Path("run").exists()


def test_of_many_operations_that_may_be_flushed_the_first_ones_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = [f"operation {number}" for number in range(70)]
    monkeypatch.setattr(build, "build_loss", lambda _: None)
    monkeypatch.setattr(build, "flushes_of", lambda _: operations)
    config = RunConfig.model_construct(neuron_model="", surrogate_model="", loss_model="stored")
    *first, last = build.own_flushes(config)
    assert first == operations[:4]
    assert last == "66 more operations of the same kind; stsbp equations names all of them"
    monkeypatch.setattr(build, "flushes_of", lambda _: operations[:5])
    assert list(build.own_flushes(config)) == operations[:5]
