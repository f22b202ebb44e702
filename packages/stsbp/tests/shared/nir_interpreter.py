"""A graph of NIR as spikingjelly 2.0.0 reads it, in numpy: what the tests of files of NIR compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from stsbp.interop.nir_readings import READINGS, Float32, NeuronReading, Numbers

_NEURONS = READINGS["spikingjelly"].neurons
_PARAMETERS = ("tau_mem", "tau_syn", "tau", "r", "w_in", "v_leak", "v_threshold", "v_reset")


def numbers_of(node: Any) -> Numbers:
    """The parameters of a neuron of NIR."""
    return {name: np.asarray(getattr(node, name), np.float64) for name in _PARAMETERS if hasattr(node, name)}


def run(graph: Any, inputs: Float32, dt: float) -> dict[str, tuple[Float32, Float32]]:
    """Potentials before each reset and spikes of every population, `[T, B, ...]`, for inputs of this shape.

    Edges into a node are summed. What a node reads of one that comes later in a step is of the step before.
    """
    order = _order(graph)
    outputs: dict[str, Float32] = {}
    past: dict[str, list[Float32]] = {name: [] for name in order}
    states: dict[str, tuple[Float32, Float32]] = {}
    populations: dict[str, tuple[list[Float32], list[Float32]]] = {}
    for frame in inputs:
        previous, outputs = outputs, {}
        for name in order:
            node, kind = graph.nodes[name], type(graph.nodes[name]).__name__
            read = [outputs.get(source, previous.get(source)) for source, end in graph.edges if end == name]
            x = sum((value for value in read if value is not None), start=frame if kind == "Input" else np.float32(0))
            x = np.asarray(x, np.float32)
            if kind in _NEURONS or kind == "CubaLI":
                outputs[name], u = _stepped(node, kind, dt, states, name, x)
                potentials, spikes = populations.setdefault(name, ([], []))
                potentials.append(u)
                spikes.append(outputs[name])
            elif kind == "Delay":
                past[name].append(x)
                steps = np.broadcast_to(np.rint(node.delay / dt).astype(int), x.shape)
                times = len(past[name]) - 1 - steps
                earlier = np.take_along_axis(np.stack(past[name]), np.maximum(times, 0)[None], 0)[0]
                outputs[name] = np.where(times >= 0, earlier, np.zeros_like(x))
            else:
                outputs[name] = _passed(node, kind, x)
    return {name: (np.stack(u), np.stack(o)) for name, (u, o) in populations.items()}


def _order(graph: Any) -> list[str]:
    """Nodes, each after what it reads, but for what depends on itself."""
    reads = {name: {source for source, end in graph.edges if end == name} for name in graph.nodes}
    dependencies: dict[str, set[str]] = {}
    for name in graph.nodes:
        sources, new = set[str](), set(reads[name])
        while new:
            sources |= new
            new = set().union(*(reads[source] for source in new)) - sources
        dependencies[name] = sources
    waiting, done = list(graph.nodes), list[str]()
    while waiting:
        missing = {name: reads[name] - {*done} for name in waiting}
        ready = [name for name in waiting if not missing[name]]
        # A loop begins with a node that reads one outside it and on which its missing inputs depend.
        loops = (
            name for name in waiting if reads[name] & {*done} and all(name in dependencies[x] for x in missing[name])
        )
        done.append(ready[0] if ready else next(loops))
        waiting.remove(done[-1])
    return done


def _stepped(
    node: Any, kind: str, dt: float, states: dict[str, tuple[Float32, Float32]], name: str, x: Float32
) -> tuple[Float32, Float32]:
    """What a population gives at a step, and its potentials."""
    i, v = states.get(name, (np.zeros_like(x), np.zeros_like(x)))
    numbers = dict(numbers_of(node))
    if kind == "CubaLI":
        numbers |= {"v_threshold": np.full(node.r.shape, np.inf), "v_reset": np.zeros(node.r.shape)}
    reading: NeuronReading = _NEURONS["CubaLIF" if kind == "CubaLI" else kind]
    stepped = reading.step(numbers, dt, i, v, x)
    states[name] = stepped.i, stepped.v
    return stepped.u if kind == "CubaLI" else stepped.spikes, stepped.u


def _passed(node: Any, kind: str, x: Float32) -> Float32:
    if kind in ("Input", "Output"):
        return x
    if kind == "Affine":
        return np.asarray(x.astype(np.float64) @ node.weight.T.astype(np.float64) + node.bias, np.float32)
    if kind == "Flatten":
        assert (node.start_dim, node.end_dim) == (0, -1)
        return x.reshape(len(x), -1)
    if kind in ("AvgPool2d", "SumPool2d"):
        rows, columns = (int(size) for size in node.kernel_size)
        assert np.array_equal(node.stride, node.kernel_size)
        assert not node.padding.any()
        h, w = x.shape[-2] // rows, x.shape[-1] // columns
        windows = x[..., : h * rows, : w * columns].reshape(*x.shape[:-2], h, rows, w, columns)
        total = windows.sum((-3, -1), dtype=np.float64)
        return np.asarray(total / (rows * columns) if kind == "AvgPool2d" else total, np.float32)
    assert kind == "Conv2d", kind
    assert node.groups == 1
    return _convolved(node, x)


def _convolved(node: Any, x: Float32) -> Float32:
    (down, across), (top, left), (dy, dx) = node.stride, node.padding, node.dilation
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, top), (left, left)))
    _, _, rows, columns = node.weight.shape
    h = (padded.shape[2] - dy * (rows - 1) - 1) // down + 1
    w = (padded.shape[3] - dx * (columns - 1) - 1) // across + 1
    total = np.zeros((len(x), len(node.weight), h, w))
    for i in range(rows):
        for j in range(columns):
            window = padded[
                :, :, i * dy : i * dy + (h - 1) * down + 1 : down, j * dx : j * dx + (w - 1) * across + 1 : across
            ]
            total += np.einsum("bcyx,oc->boyx", window, node.weight[:, :, i, j].astype(np.float64))
    return np.asarray(total + node.bias[:, None, None], np.float32)
