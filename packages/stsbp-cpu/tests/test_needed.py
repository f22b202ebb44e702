"""Errors that are computed only where the neurons below use them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from stsbp_cpu.ops.sparse import needed
from stsbp_spec.models.neurons import ALIF, LIF
from stsbp_spec.models.surrogates import Arctan, Rectangle, Triangle
from stsbp_spec.networks.ops import Conv2d
from stsbp_spec.reference.backend import Residuals, conv_backward


def test_errors_wait_only_for_thresholds_that_are_one_number_and_surrogates_that_end() -> None:
    support = needed.support(LIF(3, threshold=0.8, surrogate=Rectangle(0.5)))
    assert support is not None
    assert (support.threshold, *support.p) == (np.float32(0.8), 0.25, 2)
    assert needed.support(LIF(surrogate=Triangle())) is not None
    assert needed.support(LIF(surrogate=Arctan())) is None
    assert needed.support(replace(ALIF(3, beta=0.6, tau_a=9), surrogate=Triangle())) is None


@dataclass(frozen=True)
class _Straight(LIF):
    """Hands on a part of the error that is not multiplied with the surrogate."""

    def adjoint(self, p, d, u, g, h):  # type: ignore[no-untyped-def]
        gradients: Any = super().adjoint(p, d, u, g, h)
        return replace(gradients, current=gradients.current + p.km * g)


def test_errors_that_are_used_everywhere_do_not_wait() -> None:
    assert needed.support(_Straight(surrogate=Triangle())) is None


def test_the_share_of_needed_errors_is_counted() -> None:
    u = np.full((2, 4, 5, 3), 9.0, np.float32)
    u[0, 1, 1, 2] = u[0, 0, 0, 2] = 1.4  # of the same window
    u[1, 3, 3, 0] = 0.6
    u[1, 3, 4, 1] = 1.0  # a column that a window of 2 does not reach
    support = needed.support(LIF(surrogate=Rectangle(1.0)))
    assert support is not None
    assert needed.share(support, u, 1, 1) == 4 / u.size
    assert needed.share(support, u, 2, 1) == 2 / (2 * 2 * 2 * 3)
    assert needed.share(support, u, 1, 2) == 2 / u[:1].size


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("conv", [Conv2d(16, 3), Conv2d(32, 2, padding=1), Conv2d(48, 1)], ids=str)
def test_needed_errors_are_those_of_the_convolution_and_the_others_zero(conv: Conv2d, size: int) -> None:
    rng = np.random.default_rng(1)
    shape = (3, 5, 6)
    u = rng.random((7, 5 * size + size - 1, 6 * size, 3), dtype=np.float32) * 4
    wq = rng.integers(-9, 10, conv.weight_shape(shape)).astype(np.float32)
    dz = rng.integers(-9, 10, (7, 1, *conv.output_shape(shape))).astype(np.float32)
    # Integers, whose sums are exact in any order.
    spikes = np.zeros((7, 1, *shape), np.float32)
    input_error = conv_backward(conv, Residuals(spikes, wq), dz, precision="fast", need_input=True)[0]
    assert input_error is not None
    expected = input_error[:, 0].transpose(0, 2, 3, 1).copy()
    windows = u[:, : 5 * size].reshape(7, 5, size, 6, size, 3)
    used = (np.abs(windows - 1) < 0.5).any((2, 4))
    expected[~used] = 0
    assert 0.1 < used.mean() < 0.9
    support = needed.support(LIF(surrogate=Rectangle(1.0)))
    assert support is not None
    error = np.full((7, 5, 6, 3), np.nan, np.float32)
    needed.error(support, conv, wq, u, size, dz[:, 0].transpose(0, 2, 3, 1).copy(), error)
    assert np.array_equal(error, expected)
