"""The settings that a sweep varies: ranges of numbers and lists of values, from text or from Python.

A range is `LOW:HIGH`, with `:log` (logarithmic), `:int` (whole numbers) or `:STEP` (steps of this size). A list is
`A,B,C`, or `A;B;C` if its values contain commas. Both ends of a range, and every value of a list, must be in the domain
of their setting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from stsbp_spec.validation import shown

from stsbp.config import FREE, OWN, RunConfig, SettingsSource, resolve
from stsbp.errors import ConfigError, StsbpError, did_you_mean
from stsbp.training.build import check_typed

__all__ = [
    "NumberRange",
    "ValueList",
    "Variation",
    "check_variations",
    "grid_size",
    "grid_values",
    "read_variations",
    "variation_of",
]

Value: TypeAlias = bool | int | float | str

_SAMPLES = ("dataset", "holdout", "limit", "skip_malformed", "split_seed", "test", "test_on", "validation")
_RECORDS = ("test_every", "log_every", "checkpoint_every", "init_sha256", *(own.model for own in OWN.values()))
NOT_VARIED = {
    **dict.fromkeys(_SAMPLES, "it chooses the samples, and results on different samples cannot be compared"),
    **dict.fromkeys(sorted(FREE | {*_RECORDS}), "it does not change what is trained"),
    "patience": "it only ends runs; give --patience, or a pruner",
}
"""Settings that a sweep does not vary, each with the reason."""
_MOST_VALUES = 10_000
"""Largest number of values of a list, and of a range in steps on a grid."""
_MOST_STEPS = 10**9
"""Largest number of values of a range in steps that is not on a grid. Optuna cannot count many more."""
_MOST_COMBINATIONS = 64
"""Number of combinations of other varied settings in which a value may have an effect, that are tried."""
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class NumberRange:
    """Numbers from `low` to `high`, both included.

    Attributes:
        whole: whether they are integers. They are floats if the setting is a float.
        log: whether equal ratios are equally likely, instead of equal differences.
        step: distance of neighbouring values; None: any value, or any integer.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {"low": self.low, "high": self.high, "whole": self.whole, "log": self.log, "step": self.step}

    @property
    def ends(self) -> tuple[float, ...]:
        """The values that are checked."""
        return self.low, self.high

    def has(self, value: object) -> bool:
        """Whether a value lies in the range. The last of many steps may be rounded to one beyond the end."""
        rounding = 1e-9 * (self.high - self.low)
        return isinstance(value, (int, float)) and self.low - rounding <= value <= self.high + rounding

    @property
    def grid(self) -> list[float] | None:
        """All values; None: there are infinitely many."""
        if self.step is None and not self.whole:
            return None
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + k * step for k in range(min(count, _MOST_VALUES + 1))]


