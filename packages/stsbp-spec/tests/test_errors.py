"""Messages as they may be shown, and where they point."""

from __future__ import annotations

import pytest
from stsbp_spec.errors import ExactnessError, ExactNetworkError, NetworkError, SpecError, legible, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb", "a\\x09b"),
        ("\x7f\x9f\xa0", "\\x7f\\x9f\xa0"),
        ("\u202e", "\\u202e"),
        ("\udc80\udcff", "\\x80\\xff"),
        ("\udc7f\udd00", "\\udc7f\\udd00"),
    ],
    ids=ascii,
)
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_ends_of_lines_stay_where_they_are_asked_for() -> None:
    assert printable("a\nb\x07", lines=True) == "a\nb\\x07"
    assert printable("a\nb") == "a\\x0ab"


def test_of_many_lines_the_first_30_and_the_last_10_are_shown() -> None:
    rows = [str(i) for i in range(40)]
    assert legible("\n".join(rows)) == "\n".join(rows)
    rows = [str(i) for i in range(1041)]
    assert legible("\n".join(rows)).split("\n") == [*rows[:30], "... (1,001 lines left out) ...", *rows[-10:]]


def test_of_a_long_line_the_first_1200_and_the_last_600_characters_are_shown() -> None:
    row = "".join(chr(ord("a") + i % 26) for i in range(1800))
    assert legible(row) == row
    longer = row[:1200] + "-" * 1000 + row[1200:]
    assert legible(longer) == f"{row[:1200]} ... (1,000 characters left out) ... {row[1200:]}"


@pytest.mark.parametrize(
    ("start", "length", "lines"),
    [
        (0, 2, ("  8-9-10", "  ^^")),
        (4, 9, ("  8-9-10", "      ^^")),
        (6, 3, ("  8-9-10", "        ^")),
        (2, 0, ("  8-9-10", "    ^")),
    ],
)
def test_carets_point_into_a_notation(start: int, length: int, lines: tuple[str, str]) -> None:
    error = NetworkError("no", notation="8-9-10", start=start, length=length)
    assert str(error) == "\n".join(("no", *lines))


def test_of_a_long_notation_the_surroundings_are_shown() -> None:
    notation = "".join(chr(ord("a") + i % 26) for i in range(300))

    def shown(length: int, place: int, marked: int) -> list[str]:
        return str(NetworkError("no", notation=notation[:length], start=place, length=marked)).split("\n")[1:]

    assert shown(120, 100, 2) == [f"  {notation[:120]}", f"  {' ' * 100}^^"]
    assert shown(121, 100, 2) == [f"  ...{notation[60:121]}", f"  {' ' * 43}^^"]
    assert shown(300, 100, 2) == [f"  ...{notation[60:122]}...", f"  {' ' * 43}^^"]
    assert shown(300, 10, 2) == [f"  {notation[:32]}...", f"  {' ' * 10}^^"]
    assert shown(300, 0, 70) == [f"  {notation[:80]}...", f"  {'^' * 70}"]
    assert shown(300, 0, 100) == [f"  {notation[:80]}...", f"  {'^' * 80}"]


def test_an_error_of_a_network_keeps_its_reason_and_its_kind() -> None:
    error = NetworkError.of(SpecError("no"), node="conv1")
    assert (str(error), error.reason, error.node) == ("node conv1: no", "no", "conv1")
    with_notation = NetworkError.of(error, notation="8", start=0)
    assert str(with_notation) == "no\n  8\n  ^"
    assert type(with_notation) is NetworkError
    assert type(NetworkError.of(ExactnessError("no"), node="conv1")) is ExactNetworkError
