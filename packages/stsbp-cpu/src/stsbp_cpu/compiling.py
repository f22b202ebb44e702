"""`cached_njit`, the decorator of the functions that numba compiles, and where their machine code is kept between runs.

numba's own cache asks only whether the file of a function has changed, and goes on with what it once inlined from other
files. This one is a folder (`stsbp_spec.kernel_cache`) whose name is a hash of all of `SOURCES`, of the versions of all
that compiles, and of the processor. What is kept is numba's own form: a pickle around machine code.

A function that is printed from an equation (`printed_njit`) has the hash of its text in its name, and so has every
kernel that is closed over one: numba tells functions apart by their names, in this process and in the machine code.
"""

from __future__ import annotations

import gc
import linecache
import logging
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import llvmlite
import numba
import numpy as np
from numba.core import config, event
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.compiler_machinery import register_pass
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.core.typed_passes import NativeParforLowering
from numba.parfors.parfor import Parfor
from stsbp_spec.kernel_cache import Claim, KernelFolder, digest, kernel_file, kernel_folder, source_digest

__all__ = ["SOURCES", "announce", "cached_njit", "folder_for", "own_folder", "printed_njit"]

_LOG = logging.getLogger(__name__)
_FORMAT = "1"
_PATIENCE = 60.0
"""Seconds to wait for another process that compiles a kernel; it may be stopped."""

SOURCES = (
    "stsbp_spec.grid",
    "stsbp_cpu.compiling",
    "stsbp_cpu.dense",
    "stsbp_cpu.neurons",
    "stsbp_cpu.optim.adamw",
    "stsbp_cpu.populations",
    "stsbp_cpu.printed",
    "stsbp_cpu.recurrence",
    "stsbp_cpu.reductions",
    "stsbp_cpu.sparse.chosen",
    "stsbp_cpu.sparse.kernels",
    "stsbp_cpu.sparse.linear",
    "stsbp_cpu.sparse.needed",
    "stsbp_cpu.sparse.spikes",
    "stsbp_cpu.synapses.avgpool2d",
    "stsbp_cpu.synapses.batchnorm",
    "stsbp_cpu.synapses.conv2d",
    "stsbp_cpu.synapses.conv2d_bytes",
    "stsbp_cpu.synapses.dropout",
    "stsbp_cpu.synapses.maxpool2d",
    "stsbp_cpu.vectors",
)
"""Modules with kernels, and those whose functions and numbers the kernels take into themselves."""

_OPTIONS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "USING_SVML")
"""Settings of numba, from its environment variables, that change the code it makes."""

R = TypeVar("R")


@cache
def _sources() -> str | None:
    """The hash of the texts as they were when the first kernel was imported; None where they cannot be read."""
    return _sources_now()


def _sources_now() -> str | None:
    try:
        return source_digest(*SOURCES)
    except OSError as error:
        _LOG.warning("compiled kernels are not kept, each run compiles them again: %s", error)
        return None


def folder_for(codegen: Any) -> KernelFolder | None:
    """Where kernels of these sources for this processor are; `codegen` is numba's, of the processor."""
    sources = _sources()
    if sources is None:
        return None
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version)
    options = (f"{name}={getattr(config, name, None)}" for name in _OPTIONS)
    return kernel_folder("numba", digest(_FORMAT, sources, *versions, *map(str, codegen.magic_tuple()), *options))


def own_folder() -> KernelFolder | None:
    """`folder_for` the processor at hand."""
    return folder_for(cpu_target.target_context.codegen())


