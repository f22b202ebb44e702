"""CUDA kernels (Triton) for equations over time and for dropout masks.

Each lane computes one element. The loop over T is inside the kernel, and states stay in registers. Multiplications and
additions are not fused (`enable_fp_fusion=False`), so each operation of the printed equation is rounded once. Divisions
and square roots are correctly rounded.
"""

from __future__ import annotations

import linecache
import math
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.contract.random import Stream, check_seed
from stsbp_spec.engine.kernel_cache import digest
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import LANGUAGES, lines
from stsbp_spec.typing import Shape

from stsbp_torch.engine.layout import laid_out, rows
from stsbp_torch.equations.recurrence import outputs_of

__all__ = ["BLOCK", "keep_mask", "kernel", "recur", "text"]

BLOCK = 256
"""Number of elements that a program of Triton computes."""
_FLOOR = tl.constexpr(FLOOR)
_WIDTH = tl.constexpr(BLOCK)
"""`BLOCK` in the kernels, which read no other globals than constants of Triton."""


@triton.jit
def _snap(x):  # type: ignore[no-untyped-def]
    return tl.where(tl.abs(x) < _FLOOR, 0.0, x)


@cache
def text(recurrence: Recurrence, static: frozenset[str], summed: tuple[str, ...]) -> str:
    """The source of the kernel for a recurrence. Names in a recurrence never begin with an underscore.

    Args:
        recurrence: the equation.
        static: inputs with one value for all steps.
        summed: outputs that are summed over the steps.
    """
    program = lines(recurrence, LANGUAGES["triton"])
    outputs = program.outputs
    arrays = (*(f"_of_{x}" for x in recurrence.inputs), *(f"_to_{x}" for x in outputs))
    zero = [*recurrence.states, *(f"_sum_{x}" for x in summed)]
    body = [
        f"{x} = tl.load(_of_{x} + {'_at' if x in static else '_row + _at'}, mask=_inside, other=0).to(tl.float32)"
        for x in recurrence.inputs
    ]
    body += [line.text for line in program.lines]
    for x, value in outputs.items():
        value_text = f"{value}.to(tl.uint8)" if recurrence.outputs[x].is_condition else value
        body.append(
            f"_sum_{x} += {value}" if x in summed else f"tl.store(_to_{x} + _row + _at, {value_text}, mask=_inside)"
        )
    if program.states:  # all at once: a new state may be the old one of another
        body.append(f"{', '.join(program.states)} = {', '.join(program.states.values())}")
    source_lines = [
        f"def {recurrence.name}(_parameters, _count, _steps, {', '.join(arrays)}, _BLOCK: tl.constexpr):",
        # A Python number would be folded into the code in another precision.
        *(f"    {x} = tl.load(_parameters + {i})" for i, x in enumerate(recurrence.parameters)),
        "    _at = tl.program_id(0).to(tl.int64) * _BLOCK + tl.arange(0, _BLOCK)",
        "    _inside = _at < _count",
        *(f"    {x} = tl.zeros([_BLOCK], tl.float32)" for x in zero),
        "    for _step in range(_steps):",
        f"        _row = tl.cast({'_steps - 1 - _step' if recurrence.reverse else '_step'}, tl.int64) * _count",
        *(f"        {line}" for line in body),
        *(f"    tl.store(_to_{x} + _at, _sum_{x}, mask=_inside)" for x in summed),
    ]
    return "\n".join(source_lines) + "\n"


@cache
def kernel(recurrence: Recurrence, static: frozenset[str], summed: tuple[str, ...]) -> Any:
    """`text`, compiled. Triton reads the source from `linecache`, as tracebacks do."""
    source = text(recurrence, static, summed)
    file = f"<stsbp {recurrence.name} {digest(source)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope = {"__name__": __name__, "tl": tl, "snap": _snap}
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope[recurrence.name])


