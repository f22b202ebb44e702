"""Times of several pieces of work that run alternately, A B B A, so that disturbances affect all of them."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = ["Timing", "alternated", "interleaved"]


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

    @classmethod
    def ratios(cls, numerators: Timing, denominators: Timing) -> Timing:
        """Ratios of the times that two pieces of work took in the same rounds.

        Raises:
            ValueError: the numbers of rounds differ.
        """
        return cls(tuple(a / b for a, b in zip(numerators.seconds, denominators.seconds, strict=True)))


def alternated(work: Mapping[str, Callable[[], float]], *, rounds: int, warmup: int = 0) -> dict[str, Timing]:
    """Let each piece of work run once per round, for `rounds` rounds after `warmup` that do not count.

    Each round begins with another piece of work, because a place in the round can be an advantage.

    Args:
        work: functions that return the seconds that their work took, by name.
        rounds: number of rounds that count.
        warmup: number of rounds before them.

    Raises:
        ValueError: there is no round.
    """
    if rounds < 1:
        raise ValueError(f"at least one round is needed, got {rounds}")
    durations: dict[str, list[float]] = {name: [] for name in work}
    names = deque(work)
    for number in range(warmup + rounds):
        for name in names:
            seconds = work[name]()
            if number >= warmup:
                durations[name].append(seconds)
        names.rotate(-1)
    return {name: Timing(tuple(seconds)) for name, seconds in durations.items()}


def interleaved(
    work: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time each piece of work once per round, as `alternated` does, by `clock`.

    A piece of work must not return before it is done, also on its device.

    Raises:
        ValueError: there is no round.
    """

    def timed(run: Callable[[], object]) -> float:
        began = clock()
        run()
        return clock() - began

    return alternated({name: partial(timed, run) for name, run in work.items()}, rounds=rounds, warmup=warmup)
