"""The computations of a trained network in evaluation, as data: weights on their grids, equations, and their constants.

All exporters (c_source.py, onnx_file.py, nir_file.py) use this form, so they need not know any neuron model. The step
of a population is an expression (the spec's equations/expressions.py), as for every backend. A network with float32
master weights computes with weights on a grid and with running statistics. Both have already been applied here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.equations.assembly import Constants, neuron_equations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.networks.graph import BoundNode, Neurons, Node, Projection
from stsbp_spec.networks.ops.batchnorm import ChannelArithmetic, of_running
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32, Int32

__all__ = ["About", "GridWeights", "NetworkProgram", "PopulationStep", "RunningNorm", "program"]


@dataclass(frozen=True)
class About:
    """Information about the run in an exported file, besides the network.

    Attributes:
        name: name of the run.
        checkpoint: SHA-256 of the checkpoint's weights.
        steps: `T` in training.
        classes: names of the classes, in the order of the output neurons; empty if labels are spike trains.
    """

    name: str
    checkpoint: str
    steps: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunningNorm:
    """Batch normalisation by running statistics: `synapses.batchnorm.FORWARD` with these numbers.

    Attributes:
        mean, a, shift: numbers for each channel, float32 `[C]`.
    """

    mean: Float32
    a: Float32
    shift: Float32


@dataclass(frozen=True)
class GridWeights:
    """A node with weights.

    Attributes:
        projection: geometry, and the input of the weights: multiples of `2^-projection.input.exponent`.
        values: the weights on their grid, float32, output axis first.
        exponent: the weights are multiples of `2^-exponent`, with at most 11 bits and a sign.
        norm: normalisation of their sums; None: there is none.
    """

    projection: Projection
    values: Float32
    exponent: int
    norm: RunningNorm | None

    @property
    def integers(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
        """The weights as integers in units of `2^-exponent`, with the shape of `values`."""
        return np.rint(np.ldexp(self.values.astype(np.float64), self.exponent)).astype(np.int16)

    @property
    def sum_exponent(self) -> int:
        """Exponent of the unit of the sums, `2^-sum_exponent`. They are integers below `2^24` in this unit."""
        return self.exponent + self.projection.input.exponent


@dataclass(frozen=True)
class PopulationStep:
    """A node of neurons: one step of the synaptic filters before them and of the neurons themselves.

    Attributes:
        place: the node, and the values on its edges.
        step: from weighted sums, one input per edge, to the potential `u` and the spike `o`. States are zero before the
            first step.
        constants: the parameters of `step`, float32.
        sums: inputs of `step` that are weighted sums, in the order of the node's inputs.
        learned: the other inputs of `step`: learned parameters, which are the same at every step, `[C]` or `[1]`.
    """

    bound_node: BoundNode
    step: Recurrence
    constants: Constants
    sums: tuple[str, ...]
    learned: Mapping[str, Float32]


@dataclass(frozen=True)
class NetworkProgram:
    """A trained network.

    Attributes:
        network: the network; its nodes in their order: `network.graph.nodes`.
        weights: nodes with weights, by name.
        populations: nodes of neurons, by name.
        delays: the whole delays in steps of nodes with learned delays, `[C]` by name of the node. The network reads
            nothing else of the learned numbers in evaluation.
    """

    network: NetworkSpec
    weights: Mapping[str, GridWeights]
    populations: Mapping[str, PopulationStep]
    delays: Mapping[str, Int32]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, each after its inputs. Populations with recurrent weights come before these weights."""
        return self.network.graph.nodes

    @cached_property
    def recurrent(self) -> frozenset[str]:
        """Names of the recurrent weights of populations, which act one step later."""
        return frozenset(name for names in self.network.graph.recurrent.values() for name in names)


def program(network: NetworkSpec, weights: Mapping[str, Float32]) -> NetworkProgram:
    """The computations of a network with these master weights, learned parameters and statistics (`Trained.weights`).

    Raises:
        NumericError: a weight is not finite, or too large.
        ExactnessError: the sums of a layer cannot be exact.
    """
    backend = NumpyBackend()
    grid_parameters, grids = weights_on_grid(backend, network.graph, weights)
    graph = network.graph
    nodes: dict[str, GridWeights] = {}
    for projection in graph.projections:
        name, norm = projection.name, projection.synapse.norm
        normalised = None
        if norm is not None:
            mean, variance, scale, shift = (
                grid_parameters[f"{name}.{part}"] for part in ("mean", "variance", "scale", "shift")
            )
            running = of_running(ChannelArithmetic(), mean, variance, scale, norm=norm)
            normalised = RunningNorm(running.mean, running.a, shift)
        nodes[name] = GridWeights(projection, grid_parameters[name], grids[name].exponent, normalised)
    populations = {
        bound_node.node.name: _population(bound_node, grid_parameters)
        for bound_node in graph.bound_nodes
        if isinstance(bound_node.node.op, Neurons)
    }
    delays = {
        bound_node.node.name: backend.arithmetic.whole_delays(grid_parameters[name])
        for bound_node in graph.bound_nodes
        if isinstance(bound_node.node.op, LearnedDelay)
        for name in bound_node.parameters.values()
    }
    return NetworkProgram(network, nodes, populations, delays)


def _population(bound_node: BoundNode, weights: Mapping[str, Float32]) -> PopulationStep:
    op = bound_node.node.op
    assert isinstance(op, Neurons)
    filters = tuple(values.filter(training=False) for values in bound_node.inputs)
    equations = neuron_equations(filters, op.model, tuple(values.static for values in bound_node.inputs))
    forward = equations.forward
    step = forward.changed(outputs={name: forward.outputs[name] for name in ("u", "o")})
    constants = {name: equations.constants[name] for name in step.parameters}
    learned = {free: weights[bound_node.parameters[name]] for name, free in equations.learned.items()}
    return PopulationStep(bound_node, step, constants, equations.inputs, learned)
