"""Memory `low`: which parts a batch is computed in, in which order, what they keep, and that the numbers stay."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
from stsbp_spec.distributed.collective import Alone
from stsbp_spec.engine import memory as rules
from stsbp_spec.engine import trainer as trainer_module
from stsbp_spec.engine.memory import kept_bytes, recompute_pays, samples_at_once
from stsbp_spec.engine.results import Batch
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Memory, Precision

STEPS, BATCH = 6, 7
NETWORK = NetworkSpec.parse("4C3-P2-D0.3-9", input_shape=(2, 10, 10), outputs=5, neuron=PLIF(3.0, 5 / 3, 0.4))
NORMALISED = NetworkSpec.parse("4C3bn-P2-9", input_shape=(2, 10, 10), outputs=5)
SAMPLE = STEPS * (2 * 100 + 5 * (4 * 64 + 9 + 5))


def _batch(samples: int = BATCH) -> Batch:
    random = np.random.default_rng(1)
    inputs = (random.random((STEPS, samples, 2, 10, 10)) < 0.3).astype(np.uint8)
    return Batch(inputs, (random.random((STEPS, samples, 5)) < 0.3).astype(np.uint8))


class Noting(NumpyBackend):
    """Notes what is done, with the number of samples."""

    def open(self, device: str | None) -> str:
        self.noted: list[tuple[str, int]] = []
        return super().open(device)

    def loss_error(self, *arguments: Any) -> AnyArray:
        self.noted.append(("loss", arguments[2].shape[1]))
        return super().loss_error(*arguments)

    def population_backward(self, *arguments: Any) -> Any:
        self.noted.append(("back", arguments[2].shape[1]))
        return super().population_backward(*arguments)

    def pack_spikes(self, s: AnyArray) -> Any:
        self.noted.append(("bits", s.shape[1]))
        return super().pack_spikes(s)


@pytest.fixture
def three_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_GROUP_BYTES", 4 * SAMPLE - 1)
    monkeypatch.setattr(rules, "_RECOMPUTE_BYTES", 4 * SAMPLE - 1)


def _step(
    network: NetworkSpec, precision: Precision, memory: Memory, *, backend: NumpyBackend | None = None, **more: Any
) -> tuple[dict[str, AnyArray], Any, Trainer[AnyArray]]:
    trainer = Trainer(backend or NumpyBackend(), network, VanRossum(), AdamW(), precision, 3, memory, **more)
    state, result = trainer.step(trainer.init(initial_weights(network, 1, 3.0)), _batch())
    return trainer.export_state(state), result, trainer


def test_what_a_sample_keeps_is_potentials_spikes_and_inputs() -> None:
    assert kept_bytes(NETWORK, STEPS) == SAMPLE
    image = NetworkSpec.parse("4C3-P2-9", input_shape=(2, 10, 10), outputs=5, coding="direct")
    assert kept_bytes(image, STEPS) == SAMPLE - (STEPS - 1) * 200


def test_parts_are_equal_and_keep_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_GROUP_BYTES", 4 * SAMPLE)
    sizes = [samples_at_once(NETWORK, STEPS, samples) for samples in (0, 1, 4, 5, 8, 9, 13)]
    assert sizes == [1, 1, 4, 3, 4, 3, 4]
    monkeypatch.setattr(rules, "_GROUP_BYTES", 1)
    assert samples_at_once(NETWORK, STEPS, 9) == 1


def test_much_is_more_than_four_parts_keep() -> None:
    most = 4 * 32 * 2**20 // SAMPLE
    assert not recompute_pays(NETWORK, STEPS, most)
    assert recompute_pays(NETWORK, STEPS, most + 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_keep_the_same_of_a_part(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process has fewer samples, but runs the same program."""

    class QueryMade(Exception):
        pass

    def query(network: NetworkSpec, steps: int, samples: int) -> bool:
        assert samples == 4
        raise QueryMade

    class One(Alone[AnyArray]):
        size = 2

    monkeypatch.setattr(trainer_module, "recompute_pays", query)
    collective = One()
    collective.rank = rank
    part, batch = collective.parts(BATCH)[rank], _batch()
    trainer = Trainer(NumpyBackend(), NETWORK, VanRossum(), AdamW(), memory="low", collective=collective)
    state = trainer.init(initial_weights(NETWORK, 1))
    with pytest.raises(QueryMade):
        trainer.step(state, Batch(batch.inputs[:, part.first : part.end], batch.targets))


