"""stsbp in JAX: the backend `jax`, and its layers as pure differentiable functions for ordinary JAX code.

In the layer functions, images are channels last, `[T, B, H, W, C]`. The inputs of `apply` have the spec's layout,
`[T, B, C, H, W]`. Weights have the spec's shapes everywhere. The modules of the package are imported when one of their
names is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stsbp_spec import ALIF, IF, LIF, PSP, Hamming, NetworkSpec, SpikeCount, VanRossum, initial_weights
    from stsbp_spec.models.neurons import PLIF

    from stsbp_jax.backend import JaxBackend
    from stsbp_jax.contract.random import keep_mask
    from stsbp_jax.models.losses import distance
    from stsbp_jax.models.neurons.lif import lif
    from stsbp_jax.models.rate_penalty import rate_penalty
    from stsbp_jax.network import Output, apply, clip_to_domain, snap_weights
    from stsbp_jax.ops.avgpool2d import avgpool2d
    from stsbp_jax.ops.conv2d import conv2d
    from stsbp_jax.ops.flatten import flatten
    from stsbp_jax.ops.linear import linear
    from stsbp_jax.ops.maxpool2d import maxpool2d
    from stsbp_jax.ops.psp import psp
    from stsbp_jax.ops.upsample2d import upsample2d

__version__ = version("stsbp-jax")

__all__ = [
    "ALIF", "IF", "LIF", "PLIF", "PSP", "Hamming", "JaxBackend", "NetworkSpec", "Output", "SpikeCount", "VanRossum",
    "apply", "avgpool2d", "clip_to_domain", "conv2d", "distance", "flatten", "initial_weights", "keep_mask", "lif",
    "linear", "maxpool2d", "psp", "rate_penalty", "snap_weights", "upsample2d",
]  # fmt: skip

_HOMES = {
    "stsbp_jax.backend": ("JaxBackend",),
    "stsbp_jax.models.losses": ("distance",),
    "stsbp_jax.models.rate_penalty": ("rate_penalty",),
    "stsbp_jax.network": ("Output", "apply", "clip_to_domain", "snap_weights"),
    "stsbp_jax.models.neurons.lif": ("lif",),
    "stsbp_jax.contract.random": ("keep_mask",),
    "stsbp_spec.models.neurons": ("ALIF", "IF", "LIF", "PLIF"),
    "stsbp_spec": ("PSP", "Hamming", "NetworkSpec", "SpikeCount", "VanRossum", "initial_weights"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it. The module of a synapse has the name of its function."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    exported = globals()[name] = getattr(import_module(_HOME.get(name, f"stsbp_jax.ops.{name}")), name)
    return exported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
