"""Checks the inputs of the modules in nn.py. Values that a forward pass would silently accept raise an error.

A potential that is NaN never reaches the threshold. Sums of values that are not on a grid are rounded. Neither is
visible in the spikes.
"""

from __future__ import annotations

import math

import torch
from stsbp_spec.engine.checks import samples_first
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.validation import integer, shown

__all__ = [
    "ONE_INPUT",
    "RETURNED",
    "check_axes",
    "check_finite",
    "check_inputs",
    "check_precision",
    "check_state",
    "check_steps",
    "check_tensor",
]

RETURNED = "give the state that this module returned"
"""What to do instead of giving a state that does not fit."""

ONE_INPUT = "; if the first axis is the samples, give x[None] with steps=..., the same input at every step"
"""End of a message about inputs that may lack the axis of time."""


_NO_ARITHMETIC = frozenset(
    getattr(torch, name) for name in dir(torch) if name.startswith("float8_") or name in ("uint16", "uint32", "uint64")
)
"""Types of which torch stores numbers, but does not compute with them."""


def _extremes(module: str, x: torch.Tensor) -> tuple[float, float]:
    """Smallest and largest element, found in one pass; raises `NumericError` if an element is not finite."""
    if x.numel() == 0:
        raise ShapeError(f"the input of {module} is empty: {tuple(x.shape)}")
    low, high = (float(end) for end in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NumericError(f"the input of {module} holds a value that is not finite")
    return low, high


def check_finite(module: str, z: torch.Tensor) -> None:
    """Raise `NumericError` unless every element of `z`, any shape, is finite."""
    _extremes(module, z.detach())


def check_state(name: str, x: torch.Tensor) -> None:
    """Raise `NumericError` unless every element of an array of the state of `name`, any shape, is finite."""
    if not bool(torch.isfinite(x).all()):
        raise NumericError(f"the state of {name} holds a value that is not finite; {RETURNED}")


_UNSCALED = "if pixels were scaled to 0 to 1, undo this with (images * 255).round()"
_DROPPED = (
    "; torch.nn.Dropout scales spikes: put it and the layers around it into stsbp_torch.Sequential, which applies the "
    "factor of the dropout after the next weights"
)


def check_inputs(
    module: str, s: torch.Tensor, exponent: int, largest: float, hint: str = "", *, may_be_scaled: bool = False
) -> None:
    """Raise `ShapeError` unless every element of `s`, any shape, is a multiple of `2^-exponent` in `[0, largest]`.

    With `may_be_scaled`, `s` must not have the largest value 1 either: pixels were scaled to 0 to 1.
    """
    s = s.detach()
    if s.dtype in _NO_ARITHMETIC:
        s = s.double()
    low, high = _extremes(module, s)
    wrong = low if low < 0 else high if high > largest else None
    if wrong is None and s.is_floating_point():
        parts = (s * 2.0**exponent).frac_() if exponent else s.frac()
        if bool(parts.any()):
            wrong = float(s[parts != 0][0])
    if wrong is None and may_be_scaled and high == 1:
        raise ShapeError(
            f"the inputs of {module} must be pixels from 0 to 255, got floating-point values of which the largest is 1"
            f"; {_UNSCALED}; if 0 and 1 are the pixels, give images.to(torch.uint8)"
        )
    if wrong is None:
        return
    unit = "whole numbers" if exponent == 0 else f"multiples of 2^-{exponent}"
    expected = "spikes, 0 or 1" if (exponent, largest) == (0, 1) else f"{unit} from 0 to {largest:g}"
    scaled = (exponent, largest) == (0, 255) and 0 < wrong < 1
    remedy = f"; {_UNSCALED}" if scaled else ""
    # Dropout leaves zeros and one value above 1.
    if hint and exponent == 0 and wrong > 1 and bool(((s == 0) | (s == wrong)).all()):
        remedy = _DROPPED
    raise ShapeError(f"the inputs of {module} must be {expected}, got {wrong:g}{remedy}{hint}")


def check_tensor(x: object, subject: str = "an input") -> None:
    """Raise `ShapeError` unless `x` is a dense tensor of real numbers, on a device that computes.

    `subject` names it.
    """
    remedy = ""
    if not isinstance(x, torch.Tensor):
        kind, remedy = type(x).__name__, "; convert it with torch.as_tensor(...)"
    elif x.is_nested or x.layout != torch.strided:
        kind = "a nested tensor" if x.is_nested else f"a tensor of layout {x.layout}"
        remedy = "; pad its samples to the same shape" if x.is_nested else "; convert it with .to_dense()"
    elif x.is_quantized or x.is_complex():
        kind = f"a tensor of {x.dtype}"
        remedy = "; convert it with .dequantize()" if x.is_quantized else "; take its real part"
    else:
        return
    raise ShapeError(f"{subject} must be a dense tensor of real numbers, got {kind}{remedy}")


def check_steps(x: torch.Tensor, steps: int | None) -> int:
    """`T` of `x`, `[T, B, ...]` or `[1, B, ...]`; raises `ShapeError` if `steps` does not fit `x`."""
    check_tensor(x)
    if x.dim() < 2 or len(x) == 0:
        raise ShapeError(f"an input must be [T, B, ...] with T >= 1, got {tuple(x.shape)}")
    number = len(x) if steps is None else integer(steps)
    if number is None or number < 1 or len(x) not in (1, number):
        raise ShapeError(
            f"steps must be {len(x)}, as in the input (any number if the input has one step), got {shown(steps)}"
            f"{samples_first(x.shape, number or 0) or ONE_INPUT}"
        )
    return number


def check_axes(module: str, z: torch.Tensor) -> None:
    """Raise `ShapeError` unless `z` is `[T, B, N]` or `[T, B, C, H, W]`. Other tensors mostly lack the axis of time."""
    if z.dim() not in (3, 5):
        raise ShapeError(
            f"an input of {module} must be [T, B, N] or [T, B, C, H, W], got {list(z.shape)}{ONE_INPUT}; if axis 0 is "
            "time, insert axes of length 1 with x.unsqueeze(-1), or combine axes with x.flatten(2)"
        )


def check_precision(precision: object) -> None:
    """Raise `SpecError` for an unknown precision, which would otherwise be treated as `fast`."""
    if precision not in ("fast", "reproducible"):
        raise SpecError(f"precision is 'fast' or 'reproducible', got {shown(precision)}")
