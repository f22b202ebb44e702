"""`stsbp convert` and `stsbp.interop.gain`: a network with another gain of its synapses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from small_networks import SMALL, Case, Small, case_of
from stsbp.errors import ConfigError
from stsbp.interop.gain import with_gain
from stsbp_spec import NetworkSpec, open_backend
from stsbp_spec.models.neurons import parse_neuron
from stsbp_spec.typing import Float32


def converted(network_case: Case, small: Small, gain: str) -> tuple[NetworkSpec, dict[str, Float32], list[str]]:
    """The same network with another gain, its weights, and what is said of it."""
    numbers = {"tau_m": small.tau_m, "tau_s": small.tau_s, "tau_rise": small.tau_rise, "psp_gain": gain}
    network = NetworkSpec.parse(
        small.net,
        input_shape=small.input_shape,
        outputs=network_case.network.outputs,
        coding=small.coding,
        padding=small.padding,
        neuron=parse_neuron(small.neuron, numbers),
    )
    weights, changes = with_gain(network_case.network, network, network_case.weights)
    return network, weights, [str(change) for change in changes]


SHARED = """\
[[node]]
name = "a"
weights = "12"
from = "input"

[[node]]
name = "fires"
neurons = ""
from = ["a"]

[[node]]
name = "b"
weights = "12"
weights_of = "a"
from = "fires"

[[node]]
name = "again"
neurons = ""
from = ["b"]

[[node]]
name = "c"
weights = "4"
from = "again"

[[node]]
name = "output"
neurons = ""
from = ["c"]
"""
NORMALISED = SHARED.replace('weights = "12"', 'weights = "12bn"')

OTHERS = {
    "bias later": Small("10-8b"),
    "normalised later": Small("4C3p1-6C3p1bn-P2", (2, 8, 8)),
    "normalised and shared": Small(NORMALISED),
}


@pytest.mark.parametrize("name", ["full", *OTHERS, "recurrent", "image", "second order", "nodes"])
def test_powers_of_two_keep_every_bit(name: str) -> None:
    tau_s = 5.5 if name == "second order" else 4.0
    small = replace({**SMALL, **OTHERS}[name], tau_s=tau_s)
    network_case = case_of(small, 3)
    network, weights, changes = converted(network_case, small, "unit")
    run = open_backend("numpy").run(network, weights, network_case.inputs, 9)
    for layer, layer_run in network_case.run.layers.items():
        assert np.array_equal(run.layers[layer].spikes, layer_run.spikes), layer
        assert np.array_equal(run.layers[layer].potentials, layer_run.potentials), layer
    assert any("times 0.25, exactly" in line for line in changes)
    assert all("rounded" not in line for line in changes)
    assert changes[0].endswith("as it was")


def test_other_factors_say_how_far_weights_move() -> None:
    small = SMALL["full"]
    network_case = case_of(small, 3)
    network, weights, changes = converted(network_case, small, "unit")
    assert changes[0] == "linear1: as it was"
    assert changes[1].startswith("linear2: times 0.6")
    assert "rounded by up to" in changes[1]
    assert np.allclose(weights["linear2"], network_case.weights["linear2"] * 0.6, rtol=1e-6)
    run = open_backend("numpy").run(network, weights, network_case.inputs, 9)
    potentials = network_case.run.layers["linear2"].potentials
    assert 0 < np.abs(run.layers["linear2"].potentials - potentials).max() < 0.02


def test_shared_weights_need_one_factor() -> None:
    with pytest.raises(ConfigError, match=r"b shares the weights of a, but needs them multiplied by 0\.6"):
        converted(case_of(Small(SHARED), 3), Small(SHARED), "unit")


def test_normalised_weights_are_not_shared_with_others() -> None:
    """Another gain changes only the scale and the shift of a normalised projection, and not its weights."""
    small = Small(NORMALISED.replace('weights = "12bn"\nweights_of', 'weights = "12"\nweights_of'), tau_s=4.0)
    with pytest.raises(ConfigError, match=r"b shares the weights of a, .* multiplied by 0\.25, and a by 1:"):
        converted(case_of(small, 3), small, "unit")


def test_the_command(train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    assert train_tiny(run, "--tau-s", 4, "--epochs", 2).exit_code == 0
    result = stsbp("convert", run, "--psp-gain", "unit", "--out", new)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[-4:] == [
        "linear1: as it was",
        "linear2: times 0.25, exactly",
        "spikes and potentials are those of the run, to the bit",
        "the moments of the optimiser are dropped",
    ]
    one, other = package.load_run(run), package.load_run(new)
    assert other.settings.psp_gain == "unit"
    assert np.array_equal(other.weights["linear2"] * 4, one.weights["linear2"])
    inputs = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    assert np.array_equal(one.predict(inputs).spikes, other.predict(inputs).spikes)
    info = json.loads((new / "last.json").read_text())
    assert (info["step"], info["epoch"]) == (0, 0)
    assert not any(np.any(x) for name, x in other.task.trainer.export_state(other.state).items() if "adamw" in name)
    result = stsbp("train", "--resume", new)
    assert result.exit_code == 0, result.output
    assert "epoch 2/2" in result.output
    assert stsbp("convert", run, "--psp-gain", "unit", "--out", new).exit_code != 0


def test_settings_that_name_the_gain_themselves_are_refused(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--net", "12{psp_gain=unit}-6", "--epochs", 1).exit_code == 0
    result = stsbp("convert", run, "--psp-gain", "normalised", "--out", tmp_path / "new")
    assert result.exit_code != 0
    assert "sets psp_gain of linear2" in result.output
    assert not (tmp_path / "new").exists()


def test_a_rounded_bias_is_named_though_the_weights_are_exact() -> None:
    """3/8 times weights of few bits is exact, and times a bias it is not."""
    small = Small("10b-4b", tau_s=8 / 3)
    network_case = case_of(small, 3)
    rng = np.random.default_rng(0)
    weights = {
        name: x if name.endswith(".bias") else rng.choice([-1, 1, 0.5, -0.5], x.shape).astype(np.float32)
        for name, x in network_case.weights.items()
    }
    _, _, changes = converted(replace(network_case, weights=weights), small, "unit")
    assert "rounded by up to" in changes[1]
