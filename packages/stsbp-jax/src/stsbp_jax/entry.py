"""The native function by which XLA enters Python on the CPU, and what it hands over (`xla/ffi/api/c_api.h` of jaxlib).

XLA calls a handler with a frame of pointers and takes null, or an error, for an answer. A ctypes callback alone would
not do. It takes the GIL before anything else, and a thread that asks for the GIL while the interpreter ends is killed,
and the process with it. And a signal may interrupt it before its own `try`, which leaves an answer that nobody has
written. So XLA calls a few instructions that llvmlite compiles: they count who is inside, let nobody in once the door
is shut, and make an error where the callback has not answered.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import time
from collections.abc import Callable, Mapping
from ctypes import c_char, c_int, c_int32, c_int64, c_size_t, c_uint32
from typing import Any, NamedTuple

import numpy as np
from jax import ffi
from llvmlite import binding, ir
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray, Shape

__all__ = ["CANCELLED", "CODES", "INTERNAL", "RESOURCE_EXHAUSTED", "Memory", "Site", "open_door"]

CANCELLED, RESOURCE_EXHAUSTED, INTERNAL = 1, 8, 13
"""Codes of errors."""

CODES: Mapping[np.dtype[Any], int] = {
    np.dtype(np.bool_): 1,
    np.dtype(np.int32): 4,
    np.dtype(np.int64): 5,
    np.dtype(np.uint8): 6,
    np.dtype(np.uint32): 8,
    np.dtype(np.float32): 11,
    np.dtype(np.float64): 12,
}
"""XLA's number of each dtype that a call may have."""

MAJOR, MINORS = 0, range(1, 4)
"""Versions of the interface that have the structures below: jaxlib 0.7.2 is of 0.1, jaxlib 0.10.2 of 0.3."""

_METADATA = 1
"""Type of the extension that asks which version a handler was made for."""
_SCALAR = 3
"""Type of an attribute that is one number."""
_DONE = 1
"""Status of a call whose results are there; 0: nobody has answered; else the address of an error."""

_BEGIN: list[tuple[str, Any]] = [("struct_size", c_size_t), ("extension_start", c_size_t)]


class Version(ctypes.Structure):
    """Pointers are whole numbers in all of these structures, 0 for null."""

    _fields_ = [*_BEGIN, ("major_version", c_int), ("minor_version", c_int)]


class Api(ctypes.Structure):
    """The first of XLA's functions, of more."""

    _fields_ = [*_BEGIN, ("api_version", Version), ("internal_api", c_size_t), ("XLA_FFI_Error_Create", c_size_t)]


class ErrorCreateArgs(ctypes.Structure):
    _fields_ = [*_BEGIN, ("message", ctypes.c_char_p), ("errc", c_int32)]


class Buffer(ctypes.Structure):
    _fields_ = [*_BEGIN, ("dtype", c_int32), ("data", c_size_t), ("rank", c_int64), ("dims", c_size_t)]


class Args(ctypes.Structure):
    _fields_ = [*_BEGIN, ("size", c_int64), ("types", c_size_t), ("args", c_size_t)]


class Rets(ctypes.Structure):
    _fields_ = [*_BEGIN, ("size", c_int64), ("types", c_size_t), ("rets", c_size_t)]


class Attrs(ctypes.Structure):
    _fields_ = [*_BEGIN, ("size", c_int64), ("types", c_size_t), ("names", c_size_t), ("attrs", c_size_t)]


class Scalar(ctypes.Structure):
    _fields_ = [("dtype", c_int32), ("value", c_size_t)]


class CallFrame(ctypes.Structure):
    """Up to the field where its size ends."""

    _fields_ = [*_BEGIN, ("api", c_size_t), ("ctx", c_size_t), ("stage", c_int32), ("args", Args), ("rets", Rets),
                ("attrs", Attrs)]  # fmt: skip


class ExtensionBase(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("type", c_int32), ("next", c_size_t)]


class MetadataExtension(ctypes.Structure):
    _fields_ = [("extension_base", ExtensionBase), ("metadata", c_size_t)]


class Metadata(ctypes.Structure):
    """Later versions have one more field, which XLA fills itself."""

    _fields_ = [("struct_size", c_size_t), ("api_version", Version), ("traits", c_uint32)]


class Memory(NamedTuple):
    """An array as it lies in memory: whole, in the order of its axes."""

    shape: Shape
    dtype: np.dtype[Any]


