"""A simulated event camera in front of a still image, like the recording of N-MNIST (Orchard et al. 2015).

The image moves along a path. A pixel sends an ON or OFF event whenever its log intensity has risen or fallen by the
threshold since its last event. The initial reference of each pixel is drawn at random once, the same for all recordings
(the fixed pattern of a real sensor).

By default, the image moves along a triangle in three saccades of 100 ms, `(+3.5, +7)`, `(+3.5, -7)` and `(-7, 0)`
pixels (the path that N-MNIST's own stabilisation assumes). Each saccade has a smooth speed profile `1 - cos`.

After the tables, all computations use integers (positions in 1/64 pixel, brightness in 1/4080, log intensity in
1/4096). The events are therefore the same on every machine. Times are interpolated within a step of the simulation, and
are given in microseconds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from stsbp_spec.contract.random import Stream, bits, threefry2x32
from stsbp_spec.typing import AnyArray, Int64, UInt8, UInt32

from stsbp.errors import DataError

__all__ = ["ImagePosition", "SaccadeCamera", "SaccadeEvents", "enlarge"]

_SACCADES = ((3.5, 7.0), (3.5, -7.0), (-7.0, 0.0))
_STEPS = 100
"""Number of simulation steps of a saccade of the triangle."""
_REACH = 7
"""Width and height of the triangle in pixels."""
_SUBPIXEL_BITS = 6
_SUBPIXEL = 1 << _SUBPIXEL_BITS
_WHITE = 4080
"""Full brightness: 16 units for each level of a byte."""
_LOG_UNIT = 4096
_BORDER = 3
"""Width of the dark border of an image in pixels. The lens spreads its light over one of them."""
_CHUNK = 64
"""Number of images that are simulated together, so that their state fits in the processor's cache."""
_SENSOR, _MISMATCH, _START, _JITTER, _NOISE = range(5)
"""Substreams of the random numbers: two for the sensor, and three for a recording."""


class SaccadeEvents(NamedTuple):
    """Events of one recording in order of time: column, row, polarity (1 ON) and microseconds, each `[n]` int64."""

    x: Int64
    y: Int64
    p: Int64
    t: Int64


class ImagePosition(NamedTuple):
    """Position of the image's upper left corner in the field in pixels, and the time in microseconds."""

    t: int
    row: float
    column: float


