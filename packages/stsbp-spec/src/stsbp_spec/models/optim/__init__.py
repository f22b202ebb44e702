"""The update rules."""

from collections.abc import Mapping
from types import MappingProxyType

from stsbp_spec.models.optim.adam import Adam, AdamScalars
from stsbp_spec.models.optim.adamw import (
    AdamW,
    AdamWScalars,
    clip_factor,
    gradient_norm,
    gradient_squares,
    norm_bits,
    norm_of,
)
from stsbp_spec.models.optim.base import Optimizer, Scalars
from stsbp_spec.models.optim.sgd import SGD, SGDScalars

__all__ = [
    "OPTIMIZERS",
    "SCALARS",
    "SGD",
    "Adam",
    "AdamScalars",
    "AdamW",
    "AdamWScalars",
    "Optimizer",
    "SGDScalars",
    "Scalars",
    "clip_factor",
    "gradient_norm",
    "gradient_squares",
    "norm_bits",
    "norm_of",
]

OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType({kind.name: kind for kind in (AdamW, Adam, SGD)})
"""All optimisers by name."""

SCALARS: tuple[type[Scalars], ...] = (AdamWScalars, AdamScalars, SGDScalars)
"""The constants of an update of each of `OPTIMIZERS`."""
