"""A trained network, read back from its run folder for evaluation and prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.checks import check_inputs, check_lengths, inputs_as_bytes
from stsbp_spec.engine.stream import Stream
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.errors import NumericError, ShapeError
from stsbp_spec.models.decoders import equally_near, nearest_sequence, spike_count
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32, Float64, Int64, UInt8
from stsbp_spec.validation import array_of, integer, shown

from stsbp import records
from stsbp.config import RunConfig
from stsbp.datasets import Dataset, DatasetInfo, Split
from stsbp.errors import ConfigError
from stsbp.processes.group import Group
from stsbp.training import checkpoint
from stsbp.training.build import Data, Inputs, Task, build_task
from stsbp.training.loop import import_checkpoint
from stsbp.training.run_folder import RunFolder

__all__ = ["Predicted", "Trained", "load_trained", "warn_of_contract"]


@dataclass(frozen=True)
class Predicted:
    """The outputs of a network for some samples.

    Attributes:
        spikes: output spike trains, uint8 `[T, B, N]`; of a network that ends with a readout, its potentials, float32.
        names: names of the classes, in the order of the output neurons; empty if labels are sequences.
        distances: distance of each sample to the label sequence of each class, in the metric of the loss, `[B, K]`.
            None if labels are sequences.
        lengths: number of steps of each sample, `[B]`; later spikes are meaningless. None: all steps count.
    """

    spikes: UInt8
    names: tuple[str, ...]
    distances: Float64 | None
    lengths: Int64 | None = None

    @cached_property
    def nearest(self) -> Int64:
        """Number of the class with the nearest label sequence, `[B]`.

        Raises:
            ConfigError: labels are spike trains.
        """
        return nearest_sequence(self._distances)

    @cached_property
    def counted(self) -> Int64:
        """Number of the class whose neuron spikes most often, `[B]`. Raises the same errors as `nearest`."""
        _ = self._distances
        return spike_count(self.spikes, self.lengths)

    @property
    def classes(self) -> list[str]:
        """Names of the `nearest` classes, one per sample."""
        return [self.names[number] for number in self.nearest.tolist()]

    def record(self, sample: int) -> dict[str, Any]:
        """The classes of a sample by both decoders, its distance to each class, and the nearest classes, as JSON.

        Raises the same errors as `nearest`.
        """
        distances = np.round(self._distances[sample], 6).tolist()
        is_near = equally_near(self._distances[sample : sample + 1])[0]
        return {
            "class": self.names[int(self.nearest[sample])],
            "class_spike_count": self.names[int(self.counted[sample])],
            "distances": dict(zip(self.names, distances, strict=True)),
            "equally_near": [name for name, is_equal in zip(self.names, is_near, strict=True) if is_equal],
        }

    @property
    def sequences(self) -> list[list[list[int]]]:
        """The steps at which each output neuron spikes: a list for each neuron of each sample.

        Raises:
            ConfigError: the network ends with a readout, which has no spikes.
        """
        if self.spikes.dtype != np.uint8:
            raise ConfigError("the outputs of this run are potentials and have no spikes; take values")
        spikes = without_padding(self.spikes, self.lengths)
        return [[np.flatnonzero(train).tolist() for train in sample] for sample in spikes.transpose(1, 2, 0)]

    @property
    def values(self) -> list[list[list[float]]]:
        """The output of each neuron at each step: a list for each neuron of each sample, without padded steps."""
        lengths = [len(self.spikes)] * self.spikes.shape[1] if self.lengths is None else self.lengths.tolist()
        return [self.spikes[:length, b].T.tolist() for b, length in enumerate(lengths)]

    @property
    def _distances(self) -> Float64:
        if self.distances is None:
            raise ConfigError("the labels of this run are sequences, not classes; take spikes or sequences")
        return self.distances


@dataclass(frozen=True)
class Trained:
    """A trained network. `stsbp.load_run` returns it.

    Attributes:
        settings: every setting of `config.toml`: `run.settings.lr`, `run.settings.dataset`.
        task: its network, trainer and label sequences.
        state: weights and optimiser state, as arrays of the backend; `task.trainer.step` continues from here.
        info: facts about the checkpoint: update, epoch, digest, data.
        given: the arrays on which the run was trained, if they are known; None: its data set has a name.
    """

    settings: RunConfig
    task: Task
    state: TrainState
    info: dict[str, Any]
    given: DatasetInfo | None = field(default=None, kw_only=True)

    @property
    def network(self) -> NetworkSpec:
        """The network."""
        return self.task.network

    @property
    def loss(self) -> Loss:
        """The loss of the training. It also measures the distance to label sequences."""
        return self.task.trainer.loss

    @property
    def backend(self) -> AbstractBackend:
        """The backend that computes."""
        return self.task.backend

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the output neurons; empty if labels are spike trains."""
        return self.task.inputs.classes

    @cached_property
    def weights(self) -> dict[str, Float32]:
        """Master weights and learned parameters of neurons, by name, for `backend.run` and `value_and_grad`."""
        return {name: self.backend.numpy(x).copy() for name, x in self.state.weights.items()}

    def predict(self, inputs: UInt8, lengths: Int64 | None = None) -> Predicted:
        """Compute the outputs for new samples, without dropout, in batches of the run's size.

        Args:
            inputs: uint8; event frames `[T, B, C, H, W]` or `[T, B, N]` with T = `settings.steps`, or images
                `[B, C, H, W]` or `[B, N]`.
            lengths: number of steps of each sample, `[B]`; later steps are padding. None: all samples have T steps.

        Raises:
            ShapeError: the inputs do not fit the network. The message states what the network reads.
        """
        inputs = inputs_as_bytes(self.network, inputs)
        samples, steps = check_inputs(self.network, inputs, self.settings.steps), self.settings.steps
        check_lengths(lengths, samples, steps)
        axis = 1 if self.network.coding == "events" else 0
        predict = self.task.trainer.predictor(self.state)
        spikes = np.concatenate(
            [
                predict(np.take(inputs, range(first, end), axis), steps).spikes
                for first in range(0, samples, self.settings.batch_size)
                for end in [min(first + self.settings.batch_size, samples)]
            ],
            axis=1,
        )
        to_labels = None if self.task.inputs.sequences else self.task.distances
        distances = None if to_labels is None else to_labels(spikes, lengths)
        return Predicted(spikes, self.names, distances, lengths)

    def decode(self, spikes: Any, first: int = 0) -> Predicted:
        """Decode output spikes `[T, B, N]` of at most `settings.steps` steps of a `stream`.

        Args:
            spikes: output spikes of consecutive steps; for a network that ends with a readout, its potentials. A numpy
                array, a tensor of torch or JAX, or a list.
            first: number of the first of these steps in the stream. The label sequences begin at step 0 of the stream.

        Raises:
            ShapeError: the spikes are not outputs of this network, or have too many steps, or `first` is not an integer
                of at least 0.
            NumericError: a potential of a readout is not finite.
        """
        steps, outputs, spikes = self.settings.steps, self.network.outputs, array_of(spikes)
        if (begin := integer(first)) is None or begin < 0:
            raise ShapeError(f"first is the number of a step, 0 or more, got {shown(first)}")
        if spikes.ndim != 3 or not 1 <= len(spikes) <= steps or spikes.shape[1] < 1 or spikes.shape[2] != outputs:
            raise ShapeError(f"outputs are [T, B, N] with T from 1 to {steps} and N = {outputs}, got {spikes.shape}")
        if self.network.has_readout:
            if not np.isfinite(spikes).all():
                raise NumericError("a potential of the readout is not finite")
        else:
            if not ((spikes == 0) | (spikes == 1)).all():
                raise ShapeError("the outputs of this network are spikes, 0 or 1, got other values")
            spikes = spikes.astype(np.uint8, copy=False)
        samples = spikes.shape[1]
        padded = np.zeros((steps, samples, outputs), spikes.dtype)
        padded[: len(spikes)] = spikes
        lengths = None if len(spikes) == steps else np.full(samples, len(spikes))
        distances = None if self.task.inputs.sequences else self.task.distances_after(begin)(padded, lengths)
        return Predicted(padded, self.names, distances, lengths)

    def stream(self, samples: int = 1) -> Stream[Any]:
        """Run the network step by step, for `samples` inputs at once, with the bits of `predict`.

        `.step(frames)` takes uint8 `[B, C, H, W]` or `[B, N]` and returns the output spikes `[B, N]`. `.layers` has all
        spikes and potentials of that step. `.reset()` starts again from rest.

        Raises:
            SpecError: `samples` is less than 1.
        """
        return self.backend.stream(self.network, self.weights, samples)

    def samples(self, data: Data, split: str) -> Split:
        """A split of the data on which the run was trained.

        Raises:
            ConfigError: there is no such split, or the data differ from those of the run.
        """
        if split not in ("train", "validation", "test"):
            raise ConfigError(f"there is no split {split!r}; name train, validation or test")
        if split not in data.splits():
            reason = "with --no-test" if split == "test" else "without --validation"
            raise ConfigError(f"the run has no {split} split, because it was trained {reason}; name another --split")
        if data.inputs != self.task.inputs:
            raise ConfigError(
                f"the data are {data.inputs.unlike(self.task.inputs)}, but the run was trained on {self.task.inputs}; "
                "give the same --data-dir"
            )
        if differs := data.unlike(records.read(records.CheckpointRecord, self.info)):
            raise ConfigError(
                f"the data are not those that the run was trained on; different: {differs}. Samples of its {split} "
                "split may have been trained on; give the same --data-dir"
            )
        return data.splits()[split]

    def other_samples(self, dataset: Dataset) -> Split:
        """The test samples of another data set.

        Raises:
            ConfigError: its inputs or labels do not fit the network.
        """
        inputs = Inputs.of(dataset)
        if inputs != self.task.inputs:
            raise ConfigError(
                f"the run was trained on {self.task.inputs}, but {dataset.name} has {inputs.unlike(self.task.inputs)}"
            )
        return dataset.test


