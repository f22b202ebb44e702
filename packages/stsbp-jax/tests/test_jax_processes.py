"""Several processes, and several devices of one, train with the bits of one device.

The tests run this file: `python test_jax_processes.py RANK SIZE PORT DEVICE CASE...` prints what each case came to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from stsbp_jax.backend import JaxBackend
from stsbp_jax.contract.random import keep_mask
from stsbp_jax.distributed.collective import _on_stderr
from stsbp_jax.distributed.sharding import pieces_of_all
from stsbp_spec import LIF, AbstractBackend, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.contract import random as spec_random
from stsbp_spec.distributed.collective import Alone, BatchSlice, Collective, Rendezvous
from stsbp_spec.distributed.rendezvous import free_port
from stsbp_spec.errors import BackendError, NumericError
from stsbp_spec.reference.backend import NumpyBackend

STEPS = 6
EVENTS = NetworkSpec.parse("4C3-P2-D0.2-15", input_shape=(2, 9, 9), outputs=5, neuron=LIF(5.0, 3.0), dropout=0.3)
"""Masks of 2 * 9 * 9, 4 * 4 * 4 and 15 elements a sample."""
DIRECT = NetworkSpec.parse("6C3p1s2-15", input_shape=(1, 7, 7), outputs=3, coding="direct", dropout=0.2)
SMALL = NetworkSpec.parse("8-8-4", input_shape=(6,), neuron=LIF(5.0, 3.0))


def batches(network: NetworkSpec, sizes: tuple[int, ...]) -> list[Batch]:
    rng = np.random.default_rng(5)
    drawn = []
    for size in sizes:
        if network.coding == "direct":
            inputs = rng.integers(0, 256, (size, *network.input_shape), dtype=np.uint8)
        else:
            inputs = (rng.random((STEPS, size, *network.input_shape)) < 0.3).astype(np.uint8)
        drawn.append(Batch(inputs, (rng.random((STEPS, size, network.outputs)) < 0.3).astype(np.uint8)))
    return drawn


def part_of(network: NetworkSpec, batch: Batch, collective: Collective[Any]) -> Batch:
    """What a process is given of a batch."""
    axis, samples = int(network.coding == "events"), batch.targets.shape[1]
    part = collective.parts(samples)[collective.rank]
    if part.count == 0:
        return Batch(np.zeros_like(batch.inputs.take([0], axis)), batch.targets)
    return Batch(batch.inputs.take(range(part.first, part.end), axis), batch.targets)


def trained(
    backend: AbstractBackend[Any],
    collective: Collective[Any],
    network: NetworkSpec,
    sizes: tuple[int, ...] = (4, 4, 4),
    **settings: Any,
) -> list[Any]:
    """SHA-256 of the state after an update for each size of batch, and what steps and an evaluation report."""
    optimizer = AdamW(lr=0.01, clip_norm=0.01, weight_decay=0.1)
    trainer = backend.trainer(network, VanRossum(), optimizer, seed=7, collective=collective, **settings)
    state, reports = trainer.init(initial_weights(network, seed=0)), []
    for batch in batches(network, sizes):
        state, result = trainer.step(state, part_of(network, batch, trainer.collective))
        reports.append([digest(result.spikes), result.gradient_norm, result.loss, result.rates, result.zeroed])
    batch = part_of(network, batches(network, (4,))[0], trainer.collective)
    predicted = trainer.predict(state, batch.inputs, STEPS, batch=4)
    exported = trainer.export_state(state)
    return [digest(*(exported[name] for name in sorted(exported))), reports, digest(predicted.spikes), predicted.rates]


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


Case = Callable[[AbstractBackend[Any], Collective[Any]], Any]


def training(network: NetworkSpec, **settings: Any) -> Case:
    return lambda backend, collective: trained(backend, collective, network, **settings)


def gradients_not_finite(backend: AbstractBackend[Any], collective: Collective[Any]) -> str:
    """What a process says of errors that overflow on the way back: they grow by 2^95 in each layer above the first."""
    weights = initial_weights(SMALL, 1, 2.0)
    for name, w in weights.items():
        weights[name] = w * np.float32(2.0**-20 if name == "linear1" else 2.0**95)
    trainer = backend.trainer(SMALL, VanRossum(), AdamW(), precision="reproducible", collective=collective)
    (batch,) = batches(SMALL, (2,))
    with pytest.raises(NumericError) as caught:
        trainer.step(trainer.init(weights), part_of(SMALL, batch, trainer.collective))
    return str(caught.value)


def killed(backend: AbstractBackend[Any], collective: Collective[Any]) -> str:
    """Rank 0, where JAX's service was, is killed before the third update: what the others say."""
    trainer = backend.trainer(SMALL, VanRossum(), AdamW(), precision="reproducible", collective=collective)
    state = trainer.init(initial_weights(SMALL, seed=0))
    batch = part_of(SMALL, batches(SMALL, (2,))[0], collective)
    for _ in range(2):
        state, _ = trainer.step(state, batch)
    if collective.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(BackendError) as caught:
        trainer.step(state, batch)
    return str(caught.value)


