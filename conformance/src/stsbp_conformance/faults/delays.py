"""Faults in learned delays: the rounding, the shift, its adjoint, the gradient and its grid, updates and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from stsbp_spec.contract.grid import CEILING
from stsbp_spec.distributed.collective import Alone
from stsbp_spec.engine.plan import Delays
from stsbp_spec.engine.rules import BackwardResult, Step
from stsbp_spec.models.optim import Optimizer
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32

from stsbp_conformance.faults.changes import Change, Fault, method
from stsbp_conformance.reference import NUMPY

__all__ = ["FAULTS"]

_ONE = np.float32(1)


def _by_channel(move: Callable[[AnyArray, int], AnyArray]) -> Change:
    """Replaces `delay_forward`: `move` is a function of a channel `[T, B, ...]` and its whole delay."""

    def forward(correct: Change, x: AnyArray, delays: Float32) -> AnyArray:
        whole = np.rint(delays).astype(int)
        late: AnyArray = np.stack([move(x[:, :, c], int(steps)) for c, steps in enumerate(whole)], axis=2)
        return late

    return forward


def _first_value_in_the_gap(x: AnyArray, steps: int) -> AnyArray:
    filled: AnyArray = x[(np.arange(len(x)) - steps).clip(0)]
    return filled


def _between(move: Change, x: AnyArray, delays: Float32) -> AnyArray:
    """Linear interpolation between the results of `move` for the whole delays on either side of `delays`."""
    floors = np.floor(delays)
    share = (delays - floors).reshape(-1, *(1,) * (x.ndim - 3))
    before, after = (move(x, whole).astype(np.float32) for whole in (floors + 1, floors))
    interpolated: AnyArray = after + share * (before - after)
    return interpolated


def _without_the_last_sample(correct: Change, x: AnyArray, delays: Float32, error: Float32) -> Any:
    return correct(x[:, :-1], delays, error[:, :-1])


def _sum_in_float32(correct: Change, x: AnyArray, delays: Float32, error: Float32) -> AnyArray:
    terms = np.moveaxis(NUMPY.arithmetic.delay_terms(x, delays, error), 2, 0).reshape(len(delays), -1)
    totals: AnyArray = terms.cumsum(axis=1, dtype=np.float32)[:, -1].astype(np.float64)
    return totals


# The step of the plan. A backend has no method for its grid, so these faults take the place of the whole step.
@dataclass(frozen=True, eq=False)
class _NoGrid(Delays[AnyArray]):
    def backward(self, runs: Any, saved: Any, grads: Any, precision: Any) -> Iterator[BackwardResult[AnyArray]]:
        return super().backward(runs, saved, grads, "fast")


@dataclass(frozen=True, eq=False)
class _GridOfThePart(Delays[AnyArray]):
    def backward(self, runs: Any, saved: Any, grads: Any, precision: Any) -> Iterator[BackwardResult[AnyArray]]:
        for run in runs:
            yield from _alone(super().backward, run, next(saved), next(grads), precision)

    def exchanges(self, precision: Any) -> bool:
        return False


def _alone(backward: Change, run: Any, saved: Any, grad: Any, precision: Any) -> Iterator[BackwardResult[AnyArray]]:
    """The backward pass of one part, as if no process had another one."""
    alone: Iterator[BackwardResult[AnyArray]] = backward(
        [replace(run, collective=Alone())], iter([saved]), iter([grad]), precision
    )
    return alone


@dataclass(frozen=True, eq=False)
class _CoarserGrid(Delays[AnyArray]):
    def _backward(self, run: Any, saved: Any, grad: Any, grid: Any) -> BackwardResult[AnyArray]:
        return super()._backward(run, saved, grad, grid and (grid[0] - 1, grid[1]))


@dataclass(frozen=True, eq=False)
class _RoundedError(Delays[AnyArray]):
    def _backward(self, run: Any, saved: Any, grad: Any, grid: Any) -> BackwardResult[AnyArray]:
        errors = grad if grid is None else self.backend.error_grid(grad, 24, grid[1])[0]
        result = super()._backward(run, saved, grad, grid)
        grad_input = self.backend.delay_backward(errors, run.weights[self.parameter]) if self.needed[0] else None
        return result._replace(grad_inputs=(grad_input,))


def _step(kind: type[Delays[AnyArray]]) -> type[NumpyBackend]:
    """Another step of the plan for learned delays."""

    def fusion(chain: Sequence[Step[AnyArray]]) -> Step[AnyArray] | None:
        last = chain[-1]
        return kind(last.bound_nodes, last.needed, last.backend, last.op) if isinstance(last, Delays) else None

    return method(fusions=lambda correct: (fusion, *correct))


# Updates.
def _updated(change: Callable[[tuple[float, float]], tuple[float, float]], shorter: np.float32 = _ONE) -> Change:
    """Replaces `updated`: learned delays that may be longer than a step have another domain, or are shorter before the
    update."""

    def updated(correct: Change, scalars: Any, domain: Any, w: Float32, *arrays: Float32) -> Any:
        if domain is None or domain[0] != 0 or domain[1] <= 1:
            return correct(scalars, domain, w, *arrays)
        return correct(scalars, change(domain), shorter * w, *arrays)

    return updated


def _optimizer(**changed: Callable[[Optimizer], float]) -> Change:
    """Replaces `trainer`: the optimiser of learned delays has other settings, functions of the one of the weights."""

    def trainer(correct: Change, network: NetworkSpec, loss: Any, optimizer: Optimizer, **options: Any) -> Any:
        class Other(type(optimizer)):  # type: ignore[misc]
            def for_delays(self) -> Self:
                settings = {name: setting(self) for name, setting in changed.items()}
                return replace(super().for_delays(), **settings)  # type: ignore[no-any-return]

        return correct(network, loss, Other(**vars(optimizer)), **options)

    return trainer


def _forgetful_stream(correct: Change, network: NetworkSpec, *arguments: Any) -> Any:
    stream, late = correct(network, *arguments), {name.rpartition(".")[0] for name in network.graph.delays}
    go_on = stream._go_on
    stream._go_on = lambda x, states: go_on(x, {name: s for name, s in states.items() if name not in late})
    return stream


# fmt: off
FAULTS = (
    Fault("DelaysRoundedDown", "Learned delays are rounded down instead of to the nearest step.",
          method(delay_forward=lambda correct, x, delays: correct(x, np.floor(delays)))),
    Fault("DelayTiesUp", "A learned delay between two steps is rounded up instead of to the even step.",
          method(delay_forward=lambda correct, x, delays: correct(x, np.floor(delays + np.float32(0.5))))),
    Fault("DelayTiesUpInTheAdjoint", "The adjoint of a learned delay rounds a delay between two steps up.",
          method(delay_backward=lambda correct, error, delays: correct(error, np.floor(delays + np.float32(0.5))))),
    Fault("DelaysInterpolated", "Learned delays interpolate between the steps on either side.",
          method(delay_forward=lambda correct, x, delays: _between(correct, x, delays))),
    Fault("DelaysOfTheNextChannel", "Each channel has the learned delay of the channel before it.",
          method(delay_forward=lambda correct, x, delays: correct(x, np.roll(delays, 1)))),
    Fault("DelayGapFilled", "Before its first spike arrives, a late channel has its first value instead of zero.",
          method(delay_forward=_by_channel(_first_value_in_the_gap))),
    Fault("LateSpikesWrapAround", "Spikes that learned delays move beyond the last step arrive at the first steps.",
          method(delay_forward=_by_channel(lambda x, steps: np.roll(x, steps, axis=0)))),
    Fault("LateErrorMovedLater", "The adjoint of a learned delay moves the error to later steps.",
          method(delay_backward=lambda correct, error, delays: correct(error, -delays))),
    Fault("LateErrorNotMoved", "The error of a learned delay stays at the step in which its values arrive.",
          method(delay_backward=lambda correct, error, delays: error)),
    Fault("LateErrorInterpolated", "The error of a learned delay is divided between the steps on either side.",
          method(delay_backward=lambda correct, error, delays: _between(correct, error, delays))),
    Fault("DelaySlopeReversed", "The gradients of learned delays have the wrong sign.",
          method(delay_gradient=lambda correct, *arguments: -correct(*arguments))),
    Fault("DelaySlopeStepLate", "The slope of a learned delay is that between the steps t - f and t - f + 1.",
          method(delay_gradient=lambda correct, x, delays, error: correct(x, np.floor(delays) - 1, error))),
    Fault("DelaySlopeAtTheNearest", "The slope of a learned delay begins at its nearest step instead of the one below.",
          method(delay_gradient=lambda correct, x, delays, error: correct(x, np.rint(delays), error))),
    Fault("DelayGradientsExchanged", "Learned delays get the gradients of each other.",
          method(delay_gradient=lambda correct, *arguments: correct(*arguments)[::-1].copy())),
    Fault("DelayOfOneSampleLess", "The gradients of learned delays leave out the last sample.",
          method(delay_gradient=_without_the_last_sample)),
    Fault("DelaySumInFloat32", "The gradients of learned delays are added in float32.",
          method(delay_gradient=_sum_in_float32)),
    Fault("DelaysWithoutErrorGrid", "The error of learned delays is not rounded to a grid before it is added.",
          _step(_NoGrid)),
    Fault("DelayGridBit", "The error grid of learned delays is coarser by one bit.", _step(_CoarserGrid)),
    Fault("DelayGridOfThePart", "Each part of a batch uses its own error grid for learned delays.",
          _step(_GridOfThePart)),
    Fault("LateErrorRounded", "The error that a learned delay passes on is rounded to a grid.", _step(_RoundedError)),
    Fault("DelaysLeaveTheirDomain", "An update makes learned delays longer than their maximum, or negative.",
          method(updated=_updated(lambda domain: (-CEILING, CEILING)))),
    Fault("DelaysBelowTheMaximum", "Learned delays are clipped one step below their maximum.",
          method(updated=_updated(lambda domain: (domain[0], domain[1] - 1)))),
    Fault("DelaysDecay", "Every update makes learned delays shorter by a thousandth, as weight decay would.",
          method(updated=_updated(lambda domain: domain, shorter=np.float32(0.999)))),
    Fault("DelaysLearnAsWeights", "Learned delays have the learning rate of the weights.",
          method(trainer=_optimizer(lr=lambda optimizer: optimizer.lr))),
    Fault("LateSpikesLost", "A network that runs step by step loses the spikes that learned delays still hold.",
          method(stream=_forgetful_stream)),
)
