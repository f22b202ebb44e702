"""`stsbp equations`: every equation is shown, in every language, as it runs."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import Result

FUNCTIONS = {
    "lif": ["lif_forward", "lif_backward"],
    "alif:surrogate=triangle": ["alif_forward", "alif_backward"],
    "filter": ["filter_forward", "filter_backward"],
    "van-rossum": ["van_rossum_forward", "van_rossum_backward"],
    "spike-count": ["spike_count_backward"],
    "adamw": ["adamw"],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_an_equation_is_shown(stsbp: Callable[..., Result], name: str) -> None:
    shown = ast.parse(stsbp("equations", name).output)
    assert [node.name for node in shown.body if isinstance(node, ast.FunctionDef)] == FUNCTIONS[name]


def test_what_is_shown_is_the_equation(stsbp: Callable[..., Result]) -> None:
    functions: dict[str, Any] = {"snap": lambda x: x, "where": np.where, "number": float}
    exec(stsbp("equations", "lif:reset=subtract").output, functions)
    states, outputs = functions["lif_forward"](k=0.5, c=2.0, km=0.25, vth=1.0, z=1.0, i=0.5, m=0.25)
    assert states == (2.25, 0.375)
    assert outputs == (2.5, True)


@pytest.mark.parametrize(
    ("language", "product"), [("numpy", "k * i"), ("triton", "k * i"), ("cuda", "__fmul_rn(k_, i_)")]
)
def test_the_language_is_the_one_asked_for(stsbp: Callable[..., Result], language: str, product: str) -> None:
    assert product in stsbp("equations", "lif", "--as", language).output


def test_an_unknown_equation_is_refused_with_those_that_are_there(stsbp: Callable[..., Result]) -> None:
    refused = stsbp("equations", "lf")
    assert refused.exit_code == 1
    assert refused.output == (
        "Error: no equation is called 'lf' (did you mean lif?); there are: "
        "lif, if, alif, rectangle, triangle, fast-sigmoid, arctan, logistic, filter, van-rossum, hamming, spike-count, "
        "adamw\n"
    )
