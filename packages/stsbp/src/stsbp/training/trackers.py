"""Opens the trackers of a run by their names, and keeps a tracker that fails from stopping the training."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from stsbp_spec.models.user_classes import calling
from stsbp_spec.validation import shown

from stsbp import records
from stsbp.config import RunConfig, tracker_names
from stsbp.errors import ConfigError, did_you_mean, legible
from stsbp.files import MEGABYTE, OpenFolder
from stsbp.training.tensorboard import TensorBoard
from stsbp.training.tensorboard import require as require_tensorboard
from stsbp.training.track_mlflow import open_mlflow, require_mlflow
from stsbp.training.track_wandb import open_wandb, require_wandb
from stsbp.training.tracking import OpenTracker, TrackedRun, Tracker, tracked_settings

__all__ = ["IDENTITY_FILE", "Trackers", "names_of", "open_trackers", "require_trackers", "user_tracker"]

IDENTITY_FILE = "tracking.json"
"""File in the folder of a tracked run, with the identity by which trackers find the run again."""

_REQUIRE: Mapping[str, Callable[[], object]] = {
    "tensorboard": require_tensorboard,
    "wandb": require_wandb,
    "mlflow": require_mlflow,
}


def names_of(config: RunConfig) -> tuple[str, ...]:
    """The trackers of a run: those of `--track`, and `tensorboard` for `--tensorboard`."""
    return tuple(dict.fromkeys([*(["tensorboard"] if config.tensorboard else []), *tracker_names(config.track)]))


def require_trackers(config: RunConfig) -> None:
    """Import what the trackers need, before a run begins.

    Raises:
        ConfigError: a library is not installed, or there is no such function.
    """
    for name in names_of(config):
        _REQUIRE.get(name, partial(user_tracker, name))()


def user_tracker(name: str) -> OpenTracker:
    """The function that `module:function` names. The module may be in the current folder.

    Raises:
        ConfigError: the module cannot be imported, or has no such function.
    """
    module, _, function = name.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        with calling(f"the tracker {shown(name)} cannot be imported", ConfigError):
            names = vars(importlib.import_module(module))
    finally:
        sys.path.remove(folder)
    if function not in names:
        hint = did_you_mean(function, names)
        raise ConfigError(f"there is no {shown(name)}: the module has no {shown(function)}{hint}")
    if not callable(names[function]):
        raise ConfigError(f"{shown(name)} is not a function that returns a tracker (docs/trackers.md)")
    opened: OpenTracker = names[function]
    return opened


class Trackers:
    """All trackers of a run. One that fails is left out from then on, with one warning.

    Args:
        run: what trackers are told.
        functions: functions that open the trackers, by the name for warnings.
        warn: receives the warnings.
    """

    def __init__(
        self, run: TrackedRun, functions: Iterable[tuple[str, OpenTracker]], warn: Callable[[str], object]
    ) -> None:
        self._warn = warn
        self._open: dict[str, Tracker] = {}
        for name, function in functions:
            # The name of a function that Python got may be that of another one.
            key = name if name not in self._open else f"{name} ({len(self._open)})"
            self._guarded(key, partial(self._begin, key, function, run))

    def _begin(self, name: str, function: OpenTracker, run: TrackedRun) -> None:
        tracker = function(run)
        if not callable(getattr(tracker, "write", None)) or not callable(getattr(tracker, "close", None)):
            raise ConfigError(f"it gave {shown(tracker)}, which has no methods write and close (docs/trackers.md)")
        self._open[name] = tracker

    def write(self, record: Mapping[str, Any]) -> None:
        """Give all of them a line of `metrics.jsonl`."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, partial(tracker.write, record))

    def close(self, *, finished: bool) -> None:
        """End all of them."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, partial(tracker.close, finished=finished))

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            # Errors of libraries written in Rust, and a call of `sys.exit`, are no `Exception`.
            with calling("it fails"):
                call()
        except Exception as error:
            self._open.pop(name, None)
            reason = legible(str(error).removeprefix("it fails: "))
            self._warn(f"the tracker {shown(name)} fails, and gets no more records of this run: {reason}")


def open_trackers(
    folder: OpenFolder,
    config: RunConfig,
    entries: Sequence[Mapping[str, Any]],
    functions: Sequence[OpenTracker],
    warn: Callable[[str], object],
) -> Trackers:
    """Begin to track a run, or continue.

    Args:
        folder: folder of the run, which is locked.
        config: its settings, which name trackers.
        entries: its records so far.
        functions: further functions that open trackers.
        warn: receives a warning for each tracker that fails.
    """
    run = TrackedRun(_identity(folder, warn), folder.path.absolute().name, tracked_settings(config), tuple(entries))
    known: dict[str, OpenTracker] = {
        "tensorboard": lambda run: TensorBoard(folder, run.records),
        "wandb": open_wandb,
        "mlflow": open_mlflow,
    }
    by_name = [(name, known[name] if name in known else partial(_open_user, name)) for name in names_of(config)]
    return Trackers(run, [*by_name, *((_name_of(function), function) for function in functions)], warn)


def _open_user(name: str, run: TrackedRun) -> Tracker:
    return user_tracker(name)(run)


def _name_of(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _identity(folder: OpenFolder, warn: Callable[[str], object]) -> str:
    """The identity of a run. It is written when the run is first tracked."""
    try:
        return records.read(records.TrackingRecord, records.parse(folder.read(IDENTITY_FILE, MEGABYTE))).identity
    except FileNotFoundError:
        pass
    except ValueError as error:
        warn(f"{folder.path / IDENTITY_FILE} is damaged ({records.reason(error)}): trackers show this run as a new one")
    identity = secrets.token_hex(8)
    folder.write(IDENTITY_FILE, (json.dumps({"identity": identity}) + "\n").encode())
    return identity
