"""Implements collective.py of the spec by torch.distributed: gloo for tensors on the CPU, NCCL for tensors on CUDA."""

from __future__ import annotations

from collections.abc import Callable

import torch
from stsbp_spec.distributed.collective import Rendezvous, WrappedCollective
from stsbp_spec.distributed.host import Gloo

__all__ = ["TorchCollective"]


class TorchCollective(WrappedCollective[torch.Tensor]):
    """Sums tensors on their own device. Data that the host gathers is sent through gloo."""

    def __init__(self, rendezvous: Rendezvous, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._group = Gloo(rendezvous, "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        super().__init__(self._group)
        self.engine = self._group.engine if device.type == "cpu" else ""

    def largest(self, x: torch.Tensor) -> torch.Tensor:
        largest: torch.Tensor = self._group.largest_tensor(x.clone())
        return largest

    def start_total(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return self._group.start_total_tensor(x)
