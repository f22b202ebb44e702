"""Functions of numpy arrays in JAX's programs: the same bits everywhere, no copies, errors, threads, and the end."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from stsbp_cpu.engine.layout import empty_memory as empty
from stsbp_cpu.engine.layout import offered_memory
from stsbp_jax.contract.grid import enable_x64
from stsbp_jax.engine import ffi, host_callback
from stsbp_jax.engine.host_callback import Making, host_call, original_errors
from stsbp_spec.errors import BackendError, NumericError, ShapeError
from stsbp_spec.typing import AnyArray

DTYPES = (np.bool_, np.uint8, np.int32, np.uint32, np.int64, np.float32, np.float64)


def struct(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    cls: Any = jax.ShapeDtypeStruct
    result: jax.ShapeDtypeStruct = cls(shape, dtype)
    return result


def done(x: Any) -> Any:
    """`x`, once it is there."""
    return jax.tree.map(lambda leaf: leaf.block_until_ready(), x)


def numbers(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(3).normal(size=shape).astype(np.float32))


def mixed(a: AnyArray, b: AnyArray, out: Sequence[AnyArray]) -> None:
    """Nothing that XLA would round alike by chance."""
    np.multiply(a, b, out=out[0])
    out[0] += a
    out[1][...] = np.signbit(b)


def called(a: Any, b: Any) -> tuple[Any, Any]:
    y, signs = host_call(mixed, [struct(*a.shape), struct(*a.shape, dtype=np.uint8)], a, b)
    return y, signs


def expected(a: Any, b: Any) -> tuple[AnyArray, AnyArray]:
    y, signs = np.empty(a.shape, np.float32), np.empty(a.shape, np.uint8)
    mixed(np.asarray(a), np.asarray(b), out=[y, signs])
    return y, signs


Function = Callable[[Any, Any], Any]


def scanned(a: Any, b: Any) -> Any:
    return lax.scan(lambda carry, x: (carry, called(x, carry)), b[0], a)[1]


def conditional(a: Any, b: Any) -> Any:
    return lax.cond(a[0, 0] < 100, called, lambda a, b: (b, jnp.zeros(a.shape, np.uint8)), a, b)


def repeated(a: Any, b: Any) -> Any:
    def body(state: Any) -> Any:
        return state[0] + 1, *called(a, b)

    return lax.while_loop(lambda state: state[0] < 3, body, (0, b, jnp.zeros(a.shape, np.uint8)))[1:]


@jax.custom_vjp
def differentiable(a: Any, b: Any) -> Any:
    return called(a, b)[0]


differentiable.defvjp(
    lambda a, b: (called(a, b)[0], (a, b)),
    lambda saved, error: (called(saved[0], error)[0], called(saved[1], error)[0]),
)


def other(a: Any, b: Any) -> Any:
    """What another platform would run."""
    return a, (b > 0).astype(np.uint8)


ELEMENTS = jax.vmap(called)
TRANSFORMS: dict[str, Function] = {
    "eager": called,
    "jit": jax.jit(called),
    "scan": jax.jit(scanned),
    "cond": jax.jit(conditional),
    "while": jax.jit(repeated),
    "vmap": ELEMENTS,
    "vmap jit": jax.jit(ELEMENTS),
    "vmap last axis": lambda a, b: jax.vmap(called, in_axes=1, out_axes=1)(a, b),
    "checkpoint": jax.jit(jax.checkpoint(called)),
    "compiled": lambda a, b: jax.jit(called).lower(a, b).compile()(a, b),
    "platform": jax.jit(lambda a, b: lax.platform_dependent(a, b, cpu=called, default=other)),
    "constant": lambda a, b: jax.jit(lambda: called(a, b))(),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_host_call_has_numpys_bits_in(name: str) -> None:
    a, b = numbers(4, 3), numbers(7, 3)[3:]
    if name == "scan":
        b = b[:1].repeat(4, axis=0)
    for actual, from_numpy in zip(TRANSFORMS[name](a, b), expected(a, b), strict=True):
        assert np.asarray(actual).dtype == from_numpy.dtype
        assert np.asarray(actual).tobytes() == from_numpy.tobytes()


def test_elements_of_vmap_share_an_argument() -> None:
    a, b = numbers(4, 3), numbers(3)
    y, _ = jax.vmap(called, in_axes=(0, None))(a, b)
    assert np.asarray(y).tobytes() == expected(a, np.broadcast_to(np.asarray(b), a.shape))[0].tobytes()


def test_derivatives_of_ones_own_are_calls_too() -> None:
    a, b, error = numbers(5), numbers(6)[1:], numbers(7)[2:]
    for forward in (differentiable, jax.checkpoint(differentiable)):
        _, pullback = jax.vjp(forward, a, b)
        for cotangent, other in zip(jax.jit(pullback)(error), (a, b), strict=True):
            assert np.asarray(cotangent).tobytes() == expected(other, error)[0].tobytes()


def test_derivative_of_a_call_is_refused_by_jax() -> None:
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda a: called(a, a)[0].sum())(numbers(3))


def copied(*arrays: AnyArray, out: Sequence[AnyArray]) -> None:
    for x, y in zip(arrays, out, strict=True):
        y[...] = x


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 1, 4)])
def test_every_dtype_arrives_and_returns(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    arrays = [np.frombuffer(rng.bytes(8 * 24), dtype)[: int(np.prod(shape))].reshape(shape) for dtype in DTYPES[1:]]
    arrays.append(rng.random(shape) < 0.5)
    with enable_x64():
        operands = [jnp.asarray(x) for x in arrays]
        results = jax.jit(lambda *x: host_call(copied, [struct(*y.shape, dtype=y.dtype) for y in x], *x))(*operands)
        for x, y in zip(arrays, results, strict=True):
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            assert np.asarray(y).tobytes() == x.tobytes()


def test_arrays_that_lie_otherwise_arrive_in_the_order_of_their_axes() -> None:
    x = numbers(2, 3, 4)
    (y,) = jax.jit(lambda x: host_call(copied, [struct(4, 2, 3)], x.transpose(2, 0, 1)))(x)
    assert np.asarray(y).tobytes() == np.asarray(x).transpose(2, 0, 1).tobytes()


def test_a_call_without_arguments_and_one_without_results() -> None:
    def filled(out: Sequence[AnyArray]) -> None:
        out[0][...] = 7

    (y,) = jax.jit(lambda: host_call(filled, [struct(3)]))()
    assert np.asarray(y).tolist() == [7, 7, 7]
    assert host_call(filled, [], numbers(3)) == ()


@pytest.mark.filterwarnings("error")
def test_overflows_in_a_thread_of_xla_are_not_warned_of() -> None:
    def large(a: AnyArray, out: Sequence[AnyArray]) -> None:
        out[0][...] = a * np.float32(3e38) - np.float32(np.inf)

    assert np.isnan(np.asarray(jax.jit(lambda a: host_call(large, [struct(3)], a)[0])(jnp.full(3, 3e38)))).all()


def test_a_dtype_that_is_not_taken_is_named() -> None:
    with pytest.raises(ShapeError, match=r"arrays of bool, int32, .*, not float16$"):
        host_call(copied, [struct(3)], jnp.zeros(3, np.float16))
    with pytest.raises(ShapeError, match=r"not complex64$"):
        host_call(copied, [struct(3, dtype=np.complex64)], numbers(3))


def test_no_array_is_copied() -> None:
    addresses: list[int] = []

    def touched(x: AnyArray, out: Sequence[AnyArray]) -> None:
        addresses[:] = [x.ctypes.data, out[0].ctypes.data]

    x = numbers(1000)
    (y,) = jax.jit(lambda x: host_call(touched, [struct(1000)], x))(x)
    y.block_until_ready()
    assert addresses == [x.unsafe_buffer_pointer(), y.unsafe_buffer_pointer()]
    assert [address % 64 for address in addresses] == [0, 0]


def scaled(by: float, x: AnyArray, out: Sequence[AnyArray]) -> None:
    np.multiply(x, np.float32(by), out=out[0])


class Adding:
    """Equal to others with the same number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adding) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __call__(self, x: AnyArray, out: Sequence[AnyArray]) -> None:
        np.add(x, np.float32(self.number), out=out[0])


