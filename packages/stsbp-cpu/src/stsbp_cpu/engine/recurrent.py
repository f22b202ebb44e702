"""A fusion: one kernel computes all steps of a population that reads its own spikes, forward or backward.

The fusion supports full and one-to-one connections. A convolutional recurrence uses the steps of the spec instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stsbp_spec.engine.plan import Recurrent, Weights
from stsbp_spec.engine.results import NeuronResiduals
from stsbp_spec.engine.rules import PassContext, Step
from stsbp_spec.networks.ops import Linear, OneToOne
from stsbp_spec.typing import Array, Precision

from stsbp_cpu.engine.fused import backward_all, forward_all
from stsbp_cpu.engine.layout import Layout
from stsbp_cpu.models.populations import RecurrentWeights

__all__ = ["FusedRecurrent", "fusion"]


def fusion(
    layout: Layout[Array], save_linear: Callable[[Linear, Array, Array], Any]
) -> Callable[[tuple[Step[Array], ...]], Step[Array] | None]:
    """The fusion for a library's backend (`Operations.fusions`).

    Args:
        layout: layout of the library's arrays.
        save_linear: function from spikes and weights to the residuals of the library's rule for full connections.
    """
    return partial(_fuse, layout, save_linear)


def _fuse(
    layout: Layout[Array], save_linear: Callable[[Linear, Array, Array], Any], chain: tuple[Step[Array], ...]
) -> Step[Array] | None:
    """Fuse a population with a single recurrence if there is a kernel for this recurrence."""
    step = chain[-1]
    if type(step) is not Recurrent or len(step.loops) != 1:
        return None
    if type(step.loops[0].projection.synapse) not in (Linear, OneToOne):
        return None
    return FusedRecurrent(
        step.bound_nodes, step.needed, step.backend, step.op, step.loops, layout=layout, of_linear=save_linear
    )


@dataclass(frozen=True, eq=False)
class FusedRecurrent(Recurrent[Array]):
    """`plan.Recurrent`, computed by the kernel. `layout` and `of_linear` are the arguments of `fusion`."""

    layout: Layout[Array] = field(kw_only=True)
    of_linear: Callable[[Linear, Array, Array], Any] = field(kw_only=True)

    def fire(self, run: PassContext[Array], inputs: Sequence[Array]) -> tuple[Array, NeuronResiduals[Array]]:
        equations, loop = self.equations[run.training], self._loop(run)
        neuron_parameters = self.backend.broadcast_all(equations, self.learned(run), inputs[0].shape[1:])
        zs: list[Array | None] = [*inputs]
        zs.insert(loop.input_index, None)
        spikes, saved = forward_all(self.layout, equations, zs, run.steps, neuron_parameters, loop)
        return spikes, NeuronResiduals(saved, spikes, static=False, learned=neuron_parameters)

    def propagate(
        self,
        run: PassContext[Array],
        residuals: NeuronResiduals[Array],
        error: Array,
        static: tuple[str, ...],
        precision: Precision,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        bits = self.loops[0].projection.sample_error_bits if precision == "reproducible" else 0
        equations = self.backward_equations(run, residuals)
        return backward_all(self.layout, equations, residuals, error, static, self._loop(run), bits)

    def saved_for_backward(self, loop: Weights[Array], spikes: Array, w: Array) -> Any:
        synapse = loop.projection.synapse
        return (
            self.of_linear(synapse, spikes, w)
            if type(synapse) is Linear
            else super().saved_for_backward(loop, spikes, w)
        )

    def _loop(self, run: PassContext[Array]) -> RecurrentWeights:
        (loop,), (_, (input_index,)) = self.loops, self._input_indices
        w = self.layout.view(run.weights[loop.name])
        return RecurrentWeights(input_index, w if type(loop.projection.synapse) is Linear else w.T)
