"""Dense convolutions and products of matrices: sums of whole numbers are exact in any order, so they equal numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stsbp_cpu.engine.layout import NUMPY
from stsbp_cpu.ops import conv2d, dense
from stsbp_spec.networks.ops import Conv2d
from stsbp_spec.reference import backend as reference
from stsbp_spec.typing import AnyArray, Precision

GEOMETRIES: dict[str, tuple[Conv2d, tuple[int, int, int]]] = {
    "plain": (Conv2d(7, 3), (3, 9, 8)),
    "whole vectors": (Conv2d(64, 3, padding=1), (16, 7, 6)),
    "more than four vectors": (Conv2d(112, 1), (5, 3, 2)),
    "one place": (Conv2d(33, 3), (2, 3, 3)),
    "as much padding as fits": (Conv2d(5, 3, padding=2), (2, 4, 5)),
    "stride": (Conv2d(20, 3, stride=2, padding=1), (4, 9, 10)),
    "stride that leaves edges out": (Conv2d(6, 2, stride=3), (3, 9, 10)),
    "rectangular": (Conv2d(9, (1, 5), padding=(0, 2)), (3, 1, 17)),
    "dilated rows": (Conv2d(9, 3, padding=(2, 1), dilation=(2, 1)), (3, 9, 8)),
    "dilated columns": (Conv2d(9, 3, dilation=(1, 2)), (3, 9, 8)),
    "groups": (Conv2d(12, 3, groups=3), (6, 7, 8)),
    "depthwise": (Conv2d(10, 3, padding=1, groups=5), (5, 6, 7)),
}


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> AnyArray:
    return rng.integers(-9, 10, shape).astype(np.float32)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_convolutions_and_their_adjoints_are_those_of_the_reference(name: str, dtype: Any) -> None:
    conv, shape = GEOMETRIES[name]
    rng = np.random.default_rng(len(name))
    s = NUMPY.laid_out(rng.integers(0, 4, (2, 3, *shape)).astype(dtype))
    w = numbers(rng, conv.weight_shape(shape))
    z, residuals = conv2d.forward(conv, s, w)
    expected, expected_residuals = reference.conv_forward(conv, s, w)
    assert np.array_equal(z, expected)
    assert NUMPY.view(z).flags.c_contiguous
    dz = numbers(rng, z.shape)
    expected_error, _ = reference.conv_backward(conv, expected_residuals, dz, precision="fast", need_input=True)
    assert expected_error is not None
    assert np.array_equal(conv2d.input_error(conv, w, dz, s.shape), expected_error)
    precisions: tuple[Precision, ...] = ("fast", "reproducible")
    for precision in precisions:
        results = conv2d.backward(conv, residuals, dz, precision=precision, need_input=True)
        expected_results = reference.conv_backward(conv, expected_residuals, dz, precision=precision, need_input=True)
        for x, y in zip(results, expected_results, strict=True):
            assert x is not None
            assert y is not None
            assert np.array_equal(x, y)
            assert x.dtype == y.dtype
    assert conv2d.backward(conv, residuals, dz, precision="fast", need_input=False)[0] is None
    assert conv2d.backward(conv, residuals, dz, precision="fast", need_input=True, need_weights=False)[1] is None


@pytest.mark.parametrize("sizes", [(1, 1, 1), (97, 300, 65), (48, 256, 16), (5, 700, 10), (200, 3, 130)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_of_matrices_are_those_of_numpy(sizes: tuple[int, int, int], dtype: Any) -> None:
    n, k, m = sizes
    rng = np.random.default_rng(n)
    a, b, c = (numbers(rng, shape).astype(dtype) for shape in ((n, k), (k, m), (n, m)))
    assert np.array_equal(dense.product(a, b), a @ b)
    assert np.array_equal(dense.product(a, np.asfortranarray(b)), a @ b)
    assert np.array_equal(dense.product_of_rows(a, c), a.T @ c)
    assert dense.product(a, b).dtype == dtype


def test_float64_sums_are_not_rounded_on_their_way() -> None:
    # 2^24 + 1 is no float32: sums of float32 would lose the ones.
    a = np.ones((3, 3))
    b = np.array([[2.0**24], [1.0], [1.0]])
    assert dense.product(a, b)[0, 0] == 2**24 + 2
    assert dense.product_of_rows(a, np.repeat(b, 1, axis=1))[0, 0] == 2**24 + 2
