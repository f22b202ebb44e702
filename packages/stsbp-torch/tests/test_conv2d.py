"""Convolutions with operands of any strides, and with kernels and chunks of one row, column or frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stsbp_spec import LIF, AbstractBackend, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Shape
from stsbp_torch.backend import TorchBackend
from stsbp_torch.ops import conv2d


def batch_of(net: NetworkSpec, steps: int, samples: int) -> Batch:
    rng = np.random.default_rng(0)
    inputs = (rng.random((steps, samples, *net.input_shape)) < 0.3).astype(np.uint8)
    return Batch(inputs, (rng.random((steps, samples, net.outputs)) < 0.4).astype(np.uint8))


@pytest.mark.parametrize(
    ("conv", "frame"), [(Conv2d(6, 3, (1, 2)), (1, 8, 3)), (Conv2d(4, (3, 1), groups=2), (4, 6, 5))]
)
def test_forward_takes_weights_of_any_strides(conv: Conv2d, frame: Shape) -> None:
    """Torch takes any stride on an axis of length 1 for channels last. OneDNN returns wrong sums for some strides."""
    rng, shape = np.random.default_rng(0), conv.weight_shape(frame)
    s = torch.from_numpy(rng.integers(0, 2, (3, 4, *frame)).astype(np.float32))
    w = torch.from_numpy(rng.integers(-9, 10, shape).astype(np.float32)).contiguous(memory_format=torch.channels_last)
    expected, _ = NumpyBackend().rules[Conv2d].forward(conv, s.numpy(), w.numpy())
    for stride in (0, 1, 3, 5, 9):
        strides = [
            stride if length == 1 else weight_stride for length, weight_stride in zip(shape, w.stride(), strict=True)
        ]
        z, _ = conv2d.forward(conv, s, w.as_strided(shape, strides))
        assert np.array_equal(z.numpy(), expected), strides


@pytest.mark.parametrize("device", ["cpu", "cpu:eager"])
@pytest.mark.parametrize(("notation", "shape"), [("6C2s1x2-9", (1, 8, 3)), ("1C1-6C3s1x2-9", (2, 8, 3))])
def test_updates_of_one_input_channel_have_the_bits_of_numpy(notation: str, shape: Shape, device: str) -> None:
    net = NetworkSpec.parse(notation, input_shape=shape, outputs=4, neuron=LIF(3, 5 / 3))
    weights, trained = initial_weights(net, 1, 3.0), []
    backends: tuple[AbstractBackend[Any], ...] = NumpyBackend(), TorchBackend(device)
    for backend in backends:
        trainer = backend.trainer(net, VanRossum(), AdamW(lr=0.1), precision="reproducible")
        state = trainer.init(weights)
        for _ in range(4):
            state, report = trainer.step(state, batch_of(net, 6, 5))
        trained.append((report.loss, state))
    (numpy_loss, numpy_state), (torch_loss, torch_state) = trained
    assert torch_loss == numpy_loss
    for name, w in numpy_state.weights.items():
        assert np.array_equal(w, torch_state.weights[name]), name


@pytest.mark.parametrize(
    ("notation", "shape", "steps", "samples", "frames"),
    [("3C3x1", (2, 4, 4), 1, 1, 1), ("2C3x1p1x0-P2", (3, 8, 8), 2, 3, 1), ("2C3x1p1x0-P2", (3, 8, 8), 1, 4, 3)],
)
def test_backward_takes_chunks_of_one_frame(
    notation: str, shape: Shape, steps: int, samples: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv2d, "_chunk", lambda *_: frames)
    net = NetworkSpec.parse(notation, input_shape=shape, outputs=4, neuron=LIF(3, 5 / 3))
    arguments = initial_weights(net, 1, 3.0), batch_of(net, steps, samples)
    expected = NumpyBackend().value_and_grad(net, VanRossum(), *arguments, precision="reproducible")
    result = TorchBackend("cpu:eager").value_and_grad(net, VanRossum(), *arguments, precision="reproducible")
    assert any(np.any(gradient) for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        assert np.array_equal(result.gradients[name], gradient), name
