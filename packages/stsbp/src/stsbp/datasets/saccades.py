"""A simulated event camera before a still image, after the recording of N-MNIST (Orchard et al. 2015).

The image moves along a triangle in three saccades of 100 ms, `(+3.5, +7)`, `(+3.5, -7)` and `(-7, 0)` pixels (the
path that N-MNIST's own stabilisation undoes), each with a smooth speed profile `1 - cos`. A pixel sends an ON or OFF
event whenever its log intensity has risen or fallen by the threshold since its last event. Where each pixel starts
between two events is drawn once, the same for every recording (the fixed pattern of a real sensor).

Everything after the tables is integer arithmetic (positions in 1/64 pixel, log intensity in 1/4096), so the events
are the same on every machine. Times are interpolated within a step of the simulation and given in microseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from stsbp_spec.random import Stream, bits
from stsbp_spec.typing import AnyArray, Int64, UInt8

from stsbp.errors import DataError

__all__ = ["Recording", "SaccadeCamera", "enlarge"]

_SACCADES = ((3.5, 7.0), (3.5, -7.0), (-7.0, 0.0))
_REACH = 7
"""Width and height of the path in pixels."""
_SUBPIXEL = 64
_LOG_UNIT = 4096
_CHUNK = 64
"""Images simulated together: their state stays in the processor's cache."""


class Recording(NamedTuple):
    """Events of one recording in order of time: column, row, polarity (1 ON) and microseconds, each `[n]` int64."""

    x: Int64
    y: Int64
    p: Int64
    t: Int64


