"""snntorch: `Synaptic`, reset to zero, in a loop over time."""

from __future__ import annotations

import snntorch
import torch
from problem import Problem
from snntorch import surrogate
from torch_network import Peer, TorchNetwork

__all__ = ["build"]


class Neurons(torch.nn.Module):
    """`snntorch.Synaptic` over a sequence."""

    def __init__(self, problem: Problem, mode: str) -> None:
        super().__init__()
        self.cell = snntorch.Synaptic(
            alpha=1 - 1 / problem.tau_s,
            beta=1 - 1 / problem.tau_m,
            threshold=problem.threshold,
            spike_grad=surrogate.fast_sigmoid(slope=3),
            reset_mechanism="zero",
        )
        if mode == "step":
            self.cell = torch.compile(self.cell)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Spikes of `z`, time first."""
        current, potential = torch.zeros_like(z[0]), torch.zeros_like(z[0])
        spikes = []
        for now in z:
            s, current, potential = self.cell(now, current, potential)
            spikes.append(s)
        return torch.stack(spikes)


def build(problem: Problem, mode: str) -> Peer:
    """The current has no factor of its own: the weights take it."""
    return Peer(
        problem,
        lambda compiled: TorchNetwork(
            problem, lambda _: Neurons(problem, mode), gain=1 / problem.tau_s, compiled=compiled
        ),
        mode,
        ("snntorch",),
    )
