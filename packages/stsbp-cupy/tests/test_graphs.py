"""Recorded steps without a GPU: what stands in for a graph computes again on the recording's own arrays.

How a stream is captured is tried on the stand-in for CuPy (test_cuda.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.equations.recurrence import recur
from stsbp_spec import LIF, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.engine.replay import Graphs, _arrays
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.models.losses.cross_entropy import CrossEntropy, CrossEntropyOfMaximum
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.optim.adamw import LEARNED_UPDATE, UPDATE
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Memory, Precision


class Again(Graphs[Any]):
    """Records by keeping the function."""

    def twin(self, x: Any) -> Any:
        return np.empty_like(x)

    def copy(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        for source, target in pairs:
            target[...] = source

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        outputs, tape = run(), self.tape

        def replay() -> None:
            self.tape = tape
            try:
                self.copy([*zip(_arrays(run()), _arrays(outputs), strict=True)])
            finally:
                self.tape = None

        return replay, outputs


@dataclass(frozen=True)
class Case:
    net: str
    shape: tuple[int, ...] = (2, 10, 10)
    precision: Precision = "reproducible"
    memory: Memory = "full"
    micro_batch: int | None = None
    padded: bool = False
    neuron: Any = field(default_factory=lambda: LIF(3, 5 / 3))
    loss: Any = field(default_factory=VanRossum)

    STEPS: ClassVar[int] = 4

    @property
    def network(self) -> NetworkSpec:
        return NetworkSpec.parse(self.net, input_shape=self.shape, outputs=5, neuron=self.neuron, dropout=0.2)

    def batches(self, count: int, samples: int = 3) -> Iterator[Batch]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            inputs = (rng.random((self.STEPS, samples, *self.shape)) < 0.3).astype(np.uint8)
            targets = np.zeros((self.STEPS, samples, 5), np.uint8)
            targets[:, np.arange(samples), rng.integers(0, 5, samples)] = 1
            yield Batch(inputs, targets, rng.integers(2, self.STEPS + 1, samples) if self.padded else None)


CASES = {
    "convolutions": Case("4C3-P2-D0.3-6C3-20"),
    "fast": Case("4C3-M2-6C3-20", precision="fast"),
    "normalised": Case("4C3bn-P2-6C3bn", memory="low"),
    "micro-batches": Case("4C3-P2-6C3-20", micro_batch=2),
    "recurrent": Case("12R-10", (7,)),
    "learned": Case("4C3-U2-10", neuron=PLIF(3)),
    "padded": Case("4C3bn-12", padded=True),
    "readout": Case("12-5{neuron=readout}", (7,), precision="fast", loss=CrossEntropy()),
}


def train(backend: CupyBackend, case: Case) -> tuple[dict[str, bytes], list[Any]]:
    trainer = backend.trainer(
        case.network,
        case.loss,
        AdamW(lr=0.01, warmup_steps=3, total_steps=9, clip_norm=0.5),
        precision=case.precision,
        seed=5,
        memory=case.memory,
        micro_batch=case.micro_batch,
    )
    state, results = trainer.init(initial_weights(case.network, 1, 2.0)), []
    for batch in case.batches(6):
        state, result = trainer.step(state, batch)
        results.append((result.loss, result.gradient_norm, result.rates, result.zeroed, result.spikes.tobytes()))
    return {name: x.tobytes() for name, x in trainer.export_state(state).items()}, results


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("compiler_path")
def test_recorded_steps_have_the_bits_of_steps(name: str) -> None:
    backend = CupyBackend("host")
    backend.graphs = Again(backend)  # type: ignore[assignment]
    assert train(backend, CASES[name]) == train(CupyBackend("host"), CASES[name])
    assert backend.graphs is not None
    assert backend.graphs.count == 2  # gradients and update
    backend.forget()
    assert backend.graphs.count == 0


@pytest.mark.parametrize("update", [UPDATE, LEARNED_UPDATE], ids=["weights", "learned"])
def test_numbers_in_memory_give_the_bits_of_numbers_by_value(
    backend: CupyBackend, rng: np.random.Generator, update: Recurrence
) -> None:
    scalars = vars(AdamW(weight_decay=0.1).scalars(3, np.float32(0.7))) | {"low": np.float32(-1), "high": np.float32(1)}
    constants = {name: scalars[name] for name in update.parameters}
    arrays = {name: backend.asarray(abs(rng.standard_normal((1, 701))).astype(np.float32)) for name in update.inputs}
    expected = recur(backend.rt, update, constants, arrays, 1, summed=())
    numbers = backend.asarray(update.numbers(constants))
    outputs = recur(backend.rt, update, {}, arrays, 1, summed=(), numbers=numbers)
    assert {name: backend.numpy(x).tobytes() for name, x in outputs.items()} == {
        name: backend.numpy(x).tobytes() for name, x in expected.items()
    }


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropyOfMaximum()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("padded", [False, True])
def test_the_error_of_a_readout_is_the_references(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, loss: CrossEntropy, padded: bool
) -> None:
    u, targets = rng.standard_normal((6, 4, 5)).astype(np.float32), np.zeros((6, 4, 5), np.uint8)
    targets[:, range(4), rng.integers(0, 5, 4)] = 1
    inside = (np.arange(6)[:, None] < np.array([6, 3, 1, 5])).astype(np.uint8) if padded else None
    mask = None if inside is None else backend.asarray(inside)
    error = backend.readout_error(loss, backend.asarray(u), backend.asarray(targets), 4, mask)
    assert backend.numpy(error).tobytes() == reference.readout_error(loss, u, targets, 4, inside).tobytes()


@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_recorded_steps_have_the_bits_of_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stsbp_cupy.engine import cuda

    if problem := cuda.problem():
        pytest.skip(problem)
    monkeypatch.setenv("STSBP_CUDA_GRAPHS", "1")
    backend = CupyBackend("cuda")
    recorded, recorded_results = train(backend, CASES[name])
    assert backend.graphs is not None
    assert backend.graphs.count == 2
    monkeypatch.setenv("STSBP_CUDA_GRAPHS", "0")
    expected, expected_results = train(CupyBackend("cuda"), CASES[name])
    if CASES[name].precision == "fast":
        # Products that are recorded have a handle of their own, and may take another algorithm.
        for key, x in recorded.items():
            np.testing.assert_allclose(
                np.frombuffer(x, np.float32), np.frombuffer(expected[key], np.float32), rtol=1e-3, atol=1e-5
            )
    else:
        assert (recorded, recorded_results) == (expected, expected_results)