def test_equal_functions_have_one_number() -> None:
    x = numbers(3)
    for by in (2.0, 3.0):
        (y,) = host_call(scaled, [struct(3)], x, fixed=(by,))
        assert np.asarray(y).tobytes() == (np.asarray(x) * np.float32(by)).tobytes()
    for number in (1, 2):
        (y,) = host_call(Adding(number), [struct(3)], x)
        assert np.asarray(y).tobytes() == (np.asarray(x) + np.float32(number)).tobytes()
    count = len(host_callback._sites)
    for _ in range(5):
        jax.jit(lambda x: host_call(Adding(1), [struct(3)], *host_call(scaled, [struct(3)], x, fixed=(3.0,))))(x)
    assert len(host_callback._sites) == count
    jax.jit(lambda x: host_call(Adding(1), [struct(4)], x))(numbers(4))
    assert len(host_callback._sites) == count + 1


def test_numbers_of_other_functions_and_shapes_are_others() -> None:
    places = [(scaled, 3, 0), (copied, 3, 0), (scaled, 4, 0), (scaled, 3, 1), (Adding(1), 3, 0)]
    assert len({host_callback._number_of(*place) for place in places}) == len(places)
    assert host_callback._number_of(scaled, 3, 0) == host_callback._number_of(scaled, 3, 0)


