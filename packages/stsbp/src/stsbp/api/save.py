"""`stsbp.save_run`: makes a run of a network that a loop of torch, of JAX or of `backend.trainer` trained."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.trainer import Trainer, TrainState
from stsbp_spec.errors import ShapeError
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float32
from stsbp_spec.validation import array_of, integer, listed, real, shown

from stsbp.api.calls import in_python, limited_threads, opened, path_of
from stsbp.api.progress import ProgressArgument, reporter_for
from stsbp.api.run import Run, opened_run
from stsbp.api.settings import OF_THE_NETWORK, loss_settings, network_settings, plain_settings
from stsbp.config import RunConfig, SettingsSource, absolute, resolve
from stsbp.datasets.arrays import ARRAYS, GivenData, given_data
from stsbp.datasets.registry import steps_of
from stsbp.errors import ConfigError, FileError
from stsbp.training.build import Data, Inputs, build_network, build_task, load_data
from stsbp.training.initial import pinned
from stsbp.training.progress import Reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.saved_network import epochs_of, write_network

__all__ = ["save_network"]

_MOMENTS = ("adamw.m", "adamw.v")


def save_network(
    network: Any,
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    *,
    weights: Mapping[str, Any] | None,
    state: Any,
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
        trained = _trained(network, weights, state)
        path = path_of("folder", folder)
        run_folder = RunFolder(path)
        _check_place(run_folder, overwrite=overwrite)
        given = None if data is None or isinstance(data, str) else given_data(data, classes)
        config = _config(trained, data, given, plain_settings(settings))
        engine, show = opened(backend, device), reporter_for(progress)
        try:
            with limited_threads(config.threads):
                _write(trained, config, run_folder, data, given, classes, engine, history, show, overwrite=overwrite)
        finally:
            show.close()
        return opened_run(run_folder, "last", engine, given)


@dataclass(frozen=True)
class _TrainedNetwork:
    """A network from a loop of another program.

    Attributes:
        spec: the network.
        tensors: its state, as `Trainer.export_state` returns it.
        settings: settings that the network's module or trainer says.
    """

    spec: NetworkSpec
    tensors: dict[str, AnyArray]
    settings: dict[str, Any]


def _write(
    trained: _TrainedNetwork,
    config: RunConfig,
    folder: RunFolder,
    data: Any,
    given: GivenData | None,
    classes: Sequence[str] | None,
    engine: AbstractBackend,
    history: Any,
    show: Reporter,
    *,
    overwrite: bool,
) -> None:
    loaded: Data | None = None
    if data is not None:
        loaded = load_data(config, show.loading, given=None if given is None else given.info)
    inputs = _inputs(trained.spec, classes) if loaded is None else loaded.inputs
    _check_network(trained.spec, config, inputs)
    samples = None if loaded is None else len(loaded.train)
    epochs = epochs_of(int(trained.tensors["step"]), samples, config.batch_size)
    if epochs > config.epochs:
        config = config.model_copy(update={"epochs": epochs})
    task = build_task(config, inputs, engine, samples or 1)
    figures = _history(history)
    command = f"stsbp.save_run(network, {str(folder.path)!r})"
    write_network(folder, task, loaded, trained.tensors, figures, show, command, overwrite=overwrite)


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
    if determined is not None:
        values.setdefault("steps", determined)
    if "steps" not in values:
        raise ConfigError("give the number of steps with which the network was trained, for example steps=25")
    if "epochs" not in values and int(trained.tensors["step"]):
        values["epochs"] = 1
    config = resolve([SettingsSource("stsbp.save_run", values)])
    # The settings of the data set for networks do not apply to this one.
    unused = {name: RunConfig.model_fields[name].default for name in OF_THE_NETWORK if name not in values}
    return pinned(absolute(config.model_copy(update=unused)))


def _check_network(spec: NetworkSpec, config: RunConfig, inputs: Inputs) -> None:
    """Raise `ConfigError` unless the settings give the network for these inputs."""
    read = f"inputs of shape {list(spec.input_shape)} with {spec.coding} coding"
    if spec.input_max > 1:
        read += f" and counts up to {spec.input_max}"
    of_data = (inputs.shape, inputs.coding, inputs.input_max, inputs.outputs)
    if of_data != (spec.input_shape, spec.coding, spec.input_max, spec.outputs):
        raise ConfigError(
            f"the network reads {read} and has {spec.outputs} outputs, but the data are {inputs}; give the "
            "data and the classes of the network"
        )
    built = build_network(config, inputs)
    if (built.notation, built.input_psp) != (network_settings(spec, ())["net"], spec.input_psp):
        raise ConfigError("the settings of a run cannot describe this network, because they give another one")


def _inputs(spec: NetworkSpec, classes: Sequence[str] | None) -> Inputs:
    """Properties of the data that the network reads, without data."""
    names = tuple(map(str, range(spec.outputs) if classes is None else classes))
    neurons = 0 if names else spec.outputs
    return Inputs(spec.input_shape, spec.coding, names, neurons, spec.input_max)


def _trained(network: Any, weights: Any, state: Any) -> _TrainedNetwork:
    """The network with its weights and its state.

    Raises:
        ConfigError: something is missing, given twice, or no network of stsbp.
    """
    if isinstance(network, Trainer):
        if not isinstance(state, TrainState):
            raise ConfigError(f"a trainer has no weights; give its state, a TrainState, as state=, got {shown(state)}")
        return _TrainedNetwork(network.network, network.export_state(state), _trainer_settings(network))
    module = None if isinstance(network, NetworkSpec) else _module(network)
    spec = network if module is None else module.spec
    settings: dict[str, Any] = {}
    if module is not None:
        settings = {name: getattr(module, name) for name in ("precision", "seed") if hasattr(module, name)}
        if weights is not None:
            raise ConfigError("the module already has weights; leave weights out")
        weights = module.named()
    exported = _exported(spec, state, module)
    if weights is None and not any(name.startswith("weight/") for name in exported):
        raise ConfigError("a NetworkSpec has no weights; give weights=, for example those of initial_weights")
    if weights is not None:
        exported |= {f"weight/{name}": x for name, x in _arrays("weights", weights).items()}
    blank = {name: np.zeros(parameter.shape, np.float32) for name, parameter in spec.parameters.items()}
    moments = {f"{prefix}/{name}": x for prefix in _MOMENTS for name, x in blank.items()}
    return _TrainedNetwork(spec, {"step": np.asarray(0, np.int64), **moments, **exported}, settings)


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


def _arrays(what: str, named: Any) -> dict[str, Float32]:
    """Arrays of any library by name, as float32."""
    if not isinstance(named, Mapping):
        raise ConfigError(f"{what} are arrays by name, got {shown(named)}")
    arrays: dict[str, Float32] = {}
    for name, x in named.items():
        try:
            array = array_of(x)
        except ShapeError as error:
            raise ShapeError(f"{what}: {name}: {error}") from error
        if array.dtype != np.float32:
            raise ShapeError(f"{what}: {name} must be float32, got {array.dtype}; networks of stsbp compute in float32")
        arrays[str(name)] = np.array(array, np.float32)
    return arrays


def _exported(spec: NetworkSpec, state: Any, module: Any) -> dict[str, AnyArray]:
    """The state as `Trainer.export_state` returns it, as far as it is known."""
    if state is None:
        return {}
    if isinstance(state, TrainState):
        parts = (("weight", state.weights), *zip(_MOMENTS, (state.m, state.v), strict=True))
        named = {f"{prefix}/{name}": x for prefix, arrays in parts for name, x in _arrays(prefix, arrays).items()}
        return {"step": np.asarray(state.step, np.int64), **named}
    if isinstance(state, Mapping) and "step" in state and any(str(name).startswith("weight/") for name in state):
        tensors = _arrays("state", {name: x for name, x in state.items() if name != "step"})
        return {"step": _step(state["step"]), **tensors}
    if hasattr(state, "param_groups") and hasattr(state, "state"):
        return _of_torch(spec, state, module)
    if (adam := _adam_of_optax(state)) is not None:
        moments = zip(_MOMENTS, (adam.mu, adam.nu), strict=True)
        named = {f"{prefix}/{name}": x for prefix, m in moments for name, x in _arrays("state", m).items()}
        return {"step": _step(adam.count), **named}
    raise ConfigError(
        "state is a TrainState, the result of export_state, an optimiser of torch (Adam or AdamW) or a state of optax "
        f"with the moments of Adam, got {shown(state)}"
    )


def _step(step: Any) -> AnyArray:
    number = integer(array_of(step).item())
    if number is None or number < 0:
        raise ConfigError(f"state: the number of updates is an integer, got {shown(step)}")
    return np.asarray(number, np.int64)


def _of_torch(spec: NetworkSpec, optimizer: Any, module: Any) -> dict[str, AnyArray]:
    """The moments of an optimiser of torch by the names of the parameters."""
    if module is None:
        raise ConfigError("the state of an optimiser of torch belongs to a module; give the module as network")
    kept, tensors, steps = {id(x): entry for x, entry in optimizer.state.items()}, module.named(), set[int]()
    exported: dict[str, AnyArray] = {}
    for group in optimizer.param_groups:
        betas = tuple(group.get("betas", ()))
        if betas != (0.9, 0.999) or group.get("amsgrad"):
            raise ConfigError(
                "state: a run continues with AdamW of betas 0.9 and 0.999, but this optimiser is "
                f"{type(optimizer).__name__} with betas {betas or 'that it does not have'}; leave state out to save "
                "the weights alone"
            )
    for name in spec.parameters:
        entry = kept.get(id(tensors[name]))
        if entry is None or not {"exp_avg", "exp_avg_sq", "step"} <= set(entry):
            raise ConfigError(
                f"state: the optimiser has no moments of the parameter {name}, so it is not Adam or AdamW, or has not "
                "updated it; leave state out to save the weights alone"
            )
        moments = _arrays("state", {prefix: entry[key] for prefix, key in zip(_MOMENTS, _OF_TORCH, strict=True)})
        exported |= {f"{prefix}/{name}": x for prefix, x in moments.items()}
        steps.add(int(_step(array_of(entry["step"]).astype(np.int64))))
    if len(steps) > 1:
        raise ConfigError(f"state: parameters were updated {listed(map(str, sorted(steps)))} times, not equally often")
    return {**exported, "step": np.asarray(steps.pop(), np.int64)}


_OF_TORCH = ("exp_avg", "exp_avg_sq")


def _adam_of_optax(state: Any) -> Any:
    """The moments of Adam in a nested state of optax; None if there are none."""
    if all(hasattr(state, name) for name in ("mu", "nu", "count")):
        return state
    if isinstance(state, tuple):
        return next((one for one in map(_adam_of_optax, state) if one is not None), None)
    return None


def _trainer_settings(trainer: Trainer[Any]) -> dict[str, Any]:
    """Settings of a run from a trainer: loss, optimiser, precision, seed."""
    optimizer = trainer.optimizer
    settings = {
        "lr": float(optimizer.lr),
        "weight_decay": float(optimizer.weight_decay),
        "clip_norm": float(optimizer.clip_norm or 0.0),
        "schedule": "constant" if optimizer.total_steps is None else "cosine",
        "precision": trainer.precision,
        "seed": trainer.seed,
    }
    return settings | loss_settings(trainer.loss)


def _history(history: Any) -> list[dict[str, float]]:
    """The numbers of a loop, a dict for each record.

    Raises:
        ConfigError: they have another form, or are not finite.
    """
    if history is None:
        return []
    if isinstance(history, Mapping):
        columns = {str(name): list(values) for name, values in history.items()}
        if len({len(values) for values in columns.values()}) > 1:
            raise ConfigError("history: its lists have different lengths; give one number for each record")
        history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [dict(row) if isinstance(row, Mapping) else {"loss": row} for row in history]
    return [{str(name): _number(name, value) for name, value in row.items()} for row in rows if row]


def _number(name: object, value: Any) -> float:
    try:
        number = real(f"history: {name}", array_of(value).item())
    except (ShapeError, ValueError) as error:
        raise ConfigError(f"history: {name} is a number in each record, got {shown(value)}") from error
    if not math.isfinite(number) or abs(number) > 1e100:
        raise ConfigError(f"history: {name} is {number}, which is not finite")
    return number
