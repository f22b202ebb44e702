"""Samples of a batch with different numbers of steps: those beyond a sample's length are padding.

The states of the network run on through padded steps. Whatever looks at outputs leaves them out: a sample of length `L`
counts as if it had been given alone, with `T = L`.
"""

from __future__ import annotations

import numpy as np

from stsbp_spec.typing import AnyArray, Int64

__all__ = ["inside", "without_padding"]


def inside(lengths: AnyArray, steps: int) -> AnyArray:
    """Which of `steps` steps belong to samples of `lengths` `[...B]`, bool `[T, ...B]`."""
    found: AnyArray = np.arange(steps).reshape(-1, *(1,) * np.ndim(lengths)) < lengths
    return found


def without_padding(trains: AnyArray, lengths: Int64 | None) -> AnyArray:
    """Spike trains or potentials `[T, B, N]` with zeros at the padded steps of samples of `lengths` `[B]`.

    None: there are no padded steps.
    """
    return trains if lengths is None else trains * inside(lengths, len(trains))[..., None]
