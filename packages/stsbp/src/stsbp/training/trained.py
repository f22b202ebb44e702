"""A trained network, read back from its run folder for evaluation and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from stsbp_spec.backend import AbstractBackend
from stsbp_spec.checks import check_inputs, check_lengths
from stsbp_spec.decoders import equally_near, nearest_sequence, spike_count
from stsbp_spec.errors import ShapeError
from stsbp_spec.lengths import without_padding
from stsbp_spec.losses.base import Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.stream import Stream
from stsbp_spec.trainer import TrainState
from stsbp_spec.typing import AnyArray, Float32, Float64, Int64, UInt8

from stsbp.config import RunConfig
from stsbp.datasets import Dataset, Split
from stsbp.errors import CheckpointError, ConfigError
from stsbp.processes.group import Group
from stsbp.training import checkpoint
from stsbp.training.build import Data, Inputs, Task, build_task
from stsbp.training.loop import import_checkpoint
from stsbp.training.run_folder import RunFolder

__all__ = ["Predicted", "Trained", "load_trained"]


@dataclass(frozen=True)
class Predicted:
    """What a network made of some samples.

    Attributes:
        spikes: output spike trains, uint8 `[T, B, N]`.
        names: of the classes, in the order of the output neurons; none where labels are spike trains.
        distances: of each sample to the label sequence of each class in the metric of the loss, `[B, K]`; None where
            labels are spike trains.
        lengths: steps of each sample, `[B]`, after which its spikes mean nothing; None: all.
    """

    spikes: UInt8
    names: tuple[str, ...]
    distances: Float64 | None
    lengths: Int64 | None = None

    @cached_property
    def nearest(self) -> Int64:
        """Number of the class whose label sequence is the nearest, `[B]`.

        Raises:
            ConfigError: labels are spike trains.
        """
        return nearest_sequence(self._distances)

    @cached_property
    def counted(self) -> Int64:
        """Number of the class whose neuron spikes most, `[B]`; raises as `nearest` does."""
        _ = self._distances
        return spike_count(self.spikes, self.lengths)

    @property
    def classes(self) -> list[str]:
        """Names of the `nearest` classes, one a sample."""
        return [self.names[number] for number in self.nearest.tolist()]

    def record(self, sample: int) -> dict[str, Any]:
        """Classes of a sample by either decoder, its distance to each class, and which are the nearest, as JSON.

        Raises as `nearest` does.
        """
        distances = np.round(self._distances[sample], 6).tolist()
        near = equally_near(self._distances[sample : sample + 1])[0]
        return {
            "class": self.names[int(self.nearest[sample])],
            "class_spike_count": self.names[int(self.counted[sample])],
            "distances": dict(zip(self.names, distances, strict=True)),
            "equally_near": [name for name, one in zip(self.names, near, strict=True) if one],
        }

    @property
    def sequences(self) -> list[list[list[int]]]:
        """Steps at which each output neuron spikes, a list for each neuron of each sample."""
        spikes = without_padding(self.spikes, self.lengths)
        return [[np.flatnonzero(train).tolist() for train in sample] for sample in spikes.transpose(1, 2, 0)]

    @property
    def _distances(self) -> Float64:
        if self.distances is None:
            raise ConfigError("the labels of this run are spike trains, not classes; take spikes or sequences")
        return self.distances


@dataclass(frozen=True)
class Trained:
    """A trained network: what `stsbp.load_run` gives.

    Attributes:
        settings: every setting of the run, as `config.toml` has them: `run.settings.lr`, `run.settings.dataset`.
        task: its network, trainer and label sequences.
        state: weights and optimiser, arrays of the backend; `task.trainer.step` goes on from here.
        info: what the checkpoint says of itself: update, epoch, digest, data.
    """

    settings: RunConfig
    task: Task
    state: TrainState
    info: dict[str, Any]

    @property
    def network(self) -> NetworkSpec:
        """The network."""
        return self.task.network

    @property
    def loss(self) -> Loss:
        """The loss that it was trained with, in whose metric label sequences are near."""
        return self.task.trainer.loss

    @property
    def backend(self) -> AbstractBackend:
        """What computes."""
        return self.task.backend

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the output neurons; none where labels are spike trains."""
        return self.task.inputs.classes

    @cached_property
    def weights(self) -> dict[str, Float32]:
        """Master weights and what neurons learned by name, as `backend.run` and `value_and_grad` take them."""
        return {name: self.backend.numpy(x).copy() for name, x in self.state.weights.items()}

    def predict(self, inputs: UInt8, lengths: Int64 | None = None) -> Predicted:
        """Outputs for new samples, without dropout, computed in batches of the run's size.

        Args:
            inputs: uint8; event frames `[T, B, C, H, W]` or `[T, B, N]` of the `settings.steps` steps, or images
                `[B, C, H, W]` or `[B, N]`.
            lengths: how many of the steps each sample has, `[B]`; its later ones are padding. None: all.

        Raises:
            ShapeError: the inputs are none of this network; the message says what it reads.
        """
        samples, steps = check_inputs(self.network, inputs, self.settings.steps), self.settings.steps
        check_lengths(lengths, samples, steps)
        axis = 1 if self.network.coding == "events" else 0
        spikes = np.concatenate(
            [
                self.task.trainer.predict(self.state, np.take(inputs, range(first, end), axis), steps).spikes
                for first in range(0, samples, self.settings.batch_size)
                for end in [min(first + self.settings.batch_size, samples)]
            ],
            axis=1,
        )
        distances = None if self.task.inputs.sequences else self.task.distances(spikes, lengths)
        return Predicted(spikes, self.names, distances, lengths)

    def decode(self, spikes: AnyArray, first: int = 0) -> Predicted:
        """What output spikes `[T, B, N]` say, of at most `settings.steps` steps of a `stream`.

        Args:
            spikes: of the steps, one after the other; of a network that ends with a readout its potentials.
            first: number of the first of them in the stream, with whose step 0 the label sequences began.

        Raises:
            ShapeError: they are no outputs of this network, or of more steps.
        """
        steps, outputs = self.settings.steps, self.network.outputs
        if spikes.ndim != 3 or not 1 <= len(spikes) <= steps or spikes.shape[1] < 1 or spikes.shape[2] != outputs:
            raise ShapeError(f"outputs are [T, B, N] with T from 1 to {steps} and N = {outputs}, got {spikes.shape}")
        samples = spikes.shape[1]
        whole = np.zeros((steps, samples, outputs), spikes.dtype)
        whole[: len(spikes)] = spikes
        lengths = None if len(spikes) == steps else np.full(samples, len(spikes))
        distances = None if self.task.inputs.sequences else self.task.distances_after(first)(whole, lengths)
        return Predicted(whole, self.names, distances, lengths)

    def stream(self, samples: int = 1) -> Stream[Any]:
        """The network step by step, for so many inputs side by side: the bits of `predict`, whenever they come.

        `.step(frames)` takes uint8 `[B, C, H, W]` or `[B, N]` and gives the output spikes `[B, N]`; `.layers` has all
        spikes and potentials of that step, `.reset()` begins anew.

        Raises:
            SpecError: there are no samples.
        """
        return self.backend.stream(self.network, self.weights, samples)

    def samples(self, data: Data, split: str) -> Split:
        """A split of the data that the run was trained on.

        Raises:
            ConfigError: there is no such split, or these are other data.
        """
        if split not in data.splits():
            how = "with --no-test" if split == "test" else "without --validation"
            raise ConfigError(f"the run has no {split} split, because it was trained {how}; name another --split")
        if data.inputs != self.task.inputs:
            raise ConfigError(
                f"the data are {data.inputs}, the run was trained on {self.task.inputs}; give the same --data-dir"
            )
        if data.fingerprint() != self.info["data"]:
            raise ConfigError(
                "the data are not those that the run was trained on (number, labels or content differ): samples "
                f"of its {split} split may have been trained on; give the same --data-dir"
            )
        return data.splits()[split]

    def other_samples(self, dataset: Dataset) -> Split:
        """The test samples of another data set.

        Raises:
            ConfigError: its inputs or labels are not what the network reads and gives.
        """
        its = Inputs.of(dataset)
        if its != self.task.inputs:
            raise ConfigError(
                f"the run was trained on {self.task.inputs}, {dataset.name} has {its.unlike(self.task.inputs)}"
            )
        return dataset.test


def load_trained(folder: RunFolder, name: str, backend: AbstractBackend, group: Group | None = None) -> Trained:
    """Read the checkpoint `name` (`last` or `best`) of a run for a backend, whichever backend wrote it.

    Raises:
        CheckpointError: there is no such run, or the checkpoint is damaged or does not fit the settings.
    """
    config = folder.read_config()
    saved = checkpoint.load(folder.path, name)
    if not checkpoint.is_of(config, saved.info):
        raise CheckpointError(f"{folder.config} is not what the checkpoint {name!r} was trained with; put it back")
    inputs = Inputs.of_record(checkpoint.trained_of(saved, folder.path, name).inputs)
    task = build_task(config, inputs, backend, group=group)
    return Trained(config, task, import_checkpoint(task, saved, folder), saved.info)
