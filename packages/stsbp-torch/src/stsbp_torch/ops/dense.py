"""Dense convolutions for the blocks of stsbp_cpu/engine/block.py: torch's convolutions of floats and of bytes."""

from __future__ import annotations

import numpy as np
import torch
from stsbp_cpu.engine.block import ConvInput, DenseConvolution
from stsbp_cpu.engine.layout import NUMPY
from stsbp_cpu.equations.vectors import LANES
from stsbp_cpu.ops import conv2d as own
from stsbp_cpu.ops.conv2d_bytes import doubled
from stsbp_spec.networks.ops import Conv2d
from stsbp_spec.typing import Shape

from stsbp_torch.engine.layout import TENSORS, empty, laid_out, view
from stsbp_torch.ops import conv2d, conv2d_bytes

__all__ = ["DENSE"]


class _OneDnnConvolution(DenseConvolution[torch.Tensor]):
    """Convolutions by oneDNN, except for the error signal of few input channels."""

    layout = TENSORS

    @property
    def byte_unit(self) -> str:
        return "tiles" if torch.cpu._is_amx_tile_supported() else "bytes"

    def forward(self, conv: Conv2d, s: torch.Tensor, wq: torch.Tensor) -> torch.Tensor:
        return conv2d.forward(conv, s, wq)[0]

    def backward(
        self, conv: Conv2d, s: torch.Tensor, wq: torch.Tensor, dz: torch.Tensor, *, need_input: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        grad_input, dw = conv2d.backward(
            conv, self.saved_for_backward(s, wq), dz, precision="fast", need_input=need_input
        )
        assert dw is not None
        return grad_input, dw

    # Processor time of a training step on one thread (Intel Xeon, 27 November 2026): 224 ms with either kernel on
    # N-MNIST, and on CIFAR-10 541 ms with stsbp's and 502 ms with oneDNN's.
    def input_error(self, conv: Conv2d, wq: torch.Tensor, dz: torch.Tensor, shape: Shape) -> torch.Tensor:
        if shape[2] >= LANES or not own.is_plain(conv):
            return conv2d.input_error(conv, wq, dz, shape)
        # With few channels, oneDNN's vectors are partly empty. stsbp_cpu fills them with a whole row of the window.
        memory, w = TENSORS.view(TENSORS.laid_out(dz)), np.ascontiguousarray(wq.detach().numpy())
        return TENSORS.from_memory(NUMPY.view(own.input_error(conv, w, NUMPY.from_memory(memory), shape)))

    def saved_for_backward(self, s: torch.Tensor, wq: torch.Tensor) -> conv2d.Conv2dSavedTensors:
        return conv2d.Conv2dSavedTensors(laid_out(s.float()), wq)

    def takes_bytes(self, conv: Conv2d, shape: Shape, largest: int) -> bool:
        return conv2d_bytes.usable(conv, shape, largest)

    def of_bytes(self, conv: Conv2d, conv_input: ConvInput[torch.Tensor], wq: torch.Tensor) -> torch.Tensor:
        t, b, c, h, w = conv_input.s.shape
        bytes_ = empty((t, b, 2 * c, h // conv_input.size, w // conv_input.size), torch.uint8, conv_input.s.device)
        s, size, mask, masked = conv_input.arrays(TENSORS)
        doubled(s, mask, masked, size, view(bytes_))
        return conv2d_bytes.forward(conv, bytes_, wq, 1 / conv_input.size**2)


DENSE = _OneDnnConvolution()
