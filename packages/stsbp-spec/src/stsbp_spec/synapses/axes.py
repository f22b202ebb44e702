"""Numbers of the two axes of an image: one integer where both are the same, else a pair (rows, columns)."""

from __future__ import annotations

from typing import TypeAlias

from stsbp_spec.errors import SpecError
from stsbp_spec.values import shown, whole

__all__ = ["PerAxis", "both", "per_axis", "written"]

PerAxis: TypeAlias = int | tuple[int, int]
"""One number for rows and columns, or one each."""


def per_axis(what: str, value: object, least: int) -> PerAxis:
    """`value`, an integer or a pair of them, as it is kept: an int where rows and columns have the same.

    Raises:
        SpecError: a number is no integer, or below `least`; `what` begins the message.
    """
    if not isinstance(value, (tuple, list)):
        return whole(what, value, least)
    if len(value) != 2:
        raise SpecError(f"{what} is an integer or a pair (rows, columns), got {shown(value)}")
    rows, columns = (whole(what, each, least) for each in value)
    return rows if rows == columns else (rows, columns)


def both(value: PerAxis) -> tuple[int, int]:
    """The numbers of rows and columns."""
    return value if isinstance(value, tuple) else (value, value)


def written(value: PerAxis) -> str:
    """As the notation writes it: `3`, or `3x5`."""
    return "x".join(str(each) for each in value) if isinstance(value, tuple) else str(value)