class _KernelCache(_Cache):  # type: ignore[misc]
    """In place of numba's cache of one function. A file for each signature, no index for two processes to garble."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"
        self._claims: dict[str, Claim | None] = {}

    @property
    def cache_path(self) -> None:
        """Not known before a processor is."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # What code of the disk needs of numba; what compiling needs besides is loaded when something is compiled.
        rtsys.initialize(target_context)
        folder = folder_for(target_context.codegen())
        if folder is None:
            return None
        name = self._file(sig)
        found = folder.read(name)
        if found is None:
            # Of several processes that want a kernel, one compiles it.
            self._release(name)
            self._claims[name] = folder.claim(name, _PATIENCE)
            found = folder.read(name)
            if found is None:
                return None
            self._release(name)
        # As safe to unpickle as the machine code in it is to run: `kernel_cache` says who could have written it.
        kept, parts = pickle.loads(found)
        return CompileResult._rebuild(target_context, *parts) if kept == sig else None

    def save_overload(self, sig: Any, data: Any) -> None:
        # Code with addresses of this process in it is of no use to another one.
        parts = data._asdict()
        kept = not parts["library"].has_dynamic_globals and all(lifted.can_cache for lifted in parts["lifted"])
        folder = folder_for(data.codegen) if kept else None
        # A package that was replaced while this process ran: what is compiled may be of the old or of the new one.
        if folder is not None and _sources_now() == _sources():
            folder.write(self._file(sig), dumps((sig, data._reduce())))
        self._release(self._file(sig))

    def _release(self, name: str) -> None:
        if claim := self._claims.pop(name, None):
            claim.release()

    def _file(self, sig: Any) -> str:
        return kernel_file(self.name, str(sig))

    def enable(self) -> None:
        """Always on."""

    def disable(self) -> None:
        """Always on."""

    def flush(self) -> None:
        """Nothing is held back."""


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Code that is linked into a kernel and never called by itself.

    Of a parallel loop numba makes four libraries, each linked into the next: the loop's body, two functions around it,
    and the kernel. It would optimise each of them and make machine code of it; here the kernel alone is, with all that
    is in it.
    """

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            if hasattr(library, "_reload_init"):  # since numba 0.63
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        # numba sets the loop's own variable of Python objects at once, so that must have an address.
        own = [x for x in self._final_module.global_variables if x.name.startswith("_ZN08NumbaEnv")]
        self._codegen._add_module(llvmlite.binding.parse_assembly("\n".join(map(str, own))))
        self._codegen._engine.finalize_object()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """0, which numba takes for a function that Python does not call."""
        self._ensure_finalized()
        return 0


def _library(codegen: Any, name: str) -> JITCodeLibrary:
    """In place of numba's class of libraries, while it makes a parallel loop."""
    part = name.startswith("__numba_parfor_gufunc") or "_GufuncWrapper" in name or name == "parallelgufuncwrapper"
    return (_Part if part else JITCodeLibrary)(codegen, name)


@register_pass(mutates_CFG=True, analysis_only=False)
class _ParallelLowering(NativeParforLowering):  # type: ignore[misc]
    """numba's own, with parts of a kernel made as such."""

    _name = "stsbp_parallel_lowering"

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            for loop in block.body:
                if isinstance(loop, Parfor):
                    loop.flags = _uncalled(loop.flags)
        codegen = state.targetctx.codegen()
        codegen._library_class = _library
        try:
            done: bool = super().run_pass(state)
        finally:
            del codegen._library_class
        return done


def _uncalled(flags: Any) -> Any:
    """Of a function that neither Python nor C calls."""
    flags = flags.copy()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    return flags


class _Kernel(Compiler):  # type: ignore[misc]
    """Of functions that Python or other kernels call, C never."""

    def __init__(self, typing_context: Any, target_context: Any, library: Any, args: Any, result: Any, flags: Any,
                 locals: Any) -> None:  # fmt: skip
        flags = flags.copy()
        flags.no_cfunc_wrapper = True
        super().__init__(typing_context, target_context, library, args, result, flags, locals)

    def compile_extra(self, function: Any) -> Any:
        # Little of what is made is garbage before the end, and looking for it would take a seventh of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(function)
        finally:
            if collecting:
                gc.enable()

    def define_pipelines(self) -> Any:
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            passes = (
                (_ParallelLowering if kind is NativeParforLowering else kind, why) for kind, why in pipeline.passes
            )
            pipeline.passes = list(passes)
            pipeline.finalize()
        return pipelines


