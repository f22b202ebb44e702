"""All errors that stsbp raises on purpose: one base class and a few subclasses.

A message states what was expected, what was given, and what to do. The command line prints the message of a
`StsbpError` without a traceback and exits with `exit_code`. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "BackendError",
    "ExactNetworkError",
    "ExactnessError",
    "NetworkError",
    "NumericError",
    "ShapeError",
    "SpecError",
    "StsbpError",
    "did_you_mean",
    "legible",
    "printable",
]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, characters that change the direction of text, and bytes of a name that are not UTF-8."""
_BEGIN, _END = 1200, 600
"""Number of characters at the beginning and the end of a long line that a message shows."""
_FIRST_LINES, _LAST_LINES = 30, 10
_LONGEST_NAME = 100


def printable(text: str, *, lines: bool = False) -> str:
    """Foreign text (names of classes and files, settings) in a form that a terminal or a page can show.

    Control characters become escapes such as `\\x1b`. With `lines`, line ends are kept.
    """

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if lines and character == "\n":
            return character
        number = ord(character)
        # Python represents a byte that is not UTF-8 as U+DC00 plus its value.
        number = number - 0xDC00 if 0xDC80 <= number <= 0xDCFF else number
        return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"

    return _CONTROL.sub(escape, text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)` for a message, if a known name is similar to the given one; otherwise an empty text."""
    close = get_close_matches(name, names, n=1) if len(name) <= _LONGEST_NAME else []
    return f" (did you mean {close[0]}?)" if close else ""


def legible(text: str) -> str:
    """A message that can be shown: printable, and shortened to its beginning and end if it is long."""
    rows = text.split("\n")
    if len(rows) > _FIRST_LINES + _LAST_LINES:
        left_out = f"... ({len(rows) - _FIRST_LINES - _LAST_LINES:,} lines left out) ..."
        rows = [*rows[:_FIRST_LINES], left_out, *rows[-_LAST_LINES:]]
    return "\n".join(_cut(printable(row)) for row in rows)


def _cut(row: str) -> str:
    if len(row) <= _BEGIN + _END:
        return row
    return f"{row[:_BEGIN]} ... ({len(row) - _BEGIN - _END:,} characters left out) ... {row[-_END:]}"


class StsbpError(Exception):
    """Base class of all errors raised on purpose. Its message is short and contains no control characters."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(legible(message))


class SpecError(StsbpError, ValueError):
    """A parameter is outside its domain, for example `LIF(tau_m=0.5)` (a time constant is at least one step)."""


class NetworkError(SpecError):
    """A network description is malformed or impossible. The message points at the token, or names the node.

    Example: `NetworkSpec.parse("12C5-P2-64C55", input_shape=(2, 34, 34), outputs=10)`.

    Attributes:
        reason: the message without the location.
        notation, start, length: the text of the network, and the location in it.
        node: name of the node, if the network was built as a graph.
    """

    def __init__(
        self,
        message: str,
        *,
        notation: str | None = None,
        start: int = 0,
        length: int = 1,
        node: str | None = None,
    ) -> None:
        self.reason = message
        self.notation = notation
        self.start = start
        self.length = length
        self.node = node
        if node is not None:
            message = f"node {node}: {message}"
        if notation is not None:
            message = f"{message}\n{_excerpt(notation, start, max(1, length))}"
        super().__init__(message)

    @staticmethod
    def of(error: SpecError, **place: Any) -> NetworkError:
        """The same error with its location: `notation`, `start` and `length`, or `node`."""
        kind = ExactNetworkError if isinstance(error, ExactnessError) else NetworkError
        return kind(error.reason if isinstance(error, NetworkError) else str(error), **place)


_BEFORE, _WITHIN, _AFTER = 40, 60, 20


def _excerpt(notation: str, start: int, length: int) -> str:
    """The notation with carets under a part of it: two printable lines of at most about 130 characters."""
    low, high = 0, len(notation)
    if high > _BEFORE + _WITHIN + _AFTER:
        low, high = max(0, start - _BEFORE), min(high, start + min(length, _WITHIN) + _AFTER)
    lead, trail = "..." if low > 0 else "", "..." if high < len(notation) else ""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in notation[low:high])
    carets = "^" * min(length, max(1, high - start))
    return f"  {lead}{text}{trail}\n  {' ' * (len(lead) + start - low)}{carets}"


class ExactnessError(SpecError):
    """The bound of exact arithmetic cannot be met, for example a linear layer with 100,000 inputs on 8-bit images."""


class ExactNetworkError(NetworkError, ExactnessError):
    """The sums of a network cannot be computed exactly."""


class ShapeError(StsbpError, ValueError):
    """An array has the wrong shape or dtype, for example images `[B, H, W]` for a network that reads `[C, H, W]`."""


class BackendError(StsbpError):
    """A backend is unknown, not installed, or cannot run on the requested device, for example `--device cuda`
    on a machine without a GPU."""


class NumericError(StsbpError, ArithmeticError):
    """A value is no longer finite, for example after a learning rate of 1e30. The message names the step and layer."""
