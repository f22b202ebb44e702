"""`stsbp.train`: trains a network in Python with the settings, files and bits of the command line."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from stsbp_spec.distributed.launcher import rendezvous_from_environment
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.validation import real, shown

from stsbp.api.calls import flag, in_python, opened, path_of
from stsbp.api.progress import ProgressArgument, Stopping, reporter_for
from stsbp.api.run import Run, opened_run
from stsbp.api.settings import network_settings, plain_settings
from stsbp.config import RunConfig, SettingsSource
from stsbp.datasets.arrays import ARRAYS, GivenData, given_data
from stsbp.errors import ConfigError
from stsbp.processes.group import Group
from stsbp.threads import limited_threads
from stsbp.training.execute import Caller, execute
from stsbp.training.loop import TIME_IS_UP, Stopped, StopRequest, stop_on_signals
from stsbp.training.plan import SAME, RunPlan, check_resume, plan_run, settings_sources
from stsbp.training.run_folder import RunFolder
from stsbp.training.tracking import OpenTracker

__all__ = ["train_network"]


def train_network(
    data: Any,
    network: str | NetworkSpec | None,
    settings: Mapping[str, Any],
    *,
    out: str | os.PathLike[str] | None,
    resume: bool | str | os.PathLike[str],
    overwrite: bool,
    preset: str | None,
    config: str | os.PathLike[str] | RunConfig | Mapping[str, Any] | None,
    backend: AbstractBackend | str | None,
    device: str | None,
    progress: ProgressArgument,
    stop_after: float | None,
    track: str | OpenTracker | Sequence[str | OpenTracker] | None,
    allow_imports: bool,
) -> Run:
    """As `stsbp.train`."""
    with in_python():
        _check_alone()
        overwrite, allow_imports = flag("overwrite", overwrite), flag("allow_imports", allow_imports)
        given = None if data is None or isinstance(data, str) else given_data(data)
        names, trackers = _tracked(track)
        typed = _typed(data, network, given, {**settings, **names})
        path, again = None if out is None else path_of("out", out), _resumed(resume, out)
        check_resume(again, overwrite=overwrite)
        sources = _sources(typed, preset, config)
        if again is None and not any("dataset" in source.values for source in sources):
            raise ConfigError("no data set is named; give one, for example stsbp.train('digits')")
        deadline = _deadline(stop_after)
        plan = plan_run(sources, path, again, overwrite, allow_imports=allow_imports)
        if given is not None and not (again is not None and plan.folder.is_run):
            given.check_axes([settings.get("steps"), *(source.values.get("steps") for source in sources[:-1])])
        engine, stopping = opened(backend, device), Stopping()
        caller = Caller(
            [_call(data, network, {**settings, **names}, preset, plan)],
            _again,
            partial(_stopping, deadline, stopping, plan.config.threads),
            network if isinstance(network, NetworkSpec) else None,
            trackers,
        )
        with limited_threads(plan.config.threads), _interrupts(plan, stopping):
            execute(
                plan,
                sources,
                engine,
                Group(),
                reporter_for(progress, stopping),
                caller,
                overwrite=overwrite,
                given=None if given is None else given.info,
            )
        return opened_run(plan.folder, "last", engine, given)


def _check_alone() -> None:
    """Raise `ConfigError` if a launcher such as torchrun has started several processes."""
    rendezvous = rendezvous_from_environment(os.environ, 1.0)
    if rendezvous is not None and rendezvous.size > 1:
        raise ConfigError(
            f"stsbp.train trains in one process, but {rendezvous.launcher} has started {rendezvous.size}; to share the "
            "work among processes, use stsbp train --processes"
        )


def _typed(data: Any, network: Any, given: GivenData | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were typed, with those that data and network determine."""
    typed = plain_settings(settings)
    if "dataset" in typed:
        raise ConfigError(f"the data set is the first argument: stsbp.train({typed['dataset']!r}, ...)")
    if network is not None:
        if "net" in typed:
            raise ConfigError("network and net= are the same setting; give one of them")
        typed |= network_settings(network, typed)
    if given is not None:
        typed["dataset"] = ARRAYS.name
        if given.steps is not None:
            typed.setdefault("steps", given.steps)
        if given.coding == "direct" and typed.get("input_tau_s"):
            raise ConfigError("--input-tau-s filters event frames, but the data are images; leave it out")
    elif data is not None:
        typed["dataset"] = data
    return typed


