"""The optimiser of a run, and the parameters that it does not train."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from stsbp_spec.models.optim import OPTIMIZERS, SGD, Optimizer
from stsbp_spec.networks.graph import Neurons
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.validation import listed, shown

from stsbp.config import RunConfig
from stsbp.errors import ConfigError, did_you_mean

__all__ = ["build_optimizer", "describe_frozen", "frozen_parameters"]


def build_optimizer(config: RunConfig, updates_per_epoch: int) -> Optimizer:
    """The optimiser of a run with this number of updates in each epoch.

    Raises:
        SpecError: a hyperparameter is outside its domain.
    """
    settings: dict[str, Any] = {
        "lr": config.lr,
        "delay_lr": config.delay_lr or None,
        # An extended run follows the cosine of its new number of epochs, not a second cosine. So no setting is needed,
        # two extensions without an update between them equal one, and config.toml gives the schedule. The price is that
        # the rate rises at the extension, and that a run begun with all epochs gives another result.
        "total_steps": config.epochs * updates_per_epoch if config.schedule == "cosine" else None,
        "warmup_steps": round(config.warmup * updates_per_epoch),
        "weight_decay": config.weight_decay,
        "clip_norm": config.clip_norm or None,
    }
    optimizer_class = OPTIMIZERS[config.optimizer]
    return SGD(momentum=config.momentum, **settings) if optimizer_class is SGD else optimizer_class(**settings)


def frozen_parameters(network: NetworkSpec, names: str) -> frozenset[str]:
    """The parameters that `names` freezes.

    Args:
        network: the network.
        names: names separated by commas. A name of a layer or node stands for all its parameters, and a name with the
            wildcards `*` and `?` for all layers and parameters that it matches.

    Raises:
        ConfigError: a name fits nothing, or nothing would be left to train. The message lists the names.
    """
    parameters_by_name, frozen = _parameters_by_name(network), set[str]()
    for name in filter(None, names.split(",")):
        matched = [full_name for full_name in parameters_by_name if fnmatchcase(full_name, name)]
        if not matched:
            raise ConfigError(
                f"--freeze {shown(name)}: the network has no such layer or "
                f"parameter{did_you_mean(name, parameters_by_name)}; it has {listed(parameters_by_name)}"
            )
        frozen.update(*(parameters_by_name[full_name] for full_name in matched))
    if frozen and len(frozen) == len(network.parameters):
        raise ConfigError(f"--freeze {names!r} freezes all parameters, so nothing is left to train; leave some out")
    return frozenset(frozen)


def _parameters_by_name(network: NetworkSpec) -> Mapping[str, tuple[str, ...]]:
    """The names that can be frozen, in the order of the network, and the parameters that each stands for."""
    parameters_by_name: dict[str, tuple[str, ...]] = {
        name: _parameters_of(name, network.parameters) for name in network.parameters
    }
    shared = {projection.name: projection.parameter for projection in network.graph.projections}
    for bound_node in network.graph.bound_nodes:
        name = bound_node.node.name
        neuron_parameters = bound_node.parameters.values() if isinstance(bound_node.node.op, Neurons) else ()
        parameters = (*parameters_by_name.get(name, ()), *_parameters_of(name, network.parameters), *neuron_parameters)
        if name in shared:
            parameters = (shared[name], *parameters)
        if parameters:
            parameters_by_name[name] = tuple(dict.fromkeys(parameters))
    return parameters_by_name


def _parameters_of(name: str, parameters: Iterable[str]) -> tuple[str, ...]:
    """The parameters that have a name, or whose name begins with it and a dot: `conv1`, `conv1.bias`."""
    return tuple(full_name for full_name in parameters if full_name == name or full_name.startswith(f"{name}."))


def describe_frozen(network: NetworkSpec, frozen: Collection[str]) -> str:
    """One line about frozen parameters; empty if there are none."""
    if not frozen:
        return ""
    sizes = {name: math.prod(parameter.shape) for name, parameter in network.parameters.items()}
    names = [name for name in sizes if name in frozen]
    numbers = f"{sum(sizes[name] for name in names):,} of {sum(sizes.values()):,} parameters"
    return f"frozen: {listed(names)} ({numbers})"
