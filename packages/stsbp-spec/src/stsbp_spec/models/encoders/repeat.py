"""Direct coding (line 2 of the algorithm): an image is the postsynaptic potential of every time step.

Images stay uint8 everywhere. The value of a pixel `x` is `x / 256`, a multiple of 2^-8 below 1, so that the sums of
the first layer cannot round. Backends multiply the weights with the image once. `repeat` is for code that needs the
whole sequence, and for tests.
"""

from __future__ import annotations

import numpy as np

from stsbp_spec.errors import ShapeError
from stsbp_spec.typing import UInt8
from stsbp_spec.validation import array_of, integer_between

__all__ = ["IMAGE_SCALE", "repeat"]

IMAGE_SCALE = 1 / 256
"""Value of one unit of a uint8 pixel."""


def repeat(images: UInt8, steps: int) -> UInt8:
    """Repeat images through time: `[B, C, H, W]` or `[B, N]` uint8 -> a read-only view `[T, B, ...]`, no copy.

    Raises:
        ShapeError: the images are not uint8, or have neither two nor four axes.
        SpecError: `steps` is not an integer of at least 1.
    """
    images, steps = array_of(images), integer_between("steps", steps, 1)
    if images.dtype != np.uint8 or images.ndim not in (2, 4):
        raise ShapeError(
            f"expected uint8 images [B, C, H, W] or [B, N], got {images.dtype} of shape {list(images.shape)}"
        )
    return np.broadcast_to(images, (steps, *images.shape))
