"""Layers of a network, and blocks: a spiking layer with what stands before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from stsbp_spec.errors import SpecError
from stsbp_spec.grid import EXACT_LIMIT_BITS, MAX_WEIGHT_BITS, MIN_WEIGHT_BITS
from stsbp_spec.neurons import LIF, NeuronModel
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.synapses.dropout import Dropout
from stsbp_spec.synapses.linear import Linear
from stsbp_spec.synapses.psp import IDENTITY, PSP, SynapticFilter
from stsbp_spec.typing import Shape
from stsbp_spec.values import integer, shown

__all__ = ["MAX_BEFORE", "MAX_LAYERS", "Block", "Layer", "SpikingLayer"]

MAX_LAYERS = 2**16
"""Layers of a network."""

MAX_BEFORE = 16
"""Layers of pooling and dropout before one spiking layer; as many dropout masks have a random stream of their own."""


@dataclass(frozen=True)
class SpikingLayer:
    """Weights and the neurons after them.

    Args:
        synapse: how the neurons are connected to the layer below.
        neuron: their parameters.
        weight_bits: bits of the weight grid, sign included, 2 to 12.
    """

    synapse: Conv2d | Linear
    neuron: NeuronModel = field(default_factory=LIF)
    weight_bits: int = MAX_WEIGHT_BITS

    def __post_init__(self) -> None:
        if not isinstance(self.synapse, (Conv2d, Linear)):
            raise SpecError(f"a spiking layer's synapse is Conv2d(...) or Linear(...), got {shown(self.synapse)}")
        if not isinstance(self.neuron, NeuronModel):
            raise SpecError(f"a spiking layer's neuron is LIF(...), IF(...) or ALIF(...), got {shown(self.neuron)}")
        bits = integer(self.weight_bits)
        if bits is None or not MIN_WEIGHT_BITS <= bits <= MAX_WEIGHT_BITS:
            raise SpecError(
                f"weight bits must be {MIN_WEIGHT_BITS} to {MAX_WEIGHT_BITS}, got {shown(self.weight_bits)}"
            )
        object.__setattr__(self, "weight_bits", bits)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the layer's spikes for an input of `shape`."""
        return self.synapse.output_shape(shape)


Layer: TypeAlias = SpikingLayer | AvgPool2d | Dropout


@dataclass(frozen=True)
class Block:
    """One spiking layer with what stands before it, as backends compute it.

    Attributes:
        name: `conv1`, `conv2`, `linear3`, ...: the key of its weights.
        index: position among the blocks, from 0.
        before: pooling and dropout between the layer below and the weights.
        input_shape: shape of the spikes (or image) that enter, `(C, H, W)` or `(N,)`.
        synapse_shape: their shape after `before`.
        output_shape: shape of the block's spikes.
        input_exponent: inputs of the weights are multiples of `2^-input_exponent` ...
        input_max: ... in `[0, input_max]`.
        static: whether one input serves all steps (direct coding, first block).
        psp: synaptic filter of the layer below; None: inputs enter unfiltered.
        dropout_gain: product of the `1/(1-p)` of the dropout in `before`.
    """

    name: str
    index: int
    before: tuple[AvgPool2d | Dropout, ...]
    layer: SpikingLayer
    input_shape: Shape
    synapse_shape: Shape
    output_shape: Shape
    input_exponent: int
    input_max: float
    static: bool
    psp: PSP | None
    dropout_gain: float

    @property
    def synapse(self) -> Conv2d | Linear:
        """The weights' geometry."""
        return self.layer.synapse

    @property
    def neuron(self) -> NeuronModel:
        """The neurons' parameters."""
        return self.layer.neuron

    @property
    def weight_shape(self) -> Shape:
        """Shape of the weights, output axis first."""
        return self.synapse.weight_shape(self.synapse_shape)

    @property
    def fan_in(self) -> int:
        """Summands of one output."""
        return self.synapse.summands(self.synapse_shape)[0]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the weights on one dense frame."""
        return self.fan_in * math.prod(self.output_shape)

    @property
    def input_bits(self) -> int:
        """`b` with all inputs at most `2^b` units."""
        return math.ceil(math.log2(self.input_max)) + self.input_exponent

    @property
    def guaranteed_headroom(self) -> float:
        """Headroom in bits if every weight had the largest magnitude and one sign; real weights have more."""
        largest = 2 ** (self.layer.weight_bits - 1) - 1
        return EXACT_LIMIT_BITS - math.log2(self.fan_in * largest * self.input_max) - self.input_exponent

    def dropout_substream(self, place: int) -> int:
        """The `layer` of `random.keep_mask` for the dropout at `before[place]`: no two masks of a step share bits.

        `place` is below `MAX_BEFORE` and `index` below `MAX_LAYERS`, so `256 * substream` stays below 2^32.
        """
        return MAX_BEFORE * self.index + place

    def filter(self, *, training: bool) -> SynapticFilter:
        """Filter after the weights, with the factor of dropout in training."""
        gain = self.dropout_gain if training else 1.0
        if self.psp is not None:
            return self.psp.filter(gain)
        return replace(IDENTITY, gain=type(IDENTITY.gain)(gain))
