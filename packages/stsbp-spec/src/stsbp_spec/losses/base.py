"""What a loss is: a distance between output spike trains and target spike trains."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Float64, UInt8

__all__ = ["Loss"]


@dataclass(frozen=True)
class Loss(ABC):
    """A distance of spike trains. The loss of a batch is the mean over its samples."""

    name: ClassVar[str]

    @abstractmethod
    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        """Distance of each sample, float64.

        Every backend reports losses through this function, from spikes that are the same bits everywhere. A sample's
        distance does not depend on the others of its batch, nor on the layout of the arrays.

        Args:
            spikes: output spike trains, `[T, ...B, N]`.
            targets: target spike trains, broadcastable to it.
            psp: the output layer's synaptic filter.

        Returns:
            Distances, `[...B]`.
        """

    def mean(self, spikes: UInt8, targets: UInt8, psp: PSP) -> float:
        """Loss of a batch: the mean of its distances, whose sum is rounded once, so that their order cannot matter."""
        distances = self.distance(spikes, targets, psp)
        return math.fsum(distances.flat) / distances.size
