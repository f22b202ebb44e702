"""Arrays with axes in another order, or names in another form, are refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from stsbp.datasets.arrays import given_data
from stsbp.errors import ConfigError, DataError
from stsbp_spec import NetworkSpec, initial_weights

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


class _NoPath:
    def __fspath__(self) -> Any:
        return 3


@pytest.mark.parametrize("path", ["r/\0", "r/\ud800", _NoPath()], ids=["zero byte", "surrogate", "no text"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="out is a path such as"):
        package.train((IMAGES, LABELS), "4", out=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": np.array("abcd")}, "classes are the names of the classes"),
        ({"classes": ["a", "a", "b"]}, "two of the names are equal"),
        ({"init_from": "runs/x"}, "init_from= names weights to begin with"),
    ],
    ids=["a text in an array", "equal names", "weights to begin with"],
)
def test_save_run_takes_nothing_that_does_not_describe_the_run(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network = NetworkSpec.parse("4", input_shape=(5,), outputs=3)
    with pytest.raises(ConfigError, match=message):
        package.save_run(
            network, tmp_path / "run", weights=initial_weights(network, seed=0), steps=4, backend="numpy", **arguments
        )
    run = package.save_run(network, tmp_path / "y", weights=initial_weights(network, seed=0), steps=4, backend="numpy")
    with pytest.raises(ConfigError, match="unknown format"):
        run.export(["c"], tmp_path / "c")  # type: ignore[arg-type]
