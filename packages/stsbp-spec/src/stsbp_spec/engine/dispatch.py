"""Tables of the modules with which a backend implements kinds of the spec. Kinds that are in no table are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from stsbp_spec.errors import BackendError

__all__ = ["implementation"]

T = TypeVar("T")


def implementation(backend: str, table: Mapping[Any, T], parameters: object, description: str) -> T:
    """The entry of `table` for the type of `parameters`. A subclass counts as another type, as it may compute
    differently.

    Args:
        backend: name of the backend, for the message.
        table: entries by type.
        parameters: a loss, a surrogate, a synapse.
        description: which of these it is, for the message.

    Raises:
        BackendError: there is no entry. The message names the available ones.
    """
    kind = type(parameters)
    if kind not in table:
        names = ", ".join(known_type.__name__ for known_type in table)
        raise BackendError(f"backend {backend!r} does not know the {description} {kind.__name__}; it knows {names}")
    return table[kind]
