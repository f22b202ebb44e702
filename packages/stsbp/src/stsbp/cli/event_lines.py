"""Events as lines of text, read in pieces as they arrive through a pipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stsbp_spec.validation import shown

from stsbp.errors import DataError

__all__ = ["LATEST", "LONGEST_LINE", "Event", "EventLines"]

Event = tuple[int, ...]
"""An event: its time, then the other columns."""
LONGEST_LINE = 4096
"""Largest length of a line in bytes. Python can read numbers of up to 4,300 digits."""
LATEST = 2**62
"""Upper limit of event times in microseconds."""
_TIME = re.compile(rb"(\d{1,30})(?:\.(\d*))?")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NAMES = {"time": "t", "timestamp": "t", "polarity": "p", "neuron": "n"}


class EventLines:
    """Reads events such as `t x y p`, separated by spaces or commas. The unit of time is `10^digits` microseconds.

    Empty lines and lines that begin with # are skipped. The first other line may name the columns, in another order.

    Args:
        sizes: number of values, from 0, of each column except the time.
        digits: exponent of the unit. Further decimal places of a time are cut off.
        name: name of the file, for messages.
    """

    def __init__(self, sizes: Mapping[str, int], digits: int, name: str) -> None:
        self._sizes, self._digits, self.name = dict(sizes), digits, name
        self._order = self._columns = ["t", *sizes]
        self._unfinished, self._number, self._begun = b"", 0, False
        self._last, self._last_word = 0, b""

    @property
    def location(self) -> str:
        """The location of the last line that was read."""
        return f"{self.name}, line {self._number}"

    def events(self, data: bytes) -> Iterator[Event]:
        """The events of the lines that are completed by `data`.

        Raises:
            DataError: a line is not an event, or its time is before that of the previous line. The lines before it are
                processed.
        """
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            yield from self._event(line)
        if len(self._unfinished) > LONGEST_LINE:
            yield from self._event(self._unfinished)

    def end(self) -> Iterator[Event]:
        """The event of an unfinished last line. Raises the same errors as `events`."""
        unfinished, self._unfinished = self._unfinished, b""
        yield from self._event(unfinished)

    def _event(self, line: bytes) -> Iterator[Event]:
        """The event of a line, if it is neither empty, a comment nor the names of the columns."""
        self._number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{self.location} has more than {LONGEST_LINE:,} bytes: {self._shown(line)}")
        line = line.removeprefix(_BYTE_ORDER_MARK) if self._number == 1 else line
        words = line.replace(b",", b" ").split()
        if not words or words[0].startswith(b"#"):
            return
        if not self._begun:
            self._begun = True
            if words[0][:1].isalpha():
                self._name_columns(line, words)
                return
        if len(words) != len(self._columns):
            raise self._no_event(line)
        word_of = dict(zip(self._order, words, strict=True))
        t = self._time(line, word_of["t"])
        if t < self._last:
            last_time, new_time = (word.decode() for word in (self._last_word, word_of["t"]))
            raise DataError(f"{self.location}: time runs backwards, from {last_time} to {new_time}")
        self._last, self._last_word = t, word_of["t"]
        yield t, *(self._address(line, name, word_of[name]) for name in self._sizes)

    def _time(self, line: bytes, word: bytes) -> int:
        if (parts := _TIME.fullmatch(word)) is None:
            raise self._no_event(line)
        integer_digits, fraction_digits = parts.groups(b"")
        t = int(integer_digits + fraction_digits[: self._digits].ljust(self._digits, b"0"))
        if t >= LATEST:
            raise DataError(f"{self.location}: the time {word.decode()} is too large")
        return t

    def _address(self, line: bytes, name: str, word: bytes) -> int:
        """The value of the column `name` of an event, such as its row or its neuron."""
        size = self._sizes[name]
        if not word.isdigit():
            if word[:1] in b"+-" and word[1:].isdigit():
                raise DataError(f"{self.location}: {name} is {shown(int(word))}, but the network reads 0 to {size - 1}")
            raise self._no_event(line)
        value = int(word)
        if value >= size:
            raise DataError(f"{self.location}: {name} is {shown(value)}, but the network reads 0 to {size - 1}")
        return value

    def _name_columns(self, line: bytes, words: list[bytes]) -> None:
        column_names = [word.decode(errors="backslashreplace").lower() for word in words]
        self._order = [_NAMES.get(name, name) for name in column_names]
        if sorted(self._order) != sorted(self._columns):
            raise self._no_event(line)

    def _no_event(self, line: bytes) -> DataError:
        return DataError(
            f"{self.location} is not an event: {self._shown(line)}. A line must have the numbers "
            f"{' '.join(self._columns)}, separated by spaces, tabs or commas. The first line may name "
            "them in another order (t or time or timestamp, x, y, p or polarity, n or neuron)"
        )

    def _shown(self, line: bytes) -> str:
        return shown(line.rstrip(b"\r").decode(errors="backslashreplace"))
