"""Pieces of C: names, comments, strings, tables of numbers and loops."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from stsbp_spec.equations.printers import LANGUAGES

__all__ = [
    "C_LANGUAGE",
    "SIZES",
    "UniqueNames",
    "braced",
    "comment",
    "function",
    "identifier",
    "indented",
    "loops",
    "number_type",
    "plus",
    "quotient",
    "string",
    "table",
    "times",
]  # fmt: skip

C_LANGUAGE = LANGUAGES["c"]
"""The language in which equations are printed."""

SIZES = {"float": 4, "int32_t": 4, "uint32_t": 4, "int16_t": 2, "uint16_t": 2, "int8_t": 1, "uint8_t": 1}
"""Sizes of the used types in bytes."""

_LONGEST_STEM = 20
"""Largest length of a stem. Compilers distinguish at least 31 characters of external names, and suffixes like `_step`
follow."""
_LONGEST_NAME = 40
"""Largest length of the part of a name that says its node. These names are internal, where compilers distinguish at
least 63 characters."""
_IN_A_ROW = 16
"""Numbers per row of a table."""


_RESERVED_NAMES = """
    aio aliases alloca ansi ar argp argz assert byteswap complex conio cpio crypt ctype direct dirent dlfcn elf endian
    envlock envz err errno error execinfo fastmath fcntl features fenv float fmtmsg fnmatch fstab fts ftw gconv getopt
    glob grp gshadow iconv ieee754 ieeefp ifaddrs inttypes io iso646 langinfo lastlog libgen libintl limits link linux
    locale malloc math mcheck memory mntent monetary mqueue ndbm netdb newlib nl_types nss obstack paths poll printf
    proc_service process pthread pty pwd re_comp reent regdef regex regexp resolv sched search semaphore setjmp sgtty
    shadow share signal spawn stab stdalign stdarg stdatomic stdbit stdbool stdckdint stddef stdfix stdint stdio
    stdio_ext stdlib stdnoreturn string strings stropts syscall sysexits syslimits syslog tar tchar term termio termios
    tgmath thread_db threads time trace ttyent uchar ucontext ulimit unctrl unistd unwind utime utmp utmpx values
    varargs wait wchar wctype winsock windows wordexp xlocale

    backtrace cet corecrt cpuid crtdbg crtdefs gcov intrin mm3dnow mm_malloc omp openacc quadmath sal vadefs
    arm_acle arm_cde arm_cmse arm_fp16 arm_mve arm_neon arm_sve riscv_vector

    aux con nul prn com1 com2 com3 com4 com5 com6 com7 com8 com9 lpt1 lpt2 lpt3 lpt4 lpt5 lpt6 lpt7 lpt8 lpt9
"""
_TAKEN = frozenset(_RESERVED_NAMES.split())
"""Headers of C libraries and POSIX, headers of compilers, and names that files cannot have on Windows."""


def _is_taken(name: str) -> bool:
    """Whether a C compiler or its library may have a header or a function of this name."""
    # Compilers name their headers for vector instructions so: immintrin, avx2intrin, arm_neon.
    return name in _TAKEN or bool(re.match(r"(?:is|to|mem|str|wcs)[a-z]|.*intrin$", name))


def identifier(text: str) -> str:
    """`text` as the beginning of names in C: lower-case letters, digits and _, beginning with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:_LONGEST_STEM].strip("_")
    # The standard library reserves names that begin with these prefixes and a letter.
    # A header with such a name would be mistaken for the library's own.
    if not name or name[0].isdigit() or _is_taken(name):
        name = f"net_{name}"[:_LONGEST_STEM].strip("_")
    return name


class UniqueNames:
    """Unique names within a file.

    Args:
        reserved: names that already exist.
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        self._used_names = set(reserved)

    def __call__(self, node: str, suffix: str) -> str:
        """A name for something that belongs to a node."""
        stem = re.sub(r"[^A-Za-z0-9]+", "_", node).strip("_")[:_LONGEST_NAME]
        if not stem or stem[0].isdigit():
            stem = f"n{stem}"
        name, number = f"{stem}_{suffix}", 1
        while name in self._used_names:
            number += 1
            name = f"{stem}_{suffix}_{number}"
        self._used_names.add(name)
        return name


def comment(text: str) -> str:
    """`text` in a form that is allowed in a comment."""
    return re.sub(r"[^A-Za-z0-9 .,:;_+=()\[\]{}|@<>^-]+", "_", text)


def string(text: str) -> str:
    """A string literal with the UTF-8 bytes of `text`."""
    printable = {byte: chr(byte) for byte in range(0x20, 0x7F)} | {ord('"'): '\\"', ord("\\"): "\\\\", ord("?"): "\\?"}
    literal = "".join(printable.get(byte, f"\\{byte:03o}") for byte in text.encode("utf-8", "replace"))
    return f'"{literal}"'


def indented(rows: Iterable[str]) -> list[str]:
    """Lines one level deeper."""
    return [f"    {row}" if row and not row.startswith("#") else row for row in rows]


def braced(head: str, rows: Iterable[str]) -> list[str]:
    """A block."""
    return [f"{head} {{", *indented(rows), "}"]


def function(head: str, rows: Iterable[str]) -> list[str]:
    """A function."""
    return [head, "{", *indented(rows), "}"]


def loops(axes: Sequence[tuple[str, int]], rows: Iterable[str]) -> list[str]:
    """Loops over axes by their names and sizes, the first one outermost."""
    text_lines = list(rows)
    for name, size in reversed(axes):
        text_lines = braced(f"for (int32_t {name} = 0; {name} < {size}; {name}++)", text_lines)
    return text_lines


def times(text: str, factor: int) -> str:
    """A product with a constant number."""
    return text if factor == 1 else f"({text} * {factor})"


def quotient(text: str, divisor: int) -> str:
    """The quotient, rounded down, of a non-negative number."""
    return text if divisor == 1 else f"({text} / {divisor})"


def plus(text: str, number: int) -> str:
    """A sum with a constant number."""
    return text if number == 0 else f"({text} {'-' if number < 0 else '+'} {abs(number)})"


def number_type(values: np.ndarray[Any, Any]) -> str:
    """The type of a table of float32 or of integers. Weights on a grid fit into 16 bits (`GridWeights.integers`)."""
    if values.dtype == np.float32:
        return "float"
    largest = int(np.abs(values).max(initial=0))
    return next(name for name in ("int8_t", "int16_t", "int32_t") if largest < 2 ** (8 * SIZES[name] - 1))


def table(name: str, values: np.ndarray[Any, Any]) -> list[str]:
    """A constant table of float32 or of integers, flat."""
    flat = values.reshape(-1)
    write = C_LANGUAGE.constant if values.dtype == np.float32 else str
    row_length = _IN_A_ROW // (2 if values.dtype == np.float32 else 1)
    rows = [", ".join(map(write, flat[i : i + row_length].tolist())) + "," for i in range(0, len(flat), row_length)]
    return [*braced(f"static const {number_type(values)} {name}[{len(flat)}] =", rows)[:-1], "};"]
