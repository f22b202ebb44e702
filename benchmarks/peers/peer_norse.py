"""norse: `LIFCell`, which has a synaptic current, in a loop over time.

`norse.torch.LIF` does the same, but takes `input[t]` in its loop, and PyTorch gives each of these a gradient of the
whole sequence: its backward pass grows with the square of T.
"""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from problem import Problem
from torch_network import Peer, TorchNetwork

__all__ = ["build"]


class Neurons(torch.nn.Module):
    """`norse.torch.LIFCell` over a sequence."""

    def __init__(self, problem: Problem, mode: str) -> None:
        super().__init__()
        parameters: Any = norse.LIFParameters(
            tau_syn_inv=torch.tensor(1 / problem.tau_s),
            tau_mem_inv=torch.tensor(1 / problem.tau_m),
            v_th=torch.tensor(problem.threshold),
            alpha=torch.tensor(3.0),
        )
        cell = norse.LIFCell(p=parameters, dt=1.0)
        self.cell = torch.compile(cell) if mode == "step" else cell

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Spikes of `z`, time first."""
        spikes, state = [], None
        for now in z.unbind():
            s, state = self.cell(now, state)
            spikes.append(s)
        return torch.stack(spikes)


def build(problem: Problem, mode: str) -> Peer:
    """The membrane takes `1/tau_m` of its current, which the weights make up for."""
    gain = problem.tau_m / problem.tau_s
    return Peer(
        problem,
        lambda compiled: TorchNetwork(problem, lambda _: Neurons(problem, mode), gain=gain, compiled=compiled),
        mode,
        ("norse",),
    )
