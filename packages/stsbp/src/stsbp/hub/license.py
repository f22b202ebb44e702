"""The licence that a model card states."""

from __future__ import annotations

import re

from stsbp_spec.validation import shown

from stsbp.errors import ConfigError

__all__ = ["check_license"]

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def check_license(name: object) -> str:
    """The identifier of a licence, as the Hub lists them: `apache-2.0`, `mit`, `cc-by-4.0`.

    Raises:
        ConfigError: it has another form.
    """
    if not isinstance(name, str) or not _LICENSE.fullmatch(name):
        raise ConfigError(f"--license is an identifier such as apache-2.0, mit or cc-by-4.0, got {shown(name)}")
    return name
