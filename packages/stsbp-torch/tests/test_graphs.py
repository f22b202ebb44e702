"""CUDA graphs without a GPU: what stands in for a graph records torch's operations and runs them again, and tensors
without memory (`meta`) say that a recorded step neither reads a number of the device nor sends one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from stsbp_spec import LIF, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.contract.arrays import NUMPY
from stsbp_spec.engine.operations import Operations, first_grids
from stsbp_spec.engine.replay import SWITCH, Graphs, recording_requested
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError
from stsbp_spec.models.losses.cross_entropy import CrossEntropy, CrossEntropyOfMaximum
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.rate_penalty import LayerPenalties, RatePenalty
from stsbp_spec.typing import Coding, Memory, Precision
from stsbp_torch.backend import TorchBackend
from stsbp_torch.engine import graphs
from stsbp_torch.equations import recurrence
from stsbp_torch.ops import batchnorm, conv2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps each operation of torch's with the tensors it read and made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, results))
        return results

    def replay(self) -> None:
        for func, args, kwargs, results in self.operations:
            outputs = func(*args, **kwargs)
            for x, y in zip(tree_leaves(results), tree_leaves(outputs), strict=True):
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
                    x.copy_(y)


class StandIn(Graphs[torch.Tensor]):
    """Records on the CPU."""

    RECORDED = graphs.TorchGraphs.RECORDED
    twin, copy = graphs.TorchGraphs.twin, graphs.TorchGraphs.copy

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with Recording() as recording:
            outputs = run()
        return recording.replay, outputs


class Eager(TorchBackend):
    """`cpu:eager` by torch's operations alone, as on CUDA, with the constants of equations in tensors."""

    def recur(
        self,
        recurrence_: Recurrence,
        constants: Constants,
        inputs: Mapping[str, torch.Tensor],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, torch.Tensor]:
        parameters = self._parameters(recurrence_, constants).unbind()
        return recurrence.recur_with(recurrence_, parameters, inputs, steps, summed=summed)

    def spike_count(self, s: torch.Tensor) -> torch.Tensor:
        return torch.count_nonzero(s)

    def readout_error(self, *arguments: Any) -> torch.Tensor:
        error: torch.Tensor = Operations.readout_error(self, *arguments)
        return error


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device `cpu:eager` does in numpy is done by torch."""
    monkeypatch.setattr(TorchBackend, "_pack", lambda self, s: self.arithmetic.pack(s))
    monkeypatch.setattr(TorchBackend, "_unpack", lambda self, packed, count: self.arithmetic.unpack(packed, count))
    monkeypatch.setattr(batchnorm.TorchFloat64, "root", lambda self, a: torch.sqrt(a))


@dataclass(frozen=True)
class Case:
    net: str
    shape: tuple[int, ...] = (2, 10, 10)
    coding: Coding = "events"
    precision: Precision = "reproducible"
    memory: Memory = "full"
    micro_batch: int | None = None
    padded: bool = False
    neuron: Any = field(default_factory=lambda: LIF(3, 5 / 3))
    loss: Any = field(default_factory=VanRossum)
    rate_penalty: LayerPenalties = ()

    STEPS: ClassVar[int] = 4

    @property
    def network(self) -> NetworkSpec:
        return NetworkSpec.parse(
            self.net, input_shape=self.shape, outputs=5, neuron=self.neuron, coding=self.coding, dropout=0.2
        )

    def batches(self, count: int, samples: int = 3) -> Iterator[Batch]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            if self.coding == "direct":
                inputs = rng.integers(0, 256, (samples, *self.shape)).astype(np.uint8)
            else:
                inputs = (rng.random((self.STEPS, samples, *self.shape)) < 0.3).astype(np.uint8)
            targets = np.zeros((self.STEPS, samples, 5), np.uint8)
            targets[:, np.arange(samples), rng.integers(0, 5, samples)] = 1
            lengths = rng.integers(2, self.STEPS + 1, samples) if self.padded else None
            yield Batch(inputs, targets, lengths)


CASES = {
    "convolutions": Case("4C3-P2-D0.3-6C3-20"),
    "fast": Case("4C3-P2-6C3-20", precision="fast"),
    "images": Case("4C3-M2-6C3", (3, 8, 8), "direct"),
    "normalised": Case("4C3bn-P2-6C3bn", memory="low"),
    "little memory": Case("4C3-D0.3-6C3-20", memory="low"),
    "micro-batches": Case("4C3-P2-6C3-20", micro_batch=2),
    "recurrent": Case("12R-10", (7,)),
    "learned": Case("4C3-U2-10", neuron=PLIF(3)),
    "padded": Case("4C3bn-12", padded=True),
    "penalised": Case("4C3-P2-6C3-20", rate_penalty=(("conv1", RatePenalty(0.1, 9.0)), ("linear3", RatePenalty(0, 9)))),
    "penalised, padded": Case("4C3-12", padded=True, memory="low", rate_penalty=(("linear2", RatePenalty(0, 9.0)),)),
    "readout": Case("12-5{neuron=readout}", (7,), precision="fast", loss=CrossEntropy()),
}


def train(backend: TorchBackend, case: Case, batches: Sequence[Batch]) -> tuple[dict[str, Any], list[Any]]:
    """State and results of some steps."""
    trainer = backend.trainer(
        case.network,
        case.loss,
        AdamW(lr=0.01, warmup_steps=3, total_steps=9, weight_decay=0.1, clip_norm=0.5),
        precision=case.precision,
        seed=5,
        memory=case.memory,
        micro_batch=case.micro_batch,
        rate_penalty=dict(case.rate_penalty),
    )
    state = trainer.init(initial_weights(case.network, 1, 2.0))
    results = []
    for batch in batches:
        state, result = trainer.step(state, batch)
        numbers = (result.rates, result.zeroed, result.penalties)
        results.append((result.loss, result.gradient_norm, *numbers, result.spikes.tobytes()))
    return {name: x.tobytes() for name, x in trainer.export_state(state).items()}, results


def recording_backend() -> Eager:
    backend = Eager("cpu:eager")
    backend.graphs = StandIn(backend)  # type: ignore[assignment]
    return backend


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_have_the_bits_of_steps(name: str) -> None:
    case = CASES[name]
    batches = [*case.batches(7)]
    backend = recording_backend()
    recorded = train(backend, case, batches)
    assert backend.graphs is not None
    assert backend.graphs.count == 3  # gradients, update, the weights' first grids
    assert recorded == train(Eager("cpu:eager"), case, batches)


@pytest.mark.usefixtures("by_torch")
def test_two_runs_share_a_recording_and_not_their_state() -> None:
    case = Case("4C3-P2-D0.3-20")
    first, second = [*case.batches(6)], [*case.batches(6)][::-1]
    backend = recording_backend()
    trainer = backend.trainer(case.network, case.loss, AdamW(lr=0.01), precision="reproducible")
    states = [trainer.init(initial_weights(case.network, seed, 2.0)) for seed in (1, 2)]
    for pair in zip(first, second, strict=True):
        states = [trainer.step(state, batch)[0] for state, batch in zip(states, pair, strict=True)]
    alone = Eager("cpu:eager").trainer(case.network, case.loss, AdamW(lr=0.01), precision="reproducible")
    for seed, batches, state in ((1, first, states[0]), (2, second, states[1])):
        expected = alone.init(initial_weights(case.network, seed, 2.0))
        for batch in batches:
            expected, _ = alone.step(expected, batch)
        actual, separate = trainer.export_state(state), alone.export_state(expected)
        assert {n: x.tobytes() for n, x in actual.items()} == {n: x.tobytes() for n, x in separate.items()}
    assert backend.graphs is not None
    assert backend.graphs.count == 3


@pytest.mark.usefixtures("by_torch")
def test_each_size_of_a_batch_has_a_recording_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "WARM", 0)
    monkeypatch.setattr(StandIn, "LIMIT", 3)
    case = Case("12", (7,))
    backend = recording_backend()
    batches = [next(case.batches(1, samples)) for samples in (3, 2, 3, 4, 2, 3)]
    assert train(backend, case, batches) == train(Eager("cpu:eager"), case, batches)
    assert backend.graphs is not None
    assert backend.graphs.count == 3
    backend.forget()
    assert backend.graphs.count == 0


@pytest.mark.usefixtures("by_torch")
def test_potentials_of_a_readout_give_the_error_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    u, targets = rng.standard_normal((6, 4, 5)).astype(np.float32), np.zeros((6, 4, 5), np.uint8)
    targets[:, range(4), rng.integers(0, 5, 4)] = 1
    inside = (np.arange(6)[:, None] < np.array([6, 3, 1, 5])).astype(np.uint8)
    for loss in (CrossEntropy(), CrossEntropyOfMaximum()):
        for padding in (None, inside):
            arrays = [u, targets, *([] if padding is None else [padding])]
            tensors = [torch.from_numpy(x) for x in arrays]
            error = Eager("cpu:eager").readout_error(
                loss, tensors[0], tensors[1], 4, tensors[2] if padding is not None else None
            )
            expected = loss.error(u.astype(np.float64), targets, 4, padding, NUMPY)
            np.testing.assert_allclose(error.numpy(), expected, rtol=1e-6, atol=1e-9)


class NoHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that read or make tensors of the CPU, but for numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, results)):
            if isinstance(x, torch.Tensor) and x.device.type == "cpu" and x.ndim > 0:
                raise AssertionError(f"{func} touches the CPU: {tuple(x.shape)} {x.dtype}")
        return results


class WithoutMemory(StandIn):
    """Computes once more on the device `meta`, and keeps to it."""

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with NoHost():  # type: ignore[no-untyped-call]
            outputs = run()
        return lambda: None, outputs


class Unreadable(TorchBackend):
    """The backend as on CUDA, with tensors whose values nobody can read."""

    def __init__(self) -> None:
        self.device, self.torch_device, self.fused = "meta", torch.device("meta"), True
        self.graphs = WithoutMemory(self)  # type: ignore[assignment]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the equations that were launched, with Triton's kernels left out."""
    import sys
    from types import SimpleNamespace

    names: list[str] = []

    def recur(
        recurrence_: Recurrence,
        parameters: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        steps: int,
        *,
        summed: tuple[str, ...],
    ) -> dict[str, torch.Tensor]:
        assert all(x.device.type == "meta" for x in (parameters, *inputs.values()))
        names.append(recurrence_.name)
        first = inputs[recurrence_.inputs[0]]
        return recurrence.outputs_of(recurrence_, steps, first.shape[1:], first.device, summed)

    monkeypatch.setitem(sys.modules, "stsbp_torch.equations.fused_cuda", SimpleNamespace(recur=recur))
    monkeypatch.setattr("stsbp_torch.equations.fused_cuda", SimpleNamespace(recur=recur), raising=False)
    monkeypatch.setattr(recurrence, "_to_device", lambda numbers, device: torch.empty(len(numbers) // 4, device=device))
    monkeypatch.setattr(
        recurrence, "_to_device_once", lambda numbers, device: torch.empty(len(numbers) // 4, device=device)
    )
    monkeypatch.setattr(WithoutMemory, "WARM", 0)
    return names


@pytest.mark.parametrize("inexact", [False, True], ids=["cuDNN", "products"])
@pytest.mark.parametrize("name", CASES)
def test_a_recorded_step_keeps_to_the_device(
    name: str, inexact: bool, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stsbp_spec.distributed.collective import Alone, BatchSlice
    from stsbp_spec.engine.programs import gradients, penalty_name, update
    from stsbp_spec.equations.assembly import loss_padding
    from stsbp_spec.models.lengths import inside
    from stsbp_torch.ops import dropout

    monkeypatch.setattr(conv2d, "_cudnn_is_inexact", lambda *_: inexact)
    case = CASES[name]
    network, (batch,) = case.network, case.batches(1)
    samples = batch.targets.shape[1]
    backend = Unreadable()

    def mask(seed: int, layer: int, step: int, shape: Any, rate: float, first: int, device: Any) -> torch.Tensor:
        dropout_mask = torch.empty(shape, dtype=torch.uint8, device=device)
        return dropout_mask.contiguous(memory_format=torch.channels_last) if dropout_mask.ndim == 4 else dropout_mask

    monkeypatch.setattr(dropout, "mask", mask)
    weights = {n: backend.asarray(w) for n, w in initial_weights(network, 1).items()}
    wq = dict(weights)
    projections = network.graph.projections
    first = backend.compiled(first_grids, projections)([weights[projection.parameter] for projection in projections])
    wq |= {projection.name: on_grid for projection, (on_grid, _) in zip(projections, first, strict=True)}
    for projection in network.graph.normalised:
        wq[f"{projection.name}.exponent"] = backend.asarray(np.array([3], np.int32))
    all_samples = BatchSlice(0, samples, samples)
    parts = all_samples.cut(case.micro_batch or samples)
    inputs, targets, padding = [], [], []
    for part in parts:
        frames_of_part = batch.inputs[:, : part.count] if case.coding == "events" else batch.inputs[: part.count]
        x = backend.asarray(frames_of_part if case.coding == "events" else frames_of_part[None])
        inputs.append(x if case.coding == "events" else x.float())
        targets.append(backend.asarray(batch.targets[:, : part.count]))
        if batch.lengths is not None:
            shape = batch.targets[:, : part.count].shape
            arrays = loss_padding(case.loss, network.output_psp, batch.lengths[: part.count], samples, shape)
            shapes = {block.name: block.output_shape for block in network.blocks}
            for layer, penalty in case.rate_penalty:
                constants = penalty.constants_of_lengths(shapes[layer], batch.lengths[: part.count], samples)
                arrays |= {penalty_name(layer, n): a for n, a in constants.items()}
            padding.append({n: backend.asarray(a) for n, a in arrays.items()})
            frames = np.array([int(inside(batch.lengths, Case.STEPS).sum())], np.int32)
            wq |= {f"{projection.name}.frames": backend.asarray(frames) for projection in network.graph.normalised}
    memory: Memory = "low" if len(parts) > 1 else case.memory
    fixed = (network, case.loss, case.rate_penalty, case.precision, memory, Alone(), parts)
    more = (padding,) if padding else ()
    computed = backend.compiled(gradients, *fixed)(wq, inputs, targets, (1, 2), *more)
    assert set(computed.values) == set(network.parameters)
    scalars = AdamW().scalars(3, np.float32(1))
    moments = [{n: torch.empty_like(weights[n]) for n in network.parameters} for _ in range(2)]
    new, *_ = backend.compiled(update, network)(scalars, weights, computed.values, *moments)
    assert {x.device.type for x in new.values()} == {"meta"}
    assert backend.graphs is not None
    assert backend.graphs.count == 3
    assert "adamw" in launches


def test_what_reads_the_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, run: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(StandIn, "record", fails)
    monkeypatch.setattr(StandIn, "WARM", 0)
    case = Case("12", (7,))
    backend = recording_backend()
    with pytest.raises(BackendError) as caught:
        train(backend, case, [*case.batches(1)])
    assert str(caught.value) == (
        "the step cannot be recorded as a CUDA graph (RuntimeError: operation not permitted when stream is capturing); "
        f"unset {SWITCH}"
    )
    assert backend.graphs is not None
    assert backend.graphs.tape is None


def test_several_processes_are_refused() -> None:
    from stsbp_spec.distributed.collective import WrappedCollective

    class Two(WrappedCollective[torch.Tensor]):
        def __init__(self) -> None:
            self.rank, self.size = 0, 2

        largest = start_total = gather = broadcast = None  # type: ignore[assignment]

    Two.__abstractmethods__ = frozenset()
    backend = recording_backend()
    case = Case("12", (7,))
    (batch,) = case.batches(1, 2)
    part = Batch(batch.inputs[:, :1], batch.targets)
    trainer = backend.trainer(case.network, case.loss, AdamW(), collective=Two())
    with pytest.raises(BackendError, match=f"one process; unset {SWITCH} to train on 2"):
        trainer.step(trainer.init(initial_weights(case.network, 1)), part)


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("0", False), ("1", True)])
def test_the_switch(value: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    assert recording_requested() is expected
    assert TorchBackend("cpu").graphs is None
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(BackendError, match="STSBP_CUDA_GRAPHS is 0 or 1, got 'yes'"):
        recording_requested()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_recorded_steps_have_the_bits_of_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    batches = [*case.batches(7)]
    monkeypatch.setenv(SWITCH, "1")
    backend = TorchBackend("cuda")
    recorded = train(backend, case, batches)
    assert backend.graphs is not None
    assert backend.graphs.count == 3
    monkeypatch.setenv(SWITCH, "0")
    assert recorded == train(TorchBackend("cuda"), case, batches)
