"""Settings that are given in Python: numbers of numpy, paths, and objects such as networks and losses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.neurons import NEURONS, NeuronModel, Readout
from stsbp_spec.models.neurons.stored import as_text, from_text
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.graph import Neurons, Node
from stsbp_spec.networks.notation import written_nodes
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.validation import shown

from stsbp.config import OF_NEURONS, OWN, SEVERAL
from stsbp.errors import ConfigError

__all__ = ["OF_THE_NETWORK", "loss_settings", "network_settings", "plain_settings"]

OF_THE_NETWORK = (
    *("net", "padding", "dropout", "neuron", "neuron_model", "surrogate", "surrogate_model", "weight_bits"),
    *OF_NEURONS,
    "input_tau_s",
)
"""Settings that a `NetworkSpec` already contains."""


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with Python's own numbers and texts."""
    return {str(key): _plain(str(key), value) for key, value in values.items()}


def _plain(key: str, value: Any) -> Any:
    if key in SEVERAL and isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    return value.item() if isinstance(value, np.generic) else value


def network_settings(network: object, typed: Iterable[str]) -> dict[str, Any]:
    """The settings of a run for a network: a notation, or a `NetworkSpec` with its output layer.

    Args:
        network: the network.
        typed: names of settings that were typed.

    Raises:
        ConfigError: it is neither, settings contradict it, or it has several neuron models or surrogates of the user.
        NetworkError: the network has no text form.
    """
    if isinstance(network, (str, os.PathLike)):
        return {"net": os.fsdecode(network)}
    if not isinstance(network, NetworkSpec):
        raise ConfigError(
            "network is a text such as '16C3-P2-64' or a NetworkSpec, got "
            f"{shown(network)}; stsbp.save_run makes a run from a module and its weights"
        )
    if twice := [f"{name}=" for name in OF_THE_NETWORK if name in typed]:
        raise ConfigError(f"{', '.join(twice)}: the network already contains this; leave it out")
    settings: dict[str, Any] = {"net": written_nodes(map(_with_stored_model, network.graph.nodes))}
    if network.input_psp is not None:
        settings |= {"input_tau_s": network.input_psp.tau_s, "psp_gain": network.input_psp.gain}
    models = [node.op.model for node in network.graph.nodes if isinstance(node.op, Neurons)]
    own = [model for model in models if type(model) not in (*NEURONS.values(), Readout)]
    known = [model for model in models if model not in own and type(model.surrogate) not in SURROGATES.values()]
    return settings | _own("neuron", own) | _own("surrogate", [model.surrogate for model in known])


def _with_stored_model(node: Node) -> Node:
    """The node, with a model of a class of the user as the run stores it: the text of the network is read with that."""
    if not isinstance(node.op, Neurons) or type(node.op.model) in (*NEURONS.values(), Readout):
        return node
    stored = from_text(as_text(node.op.model))
    return replace(node, op=replace(node.op, model=stored))


def _own(setting: str, objects: Iterable[Any]) -> dict[str, str]:
    """The settings for objects of a class of the user: its name, and its equations as data."""
    texts = {OWN[setting].as_text(one): one for one in objects}
    if len(texts) > 1:
        raise ConfigError(f"a run has at most one {setting} of a class of your own, but the network has {len(texts)}")
    return {
        key: text
        for stored, one in texts.items()
        for key, text in ((setting, _class_name(one)), (OWN[setting].model, stored))
    }


def _class_name(one: NeuronModel | Loss) -> str:
    """`module:Class`, the form in which settings name a class of the user."""
    return f"{type(one).__module__}:{type(one).__qualname__}"


def loss_settings(loss: Loss) -> dict[str, str]:
    """The settings for a loss: its name; for one of the user's classes, also its equations."""
    named = next((name for name, known in OWN["loss"].spec_names.items() if known == loss), None)
    return {"loss": named} if named is not None else _own("loss", [loss])
