"""Networks with their inputs, weights and targets, all from the spec's generator, so they are the same on every
machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.losses import LOSSES, OF_REAL_TARGETS, Loss
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.rate_penalty import LayerPenalties
from stsbp_spec.models.surrogates import Arctan, Surrogate
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops.batchnorm import SCALE, SHIFT
from stsbp_spec.networks.ops.psp import BIAS
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float32, Shape, UInt8

from stsbp_conformance.data import nmnist_frames

__all__ = [
    "EXACT_LOSSES",
    "NetworkCase",
    "cifar10",
    "delays",
    "learned",
    "nmnist",
    "normal",
    "real_targets",
    "spikes",
]

EXACT_LOSSES: dict[str, Loss] = {**LOSSES, **OF_REAL_TARGETS}
"""All losses by name whose errors have the same bits on every backend."""

BIAS_DRAWN = replace(BIAS, low=-0.25, high=0.5)
"""Values between those that silence neurons and those that make them fire, for thresholds of about 0.5."""
_DRAWN = {
    BIAS: BIAS_DRAWN,
    SCALE: replace(SCALE, low=-0.5, high=1.5),
    SHIFT: replace(SHIFT, low=-0.25, high=0.75),
}
_STATISTICS = {"mean": Learned(0.0, -0.5, 0.5), "variance": Learned(1.0, 0.25, 2.0)}


@dataclass(frozen=True)
class NetworkCase:
    """A network and its data.

    Attributes:
        id: name in the matrix.
        network: the network.
        steps: `T`.
        batch: `B`.
        gain: gain of the initial weights. Deep networks need more than the default to fire in every layer.
        source: `random` input, real `nmnist` recordings, a `burst` (one step of input, then silence), or `half` (every
            second sample is silent).
        density: density of random event frames.
        seed: seed of weights, inputs and targets.
        lengths: number of steps of each sample; None: all have `T` steps.
        rate_penalty: penalties on the firing rates of layers, which belong to gradients and updates.
    """

    id: str
    network: NetworkSpec
    steps: int
    batch: int
    gain: float = 2.0
    source: Literal["random", "nmnist", "burst", "half"] = "random"
    density: float = 0.1
    seed: int = 1
    lengths: tuple[int, ...] | None = None
    rate_penalty: LayerPenalties = ()

    @property
    def random(self) -> bool:
        """Whether all data are random numbers, so that rounding errors are independent."""
        return self.source != "nmnist"

    def weights(self) -> dict[str, Float32]:
        """Master weights and other learned parameters. The latter are in their domains, a third of them at the ends.

        The same holds for running statistics of batch normalisation. Many learned delays are between two steps, where
        rounding has ties.
        """
        parameters = initial_weights(self.network, self.seed, self.gain)
        for number, (name, parameter) in enumerate(self.network.parameters.items()):
            if parameter.learned is not None:
                # A bias at the end of its domain, 2^100, would hide the rest of the network.
                drawn = _DRAWN.get(parameter.learned, parameter.learned)
                draw = delays if parameter.is_delay else learned
                parameters[name] = draw(drawn, parameter.shape[0], self.seed, number)
        for number, (name, x) in enumerate(self.network.statistics.items()):
            parameters[name] = learned(_STATISTICS[name.rpartition(".")[2]], len(x), self.seed, 500 + number)
        return parameters

    def inputs(self) -> UInt8:
        """`[B, ...]` or `[T, B, ...]`."""
        network = self.network
        if self.source == "nmnist":
            return nmnist_frames(self.batch, self.steps)
        if network.coding == "direct":
            shape: Shape = (self.batch, *network.input_shape)
            grey = uniform(self.seed, Stream.ENCODER, math.prod(shape)) * 256
            return grey.astype(np.uint8).reshape(shape)
        frames = spikes((self.steps, self.batch, *network.input_shape), self.density, self.seed) * network.input_max
        if self.source == "burst":
            frames[1:] = 0
        elif self.source == "half":
            frames[:, 1::2] = 0
        return frames.astype(np.uint8)

    def targets(self) -> AnyArray:
        """Random target spike trains, `[T, B, N]`; for a readout, random real numbers."""
        shape = (self.steps, self.batch, self.network.outputs)
        if self.network.has_readout:
            return real_targets(shape, self.seed + 1000)
        return spikes(shape, 0.3, self.seed + 1000)

    def cotangents(self) -> Float32:
        """Normally distributed random `dL/do` of the output, `[T, B, N]`; of a readout, `dL/du`."""
        return normal((self.steps, self.batch, self.network.outputs), self.seed)

    def data(self) -> Batch:
        """Inputs, targets and lengths."""
        return Batch(self.inputs(), self.targets(), None if self.lengths is None else np.array(self.lengths))


def learned(numbers: Learned, count: int, seed: int, substream: int = 0) -> Float32:
    """Random learned parameters `[count]` in their domain, a third of them at its ends."""
    part = np.clip(1.5 * uniform(seed, Stream.ENCODER, count, substream=100 + substream) - 0.25, 0, 1)
    drawn = (numbers.low + (numbers.high - numbers.low) * part).astype(np.float32)
    return np.clip(drawn, np.float32(numbers.low), np.float32(numbers.high))


def delays(numbers: Learned, count: int, seed: int, substream: int = 0) -> Float32:
    """Random learned delays `[count]` in their domain: a quarter of them at its ends, a third between two steps."""
    drawn = learned(numbers, count, seed, substream)
    between = uniform(seed, Stream.ENCODER, count, substream=1000 + substream) < 1 / 3
    halves = np.minimum(np.floor(drawn) + np.float32(0.5), np.float32(numbers.high))
    return np.where(between, halves, drawn)


def spikes(shape: Shape, density: float, seed: int) -> UInt8:
    """Random spike trains of `shape`."""
    return (uniform(seed, Stream.ENCODER, math.prod(shape), substream=1) < density).astype(np.uint8).reshape(shape)


def real_targets(shape: Shape, seed: int) -> Float32:
    """Random targets of `shape` between -1 and 2. One in ten is zero, and one in twenty is subnormal.

    They are drawn without `log` or `cos`, whose last bits differ between machines.
    """
    n = math.prod(shape)
    drawn, kind = (uniform(seed, Stream.ENCODER, n, substream=k) for k in (8, 9))
    targets: Float32 = np.where(kind < 0.1, 0, np.where(kind < 0.15, 1e-42, 3 * drawn - 1)).astype(np.float32)
    return targets.reshape(shape)


def normal(shape: Shape, seed: int) -> Float32:
    """Normally distributed numbers of `shape`, for random output errors and for potentials near a threshold of 1."""
    n = math.prod(shape)
    u, v = (uniform(seed, Stream.ENCODER, n, substream=k) for k in (2, 3))
    drawn: Float32 = (np.sqrt(-2 * np.log(u)) * np.cos(2 * math.pi * v)).astype(np.float32).reshape(shape)
    return drawn


def nmnist(tau: float = 5.0, surrogate: Surrogate | None = None) -> NetworkSpec:
    """The network of the N-MNIST results, 12C5-P2-64C5-P2-10."""
    neuron = LIF(tau_m=tau, tau_s=tau, threshold=0.5, surrogate=surrogate or Arctan())
    return NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10, neuron=neuron)


def cifar10(notation: str, tau: float = 5.0, surrogate: Surrogate | None = None) -> NetworkSpec:
    """A CIFAR-10 network on direct-coded images."""
    neuron = LIF(tau_m=tau, tau_s=tau, threshold=0.5, surrogate=surrogate or Arctan())
    return NetworkSpec.parse(
        notation, input_shape=(3, 32, 32), outputs=10, coding="direct", padding="same", neuron=neuron
    )
