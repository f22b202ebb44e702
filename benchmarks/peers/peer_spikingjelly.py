"""spikingjelly: `SynapseFilter` in front of the weights and `LIFNode`, both multi-step.

A recurrent layer is a `LinearRecurrentContainer`, which projects input and own spikes in one product a step; what comes
back has no filter there.
"""

from __future__ import annotations

import torch
from problem import Problem
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch_network import Peer, TorchNetwork, recurrent_weights


def neurons(problem: Problem, number: int, gain: float) -> torch.nn.Module:
    """LIF neurons with hard reset."""
    recurrent = recurrent_weights(problem, number, gain)
    node: torch.nn.Module = neuron.LIFNode(
        tau=problem.tau_m,
        decay_input=False,
        v_threshold=problem.threshold,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(),
        step_mode="m" if recurrent is None else "s",
    )
    if recurrent is None:
        return node
    w = torch.from_numpy(problem.weights[problem.layers[number]["weight"]])
    if w.shape[0] != w.shape[1]:
        raise SystemExit("its container has as many neurons as inputs")
    container: torch.nn.Module = layer.LinearRecurrentContainer(node, *w.shape, bias=False, step_mode="m")
    container.rc.weight = torch.nn.Parameter(torch.cat([w, recurrent.weight.detach()], 1))  # type: ignore[union-attr]
    return container


def build(problem: Problem, mode: str) -> Peer:
    """The filter adds whole spikes: the weights take the factor."""
    if mode == "step":
        raise SystemExit("it steps its neurons inside, there is no such mode")
    return Peer(
        problem,
        lambda compiled: TorchNetwork(
            problem,
            lambda number: neurons(problem, number, 1 / problem.tau_s),
            gain=1 / problem.tau_s,
            input_filter=lambda _: filtered(problem, compiled),
            compiled=compiled,
            joint=True,
        ),
        mode,
        ("spikingjelly",),
        functional.reset_net,
    )


def filtered(problem: Problem, compiled: bool) -> torch.nn.Module:
    """The synaptic filter of a layer's spikes."""
    synapse: torch.nn.Module = layer.SynapseFilter(tau=problem.tau_s, step_mode="m")
    return torch.compile(synapse) if compiled else synapse  # type: ignore[return-value]
