"""Interpretation of a NIR graph by each importer, node by node. Neurons are run as the importer does (nir_readings.py).

Neurons get the same random currents, strong enough to make them spike. The results are compared with NIR's own
equations: forward Euler in float64, with a spike if `v > v_threshold`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from stsbp_spec.errors import StsbpError
from stsbp_spec.models.neurons import LIF, PLIF
from stsbp_spec.networks.graph import Input, Network, Node
from stsbp_spec.typing import Float32, Float64

from stsbp.errors import DataError
from stsbp.interop.nir_import import import_graph
from stsbp.interop.nir_nodes import Choices, NeuronParameters, fail, numbers, one_of_them, read_neurons, read_node
from stsbp.interop.nir_reader import GraphNode, NirGraph
from stsbp.interop.nir_readings import READINGS, NeuronReading, simulate

__all__ = ["IMPORTERS", "OWN", "Check", "Interpretation", "check"]

OWN = "stsbp"
IMPORTERS = (OWN, *READINGS)
"""Importers by name, as they appear in a check."""
SAME, SCALED, OTHERS, UNKNOWN = "same", "scaled", "others", "unknown"
"""The results for neurons: they spike as in NIR's equations; the same, but potentials have other units; they spike at
other steps; they never spiked, or this module has no step for them."""
READ, REFUSED, LEFT_OUT = "read", "refused", "left out"
"""A node without neurons is read; the importer refuses the graph; the importer has no such node, and leaves it out."""

_STEPS = 120
_MOST_NEURONS = 32
_SCALED = 1e-3
"""If potentials differ by at least this many thresholds, they have other units."""


@dataclass(frozen=True)
class Interpretation:
    """The interpretation of a node by an importer.

    Attributes:
        word: one of the seven words above.
        why: what the importer does otherwise, or why it refuses the node. The names are those of the JSON output.
        much: how many steps have other spikes, as a text; empty if none.
    """

    word: str
    why: str = ""
    much: str = ""

    @property
    def faithful(self) -> bool:
        """Whether the node behaves as in NIR's equations."""
        return self.word in (SAME, SCALED, READ)


@dataclass(frozen=True)
class Check:
    """The interpretation of a graph by all importers.

    Attributes:
        dt: length of a step in seconds.
        nodes: for each node by name, from the input on, a verdict for each importer.
        refusal: why stsbp does not read the graph although it reads every node; empty: it reads the graph.
    """

    dt: float
    nodes: Mapping[str, Mapping[str, Interpretation]]
    refusal: str

    def faithful(self, importer: str) -> bool:
        """Whether an importer reads every node as in NIR's equations."""
        return all(verdicts[importer].faithful for verdicts in self.nodes.values()) and not (
            importer == OWN and self.refusal
        )


def check(graph: NirGraph, choices: Choices) -> Check:
    """Interpret a graph as each importer does. Steps have the length `choices.dt`, if the importer lets users choose
    it."""
    # Numbers in foreign files may overflow. The results are compared nevertheless.
    with np.errstate(all="ignore"):
        nodes = {name: dict(_verdicts(graph.nodes[name], choices)) for name in _from_the_input(graph)}
    refusal = ""
    if all(verdicts[OWN].faithful for verdicts in nodes.values()):
        try:
            imported = import_graph(graph, None, choices)
            Network((Node("input", Input(imported.input_shape, "events", imported.input_psp)), *imported.nodes))
        except StsbpError as error:
            refusal = str(error)
    return Check(choices.dt, nodes, refusal)


def _from_the_input(graph: NirGraph) -> Iterator[str]:
    """Names of nodes, each after a node that leads to it from an input; then all other names."""
    readers: dict[str, list[str]] = {}
    for source, reader in graph.edges:
        readers.setdefault(source, []).append(reader)
    ordered = {name: None for name, node in graph.nodes.items() if node.kind == "Input"}
    queue = deque(ordered)
    while queue:
        for name in readers.get(queue.popleft(), ()):
            if name not in ordered:
                ordered[name] = None
                queue.append(name)
    yield from (ordered | dict.fromkeys(graph.nodes))


