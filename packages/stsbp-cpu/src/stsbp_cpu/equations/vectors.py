"""Vector operations that numba cannot express, written in LLVM's language: runs of 16 float32 values in registers.

Numba turns a plain loop into vector code, but it does not keep an array in registers across an outer loop. These
functions do. A multiplication and the following addition may or may not be fused. On the weight grid, the result is
exact in both cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from stsbp_spec.typing import AnyArray, Float32, Int16, Int32

__all__ = [
    "LANES",
    "NONE",
    "ONE",
    "ROOM",
    "SHORT_LANES",
    "add_scaled",
    "aligned_empty",
    "convert_bytes",
    "copy_vectors",
    "dot",
    "fetch",
    "fetch_to_write",
    "join_lists",
    "lanes_of",
    "list_set",
    "products",
    "stream",
    "sum_scaled",
    "sum_selected",
    "view",
    "view_of_rows",
    "wait_for_streams",
]  # fmt: skip

LANES = 16
"""Number of float32 values in a vector. Processors with narrower vectors use several instructions."""
SHORT_LANES = 32
"""Number of 16-bit integers in a vector."""
NONE, ONE = np.intp(0), np.intp(1)
"""0 and 1 as arguments of the functions below. For the literals 0 and 1, numba would compile the functions again."""

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
ROOM = 32
"""Number of additional entries for which a list must have room: see `list_set` and `join_lists`."""
_COMPARED_TOGETHER = 32
"""Number of elements that are compared with zero together."""
_WRITTEN_TOGETHER = 8
"""Number of entries that are written to a list together."""
_PIPELINED_ADDITIONS = 8
"""Number of additions that a processor executes at a time. It begins two in each cycle, and each takes four cycles."""


def _pointer(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _vector(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), _VECTOR.as_pointer())


def lanes_of(itemsize: int) -> int:
    """How many numbers of `itemsize` bytes a vector has. Kernels, which cannot call this, write `64 // itemsize`."""
    return 4 * LANES // itemsize


def _spread(builder: Any, x: Any, lanes: int = LANES) -> Any:
    undefined = ir.Constant(ir.VectorType(x.type, lanes), ir.Undefined)
    first_lane = builder.insert_element(undefined, x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first_lane, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _horizontal_sum(builder: Any, x: Any) -> Any:
    """The sum of a vector. It repeatedly adds one half to the other, because processors have instructions for this."""
    width = LANES
    while width > 1:
        width //= 2
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [(i + width) % LANES for i in range(LANES)])
        x = builder.fadd(x, builder.shuffle_vector(x, x, order))
    return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))


@njit  # type: ignore[untyped-decorator]
def aligned_empty(count: int) -> Float32:
    """`count` uninitialised float32 values that begin at a multiple of 64 bytes, so that no vector crosses a line."""
    memory = np.empty(count + LANES, np.float32)
    first = (-memory.ctypes.data % 64) // 4
    return memory[first : first + count]


def _inside(
    context: Any, builder: Any, array_type: Any, view_type: Any, array: Any, offset: Any, shape: Sequence[Any]
) -> Any:
    """An array of type `view_type` inside an array of type `array_type`. It does not keep this array alive."""
    parent = context.make_array(array_type)(context, builder, array)
    view = context.make_array(view_type)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    strides = [ir.Constant(offset.type, size)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    data = builder.gep(parent.data, [offset])
    populate_array(view, data=data, shape=shape, strides=strides, itemsize=ir.Constant(offset.type, size), meminfo=None)
    return view._getvalue()


def _contiguous(x: Any) -> Any:
    if x.layout != "C":
        raise TypingError(f"a view needs a contiguous array, got {x}")
    return x


@intrinsic  # type: ignore[untyped-decorator]
def view(typing_context: Any, x: Any, start: Any, count: Any) -> Any:
    """`x.reshape(-1)[start : start + count]` of a contiguous array that stays alive meanwhile.

    numba counts the references to an array. A slice of an array that a kernel made changes the count twice, which takes
    longer than a step of a few neurons. This view is not counted, and its bounds are not checked.
    """
    view_type = types.Array(_contiguous(x).dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _inside(context, builder, signature.args[0], view_type, arguments[0], arguments[1], [arguments[2]])

    return view_type(x, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def view_of_rows(typing_context: Any, x: Any, start: Any, rows: Any, count: Any) -> Any:
    """`view` as `[rows, count]`."""
    view_type = types.Array(_contiguous(x).dtype, 2, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _inside(context, builder, signature.args[0], view_type, arguments[0], arguments[1], arguments[2:])

    return view_type(x, types.intp, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_scaled(typing_context: Any, y: Any, y_start: Any, x: Any, x_start: Any, scale: Any, vectors: Any) -> Any:
    """`y[y_start : y_start + 16 vectors] += scale * x[x_start : x_start + 16 vectors]`; 1-d, contiguous float32
    arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        yp = _pointer(context, builder, signature.args[0], arguments[0])
        xp = _pointer(context, builder, signature.args[2], arguments[2])
        factor = _spread(builder, arguments[4])
        with cgutils.for_range(builder, arguments[5]) as loop:
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            target = _vector(builder, yp, builder.add(arguments[1], offset))
            source = builder.load(_vector(builder, xp, builder.add(arguments[3], offset)), align=4)
            builder.store(_multiply_add(builder, factor, source, builder.load(target, align=4)), target, align=4)
        return context.get_dummy_value()

    return types.void(y, types.intp, x, types.intp, types.float32, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_vectors(typing_context: Any, y: Any, y_start: Any, x: Any, x_start: Any, vectors: Any) -> Any:
    """`y[y_start : y_start + 16 vectors] = x[x_start : x_start + 16 vectors]`; 1-d, contiguous float32 arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        yp = _pointer(context, builder, signature.args[0], arguments[0])
        xp = _pointer(context, builder, signature.args[2], arguments[2])
        with cgutils.for_range(builder, arguments[4]) as loop:
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            source = builder.load(_vector(builder, xp, builder.add(arguments[3], offset)), align=4)
            builder.store(source, _vector(builder, yp, builder.add(arguments[1], offset)), align=4)
        return context.get_dummy_value()

    return types.void(y, types.intp, x, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def convert_bytes(typing_context: Any, y: Any, x: Any, vectors: Any, add: Any) -> Any:
    """`y[: 16 vectors] = x[: 16 vectors]`, from bytes to float32, or `+=` if `add` is true; 1-d, contiguous arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        yp = _pointer(context, builder, signature.args[0], arguments[0])
        xp = _pointer(context, builder, signature.args[1], arguments[1])
        bytes_ = ir.VectorType(ir.IntType(8), LANES).as_pointer()
        with builder.if_else(arguments[3]) as branches:
            for branch, adding in zip(branches, (True, False), strict=True):
                with branch, cgutils.for_range(builder, arguments[2]) as loop:
                    offset = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
                    source = builder.load(builder.bitcast(builder.gep(xp, [offset]), bytes_), align=1)
                    # Converted to int32 first, because every processor has an instruction for this.
                    converted = builder.sitofp(builder.zext(source, ir.VectorType(ir.IntType(32), LANES)), _VECTOR)
                    target = _vector(builder, yp, offset)
                    builder.store(
                        builder.fadd(builder.load(target, align=4), converted) if adding else converted, target, align=4
                    )
        return context.get_dummy_value()

    return types.void(y, x, types.intp, types.boolean), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _dot(
    typing_context: Any, x: Any, x_start: Any, x_stride: Any, y: Any, y_start: Any, y_stride: Any, rows: Any,
    vectors: Any, together: Any,
) -> Any:  # fmt: skip
    """`dot` with a constant number of vectors `together`, each of which is summed in its own register."""
    count = together.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        xp, yp = (_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 3))
        _, x_start, x_stride, _, y_start, y_stride, rows, vectors, _ = arguments
        word = x_start.type
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(count)]
        groups = builder.sdiv(vectors, ir.Constant(word, count))
        with cgutils.for_range(builder, rows) as row:
            x_row = builder.add(x_start, builder.mul(row.index, x_stride))
            y_row = builder.add(y_start, builder.mul(row.index, y_stride))
            with cgutils.for_range(builder, groups) as group:
                for v, total in enumerate(sums):
                    shift = builder.mul(group.index, ir.Constant(word, LANES * count))
                    shift = builder.add(shift, ir.Constant(word, LANES * v))
                    a = builder.load(_vector(builder, xp, builder.add(x_row, shift)), align=4)
                    b = builder.load(_vector(builder, yp, builder.add(y_row, shift)), align=4)
                    builder.store(_multiply_add(builder, a, b, builder.load(total)), total)
        values = [builder.load(total) for total in sums]
        while len(values) > 1:
            values = [builder.fadd(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        return _horizontal_sum(builder, values[0])

    integer = types.intp
    return types.float32(x, integer, integer, y, integer, integer, integer, integer, together), generate


@njit  # type: ignore[untyped-decorator]
def dot(
    x: Float32, x_start: int, x_stride: int, y: Float32, y_start: int, y_stride: int, rows: int, vectors: int
) -> np.float32:
    """Sum of `x[x_start + i * x_stride + j] * y[y_start + i * y_stride + j]` over `i < rows`, `j < 16 vectors`.

    `x` and `y` are 1-d and contiguous. The order of the sum depends only on `vectors`.
    """
    total: np.float32
    if vectors % 4 == 0:
        total = _dot(x, x_start, x_stride, y, y_start, y_stride, rows, vectors, 4)
    elif vectors % 2 == 0:
        total = _dot(x, x_start, x_stride, y, y_start, y_stride, rows, vectors, 2)
    else:
        total = _dot(x, x_start, x_stride, y, y_start, y_stride, rows, vectors, 1)
    return total


@intrinsic  # type: ignore[untyped-decorator]
def _stream(typing_context: Any, y: Any, x: Any, start: Any, cache_lines: Any) -> Any:
    """Copy lines of 64 bytes from `x[start:]` to `y[start:]`, past the caches; `y[start]` begins a cache line."""
    line = ir.VectorType(ir.IntType(32), LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # The elements may have any size: they are moved as the bits of a vector.
        target, source = (
            builder.bitcast(builder.gep(_pointer(context, builder, kind, array), [arguments[2]]), line.as_pointer())
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        )
        past = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, arguments[3]) as loop:
            value = builder.load(builder.gep(source, [loop.index]), align=1)
            builder.store(value, builder.gep(target, [loop.index]), align=64).set_metadata("nontemporal", past)
        return context.get_dummy_value()

    return types.void(y, x, types.intp, types.intp), generate


@njit  # type: ignore[untyped-decorator]
def stream(y: AnyArray, x: AnyArray) -> None:
    """`y[:] = x`, 1-d and contiguous, both of one type, for an array `y` that is not read again soon.

    `y` is not loaded into the caches, and its memory is not read before it is written. Other threads may see these
    values only after `wait_for_streams()`.
    """
    # Values before the first whole cache line and after the last one are written as usual.
    in_line = 64 // y.itemsize
    head = min(len(y), (-y.ctypes.data % 64) // y.itemsize)
    lines = (len(y) - head) // in_line
    for j in range(head):
        y[j] = x[j]
    _stream(y, x, head, lines)
    for j in range(head + in_line * lines, len(y)):
        y[j] = x[j]


@intrinsic  # type: ignore[untyped-decorator]
def wait_for_streams(typing_context: Any) -> Any:
    """Order the writes of `stream` before all later ones, for example before those of a barrier between threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _fetch(typing_context: Any, x: Any, index: Any, write: Any) -> Any:
    """Prefetch the cache line of `x[index]`. `x` is 1-d and contiguous; `write` is a constant 0 or 1."""
    word, address = ir.IntType(32), ir.IntType(8).as_pointer()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _pointer(context, builder, signature.args[0], arguments[0])
        function_type = ir.FunctionType(ir.VoidType(), [address, word, word, word])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [address], function_type)
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), address)
        # Into all levels (3) of the data caches (1).
        builder.call(instruction, [pointer, *(ir.Constant(word, c) for c in (write.literal_value, 3, 1))])
        return context.get_dummy_value()

    return types.void(x, types.intp, write), generate


@njit  # type: ignore[untyped-decorator]
def fetch(x: Float32) -> None:
    """Begin to load a 1-d contiguous array of float32 into the caches. The processor does not wait for the data."""
    for j in range(0, len(x), LANES):
        _fetch(x, j, 0)


@njit  # type: ignore[untyped-decorator]
def fetch_to_write(x: AnyArray) -> None:
    """`fetch` for a 1-d contiguous array of float32 or bytes that is written next."""
    for j in range(0, len(x), 64 // x.itemsize):
        _fetch(x, j, 1)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _sum_scaled(
    typing_context: Any,
    y: Any,
    y_start: Any,
    x: Any,
    positions: Any,
    stride: Any,
    shift: Any,
    scales: Any,
    low: Any,
    high: Any,
    vectors: Any,
) -> Any:
    """`sum_scaled` over a constant number of `vectors`, whose sums stay in registers.

    An addition has to wait for the previous addition in the same register. Therefore, if there are few vectors, several
    entries of the list are added at the same time, each in its own row of registers.
    """
    count = vectors.literal_value
    rows = max(1, _PIPELINED_ADDITIONS // count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        yp, xp, position_pointer, scale_pointer = (
            _pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 3, 6)
        )
        _, y_start, _, _, stride, shift, _, low, high, _ = arguments
        word = y_start.type
        targets = [_vector(builder, yp, builder.add(y_start, ir.Constant(word, LANES * v))) for v in range(count)]
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [[builder.load(target, align=4) for target in targets], *([zero] * count for _ in range(rows - 1))]

        def loop(start: Any, end: Any, sums: list[list[Any]]) -> tuple[Any, list[list[Any]]]:
            """Add as many entries at a time as `sums` has rows, until fewer entries are left before `end`."""
            entry_block = builder.block
            head, body, exit_block = (builder.append_basic_block(name) for name in ("head", "body", "done"))
            builder.branch(head)
            builder.position_at_end(head)
            n = builder.phi(word)
            n.add_incoming(start, entry_block)
            totals = [[builder.phi(_VECTOR) for _ in row] for row in sums]
            for phi, value in zip(chain(*totals), chain(*sums), strict=True):
                phi.add_incoming(value, entry_block)
            next_n = builder.add(n, ir.Constant(word, len(sums)))
            builder.cbranch(builder.icmp_signed("<=", next_n, end), body, exit_block)
            builder.position_at_end(body)
            for i, row in enumerate(totals):
                entry = builder.add(n, ir.Constant(word, i))
                position = builder.sext(builder.load(builder.gep(position_pointer, [entry])), word)
                first = builder.add(builder.mul(position, stride), shift)
                factor = _spread(builder, builder.load(builder.gep(scale_pointer, [entry])))
                for v, phi in enumerate(row):
                    x_index = builder.add(first, ir.Constant(word, LANES * v))
                    source = builder.load(_vector(builder, xp, x_index), align=4)
                    phi.add_incoming(_multiply_add(builder, factor, source, phi), body)
            n.add_incoming(next_n, body)
            builder.branch(head)
            builder.position_at_end(exit_block)
            return n, totals

        n, sums = loop(low, high, sums)
        if rows > 1:
            together = [reduce(builder.fadd, column) for column in zip(*sums, strict=True)]
            n, sums = loop(n, high, [together])
        for total, target in zip(sums[0], targets, strict=True):
            builder.store(total, target, align=4)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(y, integer, x, positions, integer, integer, scales, integer, integer, vectors), generate


@njit  # type: ignore[untyped-decorator]
def sum_scaled(
    y: Float32,
    y_start: int,
    x: Float32,
    positions: Int32,
    stride: int,
    shift: int,
    scales: Float32,
    low: int,
    high: int,
    vectors: int,
) -> None:
    """`y[y_start + j] += sum of scales[n] * x[stride * positions[n] + shift + j]`, n from `low` to `high`, `j < 16
    vectors`.

    All arrays are 1-d and contiguous. The sums stay in registers over the whole list, up to 24 vectors at a time.
    """
    v = 0
    while vectors - v >= 24:
        _sum_scaled(y, y_start + LANES * v, x, positions, stride, shift + LANES * v, scales, low, high, 24)
        v += 24
    if vectors - v >= 12:
        _sum_scaled(y, y_start + LANES * v, x, positions, stride, shift + LANES * v, scales, low, high, 12)
        v += 12
    if vectors - v >= 8:
        _sum_scaled(y, y_start + LANES * v, x, positions, stride, shift + LANES * v, scales, low, high, 8)
        v += 8
    if vectors - v >= 4:
        _sum_scaled(y, y_start + LANES * v, x, positions, stride, shift + LANES * v, scales, low, high, 4)
        v += 4
    if vectors - v >= 2:
        _sum_scaled(y, y_start + LANES * v, x, positions, stride, shift + LANES * v, scales, low, high, 2)
        v += 2
    if vectors - v >= 1:
        _sum_scaled(y, y_start + LANES * v, x, positions, stride, shift + LANES * v, scales, low, high, 1)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _products(
    typing_context: Any, y: Any, y_start: Any, y_pixel: Any, x: Any, x_start: Any, x_row: Any, x_column: Any,
    x_pixel: Any, w: Any, w_start: Any, w_row: Any, w_column: Any, rows: Any, columns: Any, together: Any, vectors: Any,
) -> Any:  # fmt: skip
    """`products` for constant numbers of pixels (`together`) and of `vectors`. All sums stay in registers."""
    pixels, count = together.literal_value, vectors.literal_value
    lanes = lanes_of(y.dtype.bitwidth // 8)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector_type = ir.VectorType(context.get_value_type(y.dtype), lanes)

        def vector_pointer(pointer: Any, index: Any, v: int) -> Any:
            """Pointer to vector number `v` after an index."""
            address = builder.gep(pointer, [builder.add(index, ir.Constant(index.type, lanes * v))])
            return builder.bitcast(address, vector_type.as_pointer())

        yp, xp, wp = (_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 8))
        _, y_start, y_pixel, _, x_start, x_row, x_column, x_pixel, _, w_start, w_row, w_column, rows, columns, *_ = (
            arguments
        )
        word = y_start.type
        targets = [
            [vector_pointer(yp, y_index, v) for v in range(count)]
            for y_index in (builder.add(y_start, builder.mul(y_pixel, ir.Constant(word, p))) for p in range(pixels))
        ]
        sums = [[cgutils.alloca_once(builder, vector_type) for _ in range(count)] for _ in range(pixels)]
        for pixel_sums, pixel_targets in zip(sums, targets, strict=True):
            for total, target in zip(pixel_sums, pixel_targets, strict=True):
                builder.store(builder.load(target, align=4), total)
        shifts = [builder.mul(x_pixel, ir.Constant(word, p)) for p in range(pixels)]
        with cgutils.for_range(builder, rows) as row:
            x_row_start = builder.add(x_start, builder.mul(row.index, x_row))
            w_row_start = builder.add(w_start, builder.mul(row.index, w_row))
            starts = [builder.gep(xp, [builder.add(x_row_start, shift)]) for shift in shifts]
            with cgutils.for_range(builder, columns) as column:
                w_index = builder.add(w_row_start, builder.mul(column.index, w_column))
                x_offset = builder.mul(column.index, x_column)
                loaded = [builder.load(vector_pointer(wp, w_index, v), align=4) for v in range(count)]
                for begin, pixel_sums in zip(starts, sums, strict=True):
                    factor = _spread(builder, builder.load(builder.gep(begin, [x_offset])), lanes)
                    for source, total in zip(loaded, pixel_sums, strict=True):
                        builder.store(_multiply_add(builder, factor, source, builder.load(total)), total)
        for pixel_sums, pixel_targets in zip(sums, targets, strict=True):
            for total, target in zip(pixel_sums, pixel_targets, strict=True):
                builder.store(builder.load(total), target, align=4)
        return context.get_dummy_value()

    n = types.intp
    return types.void(y, n, n, x, n, n, n, n, w, n, n, n, n, n, together, vectors), generate


@njit  # type: ignore[untyped-decorator]
def products(
    y: AnyArray, y_start: int, y_pixel: int, x: AnyArray, x_start: int, x_row: int, x_step: int, x_pixel: int,
    w: AnyArray, w_start: int, w_row: int, w_step: int, rows: int, steps: int, pixels: int, vectors: int,
) -> None:  # fmt: skip
    """Many sums of products at once: the inner loops of convolutions, of matrix products and of their adjoints.

    `y[y_start + p y_pixel + j]` += sum over `r < rows`, `c < steps` of `x[x_start + p x_pixel + r x_row + c x_step]`
    times `w[w_start + r w_row + c w_step + j]`, for `p < pixels` and for all `j` in `vectors` whole vectors of 64
    bytes. All arrays are 1-d and contiguous, and have the same type, float32 or float64.
    """
    lanes = 64 // y.itemsize
    v = 0
    while v < vectors:
        width = 4 if vectors - v >= 4 else (2 if vectors - v >= 2 else 1)
        p = 0
        while p < pixels:
            y_index, x_index = y_start + p * y_pixel + lanes * v, x_start + p * x_pixel
            w_index, pixels_left = w_start + lanes * v, pixels - p
            if width == 4:
                if pixels_left >= 6:
                    _products(
                        y,
                        y_index,
                        y_pixel,
                        x,
                        x_index,
                        x_row,
                        x_step,
                        x_pixel,
                        w,
                        w_index,
                        w_row,
                        w_step,
                        rows,
                        steps,
                        6,
                        4,
                    )
                    p += 6
                elif pixels_left >= 2:
                    _products(
                        y,
                        y_index,
                        y_pixel,
                        x,
                        x_index,
                        x_row,
                        x_step,
                        x_pixel,
                        w,
                        w_index,
                        w_row,
                        w_step,
                        rows,
                        steps,
                        2,
                        4,
                    )
                    p += 2
                else:
                    _products(
                        y,
                        y_index,
                        y_pixel,
                        x,
                        x_index,
                        x_row,
                        x_step,
                        x_pixel,
                        w,
                        w_index,
                        w_row,
                        w_step,
                        rows,
                        steps,
                        1,
                        4,
                    )
                    p += 1
            elif width == 2:
                if pixels_left >= 8:
                    _products(
                        y,
                        y_index,
                        y_pixel,
                        x,
                        x_index,
                        x_row,
                        x_step,
                        x_pixel,
                        w,
                        w_index,
                        w_row,
                        w_step,
                        rows,
                        steps,
                        8,
                        2,
                    )
                    p += 8
                elif pixels_left >= 2:
                    _products(
                        y,
                        y_index,
                        y_pixel,
                        x,
                        x_index,
                        x_row,
                        x_step,
                        x_pixel,
                        w,
                        w_index,
                        w_row,
                        w_step,
                        rows,
                        steps,
                        2,
                        2,
                    )
                    p += 2
                else:
                    _products(
                        y,
                        y_index,
                        y_pixel,
                        x,
                        x_index,
                        x_row,
                        x_step,
                        x_pixel,
                        w,
                        w_index,
                        w_row,
                        w_step,
                        rows,
                        steps,
                        1,
                        2,
                    )
                    p += 1
            elif pixels_left >= 8:
                _products(
                    y,
                    y_index,
                    y_pixel,
                    x,
                    x_index,
                    x_row,
                    x_step,
                    x_pixel,
                    w,
                    w_index,
                    w_row,
                    w_step,
                    rows,
                    steps,
                    8,
                    1,
                )
                p += 8
            elif pixels_left >= 4:
                _products(
                    y,
                    y_index,
                    y_pixel,
                    x,
                    x_index,
                    x_row,
                    x_step,
                    x_pixel,
                    w,
                    w_index,
                    w_row,
                    w_step,
                    rows,
                    steps,
                    4,
                    1,
                )
                p += 4
            else:
                _products(
                    y,
                    y_index,
                    y_pixel,
                    x,
                    x_index,
                    x_row,
                    x_step,
                    x_pixel,
                    w,
                    w_index,
                    w_row,
                    w_step,
                    rows,
                    steps,
                    1,
                    1,
                )
                p += 1
        v += width


@intrinsic  # type: ignore[untyped-decorator]
def list_set(
    typing_context: Any, x: Any, x_start: Any, count: Any, mask: Any, mask_start: Any, masked: Any, first: Any,
    step: Any, positions: Any, n: Any,
) -> Any:  # fmt: skip
    """List the non-zero elements of `x[x_start : x_start + count]` from `positions[n]` on; returns the end of the list.

    Element `j` is listed as `first + j step`. If `masked` is non-zero, elements with a zero `mask[mask_start + j]` are
    left out. All arrays are 1-d and contiguous, and `mask` contains bytes. `positions` has room for 31 more entries
    than are listed.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        xp, mp, pp = (_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 8))
        _, x_start, count, _, mask_start, masked, first, step, _, n = arguments
        word, int32, bits = x_start.type, ir.IntType(32), ir.IntType(_COMPARED_TOGETHER)
        flags = ir.VectorType(ir.IntType(1), _COMPARED_TOGETHER)

        def nonzero_bits(pointer: Any, element_type: Any, index: Any, inside: Any) -> Any:
            """One bit for each of the elements from `index` on, of type `element_type`: whether the element is
            non-zero.

            Only the elements `inside` are read; None: all.
            """
            number = context.get_value_type(element_type)
            lanes = ir.VectorType(number, _COMPARED_TOGETHER)
            address = builder.bitcast(builder.gep(pointer, [index]), lanes.as_pointer())
            zeros = ir.Constant(lanes, None)
            if inside is None:
                x = builder.load(address, align=1)
            else:
                load_type = ir.FunctionType(lanes, [lanes.as_pointer(), int32, flags, lanes])
                letter = "f" if isinstance(element_type, types.Float) else "i"
                name = f"llvm.masked.load.v{_COMPARED_TOGETHER}{letter}{element_type.bitwidth}.p0"
                masked_load = cgutils.get_or_insert_function(builder.module, load_type, name)
                x = builder.call(masked_load, [address, ir.Constant(int32, 1), inside, zeros])
            unequal = builder.fcmp_unordered if isinstance(element_type, types.Float) else builder.icmp_unsigned
            return builder.bitcast(unequal("!=", x, zeros), bits)

        end = cgutils.alloca_once_value(builder, n)
        remaining = cgutils.alloca_once(builder, bits)

        def list_block(begin: Any, inside: Any) -> None:
            """List the non-zero elements of the 32 elements from `begin` on."""
            non_zero = nonzero_bits(xp, x.dtype, builder.add(x_start, begin), inside)
            chosen = cgutils.alloca_once_value(builder, non_zero)
            with builder.if_then(builder.icmp_signed("!=", masked, ir.Constant(word, 0))):
                unmasked = nonzero_bits(mp, mask.dtype, builder.add(mask_start, begin), inside)
                builder.store(builder.and_(non_zero, unmasked), chosen)
            non_zero = builder.load(chosen)
            builder.store(non_zero, remaining)
            start = builder.load(end)
            base = builder.add(first, builder.mul(begin, step))
            number = builder.zext(builder.ctpop(non_zero), word)
            for low in range(0, _COMPARED_TOGETHER, _WRITTEN_TOGETHER):
                # All of these are written, even if fewer are present.
                any_left = builder.icmp_signed(">", number, ir.Constant(word, low))
                with builder.if_then(any_left):
                    remaining_bits = builder.load(remaining)
                    for i in range(low, low + _WRITTEN_TOGETHER):
                        lowest = builder.zext(builder.cttz(remaining_bits, ir.Constant(ir.IntType(1), 0)), word)
                        position = builder.trunc(builder.add(base, builder.mul(lowest, step)), int32)
                        builder.store(position, builder.gep(pp, [builder.add(start, ir.Constant(word, i))]))
                        remaining_bits = builder.and_(remaining_bits, builder.sub(remaining_bits, ir.Constant(bits, 1)))
                    builder.store(remaining_bits, remaining)
            builder.store(builder.add(start, number), end)

        full_vectors = builder.sdiv(count, ir.Constant(word, _COMPARED_TOGETHER))
        with cgutils.for_range(builder, full_vectors) as loop:
            list_block(builder.mul(loop.index, ir.Constant(word, _COMPARED_TOGETHER)), None)
        tail_start = builder.mul(full_vectors, ir.Constant(word, _COMPARED_TOGETHER))
        with builder.if_then(builder.icmp_signed("<", tail_start, count)):
            order = ir.Constant(ir.VectorType(int32, _COMPARED_TOGETHER), list(range(_COMPARED_TOGETHER)))
            tail_length = _spread(builder, builder.trunc(builder.sub(count, tail_start), int32), _COMPARED_TOGETHER)
            list_block(tail_start, builder.icmp_signed("<", order, tail_length))
        return builder.load(end)

    n64 = types.intp
    return types.intp(x, n64, n64, mask, n64, n64, n64, n64, positions, n64), generate


@intrinsic  # type: ignore[untyped-decorator]
def join_lists(
    typing_context: Any, joined: Any, positions: Any, starts: Any, first: Any, columns: Any, stride: Any, shift: Any,
    step: Any, rows: Any, padding_entry: Any,
) -> Any:  # fmt: skip
    """Join parts of a list in `joined`, padded with `padding_entry` to a multiple of eight entries; returns the padded
    length.

    Row `r < rows` contributes `positions[n] + shift + r step`, for `n` from `starts[first + r stride]` to
    `starts[first + r stride + columns]`. All arrays are 1-d and contiguous, and contain int32. `joined` has room for 32
    more entries.
    """
    vector = ir.VectorType(ir.IntType(32), LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        op, pp, sp = (_pointer(context, builder, signature.args[i], arguments[i]) for i in range(3))
        _, _, _, first, columns, stride, shift, step, rows, padding_entry = arguments
        word, int32 = first.type, ir.IntType(32)
        length = cgutils.alloca_once_value(builder, ir.Constant(word, 0))

        def vector_pointer(pointer: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())

        with cgutils.for_range(builder, rows) as row:
            begin = builder.add(first, builder.mul(row.index, stride))
            low, high = (
                builder.sext(builder.load(builder.gep(sp, [index])), word)
                for index in (begin, builder.add(begin, columns))
            )
            distance = builder.trunc(builder.add(shift, builder.mul(row.index, step)), int32)
            distances, row_start = _spread(builder, distance), builder.load(length)
            # The last vector may write beyond the end of its part. The next part overwrites these values.
            with cgutils.for_range_slice(builder, low, high, ir.Constant(word, LANES), word) as (n, _):
                source = builder.add(builder.load(vector_pointer(pp, n), align=4), distances)
                builder.store(source, vector_pointer(op, builder.add(row_start, builder.sub(n, low))), align=4)
            builder.store(builder.add(row_start, builder.sub(high, low)), length)
        end = builder.load(length)
        builder.store(_spread(builder, builder.trunc(padding_entry, int32)), vector_pointer(op, end), align=4)
        return builder.and_(builder.add(end, ir.Constant(word, 7)), ir.Constant(word, -8))

    n = types.intp
    return types.intp(joined, positions, starts, n, n, n, n, n, n, n), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _sum_selected(
    typing_context: Any, z: Any, z_start: Any, w: Any, shift: Any, positions: Any, count: Any, scale: Any, vectors: Any
) -> Any:
    """`sum_selected` over a constant number of `vectors`, whose sums stay in registers."""
    number = vectors.literal_value
    int16_vector, int32_vector = ir.VectorType(ir.IntType(16), SHORT_LANES), ir.VectorType(ir.IntType(32), LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zp, wp, pp = (_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 4))
        _, z_start, _, shift, _, count, scale, _ = arguments
        word = z_start.type
        nothing = ir.Constant(int32_vector, [0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(2)] for _ in range(number)]

        def add(first: Any, entries: int) -> None:
            """Add `entries` entries of the list. There are so few of them that their sum fits in 16 bits."""
            short_sums: list[Any] = [ir.Constant(int16_vector, [0] * SHORT_LANES)] * number
            for i in range(entries):
                entry = builder.add(first, ir.Constant(word, i))
                begin = builder.add(builder.sext(builder.load(builder.gep(pp, [entry])), word), shift)
                for v in range(number):
                    half_sum = builder.gep(wp, [builder.add(begin, ir.Constant(word, SHORT_LANES * v))])
                    source = builder.load(builder.bitcast(half_sum, int16_vector.as_pointer()), align=2)
                    short_sums[v] = builder.add(short_sums[v], source)
            for total, halves in zip(short_sums, sums, strict=True):
                for half_index, half_sum in enumerate(halves):
                    order = ir.Constant(
                        ir.VectorType(ir.IntType(32), LANES), [LANES * half_index + i for i in range(LANES)]
                    )
                    part = builder.sext(builder.shuffle_vector(total, total, order), int32_vector)
                    builder.store(builder.add(builder.load(half_sum), part), half_sum)

        sixteens = builder.ashr(count, ir.Constant(word, 4))
        with cgutils.for_range(builder, sixteens) as group:
            add(builder.mul(group.index, ir.Constant(word, 16)), 16)
        with builder.if_then(
            builder.icmp_signed("!=", builder.and_(count, ir.Constant(word, 8)), ir.Constant(word, 0))
        ):
            add(builder.mul(sixteens, ir.Constant(word, 16)), 8)
        factor = _spread(builder, scale)
        for v, halves in enumerate(sums):
            for half_number, total in enumerate(halves):
                value = builder.fmul(builder.sitofp(builder.load(total), _VECTOR), factor)
                z_index = builder.add(z_start, ir.Constant(word, SHORT_LANES * v + LANES * half_number))
                builder.store(value, _vector(builder, zp, z_index), align=4)
        return context.get_dummy_value()

    n = types.intp
    return types.void(z, n, w, n, positions, n, types.float32, vectors), generate


@njit  # type: ignore[untyped-decorator]
def sum_selected(
    z: Float32, z_start: int, w: Int16, positions: Int32, count: int, scale: np.float32, vectors: int
) -> None:
    """`z[z_start + j] = scale * sum of w[positions[n] + j]`, n below `count`, a multiple of 8, and `j < 32 vectors`.

    `w` contains integers of 12 bits, so the sum of sixteen of them fits in 16 bits. The whole sums have at most 24
    bits. All arrays are 1-d and contiguous.
    """
    v = NONE
    while v < vectors:
        shift, z_index = SHORT_LANES * v, z_start + SHORT_LANES * v
        if vectors - v >= 4:
            _sum_selected(z, z_index, w, shift, positions, count, scale, 4)
            v += 4
        elif vectors - v >= 2:
            _sum_selected(z, z_index, w, shift, positions, count, scale, 2)
            v += 2
        else:
            _sum_selected(z, z_index, w, shift, positions, count, scale, 1)
            v += 1