def warn_of_contract(name: object, version: int, group: Group | None, warn: Callable[[str], object]) -> None:
    """Warn, in one process, that a later version of the exact-arithmetic contract trained a network."""
    if version > CONTRACT_VERSION and (group is None or group.leads):
        warn(
            f"{name} was trained under version {version} of the exact-arithmetic contract, but this stsbp computes "
            f"under version {CONTRACT_VERSION}, so spikes may differ from those of the training. Update stsbp "
            "(docs/exactness.md)"
        )


def load_trained(
    folder: RunFolder,
    name: str,
    backend: AbstractBackend,
    group: Group | None = None,
    warn: Callable[[str], object] = partial(warnings.warn, stacklevel=3),
) -> Trained:
    """Read the checkpoint `name` (`last` or `best`) of a run for a backend, whichever backend wrote it.

    `warn` receives a warning if a later version of the exact-arithmetic contract wrote it.

    Raises:
        CheckpointError: there is no such run, or the checkpoint is damaged or does not fit the settings.
    """
    config = folder.read_config()
    saved = checkpoint.load_of(config, folder.path, name)
    record = checkpoint.trained_of(saved, folder.path, name)
    warn_of_contract(folder.path, record.contract, group, warn)
    # Older checkpoints lack the number of training samples. The updates of finished epochs then give the schedule.
    samples = record.samples or (record.step - record.batch) // max(1, record.epoch) * config.batch_size
    task = build_task(config, Inputs.of_record(record.inputs), backend, max(1, samples), group)
    return Trained(config, task, import_checkpoint(task, saved, folder), saved.info)
