"""Disturbed inputs, to measure the robustness of a trained network: events are moved in time, lost or added, and pixels
are noisy or lost.

Random numbers come from the counter-based generator. They depend only on the seed, the number of the sample and the
position in it, so they are the same on every machine. All amounts of a disturbance use the same random numbers. An
event that is lost at 10 % is therefore also lost at 20 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from stsbp_spec.contract.random import Stream, threefry2x32
from stsbp_spec.models.encoders.packed import Inputs, PackedFrames, unpacked, without_padding
from stsbp_spec.typing import AnyArray, Coding, Int64, UInt8, UInt32

from stsbp.datasets.base import SequenceLabels, Split, lengths_of
from stsbp.errors import ConfigError, DataError

__all__ = ["KINDS", "DisturbedSplit", "Kind", "disturbed", "parse_noise"]

_LOST, _MOVED, _ADDED, _PIXELS = 0, 1, 2, 3
"""Substreams of the random numbers."""


@dataclass(frozen=True)
class Kind:
    """A disturbance.

    Attributes:
        text: meaning of an amount.
        amounts: default amounts, ascending from 0.
        max_amount: largest sensible amount.
        integral: whether amounts are integers.
    """

    text: str
    amounts: tuple[float, ...]
    max_amount: float
    integral: bool = False


_LOST_EVENTS = Kind("share of the events that are lost", (0, 0.2, 0.4, 0.6, 0.8), 1)
_LOST_PIXELS = Kind("share of the pixels that are set to 0", (0, 0.1, 0.2, 0.4, 0.6), 1)

KINDS: Mapping[Coding, Mapping[str, Kind]] = MappingProxyType(
    {
        "events": MappingProxyType(
            {
                "jitter": Kind("steps by which each event is moved at most, either way", (0, 1, 2, 4, 8), 1e5, True),
                "lost": _LOST_EVENTS,
                "added": Kind("random events, as a share of pixels times steps", (0, 0.005, 0.01, 0.02, 0.05), 1),
            }
        ),
        "direct": MappingProxyType(
            {
                "noise": Kind(
                    "grey levels (of 255) by which each pixel changes at most", (0, 32, 64, 96, 128), 255, True
                ),
                "lost": _LOST_PIXELS,
            }
        ),
    }
)
"""Disturbances, by the coding of the inputs and by name."""


def parse_noise(text: str, coding: Coding) -> tuple[str, tuple[float, ...]]:
    """A disturbance and its amounts from `NAME` or `NAME=AMOUNT,AMOUNT,...`. The amounts always include 0.

    Raises:
        ConfigError: there is no such disturbance for these inputs, or an amount is invalid.
    """
    name, equals, amounts_text = text.partition("=")
    disturbances = KINDS[coding]
    if name not in disturbances:
        inputs_text = "events" if coding == "events" else "images"
        raise ConfigError(
            f"--noise {name!r}: inputs of this run are {inputs_text}, which take {', '.join(disturbances)}"
        )
    disturbance = disturbances[name]
    if not equals:
        return name, disturbance.amounts
    amounts = {0.0}
    for amount_text in amounts_text.split(","):
        try:
            amount = float(amount_text)
        except ValueError:
            amount = -1.0
        # This comparison is also false for NaN.
        if not 0 <= amount <= disturbance.max_amount or (disturbance.integral and amount != round(amount)):
            numbers = "whole numbers" if disturbance.integral else "numbers"
            raise ConfigError(
                f"--noise {name}={amounts_text}: amounts are {numbers} from 0 to {disturbance.max_amount:g} "
                f"({disturbance.text}), got {amount_text!r}"
            )
        amounts.add(amount)
    return name, tuple(sorted(amounts))


@dataclass(frozen=True)
class DisturbedSplit:
    """A split with disturbed inputs. Its labels, targets and lengths are those of the original split.

    Attributes:
        split: the samples.
        name, amount: name and amount of the disturbance, one of `KINDS`.
        seed: seed of the random numbers.
        input_max: the largest count that an entry may have.
    """

    split: Split
    name: str
    amount: float
    seed: int = 0
    input_max: int = 255

    @property
    def labels(self) -> Int64:
        return self.split.labels

    @property
    def lengths(self) -> Int64 | None:
        """Number of steps of every sample, `[n]`; None: all steps."""
        return lengths_of(self.split)

    def __len__(self) -> int:
        return len(self.split)

    def inputs(self, indices: Int64) -> UInt8:
        return unpacked(self.stored(indices))

    def stored(self, indices: Int64) -> Inputs:
        lengths = None if self.lengths is None else self.lengths[indices]
        inputs = self.split.stored(indices)
        return disturbed(inputs, indices, self.name, self.amount, self.seed, lengths, self.input_max)

    def targets(self, indices: Int64) -> AnyArray:
        """Target sequences `[T, B, N]`, if the split has them (`SequenceLabels`)."""
        if not isinstance(self.split, SequenceLabels):
            raise DataError("the labels of these samples are classes, not spike trains")
        return self.split.targets(indices)


def disturbed(
    inputs: Inputs,
    indices: Int64,
    name: str,
    amount: float,
    seed: int = 0,
    lengths: Int64 | None = None,
    input_max: int = 255,
) -> Inputs:
    """Inputs with a disturbance.

    Args:
        inputs: images `[B, C, H, W]` or `[B, N]`, or frames `[T, B, C, H, W]` or `[T, B, N]`, also as bits.
        indices: numbers of the samples, `[B]`. The random numbers depend on them.
        name, amount: name and amount of the disturbance, one of `KINDS`.
        seed: seed of the random numbers.
        lengths: number of steps of each sample, `[B]`. Events stay within them, and events after them are left out.
            None: all steps.
        input_max: the largest count that an entry may have.

    Returns:
        New inputs of the same form; `inputs` itself if the amount is 0. Events that would move before the first step or
        after the last one stay at that step. In frames of bits, events at the same place become one. Counts are added,
        up to `input_max`, and all events of a pixel at a step move together.
    """
    if amount == 0:
        return inputs
    if not isinstance(inputs, PackedFrames) and inputs.ndim in (2, 4):
        return _images(inputs, indices, name, amount, seed)
    frames = unpacked(without_padding(inputs, lengths))
    steps, batch = frames.shape[:2]
    flat = frames.reshape(steps, batch, -1)
    pixels = flat.shape[2]
    step_counts = np.full(batch, steps) if lengths is None else lengths
    t, sample, pixel = np.nonzero(flat)
    count = flat[t, sample, pixel]
    if name == "added":
        added_count = np.rint(amount * step_counts * pixels).astype(np.int64)
        event_number = np.arange(added_count.max(initial=0))
        word = _words(seed, _ADDED, event_number[None, :], indices[:, None])
        position = _random_below(word, (step_counts * pixels)[:, None])
        added_sample, added_event = np.nonzero(event_number[None, :] < added_count[:, None])
        position = position[added_sample, added_event]
        t, sample, pixel = (
            np.concatenate(x) for x in ((t, position // pixels), (sample, added_sample), (pixel, position % pixels))
        )
        count = np.concatenate([count, np.ones(len(added_sample), np.uint8)])
    else:
        word = _words(seed, _LOST if name == "lost" else _MOVED, t * pixels + pixel, indices[sample])
        if name == "lost":
            is_kept = _share(word) >= amount
            t, sample, pixel, count = t[is_kept], sample[is_kept], pixel[is_kept], count[is_kept]
        else:
            t = np.clip(t + _random_below(word, 2 * int(amount) + 1) - int(amount), 0, step_counts[sample] - 1)
    if isinstance(inputs, PackedFrames):
        result = np.zeros(flat.shape, np.uint8)
        result[t, sample, pixel] = 1
        return PackedFrames.of(result.reshape(frames.shape))
    sums = np.zeros(flat.shape, np.int64)
    np.add.at(sums, (t, sample, pixel), count)
    counts: UInt8 = np.minimum(sums, input_max).astype(np.uint8).reshape(frames.shape)
    return counts


def _images(images: UInt8, indices: Int64, name: str, amount: float, seed: int) -> UInt8:
    pixels = np.arange(images[0].size)[None, :]
    word = _words(seed, _LOST if name == "lost" else _PIXELS, pixels, indices[:, None]).reshape(images.shape)
    if name == "lost":
        return np.where(_share(word) < amount, 0, images).astype(np.uint8)
    changed: UInt8 = np.clip(images + _random_below(word, 2 * int(amount) + 1) - int(amount), 0, 255).astype(np.uint8)
    return changed


def _words(seed: int, substream: int, position: Int64, sample: Int64) -> UInt32:
    """A random word for each place of each sample. Both arguments broadcast against each other."""
    key = (seed, int(Stream.NOISE) + 256 * substream)
    position, sample = np.broadcast_arrays(position, sample)
    return threefry2x32(key, (position.astype(np.uint32), sample.astype(np.uint32)))[0]


def _share(word: UInt32) -> AnyArray:
    """A number in (0, 1) from each word."""
    return (word.astype(np.float64) + 0.5) * 2.0**-32


def _random_below(word: UInt32, n: int | Int64) -> Int64:
    """An integer from 0 to n - 1 from each word."""
    return (word.astype(np.uint64) * np.asarray(n, np.uint64) >> np.uint64(32)).astype(np.int64)
