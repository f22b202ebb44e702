"""`cached_njit`, the decorator for all functions that numba compiles, and the cache that stores their machine code.

numba's own cache only checks whether the file of a function has changed. It would keep using old code that was inlined
from other files. The cache of this module is a folder (`stsbp_spec.engine.kernel_cache`). The folder's name is a hash
of all `SOURCES`, of the versions of all packages that compile, and of the processor. The files have numba's own format,
a pickle that contains machine code.

A function that is printed from an equation (`printed_njit`) has a hash of its text in its name. The same holds for
every kernel that is a closure over such a function. The hashes are necessary because numba identifies functions by
name, both in this process and in the machine code.
"""

from __future__ import annotations

import gc
import linecache
import logging
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar

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
from stsbp_spec.engine.kernel_cache import Claim, KernelFolder, digest, kernel_file, kernel_folder, source_digest

from stsbp_cpu.engine.forks import refused_after_fork

__all__ = ["SOURCES", "announce", "cached_njit", "folder_for", "own_folder", "printed_njit"]

_LOG = logging.getLogger(__name__)
_FORMAT = "1"
_PATIENCE = 60.0
"""Maximum number of seconds to wait for another process that compiles a kernel. That process may have been stopped."""

# A list, because with all files of the package in the hash, every edit would cost half a minute of compiling.
SOURCES = (
    "stsbp_spec.contract.grid",
    "stsbp_cpu.engine.compiling",
    "stsbp_cpu.ops.dense",
    "stsbp_cpu.models.neurons",
    "stsbp_cpu.models.optim.adamw",
    "stsbp_cpu.models.optim.sgd",
    "stsbp_cpu.models.populations",
    "stsbp_cpu.equations.printers",
    "stsbp_cpu.equations.recurrence",
    "stsbp_cpu.contract.reductions",
    "stsbp_cpu.ops.sparse.integer_conv",
    "stsbp_cpu.ops.sparse.kernels",
    "stsbp_cpu.ops.sparse.linear",
    "stsbp_cpu.ops.sparse.needed",
    "stsbp_cpu.ops.sparse.spikes",
    "stsbp_cpu.ops.avgpool2d",
    "stsbp_cpu.ops.batchnorm",
    "stsbp_cpu.ops.conv2d",
    "stsbp_cpu.ops.conv2d_bytes",
    "stsbp_cpu.ops.delay",
    "stsbp_cpu.ops.dropout",
    "stsbp_cpu.ops.maxpool2d",
    "stsbp_cpu.equations.vectors",
)
"""Modules with kernels, and modules whose functions and constants become part of kernels."""

_OPTIONS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "USING_SVML")
"""Settings of numba, from its environment variables, that change the generated code."""

R = TypeVar("R")


@cache
def _sources() -> str | None:
    """Hash of the source files when the first kernel was imported; None if the files cannot be read."""
    return _sources_now()


def _sources_now() -> str | None:
    try:
        return source_digest(*SOURCES)
    except OSError as error:
        _LOG.warning("compiled kernels cannot be stored, so each run compiles them again: %s", error)
        return None


def folder_for(codegen: Any) -> KernelFolder | None:
    """The folder for kernels that are compiled from these sources for the processor of numba's `codegen`."""
    sources = _sources()
    if sources is None:
        return None
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version)
    options = (f"{name}={getattr(config, name, None)}" for name in _OPTIONS)
    return kernel_folder("numba", digest(_FORMAT, sources, *versions, *map(str, codegen.magic_tuple()), *options))


def own_folder() -> KernelFolder | None:
    """`folder_for` the processor of this computer."""
    return folder_for(cpu_target.target_context.codegen())


