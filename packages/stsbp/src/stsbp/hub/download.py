"""Networks that a command names as `hub:...`: a folder on this machine, or a commit of a repository of the Hub.

Of a repository, only `config.json` and the file of the weights are downloaded, after their sizes are checked. A commit
hash is demanded, because a branch or a tag may lead to other weights tomorrow, and the result would change silently.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from stsbp_spec.validation import shown

from stsbp import budget
from stsbp.config import HUB
from stsbp.errors import CheckpointError, ConfigError, legible
from stsbp.files import real
from stsbp.hub.network import CONFIG, MOST_CONFIG, MOST_WEIGHTS, HubNetwork, read_folder, read_record

__all__ = ["push_folder", "read_hub"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w-]*(\.[\w-]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def read_hub(reference: str) -> HubNetwork:
    """Read the network that `hub:FOLDER` or `hub:OWNER/NAME@COMMIT` names. The prefix may be missing.

    Raises:
        ConfigError: the reference has another form or no commit, or huggingface_hub is not installed.
        CheckpointError: the files cannot be downloaded or used.
    """
    name = reference.removeprefix(HUB)
    if os.path.isdir(name):
        return read_folder(Path(name), reference)
    repository, _, commit = name.partition("@")
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"{shown(reference)} is neither a folder nor a commit of a repository, such as hub:OWNER/NAME@COMMIT"
        )
    if not _COMMIT.fullmatch(commit):
        raise ConfigError(
            f"{shown(reference)} needs the hash of a commit, 40 hexadecimal digits, because a branch or a tag may lead "
            f"to other weights later: hub:{repository}@COMMIT. The page of the repository lists its commits; there is "
            "no folder of that name"
        )
    files = {CONFIG: _download(repository, commit, CONFIG, reference)}
    _, weights = read_record(files[CONFIG], reference)
    files[weights] = _download(repository, commit, weights, reference)
    return read_folder(files[CONFIG].parent, reference, files)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f'repositories of the Hub need the library huggingface_hub ({error}): pip install "stsbp[hub]"'
        ) from error
    return huggingface_hub


def _download(repository: str, commit: str, file: str, reference: str) -> Path:
    """The path of a file of a commit in the cache of huggingface_hub. It is downloaded if it is not there."""
    hub = _library()
    cached = hub.try_to_load_from_cache(repository, file, revision=commit)
    try:
        if not isinstance(cached, str):
            url = hub.hf_hub_url(repository, file, revision=commit)
            size = hub.get_hf_file_metadata(url).size
            most = MOST_CONFIG if file == CONFIG else MOST_WEIGHTS
            if size is None or size > most:
                raise CheckpointError(f"{reference}: {file} has {size} bytes, more than the {most:,} that it may have")
            if file != CONFIG:
                budget.check_memory(2 * size, size, f"{reference}: {file}")
            cached = hub.hf_hub_download(repository, file, revision=commit)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable(reference, file, error) from error
    except Exception as error:
        # Errors of the network belong to the library that huggingface_hub uses for it.
        if type(error).__module__.partition(".")[0] not in ("httpx", "requests", "huggingface_hub", "urllib3"):
            raise
        raise _unavailable(reference, file, error) from error
    return real(Path(cached))


def _unavailable(reference: str, file: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{reference}: {file} cannot be downloaded: {legible(str(error).strip().split(chr(10))[0])}")


def push_folder(folder: Path, repository: str, *, private: bool | None = None, message: str = "") -> str:
    """Send the files of a folder to a repository of the Hub, which is made if it is missing. Returns the commit hash.

    The login is that of huggingface_hub (`hf auth login`, or the variable HF_TOKEN).

    Raises:
        ConfigError: the repository's name has another form, or huggingface_hub is not installed.
        CheckpointError: the folder is not a network of stsbp, or the Hub refuses it.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"a repository is OWNER/NAME, got {shown(repository)}")
    hub = _library()
    read_folder(folder, str(folder))
    _, weights = read_record(folder / CONFIG, str(folder))
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            allow_patterns=[CONFIG, weights, "README.md"],
            commit_message=message or "Network of stsbp",
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{repository}: the Hub refuses it: {legible(str(error).strip())}") from error
    sha: str = commit.oid
    return sha
