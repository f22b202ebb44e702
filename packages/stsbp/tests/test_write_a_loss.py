"""docs/write_a_loss.md: its code runs, gives the same bytes on every backend, and is the derivative that it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.registry import installed_backends, open_backend
from stsbp_spec.synapses import PSP

PAGE = Path(__file__).parents[3] / "docs" / "write_a_loss.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages")


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {"__name__": "page", "np": np}
    exec(compile("\n".join(code), str(PAGE), "exec", dont_inherit=True), scope)
    return scope


def test_every_backend_gives_the_bytes_of_the_page(page: dict[str, Any]) -> None:
    for name in ("torch", "jax", "cupy"):
        if name in installed_backends():
            loss, state = page["trained"](open_backend(name, "host" if name == "cupy" else None))
            assert loss == page["loss"]
            assert state == page["state"]


def test_the_loss_is_counted_and_its_error_is_right(page: dict[str, Any]) -> None:
    o = np.array([[[1, 0, 1, 0]]], np.uint8)
    target = np.array([[[1, 1, 0, 0]]], np.uint8)
    loss = page["Missed"](weight=5.0)
    assert loss.distance(o, target, PSP(2)) == 6
    assert NumpyBackend().loss_error(loss, PSP(2), o, target).tolist() == [[[0, -5, 1, 0]]]


def test_the_surrogate_is_the_derivative_of_its_primitive(page: dict[str, Any]) -> None:
    surrogate = page["Lopsided"](below=1.5, above=3.0)
    x = np.linspace(-2, 2, 41) + 0.01
    slope = (surrogate.primitive(x + 1e-6) - surrogate.primitive(x - 1e-6)) / 2e-6
    assert np.abs(slope - surrogate.derivative(x)).max() < 1e-7
    assert surrogate.exact
