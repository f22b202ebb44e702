"""Wrong numbers that users of other libraries reported, each as a case that every backend must compute correctly.

The expected numbers are those of the reports, or are computed here without the code under test.
"""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import ALIF, LIF, PLIF, NeuronModel
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import Conv2d
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray


def _convolved(
    backend: AbstractBackend, conv: Conv2d, inputs: AnyArray, kernel_inputs: int
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Output, gradient of the inputs and gradient of the weights, for weights and output errors of 1."""
    rule = backend.rule(conv)
    rows, columns = conv.kernel if isinstance(conv.kernel, tuple) else (conv.kernel, conv.kernel)
    weights = np.ones((conv.channels, kernel_inputs, rows, columns), dtype=np.float32)
    output, residuals = rule.forward(conv, backend.asarray(inputs), backend.asarray(weights))
    errors = np.ones(backend.numpy(output).shape, dtype=np.float32)
    ds, dw = rule.backward(conv, residuals, backend.asarray(errors), precision="reproducible", need_input=True)
    assert ds is not None
    assert dw is not None
    return backend.numpy(output), backend.numpy(ds), backend.numpy(dw)


def test_weight_gradient_of_a_depthwise_convolution_with_stride(stsbp_backend: AbstractBackend) -> None:
    """pytorch 50042: the last row and column of the gradient were 4, 6, 6 for 24 groups, and only for 24."""
    conv = Conv2d(24, 3, stride=2, padding=1, groups=24)
    _, _, dw = _convolved(stsbp_backend, conv, np.ones((1, 1, 24, 6, 6), dtype=np.uint8), 1)
    assert np.array_equal(dw, np.broadcast_to([[4, 6, 6], [6, 9, 9], [6, 9, 9]], (24, 1, 3, 3)))


def test_input_gradient_of_a_convolution_whose_stride_leaves_out_columns(stsbp_backend: AbstractBackend) -> None:
    """pytorch 25101: columns at the edge of the gradient of the input were wrong."""
    conv = Conv2d(3, 5, stride=3, padding=1)
    _, ds, _ = _convolved(stsbp_backend, conv, np.ones((1, 1, 9, 32, 32), dtype=np.uint8), 9)
    places = np.arange(10)[:, None] * 3 - 1 + np.arange(5)
    covered = np.bincount(places[(places >= 0) & (places < 32)], minlength=32)
    assert np.array_equal(ds[0, 0], np.broadcast_to(3 * covered[:, None] * covered, (9, 32, 32)))


def test_convolution_of_one_channel_in_another_memory_layout(stsbp_backend: AbstractBackend) -> None:
    """pytorch 82060: with one input channel, the output depended on the memory layout."""
    frames = np.random.default_rng(0).integers(0, 2, (2, 3, 1, 11, 13)).astype(np.uint8)
    # The same bytes. An axis of one channel has another stride.
    channels_last = np.moveaxis(np.moveaxis(frames, 2, -1).copy(), -1, 2)
    assert channels_last.strides != frames.strides
    padded = np.pad(frames, [(0, 0)] * 3 + [(1, 1)] * 2).astype(np.float32)
    expected = sum(padded[..., row : row + 11, column : column + 13] for row in range(3) for column in range(3))
    for inputs in (frames, channels_last):
        output, _, _ = _convolved(stsbp_backend, Conv2d(64, 3, padding=1), inputs, 1)
        assert np.array_equal(output, np.broadcast_to(expected, (2, 3, 64, 11, 13)))


def _problem(network: NetworkSpec, steps: int, samples: int) -> Batch:
    rng = np.random.default_rng(3)
    inputs = (rng.random((steps, samples, *network.input_shape)) < 0.4).astype(np.uint8)
    targets = (rng.random((steps, samples, network.outputs)) < 0.3).astype(np.uint8)
    return Batch(inputs, targets)


def test_gradient_of_a_leak_that_many_neurons_share(stsbp_backend: AbstractBackend) -> None:
    """spikingjelly 151: a kernel added the gradient of a shared leak only within each block of threads.

    Its tests had so few neurons that there was one block.
    """
    gradients = []
    for per in ("layer", "channel"):
        network = NetworkSpec.parse("4000-3", input_shape=(7,), neuron=PLIF(4, 2, 0.4, per=per))
        weights = dict(initial_weights(network, 1, 3.0))
        result = stsbp_backend.value_and_grad(network, VanRossum(), weights, _problem(network, 6, 5))
        gradients.append(result.gradients["linear1.decay"].astype(np.float64))
    of_layer, of_neurons = gradients
    assert (of_layer.size, of_neurons.size) == (1, 4000)
    # Float32 terms, added in any order: far less than one block of 1,024 neurons of 4,000.
    assert abs(of_layer.item() - of_neurons.sum()) <= 1e-4 * np.abs(of_neurons).sum()
    assert abs(of_neurons[:1024].sum() - of_neurons.sum()) > 1e-2 * np.abs(of_neurons).sum()


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_reset_is_the_one_that_was_asked_for(stsbp_backend: AbstractBackend, reset: str) -> None:
    """snntorch 341 and 426: `subtract` reset to zero, `zero` subtracted, and the threshold did not decay."""
    network = NetworkSpec.parse("1", input_shape=(1,), neuron=LIF(4, 1, 1, reset=reset))
    (name,) = network.weight_shapes
    inputs = np.ones((12, 1, 1), dtype=np.uint8)
    result = stsbp_backend.run(network, {name: np.full((1, 1), 0.75, dtype=np.float32)}, inputs, 12)
    (layer,) = result.layers.values()
    # All numbers are multiples of small powers of two for some steps, and are rounded after that.
    potential, expected = np.float32(0), []
    for _ in range(12):
        potential = np.float32(np.float32(0.75) * potential) + np.float32(0.75)
        expected.append(potential)
        if potential >= 1:
            potential = potential - np.float32(1) if reset == "subtract" else np.float32(0)
    assert np.array_equal(layer.potentials.ravel(), np.array(expected))
    assert layer.spikes.sum() == sum(u >= 1 for u in expected) > 0


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_gradients_are_finite_far_from_the_threshold(stsbp_backend: AbstractBackend, surrogate: type) -> None:
    """snntorch 427: the derivative of the sigmoid was inf / inf more than 3.5 below the threshold."""
    network = NetworkSpec.parse("6-3", input_shape=(5,), neuron=LIF(4, 2, 1, surrogate=surrogate()))
    weights = {name: 300 * w for name, w in initial_weights(network, 1, 3.0).items()}
    result = stsbp_backend.value_and_grad(network, VanRossum(), weights, _problem(network, 20, 4))
    assert result.spikes.any()
    assert all(np.isfinite(gradient).all() for gradient in result.gradients.values())


@pytest.mark.parametrize("neuron", [LIF(3, 2, 0.6), ALIF(3, 2, 0.6), PLIF(3, 2, 0.6)], ids=lambda n: str(n.name))
def test_steps_one_by_one_are_those_of_the_whole_recording(stsbp_backend: AbstractBackend, neuron: NeuronModel) -> None:
    """snntorch 234 and 349: with states inside the layer, or step by step, a neuron with a synaptic filter gave other
    numbers."""
    network = NetworkSpec.parse("12-4", input_shape=(6,), neuron=neuron)
    weights = dict(initial_weights(network, 1, 3.0))
    inputs = _problem(network, 25, 3).inputs
    whole = stsbp_backend.run(network, weights, inputs, 25)
    stream = stsbp_backend.stream(network, weights, 3)
    steps = np.stack([np.asarray(stream.step(frame)) for frame in inputs])
    spikes = list(whole.layers.values())[-1].spikes
    assert spikes.any()
    assert np.array_equal(steps, spikes)
