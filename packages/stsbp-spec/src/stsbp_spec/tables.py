"""Which module of a backend computes which parameters of the spec; a kind that is in no table is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from stsbp_spec.errors import BackendError

__all__ = ["implementation"]

T = TypeVar("T")


def implementation(backend: str, table: Mapping[Any, T], parameters: object, what: str) -> T:
    """The entry of `table` for the type of `parameters`; a subclass is another type, since it may compute otherwise.

    Args:
        backend: its name, for the message.
        table: by type.
        parameters: a loss, a surrogate, a synapse.
        what: which of these, for the message.

    Raises:
        BackendError: there is none; the message names what there is.
    """
    kind = type(parameters)
    if kind not in table:
        known = ", ".join(other.__name__ for other in table)
        raise BackendError(f"backend {backend!r} does not know the {what} {kind.__name__}; it knows {known}")
    return table[kind]
