"""Whether samples to test on are among those that a run was trained on, seen by the content of each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from stsbp_spec.typing import Coding

from stsbp.datasets import DATASETS, Split
from stsbp.datasets.registry import info_of
from stsbp.errors import ConfigError, DataError
from stsbp.training.build import load_data
from stsbp.training.progress import Reporter
from stsbp.training.trained import Trained

__all__ = ["contents", "seen_in_training"]

_BLOCK = 256
_IMAGES = {DATASETS["images"].module, DATASETS["cifar10"].module}


def seen_in_training(trained: Trained, name: str, samples: Split, show: Reporter) -> int | None:
    """How many of the samples of the data set `name` the run was trained on, or chose its best checkpoint by.

    None where the data sets are of different kinds, which cannot be compared, or where the run's own data are not to be
    found; the latter is said.
    """
    ours, theirs = info_of(trained.config.dataset).module, info_of(name).module
    if ours != theirs and not {ours, theirs} <= _IMAGES:
        return None
    try:
        data = load_data(trained.config.model_copy(update={"download": False}), show.loading)
        # Raises where these are other data by now.
        trained.samples(data, "train")
    except (DataError, ConfigError) as error:
        reason = str(error).partition("\n")[0]
        show.note(f"whether the run was trained on some of these samples cannot be seen: {reason}")
        return None
    own = [split for split in (data.train, data.validation) if split is not None]
    coding, total = trained.task.inputs.coding, sum(map(len, own))
    known: set[bytes] = set()
    for done, content in enumerate((content for split in own for content in contents(split, coding)), 1):
        known.add(content)
        if done % _BLOCK == 0:
            show.loading("comparing samples", done, total)
    return sum(content in known for content in contents(samples, coding))


def contents(split: Split, coding: Coding) -> Iterator[bytes]:
    """A digest of the input of every sample."""
    for first in range(0, len(split), _BLOCK):
        inputs = split.inputs(np.arange(first, min(first + _BLOCK, len(split))))
        for sample in np.moveaxis(inputs, 1, 0) if coding == "events" else inputs:
            yield hashlib.blake2b(np.ascontiguousarray(sample).data, digest_size=16).digest()
