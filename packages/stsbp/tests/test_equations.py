"""`stsbp equations`: every equation is shown, in every language, as it runs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp_spec.models.surrogates import SURROGATES

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"

FUNCTIONS = {
    "lif": ["lif_forward", "lif_backward"],
    "alif:surrogate=triangle": ["alif_forward", "alif_backward"],
    "filter": ["filter_forward", "filter_backward"],
    "van-rossum": ["van_rossum_forward", "van_rossum_backward"],
    "spike-count": ["spike_count_backward"],
    "plif": ["plif_forward", "plif_backward"],
    "adamw": ["adamw", "adamw_learned"],
    "adam": ["adam", "adamw_learned"],
    "sgd": ["sgd", "sgd_learned"],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_an_equation_is_shown(stsbp: Callable[..., Result], name: str) -> None:
    shown = ast.parse(stsbp("equations", name).output)
    assert [node.name for node in shown.body if isinstance(node, ast.FunctionDef)] == FUNCTIONS[name]


def test_the_equation_is_shown(stsbp: Callable[..., Result]) -> None:
    functions: dict[str, Any] = {"snap": lambda x: x, "where": np.where, "number": float}
    exec(stsbp("equations", "lif:reset=subtract").output, functions)
    states, outputs = functions["lif_forward"](k=0.5, c=2.0, km=0.25, vth=1.0, z=1.0, i=0.5, m=0.25)
    assert states == (2.25, 0.375)
    assert outputs == (2.5, True)


@pytest.mark.parametrize(
    ("language", "product"), [("numpy", "k * i"), ("triton", "k * i"), ("cuda", "__fmul_rn(k_, i_)")]
)
def test_the_requested_language_is_printed(stsbp: Callable[..., Result], language: str, product: str) -> None:
    assert product in stsbp("equations", "lif", "--as", language).output


LOUD = """
from dataclasses import dataclass
from stsbp_spec.equations.expressions import named, spike, where
from stsbp_spec.models.neurons.base import NeuronModel, Step

@dataclass(frozen=True)
class Loud(NeuronModel):
    name = "loud"
    states = ("m",)

    def constants(self):
        return {"vth": self.threshold, "gain": 2.0**60}

    def step(self, p, s, i):
        u = named("u", s.m + i * i * p.gain * p.gain)
        o = spike(u, p.vth)
        return Step(u, o, {"m": where(o, 0, u)})
"""


def test_a_product_that_wants_a_snap_is_warned_of(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "loud", raising=False)
    shown = stsbp("equations", "loud:Loud")
    assert "def loud_forward(" in shown.stdout
    line = (
        "warning: loud_forward: i * i may be below 2^-126, which some backends treat as zero, so that whether u >= vth"
    )
    assert shown.stderr == f"{line} differs; write snap(i * i)\n"
    assert stsbp("equations", "alif").stderr == ""
    train = ("--backend", "numpy", "train", "digits", "--net", "8", "--steps", "4", "--limit", "16", "--epochs", "1")
    assert line in stsbp(*train, "--neuron", "loud:Loud", "--out", "run").stderr.replace("\n", " ")
    assert "warning" not in stsbp("--backend", "numpy", "train", "--resume", "run").stderr


CUBIC = """
from dataclasses import dataclass

from stsbp_spec.models.surrogates import Surrogate


@dataclass(frozen=True)
class Cubic(Surrogate):
    name = "cubic"
    alpha: float = 2.0

    def constants(self):
        return {"alpha": self.alpha}

    def expression(self, p, x):
        y = 1 + abs(x) * p.alpha
        return 1 / (y * y * y)

    def primitive(self, x):
        return x
"""


def test_a_surrogate_is_warned_of_that_a_neuron_multiplies(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cubics.py").write_text(CUBIC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cubics", raising=False)
    assert "warning: alif_backward: 1 / (" in stsbp("equations", "cubics:Cubic").stderr
    assert "warning: lif_backward: 1 / (" in stsbp("equations", "cubics:Cubic:alpha=100").stderr
    assert stsbp("equations", "arctan").stderr == ""


def test_each_language_has_functions_of_its_own(stsbp: Callable[..., Result]) -> None:
    texts = {name: stsbp("equations", "lif", "--as", name).stdout for name in ("cuda", "triton", "numba", "jax", "c")}
    assert "__device__ lif_forward_result lif_forward(" in texts["cuda"]
    assert "def " not in texts["cuda"]
    assert "static lif_forward_result lif_forward(" in texts["c"]
    assert "__device__" not in texts["c"]
    assert texts["triton"].startswith("@triton.jit\ndef lif_forward(")
    assert texts["numba"].startswith("@njit\ndef lif_forward(")
    assert texts["jax"].startswith("def lif_forward(")


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages")
def test_the_page_shows_what_is_printed(stsbp: Callable[..., Result]) -> None:
    command = "stsbp equations spike-count --as cuda"
    shown = stsbp(*command.split()[1:]).stdout.strip()
    assert f"```text\n$ {command}\n{shown}\n```" in PAGE.read_text(encoding="utf-8")


def test_an_unknown_equation_is_refused_with_the_known_ones(stsbp: Callable[..., Result]) -> None:
    refused = stsbp("equations", "lf")
    assert refused.exit_code == 1
    assert refused.output == (
        "Error: no equation is called 'lf' (did you mean lif?); there are: "
        f"lif, if, alif, plif, {', '.join(SURROGATES)}, filter, van-rossum, hamming, "
        "spike-count, rate-penalty, adamw, adam, sgd\n"
    )
