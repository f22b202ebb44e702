"""The native function through which XLA calls Python on the CPU, and its arguments (`xla/ffi/api/c_api.h` of jaxlib).

XLA calls a handler with a frame of pointers. The handler returns null or an error. A ctypes callback alone is not
enough, for two reasons. First, it takes the GIL before anything else. A thread that asks for the GIL while the
interpreter exits is killed, and the process with it. Second, a signal may interrupt the callback before its own `try`,
so that it returns without having written an answer.

Therefore, XLA calls a few instructions that llvmlite compiles. They count the calls in progress, let no calls in once
the entry is closed, and create an error if the callback has not answered.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from ctypes import c_char, c_int32, c_int64, c_size_t, c_uint32
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax import ffi
from llvmlite import binding, ir
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray, Shape

__all__ = ["CANCELLED", "CODES", "INTERNAL", "RESOURCE_EXHAUSTED", "ArrayLayout", "Site", "interface", "register_entry"]

CANCELLED, RESOURCE_EXHAUSTED, INTERNAL = 1, 8, 13
"""XLA's error codes."""

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

_METADATA = 1
"""Type of the extension that asks for which version a handler was made."""
_BUFFER = 1
"""Type of an argument or a result."""
_SCALAR = 3
"""Type of an attribute that is one number."""
_DONE = 1
"""Status of a call that has written its results. 0: the callback has not answered. Else: the address of an error."""

_MAJOR = 0
"""Major version of the interface. The minor version was 1 in jaxlib 0.7.2 and is 5 in jaxlib 0.12.0."""
_NUMBERS = {
    "Extension_Metadata": _METADATA,
    "ArgType_BUFFER": _BUFFER,
    "RetType_BUFFER": _BUFFER,
    "AttrType_SCALAR": _SCALAR,
    "Error_Code_CANCELLED": CANCELLED,
    "Error_Code_RESOURCE_EXHAUSTED": RESOURCE_EXHAUSTED,
    "Error_Code_INTERNAL": INTERNAL,
    **dict(
        zip(
            (f"DataType_{name}" for name in ("PRED", "S32", "S64", "U8", "U32", "F32", "F64")),
            CODES.values(),
            strict=True,
        )
    ),
}
"""Values of the header's names, which are given without `XLA_FFI_`."""

# Pointers are integers in these structures, 0 for null. Of each structure, only the fields given here are read.
_Fields = list[tuple[str, Any]]
_BEGIN: _Fields = [("struct_size", c_size_t), ("extension_start", c_size_t)]


class Extension(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("struct_size", c_size_t), ("type", c_int32), ("next", c_size_t)]


