"""Networks of published experiments, narrow and on small inputs: they fire, and have equal bits everywhere."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from stsbp.presets import PRESETS
from stsbp_spec import LOSSES, Batch, NetworkSpec, ValueAndGrad, initial_weights, open_backend
from stsbp_spec.models.neurons import parse_neuron
from stsbp_spec.typing import Coding, Float32, Shape

# Input shape and coding; a stride or a pooling for each halving of the image.
SMALL: dict[str, tuple[Shape, Coding]] = {
    "cifar10-sew-resnet18": ((3, 8, 8), "direct"),
    "cifar10-plif": ((3, 8, 8), "direct"),
    "cifar10-vgg-tdbn": ((3, 16, 16), "direct"),
    "shd-recurrent": ((20,), "events"),
    "shd-delays": ((20,), "events"),
}
STEPS, SAMPLES = 8, 3


def narrow(net: str) -> str:
    """A thirty-second of the channels, a sixteenth of the units, delays of a few steps."""
    net = re.sub(r"\d+(?=C)", lambda match: str(max(2, int(match.group()) // 32)), net)
    net = re.sub(r"(?<![\dC.a-z=DPMs])(\d+)(?=[-R{|\]]|$)", lambda match: str(max(4, int(match.group()) // 16)), net)
    return re.sub(r"delay=(\d+)", lambda match: f"delay={int(match.group(1)) // 6}", net)


def network_of(name: str) -> NetworkSpec:
    settings = PRESETS[name].settings
    shape, coding = SMALL[name]
    neuron = parse_neuron(str(settings.get("neuron", "lif")), {"tau_m": 3.0, "tau_s": 2.0})
    return NetworkSpec.parse(
        narrow(str(settings["net"])), input_shape=shape, outputs=4, coding=coding, padding="same", neuron=neuron
    )


def problem(network: NetworkSpec) -> tuple[dict[str, Float32], Batch]:
    rng = np.random.default_rng(3)
    targets = (rng.random((STEPS, SAMPLES, 4)) < 0.3).astype(np.uint8)
    if network.coding == "direct":
        inputs = rng.integers(0, 256, (SAMPLES, *network.input_shape), dtype=np.uint8)
    else:
        inputs = (rng.random((STEPS, SAMPLES, *network.input_shape)) < 0.3).astype(np.uint8)
    return initial_weights(network, 1, 3.0), Batch(inputs, targets)


@cache
def reference(name: str) -> ValueAndGrad:
    network = network_of(name)
    weights, batch = problem(network)
    return open_backend("numpy").value_and_grad(
        network, LOSSES["van-rossum"], weights, batch, precision="reproducible", dropout=(1, 2)
    )


def test_every_unmeasured_preset_has_a_small_network() -> None:
    assert set(SMALL) == {name for name, preset in PRESETS.items() if preset.published is None}


@pytest.mark.parametrize("name", SMALL)
def test_all_layers_fire_and_all_parameters_have_gradients(name: str) -> None:
    network = network_of(name)
    weights, batch = problem(network)
    layers = open_backend("numpy").run(network, weights, batch.inputs, STEPS).layers
    assert all(0 < layer.spikes.mean() < 1 for layer in layers.values())
    expected = reference(name)
    assert list(expected.gradients) == list(network.parameters)
    for parameter, gradient in expected.gradients.items():
        assert np.isfinite(gradient).all()
        assert gradient.any(), parameter


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("backend", ["torch", "cupy:host"])
def test_spikes_and_gradients_have_the_bits_of_the_reference(backend: str, name: str) -> None:
    network = network_of(name)
    weights, batch = problem(network)
    kind, _, device = backend.partition(":")
    actual = open_backend(kind, device or None).value_and_grad(
        network, LOSSES["van-rossum"], weights, batch, precision="reproducible", dropout=(1, 2)
    )
    expected = reference(name)
    assert np.array_equal(actual.spikes, expected.spikes)
    for parameter, gradient in expected.gradients.items():
        assert np.array_equal(actual.gradients[parameter].view(np.uint32), gradient.view(np.uint32)), parameter
