"""Frames of zeros and ones as bits, eight steps per byte. Data sets store them so, and batches may contain them.

Only an eighth of the bytes is sent to a device. The values need no check, because a bit is always 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.errors import ShapeError
from stsbp_spec.typing import Shape, UInt8
from stsbp_spec.validation import array_of, integer_between

__all__ = ["Inputs", "PackedFrames", "cut", "of_part", "silent", "unpacked"]


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
