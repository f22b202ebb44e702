"""The interpreter's arithmetic against exact fractions and integers, and what it refuses."""

from __future__ import annotations

import sys
from fractions import Fraction
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parents[2])]

# The emulator is found on the path above.
from emulator.ptx.machine import launch  # noqa: E402
from emulator.ptx.parse import PtxError, parse  # noqa: E402
from emulator.ptx.semantics import convert, flush, operation  # noqa: E402

MODES = ("rn", "rz", "rm", "rp")
EDGES = [0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00800000, 0x007FFFFF, 0x3F800000, 0x33800000]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)


def floats(rng: np.random.Generator, count: int) -> Any:
    """float32 numbers of any bits, and the edges of the format."""
    bits = rng.integers(0, 2**32, count, dtype=np.uint32)
    return np.concatenate([bits, rng.choice(np.array(EDGES, np.uint32), count)]).view(np.float32)


def value(x: Any) -> Fraction:
    """A number as a fraction; the infinities as the number that would come next."""
    if np.isinf(x):
        return Fraction(2) ** (128 if x.dtype == np.float32 else 1024) * (1 if x > 0 else -1)
    return Fraction(float(x))


def rounded(exact: Fraction, mode: str, dtype: Any) -> Any:
    """The number of a format that a rounding mode chooses for an exact one."""
    bound = Fraction(2) ** (128 if dtype == np.float32 else 1024)
    largest_below_bound = bound * (1 - Fraction(1, 2**100))
    exact = max(
        min(exact, largest_below_bound), -largest_below_bound
    )  # no rounding tells numbers beyond the format apart
    with np.errstate(over="ignore", under="ignore"):
        largest = np.finfo(dtype).max
        near = dtype(np.clip(float(exact), -float(largest), float(largest)))
        down, up = (np.nextafter(near, dtype(sign * np.inf)) for sign in (-1, 1))
    lower = max((x for x in (down, near, up) if value(x) <= exact), key=value, default=down)
    upper = min((x for x in (down, near, up) if value(x) >= exact), key=value, default=up)
    if mode == "rz":
        mode = "rm" if exact > 0 else "rp"
    if mode in ("rm", "rp"):
        return lower if mode == "rm" else upper
    distances = exact - value(lower), value(upper) - exact
    if distances[0] == distances[1]:
        unsigned = np.uint32 if dtype == np.float32 else np.uint64
        return lower if lower.view(unsigned) % 2 == 0 else upper
    return lower if distances[0] < distances[1] else upper


def same(x: Any, y: Any) -> bool:
    """Equal numbers; zeros have no sign here, since fractions have none."""
    return bool(x == y)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("opcode", ["add", "sub", "mul", "fma"])
def test_float32_operations_are_rounded_once(rng: np.random.Generator, opcode: str, mode: str) -> None:
    function, *_ = operation(opcode, (mode, "f32"))
    a, b, c = (floats(rng, 400) for _ in range(3))
    with np.errstate(all="ignore"):
        # Near cancellation the rounding of the product shows.
        c = np.where(rng.random(c.size) < 0.5, (-(a.astype(np.float64) * b)).astype(np.float32), c)
        results = function(a, b, c) if opcode == "fma" else function(a, b)
    checked = 0
    for x, y, z, result in zip(a, b, c, results, strict=True):
        if not np.isfinite([x, y, z] if opcode == "fma" else [x, y]).all():
            assert result.view(np.uint32) == 0x7FFFFFFF or np.isinf(result)
            continue
        fx, fy = Fraction(float(x)), Fraction(float(y))
        exact = {"add": fx + fy, "sub": fx - fy, "mul": fx * fy}.get(opcode)
        exact = fx * fy + Fraction(float(z)) if exact is None else exact
        assert same(result, rounded(exact, mode, np.float32)), (x, y, z, result)
        checked += 1
    assert checked > 200


