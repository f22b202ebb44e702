"""Whether a network can be trained with given weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from stsbp_spec.contract.grid import check_largest
from stsbp_spec.engine.checks import check_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray

__all__ = ["check_trainable"]


def check_trainable(network: NetworkSpec, weights: Mapping[str, AnyArray]) -> None:
    """Check that the first update will accept these weights, by name.

    Raises:
        ShapeError: names or shapes are not those of the network.
        NumericError: a weight is not finite or too large for its grid, or a learned parameter is outside its range.
    """
    check_weights(network, dict(weights))
    for projection in network.graph.projections:
        check_largest(float(np.max(np.abs(weights[projection.parameter]), initial=0)), projection.name)
