"""A batch in parts: who has which samples, and what parts of it give together; engines by threads and by real ones."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from stsbp_spec.contract.random import Stream, bits, keep_mask
from stsbp_spec.distributed import rendezvous
from stsbp_spec.distributed.collective import Alone, BatchSlice, Collective, parts_of
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.results import Batch, TrainState
from stsbp_spec.engine.trainer import Prediction, StepResult, Trainer
from stsbp_spec.errors import BackendError, NumericError, ShapeError, SpecError
from stsbp_spec.models.encoders.packed import PackedFrames, of_part
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Coding, Int64, Precision

NETWORK = NetworkSpec.parse("6d0.3-5d0.4", input_shape=(9,), outputs=3, neuron=PLIF(3.0, 5 / 3, 0.4))
STEPS, BATCH = 6, 5


class Meeting:
    """Where the threads of one test exchange what each has."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size

    def exchanged(self, rank: int, x: Any) -> list[Any]:
        self.given[rank] = x
        self.barrier.wait()
        messages = list(self.given)
        self.barrier.wait()
        return messages


class Threads(Collective[AnyArray]):
    """One thread of several, as a process; keeps how large what it sent was."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting
        self.sums: list[AnyArray] = []

    def largest(self, x: AnyArray) -> AnyArray:
        maximum: AnyArray = np.maximum.reduce(self._meeting.exchanged(self.rank, x))
        return maximum

    def start_total(self, x: AnyArray) -> Callable[[], AnyArray]:
        self.sums.append(x)
        total: AnyArray = np.sum(self._meeting.exchanged(self.rank, x), axis=0)
        return lambda: total

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return self._meeting.exchanged(self.rank, x)

    def broadcast(self, message: bytes | None) -> bytes:
        received: bytes = self._meeting.exchanged(self.rank, message)[0]
        return received


LENGTHS = np.array([6, 2, 5, 1, 4])


def _batch(seed: int = 0, lengths: Int64 | None = None) -> Batch:
    random = np.random.default_rng(seed)
    inputs = (random.random((STEPS, BATCH, 9)) < 0.3).astype(np.uint8)
    return Batch(inputs, (random.random((STEPS, BATCH, 3)) < 0.3).astype(np.uint8), lengths)


def _together(size: int, work: Callable[[Threads], Any]) -> list[Any]:
    """What each of several threads found, or raised."""
    meeting, outcomes = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(Threads(meeting, rank))
        except Exception as error:
            outcomes[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _part_of_rank(collective: Collective, batch: Batch, *, packed: bool = False) -> Batch[Any]:
    part = collective.parts(batch.targets.shape[1])[collective.rank]
    return Batch(of_part(PackedFrames.of(batch.inputs) if packed else batch.inputs, part, 1), *batch[1:])


def _trained(
    collective: Collective | None = None,
    micro_batch: int | None = None,
    *,
    packed: bool = False,
    lengths: Int64 | None = None,
) -> tuple[dict[str, AnyArray], list[StepResult], Prediction]:
    trainer = Trainer(
        NumpyBackend(), NETWORK, VanRossum(), AdamW(clip_norm=0.05, weight_decay=0.1), "reproducible", 3,
        micro_batch=micro_batch, collective=collective,
    )  # fmt: skip
    state = trainer.init(initial_weights(NETWORK, 1, 2.0))
    results = []
    for number in range(3):
        batch = _part_of_rank(collective or Alone(), _batch(number, lengths), packed=packed)
        state, result = trainer.step(state, batch)
        results.append(result)
    return trainer.export_state(state), results, trainer.predict(state, batch.inputs, STEPS, BATCH, lengths)


def _same(trained: Any, expected: Any) -> None:
    (state, results, prediction), (expected_state, one, predicted) = trained, expected
    assert all(state[name].tobytes() == expected_state[name].tobytes() for name in expected_state)
    for got, reference in zip(results, one, strict=True):
        assert np.array_equal(got.spikes, reference.spikes)
        assert (got.rates, got.zeroed, got.gradient_norm) == (
            reference.rates,
            reference.zeroed,
            reference.gradient_norm,
        )
        assert got.loss == reference.loss
    assert np.array_equal(prediction.spikes, predicted.spikes)
    assert prediction.rates == predicted.rates


def test_a_batch_is_cut_into_parts_that_differ_by_one_sample_at_most() -> None:
    assert [(p.first, p.count) for p in parts_of(7, 3)] == [(0, 3), (3, 2), (5, 2)]
    assert [(p.first, p.count) for p in parts_of(2, 4)] == [(0, 1), (1, 1), (2, 0), (2, 0)]
    assert {p.batch for p in parts_of(7, 3)} == {7}
    with pytest.raises(SpecError, match="at least 1 part, got 0"):
        parts_of(7, 0)


def test_a_part_is_cut_into_pieces_and_a_part_of_none_is_one_piece() -> None:
    assert BatchSlice(4, 5, 20).cut(2) == (BatchSlice(4, 2, 20), BatchSlice(6, 2, 20), BatchSlice(8, 1, 20))
    assert BatchSlice(4, 5, 20).cut(9) == (BatchSlice(4, 5, 20),)
    assert BatchSlice(4, 0, 20).cut(3) == (BatchSlice(4, 0, 20),)


@pytest.mark.parametrize("first", [0, 1, 2, 7])
def test_random_words_and_masks_begin_anywhere(first: int) -> None:
    words = bits(5, Stream.DROPOUT, 20, step=3)
    assert np.array_equal(bits(5, Stream.DROPOUT, 9, step=3, first=first), words[first : first + 9])
    mask = keep_mask(5, 1, 2, (10, 3, 5), 0.5)
    assert np.array_equal(keep_mask(5, 1, 2, (3, 3, 5), 0.5, first), mask[first : first + 3])


@pytest.mark.parametrize("size", [2, 3, 7], ids=["uneven", "uneven, two of one", "some empty"])
@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
def test_slices_have_the_bits_of_the_whole_batch(size: int, micro_batch: int | None, lengths: Int64 | None) -> None:
    undivided = _trained(lengths=lengths)
    assert all(lost.nonzero > 0 for lost in undivided[1][0].zeroed.values())
    for trained in _together(size, lambda collective: _trained(collective, micro_batch, lengths=lengths)):
        _same(trained, undivided)


@pytest.mark.parametrize("packed", [False, True], ids=["frames", "bits"])
@pytest.mark.parametrize("micro_batch", [1, 2, 5, 9])
def test_micro_batches_have_the_bits_of_the_whole_batch(micro_batch: int, packed: bool) -> None:
    _same(_trained(micro_batch=micro_batch, packed=packed), _trained())


def test_micro_batches_of_samples_with_lengths_have_the_bits_of_the_whole_batch() -> None:
    undivided = _trained(lengths=LENGTHS)
    _same(_trained(micro_batch=2, packed=True, lengths=LENGTHS), undivided)
    assert any(undivided[0][name].tobytes() != x.tobytes() for name, x in _trained()[0].items())


@pytest.mark.parametrize("coding", ["events", "direct"])
@pytest.mark.parametrize("size", [2, 7], ids=["uneven", "some empty"])
def test_a_process_without_samples_adds_nothing_where_silence_makes_neurons_fire(size: int, coding: Coding) -> None:
    """The shift of a normalised sum alone reaches the threshold, so the silent sample of an empty part fires too."""
    network = NetworkSpec.parse("6bn-D0.3-5Rbn-3", input_shape=(9,), coding=coding, neuron=PLIF(3.0, 5 / 3, 0.4))
    weights = initial_weights(network, 1, 2.0)
    weights |= {name: x + np.float32(2) for name, x in weights.items() if name.endswith(".shift")}

    def work(collective: Collective) -> Any:
        trainer = Trainer(
            NumpyBackend(), network, VanRossum(), AdamW(), "reproducible", 3, micro_batch=1, collective=collective
        )
        state, results = trainer.init(weights), []
        for number in range(2):
            batch = _batch(number, LENGTHS)
            batch = batch._replace(inputs=batch.inputs if coding == "events" else batch.inputs[0])
            part = collective.parts(BATCH)[collective.rank]
            inputs: Any = of_part(batch.inputs, part, int(coding == "events"))
            state, result = trainer.step(state, batch._replace(inputs=inputs))
            results.append(result)
        return trainer.export_state(state), results, trainer.predict(state, inputs, STEPS, BATCH, LENGTHS)

    undivided = work(Alone())
    silent = Trainer(NumpyBackend(), network, VanRossum(), AdamW(), "reproducible").predict(
        TrainState(0, weights, {}, {}),
        np.zeros_like(_batch().inputs if coding == "events" else _batch().inputs[0]),
        STEPS,
    )
    assert all(rate > 0 for rate in silent.rates.values())
    for trained in _together(size, work):
        _same(trained, undivided)


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("coding", ["events", "direct"])
def test_a_piece_without_samples_changes_nothing(coding: Coding, precision: Precision) -> None:
    """As where several devices of one process take the same number of pieces."""

    class Pieces(Alone[AnyArray]):
        def __init__(self, *counts: int) -> None:
            self.counts = counts

        def pieces(self, batch: int, micro_batch: int | None) -> tuple[BatchSlice, ...]:
            return tuple(BatchSlice(sum(self.counts[:i]), count, batch) for i, count in enumerate(self.counts))

    network = NetworkSpec.parse("6bn-D0.3-5Rbn-3", input_shape=(9,), coding=coding, neuron=PLIF(3.0, 5 / 3, 0.4))
    if precision == "fast":
        network = NetworkSpec.parse("6-D0.3-5R-3", input_shape=(9,), coding=coding, neuron=PLIF(3.0, 5 / 3, 0.4))
    weights = initial_weights(network, 1, 2.0)
    weights |= {name: x + np.float32(2) for name, x in weights.items() if name.endswith(".shift")}
    batch = _batch(0, LENGTHS)
    batch = batch._replace(inputs=batch.inputs if coding == "events" else batch.inputs[0])
    runs = []
    for counts in ((2, 3), (2, 3, 0), (2, 3, 0, 0)):
        trainer = Trainer(NumpyBackend(), network, VanRossum(), AdamW(), precision, 3, collective=Pieces(*counts))
        state, result = trainer.step(trainer.init(weights), batch)
        runs.append((trainer.export_state(state), result.spikes, result.rates, result.zeroed, result.gradient_norm))
    for exported, spikes, *numbers in runs[1:]:
        assert all(exported[name].tobytes() == x.tobytes() for name, x in runs[0][0].items())
        assert np.array_equal(spikes, runs[0][1])
        assert numbers == list(runs[0][2:])


def test_sums_that_are_exchanged_are_float64_and_not_rounded() -> None:
    def work(collective: Threads) -> list[AnyArray]:
        _trained(collective)
        return collective.sums

    for sums in _together(2, work):
        assert {x.dtype for x in sums} == {np.dtype(np.float64)}
        assert any((x.astype(np.float32) != x).any() for x in sums)


def test_parts_that_go_both_ways_by_themselves_exchange_their_sum_once() -> None:
    def work(collective: Collective, sums: list[AnyArray]) -> dict[str, AnyArray]:
        trainer = Trainer(
            NumpyBackend(), NETWORK, VanRossum(), AdamW(), "fast", 3, micro_batch=2, collective=collective
        )
        state, _ = trainer.step(trainer.init(initial_weights(NETWORK, 1, 2.0)), _part_of_rank(collective, _batch()))
        assert len(sums) == len(NETWORK.parameters) * (collective.size > 1)
        return trainer.export_state(state)

    undivided = work(Alone(), [])
    for trained in _together(2, lambda collective: work(collective, collective.sums)):
        for name in NETWORK.parameters:
            moment = undivided[f"adamw.m/{name}"]
            assert moment.any()
            np.testing.assert_allclose(trained[f"adamw.m/{name}"], moment, rtol=1e-4, atol=1e-6 * np.abs(moment).max())


def test_a_gradient_that_is_not_finite_is_every_rank_s_error() -> None:
    class Infinite(NumpyBackend):
        def loss_error(self, *arguments: Any) -> AnyArray:
            error = super().loss_error(*arguments)
            return np.full_like(error, np.inf) if arguments[2].any() else error

    def work(collective: Threads) -> None:
        trainer = Trainer(Infinite(), NETWORK, VanRossum(), AdamW(), "reproducible", collective=collective)
        batch = _batch()
        batch.inputs[:, 3:] = 0  # the last rank is silent: its own numbers are finite
        trainer.step(trainer.init(initial_weights(NETWORK, 1, 2.0)), _part_of_rank(collective, batch))

    errors = _together(2, work)
    assert all(isinstance(error, NumericError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1


def test_inputs_of_other_samples_than_the_part_s_are_refused() -> None:
    trainer = Trainer(NumpyBackend(), NETWORK, VanRossum(), AdamW(), collective=Threads(Meeting(2), 1))
    state, batch = trainer.init(initial_weights(NETWORK, 1, 2.0)), _batch()
    with pytest.raises(ShapeError, match="of a batch of 5 samples, this process computes samples 3 to 4, but it got 5"):
        trainer.step(state, batch)
    with pytest.raises(ShapeError, match="samples 3 to 4, but it got 5"):
        trainer.predict(state, batch.inputs, STEPS, batch=5)
    one = Batch(batch.inputs[:, :2], batch.targets[:, :1])
    with pytest.raises(
        ShapeError, match="of a batch of 1 samples, this process computes none and must get one sample of zeros"
    ):
        trainer.step(state, one)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2"])
def test_a_micro_batch_of_no_samples_is_refused(size: Any) -> None:
    with pytest.raises(SpecError, match="a micro-batch has at least 1 sample"):
        Trainer(NumpyBackend(), NETWORK, VanRossum(), AdamW(), micro_batch=size)


def test_a_backend_without_a_collective_says_so() -> None:
    class Lonely(NumpyBackend):
        join = Operations.join

    with pytest.raises(BackendError, match="backend 'numpy' computes in one process only"):
        Lonely().join(None)  # type: ignore[arg-type]


ENGINE = """
import sys
import numpy as np
from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.distributed.host import Gloo
rank, port = int(sys.argv[1]), int(sys.argv[2])
gloo = Gloo(Rendezvous(rank, 3, rank, "127.0.0.1", port, timeout=60))
assert gloo.largest(np.array([rank, 5 - rank], np.int32)).tolist() == [2, 5]
waits = [gloo.start_total(np.full((2, n), rank + 0.5, dtype)) for n, dtype in
         ((3, np.float64), (1, np.float64), (4, np.float32), (200_000, np.float64))]
