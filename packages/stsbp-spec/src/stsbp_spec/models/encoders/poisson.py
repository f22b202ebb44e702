"""Rate coding of images: an independent Bernoulli draw for every pixel and step, from the counter generator.

A pixel of value `x / 256` spikes in each step with probability `rate * x / 256`. Draws are indexed by the sample's
number, not by its position in a batch. Batching and shuffling therefore do not change the spikes of a sample, and all
backends get the same spikes.
"""

from __future__ import annotations

import numpy as np

from stsbp_spec.contract.random import LARGEST_SUBSTREAM, Stream, bits
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.encoders.repeat import IMAGE_SCALE
from stsbp_spec.typing import AnyArray, Int64, UInt8
from stsbp_spec.validation import array_of, integer_between, real

__all__ = ["encode_poisson"]


def encode_poisson(
    images: UInt8, steps: int, *, seed: int, rate: float = 1.0, epoch: int = 0, indices: Int64 | None = None
) -> UInt8:
    """Bernoulli spikes `[T, B, ...]` uint8 of images `[B, ...]` uint8.

    A spike is drawn if `bits < round(x / 256 * rate * 2^32)`. A black pixel never spikes.

    Args:
        images: `[B, C, H, W]` or `[B, N]`.
        steps: T.
        seed: seed of the run.
        rate: spike probability per step of a pixel of value 1, in (0, 1].
        epoch: another number gives other random draws; 0 to 2^32 - 1.
        indices: numbers of the samples in their data set, `[B]` integers from 0 to 2^24 - 1; by default 0 to B - 1.

    Raises:
        ShapeError: the images are not uint8, or `indices` are not one integer for each of them.
        SpecError: `steps`, `seed`, `rate`, `epoch` or an index is outside its domain.
    """
    images, steps, rate = array_of(images), integer_between("steps", steps, 1), real("rate", rate)
    epoch = integer_between("epoch", epoch, 0, 2**32 - 1)
    if images.dtype != np.uint8 or images.ndim < 2:
        raise ShapeError(f"expected uint8 images [B, ...], got {images.dtype} of shape {list(images.shape)}")
    if not 0 < rate <= 1:
        raise SpecError(f"expected a rate in (0, 1], got {rate}")
    batch, pixels = len(images), int(np.prod(images.shape[1:]))
    numbers = np.arange(batch) if indices is None else _numbers(indices, batch)
    # One threshold for each of the 256 grey values.
    grey = np.rint(np.arange(256) * (IMAGE_SCALE * rate * 2.0**32)).astype(np.uint64)
    threshold = grey[images.reshape(batch, pixels)]
    spikes = np.empty((steps, batch, pixels), dtype=np.uint8)
    for b in range(batch):
        words = bits(seed, Stream.ENCODER, steps * pixels, substream=int(numbers[b]), step=epoch)
        spikes[:, b] = words.astype(np.uint64).reshape(steps, pixels) < threshold[b]
    return spikes.reshape(steps, *images.shape)


def _numbers(indices: Int64, batch: int) -> AnyArray:
    """`indices` as an array of numbers of samples, `[B]`."""
    numbers = array_of(indices)
    if numbers.shape != (batch,):
        raise ShapeError(f"expected one index a sample, [{batch}], got shape {list(numbers.shape)}")
    # numpy makes an empty list an array of floats.
    if batch and numbers.dtype.kind not in "iu":
        raise ShapeError(f"expected integers as indices of samples, got {numbers.dtype}")
    if batch and not 0 <= int(numbers.min()) <= int(numbers.max()) <= LARGEST_SUBSTREAM:
        raise SpecError(
            f"indices of samples must be 0 to {LARGEST_SUBSTREAM}, got {int(numbers.min())} to {int(numbers.max())}"
        )
    return numbers
