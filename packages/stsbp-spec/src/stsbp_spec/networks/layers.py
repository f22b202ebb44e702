"""Layers of a network; and blocks, which group a spiking layer with the operations before it for reports and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from stsbp_spec.errors import SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.models.neurons.lif import LIF
from stsbp_spec.networks.graph import Edge, Neurons, Node, Projection
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.networks.ops.linear import Linear
from stsbp_spec.networks.ops.one_to_one import OneToOne
from stsbp_spec.networks.ops.psp import PSP, SynapticFilter
from stsbp_spec.typing import Shape
from stsbp_spec.validation import integer_between, shown

__all__ = ["Block", "Branches", "Layer", "SpikingLayer", "layers_of_chain"]


@dataclass(frozen=True)
class SpikingLayer:
    """Weights and the neurons after them.

    Args:
        synapse: the connection from the layer below, and the bits of the weights.
        neuron: neuron model and its parameters.
        recurrent: the connection from the layer's own spikes of the previous step; None: there is none.
        delay: number of steps by which the spikes of the layer below are delayed.
    """

    synapse: Conv2d | Linear
    neuron: NeuronModel = field(default_factory=LIF)
    recurrent: Conv2d | Linear | OneToOne | None = field(default=None, kw_only=True)
    delay: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.synapse, (Conv2d, Linear)):
            raise SpecError(f"a spiking layer's synapse is Conv2d(...) or Linear(...), got {shown(self.synapse)}")
        if not isinstance(self.neuron, NeuronModel):
            raise SpecError(f"a spiking layer's neuron is LIF(...), IF(...) or ALIF(...), got {shown(self.neuron)}")
        if self.recurrent is not None:
            _check_recurrent(self.recurrent)
        object.__setattr__(self, "delay", integer_between("a delay", self.delay, 0))

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the layer's spikes for an input of `shape`."""
        return self.synapse.output_shape(shape)


def _check_recurrent(synapse: object) -> None:
    """Raise `SpecError` unless `synapse` is a valid recurrent connection of a layer."""
    if not isinstance(synapse, (Conv2d, Linear, OneToOne)):
        raise SpecError(
            f"a spiking layer's recurrence is Linear(...), Conv2d(...), OneToOne() or None, got {shown(synapse)}"
        )
    if synapse.bias:
        raise SpecError("a recurrence has no bias; give it to the layer's own weights")
    if synapse.norm is not None:
        raise SpecError("a recurrence has no batch normalisation; give it to the layer's own weights")
    if isinstance(synapse, Conv2d):
        rows, columns = synapse.kernels
        required = Conv2d(
            synapse.channels, synapse.kernel, padding=(rows // 2, columns // 2), weight_bits=synapse.weight_bits
        )
        if rows % 2 == 0 or columns % 2 == 0 or synapse != required:
            raise SpecError(f"a recurrent convolution has an odd kernel k, stride 1 and padding k // 2, got {synapse}")


@dataclass(frozen=True)
class Branches:
    """Parallel branches that read the same input, and whose outputs are added (ops/add.py).

    Args:
        branches: two or more branches, each a sequence of layers. An empty branch passes its input on unchanged.
    """

    branches: tuple[tuple[Layer, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", tuple(tuple(branch) for branch in self.branches))
        if len(self.branches) < 2:
            raise SpecError(f"branches are two or more, got {len(self.branches)}")


Layer: TypeAlias = SpikingLayer | Passing | Branches


def layers_of_chain(nodes: Sequence[Node]) -> tuple[Layer, ...] | None:
    """The layers of a network that is written as nodes; None: it is no chain of layers.

    Args:
        nodes: the nodes in their order, the input first.
    """
    position = {node.name: number for number, node in enumerate(nodes)}
    # Only the weights of a recurrence read a node that comes later.
    own_of = {
        edge.source: node for node in nodes for edge in node.inputs if position[edge.source] > position[node.name]
    }
    recurrent = {node.name for node in own_of.values()}
    layers: list[Layer] = []
    previous, weights = nodes[0], None
    for node in nodes[1:]:
        own = own_of.get(node.name)
        if node.name in recurrent:
            continue
        first, *others = node.inputs
        if node.shares is not None or first.source != previous.name or others != ([Edge(own.name)] if own else []):
            return None
        if isinstance(node.op, Neurons) and weights is not None:
            try:
                layers.append(_layer(weights, node.op, own))
            except SpecError:  # for example a recurrence with a bias
                return None
            weights = None
        elif isinstance(node.op, (Conv2d, Linear)):
            weights = node
        elif isinstance(node.op, Passing) and not first.delay:
            layers.append(node.op)
        else:
            return None
        previous = node
    return tuple(layers)


def _layer(weights: Node, neurons: Neurons, own: Node | None) -> SpikingLayer:
    """The layer of three nodes. Raises `SpecError` if layers do not have such weights or such a recurrence."""
    synapse, recurrent = weights.op, None if own is None else own.op
    if own is not None and own.shares is not None:
        raise SpecError("a recurrence has its own weights")
    assert isinstance(synapse, (Conv2d, Linear))
    assert recurrent is None or isinstance(recurrent, (Conv2d, Linear, OneToOne))
    return SpikingLayer(synapse, neurons.model, recurrent=recurrent, delay=weights.inputs[0].delay)


@dataclass(frozen=True)
class Block(Projection):
    """One spiking layer: its projection, the operations before the weights, and the neurons after them.

    Attributes:
        synapse: geometry of the weights.
        before: operations before the weights, such as pooling and dropout, of which only the next one reads each. They
            come after the last spiking layer, or the last sum, of the branch.
        neuron: the neuron model with its parameters.
        population: name of the node of its neurons.
        input_shape: shape of the incoming spikes (or image), `(C, H, W)` or `(N,)`.
        recurrent: the projection from the neurons to themselves; None: there is none.
    """

    synapse: Conv2d | Linear
    before: tuple[Passing, ...]
    neuron: NeuronModel
    population: str
    input_shape: Shape
    recurrent: Projection | None = None

    @property
    def entering(self) -> tuple[tuple[Passing, Shape], ...]:
        """The operations before the weights, in the form that backends use, each with the shape of its input."""
        operations, shape = [], self.input_shape
        for layer in self.before:
            operations.append((layer.at(shape), shape))
            shape = layer.output_shape(shape)
        return tuple(operations)

    @property
    def synapse_shape(self) -> Shape:
        """Shape of the input of the weights, after the operations `before`."""
        return self.input.shape

    @property
    def static(self) -> bool:
        """Whether the same input is used at all steps (direct coding, first block)."""
        return self.input.static

    @property
    def psp(self) -> PSP | None:
        """Synaptic filter of the layer below; None: inputs are not filtered."""
        return self.input.pending

    def filter(self, *, training: bool) -> SynapticFilter:
        """Filter after the weights; in training, its gain includes the factor of dropout."""
        return self.sums.filter(training=training)

    @property
    def learned(self) -> Mapping[str, Learned]:
        """Learned parameters of the neurons and the bias, by name."""
        return {**self.filter(training=False).learned(), **self.neuron.learned()}
