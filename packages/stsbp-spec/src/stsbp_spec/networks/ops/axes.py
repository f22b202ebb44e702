"""Numbers for the two axes of an image: one integer if both are the same, else a pair (rows, columns)."""

from __future__ import annotations

from typing import TypeAlias

from stsbp_spec.errors import SpecError
from stsbp_spec.validation import integer_between, shown

__all__ = ["PerAxis", "per_axis", "rows_and_columns", "written"]

PerAxis: TypeAlias = int | tuple[int, int]
"""One number for both rows and columns, or one for each."""


def per_axis(label: str, value: object, lower: int) -> PerAxis:
    """`value`, an integer or a pair, in its stored form: an int if rows and columns have the same number.

    Raises:
        SpecError: a number is not an integer, or is below `lower`. The message begins with `label`.
    """
    if not isinstance(value, (tuple, list)):
        return integer_between(label, value, lower)
    if len(value) != 2:
        raise SpecError(f"{label} is an integer or a pair (rows, columns), got {shown(value)}")
    rows, columns = (integer_between(label, size, lower) for size in value)
    return rows if rows == columns else (rows, columns)


def rows_and_columns(value: PerAxis) -> tuple[int, int]:
    """The numbers of rows and columns."""
    return value if isinstance(value, tuple) else (value, value)


def written(value: PerAxis) -> str:
    """The value in the notation: `3`, or `3x5`."""
    return "x".join(str(size) for size in value) if isinstance(value, tuple) else str(value)
