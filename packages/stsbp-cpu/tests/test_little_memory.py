"""What a step of the backend has in memory at once, by the arrays that are alive."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from stsbp_cpu.backend import CpuBackend
from stsbp_spec.engine import memory as rules
from stsbp_spec.engine.memory import kept_bytes
from stsbp_spec.engine.results import Batch
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Memory, Precision

STEPS, BATCH = 8, 24
NETWORK = NetworkSpec.parse("16C3p1-P2-16C3p1-P2", input_shape=(2, 16, 16), outputs=5)


@pytest.mark.parametrize(("precision", "full", "low"), [("fast", 1.7, 0.35), ("reproducible", 2.4, 1.0)])
def test_a_step_takes_no_more_than_this_share_of_what_is_kept(
    precision: Precision, full: float, low: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `reproducible` precision parts wait for each other with their errors, but without their potentials."""
    # Of 24 samples 4 are computed at a time.
    sample = kept_bytes(NETWORK, STEPS)
    monkeypatch.setattr(rules, "_GROUP_BYTES", 4 * sample)
    random = np.random.default_rng(1)
    inputs = (random.random((STEPS, BATCH, *NETWORK.input_shape)) < 0.2).astype(np.uint8)
    batch = Batch(inputs, (random.random((STEPS, BATCH, 5)) < 0.3).astype(np.uint8))

    def most(memory: Memory) -> int:
        trainer = CpuBackend().trainer(NETWORK, VanRossum(), AdamW(), precision=precision, memory=memory)
        state, _ = trainer.step(trainer.init(initial_weights(NETWORK, 0, 2.0)), batch)
        gc.collect()
        tracemalloc.start()
        try:
            trainer.step(state, batch)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    bytes_of_batch = BATCH * sample
    assert most("full") < full * bytes_of_batch
    assert most("low") < low * bytes_of_batch
