"""Finds samples for a test that are also among the training samples of a run, by comparing the contents of samples."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.typing import Coding

from stsbp.config import RECORDING_SETTINGS, RunConfig, absolute, is_named, split_start
from stsbp.datasets import Split
from stsbp.datasets.registry import info_of, named_path
from stsbp.errors import CheckpointError, ConfigError, DataError
from stsbp.hub.source import Source
from stsbp.training import checkpoint
from stsbp.training.build import Data, has_test_of_training, load_data
from stsbp.training.progress import Reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import Trained

__all__ = [
    "check_on_other",
    "contents",
    "names_on",
    "warn_of_borrowed_tests",
    "warn_of_other_settings",
    "warn_of_seen",
    "warn_of_trained_tests",
]

_BLOCK = 256
_SAMPLES = (
    *("dataset", "data_dir", "test_on", "limit", "holdout", "validation", "split_seed", "test"),
    *("image_size", "skip_malformed"),
)
"""Settings that determine the training samples and the test samples."""
_FORM = ("steps", *(name for names in RECORDING_SETTINGS.values() for name in names), "image_size")
"""Settings that determine the form in which samples are read."""
_IMAGES = {"stsbp.datasets.image_folder", "stsbp.datasets.cifar10"}
"""Modules of data sets that may contain the same images."""


def check_on_other(config: RunConfig, name: str, data_dir: str | None, run: str = "the run") -> None:
    """Raise `ConfigError` if the data set `name` of `--on`, in the folder of `--data-dir`, is the run's own."""
    if not _is_own(config, name, data_dir):
        return
    advice = "" if not info_of(name).needs_data_dir else ". To test it on other data of that kind, give --data-dir"
    if named_path(name) is not None:
        advice = f". To test it on other data of that kind, give their path: --on '{name.partition(':')[0]}:PATH'"
    raise ConfigError(f"{run} was trained on {name}; leave --on out to test it on samples that it has not seen{advice}")


@contextlib.contextmanager
def names_on(config: RunConfig, data_dir: str | None) -> Iterator[None]:
    """Add to an error about the data in the folder of `--data-dir` how to test the run on data that are not its own."""
    try:
        yield
    except (DataError, ConfigError) as error:
        named = named_path(config.dataset)
        if data_dir is None or (named is None and not info_of(config.dataset).needs_data_dir):
            raise
        if named is None:
            instead = f"--on {config.dataset!r} --data-dir {data_dir!r}"
        else:
            instead = f"--on {named[0] + data_dir!r} instead of --data-dir"
        raise type(error)(
            f"{error}\n--data-dir says where the data of the run are now. To test the run on other data of that kind, "
            f"give {instead}"
        ) from error


def _is_own(config: RunConfig, name: str, data_dir: str | None) -> bool:
    """Whether this is the data on which the run was trained."""
    run_config = absolute(config)
    sample_config = absolute(config.model_copy(update={"dataset": name, "data_dir": data_dir or config.data_dir}))
    if sample_config.dataset != run_config.dataset:
        return False
    # Data sets that name or contain their data are the same for every data folder.
    return (
        named_path(name) is not None
        or not info_of(name).needs_data_dir
        or sample_config.data_dir == run_config.data_dir
    )


def warn_of_seen(trained: Trained, name: str, samples: Split, reporter: Reporter, run: str = "the run") -> int | None:
    """Warn if the run was trained on some of these samples of the data set `name`, and return their number.

    None if it cannot be determined (`_seen_in_training`).
    """
    shared_count = _seen_in_training(trained, name, samples, reporter, run)
    if shared_count:
        reporter.warn(
            f"{shared_count} of the {len(samples)} samples have the same content as samples that {run} was trained "
            "on or that chose its best checkpoint, so they do not test it on anything new"
        )
    return shared_count


def _seen_in_training(
    trained: Trained, name: str, samples: Split, reporter: Reporter, run: str, sample_settings: RunConfig | None = None
) -> int | None:
    """Number of samples of the data set `name` that the run used for training, or for choosing its best checkpoint.

    None if the data sets are of different kinds and cannot be compared, or if the run's own data cannot be found. The
    latter is printed, with `run` as the name of the run. If the samples were read in another form than that of the run,
    `sample_settings` has their settings.
    """
    try:
        if not _are_comparable(trained.settings.dataset, name):
            return None
        run_config = trained.settings.model_copy(update={"download": False})
        data = load_data(run_config, reporter.loading, given=trained.given)
        # This raises an error if the data have changed.
        trained.samples(data, "train")
        if sample_settings is not None and any(
            getattr(sample_settings, key) != getattr(run_config, key) for key in _FORM
        ):
            form = {key: getattr(sample_settings, key) for key in _FORM}
            data = load_data(run_config.model_copy(update=form), reporter.loading, given=trained.given)
    except (DataError, ConfigError) as error:
        reason = str(error).partition("\n")[0]
        reporter.note(f"cannot check whether {run} was trained on some of these samples: {reason}")
        return None
    return _shared(data, samples, reporter)


