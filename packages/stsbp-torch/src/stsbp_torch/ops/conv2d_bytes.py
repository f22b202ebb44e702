"""The forward pass of ops/conv2d.py of the spec on bytes: exact integer sums by oneDNN's int8 convolution (CPU).

A weight on its grid is 16 times a signed byte, plus another byte from 0 to 15. So the result is a convolution with
twice the number of channels. Its inputs are 16 times the input and the input itself, and its weights are these bytes.
Processors with byte products (AVX512-VNNI, AMX) compute it in a fraction of the time of the float32 convolution. They
read spikes directly, because spikes are stored as bytes.

The operator belongs to torch's quantisation, and torch promises little about it. So for each shape, the operator is
compared once with the float32 convolution. If the operator is missing or differs, it is not used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from stsbp_cpu.ops.sparse.integer_conv import BITS, spare_bits
from stsbp_spec.contract.grid import EXACT_LIMIT_BITS
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.typing import Shape

from stsbp_torch.engine.layout import frames
from stsbp_torch.ops import conv2d

__all__ = ["LARGEST", "doubled", "forward", "usable"]

_LOW_BITS = 4
LARGEST = 15
"""The largest input. 16 times this value still fits in a byte."""
_agrees: dict[tuple[Conv2d, Shape], bool] = {}


# Not bf16, which is exact for weights of 9 bits only. With AMX (Intel Xeon, 2 cores, 25 November 2026), conv2 of
# N-MNIST took 37 ms in float32 and 32 ms in bf16, that of CIFAR-10 58 ms and 40 ms; bytes take a third of float32.
def usable(conv: Conv2d, shape: Shape, largest: int) -> bool:
    """Whether `forward` is exact and fast on this processor.

    Args:
        conv: the convolution, which must be `square`.
        shape: shape of a frame, `(C, H, W)`.
        largest: the largest input.
    """
    if largest > LARGEST or not torch.cpu._is_vnni_supported():
        return False
    if (conv, shape) not in _agrees:
        _agrees[conv, shape] = _try(conv, shape)
    return _agrees[conv, shape]


def _try(conv: Conv2d, shape: Shape) -> bool:
    generator = torch.Generator().manual_seed(1)
    c, h, w = shape
    s = torch.randint(0, LARGEST + 1, (1, 2, h, w, c), generator=generator, dtype=torch.uint8, device="cpu")
    s = s.permute(0, 1, 4, 2, 3)
    # The weights are so small that the sums are exact for all inputs.
    limit = max(1, min(2047, 2**EXACT_LIMIT_BITS // (c * conv.area * LARGEST)))
    wq = torch.randint(-limit, limit + 1, conv.weight_shape(shape), generator=generator, device="cpu").float() / 2048
    try:
        return torch.equal(forward(conv, doubled(s), wq), conv2d.forward(conv, s, wq)[0])
    except (AttributeError, RuntimeError, TypeError):
        return False


def doubled(s: torch.Tensor) -> torch.Tensor:
    """`16 s` followed by `s` along the channels, laid out. `s` is at most 15."""
    memory = s.permute(0, 1, 3, 4, 2)
    return torch.cat([memory << _LOW_BITS, memory], -1).permute(0, 1, 4, 2, 3)


def forward(conv: Conv2d, s: torch.Tensor, wq: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`z = W * (scale s)`, float32 `[T, B, C', H', W']`.

    Args:
        conv: the convolution.
        s: `doubled` bytes, `[T, B, 2 C, H, W]`, laid out.
        wq: weights on their grid, at most 12 bits.
        scale: a power of two.
    """
    x = frames(s)
    exponent = BITS - 1 - math.frexp(float(wq.abs().max()))[1]
    units = (wq * 2.0**exponent).short()
    # Only in units of their own grid, which may be coarser than 12 bits, do sums have at most 24 bits.
    spare = spare_bits(units.numpy())
    units, exponent = units >> spare, exponent - spare
    w = torch.cat([units >> _LOW_BITS, units & (2**_LOW_BITS - 1)], 1).to(torch.int8)
    ops: Any = torch.ops.onednn
    scales = torch.full((len(w),), scale * 2.0**-exponent, dtype=torch.float32, device="cpu")
    zeros = torch.zeros(len(w), dtype=torch.int64, device="cpu")
    geometry: tuple[Any, ...] = (conv.strides, conv.paddings, [1, 1], 1)
    packed = ops.qconv_prepack(w, scales, 1.0, 0, *geometry, list(x.shape))
    tail = (None, *geometry, 1.0, 0, torch.float32, "none", [], "")
    z: torch.Tensor = ops.qconv2d_pointwise(x, 1.0, 0, packed, scales, zeros, *tail)
    memory = z.permute(0, 2, 3, 1).contiguous()
    return memory.view(*s.shape[:2], *memory.shape[1:]).permute(0, 1, 4, 2, 3)
