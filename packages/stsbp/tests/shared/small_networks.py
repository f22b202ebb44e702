"""Small networks that hold every layer and every neuron there is: what exporters must get right, to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from stsbp_spec import PSP, NetworkSpec, initial_weights, open_backend
from stsbp_spec.engine.results import RunResult
from stsbp_spec.models.neurons import parse_neuron
from stsbp_spec.typing import Coding, Float32, Shape, UInt8

STEPS, SAMPLES, OUTPUTS = 9, 3, 4
IMAGE, VECTOR = (2, 8, 8), (12,)


@dataclass(frozen=True)
class Small:
    """A network as `NetworkSpec.parse` reads it."""

    net: str
    input_shape: Shape = VECTOR
    coding: Coding = "events"
    neuron: str = "lif"
    padding: str = "valid"
    tau_m: float = 3.0
    tau_s: float = 5 / 3
    tau_rise: float = 0.0
    input_tau_s: float = 0.0


NODES = """\
[[node]]
name = "a"
weights = "6"
from = "input"

[[node]]
name = "fires"
neurons = ""
from = ["a"]

[[node]]
name = "late"
weights = "6"
from = [{node = "fires", delay = 2}]

[[node]]
name = "skip"
weights = "6b"
from = "input"

[[node]]
name = "both"
neurons = "neuron=alif"
from = ["late", "skip"]

[[node]]
name = "again"
weights = "6"
weights_of = "late"
from = "both"

[[node]]
name = "third"
neurons = "neuron=plif,per=channel"
from = ["again"]

[[node]]
name = "out"
weights = "4"
from = "third"

[[node]]
name = "output"
neurons = ""
from = ["out"]
"""

TWICE = """\
[[node]]
name = "a"
weights = "9"
from = "input"

[[node]]
name = "fires"
neurons = ""
from = "a"

[[node]]
name = "again"
add = true
from = [{node = "fires", delay = 1}, {node = "fires", delay = 3}, "fires"]

[[node]]
name = "out"
weights = "4"
from = "again"

[[node]]
name = "output"
neurons = ""
from = "out"
"""

CONCATENATED = """\
[[node]]
name = "a"
weights = "3C3p1"
from = "input"

[[node]]
name = "below"
neurons = ""
from = "a"

[[node]]
name = "means"
layer = "P2"
from = "below"

[[node]]
name = "b"
weights = "2C3s2p1"
from = "input"

[[node]]
name = "beside"
neurons = "neuron=if"
from = "b"

[[node]]
name = "maps"
concat = true
from = ["beside", {node = "means", delay = 2}, {node = "beside", delay = 1}]

[[node]]
name = "c"
weights = "5C2"
from = "maps"

[[node]]
name = "above"
neurons = ""
from = "c"

[[node]]
name = "flat"
layer = "F"
from = "above"

[[node]]
name = "d"
weights = "6b"
from = "means"

[[node]]
name = "six"
neurons = ""
from = "d"

[[node]]
name = "vector"
concat = true
from = ["six", "flat"]

[[node]]
name = "out"
weights = "4"
from = "vector"

[[node]]
name = "output"
neurons = ""
from = "out"
"""

IMAGES_CONCATENATED = """\
[[node]]
name = "means"
layer = "P2"
from = "input"

[[node]]
name = "large"
layer = "U2"
from = "means"

[[node]]
name = "maps"
concat = true
from = ["large", "input"]

[[node]]
name = "a"
weights = "4C3"
from = "maps"

[[node]]
name = "fires"
neurons = ""
from = "a"

[[node]]
name = "out"
weights = "4"
from = "fires"

