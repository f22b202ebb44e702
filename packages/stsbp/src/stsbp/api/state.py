"""The state of a training that `stsbp.save_run` takes: of a trainer, of an optimiser of torch, or of optax."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from stsbp_spec.engine.trainer import Trainer, TrainState
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.optim import OPTIMIZERS, SGD, Adam, AdamW, Optimizer
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float32
from stsbp_spec.validation import array_of, integer, listed, shown

from stsbp.api.settings import loss_settings
from stsbp.errors import ConfigError
from stsbp.rate_penalty import text_of
from stsbp.training.optimizer import frozen_parameters

__all__ = ["GivenState", "arrays_of", "read_state", "settings_of_trainer", "state_tensors"]

_TWO_MOMENTS, _ONE_MOMENT = (AdamW.name, Adam.name), (SGD.name,)
_ALONE = "leave state out to save the weights alone"
_TORCH: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "AdamW": (AdamW.name, ("exp_avg", "exp_avg_sq")),
    "Adam": (Adam.name, ("exp_avg", "exp_avg_sq")),
    "SGD": (SGD.name, ("momentum_buffer",)),
}
"""Optimisers of torch: the optimiser of a run with the same equations, and where its moments are."""
_OF_TORCH = {
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    **dict.fromkeys(("amsgrad", "maximize", "nesterov", "differentiable"), False),
    "dampening": 0,
}
"""Arguments of optimisers of torch that a run does not have as settings, and the values that it has."""
_AS_SETTINGS = ("lr", "delay_lr", "total_steps", "warmup_steps", "weight_decay", "clip_norm", "momentum")
"""Hyperparameters of a trainer's optimiser that a run has as settings."""


@dataclass(frozen=True)
class GivenState:
    """What a state says about the updates so far.

    Attributes:
        optimizers: names of the optimisers that may have made it, the likeliest first.
        moments: arrays by names of parameters, in the order of `Optimizer.moments`.
        step: number of updates; None: it does not say.
        weights: the weights, if it has them.
        settings: settings of a run that it says.
    """

    optimizers: tuple[str, ...]
    moments: tuple[Mapping[str, Float32], ...]
    step: int | None
    weights: Mapping[str, Float32] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def arrays_of(what: str, named: Any) -> dict[str, Float32]:
    """Arrays of any library by name, as float32.

    Raises:
        ConfigError: these are no arrays by name.
        ShapeError: an array is not float32.
    """
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


def read_state(spec: NetworkSpec, state: Any, module: Any, updates: int | None) -> GivenState | None:
    """The state that was given for a network; None: none was.

    Args:
        spec: the network.
        state: the state in one of its forms.
        module: the module of torch whose parameters an optimiser of torch has; None: there is none.
        updates: number of updates, for states that do not say it.

    Raises:
        ConfigError: it has another form, or is that of an optimiser with which no run continues.
    """
    if state is None:
        if updates is not None:
            raise ConfigError("updates is the number of updates of state, but there is no state; leave updates out")
        return None
    given = _read(spec, state, module)
    number = None if updates is None else integer(updates)
    if updates is not None and (number is None or not 0 <= number < 2**32):
        raise ConfigError(f"updates is a number of updates, got {shown(updates)}")
    if given.step is None and number is None:
        raise ConfigError("the state does not say after how many updates it was; give their number, updates=")
    if given.step is not None and number not in (None, given.step):
        raise ConfigError(f"the state was after {given.step} updates, not {number}; leave updates out")
    return given if given.step is not None else GivenState(given.optimizers, given.moments, number, {}, given.settings)


def _read(spec: NetworkSpec, state: Any, module: Any) -> GivenState:
    if isinstance(state, TrainState):
        moments = tuple(arrays_of("state", x) for x in (state.m, state.v) if x)
        names = _TWO_MOMENTS if len(moments) == 2 else _ONE_MOMENT
        return GivenState(names, moments, _step(state.step), arrays_of("state", state.weights))
    if isinstance(state, Mapping) and "step" in state and any(str(name).startswith("weight/") for name in state):
        return _of_export(state)
    if hasattr(state, "param_groups") and hasattr(state, "state"):
        return _of_torch(spec, state, module)
    parts = _parts(state)
    # By the names of their classes: states of AMSGrad and AdaBelief have moments of the same names, and every array has
    # a method `trace`.
    adam = next((part for part in parts if type(part).__name__ == "ScaleByAdamState"), None)
    trace = next((part for part in parts if type(part).__name__ == "TraceState"), None)
    # A plain tuple has a method of this name.
    count = next((_step(part.count) for part in parts if not callable(getattr(part, "count", len))), None)
    if adam is not None:
        return GivenState(_TWO_MOMENTS, (arrays_of("state", adam.mu), arrays_of("state", adam.nu)), count)
    if trace is not None:
        return GivenState(_ONE_MOMENT, (arrays_of("state", trace.trace),), count)
    raise ConfigError(
        "state is a TrainState, the result of export_state, an optimiser of torch (AdamW, Adam or SGD) or a state of "
        f"optax with the moments of Adam or SGD, got {shown(state)}"
    )