@pytest.mark.parametrize(
    ("network", "precision", "first"),
    [(NETWORK, "fast", 1), (NETWORK, "reproducible", 3), (NORMALISED, "fast", 3)],
    ids=["fast", "reproducible", "normalised"],
)
@pytest.mark.usefixtures("three_at_once")
def test_a_part_goes_both_ways_before_the_next_where_nothing_is_asked(
    network: NetworkSpec, precision: Precision, first: int
) -> None:
    backend = Noting()
    _step(network, precision, "low", backend=backend)
    losses = [n for event, n in backend.noted if event == "loss"]
    assert losses == [3, 3, 1]
    ways = [event for event, _ in backend.noted if event != "bits"]
    assert ways[: first + 1] == ["loss"] * first + ["back"]
    assert [n for event, n in backend.noted if event == "bits"] == ([] if first == 1 else [3, 3, 3, 3, 3, 3, 1, 1, 1])


def test_of_much_a_bit_a_spike_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_GROUP_BYTES", 4 * SAMPLE - 1)
    monkeypatch.setattr(rules, "_RECOMPUTE_BYTES", 3 * SAMPLE - 1)
    backend = Noting()
    _step(NETWORK, "fast", "low", backend=backend)
    assert [n for event, n in backend.noted if event == "bits"] == [3, 3, 3, 3, 3, 3, 1, 1, 1]


@pytest.mark.usefixtures("three_at_once")
def test_a_micro_batch_that_was_asked_for_is_taken() -> None:
    backend = Noting()
    _step(NETWORK, "fast", "low", backend=backend, micro_batch=5)
    assert [n for event, n in backend.noted if event == "loss"] == [5, 2]


@pytest.mark.parametrize("network", [NETWORK, NORMALISED], ids=["chain", "normalised"])
@pytest.mark.usefixtures("three_at_once")
def test_little_memory_changes_last_bits_of_fast_gradients_alone(network: NetworkSpec) -> None:
    exact, lean = (_step(network, "reproducible", memory)[0] for memory in ("full", "low"))
    assert {name: x.tobytes() for name, x in exact.items()} == {name: x.tobytes() for name, x in lean.items()}
    (state, one, full), (lean_state, parts, low) = (_step(network, "fast", memory) for memory in ("full", "low"))
    assert parts.spikes.tobytes() == one.spikes.tobytes()
    assert (parts.loss, parts.rates) == (one.loss, one.rates)
    assert parts.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    for name in network.parameters:
        moment = state[f"adamw.m/{name}"]
        np.testing.assert_allclose(lean_state[f"adamw.m/{name}"], moment, rtol=1e-4, atol=1e-6 * np.abs(moment).max())
        assert moment.any()
    predicted = [trainer.predict(trainer.import_state(state), _batch().inputs, STEPS) for trainer in (full, low)]
    assert predicted[0].spikes.tobytes() == predicted[1].spikes.tobytes()
    assert predicted[0].rates == predicted[1].rates


@pytest.mark.parametrize(
    ("network", "precision", "share"),
    [(NETWORK, "fast", 0.4), (NETWORK, "reproducible", 0.8), (NORMALISED, "fast", 0.8)],
    ids=["fast", "reproducible", "normalised"],
)
@pytest.mark.usefixtures("three_at_once")
def test_little_memory_takes_less(network: NetworkSpec, precision: Precision, share: float) -> None:
    def most(memory: Memory) -> int:
        trainer = Trainer(NumpyBackend(), network, VanRossum(), AdamW(), precision, 3, memory)
        state, batch = trainer.init(initial_weights(network, 1, 3.0)), _batch(40)
        state, _ = trainer.step(state, batch)
        gc.collect()
        tracemalloc.start()
        try:
            trainer.step(state, batch)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert most("low") < share * most("full")
