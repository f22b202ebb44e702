"""The fusion of the CPU for recurrence: all steps of a population that reads its own spikes in one kernel, both ways.

For full and one-to-one connections; a convolutional recurrence goes by the spec's own steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stsbp_cpu.populations import Loop
from stsbp_spec.plan import Recurrent, Weights
from stsbp_spec.results import NeuronResiduals
from stsbp_spec.rules import Run, Step
from stsbp_spec.synapses import Linear, OneToOne
from stsbp_spec.typing import Precision

from stsbp_torch.layout import laid_out
from stsbp_torch.neurons.fused_cpu import backward_all, forward_all
from stsbp_torch.synapses import linear

__all__ = ["fuse"]


def fuse(chain: tuple[Step[torch.Tensor], ...]) -> Step[torch.Tensor] | None:
    """A population with one recurrence whose kernel there is."""
    step = chain[-1]
    if type(step) is not Recurrent or len(step.loops) != 1:
        return None
    if type(step.loops[0].projection.synapse) not in (Linear, OneToOne):
        return None
    return FusedRecurrent(step.places, step.needed, step.backend, step.op, step.loops)


@dataclass(frozen=True, eq=False)
class FusedRecurrent(Recurrent[torch.Tensor]):
    """`plan.Recurrent` by the kernel."""

    def fire(
        self, run: Run[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, NeuronResiduals[torch.Tensor]]:
        equations, loop = self.equations[run.training], self._loop(run)
        each = self.backend.spread_all(equations, self.learned(run), inputs[0].shape[1:])
        zs: list[torch.Tensor | None] = [*inputs]
        zs.insert(loop.at, None)
        spikes, kept = forward_all(equations, zs, run.steps, each, loop)
        return spikes, NeuronResiduals(kept, spikes, static=False, learned=each)

    def propagate(
        self,
        run: Run[torch.Tensor],
        residuals: NeuronResiduals[torch.Tensor],
        error: torch.Tensor,
        static: tuple[str, ...],
        precision: Precision,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        bits = self.loops[0].projection.sample_error_bits if precision == "reproducible" else 0
        return backward_all(self.way_back(run, residuals), residuals, error, static, self._loop(run), bits)

    def left(self, loop: Weights[torch.Tensor], spikes: torch.Tensor, w: torch.Tensor) -> Any:
        synapse = loop.projection.synapse
        if type(synapse) is Linear:
            return linear.left(synapse, spikes, w, fused=True)
        return super().left(loop, spikes, w)

    def _loop(self, run: Run[torch.Tensor]) -> Loop:
        (loop,), (_, (at,)) = self.loops, self._at
        w = run.weights[loop.name].detach()
        return Loop(at, laid_out(w if type(loop.projection.synapse) is Linear else w.T).numpy())
