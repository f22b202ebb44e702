"""Measures of real-valued outputs: mean squared error, R2 and sMAPE, and what two simple predictions would give.

    mse    mean of (u - y)^2                            u: output, y: target
    R2     1 - sum (u - y)^2 / sum (y - mean(y))^2      over all samples and steps of an output
    sMAPE  200 * mean(|u - y| / (|u| + |y|)), in percent; 0 where both are 0

The two simple predictions are the mean of the targets of each output, and the target of the step before (`last value`,
which says nothing about the first step of a sample). Sums are exact, so that the order of the samples and the size of
the batches do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.engine.checks import swapped_axes
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.lengths import inside
from stsbp_spec.typing import AnyArray, Float64, Int64
from stsbp_spec.validation import array_of

from stsbp.measures.trains import lengths_of

__all__ = ["RegressionErrors", "RegressionTotals", "mean_of_targets", "regression_errors"]


class RegressionErrors(NamedTuple):
    """Errors of real-valued outputs: of all outputs together, and by output neuron.

    Attributes:
        mse: mean squared error.
        r2: coefficient of determination of all outputs together, weighted by the variance of their targets. NaN if the
            targets do not vary.
        smape: symmetric mean absolute percentage error, from 0 to 200.
        mse_by_neuron, r2_by_neuron, smape_by_neuron: the same for each output, `[N]`.
    """

    mse: float
    r2: float
    smape: float
    mse_by_neuron: Float64
    r2_by_neuron: Float64
    smape_by_neuron: Float64


class _Errors:
    """The sums of one kind of prediction, by sample and neuron, `[B, N]` for each batch."""

    def __init__(self) -> None:
        self.steps = list[Float64]()
        self.squares = list[Float64]()
        self.shares = list[Float64]()

    def add(self, predictions: Float64, targets: Float64, is_inside: AnyArray) -> None:
        """Predictions and targets `[T, B, N]`, and which steps count, `[T, B, 1]`."""
        error = np.abs(predictions - targets)
        size = np.abs(predictions) + np.abs(targets)
        shares = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
        self.steps.append(np.broadcast_to(is_inside.sum(axis=0, dtype=np.float64), error.shape[1:]))
        self.squares.append(_over_steps(np.where(is_inside, error * error, 0.0)))
        self.shares.append(_over_steps(np.where(is_inside, shares, 0.0)))

    def by_neuron(self) -> tuple[Float64, Float64, Float64]:
        """Numbers of values, squared errors and relative errors of each neuron, `[N]`, over all samples."""
        return _totals(self.steps), _totals(self.squares), _totals(self.shares)


class RegressionTotals:
    """Errors of real-valued outputs, added batch by batch.

    Args:
        mean: mean of the targets of each output, `[N]` (`mean_of_targets`).
    """

    def __init__(self, mean: Float64) -> None:
        self._mean = mean
        self._outputs, self._means, self._last = _Errors(), _Errors(), _Errors()

    def add(self, outputs: Any, targets: Any, lengths: Any = None) -> None:
        """Add a batch.

        Args:
            outputs, targets: real numbers, `[T, B, N]`.
            lengths: number of steps of each sample, `[B]`; later steps are ignored. None: all steps count.

        Raises:
            ShapeError: the arrays have other axes, or the lengths do not fit.
        """
        u, y, is_inside = _checked(outputs, targets, lengths)
        self._outputs.add(u, y, is_inside)
        self._means.add(np.broadcast_to(self._mean, y.shape), y, is_inside)
        if len(y) > 1:
            self._last.add(y[:-1], y[1:], is_inside[1:])

    @property
    def errors(self) -> RegressionErrors:
        """The errors of all batches so far."""
        return self._errors(self._outputs)

    def record(self) -> dict[str, Any]:
        """All errors, and those of the two simple predictions, as JSON values."""
        errors = self.errors
        by_neuron = {"mse": errors.mse_by_neuron, "r2": errors.r2_by_neuron, "smape": errors.smape_by_neuron}
        baselines = {"mean": self._means, **({"last_value": self._last} if self._last.steps else {})}
        return {
            **_record(errors),
            "by_neuron": {name: [_number(x) for x in values.tolist()] for name, values in by_neuron.items()},
            "baselines": {name: _record(self._errors(sums)) for name, sums in baselines.items()},
        }

    def _errors(self, of: _Errors) -> RegressionErrors:
        steps, squares, shares = of.by_neuron()
        deviations = self._means.by_neuron()[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            # Other steps than those of the outputs have another sum of squared deviations.
            scale = steps / self._outputs.by_neuron()[0]
            r2 = np.where(deviations > 0, 1 - squares / (deviations * scale), np.nan)
            all_deviations = math.fsum(deviations * scale)
            return RegressionErrors(
                math.fsum(squares) / max(1.0, math.fsum(steps)),
                1 - math.fsum(squares) / all_deviations if all_deviations > 0 else math.nan,
                200 * math.fsum(shares) / max(1.0, math.fsum(steps)),
                squares / steps,
                r2,
                200 * shares / steps,
            )


def regression_errors(outputs: Any, targets: Any, lengths: Any = None) -> RegressionErrors:
    """Errors of real-valued outputs.

    Args:
        outputs, targets: real numbers, `[T, B, N]`: numpy arrays, or tensors of torch or JAX.
        lengths: number of steps of each sample, `[B]`; later steps are ignored. None: all steps count.

    Raises:
        ShapeError: the arrays have other axes, or the lengths do not fit.
    """
    u, y, _ = _checked(outputs, targets, lengths)
    totals = RegressionTotals(mean_of_targets([(y, None if lengths is None else array_of(lengths))]))
    totals.add(u, y, lengths)
    return totals.errors


def mean_of_targets(batches: Iterable[tuple[AnyArray, Int64 | None]]) -> Float64:
    """Mean of the targets `[T, B, N]` of each output over all samples, `[N]`. Each batch has its lengths, or None."""
    sums, steps = list[Float64](), list[Float64]()
    for targets, lengths in batches:
        is_inside = _inside(targets, lengths)
        sums.append(_over_steps(np.where(is_inside, targets.astype(np.float64), 0.0)))
        steps.append(np.broadcast_to(is_inside.sum(axis=0, dtype=np.float64), targets.shape[1:]))
    return _totals(sums) / _totals(steps)


def _checked(outputs: Any, targets: Any, lengths: Any) -> tuple[Float64, Float64, AnyArray]:
    """Outputs and targets in float64, and which steps count, `[T, B, 1]`."""
    u, y = (array_of(x).astype(np.float64) for x in (outputs, targets))
    if u.ndim != 3 or 0 in u.shape or u.shape != y.shape:
        raise ShapeError(
            f"outputs and targets must be real numbers [T, B, N] of the same shape, got {list(u.shape)} and "
            f"{list(y.shape)}{swapped_axes(u.shape, y.shape)}"
        )
    return u, y, _inside(y, lengths_of(lengths, y.shape[1], len(y)))


def _inside(x: AnyArray, lengths: Int64 | None) -> AnyArray:
    if lengths is None:
        return np.ones((*x.shape[:2], 1), dtype=bool)
    return inside(lengths, len(x))[..., None]


def _over_steps(x: Float64) -> Float64:
    """The sum over the steps, in their order, so that it does not depend on the other samples."""
    total: Float64 = np.zeros(x.shape[1:])
    for step in x:
        total += step
    return total


def _totals(sums: Iterable[Float64]) -> Float64:
    """Exact sums over the samples of all batches, `[N]`, from `[B, N]`."""
    samples = np.concatenate([*sums])
    exact: Callable[[Float64], float] = math.fsum
    return np.array([exact(column) for column in samples.T])


def _record(errors: RegressionErrors) -> dict[str, float | None]:
    return {"mse": _number(errors.mse), "r2": _number(errors.r2), "smape": _number(errors.smape)}


def _number(x: float) -> float | None:
    """A number as JSON, which has no NaN."""
    return x if math.isfinite(x) else None
