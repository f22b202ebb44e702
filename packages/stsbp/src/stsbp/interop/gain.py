"""Conversion of weights to another gain of the synapses: `psp_gain`, `normalised` as in the paper, or `unit`.

A spike adds `c w` to a current. With `normalised`, `c = 1/tau_s` (`1/(tau_s - tau_rise)` with a rise); with `unit`, it
is 1. If weights are multiplied by the ratio of both, the currents stay the same, except for rounding, because weights
lie on a grid. If the ratio is a power of two, the grid moves with the weights, and no bit changes. For normalised sums,
the ratio is included in the scale and the shift, which round like any float32 numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.networks.graph import BoundNode
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32

from stsbp.errors import ConfigError

__all__ = ["Change", "with_gain"]


@dataclass(frozen=True)
class Change:
    """The change of the weights of a projection.

    Attributes:
        name: name of the projection.
        ratio: factor of its weights.
        deviation: largest deviation of weights and biases from this, in units of the largest weight or bias.
    """

    name: str
    ratio: float
    deviation: float

    def __str__(self) -> str:
        if self.ratio == 1:
            return f"{self.name}: as it was"
        if self.deviation == 0:
            return f"{self.name}: times {self.ratio:.9g}, exactly"
        return f"{self.name}: times {self.ratio:.9g}, rounded by up to {self.deviation:.2g} of its largest weight"


def with_gain(
    old: NetworkSpec, new: NetworkSpec, weights: Mapping[str, Float32]
) -> tuple[dict[str, Float32], list[Change]]:
    """The weights with which a network computes the same as another one that has another gain of its synapses.

    Args:
        old: the network to which the weights belong.
        new: the same network with another gain.
        weights: all learned parameters, and statistics, by name.

    Returns:
        The same parameters for `new`, and the changes of each projection.

    Raises:
        ConfigError: a projection shares its weights with one that needs them multiplied by another factor.
    """
    rescaled, ratios, factors = dict(weights), dict[str, float](), dict[str, float]()
    for projection in new.graph.projections:
        old_gain, new_gain = (_gain(_bound_node(network, projection.name)) for network in (old, new))
        ratio = ratios[projection.name] = float(old_gain) / float(new_gain)
        factors[projection.name] = 1.0 if projection.synapse.norm is not None else ratio
    for projection in new.graph.projections:
        ratio, owner = ratios[projection.name], projection.parameter
        is_normalised = projection.synapse.norm is not None
        if factors[projection.name] != factors[owner]:
            raise ConfigError(
                f"{projection.name} shares the weights of {owner}, but needs them multiplied by "
                f"{factors[projection.name]:.9g}, and {owner} by {factors[owner]:.9g}: this network keeps its gain"
            )
        names = [f"{projection.name}.{part}" for part in (("scale", "shift") if is_normalised else ("bias",))]
        for name in [*([] if is_normalised else [owner]), *names]:
            if name in weights:
                rescaled[name] = (weights[name].astype(np.float64) * ratio).astype(np.float32)
    grids = [
        weights_on_grid(NumpyBackend(), network.graph, dict(x))[0] for network, x in ((old, weights), (new, rescaled))
    ]
    changes = []
    for projection in new.graph.projections:
        ratio = ratios[projection.name]
        is_normalised = projection.synapse.norm is not None
        normalised_names = [
            f"{projection.name}.{part}" for part in (("scale", "shift") if is_normalised else ("bias",))
        ]
        names = [name for name in ([] if is_normalised else [projection.name]) + normalised_names if name in grids[0]]
        change = max(_relative_deviation(grids[0][name], grids[1][name], ratio) for name in names)
        changes.append(Change(projection.name, ratio, change))
    return rescaled, changes


def _bound_node(network: NetworkSpec, name: str) -> BoundNode:
    return next(bound_node for bound_node in network.graph.bound_nodes if bound_node.node.name == name)


def _gain(bound_node: BoundNode) -> np.float32:
    """The value that a spike adds, for a weight of 1."""
    filter = bound_node.output.filter(training=False)
    constants: Constants = filter.constants()  # type: ignore[assignment]
    return np.float32(constants["c"])


def _relative_deviation(old_weights: Float32, new_weights: Float32, ratio: float) -> float:
    exact = old_weights.astype(np.float64) * ratio
    largest = np.abs(exact).max(initial=0)
    return float(np.abs(new_weights - exact).max(initial=0) / largest) if largest else 0.0
