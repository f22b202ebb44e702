"""Makes the training task from settings and data: network, loss, optimiser, and the samples for each purpose."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.equations.ranges import flushes_of
from stsbp_spec.errors import NetworkError
from stsbp_spec.models.decoders import nearest_sequence, spike_count
from stsbp_spec.models.encoders import EventBinning, LabelCode, encode_repeat, packed
from stsbp_spec.models.losses import LOSSES, CrossEntropy, MeanSquaredError
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.metrics import match_spikes
from stsbp_spec.models.neurons import NEURONS, NeuronModel, Readout, parameters, parse_neuron
from stsbp_spec.models.neurons.stored import from_text
from stsbp_spec.networks.nodes import is_nodes
from stsbp_spec.networks.notation import parse_layers, parse_nodes
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Coding, Float64, Int64, Shape, UInt8
from stsbp_spec.validation import listed, shown

from stsbp.config import OF_NEURONS, OWN, RECORDING_SETTINGS, RunConfig
from stsbp.datasets import Dataset, DatasetInfo, Split, hold_out, load
from stsbp.datasets.base import ProgressCallback, SequenceLabels, content_of, lengths_of
from stsbp.datasets.registry import info_of, known_infos, named_path
from stsbp.errors import ConfigError, DataError
from stsbp.measures.regression import mean_of_targets
from stsbp.processes.group import Group
from stsbp.processes.identity import differing
from stsbp.rate_penalty import penalties_of
from stsbp.records import CheckpointRecord, InputsRecord, ProgressRecord
from stsbp.training.augment import Augmentation
from stsbp.training.metrics import LabelDistances, ReadoutDistances
from stsbp.training.optimizer import build_optimizer, frozen_parameters

__all__ = [
    "TOLERANCE",
    "Data",
    "Followed",
    "Inputs",
    "Score",
    "Task",
    "build_augmentation",
    "build_loss",
    "build_network",
    "build_neuron",
    "build_task",
    "check_patience",
    "check_reads",
    "check_typed",
    "check_typed_labels",
    "contents_of",
    "cut_validation",
    "decoders",
    "has_test_of_training",
    "indices_of_part",
    "load_data",
    "load_dataset",
    "load_test_set",
    "mean_target",
    "own_flushes",
    "padded",
    "updates_per_epoch",
]

_VALIDATION_SUBSTREAM = 2

_METRICS = {"van_rossum": LOSSES["van-rossum"], "hamming": LOSSES["hamming"]}
"""Distances that are reported for spike trains, whatever the loss is."""

_MSE = MeanSquaredError()
TOLERANCE = 1
"""Largest distance in steps between an output spike and its target spike."""


@dataclass(frozen=True)
class Inputs:
    """Properties of the data that a network needs: shape and coding of an input, and the classes.

    If labels are sequences, there are no classes, but `neurons` in a target sequence, whose values are spikes or, with
    `real_targets`, real numbers. `input_max` is the largest spike count of an entry.
    """

    shape: Shape
    coding: Coding
    classes: tuple[str, ...]
    neurons: int = 0
    input_max: int = 1
    real_targets: bool = False

    @property
    def outputs(self) -> int:
        """Number of output neurons: one per class, or those of a target raster."""
        return self.neurons or len(self.classes)

    @property
    def sequences(self) -> bool:
        """Whether labels are sequences, of spikes or of real numbers, instead of classes."""
        return self.neurons > 0

    def __str__(self) -> str:
        sequences = f"{self.neurons} {'real-valued targets' if self.real_targets else 'target spike trains'}"
        labels = sequences if self.sequences else f"{len(self.classes)} classes"
        inputs_text = "images" if self.coding == "direct" else "events"
        counts = f" and counts up to {self.input_max}" if self.input_max > 1 else ""
        return f"{inputs_text} of shape {list(self.shape)}{counts} with {labels}"

    def unlike(self, other: Inputs) -> str:
        """These properties as text. If `other` has the same inputs, the text says that the classes have other names."""
        return f"{self} of other names" if str(self) == str(other) else str(self)

    def fitted(self, binning: EventBinning) -> EventBinning:
        """The binning for frames of this shape. A spike train has the form of one row of a picture."""
        polarities, height, width = self.shape if len(self.shape) == 3 else (1, 1, *self.shape)
        binary = self.input_max == 1
        return dataclasses.replace(binning, polarities=polarities, height=height, width=width, binary=binary)

    @classmethod
    def of(cls, dataset: Dataset) -> Inputs:
        """The properties of a data set."""
        return cls(
            dataset.input_shape,
            dataset.coding,
            dataset.classes,
            dataset.neurons,
            dataset.input_max,
            dataset.real_targets,
        )

    def to_json(self) -> dict[str, Any]:
        """The form that a checkpoint stores."""
        values: dict[str, Any] = {"shape": list(self.shape), "coding": self.coding, "classes": list(self.classes)}
        values |= {"neurons": self.neurons} if self.sequences else {}
        values |= {"real_targets": True} if self.real_targets else {}
        return values | ({"input_max": self.input_max} if self.input_max > 1 else {})

    @classmethod
    def of_record(cls, record: InputsRecord) -> Inputs:
        """The properties from a checkpoint."""
        return cls(
            tuple(record.shape),
            record.coding,
            tuple(record.classes),
            record.neurons,
            record.input_max,
            record.real_targets,
        )


@dataclass(frozen=True)
class Data:
    """A data set whose validation samples have been separated.

    Attributes:
        dataset: the data set as it was loaded.
        train, test: samples for training and for the test. Without a test set, the latter are empty.
        validation: samples that determine the best checkpoint; None: the training loss determines it.
    """

    dataset: Dataset
    train: Split
    validation: Split | None
    test: Split

    @property
    def inputs(self) -> Inputs:
        """Properties of the data that a network needs."""
        return Inputs.of(self.dataset)

    def splits(self) -> dict[str, Split]:
        """All existing splits by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None and len(split)}

    @cached_property
    def contents(self) -> dict[str, str]:
        """All that training depends on, by name, each as a short text or a SHA-256. It names what differs.

        It covers shape, coding and largest count of the inputs, names and order of the classes, and of each split the
        number and order of the samples, their inputs, labels, lengths and target rasters.
        """
        dataset = self.dataset
        contents = {
            "shape of the inputs": "x".join(map(str, dataset.input_shape)),
            "coding of the inputs": dataset.coding,
            "classes": hashlib.sha256(repr(dataset.classes).encode()).hexdigest(),
            "number of target trains": str(dataset.neurons),
        }
        if dataset.input_max > 1:
            contents["largest count of the inputs"] = str(dataset.input_max)
        if dataset.real_targets:
            contents["kind of the targets"] = "real numbers"
        for name, split in self.splits().items():
            contents |= contents_of(name, split, sequences=self.inputs.sequences)
        return contents

    def unlike(self, saved: ProgressRecord | CheckpointRecord) -> str:
        """The names of what differs from the data of a checkpoint; empty if nothing does.

        A checkpoint of an earlier version has no `contents`. Its `fingerprint` of some samples is compared.
        """
        if saved.contents:
            return differing(saved.contents, self.contents)
        return "" if saved.data == self.fingerprint() else "number, labels or inputs of the samples"

    def fingerprint(self) -> str:
        """SHA-256 of labels (or target rasters), lengths and some samples of each split, which earlier versions read.

        `contents` covers all samples.
        """
        digest = hashlib.sha256(repr((self.dataset.input_shape, self.dataset.classes)).encode())
        for name, split in self.splits().items():
            digest.update(f"{name} {len(split)}".encode())
            digest.update(split.labels.astype("<i8").tobytes())
            if (lengths := lengths_of(split)) is not None:
                digest.update(lengths.astype("<i8").tobytes())
            sample_indices = np.unique(np.linspace(0, len(split) - 1, min(16, len(split))).astype(np.int64))
            digest.update(split.inputs(sample_indices).tobytes())
            if self.inputs.sequences:
                for targets in _all_targets(split):
                    digest.update(targets.tobytes())
        return digest.hexdigest()


