"""Arrays with axes in another order, or names in another form, are refused with what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stsbp.datasets.arrays import given_data
from stsbp.errors import DataError

IMAGES, LABELS = np.zeros((6, 1, 28, 28), np.uint8), np.arange(6) % 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES.transpose(0, 2, 3, 1), LABELS), r"np\.moveaxis\(x, -1, 1\)"),
        ({"inputs": IMAGES, "targets": np.zeros((6, 8, 3), bool)}, r"targets must be \[T, n, N\].*np\.swapaxes"),
        ({"inputs": np.zeros((8, 6, 5), bool), "targets": np.zeros((6, 8, 3), bool)}, r"targets must be.*swapaxes"),
        ({"inputs": IMAGES, "labels": LABELS, "classes": np.array("abc")}, "classes must be the names of at least 3"),
        ({"inputs": IMAGES, "labels": LABELS, "classes": np.array([["a", "b"]] * 3)}, "classes must be the names"),
    ],
    ids=["channels last", "targets of images", "targets of events", "a text in an array", "a matrix of names"],
)
def test_another_order_or_form_is_refused_with_a_remedy(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        given_data(data)


def test_an_array_of_names_is_a_list_of_names() -> None:
    given = given_data({"inputs": IMAGES, "labels": LABELS, "classes": np.array(["a", "b", "c"])})
    assert given.info.name == "arrays"