def _parts(state: Any) -> list[Any]:
    """The parts of a state of optax, which may be nested in tuples, in their order."""
    parts, pending = list[Any](), [state]
    while pending:
        parts.append(part := pending.pop())
        pending += reversed(part) if isinstance(part, tuple) else ()
    return parts


def _step(step: Any) -> int:
    array = array_of(step)
    number = integer(array.item()) if array.size == 1 else None
    if number is None or number < 0:
        raise ConfigError(f"state: the number of updates is an integer, got {shown(step)}")
    return number


def _of_export(state: Mapping[Any, Any]) -> GivenState:
    """The result of `Trainer.export_state`."""
    parts: dict[str, dict[str, Any]] = {}
    for key, x in state.items():
        prefix, _, name = str(key).partition("/")
        if key != "step":
            parts.setdefault(prefix, {})[name] = x
    weights = parts.pop("weight")
    names = [name for name, kind in OPTIMIZERS.items() if set(_prefixes(kind)) == set(parts)]
    if not names:
        raise ConfigError(f"state: it has {listed(parts) or 'no moments'}, which no optimiser of stsbp has; {_ALONE}")
    moments = tuple(arrays_of("state", parts[prefix]) for prefix in _prefixes(OPTIMIZERS[names[0]]))
    return GivenState((names[0],), moments, _step(state["step"]), arrays_of("state", weights))


def _prefixes(kind: type[Optimizer]) -> list[str]:
    """As `Optimizer.prefixes`."""
    return [f"{kind.name}.{moment}" for moment in kind.moments]


def _of_torch(spec: NetworkSpec, optimizer: Any, module: Any) -> GivenState:
    """The state of an optimiser of torch, with its settings and the parameters that it does not train."""
    if module is None:
        raise ConfigError("the state of an optimiser of torch belongs to a module; give the module as network")
    of_torch = [x.__name__ for x in type(optimizer).__mro__ if x.__module__.startswith("torch.optim.")]
    kind = of_torch[0] if of_torch else ""
    # A class derived from one of these may have updates of its own. (torch wraps `step`, but keeps its qualified name.)
    has_own_updates = type(optimizer).step.__qualname__.partition(".")[0] not in of_torch
    if kind not in _TORCH or has_own_updates:
        raise ConfigError(
            "state: a run continues with AdamW, Adam or SGD, but this optimiser is "
            f"{type(optimizer).__name__}; {_ALONE}"
        )
    groups = {id(x): group for group in optimizer.param_groups for x in group["params"]}
    tensors = module.named()
    trained = {
        name: tensors[name] for name in spec.parameters if id(tensors[name]) in groups and tensors[name].requires_grad
    }
    if not trained:
        raise ConfigError(f"state: the optimiser has no parameter of the network; {_ALONE}")
    settings = _settings_of_torch(spec, {name: groups[id(x)] for name, x in trained.items()})
    name, keys = _TORCH[kind]
    if name == Adam.name and next(iter(groups.values())).get("decoupled_weight_decay"):
        name = AdamW.name
    if name != SGD.name:
        settings.pop("momentum", None)
    settings |= _frozen_settings(spec, set(spec.parameters) - set(trained))
    moments: tuple[dict[str, Float32], ...] = tuple({} for _ in keys)
    steps = set[int]()
    for parameter, x in trained.items():
        entry = optimizer.state.get(x, {})
        if name == SGD.name and not settings["momentum"]:
            entry = {keys[0]: np.zeros(spec.parameters[parameter].shape, np.float32)}
        if any(entry.get(key) is None for key in keys):
            raise ConfigError(f"state: the optimiser has not updated the parameter {parameter}; {_ALONE}")
        for arrays, key in zip(moments, keys, strict=True):
            arrays |= arrays_of("state", {parameter: entry[key]})
        if "step" in entry:
            steps.add(_step(array_of(entry["step"]).astype(np.int64)))
    if len(steps) > 1:
        raise ConfigError(f"state: parameters were updated {listed(map(str, sorted(steps)))} times, not equally often")
    return GivenState((name,), moments, next(iter(steps), None), {}, settings)


