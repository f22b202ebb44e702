"""Functions of numpy arrays as parts of JAX programs on the CPU. XLA calls them on its own memory, without a copy.

`jax.pure_callback` does the same, but it copies arrays, and one call takes longer than many kernels. Here, a single
handler of XLA, written in Python, runs all functions (ffi.py). It runs only one function at a time, because XLA may
call from several threads at once. Parallel kernels of numba release the GIL, and two of them must not run at the same
time if numba's threading layer is `workqueue`.

A function runs on one of XLA's threads, or on the thread that called the program. It must not call JAX. It must not
keep the arrays that it was given, because XLA reuses their memory when the function has returned.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from traceback import clear_frames
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_cpu.engine.layout import offered_memory
from stsbp_spec.engine.kernel_cache import digest
from stsbp_spec.errors import ShapeError
from stsbp_spec.typing import AnyArray, Shape

from stsbp_jax.distributed.replication import match_replication, result_like
from stsbp_jax.engine.ffi import CANCELLED, CODES, INTERNAL, RESOURCE_EXHAUSTED, ArrayLayout, Site, register_entry

__all__ = ["Making", "host_call", "one_at_a_time", "original_errors"]

_NAME = "stsbp_host"
_MOST_ERRORS = 16
"""Maximum number of errors that are kept."""

# Each kernel uses all cores, so running one at a time costs little.
one_at_a_time = threading.RLock()
"""A lock that is held while a function of the host runs.

If numba's threading layer is `workqueue`, other threads that run parallel kernels of numba must hold the lock, too.
This layer ends the process if two parallel kernels run at the same time.
"""

_lock = threading.Lock()
# They stay until the process ends: about 2.7 KB each, and the arrays that a function holds.
_sites: dict[int, Site] = {}
_numbers: dict[Hashable, int] = {}
_is_open = False

_errors: dict[int, BaseException] = {}
_next_error = count(1)
_TICKET = re.compile(r"\[host call (\d+)\]")


def host_call(
    function: Callable[..., None],
    results: Sequence[jax.ShapeDtypeStruct],
    *arrays: Any,
    fixed: tuple[Hashable, ...] = (),
) -> tuple[Array, ...]:
    """The arrays that `function(*fixed, *arrays, out=[...])` writes to `out`, on the CPU.

    JAX assumes that the function has no other effect, and may call it any number of times. `vmap` calls it once for
    each element.

    Args:
        function: function of numpy arrays, which are contiguous in the order of their axes. The arrays of `out` are
            uninitialised. The function is kept until the process ends, because a program may call it whenever it runs.
            Equal functions with equal `fixed` must do the same, because only one of them is kept.
        results: shapes and dtypes (bool, uint8, int32, uint32, int64, float32, float64) of `out`.
        arrays: arrays of the same dtypes. `function` must not write to them. They are not read-only, because numba
            would compile every kernel again for read-only arrays.
        fixed: arguments that are the same in each call of a program.

    Raises:
        BackendError: this version of jaxlib calls functions of the host in an unknown way.
        ShapeError: a dtype is not in the list above.
    """
    _open()
    jax_arrays: tuple[Array, ...] = match_replication(
        tuple(x if isinstance(x, Array) else jnp.asarray(x) for x in arrays)
    )
    memories = tuple(
        tuple(ArrayLayout(tuple(x.shape), np.dtype(x.dtype)) for x in group) for group in (jax_arrays, results)
    )
    for memory in (*memories[0], *memories[1]):
        if memory.dtype not in CODES:
            supported = ", ".join(dtype.name for dtype in CODES)
            raise ShapeError(f"a call of the host takes and returns arrays of {supported}, not {memory.dtype}")
    if not results:
        return ()
    types = [result_like(memory.shape, memory.dtype, jax_arrays) for memory in memories[1]]
    # In `lax.scan`, a small call takes 12 us, and with `jax.pure_callback` 199 us; one that reads and writes 100 MB
    # each takes 27 ms and 77 ms (benchmarks/host_calls.py, jax 0.10.2, a shared Intel Xeon, 2 cores, 27 November 2026).
    call: Any = jax.ffi.ffi_call(_NAME, types, vmap_method="sequential")
    return tuple(call(*jax_arrays, number=np.int64(_number(function, fixed, *memories))))


def _open() -> None:
    global _is_open
    with _lock:
        if not _is_open:
            register_entry(_NAME, _sites, _error_report)
            _is_open = True


def _number(
    function: Callable[..., None],
    fixed: tuple[Hashable, ...],
    arguments: tuple[ArrayLayout, ...],
    results: tuple[ArrayLayout, ...],
) -> int:
    key = (function, fixed, arguments, results)
    with _lock:
        if key not in _numbers:
            number = _number_of(function, arguments, results, len(_numbers))
            _sites[number] = Site(partial(_run, function, fixed), arguments, results)
            _numbers[key] = number
        return _numbers[key]


def _number_of(function: Any, *identity: Any) -> int:
    """A number that is the same in every process that traces the same programs.

    Because the number is the same, JAX finds these programs in its cache on the disk. A process that traces other
    programs does not mistake the cached programs for its own.
    """
    # Functions with the same name, shapes and place in the order of tracing cannot be told apart.
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return int(digest(name, *map(repr, identity))[:15], 16)


# Not a compiled function (numba's `cfunc`) for each kernel: a call also chooses the kernel by the density of its input,
# allocates memory and raises errors, all of which would need native code. The price is the GIL: another Python thread
# that computes can delay a call by 5 ms (`sys.getswitchinterval()`).
def _run(
    function: Callable[..., None], fixed: tuple[Hashable, ...], arrays: Sequence[AnyArray], out: Sequence[AnyArray]
) -> None:
    # The caller's errstate does not hold in a thread of XLA. An overflow later raises an error that names the layer.
    with one_at_a_time, np.errstate(over="ignore", invalid="ignore"):
        function(*fixed, *arrays, out=out)


def _error_report(error: BaseException) -> tuple[str, int]:
    """Message and code of an error for XLA. The error itself is kept for `original_errors`."""
    number = next(_next_error)
    _forget_arrays(error)
    _errors[number] = error
    for old in [*_errors][:-_MOST_ERRORS]:
        _errors.pop(old, None)
    code = INTERNAL
    if isinstance(error, MemoryError):
        code = RESOURCE_EXHAUSTED
    elif isinstance(error, KeyboardInterrupt):
        code = CANCELLED
    try:
        text = str(error)
    except Exception:
        text = "(without a message)"
    return f"[host call {number}] {type(error).__name__}: {text}", code


def _forget_arrays(error: BaseException) -> None:
    """Clear the frames of tracebacks, because XLA is about to reuse the memory of their arrays."""
    cleared: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        exception = pending.pop()
        if exception is not None and id(exception) not in cleared:
            cleared.add(id(exception))
            clear_frames(exception.__traceback__)
            pending += [exception.__cause__, exception.__context__]


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise the error of a function of the host in place of JAX's JaxRuntimeError or ValueError.

    JAX raises these errors when a program is called or when its results are waited for. So both must be inside this
    context.
    """
    original = None
    try:
        yield
    except Exception as error:
        ticket = _TICKET.search(str(error))
        original = _errors.get(int(ticket[1])) if ticket else None
        if original is None:
            raise
    if original is not None:
        raise original from original.__cause__


