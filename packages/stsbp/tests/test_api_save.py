"""`stsbp.save_run`: networks of other loops as runs, which evaluate, report, export and continue."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from four_classes import CLASSES, DATA, FRAMES, SETTINGS, SPEC, STEPS, TARGETS, saved, updated
from stsbp.errors import ConfigError, FileError, StsbpError
from stsbp.interop.c_source.check import compared, driver, macros, recorded
from stsbp_spec import AdamW, VanRossum, initial_weights, open_backend
from stsbp_spec.errors import NetworkError, ShapeError
from stsbp_spec.models.neurons import LIF, PLIF


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    return initial_weights(SPEC, seed=0)


def check_c(run: package.Run, folder: Path, weights: Any) -> None:
    """The exported C program has the spikes and potentials of the network with the weights of the loop."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("there is no gcc")
    assert run.export("c", folder).path == folder
    header = next(folder.glob("*.h"))
    exported: Any = SimpleNamespace(stem=header.stem, header=header.read_text())
    (folder / "main.c").write_text(driver([exported]))
    expected = open_backend("numpy").run(run.network, weights, FRAMES, STEPS)
    with (folder / f"{header.stem}.bin").open("wb") as file:
        recorded(file, run.network, FRAMES, expected)
    command = [gcc, "-std=c99", *macros([exported]), f"{header.stem}.c", "main.c", "-o", "all", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    output = subprocess.run(["./all"], cwd=folder, check=True, capture_output=True, text=True).stdout
    layers = list(compared(output))
    assert [layer for layer in layers if layer.spikes_differ or layer.potentials_differ] == []
    assert [layer.spikes for layer in layers] == [int(layer.spikes.sum()) for layer in expected.layers.values()]
    assert layers[-1].spikes > 0


def test_weights_of_a_loop_are_a_run(weights: dict[str, Any], stsbp: Callable[..., Result], tmp_path: Path) -> None:
    history = [{"loss": 0.5, "accuracy": 0.25}, {"loss": 0.4}]
    run = saved(SPEC, tmp_path / "run", weights=weights, history=history)
    expected = open_backend("numpy").run(SPEC, weights, FRAMES, STEPS).layers["linear2"].spikes
    assert np.array_equal(run.predict(FRAMES).spikes, expected)
    assert run.network.graph == SPEC.graph
    assert "network 24-4" in repr(run)
    assert (run.info["step"], run.info["epoch"], run.finished) == (0, 0, False)
    assert run.evaluate(split="train")["samples"] == 32
    figures = [{key: x for key, x in row.items() if key.startswith("history")} for row in run.metrics]
    assert figures == [{"history.loss": 0.5, "history.accuracy": 0.25}, {"history.loss": 0.4}]
    page = run.report().read_text()
    assert "<h2>History</h2>" in page
    assert "stsbp.save_run(network" in page
    assert "network <code>24-4</code>" in page
    assert "No epoch is complete" not in page
    check_c(run, tmp_path / "c", weights)
    assert "The network 24-4 of the run" in "".join(file.read_text() for file in (tmp_path / "c").glob("*.h"))
    assert stsbp("export", tmp_path / "run", "--to", "nir", "--out", tmp_path / "net.nir").exit_code == 0
    assert stsbp("compare", tmp_path / "run").exit_code == 0
    # Training begins with these weights.
    first = f"{tmp_path / 'run'}:last"
    folder = tmp_path / "from"
    other = package.train(
        DATA, SPEC, init_from=first, epochs=1, out=folder, backend="numpy", progress=False, **SETTINGS
    )
    resumed = package.train(DATA, resume=tmp_path / "run", backend="numpy", progress=False)
    assert other.finished
    assert resumed.finished
    assert resumed.info["step"] == resumed.settings.epochs


def test_the_state_of_a_trainer_goes_on_to_the_bit(weights: dict[str, Any], tmp_path: Path) -> None:
    backend = open_backend("numpy")
    trainer = backend.trainer(
        SPEC, VanRossum(), AdamW(lr=5e-3, weight_decay=0.01, clip_norm=1.0), precision="reproducible", seed=3
    )
    run = saved(trainer, tmp_path / "run", state=updated(trainer, trainer.init(weights), 3), epochs=5)
    assert (run.info["step"], run.info["epoch"], run.settings.epochs) == (3, 3, 5)
    config = run.settings
    assert (config.lr, config.weight_decay, config.clip_norm, config.schedule) == (5e-3, 0.01, 1.0, "constant")
    assert (config.precision, config.seed, config.loss) == ("reproducible", 3, "van-rossum")
    resumed = package.train(DATA, resume=tmp_path / "run", backend="numpy", progress=False)
    # A batch of all samples has the same gradient in every order.
    expected = trainer.export_state(updated(trainer, trainer.init(weights), 5))
    actual = resumed.task.trainer.export_state(resumed.state)
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert np.array_equal(actual[name], x), name
    # The same from the exported state, without the trainer.
    exported = trainer.export_state(updated(trainer, trainer.init(weights), 3))
    again = saved(SPEC, tmp_path / "again", state=exported, precision="reproducible", seed=3)
    assert (again.info["step"], again.finished) == (3, True)
    with pytest.raises(ConfigError, match="has 3 updates, but an epoch of 32 training samples has 2 with batch"):
        saved(SPEC, tmp_path / "other", state=exported, batch_size=16)
    assert not (tmp_path / "other").exists()


def test_the_samples_of_an_update_are_not_assumed(weights: dict[str, Any], tmp_path: Path) -> None:
    """Six updates of 8 samples are one epoch and a half; with the default of 50 samples, they would be six epochs."""
    backend = open_backend("numpy")
    arguments: dict[str, Any] = {"data": DATA, "label_pattern": "01", "test": False, "backend": "numpy"}
    trainer = backend.trainer(SPEC, VanRossum(), AdamW())
    state = updated(trainer, trainer.init(weights), 6)
    falling = backend.trainer(SPEC, VanRossum(), AdamW(total_steps=8))
    asked = "the state and the learning rate of your loop count updates; give the number of samples in .* batch_size="
    counting: list[tuple[Any, Any]] = [(trainer, state), (SPEC, trainer.export_state(state))]
    for network, given in (*counting, (falling, falling.init(weights))):
        with pytest.raises(ConfigError, match=asked):
            package.save_run(network, tmp_path / "x", state=given, **arguments)
    with pytest.raises(ConfigError, match="has 6 updates, but an epoch of 32 training samples has 4 with batch_size=8"):
        package.save_run(trainer, tmp_path / "x", state=state, batch_size=8, **arguments)
    assert not (tmp_path / "x").exists()
    # Where nothing is counted, the size of the batches of further training is a setting like any other.
    assert package.save_run(trainer, tmp_path / "new", state=trainer.init(weights), **arguments).info["epoch"] == 0
    assert package.save_run(SPEC, tmp_path / "weights", weights=weights, **arguments).info["epoch"] == 0
    del arguments["data"]
    assert package.save_run(trainer, tmp_path / "apart", state=state, steps=12, **arguments).info["step"] == 6


@pytest.mark.parametrize(
    ("network", "arguments", "kind", "message"),
    [
        (3, {}, ConfigError, "a stsbp_torch.Network or Sequential, a NetworkSpec, or a trainer of a backend, got 3"),
        (SPEC, {}, ConfigError, "a NetworkSpec has no weights; give weights="),
        (SPEC, {"weights": {"linear1": np.zeros((24, 20))}}, ShapeError, "linear1 must be float32, got float64"),
        (SPEC, {"weights": {"linear1": np.zeros((24, 20), np.float32)}}, StsbpError, "linear2"),
        (SPEC, {"weights": True}, ConfigError, "weights are arrays by name, got True"),
        (SPEC, {"weights": "own", "state": 3}, ConfigError, "state is a TrainState"),
        (SPEC, {"weights": "own", "tau_m": 4.0}, ConfigError, "tau_m=: the network already contains this"),
        (SPEC, {"weights": "own", "lrr": 4.0}, ConfigError, "unknown setting 'lrr' .did you mean lr"),
        (
            SPEC,
            {"weights": "own", "data": "digits", "steps": 5},
            ConfigError,
            r"inputs of shape \[20\] with ev",
        ),
        (
            SPEC,
            {"weights": "own", "data": None},
            ConfigError,
            "give the number of steps with which the",
        ),
        (SPEC, {"weights": "own", "history": [{"loss": "x"}]}, ConfigError, "loss is a number in each record, got 'x'"),
        (SPEC, {"weights": "own", "history": [np.nan]}, ConfigError, "history: loss is nan, which is not finite"),
        (SPEC, {"weights": "own", "history": {"a": [1], "b": []}}, ConfigError, "its lists have different lengths"),
    ],
)
def test_what_is_no_run_is_refused(
    network: Any,
    arguments: dict[str, Any],
    kind: type[StsbpError],
    message: str,
    weights: dict[str, Any],
    tmp_path: Path,
) -> None:
    given = {**arguments, **({"weights": weights} if arguments.get("weights") == "own" else {})}
    with pytest.raises(kind, match=message):
        saved(network, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "history",
    [
        [0.5, 0.25],
        np.array([0.5, 0.25]),
        {"loss": np.array([0.5, 0.25])},
        [{"loss": np.float32(x)} for x in (0.5, 0.25)],
    ],
)
def test_numbers_of_a_loop_have_several_forms(history: Any, weights: dict[str, Any], tmp_path: Path) -> None:
    run = saved(SPEC, tmp_path / "run", weights=weights, history=history)
    assert [row["history.loss"] for row in run.metrics] == [0.5, 0.25]


def test_an_earlier_run_is_replaced_only_on_request(weights: dict[str, Any], tmp_path: Path) -> None:
    saved(SPEC, tmp_path / "run", weights=weights)
    with pytest.raises(FileError, match="is not empty; replace it with overwrite=True"):
        saved(SPEC, tmp_path / "run", weights=weights)
    run = saved(SPEC, tmp_path / "run", weights=weights, overwrite=True, lr=0.5)
    assert run.settings.lr == 0.5


def test_without_data_a_run_is_evaluated_on_other_samples(weights: dict[str, Any], tmp_path: Path) -> None:
    run = saved(SPEC, tmp_path / "run", weights=weights, data=None, steps=STEPS, classes=list("abcd"))
    assert run.names == ("a", "b", "c", "d")
    assert run.evaluate(DATA)["samples"] == 32
    assert run.report().is_file()


def test_a_module_of_torch_is_a_run_with_its_moments(tmp_path: Path) -> None:
    pytest.importorskip("stsbp_torch")
    import torch
    from stsbp_torch import PSP, Network, Sequential, SpikingLinear, spike_loss

    net = Network(replace(SPEC), seed=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    frames = torch.from_numpy(FRAMES)
    for _ in range(2):
        optimizer.zero_grad()
        loss = spike_loss(VanRossum(), net(frames), torch.from_numpy(TARGETS), psp=SPEC.output_psp)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    run = saved(net, tmp_path / "run", state=optimizer, epochs=3)
    assert (run.info["step"], run.info["epoch"]) == (2, 2)
    moments = run.task.trainer.export_state(run.state)
    assert np.array_equal(moments["adamw.m/linear1"], optimizer.state[net.named()["linear1"]]["exp_avg"].numpy())
    with torch.no_grad():
        expected = net.eval()(frames).numpy()
    assert np.array_equal(run.predict(FRAMES).spikes, expected)
    check_c(run, tmp_path / "c", {name: x.detach().numpy() for name, x in net.named().items()})
    assert package.train(DATA, resume=tmp_path / "run", backend="numpy", progress=False).info["step"] == 3
    with pytest.raises(ConfigError, match=r"with the layers 0: Linear, 1: ReLU is not a network"):
        saved(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), tmp_path / "x")
    layers = Sequential(
        SpikingLinear(20, 24, neuron=PLIF(tau_m=4, tau_s=3), bias=True),
        torch.nn.Dropout(0.5),
        SpikingLinear(24, CLASSES, neuron=LIF(tau_m=5, tau_s=3), psp=PSP(3)),
        input_shape=(20,),
    )
    run = saved(layers.eval(), tmp_path / "layers")
    assert set(run.weights) == {"linear1", "linear1.bias", "linear1.decay", "linear2"}
    with torch.no_grad():
        assert np.array_equal(run.predict(FRAMES).spikes, layers(frames).numpy())
    bare = Sequential(SpikingLinear(20, 4), input_shape=(20,), input_exponent=0, input_max=0.5)
    with pytest.raises(NetworkError, match=r"the inputs of a network are spikes or counts"):
        saved(bare, tmp_path / "x")


def test_weights_of_jax_are_a_run_with_the_moments_of_optax(weights: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("stsbp_jax")
    optax = pytest.importorskip("optax")
    import jax
    from stsbp_jax import apply, distance

    optimizer = optax.adamw(1e-2)
    values: Any = weights
    state = optimizer.init(values)
    for _ in range(2):
        gradients = jax.grad(
            lambda w: distance(VanRossum(), SPEC.output_psp, apply(SPEC, w, FRAMES, steps=STEPS), TARGETS)
        )(values)
        changes, state = optimizer.update(gradients, state, values)
        values = optax.apply_updates(values, changes)
    run = saved(SPEC, tmp_path / "run", weights=values, state=state, history=[0.5, 0.4])
    assert run.info["step"] == 2
    assert np.array_equal(run.predict(FRAMES).spikes, np.asarray(apply(SPEC, values, FRAMES, steps=STEPS)))
    check_c(run, tmp_path / "c", {name: np.asarray(x) for name, x in values.items()})
