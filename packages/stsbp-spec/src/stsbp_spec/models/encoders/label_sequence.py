"""Class labels as spike sequences: `encode_repeat(Y)`, line 3 of the algorithm.

Over all T steps, the neuron of the labelled class should repeat the desired pattern, and all other output neurons the
undesired one (by default silence). Patterns are data, written as digits: `"01"` is silent at steps 0, 2, 4, ... and
spikes at steps 1, 3, 5, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.typing import UInt8
from stsbp_spec.validation import array_of, integer_between, shown

__all__ = ["LabelCode", "encode_repeat"]


def _check_pattern(field: str, pattern: object) -> None:
    if not isinstance(pattern, str) or not pattern or set(pattern) - {"0", "1"}:
        raise SpecError(
            f"label code: {field} must be a pattern of the digits 0 and 1 such as '01', got {shown(pattern)}"
        )


def _train(pattern: str, steps: int, first: int = 0) -> UInt8:
    """`pattern` repeated to length `[T]`, beginning with step `first`. The last repetition may be cut."""
    begin = first % len(pattern)
    return np.resize(np.array([int(digit) for digit in pattern[begin:] + pattern[:begin]], dtype=np.uint8), steps)


@dataclass(frozen=True)
class LabelCode:
    """Patterns of the labelled neuron (`desired`) and of all other neurons (`undesired`).

    Raises:
        SpecError: a pattern is empty or has characters other than 0 and 1, or the two patterns give the same train.
    """

    desired: str = "1"
    undesired: str = "0"

    def __post_init__(self) -> None:
        _check_pattern("desired", self.desired)
        _check_pattern("undesired", self.undesired)
        # Two trains that agree for as many steps as both periods have together agree for ever (Fine and Wilf).
        steps = len(self.desired) + len(self.undesired)
        if np.array_equal(_train(self.desired, steps), _train(self.undesired, steps)):
            raise SpecError(
                f"label code: desired {self.desired!r} and undesired {self.undesired!r} repeat to the same spike "
                "train, so that no class differs from another; choose two different patterns"
            )

    def sequences(self, classes: int, steps: int, first: int = 0) -> UInt8:
        """The label sequence of every class, `[K, T, N]` uint8 with `N = K`: row `k` is the target for class `k`.

        With `first`, only the steps from there on. Both patterns may be equal in these steps.

        Raises:
            SpecError: `classes` or `steps` is not an integer of at least 1, `first` not one of at least 0, or `steps`
                ends before the two patterns differ.
        """
        classes = integer_between("the number of classes", classes, 1)
        desired, undesired = self.trains(steps, first)
        labelled = np.eye(classes, dtype=bool)[:, np.newaxis, :]
        return np.where(labelled, desired[:, np.newaxis], undesired[:, np.newaxis])

    def trains(self, steps: int, first: int = 0) -> tuple[UInt8, UInt8]:
        """The spike trains `[T]` of the labelled neuron and of all others: see `sequences`."""
        steps, first = (
            integer_between("the number of steps", steps, 1),
            integer_between("the first step", first, 0, upper=2**63),
        )
        desired, undesired = (_train(pattern, steps, first) for pattern in (self.desired, self.undesired))
        if first == 0 and np.array_equal(desired, undesired):
            raise SpecError(
                f"label code: the patterns {self.desired!r} and {self.undesired!r} do not differ within {steps} steps; "
                "use more steps or other patterns"
            )
        return desired, undesired


def encode_repeat(labels: Any, classes: int, steps: int, code: LabelCode | None = None) -> UInt8:
    """Target trains of a batch: integer labels `[B]` in `[0, K)` -> uint8 `[T, B, N]`, `N = K` (default `LabelCode()`).

    Labels are a numpy array, a tensor of torch or JAX, or a list.

    Raises:
        ShapeError: the labels are not one axis of integers.
        SpecError: a label is out of range; `classes` or `steps` is not an integer of at least 1; or `code` is not a
            `LabelCode`.
    """
    labels = array_of(labels)
    if not (code is None or isinstance(code, LabelCode)):
        raise SpecError(f"a label code is a LabelCode, for example LabelCode('01', '0'), got {shown(code)}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ShapeError(f"expected integer labels [B], got {labels.dtype} of shape {list(labels.shape)}")
    classes = integer_between("the number of classes", classes, 1)
    is_outside = (labels < 0) | (labels >= classes)
    if is_outside.any():
        raise SpecError(f"label {labels[is_outside][0]} is not a class: expected 0 to {classes - 1}")
    desired, undesired = (LabelCode() if code is None else code).trains(steps)
    labelled = labels[:, np.newaxis] == np.arange(classes)
    return np.where(labelled, desired[:, np.newaxis, np.newaxis], undesired[:, np.newaxis, np.newaxis])
