"""What all calls from Python share: errors of one family, backends, and threads that are restored afterwards."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.registry import default_backend, open_backend
from stsbp_spec.validation import shown

from stsbp.config import RunConfig
from stsbp.errors import ConfigError, understood

__all__ = ["flag", "in_python", "opened", "path_of", "with_keywords"]

_OPTION = re.compile(r"""(?<![\w/.-])--(no-)?([a-z][a-z0-9-]*)(?:[ ]([a-z-]+\b|(?=['"\d]|[A-Z]+\b)))?""")
"""An option, and the next word, which may be its value. A number, a text in quotes and a word in capitals, which stands
for a value, are always one."""
_PAIR = re.compile(r"""(--[a-z][a-z0-9-]* (?:'[^']*'|"[^"]*"|[\d.]+|[A-Z]+)) (?=--[a-z])""")
"""An option with its value, and the space before the next option."""
_COMMAND = re.compile(r"\bstsbp [a-z-]+ ")


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """Let errors name the keywords of Python, and raise only subclasses of `StsbpError` for what is not a bug.

    Errors of the operating system and of exhausted memory become such errors, too.
    """
    try:
        yield
    except Exception as error:
        if (user_error := understood(error)) is None:
            raise
        user_error.args = (with_keywords(str(user_error)),)
        if user_error is error:
            raise
        raise user_error from error


def with_keywords(text: str) -> str:
    """A message of the command line with keywords in place of options. Commands in it are kept.

    >>> with_keywords("leave --own-lengths out, or give --no-test")
    'leave own_lengths= out, or give test=False'
    >>> with_keywords("give --on 'fsdd' --data-dir 'unseen'")
    "give on='fsdd', data_dir='unseen'"
    """
    return "\n".join(map(_line_with_keywords, text.split("\n")))


def _line_with_keywords(line: str) -> str:
    command = _COMMAND.search(line)
    end = len(line) if command is None else command.start()
    return _OPTION.sub(_keyword, _PAIR.sub(r"\1, ", line[:end])) + line[end:]


def _keyword(option: re.Match[str]) -> str:
    negated, name, word = option.groups()
    keyword = name.replace("-", "_")
    if negated:
        return f"{keyword}=False{option[0].partition(' ')[1]}{word or ''}"
    if word and word not in _choices(keyword):
        return f"{keyword}= {word}"
    return f"{keyword}={repr(word) if word else ''}"


@functools.cache
def _choices(keyword: str) -> frozenset[str]:
    """The values of a setting that has a fixed number of them."""
    if keyword == "pool":
        return frozenset(("mean", "sum"))
    field = RunConfig.model_fields.get(keyword)
    return frozenset(map(str, get_args(field.annotation))) if field is not None else frozenset()


def opened(backend: AbstractBackend | str | None, device: str | None) -> AbstractBackend:
    """The backend of a name, or by default; a backend that is already open is returned.

    Raises:
        BackendError: it is not available. The message gives the reason and a remedy.
        ConfigError: a device is named for a backend that is already open.
    """
    if not isinstance(backend, AbstractBackend):
        return open_backend(default_backend() if backend is None else backend, device)
    if device is not None:
        raise ConfigError(f"the backend is already open on {backend.device}; leave device out")
    return backend


def flag(name: str, value: object) -> bool:
    """A truth value. A text such as 'no' is none.

    Raises:
        ConfigError: it is neither True nor False.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} is True or False, got {shown(value)}")
    return bool(value)


def path_of(name: str, value: object) -> Path:
    """The path of an argument.

    Raises:
        ConfigError: it is not one.
    """
    with contextlib.suppress(TypeError, UnicodeError):
        # The object may say something that is no path; a lone surrogate cannot be encoded.
        if isinstance(value, (str, os.PathLike)) and os.fspath(value) and b"\0" not in os.fsencode(value):
            return Path(os.fsdecode(value))
    raise ConfigError(f"{name} is a path such as 'runs/digits', got {shown(value)}")
