"""stsbp on PyTorch: the backend, and the layers as `nn.Module`s (stsbp_torch.nn)."""

from importlib.metadata import version

__version__ = version("stsbp-torch")

__all__ = ["__version__"]
