"""What a loss is: a distance between output spike trains and target spike trains."""

from __future__ import annotations

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

        Every backend reports losses through this function, from spikes that are the same bits everywhere.

        Args:
            spikes: output spike trains, `[T, ...B, N]`.
            targets: target spike trains, broadcastable to it.
            psp: the output layer's synaptic filter.

        Returns:
            Distances, `[...B]`.
        """