# numba's own cache (`cache=True`) numbers the files of a function, so two processes that compile different signatures
# at the same time can write the same file. It also missed an edit of `propagate`, which sparse/kernels.py inlined, and
# gradients were wrong without any message.
class _KernelCache(_Cache):  # type: ignore[misc]
    """Replaces numba's cache of one function.

    Each signature has its own file. There is no index file, which two processes could corrupt.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"
        self._claims: dict[str, Claim | None] = {}

    @property
    def cache_path(self) -> None:
        """None, because the path depends on the processor, which is not known yet."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Initialises only what stored code needs. numba initialises the rest when it compiles something.
        rtsys.initialize(target_context)
        folder = folder_for(target_context.codegen())
        if folder is None:
            return None
        name = self._file(sig)
        content = folder.read(name)
        if content is None:
            # If several processes need a kernel, only one of them compiles it.
            self._release(name)
            self._claims[name] = folder.claim(name, _PATIENCE)
            content = folder.read(name)
            if content is None:
                return None
            self._release(name)
        # Unpickling is as safe as running the machine code inside. `kernel_cache` explains who can write the files.
        content_sig, parts = pickle.loads(content)
        return CompileResult._rebuild(target_context, *parts) if content_sig == sig else None

    def save_overload(self, sig: Any, data: Any) -> None:
        # Code that contains addresses of this process is useless in another process. A part has no code of its own.
        parts = data._asdict()
        library = parts["library"]
        storable = not library.has_dynamic_globals and all(lifted.can_cache for lifted in parts["lifted"])
        storable &= not isinstance(library, _LinkedLibrary)
        folder = folder_for(data.codegen) if storable else None
        # If a package was replaced while this process ran, the code may come from the old or from the new package.
        if folder is not None and _sources_now() == _sources():
            folder.write(self._file(sig), dumps((sig, data._reduce())))
        self._release(self._file(sig))

    def _release(self, name: str) -> None:
        if claim := self._claims.pop(name, None):
            claim.release()

    def _file(self, sig: Any) -> str:
        return kernel_file(self.name, str(sig))

    def enable(self) -> None:
        """Do nothing. The cache is always enabled."""

    def disable(self) -> None:
        """Do nothing. The cache is always enabled."""

    def flush(self) -> None:
        """Do nothing. Files are written immediately."""


class _LinkedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code that is linked into a kernel and never called on its own.

    numba makes four libraries for a parallel loop: the body of the loop, two functions around it, and the kernel. Each
    library is linked into the next one. numba would optimise all four and generate machine code for each of them. With
    this class, only the kernel is optimised and compiled, together with the code that is linked into it.
    """

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            if hasattr(library, "_reload_init"):  # since numba 0.63
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        # numba immediately sets the loop's own variable for Python objects, so this variable must have an address.
        loop_variables = [x for x in self._final_module.global_variables if x.name.startswith("_ZN08NumbaEnv")]
        self._codegen._add_module(llvmlite.binding.parse_assembly("\n".join(map(str, loop_variables))))
        self._codegen._engine.finalize_object()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """0. numba reads this as a function that Python does not call."""
        self._ensure_finalized()
        return 0


def _library(codegen: Any, name: str) -> JITCodeLibrary:
    """Replaces numba's library class while numba compiles a parallel loop."""
    # Optimising only the last library saves a third of the compile time.
    part = name.startswith("__numba_parfor_gufunc") or "_GufuncWrapper" in name or name == "parallelgufuncwrapper"
    return (_LinkedLibrary if part else JITCodeLibrary)(codegen, name)


@register_pass(mutates_CFG=True, analysis_only=False)
class _ParallelLowering(NativeParforLowering):  # type: ignore[misc]
    """numba's compiler pass for parallel loops, except that the parts of a kernel become a `_LinkedLibrary`."""

    _name = "stsbp_parallel_lowering"

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            for loop in block.body:
                if isinstance(loop, Parfor):
                    loop.flags = _uncalled(loop.flags)
        codegen = state.targetctx.codegen()
        codegen._library_class = _library
        try:
            changed: bool = super().run_pass(state)
        finally:
            del codegen._library_class
        return changed


def _uncalled(flags: Any) -> Any:
    """Compiler flags for a function that neither Python nor C calls."""
    flags = flags.copy()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    return flags


class _KernelCompiler(Compiler):  # type: ignore[misc]
    """The compiler for functions that Python or other kernels call, but C does not."""

    def __init__(self, typing_context: Any, target_context: Any, library: Any, args: Any, result: Any, flags: Any,
                 locals: Any) -> None:  # fmt: skip
        flags = flags.copy()
        flags.no_cfunc_wrapper = True
        super().__init__(typing_context, target_context, library, args, result, flags, locals)

    def compile_extra(self, function: Any) -> Any:
        # Compiling leaves little garbage before its end. Garbage collection would take a seventh of the time.
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
                (_ParallelLowering if kind is NativeParforLowering else kind, reason)
                for kind, reason in pipeline.passes
            )
            pipeline.passes = list(passes)
            pipeline.finalize()
        return pipelines


