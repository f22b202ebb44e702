"""Times of several pieces of work that run alternately, A B A B, so that disturbances affect all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Timing", "interleaved"]


@dataclass(frozen=True)
class Timing:
    """Times of one piece of work in seconds, in the order of measurement."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """First quartile."""
        return self._quartile(0)

    @property
    def high(self) -> float:
        """Third quartile."""
        return self._quartile(2)

    def _quartile(self, number: int) -> float:
        if len(self.seconds) < 2:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=4, method="inclusive")[number]

    def to_json(self) -> dict[str, Any]:
        """Median, quartiles, minimum and number of runs."""
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "least": min(self.seconds),
            "runs": len(self.seconds),
        }


def interleaved(work: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Time each piece of work once per round, for `rounds` rounds, after `warmup` untimed rounds.

    A piece of work must not return before it is done, also on its device.

    Raises:
        ValueError: there is no round.
    """
    if rounds < 1:
        raise ValueError(f"at least one round is needed, got {rounds}")
    durations: dict[str, list[float]] = {name: [] for name in work}
    for number in range(warmup + rounds):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            seconds = time.perf_counter() - began
            if number >= warmup:
                durations[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in durations.items()}
