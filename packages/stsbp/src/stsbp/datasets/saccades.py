"""A simulated event camera before a still image, after the recording of N-MNIST (Orchard et al. 2015).

The image moves along a path. A pixel sends an ON or OFF event whenever its log intensity has risen or fallen by the
threshold since its last event. Where each pixel starts between two events is drawn once, the same for every recording
(the fixed pattern of a real sensor).

Without a path of its own the image moves along a triangle in three saccades of 100 ms, `(+3.5, +7)`, `(+3.5, -7)` and
`(-7, 0)` pixels (the path that N-MNIST's own stabilisation undoes), each with a smooth speed profile `1 - cos`.

Everything after the tables is integer arithmetic (positions in 1/64 pixel, brightness in 1/4080, log intensity in
1/4096), so the events are the same on every machine. Times are interpolated within a step of the simulation and given
in microseconds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from stsbp_spec.random import Stream, bits, threefry2x32
from stsbp_spec.typing import AnyArray, Int64, UInt8, UInt32

from stsbp.errors import DataError

__all__ = ["Place", "Recording", "SaccadeCamera", "enlarge"]

_SACCADES = ((3.5, 7.0), (3.5, -7.0), (-7.0, 0.0))
_STEPS = 100
"""Steps of a saccade of the triangle."""
_REACH = 7
"""Width and height of the triangle in pixels."""
_SUBPIXEL_BITS = 6
_SUBPIXEL = 1 << _SUBPIXEL_BITS
_WHITE = 4080
"""Full brightness, 16 for each level of a byte."""
_LOG_UNIT = 4096
_CHUNK = 64
"""Images simulated together: their state stays in the processor's cache."""
_SENSOR, _MISMATCH, _START, _JITTER, _NOISE = range(5)
"""Substreams of the draws: two that belong to the sensor, three that belong to a recording."""


class Recording(NamedTuple):
    """Events of one recording in order of time: column, row, polarity (1 ON) and microseconds, each `[n]` int64."""

    x: Int64
    y: Int64
    p: Int64
    t: Int64


class Place(NamedTuple):
    """Where the image's upper left corner is in the field, in pixels, and when, in microseconds."""

    t: int
    row: float
    column: float


