"""The modules under DistributedDataParallel and FSDP: the gradients of the whole batch."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from stsbp_spec.distributed.rendezvous import free_port

RANK = """
import json, sys
import numpy as np, torch, torch.distributed as dist
from stsbp_spec import NetworkSpec, VanRossum
from stsbp_torch.nn import Network, spike_loss

rank, size, port, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
spec = NetworkSpec.parse("4C3-P2-6C3-12{neuron=plif}", input_shape=(2, 10, 10), outputs=4)
net = Network(spec)
random = np.random.default_rng(0)
inputs, targets = (
    torch.from_numpy((random.random(shape) < 0.3).astype(np.float32)) for shape in ((6, 8, 2, 10, 10), (6, 8, 4))
)
if size > 1:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
model = net
if kind == "DistributedDataParallel":
    model = torch.nn.parallel.DistributedDataParallel(net)
elif kind == "fully_shard":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (size,))
    for layer in net.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    model = fully_shard(net, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
own = slice(8 // size * rank, 8 // size * (rank + 1))
losses, gradients = [], []
for _ in range(3):
    loss = spike_loss(VanRossum(), model(inputs[:, own]), targets[:, own], psp=spec.output_psp)
    loss.backward()
    each = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    gradients.append([x.flatten().tolist() for x in each])
    losses.append(loss.item())
    optimizer.step()
    optimizer.zero_grad()
if size > 1:
    dist.destroy_process_group()
print(json.dumps([losses, gradients]))
"""


def _alone() -> tuple[list[float], list[list[list[float]]]]:
    """In this process, which has imported everything."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["rank", "0", "1", "0", "alone"])
        exec(RANK, {"__name__": "rank"})
    losses, gradients = json.loads(printed.getvalue())
    return losses, gradients


def _trained(size: int, kind: str) -> list[tuple[list[float], list[list[list[float]]]]]:
    port = str(free_port())
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(size), port, kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    ended = [process.communicate(timeout=280) for process in running]
    for process, (_, error) in zip(running, ended, strict=True):
        assert process.returncode == 0, error
    return [tuple(json.loads(out.splitlines()[-1])) for out, _ in ended]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.parametrize("kind", ["DistributedDataParallel", pytest.param("fully_shard", marks=pytest.mark.long)])
def test_gradients_of_parallel_modules_are_those_of_the_whole_batch(kind: str) -> None:
    alone, expected = _alone()
    parallel = _trained(2, kind)
    # The mean over processes of equal parts is that of the batch.
    assert np.allclose(np.mean([losses for losses, _ in parallel], axis=0), alone, rtol=1e-6)
    for _, gradients in parallel:
        for got, reference in zip(gradients, expected, strict=True):
            assert len(got) == len(reference) == 5
            for x, y in zip(got, reference, strict=True):
                assert np.abs(y).max() > 0
                assert np.allclose(x, y, rtol=1e-4, atol=1e-6 * np.abs(y).max())
