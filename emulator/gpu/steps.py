"""Training steps of the real CuPy on the emulated GPU: `python -m emulator.gpu.steps [recorded] [launches]`.

`recorded` compares recorded steps (CUDA graphs) of four networks with the numpy reference, bit by bit. `launches`
counts what a step launches, copies and waits for. The variables of `build.environment` must be set.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("STSBP_CUDA_GRAPHS", "1" if "launches" not in sys.argv else "0")

from emulator.gpu import device  # isort: skip
from emulator.gpu.cupy_cuda import install  # isort: skip
import numpy as np
from stsbp_cupy import CupyBackend
from stsbp_spec import LIF, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Memory, Precision

_NETWORKS: tuple[tuple[str, tuple[int, ...], Memory, int | None], ...] = (
    ("8C5-P2-D0.3-12C3p1s2-20", (2, 18, 18), "full", None),
    ("4C3bn-M2-6C3bn", (2, 10, 10), "low", None),
    ("4C3-U2-20", (2, 6, 6), "full", 1),
    ("12R-10", (7,), "full", None),
)
_STEPS = 5
_CALLS = ("cudaMemcpyAsync", "cudaMemcpy", "cudaMemsetAsync", "cudaStreamSynchronize", "cudaDeviceSynchronize",
          "cudaEventSynchronize", "cublasGemmEx")  # fmt: skip


def batch_of(shape: tuple[int, ...], steps: int, samples: int, rng: np.random.Generator) -> Batch:
    """Random spikes as inputs and targets."""
    inputs = (rng.random((steps, samples, *shape)) < 0.2).astype(np.uint8)
    return Batch(inputs, (rng.random((steps, samples, 10)) < 0.3).astype(np.uint8))


def recorded() -> int:
    """The number of networks whose recorded steps differ from the reference."""
    wrong = 0
    for net, shape, memory, micro_batch in _NETWORKS:
        rng, gpu = np.random.default_rng(5), CupyBackend("cuda")
        network = NetworkSpec.parse(net, input_shape=shape, outputs=10, dropout=0.1, neuron=LIF(3, 5 / 3, 0.5))
        batches = [batch_of(shape, 8, 3, rng) for _ in range(_STEPS)]
        ends = []
        for backend in (gpu, NumpyBackend()):
            trainer = backend.trainer(
                network, VanRossum(), AdamW(), precision="reproducible", seed=3, memory=memory, micro_batch=micro_batch
            )
            state, results = trainer.init(initial_weights(network, 1)), []
            for batch in batches:
                state, result = trainer.step(state, batch)
                results.append((result.loss, result.rates, result.zeroed))
            ends.append(({name: x.tobytes() for name, x in trainer.export_state(state).items()}, results))
        replays = device.LAUNCHES["cudaGraphLaunch"]
        same = ends[0] == ends[1] and replays > 0 and not device.FINDINGS
        wrong += not same
        print(net, "same" if same else "DIFFERENT", "replays", replays, *device.FINDINGS[:5], flush=True)
        device.FINDINGS.clear()
        device.LAUNCHES.clear()
    for text, count in device.WARNINGS.items():
        print("warning", count, text)
    return wrong + len(device.WARNINGS)


def launches() -> None:
    """Print what one step of the N-MNIST network of the benchmarks launches, copies and waits for."""
    device.RACES = False
    network = NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10, neuron=LIF(3, 5 / 3))
    batch, backend = batch_of((2, 34, 34), 3, 1, np.random.default_rng(0)), CupyBackend("cuda")
    precisions: tuple[Precision, ...] = ("fast", "reproducible")
    for precision in precisions:
        trainer = backend.trainer(network, VanRossum(), AdamW(), seed=3, precision=precision)
        state = trainer.init(initial_weights(network, 1))
        for _ in range(2):
            started, called = device.LAUNCHES.copy(), device.CALLS.copy()
            state, _ = trainer.step(state, batch)
        started, called = device.LAUNCHES - started, device.CALLS - called
        print(precision, started.total(), "launches", {name: called[name] for name in _CALLS if called[name]})
        print("   ", {name[:40]: count for name, count in started.most_common()}, flush=True)


if __name__ == "__main__":
    install()
    if "launches" in sys.argv:
        launches()
    else:
        raise SystemExit(recorded())