def test_arguments_and_results_are_not_kept() -> None:
    views: list[Any] = []

    def watched(x: AnyArray, out: Sequence[AnyArray]) -> None:
        views.extend(map(weakref.ref, (x, out[0])))
        out[0][...] = x

    host_call(watched, [struct(1000)], numbers(1000))[0].block_until_ready()
    assert [view() for view in views] == [None, None]


def raising(error: BaseException | type[BaseException]) -> Callable[[Any], Any]:
    def function(x: AnyArray, out: Sequence[AnyArray]) -> None:
        raise error

    return jax.jit(lambda x: host_call(function, [struct(*x.shape)], x)[0])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NumericError("step 3: the potential is not finite"), "INTERNAL"),
        (MemoryError("too much"), "RESOURCE_EXHAUSTED"),
        (KeyboardInterrupt("stop"), "CANCELLED"),
        (SystemExit("leave"), "INTERNAL"),
        (ValueError("a \0 b \ud800"), "INTERNAL"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_a_function_raises_is_raised(error: BaseException, status: str) -> None:
    program = raising(error)
    text = str(error).replace("\0", "").replace("\ud800", "?")
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        program(numbers(3)).block_until_ready()
    assert re.match(rf"{status}: .*\[host call \d+\] {type(error).__name__}: {re.escape(text)}", str(refused.value))
    for _ in range(2):
        with pytest.raises(type(error)) as caught, original_errors():
            program(numbers(3)).block_until_ready()
        assert caught.value is error
    assert np.asarray(called(numbers(3), numbers(3))[0]).shape == (3,)


class _Wordless(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_an_error_without_words_is_raised_too() -> None:
    with pytest.raises(_Wordless), original_errors():
        raising(_Wordless())(numbers(3)).block_until_ready()


def test_errors_keep_their_causes_and_no_arrays() -> None:
    views: list[Any] = []

    def first(x: AnyArray) -> None:
        view = x[1:]
        views.append(weakref.ref(view))
        raise KeyError("first")

    def failing(x: AnyArray, out: Sequence[AnyArray]) -> None:
        views.append(weakref.ref(x))
        try:
            first(x)
        except KeyError as error:
            raise NumericError("second") from error

    with pytest.raises(NumericError) as caught, original_errors():
        host_call(failing, [struct(3)], numbers(3))[0].block_until_ready()
    assert isinstance(caught.value.__cause__, KeyError)
    assert [view() for view in views] == [None, None]


def test_other_errors_pass_and_old_ones_are_forgotten() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="of XLA"), original_errors():
        raise jax.errors.JaxRuntimeError("of XLA")
    with pytest.raises(jax.errors.JaxRuntimeError, match="call 999999999"), original_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: [host call 999999999] ValueError: of another process")
    program = raising(ValueError)
    for _ in range(40):
        with pytest.raises(jax.errors.JaxRuntimeError):
            program(numbers(2)).block_until_ready()
    assert len(host_callback._errors) == 16


def test_a_program_stops_at_the_first_error() -> None:
    calls: list[int] = []

    def third_fails(i: AnyArray, out: Sequence[AnyArray]) -> None:
        calls.append(int(i))
        if i == 2:
            raise NumericError("step 2")

    def step(carry: Any, i: Any) -> Any:
        return carry, host_call(third_fails, [struct()], i)[0]

    with pytest.raises(NumericError, match=r"^step 2$"), original_errors():
        done(jax.jit(lambda x: lax.scan(step, 0, x))(jnp.arange(10, dtype=np.int32)))
    assert calls == [0, 1, 2]


def test_a_program_of_another_process_is_refused() -> None:
    program = jax.jit(lambda x: host_call(scaled, [struct(3)], x, fixed=(5.0,)))
    done(program(numbers(3)))
    sites = dict(host_callback._sites)
    host_callback._sites.clear()
    try:
        with pytest.raises(BackendError, match="that another process compiled"), original_errors():
            done(program(numbers(3)))
    finally:
        host_callback._sites.update(sites)


@pytest.mark.parametrize(
    ("result", "arguments", "more", "message"),
    [
        (struct(4), [numbers(3)], {}, r"axes \[4\] in place of \[3\]"),
        (struct(3), [numbers(2)], {}, r"axes \[2\] in place of \[3\]"),
        (struct(1, 3), [numbers(3)], {}, r"and 2 axes in place of float32 \[3\]"),
        (struct(3, dtype=np.int32), [numbers(3)], {}, r"type 4 and 1 axes in place of float32 \[3\]"),
        (struct(3), [], {}, "0 arrays in place of 1"),
        (struct(3), [numbers(3)] * 2, {}, "2 arrays in place of 1"),
        (struct(3), [numbers(3)], {"more": np.int64(1)}, "2 attributes"),
        (struct(3), [numbers(3)], {"number": "a text"}, "1 attributes"),
    ],
)
def test_arrays_that_a_site_was_not_made_for_are_not_touched(
    result: Any, arguments: list[Any], more: dict[str, Any], message: str
) -> None:
    (memory,) = memories = (ffi.ArrayLayout((3,), np.dtype(np.float32)),)
    assert host_call(scaled, [struct(*memory.shape)], numbers(3), fixed=(7.0,))
    attributes = {"number": np.int64(host_callback._numbers[scaled, (7.0,), memories, memories]), **more}
    call: Any = jax.ffi.ffi_call("stsbp_host", result)
    with pytest.raises(BackendError, match=message), original_errors():
        done(call(*arguments, **attributes))


def test_empty_gives_what_is_wanted_once() -> None:
    a, b, c = (np.zeros((2, 3), dtype) for dtype in (np.float32, np.float32, np.uint8))
    with offered_memory([a, b, c]):
        assert empty((2, 3), np.uint8) is c
        assert empty((2, 3), np.float32) is a
        with offered_memory([]):
            assert empty((2, 3), np.float32) is not b
        assert empty((3, 2), np.float32) is not b
        assert empty((2, 3), np.int32) is not b
        assert empty((2, 3), np.float32) is b
        assert empty((2, 3), np.float32) is not b
    assert empty((2, 3), np.float32) is not a


@pytest.mark.parametrize("shape", [(), (0, 2), (3, 5)])
def test_new_memory_begins_at_a_cache_line(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x = empty(shape, dtype)
        assert (x.shape, x.dtype) == (shape, np.dtype(dtype))
        assert x.flags.c_contiguous
        assert x.flags.writeable
        assert x.ctypes.data % 64 == 0 or x.size == 0


def test_what_is_wanted_is_wanted_on_one_thread_and_until_an_error() -> None:
    a = np.zeros(3, np.float32)
    buffers: list[AnyArray] = []
    thread = threading.Thread(target=lambda: buffers.append(empty((3,), np.float32)))
    with offered_memory([a]):
        thread.start()
        thread.join()
    with pytest.raises(ZeroDivisionError), offered_memory([a]):
        raise ZeroDivisionError
    assert buffers[0] is not a
    assert empty((3,), np.float32) is not a


def in_order(x: AnyArray) -> list[AnyArray]:
    first, second = empty(x.shape, np.float32), empty(x.shape, np.float32)
    np.add(x, 1, out=first)
    np.add(x, 2, out=second)
    return [first, second]


def in_another_order(x: AnyArray) -> list[AnyArray]:
    second, first = empty(x.shape, np.float32), empty(x.shape, np.float32)
    np.add(x, 1, out=first)
    np.add(x, 2, out=second)
    return [first, second]


def after_scratch(x: AnyArray) -> list[AnyArray]:
    scratch = empty(x.shape, np.float32)
    scratch[...] = np.nan
    results = in_order(x)
    scratch[...] = np.nan
    return results


def elsewhere(x: AnyArray) -> list[AnyArray]:
    return [x + np.float32(1), x + np.float32(2)]


def backwards(x: AnyArray) -> list[AnyArray]:
    first, second = in_order(x[::-1])
    return [first[::-1], second[::-1]]


def shifted(x: AnyArray) -> list[AnyArray]:
    """Both in the memory of the first result."""
    first = empty(x.shape, np.float32)
    np.add(x, 2, out=first)
    return [first - np.float32(1), first]


@pytest.mark.parametrize(
    ("function", "copies"),
    [(in_order, 0), (in_another_order, 2), (after_scratch, 2), (elsewhere, 2), (backwards, 2), (shifted, 2)],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_function_that_makes_its_results(function: Callable[[AnyArray], list[AnyArray]], copies: int) -> None:
    x: AnyArray = np.arange(6, dtype=np.float32)
    for y, number in zip(host_call(Making(function), [struct(6), struct(6)], x), (1, 2), strict=True):
        assert np.asarray(y).tolist() == (x + number).tolist()
    out = [np.zeros(6, np.float32), np.zeros(6, np.float32)]
    with offered_memory(out):
        results = function(x)
    assert sum(a is not b for a, b in zip(results, out, strict=True)) == copies
    host_callback._copy_results(results, out)
    assert [y.tolist() for y in out] == [(x + 1).tolist(), (x + 2).tolist()]


def test_results_are_copied_only_where_they_lie_otherwise() -> None:
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    target = x.copy()
    host_callback._copy_results([target.T], [target])
    assert (target == x.T).all()
    target.flags.writeable = False
    host_callback._copy_results([target[:].reshape(9).reshape(3, 3)], [target])


def test_results_of_other_shapes_are_refused() -> None:
    x = np.arange(6, dtype=np.float32)
    promised = [struct(6), struct(6, dtype=np.uint8)]
    message = r"returned float32\[6\], float32\[6\] instead of float32\[6\], uint8\[6\]$"
    with pytest.raises(ShapeError, match=message), original_errors():
        done(host_call(Making(in_order), promised, x))
    with pytest.raises(ShapeError, match=r"instead of float32\[6\]$"), original_errors():
        done(host_call(Making(in_order), [struct(6)], x))


def test_equal_makers_have_one_number() -> None:
    x = numbers(6)
    results = [struct(6), struct(6)]
    host_call(Making(in_order), results, x)
    count = len(host_callback._sites)
    jax.jit(lambda x: host_call(Making(in_order), results, x))(x)
    assert len(host_callback._sites) == count


HEADER = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()


def test_this_jaxlib_has_the_structures_that_are_read() -> None:
    major, minor = ffi.interface(HEADER)
    assert major == 0
    assert minor >= 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"int64_t rank;\s+int64_t\* dims;", "int64_t* dims; int64_t rank;", "XLA_FFI_Buffer is .* data dims rank;"),
        (r"int64_t rank;", "int32_t rank;", "XLA_FFI_Buffer is "),
        (r"XLA_FFI_Args args;", "XLA_FFI_Rets args;", "XLA_FFI_CallFrame is "),
        (r"(struct XLA_FFI_Attrs) ", r"\1Changed ", "XLA_FFI_Attrs is not there"),
        (r"XLA_FFI_InternalApi\* internal", "int* more; int* internal", "XLA_FFI_Api is "),
        (r"_XLA_FFI_API_STRUCT_FIELD\(XLA_FFI_Error_Create\);", "", "XLA_FFI_Api is .* XLA_FFI_Error_Get"),
        (r"DataType_F32 = 11", "DataType_F32 = 12", "XLA_FFI_DataType_F32 is 12 in place of 11"),
        (r"AttrType_SCALAR = 3", "AttrType_SCALAR = 4", "XLA_FFI_AttrType_SCALAR is 4 in place of 3"),
        (r"XLA_FFI_API_MAJOR 0", "XLA_FFI_API_MAJOR 1", r"its version is 1\.\d in place of 0"),
    ],
)  # fmt: skip
def test_a_jaxlib_with_other_structures_is_refused(old: str, new: str, message: str) -> None:
    changed = re.sub(old, new, HEADER)
    assert changed != HEADER
    with pytest.raises(BackendError, match=rf"^jaxlib \d.* does not know: {message}"):
        ffi.interface(changed)