[[node]]
name = "output"
neurons = ""
from = "out"
"""

SMALL: dict[str, Small] = {
    "full": Small("10"),
    "bias": Small("10b-8"),
    "soft reset": Small("10", neuron="lif:reset=subtract"),
    "if": Small("10", neuron="if"),
    "alif": Small("10", neuron="alif"),
    "plif": Small("10-8{neuron=plif,per=channel}", neuron="plif"),
    "no filter": Small("10", tau_s=1.0),
    "second order": Small("10", tau_s=4.0, tau_rise=1.5),
    "dropout": Small("10d0.2"),
    "delay": Small("10-8{delay=3}"),
    "learned delays": Small("T5-10-T4-8"),
    "learned delays of maps": Small("4C3p1-T4-6C3s2-[T3|]+-F-T2-8", IMAGE),
    "branches": Small("[10|10{delay=1}]+-6"),
    "recurrent": Small("10R"),
    "one to one": Small("10{recurrent=one-to-one}"),
    "convolution": Small("4C3p1-6C3s2", IMAGE),
    "recurrent convolution": Small("4C3R3p1", IMAGE),
    "geometry": Small("4C3x1p1x0-4C3p2{dilation=2}-8C3p1{groups=4}", IMAGE),
    "average pooling": Small("4C3p1-P2-6C3p1-P3", IMAGE),
    "average pooling by 3": Small("4C3p1-P3-6", IMAGE),
    "max pooling": Small("4C3p1-M2-6", IMAGE),
    "upsampling": Small("4C3p1-P2-U2-4C3", IMAGE),
    "normalised": Small("4C3p1bn-P2-10", IMAGE),
    "residual": Small("4C3p1bn-[4C3p1bn-4C3p1bn]+-P2", IMAGE),
    "image": Small("4C3p1-P2-10", (3, 8, 8), "direct"),
    "image, bias": Small("4C3p1b-P2-10", (3, 8, 8), "direct"),
    "image, normalised": Small("4C3p1bn-P2-10", (3, 8, 8), "direct"),
    "image vector": Small("10", VECTOR, "direct"),
    "nodes": Small(NODES),
    "one source, several delays": Small(TWICE),
    "readout": Small("10-4{neuron=readout}"),
    "concatenation": Small(CONCATENATED, IMAGE),
    "image, concatenation": Small(IMAGES_CONCATENATED, (2, 8, 8), "direct"),
}


@dataclass(frozen=True)
class Case:
    """A network with weights, inputs uint8 `[T, B, ...]` or `[B, ...]`, and what the reference makes of them."""

    network: NetworkSpec
    weights: dict[str, Float32]
    inputs: UInt8
    run: RunResult


@cache
def case(name: str) -> Case:
    """The network of `SMALL`, its hidden layers firing; statistics, biases and other learned numbers drawn."""
    return case_of(SMALL[name], len(name) + 7)


def case_of(small: Small, seed: int = 0, steps: int = STEPS, samples: int = SAMPLES) -> Case:
    """Any network, likewise."""
    neuron = parse_neuron(small.neuron, {"tau_m": small.tau_m, "tau_s": small.tau_s, "tau_rise": small.tau_rise})
    network = NetworkSpec.parse(
        small.net,
        input_shape=small.input_shape,
        outputs=OUTPUTS,
        coding=small.coding,
        padding=small.padding,
        neuron=neuron,
        input_psp=PSP(small.input_tau_s, gain=neuron.psp_gain) if small.input_tau_s else None,
    )
    return drawn(network, seed, steps, samples)


def drawn(network: NetworkSpec, seed: int, steps: int = STEPS, samples: int = SAMPLES) -> Case:
    """A network with weights, biases and so on, and inputs, all drawn."""
    rng = np.random.default_rng(seed)
    weights = initial_weights(network, 5, 3.0)
    for key, values in weights.items():
        kind = key.rpartition(".")[2]
        if kind in ("bias", "shift", "mean"):
            weights[key] = rng.normal(0, 0.2, values.shape).astype(np.float32)
        elif kind in ("scale", "variance"):
            weights[key] = rng.uniform(0.5, 1.5, values.shape).astype(np.float32)
        elif kind == "decay":
            weights[key] = rng.uniform(0.3, 0.9, values.shape).astype(np.float32)
        elif key in network.graph.delays:
            weights[key] = rng.permutation(np.linspace(0, network.graph.delays[key], len(values), dtype=np.float32))
    if network.coding == "direct":
        inputs = rng.integers(0, 256, (samples, *network.input_shape), dtype=np.uint8)
    else:
        fires = rng.random((steps, samples, *network.input_shape)) < 0.4
        inputs = (fires * rng.integers(1, network.input_max + 1, fires.shape)).astype(np.uint8)
    return Case(network, weights, inputs, open_backend("numpy").run(network, weights, inputs, steps))