def test_float64_fused_multiply_add_is_rounded_once(rng: np.random.Generator) -> None:
    function, *_ = operation("fma", ("rn", "f64"))
    a, b = (rng.normal(0, 1, 200) for _ in range(2))
    c = np.where(rng.random(200) < 0.7, -(a * b), rng.normal(0, 1, 200))
    for x, y, z, result in zip(a, b, c, function(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert same(result, rounded(exact, "rn", np.float64))
    assert (function(a, b, c) != a * b + c).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_divisions_and_roots_are_rounded_once(rng: np.random.Generator, dtype: Any) -> None:
    kind = "f32" if dtype == np.float32 else "f64"
    a, b = (np.abs(rng.normal(0, 1, 200)).astype(dtype) + dtype(1e-3) for _ in range(2))
    for x, y, result in zip(a, b, operation("div", ("rn", kind))[0](a, b), strict=True):
        assert result == rounded(Fraction(float(x)) / Fraction(float(y)), "rn", dtype)
    for x, result in zip(a, operation("rcp", ("rn", kind))[0](a), strict=True):
        assert result == rounded(1 / Fraction(float(x)), "rn", dtype)
    for x, result in zip(a, operation("sqrt", ("rn", kind))[0](a), strict=True):
        scaled = Fraction(float(x)) * 2**400
        assert scaled.denominator == 1
        root = Fraction(2 * isqrt(scaled.numerator) + 1, 2 * 2**200)  # between two integers: no tie
        assert result == rounded(root, "rn", dtype)


@pytest.mark.parametrize("mode", MODES)
def test_cvt_rounds_float64_and_integers_to_float32(rng: np.random.Generator, mode: str) -> None:
    function, *_ = convert((mode, "f32", "f64"))
    x = np.ldexp(rng.normal(0, 1, 600), rng.integers(-160, 130, 600))
    with np.errstate(all="ignore"):
        results = function(x)
    for wide, result in zip(x, results, strict=True):
        assert same(result, rounded(Fraction(float(wide)), mode, np.float32))
    assert (np.abs(results[results != 0]) < 2.0**-126).any(), "subnormal numbers stay"
    function, *_ = convert((mode, "f32", "s32"))
    for number, result in zip(i := rng.integers(-(2**31), 2**31, 300).astype(np.int32), function(i), strict=True):
        assert same(result, rounded(Fraction(int(number)), mode, np.float32))


def test_cvt_to_integers_saturates() -> None:
    function, *_ = convert(("rzi", "s32", "f32"))
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 1.9, -1.9, 2147483520.0], np.float32)
    with np.errstate(all="ignore"):
        assert function(x).tolist() == [0, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 1, -1, 2147483520]
        wide, *_ = convert(("rzi", "s64", "f32"))
        assert wide(x[:3]).tolist() == [-(2**63), 2**63 - 1, -(2**63)]
        even, *_ = convert(("rni", "f32", "f32"))
        assert even(np.array([0.5, 1.5, 2.5, -0.5], np.float32)).tolist() == [0, 2, 2, 0]


def test_ftz_flushes_operands_and_results() -> None:
    tiny = np.array([1, 0x007FFFFF, 0x807FFFFF, 0x00800000], np.uint32).view(np.float32)
    assert flush(tiny).view(np.uint32).tolist() == [0, 0, 0x80000000, 0x00800000]
    for opcode, operands in (("add", (tiny, tiny)), ("mul", (tiny, np.ones_like(tiny))), ("abs", (tiny,))):
        plain, *_ = operation(opcode, ("f32",))
        flushing, *_ = operation(opcode, ("ftz", "f32"))
        assert plain(*operands)[:3].all()
        assert flushing(*operands).view(np.uint32)[:2].tolist() == [0, 0]
    cast, *_ = convert(("rn", "ftz", "f32", "f64"))
    assert cast(tiny.astype(np.float64)).view(np.uint32).tolist() == [0, 0, 0x80000000, 0x00800000]


def test_minimum_and_maximum_order_zeros_and_drop_nan() -> None:
    a, b = np.array([0.0, -0.0, np.nan, 1], np.float32), np.array([-0.0, 0.0, 2, np.nan], np.float32)
    least, most = (operation(x, ("f32",))[0](a, b) for x in ("min", "max"))
    assert np.signbit(least[:2]).all()
    assert not np.signbit(most[:2]).any()
    assert (least[2:].tolist(), most[2:].tolist()) == ([2, 1], [2, 1])
    assert np.isnan(operation("min", ("NaN", "f32"))[0](a, b)[2:]).all()


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("letter", ["u", "s"])
def test_integer_products_quotients_and_shifts(rng: np.random.Generator, letter: str, bits: int) -> None:
    kind, dtype = f"{letter}{bits}", np.dtype(f"{'i' if letter == 's' else 'u'}{bits // 8}")
    a, b = (rng.integers(0, 2**bits, 300, dtype=np.uint64).astype(f"u{bits // 8}").view(dtype) for _ in range(2))
    b[:40] = rng.integers(1, 9, 40)
    a[:2], b[:2] = np.iinfo(dtype).min, np.array([1, 3], dtype)

    def wrapped(x: int, size: int = bits) -> int:
        x %= 2**size
        return x - 2**size if letter == "s" and x >= 2 ** (size - 1) else x

    with np.errstate(all="ignore"):
        low, high = (operation("mul", (part, kind))[0](a, b) for part in ("lo", "hi"))
        quotient, remainder = (operation(x, (kind,))[0](a, b) for x in ("div", "rem"))
        count = rng.integers(0, 80, 300).astype(np.uint32)
        shifted_right, shifted_left = (
            operation("shr", (kind,))[0](a, count),
            operation("shl", (f"b{bits}",))[0](a, count),
        )
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        assert (low[i], high[i]) == (wrapped(x * y), wrapped((x * y) >> bits))
        if y:
            truncated = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
            assert (int(quotient[i]), int(remainder[i])) == (wrapped(truncated), wrapped(x - truncated * y))
        assert shifted_right[i] == x >> min(int(count[i]), bits)
        assert shifted_left[i] == wrapped(x << int(count[i]))
    if bits < 64:
        wide, *_ = operation("mul", ("wide", kind))
        assert wide(a, b).tolist() == [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]