def contents_of(name: str, split: Split, *, sequences: bool) -> dict[str, str]:
    """The digests of the samples of a split, as `Data.contents` has them.

    Args:
        name: name of the split: `train`, `validation` or `test`.
        split: the samples.
        sequences: whether labels are sequences, so that the samples have targets.
    """
    samples = f"of the {name} samples"
    contents = {f"number {samples}": str(len(split))}
    contents[f"labels {samples}"] = hashlib.sha256(split.labels.astype("<i8").tobytes()).hexdigest()
    if (lengths := lengths_of(split)) is not None:
        contents[f"lengths {samples}"] = hashlib.sha256(lengths.astype("<i8").tobytes()).hexdigest()
    contents[f"inputs {samples}"] = content_of(split)
    if sequences:
        contents[f"targets {samples}"] = _digest_of_targets(split)
    return contents


def load_data(
    config: RunConfig,
    progress: ProgressCallback | None = None,
    moved_data_dir: str | None = None,
    has_begun: bool = False,
    given: DatasetInfo | None = None,
) -> Data:
    """Load the data set of a run, and separate its validation samples.

    Args:
        config: the settings of the run.
        progress: function that receives the progress of reading.
        moved_data_dir: where the data are now, if the run's own settings are no longer correct.
        has_begun: whether the run began before, so that its data may have moved. An error then says how to continue.
        given: arrays that take the place of the data set; None: the data set has a name.

    Raises:
        DataError: the data are missing or malformed, or too few for the settings.
        ConfigError: settings define how recordings are binned or images are resized, but the data are others.
    """
    if given is not None:
        return cut_validation(load_dataset(config, progress, given), config)
    if moved_data_dir is None:
        return cut_validation(_load_of_run(config, progress, has_begun), config)
    named = _named_to_move(config)
    if named is None:
        return cut_validation(load_dataset(config.model_copy(update={"data_dir": moved_data_dir}), progress), config)
    moved_config = config.model_copy(update={"data_dir": "", "dataset": named[0] + moved_data_dir})
    dataset = load_dataset(moved_config, progress)
    note = f"read from {moved_data_dir} instead of {named[1]}"
    return cut_validation(dataclasses.replace(dataset, notes=(note, *dataset.notes)), config)