@dataclass(frozen=True)
class ValueList:
    """Values of a list."""

    values: tuple[Value, ...]

    @property
    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {"values": list(self.values)}

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that are checked."""
        return self.values

    def has(self, value: object) -> bool:
        """Whether a value is in the list."""
        return value in self.values

    @property
    def grid(self) -> list[Value]:
        """All values."""
        return list(self.values)


Variation: TypeAlias = NumberRange | ValueList


def variation_of(record: Mapping[str, Any]) -> Variation:
    """A variation from its record."""
    return ValueList(tuple(record["values"])) if "values" in record else NumberRange(**record)


def read_variations(pairs: Sequence[tuple[str, Any]]) -> dict[str, Variation]:
    """The varied settings by name, from names with texts, or with values from Python.

    Raises:
        ConfigError: a name is unknown, given twice, or not to be varied; or a text is neither a range nor a list.
    """
    variations: dict[str, Variation] = {}
    for typed_name, value in pairs:
        name = _setting(typed_name)
        if name in variations:
            raise ConfigError(f"--vary {name!r} is given twice; give all its values at once")
        variations[name] = _variation(name, value)
    if not variations:
        raise ConfigError("nothing is varied; give --vary NAME=VALUES, for example --vary tau_m=4:16:log")
    return variations


def _setting(typed_name: str) -> str:
    name = typed_name.strip().removeprefix("--").replace("-", "_")
    name = {"learning_rate": "lr"}.get(name, name)
    if name not in RunConfig.model_fields:
        known = [key for key in RunConfig.model_fields if key not in NOT_VARIED]
        raise ConfigError(
            f"--vary {shown(typed_name)}: there is no such setting{did_you_mean(name, known)}; settings that can be "
            f"varied: {', '.join(known)}"
        )
    if name in NOT_VARIED:
        raise ConfigError(f"--vary {name!r}: this setting is not varied, because {NOT_VARIED[name]}")
    return name


def _variation(name: str, value: Any) -> Variation:
    annotation = RunConfig.model_fields[name].annotation
    if isinstance(value, str):
        if annotation in (int, float) and ":" in value:
            return _range(name, value, whole=annotation is int)
        texts = value.split(";" if ";" in value else ",")
        values = [_read(text.strip(), annotation) for text in texts]
    elif isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1):
        values = [_plain(name, x, annotation) for x in value]
    else:
        raise ConfigError(
            f"--vary {name!r}: give a range such as '4:16:log' or a list of values such as [0.5, 1.0], got "
            f"{shown(value)}"
        )
    distinct = tuple(dict.fromkeys(values))
    if len(distinct) < 2:
        raise ConfigError(
            f"--vary {name!r}: give a range LOW:HIGH or at least two different values, got {shown(value)}; for one "
            f"value, use --{name.replace('_', '-')}"
        )
    if len(distinct) > _MOST_VALUES:
        raise ConfigError(f"--vary {name!r}: at most {_MOST_VALUES:,} values, got {len(distinct):,}")
    return ValueList(distinct)


def _read(text: str, annotation: Any) -> Value:
    """A text as a value of its setting. A text that is no such value stays one, and the setting refuses it."""
    if annotation is bool:
        return _TRUTH.get(text.lower(), text)
    if annotation in (int, float):
        return _number(text, whole=annotation is int)
    return text


def _number(text: str, *, whole: bool) -> Value:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return text


def _plain(name: str, value: Any, annotation: Any) -> Value:
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, (bool, int, float, str)):
        raise ConfigError(f"--vary {name!r}: values are numbers, texts or truth values, got {shown(value)}")
    return float(plain) if annotation is float and type(plain) is int else plain


def _range(name: str, text: str, *, whole: bool) -> NumberRange:
    usage = f"--vary {name}={text}: a range is LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int or LOW:HIGH:STEP"
    first, second, *more = (part.strip() for part in text.split(":"))
    low, high = (_number(part, whole=whole) for part in (first, second))
    of_setting = "whole numbers" if whole else "numbers"
    if isinstance(low, str) or isinstance(high, str) or not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{usage}; LOW and HIGH are {of_setting}")
    log = "log" in more
    steps = [part for part in more if part not in ("log", "int")]
    step = _number(steps[0], whole=whole) if steps else None
    if len(steps) > 1 or len(more) > len({*more}):
        raise ConfigError(usage)
    if isinstance(step, str) or (step is not None and not 0 < step <= high - low):
        raise ConfigError(f"{usage}; STEP is one of the {of_setting} above 0 and at most HIGH - LOW")
    if low >= high:
        raise ConfigError(f"{usage}; LOW must be below HIGH")
    if log and low <= 0:
        raise ConfigError(f"{usage}; LOW of a logarithmic range must be above 0")
    if log and step is not None:
        raise ConfigError(f"{usage}; a logarithmic range has no STEP")
    if step is not None and (high - low) / step >= _MOST_STEPS:
        raise ConfigError(
            f"{usage}; a range in steps has at most {_MOST_STEPS:,} values, so give a larger STEP, or none"
        )
    whole_values = whole or "int" in more
    if whole_values and any(x is not None and x != int(x) for x in (low, high, step)):
        raise ConfigError(f"{usage}; LOW, HIGH and STEP are whole numbers with int")
    return NumberRange(low, high, whole_values, log, step)


def check_variations(
    variations: Mapping[str, Variation], sources: Sequence[SettingsSource], given: Mapping[str, Any]
) -> None:
    """Check every value alone beside the fixed settings.

    Args:
        variations: the varied settings.
        sources: where the fixed settings come from.
        given: the fixed settings that were typed.

    Raises:
        ConfigError: a setting is both fixed and varied; or a value is outside the domain of its setting, or has no
            effect whatever the values of the other varied settings are.
    """
    for name, variation in variations.items():
        if name in given:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} fixes a setting that --vary {name!r} varies; give one of them")
        for value in variation.ends:
            resolve([*sources, SettingsSource(f"--vary {name!r}", {name: value})])
        _check_effect(name, variations, sources)


def _check_effect(name: str, variations: Mapping[str, Variation], sources: Sequence[SettingsSource]) -> None:
    """Raise `ConfigError` if a varied setting has no effect in any combination of the other varied lists."""
    lists = {
        key: variation.values
        for key, variation in variations.items()
        if key != name and isinstance(variation, ValueList)
    }
    first_error: StsbpError | None = None
    own = variations[name].ends[-1]
    for combination in itertools.islice(itertools.product(*lists.values()), _MOST_COMBINATIONS):
        values = {**dict(zip(lists, combination, strict=True)), name: own}
        try:
            check_typed(resolve([*sources, SettingsSource("--vary", values)]), {name: own})
            return
        except StsbpError as error:
            first_error = first_error or error
    if first_error is not None:
        raise ConfigError(f"--vary {name!r}: {first_error}") from first_error


def grid_values(variations: Mapping[str, Variation]) -> dict[str, list[Any]]:
    """All values of each setting, for a grid.

    Raises:
        ConfigError: a range has infinitely many values, or very many.
    """
    grid: dict[str, list[Any]] = {}
    for name, variation in variations.items():
        values = variation.grid
        if values is None:
            raise ConfigError(
                f"--vary {name!r}: a grid needs a list of values or a range in steps, LOW:HIGH:STEP or LOW:HIGH:int"
            )
        if len(values) > _MOST_VALUES:
            raise ConfigError(f"--vary {name!r}: a grid has at most {_MOST_VALUES:,} values of a setting; give a STEP")
        grid[name] = list(values)
    return grid


def grid_size(variations: Mapping[str, Variation]) -> int:
    """Number of points of the grid."""
    return math.prod(len(values) for values in grid_values(variations).values())