class _Buffers:
    """Arrays of a site."""

    __slots__ = ("_checked", "_each", "_pointers", "_writable")

    def __init__(self, memories: tuple[Memory, ...], writable: bool) -> None:
        self._pointers = c_size_t * len(memories)
        self._each = [
            (CODES[dtype], len(shape), shape, dtype, c_char * (math.prod(shape) * dtype.itemsize))
            for shape, dtype in memories
        ]
        self._writable = writable
        self._checked = False

    def views(self, size: int, addresses: int) -> list[AnyArray]:
        """Arrays in XLA's memory."""
        if size != len(self._each):
            raise BackendError(_unknown(f"{size} arrays where {len(self._each)} were promised"))
        found: list[AnyArray] = []
        pointers = self._pointers.from_address(addresses) if size else ()
        for pointer, (code, rank, shape, dtype, memory) in zip(pointers, self._each, strict=True):
            buffer = Buffer.from_address(pointer)
            if buffer.struct_size != _BUFFER or buffer.dtype != code or buffer.rank != rank:
                was = f"a Buffer of {buffer.struct_size} bytes, {buffer.rank} axes and type {buffer.dtype}"
                raise BackendError(_unknown(f"{was} for {dtype} {list(shape)}"))
            # XLA compiles for these shapes, and keeps to them: the first call shows that both mean the same.
            if not self._checked and (dims := (c_int64 * rank).from_address(buffer.dims)[:] if rank else []) != [
                *shape
            ]:
                raise BackendError(_unknown(f"axes {dims} for {list(shape)}"))
            # An empty array may have no address.
            x: AnyArray = np.ndarray(shape, dtype, memory.from_address(buffer.data) if buffer.data else b"")
            found.append(x)
        self._checked = True
        return found


class Site:
    """A place of a program that calls the host, or several alike.

    Args:
        call: takes the arrays of its arguments, closed to writing, and of its results.
        arguments, results: what they are.
    """

    __slots__ = ("_arguments", "_call", "_results")

    def __init__(
        self,
        call: Callable[[list[AnyArray], list[AnyArray]], None],
        arguments: tuple[Memory, ...],
        results: tuple[Memory, ...],
    ) -> None:
        self._call = call
        self._arguments, self._results = _Buffers(arguments, writable=False), _Buffers(results, writable=True)

    def run(self, frame: CallFrame) -> None:
        args, rets = frame.args, frame.rets
        if args.struct_size != _SIZES[Args] or rets.struct_size != _SIZES[Rets]:
            raise BackendError(_unknown(f"Args and Rets of {args.struct_size} and {rets.struct_size} bytes"))
        self._call(self._arguments.views(args.size, args.args), self._results.views(rets.size, rets.rets))


def _size(struct: type[ctypes.Structure]) -> int:
    """Of the fields of a structure, as XLA counts: without what fills it up to a multiple of 8."""
    last: Any = getattr(struct, struct._fields_[-1][0])
    size: int = last.offset + last.size
    return size


_BUFFER = _size(Buffer)
_SIZES = {struct: _size(struct) for struct in (Args, Attrs, CallFrame, ErrorCreateArgs, Rets)}


def _unknown(what: str) -> str:
    import jaxlib

    return (
        f"jaxlib {jaxlib.__version__} calls the host in a way that stsbp-jax does not know: {what}; it knows versions "
        f"{MAJOR}.{MINORS[0]} to {MAJOR}.{MINORS[-1]} of XLA's interface, which jaxlib 0.7.2 to 0.10.2 have"
    )


class _Door:
    """The callback.

    Args:
        sites: by the number that is the one attribute of a call.
        told: message and code of what a call raised.
    """

    def __init__(self, sites: Mapping[int, Site], told: Callable[[BaseException], tuple[str, int]]) -> None:
        self._sites, self._told = sites, told
        self.problem: str | None = _unknown("it asks for no version")
        self.create: Any = None

    def enter(self, address: int, status: int) -> None:
        """Answers a call of XLA's; `address` is of its frame, `status` of a number for the outcome."""
        try:
            frame = CallFrame.from_address(address)
            if frame.extension_start:
                self._introduce(frame)
            else:
                self._site(frame.attrs).run(frame)
            outcome = _DONE
        except BaseException as error:
            outcome = self._error(*self._told(error))
        c_size_t.from_address(status).value = outcome

    def _introduce(self, frame: CallFrame) -> None:
        """Says that this handler is of XLA's own version, and finds out whether that is so."""
        extension = MetadataExtension.from_address(frame.extension_start)
        if extension.extension_base.type != _METADATA:
            return
        api = Api.from_address(frame.api)
        version = api.api_version
        said = Metadata.from_address(extension.metadata)
        said.api_version.major_version, said.api_version.minor_version = version.major_version, version.minor_version
        said.traits = 0
        if version.major_version != MAJOR or version.minor_version not in MINORS:
            self.problem = _unknown(f"version {version.major_version}.{version.minor_version}")
        elif frame.struct_size != _SIZES[CallFrame]:
            self.problem = _unknown(f"a CallFrame of {frame.struct_size} bytes")
        else:
            create = ctypes.CFUNCTYPE(c_size_t, ctypes.POINTER(ErrorCreateArgs))
            self.create, self.problem = create(api.XLA_FFI_Error_Create), None

    def _site(self, attrs: Attrs) -> Site:
        if attrs.struct_size != _SIZES[Attrs]:
            raise BackendError(_unknown(f"Attrs of {attrs.struct_size} bytes"))
        if attrs.size != 1 or c_int32.from_address(attrs.types).value != _SCALAR:
            raise BackendError(_unknown(f"{attrs.size} attributes"))
        scalar = Scalar.from_address(c_size_t.from_address(attrs.attrs).value)
        number = c_int64.from_address(scalar.value).value
        try:
            return self._sites[number]
        except KeyError:
            raise BackendError(
                "a program that another process compiled calls functions of that process; compile it here"
            ) from None

    def _error(self, message: str, code: int) -> int:
        text = message.replace("\0", "").encode(errors="replace")
        address: int = self.create(ErrorCreateArgs(_SIZES[ErrorCreateArgs], 0, text, code))
        return address