def _named_to_move(config: RunConfig) -> tuple[str, Path] | None:
    """Prefix and path of the data set that another data folder replaces; None if the data set is in `data_dir`."""
    return None if config.test_on and named_path(config.test_on) is None else named_path(config.dataset)


def _load_of_run(config: RunConfig, progress: ProgressCallback | None, has_begun: bool) -> Dataset:
    """Load the data set of a run from the place in its settings. An error says what to do about a lost path."""
    try:
        return load_dataset(config, progress)
    except DataError as error:
        paths = [
            Path(config.data_dir),
            *(
                prefix_and_path[1]
                for prefix_and_path in map(named_path, (config.dataset, config.test_on))
                if prefix_and_path
            ),
        ]
        lost = next(
            (path for path in paths if path.parts and not path.expanduser().is_absolute() and not path.exists()), None
        )
        if lost is None:
            named = _named_to_move(config)
            data_path = Path(config.data_dir) if named is None else named[1]
            if not has_begun or not data_path.parts or data_path.expanduser().exists():
                raise
            raise DataError(
                f"{error}\nWhen the run began, its data were in {data_path}. If they have moved, give their new "
                "folder with --data-dir"
            ) from error
        raise DataError(
            f"{error}\nThe data folder {lost} is a relative path, and {Path.cwd()} does not contain "
            "it. Change to the folder in which the run was started, or give the data folder with "
            "--data-dir"
        ) from error


def load_dataset(
    config: RunConfig, progress: ProgressCallback | None = None, given: DatasetInfo | None = None
) -> Dataset:
    """Load the data set of a run. `given` are arrays that take its place.

    Raises:
        DataError: the data are missing or malformed, or too few for the settings.
        ConfigError: settings define how recordings are binned or images are resized, but the data are others; or the
            data set for the test is the same one, or has other inputs or labels.
    """
    info = info_of(config.dataset)
    changed = [
        key
        for data_property, settings in RECORDING_SETTINGS.items()
        for key in settings
        if not getattr(info, data_property) and getattr(config, key) != RunConfig.model_fields[key].default
    ]
    if changed:
        data_property, recording_kind = (
            ("saccades", "recordings of saccades") if info.recordings else ("recordings", "recordings")
        )
        applicable = ", ".join(known_info.name for known_info in known_infos() if getattr(known_info, data_property))
        raise ConfigError(
            f"{', '.join(changed)} apply only to {recording_kind} ({applicable}), not to {config.dataset}"
        )
    names = [config.dataset, *([config.test_on] if config.test_on else [])]
    if config.image_size and not any(info_of(name).resizable for name in names):
        applicable = ", ".join(known_info.name for known_info in known_infos() if known_info.resizable)
        raise ConfigError(f"image_size applies only to images in files ({applicable}), not to {' or '.join(names)}")
    if not config.test and (config.test_on or config.holdout):
        raise ConfigError("test = false (--no-test) means that there is no test set: leave out test_on and holdout")
    if config.test_on and (config.holdout or config.test_on == config.dataset):
        raise ConfigError(
            "test_on must name another data set, not the one trained on, and cannot be combined with holdout"
        )
    # If only the data set for the test needs the data folder, the folder is meant for it.
    of_other = bool(config.test_on) and named_path(config.test_on) is None and named_path(config.dataset) is not None
    data_dir = "" if of_other else config.data_dir
    train_only = not config.test or bool(config.test_on)
    selection = {"limit": config.limit or None, "holdout": config.holdout or None, "train_only": train_only}
    dataset = _load(config, config.dataset, data_dir, progress, info=given, **selection)
    if config.test_on:
        return _tested_on(dataset, load_test_set(config, config.test_on, progress))
    note = () if config.test else ("no test set is used, as requested, so nothing is tested",)
    return dataclasses.replace(dataset, notes=(*dataset.notes, *note))


