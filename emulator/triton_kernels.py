"""The Triton kernels of stsbp-torch, compiled ahead of time and run as PTX in the interpreter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton
from stsbp_spec.contract.random import Stream, check_seed
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.typing import AnyArray, Shape
from stsbp_torch.equations import fused_cuda
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from emulator.ptx.machine import launch
from emulator.ptx.memory import poison
from emulator.ptx.parse import Kernel, parse

__all__ = ["VARIANTS", "TritonFinding", "keep_mask", "recur"]

VARIANTS: Counter[str] = Counter()
"""Number of launches of each compiled variant."""
_COMPILED: dict[Any, tuple[Kernel, Any]] = {}
_TYPES = {"float32": "*fp32", "uint8": "*u8", "int64": "*i64"}


class TritonFinding(AssertionError):
    """A launch did something that a device answers with an error, with undefined bits, or only sometimes."""


def _run(
    kernel: Any, values: Mapping[str, Any], count: int, architecture: int, aligned: bool, seed: int | None
) -> None:
    """Launch a kernel on arrays and numbers by the names of its parameters.

    `aligned`: tell Triton which arguments are multiples of 16, as its just-in-time compiler does; else it assumes none.
    """
    signature, constants, multiples, arguments = {}, {}, [], list[Any]()
    specialised = kernel is not fused_cuda._keep_mask_kernel
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if name == "_BLOCK" or (specialised and isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, np.ndarray):
            signature[name], divided = _TYPES[value.dtype.name], value.ctypes.data
        else:
            wide = not -(2**31) <= value < 2**31
            signature[name], divided = ("i64" if wide else "i32"), value if specialised else 1
            value = (np.int64 if wide else np.int32)(value)
        if aligned and divided % 16 == 0:
            multiples.append(i)
        arguments.append(value)
    key = (id(kernel), *signature.items(), *constants.items(), *multiples, architecture)
    if key not in _COMPILED:
        attributes = {(i,): [["tt.divisibility", 16]] for i in multiples}
        source = ASTSource(kernel, signature, constants, attributes)
        options = {"enable_fp_fusion": False}
        code = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        (function,) = parse(code.asm["ptx"]).kernels.values()
        _COMPILED[key] = function, code.metadata
    function, metadata = _COMPILED[key]
    # Triton adds pointers to scratch memory, which these kernels do not use.
    arguments += [np.uint64(0)] * (len(function.parameters) - len(arguments))
    VARIANTS[f"{function.name} {hash(key)}"] += 1
    threads, shared = 32 * metadata.num_warps, metadata.shared
    fresh = [isinstance(x, np.ndarray) and bool((x.reshape(-1).view(np.uint8) == 0xFF).all()) for x in arguments]
    grid = triton.cdiv(count, fused_cuda.BLOCK)
    result = launch(function, (grid,), (threads,), arguments, shared=shared, seed=seed, fresh=fresh)
    if result.findings:
        raise TritonFinding("\n".join(map(str, result.findings)))


def recur(
    recurrence: Recurrence,
    constants: Constants,
    inputs: Mapping[str, AnyArray],
    steps: int,
    *,
    summed: tuple[str, ...] = (),
    architecture: int = 80,
    aligned: bool = True,
    seed: int | None = None,
) -> dict[str, AnyArray]:
    """`fused_cuda.recur` on numpy arrays."""
    arrays = {name: np.ascontiguousarray(inputs[name]) for name in recurrence.inputs}
    shape = next(iter(arrays.values())).shape[1:]
    outputs = {
        name: np.empty((1 if name in summed else steps, *shape), np.uint8 if x.is_condition else np.float32)
        for name, x in recurrence.outputs.items()
    }
    for x in outputs.values():
        poison(x)
    static = frozenset(name for name, x in arrays.items() if len(x) == 1)
    kernel = fused_cuda.kernel(recurrence, static, summed)
    numbers = recurrence.numbers(constants)
    values = {"_parameters": numbers if len(numbers) else np.zeros(1, np.float32), "_steps": steps}
    values |= {"_count": math.prod(shape), "_BLOCK": fused_cuda.BLOCK}
    values |= {f"_of_{name}": x for name, x in arrays.items()} | {f"_to_{name}": x for name, x in outputs.items()}
    _run(kernel, values, math.prod(shape), architecture, aligned, seed)
    return outputs


def keep_mask(
    seed: int, layer: int, step: int, shape: Shape, rate: float, first: int, *, architecture: int = 80
) -> AnyArray:
    """`fused_cuda.keep_mask` as a numpy array."""
    spatial = len(shape) == 4
    channels, area = (shape[1], shape[2] * shape[3]) if spatial else (1, math.prod(shape[1:]))
    mask = np.empty((shape[0], *shape[2:], shape[1]) if spatial else shape, np.uint8)
    poison(mask)
    stream = (int(Stream.DROPOUT) + 256 * layer) & 0xFFFFFFFF
    numbers = (first * math.prod(shape[1:]), area, channels, check_seed(seed), stream, step & 0xFFFFFFFF)
    arguments = (mask, mask.size, *numbers, round(rate * 2**32))
    values = dict(zip(fused_cuda._keep_mask_kernel.arg_names, arguments, strict=True))
    _run(fused_cuda._keep_mask_kernel, values, mask.size, architecture, True, None)
    return np.moveaxis(mask, 3, 1) if spatial else mask
