"""Time-to-first-spike coding of images: the brighter a pixel, the earlier its only spike.

Pixel `x` in 1..255 spikes at step `floor((255 - x) * T / 255)`: 255 at step 0, 1 at the last step
(for T up to 255). A pixel of 0 never spikes.
"""

from __future__ import annotations

import numpy as np

from stsbp_spec.errors import ShapeError
from stsbp_spec.typing import UInt8
from stsbp_spec.validation import array_of, integer_between

__all__ = ["encode_latency"]


def encode_latency(images: UInt8, steps: int) -> UInt8:
    """Spikes `[T, B, ...]` uint8 of images `[B, ...]` uint8, at most one per pixel.

    Raises:
        ShapeError: the images are not uint8.
        SpecError: `steps` is not an integer of at least 1.
    """
    images, steps = array_of(images), integer_between("steps", steps, 1)
    if images.dtype != np.uint8:
        raise ShapeError(f"expected uint8 images [B, ...], got {images.dtype}")
    grey = np.arange(256)
    step_of_grey = (255 - grey) * steps // 255
    step_of_grey[0] = -1
    spikes = np.zeros((steps, *images.shape), dtype=np.uint8)
    for step in range(steps):
        spikes[step] = (step_of_grey == step).astype(np.uint8)[images]
    return spikes
