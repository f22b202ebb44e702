"""Defines what stsbp computes, in numpy only: equations, encoders, losses and the rules of exact arithmetic."""

from importlib.metadata import version

from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.engine.backend import AbstractBackend, Batch, Device, LayerRun, RunResult, ValueAndGrad
from stsbp_spec.models.losses import LOSSES, Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.models.neurons import ALIF, IF, LIF, NeuronModel
from stsbp_spec.models.optim import SGD, Adam, AdamW
from stsbp_spec.models.surrogates import SURROGATES, Surrogate, parse_surrogate
from stsbp_spec.moved import redirect
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import (
    PSP,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LearnedDelay,
    Linear,
    MaxPool2d,
    OneToOne,
    Upsample2d,
)
from stsbp_spec.networks.spec import Branches, NetworkSpec, SpikingLayer
from stsbp_spec.registry import installed_backends, load_backend, open_backend

redirect()
__version__ = version("stsbp-spec")

__all__ = [
    "ALIF",
    "CONTRACT_VERSION",
    "IF",
    "LIF",
    "LOSSES",
    "PSP",
    "SGD",
    "SURROGATES",
    "AbstractBackend",
    "Adam",
    "AdamW",
    "AvgPool2d",
    "Batch",
    "Branches",
    "Conv2d",
    "Device",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "Hamming",
    "LayerRun",
    "LearnedDelay",
    "Linear",
    "Loss",
    "MaxPool2d",
    "NetworkSpec",
    "NeuronModel",
    "OneToOne",
    "RunResult",
    "SpikeCount",
    "SpikingLayer",
    "Surrogate",
    "Upsample2d",
    "ValueAndGrad",
    "VanRossum",
    "initial_weights",
    "installed_backends",
    "load_backend",
    "open_backend",
    "parse_surrogate",
]
