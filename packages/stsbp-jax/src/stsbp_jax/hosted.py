"""Functions of numpy arrays as part of JAX's programs on the CPU, called by XLA in its own memory without a copy.

`jax.pure_callback` does the same, but copies arrays, and a call of it takes longer than many kernels do. Here one
handler of XLA's, written in Python, runs all functions (entry.py), one at a time: XLA may call from several threads at
once, and parallel kernels of numba, which let go of the GIL, must not meet where its threading layer is `workqueue`.

A function runs on a thread of XLA's, or on the one that called the program. It must not call JAX, and must not keep the
arrays that it was given: their memory is XLA's again when it returns.
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
from stsbp_cpu.layout import wanted
from stsbp_spec.errors import ShapeError
from stsbp_spec.kernel_cache import digest
from stsbp_spec.typing import AnyArray, Shape

from stsbp_jax.entry import CANCELLED, CODES, INTERNAL, RESOURCE_EXHAUSTED, Memory, Site, open_door
from stsbp_jax.varying import alike, result_like

__all__ = ["Making", "host_call", "one_at_a_time", "original_errors"]

_NAME = "stsbp_host"
_KEPT = 16
"""So many errors are kept at most."""

one_at_a_time = threading.RLock()
"""Held while a function of the host runs. Other threads that run parallel kernels of numba want it too, where numba's
threading layer is `workqueue`: it ends the process when two of them meet."""

_lock = threading.Lock()
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
    """What `function(*fixed, *arrays, out=[...])` writes into the arrays of `out`, on the CPU.

    JAX takes it to have no other effect, and calls it as often as it likes. `vmap` calls it for each element.

    Args:
        function: of numpy arrays, whole and in the order of their axes, those of `out` uninitialised. It is kept for
            ever, as a program may call it whenever it runs. What is equal, with equal `fixed`, must do the same: it is
            kept once.
        results: shapes and dtypes (bool, uint8, int32, uint32, int64, float32, float64) of `out`.
        arrays: of the same dtypes; `function` must not write into them. They are not closed to writing, for which numba
            would compile every kernel once more.
        fixed: arguments that are the same in each call of a program.

    Raises:
        BackendError: jaxlib is of a version whose calls are not known here.
        ShapeError: a dtype is none of the above.
    """
    _open()
    given: tuple[Array, ...] = alike(tuple(x if isinstance(x, Array) else jnp.asarray(x) for x in arrays))
    memories = tuple(tuple(Memory(tuple(x.shape), np.dtype(x.dtype)) for x in each) for each in (given, results))
    for memory in (*memories[0], *memories[1]):
        if memory.dtype not in CODES:
            known = ", ".join(dtype.name for dtype in CODES)
            raise ShapeError(f"a call of the host takes and gives arrays of {known}, not {memory.dtype}")
    if not results:
        return ()
    types = [result_like(memory.shape, memory.dtype, given) for memory in memories[1]]
    call: Any = jax.ffi.ffi_call(_NAME, types, vmap_method="sequential")
    return tuple(call(*given, number=np.int64(_number(function, fixed, *memories))))


def _open() -> None:
    global _is_open
    with _lock:
        if not _is_open:
            open_door(_NAME, _sites, _told)
            _is_open = True


def _number(
    function: Callable[..., None],
    fixed: tuple[Hashable, ...],
    arguments: tuple[Memory, ...],
    results: tuple[Memory, ...],
) -> int:
    key = (function, fixed, arguments, results)
    with _lock:
        if key not in _numbers:
            number = _number_of(function, arguments, results, len(_numbers))
            _sites[number] = Site(partial(_run, function, fixed), arguments, results)
            _numbers[key] = number
        return _numbers[key]


def _number_of(function: Any, *place: Any) -> int:
    """The same in each process that traces the same programs, so that JAX finds them among those it keeps on the disk.

    A process that traces others does not take one of theirs for its own.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return int(digest(name, *map(repr, place))[:15], 16)


def _run(
    function: Callable[..., None], fixed: tuple[Hashable, ...], arrays: Sequence[AnyArray], out: Sequence[AnyArray]
) -> None:
    with one_at_a_time:
        function(*fixed, *arrays, out=out)


def _told(error: BaseException) -> tuple[str, int]:
    """Message and code of an error for XLA; the error itself is kept for `original_errors`."""
    number = next(_next_error)
    _forget_arrays(error)
    _errors[number] = error
    for old in [*_errors][:-_KEPT]:
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
    """Empties the frames of tracebacks, whose arrays lie in memory that is about to be XLA's again."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            clear_frames(each.__traceback__)
            pending += [each.__cause__, each.__context__]


@contextmanager
def original_errors() -> Iterator[None]:
    """Raises what a function of the host raised, where JAX raises a JaxRuntimeError or a ValueError in its place.

    JAX does so where a program is called or where its results are waited for, so both belong into this context.
    """
    original = None
    try:
        yield
    except Exception as error:
        found = _TICKET.search(str(error))
        original = _errors.get(int(found[1])) if found else None
        if original is None:
            raise
    if original is not None:
        raise original from original.__cause__


@dataclass(frozen=True)
class Making:
    """A function that makes its results, as one for `host_call`.

    What it takes from stsbp_cpu's `empty_memory` is, where shapes and dtypes match, the memory of the results. What
    lies elsewhere in the end is copied.

    Args:
        function: gives a sequence of arrays.
    """

    function: Callable[..., Sequence[AnyArray]]

    def __call__(self, *arguments: Any, out: Sequence[AnyArray]) -> None:
        with wanted(out):
            found = self.function(*arguments)
        _put(found, out)


def _put(found: Sequence[AnyArray], out: Sequence[AnyArray]) -> None:
    """Copies arrays into those of `out` that they are not; each may lie in the memory of any."""
    made, promised = [(x.shape, x.dtype) for x in found], [(x.shape, x.dtype) for x in out]
    if made != promised:
        raise ShapeError(f"a function of the host gave {_listed(made)} instead of {_listed(promised)}")
    elsewhere = [(x, target) for x, target in zip(found, out, strict=True) if not _is_same(x, target)]
    # All are read before the first is written.
    safe = [x.copy() if any(np.may_share_memory(x, y) for y in out) else x for x, _ in elsewhere]
    for x, (_, target) in zip(safe, elsewhere, strict=True):
        target[...] = x


def _is_same(x: AnyArray, target: AnyArray) -> bool:
    return x is target or (x.strides == target.strides and x.ctypes.data == target.ctypes.data)


def _listed(arrays: list[tuple[Shape, Any]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in arrays) or "nothing"