def load_test_set(
    config: RunConfig,
    name: str,
    progress: ProgressCallback | None = None,
    data_dir: str | None = None,
    given: DatasetInfo | None = None,
) -> Dataset:
    """Load the test samples of another data set, as a run loads its own. Without a test set, these are all samples.

    Args:
        config: the settings of the run.
        name: name of the data set. If the name contains a path, such as `folder:PATH`, it is read from there.
        progress: function that receives the progress of reading.
        data_dir: the requested data folder; by default that of the run.
        given: arrays that take the place of the data set; None: it is loaded by its name.

    Raises:
        DataError: the data are missing or malformed.
    """
    if data_dir is None:
        data_dir = "" if named_path(name) is not None else config.data_dir
    return _load(config, name, data_dir, progress, only_test=True, info=given)


def _load(config: RunConfig, name: str, data_dir: str, progress: ProgressCallback | None, **selection: Any) -> Dataset:
    return load(
        name,
        data_dir=Path(data_dir) if data_dir else None,
        steps=config.steps,
        binning=config.binning,
        own_lengths=config.own_lengths,
        seed=config.split_seed,
        download=config.download,
        skip_malformed=config.skip_malformed,
        # One of the data sets that are trained and tested on may have samples of a fixed size.
        image_size=config.image_size or None if info_of(name).resizable else None,
        progress=progress,
        **selection,
    )


def check_patience(config: RunConfig) -> None:
    """Raise `ConfigError` if a run waits for a better validation result, but has no validation samples."""
    if config.patience and not config.validation:
        raise ConfigError(
            "patience ends a run by its results on validation samples, but it has none; give --validation M, the "
            "number of training samples to hold out, or leave --patience out"
        )


def cut_validation(dataset: Dataset, config: RunConfig) -> Data:
    """Separate the validation samples of a run.

    Raises:
        DataError: there are too few training samples, or they are also the test samples.
    """
    check_patience(config)
    if config.validation == 0:
        return _noted(Data(dataset, dataset.train, None, dataset.test))
    if has_test_of_training(config.dataset):
        raise DataError(f"the test samples of {dataset.name} are its training samples: leave --validation out")
    train, validation = hold_out(
        dataset.train,
        config.validation,
        seed=config.split_seed,
        substream=_VALIDATION_SUBSTREAM,
        option="validation",
    )
    return _noted(Data(dataset, train, validation, dataset.test))


_MOST_FLUSHES = 4
"""Number of operations of a user-defined model that are warned of one by one."""
_PURPOSES = {"train": "training", "validation": "validation", "test": "the test"}


def _noted(data: Data) -> Data:
    """Data with notes on results that say nothing: there is only one class, classes have no training samples, or target
    trains are empty.
    """
    classes, notes = data.dataset.classes, list[str]()
    for name, samples in data.splits().items() if data.inputs.real_targets else ():
        if all((targets == next(_all_targets(samples))[:1, :1]).all() for targets in _all_targets(samples)):
            notes.append(
                f"the targets of the {len(samples)} samples for {_PURPOSES[name]} are always the same numbers, so R2 "
                "says nothing; check the targets"
            )
    for name, samples in data.splits().items() if data.inputs.sequences and not data.inputs.real_targets else ():
        if not any(targets.any() for targets in _all_targets(samples)):
            effect = "the network learns to be silent" if name == "train" else "their F1 says nothing"
            notes.append(
                f"no target train of the {len(samples)} samples for {_PURPOSES[name]} has a spike, so {effect}; "
                "check the targets"
            )
    if len(classes) == 1:
        notes.append(
            f"{data.dataset.name} has only the class {shown(classes[0])}, so every accuracy is 100 % and says nothing; "
            "check its labels, or that its folder contains the folders of all classes"
        )
    trained = set(np.unique(data.train.labels).tolist()) if classes else set()
    for purpose, split in (("validation", data.validation), ("test", data.test)):
        labels = np.unique(split.labels).tolist() if split is not None and classes else []
        if missing := [label for label in labels if label not in trained]:
            assert split is not None
            count = int(np.isin(split.labels, missing).sum())
            notes.append(
                f"{count} of the {len(split)} {purpose} samples are of classes without training samples, which the "
                f"network cannot know: {listed(shown(classes[label]) for label in missing)}"
            )
    return dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, notes=(*data.dataset.notes, *notes)))


def has_test_of_training(name: str) -> bool:
    """Whether the test samples of a data set are its training samples, as for `patterns`."""
    info = info_of(name)
    return info.default_holdout is None and not info.test_set


