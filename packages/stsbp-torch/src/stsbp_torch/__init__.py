"""stsbp on PyTorch: the backend, and the layers as `nn.Module`s.

The modules of the package are imported when one of their names is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stsbp_spec import PSP, Hamming, NetworkSpec, SpikeCount, VanRossum

    from stsbp_torch.backend import TorchBackend
    from stsbp_torch.models.losses import rate_penalty, spike_loss
    from stsbp_torch.nn import (
        ALIF,
        IF,
        LIF,
        PLIF,
        Network,
        Neurons,
        Sequential,
        SpikingAvgPool2d,
        SpikingConv2d,
        SpikingGlobalAvgPool,
        SpikingLinear,
        SpikingMaxPool2d,
        SpikingUpsample2d,
    )

__version__ = version("stsbp-torch")

__all__ = [
    "ALIF", "IF", "LIF", "PLIF", "PSP", "Hamming", "Network", "NetworkSpec", "Neurons", "Sequential", "SpikeCount",
    "SpikingAvgPool2d", "SpikingConv2d", "SpikingGlobalAvgPool", "SpikingLinear", "SpikingMaxPool2d",
    "SpikingUpsample2d", "TorchBackend", "VanRossum", "__version__", "rate_penalty", "spike_loss",
]  # fmt: skip

_HOMES = {
    "stsbp_spec": ("PSP", "Hamming", "NetworkSpec", "SpikeCount", "VanRossum"),
    "stsbp_torch.backend": ("TorchBackend",),
    "stsbp_torch.models.losses": ("rate_penalty", "spike_loss"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    exported = globals()[name] = getattr(import_module(_HOME.get(name, "stsbp_torch.nn")), name)
    return exported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
