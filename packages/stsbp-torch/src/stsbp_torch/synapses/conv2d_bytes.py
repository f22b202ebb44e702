"""synapses/conv2d.py of the spec, forward, on bytes: exact integer sums by oneDNN's int8 convolution (CPU).

A weight of the grid is 16 times one signed byte plus another of 0 to 15. So a convolution of twice the channels, 16
times the input and the input, with these bytes as its weights, is the whole product. Processors with byte products
(AVX512-VNNI, AMX) do it in a fraction of the time of the float32 convolution, and read the bytes that spikes are.

The operator belongs to torch's quantisation, and torch promises little about it: it is tried on each shape once
against the float32 convolution, and left alone where it is missing or differs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from stsbp_spec.grid import EXACT_LIMIT_BITS
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.typing import Shape

from stsbp_torch.layout import frames
from stsbp_torch.synapses import conv2d

__all__ = ["LARGEST", "doubled", "forward", "usable"]

_LOW_BITS = 4
LARGEST = 15
"""The largest input: 16 times it is a byte."""
_agrees: dict[tuple[Conv2d, Shape], bool] = {}


def usable(conv: Conv2d, shape: Shape, largest: int) -> bool:
    """Whether `forward` is exact and fast here.

    Args:
        conv: the convolution, `square`.
        shape: of one frame, `(C, H, W)`.
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
    s = torch.randint(0, LARGEST + 1, (1, 2, h, w, c), generator=generator, dtype=torch.uint8)
    s = s.permute(0, 1, 4, 2, 3)
    # So small that the sums are exact whatever the inputs.
    limit = max(1, min(2047, 2**EXACT_LIMIT_BITS // (c * conv.area * LARGEST)))
    wq = torch.randint(-limit, limit + 1, conv.weight_shape(shape), generator=generator).float() / 2048
    try:
        return torch.equal(forward(conv, doubled(s), wq), conv2d.forward(conv, s, wq)[0])
    except (AttributeError, RuntimeError, TypeError):
        return False


def doubled(s: torch.Tensor) -> torch.Tensor:
    """`16 s` and `s`, at most 15, one after the other along the channels, laid out."""
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
    exponent = 11 - math.frexp(float(wq.abs().max()))[1]
    units = (wq * 2.0**exponent).short()
    w = torch.cat([units >> _LOW_BITS, units & (2**_LOW_BITS - 1)], 1).to(torch.int8)
    ops: Any = torch.ops.onednn
    scales, zeros = torch.full((len(w),), scale * 2.0**-exponent), torch.zeros(len(w), dtype=torch.int64)
    geometry: tuple[Any, ...] = (conv.strides, conv.paddings, [1, 1], 1)
    packed = ops.qconv_prepack(w, scales, 1.0, 0, *geometry, list(x.shape))
    tail = (None, *geometry, 1.0, 0, torch.float32, "none", [], "")
    z: torch.Tensor = ops.qconv2d_pointwise(x, 1.0, 0, packed, scales, zeros, *tail)
    memory = z.permute(0, 2, 3, 1).contiguous()
    return memory.view(*s.shape[:2], *memory.shape[1:]).permute(0, 1, 4, 2, 3)
