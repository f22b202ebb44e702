"""sinabs: `LIF` with `tau_syn`, one spike a step, reset to zero; time is the second axis."""

from __future__ import annotations

import math

import sinabs.activation as activation
import sinabs.layers
import torch
from problem import Problem
from torch_network import Peer, TorchNetwork

__all__ = ["build"]


def neurons(problem: Problem) -> torch.nn.Module:
    """A layer whose decay factors are those of stsbp: `exp(-1/tau) = 1 - 1/tau'`."""
    tau_m, tau_s = (-1 / math.log(1 - 1 / tau) for tau in (problem.tau_m, problem.tau_s))
    layer: torch.nn.Module = sinabs.layers.LIF(
        tau_mem=tau_m,
        tau_syn=tau_s,
        spike_threshold=torch.tensor(problem.threshold),
        spike_fn=activation.SingleSpike,
        reset_fn=activation.MembraneReset(),
        norm_input=False,
    )
    return layer


def reset(network: torch.nn.Module) -> None:
    """States of every layer to zero, cut off from the last step."""
    for layer in network.modules():
        if isinstance(layer, sinabs.layers.LIF):
            layer.reset_states()


def build(problem: Problem, mode: str) -> Peer:
    """The current decays with the input of the same step: the weights make up for it."""
    if mode == "step":
        raise SystemExit("it steps its neurons inside, there is no such mode")
    gain = 1 / problem.tau_s / (1 - 1 / problem.tau_s)
    return Peer(
        problem,
        lambda compiled: TorchNetwork(
            problem, lambda _: neurons(problem), gain=gain, batch_first=True, compiled=compiled
        ),
        mode,
        ("sinabs",),
        reset,
    )
