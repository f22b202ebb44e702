"""What PTX instructions without memory compute, on numpy arrays of raw bits viewed in the instruction's type.

IEEE operations are numpy's, which round once to nearest. Fused multiply-adds are rounded once by rounding to odd first.
NaN results of float32 are the device's one NaN. Approximations of the hardware have no defined bits: they are computed
as well as possible, and a note says so. An instruction or a modifier that is not listed here is refused.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from stsbp_spec.typing import AnyArray

from emulator.ptx.parse import SIZES, PtxError

__all__ = ["APPROXIMATE", "Function", "Operation", "convert", "dtype_of", "flush", "operation"]

Function: TypeAlias = Callable[..., AnyArray]
Operation: TypeAlias = tuple[Function, str | tuple[str, ...], str]
"""A function, the type of its operands (one for all, or one for each), and the type of its result."""

_LETTERS = {"b": "u", "u": "u", "s": "i", "f": "f"}
_NAN32 = np.uint32(0x7FFFFFFF)
APPROXIMATE = {"approx", "full"}
_ROUNDINGS = ("rn", "rz", "rm", "rp")
_FLOAT_MODIFIERS = {*_ROUNDINGS, "ftz", "sat", *APPROXIMATE}


def dtype_of(kind: str) -> np.dtype[Any]:
    """numpy's type for a PTX type.

    Raises:
        PtxError: there is none.
    """
    if kind not in SIZES:
        raise PtxError(f"type .{kind} is not interpreted")
    return np.dtype(f"{_LETTERS[kind[0]]}{SIZES[kind]}")


def flush(x: AnyArray) -> AnyArray:
    """Subnormal float32 as zero of the same sign."""
    tiny = np.abs(x) < np.float32(2.0**-126)
    return np.where(tiny, np.copysign(np.float32(0), x), x)


def _canonical(x: AnyArray) -> AnyArray:
    if x.dtype == np.float32:
        nan = np.isnan(x)
        if nan.any():
            x = x.copy()
            x.view(np.uint32)[nan] = _NAN32
    return x


def _wide(x: AnyArray) -> AnyArray:
    return x.astype(np.float64)


def _odd_sum(a: AnyArray, b: AnyArray) -> AnyArray:
    """a + b in float64, rounded to odd, so that a further rounding to float32 is correct."""
    total = a + b
    added = total - a
    error = (a - (total - added)) + (b - added)
    error = np.where(np.isfinite(total), error, 0.0)
    bits = total.view(np.uint64)
    even = (bits & np.uint64(1)) == 0
    away = (error > 0) == (total > 0)
    # At a power of two the neighbour below has its last bit set as well, so one step is always to odd.
    moved = np.where(away, bits + np.uint64(1), bits - np.uint64(1)).view(np.float64)
    return np.where((error != 0) & even & (total != 0), moved, total)


def _directed(x: AnyArray, mode: str) -> AnyArray:
    """float64 to float32 in a rounding mode."""
    narrow = x.astype(np.float32)
    if mode == "rn":
        return narrow
    wide = _wide(narrow)
    if mode in ("rm", "rz"):
        down = (wide > x) if mode == "rm" else ((wide > x) & (x > 0))
        narrow = np.where(down, np.nextafter(narrow, np.float32(-np.inf)), narrow)
    if mode in ("rp", "rz"):
        up = (wide < x) if mode == "rp" else ((wide < x) & (x < 0))
        narrow = np.where(up, np.nextafter(narrow, np.float32(np.inf)), narrow)
    return narrow


_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype, _libm.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
_fma64 = np.frompyfunc(_libm.fma, 3, 1)


def _fused(a: AnyArray, b: AnyArray, c: AnyArray) -> AnyArray:
    """The float64 sum, rounded to odd, of the exact product of two float32 numbers and a third."""
    return _odd_sum(_wide(a) * _wide(b), _wide(c))


def _float_base(opcode: str, kind: str, mode: str) -> Function | None:
    """add, sub, mul and fma in a rounding mode; None: not interpreted."""
    plain: dict[str, Function] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    if kind == "f64":
        if mode != "rn":
            return None
        return (lambda a, b, c: np.asarray(_fma64(a, b, c)).astype(np.float64)) if opcode == "fma" else plain[opcode]
    if mode == "rn" and opcode != "fma":
        return plain[opcode]
    exact: dict[str, Function] = {
        "add": lambda a, b: _odd_sum(_wide(a), _wide(b)),
        "sub": lambda a, b: _odd_sum(_wide(a), -_wide(b)),
        "mul": lambda a, b: _wide(a) * _wide(b),
        "fma": _fused,
    }
    return lambda *operands: _directed(exact[opcode](*operands), mode)


def _of_float(base: Function, parts: tuple[str, ...]) -> Function:
    """`base` with what the modifiers ftz and sat add."""
    ftz, saturate = "ftz" in parts, "sat" in parts

    def run(*operands: AnyArray) -> AnyArray:
        if ftz:
            operands = tuple(map(flush, operands))
        result = base(*operands)
        if ftz:
            result = flush(result)
        if saturate:
            result = np.where(np.isnan(result), result.dtype.type(0), np.clip(result, 0, 1))
        return _canonical(result)

    return run


def _sign_bit(kind: str) -> Any:
    return np.array(1 << (8 * SIZES[kind] - 1), f"u{SIZES[kind]}")


def _min_max(kind: str, least: bool, propagates: bool) -> Function:
    def of_integers(a: AnyArray, b: AnyArray) -> AnyArray:
        return np.minimum(a, b) if least else np.maximum(a, b)

    def of_floats(a: AnyArray, b: AnyArray) -> AnyArray:
        result = np.fmin(a, b) if least else np.fmax(a, b)
        zero = (a == 0) & (b == 0)
        if zero.any():  # -0 is below +0
            negative = (np.signbit(a) | np.signbit(b)) if least else (np.signbit(a) & np.signbit(b))
            result = np.where(zero, np.where(negative, -a.dtype.type(0), a.dtype.type(0)), result)
        if propagates:
            result = np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), result)
        return result

    return of_floats if kind[0] == "f" else of_integers


def _divide(a: AnyArray, b: AnyArray) -> AnyArray:
    zero = b == 0
    divisor = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(zero, ~a.dtype.type(0), a // divisor)
    # Towards zero; the most negative number by -1 stays.
    quotient: AnyArray = a // divisor
    quotient = quotient + ((quotient < 0) & (quotient * divisor != a)).astype(a.dtype)
    return np.where(zero, a.dtype.type(-1), quotient)


def _remainder(a: AnyArray, b: AnyArray) -> AnyArray:
    return np.where(b == 0, a, a - _divide(a, b) * b)


def _shift(left: bool, kind: str) -> Function:
    bits = 8 * SIZES[kind]

    def run(a: AnyArray, count: AnyArray) -> AnyArray:
        beyond = count >= bits
        count = np.where(beyond, np.uint32(bits - 1), count).astype(a.dtype)
        shifted = np.left_shift(a, count) if left else np.right_shift(a, count)
        return np.where(beyond, a.dtype.type(0), shifted) if left or a.dtype.kind == "u" else shifted

    return run


def _product_wide(kind: str) -> Function:
    wide = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{2 * SIZES[kind]}")
    return lambda a, b: a.astype(wide) * b.astype(wide)


def _product_high(kind: str) -> Function:
    bits = 8 * SIZES[kind]
    if bits <= 32:
        product = _product_wide(kind)

        def narrow(a: AnyArray, b: AnyArray) -> AnyArray:
            wide = product(a, b)
            high: AnyArray = wide >> wide.dtype.type(bits)
            return high.astype(a.dtype)

        return narrow

    def of_64_bits(a: AnyArray, b: AnyArray) -> AnyArray:
        high = (a.astype(object) * b.astype(object)) >> 64
        return np.array([int(x) & (2**64 - 1) for x in high.ravel()], np.uint64).view(a.dtype)

    return of_64_bits


def _funnel(left: bool, wrap: bool) -> Function:
    def run(low: AnyArray, high: AnyArray, count: AnyArray) -> AnyArray:
        count = (count & np.uint32(31)) if wrap else np.minimum(count, np.uint32(32))
        pair = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        if not left:
            return (pair >> count.astype(np.uint64)).astype(np.uint32)
        all_of_it = count == 32
        shifted = (pair << np.where(all_of_it, 0, count).astype(np.uint64)) >> np.uint64(32)
        return np.where(all_of_it, low, shifted.astype(np.uint32))

    return run


def _permute(a: AnyArray, b: AnyArray, selector: AnyArray) -> AnyArray:
    pair = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
    for i in range(4):
        pick = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((pair >> (np.uint64(8) * (pick & 7).astype(np.uint64))) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & 128, np.uint32(255), np.uint32(0))
        result |= np.where(pick & 8, sign, byte) << np.uint32(8 * i)
    return result


def _field(start: AnyArray, length: AnyArray, bits: int) -> tuple[AnyArray, AnyArray]:
    """A mask of `length` low bits, and how far the field is from the lowest bit; both uint64."""
    start, length = (x.astype(np.uint64) & np.uint64(255) for x in (start, length))
    one = np.uint64(1)
    mask = np.where(length >= 64, ~np.uint64(0), (one << np.minimum(length, 63).astype(np.uint64)) - one)
    return np.where(start >= bits, np.uint64(0), mask), np.minimum(start, 63).astype(np.uint64)


def _extract(a: AnyArray, start: AnyArray, length: AnyArray) -> AnyArray:
    """bfe of unsigned types."""
    mask, by = _field(start, length, 8 * a.dtype.itemsize)
    return ((a.astype(np.uint64) >> by) & mask).astype(a.dtype)


def _insert(a: AnyArray, b: AnyArray, start: AnyArray, length: AnyArray) -> AnyArray:
    """bfi: the low bits of `a` into `b`."""
    mask, by = _field(start, length, 8 * a.dtype.itemsize)
    inside = (mask << by).astype(np.uint64)
    return ((b.astype(np.uint64) & ~inside) | ((a.astype(np.uint64) << by) & inside)).astype(a.dtype)


def _logic(a: AnyArray, b: AnyArray, c: AnyArray, table: AnyArray) -> AnyArray:
    result, rows = np.zeros_like(a | b | c), int(table.ravel()[0])
    for i in range(8):
        if rows >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


def _leading_zeros(a: AnyArray) -> AnyArray:
    bits = 8 * a.dtype.itemsize
    return np.array([bits - int(x).bit_length() for x in a], np.uint32)


_BITWISE: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_APPROXIMATIONS: dict[str, Function] = {
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def operation(opcode: str, parts: tuple[str, ...]) -> Operation:
    """An instruction's function and types; shift counts and bit positions are passed as uint32.

    Raises:
        PtxError: the instruction is not interpreted.
    """
    kind = parts[-1]
    modifiers = set(parts[:-1])
    if kind == "pred" and opcode in (*_BITWISE, "not") and not modifiers:
        return _BITWISE.get(opcode, np.logical_not), "pred", "pred"
    if kind not in SIZES or kind == "f16":
        raise PtxError(f"{opcode}.{'.'.join(parts)}")
    result = _float_operation if kind[0] == "f" else _integer_operation
    if (semantics := result(opcode, kind, modifiers, parts)) is None:
        raise PtxError(f"{opcode}.{'.'.join(parts)}")
    return semantics


def _float_operation(opcode: str, kind: str, modifiers: set[str], parts: tuple[str, ...]) -> Operation | None:
    if modifiers - _FLOAT_MODIFIERS - ({"NaN"} if opcode in ("min", "max") else set()):
        return None
    mode = next((m for m in _ROUNDINGS if m in modifiers), "rn")
    if opcode in ("add", "sub", "mul", "fma", "mad"):
        if modifiers & APPROXIMATE or (kind == "f64" and modifiers & {"sat", "ftz"}):
            return None
        base = _float_base(opcode.replace("mad", "fma"), kind, mode)
        return None if base is None else (_of_float(base, parts), kind, kind)
    if mode != "rn":
        return None
    to = dtype_of(kind)
    if opcode in _APPROXIMATIONS:
        exact = _APPROXIMATIONS[opcode]
        approximated = _of_float(lambda a: exact(_wide(a)).astype(to), parts)
        return (approximated, kind, kind) if "approx" in modifiers else None
    bases: dict[str, Function] = {
        "div": np.divide,
        "sqrt": np.sqrt,
        "rcp": lambda a: a.dtype.type(1) / a,
        "min": _min_max(kind, True, "NaN" in modifiers),
        "max": _min_max(kind, False, "NaN" in modifiers),
    }
    if opcode in bases:
        return _of_float(bases[opcode], parts), kind, kind
    bit = _sign_bit(kind)
    signs: dict[str, Function] = {
        "abs": lambda a: (a.view(bit.dtype) & ~bit).view(a.dtype),
        "neg": lambda a: (a.view(bit.dtype) ^ bit).view(a.dtype),
        "copysign": lambda a, b: np.copysign(b, a),
    }
    if opcode in signs and not modifiers - {"ftz"}:
        sign = signs[opcode]
        return ((lambda *x: sign(*map(flush, x))) if modifiers else sign), kind, kind
    return None


def _integer_operation(opcode: str, kind: str, modifiers: set[str], parts: tuple[str, ...]) -> Operation | None:
    if opcode in ("mul", "mad") and modifiers == {"wide"}:
        wide, product = f"{kind[0]}{2 * int(kind[1:])}", _product_wide(kind)
        return (
            (product, kind, wide)
            if opcode == "mul"
            else ((lambda a, b, c: product(a, b) + c), (kind, kind, wide), wide)
        )
    if opcode in ("mul", "mad") and modifiers == {"hi"}:
        high = _product_high(kind)
        return (high if opcode == "mul" else (lambda a, b, c: high(a, b) + c)), kind, kind
    if opcode in ("mul", "mad") and modifiers == {"lo"}:
        return (np.multiply if opcode == "mul" else (lambda a, b, c: a * b + c)), kind, kind
    if opcode == "shf" and kind == "b32" and len(modifiers) == 2 and len(modifiers & {"l", "r"}) == 1:
        if modifiers & {"wrap", "clamp"}:
            return _funnel("l" in modifiers, "wrap" in modifiers), ("b32", "b32", "u32"), kind
        return None
    if modifiers:
        return None
    functions: dict[str, Function] = {
        "add": np.add,
        "sub": np.subtract,
        "div": _divide,
        "rem": _remainder,
        "min": _min_max(kind, True, False),
        "max": _min_max(kind, False, False),
        "abs": np.abs,
        "neg": lambda a: np.zeros_like(a) - a,
        "not": np.invert,
        **_BITWISE,
    }
    if opcode in functions:
        return functions[opcode], kind, kind
    if opcode in ("shl", "shr"):
        return _shift(opcode == "shl", kind), (kind, "u32"), kind
    if opcode == "bfe" and kind[0] == "u":
        return _extract, (kind, "u32", "u32"), kind
    others: dict[str, Operation] = {
        "prmt": (_permute, "b32", "b32"),
        "bfi": (_insert, (kind, kind, "u32", "u32"), kind),
        "popc": ((lambda a: np.bitwise_count(a).astype(np.uint32)), kind, "u32"),
        "clz": (_leading_zeros, kind, "u32"),
        "lop3": (_logic, (kind, kind, kind, "u32"), kind),
    }
    return others.get(opcode) if kind[0] == "b" else None


_INTEGRAL: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(parts: tuple[str, ...]) -> Operation:
    """Function, source type and target type of cvt.

    Raises:
        PtxError: the conversion is not interpreted.
    """
    *modes, to, source = parts
    out = dtype_of(to)
    dtype_of(source)
    if "f32" not in (to, source):
        modes = [m for m in modes if m != "ftz"]
    ftz, saturate = "ftz" in modes, "sat" in modes
    rounding = next((m for m in modes if m[0] == "r"), None)
    if set(modes) - {"ftz", "sat", rounding}:
        raise PtxError(f"cvt.{'.'.join(parts)}")
    if to[0] != "f" and source[0] != "f":
        return _between_integers(out, saturate), source, to
    if to[0] != "f":
        if rounding not in _INTEGRAL:
            raise PtxError(f"cvt.{'.'.join(parts)}")
        return _to_integer(source, out, _INTEGRAL[rounding], ftz), source, to
    if source[0] != "f":
        if rounding in ("rn", None):
            return (lambda a: a.astype(out)), source, to
        if rounding not in _ROUNDINGS or SIZES[source] > 4 or to != "f32":
            raise PtxError(f"cvt.{'.'.join(parts)}")
        return (lambda a: _directed(_wide(a), rounding)), source, to
    return _between_floats(parts, source, to, rounding, ftz, saturate), source, to


def _between_integers(out: np.dtype[Any], saturate: bool) -> Function:
    if not saturate:
        return lambda a: a.astype(out)
    low, high = int(np.iinfo(out).min), int(np.iinfo(out).max)
    return lambda a: np.array([min(max(int(x), low), high) for x in a], out)


def _to_integer(source: str, out: np.dtype[Any], integral: Function, ftz: bool) -> Function:
    bits, low, high = 8 * out.itemsize, int(np.iinfo(out).min), int(np.iinfo(out).max)
    # NaN: zero, but for 64-bit types on either side.
    nan = 0 if source != "f64" and bits < 64 else 1 << (bits - 1)

    def run(a: AnyArray) -> AnyArray:
        a = flush(a) if ftz and source == "f32" else a
        x = integral(_wide(a))
        inside = (x > float(low) - 1 if bits < 64 else x >= float(low)) & (x < float(high + 1))
        result = np.where(inside, x, 0).astype(out)
        result = np.where(~inside & (x > 0), out.type(high), np.where(~inside & (x < 0), out.type(low), result))
        missing = np.isnan(x)
        if missing.any():
            result = np.where(missing, np.array(nan, f"u{out.itemsize}").view(out), result)
        return result.astype(out)

    return run


def _between_floats(
    parts: tuple[str, ...], source: str, to: str, rounding: str | None, ftz: bool, saturate: bool
) -> Function:
    out = dtype_of(to)
    base: Function
    if rounding in _INTEGRAL:
        base = _INTEGRAL[rounding]
    elif (source, to) == ("f64", "f32") and rounding in _ROUNDINGS:
        mode = str(rounding)

        def base(a: AnyArray) -> AnyArray:
            return _directed(a, mode)

    elif rounding in ("rn", None):

        def base(a: AnyArray) -> AnyArray:
            return a.astype(out)

    else:
        raise PtxError(f"cvt.{'.'.join(parts)}")

    def run(a: AnyArray) -> AnyArray:
        a = flush(a) if ftz and source == "f32" else a
        x = base(a).astype(out)
        if saturate:
            x = np.where(np.isnan(x), out.type(0), np.clip(x, 0, 1))
        return _canonical(flush(x) if ftz and to == "f32" else x)

    return run
