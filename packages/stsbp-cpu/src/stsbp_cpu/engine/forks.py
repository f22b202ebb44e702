"""Computing in forked processes. GNU OpenMP has no threads there: numba would end the process, and torch would wait."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakSet

from numba.core.registry import CPUDispatcher
from numba.np.ufunc import parallel
from stsbp_spec.errors import BackendError

from stsbp_cpu.engine import openmp

__all__ = ["refuse_in_forks", "refused_after_fork"]

_KERNELS = WeakSet[Any]()
_REASON = (
    "this process was forked from one that had already computed with stsbp, and the threads of its kernels "
    "(GNU OpenMP) do not exist in forks. Start processes that compute with "
    "multiprocessing.get_context('spawn'), or fork them before the first computation. Forks that only read "
    "data are fine"
)
_torch_process = 0
"""The process in which torch has computed with several threads. A fork inherits this number, but has another."""


def refused_after_fork(kernel: Any) -> None:
    """Let a kernel with threads raise `BackendError` in processes that are forked after a kernel has run.

    Only forks pay for this: they get kernels of another class.
    """
    _KERNELS.add(kernel)


def refuse_in_forks() -> None:
    """Say that torch computes with several threads in this process.

    Raises:
        BackendError: it was forked from a process that did so with GNU OpenMP.
    """
    global _torch_process
    if _torch_process not in (0, os.getpid()) and openmp.gnu_libraries():
        raise BackendError(_REASON)
    _torch_process = _torch_process or os.getpid()


class _ForkedKernel(CPUDispatcher):  # type: ignore[misc]
    def __call__(self, *_: Any, **__: Any) -> Any:
        raise BackendError(_REASON)


def _has_gnu_threads() -> bool:
    """Whether threads of numba have been started that forks cannot use."""
    if not parallel._is_initialized or parallel.threading_layer() != "omp":
        return False
    from numba.np.ufunc import omppool

    return bool(omppool.openmp_vendor == "GNU")


def _refuse() -> None:
    if _has_gnu_threads():
        for kernel in _KERNELS:
            kernel.__class__ = _ForkedKernel


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_refuse)
