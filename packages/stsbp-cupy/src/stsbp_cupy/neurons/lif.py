"""neurons/lif.py by kernels/lif.cu."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from stsbp_spec.neurons.lif import LIF
from stsbp_spec.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.synapses.psp import Filter
from stsbp_spec.tables import implementation
from stsbp_spec.typing import Native

from stsbp_cupy.runtime import Runtime, lanes_of, logical, memory

__all__ = ["Residuals", "backward", "forward", "potentials"]


class Residuals(NamedTuple):
    """Membrane potentials, `[T, B, ...]` in memory order, and whether `z` was static. Spikes are `u >= V_th`."""

    u: Native
    static: bool


def forward(rt: Runtime, neuron: LIF, filter: Filter, z: Native, steps: int) -> tuple[Native, Residuals]:
    """Eq. (3a), (4), (5): spikes from `z` `[1 or T, B, ...]`."""
    z = memory(rt, z)
    u = rt.empty((steps, *z.shape[1:]), np.float32)
    spikes = rt.empty(u.shape, np.uint8)
    n = math.prod(z.shape[1:])
    lanes = lanes_of(n, z, u, spikes)
    z_step = 0 if len(z) == 1 else n
    rt.launch(
        "lif_forward", n // lanes, z, u, spikes, n, z_step, steps,
        neuron.decay, neuron.threshold, filter.decay, filter.gain, lanes,
    )  # fmt: skip
    return logical(rt, spikes), Residuals(u, static=len(z) == 1 and steps > 1)


def backward(rt: Runtime, neuron: LIF, filter: Filter, residuals: Residuals, ds: Native) -> Native:
    """Eq. (10)-(17): `dL/dz` from `g = dL/do`."""
    u, static = residuals
    ds = memory(rt, ds)
    n = math.prod(u.shape[1:])
    dz = rt.empty((1 if static else len(u), *u.shape[1:]), np.float32)
    lanes = lanes_of(n, u, ds, dz)
    name, constants = surrogate_arguments(neuron.surrogate)
    rt.launch(
        name, n // lanes, u, ds, dz, n, 0 if static else n, len(u),
        neuron.decay, neuron.threshold, filter.decay, filter.gain, *constants, lanes,
    )  # fmt: skip
    return logical(rt, dz)


def potentials(rt: Runtime, residuals: Residuals) -> Native:
    """Membrane potentials `[T, B, ...]` of a forward pass."""
    return logical(rt, residuals.u)


_KERNELS: dict[type[Surrogate], Callable[[float], tuple[str, tuple[float, ...]]]] = {
    Rectangle: lambda width: ("lif_backward", (0, width / 2, 1 / width)),
    Triangle: lambda width: ("lif_backward", (1, 1 / width, 0.0)),
    FastSigmoid: lambda beta: ("lif_backward", (2, beta, 0.0)),
    Arctan: lambda alpha: ("lif_backward", (3, math.pi / 2 * alpha, 0.0)),
    Logistic: lambda width: ("lif_backward_logistic", (1 / width,)),
}


def surrogate_arguments(surrogate: Surrogate) -> tuple[str, tuple[float, ...]]:
    """The kernel of a surrogate and its arguments: the kind and constants of `ExactSurrogate`, or the logistic's.

    Raises:
        BackendError: the kernels do not know this surrogate.
    """
    return implementation("cupy", _KERNELS, surrogate, "surrogate")(surrogate.parameter)
