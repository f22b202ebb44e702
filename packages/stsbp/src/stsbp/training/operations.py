"""What an inference costs: synaptic operations of a spiking network, beside the multiply-adds of the same ANN.

A synaptic operation is one spike that meets one weight: an addition, where a neuron of an ordinary network multiplies
and adds for every weight whatever its input. An event-driven machine does no other work in the synapses. Of a network
with direct coding the first layer sees pixels, not spikes: it costs its multiply-adds, once a sample, since the image
is the same at every step. The updates of the neurons are counted in neither.
"""

from __future__ import annotations

import numpy as np
from stsbp_spec.encoders.packed import unpacked
from stsbp_spec.network import Block
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.trainer import TrainState
from stsbp_spec.typing import Int64

from stsbp.datasets import Split
from stsbp.training.build import Task

__all__ = ["MOST_SAMPLES", "fan_out", "synaptic_operations"]

MOST_SAMPLES = 200
_BATCH = 10


def fan_out(block: Block) -> Int64:
    """Weights that a spike of each input neuron of a block meets, after the block's pooling; `[C, H, W]` or `[N]`."""
    synapse, shape = block.synapse, block.synapse_shape
    reached: Int64
    if isinstance(synapse, Conv2d):
        rows, columns = (
            _windows(size, outputs, *axis)
            for size, outputs, *axis in zip(
                shape[1:],
                block.output_shape[1:],
                synapse.kernels,
                synapse.strides,
                synapse.paddings,
                synapse.dilations,
                strict=True,
            )
        )
        reached = np.broadcast_to(synapse.channels // synapse.groups * np.outer(rows, columns), shape)
    else:
        reached = np.full(shape, synapse.units, dtype=np.int64)
    shapes = [block.input_shape]
    for layer in block.before:
        shapes.append(layer.output_shape(shapes[-1]))
    for layer, below in zip(reversed(block.before), reversed(shapes[:-1]), strict=True):
        if isinstance(layer, AvgPool2d):
            whole = reached.repeat(layer.size, axis=1).repeat(layer.size, axis=2)
            # Rows and columns that fill no window reach nothing.
            reached = np.zeros(below, dtype=np.int64)
            reached[:, : whole.shape[1], : whole.shape[2]] = whole
    return reached


def _windows(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Int64:
    """How many of the `outputs` windows along an axis hold each of its `size` places, `[size]`."""
    offset = np.arange(size)[:, None] - (np.arange(outputs) * stride - padding)
    held: Int64 = ((offset >= 0) & (offset < kernel * dilation) & (offset % dilation == 0)).sum(axis=1)
    return held


def synaptic_operations(task: Task, state: TrainState, split: Split, most: int = MOST_SAMPLES) -> dict[str, float]:
    """Synaptic operations of each layer, mean over `most` samples spread evenly over a split.

    The first layer is left out where it sees pixels (direct coding).
    """
    exported = task.trainer.export_state(state)
    weights = {key.removeprefix("weight/"): x for key, x in exported.items() if key.startswith("weight/")}
    chosen = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).astype(np.int64))
    blocks = task.network.blocks
    fans = [fan_out(block) for block in blocks]
    totals = {block.name: 0 for block in blocks if not block.static}
    for first in range(0, len(chosen), _BATCH):
        batch, _ = task.batch(split, chosen[first : first + _BATCH])
        inputs = unpacked(batch.inputs)
        layers = task.backend.run(task.network, weights, inputs, task.config.steps).layers
        sources = [inputs, *(layers[block.name].spikes for block in blocks[:-1])]
        for block, fan, spikes in zip(blocks, fans, sources, strict=True):
            if not block.static:
                totals[block.name] += int((spikes.sum(axis=(0, 1), dtype=np.int64) * fan).sum())
    return {name: total / len(chosen) for name, total in totals.items()}
