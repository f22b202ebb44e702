"""NeuroBench's harness for a run: an adapter for any backend, and the same figures counted by stsbp.

NeuroBench reads what enters its known layers (`nn.Linear`, `nn.Conv2d`, ...) and what leaves the activations that it is
told of. The network of a run consists of neither, so its figures would be 0. The adapter runs the network on the
backend, and then shows the values to a mirror: a module for each projection, with its weights on their grid, and one
for each population, which passes its spikes on. What the modules of the projections compute is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.engine.checks import check_inputs, inputs_as_bytes
from stsbp_spec.engine.cost import CostKey, arriving, cost_of_run, dense_multiplications, node_values
from stsbp_spec.models.decoders import spike_count
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.models.lengths import inside, without_padding
from stsbp_spec.networks.graph import Projection
from stsbp_spec.networks.ops import Conv2d, OneToOne
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Int64

from stsbp.datasets import Split
from stsbp.energy.totals import samples_at_once, weights_of
from stsbp.errors import ConfigError, StsbpError
from stsbp.training.build import Task
from stsbp.training.trained import Trained

__all__ = ["NeuroBenchResult", "check_neurobench", "neurobench_model", "run_neurobench"]


class _NeuroBenchParts(NamedTuple):
    """The used parts of NeuroBench and torch."""

    version: str
    torch: Any
    benchmark: Any
    model: Any
    static_metrics: Sequence[Any]
    workload_metrics: Sequence[Any]
    accuracy: Any
    most_spikes: Any


def check_neurobench(*, processes: int = 1) -> None:
    """Raise `ConfigError` if NeuroBench is not installed, or if there are several processes."""
    if processes > 1:
        raise ConfigError("--neurobench runs in one process; leave --processes out")
    _library()


def _library() -> _NeuroBenchParts:
    try:
        import torch
        from neurobench import __version__
        from neurobench.benchmarks import Benchmark
        from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
        from neurobench.metrics.workload import (
            ActivationSparsity,
            ActivationSparsityByLayer,
            ClassificationAccuracy,
            SynapticOperations,
        )
        from neurobench.models import NeuroBenchModel
        from neurobench.processors.postprocessors import ChooseMaxCount
    except ImportError as error:
        raise ConfigError(
            f'--neurobench needs the library neurobench ({error}): pip install "stsbp[neurobench]"'
        ) from error
    return _NeuroBenchParts(
        __version__,
        torch,
        Benchmark,
        NeuroBenchModel,
        (Footprint, ParameterCount, ConnectionSparsity),
        (ActivationSparsity, ActivationSparsityByLayer, SynapticOperations),
        ClassificationAccuracy,
        ChooseMaxCount,
    )


@dataclass(frozen=True)
class NeuroBenchResult:
    """The figures of NeuroBench for a run, and those that stsbp counts.

    Attributes:
        version: version of NeuroBench.
        neurobench: its figures, by its names for them.
        stsbp: the same figures, counted by stsbp.
    """

    version: str
    neurobench: dict[str, Any]
    stsbp: dict[str, Any]

    @property
    def differing(self) -> list[str]:
        """Names of the figures that differ by more than the rounding of a mean."""
        return [name for name, value in self.neurobench.items() if not _are_equal(value, self.stsbp[name])]

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "version": self.version,
            "neurobench": self.neurobench,
            "stsbp": self.stsbp,
            "differing": self.differing,
        }


def _are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_are_equal(x, second[name]) for name, x in first.items())
    # Shares are means of float32 or float64 over the batches.
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)


def run_neurobench(trained: Trained, split: Split, batch_size: int) -> NeuroBenchResult:
    """Run NeuroBench's harness on samples.

    Args:
        trained: the network and its backend.
        split: the samples.
        batch_size: largest number of samples at a time.

    Raises:
        ConfigError: NeuroBench is not installed, or there are several processes.
        StsbpError: a metric of NeuroBench failed.
    """
    task, library = trained.task, _library()
    check_neurobench(processes=task.group.size)
    of_classes = not task.inputs.sequences
    adapter = _Adapter(task, weights_of(task, trained.state), library)
    size = min(batch_size, samples_at_once(task.network, task.config.steps, len(split)))
    batches = [range(first, min(first + size, len(split))) for first in range(0, len(split), size)]
    samples = library.torch.utils.data.DataLoader(
        range(len(split)), batch_sampler=batches, collate_fn=lambda numbers: _batch(task, split, numbers, library.torch)
    )
    failures = list[str]()
    metrics = [*library.workload_metrics, *([library.accuracy] if of_classes else [])]
    watched = [[_watched(metric, failures) for metric in kind] for kind in (library.static_metrics, metrics)]
    # The model also gets the numbers of steps, and the labels, which it only compares with its answers.
    benchmark = library.benchmark(
        adapter.model,
        samples,
        [lambda data: ((data[0], data[2], data[1]), data[1])],
        [library.most_spikes()] if of_classes else [],
        watched,
    )
    figures = benchmark.run(quiet=True)
    if failures:
        raise StsbpError(f"NeuroBench {library.version} failed: {failures[0]}")
    names = adapter.layer_names
    figures["ActivationSparsityByLayer"] = {names[key]: x for key, x in figures["ActivationSparsityByLayer"].items()}
    return NeuroBenchResult(library.version, figures, adapter.counted(of_classes=of_classes))


def neurobench_model(trained: Trained) -> Any:
    """A run as a model of NeuroBench, for its `Benchmark` with data and metrics of your own.

    The model reads tensors of integers: images `[B, C, H, W]` or `[B, N]` with direct coding, or events `[B, T, ...]`
    with the T steps of the run. It returns output spikes `[B, T, N]`; for a readout, its potentials.

    Args:
        trained: the network and its backend, for example a `stsbp.Run`.

    Raises:
        ConfigError: NeuroBench is not installed.
    """
    library = _library()
    return _Adapter(trained.task, weights_of(trained.task, trained.state), library).model


def _watched(metric: Any, failures: list[str]) -> Any:
    """A metric whose errors are noted. NeuroBench catches them and takes 0 or None as the result."""

    def call(self: Any, *arguments: Any) -> Any:
        try:
            return metric.__call__(self, *arguments)
        except Exception as error:
            failures.append(f"{metric.__name__}: {type(error).__name__}: {error}")
            raise

    return type(metric.__name__, (metric,), {"__call__": call})


def _batch(task: Task, split: Split, numbers: Sequence[int], torch: Any) -> tuple[Any, Any, Any]:
    """Inputs `[B, ...]` or `[B, T, ...]`, labels `[B]` and numbers of steps `[B]` of some samples, as tensors."""
    batch, labels = task.batch(split, np.array(numbers))
    inputs = unpacked(batch.inputs)
    if task.network.coding == "events":
        inputs = np.ascontiguousarray(inputs.swapaxes(0, 1))
    lengths = np.full(len(numbers), task.config.steps) if batch.lengths is None else batch.lengths
    return torch.from_numpy(inputs), torch.from_numpy(np.asarray(labels, np.int64)), torch.from_numpy(lengths)


@dataclass
class _Counts:
    """Sums over the batches so far."""

    samples: int = 0
    macs: int = 0
    acs: int = 0
    dense: int = 0
    correct: int = 0
    sparsity: list[float] = field(default_factory=list)
    silent: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)


class _Adapter:
    """A model of NeuroBench that computes with a backend, and counts what NeuroBench should find.

    Attributes:
        model: the model.
        layer_names: names of the layers by their names in the model.
    """

    def __init__(self, task: Task, weights: Mapping[str, AnyArray], library: _NeuroBenchParts) -> None:
        self._task, self._weights, self._torch = task, dict(weights), library.torch
        network, backend = task.network, task.backend
        self._grids = {
            projection.name: np.asarray(
                backend.numpy(backend.weight_grid(projection, backend.asarray(weights[projection.parameter]))[0])
            )
            for projection in network.graph.projections
        }
        blocks = [block for block in network.blocks if block.neuron.makes_spikes]
        self.layer_names = {f"layer{number}": block.name for number, block in enumerate(blocks)}
        self._net, self._connections, self._activations = _mirror(network, self._weights, self._grids, library.torch)
        self._counts = _Counts()
        methods: dict[str, Callable[..., Any]] = {
            "__call__": lambda model, batch: self._run(batch),
            "__net__": lambda model: self._net,
        }
        self.model = type("StsbpModel", (library.model,), methods)()
        self.model.add_activation_module(library.torch.nn.Identity)

    def _run(self, batch: Any) -> Any:
        """Output spikes `[B, T, N]`, without those of padded steps; for a readout, its potentials.

        `batch` is a tensor of inputs, or inputs, numbers of steps and labels.
        """
        network, steps, torch = self._task.network, self._task.config.steps, self._torch
        inputs, lengths, labels = batch if isinstance(batch, tuple) else _with_all_steps(batch, network, steps, torch)
        frames = inputs.cpu().numpy()
        if network.coding == "events":
            frames = np.ascontiguousarray(frames.swapaxes(0, 1))
        frames = inputs_as_bytes(network, frames)
        check_inputs(network, frames, steps)
        lengths = lengths.numpy()
        layers = self._task.backend.run(network, self._weights, frames, steps).layers
        spikes = {name: layer.spikes for name, layer in layers.items()}
        mask = inside(lengths, steps)
        values = node_values(network, frames, spikes, (steps, len(lengths)), self._weights)
        for node in network.graph.nodes:
            if node.name in self._connections:
                (edge,) = node.inputs
                self._show(self._connections[node.name], arriving(values[edge.source], edge.delay), mask)
        for key, layer in self.layer_names.items():
            self._show(self._activations[key], spikes[layer], mask)
        self._count(cost_of_run(network, frames, spikes, lengths, self._grids, self._weights), spikes, mask)
        outputs = layers[network.blocks[-1].name]
        shown = without_padding(outputs.potentials if network.has_readout else outputs.spikes, lengths)
        if labels is not None:
            self._counts.correct += int((spike_count(shown, lengths) == labels.numpy()).sum())
        return torch.from_numpy(np.ascontiguousarray(shown.swapaxes(0, 1)))

    def _show(self, module: Any, values: AnyArray, mask: AnyArray) -> None:
        """Call a module once for each step, with the samples that have this step."""
        with self._torch.no_grad():
            # Images have one frame for all steps.
            for frame, present in zip(values, mask, strict=False):
                rows = self._torch.from_numpy(frame[present].astype(np.float32))
                module(_as_read(module, rows, self._torch))

    def _count(self, costs: Mapping[CostKey, Int64], spikes: Mapping[str, AnyArray], mask: AnyArray) -> None:
        counts, steps = self._counts, mask.sum(axis=0)
        counts.samples += len(steps)
        for key, ones in costs.items():
            if key.kind == "accumulations":
                others = costs[key._replace(kind="multiplications")]
                # NeuroBench decides for a whole call: if one value is neither 0 nor 1, all are multiplied.
                multiplied = others.sum(axis=1) > 0
                counts.macs += int((ones + others).sum(axis=1)[multiplied].sum())
                counts.acs += int(ones.sum(axis=1)[~multiplied].sum())
        for per_frame, is_static in dense_multiplications(self._task.network).values():
            counts.dense += per_frame * int(len(steps) if is_static else steps.sum())
        silent = total = 0
        for layer in self.layer_names.values():
            present = spikes[layer][mask]
            silent_places = present.size - int(present.sum())
            counts.silent[layer] = counts.silent.get(layer, 0) + silent_places
            counts.places[layer] = counts.places.get(layer, 0) + present.size
            silent, total = silent + silent_places, total + present.size
        counts.sparsity.append(silent / total * len(steps) if total else 0.0)

    def counted(self, *, of_classes: bool) -> dict[str, Any]:
        """The figures of NeuroBench, from the counts."""
        network, counts = self._task.network, self._counts
        sizes = [math.prod(parameter.shape) for parameter in network.parameters.values()]
        zeros = sum(int((weights == 0).sum()) for weights in self._grids.values())
        figures: dict[str, Any] = {
            # Parameters and running statistics are float32.
            "Footprint": 4 * (sum(sizes) + sum(x.size for x in network.statistics.values())),
            "ParameterCount": sum(sizes),
            "ConnectionSparsity": round(zeros / sum(weights.size for weights in self._grids.values()), 4),
            "ActivationSparsity": math.fsum(counts.sparsity) / counts.samples,
            "ActivationSparsityByLayer": {layer: n / counts.places[layer] for layer, n in counts.silent.items()},
            "SynapticOperations": {
                "Effective_MACs": counts.macs / counts.samples,
                "Effective_ACs": counts.acs / counts.samples,
                "Dense": counts.dense / counts.samples,
            },
        }
        return figures | ({"ClassificationAccuracy": counts.correct / counts.samples} if of_classes else {})


def _with_all_steps(inputs: Any, network: NetworkSpec, steps: int, torch: Any) -> tuple[Any, Any, None]:
    if network.coding == "events" and inputs.ndim > 1:
        steps = inputs.shape[1]
    return inputs, torch.full((len(inputs),), steps), None


def _as_read(module: Any, rows: Any, torch: Any) -> Any:
    """Values `[B, ...]` in the shape that a module reads."""
    if isinstance(module, torch.nn.Linear):
        return rows.flatten(1)
    return rows[..., None] if isinstance(module, torch.nn.Conv1d) else rows


def _mirror(
    network: NetworkSpec, weights: Mapping[str, AnyArray], grids: Mapping[str, AnyArray], torch: Any
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A module with all parameters of a network, and its modules for projections (by node) and populations."""
    net = torch.nn.Module()
    connections = {
        projection.name: _connection(projection, grids[projection.name], torch)
        for projection in network.graph.projections
    }
    # The modules have numbers as names, because not every name of a node is allowed.
    net.connections = torch.nn.ModuleList(connections.values())
    spiking = [block for block in network.blocks if block.neuron.makes_spikes]
    activations = {f"layer{number}": torch.nn.Identity() for number in range(len(spiking))}
    net.activations = torch.nn.ModuleDict(activations)
    for number, name in enumerate(network.parameters):
        if name not in connections:
            net.register_parameter(f"parameter{number}", torch.nn.Parameter(torch.from_numpy(weights[name].copy())))
    for number, name in enumerate(network.statistics):
        net.register_buffer(f"statistic{number}", torch.from_numpy(weights[name].copy()))
    return net.eval(), connections, activations


def _connection(projection: Projection, grid: AnyArray, torch: Any) -> Any:
    """A module of NeuroBench's known kinds with the weights of a projection."""
    op, shape = projection.synapse, projection.input.shape
    weights = torch.from_numpy(np.array(grid, np.float32))
    if isinstance(op, Conv2d):
        module = torch.nn.Conv2d(
            shape[0], op.channels, op.kernels, op.strides, op.paddings, op.dilations, op.groups, bias=False
        )
    elif isinstance(op, OneToOne):
        # One channel for each neuron, which reads only itself.
        module = torch.nn.Conv1d(len(weights), len(weights), 1, groups=len(weights), bias=False)
        weights = weights[..., None]
    else:
        module = torch.nn.Linear(math.prod(shape), len(weights), bias=False)
    del module.weight
    # Weights that another projection owns are no parameters of their own.
    module.weight = torch.nn.Parameter(weights) if projection.shares is None else weights
    return module
