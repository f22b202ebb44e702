"""Random shifts and reflections of training inputs, from the counter-based generator: a function of seed, epoch and
sample, the same on every backend and after every resumption."""

from __future__ import annotations

import numpy as np
from stsbp_spec.random import Stream, threefry2x32
from stsbp_spec.typing import Int64, UInt8, UInt32

__all__ = ["augment"]


def augment(inputs: UInt8, indices: Int64, *, seed: int, epoch: int, shift: int, flip: bool) -> UInt8:
    """Move each sample by up to `shift` pixels along both axes and, with `flip`, reflect half of them left to right.

    Args:
        inputs: images `[B, C, H, W]` or frames `[T, B, C, H, W]`; all frames of a sample move together.
        indices: the samples' numbers, `[B]`.
        seed, epoch: of the draw.
        shift: largest displacement in pixels; what leaves the field is lost, what enters is zero.
        flip: whether to reflect.

    Returns:
        A new array of the shape of `inputs`; `inputs` itself where there is nothing to do.
    """
    if shift == 0 and not flip:
        return inputs
    down, right, reflected = _draws(indices, seed, epoch, shift)
    result = np.zeros_like(inputs)
    height, width = inputs.shape[-2:]
    for sample in range(len(indices)):
        at = (sample,) if inputs.ndim == 4 else (slice(None), sample)  # a view: basic indexing
        source = inputs[at]
        if flip and reflected[sample]:
            source = source[..., ::-1]
        y, x = int(down[sample]), int(right[sample])
        rows, columns = (slice(max(0, d), n + min(0, d)) for d, n in ((y, height), (x, width)))
        from_rows, from_columns = (slice(max(0, -d), n + min(0, -d)) for d, n in ((y, height), (x, width)))
        result[at][..., rows, columns] = source[..., from_rows, from_columns]
    return result


def _draws(indices: Int64, seed: int, epoch: int, shift: int) -> tuple[Int64, Int64, UInt32]:
    """Displacements down and to the right in `[-shift, shift]`, and a bit, of each sample."""
    counter = indices.astype(np.uint32)
    a, b = threefry2x32((seed, Stream.AUGMENT), (counter, np.full_like(counter, epoch)))
    sides = 2 * shift + 1
    down = (a.astype(np.uint64) * sides >> np.uint64(32)).astype(np.int64) - shift
    # The low half of the second word moves to the right, its highest bit reflects: the draws stay independent.
    right = ((b & np.uint32(0xFFFF)).astype(np.uint64) * sides >> np.uint64(16)).astype(np.int64) - shift
    return down, right, b >> np.uint32(31)
