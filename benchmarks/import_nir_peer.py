"""Networks of another library, in its own environment: written with its own exporter, and run (import_nir.py).

`python import_nir_peer.py LIBRARY FOLDER`: of each network NAME.nir, and NAME.npz with inputs and what the library
makes of them, `[samples, T, N]`. Weights lie on a grid of 1/128, so that stsbp's grid changes none. Needs numpy, torch,
nir and the library, but not stsbp.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch

INPUTS, HIDDEN, OUTPUTS, STEPS, SAMPLES = 64, 48, 10, 40, 20
Made = Iterator[tuple[str, Any, Callable[[Any], Any], Callable[[Any, Any], Any]]]
"""Name, network, its graph for a first frame, and how it runs on frames `[T, B, N]`."""


def on_grid(net: Any, gain: float) -> Any:
    """A network with larger weights, in units of 1/128."""
    for parameter in net.parameters():
        if parameter.ndim == 2:
            parameter.data = torch.round(parameter.data * gain * 128) / 128
        elif parameter.ndim == 1:
            parameter.data = torch.round(parameter.data * 128) / 128
    return net


def spikingjelly() -> Made:
    from spikingjelly.activation_based import functional, layer, neuron, nir_exchange

    def graph(net: Any) -> Any:
        functional.set_step_mode(net, "s")
        functional.reset_net(net)
        return lambda frame: nir_exchange.export_to_nir(net, frame)

    def run(net: Any, frames: Any) -> Any:
        functional.reset_net(net)
        return [net(frame) for frame in frames]

    def lif(tau: float, decay_input: bool) -> Any:
        return neuron.LIFNode(tau=tau, decay_input=decay_input, v_reset=0.0)

    def pair(first: Any, second: Any, bias: bool = False) -> Any:
        weights = (layer.Linear(INPUTS, HIDDEN, bias=bias), layer.Linear(HIDDEN, OUTPUTS, bias=bias))
        return torch.nn.Sequential(weights[0], first, weights[1], second)

    nets = {
        "LIFNode": on_grid(pair(lif(3.0, False), lif(2.5, False)), 3),
        "LIFNode, decay_input, bias": on_grid(pair(lif(4.0, True), lif(2.0, True), True), 5),
        "CUBALIFNode": on_grid(
            pair(
                neuron.CUBALIFNode(c_decay=0.6, v_decay=0.7, v_reset=0.0),
                neuron.CUBALIFNode(c_decay=0.5, v_decay=0.8, v_reset=0.0),
            ),
            2,
        ),
    }
    for name, net in nets.items():
        yield name, net, graph(net), run


def norse() -> Made:
    import norse.torch as nt

    def full(value: float, count: int) -> Any:
        return torch.full((count,), value)

    def box(count: int) -> Any:
        fields = {"v_leak": full(0.0, count), "v_reset": full(0.0, count)}
        return nt.LIFBoxCell(nt.LIFBoxParameters(full(250.0, count), v_th=full(0.6, count), **fields), dt=1e-3)

    def cell(count: int) -> Any:
        fields = {"v_leak": full(0.0, count), "v_reset": full(0.0, count), "v_th": full(0.2, count)}
        return nt.LIFCell(nt.LIFParameters(tau_syn_inv=full(200.0, count), tau_mem_inv=full(100.0, count), **fields))

    def run(net: Any, frames: Any) -> Any:
        state, outputs = None, []
        for frame in frames:
            out, state = net(frame, state)
            outputs.append(out)
        return outputs

    for name, neurons in (("LIFBoxCell", box), ("LIFCell", cell)):
        weights = (torch.nn.Linear(INPUTS, HIDDEN), torch.nn.Linear(HIDDEN, OUTPUTS))
        net = on_grid(nt.SequentialState(weights[0], neurons(HIDDEN), weights[1], neurons(OUTPUTS)), 4)
        # Its exporter writes dt / tau_mem_inv: with dt=1 these are seconds.
        yield name, net, partial(nt.to_nir, net, dt=1.0), run


def snntorch() -> Made:
    import snntorch as snn
    from snntorch import utils
    from snntorch.export_nir import export_to_nir

    hard = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}

    def full(value: float, count: int) -> Any:
        return torch.full((count,), value)

    def leaky(beta: float, count: int, **options: Any) -> Any:
        return snn.Leaky(beta=full(beta, count), threshold=full(1.0, count), **options)

    def synaptic(alpha: float, beta: float, count: int, **options: Any) -> Any:
        return snn.Synaptic(alpha=full(alpha, count), beta=full(beta, count), threshold=full(1.0, count), **options)

    def run(net: Any, frames: Any) -> Any:
        utils.reset(net)
        outputs = [net(frame) for frame in frames]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]

    class Recurrent(torch.nn.Module):
        """RLeaky takes no place in a Sequential."""

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(INPUTS, HIDDEN)
            self.recurrent = snn.RLeaky(beta=0.7, linear_features=HIDDEN, **hard)
            self.second = torch.nn.Linear(HIDDEN, OUTPUTS)
            self.last = leaky(0.6, OUTPUTS, output=True, **hard)

        def forward(self, x: Any) -> Any:
            return self.last(self.second(self.recurrent(self.first(x))))

    def pair(first: Any, second: Any) -> Any:
        return torch.nn.Sequential(
            torch.nn.Linear(INPUTS, HIDDEN, bias=False), first, torch.nn.Linear(HIDDEN, OUTPUTS, bias=False), second
        )

    usual = {"init_hidden": True}
    nets = {
        "Leaky": on_grid(pair(leaky(0.7, HIDDEN, **hard), leaky(0.6, OUTPUTS, output=True, **hard)), 3),
        "Synaptic": on_grid(
            pair(synaptic(0.6, 0.7, HIDDEN, **hard), synaptic(0.5, 0.8, OUTPUTS, output=True, **hard)), 2
        ),
        "RLeaky": on_grid(Recurrent(), 6),
        "Leaky, its own reset": on_grid(
            pair(leaky(0.7, HIDDEN, **usual), leaky(0.6, OUTPUTS, output=True, **usual)), 3
        ),
    }
    for name, net in nets.items():
        yield name, net, partial(export_to_nir, net, ignore_dims=[0]), run


def main(library: str, folder: Path) -> None:
    """Write the networks of a library."""
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    for name, net, graph, run in {"spikingjelly": spikingjelly, "norse": norse, "snntorch": snntorch}[library]():
        x = (rng.random((STEPS, SAMPLES, INPUTS)) < 0.3).astype(np.float32)
        frames = torch.from_numpy(x)
        with torch.no_grad():
            nir.write(folder / f"{library} {name}.nir", graph(frames[0][:1]))
            y = torch.stack(run(net, frames)).numpy()
        inputs, targets = (array.transpose(1, 0, 2).astype(np.uint8) for array in (x, y))
        np.savez(folder / f"{library} {name}.npz", inputs=inputs, targets=targets)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