def warn_of_trained_tests(config: RunConfig, data: Data, reporter: Reporter) -> list[str]:
    """Warn if samples of the data set for the test are among the training samples of the run. Returns the warnings."""
    if not config.test_on or not _are_comparable(config.dataset, config.test_on):
        return []
    if not (shared_count := _shared(data, data.test, reporter)):
        return []
    text = (
        f"{shared_count} of the {len(data.test)} test samples of {config.test_on} have the same content "
        "as samples that are used for training or to choose the best checkpoint"
    )
    reporter.warn(text)
    return [text]


def warn_of_borrowed_tests(config: RunConfig, data: Data, backend: AbstractBackend, reporter: Reporter) -> list[str]:
    """Warn if test samples of a run are among the training samples of the run from whose weights it begins. Returns the
    warnings.

    Raises:
        CheckpointError: that run cannot be read.
    """
    tested = config.test_on or config.dataset
    if not config.init_from or not len(data.test) or has_test_of_training(tested):
        return []
    path, name = split_start(config.init_from)
    source = Source.of(config.init_from if is_named(config.init_from) else str(path), name)
    if source.run is not None:
        is_same = all(getattr(config, key) == getattr(source.settings, key) for key in _SAMPLES)
    else:
        # Its settings have no paths, but it has the digests of its samples.
        is_same = source.has_samples_of(data)
    if is_same:
        return []
    try:
        source.check_data("so its samples are not known")
        start = source.trained(backend, reporter.warn)
    except (CheckpointError, ConfigError) as error:
        reporter.note(f"cannot check whether {config.init_from} was trained on some of the test samples: {error}")
        return []
    if not (shared_count := _seen_in_training(start, tested, data.test, reporter, config.init_from, config)):
        return []
    text = (
        f"{shared_count} of the {len(data.test)} test samples have the same content as samples that "
        f"{config.init_from} was trained on or that chose its best checkpoint, and this run starts from its weights"
    )
    reporter.warn(f"{text}. Give both runs the same --split-seed, --holdout and data set")
    return [text]


def warn_of_other_settings(config: RunConfig, reporter: Reporter) -> list[str]:
    """Warn if the checkpoint from whose weights a run begins was not trained with the settings beside it, as that of
    another run, or if this cannot be seen. Returns the warnings.
    """
    if not config.init_from or is_named(config.init_from):
        return []
    path, name = split_start(config.init_from)
    try:
        checkpoint.check_of(RunFolder(path).read_config(), checkpoint.described(path, name), path, name)
    except CheckpointError as error:
        reason = str(error).partition(";")[0]
        reporter.warn(f"{reason}. This run begins with its weights, which may be those of another run")
        return [reason]
    return []


def _are_comparable(name: str, other_name: str) -> bool:
    module, other_module = info_of(name).module, info_of(other_name).module
    return module == other_module or {module, other_module} <= _IMAGES


def _shared(data: Data, samples: Split, reporter: Reporter) -> int:
    """Number of samples with the same content as a training or validation sample."""
    training_splits = [split for split in (data.train, data.validation) if split is not None]
    coding, total = data.inputs.coding, sum(map(len, training_splits))
    trained_contents: set[bytes] = set()
    for samples_done, content in enumerate(
        (content for split in training_splits for content in contents(split, coding)), 1
    ):
        trained_contents.add(content)
        if samples_done % _BLOCK == 0:
            reporter.loading("comparing samples", samples_done, total)
    return sum(content in trained_contents for content in contents(samples, coding))


def contents(split: Split, coding: Coding) -> Iterator[bytes]:
    """A digest of the input of every sample."""
    for first in range(0, len(split), _BLOCK):
        inputs = split.inputs(np.arange(first, min(first + _BLOCK, len(split))))
        for sample in np.moveaxis(inputs, 1, 0) if coding == "events" else inputs:
            yield hashlib.blake2b(np.ascontiguousarray(sample).data, digest_size=16).digest()
