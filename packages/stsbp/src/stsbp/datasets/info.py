"""Facts about a data set before it is read: how to load it, what it needs, and its default settings.

Each data set's module makes one (`NMNIST = DatasetInfo("nmnist", ...)`). `stsbp.datasets.registry` finds it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from stsbp_spec.typing import Coding
from stsbp_spec.validation import shown

from stsbp.datasets.base import Dataset, Request
from stsbp.errors import DataError

__all__ = ["ByLoss", "DatasetInfo", "Setting"]

Setting: TypeAlias = str | int | float | bool


class ByLoss(NamedTuple):
    """A setting for each loss."""

    hamming: Setting
    van_rossum: Setting
    spike_count: Setting


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a data set before it is loaded.

    Attributes:
        name: the name, the same as that of its entry point.
        description: one line about it.
        coding: `direct` for images, `events` for frames and spike trains.
        load: the function that reads it.
        defaults: settings of `stsbp.config.RunConfig` that `stsbp train NAME` uses by default; a setting that depends
            on the loss is a `ByLoss`.
        steps: function that returns the number of steps of the samples at a path, which `stsbp train NAME` uses by
            default; None if the path does not determine it. It may raise a `DataError`. None: `defaults` determine it.
        at: function that returns the `DatasetInfo` of the data at a path, for names with a path, if coding and default
            settings depend on the data. None: they do not.
        test_set: the published test set in words, for the help of users; empty: there is none, or it is not described.
        default_holdout: samples that are held out as the test set if the source has none, as a number or as a share in
            words. None: no samples can be held out; without a `test_set`, the test samples are the training samples.
        needs_data_dir: whether it needs files in a data folder.
        can_download: whether `Request.download` downloads missing files.
        recordings: whether samples are recordings of events, which `EventBinning` turns into frames.
        saccades: whether the recordings contain three saccades of a camera, like those of N-MNIST.
        sounds: whether samples are sounds that the model of the ear of `fsdd` turns into spikes, so that `stsbp
            predict` may do the same with a sound.
        resizable: whether `Request.image_size` resizes the samples.
        extra: the optional dependencies, `pip install "stsbp[extra]"`.
        argument: the text that must follow the name and a colon, for example `NAME`; empty: none.
        options: options that may follow as `NAME:option=value`, with a line about each.
        licence: the licence of the data, in a few words.

    Raises:
        DataError: `load` is no function, or `defaults` or `options` are no mapping from names.
    """

    name: str
    description: str
    coding: Coding
    load: Callable[[Request], Dataset]
    defaults: Mapping[str, Setting | ByLoss] = field(default_factory=dict)
    steps: Callable[[Path], int | None] | None = None
    at: Callable[[Path], DatasetInfo] | None = None
    test_set: str = ""
    default_holdout: int | str | None = "a fifth"
    needs_data_dir: bool = True
    can_download: bool = False
    recordings: bool = False
    saccades: bool = False
    sounds: bool = False
    resizable: bool = False
    extra: str | None = None
    argument: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""

    def __post_init__(self) -> None:
        load: object = self.load
        if not callable(load):
            raise DataError(f"{self.name}: load must be a function that receives a Request, got {shown(load)}")
        for field_name in ("defaults", "options"):
            if not isinstance(value := getattr(self, field_name), Mapping):
                raise DataError(f"{self.name}: {field_name} must be a dict, got {shown(value)}")
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise DataError(f"{self.name}: the keys of {field_name} must be names, got {shown(wrong[0])}")

    @property
    def module(self) -> str:
        """The module that loads it."""
        return self.load.__module__

    @property
    def synopsis(self) -> str:
        """The name with all arguments and options that may follow it."""
        required = f":{self.argument}" if self.argument else ""
        return self.name + required + "".join(f"[:{option}=...]" for option in self.options)
