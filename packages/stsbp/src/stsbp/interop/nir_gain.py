"""The gain of a synapse in NIR: what a spike adds to a current, for a weight of 1.

NIR's neurons have no gain of their own. The export multiplies the weights by it, or adds a node (`nir_graph.py`). The
import finds out from a file's decays and factors which gain a synapse has: `normalised` or `unit`.
"""

from __future__ import annotations

import numpy as np
from stsbp_spec.networks.graph import BoundNode
from stsbp_spec.networks.ops.psp import PSP, Biased, Filter, SynapticFilter

from stsbp.errors import ConfigError

__all__ = ["exported_gain", "imported_synapse"]


def exported_gain(bound_node: BoundNode, filter: SynapticFilter) -> np.float32:
    """The gain of the filter after the weights of a node.

    Raises:
        ConfigError: NIR cannot express the filter, because it rises slowly.
    """
    if isinstance(filter, Biased):
        filter = filter.filter
    if not isinstance(filter, Filter):
        rise = "" if bound_node.output.pending is None else f", tau_rise={bound_node.output.pending.tau_rise:g}"
        raise ConfigError(
            f"{bound_node.node.name} cannot be written: the synapse of NIR's neurons must rise at once{rise}"
        )
    return filter.gain


def imported_synapse(tau_s: float, gains: set[tuple[float, int]], *, scaled: bool) -> PSP:
    """The synapse of a file: its time constant, and whether its gain is `normalised` or `unit`.

    Args:
        tau_s: the time constant that follows from the file's decay, steps.
        gains: what a spike adds in the file, float32, with the number by which pooling divides it.
        scaled: whether a spike adds something else than `1/tau_s`. Weights can then take the factor, so the gain is
            `unit` unless the file's numbers are those of a normalised synapse.
    """
    # The exact gains decide: at a large tau_s, a decay in float32 determines tau_s only roughly.
    normalised_tau_s = _normalised_tau_s(tau_s, gains)
    if normalised_tau_s is None and scaled:
        return PSP(tau_s, gain="unit")
    return PSP(normalised_tau_s or tau_s)


def _normalised_tau_s(tau_s: float, gains: set[tuple[float, int]]) -> float | None:
    """The time constant of a normalised synapse that has the decay and the gains of the file in float32; None: none.

    A file contains the decay and the gains, `1/tau_s` over a divisor, separately, each rounded. `1/tau_s` may therefore
    be any number that rounds to all of them.
    """
    decay = np.float32(1 - 1 / tau_s)

    def fits(tau: float) -> bool:
        return np.float32(1 - 1 / tau) == decay and all(np.float32(1 / d / tau) == gain for gain, d in gains)

    if fits(tau_s):
        return tau_s
    bounds = [(1 - _midpoint(decay, np.inf), 1 - _midpoint(decay, 0))]
    bounds += [(d * _midpoint(np.float32(gain), 0), d * _midpoint(np.float32(gain), np.inf)) for gain, d in gains]
    sum_of_bounds = max(low for low, _ in bounds) + min(high for _, high in bounds)
    return 2 / sum_of_bounds if 0 < sum_of_bounds <= 2 and fits(2 / sum_of_bounds) else None


def _midpoint(x: np.float32, direction: float) -> float:
    """The number halfway between a float32 number and the next one in a direction."""
    return (float(x) + float(np.nextafter(x, np.float32(direction)))) / 2
