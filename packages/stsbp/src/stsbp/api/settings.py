"""Settings that are given in Python as numbers of numpy, paths or objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from stsbp_spec.networks.nodes import written_nodes
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.validation import shown

from stsbp.config import OF_NEURONS
from stsbp.errors import ConfigError

__all__ = ["OF_THE_NETWORK", "network_settings", "plain_settings"]

OF_THE_NETWORK = (
    *("net", "padding", "dropout", "neuron", "neuron_model", "surrogate", "surrogate_model", "weight_bits"),
    *OF_NEURONS,
    "input_tau_s",
)
"""Settings that a `NetworkSpec` already contains."""


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with Python's own numbers and texts."""
    return {str(key): _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    return value.item() if isinstance(value, np.generic) else value


def network_settings(network: object, typed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run for a network: a notation, or a `NetworkSpec` with its output layer.

    Args:
        network: the network.
        typed: settings that were typed.

    Raises:
        ConfigError: it is neither, settings contradict it, or it has more than one neuron model of the user.
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
    settings: dict[str, Any] = {"net": written_nodes(network.graph.nodes)}
    if network.input_psp is not None:
        settings |= {"input_tau_s": network.input_psp.tau_s, "psp_gain": network.input_psp.gain}
    return settings