def _verdicts(node: GraphNode, choices: Choices) -> Iterator[tuple[str, Interpretation]]:
    """The verdict of each importer on a node."""
    if node.kind not in _NUMBERS:
        yield OWN, _own_verdict(node, choices)
        for name, reading in READINGS.items():
            if node.kind in reading.not_simulated:
                yield name, Interpretation(UNKNOWN, reading.not_simulated[node.kind])
            else:
                yield (
                    name,
                    Interpretation(READ)
                    if node.kind in reading.layers
                    else Interpretation(LEFT_OUT, reading.otherwise),
                )
        return
    try:
        driven = _Driven(node, choices.dt)
    except DataError as error:
        yield from ((name, Interpretation(REFUSED, _reason(error))) for name in IMPORTERS)
        return
    yield OWN, _own_verdict(node, choices, driven)
    for name, reading in READINGS.items():
        if node.kind in reading.neurons:
            yield name, _simulated(reading.neurons[node.kind], driven)
        else:
            yield name, Interpretation(LEFT_OUT, reading.otherwise)


def _own_verdict(node: GraphNode, choices: Choices, driven: _Driven | None = None) -> Interpretation:
    try:
        read_node(node, choices)
    except DataError as error:
        return Interpretation(REFUSED, _reason(error))
    if driven is None:
        return Interpretation(READ)
    return driven.compare(*_own_run(read_neurons(driven.sampled(node), choices), driven.x), "")


def _reason(error: DataError) -> str:
    """The part of an error message after the name of the node."""
    return str(error).partition("): ")[2] or str(error)


def _simulated(reading: NeuronReading, driven: _Driven) -> Interpretation:
    """The verdict of an importer on neurons: first its requirements, then their spikes."""
    unmet = [ask.text for ask in reading.asks if not ask.holds(driven.numbers, driven.dt)]
    if unmet:
        return Interpretation(REFUSED, f"it asks for {'; '.join(unmet)}")
    u, spikes = simulate(reading, driven.few, driven.dt, driven.x)
    description = f"{reading.update}; a spike where {reading.spike}; then {reading.reset}"
    return driven.compare(
        u, spikes, description if not reading.ignores else f"{description}; ignores {', '.join(reading.ignores)}"
    )


_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "CubaLIF": ("tau_mem", "tau_syn", "r", "w_in", "v_leak", "v_threshold", "v_reset"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "IF": ("r", "v_threshold", "v_reset"),
}
"""Kinds of neurons that are run, and their parameters."""
_DEFAULTS = {"v_reset": 0.0, "w_in": 1.0}


