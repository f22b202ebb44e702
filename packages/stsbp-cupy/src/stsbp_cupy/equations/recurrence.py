"""The spec's equations as kernels: printed, compiled once per text, and launched.

One thread computes all steps of W neighbouring elements, with their states in registers. The text of the spec
(printers.py) defines one step of an element. This file contains the code around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from string import Template
from textwrap import indent

import numpy as np
from stsbp_spec.engine.kernel_cache import digest
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence, ordered
from stsbp_spec.equations.printers import LANGUAGES, lines

from stsbp_cupy.engine.runtime import Array, Runtime, lanes_of, logical, memory
from stsbp_cupy.engine.source import CudaSource

__all__ = ["kernel", "recur"]

# Names of the equation end in "_", and names in this template do not, so an equation may use any name.
_FRAME = Template("""\
#include "contract.cuh"

template <int W>
__device__ __forceinline__ void run(
$parameters) {
    ELEMENTS_OF_THREAD(first, W, n) {
$before
#pragma unroll $unroll
        for ($loop) {
$loads
#pragma unroll
            for (int lane = 0; lane < W; ++lane) {
$step
            }
$stores
        }
$after
    }
}

extern "C" __global__ void $name(
$parameters,
    int lanes) {
    if (lanes == 4) {
        run<4>($arguments);
    } else {
        run<1>($arguments);
    }
}
""")
_C_TYPES = {"float32": "float", "uint8": "unsigned char"}


@cache
def kernel(
    recurrence: Recurrence, dtypes: tuple[str, ...], summed: tuple[str, ...], in_memory: bool = False
) -> CudaSource:
    """A recurrence as a source with one kernel, which has the source's name.

    Parameters of the kernel: the number of elements and of steps; for each input its array, and its number of elements
    between one step and the next (0: the same at every step); for each output its array; the recurrence's own
    parameters; W, which is 4 or 1.

    Args:
        recurrence: the equation.
        dtypes: types of the inputs, `float32` or `uint8`.
        summed: outputs that are added over the steps.
        in_memory: whether the recurrence's own parameters are a float32 array instead of numbers.
    """
    program = lines(recurrence, LANGUAGES["cuda"])
    types = {name: _C_TYPES[dtype] for name, dtype in zip(recurrence.inputs, dtypes, strict=True)}
    output_types = {name: _C_TYPES[_dtype(recurrence, name)] for name in recurrence.outputs}
    names_read = {x.name for x in ordered(recurrence.roots) if x.op == "variable"}
    inputs, states = (
        [name for name in names if name in names_read] for names in (recurrence.inputs, recurrence.states)
    )

    parameters = ["long long n", "int steps"]
    for name, ctype in types.items():
        parameters += [f"const {ctype}* __restrict__ {name}_in", f"long long {name}_step"]
    parameters += [f"{ctype}* __restrict__ {name}_out" for name, ctype in output_types.items()]
    numbers = [f"float {name}_" for name in recurrence.parameters]
    parameters += ["const float* __restrict__ numbers"] if in_memory else numbers

    prologue = [f"const {declaration} = numbers[{i}];" for i, declaration in enumerate(numbers)] if in_memory else []
    prologue += [f"float {name}_state[W] = {{}};" for name in states]
    loads = [f"const auto {name}_read = load<W>({name}_in + t * {name}_step + first);" for name in inputs]
    written = {name: f"Lanes<{ctype}, W> {name}_written" for name, ctype in output_types.items()}
    step = [f"const float {name}_ = {name}_read.x[lane];" for name in inputs]
    step += [f"const float {name}_ = {name}_state[lane];" for name in states]
    step += [line.text for line in program.lines]
    prologue += [f"{written[name]} = {{}};" for name in output_types if name in summed]
    loads += [f"{written[name]};" for name in output_types if name not in summed]
    for name, x in program.outputs.items():
        new = f"__fadd_rn({name}_written.x[lane], {x})" if name in summed else x
        step.append(f"{name}_written.x[lane] = {new};")
    stores = [f"store({name}_out + t * n + first, {name}_written);" for name in output_types if name not in summed]
    epilogue = [f"store({name}_out + first, {name}_written);" for name in output_types if name in summed]
    step += [f"{name}_state[lane] = {program.states[name]};" for name in states]

    text = _FRAME.substitute(
        name="$name",
        parameters=indent(",\n".join(parameters), " " * 4),
        arguments=", ".join(declaration.split()[-1] for declaration in parameters),
        loop="int t = steps - 1; t >= 0; --t" if recurrence.reverse else "int t = 0; t < steps; ++t",
        unroll=(2 if recurrence.reverse else 4) if states else 1,
        before=_block(prologue, 8),
        loads=_block(loads, 12),
        step=_block(step, 16),
        stores=_block(stores, 12),
        after=_block(epilogue, 8),
    ).replace(f"{_NOTHING}\n", "")
    name = f"recur_{recurrence.name}_{digest(text)[:16]}"
    return CudaSource(name, Template(text).substitute(name=name))


_NOTHING = "// nothing"


def _block(statements: Sequence[str], depth: int) -> str:
    return indent("\n".join(statements), " " * depth) or _NOTHING


def _dtype(recurrence: Recurrence, output: str) -> str:
    return "uint8" if recurrence.outputs[output].is_condition else "float32"


def recur(
    rt: Runtime,
    recurrence: Recurrence,
    constants: Constants,
    inputs: Mapping[str, Array],
    steps: int,
    *,
    summed: tuple[str, ...],
    numbers: Array | None = None,
) -> dict[str, Array]:
    """`AbstractBackend.recur`. Inputs are not copied if they have the same memory layout.

    `numbers` are the constants as a float32 array. None: the kernel takes them by value.

    Raises:
        TypeError: the shape or the steps of an input do not fit the first input, which is a bug of the caller.
    """
    arrays = [x if x.dtype in _DTYPES else x.astype(np.float32) for x in map(inputs.__getitem__, recurrence.inputs)]
    shape = arrays[0].shape[1:]
    for name, x in zip(recurrence.inputs, arrays, strict=True):
        if x.shape[1:] != shape or len(x) not in (1, steps):
            raise TypeError(f"{recurrence.name}: {name} must be {(steps, *shape)}, or one step of it, got {x.shape}")
    last = _channels_last(rt, arrays)
    arrays = [memory(rt, x) if last else rt.xp.ascontiguousarray(x) for x in arrays]
    shape = arrays[0].shape[1:]
    outputs = {
        name: rt.empty((1 if name in summed else steps, *shape), _dtype(recurrence, name))
        for name in recurrence.outputs
    }
    n = math.prod(shape)
    if not recurrence.states and not summed and all(len(x) == steps for x in arrays):
        n, steps = n * steps, 1  # all steps are independent of each other
    source = kernel(recurrence, tuple(x.dtype.name for x in arrays), summed, numbers is not None)
    rt.load(source)
    lanes = lanes_of(n, *arrays, *outputs.values())
    rt.launch(
        source.name, min(rt.element_threads, n // lanes), n, steps,
        *(value for x in arrays for value in (x, n if len(x) > 1 else 0)), *outputs.values(),
        *([constants[name] for name in recurrence.parameters] if numbers is None else [numbers]), lanes,
    )  # fmt: skip
    return {name: logical(rt, x) for name, x in outputs.items()} if last else outputs


_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))


def _channels_last(rt: Runtime, arrays: Sequence[Array]) -> bool:
    """Whether to use channels-last memory, because fewer arrays must then be copied than with the order of the axes."""
    in_order = sum(bool(x.flags.c_contiguous) for x in arrays)
    if in_order == len(arrays) or arrays[0].ndim < 4:
        return False
    return in_order <= sum(bool(rt.xp.moveaxis(x, -3, -1).flags.c_contiguous) for x in arrays)
