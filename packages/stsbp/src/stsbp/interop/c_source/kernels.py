"""C functions for the operations between populations: weights, pooling, upsampling, merged branches.

Weights are only added for non-zero values, so a silent input costs one comparison. Weights are stored in the order of
the outputs that an input reaches, and sums of a convolution are channels-last. Additions then run over contiguous
memory.

In the C text, `c`, `y` and `x` are channel, row and column of an input, `i` and `j` row and column of a kernel or a
window, `v` is a value of the input, `w` points to the weights that it reaches, and `k` counts these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.networks.graph import Op
from stsbp_spec.networks.ops import Add, AvgPool2d, Concat, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.networks.ops.avgpool2d import Pool2d
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.ops.one_to_one import OneToOne
from stsbp_spec.typing import Shape

from stsbp.interop.c_source.arrays import Array
from stsbp.interop.c_source.texts import braced, function, loops, plus, quotient, times

__all__ = ["ConstantTable", "delayed", "ordered", "passes", "sums"]

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int16]]


class ConstantTable(NamedTuple):
    """A constant table: its name, and the type of its numbers."""

    name: str
    type: str

    def row(self, index: str) -> str:
        """A declaration of `w` as a pointer into the table."""
        return f"const {self.type} *w = &{self.name}[{index}];"


def _in_runs(conv: Conv2d) -> bool:
    """Whether the outputs that an input reaches through a row of the kernel are adjacent."""
    return conv.strides[1] == conv.dilations[1] == conv.groups == 1


def ordered(op: Op, integers: Integers, source: Array) -> Integers | None:
    """Weights in the order in which `sums` reads them; None: the operation is not supported."""
    if isinstance(op, Conv2d):
        units, per_group, *kernels = integers.shape
        grouped = integers.reshape(op.groups, units // op.groups, per_group, *kernels).transpose(0, 2, 3, 4, 1)
        # An input reaches its first output through the last column of the kernel.
        return grouped[:, :, :, ::-1] if _in_runs(op) else grouped
    if isinstance(op, Linear):
        return integers[:, source.order].T
    return integers if isinstance(op, OneToOne) else None


def sums(op: Op, name: str, weights: ConstantTable, source: Array, shape: Shape) -> list[str]:
    """A function that writes weighted sums of `shape`, in their own units.

    Args:
        op: `Conv2d`, `Linear` or `OneToOne`.
        name: name of the function.
        weights: the result of `ordered`.
        source: the input of the weights.
        shape: shape of the sums.
    """
    size = math.prod(shape)
    # For a spike, the product is the weight itself.
    product = "w[k]" if source.largest == 1 else "v * w[k]"
    if isinstance(op, OneToOne):
        body = [f"const int32_t v = {source.read('in', 'n')};", f"sum[n] = v * {weights.name}[n];"]
    else:
        body = ["sum[n] = 0;"]
    rows = loops([("n", size)], body)
    if isinstance(op, Conv2d):
        _, height, width = shape
        reached = _runs(op, weights, product, width) if _in_runs(op) else _taps(op, weights, product, source, width)
        rows += _spiking(source, _kernel_rows(op, height, reached))
    elif isinstance(op, Linear):
        added = loops([("k", size)], [f"sum[k] += {product};"])
        body = [f"const int32_t v = {source.read('in', 'n')};"]
        body += braced("if (v != 0)", [weights.row(times("n", size)), *added])
        rows += loops([("n", source.size)], body)
    return function(f"static void {name}(const {source.type} *in, int32_t *sum)", rows)


def _spiking(source: Array, rows: Sequence[str]) -> list[str]:
    """Loops over non-zero values `v`."""
    return loops(source.axes, [f"const int32_t v = {source.read('in', source.index())};", *braced("if (v != 0)", rows)])


def _kernel_rows(conv: Conv2d, height: int, rows: Sequence[str]) -> list[str]:
    """A loop over the rows `i` of a kernel through which the input row `y` reaches an output row `row`."""
    (pad, _), (dilation, _), (stride, _) = conv.paddings, conv.dilations, conv.strides
    body = [
        f"const int32_t below = {plus('y', pad)} - {times('i', dilation)};",
        *braced(
            f"if ({_reaches('below', height, stride)})", [f"const int32_t row = {quotient('below', stride)};", *rows]
        ),
    ]
    return loops([("i", conv.kernels[0])], body)


def _reaches(position: str, size: int, stride: int) -> str:
    """Whether a position before striding belongs to one of `size` outputs."""
    on_stride = "" if stride == 1 else f" && (({position} % {stride}) == 0)"
    return f"({position} >= 0) && ({position} < {size * stride}){on_stride}"


def _runs(conv: Conv2d, weights: ConstantTable, product: str, width: int) -> list[str]:
    """Add a row of the kernel at once. Its columns, with all channels, have the same order as the outputs they
    reach."""
    (rows, columns), pad, units = conv.kernels, conv.paddings[1], conv.channels
    row = f"({times('c', rows)} + i)"
    first = f"({times('row', width)} + first)"
    return [
        f"const int32_t left = {plus('x', pad - columns + 1)};",
        "const int32_t first = (left > 0) ? left : 0;",
        f"const int32_t last = (x < {width - pad}) ? {plus('x', pad)} : {width - 1};",
        f"const int32_t count = {times('((last - first) + 1)', units)};",
        weights.row(times(f"({times(row, columns)} + (first - left))", units)),
        f"int32_t *to = &sum[{times(first, units)}];",
        *braced("for (int32_t k = 0; k < count; k++)", [f"to[k] += {product};"]),
    ]


def _taps(conv: Conv2d, weights: ConstantTable, product: str, source: Array, width: int) -> list[str]:
    """Add one weight for each channel of the group, for each column `j` of the kernel that reaches an output."""
    (rows, columns), pad, dilation, stride = conv.kernels, conv.paddings[1], conv.dilations[1], conv.strides[1]
    units = conv.channels // conv.groups
    row, group = f"({times('c', rows)} + i)", quotient("c", source.shape[0] // conv.groups)
    first = "" if conv.groups == 1 else f" + {times(group, units)}"
    position = times(f"({times('row', width)} + {quotient('beside', stride)})", conv.channels)
    inner = [
        weights.row(times(f"({times(row, columns)} + j)", units)),
        f"int32_t *to = &sum[{position}{first}];",
        *loops([("k", units)], [f"to[k] += {product};"]),
    ]
    body = [
        f"const int32_t beside = {plus('x', pad)} - {times('j', dilation)};",
        *braced(f"if ({_reaches('beside', width, stride)})", inner),
    ]
    return loops([("j", columns)], body)


def passes(op: Op, name: str, sources: Sequence[Array], output: Array) -> list[str] | None:
    """A function for an operation without weights; None: the operation is not supported.

    Args:
        op: an operation of `_PASSES`.
        name: name of the function.
        sources: its inputs.
        output: its output.
    """
    if isinstance(op, Passing):
        op = op.at(sources[0].shape)
    if type(op) not in _PASSES:
        return None
    rows = _PASSES[type(op)](op, sources, output)
    names = [f"in{i}" for i in range(len(sources))] if len(sources) > 1 else ["in"]
    parameters = [f"const {array.type} *{text}" for array, text in zip(sources, names, strict=True)]
    return function(f"static void {name}({', '.join(parameters)}, {output.type} *out)", rows)


def delayed(
    name: str, steps: ConstantTable, source: Array, output: Array, past_type: str, at_type: str, *, bits: bool
) -> list[str]:
    """A function that delays each channel by its own whole number of steps.

    A channel with a delay of `r` steps has a ring of `r` steps in `past`. The oldest step of the ring is given, and
    then replaced by the present one. The rings of all channels lie one after the other.

    Args:
        name: name of the function.
        steps: the delay of each channel.
        source, output: the values before and after the delay.
        past_type: type of the elements of `past`.
        at_type: type of the positions in the rings.
        bits: whether `past` has eight values in an element, which are 0 or 1.
    """
    area = source.size // source.shape[0]
    if bits:
        store = ["const uint32_t bit = 1u << (cell & 7);"]
        store += ["const int32_t earlier = ((past[cell >> 3] & bit) != 0u) ? 1 : 0;"]
        store += [
            "past[cell >> 3] = (uint8_t)((v != 0) ? (past[cell >> 3] | bit) : (past[cell >> 3] & (0xFFu ^ bit)));"
        ]
    else:
        store = ["const int32_t earlier = (int32_t)past[cell];", f"past[cell] = ({past_type})v;"]
    body = [
        f"int32_t v = {source.read('in', source.index())};",
        *braced("if (length > 0)", [*store, "v = earlier;", "cell++;"]),
        _store_statement(output, output.index()),
    ]
    # In the order of the rows and columns, with any layout of the memory.
    inner = [axis for axis in source.axes if axis[0] != "c"]
    next_position = f"at[c] = ({at_type})(((int32_t)at[c] + 1 == length) ? 0 : ((int32_t)at[c] + 1));"
    rows = [
        f"const int32_t length = {steps.name}[c];",
        f"int32_t cell = start + {times('(int32_t)at[c]', area)};",
        *loops(inner, body),
        *braced("if (length > 0)", [next_position, f"start += {times('length', area)};"]),
    ]
    head = f"static void {name}(const {source.type} *in, {past_type} *past, {at_type} *at, {output.type} *out)"
    return function(head, ["int32_t start = 0;", *loops([("c", source.shape[0])], rows)])


def _average(op: AvgPool2d, sources: Sequence[Array], output: Array) -> list[str]:
    # The mean of a window is its sum in a finer unit.
    return _pooled(op, sources[0], output, "v += one;")


def _largest(op: MaxPool2d, sources: Sequence[Array], output: Array) -> list[str]:
    return _pooled(op, sources[0], output, "v = (one > v) ? one : v;")


def _upsampled(op: Upsample2d, sources: Sequence[Array], output: Array) -> list[str]:
    (source,), (row_factor, column_factor) = sources, op.factors
    index = source.index(y=quotient("y", row_factor), x=quotient("x", column_factor))
    return output.loop(f"const int32_t v = {source.read('in', index)};")


def _flattened(op: Flatten, sources: Sequence[Array], output: Array) -> list[str]:
    (source,) = sources
    _, height, width = source.shape
    position = f"{times('c', height * width)} + {times('y', width)} + x"
    return loops(
        source.axes, [f"const int32_t v = {source.read('in', source.index())};", _store_statement(output, position)]
    )


def _added(op: Add, sources: Sequence[Array], output: Array) -> list[str]:
    terms = [_in_units(f"in{i}", source, output) for i, source in enumerate(sources)]
    return output.loop(f"const int32_t v = {' + '.join(terms)};")


def _concatenated(op: Concat, sources: Sequence[Array], output: Array) -> list[str]:
    rows, first = list[str](), 0
    for i, source in enumerate(sources):
        position = output.index(c=f"({plus('c', first)})")
        rows += loops(
            source.axes,
            [f"const int32_t v = {_in_units(f'in{i}', source, output)};", _store_statement(output, position)],
        )
        first += source.shape[0]
    return rows


_PASSES: Mapping[type[Op], Callable[[Any, Sequence[Array], Array], list[str]]] = {
    AvgPool2d: _average,
    MaxPool2d: _largest,
    Upsample2d: _upsampled,
    Flatten: _flattened,
    Add: _added,
    Concat: _concatenated,
}
"""The statements of each operation without weights, from the operation, its inputs and its output."""


def _in_units(pointer: str, source: Array, output: Array) -> str:
    """A value of `source` in the unit of `output`."""
    return times(f"({source.read(pointer, source.index())})", 2 ** (output.exponent - source.exponent))


def _store_statement(output: Array, position: str) -> str:
    return f"out[{position}] = ({output.type})v;"


def _pooled(op: Pool2d, source: Array, output: Array, step: str) -> list[str]:
    """The statement `step` for each value `one` of a window. It leaves the value of the window in `v`."""
    rows, columns = op.sizes
    index = source.index(y=f"({times('y', rows)} + i)", x=f"({times('x', columns)} + j)")
    window = loops([("i", rows), ("j", columns)], [f"const int32_t one = {source.read('in', index)};", step])
    return output.loop("int32_t v = 0;", *window)
