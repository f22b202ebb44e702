"""The operations between the neurons of two layers: weights, pooling, dropout and the synaptic filter."""

from collections.abc import Mapping

from stsbp_spec.synapses.add import Add
from stsbp_spec.synapses.avgpool2d import AvgPool2d, GlobalAvgPool
from stsbp_spec.synapses.base import Merge
from stsbp_spec.synapses.batchnorm import BatchNorm
from stsbp_spec.synapses.concat import Concat
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.synapses.dropout import Dropout
from stsbp_spec.synapses.flatten import Flatten
from stsbp_spec.synapses.linear import Linear
from stsbp_spec.synapses.maxpool2d import MaxPool2d
from stsbp_spec.synapses.one_to_one import OneToOne
from stsbp_spec.synapses.psp import IDENTITY, PSP, Filter
from stsbp_spec.synapses.upsample2d import Upsample2d

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
    "Linear",
    "MaxPool2d",
    "OneToOne",
    "Upsample2d",
]

MERGES: Mapping[str, type[Merge]] = {kind.key: kind for kind in (Add, Concat)}
"""The operations that merge branches, by their keys in a network that is written node by node."""
