"""Random distortions of training inputs, from the counter-based generator. They depend only on seed, epoch and sample,
so they are the same on every backend, also after a run is resumed.

Every pixel of the result takes the value of the nearest pixel of its source. Values are moved, and never mixed, so
frames stay 0/1 or counts, and images stay bytes. All frames of a sample move together. Pixels that leave the field are
lost, and pixels that enter it are zero. Frames of a row of neurons, `[T, B, N]`, move like a picture of T rows and N
columns: in time and between neurons. The source of a pixel is computed only with + - * / and floor in float32, so it is
the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from stsbp_spec.contract.random import Stream, threefry2x32
from stsbp_spec.models.encoders.packed import Inputs, PackedFrames
from stsbp_spec.typing import AnyArray, Float32, Int64, UInt8, UInt32

__all__ = ["Augmentation", "augment"]

_NODES = 4
"""Number of rows and columns in the grid of random displacements that an elastic distortion interpolates."""
_LINEAR, _SCALE, _CUTOUT, _ELASTIC = 1, 2, 3, 16
"""Substreams of the random numbers. 0 is for shift and reflection. An elastic distortion uses one per node."""


@dataclass(frozen=True)
class Augmentation:
    """The amounts of distortion. Each amount is a maximum; values are drawn uniformly between its negative and itself.

    Args:
        shift: shift in pixels along both axes. For frames of a row of neurons: in steps and neurons.
        flip: whether half of the samples are reflected left to right.
        rotate: rotation in degrees, below 180. The tangent of half the angle is drawn uniformly, so larger angles are
            likelier than smaller ones.
        scale: relative change of height and width, drawn separately, below 1.
        shear: shear in columns per row.
        elastic: smooth random displacement in pixels, interpolated linearly between 4 x 4 nodes over the field.
        cutout: side in pixels of a square that is set to zero. Its centre can be anywhere in the field.
    """

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    cutout: int = 0

    @property
    def moves(self) -> bool:
        """Whether any distortion is on."""
        return self != Augmentation()


@overload
def augment(inputs: UInt8, indices: Int64, *, seed: int, epoch: int, augmentation: Augmentation) -> UInt8: ...
@overload
def augment(
    inputs: PackedFrames, indices: Int64, *, seed: int, epoch: int, augmentation: Augmentation
) -> PackedFrames: ...
def augment(inputs: Inputs, indices: Int64, *, seed: int, epoch: int, augmentation: Augmentation) -> Inputs:
    """Distort each sample.

    Args:
        inputs: images `[B, C, H, W]`, or frames `[T, B, C, H, W]` or `[T, B, N]`. Frames may also be bits.
        indices: numbers of the samples, `[B]`.
        seed, epoch: seed and epoch of the random numbers.
        augmentation: the distortions.

    Returns:
        New inputs of the same form, channels-last in memory; or `inputs` itself if no distortion is on.
    """
    if not augmentation.moves:
        return inputs
    if len(inputs.shape) == 3:
        return _as_pictures(inputs, indices, seed, epoch, augmentation)
    height, width = inputs.shape[-2:]
    rows, columns = _sources(indices, seed, epoch, augmentation, height, width)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if augmentation.cutout:
        inside &= ~_hole(indices, seed, epoch, augmentation.cutout, height, width)
    source = np.where(inside, rows * width + columns, 0).reshape(len(indices), -1)
    if isinstance(inputs, PackedFrames):
        return PackedFrames(_gathered(inputs.bits, source, inside), inputs.steps)
    frames = inputs if inputs.ndim == 5 else inputs[None]
    gathered = np.moveaxis(_gathered(np.moveaxis(frames, 2, -1), source, inside), -1, 2)
    return gathered if inputs.ndim == 5 else gathered[0]


def _as_pictures(inputs: Inputs, indices: Int64, seed: int, epoch: int, augmentation: Augmentation) -> Inputs:
    """Frames `[T, B, N]` as pictures `[B, 1, T, N]`."""
    if isinstance(inputs, PackedFrames):
        return PackedFrames.of(augment(inputs.unpacked(), indices, seed=seed, epoch=epoch, augmentation=augmentation))
    pictures = augment(inputs.swapaxes(0, 1)[:, None], indices, seed=seed, epoch=epoch, augmentation=augmentation)
    return np.ascontiguousarray(pictures[:, 0].swapaxes(0, 1))


def _gathered(pixels: UInt8, source: Int64, inside: AnyArray) -> UInt8:
    """Each pixel of `[..., B, H, W, C]` from position `source` of its sample, `[B, H W]`; zero where not `inside`.

    The bytes of a pixel move together. They move faster as one number, if there is a type with this number of bytes.
    """
    batch, *field, channels = pixels.shape[1:]
    pixel_type = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}.get(channels)
    planes = np.ascontiguousarray(pixels).reshape(len(pixels), batch, -1, channels)
    outside = np.flatnonzero(~inside.reshape(batch, -1))
    if pixel_type is not None:
        planes = planes.view(pixel_type)[..., 0]
    gathered = np.empty_like(planes)
    for sample in range(batch):
        np.take(planes[:, sample], source[sample], axis=1, mode="clip", out=gathered[:, sample])
    gathered.reshape(len(gathered), -1, *gathered.shape[3:])[:, outside] = 0
    return gathered.view(np.uint8).reshape(len(pixels), batch, *field, channels)


def _words(indices: Int64, seed: int, epoch: int, substream: int | Int64) -> tuple[UInt32, UInt32]:
    """Two random words for each sample, `[B]`; for several substreams, `[n, 1]`, as `[n, B]`."""
    counter = indices.astype(np.uint32)
    key = (seed, int(Stream.AUGMENT) + 256 * substream)
    return threefry2x32(key, (counter, np.full_like(counter, epoch)))


def _random_below(word: UInt32, n: int, bits: int = 32) -> Int64:
    """An integer in `[0, n)` from the lowest `bits` bits of each word."""
    low = word.astype(np.uint64) & np.uint64((1 << bits) - 1)
    return (low * np.uint64(n) >> np.uint64(bits)).astype(np.int64)


def _signed(word: UInt32) -> Float32:
    """A number in [-1, 1] from each word, in a shape that broadcasts against a field: `[B, 1, 1]`."""
    return ((word.astype(np.float64) + 0.5) * 2.0**-31 - 1).astype(np.float32)[:, None, None]


def _from_centre(n: int, shift: Int64) -> Float32:
    """Coordinates of `n` pixels from the centre of the field, with the movement of each sample undone, `[B, n]`."""
    return ((np.arange(n) - (n - 1) / 2) - shift[:, None]).astype(np.float32)


def _sources(
    indices: Int64, seed: int, epoch: int, augmentation: Augmentation, height: int, width: int
) -> tuple[Int64, Int64]:
    """Row and column of the source of each pixel of each result, `[B, H, W]`. They may be outside the field."""
    a, b = _words(indices, seed, epoch, 0)
    shift_count = 2 * augmentation.shift + 1
    # The low half of the second word shifts to the right, and its highest bit reflects, so both draws are independent.
    row_shift = _random_below(a, shift_count) - augmentation.shift
    column_shift = _random_below(b, shift_count, bits=16) - augmentation.shift
    # Coordinates from the centre of the field, in which rotation, scale and shear are linear.
    y, x = _from_centre(height, row_shift)[:, :, None], _from_centre(width, column_shift)[:, None, :]
    if augmentation.scale:
        row_scale, column_scale = (
            1 + augmentation.scale * _signed(word) for word in _words(indices, seed, epoch, _SCALE)
        )
        y, x = y * row_scale, x * column_scale
    if augmentation.rotate or augmentation.shear:
        turn, slant = (_signed(word) for word in _words(indices, seed, epoch, _LINEAR))
        x = x + augmentation.shear * slant * y
        # With half angles, sine and cosine are rational. Rounding hides differences in the tangent between libraries.
        tangent = round(math.tan(math.radians(augmentation.rotate) / 2), 9) * turn
        cosine, sine = (1 - tangent * tangent) / (1 + tangent * tangent), 2 * tangent / (1 + tangent * tangent)
        y, x = cosine * y - sine * x, sine * y + cosine * x
    if augmentation.elastic:
        row_displacement, column_displacement = _displacements(indices, seed, epoch, height, width)
        y, x = y + augmentation.elastic * row_displacement, x + augmentation.elastic * column_displacement
    if augmentation.flip:
        x = np.where((b >> np.uint32(31)).astype(bool)[:, None, None], -x, x)
    shape = (len(indices), height, width)
    rows, columns = (np.floor(v + n / 2).astype(np.int64) for v, n in ((y, height), (x, width)))
    return np.broadcast_to(rows, shape), np.broadcast_to(columns, shape)


def _displacements(indices: Int64, seed: int, epoch: int, height: int, width: int) -> tuple[Float32, Float32]:
    """Smooth random numbers in (-1, 1) along both axes, `[B, H, W]` each, interpolated linearly between random
    nodes."""
    fields = []
    for words in _words(indices, seed, epoch, _ELASTIC + np.arange(_NODES * _NODES)[:, None]):
        nodes = _signed(words.T.reshape(-1)).reshape(-1, _NODES, _NODES)
        fields.append(_interpolated(_interpolated(nodes, width, axis=2), height, axis=1))
    return fields[0], fields[1]


def _interpolated(nodes: Float32, n: int, axis: int) -> Float32:
    """`n` equally spaced values between the first and the last node along an axis of three."""
    position = np.arange(n) * ((_NODES - 1) / max(1, n - 1))
    lower_node = np.minimum(position.astype(np.int64), _NODES - 2)
    weight = np.expand_dims((position - lower_node).astype(np.float32), tuple(range(1, 3 - axis)))
    interpolated: Float32 = nodes.take(lower_node, axis) * (1 - weight) + nodes.take(lower_node + 1, axis) * weight
    return interpolated


def _hole(indices: Int64, seed: int, epoch: int, side: int, height: int, width: int) -> AnyArray:
    """The area of a square, `[B, H, W]`. A part of it may be outside the field."""
    a, b = _words(indices, seed, epoch, _CUTOUT)
    first_row, first_column = (
        _random_below(word, n)[:, None, None] - side // 2 for word, n in ((a, height), (b, width))
    )
    y, x = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    hole: AnyArray = (y >= first_row) & (y < first_row + side) & (x >= first_column) & (x < first_column + side)
    return hole
