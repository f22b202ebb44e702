"""Extraction of single, known files from a downloaded archive. No other file of the archive can reach the disk."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

from stsbp.errors import DataError
from stsbp.files import GIGABYTE, atomic_writer, open_regular

__all__ = ["extract_files"]

_LARGEST = 8 * GIGABYTE


def extract_files(archive: Path, folder: Path, names: Collection[str], *, largest: int) -> None:
    """Extract the members `names` (exact names) of a tar archive below `folder`.

    Member names are only compared, and never used as paths. Links, absolute names and names with `..` cannot be wanted.

    Args:
        archive: a tar file, compressed or not.
        folder: folder in which the members' folders begin.
        names: names as written in the archive, for example `cifar-10-batches-bin/test_batch.bin`.
        largest: largest size of a wanted member in bytes.

    Raises:
        DataError: the archive is damaged, lacks a wanted file, or has one that is not a regular file or is too large.
        FileError: a file cannot be written.
    """
    missing = set(names)
    try:
        with open_regular(archive, _LARGEST) as file, tarfile.open(fileobj=file) as tar:
            for member in tar:
                if member.name not in missing:
                    continue
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or member.size > largest:
                    raise DataError(f"{archive}: {member.name} is not a plain file of at most {largest} bytes")
                with source, atomic_writer(folder / member.name) as target:
                    shutil.copyfileobj(source, target)
                missing.remove(member.name)
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{archive} is damaged or not a tar archive: {reason}; delete and download it again") from error
    if missing:
        raise DataError(f"{archive} lacks {', '.join(sorted(missing))}; is it the right archive?")