def _tracked(track: Any) -> tuple[dict[str, str], tuple[OpenTracker, ...]]:
    """The setting `track`, if names were given, and the functions that open trackers.

    Raises:
        ConfigError: a part is neither a name nor a function.
    """
    if track is None:
        return {}, ()
    parts = list(track) if isinstance(track, (list, tuple)) else [track]
    names = [part for part in parts if isinstance(part, str)]
    functions = tuple(part for part in parts if not isinstance(part, str))
    for function in functions:
        if not callable(function):
            raise ConfigError(f"track is names of trackers, or functions that open one, got {shown(function)}")
    return {"track": ",".join(names)} if names or not functions else {}, functions


def _resumed(resume: object, out: object) -> str | None:
    """`resume` as `plan_run` takes it."""
    if resume is None or resume is False:
        return None
    if resume is not True:
        return str(path_of("resume", resume))
    if out is None:
        raise ConfigError("resume=True continues the run in out; give out, or the folder of the run as resume")
    return SAME


def _sources(typed: Mapping[str, Any], preset: str | None, config: Any) -> list[SettingsSource]:
    name = "stsbp.train"
    if not isinstance(preset, (str, type(None))):
        raise ConfigError(f"preset is the name of a published experiment, got {shown(preset)}")
    if config is None or isinstance(config, (str, os.PathLike)):
        return settings_sources(name, typed, preset, None if config is None else path_of("config", config))
    values = config.model_dump() if isinstance(config, RunConfig) else config
    if not isinstance(values, Mapping):
        raise ConfigError(f"config is a file, the settings of a run or a dict, got {shown(config)}")
    sources = settings_sources(name, typed, preset, None)
    return [*sources[:-1], SettingsSource("config", plain_settings(values)), sources[-1]]


def _deadline(minutes: float | None) -> float | None:
    if minutes is None:
        return None
    number = real("stop_after", minutes)
    if not 0 < number < 1e9:
        raise ConfigError(f"stop_after is a number of minutes above 0, got {shown(minutes)}")
    return time.monotonic() + 60 * number


@contextlib.contextmanager
def _stopping(deadline: float | None, stopping: Stopping, threads: int) -> Iterator[StopRequest]:
    """Within it, Ctrl-C, the clock and an error of the function of the progress stop the training."""
    # The data and the backend may have loaded libraries that the limit around the whole call has not reached.
    with limited_threads(threads), stop_on_signals(deadline, is_command=False) as request:
        stopping.request = request
        try:
            yield request
        finally:
            stopping.request = None


@contextlib.contextmanager
def _interrupts(plan: RunPlan, stopping: Stopping) -> Iterator[None]:
    """Raise what stopped the training: the error of the progress, or Ctrl-C. If its time is up, do nothing."""
    try:
        yield
    except Stopped as stopped:
        if stopping.error is not None:
            raise stopping.error from None
        if stopped.exit_code != TIME_IS_UP:
            raise KeyboardInterrupt(f"{stopped} and saved. Continue with {_again(plan.folder)}") from None


def _again(folder: RunFolder) -> str:
    return f"stsbp.train(resume={str(folder.path)!r})"


def _call(data: Any, network: Any, settings: Mapping[str, Any], preset: str | None, plan: RunPlan) -> str:
    """The call as text, for the records of the run."""
    words = [] if data is None else [repr(data) if isinstance(data, str) else "data"]
    words += [] if network is None else [repr(network) if isinstance(network, str) else "network"]
    words += [] if preset is None else [f"preset={preset!r}"]
    words += [f"{name}={_shown(value)}" for name, value in settings.items()]
    return f"stsbp.train({', '.join([*words, f'out={str(plan.folder.path)!r}'])})"


def _shown(value: Any) -> str:
    return shown(value.item() if isinstance(value, np.generic) else value)