for wait, n in zip(waits[::-1], (200_000, 4, 1, 3)):
    assert wait().shape == (2, n) and (wait() == 4.5).all()
found = gloo.gather(np.arange(rank, dtype=np.uint8))
assert [x.tolist() for x in found] == [[], [0], [0, 1]], found
assert [x.dtype for x in found] == [np.uint8] * 3
assert gloo.broadcast(b"word" if rank == 0 else None) == b"word"
assert gloo.broadcast(b"" if rank == 0 else None) == b""
gloo.barrier()
gloo.close()
"""


@pytest.fixture
def free_port() -> int:
    return rendezvous.free_port()


def _engines(text: str, port: int, size: int = 3) -> list[tuple[int, str]]:
    running = [
        subprocess.Popen([sys.executable, "-c", text, str(rank), str(port)], stderr=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    ended = [process.communicate(timeout=240)[1] for process in running]
    return [(process.returncode, error) for process, error in zip(running, ended, strict=True)]


def test_gloo_between_three_processes(free_port: int) -> None:
    pytest.importorskip("torch")
    for code, error in _engines(ENGINE, free_port):
        assert code == 0, error


def test_processes_that_do_not_come_are_waited_for_so_long(free_port: int) -> None:
    pytest.importorskip("torch")
    text = ENGINE.replace("timeout=60", "timeout=2")
    ((code, error),) = _engines(text, free_port, 1)
    assert code == 1
    message = f"rank 0 waited 2 s at 127.0.0.1:{free_port} for 3 processes; missing: rank 1, 2"
    assert message in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "a process listens there, but does not answer"),
        (b"SSH-2.0-OpenSSH_9\r\n", "is not rank 0 of this run: it answers b'SSH-2.0-Open'"),
    ],
)
def test_a_program_that_listens_in_the_place_of_rank_0_is_not_waited_for(answer: bytes, message: str) -> None:
    pytest.importorskip("torch")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            with suppress(OSError):
                while True:
                    guests.append(server.accept()[0])
                    guests[-1].sendall(answer)

        guests: list[socket.socket] = []
        threading.Thread(target=listen, daemon=True).start()
        port = str(server.getsockname()[1])
        text = ENGINE.replace("timeout=60", "timeout=2")
        command = [sys.executable, "-c", text, "1", port]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=100)
        for guest in guests:
            guest.close()
    assert ended.returncode == 1
    assert f"rank 1 did not find rank 0 at 127.0.0.1:{port} within 2 s: " in ended.stderr
    assert message in ended.stderr


def test_a_connection_that_is_lost_names_who_lost_it(free_port: int) -> None:
    pytest.importorskip("torch")
    text = ENGINE.split("assert")[0] + "if rank == 1: import os; os._exit(3)\ngloo.barrier()\n"
    codes = _engines(text, free_port)
    assert codes[1][0] == 3
    for rank in (0, 2):
        code, error = codes[rank]
        assert code == 1
        assert f"BackendError: rank {rank} of 3 lost its connection to the others: " in error
