"""stsbp in JAX: the backend `jax`, and its layers as pure differentiable functions for ordinary JAX code.

Images are channels-last in the layer functions, `[T, B, H, W, C]`, and as the spec lays them out, `[T, B, C, H, W]`, at
`apply`. Weights have the spec's shapes everywhere.
"""

from importlib.metadata import version

from stsbp_jax.losses import distance
from stsbp_jax.network import Output, apply, clip_to_domain, snap_weights
from stsbp_jax.neurons.lif import lif
from stsbp_jax.random import keep_mask
from stsbp_jax.synapses.avgpool2d import avgpool2d
from stsbp_jax.synapses.conv2d import conv2d
from stsbp_jax.synapses.flatten import flatten
from stsbp_jax.synapses.linear import linear
from stsbp_jax.synapses.maxpool2d import maxpool2d
from stsbp_jax.synapses.psp import psp
from stsbp_jax.synapses.upsample2d import upsample2d

__version__ = version("stsbp-jax")

__all__ = [
    "Output", "apply", "avgpool2d", "clip_to_domain", "conv2d", "distance", "flatten", "keep_mask", "lif", "linear",
    "maxpool2d", "psp", "snap_weights", "upsample2d",
]  # fmt: skip
