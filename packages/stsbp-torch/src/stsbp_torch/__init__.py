"""stsbp on PyTorch: the backend, and the layers as `nn.Module`s (stsbp_torch.nn)."""

__version__ = "0.1.0"