def _tested_on(dataset: Dataset, test_dataset: Dataset) -> Dataset:
    """`dataset` with the samples of another data set as its test set."""
    inputs, test_inputs = Inputs.of(dataset), Inputs.of(test_dataset)
    if inputs != test_inputs:
        raise ConfigError(
            f"{dataset.name} cannot be tested on {test_dataset.name}: it has {inputs}, but the other has "
            f"{test_inputs.unlike(inputs)}"
        )
    skipped = f", {len(test_dataset.skipped)} malformed ones left out" if test_dataset.skipped else ""
    note = f"tested on {len(test_dataset.test)} samples of {test_dataset.name}{skipped}"
    return dataclasses.replace(
        dataset, test=test_dataset.test, notes=(*dataset.notes, note), skipped=(*dataset.skipped, *test_dataset.skipped)
    )


def build_neuron(config: RunConfig) -> NeuronModel:
    """The neurons of layers that do not define their own.

    Raises:
        SpecError: a user-defined model or surrogate cannot be imported.
    """
    if config.neuron_model:
        return from_text(config.neuron_model)
    neuron_settings = {name: getattr(config, name) for name in OF_NEURONS}
    return parse_neuron(config.neuron, {**neuron_settings, "surrogate": _user_class(config, "surrogate")})


def check_typed(config: RunConfig, typed: Mapping[str, Any]) -> None:
    """Refuse settings that were typed but have no effect on the run, such as parameters that its neurons do not have.

    Presets and files of settings may contain them, because they are made for several models and data sets.

    Raises:
        ConfigError: there is such a setting. For a parameter of neurons, the message names the models that have it.
        SpecError: a user-defined model, surrogate or loss cannot be imported.
    """
    if typed.get("dropout") and is_nodes(config.net):
        raise ConfigError('--dropout does not apply to a file of nodes; add nodes such as layer = "D0.5" to it')
    if typed.get("input_tau_s") and info_of(config.dataset).coding == "direct":
        raise ConfigError(f"--input-tau-s filters event frames, but {config.dataset} has images; leave it out")
    if "momentum" in typed and config.optimizer != "sgd":
        raise ConfigError(
            f"--momentum is that of --optimizer sgd, but the optimiser is {config.optimizer}; leave it out"
        )
    if (patterns := _patterns(typed)) and build_loss(config).of_potentials:
        raise ConfigError(f"{patterns}: the loss {config.loss} reads potentials, which follow no pattern; leave it out")
    if typed.get("padding") == "same" and not _is_padded(config):
        raise ConfigError("--padding applies to convolutions without a padding, but --net has none; leave it out")
    named = {pair.partition("=")[0] for pair in config.neuron.split(":") if "=" in pair}
    for name in (*OF_NEURONS, "surrogate"):
        if name in typed and name in named:
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect, because the neuron {config.neuron} sets {name} itself; "
                "give it only once"
            )
    for name in OF_NEURONS:
        if name in typed and name not in build_neuron(config).written():
            models_with_it = ", ".join(
                neuron_name for neuron_name, model in NEURONS.items() if name in parameters(model)
            )
            raise ConfigError(
                f"--{name.replace('_', '-')} is a parameter of the neurons {models_with_it}, but not of "
                f"{config.neuron}; leave it out"
            )


def _is_padded(config: RunConfig) -> bool:
    """Whether `padding` changes the network, or is refused for one of its convolutions."""
    shared: dict[str, Any] = {"neuron": build_neuron(config), "weight_bits": config.weight_bits}
    parse: Callable[..., object] = partial(parse_layers, config.net, outputs=None, dropout=config.dropout, **shared)
    if is_nodes(config.net):
        parse = partial(parse_nodes, config.net, **shared)
    valid_network = parse(padding="valid")
    try:
        return valid_network != parse(padding="same")
    except NetworkError:
        return True


def check_typed_labels(config: RunConfig, inputs: Inputs, typed: Mapping[str, Any]) -> None:
    """Refuse patterns of label sequences that were typed for data whose labels are spike trains.

    Raises:
        ConfigError: a pattern was typed.
    """
    if inputs.sequences and (patterns := _patterns(typed)):
        kind = "real numbers" if inputs.real_targets else "spike trains"
        raise ConfigError(f"{patterns}: the labels of {config.dataset} are {kind} and need no pattern; leave it out")


