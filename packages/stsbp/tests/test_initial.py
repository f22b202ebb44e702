"""Initial weights scaled until every layer fires."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.config import SettingsSource, resolve
from stsbp.training.build import Data, Task, build_task, load_data
from stsbp.training.initial import GAINS, first_weights, scaled_to_rate
from stsbp_spec import initial_weights, open_backend

DEEP = {"dataset": "digits", "net": "8C3-8C3-P2-8C3-8C3-16", "steps": 3, "holdout": 30, "limit": 100, "init_gain": 1.0}


def deep(**settings: Any) -> tuple[Task, Data]:
    config = resolve([SettingsSource("test", {**DEEP, **settings})])
    data = load_data(config)
    return build_task(config, data.inputs, open_backend("numpy"), len(data.train)), data


def rates(task: Task, data: Data, weights: dict[str, Any]) -> dict[str, float]:
    state = task.trainer.init(weights)
    return task.trainer.predict(state, data.train.inputs(np.arange(64)), task.config.steps).rates


def test_without_a_rate_the_weights_are_those_of_the_spec() -> None:
    task, data = deep()
    plain = initial_weights(task.network, 0, 1.0)
    assert all(np.array_equal(w, plain[name]) for name, w in first_weights(task, data.train).items())
    assert min(rates(task, data, plain).values()) == 0.0


def test_with_a_rate_every_layer_fires_at_least_about_so_often() -> None:
    task, data = deep(init_rate=0.1)
    fired = rates(task, data, first_weights(task, data.train))
    assert all(rate > 0.08 for rate in fired.values()), fired


def test_layers_that_fire_often_enough_keep_their_weights() -> None:
    task, data = deep()
    plain = initial_weights(task.network, 0, 5.0)
    least = min(rates(task, data, plain).values())
    assert least > 0
    scaled = scaled_to_rate(task, plain, data.train.inputs(np.arange(64)), least)
    assert all(np.array_equal(w, plain[name]) for name, w in scaled.items())


@pytest.mark.parametrize("net", ["12R-8", "nodes"])
def test_all_weights_of_a_population_have_one_factor_but_for_its_recurrence(net: str) -> None:
    nodes = (
        '[[node]]\nname = "a"\nweights = "12"\nfrom = "input"\n[[node]]\nname = "m"\nneurons = ""\nfrom = "a"\n'
        '[[node]]\nname = "b"\nweights = "12"\nfrom = "input"\n[[node]]\nname = "c"\nweights = "12"\nfrom = "m"\n'
        '[[node]]\nname = "r"\nweights = "12"\nfrom = {node = "n", delay = 1}\n'
        '[[node]]\nname = "n"\nneurons = ""\nfrom = ["b", "c", "r"]\n'
        '[[node]]\nname = "d"\nweights = "10"\nfrom = "n"\n[[node]]\nname = "o"\nneurons = ""\nfrom = "d"\n'
    )
    task, data = deep(net=nodes if net == "nodes" else net, init_gain=0.5)
    plain = initial_weights(task.network, 0, 0.5)
    scaled = scaled_to_rate(task, plain, data.train.inputs(np.arange(64)), 0.1)
    gains = {
        name: next(g for g in GAINS if np.array_equal(w, plain[name] * np.float32(g))) for name, w in scaled.items()
    }
    if net == "nodes":
        assert gains["r"] == 1 < gains["b"] == gains["c"]
        assert gains["a"] > 1 < gains["d"]
    else:
        assert gains["linear1.recurrent"] == 1 < min(gains["linear1"], gains["linear2"])
    assert min(rates(task, data, scaled).values()) >= 0.1


def test_each_gain_is_the_least_that_does() -> None:
    task, data = deep()
    plain = initial_weights(task.network, 0, 1.0)
    inputs = data.train.inputs(np.arange(64))
    scaled = scaled_to_rate(task, plain, inputs, 0.1)
    for name, w in scaled.items():
        (gain,) = (g for g in GAINS if np.array_equal(plain[name] * np.float32(g), w))
        assert rates(task, data, scaled)[name] >= 0.1
        if gain == GAINS[0]:
            continue
        lower = {**scaled, name: plain[name] * np.float32(GAINS[GAINS.index(gain) - 1])}
        assert rates(task, data, lower)[name] < 0.1
    assert all(np.array_equal(w, initial_weights(task.network, 0, 1.0)[name]) for name, w in plain.items())


def test_a_rate_that_no_gain_reaches_takes_the_largest() -> None:
    task, _ = deep()
    plain = initial_weights(task.network, 0, 1.0)
    dark = np.zeros((4, *task.inputs.shape), dtype=np.uint8)
    scaled = scaled_to_rate(task, plain, dark, 0.1)
    assert all(np.array_equal(w, plain[name] * np.float32(GAINS[-1])) for name, w in scaled.items())


def test_torch_gives_the_same_bits() -> None:
    pytest.importorskip("stsbp_torch")
    task, data = deep(init_rate=0.1)
    other = build_task(task.config, data.inputs, open_backend("torch"), len(data.train))
    ours, theirs = first_weights(task, data.train), first_weights(other, data.train)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_train_command_takes_a_rate_and_keeps_to_it(
    train_tiny: Callable[..., Result], same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    rate = ("--init-rate", "0.1")
    assert train_tiny(tmp_path / "whole", *rate).exit_code == 0
    assert train_tiny(tmp_path / "again", *rate).exit_code == 0
    same_run(tmp_path / "again", tmp_path / "whole")
    other = train_tiny(tmp_path / "whole", "--resume", "--init-rate", "0.2")
    assert other.exit_code == 1
    assert "init_rate: 0.1 in the run, 0.2 asked" in other.output


def test_gains_are_four_an_octave_from_1_to_56() -> None:
    """They must not change between versions: the first weights of a run would."""
    assert GAINS[:6] == (1, 1.25, 1.5, 1.75, 2, 2.5)
    assert (len(GAINS), GAINS[-1]) == (24, 56)
