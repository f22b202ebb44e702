"""Functions that are compiled as a whole: those of the backend before their first call, with the time logged, and those
of ordinary JAX code when they are called outside of a `jit`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from stsbp_cpu.engine.threads import get_num_threads

from stsbp_jax.engine.host_callback import original_errors

__all__ = ["Compiled", "OneByOne", "as_one", "pair"]

_log = logging.getLogger("stsbp_jax")


class Compiled:
    """A jitted function that compiles once for each set of shapes and measures the time for compiling.

    Args:
        function: the function. It is traced with the arguments of a call. Python integers become uint32.
        name: name of the function in the log.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._jit = jax.jit(function)
        self._name = name
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
            _log.info("compiled %s in %.1f s", self._name, seconds)
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


def as_one(static: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function as one program for calls with arrays that have values, for each set of shapes.

    If an array is traced, the function becomes a part of the caller's program. It is then no `jit` in the caller's,
    because `vmap` would map what is inside such a `jit` without float64 (`grid.enable_x64`).

    Args:
        static: number of arguments that are no arrays, which come first.
    """

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        def program(threads: int, fixed: tuple[Any, ...], arrays: tuple[Any, ...]) -> Any:
            return function(*fixed, *arrays)

        program.__name__ = program.__qualname__ = function.__name__
        # Calls of the host use as many threads as were set when they were traced.
        compiled: Any = jax.jit(program, static_argnums=(0, 1), inline=True)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            fixed, arrays = arguments[:static], arguments[static:]
            if _traced(arrays):
                return function(*arguments)
            with original_errors():
                results = compiled(get_num_threads(), fixed, arrays)
                # An error of a call of the host is raised here, as it would be without a program.
                if jax.default_backend() == "cpu" and not _traced(results):
                    jax.block_until_ready(results)  # type: ignore[no-untyped-call]
            return results

        return call

    return decorated


def _traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def pair(
    static: int,
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[..., tuple[Any, ...]],
    *,
    symbolic_zeros: bool = False,
) -> Callable[..., Any]:
    """A differentiable function from a pair: `forward -> outputs, residuals` and `backward(residuals, cotangents)`.

    Each of the two is one program if no array is traced, also under a `grad` that is in no `jit`.

    Args:
        static: number of arguments that are no arrays. They are the first arguments of both functions.
        symbolic_zeros: True: a cotangent is None if it is zero because nothing depends on the output.
    """
    forward_program, backward_program = as_one(static)(forward), as_one(static)(backward)

    @as_one(static)
    @wraps(forward)
    def outputs(*arguments: Any) -> Any:
        return forward(*arguments)[0]

    def forward_of_primals(*arguments: Any) -> Any:
        arrays = arguments[static:]
        return forward_program(
            *arguments[:static],
            *jax.tree.map(lambda x: x.value, arrays, is_leaf=lambda x: isinstance(x, CustomVJPPrimal)),
        )

    def backward_of_cotangents(*arguments: Any) -> Any:
        cotangents = jax.tree.map(lambda x: None if isinstance(x, SymbolicZero) else x, arguments[-1])
        return backward_program(*arguments[:-1], cotangents)

    function: Any = jax.custom_vjp(outputs, nondiff_argnums=tuple(range(static)))
    if symbolic_zeros:
        function.defvjp(forward_of_primals, backward_of_cotangents, symbolic_zeros=True)
    else:
        function.defvjp(forward_program, backward_program)
    differentiable: Callable[..., Any] = function
    return differentiable
