"""Events of a dynamic vision sensor as frames, the input of every time step.

A recording is a list of events (column `x`, row `y`, polarity `p`, time `t` in microseconds). The window
`[start, start + window)` is cut into T equal bins, bin `floor((t - start) * T / window)` in exact integers; events
outside it are dropped. Channel 0 holds OFF events (`p = 0`), channel 1 ON events; with one channel polarities merge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.typing import AnyArray, Shape, UInt8

__all__ = ["EventBinning", "bin_events"]


@dataclass(frozen=True)
class EventBinning:
    """How recordings become frames; hashable, and part of the key of cached frames.

    `window_us` None takes a recording from `start_us` to its last event. `binary` frames say whether a pixel had any
    event in the bin; otherwise they count events, clipped at 255.

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

    def __post_init__(self) -> None:
        if self.polarities not in (1, 2):
            raise SpecError(f"event binning: polarities must be 1 or 2, got {self.polarities}")
        for field in ("steps", "height", "width"):
            if getattr(self, field) < 1:
                raise SpecError(f"event binning: {field} must be at least 1, got {getattr(self, field)}")
        if self.start_us < 0:
            raise SpecError(f"event binning: start_us must not be negative, got {self.start_us}")
        if self.window_us is not None and self.window_us < self.steps:
            raise SpecError(
                f"event binning: window_us must be at least one microsecond a step ({self.steps}), got {self.window_us}"
            )

    @property
    def shape(self) -> Shape:
        """Shape of one frame, `(C, H, W)`."""
        return (self.polarities, self.height, self.width)

    def frames(self, x: AnyArray, y: AnyArray, p: AnyArray, t: AnyArray) -> UInt8:
        """Frames `[T, C, H, W]` of one recording, its events as in `bin_events`."""
        return bin_events(
            x,
            y,
            p,
            t,
            shape=(self.polarities, self.height, self.width),
            steps=self.steps,
            window_us=self.window_us,
            start_us=self.start_us,
            binary=self.binary,
        )


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
        p: polarity 0 or 1, `[n]`; ignored for one channel.
        t: time in microseconds, `[n]` integers, in any order.
        shape: `(C, H, W)` of a frame, C 1 or 2.
        steps: T.
        window_us: length of the window in microseconds; None ends it with the last event.
        start_us: where the window begins.
        binary: 0/1 frames instead of counts (clipped at 255).

    Returns:
        `[T, C, H, W]` uint8.

    Raises:
        ShapeError: the four arrays are not integers (or bool polarities) of one shape `[n]`.
        SpecError: a coordinate or polarity lies outside `shape`, or a parameter outside its domain.
    """
    channels, height, width = shape
    if channels not in (1, 2):
        raise SpecError(f"event frames have 1 or 2 channels, got {channels}")
    if steps < 1 or (window_us is not None and window_us < 1):
        raise SpecError(f"steps and window_us must be at least 1, got {steps} and {window_us}")
    for name, values in (("x", x), ("y", y), ("p", p), ("t", t)):
        if values.shape != (len(x),) or values.dtype.kind not in "iub":
            raise ShapeError(
                f"expected integers {name} of shape [{len(x)}] as x, got {values.dtype} of shape {list(values.shape)}"
            )
    if len(x) == 0:
        return np.zeros((steps, *shape), dtype=np.uint8)
    for name, values, limit in (("x", x, width), ("y", y, height), ("polarity", p, 2)):
        if int(values.min()) < 0 or int(values.max()) >= limit:
            raise SpecError(
                f"an event's {name} is out of range: expected 0 to {limit - 1}, "
                f"got {int(values.min())} to {int(values.max())}"
            )
    since_start = t.astype(np.int64) - start_us
    window = max(1, int(since_start.max()) + 1) if window_us is None else window_us
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
