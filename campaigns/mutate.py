"""Damage to valid inputs: bytes, text and JSON. Whatever is random comes from the generator that is handed in."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["NUMBERS", "TEXTS", "hostile", "mutated_bytes", "mutated_json", "mutated_text", "nested", "number_text"]

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 8, 9, 10, 127, 128, 255, 256, 1000, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31) - 1, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, -0.5, 0.999999, 1.0, 1.5, 24.0, 1e-300, 5e-324, 1e23, 1.7e308, -1.7e308),
    *(float("inf"), float("-inf"), float("nan")),
)
"""Where domains begin and end, in integers and floats."""

TEXTS: tuple[str, ...] = (
    *("", " ", "\t", "\n", "\0", "\x1b[31m", "\x07", "\x7f", "\x9b", "\u202e", "\u200b", "é", "\U0001f4a5", "a" * 300),
    *("\ud800", "\udcff", "../../x", "..", ".", "/", "~", "~nobody", "-", "--", "'", '"', "\\", "%s%n", "{}", "{0}"),
    *("[", "]", "[]", "null", "true", "NaN", "inf", "-inf", "1e400", "0x10", "1_000", "١٢", "１２", "²", "a" * 5000),
    *("9" * 30, "9" * 4400, "1e5", "1e-5", ".5", "5.", "+1", "-0", "[/b]", "<script>", "&lt;", "nan"),
)


def number_text(rng: random.Random) -> str:
    """A boundary number as text; sometimes with more digits than Python reads."""
    if rng.random() < 0.05:
        return rng.choice(("9" * 4301, "-" + "9" * 5000, "1e99999", "0." + "0" * 400 + "1"))
    value = rng.choice(NUMBERS)
    return repr(value + rng.choice((-1, 0, 1))) if isinstance(value, int) else repr(value)


def hostile(rng: random.Random, depth: int = 2) -> Any:
    """A JSON value of any kind."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind == 6:
        return rng.choice((None, True, False))
    if depth == 0:
        return rng.choice(([], {}))
    if kind == 7:
        return [hostile(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(TEXTS): hostile(rng, depth - 1) for _ in range(rng.randrange(4))}
    return nested(rng.choice((5, 50, 100)), rng.choice(("list", "object")))


def nested(depth: int, of: str = "list") -> Any:
    """Lists within lists, or objects within objects."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if of == "list" else {"a": value}
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values within a JSON value."""
    paths = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        paths += _places(child, (*path, key))
    return paths


def mutated_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one to three changes somewhere within."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        *path, key = rng.choice(places[1:] or [("",)])
        owner = value
        for step in path:
            owner = owner[step]
        change = rng.randrange(8)
        if not isinstance(owner, dict | list):
            return hostile(rng)
        if change == 0:
            del owner[key]
        elif change == 1 and isinstance(owner, dict):
            owner[rng.choice(TEXTS)] = owner.pop(key)
        elif change == 2 and isinstance(owner, dict):
            owner[rng.choice(TEXTS)] = hostile(rng)
        elif change == 3:
            owner[key] = copy.deepcopy(_at(value, rng.choice(places)))
        elif change == 4 and isinstance(owner[key], int | float):
            owner[key] = owner[key] * rng.choice((-1, 2, 0.5, 10**6)) + rng.choice((0, 1, -1))
        elif change == 5 and isinstance(owner[key], list):
            owner[key] = owner[key] * rng.choice((0, 2, 50))
        elif change == 6:
            owner[key] = {int: str, float: str, str: list, list: dict, dict: list}.get(type(owner[key]), str)()
        else:
            owner[key] = hostile(rng)
        if not isinstance(value, dict | list) or not value:
            break
    return value


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    try:
        for step in path:
            value = value[step]
    except (KeyError, IndexError, TypeError):
        return None
    return value


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """A JSON value as text, sometimes with what Python's own writer would not write."""
    text = json.dumps(value, indent=rng.choice((None, 1)))
    if rng.random() < 0.1:
        text = mutated_text(rng, text)
    if rng.random() < 0.03:
        text = text.replace("0", "9" * 4400, 1)
    if rng.random() < 0.03:
        depth = rng.choice((300, 900, 100_000))
        text = text.replace("0", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def mutated_text(rng: random.Random, text: str, words: Sequence[str] = ()) -> str:
    """Text with one to four changes: numbers, words, spans cut, doubled or moved, odd characters."""
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        to = min(to, at + rng.choice((1, 2, 8, 64)))
        change = rng.randrange(9)
        if change == 0:
            text = text[:at] + text[to:]
        elif change == 1:
            text = text[:to] + text[at:to] * rng.choice((1, 1, 2, 30)) + text[to:]
        elif change == 2:
            text = text[:at] + rng.choice(TEXTS) + text[to:]
        elif change == 3 and words:
            text = text[:at] + rng.choice(words) + text[at:]
        elif change == 4:
            text = (
                text[:at]
                + chr(rng.choice((rng.randrange(32, 127), rng.randrange(256), rng.randrange(0xD800))))
                + text[to:]
            )
        elif change == 5:
            text = text[:at]
        elif change == 6:
            text = text[:at] + text[at:to].swapcase() + text[to:]
        else:
            digits = [i for i, letter in enumerate(text) if letter.isdigit()]
            if digits:
                start = end = rng.choice(digits)
                while end < len(text) and (text[end].isdigit() or text[end] == "."):
                    end += 1
                text = text[:start] + number_text(rng) + text[end:]
    return text


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _set(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.choice((0, 1, 127, 128, 240, 255, rng.randrange(256)))]) + data[at + 1 :]


def _word(rng: random.Random, data: bytes) -> bytes:
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice([x for x in NUMBERS if isinstance(x, int)]) % (1 << 8 * size)
    at = rng.randint(0, max(0, min(len(data) - size, rng.choice((64, len(data))))))
    return data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def _remove(rng: random.Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.choice((1, 2, 5, 16, 300)) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    part = data[at : at + rng.choice((1, 5, 16, 300))]
    return data[:at] + part * rng.choice((2, 2, 3, 40)) + data[at + len(part) :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 5, 40))) + data[at:]


def _move(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return data[b:] + data[a:b] + data[:a]


_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_cut, _flip, _flip, _flip, _set, _set, _word, _word, _remove, _repeat, _insert, _move),
)


# Hypothesis would reduce a failing case better. But a file of a few hundred bytes takes a tenth of a millisecond here,
# so that a million cases take minutes, and most are valid files that get a correct digest after their damage.
def mutated_bytes(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """Bytes with one to four changes; `other` is what its end may be exchanged with."""
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        if not data:
            return rng.randbytes(rng.choice((0, 1, 5, 64)))
        if other and rng.random() < 0.1:
            data = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
        else:
            data = rng.choice(_CHANGES)(rng, data)
    return data
