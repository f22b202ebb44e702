"""From NIR graphs to networks: what they compute, beside an interpreter of NIR's equations, and what is refused."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nir_files import chain, cuba, full, graph, inputs, lif, readers
from stsbp.errors import DataError
from stsbp.interop.nir_check import check
from stsbp.interop.nir_import import Imported, import_graph, likely_step
from stsbp.interop.nir_nodes import KINDS as NODES
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_reader import NirGraph
from stsbp_spec import NetworkSpec, open_backend
from stsbp_spec.engine.results import RunResult
from stsbp_spec.errors import NetworkError
from stsbp_spec.networks.graph import Neurons
from stsbp_spec.networks.notation import written_nodes
from stsbp_spec.networks.ops import PSP, AvgPool2d, Conv2d, OneToOne
from stsbp_spec.typing import Float64, Shape, UInt8

STEP, STEPS, SAMPLES = 1e-3, 12, 3
CHOICES = Choices(STEP, tau_s=3.0)


def ends(inputs: Shape, outputs: int) -> dict[str, Any]:
    return {"input": {"type": "Input", "shape": inputs}, "output": {"type": "Output", "shape": [outputs]}}


def simple(neurons: dict[str, Any], inputs: int = 5, outputs: int = 4, **between: Any) -> NirGraph:
    """Weights, what is between, neurons; and weights and LIF neurons after them."""
    nodes = {**ends((inputs,), 3), "a": {"type": "Linear", "weight": full(outputs, inputs)}, **between, "n": neurons}
    nodes |= {"b": {"type": "Linear", "weight": full(3, outputs, 1)}, "last": lif(3)}
    return graph(nodes, chain("input", "a", *between, "n", "b", "last", "output"))


def network_of(imported: Imported, shape: Shape) -> NetworkSpec:
    return NetworkSpec(shape, (), "events", imported.input_psp, nodes=imported.nodes)


def frames(shape: Shape) -> UInt8:
    return (np.random.default_rng(5).random((STEPS, SAMPLES, *shape)) < 0.5).astype(np.uint8)


def run(nir_graph: NirGraph, shape: Shape, choices: Choices = CHOICES) -> tuple[Imported, RunResult]:
    """The network of a graph, run on the reference backend."""
    imported = import_graph(nir_graph, shape, choices)
    network = network_of(imported, shape)
    read = NetworkSpec.parse(written_nodes(network.graph.nodes), input_shape=shape, input_psp=imported.input_psp)
    assert read.graph == network.graph
    assert {name: x.shape for name, x in imported.weights.items()} == {
        n: p.shape for n, p in network.parameters.items()
    }
    assert all(x.dtype == np.float32 for x in imported.weights.values())
    return imported, open_backend("numpy").run(network, dict(imported.weights), frames(shape), STEPS)


def convolved(x: Any, p: Mapping[str, Any]) -> Any:
    """A convolution by its definition, `[B, C, H, W]`."""
    w, groups = np.asarray(p["weight"], np.float64), int(p["groups"])
    (sy, sx), (py, px), (dy, dx) = (np.broadcast_to(p[key], 2) for key in ("stride", "padding", "dilation"))
    x = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    outputs, channels, rows, columns = w.shape
    height = (x.shape[2] - dy * (rows - 1) - 1) // sy + 1
    width = (x.shape[3] - dx * (columns - 1) - 1) // sx + 1
    output = np.zeros((len(x), outputs, height, width))
    for c in range(outputs):
        first = c // (outputs // groups) * channels
        for i in range(rows):
            for j in range(columns):
                part = x[:, first : first + channels, i * dy :: sy, j * dx :: sx][:, :, :height, :width]
                output[:, c] += (w[c, :, i, j, None, None] * part).sum(1)
    return output + np.asarray(p["bias"]).reshape(1, -1, 1, 1)


def pooled(x: Any, p: Mapping[str, Any]) -> Any:
    """Sums of windows."""
    (rows, columns), (b, c, h, w) = p["kernel_size"], x.shape
    cut = x[:, :, : h // rows * rows, : w // columns * columns]
    return cut.reshape(b, c, h // rows, rows, w // columns, columns).sum((3, 5))


def _stacked(steps: list[dict[str, Float64]]) -> dict[str, Float64]:
    return {name: np.stack([outputs[name] for outputs in steps]) for name in steps[0]}


class Interpreter:
    """NIR's equations by forward Euler, in float64; a spike where `v >= v_threshold`.

    An edge back, from neurons, carries their spikes of the step before.
    """

    neurons = ("LIF", "CubaLIF", "IF", "Threshold", "LI", "CubaLI", "I")

    def __init__(self, nir_graph: NirGraph, reset: str = "zero") -> None:
        self.graph, self.reset = nir_graph, reset
        self.state: dict[str, Any] = {}
        self.previous: dict[str, Float64] = {}
        self.late: dict[str, list[Float64]] = {}
        self.order: list[str] = []
        waiting = list(nir_graph.nodes)
        populations = {name for name, node in nir_graph.nodes.items() if node.kind in self.neurons}
        while waiting:
            ready = [n for n in waiting if all(source in self.order for source in inputs(nir_graph, n))]
            missing = {n: {source for source in inputs(nir_graph, n) if source not in self.order} for n in waiting}
            # Weights of a recurrence, which read the spikes of the step before.
            recurrent_nodes = [n for n in waiting if missing[n] <= populations & {*readers(nir_graph, n)}]
            self.order.append((ready or recurrent_nodes)[0])
            waiting.remove(self.order[-1])

    def run(self, x: UInt8) -> tuple[dict[str, Float64], dict[str, Float64]]:
        """What each node gives, and potentials of neurons, `[T, B, ...]`."""
        outputs: list[dict[str, Float64]] = []
        potentials: list[dict[str, Float64]] = []
        for frame in x.astype(np.float64):
            now: dict[str, Float64] = {}
            u: dict[str, Float64] = {}
            for name in self.order:
                read = [
                    now[source] if source in now else self.previous.get(source, 0.0)
                    for source in inputs(self.graph, name)
                ]
                now[name] = self.step(name, sum(read[1:], read[0]) if read else frame, u)
            self.previous = now
            outputs.append(now)
            potentials.append(u)
        return _stacked(outputs), _stacked(potentials)

    def step(self, name: str, x: Any, u: dict[str, Float64]) -> Any:
        node = self.graph.nodes[name]
        kind, p = node.kind, dict[str, Any](node.values)
        if kind in ("Input", "Output", "Identity"):
            return x
        if kind in ("Linear", "Affine"):
            weight = np.asarray(p["weight"], np.float64)
            return (x if np.ndim(x) else np.zeros((SAMPLES, weight.shape[1]))) @ weight.T + p.get("bias", 0.0)
        if kind == "Conv1d":
            line = {key: (value, p[key]) for key, value in (("stride", 1), ("padding", 0), ("dilation", 1))}
            return convolved(x, {**p, **line, "weight": p["weight"][:, :, None]})
        if kind == "Conv2d":
            return convolved(x, p)
        if kind in ("AvgPool2d", "SumPool2d"):
            return pooled(x, p) / (p["kernel_size"].prod() if kind == "AvgPool2d" else 1)
        if kind == "Flatten":
            return x.reshape(len(x), -1)
        if kind == "Scale":
            return x * p["scale"]
        if kind == "Delay":
            history = self.late.setdefault(name, [])
            history.append(x)
            return history[-1 - round(p["delay"].flat[0] / STEP)] if len(history) > p["delay"].flat[0] / STEP else 0 * x
        return self.neuron(name, kind, p, x, u)

    def neuron(self, name: str, kind: str, p: dict[str, Any], x: Any, u: dict[str, Float64]) -> Any:
        i, v = self.state.get(name, (0.0, 0.0))
        i = i + STEP / p["tau_syn"] * (p["w_in"] * x - i) if "tau_syn" in p else x
        tau = p.get("tau_mem", p.get("tau"))
        if kind == "Threshold":
            u[name] = i
        else:
            u[name] = v + (STEP * p["r"] * i if tau is None else STEP / tau * (p["r"] * i - v))
        level = p.get("v_threshold", p.get("threshold", np.inf))
        spikes = u[name] >= level
        self.state[name] = i, np.where(spikes, 0 if self.reset == "zero" else u[name] - level, u[name])
        return spikes.astype(np.float64)


IMAGE = (2, 6, 6)


def conv(outputs: int, inputs: int, kernel: Any = (3, 3), **other: Any) -> dict[str, Any]:
    weight = full(outputs, inputs * int(np.prod(kernel)), outputs).reshape(outputs, inputs, *kernel)
    plain = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "bias": np.zeros(outputs)}
    return {"type": "Conv2d", "weight": weight, **plain, **other}


def pool(kind: str, *size: int) -> dict[str, Any]:
    return {"type": kind, "kernel_size": np.array(size), "stride": np.array(size), "padding": np.array([0, 0])}


def picture(first: dict[str, Any], neurons: dict[str, Any], size: int, **later: Any) -> NirGraph:
    """A convolution, its neurons, what comes after them, and three LIF neurons."""
    nodes = {**ends(IMAGE, 3), "conv": first, "n": neurons, **later, "flat": {"type": "Flatten"}}
    nodes |= {"b": {"type": "Linear", "weight": full(3, size, 1)}, "last": lif(3)}
    return graph(nodes, chain("input", "conv", "n", *later, "flat", "b", "last", "output"))


def recurrent(neurons: dict[str, Any], **parameters: Any) -> NirGraph:
    """Neurons that read themselves, the edge back before the others."""
    nodes = {**ends((5,), 3), "a": {"type": "Affine", "weight": full(4, 5), "bias": full(4, 1)[:, 0]}, "n": neurons}
    nodes |= {"r": {"type": "Linear", "weight": full(4, 4, 7), **parameters}}
    last = cuba(3) if neurons["type"] == "CubaLIF" else lif(3)
    nodes |= {"b": {"type": "Linear", "weight": full(3, 4, 1)}, "last": last}
    return graph(nodes, [("r", "n"), ("n", "r"), *chain("input", "a", "n", "b", "last", "output")])


def branches() -> NirGraph:
    """Two populations whose spikes are added, one of them late, and weights of both."""
    nodes = {**ends((5,), 3), "a": {"type": "Linear", "weight": full(4, 5)}, "n": lif(4), "m": lif(4, 4.0)}
    nodes |= {"c": {"type": "Linear", "weight": full(4, 4, 2)}, "b": {"type": "Linear", "weight": full(3, 4, 1)}}
    nodes |= {"d": {"type": "Linear", "weight": full(3, 4, 4)}, "last": lif(3)}
    edges = [*chain("input", "a", "n", "c", "m", "b", "last", "output"), ("n", "b"), ("n", "d"), ("d", "last")]
    return graph(nodes, edges)


def with_input() -> NirGraph:
    """Weights that read the input and the spikes of neurons that read it."""
    nodes = {**ends((4,), 3), "a": {"type": "Linear", "weight": full(4, 4)}, "n": lif(4)}
    nodes |= {"b": {"type": "Linear", "weight": full(3, 4, 1)}, "last": lif(3)}
    return graph(nodes, [*chain("input", "a", "n", "b", "last", "output"), ("input", "b")])


def varied(shape: Shape, low: int = 1) -> Any:
    """Powers of two that differ from neuron to neuron."""
    return 2.0 ** (np.arange(int(np.prod(shape))).reshape(shape) % 3 + low - 1)


SAME: dict[str, tuple[NirGraph, Shape]] = {
    "LIF, r = tau/dt": (simple(lif(4)), (5,)),
    "LIF, r = 1": (simple(lif(4, r=np.ones(4))), (5,)),
    "LIF, numbers that are none of an array": (simple(lif(())), (5,)),
    "LIF, v_reset left out": (simple({k: v for k, v in lif(4).items() if k != "v_reset"}), (5,)),
    "LIF, other threshold": (simple(lif(4, v_threshold=np.full(4, 0.75))), (5,)),
    "LIF, thresholds": (simple(lif(4, v_threshold=varied((4,)) / 2)), (5,)),
    "LIF, r": (simple(lif(4, r=varied((4,), 0))), (5,)),
    "LIF, taus": (simple(lif(4, varied((4,)))), (5,)),
    "CubaLIF, unit gain": (simple(cuba(4)), (5,)),
    "CubaLIF, w_in = 1": (simple(cuba(4, w_in=np.ones(4))), (5,)),
    "CubaLIF, w_in": (simple(cuba(4, w_in=varied((4,)))), (5,)),
    "CubaLIF, no leak": (simple(cuba(4, 2.0**30)), (5,)),
    "IF": (simple({"type": "IF", "r": np.full(4, 500.0), "v_threshold": np.ones(4)}), (5,)),
    "Threshold": (simple({"type": "Threshold", "threshold": np.full(4, 0.5)}), (5,)),
    "scale before neurons": (simple(lif(4), scale={"type": "Scale", "scale": varied((4,))}), (5,)),
    "diagonal after weights": (simple(lif(4), more={"type": "Linear", "weight": np.diag(varied((4,)))}), (5,)),
    "delay after weights": (simple(lif(4), late={"type": "Delay", "delay": np.full(4, 3e-3)}), (5,)),
    "bias, r = 1": (
        simple(lif(4, r=np.ones(4)), more={"type": "Affine", "weight": np.eye(4), "bias": full(4, 1, 9)[:, 0]}),
        (5,),
    ),
    "the input and spikes": (with_input(), (4,)),
    "recurrence": (recurrent(lif(4)), (5,)),
    "recurrence, CubaLIF": (recurrent(cuba(4)), (5,)),
    "recurrence with a bias": (recurrent(lif(4), type="Affine", bias=full(4, 1, 8)[:, 0]), (5,)),
    "recurrence, one to one": (recurrent(lif(4), weight=np.diag(full(4, 1, 7)[:, 0])), (5,)),
    "branches": (branches(), (5,)),
    "convolution": (picture(conv(4, 2), lif((4, 6, 6)), 144), IMAGE),
    "convolution, bias": (picture(conv(4, 2, bias=full(4, 1)[:, 0]), lif(()), 144), IMAGE),
    "an input_shape": (picture(conv(4, 2, input_shape=np.array([6, 6])), lif(()), 144), IMAGE),
    "geometry": (picture(conv(4, 2, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), lif(()), 72), IMAGE),
    "groups": (picture(conv(4, 1, groups=2), lif(()), 144), IMAGE),
    "scale of channels, groups": (
        picture(
            conv(4, 2),
            lif(()),
            144,
            scale={"type": "Scale", "scale": varied((4, 1, 1))},
            c=conv(4, 2, groups=2),
            m=lif(()),
        ),
        IMAGE,
    ),
    "thresholds of channels": (
        picture(conv(4, 2), lif((4, 6, 6), v_threshold=np.broadcast_to(varied((4, 1, 1)), (4, 6, 6))), 144),
        IMAGE,
    ),
    "taus of channels": (picture(conv(4, 2), lif((4, 1, 1), varied((4, 1, 1))), 144), IMAGE),
    "means": (picture(conv(4, 2), lif(()), 36, pool=pool("AvgPool2d", 2, 2)), IMAGE),
    "sums": (picture(conv(4, 2), lif(()), 36, pool=pool("SumPool2d", 2, 2)), IMAGE),
    "sums of 3x2": (picture(conv(4, 2), lif(()), 24, pool=pool("SumPool2d", 3, 2)), IMAGE),
    "scale after neurons": (
        picture(conv(4, 2), lif(()), 144, scale={"type": "Scale", "scale": varied((4, 6, 6))}),
        IMAGE,
    ),
    "scale of channels, pool": (
        picture(
            conv(4, 2), lif(()), 36, scale={"type": "Scale", "scale": varied((4, 1, 1))}, pool=pool("SumPool2d", 2, 2)
        ),
        IMAGE,
    ),
    "delay after neurons": (
        picture(conv(4, 2), lif(()), 144, late={"type": "Delay", "delay": np.full((4, 6, 6), 2e-3)}),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_spikes_and_potentials_are_those_of_the_equations(name: str) -> None:
    nir_graph, shape = SAME[name]
    imported, result = run(nir_graph, shape)
    spikes, potentials = Interpreter(nir_graph).run(frames(shape))
    for node in imported.nodes:
        if isinstance(node.op, Neurons):
            layer, expected = result.layers[node.inputs[0].source], spikes[node.name]
            assert 0.02 < layer.spikes.mean() < 0.98, node.name
            assert np.array_equal(layer.spikes.reshape(expected.shape), expected), node.name
            # Potentials are in units of the threshold where thresholds differ.
            level = np.asarray(nir_graph.nodes[node.name].values.get("v_threshold", 1.0))
            unit = 1.0 if (level == level.flat[0]).all() else level
            layer_potentials = layer.potentials.reshape(expected.shape)
            np.testing.assert_allclose(layer_potentials, potentials[node.name] / unit, rtol=1e-5, atol=1e-6)


def test_neurons_are_the_models_that_they_are() -> None:
    of = {"IF": SAME["IF"], "PLIF": SAME["LIF, taus"], "LIF": SAME["Threshold"]}
    for name, (nir_graph, shape) in of.items():
        (neurons,) = (node for node in import_graph(nir_graph, shape, CHOICES).nodes if node.name == "n")
        assert isinstance(neurons.op, Neurons)
        assert type(neurons.op.model).__name__ == name
    without = import_graph(SAME["CubaLIF, no leak"][0], (5,), CHOICES)
    assert [type(node.op.model).__name__ for node in without.nodes if isinstance(node.op, Neurons)] == ["IF", "LIF"]


def test_learned_decays_are_those_of_the_file() -> None:
    imported = import_graph(SAME["LIF, taus"][0], (5,), CHOICES)
    assert imported.weights["a.decay"].tolist() == [0, 0.5, 0.75, 0]
    imported = import_graph(SAME["taus of channels"][0], IMAGE, CHOICES)
    assert imported.weights["conv.decay"].tolist() == [0, 0.5, 0.75, 0]


def test_the_gain_of_a_synapse_is_what_leaves_the_weights_as_they_are() -> None:
    for name, gain in (("CubaLIF, unit gain", "unit"), ("CubaLIF, w_in = 1", "normalised")):
        nir_graph, shape = SAME[name]
        imported = import_graph(nir_graph, shape, CHOICES)
        assert imported.input_psp == PSP(4.0, gain=gain)
        assert np.array_equal(imported.weights["a"], nir_graph.nodes["a"].values["weight"])
        assert not imported.notes


def test_a_normalised_synapse_has_decay_and_gain_of_the_file() -> None:
    """Both are rounded for themselves; 7/2 steps have the decay 5/7 and the gain 2/7."""
    decay, gain = np.float32(5 / 7), np.float32(2 / 7)
    neurons = cuba(4, tau_syn=1 / (1 - float(decay)))
    nir_graph = simple(
        neurons, gain={"type": "Affine", "weight": np.eye(4, dtype=np.float32) * gain, "bias": np.zeros(4)}
    )
    imported = import_graph(nir_graph, (5,), CHOICES)
    assert imported.input_psp is not None
    assert imported.input_psp.filter() == PSP(7 / 2).filter()
    assert imported.input_psp.filter() != PSP(1 / (1 - float(decay))).filter()
    assert np.array_equal(imported.weights["a"], full(4, 5))


def test_each_synapse_has_a_gain_of_its_own() -> None:
    nodes = {**ends((5,), 3), "a": {"type": "Linear", "weight": full(4, 5)}, "n": cuba(4)}
    nodes |= {"b": {"type": "Linear", "weight": full(3, 4, 1)}, "last": cuba(3, tau_syn=3.0, w_in=np.ones(3))}
    imported = import_graph(graph(nodes, chain("input", "a", "n", "b", "last", "output")), (5,), CHOICES)
    models = [node.op.model for node in imported.nodes if isinstance(node.op, Neurons)]
    assert imported.input_psp == PSP(4.0, gain="unit")
    assert [model.psp for model in models] == [PSP(3.0), PSP(CHOICES.tau_s)]


def test_spikes_that_are_added_go_through_one_synapse() -> None:
    nir_graph = branches()
    nodes = {**nir_graph.nodes, **graph({"last": cuba(3), "m": cuba(4)}, []).nodes}
    imported, result = run(NirGraph(nodes, nir_graph.edges), (5,))
    models = {node.name: node.op.model for node in imported.nodes if isinstance(node.op, Neurons)}
    assert models["n"].psp == models["m"].psp == PSP(4.0, gain="unit")
    spikes, _ = Interpreter(NirGraph(nodes, nir_graph.edges)).run(frames((5,)))
    assert np.array_equal(result.layers["b"].spikes, spikes["last"])


def test_factors_of_weights_are_noted() -> None:
    imported = import_graph(SAME["LIF, r = 1"][0], (5,), CHOICES)
    assert imported.notes == (("a", "its weights are multiplied by 0.5, because of nodes between it and n"),)
    assert np.array_equal(imported.weights["a"], full(4, 5) / 2)
    imported = import_graph(SAME["scale of channels, pool"][0], IMAGE, CHOICES)
    assert ("b", "its weights are multiplied by 4 to 16, because of nodes before it") in imported.notes
    imported = import_graph(SAME["convolution"][0], IMAGE, CHOICES)
    assert imported.notes == (("conv", "its bias is zero everywhere and was left out"),)


def test_a_factor_of_one_but_for_rounding_multiplies_nothing() -> None:
    bias = np.random.default_rng(0).normal(size=4).astype(np.float32)
    nir_graph = simple(lif(4, r=np.full(4, 2 * (1 + 5e-7))), more={"type": "Affine", "weight": np.eye(4), "bias": bias})
    imported = import_graph(nir_graph, (5,), CHOICES)
    assert imported.weights["a"].tobytes() == full(4, 5).tobytes()
    assert imported.weights["a.bias"].tobytes() == bias.tobytes()
    assert not imported.notes


def test_sums_of_windows_are_means_and_larger_weights() -> None:
    imported = import_graph(SAME["sums of 3x2"][0], IMAGE, CHOICES)
    assert np.array_equal(imported.weights["b"], full(3, 24, 1) * 6)
    assert next(node for node in imported.nodes if node.name == "pool").op == AvgPool2d((3, 2))


def test_the_threshold_may_be_the_next_number_above() -> None:
    nir_graph, shape = SAME["LIF, r = tau/dt"]
    imported = import_graph(nir_graph, shape, replace(CHOICES, threshold_above=True))
    (_, last) = (node.op.model for node in imported.nodes if isinstance(node.op, Neurons))
    assert np.float32(last.threshold) == np.nextafter(np.float32(1), np.float32(2))
    quarters = graph({"a": {"type": "Linear", "weight": np.ones((4, 5)) / 4}}, []).nodes
    ties = NirGraph({**nir_graph.nodes, **quarters}, nir_graph.edges)
    spikes = [
        run(ties, shape, choices)[1].layers["a"].spikes for choices in (CHOICES, replace(CHOICES, threshold_above=True))
    ]
    assert spikes[1].sum() < spikes[0].sum()


def test_a_spike_may_take_the_threshold_off() -> None:
    nir_graph, shape = SAME["LIF, r = tau/dt"]
    _, result = run(nir_graph, shape, replace(CHOICES, reset="subtract"))
    spikes, _ = Interpreter(nir_graph, "subtract").run(frames(shape))
    assert np.array_equal(result.layers["a"].spikes, spikes["n"])
    assert not np.array_equal(spikes["n"], Interpreter(nir_graph).run(frames(shape))[0]["n"])


READOUTS: dict[str, dict[str, Any]] = {
    "LI": {key: value for key, value in lif(3).items() if key in NODES["LI"]} | {"type": "LI"},
    "CubaLI": {key: value for key, value in cuba(3).items() if key in NODES["CubaLI"]} | {"type": "CubaLI"},
    "I": {"type": "I", "r": np.full(3, 1000.0)},
}


@pytest.mark.parametrize("kind", [*READOUTS, "none"])
def test_integrators_at_the_end_are_a_readout(kind: str) -> None:
    nodes = {**ends((5,), 3), "a": {"type": "Linear", "weight": full(4, 5)}, "n": cuba(4)}
    nodes |= {"b": {"type": "Affine", "weight": full(3, 4, 1), "bias": full(3, 1, 2)[:, 0]}}
    nodes["n"] = cuba(4) if kind == "CubaLI" else lif(4)
    last = {"last": READOUTS[kind]} if kind != "none" else {}
    nir_graph = graph({**nodes, **last}, chain("input", "a", "n", "b", *last, "output"))
    imported, result = run(nir_graph, (5,))
    assert network_of(imported, (5,)).has_readout
    spikes, potentials = Interpreter(nir_graph).run(frames((5,)))
    expected = spikes["b"] if kind == "none" else potentials["last"]
    np.testing.assert_allclose(result.layers["b"].potentials, expected, rtol=1e-5, atol=1e-6)


def test_one_to_one_recurrence_stays_one() -> None:
    imported = import_graph(SAME["recurrence, one to one"][0], (5,), CHOICES)
    (node,) = (node for node in imported.nodes if node.name == "r")
    assert isinstance(node.op, OneToOne)
    assert np.array_equal(imported.weights["r"], full(4, 1, 7))


def test_a_recurrence_comes_after_the_other_weights() -> None:
    imported = import_graph(SAME["recurrence"][0], (5,), CHOICES)
    (node,) = (node for node in imported.nodes if node.name == "n")
    assert [(edge.source, edge.delay) for edge in node.inputs] == [("a", 0), ("r", 0)]
    assert [edge.delay for node in imported.nodes if node.name == "r" for edge in node.inputs] == [1]


def test_weights_that_two_populations_read_are_shared_or_apart() -> None:
    nodes = {**ends((5,), 3), "a": {"type": "Linear", "weight": full(4, 5)}, "n": lif(4), "m": lif(4, 4.0)}
    nodes |= {"b": {"type": "Linear", "weight": full(3, 4, 1)}, "c": {"type": "Linear", "weight": full(3, 4, 2)}}
    nodes["last"] = lif(3)
    edges = [*chain("input", "a", "n", "b", "last", "output"), ("a", "m"), *chain("m", "c", "last")]
    imported, result = run(graph(nodes, edges), (5,))
    spikes, _ = Interpreter(graph(nodes, edges)).run(frames((5,)))
    assert np.array_equal(result.layers["a_2"].spikes, spikes["m"])
    assert [node.shares for node in imported.nodes if node.name == "a_2"] == ["a"]
    nodes["m"] = lif(4, 4.0, r=np.full(4, 2.0))
    imported, result = run(graph(nodes, edges), (5,))
    spikes, _ = Interpreter(graph(nodes, edges)).run(frames((5,)))
    assert np.array_equal(result.layers["a_2"].spikes, spikes["m"])
    assert [node.shares for node in imported.nodes if node.name == "a_2"] == [None]
    assert np.array_equal(imported.weights["a_2"], full(4, 5) / 2)


def test_shapes_that_take_no_room_in_a_file_take_none_here() -> None:
    scale = {"type": "Scale", "scale": np.array([1.0, 2]).reshape(2, 1, 1)}
    nodes = {**ends((2, 8192, 8192), 3), "scale": scale, "flat": {"type": "Flatten"}}
    nodes |= {"b": {"type": "Linear", "weight": full(3, 4)}, "last": lif(3)}
    nir_graph = graph(nodes, chain("input", "scale", "flat", "b", "last", "output"))
    with pytest.raises(DataError, match="it flattens 134,217,728 numbers, which are scaled by different factors"):
        import_graph(nir_graph, (2, 8192, 8192), CHOICES)
    with pytest.raises(DataError, match="which is 134,217,728 numbers, more than 67,108,864"):
        import_graph(nir_graph, None, CHOICES)


@pytest.mark.parametrize("number", [10**9, 2**62])
@pytest.mark.parametrize("key", ["stride", "padding", "dilation", "groups"])
def test_numbers_beyond_the_limit_are_refused_by_the_limit(key: str, number: int) -> None:
    limit = rf"node conv .*: {key} is .*, but must be a whole number from [01] to 999,999,999"
    with pytest.raises(DataError, match=limit):
        run(picture(conv(4, 2, **{key: np.full(1, number)}), lif(()), 144), IMAGE)
    nir_graph = simple(lif(4))
    nir_graph.nodes["input"].values["shape"][:] = number  # type: ignore[index]
    with pytest.raises(DataError, match="but its numbers must be from 1 to 999,999,999"):
        import_graph(nir_graph, None, CHOICES)


def test_names_that_become_one_are_numbered_in_a_moment() -> None:
    """There may be as many as a file has nodes."""
    nodes = {
        **ends((5,), 5),
        **{"é" * 80 + chr(0x4E00 + number): {"type": "Scale", "scale": 1.0} for number in range(20_000)},
    }
    names = [name for name in nodes if name not in ("input", "output")]
    began = time.process_time()
    with pytest.raises(DataError, match="it must read the unchanged spikes of one population"):
        import_graph(graph(nodes, chain("input", *names, "output")), (5,), CHOICES)
    assert time.process_time() - began < 10


def test_names_are_such_that_a_network_takes_them() -> None:
    nir_graph, shape = SAME["LIF, r = tau/dt"]
    names = {"a": "a.bias", "n": "né\x1b[31m", "b": "b" * 200, "last": "né\x1b[32m", "input": "x", "output": "input"}
    nodes = {names[name]: replace(node, name=names[name]) for name, node in nir_graph.nodes.items()}
    imported = import_graph(NirGraph(nodes, tuple((names[a], names[b]) for a, b in nir_graph.edges)), shape, CHOICES)
    assert [node.name for node in imported.nodes] == ["a_bias", "n___31m", "b" * 80, "n___32m"]
    assert network_of(imported, shape).parameters.keys() == imported.weights.keys()


def test_weights_before_a_convolution_in_one_dimension() -> None:
    options = {"stride": 1, "padding": "same", "dilation": 1, "groups": 1, "bias": np.zeros(3)}
    line = {"type": "Conv1d", "weight": full(3, 6).reshape(3, 2, 3), "input_shape": 7, **options}
    nodes = {**ends((2, 7), 3), "conv": line, "n": lif((3, 7)), "flat": {"type": "Flatten"}}
    nodes |= {"b": {"type": "Linear", "weight": full(3, 21, 1)}, "last": lif(3)}
    nir_graph = graph(nodes, chain("input", "conv", "n", "flat", "b", "last", "output"))
    imported, result = run(nir_graph, (2, 1, 7))
    assert imported.weights["conv"].shape == (3, 2, 1, 3)
    as_numbers = graph({**nodes, "conv": {**line, "padding": 1}, "n": lif((3, 1, 7))}, nir_graph.edges)
    spikes, _ = Interpreter(as_numbers).run(frames((2, 1, 7)))
    assert np.array_equal(result.layers["b"].spikes, spikes["last"])
    assert import_graph(nir_graph, None, CHOICES).input_shape == (2, 1, 7)
    numbers = {**line, "padding": np.array([1]), "stride": np.array(2), "input_shape": np.array([7])}
    (node,) = (
        node
        for node in import_graph(
            graph(
                {**nodes, "conv": numbers, "n": lif(()), "b": {"type": "Linear", "weight": full(3, 12)}},
                nir_graph.edges,
            ),
            (2, 1, 7),
            CHOICES,
        ).nodes
        if node.name == "conv"
    )
    assert node.op == Conv2d(3, (1, 3), (1, 2), (0, 1))


@pytest.mark.parametrize(
    ("declared", "shape", "read"),
    [
        ((5,), (5,), (5,)),
        ((1, 5), (5,), (5,)),
        ((5,), (1, 1, 5), (1, 1, 5)),
        ((6,), (1, 2, 3), (6,)),
        ((7, 6), (1, 2, 3), (6,)),
        ((7, 3, 5), (5,), (5,)),
        ((1, 1, 2, 3), (1, 2, 3), (1, 2, 3)),
        ((4, 1, 2, 3), (1, 2, 3), (1, 2, 3)),
        ((2, 3), None, (1, 2, 3)),
        ((4, 2, 3), None, (4, 2, 3)),
        ((1, 4, 2, 3), None, (4, 2, 3)),
        ((1, 1, 6), None, (1, 1, 6)),
    ],
)
def test_shape_of_inputs(declared: Shape, shape: Shape | None, read: Shape) -> None:
    units = int(np.prod(read))
    nodes = {**ends(declared, 3), "flat": {"type": "Flatten"}, "b": {"type": "Linear", "weight": full(3, units)}}
    nir_graph = graph({**nodes, "last": lif(3)}, chain("input", "flat", "b", "last", "output"))
    imported = import_graph(nir_graph, shape, CHOICES)
    assert imported.input_shape == (read if shape is None else shape)
    batch = [text for name, text in imported.notes if name == "input"]
    assert len(batch) == (len(declared) > 1 and declared[0] in (4, 7) and shape is not None)


def test_a_time_constant_that_is_a_step_but_for_rounding_is_one() -> None:
    imported = import_graph(simple(lif(4, 1 - 5e-7)), (5,), CHOICES)
    assert [node.op.model.written()["tau_m"] for node in imported.nodes if isinstance(node.op, Neurons)] == [
        "1.0",
        "2.0",
    ]


def test_step_that_a_graph_points_to() -> None:
    assert likely_step(SAME["LIF, r = tau/dt"][0]) == pytest.approx(1e-3)
    assert likely_step(SAME["LIF, r = 1"][0]) == pytest.approx(1e-3)
    assert likely_step(simple({"type": "IF", "r": np.ones(4), "v_threshold": np.ones(4)})) == pytest.approx(1e-3)
    assert likely_step(simple(lif(4, 3.0, r=np.full(4, 6.0)))) is None


def changed(name: str, **values: Any) -> Callable[[], NirGraph]:
    """The simple graph with other values of a node; None takes one away."""

    def make() -> NirGraph:
        nir_graph = simple(cuba(4))
        node = nir_graph.nodes[name]
        new = {**node.values, **{key: np.asarray(x) if not isinstance(x, str) else x for key, x in values.items()}}
        remaining = {key: x for key, x in new.items() if values.get(key, 0) is not None}
        return NirGraph({**nir_graph.nodes, name: replace(node, values=remaining)}, nir_graph.edges)

    return make


def with_kind(kind: str, name: str = "n", **values: Any) -> Callable[[], NirGraph]:
    def make() -> NirGraph:
        nir_graph = simple(cuba(4))
        node = graph({name: {"type": kind, **values}}, []).nodes[name]
        return NirGraph({**nir_graph.nodes, name: node}, nir_graph.edges)

    return make


def connected(*edges: tuple[str, str], **more: Any) -> Callable[[], NirGraph]:
    def make() -> NirGraph:
        nir_graph = simple(lif(4))
        return NirGraph({**nir_graph.nodes, **graph(more, []).nodes}, (*nir_graph.edges, *edges))

    return make


def between(first: str, second: str, *names: str, **nodes: Any) -> Callable[[], NirGraph]:
    """The simple graph with nodes between two others."""

    def make() -> NirGraph:
        nir_graph = simple(lif(4))
        edges = [*(edge for edge in nir_graph.edges if edge != (first, second)), *chain(first, *nodes, second)]
        return NirGraph({**nir_graph.nodes, **graph(nodes, []).nodes}, tuple(edges))

    return make


REFUSED: dict[str, tuple[Callable[[], NirGraph], str]] = {
    "v_leak": (changed("n", v_leak=[0, 0, 1.5, 0]), r"node n \(CubaLIF\): v_leak is 1.5, but must be 0"),
    "v_reset": (changed("n", v_reset=np.full(4, -0.5)), r"node n \(CubaLIF\): v_reset is -0.5, but must be 0"),
    "v_threshold": (changed("n", v_threshold=[1, 1, 0, 1]), "a threshold is 0, but must be above 0"),
    "tau_syn": (changed("n", tau_syn=varied((4,)) * 1e-3), "tau_syn differs from neuron to neuron, 1 to 4"),
    "tau_mem below a step": (changed("n", tau_mem=np.full(4, 5e-4)), "tau_mem is 0.0005 s, which is less than a step"),
    "tau_mem negative": (changed("n", tau_mem=np.full(4, -1.0)), "tau_mem is -1 s, which is less than a step"),
    "tau_mem endless": (changed("n", tau_mem=np.full(4, np.inf)), "tau_mem is not finite"),
    "r is no number": (changed("n", r="x"), "r is 'x', but must be numbers"),
    "r is nan": (changed("n", r=np.full(4, np.nan)), "r is not finite"),
    "no r": (changed("n", r=np.zeros((0,))), "r is empty, but must be numbers"),
    "r of others": (changed("n", r=varied((3,))), "its parameters have different shapes"),
    "more": (changed("n", beta=1.0), "it has the parameter 'beta', which no CubaLIF has"),
    "other kind": (
        with_kind("ALIF", tau=1.0),
        r"node n \(ALIF\): this kind of node is unknown; known: Input, .*CubaLIF",
    ),
    "missing": (with_kind("LIF", tau=np.full(4, 1.0)), r"node n \(LIF\): it has no v_leak"),
    "LI within": (with_kind("LI", tau=np.ones(4), r=np.ones(4), v_leak=np.zeros(4)), "a readout has no spikes"),
    "weights of another shape": (
        changed("a", weight=full(4, 7)),
        r"weight has the shape \[4, 7\], but an input .* \[4, 5\]",
    ),
    "weights of three axes": (
        changed("a", weight=np.ones((2, 4, 5))),
        r"weight has the shape \[2, 4, 5\], but must have 2",
    ),
    "weights too large": (changed("a", weight=np.full((4, 5), 1e35)), "node a .*: weight is too large, 2.100 or more"),
    "weights beyond float32": (changed("a", weight=np.full((4, 5), 1e200)), "node a .*: weight is too large"),
    "bias of another shape": (
        with_kind("Affine", "a", weight=full(4, 5), bias=np.ones(3)),
        r"bias has the shape \[3\]",
    ),
    "bias too large": (with_kind("Affine", "a", weight=full(4, 5), bias=np.full(4, 1e31)), "bias is too large"),
    "delay of half a step": (
        between("a", "n", late={"type": "Delay", "delay": np.full(4, 1.5e-3)}),
        r"node late \(Delay\): delay is 1.5 steps of 0.001 s",
    ),
    "delay without end": (between("a", "n", late={"type": "Delay", "delay": np.full(4, 1e308)}), "delay is inf steps"),
    "long delay": (between("a", "n", late={"type": "Delay", "delay": np.full(4, 65.537)}), "at most 65,536"),
    "r that is too large": (changed("n", r=np.full(4, 1e300), w_in=np.full(4, 1e300)), "node a .* is too large"),
    "tau_mem that is too large": (
        changed("n", tau_mem=np.full(4, 1e308)),
        "tau_mem is inf s, which is more than",
    ),
    "thresholds that are too small": (changed("n", v_threshold=[1e-300, 1, 1, 1]), "node a .* is too large"),
    "delays of sums": (
        between("a", "n", late={"type": "Delay", "delay": np.arange(4) * 1e-3}),
        r"node late \(Delay\): it delays weighted sums by numbers of their own",
    ),
    "delay below zero": (between("a", "n", late={"type": "Delay", "delay": np.full(4, -1e-3)}), "delay is -1 steps"),
    "delay of a bias": (
        between(
            "a",
            "n",
            more={"type": "Affine", "weight": np.eye(4), "bias": np.ones(4)},
            late={"type": "Delay", "delay": np.full(4, 1e-3)},
        ),
        r"node late \(Delay\): its input has a bias",
    ),
    "scales": (
        between("a", "n", s={"type": "Scale", "scale": varied((7,))}),
        r"scale has the shape \[7\], but the neurons have",
    ),
    **{
        f"{key} of shape {shape}, uniform": (
            changed("n", **{key: np.broadcast_to(value, shape)}),
            re.escape(f"node n (CubaLIF): {key} has the shape {list(shape)}, but the neurons have the shape [4]"),
        )
        for key, shape, value in (
            ("v_threshold", (7,), 1.0),
            ("v_threshold", (3, 5), 1.0),
            ("tau_mem", (1000,), 5e-3),
            ("tau_syn", (4, 4), 5e-3),
            ("v_leak", (2,), 0.0),
            ("v_reset", (8,), 0.0),
        )
    },
    "uniform scales": (
        between("a", "n", s={"type": "Scale", "scale": np.full(7, 2.0)}),
        r"node s \(Scale\): scale has the shape \[7\], but the neurons have the shape \[4\]",
    ),
    "uniform delays": (
        between("a", "n", late={"type": "Delay", "delay": np.full(7, 1e-3)}),
        r"node late \(Delay\): delay has the shape \[7\], but the neurons have the shape \[4\]",
    ),
    "more outputs than sums": (
        between("b", "last", more={"type": "Linear", "weight": np.eye(4, 3)}),
        r"node more \(Linear\): it reads weighted sums",
    ),
    "weights after weights": (
        between("a", "n", more={"type": "Linear", "weight": full(4, 4)}),
        "it reads weighted sums",
    ),
    "neurons after neurons": (
        between("b", "last", m=lif(3), o=lif(3)),
        r"node o \(LIF\): it reads spikes with no weights",
    ),
    "the output reads more": (connected(("n", "output")), r"node output \(Output\): its inputs have different shapes"),
    "the output is read": (connected(("output", "a")), r"node output \(Output\): something reads it"),
    "the input reads": (connected(("n", "input")), r"node input \(Input\): it reads something"),
    "two inputs": (
        connected(("x", "a"), x={"type": "Input", "shape": [5]}),
        "one Input to be imported, but this one has 2",
    ),
    "nothing reads it": (
        connected(("input", "x"), x={"type": "Linear", "weight": full(2, 5)}),
        r"node x \(Linear\): nothing reads it",
    ),
    "from nowhere": (
        connected(("x", "n"), x={"type": "Linear", "weight": full(4, 5)}),
        r"node x .* no path leads to it",
    ),
    "no neurons in a circle": (
        connected(*chain("n", "x", "y", "x"), ("y", "b"), **{key: {"type": "Scale", "scale": 1.0} for key in "xy"}),
        r"node [xy] \(Scale\): it reads itself with no neurons in between",
    ),
    "populations in a circle": (
        connected(("last", "x"), ("x", "n"), x={"type": "Linear", "weight": full(4, 3)}),
        "node .*: it reads itself through",
    ),
    "a recurrence that is late": (
        connected(
            ("n", "d"),
            ("d", "x"),
            ("x", "n"),
            d={"type": "Delay", "delay": 1e-3},
            x={"type": "Linear", "weight": full(4, 4)},
        ),
        r"node n \(LIF\): it reads itself through x with an additional delay",
    ),
    "shapes that are added": (connected(("input", "b")), r"node b .*: its inputs have different shapes"),
    "sums and spikes": (connected(("n", "n")), r"node n \(LIF\): it reads both spikes and weighted sums"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unreadable_graphs_are_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises((DataError, NetworkError), match=message):
        network_of(import_graph(make(), (5,), CHOICES), (5,))


def test_synapses_that_differ_are_refused() -> None:
    nir_graph = recurrent(cuba(4))
    nodes = {
        **nir_graph.nodes,
        "last": replace(
            nir_graph.nodes["last"], values={**nir_graph.nodes["last"].values, "tau_syn": np.full(3, 2e-3)}
        ),
    }
    message = r"node last \(CubaLIF\): it reads the spikes of n through a synapse of 2 steps, but n through one of 4"
    with pytest.raises(DataError, match=message):
        import_graph(NirGraph(nodes, nir_graph.edges), (5,), CHOICES)


PICTURES: dict[str, tuple[NirGraph, str]] = {
    "pooling that overlaps": (
        picture(conv(4, 2), lif(()), 36, pool={**pool("AvgPool2d", 2, 2), "stride": np.array([1, 1])}),
        r"node pool \(AvgPool2d\): stride is not kernel_size",
    ),
    "pooling with padding": (
        picture(conv(4, 2), lif(()), 36, pool={**pool("SumPool2d", 2, 2), "padding": np.array([1, 0])}),
        r"node pool \(SumPool2d\): padding is not 0",
    ),
    "windows that are too large": (
        picture(conv(4, 2), lif(()), 36, pool=pool("AvgPool2d", 9, 9)),
        "window, 9x9, is larger",
    ),
    "no windows": (
        picture(conv(4, 2), lif(()), 36, pool=pool("AvgPool2d", 0, 2)),
        "kernel_size is 0, but must be a whole",
    ),
    "pooling of sums": (
        graph(
            {
                **ends(IMAGE, 3),
                "conv": conv(4, 2),
                "pool": pool("AvgPool2d", 2, 2),
                "n": lif(()),
                "flat": {"type": "Flatten"},
            }
            | {"b": {"type": "Linear", "weight": full(3, 36)}, "last": lif(3)},
            chain("input", "conv", "pool", "n", "flat", "b", "last", "output"),
        ),
        r"node pool \(AvgPool2d\): it reads weighted sums; put neurons before it",
    ),
    "padding of another word": (picture(conv(4, 2, padding="full"), lif(()), 144), "padding is 'full', which is read"),
    "padding of even kernels": (
        picture(conv(4, 2, (2, 2), padding="same"), lif(()), 144),
        "padding is 'same', .* odd kernels",
    ),
    "a stride of a half": (picture(conv(4, 2, stride=0.5), lif(()), 144), "stride is 0.5, but must be a whole number"),
    "three strides": (picture(conv(4, 2, stride=np.ones(3)), lif(()), 144), "stride has 3 numbers"),
    "groups that do not divide": (picture(conv(4, 2, groups=3), lif(()), 144), "node conv .*groups"),
    "channels of another number": (
        picture(conv(4, 3), lif(()), 144),
        r"weight has the shape \[4, 3, 3, 3\], but an input",
    ),
    "thresholds of places": (
        picture(conv(4, 2), lif((4, 6, 6), v_threshold=varied((4, 6, 6))), 144),
        r"node conv .*: what scales it differs within a channel",
    ),
    "taus of places": (picture(conv(4, 2), lif((4, 6, 6), varied((4, 6, 6))), 144), "differs within a channel"),
    "another input_shape": (
        picture(conv(4, 2, input_shape=np.array([6, 7])), lif(()), 144),
        r"node conv \(Conv2d\): input_shape is \[6, 7\], but its input has the shape \[2, 6, 6\]",
    ),
    "several groups": (
        picture(conv(4, 2, groups=np.ones(5)), lif(()), 144),
        "groups is 5 numbers, but must be a whole",
    ),
    "input_shape of many": (
        picture(conv(4, 2, input_shape=np.full(9, 6)), lif(()), 144),
        r"input_shape is \[6, 6, 6\]",
    ),
    "no flattening": (
        graph(
            {**ends(IMAGE, 3), "b": {"type": "Linear", "weight": full(3, 72)}, "last": lif(3)},
            chain("input", "b", "last", "output"),
        ),
        r"node b \(Linear\): its input has the shape \[2, 6, 6\]; put Flatten before it",
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_unreadable_image_networks_are_refused_by_name(name: str) -> None:
    nir_graph, message = PICTURES[name]
    with pytest.raises((DataError, NetworkError), match=message):
        network_of(import_graph(nir_graph, IMAGE, CHOICES), IMAGE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("start_dim", 2**62, "start_dim is 4.61169e.18, but must be the number of an axis, at most 64"),
        ("end_dim", -(2**63), "end_dim is -9.22337e.18, but must be the number of an axis, at most 64"),
        ("start_dim", 0.5, "start_dim is 0.5, but must be the number of an axis, at most 64"),
        ("input_type", [2**62], "input_type is 4.61169e.18, but must be a whole number from 1 to 999,999,999"),
        ("input_type", [2, 0], "input_type is 0, but must be a whole number from 1"),
    ],
)
def test_a_flatten_whose_axes_and_sizes_no_array_has_is_refused(key: str, value: Any, message: str) -> None:
    flat = {"type": "Flatten", "start_dim": np.asarray(1), "end_dim": np.asarray(-1), "input_type": np.array([2, 3])}
    nodes = {**ends((2, 3), 3), "b": {"type": "Linear", "weight": full(3, 6)}, "last": lif(3)}
    edges = chain("input", "flat", "b", "last", "output")
    import_graph(graph({**nodes, "flat": flat}, edges), None, CHOICES)
    with pytest.raises(DataError, match=rf"node flat \(Flatten\): {message}"):
        import_graph(graph({**nodes, "flat": {**flat, key: np.asarray(value)}}, edges), None, CHOICES)


@pytest.mark.parametrize("declared", [[7], [[5]], [0], [-1, 5], [2.5], [2, 3, 4, 6]])
def test_shapes_of_inputs_that_do_not_fit_are_refused(declared: Any) -> None:
    nir_graph = changed("input", shape=np.asarray(declared))()
    for shape in ((5,), None):
        with pytest.raises(DataError, match=r"node (input|a) \("):
            import_graph(nir_graph, shape, CHOICES)


def test_sums_do_not_double_without_end() -> None:
    nodes: dict[str, Any] = {"input": {"type": "Input", "shape": np.array([4])}}
    edges, last = list[tuple[str, str]](), "input"
    for k in range(40):
        nodes |= {f"{letter}{k}": {"type": "Scale", "scale": np.array(1.0)} for letter in "abc"}
        edges += [(last, f"a{k}"), (last, f"b{k}"), (f"a{k}", f"c{k}"), (f"b{k}", f"c{k}")]
        last = f"c{k}"
    nodes |= {"w": {"type": "Linear", "weight": full(3, 4)}, "n": lif(3), "output": {"type": "Output", "shape": [3]}}
    with pytest.raises(DataError, match=r"node c8 .*: it reads a sum of 512 terms, more than 256"):
        import_graph(graph(nodes, [*edges, *chain(last, "w", "n", "output")]), (4,), Choices(1e-3))


def test_products_of_factors_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp.interop.nir_import._MOST_FACTORS", 1000)
    rows, columns = np.linspace(1, 2, 20)[:, None], np.linspace(1, 2, 25)[None, :]
    nodes: dict[str, Any] = {
        "input": {"type": "Input", "shape": np.array([1, 20, 25])},
        **{letter: {"type": "Scale", "scale": np.array(1.0)} for letter in "abc"},
        "rows": {"type": "Scale", "scale": rows[None]},
        "columns": {"type": "Scale", "scale": columns[None]},
        "conv": conv(3, 1),
        "n": lif(()),
        "output": {"type": "Output", "shape": np.array([3, 20, 25])},
    }
    edges = [("input", "a"), ("input", "b"), ("a", "c"), ("b", "c")]
    edges += chain("c", "rows", "columns", "conv", "n", "output")
    with pytest.raises(DataError, match=r"node columns .*scaled so often that more than 1,000 factors are needed"):
        import_graph(graph(nodes, edges), (1, 20, 25), Choices(1e-3))


def test_parameters_of_two_shapes_make_no_larger_one() -> None:
    outer = lif(3) | {"tau": np.linspace(3e-3, 4e-3, 5000)[:, None], "r": np.linspace(3, 4, 5000)[None, :]}
    nodes = {
        "input": {"type": "Input", "shape": np.array([4])},
        "w": {"type": "Linear", "weight": full(3, 4)},
        "n": outer,
        "output": {"type": "Output", "shape": np.array([3])},
    }
    nir_graph = graph(nodes, chain("input", "w", "n", "output"))
    with pytest.raises(DataError, match="its parameters have different shapes"):
        import_graph(nir_graph, (4,), Choices(1e-3))
    assert check(nir_graph, Choices(1e-3)).nodes["n"]["stsbp"].word == "refused"


def test_a_network_has_so_many_weights_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp.interop.nir_import._MOST_WEIGHTS", 20)
    nodes = {
        "input": {"type": "Input", "shape": np.array([4])},
        "w": {"type": "Linear", "weight": full(3, 4)},
        "n": lif(3),
        "v": {"type": "Linear", "weight": full(3, 3)},
        "m": lif(3),
        "output": {"type": "Output", "shape": np.array([3])},
    }
    with pytest.raises(DataError, match=r"node v .*too many weights, 21 with those of this node, more than 20"):
        import_graph(graph(nodes, chain(*nodes)), (4,), Choices(1e-3))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (4,), (1, 4)])
def test_uniform_numbers_may_have_the_shapes_that_other_libraries_write(shape: Shape) -> None:
    numbers = {"tau_mem": 5e-3, "tau_syn": 2e-3, "v_threshold": 1.0, "v_leak": 0.0, "v_reset": 0.0}
    expected, imported = (
        import_graph(changed("n", **{key: np.full(size, x) for key, x in numbers.items()})(), (5,), CHOICES)
        for size in ((4,), shape)
    )
    assert imported.nodes == expected.nodes
    assert {name: x.tobytes() for name, x in imported.weights.items()} == {
        name: x.tobytes() for name, x in expected.weights.items()
    }


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (4, 1, 1), (1, 4, 1, 1), (4, 6, 6), (144,)])
def test_neurons_of_a_picture_may_have_one_number_for_each_channel(shape: Shape) -> None:
    expected, other = picture(conv(4, 2), lif(()), 144), picture(conv(4, 2), lif(shape), 144)
    assert import_graph(other, IMAGE, CHOICES).nodes == import_graph(expected, IMAGE, CHOICES).nodes