class _Distinct(_Kernel):
    """Of a function no two of whose arguments share memory, so that its loops become vector code without a look."""

    def __init__(self, typing_context: Any, target_context: Any, library: Any, args: Any, result: Any, flags: Any,
                 locals: Any) -> None:  # fmt: skip
        flags = flags.copy()
        flags.noalias = True
        super().__init__(typing_context, target_context, library, args, result, flags, locals)


def cached_njit(*, distinct: bool = False, **options: Any) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """`numba.njit` with these options, and with the cache of this module.

    Args:
        distinct: no two arguments share memory.
        options: of numba.

    Raises:
        TypeError: the function's module is missing from `SOURCES`, or the function is closed over something else than
            functions of this decorator.
    """

    def compiled(function: Callable[..., R]) -> Callable[..., R]:
        inner = [_kernel_name(cell.cell_contents) for cell in function.__closure__ or ()]
        read = (_kernel_name(function.__globals__.get(word)) for word in function.__code__.co_names)
        inner += [name for name in read if name is not None]
        if function.__module__ not in SOURCES or None in inner:
            name = f"{function.__module__}.{function.__qualname__}"
            raise TypeError(f"{name} is not covered by stsbp_cpu.compiling.SOURCES")
        if inner:
            _rename(function, f"{function.__name__}_{_short(function.__qualname__, inner)}")
        _sources()
        made: Any = numba.njit(**options, pipeline_class=_Distinct if distinct else _Kernel)(function)
        vars(made)["_cache"] = _KernelCache(function)
        result: Callable[..., R] = made
        return result

    return compiled


def printed_njit(text: str, name: str, words: Mapping[str, Any], **options: Any) -> Callable[..., Any]:
    """The function `name` that `text` defines, as `cached_njit` makes it.

    Args:
        text: Python.
        name: of the function in it.
        words: what it reads besides its arguments: functions of `cached_njit`, and what stands in `SOURCES`. Its
            `__name__` is the module that the function counts as.
        options: of `cached_njit`.
    """
    kernels = (f"{word} {inner}" for word, x in words.items() if (inner := _kernel_name(x)) is not None)
    full = f"{name}_{_short(text, kernels)}"
    file = f"<stsbp {full}>"
    # For tracebacks; an entry without a time is never looked for on the disk.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope = dict(words)
    exec(compile(text, file, "exec"), scope)
    function = scope[name]
    _rename(function, full)
    return cached_njit(**options)(function)


def _kernel_name(x: object) -> str | None:
    """Of a function of `cached_njit`, else None."""
    kept = getattr(x, "_cache", None)
    return kept.name if isinstance(kept, _KernelCache) else None


def _short(first: str, rest: Iterable[str | None]) -> str:
    return digest(first, *map(str, rest))[:16]


def _rename(function: Callable[..., Any], name: str) -> None:
    function.__name__ = function.__qualname__ = name


class _Announcement(event.Listener):  # type: ignore[misc]
    """Hears of what is compiled, not of what is loaded."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: Any) -> None:
        dispatcher = event.data["dispatcher"]
        if not self.said and dispatcher.py_func.__module__.startswith("stsbp_cpu."):
            self.said = True
            folder = folder_for(dispatcher.targetctx.codegen())
            later = "; later runs load them from the disk" if folder is not None and folder.kept else ""
            _LOG.warning("compiling the kernels for this processor%s", later)

    def on_end(self, event: Any) -> None:
        pass


_announcement: _Announcement | None = None


def announce() -> None:
    """Warn in the log when the first kernel of this process is compiled: that takes seconds, loading none."""
    global _announcement
    if _announcement is None:
        _announcement = _Announcement()
        event.register("numba:compile", _announcement)