def _settings_of_torch(spec: NetworkSpec, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of a run from the groups of the parameters that an optimiser of torch trains.

    Raises:
        ConfigError: a run does not compute the updates of the optimiser.
    """
    for group in groups.values():
        for key, value in _OF_TORCH.items():
            has: Any = group.get(key, value)
            if (tuple(has) if isinstance(has, list) else has) != value:
                raise ConfigError(f"state: a run continues with {key}={value}, but this optimiser has {has}; {_ALONE}")
    settings: dict[str, Any] = {"schedule": "constant", "warmup": 0.0}
    for setting, key in (("lr", "lr"), ("delay_lr", "lr"), ("momentum", "momentum"), ("weight_decay", "weight_decay")):
        values = {
            name: float(array_of(group[key]).item())
            for name, group in groups.items()
            if key in group
            and not (key == "weight_decay" and spec.parameters[name].learned is not None)
            and not (key == "lr" and spec.parameters[name].is_delay != (setting == "delay_lr"))
        }
        if len(set(values.values())) > 1:
            raise ConfigError(f"state: groups of parameters have different {key}, but a run has only one; {_ALONE}")
        settings |= {setting: next(iter(values.values()))} if values else {}
    _check_delay_lr(spec, settings.get("delay_lr"))
    for name, group in groups.items():
        if spec.parameters[name].learned is not None and float(group["weight_decay"]):
            raise ConfigError(
                f"state: the optimiser lets {name} decay, but a run has no weight decay for it; {_ALONE}, or train it "
                "in a group of parameters with weight_decay=0"
            )
    return settings


def _check_delay_lr(spec: NetworkSpec, delay_lr: float | None) -> None:
    """Raise `ConfigError` if an optimiser leaves learned delays as they are by a learning rate of 0."""
    if delay_lr == 0 and spec.graph.delays:
        raise ConfigError(
            "a run with delay_lr 0 trains learned delays at 100 times lr, but the optimiser has the learning rate 0 "
            "for them; freeze them instead"
        )


def _frozen_settings(spec: NetworkSpec, frozen: Collection[str]) -> dict[str, str]:
    """The setting `freeze` for frozen parameters.

    Raises:
        ConfigError: the setting cannot say them.
    """
    text = ",".join(name for name in spec.parameters if name in frozen)
    try:
        stands_for = frozen_parameters(spec, text)
    except ConfigError:
        # The names stand for all parameters of the network.
        stands_for = frozenset(spec.parameters)
    if stands_for != set(frozen):
        raise ConfigError(
            f"state: {text} alone cannot be frozen in a run, where the name of a layer stands for all its parameters; "
            f"{_ALONE}"
        )
    return {"freeze": text}


def settings_of_trainer(trainer: Trainer[Any]) -> dict[str, Any]:
    """Settings of a run from a trainer: loss, optimiser, frozen parameters, rate penalties, precision, seed.

    Raises:
        ConfigError: a run does not compute the updates of the trainer's optimiser.
    """
    optimizer = trainer.optimizer
    for entry in fields(optimizer):  # type: ignore[arg-type]
        value = getattr(optimizer, entry.name)
        if entry.name not in _AS_SETTINGS and value != entry.default:
            raise ConfigError(
                f"a run continues with {entry.name}={entry.default}, but the optimiser of the trainer has {value}; to "
                "save the weights alone, give trainer.network as network and state.weights as weights"
            )
    _check_delay_lr(trainer.network, optimizer.delay_lr)
    settings = {
        "optimizer": optimizer.name,
        "lr": float(optimizer.lr),
        "delay_lr": float(optimizer.delay_lr or 0.0),
        "weight_decay": float(optimizer.weight_decay),
        "clip_norm": float(optimizer.clip_norm or 0.0),
        "schedule": "constant" if optimizer.total_steps is None else "cosine",
        "precision": trainer.precision,
        "seed": trainer.seed,
        **({"momentum": float(optimizer.momentum)} if isinstance(optimizer, SGD) else {}),
    }
    settings["rate_penalty"] = text_of(trainer.rate_penalty)
    return settings | _frozen_settings(trainer.network, trainer.frozen) | loss_settings(trainer.loss)


def state_tensors(
    weights: Mapping[str, Float32], state: GivenState | None, spec: NetworkSpec, optimizer: Optimizer, frozen: set[str]
) -> dict[str, AnyArray]:
    """The state as `Trainer.export_state` returns it. Without a state, and of frozen parameters, moments are zero.

    Raises:
        ConfigError: moments of a parameter are missing.
    """
    tensors: dict[str, AnyArray] = {f"weight/{name}": x for name, x in weights.items()}
    tensors["step"] = np.asarray(0 if state is None else state.step, np.int64)
    given: Sequence[Mapping[str, Float32]] = [{}] * len(optimizer.moments) if state is None else state.moments
    for prefix, moments in zip(optimizer.prefixes, given, strict=True):
        for name, parameter in spec.parameters.items():
            if name not in moments and state is not None and name not in frozen:
                raise ConfigError(f"state: it has no moments of the parameter {name}; freeze it, or {_ALONE}")
            tensors[f"{prefix}/{name}"] = np.zeros(parameter.shape, np.float32)
        tensors |= {f"{prefix}/{name}": x for name, x in moments.items()}
    return tensors
