"""Cross entropy of the potentials of a readout (neurons/readout.py): a loss of classes, not of spike trains.

For each sample, `v_n` is the mean or the maximum of `u_t` over its steps. The class `l` is the neuron with the most
target spikes (if there are several, the lowest):

    L = log(sum_n exp(v_n)) - v_l

    mean:     dL/du_t = (p_n - [n = l]) / T            p = exp(v) / sum exp(v)
    maximum:  dL/du_t = p_n - [n = l] at the first step where u_t is largest, else 0

Both errors are divided by the size of the batch. `exp` differs between libraries, so the error is only available in
`fast` precision. The reported loss is computed in float64 from potentials, which are the same bits everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stsbp_spec.contract.arrays import NUMPY, ArrayArithmetic
from stsbp_spec.equations.expressions import Names
from stsbp_spec.errors import SpecError
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses.base import Loss, LossStep
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import AnyArray, Float64, Int64, UInt8
from stsbp_spec.validation import array_of

__all__ = ["CrossEntropy", "CrossEntropyOfMaximum"]


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross entropy of the mean potentials."""

    name: ClassVar[str] = "cross-entropy"
    parameters: ClassVar[tuple[str, ...]] = ()
    of_potentials: ClassVar[bool] = True
    reads_classes: ClassVar[bool] = True

    # `xp` is a namespace of arrays.py. `within`, `[T, B, 1]`, is true at steps that are not padding.
    def evidence(self, u: Any, is_inside: Any, xp: Any) -> Any:
        """`v`, `[B, N]`, of potentials `[T, B, N]`."""
        # Use a running sum, because the order of a plain sum may depend on the shape.
        return xp.cumulative_sum(_masked(u, is_inside, xp), axis=0)[-1] / _steps(u, is_inside, xp)

    def spread(self, error: Any, u: Any, is_inside: Any, xp: Any) -> Any:
        """`dL/du` `[T, B, N]` from `dL/dv` `[B, N]`."""
        return _masked(error / _steps(u, is_inside, xp), is_inside, xp)

    def error(self, u: Any, targets: Any, batch: int, inside: Any | None, arithmetic: ArrayArithmetic[Any]) -> Any:
        """`dL/du` `[T, B, N]` of samples that belong to a batch of `batch` samples.

        Args:
            u: potentials, `[T, B, N]`.
            targets: target spikes, `[T, B, N]`.
            batch: number of samples of the batch.
            inside: uint8 `[T, B]`, 0 at padded steps. None: no step is padded.
            arithmetic: that of the arrays.
        """
        xp = arithmetic.xp
        is_inside = xp.zeros(u.shape[:2], dtype=xp.uint8) == 0 if inside is None else inside > 0
        is_inside = is_inside[..., None]
        v = self.evidence(u, is_inside, xp)
        p = xp.exp(v - xp.max(v, axis=-1, keepdims=True))
        p = p / xp.sum(p, axis=-1, keepdims=True)
        is_label = _classes(targets, is_inside, xp)[:, None] == xp.arange(p.shape[-1])
        return self.spread((p - xp.astype(is_label, p.dtype)) / batch, u, is_inside, xp)

    def of_classes(self, potentials: AnyArray, lengths: Int64 | None = None) -> Float64:
        """The loss that each sample would have for each class, `[B, N]`, from potentials `[T, B, N]`."""
        v: Float64 = self.evidence(potentials.astype(np.float64), inside_of(potentials, lengths), NUMPY.xp)
        largest = v.max(axis=-1, keepdims=True)
        losses: Float64 = largest + np.log(np.exp(v - largest).sum(axis=-1, keepdims=True)) - v
        return losses

    def distance(self, spikes: AnyArray, targets: UInt8, psp: PSP) -> Float64:
        return self.distances(spikes, targets, psp)

    def distances(self, spikes: Any, targets: Any, psp: PSP, lengths: Any = None) -> Float64:
        """Loss of each sample, `[B]`. `spikes` are potentials here."""
        spikes, targets = array_of(spikes), array_of(targets)
        lengths = None if lengths is None else array_of(lengths)
        labels: Int64 = _classes(targets, inside_of(targets, lengths), NUMPY.xp)
        losses: Float64 = np.take_along_axis(self.of_classes(spikes, lengths), labels[:, None], axis=-1)[:, 0]
        return losses

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {}

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        raise SpecError(f"the loss {self.name} couples all neurons of a sample: it is not an equation of one neuron")


@dataclass(frozen=True)
class CrossEntropyOfMaximum(CrossEntropy):
    """Cross entropy of the largest potentials."""

    name: ClassVar[str] = "cross-entropy-max"

    def evidence(self, u: Any, is_inside: Any, xp: Any) -> Any:
        return xp.max(_masked(u, is_inside, xp, -math.inf), axis=0)

    def spread(self, error: Any, u: Any, is_inside: Any, xp: Any) -> Any:
        first = xp.argmax(_masked(u, is_inside, xp, -math.inf), axis=0)
        return _masked(error, first == xp.arange(u.shape[0])[:, None, None], xp)


def inside_of(trains: AnyArray, lengths: Int64 | None) -> AnyArray:
    """Which steps of trains `[T, B, N]` are not padding, bool `[T, B, 1]`."""
    steps, samples, _ = trains.shape
    return inside(np.full(samples, steps) if lengths is None else lengths, steps)[..., None]


def _classes(targets: Any, is_inside: Any, xp: Any) -> Any:
    """The neuron with the most target spikes of each sample, `[B]`."""
    return xp.argmax(xp.sum(_masked(targets, is_inside, xp), axis=0), axis=-1)


def _masked(x: Any, is_inside: Any, xp: Any, fill: float = 0) -> Any:
    return xp.where(is_inside, x, fill)


def _steps(u: Any, is_inside: Any, xp: Any) -> Any:
    """Number of steps of each sample that are not padding, `[B, 1]`, in the type of `u`."""
    return xp.sum(xp.astype(is_inside, u.dtype), axis=0)
