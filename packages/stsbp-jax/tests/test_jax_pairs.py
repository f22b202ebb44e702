"""Weight grids at the end of their range; the suite's tier 5 has every pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from stsbp_jax.backend import JaxBackend
from stsbp_spec import NetworkSpec
from stsbp_spec.errors import ExactnessError, NumericError
from stsbp_spec.reference.backend import NumpyBackend

NUMPY, JAX = NumpyBackend(), JaxBackend()


def same_bits(got: Any, expected: npt.NDArray[Any]) -> None:
    values = JAX.numpy(got)
    assert values.shape == expected.shape
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)


def test_weight_grid_raises_what_the_spec_raises() -> None:
    block = NetworkSpec.parse("2", input_shape=(60_000,), outputs=2, coding="direct").blocks[0]
    with pytest.raises(NumericError, match="layer linear1: a weight is not finite"):
        JAX.weight_grid(block, JAX.asarray(np.full((2, 60_000), np.nan, np.float32)))
    fitting = np.ones((2, 60_000), np.float32)
    same_bits(JAX.weight_grid(block, JAX.asarray(fitting))[0], NUMPY.weight_grid(block, fitting)[0])
    wider = NetworkSpec.parse("2", input_shape=(65_793,), outputs=2, coding="direct").blocks[0]
    wider = replace(wider, input=replace(wider.input, maximum=1.0))  # 65,793 * 256 units no longer fit
    with pytest.raises(ExactnessError, match="layer linear1: sums of 65793 inputs"):
        JAX.weight_grid(wider, JAX.asarray(np.ones((2, 65_793), np.float32)))