@dataclass(frozen=True)
class SaccadeCamera:
    """The simulated camera.

    Args:
        field: width and height of the field of view in pixels.
        threshold: rise of the log intensity that sends an ON event.
        off_threshold: fall of the log intensity that sends an OFF event; 0: as `threshold`.
        floor: stray light, as a share of full brightness.
        saccade_us: length of a saccade of the triangle in microseconds.
        path: places that the image passes, with uniform motion in between; none: the triangle.
        stride: the image moves by at most so many pixels in a step of the simulation of `path`.
        inverted: whether the image is shown dark on bright.
        gamma: exponent from a pixel's value to its brightness.
        blur: standard deviation of the lens's blur in pixels, at most 0.7.
        mismatch: how far the thresholds of the pixels differ from each other, as a share; uniform between its bounds.
        start: how far a pixel's reference is off at the start of a recording, in thresholds; uniform.
        jitter: how far a pixel's reference is off behind an event, in thresholds; uniform.
        noise_on, noise_off: events that nothing causes, in a pixel and second.
        seed: of what differs from recording to recording: `start`, `jitter` and `noise`.
    """

    field: int = 34
    threshold: float = 0.5
    off_threshold: float = 0.0
    floor: float = 0.1
    saccade_us: int = 100_000
    path: tuple[Place, ...] = ()
    stride: float = 0.15
    inverted: bool = False
    gamma: float = 1.0
    blur: float = 0.0
    mismatch: float = 0.0
    start: float = 0.0
    jitter: float = 0.0
    noise_on: float = 0.0
    noise_off: float = 0.0
    seed: int = 0

    def record(self, images: UInt8, numbers: Int64 | None = None) -> list[Recording]:
        """Record images `[B, H, W]` uint8, one after the other.

        What is random in a recording depends on `seed` and the image's number of `numbers` `[B]`, by default its place.

        Raises:
            DataError: the images do not fit the field of view.
        """
        if images.ndim != 3 or images.dtype != np.uint8 or max(images.shape[1:]) > self.field:
            raise DataError(
                f"expected uint8 images [B, H, W] of at most {self.field} x {self.field} pixels, got "
                f"{images.dtype} of shape {list(images.shape)}"
            )
        numbers = np.arange(len(images)) if numbers is None else numbers
        chunks = (slice(first, first + _CHUNK) for first in range(0, len(images), _CHUNK))
        return [recording for chunk in chunks for recording in self._record_chunk(images[chunk], numbers[chunk])]

    def _triangle(self, height: int, width: int) -> list[Place]:
        """Every step of the triangle, centred in the field."""
        row, column = (self.field - height - _REACH) / 2, (self.field - width - _REACH) / 2
        places = [Place(0, row, column)]
        for saccade, (right, down) in enumerate(_SACCADES):
            for step in range(1, _STEPS + 1):
                u = step / _STEPS
                moved = u - math.sin(2 * math.pi * u) / (2 * math.pi)
                time = saccade * self.saccade_us + step * self.saccade_us // _STEPS
                places.append(Place(time, row + moved * down, column + moved * right))
            row, column = row + down, column + right
        return places

    def _steps(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Time, and row and column of the image's corner in 1/64 pixel, at every step."""
        if not self.path:
            places = self._triangle(height, width)
        else:
            places = [self.path[0]]
            for old, new in itertools.pairwise(self.path):
                distance = max(abs(new.row - old.row), abs(new.column - old.column))
                steps = max(1, math.ceil(distance / self.stride))
                for step in range(1, steps + 1):
                    u = step / steps
                    time = old.t + (new.t - old.t) * step // steps
                    row, column = old.row + u * (new.row - old.row), old.column + u * (new.column - old.column)
                    places.append(Place(time, row, column))
        return [(t, round(row * _SUBPIXEL), round(column * _SUBPIXEL)) for t, row, column in places]

    def _log_table(self) -> AnyArray:
        """Log intensity of the brightness `i / 4080` of the image, `[4081]` int32."""
        light = [(_WHITE - i if self.inverted else i) / _WHITE for i in range(_WHITE + 1)]
        return np.array([round(_LOG_UNIT * math.log(self.floor + value)) for value in light], dtype=np.int32)

    def _words(self, substream: int, number: int | None = None) -> UInt32:
        """A random word for each pixel `[field^2]`: the sensor's own, or those of a recording."""
        n = self.field * self.field
        if number is None:
            return bits(0, Stream.SIMULATION, n, substream=substream)
        return bits(self.seed, Stream.SIMULATION, n, substream=substream, step=number)

    def _thresholds(self) -> tuple[AnyArray, AnyArray]:
        """OFF and ON threshold of each pixel in units of the log intensity, each `[field^2]` int32."""
        off, on = (round(_LOG_UNIT * value) for value in (self.off_threshold or self.threshold, self.threshold))
        words = self._words(_MISMATCH)
        return off + _spread(words, 2 * self.mismatch * off), on + _spread(words, 2 * self.mismatch * on)

    def _offsets(self, numbers: Int64) -> AnyArray:
        """How far each reference lies from the light at the start, `[B * field^2]` int32.

        Within half a threshold for the sensor: without that all pixels send their last event at the very end, when the
        image is back where it began. And within `start` thresholds for the recording.
        """
        threshold = self.threshold * _LOG_UNIT
        offsets = np.tile(_spread(self._words(_SENSOR), threshold), (len(numbers), 1))
        if self.start:
            offsets += np.stack([_spread(self._words(_START, int(k)), 2 * self.start * threshold) for k in numbers])
        return offsets.reshape(-1)

    def _canvas(self, images: UInt8, border: int) -> AnyArray:
        """Brightness of the images behind the lens, 0 to 4080, with a dark border, `[B, H, W]` int32."""
        levels = np.array([round(_WHITE * (i / 255) ** self.gamma) for i in range(256)], dtype=np.int32)
        canvas = np.pad(levels[images], ((0, 0), (border, border), (border, border)))
        if side := round(_SUBPIXEL * self.blur**2 / 2):
            centre = np.int32(_SUBPIXEL - 2 * side)
            for axis in (1, 2):
                canvas = centre * canvas + side * (np.roll(canvas, 1, axis) + np.roll(canvas, -1, axis))
            canvas >>= 2 * _SUBPIXEL_BITS
        return canvas

    def _noise(self, numbers: Int64, start: int, end: int) -> Int64:
        """Pixel, polarity and time of the events of a chunk that nothing causes, `[3, n]`."""
        pixels = self.field * self.field
        off, on = (round(rate * pixels * (end - start) / 1e6) for rate in (self.noise_off, self.noise_on))
        drawn = [bits(self.seed, Stream.SIMULATION, 2 * (off + on), substream=_NOISE, step=int(k)) for k in numbers]
        where, when = np.array(drawn, dtype=np.int64).reshape(len(numbers), 2, off + on).transpose(1, 0, 2)
        pixel = (where * pixels >> 32) + pixels * np.arange(len(numbers))[:, np.newaxis]
        polarity = np.broadcast_to(np.arange(off + on) >= off, where.shape)
        return np.stack([pixel, polarity, start + (when * (end - start) >> 32)]).reshape(3, -1)

    def _jitter(self, numbers: Int64, pixel: Int64, time: int) -> AnyArray:
        """How far the references of some pixels are off behind the events of a step, `[n]` int32."""
        if self.jitter == 0:
            return np.zeros(len(pixel), dtype=np.int32)
        sample, place = np.divmod(pixel, self.field * self.field)
        key = self.seed, Stream.SIMULATION + 256 * _JITTER
        counter = (time * self.field * self.field + place).astype(np.uint32), numbers[sample].astype(np.uint32)
        return _spread(threefry2x32(key, counter)[0], 2 * self.jitter * self.threshold * _LOG_UNIT)

    def _record_chunk(self, images: UInt8, numbers: Int64) -> list[Recording]:
        border = self.field + 1
        canvas = self._canvas(images, border)
        table = self._log_table()

        def view(row: int, column: int) -> AnyArray:
            """Log intensity `[B * field * field]` with the image's corner at a place."""
            (whole_row, part_row), (whole_column, part_column) = divmod(row, _SUBPIXEL), divmod(column, _SUBPIXEL)
            top, left = border - whole_row, border - whole_column
            across = canvas[:, top - 1 : top + self.field, left : left + self.field] * np.int32(_SUBPIXEL - part_column)
            across += canvas[:, top - 1 : top + self.field, left - 1 : left - 1 + self.field] * np.int32(part_column)
            light = across[:, 1:] * np.int32(_SUBPIXEL - part_row) + across[:, :-1] * np.int32(part_row)
            return np.take(table, light >> 2 * _SUBPIXEL_BITS).reshape(-1)

        (start, *place), *steps = self._steps(*images.shape[1:])
        before = view(*place)
        off, on = (np.tile(threshold, len(images)) for threshold in self._thresholds())
        reference = before + self._offsets(numbers)
        events = [self._noise(numbers, start, steps[-1][0])]
        for end, *place in steps:
            after = view(*place)
            change = after - reference
            pixel = np.flatnonzero((change >= on) | (change <= -off))
            if pixel.size:
                moved = change[pixel]
                size = np.where(moved > 0, on[pixel], -off[pixel])
                count = moved // size
                # The n-th event of a pixel in this step happens where the log intensity passes its level.
                each = np.repeat(np.arange(pixel.size), count)
                nth = np.arange(each.size) - np.repeat(np.cumsum(count) - count, count) + 1
                since = np.sign(size)[each] * ((reference[pixel] - before[pixel])[each] + size[each] * nth)
                whole = np.maximum(1, np.abs(after[pixel] - before[pixel]))[each].astype(np.int64)
                time = start + np.clip(since, 0, whole) * (end - start) // whole
                events.append(np.stack([pixel[each], size[each] > 0, time]))
                reference[pixel] += count * size + self._jitter(numbers, pixel, end)
            start, before = end, after
        pixel, p, t = np.concatenate(events, axis=1)
        sample, place_in_field = np.divmod(pixel, self.field * self.field)
        order = np.lexsort((place_in_field, t, sample))
        y, x = np.divmod(place_in_field[order], self.field)
        ends = np.searchsorted(sample[order], np.arange(1, len(images)))
        columns = [np.split(column, ends) for column in (x, y, p[order], t[order])]
        return [Recording(*own) for own in zip(*columns, strict=True)]


def _spread(words: UInt32, width: float) -> AnyArray:
    """Random words as whole numbers from -width/2 up to width/2, int32."""
    whole = round(width)
    return ((words.astype(np.int64) * whole >> 32) - whole // 2).astype(np.int32)


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
