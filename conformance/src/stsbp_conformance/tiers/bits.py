"""Tier 2: spikes, membrane potentials and weight grids of whole networks, bit for bit.

Tau 2 hides fused multiply-adds, because a product with 1/2 is exact. Tau is therefore also 3, 5 and 5/3. Some inputs
reach the threshold exactly, which reveals `>`. Some inputs fall silent, and their potentials decay to below the floor.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.models.neurons import LIF, PLIF, Readout
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec

from stsbp_conformance import reference
from stsbp_conformance.cases import NetworkCase, cifar10, nmnist
from stsbp_conformance.check import Check, Compared, Verdict

__all__ = [
    "CASES",
    "CHECKS",
    "CIFAR10",
    "CIFAR10_TAUS",
    "COUNTS",
    "DIRECT",
    "EXACT_HITS",
    "FLOOR",
    "GEOMETRY",
    "GEOMETRY_DIRECT",
    "HUGE",
    "LEARNED_DELAYS",
    "LEARNED_DELAYS_LENGTHS",
    "LENGTHS",
    "MODELS",
    "MODELS_DIRECT",
    "NINE_LAYERS",
    "NMNIST",
    "NMNIST_LONG",
    "NORMALISED",
    "NORMALISED_DIRECT",
    "ONE_STEP",
    "READOUT",
    "READOUTS",
    "READOUT_LENGTHS",
    "REAL",
    "RECURRENT",
    "RECURRENT_DIRECT",
    "SMALL",
]

_TAUS = {"2": 2.0, "3": 3.0, "5": 5.0, "5/3": 5 / 3}

SMALL = tuple(
    NetworkCase(
        f"small, tau {name}",
        NetworkSpec.parse(
            "6C3p1-P2-8C3s2p1-D0.25-24",
            input_shape=(2, 11, 12),
            outputs=5,
            neuron=LIF(tau_m=tau, tau_s=_TAUS["5"] if name == "3" else tau, threshold=0.5),
        ),
        steps=12,
        batch=3,
    )
    for name, tau in _TAUS.items()
)

DIRECT = NetworkCase(
    "direct, stride 2, P4",
    NetworkSpec.parse(
        "D0.1-8C5p2s2-P4-20{tau_m=1,tau_s=3}",
        input_shape=(3, 16, 17),
        outputs=4,
        coding="direct",
        neuron=LIF(tau_m=3, tau_s=5 / 3, threshold=0.4),
    ),
    steps=7,
    batch=3,
)

COUNTS = NetworkCase(
    "event counts behind an input filter",
    NetworkSpec.parse(
        "P2-30",
        input_shape=(2, 8, 8),
        outputs=6,
        input_psp=PSP(3),
        input_max=7,
        weight_bits=6,
        neuron=LIF(tau_m=5, tau_s=1, threshold=0.7),
    ),
    steps=10,
    batch=2,
)

# All neuron models in one network, a synapse with a rise, and models other than LIF after a static input.
MODELS = NetworkCase(
    "every neuron model",
    NetworkSpec.parse(
        "6C3p1{neuron=alif,tau_a=5}-P2-8C3s2p1{reset=subtract}-D0.25"
        "-24{neuron=if,tau_s=3,tau_rise=2}-16{neuron=alif,reset=subtract,psp_gain=unit}",
        input_shape=(2, 11, 12),
        outputs=5,
        neuron=LIF(tau_m=3, tau_s=5 / 3, threshold=0.5),
    ),
    steps=12,
    batch=3,
)
MODELS_DIRECT = tuple(
    NetworkCase(
        f"direct, {model}",
        NetworkSpec.parse(
            f"5C3s2{{{model}}}-12{{{model}}}",
            input_shape=(3, 9, 8),
            outputs=4,
            coding="direct",
            neuron=LIF(tau_m=3, tau_s=5 / 3, threshold=0.4),
        ),
        steps=7,
        batch=3,
    )
    for model in (
        "reset=subtract",
        "neuron=if",
        "neuron=if,reset=subtract",
        "neuron=alif",
        "neuron=alif,reset=subtract",
        "neuron=plif,reset=subtract,per=channel",
    )
)

# Learned parameters per layer and per channel, also at the ends of their domains; biases, one of them after dropout.
LEARNED = NetworkCase(
    "neurons that learn",
    NetworkSpec.parse(
        "6C3p1b{per=channel}-P2-8C3s2p1{reset=subtract}-D0.25-24b{reset=subtract,per=channel}-16b{neuron=alif}",
        input_shape=(2, 11, 12),
        outputs=5,
        neuron=PLIF(tau_m=3, tau_s=5 / 3, threshold=0.5),
    ),
    steps=12,
    batch=3,
)

# Kernels that are rectangular, dilated or grouped; sums of windows, whose division is in the gain of the filter or the
# bias; max pooling, upsampling and flattening.
GEOMETRY = NetworkCase(
    "every geometry",
    NetworkSpec.parse(
        "6C3x2p2x1s1x2{dilation=2x1,groups=2}-P3-D0.25-8C3p1b{groups=2}-M2x1-U3x2-F-12",
        input_shape=(2, 12, 11),
        outputs=5,
        neuron=LIF(tau_m=3, tau_s=5 / 3, threshold=0.5),
    ),
    steps=12,
    batch=3,
    density=0.2,
)
GEOMETRY_DIRECT = NetworkCase(
    "direct, max pooling, global pooling",
    NetworkSpec.parse(
        "M2-6C3s2-U3-8C2b-G",
        input_shape=(3, 11, 12),
        outputs=4,
        coding="direct",
        neuron=LIF(tau_m=3, tau_s=5 / 3, threshold=0.4),
    ),
    steps=7,
    batch=3,
)

ONE_STEP = NetworkCase(
    "one step, one sample",
    NetworkSpec.parse("4C3-9", input_shape=(1, 6, 6), outputs=3, neuron=LIF(3, 3, 0.3)),
    steps=1,
    batch=1,
    density=0.4,
)

# Weights of 4 bits, tau 2, no filter: potentials are multiples of small powers of two and often equal the threshold.
EXACT_HITS = NetworkCase(
    "potentials equal to the threshold",
    NetworkSpec.parse("40-40", input_shape=(30,), outputs=20, weight_bits=4, neuron=LIF(2, 1, 1.0)),
    steps=20,
    batch=4,
    gain=3.0,
    density=0.2,
)

# One step of input, then silence until every state must be below 2^-100 (171 steps at tau 3).
FLOOR = NetworkCase(
    "silence until the floor",
    NetworkSpec.parse("5C3-P2-12", input_shape=(2, 8, 8), outputs=6, neuron=LIF(3, 5 / 3, 0.5)),
    steps=230,
    batch=2,
    source="burst",
    density=0.3,
)

# Weights up to 2^99.9 in 2 and in 12 bits: the coarsest grids and the largest possible sums.
HUGE = NetworkCase(
    "weights below the ceiling",
    NetworkSpec.parse(
        "6C3p1{bits=2}-P2-20-10{bits=2}", input_shape=(2, 8, 8), outputs=5, neuron=LIF(3, 5 / 3, 2.0**95)
    ),
    steps=10,
    batch=2,
    gain=2.0**99.4,
)

NMNIST = tuple(NetworkCase(f"N-MNIST network, T=25, tau {n}", nmnist(tau), 25, 2) for n, tau in _TAUS.items())
NMNIST_LONG = NetworkCase("N-MNIST network, T=100, tau 3", nmnist(3), 100, 1)
REAL = tuple(
    NetworkCase(f"real N-MNIST input, T={steps}, tau {name}", nmnist(_TAUS[name]), steps, batch, source="nmnist")
    for steps, batch, name in ((25, 4, "5/3"), (25, 2, "3"), (100, 1, "5"))
)
_CIFAR10_A = "96C3-256C3-P2-384C3-P2-384C3-256C3-1024-1024"
CIFAR10 = NetworkCase("CIFAR-10 network 96C3, T=5, tau 5/3", cifar10(_CIFAR10_A, 5 / 3), 5, 1, gain=3.0)
CIFAR10_TAUS = tuple(
    NetworkCase(
        f"CIFAR-10 network 32C3, T=5, tau {name}", cifar10("32C3-64C3-P2-128C3-P2-128C3-256", tau), 5, 2, gain=3.0
    )
    for name, tau in _TAUS.items()
)
CIFAR10_WIDE = NetworkCase(
    "CIFAR-10 network 128C3, T=5, tau 5",
    cifar10("128C3-256C3-P2-512C3-P2-1024C3-512C3-1024-512", 5),
    5,
    1,
    gain=3.0,
)
NINE_LAYERS = NetworkCase(
    "9 layers, fan-in 9216, T=8, tau 3 and 5/3",
    NetworkSpec.parse(
        "16C3-32C3-P2-64C3-P2-1024C3-512C3-P2-256C3-128-64",
        input_shape=(2, 32, 32),
        outputs=10,
        padding="same",
        neuron=LIF(3, 5 / 3, 0.5),
    ),
    steps=8,
    batch=1,
    density=0.2,
)

# Statistics over the batch, including threshold-scaled ones after dropout. For a static input, over its one frame.
NORMALISED = NetworkCase(
    "batch normalisation",
    NetworkSpec.parse("4C3p1bn-P2-D0.25-9bn{factor=0.4}", input_shape=(2, 6, 7), outputs=4, neuron=LIF(3, 5 / 3, 0.4)),
    steps=8,
    batch=3,
    density=0.2,
)
NORMALISED_DIRECT = NetworkCase(
    "direct, batch normalisation",
    NetworkSpec.parse(
        "D0.1-5C3bn-P2-8b-7bn{momentum=0.5,eps=0.001}",
        input_shape=(3, 9, 8),
        outputs=4,
        coding="direct",
        neuron=LIF(3, 5 / 3, 0.4),
    ),
    steps=6,
    batch=3,
)

# A population that reads frames and its own filtered spikes; a delayed branch beside its input, both after one dropout;
# two projections that share a filter in evaluation but not in training, where one of them has the factor of the
# dropout.
RECURRENT = NetworkCase(
    "recurrence, branches, delays",
    NetworkSpec.parse(
        "3C3R3p1-P2-[3C1{delay=2}]+-D0.25-6R", input_shape=(2, 6, 5), outputs=4, neuron=LIF(3, 5 / 3, 0.4)
    ),
    steps=8,
    batch=3,
    gain=3.0,
    density=0.3,
)
# The same after an image; with biases, learned parameters, an adaptation, and a synapse with a rise in the recurrence.
RECURRENT_DIRECT = NetworkCase(
    "direct, recurrent neurons of other models",
    NetworkSpec.parse(
        "3C3R1s2b-7R{neuron=plif,reset=subtract}b"
        "-6{recurrent=one-to-one,recurrent_bits=5,delay=1,neuron=alif,tau_s=3,tau_rise=2}",
        input_shape=(3, 8, 7),
        outputs=4,
        coding="direct",
        neuron=LIF(3, 5 / 3, 0.4),
    ),
    steps=6,
    batch=3,
    gain=3.0,
)

# Branches of different units, one of them late and one of them twice, before dropout and pooling; a recurrence, and a
# concatenation of neurons. The strides make a layer without sparse kernels.
_CONCATENATED = """
[[node]]
name = "conv1"
weights = "3C3p1"
from = "input"
[[node]]
name = "below"
neurons = ""
from = "conv1"
[[node]]
name = "means"
layer = "P2x1"
from = "below"
[[node]]
name = "conv2"
weights = "4C3s2x1p1"
from = "below"
[[node]]
name = "coarse"
neurons = "tau_m=5"
from = "conv2"
[[node]]
name = "both"
concat = true
from = ["coarse", {node = "means", delay = 2}, "coarse"]
[[node]]
name = "drop"
layer = "D0.25"
from = "both"
[[node]]
name = "conv3"
weights = "5C3p1b"
from = "drop"
[[node]]
name = "above"
neurons = ""
from = "conv3"
[[node]]
name = "spikes"
concat = true
from = ["above", "coarse"]
[[node]]
name = "pool"
layer = "P2"
from = "spikes"
[[node]]
name = "linear4"
weights = "6"
from = "pool"
[[node]]
name = "loop"
weights = "one-to-one"
from = {node = "late", delay = 1}
[[node]]
name = "late"
neurons = ""
from = ["linear4", "loop"]
[[node]]
name = "linear5"
weights = "5"
from = "pool"
[[node]]
name = "five"
neurons = ""
from = "linear5"
[[node]]
name = "eleven"
concat = true
from = ["five", "late"]
[[node]]
name = "linear6"
weights = "4"
from = "eleven"
[[node]]
name = "output"
neurons = ""
from = "linear6"
"""
CONCATENATED = NetworkCase(
    "concatenations, a delay, a recurrence",
    NetworkSpec.parse(_CONCATENATED, input_shape=(2, 8, 5), neuron=LIF(3, 5 / 3, 0.4)),
    steps=8,
    batch=3,
    gain=3.0,
    density=0.3,
)
# An image beside its means: both are the same at all steps. Then a convolution with sparse kernels reads two
# populations.
_CONCATENATED_DIRECT = """
[[node]]
name = "means"
layer = "P2"
from = "input"
[[node]]
name = "large"
layer = "U2"
from = "means"
[[node]]
name = "both"
concat = true
from = ["large", "input"]
[[node]]
name = "conv1"
weights = "3C3p1"
from = "both"
[[node]]
name = "one"
neurons = ""
from = "conv1"
[[node]]
name = "conv2"
weights = "2C3p1bn"
from = "both"
[[node]]
name = "two"
neurons = "tau_m=5"
from = "conv2"
[[node]]
name = "five"
concat = true
from = ["one", "two"]
[[node]]
name = "conv3"
weights = "4C3"
from = "five"
[[node]]
name = "three"
neurons = ""
from = "conv3"
[[node]]
name = "linear4"
weights = "4"
from = "three"
[[node]]
name = "output"
neurons = ""
from = "linear4"
"""
CONCATENATED_DIRECT = NetworkCase(
    "direct, concatenations",
    NetworkSpec.parse(_CONCATENATED_DIRECT, input_shape=(2, 6, 8), coding="direct", neuron=LIF(3, 5 / 3, 0.4)),
    steps=6,
    batch=3,
    gain=3.0,
)

# Delays of one layer after those of another one, of nodes after a fixed delay, and beside the spikes as they were.
_LEARNED_DELAYS_OF_NODES = """
[[node]]
name = "late"
layer = "T6"
from = {node = "input", delay = 2}
[[node]]
name = "conv1"
weights = "4C3p1"
from = "late"
[[node]]
name = "below"
neurons = ""
from = "conv1"
[[node]]
name = "later"
layer = "T5"
from = "below"
[[node]]
name = "both"
concat = true
from = ["below", {node = "later", delay = 1}, "below"]
[[node]]
name = "pool"
layer = "P2"
from = "both"
[[node]]
name = "conv2"
weights = "3C3b"
from = "pool"
[[node]]
name = "linear3"
weights = "6"
from = "latest"
[[node]]
name = "latest"
layer = "T3"
from = "later"
[[node]]
name = "above"
neurons = "tau_m=5"
from = "conv2"
[[node]]
name = "six"
neurons = "neuron=plif"
from = "linear3"
[[node]]
name = "linear4"
weights = "4"
from = "six"
[[node]]
name = "linear5"
weights = "4"
from = "above"
[[node]]
name = "output"
neurons = ""
from = ["linear4", "linear5"]
"""
_LATE = LIF(3, 5 / 3, 0.4)
LEARNED_DELAYS = (
    # Delays of up to 12 steps, of which the run has 9.
    NetworkCase(
        "learned delays",
        NetworkSpec.parse("T7-20-T12-16", input_shape=(11,), outputs=4, neuron=_LATE),
        steps=9,
        batch=3,
        gain=3.0,
        density=0.3,
    ),
    NetworkCase(
        "learned delays of channels and of neurons",
        NetworkSpec.parse("4C3-T4-F-T3-8", input_shape=(2, 8, 7), outputs=4, neuron=_LATE),
        steps=8,
        batch=3,
        gain=3.0,
        density=0.3,
    ),
    NetworkCase(
        "learned delays, recurrence, branches",
        NetworkSpec.parse(
            "3C3R3p1-T3-P3-[3C1{delay=2}|T5-3C3p1{threshold=0.2}-T2-3C3p1b]+-D0.25-T4-6R{neuron=alif}",
            input_shape=(2, 9, 8),
            outputs=4,
            neuron=_LATE,
        ),
        steps=8,
        batch=3,
        gain=3.0,
        density=0.3,
        seed=3,
    ),
    NetworkCase(
        "learned delays, batch normalisation",
        NetworkSpec.parse(
            "T3-4C3p1bn-P2-D0.25-T5-9bn{factor=0.4}", input_shape=(2, 6, 7), outputs=4, neuron=LIF(3, 5 / 3, 0.4)
        ),
        steps=8,
        batch=3,
        density=0.3,
    ),
    NetworkCase(
        "learned delays node by node, after fixed delays",
        NetworkSpec.parse(_LEARNED_DELAYS_OF_NODES, input_shape=(2, 8, 7), neuron=_LATE),
        steps=10,
        batch=3,
        gain=3.0,
        density=0.3,
    ),
    NetworkCase(
        "learned delays of counts and means",
        NetworkSpec.parse(
            "T2-P2-T6-30{reset=subtract}-T1-12",
            input_shape=(2, 6, 6),
            outputs=5,
            input_psp=PSP(3),
            input_max=200,
            weight_bits=6,
            neuron=LIF(tau_m=5, tau_s=1, threshold=0.7),
        ),
        steps=9,
        batch=2,
    ),
    NetworkCase(
        "direct, learned delays",
        NetworkSpec.parse(
            "5C3s2-M2x1-T4-U2-T9-8C3", input_shape=(3, 9, 8), outputs=4, coding="direct", neuron=LIF(3, 5 / 3, 0.4)
        ),
        steps=7,
        batch=3,
        gain=3.0,
    ),
    NetworkCase(
        "learned delays, a readout",
        NetworkSpec.parse(
            "T5-7R-D0.25-T6-8-T3-4{neuron=readout,tau_s=3,tau_rise=2}", input_shape=(9,), neuron=LIF(3, 5 / 3, 0.4)
        ),
        steps=11,
        batch=4,
        gain=3.0,
        density=0.3,
    ),
)
LEARNED_DELAYS_LENGTHS = tuple(
    replace(case, id=f"{case.id}, samples with lengths", lengths=(5, 1, case.steps, 2)[: case.batch])
    for case in (*LEARNED_DELAYS[:4], LEARNED_DELAYS[-1])
)
"""Only used by the tiers of errors and updates, as `LENGTHS`."""

_QUICK = (
    *SMALL,
    GEOMETRY,
    GEOMETRY_DIRECT,
    MODELS,
    LEARNED,
    *MODELS_DIRECT,
    DIRECT,
    COUNTS,
    ONE_STEP,
    EXACT_HITS,
    FLOOR,
    HUGE,
    NORMALISED,
    RECURRENT,
    CONCATENATED,
    CONCATENATED_DIRECT,
    *LEARNED_DELAYS,
)
LENGTHS = NetworkCase(
    "samples of 9, 2 and 6 steps",
    NetworkSpec.parse("7d0.25", input_shape=(11,), outputs=4, neuron=LIF(3, 5 / 3, 0.4)),
    steps=9,
    batch=3,
    gain=3.0,
    density=0.3,
    lengths=(9, 2, 6),
)
"""Only used by the tiers of errors and updates, because states continue through padded steps."""

_PENALTY = RatePenalty(0.1, 20.0)


def _penalised(case: NetworkCase, **penalties: RatePenalty) -> NetworkCase:
    """A case with penalties on the rates of all layers, or of these only."""
    named = penalties or {block.name: _PENALTY for block in case.network.blocks if block.neuron.makes_spikes}
    return replace(case, id=f"rate penalty: {case.id}", rate_penalty=tuple(named.items()))


PENALISED_LENGTHS = _penalised(
    replace(LENGTHS, network=NetworkSpec.parse("7d0.25-8", input_shape=(11,), outputs=4, neuron=LIF(3, 5 / 3, 0.4)))
)
PENALISED = (
    # A target below every rate, one that some neurons exceed, and one that no neuron exceeds.
    _penalised(SMALL[0], conv1=RatePenalty(0.0, 5.0), conv2=RatePenalty(1 / 3, 50.0), linear3=RatePenalty(0.99, 1e6)),
    _penalised(RECURRENT),
    _penalised(CONCATENATED),
    PENALISED_LENGTHS,
)
"""Networks with rate penalties: fused layers, recurrence and delays, several readers of a layer, padded samples."""

READOUT = NetworkCase(
    "a readout after LIF neurons",
    NetworkSpec.parse("7", input_shape=(11,), outputs=4, neuron=LIF(3, 5 / 3, 0.4), output_neuron=Readout(5)),
    steps=9,
    batch=3,
    gain=3.0,
    density=0.3,
)
READOUTS = (
    READOUT,
    NetworkCase(
        "a readout after convolutions",
        NetworkSpec.parse(
            "4C3p1-P2-D0.25-6C3b-4b{neuron=readout,tau_m=3}", input_shape=(2, 9, 8), neuron=LIF(3, 5 / 3, 0.4)
        ),
        steps=10,
        batch=3,
        gain=3.0,
        density=0.2,
    ),
    NetworkCase(
        "a readout after a recurrence and branches",
        NetworkSpec.parse(
            "7R{delay=1}-[7{neuron=plif}]+-D0.25-9{neuron=alif}-3{neuron=readout,tau_s=3,tau_rise=2,delay=2}",
            input_shape=(9,),
            neuron=LIF(3, 5 / 3, 0.4),
        ),
        steps=11,
        batch=4,
        gain=3.0,
        density=0.3,
    ),
    NetworkCase(
        "direct, a readout",
        NetworkSpec.parse(
            "D0.1-5C3s2-8-5{neuron=readout,tau_m=1,psp_gain=unit}",
            input_shape=(3, 9, 8),
            coding="direct",
            neuron=LIF(3, 5 / 3, 0.4),
        ),
        steps=7,
        batch=2,
        gain=3.0,
    ),
)
"""Networks whose outputs are potentials, for the losses of real targets."""
READOUT_LENGTHS = tuple(
    replace(case, id=f"{case.id}, samples with lengths", lengths=(5, 1, case.steps, 2)[: case.batch])
    for case in READOUTS
)
"""Only used by the tiers of errors and updates, as `LENGTHS`."""

CASES = (
    *_QUICK,
    NORMALISED_DIRECT,
    RECURRENT_DIRECT,
    *NMNIST,
    NMNIST_LONG,
    *REAL,
    *CIFAR10_TAUS,
    CIFAR10,
    CIFAR10_WIDE,
    NINE_LAYERS,
)


def _check(case: NetworkCase) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        expected = reference.run(case)
        got = backend.run(case.network, reference.weights(case), reference.data(case).inputs, case.steps)
        compared = Compared()
        compared.same("layers", list(got.layers), list(expected.layers))
        for name, layer in expected.layers.items():
            compared.same(f"{name}: weight grid", got.grids[name], expected.grids[name])
            compared.same_bytes(f"{name}: membrane potentials", got.layers[name].potentials, layer.potentials)
            compared.equal(f"{name}: spikes", got.layers[name].spikes, layer.spikes)
        rates = [float(np.mean(layer.spikes)) for layer in expected.layers.values()]
        compared.note = "spikes per neuron and step: " + " ".join(f"{rate:.2f}" for rate in rates)
        return compared.verdict()

    return Check(2, case.id, run, quick=case in (*_QUICK, *READOUTS) and case not in MODELS_DIRECT[:-1])


def _stepwise(case: NetworkCase) -> Check:
    """One step at a time, with states passed in and out, must give the same bits as all steps at once."""

    def run(backend: AbstractBackend) -> Verdict:
        expected, inputs = reference.run(case), reference.data(case).inputs
        compared = Compared()
        stream = backend.stream(case.network, reference.weights(case), case.batch)
        for _ in range(2):
            step_layers = []
            for t in range(case.steps):
                stream.step(inputs if case.network.coding == "direct" else inputs[t])
                step_layers.append(stream.layers)
            for name, layer in expected.layers.items():
                potentials = np.stack([layers[name].potentials for layers in step_layers])
                compared.same_bytes(f"{name}: membrane potentials", potentials, layer.potentials)
                compared.equal(
                    f"{name}: spikes", np.stack([layers[name].spikes for layers in step_layers]), layer.spikes
                )
            stream.reset()
        return compared.verdict()

    return Check(
        2, f"{case.id}, step by step", run, quick=case in (RECURRENT, LEARNED, CONCATENATED, *LEARNED_DELAYS[2:5])
    )


_STEPWISE = (
    RECURRENT,
    RECURRENT_DIRECT,
    CONCATENATED,
    CONCATENATED_DIRECT,
    GEOMETRY,
    MODELS,
    LEARNED,
    NORMALISED,
    *READOUTS,
    *LEARNED_DELAYS,
)

CHECKS = (*(_check(case) for case in (*CASES, *READOUTS)), *map(_stepwise, _STEPWISE))