class _Driven:
    """Neurons with their input currents, and the results of NIR's equations for both.

    Attributes:
        dt: length of a step in seconds.
        numbers: all parameters. If one is the same for all neurons, it may be a single number.
        few: parameters of at most 32 of the neurons.
        x: currents, float32 `[T, N]`.
        u, spikes: potentials before resets, and spikes, float64 `[T, N]`.
    """

    def __init__(self, node: GraphNode, dt: float) -> None:
        self.dt = dt
        parameters = {key: self.parameter(node, key) for key in _NUMBERS[node.kind]}
        if all(not any(values.strides) or (values == values.flat[0]).all() for values in parameters.values()):
            self.numbers = {key: values.reshape(-1)[:1].copy() for key, values in parameters.items()}
            self.picked = np.zeros(_MOST_NEURONS // 4, np.int64)
        else:
            if not one_of_them([values.shape for values in parameters.values()]):
                raise fail(node, "its parameters have different shapes")
            self.numbers = parameters
            size = max(values.size for values in parameters.values())
            self.picked = np.unique(np.linspace(0, size - 1, _MOST_NEURONS).astype(np.int64))
        # The arrays may be huge, so they are not copied as a whole.
        full = np.broadcast_arrays(*self.numbers.values())
        self.few = {key: values.flat[self.picked] for key, values in zip(parameters, full, strict=True)}
        self.x = self.currents()
        self.u, self.spikes = self.run()

    @staticmethod
    def parameter(node: GraphNode, key: str) -> Float64:
        """A parameter, or its default if it is left out."""
        return numbers(node, key) if key in node.values or key not in _DEFAULTS else np.array(_DEFAULTS[key])

    def sampled(self, node: GraphNode) -> GraphNode:
        """The neurons that are run, as a separate node."""
        return replace(node, values=dict(self.few))

    def factors(self) -> tuple[Float64, Float64, Float64, Float64]:
        """Factors of NIR's equations per step: decay and gain of the synapse, decay and gain of the potential."""
        p, dt = self.few, self.dt
        one = np.ones(len(self.picked))
        tau = p.get("tau_mem", p.get("tau"))
        synapse = (1 - dt / p["tau_syn"], p["w_in"] * dt / p["tau_syn"]) if "tau_syn" in p else (0 * one, one)
        membrane = (one, p["r"] * dt) if tau is None else (1 - dt / tau, p["r"] * dt / tau)
        return (*synapse, *membrane)

    def currents(self) -> Float32:
        """Random currents, with which potentials reach the threshold in about ten steps."""
        k, c, km, g = self.factors()
        i = v = np.zeros(len(self.picked))
        for _ in range(10):
            i = k * i + c
            v = km * v + g * i
        p = self.few
        leak = p.get("v_leak", 0.0)
        level = 1.2 * (p["v_threshold"] - np.minimum(leak, 0)) / v
        level = np.where(np.isfinite(level), level, 0)
        random_numbers = np.random.default_rng(0).random((2, _STEPS, len(self.picked)))
        return np.asarray(level * 4 * random_numbers[0] * (random_numbers[1] < 0.5), np.float32)

    def run(self) -> tuple[Float64, Float64]:
        """Compute NIR's equations with forward Euler."""
        p = self.few
        k, c, km, g = self.factors()
        leak = p["v_leak"] * (1 - km) if "v_leak" in p else 0.0
        i = v = np.zeros(len(self.picked))
        potentials, spikes = [], []
        for x in self.x.astype(np.float64):
            i = k * i + c * x
            u = km * v + g * i + leak
            o = u > p["v_threshold"]
            v = np.where(o, p["v_reset"], u)
            potentials.append(u)
            spikes.append(o)
        return np.stack(potentials), np.stack(spikes).astype(np.float64)

    def compare(self, u: Float32, spikes: Float32, description: str) -> Interpretation:
        """The verdict on an importer's potentials and spikes."""
        differ, fired = int((spikes != self.spikes).sum()), int(self.spikes.sum())
        if not fired:
            return Interpretation(UNKNOWN, "they do not spike here")
        if differ:
            return Interpretation(
                OTHERS, description, f"{differ} of {self.spikes.size:,} steps differ, {fired} have a spike"
            )
        deviation = float(np.abs((u - self.u) / self.few["v_threshold"]).max())
        return Interpretation(SAME, description) if deviation <= _SCALED else Interpretation(SCALED, description)


def _own_run(p: NeuronParameters, x: Float32) -> tuple[Float32, Float32]:
    """Potentials and spikes of neurons with reset to zero, as stsbp reads them."""
    model: Any = p.model
    leak = 1 - 1 / model.tau_m if isinstance(model, (LIF, PLIF)) else 1.0
    km = np.asarray(leak if p.decay is None else p.decay, np.float32)
    k, c = np.float32(1 - 1 / p.tau_s), np.asarray(p.w_in * p.gain / p.tau_s, np.float32)
    i = m = np.zeros(x.shape[1:], np.float32)
    potentials, spikes = [], []
    for current in x:
        i = k * i + c * current
        u = m + i
        o = u >= np.float32(model.threshold)
        m = np.where(o, np.float32(0), km * u)
        potentials.append(u)
        spikes.append(o)
    return np.stack(potentials), np.stack(spikes).astype(np.float32)
