"""Networks that try to exceed a bound of rounding errors. Each case attacks one assumption that such a bound could
make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32, UInt8

from stsbp_conformance.cases import NetworkCase

__all__ = ["CASES", "AdversarialCase"]


@dataclass(frozen=True)
class AdversarialCase(NetworkCase):
    """A case whose weights, inputs or errors are chosen instead of drawn at random.

    Attributes:
        weight: weight of every connection; None: drawn.
        grid: drawn weights are rounded to multiples of `2^-grid`, so that potentials equal thresholds and edges
            exactly.
        input: value of every input; None: drawn.
        errors: `drawn`; `equal` for all neurons, samples and steps; `opposite`: the second half of the batch has the
            inputs of the first half, and errors that cancel those of the first half except for 2^-20.
    """

    weight: float | None = None
    grid: int | None = None
    input: int | None = None
    errors: Literal["drawn", "equal", "opposite"] = "drawn"

    @property
    def random(self) -> bool:
        """Always false."""
        return False

    def weights(self) -> dict[str, Float32]:
        """Master weights."""
        drawn = super().weights()
        weights = {name: drawn[name] for name in self.network.weight_shapes}
        if self.weight is not None:
            return drawn | {name: np.full_like(w, self.weight) for name, w in weights.items()}
        if self.grid is not None:
            unit = np.float32(2.0**-self.grid)
            return drawn | {name: np.rint(w / unit) * unit for name, w in weights.items()}
        return drawn

    def inputs(self) -> UInt8:
        """`[B, ...]` or `[T, B, ...]`."""
        drawn = super().inputs()
        if self.input is not None:
            return np.full_like(drawn, self.input)
        if self.errors == "opposite":
            axis, half = 0 if self.network.coding == "direct" else 1, self.batch // 2
            first = np.take(drawn, range(half), axis=axis)
            return np.concatenate([first, first], axis=axis)
        return drawn

    def cotangents(self) -> Float32:
        """`dL/do` of the output, `[T, B, N]`."""
        drawn = super().cotangents()
        if self.errors == "equal":
            return np.full_like(drawn, 0.1)
        if self.errors == "opposite":
            half = drawn[:, : self.batch // 2]
            return np.concatenate([half, half * np.float32(2.0**-20 - 1)], axis=1)
        return drawn


def _reset(name: str, surrogate: Surrogate, weight: float) -> AdversarialCase:
    """A constant input that keeps `u` just above the threshold. The factor through the reset is -k_m u h, above 1."""
    neuron = LIF(tau_m=3, tau_s=3, threshold=1.7, surrogate=surrogate)
    network = NetworkSpec.parse("8", input_shape=(4,), outputs=3, coding="direct", neuron=neuron)
    return AdversarialCase(f"reset factor above 1, {name}", network, steps=100, batch=2, weight=weight, input=255)


def _edges(threshold: float, width: float) -> AdversarialCase:
    """Dyadic weights, tau 2 and no filter, so that potentials are multiples of small powers of two."""
    neuron = LIF(2, 1, threshold, Rectangle(width))
    network = NetworkSpec.parse("40-40", input_shape=(30,), outputs=20, weight_bits=4, neuron=neuron)
    return AdversarialCase(
        f"potentials on the edges, threshold {threshold:g}, width {width:g}",
        network,
        steps=20,
        batch=4,
        gain=3.0,
        density=0.2,
        grid=2,
    )


_RESET = (
    _reset("fast-sigmoid", FastSigmoid(0.5), 0.4512),
    _reset("arctan", Arctan(0.5), 0.4512),
    _reset("logistic", Logistic(0.25), 0.4512),
    AdversarialCase(
        "reset factor above 1, events",
        NetworkSpec.parse("8", input_shape=(4,), outputs=3, neuron=LIF(3, 3, 1.7, Arctan(0.5))),
        steps=100,
        batch=1,
        weight=0.6,
        input=1,
    ),
)
# Third: silent neurons are on an edge that float32 rounds. Last: 0.5 - 0.3 < 0.2 in float32, but not in float64.
_EDGES = (_edges(1.0, 1.0), _edges(1.0, 2.0), _edges(0.3, 0.6), _edges(0.3, 0.4))
_EQUAL = AdversarialCase(
    "equal summands, 65,536 of them",
    NetworkSpec.parse("6", input_shape=(3,), outputs=2, neuron=LIF(3, 3, 0.3)),
    steps=64,
    batch=1024,
    weight=0.5,
    input=1,
    errors="equal",
)
_CANCELLING = AdversarialCase(
    "strongly cancelling sums",
    NetworkSpec.parse("12-12", input_shape=(20,), outputs=4, neuron=LIF(3, 5 / 3, 0.4)),
    steps=16,
    batch=32,
    density=0.3,
    errors="opposite",
)
_SATURATED = AdversarialCase(
    "saturated, every neuron at every step",
    NetworkSpec.parse("20-20-20", input_shape=(20,), outputs=4, neuron=LIF(5, 3, 0.1)),
    steps=40,
    batch=4,
    weight=0.3,
    input=1,
)
_DEEP = AdversarialCase(
    "deep, 11 layers",
    NetworkSpec.parse("-".join(["24"] * 10), input_shape=(24,), outputs=5, neuron=LIF(3, 5 / 3, 0.4)),
    steps=16,
    batch=2,
    gain=3.5,
    density=0.3,
)

CASES: tuple[tuple[AdversarialCase, str | None], ...] = (
    *((case, None) for case in (*_RESET, *_EDGES, _EQUAL, _CANCELLING, _DEEP)),
    *((_SATURATED, loss) for loss in LOSSES),
)
"""Each case, with the loss whose error is used; None: the case's own output errors."""
