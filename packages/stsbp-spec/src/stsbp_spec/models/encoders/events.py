"""Events of a dynamic vision sensor as frames, the input of every time step.

A recording is a list of events (column `x`, row `y`, polarity `p`, time `t` in microseconds). The window
`[start, start + window)` is cut into T equal bins. An event is in bin `floor((t - start) * T / window)`, computed in
exact integers. Events outside the window are dropped. Channel 0 holds OFF events (`p = 0`), channel 1 ON events. With
one channel, polarities are merged.

N-MNIST was recorded by a camera that makes three saccades of equal length. They move the picture along a triangle, by
`(+3.5, +7)`, `(+3.5, -7)` and `(-7, 0)` pixels. Two options deal with this motion. One keeps only the first saccade.
The other, stabilisation, shifts each event back by the distance that the picture has moved so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import numpy as np

from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.typing import AnyArray, Int64, Shape, UInt8
from stsbp_spec.validation import array_of, integer, integer_between, is_masked, shown, truth

__all__ = ["SACCADE_US", "EventBinning", "bin_events", "stabilise_events"]

SACCADE_US = 105_000
"""Length of a saccade of N-MNIST in microseconds."""
_LARGEST = {"steps": 2**20, "height": 2**14, "width": 2**14, "window_us": 2**40, "start_us": 2**40, "saccade_us": 2**40}
"""Up to these limits, products of times and numbers of steps are exact in 64 bits."""
_LARGEST_TIME = 2**62
"""Times below it in magnitude, less a `start_us`, fit into 64 bits."""


@dataclass(frozen=True)
class EventBinning:
    """How recordings become frames. Instances are hashable, and part of the key of cached frames.

    `window_us` None takes a recording from `start_us` to its last event. `binary` frames say whether a pixel had any
    event in the bin; otherwise they count events, clipped at 255. With `first_saccade` events after the first
    `saccade_us` are dropped. With `stabilise` the motion of the saccades is removed as in `stabilise_events`.

    Raises:
        SpecError: a field is outside its domain.
    """

    steps: int = 25
    window_us: int | None = 300_000
    start_us: int = 0
    polarities: int = 2
    height: int = 34
    width: int = 34
    binary: bool = True
    first_saccade: bool = False
    stabilise: bool = False
    saccade_us: int = SACCADE_US

    def __post_init__(self) -> None:
        if integer(self.polarities) not in (1, 2):
            raise SpecError(f"event binning: polarities must be 1 or 2, got {shown(self.polarities)}")
        for field, largest in _LARGEST.items():
            if (value := getattr(self, field)) is not None or field != "window_us":
                lower = 0 if field == "start_us" else 1
                number = integer_between(f"event binning: {field}", value, lower, largest)
                object.__setattr__(self, field, number)
        for field in ("binary", "first_saccade", "stabilise"):
            truth(f"event binning: {field}", getattr(self, field))
        if self.window_us is not None and self.window_us < self.steps:
            raise SpecError(
                f"event binning: window_us must be at least one microsecond a step ({self.steps}), got {self.window_us}"
            )

    @property
    def shape(self) -> Shape:
        """Shape of one frame, `(C, H, W)`."""
        return (self.polarities, self.height, self.width)

    def length(self, t: AnyArray) -> int:
        """Number of steps of a recording: up to the step of its last event in the window, at least 1.

        Args:
            t: time of each event as in `bin_events`, `[n]`. Without a fixed window, every recording has all steps.

        Raises:
            ShapeError: `t` is no array of integers `[n]`.
        """
        _check_columns({"t": t})
        if self.window_us is None:
            return self.steps
        since_start = t.astype(np.int64) - self.start_us
        return int(since_start[self.contains(t)].max(initial=0)) * self.steps // self.window_us + 1

    def contains(self, t: AnyArray) -> AnyArray:
        """Which events of a recording lie in the window, bool `[n]`. Without a fixed window, all do."""
        if self.window_us is None:
            return np.ones(len(t), dtype=bool)
        since_start = t.astype(np.int64) - self.start_us
        end = self.window_us if not self.first_saccade else min(self.window_us, self.saccade_us - self.start_us)
        return (since_start >= 0) & (since_start < end)

    def frames(self, x: AnyArray, y: AnyArray, p: AnyArray, t: AnyArray) -> UInt8:
        """Frames `[T, C, H, W]` of one recording. The events are given as in `bin_events`."""
        return bin_events(
            *self._selected_events(x, y, p, t),
            shape=(self.polarities, self.height, self.width),
            steps=self.steps,
            window_us=self.window_us,
            start_us=self.start_us,
            binary=self.binary,
        )

    @overload
    def step_of(self, t: int) -> int: ...

    @overload
    def step_of(self, t: AnyArray) -> Int64: ...

    def step_of(self, t: int | AnyArray) -> int | Int64:
        """The step of an event at time `t` of a stream. Steps continue after the window, and are negative before it.

        Args:
            t: an integer of any size, or a numpy array of integers below 2^62 in magnitude, of any shape and type.

        Returns:
            An integer, or an int64 array of the shape of `t`.

        Raises:
            ShapeError: `t` is neither an integer nor such an array.
            SpecError: the window ends with the last event, which is unknown in a stream; or a time of an array is out
                of range.
        """
        if self.window_us is None:
            raise SpecError(
                "event binning: a stream has no end, so its window cannot end with the last event; give a window_us"
            )
        if not is_masked(t) and (number := integer(t)) is not None:
            return (number - self.start_us) * self.steps // self.window_us
        if not isinstance(t, np.ndarray) or is_masked(t) or t.dtype.kind not in "iu":
            raise ShapeError(f"expected times t, an integer or a numpy array of integers, got {_kind(t)}")
        if t.size and not -_LARGEST_TIME < int(t.min()) <= int(t.max()) < _LARGEST_TIME:
            raise SpecError(
                f"an event's t is out of range: expected less than 2^62 in magnitude, got {t.min()} to {t.max()}"
            )
        # The product of the time and the number of steps might not fit into 64 bits.
        windows, remainder = np.divmod(t.astype(np.int64) - self.start_us, self.window_us)
        steps: Int64 = windows * self.steps + remainder * self.steps // self.window_us
        return steps

    def add(self, frame: UInt8, x: AnyArray, y: AnyArray, p: AnyArray, t: AnyArray) -> None:
        """Add events to the frame `[C, H, W]` of their step, in place. All events together give the frame of
        `frames`."""
        x, y, p, t = self._selected_events(x, y, p, t)
        added = bin_events(x, y, p, np.zeros_like(t), shape=frame.shape, steps=1, window_us=1, binary=self.binary)[0]
        frame[...] = np.maximum(frame, added) if self.binary else np.minimum(frame.astype(np.int64) + added, 255)

    def _selected_events(
        self, x: AnyArray, y: AnyArray, p: AnyArray, t: AnyArray
    ) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
        """The events that are not dropped, at their final positions."""
        _check_events(x, y, p, t, (self.polarities, self.height, self.width))
        if self.first_saccade:
            selected = t < self.saccade_us
            x, y, p, t = x[selected], y[selected], p[selected], t[selected]
        if self.stabilise:
            x, y = stabilise_events(x, y, t, saccade_us=self.saccade_us)
            selected = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
            x, y, p, t = x[selected], y[selected], p[selected], t[selected]
        return x, y, p, t


def stabilise_events(x: AnyArray, y: AnyArray, t: AnyArray, *, saccade_us: int = SACCADE_US) -> tuple[Int64, Int64]:
    """Move each event to the position that its point of the picture had at the beginning of the recording.

    Within a saccade, the picture is assumed to move at constant speed, as N-MNIST's authors also assume. Positions are
    rounded to whole pixels, with halves rounded up, in exact integers.

    Args:
        x, y: column and row of each event, `[n]` integers.
        t: time in microseconds since the recording began, `[n]` integers. After the third saccade, its motion
            continues.
        saccade_us: length of a saccade.

    Returns:
        Columns and rows `[n]`. Events near the border may end up outside the sensor.

    Raises:
        ShapeError: the three arrays are not integers of one shape `[n]`.
        SpecError: `saccade_us` is outside its domain.
    """
    saccade_us = integer_between("saccade_us", saccade_us, 1, _LARGEST["saccade_us"])
    x, y, t = (array_of(values) for values in (x, y, t))
    _check_columns({"x": x, "y": y, "t": t})
    x, y, t = (values.astype(np.int64) for values in (x, y, t))
    # The boundary of two saccades belongs to both. Distances are in units of half a pixel / saccade_us.
    first, second, third = (np.clip(t - k * saccade_us, 0, saccade_us) for k in range(3))
    third += np.maximum(0, t - 3 * saccade_us)
    right_shift = 7 * first + 7 * second - 14 * third
    down_shift = 14 * first - 14 * second
    unit = 2 * saccade_us
    return (unit * x - right_shift + saccade_us) // unit, (unit * y - down_shift + saccade_us) // unit


def bin_events(
    x: AnyArray,
    y: AnyArray,
    p: AnyArray,
    t: AnyArray,
    *,
    shape: tuple[int, int, int] = (2, 34, 34),
    steps: int = 25,
    window_us: int | None = 300_000,
    start_us: int = 0,
    binary: bool = True,
) -> UInt8:
    """Bin the events of one recording.

    Args:
        x, y: column and row of each event, `[n]` integers.
        p: polarity 0 or 1, `[n]`. For one channel, its values are ignored.
        t: time in microseconds, `[n]` integers, in any order.
        shape: `(C, H, W)` of a frame, C 1 or 2.
        steps: T.
        window_us: length of the window in microseconds; None ends it with the last event.
        start_us: time at which the window begins.
        binary: 0/1 frames instead of counts (clipped at 255).

    Returns:
        `[T, C, H, W]` uint8.

    Raises:
        ShapeError: the four arrays are not integers (or bool polarities) of one shape `[n]`.
        SpecError: a coordinate or polarity lies outside `shape`, or a parameter outside its domain.
    """
    if not isinstance(shape, (tuple, list)) or len(shape) != 3 or any(integer(size) is None for size in shape):
        raise SpecError(f"the shape of event frames must be three integers (C, H, W), got {shown(shape)}")
    channels, height, width = shape
    if channels not in (1, 2):
        raise SpecError(f"event frames have 1 or 2 channels, got {channels}")
    steps, window_us = (
        integer_between("steps", steps, 1),
        None if window_us is None else integer_between("window_us", window_us, 1, 2**63),
    )
    start_us = integer_between("start_us", start_us, -(2**63), 2**63)
    if steps > _LARGEST["steps"] or abs(start_us) > _LARGEST["start_us"]:
        raise SpecError(f"steps is at most 2^20 and start_us at most 2^40, got {steps} and {start_us}")
    _check_events(x, y, p, t, shape)
    if len(x) == 0:
        return np.zeros((steps, *shape), dtype=np.uint8)
    since_start = t.astype(np.int64) - start_us
    window = max(1, int(since_start.max()) + 1) if window_us is None else window_us
    if window > _LARGEST["window_us"]:
        raise SpecError(f"the window is {window} us long, at most {_LARGEST['window_us']} can be binned")
    inside = (since_start >= 0) & (since_start < window)
    step = since_start[inside] * steps // window
    channel = p[inside].astype(np.int64) if channels == 2 else np.int64(0)
    row, column = y[inside].astype(np.int64), x[inside].astype(np.int64)
    cell = ((step * channels + channel) * height + row) * width + column
    cells = steps * channels * height * width
    if binary:
        frames = np.zeros(cells, dtype=np.uint8)
        frames[cell] = 1
    else:
        frames = np.minimum(np.bincount(cell, minlength=cells), 255).astype(np.uint8)
    return frames.reshape(steps, *shape)


def _check_events(x: AnyArray, y: AnyArray, p: AnyArray, t: AnyArray, shape: tuple[int, int, int]) -> None:
    """Raise the errors of `bin_events` for arrays that are not events of a sensor with frames of this shape."""
    channels, height, width = shape
    _check_columns({"x": x, "y": y, "p": p, "t": t})
    polarity = (("polarity", p, 2),) if channels == 2 else ()
    for name, values, limit in (("x", x, width), ("y", y, height), *polarity):
        if len(x) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise SpecError(
                f"an event's {name} is out of range: expected 0 to {limit - 1}, "
                f"got {int(values.min())} to {int(values.max())}"
            )


def _check_columns(columns: Mapping[str, AnyArray]) -> None:
    """Raise `ShapeError` unless columns of events are integers `[n]` as the first is."""
    for values in columns.values():
        if not isinstance(values, np.ndarray) or is_masked(values) or values.ndim != 1:
            raise ShapeError(f"expected integers of shape [n], one for each event, got {_kind(values)}")
    first, *_ = columns.values()
    for name, values in columns.items():
        if values.shape != first.shape or values.dtype.kind not in "iub":
            like_first = f" as {next(iter(columns))}" if len(columns) > 1 else ""
            raise ShapeError(
                f"expected integers {name} of shape [{len(first)}]{like_first}, got {values.dtype} of shape "
                f"{list(values.shape)}"
            )


def _kind(values: object) -> str:
    """`values` for a message."""
    if is_masked(values):
        return "a masked array; leave the masked events out"
    return f"{values.dtype} of shape {list(values.shape)}" if isinstance(values, np.ndarray) else shown(values)
