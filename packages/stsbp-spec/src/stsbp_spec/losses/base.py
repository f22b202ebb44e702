"""What a loss is: a distance between output spike trains and target spike trains, and its error as an equation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stsbp_spec.expr import Expr, Names
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Float64, UInt8

__all__ = ["Loss", "LossStep", "joined"]


@dataclass(frozen=True)
class LossStep:
    """The new value of each state of a pass over time, and what the step gives."""

    states: Mapping[str, Expr]
    value: Expr


@dataclass(frozen=True)
class Loss(ABC):
    """A distance of spike trains. The loss of a batch is the mean over its samples.

    Its error `dL/do` takes up to two passes over time: `ahead`, from the first step to the last, gives `r`; `back`,
    from the last to the first, gives the error. Most losses need `back` alone.

    Attributes:
        name: in settings and messages.
        parameters: names of the constants of both passes.
        states, back_states: names of the states of each pass, zero before its first step.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    states: ClassVar[tuple[str, ...]] = ()
    back_states: ClassVar[tuple[str, ...]] = ()

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

    def parts(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64 | None:
        """What each step and neuron adds to the distance, `[T, ...B, N]`, of which `joined` makes it.

        None: the distance is no such sum, or as cheap without. Whoever compares outputs with several targets has then
        to run a filter over them once.
        """
        return None

    def mean(self, spikes: UInt8, targets: UInt8, psp: PSP) -> float:
        """Loss of a batch: the mean of its distances, whose sum is rounded once, so that their order cannot matter."""
        distances = self.distance(spikes, targets, psp)
        return math.fsum(distances.flat) / distances.size

    @abstractmethod
    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        """The numbers of the two passes by name, rounded once to float32, for a batch of `batch` samples."""

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep | None:
        """One step forward, from `x.o` and `x.target`; `p` the constants, `s` the states. None: no such pass."""
        return None

    @abstractmethod
    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        """One step back, which gives `dL/do`: from `x.o`, `x.target`, `x.r`, and `x.count` and `x.target_count`, the
        numbers of spikes of a neuron over all steps."""


def joined(parts: Float64) -> Float64:
    """Distances `[...B]` from `Loss.parts`: over the neurons of a step first, then step by step."""
    # Laid out in rows, because in which order numpy adds a row depends on where its elements lie.
    steps = np.ascontiguousarray(parts).sum(axis=-1)
    total: Float64 = np.zeros(steps.shape[1:])
    for step in steps:
        total += step
    return total
