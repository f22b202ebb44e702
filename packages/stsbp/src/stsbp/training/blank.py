"""Warns of data without a single event, spike or bright pixel: a network that reads them fires at nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from stsbp_spec.models.encoders import PackedFrames
from stsbp_spec.typing import Coding

from stsbp.datasets import Split
from stsbp.datasets.registry import info_of, is_known
from stsbp.training.progress import Reporter

__all__ = ["warn_of_blank"]

_AT_ONCE = 16
"""Number of samples that are read at once."""


def warn_of_blank(
    name: str, coding: Coding, splits: Mapping[str, Split], reporter: Reporter, test_on: str = ""
) -> list[str]:
    """Warn of each split of the data set `name` in which every value of every sample is 0. Returns the warnings.

    `test_on` names the data set of the split `test`, if it is another. Reading ends at the first value other than 0,
    which is almost always in the first sample.
    """
    texts = []
    for part, split in splits.items():
        if any(_has_values(split, first) for first in range(0, len(split), _AT_ONCE)):
            continue
        content, remedy = ("black", "check the images") if coding == "direct" else ("without spikes", "check the data")
        its_name = test_on if test_on and part == "test" else name
        if is_known(its_name) and info_of(its_name).recordings:
            content = "without events in the window"
            remedy = "check the unit of the times, or give another --window-ms"
        samples_text = f"the only {part} sample" if len(split) == 1 else f"all {len(split):,} {part} samples"
        texts.append(f"{samples_text} of {its_name} {'is' if len(split) == 1 else 'are'} {content}; {remedy}")
        reporter.warn(texts[-1])
    return texts


def _has_values(split: Split, first: int) -> bool:
    """Whether one of `_AT_ONCE` samples, from the sample `first`, has a value other than 0."""
    inputs = split.stored(np.arange(first, min(first + _AT_ONCE, len(split))))
    return bool((inputs.bits if isinstance(inputs, PackedFrames) else inputs).any())
