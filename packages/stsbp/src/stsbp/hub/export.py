"""`stsbp export --to hub`: a trained network as a folder for the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stsbp.hub.folder import write_folder
from stsbp.training.trained import Trained

__all__ = ["write_run"]


def write_run(
    trained: Trained,
    name: str,
    out: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    license: str = "",
    packed: bool = False,
) -> list[str]:
    """Write the network as the folder `out`. Returns the messages to print.

    Args:
        trained: the network.
        name: its name in the model card.
        out: the folder.
        records: the records of the run, of which the last test is stored.
        license: the licence of the weights for the model card; empty: none is stated.
        packed: whether the weights are rounded to their grids, and stored in fewer bytes.

    Raises:
        FileError: a file cannot be written, or is there already and no export of stsbp wrote it.
        NumericError, ExactnessError: the weights have no grid.
    """
    return write_folder(trained, out, name, records, license=license, packed=packed)