def test_bits_are_moved(rng: np.random.Generator) -> None:
    a, b, c = (rng.integers(0, 2**32, 200, dtype=np.uint32) for _ in range(3))
    start, length = (rng.integers(0, 40, 200).astype(np.uint32) for _ in range(2))
    fields = operation("bfe", ("u32",))[0](a, start, length)
    inserted = operation("bfi", ("b32",))[0](a, b, start, length)
    funnel_left, funnel_right = (operation("shf", (side, "wrap", "b32"))[0](a, b, c) for side in ("l", "r"))
    mixed = operation("lop3", ("b32",))[0](a, b, c, np.array([0xE8], np.uint32))
    for i, (x, y, z) in enumerate(zip(a.tolist(), b.tolist(), c.tolist(), strict=True)):
        s, n, by = int(start[i]), int(length[i]), z % 32
        mask = ((1 << n) - 1) << s & 0xFFFFFFFF
        assert fields[i] == (x >> s) & ((1 << n) - 1)
        assert inserted[i] == (y & ~mask | x << s & mask) & 0xFFFFFFFF
        pair = y << 32 | x
        assert (funnel_left[i], funnel_right[i]) == (pair << by >> 32 & 0xFFFFFFFF, pair >> by & 0xFFFFFFFF)
        assert mixed[i] == x & y | x & z | y & z
    bytes_of = operation("prmt", ("b32",))[0](a, b, np.full(200, 0x8540, np.uint32))
    for x, y, result in zip(a.tolist(), b.tolist(), bytes_of.tolist(), strict=True):
        # Bytes 0 to 3 are of `a`, 4 to 7 of `b`; a selector of 8 and more repeats the sign.
        sign = 0xFF if x & 0x80 else 0
        assert result == x & 0xFF | (y & 0xFF) << 8 | (y >> 8 & 0xFF) << 16 | sign << 24


@pytest.mark.parametrize(
    "text",
    [
        "add.rn.f32x2 %rd1, %rd1, %rd1;", "add.f16 %h1, %h1, %h1;", "add.cc.u32 %r1, %r1, %r1;",
        "min.xorsign.abs.f32 %f1, %f1, %f1;", "fma.rn.relu.f32 %f1, %f1, %f1, %f1;", "mul.rm.f64 %d1, %d1, %d1;",
        "div.rz.f32 %f1, %f1, %f1;", "sad.u32 %r1, %r1, %r1, %r1;", "bfe.s32 %r1, %r1, %r1, %r1;",
        "dp4a.u32.u32 %r1, %r1, %r1, %r1;", "mma.sync.aligned.m8n8k4.row.col.f64 {%d1}, {%d1}, {%d1}, {%d1};",
        "redux.sync.add.u32 %r1, %r1, 0xffffffff;", "match.any.sync.b32 %r1, %r1, 0xffffffff;",
        "bar.red.popc.u32 %r1, 0, %p1;", "bar.arrive 0, 64;", "barrier.cluster.arrive;",
        "atom.global.add.f32 %f1, [%rd1], %f1;", "ld.global.b128 %rd1, [%rd1];", "st.async.b32 [%rd1], %r1;",
        "cvt.rn.bf16.f32 %h1, %f1;", "cvt.rna.tf32.f32 %r1, %f1;", "set.lt.u32.f32 %r1, %f1, %f1;",
        "ex2.f32 %f1, %f1;", "cp.async.ca.shared.global [%r1], [%rd1], 16;", "call.uni f, ();",
        "unheard.of.b32 %r1, %r1;",
        "mov.u32 %r1, %clock;", "setp.xx.f32 %p1, %f1, %f1;", "bra $nowhere;", "ld.local.b32 %r1, [%rd1];",
    ],
)  # fmt: skip
def test_an_instruction_that_is_not_known_is_refused(text: str) -> None:
    registers = (
        ".reg .b32 %r<3>; .reg .f32 %f<3>; .reg .f64 %d<3>; .reg .b64 %rd<3>; .reg .b16 %h<3>; .reg .pred %p<3>;"
    )
    initial = "mov.u32 %r1, 0; mov.f32 %f1, 0f00000000; mov.u64 %rd1, 0;"
    ptx = f".version 8.0\n.target sm_80\n.visible .entry k()\n{{\n{registers}\n{initial}\n{text}\nret;\n}}"
    with pytest.raises(PtxError):
        launch(parse(ptx).kernels["k"], (1,), (32,), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".version 8.0\n", "no .target"),
        (".target sm_80\n.func f() { ret; }\n", "device functions"),
        (".target sm_80\n.visible .entry k(.param .texref t) { ret; }\n", "parameters not understood|texref"),
        (".target sm_80\n.visible .entry k() { .local .b8 x[4]; ret; }\n", "not understood"),
    ],
)  # fmt: skip
def test_text_that_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        parse(text)
