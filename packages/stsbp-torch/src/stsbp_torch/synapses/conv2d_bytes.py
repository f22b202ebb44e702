"""synapses/conv2d.py of the spec, forward, on bytes: exact integer sums by oneDNN's int8 convolution (CPU).

A weight of the grid is 16 times one signed byte plus another of 0 to 15, so two convolutions of bytes, added in
float32 on the grid, are the whole product. Processors with byte products (AVX512-VNNI, AMX) do both in a fraction of
the time of one float32 convolution, and the input is read as the bytes that spikes are.

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

__all__ = ["forward", "usable"]

_LOW_BITS = 4
_agrees: dict[tuple[Conv2d, Shape], bool] = {}


def usable(conv: Conv2d, shape: Shape, largest: int) -> bool:
    """Whether `forward` is exact and fast here.

    Args:
        conv: the convolution.
        shape: of the input, `[T, B, C, H, W]`.
        largest: the largest input.
    """
    fan_in = shape[2] * conv.kernel**2
    if largest > 255 or fan_in * largest * 2**_LOW_BITS >= 2**EXACT_LIMIT_BITS or not torch.cpu._is_vnni_supported():
        return False
    key = (conv, shape[2:])
    if key not in _agrees:
        _agrees[key] = _try(conv, shape, largest)
    return _agrees[key]


def _try(conv: Conv2d, shape: Shape, largest: int) -> bool:
    generator = torch.Generator().manual_seed(1)
    t, b, c, h, w = (1, 2, *shape[2:])
    s = torch.randint(0, largest + 1, (t, b, h, w, c), generator=generator, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    # So small that the sums are exact whatever the inputs.
    limit = max(1, min(2047, 2**EXACT_LIMIT_BITS // (c * conv.kernel**2 * largest)))
    size = (conv.channels, c, conv.kernel, conv.kernel)
    wq = torch.randint(-limit, limit + 1, size, generator=generator).float() / 2048
    try:
        return torch.equal(forward(conv, s, wq), conv2d.forward(conv, s, wq)[0])
    except (AttributeError, RuntimeError, TypeError):
        return False


def forward(conv: Conv2d, s: torch.Tensor, wq: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`z = W * (scale s)`, float32 `[T, B, C', H', W']`.

    Args:
        conv: the convolution.
        s: uint8 `[T, B, C, H, W]`, laid out.
        wq: weights on their grid, at most 12 bits.
        scale: a power of two.
    """
    x = frames(s)
    exponent = 11 - math.frexp(float(wq.abs().max()))[1]
    units = (wq * 2.0**exponent).short()
    unit = scale * 2.0**-exponent
    z = _convolve(conv, x, (units >> _LOW_BITS).to(torch.int8), unit * 2**_LOW_BITS, None)
    low = units & (2**_LOW_BITS - 1)
    if low.any():
        z = _convolve(conv, x, low.to(torch.int8), unit, z)
    memory = z.permute(0, 2, 3, 1).contiguous()
    return memory.view(*s.shape[:2], *memory.shape[1:]).permute(0, 1, 4, 2, 3)


def _convolve(conv: Conv2d, x: torch.Tensor, w: torch.Tensor, unit: float, onto: torch.Tensor | None) -> torch.Tensor:
    """`unit (w * x)` as float32, added to `onto`."""
    ops: Any = torch.ops.onednn
    units = torch.full((len(w),), unit)
    zeros = torch.zeros(len(w), dtype=torch.int64)
    geometry: tuple[Any, ...] = ([conv.stride] * 2, [conv.padding] * 2, [1, 1], 1)
    packed = ops.qconv_prepack(w, units, 1.0, 0, *geometry, list(x.shape))
    given = (x, 1.0, 0, packed, units, zeros)
    result: torch.Tensor
    if onto is None:
        result = ops.qconv2d_pointwise(*given, None, *geometry, 1.0, 0, torch.float32, "none", [], "")
    else:
        tail = (None, *geometry, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
        result = ops.qconv2d_pointwise.binary(*given, onto, *tail)
    return result
