"""neurons/lif.py of the spec, eager: plain tensor expressions in the contract's order, on any device.

Slow, and short enough to read beside the spec; `--device cpu:eager` selects it for debugging. The fused kernels that
are used otherwise, lif_numba.py on the CPU and lif_triton.py on CUDA, fill the same arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from stsbp_spec.grid import FLOOR
from stsbp_spec.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.tables import implementation

__all__ = ["LifResiduals", "backward", "derivative", "forward", "snap", "surrogate_code"]


class LifResiduals(NamedTuple):
    """Membrane potentials and spikes `[T, B, ...]`, and whether `z` was static."""

    u: torch.Tensor
    spikes: torch.Tensor
    static: bool


def snap(x: torch.Tensor) -> torch.Tensor:
    """Magnitudes below 2^-100 become zero."""
    return torch.where(x.abs() < FLOOR, torch.zeros((), dtype=x.dtype, device=x.device), x)


_CODES: dict[type[Surrogate], Callable[[float], tuple[int, float, float]]] = {
    Rectangle: lambda width: (0, width / 2, 1 / width),
    Triangle: lambda width: (1, 1 / width, 0.0),
    FastSigmoid: lambda beta: (2, beta, 0.0),
    Arctan: lambda alpha: (3, math.pi / 2 * alpha, 0.0),
    Logistic: lambda width: (4, 1 / width, 0.0),
}


def surrogate_code(surrogate: Surrogate) -> tuple[int, float, float]:
    """Which branch of the fused kernels computes `h`, and its two constants.

    Raises:
        BackendError: the kernels do not know this surrogate.
    """
    return implementation("torch", _CODES, surrogate, "surrogate")(surrogate.parameter)


def derivative(code: tuple[int, float, float], x: torch.Tensor) -> torch.Tensor:
    """`h(x)`, each operation rounded as stsbp_spec/surrogates.py writes it."""
    kind, p0, p1 = code
    if kind == 0:
        return (x.abs() < p0).to(x.dtype) * p1
    if kind == 1:
        return (1 - x.abs() * p0).clamp_min(0)
    if kind == 2:
        y = 1 + x.abs() * p0
        return 1 / (y * y)
    if kind == 3:
        y = x * p0
        return 1 / (1 + y * y)
    z = torch.exp(-(x.abs() * p0))
    y = 1 + z
    return z / (y * y) * p0


def forward(z: torch.Tensor, u: torch.Tensor, spikes: torch.Tensor, k: float, c: float, km: float, vth: float) -> None:
    """Fill `u` and `spikes`, `[T, M]`, from `z`, `[1 or T, M]`: Eq. (3a), (4), (5)."""
    i = torch.zeros_like(u[0])
    m = torch.zeros_like(i)
    for t in range(len(u)):
        i = snap(k * i + c * z[t % len(z)])
        u[t] = snap(m + i)
        spikes[t] = u[t] >= vth
        m = torch.where(spikes[t] != 0, torch.zeros_like(i), km * u[t])


def backward(
    u: torch.Tensor,
    spikes: torch.Tensor,
    ds: torch.Tensor,
    dz: torch.Tensor,
    k: float,
    c: float,
    km: float,
    vth: float,
    code: tuple[int, float, float],
) -> None:
    """Fill `dz`, `[1 or T, M]`, from `ds`, `[T, M]`: Eq. (10)-(17)."""
    static = len(dz) == 1 and len(u) > 1
    d = torch.zeros_like(u[0])
    e = torch.zeros_like(d)
    total = torch.zeros_like(d)
    for t in reversed(range(len(u))):
        d1 = snap(km * d)
        p = snap(u[t] * d1)
        r = snap(derivative(code, u[t] - vth) * (ds[t] - p))
        d = r + torch.where(spikes[t] != 0, torch.zeros_like(d1), d1)
        e = snap(k * e + d)
        if static:
            total = total + c * e
        else:
            dz[t] = c * e
    if static:
        dz[0] = total