@dataclass(frozen=True)
class SaccadeCamera:
    """The simulated camera.

    Args:
        field: width and height of the field of view in pixels.
        threshold: rise of the log intensity that sends an ON event.
        off_threshold: fall of the log intensity that sends an OFF event; 0: the same as `threshold`.
        floor: stray light, as a fraction of full brightness.
        saccade_us: length of a saccade of the triangle in microseconds.
        path: positions that the image passes, with uniform motion in between; empty: the triangle.
        stride: largest movement of the image in pixels in one simulation step of `path`.
        inverted: whether the image is shown dark on bright.
        gamma: exponent of the brightness as a function of a pixel's value.
        blur: standard deviation of the lens's blur in pixels of the image, at most 0.7.
        zoom: number of pixels of the field that a pixel of the image covers.
        turn: clockwise rotation of the image about its centre, in radians.
        mismatch: relative variation of the thresholds between pixels, uniformly distributed.
        start: variation of a pixel's reference at the start of a recording, in thresholds, uniformly distributed.
        jitter: variation of a pixel's reference after an event, in thresholds, uniformly distributed.
        noise_on, noise_off: rates of events without a cause, per pixel and second.
        seed: seed of the variations between recordings: `start`, `jitter` and `noise`.
    """

    field: int = 34
    threshold: float = 0.5
    off_threshold: float = 0.0
    floor: float = 0.1
    saccade_us: int = 100_000
    path: tuple[ImagePosition, ...] = ()
    stride: float = 0.25
    inverted: bool = False
    gamma: float = 1.0
    blur: float = 0.0
    zoom: float = 1.0
    turn: float = 0.0
    mismatch: float = 0.0
    start: float = 0.0
    jitter: float = 0.0
    noise_on: float = 0.0
    noise_off: float = 0.0
    seed: int = 0

    def record(self, images: UInt8, numbers: Int64 | None = None) -> list[SaccadeEvents]:
        """Record images `[B, H, W]` uint8, one after the other.

        Random properties of a recording depend on `seed` and on the image's number in `numbers` `[B]`, by default its
        index.

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

    def _triangle(self, height: int, width: int) -> list[ImagePosition]:
        """The positions at all steps of the triangle, centred in the field."""
        row, column = (self.field - height - _REACH) / 2, (self.field - width - _REACH) / 2
        positions = [ImagePosition(0, row, column)]
        for saccade, (column_shift, row_shift) in enumerate(_SACCADES):
            for step in range(1, _STEPS + 1):
                u = step / _STEPS
                progress = u - math.sin(2 * math.pi * u) / (2 * math.pi)
                time = saccade * self.saccade_us + step * self.saccade_us // _STEPS
                positions.append(ImagePosition(time, row + progress * row_shift, column + progress * column_shift))
            row, column = row + row_shift, column + column_shift
        return positions

    def _positions(self, height: int, width: int) -> list[ImagePosition]:
        """The positions of images of this size at all steps."""
        if not self.path:
            return self._triangle(height, width)
        positions = [self.path[0]]
        for old, new in itertools.pairwise(self.path):
            distance = max(abs(new.row - old.row), abs(new.column - old.column))
            steps = max(1, math.ceil(distance / self.stride))
            for step in range(1, steps + 1):
                u = step / steps
                time = old.t + (new.t - old.t) * step // steps
                row, column = old.row + u * (new.row - old.row), old.column + u * (new.column - old.column)
                positions.append(ImagePosition(time, row, column))
        return positions

    def _words(self, substream: int, number: int | None = None) -> UInt32:
        """A random word for each pixel `[field^2]`, for the sensor or for one recording."""
        n = self.field * self.field
        if number is None:
            return bits(0, Stream.SIMULATION, n, substream=substream)
        return bits(self.seed, Stream.SIMULATION, n, substream=substream, step=number)

    def _thresholds(self) -> tuple[AnyArray, AnyArray]:
        """OFF and ON threshold of each pixel in units of the log intensity, each `[field^2]` int32."""
        off_threshold, on_threshold = (
            round(_LOG_UNIT * value) for value in (self.off_threshold or self.threshold, self.threshold)
        )
        words = self._words(_MISMATCH)
        return off_threshold + _spread(words, 2 * self.mismatch * off_threshold), on_threshold + _spread(
            words, 2 * self.mismatch * on_threshold
        )

    def _offsets(self, numbers: Int64) -> AnyArray:
        """Distance of each reference from the initial light, `[field^2, B]` int32.

        It is the sum of two random numbers: one of up to half a threshold for the sensor, and one of up to `start`
        thresholds for the recording. Without the first, all pixels would send their last event at the very end, when
        the image is back at its initial position.
        """
        threshold = self.threshold * _LOG_UNIT
        offsets = np.tile(_spread(self._words(_SENSOR), threshold)[:, np.newaxis], len(numbers))
        if self.start:
            start_offsets = [_spread(self._words(_START, int(k)), 2 * self.start * threshold) for k in numbers]
            offsets += np.stack(start_offsets, axis=1)
        return offsets

    def _noise(self, numbers: Int64, start: int, end: int) -> Int64:
        """Pixel, polarity and time of the events without a cause in a chunk, `[3, n]`."""
        pixels = self.field * self.field
        off_count, on_count = (round(rate * pixels * (end - start) / 1e6) for rate in (self.noise_off, self.noise_on))
        words = [
            bits(self.seed, Stream.SIMULATION, 2 * (off_count + on_count), substream=_NOISE, step=int(k))
            for k in numbers
        ]
        position_word, time_word = (
            np.array(words, dtype=np.int64).reshape(len(numbers), 2, off_count + on_count).transpose(1, 0, 2)
        )
        pixel = (position_word * pixels >> 32) * len(numbers) + np.arange(len(numbers))[:, np.newaxis]
        polarity = np.broadcast_to(np.arange(off_count + on_count) >= off_count, position_word.shape)
        return np.stack([pixel, polarity, start + (time_word * (end - start) >> 32)]).reshape(3, -1)

    def _jitter(self, numbers: Int64, pixel: Int64, time: int) -> AnyArray:
        """Change of the references of some pixels after the events of a step, `[n]` int32."""
        if self.jitter == 0:
            return np.zeros(len(pixel), dtype=np.int32)
        field_pixel, sample = np.divmod(pixel, len(numbers))
        key = self.seed, Stream.SIMULATION + 256 * _JITTER
        counter = (time * self.field * self.field + field_pixel).astype(np.uint32), numbers[sample].astype(np.uint32)
        return _spread(threefry2x32(key, counter)[0], 2 * self.jitter * self.threshold * _LOG_UNIT)

    def _record_chunk(self, images: UInt8, numbers: Int64) -> list[SaccadeEvents]:
        """Record images. Pixels are numbered with the images last: pixel p of image k is `p * B + k`."""
        view = _View(self, images)
        positions = self._positions(*images.shape[1:])
        start, light = positions[0].t, view(positions[0].row, positions[0].column)
        off_threshold, on_threshold = (np.repeat(threshold, len(images)) for threshold in self._thresholds())
        reference = light + self._offsets(numbers).reshape(-1)
        lower_bound, upper_bound = reference - off_threshold, reference + on_threshold
        events = [self._noise(numbers, start, positions[-1].t)]
        for end, *offset in positions[1:]:
            moved_light = view(*offset)
            pixel = np.flatnonzero((moved_light <= lower_bound) | (moved_light >= upper_bound))
            if pixel.size:
                new_light, old_light = moved_light[pixel], light[pixel]
                reference = upper_bound[pixel] - on_threshold[pixel]
                size = np.where(new_light > reference, on_threshold[pixel], -off_threshold[pixel])
                count = (new_light - reference) // size
                event_pixel, share, distance = _crossings(old_light, new_light, reference, size, count)
                time = start + share * (end - start) // distance
                events.append(np.stack([pixel[event_pixel], size[event_pixel] > 0, time]))
                reference += count * size + self._jitter(numbers, pixel, end)
                lower_bound[pixel] = reference - off_threshold[pixel]
                upper_bound[pixel] = reference + on_threshold[pixel]
            start, light = end, moved_light
        return self._sorted(np.concatenate(events, axis=1), len(images))

    def _sorted(self, events: Int64, count: int) -> list[SaccadeEvents]:
        """Pixel, polarity and time `[3, n]` of the events of `count` images, as sorted recordings."""
        pixel, p, t = events
        field_pixel, sample = np.divmod(pixel, count)
        order = np.lexsort((field_pixel, t, sample))
        y, x = np.divmod(field_pixel[order], self.field)
        boundaries = np.searchsorted(sample[order], np.arange(1, count))
        columns = [np.split(column, boundaries) for column in (x, y, p[order], t[order])]
        return [SaccadeEvents(*sample_columns) for sample_columns in zip(*columns, strict=True)]


class _View:
    """The light that the pixels see, for images at any position."""

    def __init__(self, camera: SaccadeCamera, images: UInt8) -> None:
        self._height, self._width = images.shape[1:]
        levels = np.array([round(_WHITE * (i / 255) ** camera.gamma) for i in range(256)], dtype=np.int32)
        canvas = np.pad(levels[images], ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
        # Three taps with these weights have the variance of the blur. Up to 0.7, the centre keeps the largest weight.
        if side_weight := round(_SUBPIXEL * camera.blur**2 / 2):
            centre_weight = np.int32(_SUBPIXEL - 2 * side_weight)
            for axis in (1, 2):
                canvas = centre_weight * canvas + side_weight * (np.roll(canvas, 1, axis) + np.roll(canvas, -1, axis))
            canvas >>= 2 * _SUBPIXEL_BITS
        # The images are the last axis, so that the same pixel of all images is contiguous.
        self._canvas = np.ascontiguousarray(canvas.transpose(1, 2, 0)).reshape(-1, len(images))
        light = [(_WHITE - i if camera.inverted else i) / _WHITE for i in range(_WHITE + 1)]
        self._log = np.array([round(_LOG_UNIT * math.log(camera.floor + value)) for value in light], dtype=np.int32)
        cosine, sine = math.cos(camera.turn) / camera.zoom, math.sin(camera.turn) / camera.zoom
        self._turn = np.array([[cosine, -sine], [sine, cosine]])
        middle = (np.array(images.shape[1:]) - 1) / 2
        pixels = np.stack(np.divmod(np.arange(camera.field**2), camera.field)) - middle[:, np.newaxis]
        self._sources = np.rint(_SUBPIXEL * (self._turn @ pixels + middle[:, np.newaxis])).astype(np.int64)

    def __call__(self, row: float, column: float) -> AnyArray:
        """Log intensity `[field^2 * B]`, with the images moved by `row` and `column` pixels."""
        shift = np.rint(_SUBPIXEL * (self._turn @ (row, column))).astype(np.int64)
        sources = self._sources - shift[:, np.newaxis]
        first_row, first_column = sources >> _SUBPIXEL_BITS
        row_fraction, column_fraction = sources & (_SUBPIXEL - 1)
        first_row, first_column = (
            np.clip(offset, -_BORDER, size + _BORDER - 2) + _BORDER
            for offset, size in ((first_row, self._height), (first_column, self._width))
        )
        stride = self._width + 2 * _BORDER
        corner = first_row * stride + first_column
        shares = (
            (0, (_SUBPIXEL - row_fraction) * (_SUBPIXEL - column_fraction)),
            (1, (_SUBPIXEL - row_fraction) * column_fraction),
            (stride, row_fraction * (_SUBPIXEL - column_fraction)),
            (stride + 1, row_fraction * column_fraction),
        )
        light = sum(
            self._canvas[corner + neighbour] * share.astype(np.int32)[:, np.newaxis] for neighbour, share in shares
        )
        log_intensity: AnyArray = self._log[light >> 2 * _SUBPIXEL_BITS]
        return log_intensity.reshape(-1)


def _crossings(
    old_light: AnyArray, new_light: AnyArray, reference: AnyArray, size: AnyArray, count: AnyArray
) -> tuple[Int64, Int64, Int64]:
    """The points between two log intensities at which each pixel passes `reference + n * size`, n from 1 to `count`.

    Returns:
        For every event the index of its pixel in the arguments, the distance from `old_light`, and the whole distance.
    """
    event_pixel = np.repeat(np.arange(count.size), count)
    nth = np.arange(event_pixel.size) - np.repeat(np.cumsum(count) - count, count) + 1
    crossing = np.sign(size)[event_pixel] * ((reference - old_light)[event_pixel] + size[event_pixel] * nth)
    distance = np.maximum(1, np.abs(new_light - old_light))[event_pixel].astype(np.int64)
    return event_pixel, np.clip(crossing, 0, distance), distance


def _spread(words: UInt32, width: float) -> AnyArray:
    """Random words as integers from -width/2 up to width/2, int32."""
    levels = round(width)
    return ((words.astype(np.int64) * levels >> 32) - levels // 2).astype(np.int32)


def enlarge(images: UInt8, factor: int) -> UInt8:
    """Enlarge images `[B, H, W]` by an integer factor with bilinear interpolation, in exact integers."""

    def weights(size: int) -> Int64:
        """Weights `[factor * size, size]` in units of `1 / (2 * factor)`. The pixel at the border is repeated."""
        matrix = np.zeros((factor * size, size), dtype=np.int64)
        for i in range(factor * size):
            # The centre of pixel i, in old pixels: (2 i + 1 - factor) / (2 factor).
            low, fraction = divmod(2 * i + 1 - factor, 2 * factor)
            matrix[i, min(max(low, 0), size - 1)] += 2 * factor - fraction
            matrix[i, min(max(low + 1, 0), size - 1)] += fraction
        return matrix

    rows, columns = weights(images.shape[1]), weights(images.shape[2])
    unit = (2 * factor) ** 2
    return ((rows @ images.astype(np.int64) @ columns.T + unit // 2) // unit).astype(np.uint8)
