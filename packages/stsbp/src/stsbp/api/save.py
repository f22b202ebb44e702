"""`stsbp.save_run`: makes a run of a network that a loop of torch, of JAX or of `backend.trainer` trained."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.trainer import Trainer, TrainState
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.optim import Optimizer
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32
from stsbp_spec.validation import array_of, listed, real, shown

from stsbp.api.calls import flag, in_python, opened, path_of
from stsbp.api.progress import ProgressArgument, reporter_for
from stsbp.api.run import Run, opened_run
from stsbp.api.settings import OF_THE_NETWORK, network_settings, plain_settings
from stsbp.api.state import GivenState, arrays_of, read_state, settings_of_trainer, state_tensors
from stsbp.config import RunConfig, SettingsSource, absolute, resolve
from stsbp.datasets.arrays import ARRAYS, GivenData, given_data, listed_names
from stsbp.datasets.registry import steps_of
from stsbp.errors import ConfigError, FileError
from stsbp.threads import limited_threads
from stsbp.training.build import Data, Inputs, build_network, build_task, check_reads, load_data, updates_per_epoch
from stsbp.training.initial import pinned
from stsbp.training.progress import Reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.saved_network import epochs_of, write_network

__all__ = ["save_network"]


def save_network(
    network: Any,
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    *,
    weights: Mapping[str, Any] | None,
    state: Any,
    updates: int | None,
    history: Sequence[Any] | Mapping[str, Sequence[float]] | None,
    data: Any,
    classes: Sequence[str] | None,
    overwrite: bool,
    backend: AbstractBackend | str | None,
    device: str | None,
    progress: ProgressArgument,
) -> Run:
    """As `stsbp.save_run`."""
    with in_python():
        trained = _trained(network, weights, state, updates)
        path, overwrite = path_of("folder", folder), flag("overwrite", overwrite)
        _check_classes(classes)
        if settings.get("init_from"):
            raise ConfigError("init_from= names weights to begin with, but a saved run has its own; leave it out")
        run_folder = RunFolder(path)
        _check_place(run_folder, overwrite=overwrite)
        given = None if data is None or isinstance(data, str) else given_data(data, classes)
        typed = plain_settings(settings)
        config = _config(trained, data, given, typed)
        engine, reporter = opened(backend, device), reporter_for(progress)
        try:
            with limited_threads(config.threads):
                _write(
                    trained,
                    config,
                    typed,
                    run_folder,
                    data,
                    given,
                    classes,
                    engine,
                    history,
                    reporter,
                    overwrite=overwrite,
                )
        finally:
            reporter.close()
        return opened_run(run_folder, "last", engine, given)


@dataclass(frozen=True)
class _TrainedNetwork:
    """A network from a loop of another program.

    Attributes:
        spec: the network.
        weights: its parameters and statistics by name.
        state: the state of its training; None: not known.
        settings: settings that the network's module, its trainer or the state says.
        optimizer: the optimiser of its trainer; None: it had none.
    """

    spec: NetworkSpec
    weights: Mapping[str, Float32]
    state: GivenState | None
    settings: Mapping[str, Any]
    optimizer: Optimizer | None = None

    @property
    def step(self) -> int:
        """Number of updates; 0 if there is no state."""
        return (self.state and self.state.step) or 0

    @property
    def counts_updates(self) -> bool:
        """Whether it has numbers of updates that a run has as epochs: those of its state, or of its learning rate."""
        falls = self.optimizer is not None and (self.optimizer.warmup_steps or self.optimizer.total_steps is not None)
        return bool(self.step or falls)


def _write(
    trained: _TrainedNetwork,
    config: RunConfig,
    typed: Collection[str],
    folder: RunFolder,
    data: Any,
    given: GivenData | None,
    classes: Sequence[str] | None,
    engine: AbstractBackend,
    history: Any,
    reporter: Reporter,
    *,
    overwrite: bool,
) -> None:
    loaded: Data | None = None
    if data is not None:
        loaded = load_data(config, reporter.loading, given=None if given is None else given.info)
    inputs = _inputs(trained.spec, classes) if loaded is None else loaded.inputs
    _check_network(trained.spec, config, inputs)
    samples = None if loaded is None else len(loaded.train)
    if samples is not None and trained.optimizer is not None:
        config = _scheduled(config, trained.optimizer, updates_per_epoch(config, samples), typed)
    epochs = epochs_of(trained.step, samples, config)
    if epochs > config.epochs:
        config = config.model_copy(update={"epochs": epochs})
    task = build_task(config, inputs, engine, samples or 1)
    trainer, figures = task.trainer, _history(history)
    tensors = state_tensors(trained.weights, trained.state, trained.spec, trainer.optimizer, set(trainer.frozen))
    command = f"stsbp.save_run(network, {str(folder.path)!r})"
    write_network(folder, task, loaded, tensors, figures, reporter, command, overwrite=overwrite)


def _scheduled(config: RunConfig, optimizer: Optimizer, per_epoch: int, typed: Collection[str]) -> RunConfig:
    """The settings with the schedule of a trainer's optimiser, which counts updates and not epochs.

    Raises:
        ConfigError: the schedule does not end with an epoch.
    """
    changes: dict[str, Any] = {}
    if optimizer.warmup_steps and "warmup" not in typed:
        changes["warmup"] = optimizer.warmup_steps / per_epoch
    if optimizer.total_steps is not None and not {"epochs", "schedule"} & set(typed):
        epochs, more = divmod(optimizer.total_steps, per_epoch)
        if more:
            raise ConfigError(
                f"the learning rate of the trainer falls for {optimizer.total_steps} updates, but an epoch has "
                f"{per_epoch} with batch_size={config.batch_size}; give the data and the batch_size of your loop, or "
                "the number of epochs after which it is 0, epochs="
            )
        changes["epochs"] = epochs
    return config.model_copy(update=changes)


def _check_place(folder: RunFolder, *, overwrite: bool) -> None:
    if not folder.is_free:
        if not overwrite:
            raise FileError(f"{folder.path} exists and is not empty; replace it with overwrite=True, or choose another")
        folder.own_files()
    folder.check_writable()


def _config(trained: _TrainedNetwork, data: Any, given: GivenData | None, typed: dict[str, Any]) -> RunConfig:
    """The settings of the run: those of the network and its trainer, and the typed ones, which override the latter."""
    if "dataset" in typed:
        raise ConfigError("the data set is the argument data")
    values = {**trained.settings, **typed, **network_settings(trained.spec, typed)}
    values["dataset"] = data if isinstance(data, str) else ARRAYS.name
    determined = None if given is None else given.steps
    if isinstance(data, str):
        determined = steps_of(data, str(typed.get("data_dir", "")))
    if given is not None:
        given.check_axes([values.get("steps")])
    if determined is not None:
        values.setdefault("steps", determined)
    if "steps" not in values:
        raise ConfigError("give the number of steps with which the network was trained, for example steps=25")
    if data is not None and trained.counts_updates and "batch_size" not in values:
        raise ConfigError(
            "a run counts epochs, but the state and the learning rate of your loop count updates; give the number of "
            "samples in each update, batch_size=, or save the weights without the state"
        )
    if "epochs" not in values and trained.step:
        values["epochs"] = 1
    if trained.state is not None and values["optimizer"] not in trained.state.optimizers:
        names = " or ".join(trained.state.optimizers)
        raise ConfigError(f"the state is that of the optimiser {names}, not {values['optimizer']}; leave optimizer out")
    config = resolve([SettingsSource("stsbp.save_run", values)])
    # The settings of the data set for networks do not apply to this one.
    unused = {name: RunConfig.model_fields[name].default for name in OF_THE_NETWORK if name not in values}
    return pinned(absolute(config.model_copy(update=unused)))


def _check_network(spec: NetworkSpec, config: RunConfig, inputs: Inputs) -> None:
    """Raise `ConfigError` unless the settings give the network for these inputs."""
    check_reads(spec, inputs)
    built = build_network(config, inputs)
    if (built.notation, built.input_psp) != (network_settings(spec, ())["net"], spec.input_psp):
        raise ConfigError("the settings of a run cannot describe this network, because they give another one")


def _check_classes(classes: object) -> None:
    """Raise `ConfigError` unless these are None, or names that differ."""
    names = () if classes is None else listed_names(classes)
    if names is None:
        raise ConfigError(f"classes are the names of the classes, got {shown(classes)}")
    if len({*names}) < len(names):
        raise ConfigError(f"classes: two of the names are equal, got {shown(list(names))}")


def _inputs(spec: NetworkSpec, classes: Sequence[str] | None) -> Inputs:
    """Properties of the data that the network reads, without data."""
    names = tuple(map(str, range(spec.outputs) if classes is None else classes))
    neurons = 0 if names else spec.outputs
    return Inputs(spec.input_shape, spec.coding, names, neurons, spec.input_max)


def _trained(network: Any, weights: Any, state: Any, updates: int | None) -> _TrainedNetwork:
    """The network with its weights and its state.

    Raises:
        ConfigError: something is missing, given twice, or no network of stsbp.
    """
    if isinstance(network, Trainer):
        if not isinstance(state, TrainState):
            raise ConfigError(f"a trainer has no weights; give its state, a TrainState, as state=, got {shown(state)}")
        given = read_state(network.network, state, None, updates)
        assert given is not None
        given = replace(given, settings=settings_of_trainer(network))
        return _TrainedNetwork(network.network, given.weights, given, given.settings, network.optimizer)
    module = None if isinstance(network, NetworkSpec) else _module(network)
    spec = network if module is None else module.spec
    settings: dict[str, Any] = {}
    if module is not None:
        settings = {name: getattr(module, name) for name in ("precision", "seed") if hasattr(module, name)}
        if weights is not None:
            raise ConfigError("the module already has weights; leave weights out")
        weights = module.named()
    given = read_state(spec, state, module, updates)
    if weights is None and (given is None or not given.weights):
        raise ConfigError("a NetworkSpec has no weights; give weights=, for example those of initial_weights")
    if given is not None:
        settings |= {"optimizer": given.optimizers[0], **given.settings}
    named = arrays_of("weights", weights) if given is None or weights is not None else given.weights
    return _TrainedNetwork(spec, named, given, settings)


def _module(network: Any) -> Any:
    """A module of stsbp_torch, without the wrappers of torch around it."""
    module = network
    for wrapper in ("_orig_mod", "module") * 2:
        module = getattr(module, wrapper, module)
    if isinstance(getattr(module, "spec", None), NetworkSpec) and callable(getattr(module, "named", None)):
        return module
    children = getattr(module, "named_children", None)
    if callable(children):
        kinds = [f"{name}: {type(child).__name__}" for name, child in children()]
        layers = f" with the layers {listed(kinds)}" if kinds else ""
        raise ConfigError(
            f"{type(module).__name__}{layers} is not a network of stsbp. A run consists only of layers of stsbp: "
            "give a stsbp_torch.Network, or a stsbp_torch.Sequential of spiking layers. Of a model that also has other "
            "layers, give the spiking part"
        )
    raise ConfigError(
        "network is a stsbp_torch.Network or Sequential, a NetworkSpec, or a trainer of a backend, got "
        f"{shown(network)}"
    )


def _history(history: Any) -> list[dict[str, float]]:
    """The numbers of a loop, a dict for each record.

    Raises:
        ConfigError: they have another form, or are not finite.
    """
    if history is None:
        return []
    history = _plain(history)
    if not isinstance(history, (Mapping, Sequence)) or isinstance(history, (str, bytes, bytearray)):
        raise ConfigError(f"history is a list of records, or lists by name, got {shown(history)}")
    if isinstance(history, Mapping):
        columns = {name: _plain(values) for name, values in history.items()}
        for name, values in columns.items():
            if not isinstance(values, Sequence):
                raise ConfigError(f"history: {name} is a list of numbers, got {shown(values)}")
        if len({len(values) for values in columns.values()}) > 1:
            raise ConfigError("history: its lists have different lengths; give one number for each record")
        history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [dict(row) if isinstance(row, Mapping) else {"loss": row} for row in history]
    for row in rows:
        if len({*map(str, row)}) < len(row):
            raise ConfigError(f"history: two of the names are equal as text, got {listed(map(repr, row))}")
    return [{str(name): _number(name, value) for name, value in row.items()} for row in rows if row]


def _plain(history: Any) -> Any:
    """An array of any library as a list; anything else as it is."""
    return array_of(history).tolist() if hasattr(history, "__array__") else history


def _number(name: object, value: Any) -> float:
    try:
        number = real(f"history: {name}", array_of(value).item())
    except (ShapeError, ValueError) as error:
        raise ConfigError(f"history: {name} is a number in each record, got {shown(value)}") from error
    if not math.isfinite(number) or abs(number) > 1e100:
        raise ConfigError(f"history: {name} is {number}, which is not finite")
    return number
