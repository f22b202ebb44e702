"""User-defined classes, named on the command line as `module:Class:key=value`."""

from __future__ import annotations

import importlib
import os
import sys
from abc import ABCMeta
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import wraps
from traceback import walk_tb
from typing import Any, TypeVar

import numpy as np

from stsbp_spec.errors import SpecError, StsbpError, did_you_mean
from stsbp_spec.validation import read_number, shown

__all__ = [
    "Guarded",
    "calling",
    "constants_by_name",
    "declared",
    "imported",
    "names_a_class",
    "read_pairs",
    "read_values",
    "returns",
    "split",
]

T = TypeVar("T")

Check = Callable[[str, Any, Any], Any]
"""Returns the result of a method in the expected form, given its name for messages, its object and the result."""


def names_a_class(text: str, names: Container[str]) -> bool:
    """Whether a text names a class of a module, rather than one of the `names` with its parameters."""
    name, *pairs = text.strip().split(":")
    return bool(pairs) and "=" not in pairs[0] and name not in names


def split(text: str) -> tuple[str, str, list[str]]:
    """Module, class and `key=value` pairs of a text that names a class."""
    module, name, *pairs = text.strip().split(":")
    return module, name, pairs


@contextmanager
def calling(action: str, kind: type[StsbpError] = SpecError) -> Iterator[None]:
    """Turn errors of the user's code into a `StsbpError` with the file and the line of the user's that raised them.

    A call of `sys.exit` is such an error too. Otherwise it would end the command with the exit code of that call.

    Args:
        action: the action that fails because of the error, for the message.
        kind: the class of the error that is raised.
    """
    try:
        yield
    except (StsbpError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # Errors of libraries written in Rust are no `Exception`.
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            reason = f"it calls sys.exit({error.code!r})"
        raise kind(f"{action}: {reason}{_code_location(error)}") from error


def _code_location(error: BaseException) -> str:
    """The last line of the user's code that an error passed through, for a message; empty if it passed through none."""
    # Imported here, because only a message needs it.
    import sysconfig

    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    libraries = ("<", *(os.path.join(path, "") for path in paths))
    locations, user_locations = [], []
    for frame, line in walk_tb(error.__traceback__):
        locations.append(f" ({(file := frame.f_code.co_filename)}:{line})")
        if not (file.startswith(libraries) or str(frame.f_globals.get("__name__")).startswith("stsbp")):
            user_locations.append(locations[-1])
    # The caller notices a missing method or argument: the first locations are those of `calling` and its caller.
    # Messages of syntax errors contain the place.
    if isinstance(error, SyntaxError) or (isinstance(error, TypeError) and len(locations) <= 2):
        return ""
    # The import of a module that does not exist fails in Python's own code.
    return user_locations[-1] if user_locations else "" if isinstance(error, ImportError) else locations[-1]


class Guarded(ABCMeta):
    """Metaclass of the base classes of models. It guards methods of their subclasses, also those assigned later."""

    __checks: Mapping[str, Check] = {}

    def guard(cls, checks: Mapping[str, Check]) -> None:
        """Check the results of methods of a user-defined class, and turn their errors into `SpecError`.

        Args:
            checks: the check of each method by its name. A method that the class inherits is guarded in its own class.
        """
        cls.__checks = checks
        for name in checks:
            if name in vars(cls):
                setattr(cls, name, vars(cls)[name])

    def __setattr__(cls, name: str, value: Any) -> None:
        check = cls.__checks.get(name)
        # Decorators such as `cache` and `staticmethod` return other objects than functions.
        if check is not None and (callable(value) or isinstance(value, classmethod)):
            value = _guarded(value, f"{cls.__name__}.{name}", check)
        super().__setattr__(name, value)


def _guarded(method: Any, name: str, check: Check) -> Callable[..., Any]:
    @wraps(method)
    def call(self: object, *arguments: Any, **named: Any) -> Any:
        with calling(f"{name} fails"):
            bound_method = method.__get__(self, type(self)) if hasattr(method, "__get__") else method
            returned = bound_method(*arguments, **named)
        return check(name, self, returned)

    return call


def declared(model: object, **kinds: type | tuple[type, ...]) -> None:
    """Check that the class of a user-defined model has these attributes, of these types.

    Raises:
        SpecError: an attribute is missing, or is something else.
    """
    for name, kind in kinds.items():
        if not isinstance(value := getattr(model, name, None), kind):
            expected = "a text" if kind is str else "a tuple of texts"
            raise SpecError(f"the class {type(model).__name__} must define {name}, {expected}, got {shown(value)}")


def returns(*kinds: type) -> Check:
    """Check for a result of one of these classes."""

    def check(name: str, _: object, returned: object) -> object:
        if not isinstance(returned, kinds):
            raise SpecError(f"{name} must return a {kinds[0].__name__}, got {shown(returned)}")
        return returned

    return check


def constants_by_name(name: str, model: object, constants: object) -> object:
    """Check for a dict of numbers that are finite in float32."""
    if not isinstance(constants, Mapping):
        raise SpecError(f"{name} must return a dict of numbers by name, got {shown(constants)}")
    for key, value in constants.items():
        try:
            number = float(value)
        except SpecError:
            # A symbol that stands for a number (losses/stored.py).
            continue
        except (TypeError, ValueError):
            raise SpecError(f"{name}: {key} must be a number, got {shown(value)}") from None
        with np.errstate(over="ignore"):
            rounded = np.float32(number)
        if not np.isfinite(rounded):
            raise SpecError(f"{name}: {key} must be finite in float32, got {number:g} for {shown(model)}")
    return constants


def imported(text: str, bases: tuple[type[T], ...], kind: str) -> type[T]:
    """The class that `module:Class` names: a dataclass derived from `bases`. The module may be in the current folder.

    Raises:
        SpecError: the module cannot be imported, or has no such class.
    """
    module, name, _ = split(text)
    title, folder = shown(f"{module}:{name}"), os.getcwd()
    sys.path.insert(0, folder)
    try:
        with calling(f"the {kind} {title} cannot be imported"):
            names = vars(importlib.import_module(module))
    finally:
        sys.path.remove(folder)
    if name not in names:
        raise SpecError(f"there is no {title}: the module has no {shown(name)}{did_you_mean(name, names)}")
    cls = names[name]
    if not isinstance(cls, type) or not issubclass(cls, bases):
        raise SpecError(
            f"{title} is not a {kind}; it must be a class that derives from {' or '.join(b.__name__ for b in bases)}"
        )
    if "__dataclass_fields__" not in vars(cls):
        raise SpecError(f"{title} is not a dataclass; write @dataclass(frozen=True) above the class")
    return cls


def read_pairs(pairs: Iterable[str], title: str) -> Iterator[tuple[str, str]]:
    """The names and texts of `key=value` pairs, one after the other.

    Raises:
        SpecError: there is something else, or a name is given twice.
    """
    used_keys = set[str]()
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise SpecError(f"{title}: expected key=value, got {shown(pair)}")
        if key in used_keys:
            raise SpecError(f"{title}: {shown(key)} is given twice; leave one of them out")
        used_keys.add(key)
        yield key, value


def read_values(cls: type[Any], pairs: list[str], title: str) -> dict[str, Any]:
    """Fields of a dataclass from `key=value` pairs: numbers, or text if the default of the field is text.

    Raises:
        SpecError: there is no such field, or a value is not a number.
    """
    parameters = {field.name: field for field in fields(cls) if field.init}
    values: dict[str, Any] = {}
    for key, value in read_pairs(pairs, title):
        if key not in parameters:
            raise SpecError(f"{title} has no parameter {shown(key)}; it has: {', '.join(parameters) or 'none'}")
        default = parameters[key].default
        if default is not MISSING and isinstance(default, str):
            values[key] = value
            continue
        try:
            values[key] = read_number(value)
        except ValueError:
            raise SpecError(f"{title}: {key} must be a number, got {shown(value)}") from None
    return values