class _Native(NamedTuple):
    """Addresses of what was compiled: the handler, the number of calls inside, and whether the door is shut."""

    handler: int
    inside: int
    shut: int


_SHUT = b"the interpreter ends, or the call was interrupted"


def _compiled(callback: int) -> _Native:
    """The handler around `callback(frame, status)`. It stays in memory as long as the process lives."""
    word, byte = ir.IntType(64), ir.IntType(8)
    module = ir.Module("stsbp_host")
    module.triple = binding.get_process_triple()

    def variable(name: str, initial: Any) -> ir.GlobalVariable:
        made = ir.GlobalVariable(module, initial.type, name)
        made.initializer = initial
        return made

    inside, shut = variable("inside", word(0)), variable("shut", word(0))
    text = variable("text", ir.Constant(ir.ArrayType(byte, len(_SHUT) + 1), bytearray(_SHUT + b"\0")))
    handler = ir.Function(module, ir.FunctionType(word, [word]), "handler")
    begin, call, leave, unanswered, answered = (
        handler.append_basic_block(name) for name in ("begin", "call", "leave", "unanswered", "answered")
    )
    (frame,) = handler.args
    builder = ir.IRBuilder(begin)

    def pointed(address: Any, offset: int) -> Any:
        return builder.load(builder.inttoptr(builder.add(address, word(offset)), word.as_pointer()))

    def function(address: Any, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [x.type for x in arguments])
        return builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)

    status = builder.alloca(word)
    builder.store(word(0), status)
    builder.atomic_rmw("add", inside, word(1), "seq_cst")
    is_open = builder.icmp_unsigned("==", builder.load_atomic(shut, "seq_cst", 8), word(0))
    builder.cbranch(is_open, call, leave)

    builder.position_at_end(call)
    function(word(callback), ir.VoidType(), frame, builder.ptrtoint(status, word))
    builder.branch(leave)

    builder.position_at_end(leave)
    builder.atomic_rmw("sub", inside, word(1), "seq_cst")
    outcome = builder.load(status)
    builder.cbranch(builder.icmp_unsigned("==", outcome, word(0)), unanswered, answered)

    builder.position_at_end(unanswered)
    create = pointed(pointed(frame, CallFrame.api.offset), Api.XLA_FFI_Error_Create.offset)
    values = [word(_SIZES[ErrorCreateArgs]), word(0), builder.ptrtoint(text, word), word(CANCELLED)]
    arguments = builder.alloca(word, len(values))
    for i, value in enumerate(values):
        builder.store(value, builder.gep(arguments, [word(i)]))
    builder.ret(function(create, word, builder.ptrtoint(arguments, word)))

    builder.position_at_end(answered)
    builder.ret(builder.select(builder.icmp_unsigned("==", outcome, word(_DONE)), word(0), outcome))

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    found = _Native(
        engine.get_function_address("handler"),
        engine.get_global_value_address("inside"),
        engine.get_global_value_address("shut"),
    )
    engine.detach()
    return found


_kept: list[Any] = []
"""What XLA may call for ever."""


def open_door(name: str, sites: Mapping[int, Site], told: Callable[[BaseException], tuple[str, int]]) -> None:
    """Registers the target `name` with XLA.

    Args:
        name: of a target that no other call has registered.
        sites: by the number that is the one attribute of a call.
        told: message and code of what a call raised; it must not raise.

    Raises:
        BackendError: jaxlib calls handlers in a way that is not known here.
    """
    door = _Door(sites, told)
    callback = ctypes.CFUNCTYPE(None, c_size_t, c_size_t)(door.enter)
    native = _compiled(ctypes.cast(callback, ctypes.c_void_p).value or 0)
    _kept.append(callback)
    inside, shut = c_int64.from_address(native.inside), c_int64.from_address(native.shut)
    ffi.register_ffi_target(name, ffi.pycapsule(native.handler), platform="cpu")
    if door.problem is not None:
        raise BackendError(door.problem)

    def close() -> None:
        shut.value = 1
        while inside.value:
            time.sleep(0.001)

    def alone() -> None:
        inside.value = 0

    # The threads that were inside are not there in a child.
    os.register_at_fork(after_in_child=alone)
    atexit.register(close)
