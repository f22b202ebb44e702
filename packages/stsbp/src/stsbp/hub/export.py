"""`stsbp export --to hub`: a run as a folder for the Hub."""

from __future__ import annotations

from pathlib import Path

from stsbp.hub.folder import write_folder
from stsbp.training.metrics import read_records
from stsbp.training.trained import Trained

__all__ = ["write_run"]


def write_run(trained: Trained, folder: Path, out: Path, *, license: str = "") -> list[str]:
    """Write the network of the run in `folder` as the folder `out`. Returns the messages to print.

    `license` is the licence of the weights for the model card; empty: none is stated.

    Raises:
        FileError: a file cannot be written, or is there already and no export of stsbp wrote it.
        CheckpointError: the records of the run cannot be read.
    """
    metrics = read_records(folder, trained.settings)
    return write_folder(trained, out, folder.absolute().name, metrics, license=license)
