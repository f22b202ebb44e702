"""`stsbp.load_hub`: a network from the Hub or from a folder for it."""

from __future__ import annotations

import os

from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32

from stsbp.api.calls import in_python, opened, path_of
from stsbp.api.progress import warn_caller
from stsbp.hub.folder import trained_on
from stsbp.hub.references import read_network
from stsbp.training.trained import Trained

__all__ = ["load_network", "network_and_weights"]


def load_network(
    reference: str | os.PathLike[str], backend: AbstractBackend | str | None, device: str | None
) -> Trained:
    """As `stsbp.load_hub`."""
    with in_python():
        name = reference if isinstance(reference, str) else str(path_of("reference", reference))
        return trained_on(read_network(name), opened(backend, device), None, warn_caller)


def network_and_weights(reference: str | os.PathLike[str]) -> tuple[NetworkSpec, dict[str, Float32]]:
    """The network that `reference` names, and its weights by name, without a backend."""
    with in_python():
        name = reference if isinstance(reference, str) else str(path_of("reference", reference))
        network = read_network(name)
        return network.network, network.weights
