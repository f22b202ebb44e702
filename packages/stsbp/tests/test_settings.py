"""Every setting: what it is where nothing is said, and the smallest and largest that it may be."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError
from stsbp.config import RunConfig

COUNTS = {
    "steps": (25, 1, 100_000),
    "weight_bits": (12, 2, 12),
    "epochs": (10, 1, 10**9),
    "batch_size": (50, 1, 10**9),
    "seed": (0, 0, 2**32 - 1),
    "split_seed": (0, 0, 2**32 - 1),
    "limit": (0, 0, 10**9),
    "holdout": (0, 0, 10**9),
    "validation": (0, 0, 10**9),
    "patience": (0, 0, 10**9),
    "image_size": (0, 0, 16_384),
    "test_every": (1, 0, 10**9),
    "augment_shift": (0, 0, 1024),
    "augment_cutout": (0, 0, 1024),
    "log_every": (50, 1, 10**9),
    "threads": (0, 0, 1024),
    "micro_batch": (0, 0, 10**9),
}
"""Default, least and most."""
AMOUNTS = {
    "dropout": (0.0, 0.0, math.nextafter(1, 0)),
    "tau_m": (8.0, 1.0, 1e9),
    "tau_s": (4.0, 1.0, 1e9),
    "tau_rise": (0.0, 0.0, 1e9),
    "threshold": (1.0, 5e-324, math.inf),
    "window_ms": (0.0, 0.0, 1e6),
    "bin_ms": (0.0, 0.0, 1e6),
    "input_tau_s": (0.0, 0.0, 1e9),
    "init_gain": (1.5, 5e-324, math.inf),
    "init_rate": (0.0, 0.0, math.nextafter(1, 0)),
    "lr": (2e-3, 5e-324, math.inf),
    "delay_lr": (0.0, 0.0, math.inf),
    "momentum": (0.9, 0.0, math.nextafter(1, 0)),
    "warmup": (0.0, 0.0, 1e6),
    "weight_decay": (0.0, 0.0, math.inf),
    "clip_norm": (0.0, 0.0, math.inf),
    "augment_rotate": (0.0, 0.0, math.nextafter(180, 0)),
    "augment_scale": (0.0, 0.0, math.nextafter(1, 0)),
    "augment_shear": (0.0, 0.0, 1.0),
    "augment_elastic": (0.0, 0.0, 1024.0),
    "checkpoint_every": (30.0, 0.0, math.inf),
}
"""Default, least and most; infinity: any finite number."""
OTHERS = {
    "net": "256", "padding": "valid", "loss": "van-rossum", "loss_model": "", "label_pattern": "1",
    "undesired_pattern": "0", "neuron": "lif", "neuron_model": "", "surrogate": "arctan", "surrogate_model": "",
    "own_lengths": False, "psp_gain": "normalised",
    "saccades": "all", "stabilise": False, "init_from": "", "init_sha256": "", "schedule": "cosine",
    "optimizer": "adamw", "freeze": "", "rate_penalty": "",
    "precision": "fast", "test": True, "test_on": "", "augment_flip": False, "data_dir": "", "download": False,
    "skip_malformed": False, "memory": "full", "tensorboard": False, "track": "",
}  # fmt: skip


def test_every_setting_has_its_default() -> None:
    setting_defaults = {name: field.default for name, field in RunConfig.model_fields.items() if name != "dataset"}
    ranges = COUNTS | AMOUNTS
    assert setting_defaults == {name: ranges[name][0] for name in ranges} | OTHERS


def _read(name: str, value: Any) -> Any:
    return getattr(RunConfig(dataset="digits", **{name: value}), name)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_read_up_to_its_ends(name: str) -> None:
    _, least, most = COUNTS[name]
    assert [_read(name, least), _read(name, most)] == [least, most]
    for beyond in (least - 1, most + 1):
        with pytest.raises(ValidationError):
            _read(name, beyond)


@pytest.mark.parametrize("name", AMOUNTS)
def test_an_amount_is_read_up_to_its_ends(name: str) -> None:
    _, least, most = AMOUNTS[name]
    largest = 1e300 if most == math.inf else most
    assert [_read(name, least), _read(name, largest)] == [least, largest]
    for beyond in (math.nextafter(least, -math.inf), math.nextafter(most, math.inf), math.nan):
        with pytest.raises(ValidationError):
            _read(name, beyond)
