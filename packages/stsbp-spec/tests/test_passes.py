"""Slices of a batch in the passes: what is exchanged for all of them, in which order they go, and what stays alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stsbp_spec.distributed.collective import Alone
from stsbp_spec.engine.results import Batch
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import LIF, PLIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Memory, Precision

STEPS, BATCH = 5, 6
CHAIN = NetworkSpec.parse("3C3-P2-4C3bn-3", input_shape=(2, 10, 10), neuron=LIF(3.0, 5 / 3, 0.4))
EVERYTHING = NetworkSpec.parse("3C3bn-P2-D0.3-6R-3", input_shape=(2, 10, 10), neuron=PLIF(3.0, 5 / 3, 0.4))


class Noting(Alone[AnyArray]):
    """Notes which numbers of the whole batch are requested, and which steps are computed."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[int, ...]]] = []
        self.steps: list[str] = []

    def largest(self, x: AnyArray) -> AnyArray:
        self.sent.append(("largest", x.shape))
        return x

    def start_total(self, x: AnyArray) -> Callable[[], AnyArray]:
        self.sent.append(("total", x.shape))
        return lambda: x

    def beat(self, label: str) -> None:
        self.steps.append(label)


class Living(NumpyBackend):
    """Notes how many slices have potentials in memory after neurons and before spikes are packed, and how many have
    errors before one is rounded."""

    def open(self, device: str | None) -> str:
        self.potentials: list[weakref.ref[AnyArray]] = []
        self.living: list[int] = []
        self.packing: list[int] = []
        self.errors: list[weakref.ref[AnyArray]] = []
        self.waiting: list[int] = []
        return super().open(device)

    def pack_spikes(self, s: AnyArray) -> Any:
        self.packing.append(sum(u() is not None for u in self.potentials))
        return super().pack_spikes(s)

    def largest_error(self, dz: AnyArray) -> AnyArray:
        self.errors.append(weakref.ref(dz))
        return super().largest_error(dz)

    def error_grid(self, dz: AnyArray, bits: int, largest: AnyArray | None = None) -> tuple[AnyArray, AnyArray]:
        self.waiting.append(sum(error() is not None for error in self.errors))
        return super().error_grid(dz, bits, largest)

    def population_forward(self, *arguments: Any) -> Any:
        spikes, residuals = super().population_forward(*arguments)
        self.potentials.append(weakref.ref(residuals.kept["u"]))
        self.living.append(sum(u() is not None for u in self.potentials))
        return spikes, residuals


def _step(
    network: NetworkSpec, precision: Precision, memory: Memory, micro_batch: int | None, backend: Any = None
) -> tuple[Noting, dict[str, AnyArray]]:
    collective, random = Noting(), np.random.default_rng(1)
    trainer = Trainer(
        backend or NumpyBackend(), network, VanRossum(), AdamW(), precision, 3, memory, micro_batch, collective
    )
    inputs = (random.random((STEPS, BATCH, *network.input_shape)) < 0.3).astype(np.uint8)
    batch = Batch(inputs, (random.random((STEPS, BATCH, 3)) < 0.3).astype(np.uint8))
    state, _ = trainer.step(trainer.init(initial_weights(network, 1, 3.0)), batch)
    return collective, trainer.export_state(state)


@pytest.mark.parametrize(("memory", "micro_batch"), [("low", None), ("full", 2), ("full", 1), ("low", 4)])
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_a_step_sends_the_messages_of_one_slice(precision: Precision, memory: Memory, micro_batch: int | None) -> None:
    """However many slices there are, and although memory `low` computes each step twice."""
    undivided, state = _step(EVERYTHING, precision, "full", None)
    slices, other = _step(EVERYTHING, precision, memory, micro_batch)
    assert slices.sent == undivided.sent
    if precision == "reproducible":
        assert all(other[name].tobytes() == x.tobytes() for name, x in state.items())


def test_each_step_asks_once_for_what_it_needs() -> None:
    """In `reproducible` precision: one grid for each weights, normalisation and learned parameter, and two sums for the
    normalisation."""
    collective, _ = _step(EVERYTHING, "reproducible", "full", 2)
    decays = [name for name in EVERYTHING.parameters if name.endswith(".decay")]
    assert len(decays) == 3
    assert len(EVERYTHING.graph.projections) == 4
    assert [kind for kind, _ in collective.sent].count("largest") == 4 + 1 + len(decays)
    # The gradients of the normalisation's scale and shift are computed from its sums, and need no message.
    assert [kind for kind, _ in collective.sent].count("total") == 2 + len(EVERYTHING.parameters) - 2
    assert collective.sent[0] == ("total", (3, 3))


def test_steps_between_two_exchanges_are_computed_for_one_slice_after_the_other() -> None:
    collective, _ = _step(CHAIN, "fast", "full", 3)
    first, last_segment = ["conv1", "neurons1", "pool2.0"], ["neurons2", "linear3", "neurons3"]
    forward = [*first, *first, "conv2", "conv2", *last_segment, *last_segment]
    assert collective.steps[: len(forward)] == forward
    # Then back, each segment again before its slice goes back.
    last, middle = ["linear3", "neurons3"], ["pool2.0", "conv2", "neurons2"]
    backward = [*last, *last[::-1]] * 2 + [*middle, "neurons2"] * 2 + ["conv2"] * 2 + ["pool2.0"] * 2
    assert collective.steps[len(forward) :] == backward + ["conv1", "neurons1", "neurons1", "conv1"] * 2


@pytest.mark.parametrize("network", [CHAIN, EVERYTHING], ids=["chain", "everything"])
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("memory", ["full", "low"])
def test_potentials_of_one_slice_are_in_memory(network: NetworkSpec, precision: Precision, memory: Memory) -> None:
    backend = Living()
    _step(network, precision, memory, 1, backend)
    populations = sum(block.recurrent is None for block in network.blocks)
    # Both passes compute the neurons of every slice.
    assert len(backend.living) == 2 * BATCH * populations
    assert max(backend.living) == 1
    assert set(backend.packing) == {0}


def test_an_error_that_was_rounded_is_not_in_memory_any_more() -> None:
    backend = Living()
    _step(CHAIN, "reproducible", "full", 1, backend)
    # Three weights and a normalisation: all slices wait for the largest error, and then lose theirs one by one.
    assert backend.waiting == [*range(BATCH, 0, -1)] * 4
