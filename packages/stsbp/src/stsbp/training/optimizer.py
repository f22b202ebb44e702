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
        # An extended run follows the cosine of its new number of epochs, not a second cosine. So no setting is needed,
        # two extensions without an update between them equal one, and config.toml gives the schedule. The price is that
        # the rate rises at the extension, and that a run begun with all epochs gives another result.
        "total_steps": config.epochs * updates_per_epoch if config.schedule == "cosine" else None,
        "warmup_steps": round(config.warmup * updates_per_epoch),
        "weight_decay": config.weight_decay,
        "clip_norm": config.clip_norm or None,
    }
    kind = OPTIMIZERS[config.optimizer]
    return SGD(momentum=config.momentum, **settings) if kind is SGD else kind(**settings)


def frozen_parameters(network: NetworkSpec, names: str) -> frozenset[str]:
    """The parameters that `names` freezes.

    Args:
        network: the network.
        names: names separated by commas. A name of a layer or node stands for all its parameters, and a name with the
            wildcards `*` and `?` for all layers and parameters that it matches.

    Raises:
        ConfigError: a name fits nothing, or nothing would be left to train. The message lists the names.
    """
    known, frozen = _known(network), set[str]()
    for name in filter(None, names.split(",")):
        matched = [full for full in known if fnmatchcase(full, name)]
        if not matched:
            raise ConfigError(
                f"--freeze {shown(name)}: the network has no such layer or parameter{did_you_mean(name, known)}; it "
                f"has {listed(known)}"
            )
        frozen.update(*(known[full] for full in matched))
    if frozen and len(frozen) == len(network.parameters):
        raise ConfigError(f"--freeze {names} freezes all parameters, so nothing is left to train; leave some out")
    return frozenset(frozen)


def _known(network: NetworkSpec) -> Mapping[str, tuple[str, ...]]:
    """The names that can be frozen, in the order of the network, and the parameters that each stands for."""
    known: dict[str, tuple[str, ...]] = {name: _below(name, network.parameters) for name in network.parameters}
    shared = {projection.name: projection.parameter for projection in network.graph.projections}
    for bound_node in network.graph.bound_nodes:
        name = bound_node.node.name
        own = bound_node.parameters.values() if isinstance(bound_node.node.op, Neurons) else ()
        parameters = (*known.get(name, ()), *_below(name, network.parameters), *own)
        if name in shared:
            parameters = (shared[name], *parameters)
        if parameters:
            known[name] = tuple(dict.fromkeys(parameters))
    return known


def _below(name: str, parameters: Iterable[str]) -> tuple[str, ...]:
    """The parameters that have a name, or whose name begins with it and a dot: `conv1`, `conv1.bias`."""
    return tuple(full for full in parameters if full == name or full.startswith(f"{name}."))


def describe_frozen(network: NetworkSpec, frozen: Collection[str]) -> str:
    """One line about frozen parameters; empty if there are none."""
    if not frozen:
        return ""
    sizes = {name: math.prod(parameter.shape) for name, parameter in network.parameters.items()}
    names = [name for name in sizes if name in frozen]
    numbers = f"{sum(sizes[name] for name in names):,} of {sum(sizes.values()):,} parameters"
    return f"frozen: {listed(names)} ({numbers})"
