"""The cost of an inference: synaptic operations of a spiking network, and multiply-adds of the same network as an ANN.

A synaptic operation is one spike that meets one weight. It is an addition. A neuron of an ordinary network multiplies
and adds for every weight, whatever its input is. An event-driven machine does no other work in the synapses. With
direct coding, the first weights read pixels instead of spikes. Their cost is their multiply-adds, once per sample,
because the image is the same at every step. Both numbers exclude the updates of the neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from stsbp_spec.engine import cost
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.networks.graph import Edge
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.networks.spec import Block, NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float64, Int64

from stsbp.datasets import Split
from stsbp.energy.totals import EnergyPrices, weights_of
from stsbp.training.build import Task

__all__ = ["MOST_SAMPLES", "Activity", "activity", "fan_out", "synaptic_operations"]

MOST_SAMPLES = 200
_BATCH = 10
_NUMPY = NumpyBackend()


def fan_out(network: NetworkSpec, block: Block) -> dict[Edge, Int64]:
    """Number of a block's weights that a spike of each neuron meets, by the populations (or input) it reads.

    Each is `[C, H, W]` or `[N]`. Pooling, dropout and merged branches in between pass spikes on, and the delay of an
    edge is that of the whole way. Max pooling makes new spikes and learned delays hold spikes back, so their own nodes
    are listed instead of the nodes that they read. Weights that read pixels are left out.
    """
    graph, fans = network.graph, dict[Edge, Int64]()
    nodes = {node.name: node for node in graph.nodes}

    def trace(name: str, delay: int, reached: Int64) -> None:
        node = nodes[name]
        # Spikes reach weights when their learned delays have passed.
        if node.op.makes_spikes or isinstance(node.op, LearnedDelay):
            edge = Edge(name, delay)
            fans[edge] = fans.get(edge, 0) + reached
            return
        shapes = [graph.values[edge.source].shape for edge in node.inputs]
        op = node.op.at(*shapes) if isinstance(node.op, Passing) else node.op
        for edge, reached_source in zip(node.inputs, op.reached(reached, shapes), strict=True):
            trace(edge.source, delay + edge.delay, reached_source)

    for projection in graph.projections_to(block.population):
        if not projection.input.static:
            (edge,) = nodes[projection.name].inputs
            trace(edge.source, edge.delay, cost.fan_out(projection))
    return fans


def _per_step(spikes: AnyArray, lengths: Int64 | None) -> Float64:
    """Number of spikes of each neuron at each step, `[T, N]`, of all samples `[T, B, ...]`, without padded steps."""
    trains = spikes.reshape(*spikes.shape[:2], -1)
    counts: Float64 = without_padding(trains, lengths).sum(axis=1, dtype=np.float64)
    return counts


@dataclass(frozen=True)
class Activity:
    """The activity at each step, mean over samples.

    Attributes:
        operations: synaptic operations of each layer, `[T]`; without layers that read only pixels.
        spikes: spikes of all neurons of each layer, `[T]`; without a readout.
        energy: energy of all layers in pJ, `[T]`; None if there are no prices.
    """

    operations: dict[str, Float64]
    spikes: dict[str, Float64]
    energy: Float64 | None = None


def synaptic_operations(
    task: Task, state: TrainState, split: Split, max_samples: int = MOST_SAMPLES
) -> dict[str, float]:
    """Synaptic operations of each layer, mean over `max_samples` samples spread evenly over a split.

    Weights that read pixels (direct coding) are left out.
    """
    return {
        name: float(per_step.sum()) for name, per_step in activity(task, state, split, max_samples).operations.items()
    }


def activity(
    task: Task,
    state: TrainState,
    split: Split,
    max_samples: int = MOST_SAMPLES,
    prices: EnergyPrices | None = None,
) -> Activity:
    """Synaptic operations and spikes at each step, mean over `max_samples` samples spread evenly over a split.

    With `prices`, also the energy.
    """
    weights = weights_of(task, state)
    chosen = np.unique(np.linspace(0, len(split) - 1, min(max_samples, len(split))).astype(np.int64))
    network, steps = task.network, task.config.steps
    fans = {block.name: fans for block in network.blocks if (fans := fan_out(network, block))}
    spiking = network.blocks[:-1] if network.has_readout else network.blocks
    # Sums of integers, which are exact.
    operations = {name: np.zeros(steps) for name in fans}
    spikes = {block.name: np.zeros(steps) for block in spiking}
    energy: Float64 = np.zeros(steps)
    for first in range(0, len(chosen), _BATCH):
        part = chosen[first : first + _BATCH]
        batch, _ = task.batch(split, part)
        inputs = unpacked(batch.inputs)
        layers = task.backend.run(network, weights, inputs, steps).layers
        fired = {name: layer.spikes for name, layer in layers.items()}
        values = cost.node_values(network, inputs, fired, (steps, len(part)), weights)
        for name, of_sources in fans.items():
            for edge, fan in of_sources.items():
                # Behind pooling, learned delays hold parts of spikes.
                units = np.float32(2.0 ** network.graph.values[edge.source].exponent)
                arriving = cost.arriving(values[edge.source] * units, edge.delay)
                operations[name] += _per_step(arriving, batch.lengths) @ fan.reshape(-1).astype(np.float64)
        for name, per_step in spikes.items():
            per_step += _per_step(layers[name].spikes, batch.lengths).sum(axis=1)
        if prices is not None:
            costs = cost.cost_of_run(network, inputs, fired, batch.lengths, delays=weights)
            energy += sum(x.sum(axis=1) * prices.of(key).total for key, x in costs.items())
    n = len(chosen)
    mean_operations, mean_spikes = ({name: x / n for name, x in sums.items()} for sums in (operations, spikes))
    return Activity(mean_operations, mean_spikes, None if prices is None else energy / n)
