"""A trained network by the name that a user gives: the folder of a run, `hub:...`, or `model:NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stsbp_spec.engine.backend import AbstractBackend

from stsbp.config import RunConfig, is_named
from stsbp.datasets.registry import named_path
from stsbp.errors import ConfigError, printable
from stsbp.hub.card import training_command
from stsbp.hub.folder import hub_settings, trained_on
from stsbp.hub.network import HubNetwork
from stsbp.hub.references import read_network
from stsbp.processes.group import Group
from stsbp.training.build import Data
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import Trained, load_trained

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Where a trained network comes from.

    Attributes:
        reference: what the user typed.
        checkpoint: name of the checkpoint of a run, `last` or `best`.
        settings: the settings of the training.
        run: the folder of the run; None: the network is none of a run.
        network: the network of the Hub or of a package of models; None: it is that of a run.
    """

    reference: str
    checkpoint: str
    settings: RunConfig
    run: RunFolder | None = None
    network: HubNetwork | None = None

    @classmethod
    def of(cls, reference: str, checkpoint: str = "last") -> Source:
        """Read the settings of the network that `reference` names.

        Raises:
            ConfigError: the reference is not complete, there is no such model, a package is missing, or `best` is asked
                for of a network with one checkpoint.
            CheckpointError: there is no such run, or its files are damaged.
        """
        if not is_named(reference):
            folder = RunFolder(Path(reference))
            return cls(reference, checkpoint, folder.read_config(), run=folder)
        if checkpoint != "last":
            raise ConfigError(f"{printable(reference)} has one checkpoint; leave --checkpoint out")
        network = read_network(reference)
        return cls(reference, checkpoint, network.settings, network=network)

    @property
    def path(self) -> Path:
        """The folder of the run; otherwise a short name of the network, for pages and names of files."""
        if self.run is not None:
            return self.run.path
        return Path(Path(self.reference.partition(":")[2].partition("@")[0]).name or "network")

    def trained(self, backend: AbstractBackend, warn: Callable[[str], object], group: Group | None = None) -> Trained:
        """The network on a backend, whichever backend trained it. `warn` receives warnings.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit the settings.
            StsbpError: the backend cannot compute the network.
        """
        if self.run is not None:
            return load_trained(self.run, self.checkpoint, backend, group, warn)
        assert self.network is not None
        return trained_on(self.network, backend, group, warn)

    def records(self, warn: Callable[[str], object]) -> list[dict[str, Any]]:
        """The records of the training. Those of a network that is none of a run have at most its test.

        Raises:
            CheckpointError: the records cannot be read.
        """
        if self.run is not None:
            return read_records(self.run.path, self.settings, warn)
        assert self.network is not None
        return self.network.records

    def has_samples_of(self, data: Data) -> bool:
        """Whether a network that is none of a run was trained and tested on the same samples, by their digests."""
        assert self.network is not None
        known = self.network.info["contents"]
        digests = {key: digest for key, digest in data.contents.items() if key.startswith(("inputs of", "number of"))}
        return all(known.get(key) == digest for key, digest in digests.items())

    @property
    def training_command(self) -> str:
        """The command that trains a network that is none of a run, without paths."""
        return training_command(self.settings, hub_settings(self.settings))

    def check_data(self, option: str) -> None:
        """Check that the data of the network have a name by which they can be loaded.

        Args:
            option: the options that name other samples, for the message.

        Raises:
            ConfigError: the data are a file or folder whose path is not stored.
        """
        if self.run is None and named_path(self.settings.dataset) is not None:
            raise ConfigError(
                f"{printable(self.reference)} was trained on {printable(self.settings.dataset)}, whose path it does "
                f"not store; {option}"
            )
