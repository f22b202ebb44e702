"""Fixtures: the two backends, and arrays that reach the corners of the contract."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.engine import host
from stsbp_cupy.engine.host import compiler
from stsbp_spec.errors import BackendError
from stsbp_spec.reference.backend import NumpyBackend


def _unmixed(x: Any) -> Any:
    """An argument of numpy, without the class `HostArray` around it.

    Raises:
        TypeError: it is, or contains, an array of numpy's own.
    """
    if isinstance(x, (list, tuple)):
        return type(x)(map(_unmixed, x))
    if type(x) is np.ndarray and x.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: CuPy takes arrays of asarray only")
    return x.view(np.ndarray) if isinstance(x, HostArray) else x


def _on_device(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(_on_device, x))
    return x.view(HostArray) if isinstance(x, np.ndarray) else x


def _call(function: Callable[..., Any], arguments: Any, options: dict[str, Any]) -> Any:
    return _on_device(function(*_unmixed(arguments), **{name: _unmixed(x) for name, x in options.items()}))


class HostArray(np.ndarray[Any, Any]):
    """An array of the device `host` that refuses numpy's own arrays, as CuPy's do."""

    def __array_ufunc__(self, ufunc: Any, method: str, *arguments: Any, **options: Any) -> Any:
        return _call(getattr(ufunc, method), arguments, options)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return _call(function, arguments, options)


class Module:
    """numpy with functions that return `HostArray`, and take no other array; `asarray` is the way in."""

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(np, name)
        if isinstance(attribute, type) or not callable(attribute):
            return attribute
        return lambda *arguments, **options: _call(attribute, arguments, options)

    def asarray(self, x: Any) -> Any:
        return np.asarray(x).view(HostArray)


def _strict(runtime: type[Any]) -> Any:
    class StrictRuntime(runtime):  # type: ignore[misc]
        xp = Module()

        def start(self, function: Any, threads: int, arguments: list[Any]) -> None:
            super().start(function, threads, [_unmixed(x) for x in arguments])

        def gemm(self, a: Any, b: Any, out: Any, *, accumulate: bool = False) -> None:
            super().gemm(_unmixed(a), _unmixed(b), _unmixed(out), accumulate=accumulate)

        def numpy(self, x: Any) -> Any:
            return _unmixed(x)

    return StrictRuntime()


@pytest.fixture(scope="session")
def backend() -> CupyBackend:
    """The backend on the device `host`, whose arrays cannot be mixed with numpy's."""
    _compiler()
    opened = CupyBackend("host")
    # Where other code runs the kernels in place of the device `host`, its runtime is the one to be strict with.
    if isinstance(opened.rt, host.HostRuntime):
        opened.rt = _strict(host.HostRuntime)
    return opened


@pytest.fixture(scope="session")
def reference() -> NumpyBackend:
    return NumpyBackend()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)


@pytest.fixture
def compiler_path() -> str:
    return _compiler()


def _compiler() -> str:
    try:
        path, *_ = compiler()
    except BackendError as error:
        pytest.skip(str(error))
    assert shutil.which(path)
    return path
