"""norse: `LIFCell`, which has a synaptic current, in a loop over time.

`norse.torch.LIF` does the same, but takes `input[t]` in its loop, and PyTorch gives each of these a gradient of the
whole sequence: its backward pass grows with the square of T. So does `LIFRecurrent`. A recurrent layer is `LIFCell` on
the sum of the input's and the own spikes' projections, so that the input's is one product over all steps, which
`LIFRecurrentCell` does not offer; mode `cell` takes `LIFRecurrentCell`, input weights and all, compiled.
"""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from problem import Problem
from torch_network import Peer, TorchNetwork, recurrent_weights


class Neurons(torch.nn.Module):
    """`norse.torch.LIFCell` over a sequence; `own` are the weights of their own spikes, if they read them."""

    def __init__(self, problem: Problem, mode: str, recurrent: torch.nn.Linear | None) -> None:
        super().__init__()
        step = Step(norse.LIFCell(p=parameters(problem), dt=1.0), recurrent)
        self.step = torch.compile(step) if mode == "step" else step

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Spikes of `z`, time first."""
        spikes, state = [torch.zeros_like(z[0])], None
        for now in z.unbind():
            s, state = self.step(now, spikes[-1], state)
            spikes.append(s)
        return torch.stack(spikes[1:])


class Step(torch.nn.Module):
    """One step of neurons."""

    def __init__(self, cell: torch.nn.Module, recurrent: torch.nn.Linear | None) -> None:
        super().__init__()
        self.cell, self.recurrent = cell, recurrent

    def forward(self, now: torch.Tensor, previous: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Spikes and state from the input and the spikes of the step before."""
        result: tuple[torch.Tensor, Any] = self.cell(
            now if self.recurrent is None else now + self.recurrent(previous), state
        )
        return result


class Cell(torch.nn.Module):
    """`norse.torch.LIFRecurrentCell` over a sequence."""

    def __init__(self, problem: Problem, gain: float) -> None:
        super().__init__()
        w, recurrent = (
            torch.from_numpy(problem.weights[problem.layers[0][key]]) * gain for key in ("weight", "recurrent")
        )
        cell = norse.LIFRecurrentCell(
            w.shape[1],
            w.shape[0],
            parameters(problem),
            input_weights=w,
            recurrent_weights=recurrent,
            autapses=True,
            dt=1.0,
        )
        self.cell: Any = torch.compile(cell)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes from the input, time first."""
        spikes, state = [], None
        for now in x.unbind():
            s, state = self.cell(now, state)
            spikes.append(s)
        return torch.stack(spikes)


def parameters(problem: Problem) -> Any:
    """Of all neurons."""
    return norse.LIFParameters(
        tau_syn_inv=torch.tensor(1 / problem.tau_s),
        tau_mem_inv=torch.tensor(1 / problem.tau_m),
        v_th=torch.tensor(problem.threshold),
        alpha=torch.tensor(3.0),
    )


def build(problem: Problem, mode: str) -> Peer:
    """The membrane takes `1/tau_m` of its current, which the weights make up for."""
    gain = problem.tau_m / problem.tau_s

    def neurons(number: int) -> torch.nn.Module:
        recurrent = recurrent_weights(problem, number, gain)
        if mode == "cell" and recurrent is not None:
            return Cell(problem, gain)
        return Neurons(problem, "step" if mode == "cell" else mode, recurrent)

    return Peer(
        problem,
        lambda compiled: TorchNetwork(problem, neurons, gain=gain, compiled=compiled, joint=mode == "cell"),
        "step" if mode == "cell" else mode,
        ("norse",),
    )
