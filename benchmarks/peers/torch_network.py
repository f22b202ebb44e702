"""What the peers on PyTorch share: the network around their neurons, the loss, the update and the checks.

Convolutions, pooling and full connections see all T B frames at once, channels last; the neurons see `[T, B, H, W,
C]` or `[T, B, N]`, contiguous, so that neither has to copy. This is each library's fast way (multi-step, or a loop
over the time axis around the neuron alone), and it is the same for all of them.

Modes: `plain`; `step` compiles the neurons of one step, where the library lets one call them; `neuron` compiles the
neurons over all steps; `network` compiles the whole network.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from problem import Problem
from torch.nn import functional

# Layers of different shapes share the code of their neurons: by default the ninth shape would run uncompiled.
torch._dynamo.config.recompile_limit = 256

Factory = Callable[[int], torch.nn.Module]


class TorchNetwork(torch.nn.Module):
    """Synapses on merged frames, and a library's neurons after each of them.

    Args:
        problem: the network.
        neuron: makes the neurons of the layer of that number.
        gain: factor of the weights, which makes the amplitude of the library's filter that of stsbp.
        before: makes what stands between spikes and the next weights, where the library's filter stands there.
        batch_first: whether time is the second axis of what the neurons see.
        compiled: whether the neurons are compiled.
        joint: whether the neurons of a recurrent layer have its weights of the input in them, and see the input.
    """

    def __init__(
        self,
        problem: Problem,
        neuron: Factory,
        *,
        gain: float,
        input_filter: Factory | None = None,
        batch_first: bool = False,
        compiled: bool = False,
        joint: bool = False,
    ) -> None:
        super().__init__()
        self.layers, self.batch_first, self.joint = problem.layers, batch_first, joint
        self.steps, self.batch = problem.steps, len(problem.labels)
        self.weights = torch.nn.ParameterDict()
        self.neurons, self.input_filters = torch.nn.ModuleList(), torch.nn.ModuleList()
        number = 0
        for layer in problem.layers:
            if layer["kind"] == "pool":
                continue
            # A filter in front of the weights leaves the input alone, so the first layer's weights stay as they are.
            layer_gain = 1.0 if number == 0 and input_filter is not None else gain
            w = torch.from_numpy(problem.weights[layer["weight"]]) * layer_gain
            if w.ndim == 4:
                w = w.contiguous(memory_format=torch.channels_last)
            if not (joint and layer["kind"] == "recurrent"):
                self.weights[layer["weight"]] = torch.nn.Parameter(w)
            population = neuron(number)
            self.neurons.append(torch.compile(population) if compiled else population)  # type: ignore[arg-type]
            if input_filter is not None:
                self.input_filters.append(input_filter(number))
            number += 1

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Output spikes and every layer's, time first or batch first, from frames `[n, C, H, W]`, channels last."""
        lead = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        number = 0
        spikes: list[torch.Tensor] = []
        for layer in self.layers:
            if layer["kind"] == "pool":
                x = functional.avg_pool2d(x, layer["size"])
                continue
            if number > 0 and len(self.input_filters) > 0:
                x = merged(self.input_filters[number](unmerged(x, lead)))
            if layer["kind"] == "conv":
                w = self.weights[layer["weight"]]
                x = functional.conv2d(x, w, stride=layer["stride"], padding=layer["padding"])
            elif not (self.joint and layer["kind"] == "recurrent"):
                x = functional.linear(x.flatten(1), self.weights[layer["weight"]])
            s = self.neurons[number](unmerged(x, lead))
            spikes.append(s)
            x = merged(s)
            number += 1
        return spikes[-1], spikes


def recurrent_weights(problem: Problem, number: int, gain: float) -> torch.nn.Linear | None:
    """Through which the neurons of the layer of that number read their own spikes; None: they do not."""
    layer = [layer for layer in problem.layers if layer["kind"] != "pool"][number]
    if layer["kind"] != "recurrent":
        return None
    w = torch.from_numpy(problem.weights[layer["recurrent"]]) * gain
    recurrent = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    recurrent.weight = torch.nn.Parameter(w)
    return recurrent


