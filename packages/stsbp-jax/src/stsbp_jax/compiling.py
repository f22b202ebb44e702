"""Functions that are compiled before their first call. The time for compiling is measured and logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from stsbp_jax.hosted import original_errors

__all__ = ["Compiled", "OneByOne"]

_log = logging.getLogger("stsbp_jax")


class Compiled:
    """A jitted function that compiles once for each set of shapes and measures the time for compiling.

    Args:
        function: the function. It is traced with the arguments of a call. Python integers become uint32.
        what: name of the function in the log.
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self._jit = jax.jit(function)
        self._what = what
        self._programs: dict[Any, Callable[..., Any]] = {}
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        leaves = [np.uint32(x & 0xFFFFFFFF) if isinstance(x, int) else x for x in leaves]
        key = (tree, *((x.shape, x.dtype) for x in leaves))
        args = jax.tree.unflatten(tree, leaves)
        if key not in self._programs:
            start = time.perf_counter()
            self._programs[key] = self._jit.lower(*args).compile()
            seconds = time.perf_counter() - start
            self.seconds += seconds
            _log.info("compiled %s in %.1f s", self._what, seconds)
        with original_errors():
            return self._programs[key](*args)


class OneByOne:
    """A function of micro-batches whose operations are compiled and run one by one.

    In a single program, XLA would begin with all micro-batches at once and need the memory of the whole batch.
    """

    seconds = 0.0

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)
