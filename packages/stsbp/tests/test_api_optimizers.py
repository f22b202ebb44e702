"""Optimisers of `stsbp.train`, and the states of those of torch and optax with which a saved run continues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from four_classes import DATA, FRAMES, SPEC, STEPS, TARGETS, saved, updated
from stsbp.errors import ConfigError
from stsbp_spec import SGD, Adam, AdamW, VanRossum, initial_weights, open_backend
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.optim import Optimizer

SameRun = Callable[[Path, Path], None]


def resumed(folder: Path) -> package.Run:
    return package.train(DATA, resume=folder, backend="numpy", progress=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "adam", "weight_decay": 0.01}, ["--optimizer", "adam", "--weight-decay", 0.01]),
        (
            {"optimizer": "sgd", "momentum": 0.5, "freeze": ["linear1", "linear2"][:1], "lr": 0.05},
            ["--optimizer", "sgd", "--momentum", 0.5, "--freeze", "linear1", "--lr", 0.05],
        ),
    ],
)
def test_python_and_the_command_line_have_the_same_optimisers(
    settings: dict[str, Any],
    words: list[Any],
    train_tiny: Callable[..., Result],
    stsbp: Callable[..., Result],
    same_run: SameRun,
    tmp_path: Path,
) -> None:
    assert train_tiny(tmp_path / "command", *words).exit_code == 0
    tiny: dict[str, Any] = {"steps": 3, "epochs": 3, "batch_size": 20, "limit": 50, "holdout": 30, "validation": 10}
    call: dict[str, Any] = {"lr": 0.01, "log_every": 2, **tiny, **settings, "backend": "numpy", "progress": False}
    run = package.train("digits", "12", out=tmp_path / "python", **call)
    same_run(tmp_path / "python", tmp_path / "command")
    # Stopped in Python, continued by the command.
    unfinished = package.train("digits", "12", out=tmp_path / "parts", stop_after=1e-9, **call)
    assert not unfinished.finished
    assert stsbp("train", "--resume", tmp_path / "parts").exit_code == 0
    same_run(tmp_path / "parts", tmp_path / "command")
    prefix = f"{settings['optimizer']}.{'m' if settings['optimizer'] == 'adam' else 'momentum'}/linear2"
    assert np.any(run.task.trainer.export_state(run.state)[prefix])


def test_a_run_that_its_patience_ended_is_finished(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 3, "limit": 50, "holdout": 30, "validation": 10, "lr": 1e-9, "batch_size": 20}
    run = package.train(
        *("digits", "12"), out=tmp_path / "run", epochs=9, patience=2, backend="numpy", progress=False, **settings
    )
    assert (run.info["epoch"], run.finished, run.info["best"]["epoch"]) == (3, True, 1)
    assert "finished" in repr(run)
    longer = package.train(out=tmp_path / "run", resume=True, patience=3, backend="numpy", progress=False)
    assert (longer.info["epoch"], longer.finished) == (4, True)
    # The run of the first object now waits longer, but its checkpoint is the same.
    assert run.finished
    with pytest.raises(ConfigError, match="give validation=M, the number of training samples to hold out, or leave p"):
        package.train("digits", "12", out=tmp_path / "x", patience=2, steps=3, backend="numpy", progress=False)


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(lr=5e-3, weight_decay=0.01, total_steps=6, warmup_steps=2),
        Adam(lr=5e-3, weight_decay=0.01, clip_norm=1.0),
        SGD(lr=0.05, momentum=0.5),
    ],
)
@pytest.mark.parametrize("frozen", [(), ("linear1",)])
def test_the_state_of_every_trainer_goes_on_to_the_bit(
    optimizer: Optimizer, frozen: tuple[str, ...], tmp_path: Path
) -> None:
    backend, weights = open_backend("numpy"), initial_weights(SPEC, seed=0)
    # The order of the samples does not matter in this precision.
    trainer = backend.trainer(SPEC, VanRossum(), optimizer, precision="reproducible", frozen=frozen)
    state = updated(trainer, trainer.init(weights), 3)
    run = saved(trainer, tmp_path / "run", state=state, **({} if optimizer.total_steps else {"epochs": 6}))
    assert run.task.trainer.optimizer == optimizer
    assert (run.info["step"], run.settings.epochs, run.settings.freeze) == (3, 6, ",".join(frozen))
    continued = resumed(tmp_path / "run")
    expected = trainer.export_state(updated(trainer, trainer.init(weights), 6))
    actual = continued.task.trainer.export_state(continued.state)
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert np.array_equal(actual[name], x), name
    # The exported state says its optimiser.
    other = saved(SPEC, tmp_path / "other", state=trainer.export_state(state))
    assert other.settings.optimizer == optimizer.name
    wrong = "adam" if optimizer.name == "sgd" else "sgd"
    with pytest.raises(ConfigError, match=f"the state is that of the optimiser {optimizer.name}, not {wrong}; leave"):
        saved(SPEC, tmp_path / "x", state=trainer.export_state(state), optimizer=wrong)


def test_a_trainer_whose_updates_a_run_does_not_have_is_refused(tmp_path: Path) -> None:
    backend, weights = open_backend("numpy"), initial_weights(SPEC, seed=0)

    def save(optimizer: Optimizer, **arguments: Any) -> package.Run:
        trainer = backend.trainer(SPEC, VanRossum(), optimizer)
        return saved(trainer, tmp_path / "x", state=updated(trainer, trainer.init(weights), 2), **arguments)

    with pytest.raises(ConfigError, match=r"with beta1=0\.9, but the optimiser of the trainer has 0\.8; to save the w"):
        save(AdamW(beta1=0.8))
    with pytest.raises(ConfigError, match="falls for 7 updates, but an epoch has 2 with batch_size=16"):
        save(AdamW(total_steps=7), batch_size=16)
    assert not (tmp_path / "x").exists()


TORCH: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("AdamW", {"lr": 5e-3}, {"optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.01}),
    ("Adam", {"lr": 5e-3, "weight_decay": 0.1}, {"optimizer": "adam", "lr": 5e-3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.5}, {"optimizer": "sgd", "lr": 0.05, "momentum": 0.5, "weight_decay": 0.0}),
    ("SGD", {"lr": 0.05}, {"optimizer": "sgd", "momentum": 0.0}),
]


@pytest.mark.parametrize(("name", "arguments", "settings"), TORCH)
@pytest.mark.parametrize("frozen", [False, True])
def test_optimisers_of_torch_go_on_in_a_run(
    name: str, arguments: dict[str, Any], settings: dict[str, Any], frozen: bool, tmp_path: Path
) -> None:
    pytest.importorskip("stsbp_torch")
    import torch
    from stsbp_torch import Network, spike_loss

    net = Network(SPEC, seed=1)
    net.named()["linear1"].requires_grad_(not frozen)
    optimizer: Any = getattr(torch.optim, name)(net.parameters(), **arguments)

    def update() -> None:
        optimizer.zero_grad()
        loss = spike_loss(VanRossum(), net(torch.from_numpy(FRAMES)), torch.from_numpy(TARGETS), psp=SPEC.output_psp)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    update()
    update()
    updates = {"updates": 2} if name == "SGD" else {}
    run = saved(net, tmp_path / "run", state=optimizer, epochs=3, **updates)
    config = run.settings.model_dump()
    assert {key: config[key] for key in settings} == settings
    assert (config["schedule"], config["freeze"]) == ("constant", "linear1" if frozen else "")
    assert (run.info["step"], run.info["epoch"], run.finished) == (2, 2, False)
    before = {key: x.detach().numpy().copy() for key, x in net.named().items()}
    continued = resumed(tmp_path / "run")
    update()
    # Torch rounds elsewhere, but the next update is the same one.
    for key, x in net.named().items():
        change = x.detach().numpy() - before[key]
        assert np.allclose(continued.weights[key] - before[key], change, rtol=1e-3, atol=1e-3 * np.abs(change).max())
        assert bool(np.any(change)) == (key == "linear2" or not frozen)


def test_optimisers_of_torch_whose_updates_a_run_does_not_have_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("stsbp_torch")
    import torch
    from stsbp_torch import Network, Sequential, SpikingLinear

    net = Network(SPEC, seed=1)
    weights = list(net.parameters())

    def refused(optimizer: Any, message: str, network: Any = net, **arguments: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            saved(network, tmp_path / "x", state=optimizer, **arguments)

    refused(torch.optim.RMSprop(weights), "with AdamW, Adam or SGD, but this optimiser is RMSprop; leave state out")
    refused(torch.optim.Adam(weights, betas=(0.8, 0.999)), r"with betas=\(0\.9, 0\.999\), but .* has \(0\.8, 0\.999\)")
    refused(torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True), "with nesterov=False, but this")
    refused(torch.optim.SGD(weights, lr=0.1, momentum=0.9, dampening=0.1), "with dampening=0, but this")
    refused(torch.optim.SGD(weights, lr=0.1, momentum=0.9), "has not updated the parameter linear1; leave state out")
    refused(torch.optim.SGD(weights, lr=0.1), "does not say after how many updates it was; give their number, updates=")
    groups = [{"params": [x], "lr": rate} for x, rate in zip(weights, (0.1, 0.2), strict=True)]
    refused(torch.optim.SGD(groups), "groups of parameters have different lr, but a run has only one", updates=1)
    refused(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))]), "the optimiser has no parameter of the network")
    with pytest.raises(ConfigError, match="updates is a number of updates, got -1"):
        saved(net, tmp_path / "x", state=torch.optim.SGD(weights, lr=0.1), updates=-1)
    with pytest.raises(ConfigError, match="but there is no state; leave updates out"):
        saved(net, tmp_path / "x", updates=1)
    with pytest.raises(ConfigError, match="belongs to a module; give the module as network"):
        saved(SPEC, tmp_path / "x", weights=initial_weights(SPEC, seed=0), state=torch.optim.SGD(weights, lr=0.1))
    learned = Sequential(SpikingLinear(20, 4, neuron=PLIF(tau_m=4, tau_s=3), bias=True), input_shape=(20,))
    parameters = learned.named()
    refused(torch.optim.SGD(learned.parameters(), lr=0.1, weight_decay=0.1), r"lets linear1\.bias decay", learned)
    apart = [{"params": [x], "weight_decay": 0.0 if "." in name else 0.1} for name, x in parameters.items()]
    run = saved(learned, tmp_path / "apart", state=torch.optim.SGD(apart, lr=0.1), updates=1)
    assert run.settings.weight_decay == 0.1
    only = torch.optim.SGD([parameters["linear1.decay"]], lr=0.1)
    refused(only, r"linear1,linear1\.bias alone cannot be frozen in a run", learned)
    assert not (tmp_path / "x").exists()


def test_states_of_optax_go_on_in_a_run(tmp_path: Path) -> None:
    pytest.importorskip("stsbp_jax")
    optax = pytest.importorskip("optax")
    import jax
    from stsbp_jax import apply, distance

    weights: Any = initial_weights(SPEC, seed=0)
    cases: list[tuple[Any, dict[str, Any]]] = [
        (optax.adam(5e-3), {"optimizer": "adam", "lr": 5e-3}),
        (optax.adamw(5e-3, weight_decay=0.1), {"lr": 5e-3, "weight_decay": 0.1}),
        (optax.sgd(0.05, momentum=0.5), {"lr": 0.05, "momentum": 0.5, "updates": 2}),
        (optax.sgd(optax.constant_schedule(0.05), momentum=0.5), {"lr": 0.05, "momentum": 0.5}),
    ]
    for number, (optimizer, arguments) in enumerate(cases):
        values, state, history = weights, optimizer.init(weights), []
        for _ in range(3):
            history.append((values, state))
            gradients = jax.grad(
                lambda w: distance(VanRossum(), SPEC.output_psp, apply(SPEC, w, FRAMES, steps=STEPS), TARGETS)
            )(values)
            changes, state = optimizer.update(gradients, state, values)
            values = optax.apply_updates(values, changes)
        before, state = history[2]
        folder = tmp_path / str(number)
        run = saved(SPEC, folder, weights=before, state=state, epochs=3, schedule="constant", **arguments)
        assert (run.info["step"], run.finished) == (2, False)
        assert run.settings.optimizer == arguments.get("optimizer", "sgd" if number > 1 else "adamw")
        continued = resumed(folder)
        for name, x in values.items():
            change = np.asarray(x) - np.asarray(before[name])
            own = continued.weights[name] - np.asarray(before[name])
            assert np.allclose(own, change, rtol=1e-3, atol=1e-3 * np.abs(change).max()), (number, name)
    with pytest.raises(ConfigError, match="with the moments of Adam or SGD, got"):
        saved(SPEC, tmp_path / "x", weights=weights, state=optax.sgd(0.1).init(weights))
    with pytest.raises(ConfigError, match="the state was after 0 updates, not 3; leave updates out"):
        saved(SPEC, tmp_path / "x", weights=weights, state=optax.adam(0.1).init(weights), updates=3)
    partial = optax.adam(0.1).init({"linear2": weights["linear2"]})
    with pytest.raises(ConfigError, match="no moments of the parameter linear1; freeze it, or leave state out"):
        saved(SPEC, tmp_path / "x", weights=weights, state=partial)
    assert saved(SPEC, tmp_path / "frozen", weights=weights, state=partial, freeze="linear1").settings.freeze


def test_states_of_other_optimisers_of_optax_are_refused(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    weights = initial_weights(SPEC, seed=0)
    values = {name: jax.numpy.asarray(w) for name, w in weights.items()}
    for optimizer in (optax.amsgrad(0.1), optax.adabelief(0.1), optax.lion(0.1)):
        with pytest.raises(ConfigError, match="or a state of optax with the moments of Adam or SGD"):
            saved(SPEC, tmp_path / "x", weights=weights, state=optimizer.init(values), updates=2)
    deep: Any = ()
    for _ in range(100_000):
        deep = (deep,)
    with pytest.raises(ConfigError, match="or a state of optax with the moments of Adam or SGD"):
        saved(SPEC, tmp_path / "x", weights=weights, state=deep)
    while deep:  # else Python's own garbage collection would be as deep
        (deep,) = deep


def test_moments_of_sgd_are_found_after_arrays_of_jax(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    weights = initial_weights(SPEC, seed=0)
    values = {name: jax.numpy.asarray(w) for name, w in weights.items()}
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
    settings = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
    assert saved(SPEC, tmp_path / "x", weights=weights, state=optimizer.init(values), **settings).info["step"] == 0


def test_a_class_derived_from_an_optimiser_of_torch_with_its_own_updates_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    stsbp_torch = pytest.importorskip("stsbp_torch")

    class Backwards(torch.optim.SGD):  # type: ignore[name-defined, misc]
        def step(self, closure: Any = None) -> Any:
            raise NotImplementedError

    class Named(torch.optim.SGD):  # type: ignore[name-defined, misc]
        pass

    module = stsbp_torch.Network(SPEC)
    with pytest.raises(ConfigError, match="but this optimiser is Backwards"):
        saved(module, tmp_path / "x", state=Backwards(module.parameters(), lr=0.1), updates=0)
    assert saved(module, tmp_path / "y", state=Named(module.parameters(), lr=0.1), updates=0).info["step"] == 0
