"""A `Sequential` as a network: the same spikes, and every parameter under its name in the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stsbp_spec import open_backend
from stsbp_spec.errors import NetworkError
from stsbp_spec.models.neurons import LIF as LIFSpec
from stsbp_spec.models.neurons import PLIF as PLIFSpec
from stsbp_torch import PSP, Sequential, SpikingAvgPool2d, SpikingConv2d, SpikingLinear

STEPS, NEURON = 6, LIFSpec(tau_m=5, tau_s=3, threshold=0.25)


def check(layers: Sequential, inputs: torch.Tensor, names: list[str], *steps: int) -> None:
    """The network of the layers has their parameters under these names, and their spikes."""
    spec, named = layers.spec, layers.named()
    assert list(named) == names
    assert {id(x) for x in named.values()} == {id(x) for x in layers.parameters()}
    weights = {name: x.detach().numpy() for name, x in named.items()}
    with torch.no_grad():
        spikes = layers.eval()(inputs, *steps).numpy()
    expected = list(open_backend("numpy").run(spec, weights, inputs.numpy(), STEPS).layers.values())[-1].spikes
    assert np.array_equal(spikes, expected)
    assert 0 < spikes.mean() < 1


def test_a_sequence_of_layers_for_events_is_a_network() -> None:
    torch.manual_seed(0)
    layers = Sequential(
        SpikingConv2d(2, 4, 3, neuron=PLIFSpec(tau_m=4, tau_s=3, threshold=0.25), bias=True),
        SpikingAvgPool2d(2),
        torch.nn.Dropout(0.5),
        SpikingLinear(4 * 3 * 3, 5, neuron=NEURON, psp=PSP(3), input_exponent=2),
        input_shape=(2, 8, 8),
    )
    events = (torch.rand(STEPS, 3, 2, 8, 8) < 0.4).to(torch.uint8)
    check(layers, events, ["conv1", "conv1.bias", "conv1.decay", "linear2"])


def test_what_is_no_network_is_refused() -> None:
    halves = Sequential(
        SpikingLinear(6, 4, neuron=NEURON, input_exponent=1), input_shape=(6,), input_exponent=1, input_max=1
    )
    with pytest.raises(NetworkError, match=r"spikes or counts .* but these have input_exponent=1, input_max=1"):
        _ = halves.spec
    convolution = Sequential(SpikingConv2d(1, 4, 3, neuron=NEURON), input_shape=(1, 6, 6))
    with pytest.raises(NetworkError, match="the last layer must be a full connection"):
        convolution.named()
