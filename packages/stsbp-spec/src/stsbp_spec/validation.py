"""Numbers passed to public functions: converted to one form, or refused with a short message.

`LIF(8)`, `LIF(8.0)` and `LIF(np.float32(8))` are the same neuron, so they must be stored, printed and written in the
same way. A count is stored as an `int`, a quantity as a `float`. Truth values and text do not count as numbers.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.typing import AnyArray

__all__ = [
    "MAX_SIZE",
    "array_of",
    "integer",
    "integer_between",
    "is_masked",
    "listed",
    "read_number",
    "real",
    "shown",
    "truth",
]

MAX_SIZE = 10**9 - 1
"""The largest size of a layer or an axis. It has nine digits, as in the notation."""

_LONGEST = 100
_WIDER = {"int2": np.int8, "int4": np.int8, "uint2": np.uint8, "uint4": np.uint8}
"""Types of ml_dtypes that hold integers, and types of numpy that hold the same ones."""


def is_masked(x: object) -> bool:
    """Whether `x` is an array with masked values, which would be read as if they were there."""
    return isinstance(x, np.ma.MaskedArray)


def array_of(x: Any) -> AnyArray:
    """`x` as a numpy array: an array unchanged, a tensor of any framework with its values on the host, a list copied.
    Numbers of another byte order, and integers of 2 and 4 bits, are copied into types that numpy computes with.

    Raises:
        ShapeError: `x` does not hold real numbers, or is a masked array, whose masked values would be taken for others.
    """
    if is_masked(x):
        raise ShapeError("expected an array of numbers, got a masked array; fill in its masked values")
    try:
        # `__array__` of a torch tensor refuses a gradient, other devices, and a sign that is only noted.
        tensor = x.detach().cpu() if hasattr(x, "detach") else x
        array = np.asarray(tensor.resolve_neg() if hasattr(tensor, "resolve_neg") else tensor)
    except Exception as error:  # of whatever library `x` comes from
        raise ShapeError(f"expected an array of numbers, got {_kind(x)}") from error
    # The additional types of numbers of ml_dtypes are also of kind V, but have no fields.
    if array.dtype.kind in "OSUTMmc" or array.dtype.names is not None:
        raise ShapeError(f"expected an array of numbers, got {_kind(x)}")
    if array.dtype.name in _WIDER:
        return array.astype(_WIDER[array.dtype.name])
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _kind(x: Any) -> str:
    return f"{type(x).__name__} of {x.dtype}" if hasattr(x, "dtype") else shown(x)


def truth(name: str, value: object) -> bool:
    """`value` as a truth value. Raises `SpecError` for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise SpecError(f"{name} is True or False, got {shown(value)}")
    return bool(value)


def shown(value: object) -> str:
    """`repr(value)` for a message, limited to about 100 characters. It never fails."""
    if isinstance(value, int) and value.bit_length() > 128:
        # Python refuses to print integers of more than 4,300 digits.
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)) and len(value) > _LONGEST:
        return f"{value[: _LONGEST - 20]!r}... ({len(value):,} characters)"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST + 20 else f"{text[:_LONGEST]}..."


def listed(names: Iterable[object]) -> str:
    """Names separated by commas, for a message: the first eight, and how many there are."""
    texts = [str(name) for name in names]
    text = ", ".join(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in texts[:8])
    return text if len(texts) <= 8 else f"{text}, ... ({len(texts):,} in all)"


def integer(value: object) -> int | None:
    """`value` as an int. None if it is not an integer (of Python or numpy), or is a truth value."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def integer_between(label: str, value: object, lower: int, upper: int = MAX_SIZE) -> int:
    """`value` as an int from `lower` to `upper`. Otherwise raises `SpecError`, which begins with `label`: "a
    kernel"."""
    number = integer(value)
    if number is None:
        raise SpecError(f"{label} must be an integer, got {shown(value)}")
    if number < lower:
        raise SpecError(f"{label} must be at least {lower}, got {shown(number)}")
    if number > upper:
        raise SpecError(f"{label} must be at most {upper}, got {shown(number)}")
    return number


def real(label: str, value: object) -> float:
    """`value` as a float (of any size, also infinity and NaN). Raises `SpecError` if it is not a real number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.floating, np.integer)):
        raise SpecError(f"{label} must be a number, got {shown(value)}")
    number: Any = value
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def read_number(text: str) -> float:
    """`float(text)` for ASCII digits without `_`. Raises `ValueError` for anything else."""
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(text)
