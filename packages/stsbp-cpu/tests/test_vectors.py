"""Vector operations held against numpy's, on small integers, where every order of a sum is exact."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_cpu.vectors import dot


@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 8])
def test_dot(vectors: int) -> None:
    rng = np.random.default_rng(vectors)
    x, y = (rng.integers(-9, 9, 700).astype(np.float32) for _ in range(2))
    length = 16 * vectors
    expected = sum(x[5 + 140 * i :][:length] @ y[300 - 130 * i :][:length] for i in range(3))
    assert dot(x, 5, 140, y, 300, -130, 3, vectors) == expected