def test_further_fields_do_no_harm() -> None:
    assert ffi.interface(re.sub(r"(int64_t\* dims;)", r"\1 int more;", HEADER)) == ffi.interface(HEADER)


@pytest.mark.parametrize("name", ["_FRAME", "_ARGS", "_RETS", "_ATTRS", "_BUFFER_SIZE"])
def test_structures_that_are_smaller_than_their_fields_are_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffi, name, 1000)
    with pytest.raises(BackendError, match=r"interface .* that stsbp-jax does not know: .* bytes"), original_errors():
        done(called(numbers(3), numbers(3)))


def test_a_callback_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise KeyboardInterrupt("between two lines")

    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: lost.append(unraisable.exc_type))
    memory = ffi.ArrayLayout((3,), np.dtype(np.float32))
    ffi.register_entry("stsbp_test", {5: ffi.Site(fails, (), (memory,))}, fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the call was interrupted"):
        done(jax.ffi.ffi_call("stsbp_test", struct(3))(number=np.int64(5)))
    assert lost == [KeyboardInterrupt]


BEGIN = """
import atexit, os, signal, sys, threading, time
import jax, jax.numpy as jnp, numpy as np
from stsbp_jax.engine.host_callback import host_call, original_errors
S = [jax.ShapeDtypeStruct((100, 100), np.float32)]
x = jnp.ones((100, 100), np.float32)
calls = 0
def plus(x, out):
    global calls
    calls += 1
    np.add(x, 1, out=out[0])
def long(x):
    again = lambda i, x: host_call(plus, S, jnp.tanh(x @ x * 1e-6))[0]
    return jax.lax.fori_loop(0, 100_000, again, x)
"""
"""Of a process, with a program that calls the host for seconds."""


def process(text: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", BEGIN + text, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(text: str, *arguments: str, **environment: str) -> str:
    """What a process writes, without a word on its standard error."""
    started = process(text, *arguments, **environment)
    try:
        out, err = started.communicate(timeout=60)
    finally:
        started.kill()
    assert (started.returncode, err) == (0, "")
    return out


# The end of the interpreter takes a while, in which an unguarded callback would be killed or stop everything.
LATE = """
import types
class Late:
    def __del__(self, sleep=time.sleep, write=os.write):
        sleep(0.3)
        write(1, b"late")
sys.modules["late"] = types.ModuleType("late")
sys.modules["late"].it = Late()
"""


@pytest.mark.parametrize("dropped", ["", "del y"], ids=["kept", "dropped"])
def test_interpreter_ends_while_a_program_calls_the_host(dropped: str) -> None:
    text = f"{LATE}\ny = jax.jit(long)(x)\nwhile calls < 3: time.sleep(0.01)\n{dropped}\nprint(calls < 100_000)"
    assert output_of(text) == "True\nlate"


def test_a_call_that_has_begun_is_finished_before_the_interpreter_ends() -> None:
    text = """
begun = threading.Event()
def slow(x, out):
    begun.set()
    time.sleep(0.5)
    os.write(1, b"finished ")
y = jax.jit(lambda x: host_call(slow, S, jax.lax.fori_loop(0, 100, lambda i, x: jnp.tanh(x @ x), x)))(x)
begun.wait()
"""
    assert output_of(LATE + text) == "finished late"


def test_who_waits_while_the_interpreter_ends_is_told() -> None:
    text = """
def last():
    try:
        y.block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        print(str(error).count("the interpreter ends"))
atexit.register(last)
import stsbp_jax.engine.host_callback
y = jax.jit(long)(x)
while calls < 3: time.sleep(0.01)
"""
    assert output_of(text) == "1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_does_not_wait_for_calls_of_its_parent() -> None:
    text = """
import warnings
warnings.simplefilter("ignore")
closing = []
register = atexit.register
def registered(function, *arguments):
    if function.__module__ == "stsbp_jax.engine.ffi":
        closing.append(function)
    return register(function, *arguments)
atexit.register = registered
begun = threading.Event()
def slow(x, out):
    begun.set()
    time.sleep(1)
program = jax.jit(lambda x: host_call(slow, S, x))
threading.Thread(target=program, args=(x,)).start()
begun.wait()
if (child := os.fork()) == 0:
    # Nothing of JAX's, which may wait for threads that a child has not.
    (close,) = closing
    close()
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert output_of(text) == "3\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_children_of_multiprocessing_are_unharmed() -> None:
    text = """
import multiprocessing, warnings
warnings.simplefilter("ignore")
y = jax.jit(long)(x)
while calls < 3: time.sleep(0.01)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, -2]))
"""
    assert output_of(text) == "[1, 2]\n"


# The program runs on the thread that called it.
SLOW = """
def slow(x, out):
    print("begun", flush=True)
    for _ in range(100):
        time.sleep(0.1)
