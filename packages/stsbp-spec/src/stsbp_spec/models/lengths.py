"""Samples of a batch with different numbers of steps. Steps beyond the length of a sample are padding.

The states of the network continue through padded steps. Everything that reads outputs ignores these steps. A sample of
length `L` has the same results as if it were given alone, with `T = L`.
"""

from __future__ import annotations

import numpy as np

from stsbp_spec.typing import AnyArray, Int64

__all__ = ["inside", "without_padding"]


def inside(lengths: AnyArray, steps: int) -> AnyArray:
    """Which of `steps` steps belong to samples of `lengths` `[...B]`, bool `[T, ...B]`."""
    mask: AnyArray = np.arange(steps).reshape(-1, *(1,) * np.ndim(lengths)) < lengths
    return mask


def without_padding(trains: AnyArray, lengths: Int64 | None) -> AnyArray:
    """Spike trains or potentials `[T, B, N]`, with zeros at the padded steps of samples with `lengths` `[B]`.

    None: there are no padded steps.
    """
    return trains if lengths is None else trains * inside(lengths, len(trains))[..., None]
