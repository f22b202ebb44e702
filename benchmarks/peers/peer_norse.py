"""norse: `LIF`, which has a synaptic current, over a sequence."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from problem import Problem
from torch_network import Peer, TorchNetwork

__all__ = ["build"]


class Neurons(torch.nn.Module):
    """`norse.torch.LIF` without its last state."""

    def __init__(self, problem: Problem, mode: str) -> None:
        super().__init__()
        parameters: Any = norse.LIFParameters(
            tau_syn_inv=torch.tensor(1 / problem.tau_s),
            tau_mem_inv=torch.tensor(1 / problem.tau_m),
            v_th=torch.tensor(problem.threshold),
            alpha=torch.tensor(3.0),
        )
        self.lif = norse.LIF(p=parameters, dt=1.0)
        if mode == "step":
            self.lif.activation = torch.compile(self.lif.activation)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Spikes of `z`, time first."""
        spikes: torch.Tensor = self.lif(z)[0]
        return spikes


def build(problem: Problem, mode: str) -> Peer:
    """The membrane takes `1/tau_m` of its current, which the weights make up for."""
    gain = problem.tau_m / problem.tau_s
    return Peer(
        problem,
        lambda compiled: TorchNetwork(problem, lambda _: Neurons(problem, mode), gain=gain, compiled=compiled),
        mode,
        ("norse",),
    )
