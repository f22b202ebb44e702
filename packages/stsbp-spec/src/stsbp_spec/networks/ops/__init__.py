"""The operations between the neurons of two layers: weights, pooling, dropout and the synaptic filter."""

from collections.abc import Mapping

from stsbp_spec.networks.ops.add import Add
from stsbp_spec.networks.ops.avgpool2d import AvgPool2d, GlobalAvgPool
from stsbp_spec.networks.ops.base import Merge
from stsbp_spec.networks.ops.batchnorm import BatchNorm
from stsbp_spec.networks.ops.concat import Concat
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.networks.ops.dropout import Dropout
from stsbp_spec.networks.ops.flatten import Flatten
from stsbp_spec.networks.ops.linear import Linear
from stsbp_spec.networks.ops.maxpool2d import MaxPool2d
from stsbp_spec.networks.ops.one_to_one import OneToOne
from stsbp_spec.networks.ops.psp import IDENTITY, PSP, Filter
from stsbp_spec.networks.ops.upsample2d import Upsample2d

__all__ = [
    "IDENTITY",
    "MERGES",
    "PSP",
    "Add",
    "AvgPool2d",
    "BatchNorm",
    "Concat",
    "Conv2d",
    "Dropout",
    "Filter",
    "Flatten",
    "GlobalAvgPool",
    "LearnedDelay",
    "Linear",
    "MaxPool2d",
    "OneToOne",
    "Upsample2d",
]

MERGES: Mapping[str, type[Merge]] = {kind.key: kind for kind in (Add, Concat)}
"""The operations that merge branches, by their keys in a network that is written node by node."""