"""


@pytest.mark.parametrize("dispatch", ["True", "False"])
def test_ctrl_c_stops_a_long_call(dispatch: str) -> None:
    # A process in the background of a script is started with SIGINT ignored.
    text = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_cpu_enable_async_dispatch", {dispatch})
{SLOW}
try:
    with original_errors():
        host_call(slow, S, x)[0].block_until_ready()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    started = process(text)
    assert started.stdout is not None
    assert started.stdout.readline() == "begun\n"
    started.send_signal(signal.SIGINT)
    begin = time.monotonic()
    out, err = started.communicate(timeout=60)
    assert (out, err, started.returncode) == ("stopped\n", "", 0)
    assert time.monotonic() - begin < 8


def test_programs_on_the_disk_are_found_by_the_same_and_not_taken_for_others(tmp_path: Path) -> None:
    text = """
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
def scaled(by, x, out):
    np.multiply(x, by, out=out[0])
x = np.ones((100, 100), np.float32)
for by in ({0}):
    f = lambda x: host_call(scaled, S, x, fixed=(by,))[0]
    print(np.asarray(jax.jit(f)(x))[0, 0])
"""
    folder = str(tmp_path)
    for factors, programs in (("2, 3", 2), ("2, 3", 2), ("3, 2, 4", 3)):
        # Programs before the settings above are compiled too quickly to be stored.
        stored = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "60"}
        assert output_of(text.format(factors), **stored).split() == [f"{number}.0" for number in factors.split(", ")]
        assert len(list(tmp_path.glob("jit_*-cache"))) == programs


KERNELS = """
import contextlib, numba
from stsbp_jax.engine.host_callback import one_at_a_time
@numba.njit(parallel=True)
def summed(x, y):
    for i in numba.prange(x.shape[0]):
        total = np.float32(0)
        for j in range(x.shape[1]):
            total += x[i, j]
        y[i] = total
