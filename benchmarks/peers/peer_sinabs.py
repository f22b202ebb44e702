"""sinabs: `LIF` with `tau_syn`, one spike a step, reset to zero; time is the second axis.

The layer takes `input[:, t]` in its loop, and PyTorch gives each of these a gradient of the whole sequence: its
backward pass grows with the square of T. The mode `step` makes the loop around the function of one step.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import sinabs.activation as activation
import sinabs.layers
import torch
from problem import Problem
from sinabs.layers.functional.lif import lif_forward_single
from torch_network import Peer, TorchNetwork


class SingleSpike:
    """`sinabs.activation.SingleSpike`; `torch.compile` cannot look up the class attribute of a function of autograd."""

    required_states: ClassVar = ["v_mem"]

    @staticmethod
    def apply(*arguments: Any) -> torch.Tensor:
        """Spikes, with the surrogate gradient."""
        spikes: torch.Tensor = activation.SingleSpike.apply(*arguments)
        return spikes


def neurons(problem: Problem) -> torch.nn.Module:
    """A layer whose decay factors are those of stsbp: `exp(-1/tau) = 1 - 1/tau'`."""
    tau_m, tau_s = (-1 / math.log(1 - 1 / tau) for tau in (problem.tau_m, problem.tau_s))
    layer: torch.nn.Module = sinabs.layers.LIF(
        tau_mem=tau_m,
        tau_syn=tau_s,
        spike_threshold=torch.tensor(problem.threshold),
        spike_fn=SingleSpike,
        reset_fn=activation.MembraneReset(),
        norm_input=False,
    )
    return layer.requires_grad_(False)  # the time constants are parameters, and nobody else trains them


class Steps(torch.nn.Module):
    """The layer's function of one step, compiled, in a loop over time."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.layer, self.step = neurons(problem), torch.compile(lif_forward_single)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Spikes of `z`, time first."""
        layer: Any = self.layer
        state = {"v_mem": torch.zeros_like(z[0]), "i_syn": torch.zeros_like(z[0])}
        alpha_mem, alpha_syn = layer.alpha_mem_calculated, layer.alpha_syn_calculated
        spikes = []
        for now in z.unbind():
            s, state = self.step(  # type: ignore[no-untyped-call]  # sinabs has no types
                now,
                alpha_mem=alpha_mem,
                alpha_syn=alpha_syn,
                state=state,
                spike_threshold=layer.spike_threshold,
                spike_fn=layer.spike_fn,
                reset_fn=layer.reset_fn,
                surrogate_grad_fn=layer.surrogate_grad_fn,
                min_v_mem=layer.min_v_mem,
                norm_input=layer.norm_input,
            )
            spikes.append(s)
        return torch.stack(spikes)


def reset(network: torch.nn.Module) -> None:
    """States of every layer to zero, cut off from the last step."""
    for layer in network.modules():
        if isinstance(layer, sinabs.layers.LIF):
            layer.reset_states()


def build(problem: Problem, mode: str) -> Peer:
    """The current decays with the input of the same step: the weights make up for it."""
    gain = 1 / problem.tau_s / (1 - 1 / problem.tau_s)

    def network(compiled: bool) -> TorchNetwork:
        if mode == "step":
            return TorchNetwork(problem, lambda _: Steps(problem), gain=gain)
        return TorchNetwork(problem, lambda _: neurons(problem), gain=gain, batch_first=True, compiled=compiled)

    return Peer(problem, network, mode, ("sinabs",), reset)