def words(backend: AbstractBackend[Any], collective: Collective[Any]) -> list[Any]:
    """What processes tell each other on the host, and sums of arrays that are there."""
    rank = collective.rank
    gathered = collective.gather(np.full(2 * rank + 1, rank, np.int16))
    nothing = collective.gather(np.zeros(0, np.float32))
    message = collective.broadcast(b"from rank 0" if rank == 0 else None)
    collective.barrier()
    x = backend.asarray(np.array([rank, -rank, 7 - rank], np.int32))
    added = collective.start_total(backend.asarray(np.array([0.5, rank], np.float32)))()
    return [
        [array.tolist() for array in gathered],
        [array.tolist() for array in nothing],
        message.decode(),
        np.asarray(collective.largest(x)).tolist(),
        np.asarray(added).tolist(),
    ]


WORDS_OF_TWO = [[[0], [1, 1, 1]], [[], []], "from rank 0", [1, 0, 7], [1.0, 1.0]]
CASES: dict[str, Case] = {
    "events": training(EVENTS, sizes=(5, 5, 1), precision="reproducible"),
    "direct": training(DIRECT, precision="reproducible", memory="low"),
    "pieces": training(DIRECT, precision="reproducible", micro_batch=1),
    "empty": training(SMALL, sizes=(2, 1, 2), precision="reproducible"),
    "fast": training(SMALL, sizes=(3,), precision="fast"),
    "not finite": gradients_not_finite,
    "killed": killed,
    "words": words,
}


def main(rank: str, size: str, port: str, device: str, *cases: str) -> None:
    rendezvous = Rendezvous(int(rank), int(size), int(rank), "127.0.0.1", int(port), timeout=60.0)
    JaxBackend.connect(rendezvous, device)
    backend = JaxBackend(device)
    collective = backend.join(rendezvous)
    print(json.dumps({name: CASES[name](backend, collective) for name in cases}))
    collective.close()


