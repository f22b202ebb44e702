"""The Triton kernels as the PTX that Triton makes ahead of time, against the numpy reference, bit by bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_spec.contract.random import keep_mask
from stsbp_spec.equations.assembly import COUNT, Constants, loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import ALIF, LIF, PLIF
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.models.optim import SGD, Adam, AdamW
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("torch", reason="PyTorch is not installed")
sys.path[:0] = [str(Path(__file__).parents[2])]

# The emulator is found on the path above.
from emulator import triton_kernels  # noqa: E402


def long_cases(*values: Any) -> list[Any]:
    """Parameters of cases beside the quick one; `nox -s triton` runs them too."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


ARCHITECTURES = (80, *long_cases(75, 90))
SIZES = (233, *long_cases(1, 256))
WIDTHS = {"rectangle": (0.7,), "triangle": (0.6,), "fast-sigmoid": (3.0,), "arctan": (2.3,)}
NEURONS: dict[str, NeuronModel] = {
    **{name: LIF(5 / 3, surrogate=cls(*WIDTHS.get(name, ()))) for name, cls in SURROGATES.items() if cls().exact},
    "alif": ALIF(3, reset="subtract", tau_rise=2),
    "plif": PLIF(3),
}
STEPS = 6


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def same(
    recurrence: Recurrence,
    constants: Constants,
    inputs: dict[str, AnyArray],
    steps: int,
    architecture: int,
    summed: tuple[str, ...] = (),
) -> dict[str, AnyArray]:
    """The reference's outputs, which those of the kernel equal, with alignment known and unknown."""
    expected = NumpyBackend().recur(recurrence, constants, inputs, steps, summed=summed)
    for aligned, seed in ((False, None), (True, 1)):
        computed = triton_kernels.recur(
            recurrence, constants, inputs, steps, summed=summed, architecture=architecture, aligned=aligned, seed=seed
        )
        for name, x in expected.items():
            assert x.tobytes() == computed[name].tobytes(), (recurrence.name, name, summed, aligned)
    return expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("static", [False, True], ids=["steps", "static"])
@pytest.mark.parametrize("name", ["rectangle", *long_cases(*(name for name in NEURONS if name != "rectangle"))])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neurons(rng: np.random.Generator, name: str, architecture: int, static: bool, size: int) -> None:
    equations = neuron_equations(PSP(3).filter(), NEURONS[name])
    shape = (3, size) if size > 1 else (1, 1)
    z = (rng.integers(-40, 60, (1 if static else STEPS, *shape)) / 16).astype(np.float32)
    learned = {name: rng.random((1, *shape)).astype(np.float32) for name in equations.learned.values()}
    outputs = same(equations.forward, equations.constants, {"z": z, **learned}, STEPS, architecture)
    outputs.pop("o")
    g = rng.standard_normal((STEPS, *shape)).astype(np.float32)
    summed = (*(("dz",) if static else ()), *equations.terms.values())
    same(equations.backward, equations.constants, {**outputs, **learned, "g": g}, STEPS, architecture, summed)


@pytest.mark.parametrize("kind", [AdamW, *long_cases(Adam, SGD)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_updates(rng: np.random.Generator, architecture: int, size: int, kind: type[Any]) -> None:
    scalars = kind(weight_decay=0.1).scalars(3, np.float32(0.7))
    update = scalars.update
    arrays = {name: abs(rng.standard_normal((1, size)).astype(np.float32)) for name in update.inputs}
    arrays["g"] = rng.standard_normal((1, size)).astype(np.float32)
    same(update, {name: getattr(scalars, name) for name in update.parameters}, arrays, 1, architecture)


@pytest.mark.parametrize("size", [9, *long_cases(1, 16)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses(rng: np.random.Generator, architecture: int, size: int) -> None:
    spikes, targets = ((rng.random((STEPS, 3, size)) < 0.4).astype(np.uint8) for _ in range(2))
    trains = {"count": spikes, "target_count": targets}
    counts = {name: same(COUNT, {}, {"o": x}, STEPS, architecture, ("n",))["n"] for name, x in trains.items()}
    for loss in LOSSES.values():
        constants = {name: np.float32(x) for name, x in loss.constants(PSP(3), STEPS, 3).items()}
        equations, inputs = loss_equations(loss), {"o": spikes, "target": targets, **counts}
        if equations.forward is not None:
            inputs["r"] = same(equations.forward, constants, inputs, STEPS, architecture)["r"]
        same(equations.backward, constants, inputs, STEPS, architecture)


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), *long_cases((2, 1, 3, 3), (7, 11), (1, 300), (1, 1))], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_masks(architecture: int, shape: tuple[int, ...]) -> None:
    for words in ((0, 0, 0), (1, 1, 1), (2**32 - 1, 70, 2**31), (2**31 + 5, 1000, 2**32 - 1)):
        for rate, first in ((0.3, 0), (0.5, 1), (0.0, 2), (0.999, 3)):
            computed = triton_kernels.keep_mask(*words, shape, rate, first, architecture=architecture)
            assert (computed == keep_mask(*words, shape, rate, first)).all(), (words, rate, first)