def _patterns(typed: Mapping[str, Any]) -> str:
    """The typed options for patterns, for a message."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in ("label_pattern", "undesired_pattern") if name in typed)


def build_loss(config: RunConfig) -> Loss:
    """The loss of a run.

    Raises:
        SpecError: a user-defined class cannot be imported.
    """
    loss: Loss = _user_class(config, "loss")
    return loss


def _user_class(config: RunConfig, setting: str) -> Any:
    user_class = OWN[setting]
    model: str = getattr(config, user_class.model)
    return user_class.from_text(model) if model else user_class.parse(getattr(config, setting))


def own_flushes(config: RunConfig) -> tuple[str, ...]:
    """What to warn of in user-defined neurons, surrogates or losses: operations that show whether subnormal numbers are
    kept. Of many operations, the first ones and their number.
    """
    user_defined: list[NeuronModel | Loss] = []
    if config.neuron_model or config.surrogate_model:
        user_defined.append(build_neuron(config))
    if config.loss_model:
        user_defined.append(build_loss(config))
    warned = [str(flush) for definition in user_defined for flush in flushes_of(definition)]
    if (further_count := len(warned) - _MOST_FLUSHES) > 1:
        warned[_MOST_FLUSHES:] = [
            f"{further_count} more operations of the same kind; stsbp equations names all of them"
        ]
    return tuple(warned)


def check_reads(spec: NetworkSpec, inputs: Inputs) -> None:
    """Raise `ConfigError` unless a network reads the inputs of these data, and has their outputs."""
    if (inputs.shape, inputs.coding, inputs.input_max, inputs.outputs) != (
        spec.input_shape,
        spec.coding,
        spec.input_max,
        spec.outputs,
    ):
        read = f"inputs of shape {list(spec.input_shape)} with {spec.coding} coding"
        if spec.input_max > 1:
            read += f" and counts up to {spec.input_max}"
        raise ConfigError(
            f"the network reads {read} and has {spec.outputs} outputs, but the data are {inputs}; give the "
            "data and the classes of the network"
        )


def build_network(config: RunConfig, inputs: Inputs) -> NetworkSpec:
    """The network of a run.

    Raises:
        NetworkError: the notation is malformed, or does not fit the data. The message points at the token.
    """
    neuron, loss = build_neuron(config), build_loss(config)
    filtered = config.input_tau_s > 0 and inputs.coding == "events"
    by_nodes = is_nodes(config.net)  # such a network has its own dropout and output neurons
    return NetworkSpec.parse(
        config.net,
        input_shape=inputs.shape,
        outputs=inputs.outputs,
        coding=inputs.coding,
        padding=config.padding,
        neuron=neuron,
        output_neuron=Readout(config.tau_m) if loss.of_potentials and not by_nodes else None,
        weight_bits=config.weight_bits,
        dropout=0.0 if by_nodes else config.dropout,
        input_psp=PSP(config.input_tau_s, gain=config.psp_gain) if filtered else None,
        input_max=inputs.input_max,
    )


class Score(NamedTuple):
    """The quality of the outputs of a batch.

    Attributes:
        nearest: classes of the nearest label sequences, `[B]`; None if labels are sequences.
        sums: sums over the batch, by the argument names of `Sums.add`.
        losses: the loss of each sample, `[B]`.
        distances: if labels are spike trains, `van_rossum` and `hamming` of each sample; if they are real numbers,
            `squared_error`. `sums` contains their sums.
    """

    nearest: Int64 | None
    sums: dict[str, Any]
    losses: Float64
    distances: Mapping[str, Float64] = MappingProxyType({})


class Followed(NamedTuple):
    """How well the output spikes of a batch match the target spike trains.

    Attributes:
        sums: sums over the batch, as `stsbp.training.metrics.spike_figures` reads them.
        distances: `van_rossum` and `hamming` of each sample, `[B]`. `sums` contains their sums.
    """

    sums: dict[str, float]
    distances: Mapping[str, Float64]


def decoders(has_readout: bool) -> tuple[str, str]:
    """The names of the two accuracies of a run: by the metric of the loss, and by the outputs alone."""
    return ("least loss", "mean potential") if has_readout else ("nearest label sequence", "spike count")


@dataclass(frozen=True)
class Task:
    """A network, the backend's trainer for it, and the conversion of labels to target trains.

    `distances` is None if targets are real numbers.
    """

    config: RunConfig
    inputs: Inputs
    network: NetworkSpec
    trainer: Trainer
    distances: LabelDistances | ReadoutDistances | None
    augmentation: Augmentation
    backend: AbstractBackend
    group: Group = field(default_factory=Group)

    def batch(self, split: Split, indices: Int64, part: BatchSlice | None = None) -> tuple[Batch[packed.Inputs], Int64]:
        """Inputs, target trains and lengths of some samples, and their labels.

        With `part`, the inputs are only those of a part of the samples, for this process. If the part is empty, the
        input is one silent sample. Inputs have no spikes at padded steps, so that nothing moves these into a sample.
        """
        part_indices = indices if part is None else indices_of_part(indices, part)
        lengths = lengths_of(split)
        own_lengths = None if lengths is None else lengths[part_indices]
        inputs = packed.without_padding(split.stored(part_indices), own_lengths)
        if part is not None and not part.count:
            inputs = packed.silent(inputs)
        targets = self.targets(split, indices)
        return Batch(inputs, targets, None if lengths is None else lengths[indices]), split.labels[indices]

    def targets(self, split: Split, indices: Int64) -> AnyArray:
        """Targets of some samples, `[T, B, N]`. For a readout, only the classes of target trains matter."""
        if self.inputs.sequences:
            return _targets(split, indices)
        labels = split.labels[indices]
        code = LabelCode() if self.network.has_readout else self.config.label_code
        return encode_repeat(labels, len(self.inputs.classes), self.config.steps, code)

    def distances_after(self, steps: int) -> LabelDistances | ReadoutDistances:
        """`distances` for outputs `[T, B, N]` whose label sequences began `steps` steps earlier."""
        assert self.distances is not None
        if steps == 0 or isinstance(self.distances, ReadoutDistances):
            return self.distances
        config, psp = self.config, self.network.output_psp
        classes = len(self.inputs.classes)
        return LabelDistances(config.label_code, classes, config.steps, self.trainer.loss, psp, steps)

    def score(
        self,
        spikes: AnyArray,
        targets: AnyArray,
        labels: Int64,
        tolerance: int = TOLERANCE,
        lengths: Int64 | None = None,
    ) -> Score:
        """Compare outputs (spikes, or a readout's potentials) with targets `[T, B, N]`, or with labels `[B]`.

        Matching spikes may be `tolerance` steps apart.

        With `lengths` `[B]`, padded steps are ignored.
        """
        if self.inputs.real_targets:
            losses = self.trainer.loss.distances(spikes, targets, self.network.output_psp, lengths)
            errors = losses if self.trainer.loss == _MSE else _MSE.distances(spikes, targets, PSP(), lengths)
            return Score(None, {"squared_error": math.fsum(errors)}, losses, {"squared_error": errors})
        if not self.inputs.sequences:
            assert self.distances is not None
            distances, losses = self.distances.with_loss(spikes, targets, labels, lengths)
            nearest_class = nearest_sequence(distances)
            count_class = spike_count(spikes, lengths)
            correct = {
                "correct": int((nearest_class == labels).sum()),
                "correct_by_count": int((count_class == labels).sum()),
            }
            return Score(nearest_class, correct, losses)
        followed, loss = self.followed(spikes, targets, tolerance, lengths), self.trainer.loss
        known_losses = [followed.distances[name] for name, metric in _METRICS.items() if metric == loss]
        losses = known_losses[0] if known_losses else loss.distances(spikes, targets, self.network.output_psp, lengths)
        return Score(None, {"sequence": followed.sums}, losses, followed.distances)

    def followed(
        self,
        spikes: UInt8,
        targets: UInt8,
        tolerance: int = TOLERANCE,
        lengths: Int64 | None = None,
        losses: Float64 | None = None,
    ) -> Followed:
        """How well output spikes match their targets, both `[T, B, N]`. Labels may be spike trains or classes.

        `losses` `[B]` are the losses of the samples, if they are already known.
        """
        matches = match_spikes(spikes, targets, tolerance, lengths)
        distances = self.spike_distances(spikes, targets, lengths, losses)
        sums = {name: float(x.sum()) for name, x in matches._asdict().items()}
        return Followed(sums | {name: math.fsum(distance) for name, distance in distances.items()}, distances)

    def spike_distances(
        self, spikes: UInt8, targets: UInt8, lengths: Int64 | None = None, losses: Float64 | None = None
    ) -> dict[str, Float64]:
        """The distances `van_rossum` and `hamming` of each sample, `[B]`, as `followed` has them."""
        known_losses, psp = {} if losses is None else {self.trainer.loss: losses}, self.network.output_psp
        return {
            name: known_losses[metric] if metric in known_losses else metric.distances(spikes, targets, psp, lengths)
            for name, metric in _METRICS.items()
        }


def padded(batch: Batch[packed.Inputs]) -> float:
    """The amount of padding in a batch, as a number of samples with all steps."""
    if batch.lengths is None:
        return 0.0
    return len(batch.lengths) - int(batch.lengths.sum()) / len(batch.targets)


def indices_of_part(indices: Int64, part: BatchSlice) -> Int64:
    """The indices `[B]` of a batch's samples that are in a part of it. For an empty part, the first, to be silenced."""
    return indices[part.first : part.end] if part.count else indices[:1]


def _all_targets(split: Split) -> Iterator[AnyArray]:
    """Targets of all samples, some at a time."""
    for first in range(0, len(split), 64):
        yield _targets(split, np.arange(first, min(first + 64, len(split))))


def _digest_of_targets(split: Split) -> str:
    digest = hashlib.sha256()
    for targets in _all_targets(split):
        digest.update(repr(targets.shape).encode() + targets.tobytes())
    return digest.hexdigest()


def mean_target(split: Split) -> Float64:
    """Mean of the real-valued targets of each output over all samples of a split, `[N]`."""
    lengths = lengths_of(split)

    def batches() -> Iterator[tuple[AnyArray, Int64 | None]]:
        first = 0
        for targets in _all_targets(split):
            end = first + targets.shape[1]
            yield targets, None if lengths is None else lengths[first:end]
            first = end

    return mean_of_targets(batches())


def _targets(split: Split, indices: Int64) -> AnyArray:
    if not isinstance(split, SequenceLabels):
        raise DataError("the data set has no classes, and its samples no target sequences")
    return split.targets(indices)


def updates_per_epoch(config: RunConfig, samples: int) -> int:
    """Number of batches in an epoch with this number of samples. The last batch may be smaller."""
    return math.ceil(samples / config.batch_size)


def _check_augmentable(inputs: Inputs) -> None:
    """Raise `ConfigError` unless inputs of a row of neurons may move in time and between neurons."""
    if inputs.coding == "direct":
        raise ConfigError("inputs without rows and columns cannot be shifted, reflected or bent: leave augment_* out")
    if inputs.sequences:
        raise ConfigError(
            "augmentation moves these inputs in time, but not their labels, which are sequences; leave augment_* out"
        )


def build_augmentation(config: RunConfig) -> Augmentation:
    """The distortions of training samples that a run asks for."""
    return Augmentation(
        **{field.name: getattr(config, f"augment_{field.name}") for field in dataclasses.fields(Augmentation)}
    )


def _check_targets(loss: Loss, inputs: Inputs) -> None:
    """Raise `ConfigError` unless the loss compares outputs with such targets."""
    if inputs.real_targets and not loss.real_targets:
        raise ConfigError(
            f"the targets are real numbers (floats), but the loss {loss.name} compares spikes with spikes or classes; "
            f"give --loss {_MSE.name!r}, or spike trains of 0 and 1 as integers"
        )
    if loss.real_targets and not inputs.real_targets:
        labels = "spike trains" if inputs.sequences else "classes"
        raise ConfigError(
            f"the loss {loss.name} needs targets that are real numbers, but these labels are {labels}; give targets as "
            f"float32, or another loss such as {'van-rossum' if inputs.sequences else 'van-rossum or cross-entropy'}"
        )
    if isinstance(loss, CrossEntropy) and inputs.sequences:
        raise ConfigError(
            f"the loss {loss.name} needs classes, but these labels are spike trains; use van-rossum or hamming"
        )
    if loss.of_potentials and not loss.real_targets and not isinstance(loss, CrossEntropy):
        raise ConfigError(
            f"the loss {loss.name} compares potentials with spike trains, which no data set asks for; set "
            "real_targets = True in its class, or let it read spikes"
        )


def build_task(
    config: RunConfig, inputs: Inputs, backend: AbstractBackend, samples: int = 1, group: Group | None = None
) -> Task:
    """Network, loss and optimiser of a run on a backend.

    Args:
        config: the settings.
        inputs: properties of the data that the network needs.
        backend: the backend that computes.
        samples: number of training samples, on which the schedule of the learning rate depends.
        group: the processes that compute together; None: only this one.

    Raises:
        SpecError: settings contradict each other, for example a surrogate that reproducible precision refuses.
        ConfigError: augmentation is on, but the inputs are not pictures and cannot move in time; or `freeze` or
            `rate_penalty` names nothing of the network.
    """
    augmentation = build_augmentation(config)
    if len(inputs.shape) != 3 and augmentation.moves:
        _check_augmentable(inputs)
    network = build_network(config, inputs)
    loss = build_loss(config)
    _check_targets(loss, inputs)
    per_epoch = updates_per_epoch(config, samples)
    optimizer = build_optimizer(config, per_epoch)
    group = Group() if group is None else group
    trainer = backend.trainer(
        network,
        loss,
        optimizer,
        precision=config.precision,
        seed=config.seed,
        memory=config.memory,
        micro_batch=config.micro_batch or None,
        collective=group.collective,
        frozen=frozen_parameters(network, config.freeze),
        rate_penalty=penalties_of(network, config.rate_penalty),
    )
    distances: LabelDistances | ReadoutDistances | None
    if inputs.real_targets:
        distances = None
    elif isinstance(loss, CrossEntropy):
        distances = ReadoutDistances(loss)
    else:
        distances = LabelDistances(config.label_code, len(inputs.classes), config.steps, loss, network.output_psp)
    return Task(config, inputs, network, trainer, distances, augmentation, backend, group)