def start(rank: int, size: int, port: int, *arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    return python(__file__, str(rank), str(size), str(port), *arguments, devices=devices)


def python(*arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs_of(processes: list[subprocess.Popen[str]]) -> list[Any]:
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        outputs.append(json.loads(out))  # and nothing else is written there
    return outputs


@cache
def expected(name: str) -> Any:
    """What one process of the reference comes to."""
    return json.loads(json.dumps(CASES[name](NumpyBackend(), Alone())))


@pytest.mark.long
def test_three_devices_of_one_process_have_the_bits_of_one() -> None:
    cases = ("events", "pieces")
    (output,) = outputs_of([start(0, 1, 0, "cpu:all", *cases, devices=3)])
    assert output == {name: expected(name) for name in cases}
    assert expected("pieces") == expected("direct")


ENCODED = """
import numpy as np
from stsbp_jax.backend import JaxBackend
from stsbp_spec import AdamW, Batch, Hamming, NetworkSpec, initial_weights

network = NetworkSpec.parse("5", input_shape=(7,), outputs=4)
backend, encoded = JaxBackend("cpu:all"), []
encode = backend.encode
backend.encode = lambda *given: encoded.append(given) or encode(*given)
trainer = backend.trainer(network, Hamming(), AdamW(), micro_batch=2)
batch = Batch(np.ones((3, 8, 7), np.uint8), np.zeros((3, 8, 4), np.uint8))
trainer.step(trainer.init(initial_weights(network, 1)), batch)
print(len(encoded), len(trainer.collective.pieces(8, 2)))
"""


def test_micro_batches_of_several_devices_are_encoded_once() -> None:
    flags = "--xla_force_host_platform_device_count=2"
    run = subprocess.run(
        [sys.executable, "-c", ENCODED], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert run.stdout.split() == ["4", "4"], run.stderr


def test_processes_start_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with _on_stderr():
        pass


def test_two_processes_have_the_bits_of_one() -> None:
    port = free_port()
    outputs = outputs_of([start(rank, 2, port, "cpu", "events", "fast", "words") for rank in range(2)])
    _, ((spikes, norm, loss, *_),), *_ = expected("fast")
    for output in outputs:
        assert output["events"] == expected("events")
        assert output["fast"][1][0][:3] == [spikes, pytest.approx(norm, rel=1e-4), loss]
        assert output["words"] == WORDS_OF_TWO


@pytest.mark.long
def test_three_processes_have_the_bits_of_one_on_parts_that_are_empty_and_one_error() -> None:
    port, cases = free_port(), ("empty", "not finite")
    assert "the gradient of layer linear1 is not finite" in expected("not finite")
    for output in outputs_of([start(rank, 3, port, "cpu", *cases) for rank in range(3)]):
        assert output == {name: expected(name) for name in cases}


@pytest.mark.long
def test_two_processes_of_two_devices_each_have_the_bits_of_one() -> None:
    port = free_port()
    for output in outputs_of([start(rank, 2, port, "cpu:all", "direct", "words", devices=2) for rank in range(2)]):
        assert output == {"direct": expected("direct"), "words": WORDS_OF_TWO}


@pytest.mark.long
def test_a_process_that_is_killed_is_an_error_in_the_others() -> None:
    port = free_port()
    first, *others = [start(rank, 2, port, "cpu", "killed") for rank in range(2)]
    (output,) = outputs_of(others)
    assert output["killed"].startswith("rank 1 of 2 lost its connection to the others: ")
    first.communicate()
    assert first.returncode == -signal.SIGKILL


@pytest.mark.long
def test_processes_with_other_numbers_of_devices_are_refused_by_all() -> None:
    port = free_port()
    ends = [start(rank, 2, port, "cpu:all", devices=rank + 1) for rank in range(2)]
    for process in ends:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "processes have different numbers of cpu devices (rank 0: 1, rank 1: 2); give all the same number" in err


@pytest.mark.long
def test_example_of_the_page_runs_in_two_processes() -> None:
    page = (Path(__file__).parents[3] / "docs" / "jax.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "rank=0" in block)
    code = code.replace("29500", str(free_port()))
    ends = [python("-c", code.replace("rank=0", f"rank={rank}") + "print(collective.size)") for rank in range(2)]
    assert outputs_of(ends) == [2, 2]


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 7)])
@pytest.mark.parametrize("first", [0, 1, 2, 2**31 - 1])
@pytest.mark.parametrize("device", ["cpu", "cpu:xla"])
def test_masks_of_some_samples_are_those_of_the_batch(device: str, shape: tuple[int, ...], first: int) -> None:
    mask = spec_random.keep_mask(3, 17, 5, shape, 0.4, first=first)
    for number in (first, jnp.uint32(first)):
        actual = JaxBackend(device).dropout_mask(3, 17, 5, shape, 0.4, first=number)
        assert np.asarray(actual).tobytes() == mask.tobytes()
        actual = keep_mask(jnp.uint32(3), 17, jnp.uint32(5), shape, 0.4, number)
        assert np.asarray(actual).tobytes() == mask.tobytes()


def test_pieces_that_a_process_has_no_samples_for_are_empty() -> None:
    pieces = pieces_of_all([BatchSlice(0, 3, 5), BatchSlice(3, 2, 5), BatchSlice(5, 0, 5)], 2)
    assert pieces == [
        (BatchSlice(0, 2, 5), BatchSlice(2, 1, 5)),
        (BatchSlice(3, 2, 5), BatchSlice(5, 0, 5)),
        (BatchSlice(5, 0, 5), BatchSlice(7, 0, 5)),
    ]


def test_who_finds_nobody_says_where_it_looked() -> None:
    port = free_port()
    with pytest.raises(BackendError, match=f"^rank 2 did not find rank 0 at 127.0.0.1:{port} within 0.3 s: "):
        JaxBackend.connect(Rendezvous(2, 3, 2, "127.0.0.1", port, timeout=0.3), "cpu")


def test_torchrun_at_the_last_port_leaves_none() -> None:
    with pytest.raises(BackendError, match=r"^processes cannot meet at port 65536, .*: ports are 1 to 65535; give "):
        JaxBackend.connect(Rendezvous(1, 2, 1, "127.0.0.1", 65535, "torchrun", 0.3), "cpu")


def test_processes_that_jax_does_not_know_are_refused() -> None:
    with pytest.raises(BackendError, match=r"rank 0 of 1 to JAX.*call JaxBackend.connect\(rendezvous, device\) first"):
        JaxBackend("cpu").join(Rendezvous(1, 2))


if __name__ == "__main__":
    main(*sys.argv[1:])
