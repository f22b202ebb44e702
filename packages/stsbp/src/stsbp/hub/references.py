"""Networks that commands name in place of a run: `hub:...` and `model:NAME`, one of the package stsbp-models.

A prefix decides, so a folder of a run with such a name is written as `./hub:...`. Packages of models are imported only
if a command names one.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from stsbp_spec.validation import shown

from stsbp.config import MODEL
from stsbp.errors import ConfigError, did_you_mean
from stsbp.hub.download import read_hub
from stsbp.hub.network import HubNetwork, read_folder

__all__ = ["model_folder", "model_folders", "read_network"]

_PACKAGE = "stsbp_models"


def model_folders() -> dict[str, Path]:
    """The folders of all models by name, in the form of the Hub.

    Raises:
        ConfigError: the package stsbp-models is not installed.
    """
    try:
        package = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != _PACKAGE:
            raise
        raise ConfigError(
            "trained models are in the package stsbp-models, which is not installed: python -m pip install "
            '"stsbp[models]"'
        ) from error
    folders: dict[str, Path] = package.folders()
    return folders


def model_folder(name: str) -> Path:
    """The folder of the model of this name.

    Raises:
        ConfigError: there is no such model, or the package stsbp-models is not installed.
    """
    folders = model_folders()
    if name not in folders:
        raise ConfigError(
            f"there is no model {shown(name)}{did_you_mean(name, folders)}; the models are {', '.join(folders)}"
        )
    return folders[name]


def read_network(reference: str) -> HubNetwork:
    """The network that `hub:FOLDER`, `hub:OWNER/NAME@COMMIT`, `model:NAME` or the path of a folder names.

    Raises:
        ConfigError: the reference has another form or no commit, there is no such model, or a package is missing.
        CheckpointError: the files cannot be downloaded or used.
    """
    if reference.startswith(MODEL):
        return read_folder(model_folder(reference.removeprefix(MODEL)), reference)
    return read_hub(reference)