def recur(
    recurrence: Recurrence,
    parameters: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    steps: int,
    *,
    summed: tuple[str, ...],
) -> dict[str, torch.Tensor]:
    """Implements `AbstractBackend.recur`. `parameters` are the values of the constants on the device."""
    arrays = {name: laid_out(inputs[name]) for name in recurrence.inputs}
    shape, device = next(iter(arrays.values())).shape[1:], next(iter(arrays.values())).device
    outputs = outputs_of(recurrence, steps, shape, device, summed)
    count = shape.numel()
    static = frozenset(name for name, x in arrays.items() if len(x) == 1)
    # Triton launches on torch's current device.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel(recurrence, static, summed)[(triton.cdiv(count, BLOCK),)](
            parameters, count, steps, *(rows(x) for x in (*arrays.values(), *outputs.values())),
            _BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
    return outputs


@triton.jit
def _rounds(x0, x1, a, b, c, d):  # type: ignore[no-untyped-def]
    """Four rounds of Threefry-2x32 (random.py)."""
    x0 += x1
    x1 = ((x1 << a) | (x1 >> (32 - a))) ^ x0
    x0 += x1
    x1 = ((x1 << b) | (x1 >> (32 - b))) ^ x0
    x0 += x1
    x1 = ((x1 << c) | (x1 >> (32 - c))) ^ x0
    x0 += x1
    x1 = ((x1 << d) | (x1 >> (32 - d))) ^ x0
    return x0, x1


# Fills `mask`, uint8 `[count]`, from element `first_element` of the batch on. `seed` and `stream` are the key of the
# generator. Its counter is half the element's number and `step`, because a block has two words. An element is kept if
# its word is at least `threshold`. No argument is specialised, as each new number would compile another kernel.
@triton.jit(do_not_specialize=["count", "first_element", "area", "channels", "seed", "stream", "step", "threshold"])
def _keep_mask_kernel(mask, count, first_element, area, channels, seed, stream, step, threshold):  # type: ignore[no-untyped-def]
    element = tl.program_id(0).to(tl.int64) * _WIDTH + tl.arange(0, _WIDTH)
    # Elements count in the order [B, C, H W], and lie channels last.
    pixel = element // channels
    number = first_element + (pixel // area * channels + element % channels) * area + pixel % area
    k0, k1 = seed.to(tl.uint32), stream.to(tl.uint32)
    k2 = k0 ^ k1 ^ 0x1BD11BDA
    x0, x1 = (number // 2).to(tl.uint32) + k0, step.to(tl.uint32) + k1
    x0, x1 = _rounds(x0, x1, 13, 15, 26, 6)
    x0, x1 = _rounds(x0 + k1, x1 + k2 + 1, 17, 29, 16, 24)
    x0, x1 = _rounds(x0 + k2, x1 + k0 + 2, 13, 15, 26, 6)
    x0, x1 = _rounds(x0 + k0, x1 + k1 + 3, 17, 29, 16, 24)
    x0, x1 = _rounds(x0 + k1, x1 + k2 + 4, 13, 15, 26, 6)
    word = tl.where(number % 2 == 0, x0 + k2, x1 + k0 + 5)
    tl.store(mask + element, (word.to(tl.int64) >= threshold).to(tl.uint8), mask=element < count)


def keep_mask(
    seed: int, layer: int, step: int, shape: Shape, rate: float, first: int, device: torch.device
) -> torch.Tensor:
    """`random.keep_mask` from sample `first` of the batch on, `[B, ...]`. Frames are channels last in memory."""
    spatial = len(shape) == 4
    channels, area = (shape[1], shape[2] * shape[3]) if spatial else (1, math.prod(shape[1:]))
    memory_shape = (shape[0], *shape[2:], shape[1]) if spatial else shape
    mask = torch.empty(memory_shape, dtype=torch.uint8, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _keep_mask_kernel[(triton.cdiv(mask.numel(), BLOCK),)](
            # The key of random.py, `stream + 256 * substream`. The substream is the layer.
            mask, mask.numel(), first * math.prod(shape[1:]), area, channels, check_seed(seed),
            (int(Stream.DROPOUT) + 256 * layer) & 0xFFFFFFFF, step & 0xFFFFFFFF, round(rate * 2**32),
            enable_fp_fusion=False,
        )  # fmt: skip
    return mask.permute(0, 3, 1, 2) if spatial else mask
