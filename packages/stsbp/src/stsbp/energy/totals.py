"""The energy of a run over the batches of an evaluation: counts of each layer and sample, and their energy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import Batch
from stsbp_spec.engine.cost import (
    COUNTS,
    CostKey,
    cost_of_run,
    dense_multiplications,
    normalisation_operations,
    population_costs,
    projection_costs,
)
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.models.encoders.packed import Inputs, unpacked
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float64, Int64

from stsbp.energy.table import EnergyTable
from stsbp.training.build import Task

__all__ = ["EnergyPrices", "Price", "RunEnergy", "cost_of_batch", "samples_at_once", "weights_of"]

_MOST_BYTES = 64 * 2**20
"""Bytes of the spikes and potentials of all layers that are computed together."""
_BYTES_OF_NEURON = 16
"""Bytes of a neuron at a step in a run: its spike, its potential, and copies of both."""


@dataclass(frozen=True)
class Price:
    """Energy in pJ of one of a count, for its arithmetic and for its accesses to memory."""

    arithmetic: float
    memory: float

    @property
    def total(self) -> float:
        """Energy of both."""
        return self.arithmetic + self.memory


class EnergyPrices:
    """The energy of each count of a network.

    Args:
        network: the network.
        table: energy of operations and of accesses to memory.

    Raises:
        ConfigError: the table does not have the energy of an operation of the network.
    """

    def __init__(self, network: NetworkSpec, table: EnergyTable) -> None:
        self.network, self.table = network, table
        self.populations, self.projections = population_costs(network), projection_costs(network)
        # Asked for at once, so that a missing energy is told before anything is computed.
        for population in self.populations:
            self.of(CostKey("", "updates", population))

    def of(self, key: CostKey) -> Price:
        """Energy of one of a count."""
        table, memory = self.table, self.table.memory
        if key.kind == "updates":
            population = self.populations[key.node]
            arithmetic = math.fsum(n * table.of(kind) for kind, n in population.operations.items())
            if memory is None:
                return Price(arithmetic, 0.0)
            stored_bits = population.neurons * population.states * memory.state_bits
            # Each state is read and written.
            return Price(arithmetic, 2 * population.states * memory.of_bits(memory.state_bits, stored_bits))
        if key.kind == "merges":
            return Price(table.of("add"), 0.0)
        if key.kind == "normalisations":
            return Price(math.fsum(n * table.of(kind) for kind, n in normalisation_operations().items()), 0.0)
        operation = {"accumulations": "accumulate", "multiplications": "multiply_accumulate"}[key.kind]
        weights = self.projections[key.node]
        read = 0.0 if memory is None else memory.of_bits(weights.bits, weights.weights * weights.bits)
        return Price(table.of(operation), read)

    def dense(self, frames: int) -> dict[str, Any]:
        """A network of the same shape that multiplies every value, zero or not, for a number of frames.

        Weights that read an image are used once. Returns multiply-adds and energies of all weights.
        """
        multiplications, arithmetic, memory = 0, list[float](), list[float]()
        for node, (per_frame, is_static) in dense_multiplications(self.network).items():
            count = per_frame * (1 if is_static else frames)
            price = self.of(CostKey("", "multiplications", node))
            multiplications += count
            arithmetic.append(count * price.arithmetic)
            memory.append(count * price.memory)
        return {"multiplications": multiplications, "pj": _energies(arithmetic, memory)}


class RunEnergy:
    """Counts of each layer and sample, batch by batch. They do not depend on the batches or on the backend.

    Args:
        network: the network.
        table: energy of operations and of accesses to memory.

    Raises:
        ConfigError: the table does not have the energy of an operation of the network.
    """

    def __init__(self, network: NetworkSpec, table: EnergyTable) -> None:
        self.network, self.prices = network, EnergyPrices(network, table)
        self._batches: list[dict[CostKey, Int64]] = []
        self._steps: list[int] = []

    def add(self, costs: Mapping[CostKey, Int64], lengths: AnyArray) -> None:
        """Add the counts of a batch, `[B]` each, and the numbers of steps of its samples, `[B]`."""
        self._batches.append(dict(costs))
        self._steps += [int(n) for n in lengths]

    @cached_property
    def counts(self) -> dict[CostKey, Int64]:
        """Counts of each sample, `[n]`, after the last batch."""
        return {key: np.concatenate([batch[key] for batch in self._batches]) for key in self._batches[0]}

    @property
    def samples(self) -> int:
        """Number of samples so far."""
        return len(self._steps)

    @cached_property
    def picojoules(self) -> Float64:
        """Energy of each sample in pJ, `[n]`, after the last batch."""
        terms = [x * self.prices.of(key).total for key, x in self.counts.items()]
        return np.array([math.fsum(row) for row in np.stack(terms, axis=1)])

    def record(self) -> dict[str, Any]:
        """Everything as JSON values: counts are sums over the samples, energies are means over them."""
        table, layers = self.prices.table, [block.name for block in self.network.blocks]
        rows = [self._layer(layer) for layer in layers]
        low, median, high = np.quantile(self.picojoules, (0, 0.5, 1)).tolist()
        # Dense networks of the samples: sums of the frames of all samples, and one frame.
        per_step = self._per_step()
        return {
            "table": table.name,
            "table_sha256": table.digest(),
            "source": table.source,
            "samples": self.samples,
            "steps": sum(self._steps),
            "layers": rows,
            "pj": _sum_of([row["pj"] for row in rows]),
            "pj_of_samples": {"smallest": low, "median": median, "largest": high},
            "dense": {"one_frame": self.prices.dense(1), "every_step": per_step},
        }

    def _per_step(self) -> dict[str, Any]:
        """A dense network that computes each step of the samples, as a mean."""
        records = {steps: self.prices.dense(steps) for steps in set(self._steps)}
        total = sum(records[steps]["multiplications"] for steps in self._steps)
        kinds = next(iter(records.values()))["pj"]
        pj = {kind: math.fsum(records[n]["pj"][kind] for n in self._steps) / self.samples for kind in kinds}
        return {"multiplications": total / self.samples, "pj": pj}

    def _layer(self, layer: str) -> dict[str, Any]:
        counts = {key: int(x.sum()) for key, x in self.counts.items() if key.layer == layer}
        row: dict[str, Any] = {"name": layer}
        row |= {kind: sum(n for key, n in counts.items() if key.kind == kind) for kind in COUNTS}
        (states,) = (x.states for x in self.prices.populations.values() if x.layer == layer)
        row |= {"weight_reads": row["accumulations"] + row["multiplications"], "states": states}
        row["state_accesses"] = 2 * states * row["updates"]
        arithmetic: dict[str, list[float]] = {"synapses": [], "neurons": []}
        memory = list[float]()
        for key, n in counts.items():
            price = self.prices.of(key)
            arithmetic["neurons" if key.kind == "updates" else "synapses"].append(n * price.arithmetic / self.samples)
            memory.append(n * price.memory / self.samples)
        row["pj"] = {**{kind: math.fsum(x) for kind, x in arithmetic.items()}, "memory": math.fsum(memory)}
        row["pj"]["total"] = math.fsum(row["pj"].values())
        return row


def _energies(arithmetic: list[float], memory: list[float]) -> dict[str, float]:
    return {
        "synapses": math.fsum(arithmetic),
        "memory": math.fsum(memory),
        "total": math.fsum((*arithmetic, *memory)),
    }


def _sum_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {kind: math.fsum(row[kind] for row in rows) for kind in rows[0]}


def weights_of(task: Task, state: TrainState) -> dict[str, AnyArray]:
    """The weights of a state by name, for `backend.run`."""
    exported = task.trainer.export_state(state)
    return {key.removeprefix("weight/"): x for key, x in exported.items() if key.startswith("weight/")}


def samples_at_once(network: NetworkSpec, steps: int, samples: int) -> int:
    """How many of `samples` samples are run together, so that all layers fit into `_MOST_BYTES`; at least 1."""
    neurons = sum(math.prod(block.output_shape) for block in network.blocks)
    return max(1, min(samples, _MOST_BYTES // (_BYTES_OF_NEURON * steps * neurons)))


def cost_of_batch(
    task: Task, weights: Mapping[str, AnyArray], batch: Batch[Inputs], samples: int
) -> dict[CostKey, Int64]:
    """Run the samples of a batch, `samples_at_once`, and count.

    Args:
        task: the network and its backend.
        weights: its weights (`weights_of`).
        batch: the samples. Targets are not read.
        samples: number of samples.

    Returns:
        The counts of each sample, `[B]`.
    """
    network, steps = task.network, task.config.steps
    inputs, axis = unpacked(batch.inputs), 0 if network.coding == "direct" else 1
    lengths = np.full(samples, steps) if batch.lengths is None else batch.lengths
    at_once = samples_at_once(network, steps, samples)
    parts = list[dict[CostKey, Int64]]()
    for first in range(0, samples, at_once):
        chosen = np.arange(first, min(first + at_once, samples))
        part = np.take(inputs, chosen, axis)
        layers = task.backend.run(network, dict(weights), part, steps).layers
        spikes = {name: layer.spikes for name, layer in layers.items()}
        costs = cost_of_run(network, part, spikes, lengths[chosen], delays=weights)
        parts.append({key: x.sum(axis=0) for key, x in costs.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