def unmerged(x: torch.Tensor, lead: tuple[int, int]) -> torch.Tensor:
    """Frames, channels last, as `[lead..., H, W, C]` or `[lead..., N]`, contiguous and without a copy."""
    memory = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    return memory.reshape(*lead, *memory.shape[1:])


def merged(s: torch.Tensor) -> torch.Tensor:
    """Inverse of `unmerged`."""
    frames = s.reshape(-1, *s.shape[2:])
    return frames.permute(0, 3, 1, 2) if s.ndim == 5 else frames


class Peer:
    """A network in training.

    Args:
        problem: network and batch.
        make: makes the network, `make(compiled)`.
        mode: see the module.
        reset: called before each forward pass, for libraries that keep the state in the layers.
        packages: whose versions are reported.
    """

    def __init__(
        self,
        problem: Problem,
        make: Callable[[bool], TorchNetwork],
        mode: str,
        packages: tuple[str, ...],
        reset: Callable[[torch.nn.Module], None] | None = None,
    ) -> None:
        if mode not in ("plain", "step", "neuron", "network"):
            raise ValueError(f"no mode {mode!r}")
        self.network = make(mode == "neuron")
        self.call: Any = torch.compile(self.network) if mode == "network" else self.network
        self.reset = reset or (lambda _: None)
        device = torch.device(problem.setup.get("device") or "cpu")
        self.network.to(device)
        self.problem, self.device = problem, device
        self.load(problem.inputs, problem.labels)
        self.scale = problem.input_scale
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=problem.lr, weight_decay=0.0)
        self.versions = {name: importlib.metadata.version(name) for name in (*packages, "torch")}

    def load(self, inputs: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
        """Take another batch, of the same size."""
        self.frames = torch.from_numpy(self.problem.every_step(inputs)).to(self.device)
        self.target = functional.one_hot(torch.from_numpy(labels), 10).float().to(self.device)

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the next updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def classes(self) -> list[int]:
        """The output neuron with most spikes, for each sample."""
        out, _ = self.spikes(self.frames)
        return out.sum(1 if self.network.batch_first else 0).argmax(1).tolist()

    def spikes(self, frames: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Output spikes and every layer's from uint8 frames `[T, B, ...]`."""
        self.reset(self.network)
        x = frames.transpose(0, 1) if self.network.batch_first else frames
        x = x.reshape(-1, *frames.shape[2:]).float()
        if self.scale != 1.0:
            x = x * self.scale
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        result: tuple[torch.Tensor, list[torch.Tensor]] = self.call(x)
        return result

    def step(self) -> None:
        """Forward, loss, backward, update."""
        out, _ = self.spikes(self.frames)
        loss = (out.mean(1 if self.network.batch_first else 0) - self.target).square().sum(1).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.frames.is_cuda:
            torch.cuda.synchronize()

    @torch.no_grad()
    def predict(self) -> None:
        """Forward, without what a backward pass needs."""
        self.spikes(self.frames)
        if self.frames.is_cuda:
            torch.cuda.synchronize()

    @torch.no_grad()
    def check(self) -> dict[str, Any]:
        """Rates of every layer, and that time is really stepped.

        Raises:
            AssertionError: the first layer is silent or saturated, spikes are not 0 and 1, an input has an effect
                before it comes, or none after it has gone.
        """
        axis = 1 if self.network.batch_first else 0
        layers = [s.movedim(axis, 0) for s in self.spikes(self.frames)[1]]
        rates = [float(s.mean()) for s in layers]
        assert all(bool(((s == 0) | (s == 1)).all()) for s in layers), "spikes are 0 and 1"
        assert 1e-3 < rates[0] < 0.6, f"rates of the layers: {rates}"
        cut = len(self.frames) // 2
        late, early = self.frames.clone(), self.frames.clone()
        late[cut:] = 0
        early[:cut] = 0
        without_late = self.spikes(late)[1][0].movedim(axis, 0)
        without_early = self.spikes(early)[1][0].movedim(axis, 0)
        assert torch.equal(without_late[:cut], layers[0][:cut]), "an input has an effect before it comes"
        assert not torch.equal(without_early[cut:], layers[0][cut:]), "an input is forgotten at once"
        return {"spike_rates": [round(rate, 5) for rate in rates], "causal": True, "remembers": True}
