"""A sweep that is shown from its storage alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stsbp.errors import ConfigError
from stsbp.sweeps.methods import TrialHeartbeat
from stsbp.sweeps.study import Study, open_storage, quiet
from stsbp.sweeps.view import SweepView

__all__ = ["stored_sweep"]


def stored_sweep(
    folder: Path | None, storage: str | None, study: str | None, warn: Callable[[str], object]
) -> SweepView:
    """The trials in a storage.

    Args:
        folder: folder of the sweep; None: `storage` is named.
        storage: file of a journal, or URL of a database; None: that of the folder.
        study: name of the study; None: the only one of the storage.
        warn: function that receives warnings.

    Raises:
        ConfigError: there is no such study, or it is none of stsbp.
        FileError: the storage cannot be opened, or is damaged.
        CheckpointError: its trials are damaged.
    """
    if folder is None and storage is None:
        raise ConfigError("name the folder of the sweep, or its --storage")
    with quiet():
        opened = open_storage(storage, folder or Path(), TrialHeartbeat(), make=False, warn=warn)
        return SweepView.of(Study.read(opened, study))