def of_host(x, out):
    summed(x, out[0])
def step(x, _):
    (rows,) = host_call(of_host, [jax.ShapeDtypeStruct((64,), np.float32)], x)
    return x + rows[:, None] * np.float32(0), rows
program = jax.jit(lambda x: jax.lax.scan(step, x, None, length=50)[1])
given = [np.full((64, 1000), i + 1, np.float32) for i in range(3)]
right = []
def through_jax(x):
    right.extend((np.asarray(program(x)) == x.sum(axis=1)).all() for _ in range(10))
threads = [threading.Thread(target=through_jax, args=(x,)) for x in given[:2]]
for thread in threads:
    thread.start()
beside = one_at_a_time if sys.argv[1] == "workqueue" else contextlib.nullcontext()
result = np.empty(64, np.float32)
while any(thread.is_alive() for thread in threads):
    with beside:
        summed(given[2], result)
    right.append((result == given[2].sum(axis=1)).all())
print(all(right), len(right) > 20, numba.threading_layer())
"""
"""Two threads run programs with parallel kernels, and a third runs them itself."""


@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_threads_with_calls_and_kernels_do_not_meet(layer: str) -> None:
    environment = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    if layer != "workqueue" and importlib.util.find_spec(f"numba.np.ufunc.{layer}pool") is None:
        pytest.skip(f"numba has no layer {layer} here")
    if layer == "tbb" and ctypes.util.find_library("tbb") is None:
        pytest.skip("no tbb here")
    assert output_of(KERNELS, layer, **environment) == f"True True {layer}\n"


def test_devices_of_shard_map_each_call_the_host() -> None:
    text = """
from jax.sharding import Mesh, PartitionSpec as P
from stsbp_jax.distributed.replication import _axes
mesh = Mesh(np.array(jax.devices()), ("d",))
def each(x, w, out):
    np.multiply(x, w, out=out[0])
def program(x, w):
    (y,) = host_call(each, [jax.ShapeDtypeStruct(x.shape, x.dtype)], w, x)
    print(*_axes(y))
    return y, jax.lax.psum(y.sum(), "d")
x = jnp.arange(12, dtype=np.float32).reshape(6, 2)
w = jnp.asarray([[2, 3]], np.float32)
for checked in (True, False):
    f = jax.shard_map(program, mesh=mesh, in_specs=(P("d"), P()), out_specs=(P("d"), P()), check_vma=checked)
    y, total = jax.jit(f)(x, w)
    print((np.asarray(y) == np.asarray(x) * np.asarray(w)).all(), float(total))
"""
    flags = "--xla_force_host_platform_device_count=3"
    assert output_of(text, XLA_FLAGS=flags) == "d\nTrue 168.0\n\nTrue 168.0\n"
