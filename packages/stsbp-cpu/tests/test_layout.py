"""Memory layout, and arrays that are made where they are wanted."""

from __future__ import annotations

import threading

import numpy as np
from stsbp_cpu.engine.layout import NUMPY, empty_memory, numbers, offered_memory


def test_new_arrays_begin_at_a_cache_line() -> None:
    for shape in ((3,), (2, 5), (1, 2, 3, 4, 5)):
        x = NUMPY.empty(shape, np.float32)
        assert x.shape == shape
        assert x.ctypes.data % 64 == 0
        assert NUMPY.view(x).flags.c_contiguous


def test_images_lie_with_their_channels_last() -> None:
    x = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 3, 4, 5, 6)
    laid = NUMPY.laid_out(x)
    assert np.array_equal(laid, x)
    assert np.array_equal(NUMPY.view(laid), np.moveaxis(x, 2, -1))
    assert NUMPY.view(laid).flags.c_contiguous
    assert NUMPY.laid_out(laid) is laid
    assert NUMPY.from_memory(NUMPY.view(laid)).strides == laid.strides
    assert NUMPY.frames(laid).shape == (6, 5, 6, 4)
    assert NUMPY.rows(laid).shape == (2, 360)


def test_arrays_that_lie_one_after_the_other_are_joined_without_a_copy() -> None:
    for count in (1, 3):
        arrays = NUMPY.end_to_end(count, (2, 3, 4, 5, 6))
        for i, x in enumerate(arrays):
            x.fill(i)
        joined = NUMPY.concatenate(arrays)
        assert joined.shape == (count, 2, 360)
        assert joined.ctypes.data == arrays[0].ctypes.data
        assert [float(x.mean()) for x in joined] == [*range(count)]
    for apart in ([arrays[0], arrays[2]], [arrays[0], arrays[1].copy(order="K"), arrays[2]], arrays[::-1]):
        assert np.array_equal(NUMPY.concatenate(apart), np.stack([NUMPY.rows(x) for x in apart]))


def test_wanted_arrays_are_given_once_and_only_where_they_fit() -> None:
    a, b = np.empty((2, 3), np.float32), np.empty((2, 3), np.float32)
    with offered_memory([a, b]):
        assert empty_memory((2, 3), np.uint8) is not a
        assert empty_memory((3, 2), np.float32) is not a
        assert empty_memory((2, 3), np.float32) is a
        with offered_memory([]):
            assert empty_memory((2, 3), np.float32) is not b
        elsewhere: list[bool] = []
        other = threading.Thread(target=lambda: elsewhere.append(empty_memory((2, 3), np.float32) is b))
        other.start()
        other.join()
        assert elsewhere == [False]
        assert empty_memory((2, 3), np.float32) is b
        assert empty_memory((2, 3), np.float32) is not b
    assert empty_memory((2, 3), np.float32) is not a


def test_numbers_are_in_the_order_of_their_names_whatever_the_order_of_the_mapping() -> None:
    by_name = {name: np.full((1, 2, 3), value, np.float32) for name, value in (("b", 2), ("a", 1))}
    assert numbers(NUMPY, ("b", "a"), by_name)[:, 0].tolist() == [2, 1]
    assert numbers(NUMPY, ("b", "a"), dict(sorted(by_name.items())))[:, 0].tolist() == [2, 1]
