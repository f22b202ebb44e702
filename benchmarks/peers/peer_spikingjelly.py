"""spikingjelly: `SynapseFilter` in front of the weights and `LIFNode`, both multi-step."""

from __future__ import annotations

import torch
from problem import Problem
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch_network import Peer, TorchNetwork

__all__ = ["build"]


def neurons(problem: Problem) -> torch.nn.Module:
    """LIF neurons with hard reset."""
    node: torch.nn.Module = neuron.LIFNode(
        tau=problem.tau_m,
        decay_input=False,
        v_threshold=problem.threshold,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(),
        step_mode="m",
    )
    return node


def build(problem: Problem, mode: str) -> Peer:
    """The filter adds whole spikes: the weights take the factor."""
    if mode == "step":
        raise SystemExit("it steps its neurons inside, there is no such mode")
    return Peer(
        problem,
        lambda compiled: TorchNetwork(
            problem,
            lambda _: neurons(problem),
            gain=1 / problem.tau_s,
            before=lambda _: filtered(problem, compiled),
            compiled=compiled,
        ),
        mode,
        ("spikingjelly",),
        functional.reset_net,
    )


def filtered(problem: Problem, compiled: bool) -> torch.nn.Module:
    """The synaptic filter of a layer's spikes."""
    made: torch.nn.Module = layer.SynapseFilter(tau=problem.tau_s, step_mode="m")
    return torch.compile(made) if compiled else made  # type: ignore[return-value]
