"""Fixtures: the two backends, and arrays that reach the corners of the contract."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.host import compiler
from stsbp_spec.errors import BackendError
from stsbp_spec.reference.backend import NumpyBackend


@pytest.fixture(scope="session")
def backend() -> CupyBackend:
    """The backend on the device `host`."""
    _compiler()
    return CupyBackend("host")


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
