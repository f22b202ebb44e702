"""snntorch: `Synaptic`, of a recurrent layer `RSynaptic`, reset to zero, in a loop over time."""

from __future__ import annotations

from typing import Any

import snntorch
import torch
from problem import Problem
from snntorch import surrogate
from torch_network import Peer, TorchNetwork, recurrent_weights


class Neurons(torch.nn.Module):
    """`snntorch.Synaptic` over a sequence; `RSynaptic` where `own` are the weights of their own spikes."""

    def __init__(self, problem: Problem, mode: str, recurrent: torch.nn.Linear | None) -> None:
        super().__init__()
        common: Any = {
            "alpha": 1 - 1 / problem.tau_s,
            "beta": 1 - 1 / problem.tau_m,
            "threshold": problem.threshold,
            "spike_grad": surrogate.fast_sigmoid(slope=3),
            "reset_mechanism": "zero",
        }
        self.recurrent = recurrent is not None
        if recurrent is None:
            self.cell = snntorch.Synaptic(**common)
        else:
            self.cell = snntorch.RSynaptic(linear_features=recurrent.out_features, **common)
            self.cell.recurrent = recurrent
        if mode == "step":
            self.cell = torch.compile(self.cell)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Spikes of `z`, time first."""
        current, potential, s = (torch.zeros_like(z[0]) for _ in range(3))
        spikes = []
        for now in z.unbind():
            states = (s, current, potential) if self.recurrent else (current, potential)
            s, current, potential = self.cell(now, *states)
            spikes.append(s)
        return torch.stack(spikes)


def build(problem: Problem, mode: str) -> Peer:
    """The current has no factor of its own: the weights take it."""
    gain = 1 / problem.tau_s

    def neurons(number: int) -> torch.nn.Module:
        return Neurons(problem, mode, recurrent_weights(problem, number, gain))

    return Peer(
        problem,
        lambda compiled: TorchNetwork(problem, neurons, gain=gain, compiled=compiled),
        mode,
        ("snntorch",),
    )