@dataclass(frozen=True)
class Making:
    """Adapts a function that returns its results, so that `host_call` can call it.

    If the function calls stsbp_cpu's `empty_memory`, it gets the memory of a result with the same shape and dtype.
    Results in other memory are copied at the end.

    Args:
        function: function that returns a sequence of arrays.
    """

    function: Callable[..., Sequence[AnyArray]]

    def __call__(self, *arguments: Any, out: Sequence[AnyArray]) -> None:
        with offered_memory(out):
            results = self.function(*arguments)
        _copy_results(results, out)


def _copy_results(results: Sequence[AnyArray], out: Sequence[AnyArray]) -> None:
    """Copy arrays to `out`, except those that are there already. An array may overlap with any array of `out`."""
    returned, promised = [(x.shape, x.dtype) for x in results], [(x.shape, x.dtype) for x in out]
    if returned != promised:
        raise ShapeError(f"a function of the host returned {_listed(returned)} instead of {_listed(promised)}")
    elsewhere = [(x, target) for x, target in zip(results, out, strict=True) if not _is_same(x, target)]
    # All arrays are read before the first one is written.
    safe = [x.copy() if any(np.may_share_memory(x, y) for y in out) else x for x, _ in elsewhere]
    for x, (_, target) in zip(safe, elsewhere, strict=True):
        target[...] = x


def _is_same(x: AnyArray, target: AnyArray) -> bool:
    return x is target or (x.strides == target.strides and x.ctypes.data == target.ctypes.data)


def _listed(arrays: list[tuple[Shape, Any]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in arrays) or "nothing"