class Version(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [*_BEGIN, ("major_version", c_int32), ("minor_version", c_int32)]


class Api(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [
        *_BEGIN, ("api_version", Version), ("internal_api", c_size_t), ("XLA_FFI_Error_Create", c_size_t)
    ]  # fmt: skip


class ErrorCreateArgs(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [*_BEGIN, ("message", c_size_t), ("errc", c_int32)]


class Buffer(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [
        *_BEGIN, ("dtype", c_int32), ("data", c_size_t), ("rank", c_int64), ("dims", c_size_t)
    ]  # fmt: skip


class Args(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [*_BEGIN, ("size", c_int64), ("types", c_size_t), ("args", c_size_t)]


class Rets(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [*_BEGIN, ("size", c_int64), ("types", c_size_t), ("rets", c_size_t)]


class Attrs(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [
        *_BEGIN, ("size", c_int64), ("types", c_size_t), ("names", c_size_t), ("attrs", c_size_t)
    ]  # fmt: skip


class Scalar(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("dtype", c_int32), ("value", c_size_t)]


class CallFrame(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [
        *_BEGIN, ("api", c_size_t), ("ctx", c_size_t), ("stage", c_int32), ("args", Args), ("rets", Rets),
        ("attrs", Attrs),
    ]  # fmt: skip


class Metadata(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("struct_size", c_size_t), ("api_version", Version), ("traits", c_uint32)]


class MetadataExtension(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("extension_base", Extension), ("metadata", c_size_t)]


_STRUCTURES: Mapping[str, type[ctypes.Structure]] = {
    "XLA_FFI_Api": Api,
    "XLA_FFI_Api_Version": Version,
    "XLA_FFI_Args": Args,
    "XLA_FFI_Attrs": Attrs,
    "XLA_FFI_Buffer": Buffer,
    "XLA_FFI_CallFrame": CallFrame,
    "XLA_FFI_Error_Create_Args": ErrorCreateArgs,
    "XLA_FFI_Metadata": Metadata,
    "XLA_FFI_Metadata_Extension": MetadataExtension,
    "XLA_FFI_Rets": Rets,
    "XLA_FFI_Scalar": Scalar,
}
_TYPES: Mapping[str, Any] = {
    **_STRUCTURES,
    "XLA_FFI_Extension_Base": Extension,
    "XLA_FFI_InternalExtension": Extension,
    "XLA_FFI_DataType": c_int32,
    "XLA_FFI_Error_Code": c_int32,
    "XLA_FFI_ExecutionStage": c_int32,
    "XLA_FFI_Handler_Traits": c_uint32,
    "int": c_int32,
    "int64_t": c_int64,
    "size_t": c_size_t,
}
"""The header's types. Every pointer is a `c_size_t`."""


def _size(structure: type[ctypes.Structure]) -> int:
    """Size of a structure as XLA counts it: to the end of the last field."""
    last: Any = getattr(structure, structure._fields_[-1][0])
    size: int = last.offset + last.size
    return size


_ARGS, _ATTRS, _BUFFER_SIZE, _FRAME, _RETS = map(_size, (Args, Attrs, Buffer, CallFrame, Rets))


def interface(header: str) -> tuple[int, int]:
    """Version of the interface that a header, `xla/ffi/api/c_api.h`, describes.

    Raises:
        BackendError: the header does not have the structures above.
    """
    text = re.sub(r"//.*", "", header)
    versions = dict(re.findall(r"^#define XLA_FFI_API_(MAJOR|MINOR) (\d+)\s*$", text, re.MULTILINE))
    api_version = int(versions.get("MAJOR", -1)), int(versions.get("MINOR", -1))
    if api_version[0] != _MAJOR:
        raise BackendError(_unknown(f"its version is {api_version[0]}.{api_version[1]} in place of {_MAJOR}.*"))
    numbers = {name: int(number) for name, number in re.findall(r"\bXLA_FFI_(\w+) = (\d+)", text)}
    for name, number in _NUMBERS.items():
        if numbers.get(name) != number:
            raise BackendError(_unknown(f"XLA_FFI_{name} is {numbers.get(name)} in place of {number}"))
    # XLA's version number does not show whether the structures changed.
    for name, structure in _STRUCTURES.items():
        body = re.search(rf"\bstruct {name} {{(.*?)}}", text, re.DOTALL)
        fields = [_field(declaration) for declaration in (body[1] if body else "").split(";") if declaration.strip()]
        if fields[: len(structure._fields_)] != structure._fields_:
            raise BackendError(_unknown(f"{name} is {' '.join(field for field, _ in fields) or 'not there'}"))
    return api_version


def _field(declaration: str) -> tuple[str, Any]:
    """Name and type of a field, without its semicolon."""
    if function := re.search(r"_XLA_FFI_API_STRUCT_FIELD\((\w+)\)", declaration):
        return function[1], c_size_t
    *kind, name = declaration.replace("*", " * ").split()
    return name, c_size_t if "*" in kind else _TYPES.get(" ".join(kind))


def _unknown(difference: str) -> str:
    return (
        f"jaxlib {version('jaxlib')} has an interface to functions of the host that stsbp-jax does not know: "
        f"{difference}; jaxlib 0.7.2 to 0.12.0 are known to work"
    )


class ArrayLayout(NamedTuple):
    """Shape and dtype of an array that is contiguous, in the order of its axes."""

    shape: Shape
    dtype: np.dtype[Any]


class _Buffers:
    """The arguments or the results of a site."""

    __slots__ = ("_each", "_pointers")

    def __init__(self, memories: tuple[ArrayLayout, ...]) -> None:
        self._pointers = c_size_t * len(memories)
        self._each = [
            (shape, dtype, CODES[dtype], [*shape], c_int64 * len(shape), c_char * (math.prod(shape) * dtype.itemsize))
            for shape, dtype in memories
        ]

    def views(self, size: int, addresses: int) -> list[AnyArray]:
        """The arrays, as views of XLA's memory."""
        if size != len(self._each):
            raise BackendError(_unknown(f"{size} arrays in place of {len(self._each)}"))
        arrays: list[AnyArray] = []
        pointers: Any = self._pointers.from_address(addresses)
        for pointer, (shape, dtype, code, axes, dims, memory) in zip(pointers, self._each, strict=True):
            buffer = Buffer.from_address(pointer)
            if buffer.struct_size < _BUFFER_SIZE or buffer.dtype != code or buffer.rank != len(shape):
                was = f"a Buffer of {buffer.struct_size} bytes, type {buffer.dtype} and {buffer.rank} axes"
                raise BackendError(_unknown(f"{was} in place of {dtype} {axes}"))
            if dims.from_address(buffer.dims)[:] != axes:
                raise BackendError(_unknown(f"axes {dims.from_address(buffer.dims)[:]} in place of {axes}"))
            data: Any = memory.from_address(buffer.data)
            x: AnyArray = np.ndarray(shape, dtype, data)
            arrays.append(x)
        return arrays


class Site:
    """A place in a program that calls the host, or several such places that are equal.

    Args:
        call: function of the argument arrays and of the result arrays. It must not write to the argument arrays.
        arguments, results: shapes and dtypes of these arrays.
    """

    __slots__ = ("_arguments", "_call", "_results")

    def __init__(
        self,
        call: Callable[[list[AnyArray], list[AnyArray]], None],
        arguments: tuple[ArrayLayout, ...],
        results: tuple[ArrayLayout, ...],
    ) -> None:
        self._call = call
        self._arguments, self._results = _Buffers(arguments), _Buffers(results)

    def run(self, frame: CallFrame) -> None:
        args, rets = frame.args, frame.rets
        if args.struct_size < _ARGS or rets.struct_size < _RETS:
            raise BackendError(_unknown(f"Args and Rets of {args.struct_size} and {rets.struct_size} bytes"))
        self._call(self._arguments.views(args.size, args.args), self._results.views(rets.size, rets.rets))


class _CallEntry:
    """The callback.

    Args:
        sites: sites by their numbers. The number is the only attribute of a call.
        report: function from an exception to the message and the code for XLA.
        version: version of the interface that is reported to XLA.
    """

    def __init__(
        self, sites: Mapping[int, Site], report: Callable[[BaseException], tuple[str, int]], version: tuple[int, int]
    ) -> None:
        self._sites, self._report, self._version = sites, report, version

    def enter(self, address: int, status: int) -> None:
        """Answer a call from XLA. `address` is the address of the frame, `status` the address of the outcome."""
        frame = CallFrame.from_address(address)
        try:
            if frame.extension_start:
                self._introduce(frame)
            elif frame.struct_size < _FRAME:
                raise BackendError(_unknown(f"a CallFrame of {frame.struct_size} bytes"))
            else:
                self._site(frame.attrs).run(frame)
            outcome = _DONE
        except BaseException as error:
            outcome = _error(frame, *self._report(error))
        c_size_t.from_address(status).value = outcome

    def _introduce(self, frame: CallFrame) -> None:
        """Report for which version this handler was made. XLA asks for it before it accepts the handler."""
        extension = MetadataExtension.from_address(frame.extension_start)
        if extension.extension_base.type == _METADATA:
            metadata = Metadata.from_address(extension.metadata)
            metadata.api_version.major_version, metadata.api_version.minor_version = self._version
            metadata.traits = 0

    def _site(self, attrs: Attrs) -> Site:
        if attrs.struct_size < _ATTRS:
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


def _error(frame: CallFrame, message: str, code: int) -> int:
    """Address of an error that XLA owns."""
    text = message.replace("\0", "").encode(errors="replace")
    create = _CREATE(Api.from_address(frame.api).XLA_FFI_Error_Create)
    memory = ctypes.create_string_buffer(text)
    address: int = create(ErrorCreateArgs(_size(ErrorCreateArgs), 0, ctypes.addressof(memory), code))
    return address


_CREATE = ctypes.CFUNCTYPE(c_size_t, ctypes.POINTER(ErrorCreateArgs))


class _Native(NamedTuple):
    """Addresses of compiled objects: the handler, the number of calls in progress, and whether the entry is closed."""

    handler: int
    inside: int
    shut: int


_SHUT = b"the interpreter ends, or the call was interrupted"


def _compiled(callback: int) -> _Native:
    """Compile the handler that calls `callback(frame, status)`. It stays in memory until the process ends."""
    word, byte = ir.IntType(64), ir.IntType(8)
    module = ir.Module("stsbp_host")
    module.triple = binding.get_process_triple()

    def variable(name: str, initial: Any) -> ir.GlobalVariable:
        global_variable = ir.GlobalVariable(module, initial.type, name)
        global_variable.initializer = initial
        return global_variable

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
    values = [word(_size(ErrorCreateArgs)), word(0), builder.ptrtoint(text, word), word(CANCELLED)]
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
    native = _Native(
        engine.get_function_address("handler"),
        engine.get_global_value_address("inside"),
        engine.get_global_value_address("shut"),
    )
    engine.detach()
    return native


_registered: list[Any] = []
"""Objects that XLA may call until the process ends."""


def register_entry(name: str, sites: Mapping[int, Site], report: Callable[[BaseException], tuple[str, int]]) -> None:
    """Register the target `name` with XLA.

    Args:
        name: name of a target that no other call has registered.
        sites: sites by their numbers. The number is the only attribute of a call.
        report: function from an exception to the message and the code for XLA. It must not raise.

    Raises:
        BackendError: this version of jaxlib calls handlers in an unknown way.
    """
    header = Path(ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        api_version = interface(header.read_text(encoding="utf-8"))
    except OSError as error:
        raise BackendError(_unknown(f"its header cannot be read ({error})")) from error
    entry = _CallEntry(sites, report, api_version)
    callback = ctypes.CFUNCTYPE(None, c_size_t, c_size_t)(entry.enter)
    native = _compiled(ctypes.cast(callback, ctypes.c_void_p).value or 0)
    _registered.append(callback)
    inside, shut = c_int64.from_address(native.inside), c_int64.from_address(native.shut)
    ffi.register_ffi_target(name, ffi.pycapsule(native.handler), platform="cpu")  # type: ignore[no-untyped-call]

    def close() -> None:
        shut.value = 1
        while inside.value:
            time.sleep(0.001)

    def alone() -> None:
        inside.value = 0

    if hasattr(os, "register_at_fork"):
        # The threads of the calls in progress do not exist in a child process.
        os.register_at_fork(after_in_child=alone)
    # Daemon threads that still run JAX can crash the process at its end, also without calls of the host.
    atexit.register(close)
