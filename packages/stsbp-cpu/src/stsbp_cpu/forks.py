"""Kernels in forked processes: GNU OpenMP has no threads there, and numba would end the process with a signal."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakSet

from numba.core.registry import CPUDispatcher
from numba.np.ufunc import parallel
from stsbp_spec.errors import BackendError

__all__ = ["refused_after_fork"]

_KERNELS = WeakSet[Any]()


def refused_after_fork(kernel: Any) -> None:
    """Let a kernel with threads raise `BackendError` in processes that are forked after a kernel has run.

    Only forks pay for this: they get kernels of another class.
    """
    _KERNELS.add(kernel)


class _Refused(CPUDispatcher):  # type: ignore[misc]
    def __call__(self, *_: Any, **__: Any) -> Any:
        raise BackendError(
            "this process was forked from one that had already computed with stsbp, and the threads of its kernels "
            "(GNU OpenMP) do not exist in forks. Start processes that compute with "
            "multiprocessing.get_context('spawn'), or fork them before the first computation. Forks that only read "
            "data are fine"
        )


def _has_gnu_threads() -> bool:
    """Whether threads of numba have been started that forks cannot use."""
    if not parallel._is_initialized or parallel.threading_layer() != "omp":
        return False
    from numba.np.ufunc import omppool

    return bool(omppool.openmp_vendor == "GNU")


def _refuse() -> None:
    if _has_gnu_threads():
        for kernel in _KERNELS:
            kernel.__class__ = _Refused


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_refuse)
