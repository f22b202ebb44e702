"""32 samples of four classes with different rates, a network for them, and runs that `stsbp.save_run` makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import stsbp as package
from stsbp_spec import Batch, NetworkSpec
from stsbp_spec.engine.trainer import Trainer, TrainState
from stsbp_spec.models.encoders import LabelCode, encode_repeat
from stsbp_spec.models.neurons import LIF

STEPS, CLASSES = 12, 4
LABELS = np.arange(32) % CLASSES
FRAMES = (np.random.default_rng(0).random((STEPS, 32, 20)) < (0.05 + 0.1 * LABELS)[:, None]).astype(np.uint8)
DATA = FRAMES, LABELS
TARGETS = encode_repeat(LABELS, CLASSES, STEPS, LabelCode("01", "0"))
SPEC = NetworkSpec.parse("24", input_shape=(20,), outputs=CLASSES, neuron=LIF(tau_m=5, tau_s=3))
SETTINGS: dict[str, Any] = {"label_pattern": "01", "batch_size": 32, "test": False}


def saved(*network: Any, **arguments: Any) -> package.Run:
    return package.save_run(*network, **{"backend": "numpy", "data": DATA, **SETTINGS, **arguments})


def updated(trainer: Trainer[Any], state: TrainState[Any], count: int) -> TrainState[Any]:
    for _ in range(count):
        state, _ = trainer.step(state, Batch(FRAMES, TARGETS))
    return state
