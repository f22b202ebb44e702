"""A model of the inner ear. It turns sound into spikes of up to 700 neurons, with the same bits on every machine.

1. The outer ear amplifies high tones, 32 s[n] - 31 s[n-1]. The whole recording is then scaled to the root mean square
   1, also if only its beginning is turned into spikes: x.
2. Place k of the basilar membrane is an all-pole gammatone filter of order 4 (Lyon 1996). It consists of four equal
   resonators,

       y[n] = g x[n] + 2 r cos(w) y[n-1] - r^2 y[n-2],   w = 2 pi f / rate,   r = exp(-2 pi 1.019 ERB(f) / rate),

   with g such that the gain at f is one. Centre frequencies f are evenly spaced on the scale of equivalent rectangular
   bandwidths, ERB(f) = 24.7 (0.00437 f + 1) (Glasberg and Moore 1990).
3. The inner hair cell rectifies and compresses: h = sqrt(max(y, 0)).
4. A nerve fibre is a leaky integrate-and-fire neuron, v[n] = d v[n-1] + h[n], d = exp(-1 / (rate tau)). It spikes if
   v >= theta. It keeps the part above theta, but at most theta. Neighbouring places alternate between several
   thresholds, like the fibres of one hair cell (Liberman 1978). Loud sounds therefore make fibres spike that faint
   sounds leave silent.

Filters and fibres are computed in float32, with one rounding per operation, in this order. Their constants are rounded
to multiples of 2^-22, so that differences between libraries in the last digits of exp and cos have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from stsbp_spec.typing import AnyArray, Float32, Int64, UInt8

__all__ = ["Cochlea"]

_GRID = 2.0**22
_ORDER = 4


def _rounded(value: float) -> float:
    return round(value * _GRID) / _GRID


def _erb_rate(frequency: float) -> float:
    """Number of equivalent rectangular bandwidths below a frequency in Hz."""
    return math.log1p(0.00437 * frequency) / (24.7 * 0.00437)


def _frequency(erb_rate: float) -> float:
    return math.expm1(erb_rate * 24.7 * 0.00437) / 0.00437


@dataclass(frozen=True)
class Cochlea:
    """The constants of the model.

    Attributes:
        places: number of places, each with one fibre.
        rate: samples per second.
        lowest, highest: centre frequencies of the first and the last place in Hz.
        tau_ms: time constant of a fibre's membrane in ms.
        thresholds: thresholds of the fibres, repeated along the places.
    """

    places: int = 140
    rate: int = 8000
    lowest: float = 100.0
    highest: float = 3600.0
    tau_ms: float = 5.0
    thresholds: tuple[float, ...] = (3.5, 7.0, 10.0, 14.0)

    @property
    def frequencies(self) -> list[float]:
        """Centre frequency of each place in Hz."""
        low, high = _erb_rate(self.lowest), _erb_rate(self.highest)
        return [_frequency(low + (high - low) * k / max(1, self.places - 1)) for k in range(self.places)]

    def _filters(self) -> tuple[Float32, Float32, Float32]:
        """g, 2 r cos(w) and r^2 of every place, `[C]`."""
        rows = []
        for f in self.frequencies:
            w = 2 * math.pi * f / self.rate
            r = math.exp(-2 * math.pi * 1.019 * 24.7 * (0.00437 * f + 1) / self.rate)
            # The reciprocal of the resonator's gain at its own frequency.
            g = (1 - r) * math.hypot(1 - r * math.cos(2 * w), r * math.sin(2 * w))
            rows.append([_rounded(value) for value in (g, 2 * r * math.cos(w), r * r)])
        g, a, b = np.array(rows, dtype=np.float32).T
        return g, a, b

    def length(self, samples: int, steps: int, window_us: int) -> int:
        """Number of steps until the last of `samples` samples within the window, which has `steps` steps."""
        window_samples = min(samples, -(-window_us * self.rate // 1_000_000))
        return max(0, window_samples - 1) * 1_000_000 * steps // (self.rate * window_us) + 1

    def spikes(self, sounds: Sequence[AnyArray], steps: int, window_us: int) -> UInt8:
        """The steps in which each fibre spikes.

        Args:
            sounds: samples of some recordings, `[n]` int16 each. Samples after the window only affect the scale.
            steps: T.
            window_us: total duration of the T steps in microseconds.

        Returns:
            `[len(sounds), T, places]`, 0 and 1. After the end of a recording there are no spikes.
        """
        lengths = [min(len(sound), -(-window_us * self.rate // 1_000_000)) for sound in sounds]
        count, longest = len(sounds), max(lengths, default=0)
        x: Float32 = np.zeros((longest, count, 1), dtype=np.float32)
        for k, (sound, length) in enumerate(zip(sounds, lengths, strict=True)):
            x[:length, k, 0] = self._scaled(sound)[:length]
        g, a, b = self._filters()
        decay = np.float32(_rounded(math.exp(-1000 / (self.rate * self.tau_ms))))
        theta = np.resize(np.array(self.thresholds, dtype=np.float32), self.places)
        step_of = np.arange(longest, dtype=np.int64) * 1_000_000 * steps // (self.rate * window_us)
        alive = np.arange(longest)[:, None] < np.array(lengths, dtype=np.int64)

        shape = (count, self.places)
        previous: Float32 = np.zeros((_ORDER, *shape), dtype=np.float32)
        oldest: Float32 = np.zeros((_ORDER, *shape), dtype=np.float32)
        v: Float32 = np.zeros(shape, dtype=np.float32)
        frames: UInt8 = np.zeros((count, steps, self.places), dtype=np.uint8)
        product: Float32 = np.empty(shape, dtype=np.float32)
        for n in range(longest):
            y: Float32 = x[n]
            for stage in range(_ORDER):
                # Reuse the memory of the oldest state for the newest.
                new = oldest[stage]
                np.multiply(b, new, out=new)
                np.multiply(a, previous[stage], out=product)
                np.subtract(product, new, out=new)
                np.multiply(g, y, out=product)
                np.add(product, new, out=new)
                y = new
            previous, oldest = oldest, previous
            np.maximum(y, 0, out=product)
            np.sqrt(product, out=product)
            np.multiply(v, decay, out=v)
            np.add(v, product, out=v)
            fired = v >= theta
            np.subtract(v, theta, out=v, where=fired)
            np.minimum(v, theta, out=v)
            fired &= alive[n][:, None]
            frames[:, step_of[n]] |= fired
        return frames

    @staticmethod
    def _scaled(sound: AnyArray) -> Float32:
        """A recording as input of the ear, scaled to root mean square 1. Silence stays unchanged."""
        scaled_sound: Int64 = 32 * sound.astype(np.int64)
        samples = scaled_sound.copy()
        samples[1:] -= scaled_sound[:-1] // 32 * 31
        power = int((samples * samples).sum())
        scale = 1 / math.sqrt(power / len(samples)) if power else 0.0
        return samples.astype(np.float32) * np.float32(scale)
