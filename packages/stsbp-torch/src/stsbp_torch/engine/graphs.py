"""CUDA graphs of a training step (the spec's replay.py) by torch.cuda.CUDAGraph; off unless `STSBP_CUDA_GRAPHS=1`.

These graphs have not been seen running on a GPU yet. All recordings share one pool of memory, because they never run at
the same time and the results of one recording are copied before another one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from stsbp_spec.engine.operations import Operations, first_grids
from stsbp_spec.engine.programs import gradients, update
from stsbp_spec.engine.replay import Graphs

__all__ = ["TorchGraphs"]

Result = TypeVar("Result")


class TorchGraphs(Graphs[torch.Tensor]):
    """Recordings on a CUDA device. They include the weights' first grids, which consist of many small operations."""

    RECORDED = (gradients, update, first_grids)

    def __init__(self, backend: Operations[torch.Tensor], device: torch.device) -> None:
        super().__init__(backend)
        self._device = device
        with torch.cuda.device(device):
            self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def twin(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        if pairs:
            sources, targets = zip(*pairs, strict=True)
            torch._foreach_copy_(targets, sources)

    def record(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        graph = torch.cuda.CUDAGraph()
        # Another thread may load data during the recording. Its operations must not cause an error here.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            results = run()
        return graph.replay, results
