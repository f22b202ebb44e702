"""The command line, called in this process as a user's shell would call it, and what a user may expect of it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from stsbp.cli import main

__all__ = [
    "Called",
    "Complaint",
    "aligned",
    "call",
    "check_message",
    "check_output",
    "check_warnings",
    "progress_line",
    "shown_warnings",
]

LONGEST_MESSAGE = 4000
"""Characters that an error message may have."""
LONGEST_OUTPUT = 200_000
"""Characters that results may have: tables, help pages, drawings are files."""
CODES = {0, 1, 2, 75}
"""Exit codes that docs/cli.md gives to what is not stopped by a signal or a closed pipe."""
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_ANSI = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
"""What `rich` sends to a terminal."""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, its columns aligned at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def progress_line(done: int, faults: int, seconds: float, remaining: float) -> str:
    """Number of cases, rate, faults and time that is left. `seconds` have passed, and `remaining` seconds are left."""
    return f"{done:,} cases, {done / seconds:.1f} a second, {faults} with faults, {remaining / 60:.0f} minutes left"


class Complaint(Exception):
    """The product did what it promises not to do. The first line is the same for the same fault."""


@dataclass
class Called:
    """What came of a call: exit code, both streams, the warnings of libraries, and an exception that nobody caught."""

    code: int
    out: str
    err: str
    warned: list[warnings.WarningMessage] = field(default_factory=list)
    crash: BaseException | None = None


class _Stream(io.TextIOWrapper):
    """A standard stream in memory."""

    def __init__(self, encoding: str, errors: str, terminal: bool) -> None:
        self.content = io.BytesIO()
        self._terminal = terminal
        super().__init__(self.content, encoding=encoding, errors=errors, newline="\n", write_through=True)

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        """All that was written."""
        return self.content.getvalue().decode(self.encoding, "replace")


def call(arguments: Sequence[str], *, encoding: str = "utf-8", terminal: bool = False) -> Called:
    """Run `stsbp ARGUMENTS` in this process, through its entry point.

    Args:
        arguments: of the command line.
        encoding: of the streams; like Python's own, standard output is strict and standard error is not.
        terminal: whether standard error says that it is a terminal.
    """
    out, err = _Stream(encoding, "strict", False), _Stream(encoding, "backslashreplace", terminal)
    streams, environment = (sys.argv, sys.stdout, sys.stderr), dict(os.environ)
    sys.argv, sys.stdout, sys.stderr = ["stsbp", *arguments], out, err
    code, crash = 0, None
    try:
        with shown_warnings() as caught:
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            except BaseException as error:
                code, crash = 1, error
    finally:
        sys.argv, sys.stdout, sys.stderr = streams
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
    return Called(code, out.text(), err.text(), caught, crash)


@contextlib.contextmanager
def shown_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect what Python would show to a user by default, but each time."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        yield caught


def check_warnings(caught: list[warnings.WarningMessage]) -> None:
    """Complain of a library's warning that reached the user."""
    if caught:
        # Without the numbers: the name of the fault is the same for the same warning.
        text = re.sub(r"\d+", "N", str(caught[0].message))[:120]
        place = f"{os.path.basename(caught[0].filename)}:{caught[0].lineno}"
        raise Complaint(f"a warning reached the user: {caught[0].category.__name__} at {place}: {text}")


def check_message(text: str, kind: str = "message") -> None:
    """Complain of a message that is empty or too long."""
    if not text.strip():
        raise Complaint(f"an empty {kind}")
    if len(text) > LONGEST_MESSAGE:
        raise Complaint(f"a {kind} of more than {LONGEST_MESSAGE} characters\n{len(text)}: {text[:600]!r}")


def check_output(called: Called, *, terminal: bool = False) -> None:
    """Complain of what a shell user should never see.

    Raises:
        Complaint: of a traceback, a library's warning, an exit code that does not fit, a message that is too long or
            missing, or control characters.
    """
    if called.crash is not None:
        raise called.crash
    if terminal:
        called = replace(called, err=_ANSI.sub("", called.err).replace("\r", "\n"))
    check_warnings(called.warned)
    if called.code not in CODES:
        raise Complaint(f"exit code {called.code}\n{called.err[:600]}")
    if "Traceback (most recent" in called.err + called.out:
        raise Complaint(f"a traceback was printed\n{called.err[-2000:]}")
    errors = len(re.findall(r"^Error: ", called.err, re.MULTILINE))
    if errors != (called.code in (1, 2)):
        raise Complaint(f"exit code {called.code} with {errors} errors\n{called.err[:600]!r}")
    if called.code in (1, 2):
        check_message(called.err, "message on standard error")
    if len(called.out) > LONGEST_OUTPUT or len(called.err) > LONGEST_OUTPUT:
        raise Complaint(f"more than {LONGEST_OUTPUT} characters were printed\n{called.err[:600]!r}")
    for name, text in (("output", called.out), ("error", called.err)):
        if match := _CONTROL.search(text):
            at = match.start()
            raise Complaint(f"standard {name} has a control character\n{text[max(0, at - 100) : at + 100]!r}")
