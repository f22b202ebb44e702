"""collective.py of the spec by torch.distributed: gloo for tensors of the CPU, NCCL for those of CUDA."""

from __future__ import annotations

from collections.abc import Callable

import torch
from stsbp_spec.collective import Collective, Rendezvous
from stsbp_spec.host import Gloo
from stsbp_spec.typing import AnyArray

__all__ = ["TorchCollective"]


class TorchCollective(Collective[torch.Tensor]):
    """Sums of tensors where they lie; what the host gathers goes through gloo."""

    def __init__(self, rendezvous: Rendezvous, device: torch.device) -> None:
        self.rank, self.size = rendezvous.rank, rendezvous.size
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._group = Gloo(rendezvous, "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        self.engine = self._group.engine if device.type == "cpu" else ""

    def largest(self, x: torch.Tensor) -> torch.Tensor:
        largest: torch.Tensor = self._group.largest_tensor(x.clone())
        return largest

    def start_total(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return self._group.start_total_tensor(x)

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return self._group.gather(x)

    def broadcast(self, message: bytes | None) -> bytes:
        return self._group.broadcast(message)

    def close(self) -> None:
        self._group.close()
