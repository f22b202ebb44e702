"""Frames of zeros and ones as bits, eight steps per byte. Data sets store them so, and batches may contain them.

Only an eighth of the bytes is sent to a device. The values need no check, because a bit is always 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.lengths import inside
from stsbp_spec.typing import Int64, Shape, UInt8
from stsbp_spec.validation import array_of, integer_between

__all__ = ["Inputs", "PackedFrames", "cut", "of_part", "silent", "unpacked", "without_padding"]


@dataclass(frozen=True, eq=False)
class PackedFrames:
    """Frames `[T, B, C, H, W]` or `[T, B, N]` of zeros and ones.

    Attributes:
        bits: uint8 `[ceil(T/8), B, H, W, C]` or `[ceil(T/8), B, N]`, channels last. Step `t` is bit `t % 8` of byte
            `t // 8`, with the lowest bit first. Bits of the last byte beyond T are ignored.
        steps: T.

    Raises:
        ShapeError: `bits` does not have this form.
    """

    bits: UInt8
    steps: int

    def __post_init__(self) -> None:
        bits = self.bits
        if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8 or bits.ndim not in (3, 5):
            raise ShapeError("packed frames are uint8 [ceil(T/8), B, H, W, C] or [ceil(T/8), B, N]")
        integer_between("steps", self.steps, 1)
        if len(bits) != -(-self.steps // 8):
            raise ShapeError(f"{self.steps} steps take {-(-self.steps // 8)} bytes, got {len(bits)}")

    @property
    def shape(self) -> Shape:
        """Shape of the frames, `(T, B, C, H, W)` or `(T, B, N)`."""
        _, batch, *frame_axes = self.bits.shape
        return (self.steps, batch, *frame_axes[-1:], *frame_axes[:-1])

    def unpacked(self) -> UInt8:
        """The frames, `[T, B, C, H, W]` or `[T, B, N]`. The former are channels-last in memory."""
        frames = np.empty((self.steps, *self.bits.shape[1:]), np.uint8)
        for t, frame in enumerate(frames):
            np.not_equal(self.bits[t // 8] & np.uint8(1 << t % 8), 0, out=frame.view(np.bool_))
        return np.moveaxis(frames, -1, 2)

    @classmethod
    def of(cls, frames: UInt8) -> PackedFrames:
        """Inverse of `unpacked`.

        Raises:
            ShapeError: a value is neither 0 nor 1, or the array does not have three or five axes or is not of integers.
        """
        frames = array_of(frames)
        if frames.ndim not in (3, 5):
            raise ShapeError(f"frames are [T, B, C, H, W] or [T, B, N], got {frames.shape}")
        if frames.dtype.kind not in "biu":
            raise ShapeError(f"packed frames hold integers, got {frames.dtype}; convert them with astype(np.uint8)")
        if frames.max(initial=0) > 1 or frames.min(initial=0) < 0:
            raise ShapeError(f"packed frames hold 0 and 1, got {int(frames.min())} to {int(frames.max())}")
        return cls(np.packbits(np.moveaxis(frames, 2, -1), axis=0, bitorder="little"), len(frames))


Inputs = UInt8 | PackedFrames
"""Inputs of a batch: images or frames as arrays, or frames of zeros and ones as bits."""


def cut(inputs: Inputs, samples: slice, axis: int) -> Inputs:
    """Some samples of inputs. `axis` is the axis of the samples: 0 for images, 1 for frames."""
    if isinstance(inputs, PackedFrames):
        return PackedFrames(inputs.bits[:, samples], inputs.steps)
    return inputs[samples] if axis == 0 else inputs[:, samples]


def silent(inputs: Inputs) -> Inputs:
    """Inputs of the same form without spikes."""
    if isinstance(inputs, PackedFrames):
        return PackedFrames(np.zeros_like(inputs.bits), inputs.steps)
    return np.zeros_like(inputs)


def of_part(inputs: Inputs, part: BatchSlice, axis: int) -> Inputs:
    """The samples of a part of a batch, selected with `cut`. If the part is empty, one sample without spikes."""
    if part.count:
        return cut(inputs, slice(part.first, part.end), axis)
    return silent(cut(inputs, slice(0, 1), axis))


def unpacked(inputs: Inputs) -> UInt8:
    """Inputs as an array."""
    return inputs.unpacked() if isinstance(inputs, PackedFrames) else inputs


def without_padding(inputs: Inputs, lengths: Int64 | None) -> Inputs:
    """Inputs without spikes at the padded steps of samples with `lengths` `[B]`, 1 to T.

    `inputs` itself if it has none there, if `lengths` is None, or if it has no steps (images).
    """
    steps, *batch_axes = inputs.shape
    if lengths is None or len(batch_axes) not in (2, 4) or batch_axes[0] != len(lengths):
        return inputs
    if isinstance(inputs, PackedFrames):
        own_bits = np.packbits(inside(lengths, steps), axis=0, bitorder="little")
        own_bits = own_bits.reshape(*own_bits.shape, *(1,) * (inputs.bits.ndim - 2))
        return PackedFrames(inputs.bits & own_bits, steps)
    padding = [(slice(int(length), None), sample) for sample, length in enumerate(lengths) if length < steps]
    if not any(inputs[place].any() for place in padding):
        return inputs
    # A data set may return a view of its samples.
    frames = inputs.copy(order="K")
    for place in padding:
        frames[place] = 0
    return frames
