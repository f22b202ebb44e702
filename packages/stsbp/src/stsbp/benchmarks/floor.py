"""The dense lower bound: a network with identity neurons, in torch, in its fastest layout.

It only has convolutions, fully connected layers and pooling, forward and backward, channels-last, on all T steps at
once. No library that computes all frames densely can be faster. It has no neurons, no loss and no update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.encoders.packed import Inputs, unpacked
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, MaxPool2d, Upsample2d
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32

if TYPE_CHECKING:
    import torch

__all__ = ["dense_floor"]


def dense_floor(
    network: NetworkSpec, weights: dict[str, Float32], batch: Batch[Inputs], device: str = "cpu"
) -> Callable[[], None]:
    """One forward and backward pass with identity neurons.

    Args:
        network: the network.
        weights: weights by layer name.
        batch: the batch. Its inputs are used as frames; an image (direct coding) is used at every step.
        device: a device of torch.
    """
    import torch

    steps = len(batch.targets)
    inputs = unpacked(batch.inputs)
    if network.coding == "direct":
        inputs = np.repeat(inputs[None], steps, 0)
    frames: torch.Tensor = torch.from_numpy(np.ascontiguousarray(inputs)).to(device)
    frames = frames.reshape(-1, *network.input_shape).float()
    if network.coding == "direct":
        frames = frames * 2.0**-8
    parameters = {name: torch.from_numpy(w.copy()).to(device) for name, w in weights.items()}
    if len(network.input_shape) == 3:
        frames = frames.contiguous(memory_format=torch.channels_last)
        for name, w in parameters.items():
            if w.ndim == 4:
                parameters[name] = w.contiguous(memory_format=torch.channels_last)
    for w in parameters.values():
        w.requires_grad_()
    error = torch.ones((len(frames), network.outputs), dtype=torch.float32, device=device)

    def run() -> None:
        for w in parameters.values():
            w.grad = None
        torch.autograd.backward(_output(network, parameters, frames), error)
        if error.is_cuda:
            torch.cuda.synchronize(error.device)

    return run


def _output(network: NetworkSpec, parameters: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """The outputs `[T B, N]` of a network without neurons, for frames `x` `[T B, C, H, W]` or `[T B, N]`."""
    import torch

    function = torch.nn.functional
    for block in network.blocks:
        for layer, _ in block.entering:
            if isinstance(layer, AvgPool2d):
                x = function.avg_pool2d(x, layer.sizes)
            elif isinstance(layer, MaxPool2d):
                x = function.max_pool2d(x, layer.sizes)
            elif isinstance(layer, Upsample2d):
                x = function.interpolate(x, scale_factor=tuple(map(float, layer.factors)), mode="nearest")
            elif isinstance(layer, Flatten):
                x = x.flatten(1)
        w = parameters[block.name]
        if isinstance(block.synapse, Conv2d):
            conv = block.synapse
            x = function.conv2d(x, w, None, conv.strides, conv.paddings, conv.dilations, conv.groups)
        else:
            x = function.linear(x.flatten(1), w)
    return x