class _InnerCompiler(_KernelCompiler):
    """The compiler for functions that only kernels call. It makes no function for Python."""

    noalias: ClassVar[bool] = False

    def __init__(self, typing_context: Any, target_context: Any, library: Any, args: Any, result: Any, flags: Any,
                 locals: Any) -> None:  # fmt: skip
        flags = _uncalled(flags)
        flags.noalias = self.noalias
        super().__init__(typing_context, target_context, library, args, result, flags, locals)


class _DistinctCompiler(_InnerCompiler):
    """The compiler for functions that only kernels call, and whose arguments do not share memory.

    The loops of such functions become vector code without a check for overlapping memory. They are a `_LinkedLibrary`
    of the kernels that call them.
    """

    noalias = True

    def compile_extra(self, function: Any) -> Any:
        self.state.library = _LinkedLibrary(self.state.targetctx.codegen(), function.__qualname__)
        return super().compile_extra(function)


def cached_njit(
    *, inner: bool = False, distinct: bool = False, **options: Any
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """`numba.njit` with these options and with the cache of this module.

    Args:
        inner: whether only kernels call the function, and never Python.
        distinct: the same for a function whose arguments are all in separate memory.
        options: options of numba.

    Raises:
        TypeError: the function's module is missing from `SOURCES`, or the function is a closure over an object that
            was not made by this decorator.
    """

    def compiled(function: Callable[..., R]) -> Callable[..., R]:
        used = [_kernel_name(cell.cell_contents) for cell in function.__closure__ or ()]
        global_names = (_kernel_name(function.__globals__.get(word)) for word in function.__code__.co_names)
        used += [name for name in global_names if name is not None]
        if function.__module__ not in SOURCES or None in used:
            name = f"{function.__module__}.{function.__qualname__}"
            raise TypeError(f"{name} is not covered by stsbp_cpu.engine.compiling.SOURCES")
        if used:
            _rename(function, f"{function.__name__}_{_name_digest(function.__qualname__, used)}")
        _sources()
        compiler = _DistinctCompiler if distinct else _InnerCompiler if inner else _KernelCompiler
        dispatcher: Any = numba.njit(**options, pipeline_class=compiler)(function)
        vars(dispatcher)["_cache"] = _KernelCache(function)
        if options.get("parallel"):
            refused_after_fork(dispatcher)
        result: Callable[..., R] = dispatcher
        return result

    return compiled


def printed_njit(text: str, name: str, words: Mapping[str, Any], **options: Any) -> Callable[..., Any]:
    """The function `name` that `text` defines, compiled by `cached_njit`.

    Args:
        text: Python code.
        name: name of the function in `text`.
        words: global names that the function reads: functions made by `cached_njit`, and objects from `SOURCES`. Its
            entry `__name__` is the module to which the function is assigned.
        options: options of `cached_njit`.
    """
    kernels = (f"{word} {inner}" for word, x in words.items() if (inner := _kernel_name(x)) is not None)
    full = f"{name}_{_name_digest(text, kernels)}"
    file = f"<stsbp {full}>"
    # For tracebacks. linecache does not look on the disk for an entry without a modification time.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope = dict(words)
    exec(compile(text, file, "exec"), scope)
    function = scope[name]
    _rename(function, full)
    return cached_njit(**options)(function)


def _kernel_name(x: object) -> str | None:
    """The name of a function made by `cached_njit`, or None for any other object."""
    cache = getattr(x, "_cache", None)
    return cache.name if isinstance(cache, _KernelCache) else None


def _name_digest(first: str, names: Iterable[str | None]) -> str:
    return digest(first, *map(str, names))[:16]


def _rename(function: Callable[..., Any], name: str) -> None:
    function.__name__ = function.__qualname__ = name


class _Announcement(event.Listener):  # type: ignore[misc]
    """Listens to numba's compilations. Loading a kernel from the disk is not a compilation."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: Any) -> None:
        dispatcher = event.data["dispatcher"]
        if not self.said and dispatcher.py_func.__module__.startswith("stsbp_cpu."):
            self.said = True
            folder = folder_for(dispatcher.targetctx.codegen())
            hint = "; later runs load them from the disk" if folder is not None and folder.kept else ""
            _LOG.warning("compiling the kernels for this processor%s", hint)

    def on_end(self, event: Any) -> None:
        pass


_announcement: _Announcement | None = None


def announce() -> None:
    """Log a warning when the first kernel of this process is compiled.

    Compiling kernels takes seconds. Loading them takes less.
    """
    global _announcement
    if _announcement is None:
        _announcement = _Announcement()
        event.register("numba:compile", _announcement)