@dataclass(frozen=True)
class SaccadeCamera:
    """The simulated camera.

    `threshold`: change of log intensity that sends an event. `floor`: stray light, as a share of full brightness.
    """

    field: int = 34
    threshold: float = 0.5
    floor: float = 0.1
    saccade_us: int = 100_000
    step_us: int = 1000

    def record(self, images: UInt8) -> list[Recording]:
        """Record images `[B, H, W]` uint8, one after the other.

        Raises:
            DataError: the images do not fit the field of view.
        """
        if images.ndim != 3 or images.dtype != np.uint8 or max(images.shape[1:]) > self.field:
            raise DataError(
                f"expected uint8 images [B, H, W] of at most {self.field} x {self.field} pixels, got "
                f"{images.dtype} of shape {list(images.shape)}"
            )
        chunks = (images[first : first + _CHUNK] for first in range(0, len(images), _CHUNK))
        return [recording for chunk in chunks for recording in self._record_chunk(chunk)]

    def _path(self, height: int, width: int) -> list[tuple[int, int]]:
        """Place `(row, column)` of the image's corner in 1/64 pixel at every step, the path centred in the field."""
        row, column = (self.field - height - _REACH) / 2, (self.field - width - _REACH) / 2
        places = [(row, column)]
        steps = self.saccade_us // self.step_us
        for right, down in _SACCADES:
            for step in range(1, steps + 1):
                u = step / steps
                moved = u - math.sin(2 * math.pi * u) / (2 * math.pi)
                places.append((row + moved * down, column + moved * right))
            row, column = row + down, column + right
        return [(round(r * _SUBPIXEL), round(c * _SUBPIXEL)) for r, c in places]

    def _log_table(self) -> AnyArray:
        """Log intensity of the brightness `i / 4080`, `[4081]` int32."""
        return np.array([round(_LOG_UNIT * math.log(self.floor + i / 4080)) for i in range(4081)], dtype=np.int32)

    def _phases(self, threshold: int) -> AnyArray:
        """How far each pixel's reference lies from the light at the start, within half a threshold, `[field^2]` int32.

        Without it all pixels send their last event at the very end, when the image is back where it began.
        """
        words = bits(0, Stream.SIMULATION, self.field * self.field).astype(np.int64)
        return ((words * threshold >> 32) - threshold // 2).astype(np.int32)

    def _record_chunk(self, images: UInt8) -> list[Recording]:
        batch, height, width = images.shape
        border = self.field + 1
        canvas = np.zeros((batch, height + 2 * border, width + 2 * border), dtype=np.int32)
        canvas[:, border : border + height, border : border + width] = images
        table = self._log_table()
        threshold = round(self.threshold * _LOG_UNIT)

        def view(row: int, column: int) -> AnyArray:
            """Log intensity `[B * field * field]` with the image's corner at a place."""
            (whole_row, part_row), (whole_column, part_column) = divmod(row, _SUBPIXEL), divmod(column, _SUBPIXEL)
            top, left = border - whole_row, border - whole_column
            across = canvas[:, top - 1 : top + self.field, left : left + self.field] * np.int32(_SUBPIXEL - part_column)
            across += canvas[:, top - 1 : top + self.field, left - 1 : left - 1 + self.field] * np.int32(part_column)
            light = across[:, 1:] * np.int32(_SUBPIXEL - part_row) + across[:, :-1] * np.int32(part_row)
            # 255 * 64 * 64 units, cut to 4080.
            level: AnyArray = table[light >> 8]
            return level.reshape(-1)

        path = self._path(height, width)
        before = view(*path[0])
        reference = before + np.tile(self._phases(threshold), batch)
        pixels: list[Int64] = []
        polarities: list[Int64] = []
        times: list[Int64] = []
        for step, place in enumerate(path[1:]):
            after = view(*place)
            change = after - reference
            changed = np.flatnonzero(np.abs(change) >= threshold)
            if changed.size:
                sign = np.sign(change[changed]).astype(np.int64)
                count = np.abs(change[changed]).astype(np.int64) // threshold
                # The n-th event of a pixel in this step happens where the log intensity passes `level`.
                first = np.cumsum(count) - count
                nth = np.arange(int(count.sum())) - np.repeat(first, count) + 1
                pixel, direction = np.repeat(changed, count), np.repeat(sign, count)
                start, end = before[pixel].astype(np.int64), after[pixel].astype(np.int64)
                level = reference[pixel] + direction * nth * threshold
                pixels.append(pixel)
                polarities.append((direction > 0).astype(np.int64))
                times.append(step * self.step_us + (level - start) * self.step_us // (end - start))
                reference[changed] += (sign * count * threshold).astype(np.int32)
            before = after
        nothing = [np.zeros(0, dtype=np.int64)]
        pixel, p, t = (np.concatenate(part or nothing) for part in (pixels, polarities, times))
        sample, place_in_field = np.divmod(pixel, self.field * self.field)
        order = np.lexsort((place_in_field, t, sample))
        y, x = np.divmod(place_in_field[order], self.field)
        ends = np.searchsorted(sample[order], np.arange(1, batch))
        columns = [np.split(column, ends) for column in (x, y, p[order], t[order])]
        return [Recording(*events) for events in zip(*columns, strict=True)]


def enlarge(images: UInt8, factor: int) -> UInt8:
    """Enlarge images `[B, H, W]` by a whole factor with bilinear interpolation, in exact integers."""

    def weights(size: int) -> Int64:
        """`[factor * size, size]`, in units of `1 / (2 * factor)`; the border repeats its last pixel."""
        matrix = np.zeros((factor * size, size), dtype=np.int64)
        for i in range(factor * size):
            # The centre of pixel i, in old pixels: (2 i + 1 - factor) / (2 factor).
            low, part = divmod(2 * i + 1 - factor, 2 * factor)
            matrix[i, min(max(low, 0), size - 1)] += 2 * factor - part
            matrix[i, min(max(low + 1, 0), size - 1)] += part
        return matrix

    rows, columns = weights(images.shape[1]), weights(images.shape[2])
    unit = (2 * factor) ** 2
    return ((rows @ images.astype(np.int64) @ columns.T + unit // 2) // unit).astype(np.uint8)
