"""What a backend inherits: numbers that are made of others."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_spec.optim.adamw import gradient_squares
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32

NUMPY = NumpyBackend()


class Counted(NumpyBackend):
    """Counts the spikes of each sample alone."""

    def spike_count(self, s: AnyArray) -> AnyArray:
        return np.array([np.count_nonzero(s[:, b]) for b in range(s.shape[1])], np.uint16)


def test_a_spike_rate_is_a_mean_however_spikes_are_counted() -> None:
    s = np.zeros((5, 3, 2, 10, 10), np.uint8)
    s[:4, :, 0] = 1
    s[0, 0, 1, 0, 0] = 1
    for backend in (NUMPY, Counted()):
        assert backend.spike_rate(s) == (4 * 3 * 100 + 1) / 3000


@pytest.mark.parametrize(
    ("units", "square"),
    [(0.5, 0), (0.75, 1), (5.25, 25), (5.5, 36), (5.75, 36), (6.5, 36), (-5.75, 36), (2.0**23 - 0.5, 2**46)],
)
def test_gradients_are_rounded_to_units_of_the_largest_before_they_are_squared(units: float, square: int) -> None:
    """24 bits beside a largest one of 1: units of 2^-23, halves to even."""
    gradients: list[Float32] = [np.array([1], np.float32), np.array([[units * 2.0**-23]], np.float32)]
    bits, total = gradient_squares(gradients).tolist()
    assert bits == 127 << 23
    assert total == 2**46 + square
    assert NUMPY.gradient_norm(gradients) == pytest.approx(np.sqrt(1 + square * 2.0**-46), rel=1e-15)
